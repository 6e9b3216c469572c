-- Orders as nested documents; products in a database are looked up; revenue is kept in a table, and the best are chosen.
CREATE TABLE orders (
  order_id STRING,
  customer ROW<id INT, country STRING>,
  items ARRAY<ROW<sku STRING, qty INT, price DECIMAL(10, 2)>>,
  order_time TIMESTAMP(3),
  proc AS PROCTIME(),
  WATERMARK FOR order_time AS order_time - INTERVAL '30' SECOND
) WITH ('connector' = 'filesystem', 'path' = 'orders.json', 'format' = 'json');

CREATE TABLE products (sku STRING, category STRING, PRIMARY KEY (sku) NOT ENFORCED) WITH (
  'connector' = 'jdbc', 'url' = 'jdbc:sqlite:products.db', 'table-name' = 'products',
  'lookup.cache' = 'PARTIAL', 'lookup.partial-cache.max-rows' = '100', 'lookup.partial-cache.expire-after-write' = '1 min'
);

CREATE TEMPORARY VIEW order_lines AS
SELECT o.order_id, o.customer.id AS customer_id, o.customer.country AS country, i.sku, i.qty, i.price, o.order_time, o.proc
FROM orders AS o CROSS JOIN UNNEST(o.items) AS i (sku, qty, price);

CREATE TEMPORARY VIEW enriched AS
SELECT l.order_id, l.customer_id, l.country, l.sku, l.qty, l.price, l.order_time, COALESCE(p.category, 'unknown') AS category
FROM order_lines AS l LEFT JOIN products FOR SYSTEM_TIME AS OF l.proc AS p ON l.sku = p.sku;

CREATE TABLE revenue (
  country STRING, category STRING, revenue DECIMAL(20, 2), orders BIGINT, PRIMARY KEY (country, category) NOT ENFORCED
) WITH ('connector' = 'jdbc', 'url' = 'jdbc:sqlite:revenue.db', 'table-name' = 'revenue');
CREATE TABLE best (from_ TIMESTAMP(3), category STRING, sku STRING, units BIGINT, place BIGINT)
WITH ('connector' = 'filesystem', 'path' = 'best.json', 'format' = 'json');
CREATE TABLE large (order_id STRING, total DECIMAL(20, 2), skus STRING)
WITH ('connector' = 'filesystem', 'path' = 'large.json', 'format' = 'json');

INSERT INTO revenue
SELECT COALESCE(country, '?'), category, SUM(qty * price), COUNT(DISTINCT order_id)
FROM enriched GROUP BY COALESCE(country, '?'), category;

INSERT INTO best
SELECT window_start, category, sku, units, place
FROM (
  SELECT *, ROW_NUMBER() OVER (PARTITION BY window_start, window_end, category ORDER BY units DESC, sku) AS place
  FROM (
    SELECT window_start, window_end, category, sku, SUM(qty) AS units
    FROM TABLE(TUMBLE(TABLE enriched, DESCRIPTOR(order_time), INTERVAL '30' MINUTES))
    GROUP BY window_start, window_end, category, sku
  )
)
WHERE place <= 2;

INSERT INTO large
SELECT order_id, SUM(qty * price) AS total, LISTAGG(sku, '+') WITHIN GROUP (ORDER BY sku)
FROM order_lines GROUP BY order_id HAVING SUM(qty * price) > 400.00 AND COUNT(*) > 1;

---- duckdb
CREATE TABLE products AS SELECT 'sku-' || n AS sku, CASE n % 2 WHEN 0 THEN 'a' ELSE 'b' END AS category FROM range(7) t(n);
CREATE VIEW lines AS SELECT order_id, customer.id AS customer_id, customer.country AS country, order_time, unnest(items, recursive := true)
FROM read_json('orders.json', columns = {order_id: 'VARCHAR', customer: 'STRUCT(id INT, country VARCHAR)',
  items: 'STRUCT(sku VARCHAR, qty INT, price DECIMAL(10, 2))[]', order_time: 'TIMESTAMP'});
CREATE VIEW enriched AS SELECT *, COALESCE((SELECT category FROM products p WHERE p.sku = l.sku), 'unknown') AS category FROM lines l;

---- revenue.db
SELECT COALESCE(country, '?') AS country, category, CAST(SUM(qty * price) AS DECIMAL(20, 2)) AS revenue,
  COUNT(DISTINCT order_id) AS orders
FROM enriched GROUP BY COALESCE(country, '?'), category

---- best.json
SELECT from_, category, sku, units, place
FROM (SELECT from_, category, sku, units, ROW_NUMBER() OVER (PARTITION BY from_, category ORDER BY units DESC, sku) AS place
      FROM (SELECT time_bucket(INTERVAL '30 minute', order_time) AS from_, category, sku, CAST(SUM(qty) AS BIGINT) AS units
            FROM enriched GROUP BY from_, category, sku))
WHERE place <= 2

---- large.json
SELECT order_id, CAST(SUM(qty * price) AS DECIMAL(20, 2)) AS total, string_agg(sku, '+' ORDER BY sku) AS skus
FROM lines GROUP BY order_id HAVING SUM(qty * price) > 400 AND COUNT(*) > 1
