-- Impressions, clicks and purchases of ads: rates of each window, the last click before a purchase, and sums at several levels.
SET 'parallelism.default' = '2';
CREATE TABLE impressions (
  ad_id STRING, campaign STRING, country STRING, visitor STRING, shown_at TIMESTAMP_LTZ(3),
  WATERMARK FOR shown_at AS shown_at - INTERVAL '15' SECOND
) WITH ('connector' = 'filesystem', 'path' = 'impressions.json', 'format' = 'json', 'json.timestamp-format.standard' = 'ISO-8601');
CREATE TABLE clicks (
  ad_id STRING, visitor STRING, clicked_at TIMESTAMP_LTZ(3), WATERMARK FOR clicked_at AS clicked_at - INTERVAL '15' SECOND
) WITH ('connector' = 'filesystem', 'path' = 'clicks.json', 'format' = 'json', 'json.timestamp-format.standard' = 'ISO-8601');
CREATE TABLE purchases (
  purchase_id INT, visitor STRING, amount DOUBLE, bought_at TIMESTAMP_LTZ(3),
  WATERMARK FOR bought_at AS bought_at - INTERVAL '15' SECOND
) WITH ('connector' = 'filesystem', 'path' = 'purchases.json', 'format' = 'json', 'json.timestamp-format.standard' = 'ISO-8601');

CREATE VIEW clicked AS
SELECT i.campaign, i.country, i.visitor, c.clicked_at
FROM clicks AS c JOIN impressions AS i
ON c.ad_id = i.ad_id AND c.visitor = i.visitor AND c.clicked_at BETWEEN i.shown_at AND i.shown_at + INTERVAL '2' MINUTE;

CREATE TABLE rates (from_ TIMESTAMP_LTZ(3), campaign STRING, shown BIGINT, clicks BIGINT, rate DOUBLE)
WITH ('connector' = 'filesystem', 'path' = 'rates.json', 'format' = 'json');
CREATE TABLE attributed (purchase_id INT, campaign STRING, amount DOUBLE, seconds_ BIGINT, PRIMARY KEY (purchase_id) NOT ENFORCED)
WITH ('connector' = 'jdbc', 'url' = 'jdbc:sqlite:attributed.db', 'table-name' = 'attributed');
CREATE TABLE levels (campaign STRING, country STRING, shown BIGINT, visitors BIGINT)
WITH ('connector' = 'filesystem', 'path' = 'levels.json', 'format' = 'json');
CREATE TABLE never_clicked (campaign STRING, visitor STRING)
WITH ('connector' = 'filesystem', 'path' = 'never_clicked.json', 'format' = 'json');

INSERT INTO rates
SELECT s.window_start, s.campaign, s.n, COALESCE(c.n, 0), CAST(COALESCE(c.n, 0) AS DOUBLE) / s.n
FROM (
  SELECT window_start, window_end, campaign, COUNT(*) AS n
  FROM TABLE(TUMBLE(TABLE impressions, DESCRIPTOR(shown_at), INTERVAL '15' MINUTES)) GROUP BY window_start, window_end, campaign
) AS s
LEFT JOIN (
  SELECT window_start, window_end, campaign, COUNT(*) AS n
  FROM TABLE(TUMBLE(TABLE clicked, DESCRIPTOR(clicked_at), INTERVAL '15' MINUTES)) GROUP BY window_start, window_end, campaign
) AS c
ON s.campaign = c.campaign AND s.window_start = c.window_start AND s.window_end = c.window_end;

INSERT INTO attributed
SELECT purchase_id, campaign, amount, seconds_
FROM (
  SELECT p.purchase_id, c.campaign, p.amount, TIMESTAMPDIFF(SECOND, c.clicked_at, p.bought_at) AS seconds_,
    ROW_NUMBER() OVER (PARTITION BY p.purchase_id ORDER BY c.clicked_at DESC, c.campaign) AS place
  FROM purchases AS p JOIN clicked AS c
  ON p.visitor = c.visitor AND c.clicked_at BETWEEN p.bought_at - INTERVAL '30' MINUTE AND p.bought_at
)
WHERE place = 1;

INSERT INTO levels
SELECT campaign, country, COUNT(*), COUNT(DISTINCT visitor) FROM impressions GROUP BY ROLLUP (campaign, country);

INSERT INTO never_clicked
SELECT DISTINCT i.campaign, i.visitor FROM impressions AS i
WHERE i.country = 'NO' AND NOT EXISTS (SELECT 1 FROM clicks AS c WHERE c.visitor = i.visitor);

---- duckdb
SET TimeZone = 'UTC';
CREATE VIEW impressions AS SELECT * FROM read_json('impressions.json', columns = {ad_id: 'VARCHAR', campaign: 'VARCHAR', country: 'VARCHAR',
  visitor: 'VARCHAR', shown_at: 'TIMESTAMP'});
CREATE VIEW clicks AS SELECT * FROM read_json('clicks.json', columns = {ad_id: 'VARCHAR', visitor: 'VARCHAR', clicked_at: 'TIMESTAMP'});
CREATE VIEW purchases AS SELECT * FROM read_json('purchases.json', columns = {purchase_id: 'INT', visitor: 'VARCHAR', amount: 'DOUBLE',
  bought_at: 'TIMESTAMP'});
CREATE VIEW clicked AS SELECT i.campaign, i.country, i.visitor, c.clicked_at FROM clicks c JOIN impressions i
ON c.ad_id = i.ad_id AND c.visitor = i.visitor AND c.clicked_at BETWEEN i.shown_at AND i.shown_at + INTERVAL '2 minute';

---- rates.json
SELECT s.w AS from_, s.campaign, s.n AS shown, COALESCE(c.n, 0) AS clicks, COALESCE(c.n, 0)::DOUBLE / s.n AS rate
FROM (SELECT time_bucket(INTERVAL '15 minute', shown_at) AS w, campaign, COUNT(*) AS n FROM impressions GROUP BY w, campaign) s
LEFT JOIN (SELECT time_bucket(INTERVAL '15 minute', clicked_at) AS w, campaign, COUNT(*) AS n FROM clicked GROUP BY w, campaign) c
ON s.w = c.w AND s.campaign = c.campaign

---- attributed.db
SELECT purchase_id, campaign, amount, date_sub('second', clicked_at, bought_at) AS seconds_
FROM (SELECT *, ROW_NUMBER() OVER (PARTITION BY purchase_id ORDER BY clicked_at DESC, campaign) AS place
      FROM purchases p JOIN clicked c ON p.visitor = c.visitor AND c.clicked_at BETWEEN p.bought_at - INTERVAL '30 minute' AND p.bought_at)
WHERE place = 1

---- levels.json
SELECT campaign, country, COUNT(*) AS shown, COUNT(DISTINCT visitor) AS visitors FROM impressions GROUP BY ROLLUP (campaign, country)

---- never_clicked.json
SELECT DISTINCT campaign, visitor FROM impressions WHERE country = 'NO' AND visitor NOT IN (SELECT visitor FROM clicks)
