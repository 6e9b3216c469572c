SELECT category, AVG(CAST(final_price AS DOUBLE)) AS avg_price
FROM (
    SELECT MAX(B.price) AS final_price, A.category
    FROM auction A, bid B
    WHERE A.id = B.auction AND B.`dateTime` BETWEEN A.`dateTime` AND A.expires
    GROUP BY A.id, A.category
)
GROUP BY category
