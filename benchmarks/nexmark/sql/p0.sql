CREATE TABLE turns (
    auction BIGINT,
    bidder BIGINT,
    start_tstamp TIMESTAMP(3),
    bottom_tstamp TIMESTAMP(3),
    end_tstamp TIMESTAMP(3)
) WITH ('connector' = 'blackhole');

INSERT INTO turns
SELECT auction, bidder, start_tstamp, bottom_tstamp, end_tstamp
FROM bid MATCH_RECOGNIZE (
    PARTITION BY auction, bidder
    ORDER BY `dateTime`
    MEASURES
        FIRST(S.`dateTime`) AS start_tstamp,
        LAST(DOWN.`dateTime`) AS bottom_tstamp,
        LAST(UP.`dateTime`) AS end_tstamp
    ONE ROW PER MATCH
    AFTER MATCH SKIP TO LAST UP
    PATTERN (S DOWN+ UP)
    DEFINE
        DOWN AS (LAST(DOWN.price, 1) IS NULL AND DOWN.price < S.price) OR DOWN.price < LAST(DOWN.price, 1),
        UP AS UP.price > LAST(DOWN.price, 1)
);
