select a.*, b.auction, b.bidder, b.price, b."dateTime" as "bid_dateTime", b.extra as bid_extra
from auction a join bid b on a.id = b.auction and b."dateTime" between a."dateTime" and a.expires
qualify row_number() over (partition by a.id order by b.price desc, b."dateTime", b.rowid) = 1
