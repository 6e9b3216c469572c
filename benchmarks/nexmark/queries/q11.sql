with begins as (
    select bidder, "dateTime",
        coalesce("dateTime" - lag("dateTime") over bids >= interval 10 seconds, true) as begins_one
    from bid window bids as (partition by bidder order by "dateTime")
), numbered as (
    select *, sum(begins_one::int) over (partition by bidder order by "dateTime" range unbounded preceding) as number
    from begins
)
select bidder, count(*) as bid_count, min("dateTime") as starttime, max("dateTime") + interval 10 seconds as endtime
from numbered group by bidder, number
