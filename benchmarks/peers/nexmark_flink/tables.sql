CREATE TABLE people (
    id BIGINT, name STRING, emailAddress STRING, creditCard STRING, city STRING, state STRING, `dateTime` BIGINT, extra STRING,
    t AS CAST(TO_TIMESTAMP_LTZ(`dateTime`, 3) AS TIMESTAMP(3)), WATERMARK FOR t AS t
) WITH ('connector' = 'filesystem', 'path' = '{person}', 'format' = 'json')
;
CREATE TABLE auctions (
    id BIGINT, itemName STRING, description STRING, initialBid BIGINT, reserve BIGINT, `dateTime` BIGINT, expires BIGINT, seller BIGINT,
    category BIGINT, extra STRING,
    t AS CAST(TO_TIMESTAMP_LTZ(`dateTime`, 3) AS TIMESTAMP(3)), WATERMARK FOR t AS t
) WITH ('connector' = 'filesystem', 'path' = '{auction}', 'format' = 'json')
;
CREATE TABLE bids (
    auction BIGINT, bidder BIGINT, price BIGINT, channel STRING, url STRING, `dateTime` BIGINT, extra STRING,
    t AS CAST(TO_TIMESTAMP_LTZ(`dateTime`, 3) AS TIMESTAMP(3)), WATERMARK FOR t AS t
) WITH ('connector' = 'filesystem', 'path' = '{bid}', 'format' = 'json')
;
CREATE TEMPORARY VIEW person AS
SELECT id, name, emailAddress, creditCard, city, state, t AS `dateTime`, extra FROM people WHERE seen()
;
CREATE TEMPORARY VIEW auction AS
SELECT id, itemName, description, initialBid, reserve, t AS `dateTime`,
    CAST(TO_TIMESTAMP_LTZ(expires, 3) AS TIMESTAMP(3)) AS expires, seller, category, extra
FROM auctions WHERE seen()
;
CREATE TEMPORARY VIEW bid AS
SELECT auction, bidder, price, channel, url, t AS `dateTime`, extra FROM bids WHERE seen()
;
CREATE TEMPORARY VIEW bid_by_clock AS SELECT *, PROCTIME() AS arrived FROM bid
