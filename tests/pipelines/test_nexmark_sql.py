"""Nexmark's queries in SQL: the answers are those of DuckDB with Flink's types, and simple plans are those of Python."""

import pickle
import sys
from functools import partial
from pathlib import Path

import pytest

from sabot import App
from sabot.api.nodes.read import Read
from sabot.connectors.base import columns_of
from sabot.engine.plan import Plan, make_plan, planned, walk, with_schemas
from sabot.sql.syntax.text import SqlError
from tools.counted import calls_of
from tools.source_tree import PROJECT
from twins import row_pattern as twin

sys.path.append(str(PROJECT / "benchmarks"))
from nexmark.generator import SCHEMAS, Config, Generator
from nexmark.run import QUERIES, Settings, build, measure
from nexmark.source import NexmarkSource
from nexmark.sql_queries import TEXTS, count_char, filled, query_of
from nexmark.streams import Nexmark, write_side

EVENTS = 6_000
CONFIG = Config(rate=200, start_ms=1_436_918_400_000 + 86_390_000)  # half a minute, over midnight
REFUSED, BY_THE_CLOCK = "q6", "q12"
EQUAL = ["q0", "q2", "q15", "q16", "q19", "q22"]


def nexmark(folder: Path) -> tuple[App, Nexmark]:
    app, generator = App("nexmark"), Generator(3, CONFIG)
    write_side(folder / "side.csv")
    sources = {kind: NexmarkSource(kind, EVENTS, generator) for kind in SCHEMAS}
    return app, Nexmark(app, sources, folder / "side.csv")


@pytest.mark.one_in(12, "a quarter of a second of a core each")
@pytest.mark.parametrize("query", [query for query in QUERIES if query not in (REFUSED, BY_THE_CLOCK)])
def test_a_text_has_the_answer_of_duckdb(query):
    figures = measure(query, Settings(Generator(3, CONFIG), EVENTS, check=True, api="sql"))
    assert figures["result_rows"] is not None


@pytest.mark.parametrize("query", EQUAL)
def test_a_text_has_the_plan_of_the_query_in_python(query, tmp_path):
    app, streams = nexmark(tmp_path)
    _, others = nexmark(tmp_path)
    assert query_of(query, app, streams).explain() == build(query, others).explain()


def test_an_over_of_updated_rows_is_refused_as_flink_does(tmp_path):
    with pytest.raises(SqlError, match="AVG OVER needs ORDER BY the event time") as error:
        query_of(REFUSED, *nexmark(tmp_path))
    assert str(pickle.loads(pickle.dumps(error.value))) == str(error.value), "workers send errors to each other"


def test_texts_of_another_folder_run_as_they_are(tmp_path):
    (tmp_path / "ddl.sql").write_text("CREATE VIEW dear AS SELECT auction, price FROM bid WHERE price > ${TPS};")
    (tmp_path / "q0.sql").write_text(
        "CREATE TABLE out (auction BIGINT, price BIGINT) WITH ('connector' = 'blackhole'); INSERT INTO out SELECT * FROM dear;"
    )
    app, streams = nexmark(tmp_path)
    assert "price > 10000" in query_of("q0", app, streams, tmp_path).explain().replace('col("price")', "price")


DDL = """
    CREATE TABLE datagen (
        event_type int,
        person ROW<id BIGINT, name VARCHAR, emailAddress VARCHAR, creditCard VARCHAR, city VARCHAR, state VARCHAR,
            `customTime` TIMESTAMP(3), extra VARCHAR>,
        auction ROW<id BIGINT, itemName VARCHAR, description VARCHAR, initialBid BIGINT, reserve BIGINT,
            `customTime` TIMESTAMP(3), expires TIMESTAMP(3), seller BIGINT, category BIGINT, extra VARCHAR>,
        bid ROW<auction BIGINT, bidder BIGINT, price BIGINT, channel VARCHAR, url VARCHAR, `customTime` TIMESTAMP(3),
            extra VARCHAR>,
        at AS CASE
            WHEN event_type = 0 THEN person.`customTime`
            WHEN event_type = 1 THEN auction.`customTime`
            ELSE bid.`customTime`
        END,
        WATERMARK FOR at AS at - INTERVAL '4' SECOND
    ) WITH ('connector' = 'nexmark', 'first-event.rate' = '${TPS}', 'next-event.rate' = '${TPS}',
        'events.num' = '${EVENTS_NUM}', 'bid.proportion' = '${BID_PROPORTION}')
"""
VIEWS = """
    CREATE VIEW person AS
    SELECT person.id, person.name, person.emailAddress, person.creditCard, person.city, person.state,
        at AS `dateTime`, person.extra
    FROM ${NEXMARK_TABLE} WHERE event_type = 0;
    CREATE VIEW auction AS
    SELECT auction.id, auction.itemName, auction.description, auction.initialBid, auction.reserve, at AS `dateTime`,
        auction.expires, auction.seller, auction.category, auction.extra
    FROM ${NEXMARK_TABLE} WHERE event_type = 1;
    CREATE VIEW bid AS
    SELECT bid.auction, bid.bidder, bid.price, bid.channel, bid.url, at AS `dateTime`, bid.extra
    FROM ${NEXMARK_TABLE} WHERE event_type = 2
"""


@pytest.mark.one_in(5, "half a second of a core each")
@pytest.mark.parametrize("query", ["q0", "q3", "q5", "q9", "q23"])
def test_a_folder_of_flinks_suite_runs_as_it_is(query, tmp_path):
    """All events in one table, by the connector of the suite, and views of it; DDL for Kafka stands beside it."""
    texts = {
        "ddl_gen": DDL,
        "ddl_views": VIEWS,
        "ddl_kafka": "CREATE TABLE kafka",
        query: (TEXTS / f"{query}.sql").read_text(),
    }
    for name, text in texts.items():
        (tmp_path / f"{name}.sql").write_text(text)
    figures = measure(query, Settings(Generator(3, CONFIG), EVENTS, check=True, api="sql", sql=tmp_path))
    assert figures["result_rows"]


@pytest.mark.slow
def test_a_join_of_three_tables_has_the_answer_of_duckdb_in_python_and_in_sql():
    for api in ("python", "sql"):
        assert measure("q23", Settings(Generator(3, CONFIG), EVENTS, check=True, api=api))["result_rows"] > 100


def prices(rows, taken, name=None):
    return [rows[at]["price"] for at, its in taken if name in (None, its)]


def falls(rows, at, taken):
    before = prices(rows, taken, "DOWN") or prices(rows, taken, "S")
    return rows[at]["price"] < before[-1]


def rises(rows, at, taken):
    before = prices(rows, taken, "DOWN")
    return len(before) > 1 and rows[at]["price"] > before[-2]


def is_cheap(rows, at, taken):
    run = [*prices(rows, taken, "A"), rows[at]["price"]]
    return sum(run) // len(run) < 10_000


def anything(rows, at, taken):
    return True


def first(rows, taken):
    return prices(rows, taken, "A")[0]


RUN = twin.Sequel((twin.Repeated(twin.Variable("A"), 1, None, is_greedy=True), twin.Variable("B")))
PATTERNS = {
    "p0": (
        twin.Sequel(
            (twin.Variable("S"), twin.Repeated(twin.Variable("DOWN"), 1, None, is_greedy=True), twin.Variable("UP"))
        ),
        {"S": anything, "DOWN": falls, "UP": rises},
        {"skip": ("to_last", "UP")},
        lambda rows, match: [rows[at]["dateTime"] for at in (match[0][0], match[-2][0], match[-1][0])],
    ),
    **{
        name: (
            RUN,
            {"A": is_cheap, "B": anything},
            {"skip": skip},
            lambda rows, match: [
                rows[match[0][0]]["dateTime"],
                rows[match[-2][0]]["dateTime"],
                sum(prices(rows, match, "A")) // (len(match) - 1),
            ],
        )
        for name, skip in (("p1", "past_last"), ("p2", "to_next"))
    },
    "p3": (
        twin.Sequel(
            (twin.Variable("A"), twin.Repeated(twin.Variable("B"), 0, None, is_greedy=True), twin.Variable("C"))
        ),
        {
            "A": anything,
            "B": lambda rows, at, taken: rows[at]["price"] > first(rows, taken) - 50,
            "C": lambda rows, at, taken: rows[at]["price"] < first(rows, taken) - 50,
        },
        {"within": 4999},
        lambda rows, match: [rows[match[-1][0]]["dateTime"], rows[match[0][0]]["price"] - rows[match[-1][0]]["price"]],
    ),
}


@pytest.mark.one_in(4, "a quarter of a second of a core each")
@pytest.mark.parametrize("name", PATTERNS)
def test_a_pattern_has_the_matches_of_flink_in_python_and_in_sql(name, tmp_path):
    """DuckDB has no patterns: the matcher of the tests stands in for it, which goes back, but not behind a greedy variable."""
    part, define, options, measures = PATTERNS[name]
    app, streams = nexmark(tmp_path)
    bids = streams.bid.select("auction", "bidder", "price", "dateTime").collect()
    keyed = {}
    for row in bids.sort_by("dateTime").to_pylist():
        row["time"] = int(row["dateTime"].timestamp() * 1000)
        keyed.setdefault((row["auction"], row["bidder"]), []).append(row)
    want = []
    for key, rows in keyed.items():
        want += [(*key, *measures(rows, match)) for match in twin.matches(part, define, rows, **options)]
    assert want
    for make in (build, query_of):
        app, streams = nexmark(tmp_path)
        found = (make(name, streams) if make is build else make(name, app, streams)).collect()
        rows = [tuple(_naive(value) for value in row.values()) for row in found.to_pylist()]
        assert sorted(rows) == sorted(tuple(map(_naive, row)) for row in want)


def _naive(value):
    return value.replace(tzinfo=None) if hasattr(value, "tzinfo") else value


@pytest.mark.slow  # half a second of a core
def test_all_texts_are_read_and_bound_in_few_calls(tmp_path):
    """`python -m benchmarks.nexmark --bind` measures the time of it, 70 ms."""
    texts = {query: filled((TEXTS / f"{query}.sql").read_text()) for query in QUERIES if query != REFUSED}

    calls = 0
    for text in texts.values():
        app, streams = nexmark(tmp_path)
        app.register("count_char", count_char, batch=True, returns="int64")
        for table in ("bid", "auction", "person", "side"):
            app.register(table, getattr(streams, table))
        with app.captured():
            calls += calls_of(partial(app.sql, text))
    assert calls < 400_000  # 190,000 of 22 texts


def digests(folder: Path) -> list[str]:
    """A line for each step with state of the texts: its query, its id, the statement that made it, and its path."""
    lines = []
    for query in [query for query in QUERIES if query != REFUSED]:
        app, streams = nexmark(folder)
        stream = query_of(query, app, streams)
        (stream.changelog() if stream.changes else stream).to("out")
        lines += [
            f"{query} {each.id} {each.origin.name or '-'}: {each.path.partition('+')[0]}"
            for each in planned(plan_of(app))
        ]
    return lines


def plan_of(app: App) -> Plan:
    reads = [node for node in walk(app.spec.ends) if isinstance(node, Read)]
    schemas = {id(node): columns_of(node.source) if node.schema is None else node.schema for node in reads}
    return make_plan(with_schemas(app.spec.ends, schemas))


@pytest.mark.slow  # half a second of a core
def test_the_digests_of_steps_are_those_of_earlier_versions(tmp_path, monkeypatch):
    """A digest that moves gives up the state of scripts that run: change `sql_digests.txt` only for a plan that is another."""
    monkeypatch.chdir(tmp_path)
    assert digests(Path(".")) == (Path(__file__).parent / "sql_digests.txt").read_text().splitlines()
