select b.auction, b.bidder, b.price, b."dateTime", s.value from bid b join side s on b.auction % 10000 = s.key
