with winning as (
    select a.id, a.seller, b.price, b."dateTime"
    from auction a join bid b on a.id = b.auction and b."dateTime" between a."dateTime" and a.expires
    qualify row_number() over (partition by a.id order by b.price desc, b."dateTime", b.rowid) = 1
), last as (
    from winning qualify row_number() over (partition by seller order by "dateTime" desc, id desc) <= 10
)
select seller, avg(price) as avg_price from last group by seller
