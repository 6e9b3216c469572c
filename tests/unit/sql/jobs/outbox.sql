-- Events with a payload in JSON, as services write them to one topic: tables are made of them, joined, and compared with means.
CREATE TABLE outbox (
  id BIGINT, kind STRING, payload STRING, ts TIMESTAMP(3), WATERMARK FOR ts AS ts - INTERVAL '2' MINUTE
) WITH ('connector' = 'filesystem', 'path' = 'outbox.json', 'format' = 'json');

CREATE VIEW customers AS
SELECT customer, name, tier, ts
FROM (
  SELECT JSON_VALUE(payload, '$.id' RETURNING INT) AS customer, JSON_VALUE(payload, '$.name') AS name,
    JSON_VALUE(payload, '$.plan.tier' DEFAULT 'basic' ON EMPTY) AS tier, ts,
    ROW_NUMBER() OVER (PARTITION BY JSON_VALUE(payload, '$.id' RETURNING INT) ORDER BY ts DESC) AS row_num
  FROM outbox WHERE kind = 'customer'
)
WHERE row_num = 1;

CREATE VIEW purchases AS
SELECT id, JSON_VALUE(payload, '$.customer' RETURNING INT) AS customer,
  CAST(JSON_VALUE(payload, '$.amount') AS DECIMAL(10, 2)) AS amount,
  JSON_VALUE(payload, '$.tags[0]') AS tag, JSON_EXISTS(payload, '$.coupon') AS with_coupon, ts
FROM outbox WHERE kind = 'purchase';

CREATE TABLE tiers (tier STRING, n BIGINT, total DECIMAL(20, 2), coupons BIGINT, PRIMARY KEY (tier) NOT ENFORCED)
WITH ('connector' = 'jdbc', 'url' = 'jdbc:sqlite:tiers.db', 'table-name' = 'tiers');
CREATE TABLE at_the_time (id BIGINT, name STRING, tier STRING, amount DECIMAL(10, 2))
WITH ('connector' = 'filesystem', 'path' = 'at_the_time.json', 'format' = 'json');
CREATE TABLE sleepers (customer INT, name STRING) WITH ('connector' = 'filesystem', 'path' = 'sleepers.json', 'format' = 'json');
CREATE TABLE above (customer INT, total DECIMAL(20, 2), n BIGINT)
WITH ('connector' = 'filesystem', 'path' = 'above.json', 'format' = 'json');
CREATE TABLE tags (tag STRING, customers STRING, cheapest DECIMAL(10, 2))
WITH ('connector' = 'filesystem', 'path' = 'tags.json', 'format' = 'json');

INSERT INTO tiers
SELECT c.tier, COUNT(*), SUM(p.amount), COUNT(*) FILTER (WHERE p.with_coupon)
FROM purchases AS p JOIN customers AS c ON p.customer = c.customer GROUP BY c.tier;

INSERT INTO at_the_time
SELECT p.id, c.name, c.tier, p.amount
FROM purchases AS p LEFT JOIN customers FOR SYSTEM_TIME AS OF p.ts AS c ON p.customer = c.customer
WHERE p.amount >= 80;

INSERT INTO sleepers
SELECT customer, name FROM customers AS c WHERE NOT EXISTS (SELECT 1 FROM purchases AS p WHERE p.customer = c.customer);

INSERT INTO above
SELECT customer, total, n
FROM (SELECT customer, SUM(amount) AS total, COUNT(*) AS n FROM purchases GROUP BY customer)
WHERE total > (SELECT SUM(amount) / COUNT(DISTINCT customer) FROM purchases);

INSERT INTO tags
SELECT COALESCE(tag, '-'), LISTAGG(DISTINCT CAST(customer AS STRING)) WITHIN GROUP (ORDER BY CAST(customer AS STRING)), MIN(amount)
FROM purchases GROUP BY COALESCE(tag, '-');

---- duckdb
CREATE VIEW outbox AS SELECT * FROM read_json('outbox.json', columns = {id: 'BIGINT', kind: 'VARCHAR', payload: 'VARCHAR', ts: 'TIMESTAMP'});
CREATE VIEW every AS SELECT CAST(payload->>'$.id' AS INT) AS customer, payload->>'$.name' AS name,
  COALESCE(payload->>'$.plan.tier', 'basic') AS tier, ts FROM outbox WHERE kind = 'customer';
CREATE VIEW customers AS SELECT * FROM every QUALIFY ROW_NUMBER() OVER (PARTITION BY customer ORDER BY ts DESC) = 1;
CREATE VIEW purchases AS SELECT id, CAST(payload->>'$.customer' AS INT) AS customer, CAST(payload->>'$.amount' AS DECIMAL(10, 2)) AS amount,
  payload->>'$.tags[0]' AS tag, json_exists(payload, '$.coupon') AS with_coupon, ts FROM outbox WHERE kind = 'purchase';

---- tiers.db
SELECT tier, COUNT(*) AS n, CAST(SUM(amount) AS DECIMAL(20, 2)) AS total, COUNT(*) FILTER (WHERE with_coupon) AS coupons
FROM purchases JOIN customers USING (customer) GROUP BY tier

---- at_the_time.json
SELECT id, name, tier, amount FROM purchases p ASOF LEFT JOIN every c ON p.customer = c.customer AND p.ts >= c.ts WHERE amount >= 80

---- sleepers.json
SELECT customer, name FROM customers WHERE customer NOT IN (SELECT customer FROM purchases)

---- above.json
SELECT customer, CAST(SUM(amount) AS DECIMAL(20, 2)) AS total, COUNT(*) AS n FROM purchases GROUP BY customer
HAVING SUM(amount) > (SELECT SUM(amount) / COUNT(DISTINCT customer) FROM purchases)

---- tags.json
SELECT COALESCE(tag, '-') AS tag, string_agg(DISTINCT customer::VARCHAR, ',' ORDER BY customer::VARCHAR) AS customers, MIN(amount) AS cheapest
FROM purchases GROUP BY COALESCE(tag, '-')
