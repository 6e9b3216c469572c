-- Sensors that send some readings twice, with milliseconds since 1970, in the days around a change of the clocks of Berlin.
SET 'table.local-time-zone' = 'Europe/Berlin';

CREATE TABLE readings (
  device STRING, temperature DOUBLE, battery INT, ts BIGINT,
  event_time AS TO_TIMESTAMP_LTZ(ts, 3),
  WATERMARK FOR event_time AS event_time - INTERVAL '10' MINUTE
) WITH ('connector' = 'filesystem', 'path' = 'readings.json', 'format' = 'json');

CREATE VIEW clean AS
SELECT device, temperature, battery, event_time
FROM (SELECT *, ROW_NUMBER() OVER (PARTITION BY device, ts ORDER BY event_time) AS copy_ FROM readings)
WHERE copy_ = 1;

CREATE TABLE days (day_begin TIMESTAMP(3), day_end TIMESTAMP(3), device STRING, lowest DOUBLE, highest DOUBLE, n BIGINT)
WITH ('connector' = 'filesystem', 'path' = 'days.json', 'format' = 'json');
CREATE TABLE jumps (device STRING, at_ STRING, temperature DOUBLE, was DOUBLE, mean DOUBLE)
WITH ('connector' = 'filesystem', 'path' = 'jumps.json', 'format' = 'json');
CREATE TABLE silent (device STRING, gap_hours BIGINT, since STRING)
WITH ('connector' = 'filesystem', 'path' = 'silent.json', 'format' = 'json');

INSERT INTO days
SELECT window_start, window_end, device, MIN(temperature), MAX(temperature), COUNT(*)
FROM TABLE(TUMBLE(TABLE clean, DESCRIPTOR(event_time), INTERVAL '1' DAY))
GROUP BY window_start, window_end, device;

INSERT INTO jumps
SELECT device, DATE_FORMAT(event_time, 'yyyy-MM-dd HH:mm:ss'), temperature, was, ROUND(mean, 6)
FROM (
  SELECT device, event_time, temperature, AVG(temperature) OVER w AS mean,
    LAG(temperature) OVER (PARTITION BY device ORDER BY event_time) AS was
  FROM clean
  WINDOW w AS (PARTITION BY device ORDER BY event_time ROWS BETWEEN 5 PRECEDING AND CURRENT ROW)
)
WHERE ABS(temperature - was) > 12;

INSERT INTO silent
SELECT device, TIMESTAMPDIFF(HOUR, was, event_time), CAST(CAST(was AS TIMESTAMP(0)) AS STRING)
FROM (SELECT device, event_time, LAG(event_time) OVER (PARTITION BY device ORDER BY event_time) AS was FROM clean)
WHERE TIMESTAMPDIFF(HOUR, was, event_time) >= 2;

---- duckdb
CREATE VIEW clean AS
SELECT device, temperature, make_timestamp(ts * 1000) AS utc, make_timestamptz(ts * 1000) AT TIME ZONE 'Europe/Berlin' AS berlin
FROM (SELECT DISTINCT ON (device, ts) * FROM read_json('readings.json',
  columns = {device: 'VARCHAR', temperature: 'DOUBLE', battery: 'INT', ts: 'BIGINT'}));

---- days.json
SELECT date_trunc('day', berlin)::TIMESTAMP AS day_begin, (date_trunc('day', berlin) + INTERVAL '1 day')::TIMESTAMP AS day_end, device,
  MIN(temperature) AS lowest, MAX(temperature) AS highest, COUNT(*) AS n
FROM clean GROUP BY day_begin, day_end, device

---- jumps.json
SELECT device, strftime(berlin, '%Y-%m-%d %H:%M:%S') AS at_, temperature, was, ROUND(mean, 6) AS mean
FROM (SELECT *, AVG(temperature) OVER (w ROWS BETWEEN 5 PRECEDING AND CURRENT ROW) AS mean, LAG(temperature) OVER w AS was
      FROM clean WINDOW w AS (PARTITION BY device ORDER BY utc))
WHERE ABS(temperature - was) > 12

---- silent.json
SELECT device, date_sub('hour', was, utc) AS gap_hours, strftime(was_berlin, '%Y-%m-%d %H:%M:%S') AS since
FROM (SELECT *, LAG(utc) OVER w AS was, LAG(berlin) OVER w AS was_berlin FROM clean WINDOW w AS (PARTITION BY device ORDER BY utc))
WHERE date_sub('hour', was, utc) >= 2
