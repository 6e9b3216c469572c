"""Nexmark's queries once more in SQL, from their descriptions and not from the texts of the suite: with common table expressions, views,
old group windows, USING, QUALIFY, IN and EXISTS. The answers are those of DuckDB, like those of the suite.
"""

import sys

import pytest

from tools.source_tree import PROJECT

sys.path.append(str(PROJECT / "benchmarks"))
from nexmark.generator import Config, Generator
from nexmark.run import Settings, measure

CONFIG = Config(rate=200, start_ms=1_436_918_400_000 + 86_390_000)  # half a minute, over midnight
EVENTS = 6_000
RANKS = {"rank1": "price < 10000", "rank2": "price BETWEEN 10000 AND 999999", "rank3": "price >= 1000000"}


def by_rank(word: str, call: str) -> str:
    return ", ".join(f"{call} FILTER (WHERE {where}) AS {rank}_{word}" for rank, where in RANKS.items())


DISTINCT = ", ".join(
    f"COUNT(DISTINCT {column}) AS total_{column}s, {by_rank(f'{column}s', f'COUNT(DISTINCT {column})')}"
    for column in ("bidder", "auction")
)
IN_TIME = """
    SELECT o.*, b.auction, b.bidder, b.price, b.at AS `bid_dateTime`, b.rest AS bid_extra
    FROM auction AS o
    INNER JOIN (SELECT auction, bidder, price, `dateTime` AS at, extra AS rest FROM bid) AS b ON b.auction = o.id
    WHERE b.at >= o.`dateTime` AND NOT b.at > o.expires
"""

QUERIES = {
    "q0": "WITH all_bids AS (SELECT * FROM bid) SELECT auction, bidder, price, `dateTime`, extra FROM all_bids",
    "q1": "SELECT b.auction, b.bidder, b.price * 0.908 AS price, b.`dateTime`, b.extra FROM (SELECT * FROM bid) AS b",
    "q2": "SELECT auction, price FROM bid WHERE auction - auction / 123 * 123 = 0",
    "q3": """
        WITH near AS (SELECT * FROM person WHERE state = 'OR' OR state = 'ID' OR state = 'CA'),
            sold AS (SELECT id AS item, seller AS id FROM auction WHERE category = 10)
        SELECT name, city, state, item AS id FROM sold INNER JOIN near USING (id)
    """,
    "q4": f"""
        WITH finals AS (SELECT id, category, MAX(price) AS final FROM ({IN_TIME}) AS b GROUP BY id, category)
        SELECT category, SUM(final) / COUNT(final) AS avg_price FROM finals GROUP BY category
    """,
    "q5": """
        WITH counts AS (
            SELECT auction, COUNT(auction) AS num, window_start, window_end
            FROM TABLE(HOP(TABLE bid, DESCRIPTOR(`dateTime`), INTERVAL '2' SECOND, INTERVAL '10' SECOND))
            GROUP BY window_end, auction, window_start
        )
        SELECT auction, num FROM (
            SELECT *, RANK() OVER (PARTITION BY window_start, window_end ORDER BY num DESC) AS place FROM counts
        ) WHERE place = 1
    """,
    "q7": """
        SELECT auction, price, bidder, `dateTime`, extra FROM (
            SELECT *, RANK() OVER (PARTITION BY window_start, window_end ORDER BY price DESC) AS place
            FROM TABLE(TUMBLE(TABLE bid, DESCRIPTOR(`dateTime`), INTERVAL '10' SECOND))
        ) AS ranked WHERE ranked.place <= 1
    """,
    "q8": """
        WITH people AS (
            SELECT id, name, window_start AS starttime, window_end AS endtime
            FROM TABLE(TUMBLE(TABLE person, DESCRIPTOR(`dateTime`), INTERVAL '10' SECOND))
            GROUP BY id, name, window_start, window_end
        ), sellers AS (
            SELECT seller, window_start AS starttime, window_end AS endtime, COUNT(*) AS n
            FROM TABLE(TUMBLE(TABLE auction, DESCRIPTOR(`dateTime`), INTERVAL '10' SECOND))
            GROUP BY seller, window_start, window_end
        )
        SELECT p.id, p.name, p.starttime FROM people p JOIN sellers s
        ON s.seller = p.id AND s.starttime = p.starttime AND s.endtime = p.endtime
    """,
    "q9": f"SELECT * FROM ({IN_TIME}) QUALIFY ROW_NUMBER() OVER (PARTITION BY id ORDER BY price DESC, `bid_dateTime`) = 1",
    "q10": """
        SELECT b.*, DATE_FORMAT(b.`dateTime`, 'yyyy-MM-dd') AS dt, DATE_FORMAT(b.`dateTime`, 'HH:mm') AS hm
        FROM (SELECT auction, bidder, price, `dateTime`, extra FROM bid) b
    """,
    "q11": """
        SELECT bidder, COUNT(*) AS bid_count, window_start AS starttime, window_end AS endtime
        FROM TABLE(SESSION(TABLE bid PARTITION BY bidder, DESCRIPTOR(`dateTime`), INTERVAL '10' SECOND))
        GROUP BY bidder, window_start, window_end
    """,
    "q13": """
        WITH timed AS (SELECT auction, bidder, price, `dateTime`, PROCTIME() AS now_at FROM bid)
        SELECT t.auction, t.bidder, t.price, t.`dateTime`, s.`value`
        FROM timed AS t LEFT JOIN side FOR SYSTEM_TIME AS OF t.now_at AS s ON s.key = t.auction % 10000
    """,
    "q14": """
        WITH priced AS (SELECT *, 0.908 * price AS dollars, EXTRACT(HOUR FROM `dateTime`) AS h FROM bid)
        SELECT auction, bidder, dollars AS price,
            CASE
                WHEN h < 7 OR h > 19 THEN 'nightTime' WHEN h <> 7 AND h <> 19 THEN 'dayTime' ELSE 'otherTime'
            END AS bidTimeType,
            `dateTime`, extra, CHAR_LENGTH(extra) - CHAR_LENGTH(REPLACE(extra, 'c', '')) AS c_counts
        FROM priced WHERE dollars > 1000000 AND NOT dollars >= 50000000
    """,
    "q15": f"""
        SELECT day, COUNT(*) AS total_bids, {by_rank("bids", "COUNT(*)")}, {DISTINCT}
        FROM (SELECT *, DATE_FORMAT(`dateTime`, 'yyyy-MM-dd') AS day FROM bid) AS d GROUP BY day
    """,
    "q16": f"""
        SELECT channel, day, MAX(minute_of) AS `minute`, COUNT(*) AS total_bids, {by_rank("bids", "COUNT(*)")}, {DISTINCT}
        FROM (
            SELECT *, DATE_FORMAT(`dateTime`, 'yyyy-MM-dd') AS day, DATE_FORMAT(`dateTime`, 'HH:mm') AS minute_of FROM bid
        ) AS d GROUP BY day, channel
    """,
    "q17": """
        SELECT auction, DATE_FORMAT(`dateTime`, 'yyyy-MM-dd') AS day, COUNT(*) AS total_bids,
            SUM(CASE WHEN price < 10000 THEN 1 ELSE 0 END) AS rank1_bids,
            SUM(CASE WHEN price >= 10000 AND price < 1000000 THEN 1 ELSE 0 END) AS rank2_bids,
            SUM(CASE WHEN price >= 1000000 THEN 1 ELSE 0 END) AS rank3_bids,
            MIN(price) AS min_price, MAX(price) AS max_price, SUM(price) / COUNT(price) AS avg_price, SUM(price) AS sum_price
        FROM bid GROUP BY auction, DATE_FORMAT(`dateTime`, 'yyyy-MM-dd')
    """,
    "q18": """
        SELECT auction, bidder, price, channel, url, `dateTime`, extra FROM bid
        QUALIFY ROW_NUMBER() OVER (PARTITION BY auction, bidder ORDER BY `dateTime` DESC) <= 1
    """,
    "q19": """
        WITH ranked AS (SELECT *, ROW_NUMBER() OVER (PARTITION BY auction ORDER BY price DESC) AS rank_number FROM bid)
        SELECT * FROM ranked WHERE rank_number < 11
    """,
    "q20": """
        WITH chosen AS (
            SELECT id AS auction, itemName, description, initialBid, reserve, `dateTime` AS since, expires, seller, category,
                extra AS more
            FROM auction WHERE category IN (10)
        )
        SELECT auction, bidder, price, channel, url, `dateTime` AS `bid_dateTime`, extra AS bid_extra, itemName, description,
            initialBid, reserve, since AS `auction_dateTime`, expires, seller, category, more AS auction_extra
        FROM bid JOIN chosen USING (auction)
    """,
    "q21": """
        WITH named AS (
            SELECT *, CASE LOWER(channel)
                WHEN 'apple' THEN '0' WHEN 'google' THEN '1' WHEN 'facebook' THEN '2' WHEN 'baidu' THEN '3'
                ELSE REGEXP_EXTRACT(url, '(&|^)channel_id=([^&]*)', 2) END AS channel_id
            FROM bid
        )
        SELECT auction, bidder, price, channel, channel_id FROM named WHERE NOT channel_id IS NULL
    """,
    "q22": """
        SELECT auction, bidder, price, channel, parts[4] AS dir1, parts[5] AS dir2, parts[6] AS dir3
        FROM (SELECT *, SPLIT(url, '/') AS parts FROM bid)
    """,
    "q23": """
        WITH sellers AS (SELECT *, extra AS person_extra FROM person WHERE id IN (SELECT seller FROM auction))
        SELECT b.bidder, b.price, b.channel, b.url, b.extra AS bid_extra, s.id AS person_id, s.name, s.emailAddress,
            s.creditCard, s.city, s.state, s.person_extra, a.itemName, a.description, a.initialBid, a.reserve,
            a.`dateTime` AS `auction_dateTime`, a.expires, a.seller, a.category, a.extra AS auction_extra
        FROM sellers s, auction a, bid b WHERE a.seller = s.id AND b.bidder = s.id
    """,
}


@pytest.mark.one_in(12, "a quarter of a second of a core each")
@pytest.mark.parametrize("query", QUERIES)
def test_a_second_text_of_a_query_has_the_answer_of_duckdb(query, tmp_path):
    text = QUERIES[query]
    (tmp_path / f"{query}.sql").write_text(f"CREATE TABLE answer WITH ('connector' = 'blackhole') AS {text}")
    figures = measure(query, Settings(Generator(3, CONFIG), EVENTS, check=True, api="sql", sql=tmp_path))
    assert figures["result_rows"]
