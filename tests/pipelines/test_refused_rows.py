"""A row that the receiver of a sink refuses is a dead letter. It holds up nothing, whatever the delivery, the place of the dead
letters and the moment of a crash.
"""

import asyncio
import contextlib
import json
import sqlite3
from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import deltalake
import pyarrow as pa
import pytest
import refused_apps
from test_exactly_once import Receiver

from sabot import App, CsvSink, DeltaSink, NdjsonSink, ParquetSink, RowErrors, Sink, SqlSink, UserError
from sabot.connectors.memory import MemoryBroker
from sabot.steps import watch
from sabot.testing import END, ListSink, ScriptedSource
from tools.steps import crashes_survived


def table(path: Path, columns: str = "id INTEGER, n INTEGER CHECK (n < 100)") -> str:
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute(f"CREATE TABLE orders ({columns})")
    return f"sqlite://{path}"


def rows_of(path: Path, column: str = "n") -> list[Any]:
    with contextlib.closing(sqlite3.connect(path)) as database:
        return [row for (row,) in database.execute(f"SELECT {column} FROM orders ORDER BY rowid")]


def numbers(*values: Any) -> list[dict[str, Any]]:
    return [{"id": place, "n": value} for place, value in enumerate(values)]


def letters_of(url: str, topic: str) -> list[tuple[Any, str]]:
    """The value of each dead letter, and why it was refused."""
    return [
        (json.loads(letter.payload)["n"], dict(letter.headers)["sabot.message"].decode())
        for letter in MemoryBroker.get(url).records(topic)
    ]


@pytest.mark.parametrize("delivery", ["exactly_once", "at_least_once"])
async def test_a_row_that_a_constraint_refuses_is_a_dead_letter_and_the_others_arrive(
    tmp_path: Path, memory_url: str, delivery: Any
) -> None:
    app = App("shop", memory_url, checkpoint_dir=tmp_path / "checkpoints", restart="none")
    sink = SqlSink(table(tmp_path / "shop.db"), "orders")
    app.stream(numbers(1, 500, 2, 3, 100), dead_letter="refused").to(sink, delivery=delivery)
    await app.run()
    assert rows_of(tmp_path / "shop.db") == [1, 2, 3]
    letters = letters_of(memory_url, "refused")
    assert [value for value, _ in letters] == [500, 100]
    assert all("CHECK constraint failed: n < 100" in why for _, why in letters)


@pytest.mark.parametrize(("delivery", "ids"), [("exactly_once", 4), ("at_least_once", 2)])
async def test_equal_rows_that_are_refused_have_ids_of_their_own_exactly_once(
    tmp_path: Path, memory_url: str, delivery: Any, ids: int
) -> None:
    """At least once nobody can tell two equal rows from one that came twice. 2^63 is refused before the checkpoint."""
    app = App("shop", memory_url, checkpoint_dir=tmp_path / "checkpoints", restart="none")
    sink = SqlSink(table(tmp_path / "shop.db", "n INTEGER CHECK (n < 100)"), "orders")
    schema = pa.schema([("n", pa.uint64())])
    rows = [{"n": n} for n in (1, 500, 2**63, 500, 2**63)]
    app.stream(rows, schema=schema, dead_letter="refused").to(sink, delivery=delivery)
    await app.run()
    letters = MemoryBroker.get(memory_url).records("refused")
    assert sorted(json.loads(letter.payload)["n"] for letter in letters) == [500, 500, 2**63, 2**63]
    assert len({dict(letter.headers)["sabot.row"] for letter in letters}) == ids


async def test_a_start_delivers_what_an_earlier_version_could_not(tmp_path: Path, memory_url: str) -> None:
    """The part is in the checkpoint; with `on_error="fail"` the app ends at the row, and says so."""

    def shop(**policy: Any) -> App:
        app = App("shop", memory_url, checkpoint_dir=tmp_path / "checkpoints", restart="none")
        rows = app.stream(numbers(1, 500, 2), dead_letter="refused", **policy)
        rows.to(SqlSink(f"sqlite://{tmp_path}/shop.db", "orders"))
        return app

    table(tmp_path / "shop.db")
    with pytest.raises(UserError, match="CHECK constraint failed"):
        await shop(on_error="fail").run()
    assert rows_of(tmp_path / "shop.db") == []
    await shop().run()
    assert rows_of(tmp_path / "shop.db") == [1, 2]
    assert [value for value, _ in letters_of(memory_url, "refused")] == [500]


async def test_a_value_that_no_column_of_the_database_holds_is_refused_before_it_is_in_a_checkpoint(
    tmp_path: Path, memory_url: str
) -> None:
    app = App("shop", memory_url, checkpoint_dir=tmp_path / "checkpoints", restart="none")
    schema = pa.schema([("id", pa.int64()), ("n", pa.uint64())])
    rows = app.stream(numbers(1, 2**63, 2**64 - 1, 2**63 - 1), schema=schema, dead_letter="refused")
    rows.to(SqlSink(f"sqlite://{tmp_path}/shop.db", "orders"))
    await app.run()
    assert rows_of(tmp_path / "shop.db") == [1, 2**63 - 1]
    assert letters_of(memory_url, "refused") == [
        (value, f"table orders: column 'n': {value} is above 2^63 - 1") for value in (2**63, 2**64 - 1)
    ]


TWO_70 = Decimal(2**70 + 1)


@pytest.mark.one_in(4, "hundredths of a second of a core each")
@pytest.mark.parametrize("delivery", ["exactly_once", "at_least_once"])
@pytest.mark.parametrize(
    ("declared", "values", "kept", "refused"),
    [
        ("INTEGER", pa.array([Decimal(2**63 - 1), TWO_70, Decimal(1)]), [2**63 - 1, 1], [1]),
        ("DECIMAL(40, 0)", pa.array([Decimal(2**63 - 1), TWO_70]), [2**63 - 1], [1]),
        ("NUMERIC", pa.array([Decimal("0.10"), Decimal("1234567890123456.78")]), [0.1], [1]),
        ("REAL", pa.array([Decimal(2**53), Decimal(2**53 + 1)]), [2.0**53], [1]),
        ("DOUBLE", pa.array([2**53, 2**53 + 1, -(2**62), None]), [2.0**53, -(2.0**62), None], [1]),
        ("REAL", pa.array([2**63, 2**53 + 2, 2**53 + 1], pa.uint64()), [2.0**53 + 2], [0, 2]),
        ("TEXT", pa.array([Decimal("1234567890123456.78")]), ["1234567890123456.78"], []),
        ("", pa.array([TWO_70]), [str(TWO_70)], []),
    ],
)
async def test_sqlite_rounds_no_number_to_a_float(
    tmp_path: Path, memory_url: str, delivery: Any, declared: str, values: Any, kept: list[Any], refused: list[int]
) -> None:
    """A decimal is written as a text, which SQLite makes a number of where a column is not of texts."""
    rows = pa.table({"id": range(len(values)), "n": values})
    app = App("shop", memory_url, checkpoint_dir=tmp_path / "checkpoints", restart="none")
    sink = SqlSink(table(tmp_path / "shop.db", f"id INTEGER, n {declared}"), "orders")
    app.stream(rows, dead_letter="refused").to(sink, delivery=delivery)
    await app.run()
    assert rows_of(tmp_path / "shop.db") == kept
    letters = MemoryBroker.get(memory_url).records("refused")
    assert [json.loads(letter.payload)["id"] for letter in letters] == refused


@pytest.mark.parametrize("delivery", ["exactly_once", "at_least_once"])
async def test_a_row_without_its_key_is_a_dead_letter(tmp_path: Path, memory_url: str, delivery: Any) -> None:
    app = App("shop", memory_url, checkpoint_dir=tmp_path / "checkpoints", restart="none")
    rows = app.stream(
        numbers(1, None, 1, 2), schema=pa.schema([("id", pa.int64()), ("n", pa.int64())]), dead_letter="refused"
    )
    rows.to(SqlSink(f"sqlite://{tmp_path}/shop.db", "orders", keys=["n"]), delivery=delivery)
    await app.run()
    assert rows_of(tmp_path / "shop.db", "id") == [2, 3]
    assert [value for value, _ in letters_of(memory_url, "refused")] == [None]


async def test_a_table_that_is_gone_makes_no_dead_letters(tmp_path: Path, memory_url: str) -> None:
    """The fault is not in the rows: the app ends, with all of them in its checkpoint."""
    app = App("shop", memory_url, checkpoint_dir=tmp_path / "checkpoints", restart="none")
    sink = SqlSink(table(tmp_path / "shop.db"), "orders")
    app.stream(numbers(1, 2), dead_letter="refused").map_batches(lambda rows: _without_table(tmp_path, rows)).to(sink)
    with pytest.raises(UserError, match=r"has no column|no such column"):
        await app.run()
    assert MemoryBroker.get(memory_url).records("refused") == []


def _without_table(folder: Path, rows: pa.RecordBatch) -> pa.RecordBatch:
    with contextlib.closing(sqlite3.connect(folder / "shop.db")) as database:
        database.execute("DROP TABLE orders")
        database.execute("CREATE TABLE orders (other INTEGER)")
    return rows


@pytest.mark.one_in(3, "hundredths of a second of a core each")
@pytest.mark.parametrize("place", ["file", "table", "list", "own sink"])
async def test_the_dead_letters_may_go_to_any_sink(tmp_path: Path, memory_url: str, place: str) -> None:
    kept = ListSink("letters")
    letters = {
        "file": NdjsonSink(str(tmp_path / "letters.ndjson")),
        "table": SqlSink(f"sqlite://{tmp_path}/letters.db", "orders"),
        "list": kept,
        "own sink": Receiver(),
    }[place]
    app = App("shop", memory_url, checkpoint_dir=tmp_path / "checkpoints", restart="none")
    app.stream(numbers(1, 500, 2, 100), dead_letter=letters).to(SqlSink(table(tmp_path / "shop.db"), "orders"))
    taken: list[Any] = []
    if isinstance(letters, Receiver):
        letters.deliver = lambda seq, batches: taken.extend(batches)  # type: ignore[method-assign]
    await app.run()
    assert rows_of(tmp_path / "shop.db") == [1, 2]
    if place == "file":
        payloads = [json.loads(line)["payload"] for line in (tmp_path / "letters.ndjson").read_text().splitlines()]
    elif place == "table":
        payloads = rows_of(tmp_path / "letters.db", "payload")
    else:
        payloads = [each.decode() for data in (taken or kept.batches) for each in data.column("payload").to_pylist()]
    assert [json.loads(each)["n"] for each in payloads] == [500, 100]


class Picky(Sink):
    """A user's own, written at least once."""

    name = "picky"

    def __init__(self) -> None:
        self.rows: list[int] = []

    def open(self) -> None:
        """Ready."""

    def write(self, batch: Any) -> None:
        values = batch.taken().column("n").to_pylist()
        if bad := {row: f"{value} is odd" for row, value in enumerate(values) if value % 2}:
            raise RowErrors(bad)
        self.rows += values

    def flush(self) -> None:
        """Nothing waits here."""

    def close(self) -> None:
        """Nothing to let go of."""


async def test_a_sink_of_ones_own_names_the_rows_that_it_refuses(memory_url: str) -> None:
    app, sink = App("shop", memory_url), Picky()
    app.stream(numbers(2, 3, 4, 5), dead_letter="refused").to(sink)
    await app.run()
    assert sink.rows == [2, 4]
    assert letters_of(memory_url, "refused") == [(3, "3 is odd"), (5, "5 is odd")]


class Trying(Receiver):
    """A user's own, delivered to exactly once, that finds the rows which it refuses."""

    def deliver(self, seq: int, batches: Sequence[pa.RecordBatch]) -> None:
        if self.refused_rows(batches):
            raise UserError("there are odd ones")
        super().deliver(seq, batches)

    def refused_rows(self, batches: Sequence[pa.RecordBatch]) -> Mapping[int, str]:
        values = [value for data in batches for value in data.column("n").to_pylist()]
        return {row: f"{value} is odd" for row, value in enumerate(values) if value % 2}


async def test_a_part_counts_as_delivered_without_the_rows_that_were_refused(tmp_path: Path, memory_url: str) -> None:
    app, sink = App("shop", memory_url, checkpoint_dir=tmp_path / "checkpoints"), Trying()
    app.stream(numbers(2, 3, 4, 5), dead_letter="refused").to(sink, delivery="exactly_once")
    await app.run()
    assert sink.rows == [2, 4]
    assert [value for value, _ in letters_of(memory_url, "refused")] == [3, 5]
    (figures,) = [each for each in app.statistics()["delivery"].values() if each["sink"] == "receiver"]
    assert (figures["delivered_rows"], figures["undelivered_rows"], figures["refused_rows"]) == (2, 0, 2)


async def test_a_result_of_an_agent_that_a_table_refuses_is_a_dead_letter_of_the_agent(
    tmp_path: Path, memory_url: str
) -> None:
    app = App("shop", memory_url, checkpoint_dir=tmp_path / "checkpoints", restart="none")
    sink = SqlSink(table(tmp_path / "shop.db"), "orders")

    @app.agent("in", sink=sink, until="now")
    async def check(ctx: Any) -> Any:
        return ctx.message

    for each in numbers(1, 500, 2):
        await app.send("in", each)
    await app.run()
    assert rows_of(tmp_path / "shop.db") == [1, 2]
    assert [value for value, _ in letters_of(memory_url, "in.dlq")] == [500]


def test_the_letter_is_safe_before_the_token_moves(tmp_path: Path) -> None:
    refused_apps.prepare(tmp_path)
    seen: list[str] = []

    class Seen:
        def before(self, name: str, what: str) -> None:
            """Not looked at."""

        def after(self, name: str, what: str) -> None:
            if name == "refuse" or (name == "token" and "orders" in what):
                seen.append(name)

        def torn(self, name: str, what: str, size: int) -> int:
            return size

    watch(Seen())
    try:
        asyncio.run(refused_apps.orders_to_sqlite(tmp_path).run())
    finally:
        watch(None)
    assert seen.index("refuse") < len(seen) - 1
    assert seen[seen.index("refuse") + 1] == "token"
    assert refused_apps.found(tmp_path)[1] == refused_apps.REFUSED


@pytest.mark.slow
def test_a_crash_at_any_step_loses_no_row_and_no_letter() -> None:
    crashes_survived(
        refused_apps.orders_to_sqlite, refused_apps.found, "refuse", "token", "manifest", prepare=refused_apps.prepare
    )


@pytest.mark.parametrize("delivery", ["exactly_once", "at_least_once"])
async def test_a_row_that_breaks_a_rule_of_a_delta_table_is_a_dead_letter(
    tmp_path: Path, memory_url: str, delivery: Any
) -> None:
    place = str(tmp_path / "orders")
    made = deltalake.DeltaTable.create(
        place, schema=deltalake.Schema.from_arrow(pa.schema([("id", pa.int64()), ("n", pa.int64())]))
    )
    made.alter.add_constraint({"small": "n < 100"})
    app = App("lake", memory_url, checkpoint_dir=tmp_path / "checkpoints", restart="none")
    app.stream(numbers(1, 500, 2, 100), dead_letter="refused").to(DeltaSink(place), delivery=delivery)
    await app.run()
    assert deltalake.DeltaTable(place).to_pyarrow_table().column("n").to_pylist() == [1, 2]
    assert [value for value, _ in letters_of(memory_url, "refused")] == [500, 100]


async def test_times_in_a_delta_table_are_rounded_down_and_far_ones_are_dead_letters(
    tmp_path: Path, memory_url: str
) -> None:
    place = str(tmp_path / "times")
    rows = pa.record_batch(
        {
            "n": [0, 1, 2],
            "fine": pa.array([-1, 1999, 0]).view(pa.timestamp("ns")),
            "far": pa.array([-1, 0, 2**63 - 1]).view(pa.timestamp("ms")),
        }
    )
    app = App("lake", memory_url, checkpoint_dir=tmp_path / "checkpoints", restart="none")
    source = ScriptedSource([rows, END], name="in")
    app.stream(source, schema=rows.schema, dead_letter="refused").to(DeltaSink(place))
    await app.run()
    found = deltalake.DeltaTable(place).to_pyarrow_table()
    assert found.column("fine").cast(pa.int64()).to_pylist() == [-1, 1]
    assert found.column("far").cast(pa.int64()).to_pylist() == [-1000, 0]
    assert [value for value, _ in letters_of(memory_url, "refused")] == [2]


ZONED = [(unit, zone) for unit in ("s", "ms", "us", "ns") for zone in (None, "UTC")]
ENDS = {  # three rows each, of which the first always fits
    "bytes": pa.array([b"a", b"\xff", None]),
    "bytes in lists": pa.array([[b"a"], [b"\xff"], None]),
    "text": pa.array(["", "\0", '"\n,']),
    "float": pa.array([1.0, float("nan"), float("-inf")]),
    "uint64": pa.array([0, 2**64 - 1, None], pa.uint64()),
    "decimal": pa.array([1, 10**37, None], pa.decimal128(38, 0)),
    "date": pa.array([0, 2**31 - 1, -(2**31)], pa.int32()).view(pa.date32()),
    **{f"{unit} {zone}": pa.array([0, 2**63 - 1, -(2**63)]).view(pa.timestamp(unit, zone)) for unit, zone in ZONED},
    "times in lists": pa.array([[0], [2**63 - 1], None]).cast(pa.list_(pa.timestamp("ms"))),
}
FAR, NO_TEXT = {1, 2}, {1}
IN_JSON = {"bytes": NO_TEXT, "bytes in lists": NO_TEXT, "s None": FAR, "s UTC": FAR}  # it has milliseconds
IN_DELTA = {"date": FAR, "times in lists": {1}, **{f"{unit} {zone}": FAR for unit, zone in ZONED[:4]}}
IN_DUCKDB = {"date": FAR, "times in lists": {1}, **{f"{unit} {zone}": FAR for unit, zone in ZONED}}
SINKS: dict[str, tuple[Any, dict[str, set[int]]]] = {  # what each refuses; CSV has no bytes and no lists at all
    "topic": (lambda folder: "out", IN_JSON),
    "ndjson": (lambda folder: NdjsonSink(f"{folder}/o.ndjson"), IN_JSON),
    "csv": (lambda folder: CsvSink(f"{folder}/o.csv"), {}),
    "parquet": (lambda folder: ParquetSink(f"{folder}/o/"), {"s None": FAR, "s UTC": FAR}),
    "sqlite": (lambda folder: SqlSink(f"sqlite://{folder}/o.db", "t"), {"bytes in lists": NO_TEXT, "uint64": {1}}),
    "duckdb": (lambda folder: SqlSink(f"duckdb://{folder}/o.duckdb", "t"), IN_DUCKDB),
    "delta": (lambda folder: DeltaSink(f"{folder}/delta"), IN_DELTA),
}


@pytest.mark.one_in(16, "a third of a second of a core each")
@pytest.mark.parametrize("delivery", ["exactly_once", "at_least_once"])
@pytest.mark.parametrize("kind", SINKS)
async def test_no_value_at_the_ends_of_its_type_holds_up_a_sink(
    tmp_path: Path, memory_url: str, kind: str, delivery: Any
) -> None:
    make, refuses = SINKS[kind]
    for name, values in ENDS.items():
        if kind == "csv" and ("list" in name or name == "bytes"):
            continue
        folder = tmp_path / name.replace(" ", "-")
        folder.mkdir()
        rows = pa.record_batch({"n": [0, 1, 2], "v": values})
        app = App(f"ends-{folder.name}", memory_url, checkpoint_dir=folder / "checkpoints", restart="none")
        source = ScriptedSource([rows, END], name="in")
        stream = app.stream(source, schema=rows.schema, dead_letter=f"refused-{folder.name}")
        stream.to(make(folder), delivery=delivery)
        await app.run()
        letters = [n for n, _ in letters_of(memory_url, f"refused-{folder.name}")]
        assert letters == sorted(refuses.get(name, set())), name
