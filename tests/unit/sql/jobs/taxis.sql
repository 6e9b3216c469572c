-- A company of taxis: rides begin and end, fares are paid at the end, drivers change their cars.
SET 'parallelism.default' = '2';

CREATE TABLE rides (
  rideId INT, taxiId INT, isStart BOOLEAN, psgCnt INT, eventTime STRING,
  rideTime AS TO_TIMESTAMP(eventTime, 'yyyy-MM-dd''T''HH:mm:ss''Z'''),
  WATERMARK FOR rideTime AS rideTime - INTERVAL '60' SECOND
) WITH ('connector' = 'filesystem', 'path' = 'rides.json', 'format' = 'json');

CREATE TABLE fares (
  rideId INT, payMethod STRING, tip DOUBLE, fare DOUBLE, eventTime STRING,
  payTime AS TO_TIMESTAMP(eventTime, 'yyyy-MM-dd''T''HH:mm:ss''Z'''),
  WATERMARK FOR payTime AS payTime - INTERVAL '60' SECOND
) WITH ('connector' = 'filesystem', 'path' = 'fares.json', 'format' = 'json');

CREATE TABLE driver_changes (
  taxiId INT, driverId INT, eventTime STRING,
  usageStartTime AS TO_TIMESTAMP(eventTime, 'yyyy-MM-dd''T''HH:mm:ss''Z'''),
  WATERMARK FOR usageStartTime AS usageStartTime - INTERVAL '60' SECOND
) WITH ('connector' = 'filesystem', 'path' = 'driver_changes.json', 'format' = 'json');

CREATE VIEW drivers AS
SELECT taxiId, driverId, usageStartTime
FROM (
  SELECT *, ROW_NUMBER() OVER (PARTITION BY taxiId ORDER BY usageStartTime DESC) AS row_num FROM driver_changes
)
WHERE row_num = 1;

CREATE VIEW starts AS SELECT * FROM rides WHERE isStart;
CREATE VIEW ends AS SELECT * FROM rides WHERE NOT isStart;
CREATE VIEW paid AS
SELECT f.rideId, f.payTime, f.tip, f.payMethod, e.taxiId
FROM fares f JOIN ends e ON f.rideId = e.rideId AND e.rideTime BETWEEN f.payTime - INTERVAL '5' MINUTE AND f.payTime;

CREATE TABLE tips_of_hours (driverId INT, hour_end TIMESTAMP(3), tips DOUBLE, n BIGINT)
WITH ('connector' = 'filesystem', 'path' = 'tips_of_hours.json', 'format' = 'json');
CREATE TABLE long_rides (rideId INT, minutes BIGINT, psgCnt INT)
WITH ('connector' = 'filesystem', 'path' = 'long_rides.json', 'format' = 'json');
CREATE TABLE methods (payMethod STRING, n BIGINT, mean_tip DOUBLE, PRIMARY KEY (payMethod) NOT ENFORCED)
WITH ('connector' = 'jdbc', 'url' = 'jdbc:sqlite:methods.db', 'table-name' = 'methods');

EXECUTE STATEMENT SET BEGIN
INSERT INTO tips_of_hours
SELECT driverId, TUMBLE_END(payTime, INTERVAL '1' HOUR), SUM(tip), COUNT(*)
FROM (
  SELECT p.payTime, p.tip, d.driverId
  FROM paid AS p JOIN drivers FOR SYSTEM_TIME AS OF p.payTime AS d ON p.taxiId = d.taxiId
)
GROUP BY driverId, TUMBLE(payTime, INTERVAL '1' HOUR);

INSERT INTO long_rides
SELECT s.rideId, TIMESTAMPDIFF(MINUTE, s.rideTime, e.rideTime) AS minutes, s.psgCnt
FROM starts s, ends e
WHERE s.rideId = e.rideId
  AND e.rideTime BETWEEN s.rideTime AND s.rideTime + INTERVAL '2' HOUR
  AND TIMESTAMPDIFF(MINUTE, s.rideTime, e.rideTime) >= 30;

INSERT INTO methods SELECT payMethod, COUNT(*), AVG(tip) FROM fares WHERE payMethod IS NOT NULL GROUP BY payMethod;
END;

---- duckdb
CREATE VIEW rides AS SELECT *, strptime(eventTime, '%Y-%m-%dT%H:%M:%SZ') AS at FROM read_json('rides.json',
  columns = {rideId: 'INT', taxiId: 'INT', isStart: 'BOOLEAN', psgCnt: 'INT', eventTime: 'VARCHAR'});
CREATE VIEW fares AS SELECT *, strptime(eventTime, '%Y-%m-%dT%H:%M:%SZ') AS at FROM read_json('fares.json',
  columns = {rideId: 'INT', payMethod: 'VARCHAR', tip: 'DOUBLE', fare: 'DOUBLE', eventTime: 'VARCHAR'});
CREATE VIEW changes AS SELECT *, strptime(eventTime, '%Y-%m-%dT%H:%M:%SZ') AS at FROM read_json('driver_changes.json',
  columns = {taxiId: 'INT', driverId: 'INT', eventTime: 'VARCHAR'});

---- tips_of_hours.json
SELECT driverId, time_bucket(INTERVAL '1 hour', f.at) + INTERVAL '1 hour' AS hour_end, SUM(tip) AS tips, COUNT(*) AS n
FROM (SELECT f.*, e.taxiId FROM fares f JOIN rides e ON f.rideId = e.rideId AND NOT e.isStart
      AND e.at BETWEEN f.at - INTERVAL '5 minute' AND f.at) f
ASOF JOIN changes d ON f.taxiId = d.taxiId AND f.at >= d.at
GROUP BY driverId, hour_end

---- long_rides.json
SELECT s.rideId, date_sub('minute', s.at, e.at) AS minutes, s.psgCnt
FROM rides s JOIN rides e ON s.rideId = e.rideId AND s.isStart AND NOT e.isStart
WHERE e.at BETWEEN s.at AND s.at + INTERVAL '2 hour' AND date_sub('minute', s.at, e.at) >= 30

---- methods.db
SELECT payMethod, COUNT(*) AS n, AVG(tip) AS mean_tip FROM fares WHERE payMethod IS NOT NULL GROUP BY payMethod
