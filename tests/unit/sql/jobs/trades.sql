-- Trades in several currencies: candles of five minutes at the rate of the moment, and the turnover of an hour as it grows.
CREATE TABLE trades (
  id BIGINT, symbol STRING, price DECIMAL(12, 4), qty INT, currency STRING, ts TIMESTAMP(3),
  WATERMARK FOR ts AS ts - INTERVAL '20' SECOND
) WITH ('connector' = 'filesystem', 'path' = 'trades.csv', 'format' = 'csv', 'csv.field-delimiter' = ';');

CREATE TABLE fx (
  currency STRING, rate DECIMAL(10, 6), valid_from TIMESTAMP(3),
  WATERMARK FOR valid_from AS valid_from, PRIMARY KEY (currency) NOT ENFORCED
) WITH ('connector' = 'filesystem', 'path' = 'fx.json', 'format' = 'json');

CREATE VIEW in_usd AS
SELECT t.id, t.symbol, t.price, t.qty, t.ts, CAST(t.price * f.rate AS DECIMAL(18, 4)) AS usd
FROM trades AS t LEFT JOIN fx FOR SYSTEM_TIME AS OF t.ts AS f ON t.currency = f.currency;

CREATE TABLE candles (
  symbol STRING, from_ TIMESTAMP(3), open_ DECIMAL(12, 4), high DECIMAL(12, 4), low DECIMAL(12, 4), close_ DECIMAL(12, 4),
  volume BIGINT, turnover DECIMAL(30, 4), unpriced BIGINT
) WITH ('connector' = 'filesystem', 'path' = 'candles.json', 'format' = 'json');
CREATE TABLE growing (until_ TIMESTAMP(3), symbol STRING, volume BIGINT, trades BIGINT)
WITH ('connector' = 'filesystem', 'path' = 'growing.json', 'format' = 'json');
CREATE TABLE movers (symbol STRING, first_price DECIMAL(12, 4), last_price DECIMAL(12, 4), place BIGINT, PRIMARY KEY (place) NOT ENFORCED)
WITH ('connector' = 'jdbc', 'url' = 'jdbc:sqlite:movers.db', 'table-name' = 'movers');

INSERT INTO candles
SELECT symbol, window_start, FIRST_VALUE(price), MAX(price), MIN(price), LAST_VALUE(price), SUM(qty), SUM(usd * qty),
  COUNT(*) FILTER (WHERE usd IS NULL)
FROM TABLE(TUMBLE(TABLE in_usd, DESCRIPTOR(ts), INTERVAL '5' MINUTES))
GROUP BY symbol, window_start, window_end;

INSERT INTO growing
SELECT window_end, symbol, SUM(qty), COUNT(*)
FROM TABLE(CUMULATE(TABLE trades, DESCRIPTOR(ts), INTERVAL '20' MINUTES, INTERVAL '1' HOUR))
GROUP BY window_start, window_end, symbol;

INSERT INTO movers
SELECT symbol, first_price, last_price, place
FROM (
  SELECT symbol, first_price, last_price, ROW_NUMBER() OVER (ORDER BY last_price / first_price DESC, symbol) AS place
  FROM (SELECT symbol, FIRST_VALUE(price) AS first_price, LAST_VALUE(price) AS last_price FROM trades GROUP BY symbol)
)
WHERE place <= 3;

---- duckdb
CREATE VIEW trades AS SELECT * FROM read_csv('trades.csv', header = false, delim = ';', columns = {id: 'BIGINT', symbol: 'VARCHAR',
  price: 'DECIMAL(12, 4)', qty: 'INT', currency: 'VARCHAR', ts: 'TIMESTAMP'});
CREATE VIEW fx AS SELECT * FROM read_json('fx.json', columns = {currency: 'VARCHAR', rate: 'DECIMAL(10, 6)', valid_from: 'TIMESTAMP'});
CREATE VIEW in_usd AS SELECT t.*, CAST(t.price * f.rate AS DECIMAL(18, 4)) AS usd
FROM trades t ASOF LEFT JOIN fx f ON t.currency = f.currency AND t.ts >= f.valid_from;

---- candles.json
SELECT symbol, time_bucket(INTERVAL '5 minute', ts) AS from_, arg_min(price, ts) AS open_, MAX(price) AS high, MIN(price) AS low,
  arg_max(price, ts) AS close_, CAST(SUM(qty) AS BIGINT) AS volume, CAST(SUM(usd * qty) AS DECIMAL(30, 4)) AS turnover,
  COUNT(*) FILTER (WHERE usd IS NULL) AS unpriced
FROM in_usd GROUP BY symbol, from_

---- growing.json
SELECT h + INTERVAL '20 minute' * k AS until_, symbol, CAST(SUM(qty) AS BIGINT) AS volume, COUNT(*) AS trades
FROM (SELECT *, time_bucket(INTERVAL '1 hour', ts) AS h FROM trades), range(1, 4) r(k)
WHERE ts < h + INTERVAL '20 minute' * k
GROUP BY h, k, symbol

---- movers.db
SELECT symbol, first_price, last_price, place
FROM (SELECT *, ROW_NUMBER() OVER (ORDER BY last_price::DOUBLE / first_price DESC, symbol) AS place
      FROM (SELECT symbol, arg_min(price, ts) AS first_price, arg_max(price, ts) AS last_price FROM trades GROUP BY symbol))
WHERE place <= 3
