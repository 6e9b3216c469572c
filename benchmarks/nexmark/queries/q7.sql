select auction, price, bidder, "dateTime", extra
from bid
qualify price = max(price) over (partition by time_bucket(interval 10 seconds, "dateTime"))
