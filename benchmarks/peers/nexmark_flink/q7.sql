SELECT B.auction, B.price, B.bidder, B.`dateTime`, B.extra
FROM bid B JOIN (
    SELECT MAX(price) AS price, window_time AS ends
    FROM TABLE(TUMBLE(TABLE bid, DESCRIPTOR(`dateTime`), INTERVAL '10' SECOND))
    GROUP BY window_start, window_end, window_time
) M ON B.price = M.price AND B.`dateTime` BETWEEN M.ends - INTERVAL '9.999' SECOND(1, 3) AND M.ends
