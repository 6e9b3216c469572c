"""Whole texts as people write them for Flink, with the answers of a second implementation: DuckDB where its rules are Flink's, and
rows that were computed by hand from Flink's rules where they are not.
"""

import asyncio
import json
import re
from collections import Counter
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest

from sabot import App, Stream
from sabot.sql.scope import node_of
from sabot.sql.syntax.text import SqlError
from tools.sql_tables import counted, records, shown

# Day 2024-05-01; the texts of times have the hour and the minute of this day.
VISITS = [  # visitor, page, seconds spent, the time of day
    ("ann", "home", 5, "10:00:02"), ("bob", "home", 7, "10:00:31"), ("ann", "cart", 20, "10:00:40"),
    ("cyd", "home", 3, "10:01:00"), ("bob", "cart", 11, "10:01:59"), ("ann", "pay", 40, "10:02:00"),
    ("bob", "home", 1, "10:07:10"), ("cyd", "pay", 9, "10:07:45"), ("ann", "home", 2, "10:12:30"),
    ("cyd", "home", None, "10:12:31"), (None, "home", 6, "10:13:00"), ("bob", "pay", 15, "10:13:59"),
]  # fmt: skip
OFFERS = [  # item, price, seller, the time of day
    ("A", "4.00", "s1", "08:05:00"), ("C", "2.00", "s2", "08:07:00"), ("D", "5.00", "s1", "08:09:00"),
    ("B", "3.00", "s2", "08:11:00"), ("E", "1.00", "s1", "08:13:00"), ("F", "6.00", "s2", "08:17:00"),
]  # fmt: skip
RATES = [  # currency, rate, the time of day from which it is valid
    ("EUR", 114, "09:00:00"), ("YEN", 1, "09:00:00"), ("EUR", 116, "10:45:00"), ("EUR", 119, "11:15:00"),
]  # fmt: skip
SALES = [  # id, currency, amount, the time of day
    (1, "EUR", 2, "10:15:00"), (2, "USD", 1, "10:30:00"), (3, "YEN", 50, "10:32:00"), (4, "EUR", 3, "10:52:00"),
    (5, "EUR", 1, "11:15:00"), (6, "USD", 5, "11:20:00"),
]  # fmt: skip
PARCELS = [  # id of the sale, courier, the time of day at which it left
    (1, "fast", "11:15:00"), (3, "slow", "10:40:00"), (4, "fast", "18:52:01"), (5, "slow", "15:15:00"), (9, "fast", "12:00:00"),
]  # fmt: skip
TICKS = [  # symbol, price, tax, the second of the minute 12:00
    ("ACME", 12, 1, 0), ("ACME", 17, 2, 1), ("ACME", 19, 1, 2), ("ACME", 21, 3, 3), ("ACME", 25, 2, 4), ("ACME", 18, 1, 5),
    ("ACME", 15, 1, 6), ("ACME", 14, 2, 7), ("ACME", 24, 2, 8), ("ACME", 25, 2, 9), ("ACME", 19, 1, 10),
]  # fmt: skip


def at(time):
    return f"2024-05-01 {time}"


ROWS = {
    "visits": [
        {
            "visitor": a,
            "page": b,
            "spent": c,
            "ts": at(d),
            "tags": [b, "x"][: 1 + (c or 0) % 2],
            "pos": {"x": c, "y": i},
        }
        for i, (a, b, c, d) in enumerate(VISITS)
    ],
    "offers": [{"item": a, "price": b, "seller": c, "offered": at(d)} for a, b, c, d in OFFERS],
    "rates": [{"currency": a, "rate": b, "since": at(c)} for a, b, c in RATES],
    "sales": [{"id": a, "currency": b, "amount": c, "sold": at(d)} for a, b, c, d in SALES],
    "parcels": [{"sale": a, "courier": b, "sent": at(c)} for a, b, c in PARCELS],
    "ticks": [{"symbol": a, "price": b, "tax": c, "ts": at(f"12:00:{d:02}")} for a, b, c, d in TICKS],
}
COLUMNS = {
    "visits": (
        "visitor STRING, page STRING, spent INT, ts TIMESTAMP(3), tags ARRAY<STRING>, pos ROW<x INT, y INT>, "
        "seen AS PROCTIME(), WATERMARK FOR ts AS ts - INTERVAL '5' SECOND"
    ),
    "offers": "item STRING, price DECIMAL(10, 2), seller STRING, offered TIMESTAMP(3), WATERMARK FOR offered AS offered",
    "rates": "currency STRING, rate INT, since TIMESTAMP(3), WATERMARK FOR since AS since, PRIMARY KEY (currency) NOT ENFORCED",
    "sales": "id INT, currency STRING, amount INT, sold TIMESTAMP(3), now_ AS PROCTIME(), WATERMARK FOR sold AS sold",
    "parcels": "sale INT, courier STRING, sent TIMESTAMP(3), WATERMARK FOR sent AS sent - INTERVAL '10' HOUR",
    "ticks": "symbol STRING, price INT, tax INT, ts TIMESTAMP(3), WATERMARK FOR ts AS ts",
}
OF_DUCKDB = {
    "visits": {
        "visitor": "VARCHAR",
        "page": "VARCHAR",
        "spent": "INTEGER",
        "ts": "TIMESTAMP",
        "tags": "VARCHAR[]",
        "pos": "STRUCT(x INTEGER, y INTEGER)",
    },
    "offers": {"item": "VARCHAR", "price": "DECIMAL(10, 2)", "seller": "VARCHAR", "offered": "TIMESTAMP"},
    "rates": {"currency": "VARCHAR", "rate": "INTEGER", "since": "TIMESTAMP"},
    "sales": {"id": "INTEGER", "currency": "VARCHAR", "amount": "INTEGER", "sold": "TIMESTAMP"},
    "parcels": {"sale": "INTEGER", "courier": "VARCHAR", "sent": "TIMESTAMP"},
    "ticks": {"symbol": "VARCHAR", "price": "INTEGER", "tax": "INTEGER", "ts": "TIMESTAMP"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("texts")
    for name, rows in ROWS.items():
        (place / f"{name}.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return place


def declared(folder):
    return "".join(
        f"CREATE TABLE {name} ({columns}) WITH ('connector' = 'filesystem', 'path' = '{folder}/{name}.json', 'format' = 'json');\n"
        for name, columns in COLUMNS.items()
    )


def ours(folder, text):
    app = App("texts", parallelism=2)
    return app.sql(declared(folder) + text).materialize().collect()


def theirs(folder, text):
    with duckdb.connect() as connection:
        for name, columns in OF_DUCKDB.items():
            of_file = f"read_json('{folder}/{name}.json', columns = {json.dumps(columns)})"
            connection.execute(f"CREATE TABLE {name} AS SELECT * FROM {of_file}")
        return connection.sql(text).to_arrow_table()


RECORDS = records(Path(__file__).with_name("texts.slt"))


@pytest.mark.one_in(8, "a tenth of a second of a core each")
@pytest.mark.parametrize("record", RECORDS, ids=[each.place for each in RECORDS])
def test_a_text_has_the_answer_of_a_second_implementation(folder, record):
    found = ours(folder, record.text)
    if record.kind == "query duckdb":
        other = "\n".join(record.rows[1:]) or record.text
        assert counted(found) == counted(theirs(folder, other))
        return
    assert record.kind == "query"
    rows = [" | ".join(map(shown, row.values())) for row in found.to_pylist()]
    assert sorted(rows) == sorted(record.rows[1:])


SCRIPTS = records(Path(__file__).with_name("scripts.slt"))
NEXMARK = Path(__file__).parents[3] / "benchmarks/nexmark/sql"
_MADE = re.compile(r"'connector' = '(?:faker|datagen)'")
_PAGES = Path(__file__).parents[3] / "docs"


def shortened(text):
    """Returns a script whose made rows are few, and come at once."""
    parts = re.sub(r"'rows-per-second' = '\d+'", "'rows-per-second' = '100000'", text).split(";")
    few = r"\g<0>, 'number-of-rows' = '25'"
    return ";".join(each if "number-of-rows" in each else _MADE.sub(few, each) for each in parts)


def planned(app, text):
    """Binds a script, and plans all that it would run."""
    found = app.sql(text)
    app.explain_ends([*app.spec.ends], "PLAN", None)
    if isinstance(found, Stream):
        app.explain(node_of(found))
    return found


def with_functions(app):
    app.register("shout", lambda text: text.upper(), returns="string")
    app.register("parts_of", str.split, returns=pa.list_(pa.string()))
    return app


@pytest.mark.one_in(4, "some hundredths of a second of a core each")
@pytest.mark.parametrize("record", SCRIPTS, ids=[each.place for each in SCRIPTS])
def test_a_script_is_taken_as_its_first_line_says(folder, tmp_path, monkeypatch, record):
    monkeypatch.chdir(tmp_path)
    app = with_functions(App("scripts"))
    app.sql(declared(folder))
    verdict, _, words = record.kind.partition(" ")
    if verdict == "refused":
        with pytest.raises(SqlError) as caught:
            planned(app, record.text)
        assert all(fault.hint for fault in caught.value.faults)
        assert re.search(words, str(caught.value))
        return
    if verdict == "runs":
        found = app.sql(shortened(record.text))
        if isinstance(found, Stream):
            found.materialize().collect()
        else:
            asyncio.run(app.run())
        return
    assert verdict in ("taken", "other")
    planned(app, record.text)
    if verdict == "other":
        assert words in (_PAGES / "sql.md").read_text() + (_PAGES / "coming-from/flink-sql.md").read_text()


def test_of_179_texts_160_are_taken_unchanged():
    """The texts that people write for Flink: those with answers, the scripts, the whole jobs of `test_whole_jobs`, and Nexmark's,
    whose answers are in `test_nexmark_sql`. A test above holds the verdict of each of the others.
    """
    verdicts = Counter(record.kind.split()[0] for record in SCRIPTS)
    whole = [*NEXMARK.glob("*.sql"), *Path(__file__).with_name("jobs").glob("*.sql")]
    unchanged = len(RECORDS) + verdicts["runs"] + verdicts["taken"] + len(whole)
    table = {"unchanged": unchanged, "other": verdicts["other"], "refused": verdicts["refused"]}
    assert table == {"unchanged": 313, "other": 1, "refused": 9}
    assert unchanged / sum(table.values()) > 160 / 179
