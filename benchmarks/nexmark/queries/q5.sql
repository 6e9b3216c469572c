with counts as (
    select auction, count(*) as num, time_bucket(interval 2 seconds, "dateTime") - step * interval 2 seconds as starts
    from bid, range(5) steps(step)
    group by auction, starts
)
select auction, num from counts qualify num = max(num) over (partition by starts)
