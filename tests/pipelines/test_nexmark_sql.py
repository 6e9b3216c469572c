"""Nexmark's queries in SQL: the answers are those of DuckDB with Flink's types, and simple plans are those of Python."""

import pickle
import sys
import time
from pathlib import Path

import pytest

from sabot import App
from sabot.api.nodes.read import Read
from sabot.connectors.defaults import columns_of
from sabot.plan import Plan, make_plan, planned, walk, with_schemas
from sabot.sql.syntax.text import SqlError
from tools.source_tree import PROJECT

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


def test_all_texts_are_read_and_bound_in_less_than_150_ms_of_cpu(tmp_path):
    texts = {query: filled((TEXTS / f"{query}.sql").read_text()) for query in QUERIES if query != REFUSED}

    def seconds() -> float:
        spent = 0.0
        for text in texts.values():
            app, streams = nexmark(tmp_path)
            app.register("count_char", count_char, batch=True, returns="int64")
            for table in ("bid", "auction", "person", "side"):
                app.register(table, getattr(streams, table))
            began = time.process_time()
            with app.captured():
                app.sql(text)
            spent += time.process_time() - began
        return spent

    assert min(seconds() for _ in range(3)) < 0.15


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
    runtime = app.agent_runtime
    reads = [node for node in walk(runtime.writes) if isinstance(node, Read)]
    schemas = {id(node): columns_of(node.source) if node.schema is None else node.schema for node in reads}
    return make_plan(with_schemas(runtime.writes, schemas))


def test_the_digests_of_steps_are_those_of_earlier_versions(tmp_path, monkeypatch):
    """A digest that moves gives up the state of scripts that run: change `sql_digests.txt` only for a plan that is another."""
    monkeypatch.chdir(tmp_path)
    assert digests(Path(".")) == (Path(__file__).parent / "sql_digests.txt").read_text().splitlines()
