-- Payments by card: several rules make alarms in one table; limits of a day; what was paid back; a table of blocked cards.
CREATE TABLE payments (
  id BIGINT, card STRING, amount DECIMAL(10, 2), city STRING, kind STRING, ts TIMESTAMP(3),
  WATERMARK FOR ts AS ts - INTERVAL '1' MINUTE
) WITH ('connector' = 'filesystem', 'path' = 'payments.json', 'format' = 'json');
CREATE TABLE blocked (card STRING, reason STRING) WITH ('connector' = 'filesystem', 'path' = 'blocked.csv', 'format' = 'csv');

CREATE TABLE alarms (rule_ STRING, card STRING, at_ TIMESTAMP(3), detail STRING)
WITH ('connector' = 'filesystem', 'path' = 'alarms.json', 'format' = 'json');
CREATE TABLE over_limit (card STRING, id BIGINT, day_ DATE, total DECIMAL(20, 2))
WITH ('connector' = 'filesystem', 'path' = 'over_limit.json', 'format' = 'json');
CREATE TABLE not_paid_back (card STRING, amount DECIMAL(10, 2)) WITH ('connector' = 'filesystem', 'path' = 'not_paid_back.json', 'format' = 'json');
CREATE TABLE cities (city STRING, kind STRING, level_ BIGINT, total DECIMAL(20, 2), cards BIGINT)
WITH ('connector' = 'filesystem', 'path' = 'cities.json', 'format' = 'json');

INSERT INTO alarms
SELECT 'often', card, window_end, CAST(n AS STRING) || ' in 10 minutes'
FROM (
  SELECT card, window_start, window_end, COUNT(*) AS n
  FROM TABLE(HOP(TABLE payments, DESCRIPTOR(ts), INTERVAL '5' MINUTES, INTERVAL '10' MINUTES))
  GROUP BY card, window_start, window_end
  HAVING COUNT(*) >= 4
)
UNION ALL
SELECT 'far', card, ts, CONCAT(was_city, ' to ', city)
FROM (
  SELECT card, city, ts, LAG(city) OVER w AS was_city, LAG(ts) OVER w AS was
  FROM payments WINDOW w AS (PARTITION BY card ORDER BY ts)
)
WHERE was_city <> city AND TIMESTAMPDIFF(MINUTE, was, ts) < 3
UNION ALL
SELECT 'blocked', p.card, p.ts, 'payment ' || CAST(p.id AS STRING)
FROM payments AS p WHERE p.card IN (SELECT b.card FROM blocked AS b WHERE b.reason <> 'expired');

INSERT INTO over_limit
SELECT card, id, day_, total
FROM (
  SELECT card, id, amount, CAST(ts AS DATE) AS day_, SUM(amount) OVER (PARTITION BY card, CAST(ts AS DATE) ORDER BY ts) AS total
  FROM payments WHERE kind = 'pay'
)
WHERE total > 1000 AND total - amount <= 1000;

INSERT INTO not_paid_back
SELECT card, amount FROM payments WHERE kind = 'pay' AND amount > 150
EXCEPT ALL
SELECT card, amount FROM payments WHERE kind = 'refund';

INSERT INTO cities
SELECT city, kind, GROUPING(city, kind), SUM(amount), COUNT(DISTINCT card) FROM payments GROUP BY GROUPING SETS ((city, kind), (kind), ());

---- duckdb
CREATE VIEW payments AS SELECT * FROM read_json('payments.json', columns = {id: 'BIGINT', card: 'VARCHAR', amount: 'DECIMAL(10, 2)',
  city: 'VARCHAR', kind: 'VARCHAR', ts: 'TIMESTAMP'});
CREATE VIEW blocked AS SELECT * FROM read_csv('blocked.csv', header = true, columns = {card: 'VARCHAR', reason: 'VARCHAR'});

---- alarms.json
SELECT 'often' AS rule_, card, w + INTERVAL '10 minute' AS at_, COUNT(*) || ' in 10 minutes' AS detail
FROM (SELECT card, unnest([b, b - INTERVAL '5 minute']) AS w FROM (SELECT *, time_bucket(INTERVAL '5 minute', ts) AS b FROM payments))
GROUP BY card, w HAVING COUNT(*) >= 4
UNION ALL
SELECT 'far', card, ts, was_city || ' to ' || city
FROM (SELECT *, LAG(city) OVER w AS was_city, LAG(ts) OVER w AS was FROM payments WINDOW w AS (PARTITION BY card ORDER BY ts))
WHERE was_city <> city AND date_sub('minute', was, ts) < 3
UNION ALL
SELECT 'blocked', card, ts, 'payment ' || id FROM payments WHERE card IN (SELECT card FROM blocked WHERE reason <> 'expired')

---- over_limit.json
SELECT card, id, day_, total
FROM (SELECT *, ts::DATE AS day_, CAST(SUM(amount) OVER (PARTITION BY card, ts::DATE ORDER BY ts) AS DECIMAL(20, 2)) AS total
      FROM payments WHERE kind = 'pay')
WHERE total > 1000 AND total - amount <= 1000

---- not_paid_back.json
SELECT card, amount FROM payments WHERE kind = 'pay' AND amount > 150 EXCEPT ALL SELECT card, amount FROM payments WHERE kind = 'refund'

---- cities.json
SELECT city, kind, GROUPING(city, kind) AS level_, CAST(SUM(amount) AS DECIMAL(20, 2)) AS total, COUNT(DISTINCT card) AS cards
FROM payments GROUP BY GROUPING SETS ((city, kind), (kind), ())
