-- The log of a web server, as lines of CSV: sessions of each address, errors in hopping windows, what people search for.
CREATE TABLE access_log (
  ip STRING, at_text STRING, request STRING, status INT, bytes BIGINT, agent STRING,
  ts AS TO_TIMESTAMP(at_text, 'dd/MMM/yyyy:HH:mm:ss'),
  WATERMARK FOR ts AS ts - INTERVAL '30' SECOND
) WITH ('connector' = 'filesystem', 'path' = 'access_log.csv', 'format' = 'csv');

CREATE VIEW hits AS
SELECT
  ip, ts, status, COALESCE(bytes, 0) AS bytes,
  SPLIT_INDEX(request, ' ', 0) AS verb,
  REGEXP_EXTRACT(request, '^[A-Z]+ (/[^? ]*)', 1) AS path,
  PARSE_URL('http://host' || SPLIT_INDEX(request, ' ', 1), 'QUERY', 'q') AS q,
  CASE WHEN LOWER(agent) LIKE '%bot%' THEN 'bot' ELSE 'person' END AS who
FROM access_log;

CREATE TABLE sessions (
  ip STRING, begun TIMESTAMP(3), ended TIMESTAMP(3), hits BIGINT, paths BIGINT, bytes BIGINT, first_path STRING, last_path STRING
) WITH ('connector' = 'filesystem', 'path' = 'sessions.json', 'format' = 'json');
CREATE TABLE errors (until_ TIMESTAMP(3), path STRING, failed BIGINT, n BIGINT, share DOUBLE)
WITH ('connector' = 'filesystem', 'path' = 'errors.json', 'format' = 'json');
CREATE TABLE searches (q STRING, n BIGINT) WITH ('connector' = 'filesystem', 'path' = 'searches.csv', 'format' = 'csv');

BEGIN STATEMENT SET;
INSERT INTO sessions
SELECT ip, SESSION_START(ts, INTERVAL '10' MINUTE), SESSION_END(ts, INTERVAL '10' MINUTE), COUNT(*), COUNT(DISTINCT path),
  SUM(bytes), FIRST_VALUE(path), LAST_VALUE(path)
FROM hits WHERE who = 'person'
GROUP BY ip, SESSION(ts, INTERVAL '10' MINUTE);

INSERT INTO errors
SELECT window_end, path, failed, n, ROUND(100.0 * failed / n, 1)
FROM (
  SELECT window_start, window_end, path, COUNT(*) FILTER (WHERE status >= 500) AS failed, COUNT(*) AS n
  FROM TABLE(HOP(TABLE hits, DESCRIPTOR(ts), INTERVAL '10' MINUTES, INTERVAL '30' MINUTES))
  GROUP BY window_start, window_end, path
)
WHERE failed > 0 AND n >= 3;

INSERT INTO searches SELECT INITCAP(TRIM(URL_DECODE(q))), COUNT(*) FROM hits WHERE q IS NOT NULL AND verb <> 'POST' GROUP BY INITCAP(TRIM(URL_DECODE(q)));
END;

---- duckdb
CREATE VIEW hits AS
SELECT ip, strptime(at_text, '%d/%b/%Y:%H:%M:%S') AS ts, status, COALESCE(bytes, 0) AS bytes,
  split_part(request, ' ', 1) AS verb, regexp_extract(request, '^[A-Z]+ (/[^? ]*)', 1) AS path,
  replace(nullif(regexp_extract(request, '[?&]q=([^& ]*)', 1), ''), '+', ' ') AS q,
  CASE WHEN agent ILIKE '%bot%' THEN 'bot' ELSE 'person' END AS who
FROM read_csv('access_log.csv', header = false, columns = {ip: 'VARCHAR', at_text: 'VARCHAR', request: 'VARCHAR', status: 'INT',
  bytes: 'BIGINT', agent: 'VARCHAR'});

---- sessions.json
SELECT ip, MIN(ts) AS begun, MAX(ts) + INTERVAL '10 minute' AS ended, COUNT(*) AS hits, COUNT(DISTINCT path) AS paths,
  CAST(SUM(bytes) AS BIGINT) AS bytes, arg_min(path, ts) AS first_path, arg_max(path, ts) AS last_path
FROM (SELECT *, SUM(begins) OVER (PARTITION BY ip ORDER BY ts) AS session
      FROM (SELECT *, CASE WHEN ts - LAG(ts) OVER (PARTITION BY ip ORDER BY ts) < INTERVAL '10 minute' THEN 0 ELSE 1 END AS begins
            FROM hits WHERE who = 'person'))
GROUP BY ip, session

---- errors.json
SELECT until_, path, failed, n, ROUND(100.0::DOUBLE * failed / n, 1) AS share
FROM (SELECT w + INTERVAL '30 minute' AS until_, path, COUNT(*) FILTER (WHERE status >= 500) AS failed, COUNT(*) AS n
      FROM (SELECT *, unnest([b, b - INTERVAL '10 minute', b - INTERVAL '20 minute']) AS w
            FROM (SELECT *, time_bucket(INTERVAL '10 minute', ts) AS b FROM hits))
      GROUP BY w, path)
WHERE failed > 0 AND n >= 3

---- searches.csv
SELECT q, COUNT(*) AS n
FROM (SELECT array_to_string(list_transform(string_split(trim(q), ' '), lambda x: upper(x[1]) || lower(x[2:])), ' ') AS q
      FROM hits WHERE q IS NOT NULL AND verb <> 'POST')
GROUP BY q
