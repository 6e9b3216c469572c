"""A changed program whose sinks lack a column: the plan says so before the start, and a sink adds the column where it is told to."""

import contextlib
import json
import runpy
import sqlite3
import uuid
from pathlib import Path
from typing import Any

import deltalake
import polars
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sabot import App, DeltaSink, ParquetSink, UserError, count
from sabot.connectors.base import Sink
from sabot.connectors.sql import SqlSink
from tools.agent_tools import bounded, publish, until
from tools.command_line import sabot_says

SCHEMA = {"id": "int64", "seats": "int64"}
PROGRAM = """
import sabot
from sabot import App
from sabot.connectors.sql import SqlSink
app = App("cars", "memory://", state="state")
app.stream("cars", schema={{"id": "int64", "seats": "int64"}}).upsert("id").to(SqlSink("sqlite:cars.db", table="cars"{more}))
"""

DELTA_PROGRAM = """
from sabot import App, DeltaSink
app = App("cars", "memory://", state="state")
app.stream("cars", schema={{"id": "int64", "seats": "int64"}}).to(DeltaSink("cars"{more}))
"""


class Cars:
    """The lives of one app that writes cars into a sink."""

    def __init__(self, broker: str, folder: Path) -> None:
        self.broker, self.folder, self.sent = broker, folder, 0

    async def live(self, sink: Sink, columns: list[str], *, upsert: bool = False, **settings: Any) -> None:
        """Runs a program that writes these columns of three more cars."""
        app = App("cars", broker=self.broker, state=str(self.folder / "state"))
        cars = app.stream("cars", schema=SCHEMA).select(*columns)
        (cars.upsert("id") if upsert else cars).to(sink, **settings)
        await app.start()
        publish(app, "cars", [{"id": self.sent + n, "seats": 4 + n} for n in range(3)])
        await until(lambda: sum(task["input"].get("rows_in", 0) for task in app.statistics()["streams"].values()) >= 3)
        await bounded(app.stop())
        self.sent += 3


@pytest.fixture
def cars(memory_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cars:
    monkeypatch.chdir(tmp_path)
    return Cars(memory_url, tmp_path)


def rows(statement: str) -> list[Any]:
    with contextlib.closing(sqlite3.connect("cars.db")) as connection, connection:
        return connection.execute(statement).fetchall()


def table(**options: Any) -> SqlSink:
    return SqlSink("sqlite:cars.db", table="cars", **options)


async def test_a_table_without_a_new_column_ends_the_start_and_names_the_way_out(cars: Cars) -> None:
    await cars.live(table(), ["id"])
    with pytest.raises(UserError, match=r"has no column seats \(int64\)") as refused:
        await cars.live(table(), ["id", "seats"])
    assert "evolve=True" in refused.value.hint


async def test_a_table_that_evolves_gets_the_new_column_which_is_null_so_far(cars: Cars) -> None:
    await cars.live(table(), ["id"])
    await cars.live(table(evolve=True), ["id", "seats"])
    assert rows("SELECT id, seats FROM cars ORDER BY id") == [(0, None), (1, None), (2, None), (3, 4), (4, 5), (5, 6)]


@pytest.mark.one_in(3, "a tenth of a second of a core each")
@pytest.mark.parametrize("delivery", ["exactly_once", "at_least_once"])
@pytest.mark.parametrize("part_bytes", [None, 1 << 20])
async def test_a_folder_of_parquet_that_evolves_gets_further_parts_with_the_column(
    cars: Cars, delivery: str, part_bytes: int | None
) -> None:
    def folder(**options: Any) -> ParquetSink:
        return ParquetSink("cars/", part_bytes=part_bytes, **options)

    await cars.live(folder(), ["id"], delivery=delivery)
    with pytest.raises(UserError, match="its newest part has no column seats"):
        await cars.live(folder(), ["id", "seats"], delivery=delivery)
    await cars.live(folder(evolve=True), ["id", "seats"], delivery=delivery)
    found = [row for part in sorted(Path("cars").glob("part-*")) for row in pq.read_table(part).to_pylist()]
    assert [row["id"] for row in found] == [0, 1, 2, 3, 4, 5]
    assert [row.get("seats") for row in found] == [None, None, None, 4, 5, 6]


@pytest.mark.one_in(2, "a fifth of a second of a core each")
@pytest.mark.parametrize("delivery", ["exactly_once", "at_least_once"])
async def test_a_delta_table_that_evolves_gets_the_new_column_which_is_null_so_far(cars: Cars, delivery: str) -> None:
    await cars.live(DeltaSink("cars"), ["id"], delivery=delivery)
    with pytest.raises(UserError, match=r"has no column seats \(int64\)") as refused:
        await cars.live(DeltaSink("cars"), ["id", "seats"], delivery=delivery)
    assert "evolve=True" in refused.value.hint
    await cars.live(DeltaSink("cars", evolve=True), ["id", "seats"], delivery=delivery)
    found = polars.read_delta("cars").sort("id").rows()
    assert found == [(0, None), (1, None), (2, None), (3, 4), (4, 5), (5, 6)]


@pytest.mark.one_in(3, "a tenth of a second of a core each")
@pytest.mark.parametrize(
    ("there", "more", "outcome", "why"),
    [
        ([("id", pa.int64())], "", "refuse", "it has no column seats (int64), which evolve=True adds"),
        ([("id", pa.int64())], ", evolve=True", "migrate", "column seats (int64) is added, and is null so far"),
        ([("id", pa.int64()), ("seats", pa.int32())], "", "refuse", "its column seats is int32, which does not hold int64"),
        ([("id", pa.int64()), ("Seats", pa.int64())], ", evolve=True", "refuse", "differ only by case, which Delta ignores"),
    ],
)  # fmt: skip
async def test_the_plan_compares_the_columns_of_a_delta_table(
    cars: Cars, there: list[Any], more: str, outcome: str, why: str
) -> None:
    await cars.live(DeltaSink("cars"), ["id", "seats"])
    deltalake.write_deltalake("cars", pa.schema(there).empty_table(), mode="overwrite", schema_mode="overwrite")
    name = f"delta_{uuid.uuid4().hex}"
    Path(f"{name}.py").write_text(DELTA_PROGRAM.format(more=more))
    done = sabot_says("plan", f"{name}:app", "--against", "state", "--json")
    found = {each["id"]: each for each in map(json.loads, done.stdout.splitlines())}
    assert (done.exit_code, found["sink cars"]["outcome"]) == (int(outcome == "refuse"), outcome)
    assert why in found["sink cars"]["why"]


@pytest.mark.parametrize(
    ("more", "exit_code", "outcome", "why"),
    [
        ("", 1, "refuse", "it has no column seats (int64), which evolve=True adds"),
        (
            ", evolve=True",
            0,
            "migrate",
            "column seats (int64) is added, and is null so far; --reemit cars writes its table again",
        ),
    ],
)
async def test_the_plan_knows_the_columns_that_a_sink_lacks(
    cars: Cars, more: str, exit_code: int, outcome: str, why: str
) -> None:
    await cars.live(table(), ["id", "seats"], upsert=True)
    rows("ALTER TABLE cars DROP COLUMN seats")
    Path(f"lacking_{exit_code}.py").write_text(PROGRAM.format(more=more))
    done = sabot_says("plan", f"lacking_{exit_code}:app", "--against", "state", "--json")
    found = {each["id"]: each for each in map(json.loads, done.stdout.splitlines())}
    assert (done.exit_code, found["sink cars"]["outcome"], found["sink cars"]["why"]) == (exit_code, outcome, why)
    assert found["upsert-1"]["outcome"] == "keep"
    assert rows("SELECT name FROM pragma_table_info('cars')") == [("id",)]  # the plan has added nothing


# -- columns that the program no longer writes


RENAMED = """
from sabot import App, DeltaSink, ParquetSink, col, count
from sabot.connectors.sql import SqlSink
app = App("cars", "memory://", state="state")
rows = app.stream("cars", schema={{"id": "int64", "seats": "int64"}})
{flow}.to({sink})
"""
COUNTED = 'rows.group_by("id").aggregate({name}=count()).upsert("id")'
PLAIN = 'rows.select({name}=col("id"))'


@pytest.mark.one_in(2, "a fifth of a second of a core each")
@pytest.mark.parametrize("delivery", ["exactly_once", "at_least_once"])
async def test_a_row_that_is_written_again_has_no_old_number_in_a_column_that_was_renamed(
    cars: Cars, delivery: str
) -> None:
    async def live(name: str, ids: list[int], **options: Any) -> None:
        app = App("cars", broker=cars.broker, state="state")
        counts = app.stream("cars", schema=SCHEMA).key_by("id").aggregate(**{name: count()})
        counts.to(table(keys=["id"], **options), delivery=delivery)
        await app.start()
        publish(app, "cars", [{"id": id, "seats": 4} for id in ids])
        await until(lambda: sum(each["rows"] for each in app.statistics()["streams"].values()) >= 2 * len(ids))
        await bounded(app.stop())

    await live("n", [1, 2, 2, 3])
    await live("trips", [2], evolve=True)
    assert rows("SELECT id, n, trips FROM cars ORDER BY id") == [(1, 1, None), (2, None, 3), (3, 1, None)]
    await live("trips", [3])  # a later start knows it too
    assert rows("SELECT id, n, trips FROM cars ORDER BY id") == [(1, 1, None), (2, None, 3), (3, None, 2)]
    await live("n", [3, 4])  # and back
    assert rows("SELECT id, n, trips FROM cars ORDER BY id") == [(1, 1, None), (2, None, 3), (3, 3, None), (4, 1, None)]


async def test_columns_that_others_write_into_a_table_are_left_alone(cars: Cars) -> None:
    async def live(*others: Sink) -> None:
        app = App("cars", broker=cars.broker, state="state")
        stream = app.stream("cars", schema=SCHEMA)
        stream.select("id").to(table(keys=["id"]), delivery="at_least_once")
        for sink in others:
            stream.to(sink, delivery="at_least_once")
        await app.start()
        publish(app, "cars", [{"id": 1, "seats": 4}])
        await until(lambda: sum(each["rows"] for each in app.statistics()["streams"].values()) >= 2 + len(others))
        await bounded(app.stop())

    rows("CREATE TABLE cars (id INTEGER PRIMARY KEY, seats INTEGER, note TEXT)")
    rows("INSERT INTO cars VALUES (1, 0, 'red')")
    await live(table(keys=["id"]))  # two sinks of one program, one of which writes fewer columns
    await live(table(keys=["id"]))
    assert rows("SELECT * FROM cars") == [(1, 4, "red")]


@pytest.mark.parametrize(
    ("flow", "sink", "says"),
    [
        (COUNTED, 'SqlSink("sqlite:cars.db", table="cars", evolve=True)', "; --reemit cars writes its table again"),
        (PLAIN, 'DeltaSink("cars", evolve=True)', ""),
        (PLAIN, 'ParquetSink("cars/", evolve=True)', ""),
    ],
)
async def test_the_plan_says_what_becomes_of_a_column_that_was_renamed(
    cars: Cars, flow: str, sink: str, says: str
) -> None:
    name = f"renamed_{uuid.uuid4().hex}"
    Path(f"{name}.py").write_text(
        RENAMED.format(flow=flow.format(name="n"), sink=sink).replace("memory://", cars.broker)
    )
    app = runpy.run_path(f"{name}.py")["app"]
    await app.start()
    publish(app, "cars", [{"id": 1, "seats": 4}])
    await until(lambda: sum(each["rows"] for each in app.statistics()["streams"].values()) >= 2)
    await bounded(app.stop())
    Path(f"{name}.py").write_text(RENAMED.format(flow=flow.format(name="trips"), sink=sink))
    done = sabot_says("plan", f"{name}:app", "--against", "state", "--json")
    found = [each for each in map(json.loads, done.stdout.splitlines()) if each["id"].startswith("sink cars")]
    assert [each["outcome"] for each in found] == ["migrate"]
    assert found[0]["why"] == (
        f"column trips (int64) is added, and is null so far{says}; "
        "column n stays: rows that are written from now on have NULL there, the others keep their values"
    )


async def test_a_plan_is_made_although_a_sink_cannot_be_asked(cars: Cars) -> None:
    await cars.live(table(), ["id", "seats"], upsert=True)
    Path("cars.db").write_bytes(b"no database" * 1000)
    Path("unasked.py").write_text(PROGRAM.format(more=""))
    done = sabot_says("plan", "unasked:app", "--against", "state", "--json")
    found = {each["id"]: each for each in map(json.loads, done.stdout.splitlines())}
    assert done.exit_code == 0
    assert found["sink cars"]["why"].startswith("not compared: ")
