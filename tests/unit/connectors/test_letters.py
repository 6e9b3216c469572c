"""Dead letters: one schema in topics, files and tables; read back, and listed by `sabot dlq`, from wherever they lie."""

import asyncio
import gzip
import json
import os
import sqlite3
import time
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from sabot import (
    App,
    ArrowSink,
    ArrowSource,
    CsvSink,
    CsvSource,
    NdjsonSink,
    NdjsonSource,
    ParquetSink,
    ParquetSource,
    SqlSink,
)
from sabot.cli import commands
from sabot.codecs.records import RECORD_SCHEMA, build_records, header_rows, iterate_records
from sabot.engine.letters.files import FileHome
from sabot.engine.letters.form import (
    LETTER_SCHEMA,
    DeadLetter,
    as_columns,
    letter_headers,
    letter_of_record,
    letter_of_row,
    letters_of,
    letters_of_rows,
)
from sabot.engine.letters.places import Letters
from sabot.engine.letters.tables import TableHome
from sabot.errors import UserError
from sabot.testing import MemoryBroker

STAMP = 1_700_000_000_000
FACTS = {
    "topic": "orders",
    "partition": "2",
    "offset": "7",
    "timestamp": str(STAMP),
    "agent": "shop.check",
    "error": "KeyError",
    "message": "'price'",
    "attempts": "3",
    "version": "v7",
}
LINES = '{"id": 1}\nnope\n{"id": 2}\n{"id": "x"\n'


def headers_of(**other: Any) -> Any:
    given: dict[str, Any] = {"topic": "orders", "partition": 2, "offset": 7, "timestamp": STAMP, "agent": "shop.check"}
    return letter_headers(KeyError("price"), **{**given, "attempts": 3, "version": "v7", **other})


def records(payloads: list[bytes | None], keys: list[bytes | None], headers: list[Any]) -> Any:
    return build_records(payloads, keys, [STAMP] * len(payloads), 2, [7] * len(payloads), headers)


def dlq(*words: str) -> Any:
    done = CliRunner().invoke(commands.cli, ["dlq", *words])
    assert done.exit_code == 0, done.output
    return done.stdout


def listed(*words: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in dlq("list", *words, "--json").splitlines()]


# --- made and read


def test_a_letter_says_where_its_record_was_and_what_happened_to_it() -> None:
    began = int(time.time() * 1000)
    read = letter_of_record(0, 1, STAMP, b"k", b"{}", (("a", b"1"), ("a", None), *headers_of()))
    written = read.timestamp  # the record has its own time
    assert read == DeadLetter(0, 1, written, b"k", b"{}", (("a", b"1"), ("a", None)), FACTS)  # type: ignore[arg-type]
    assert written >= began
    assert (read.number("offset"), read.number("agent"), read.says("price"), read.says("Value")) == (
        7,
        None,
        True,
        False,
    )


def test_what_is_not_known_is_left_out() -> None:
    facts = dict(headers_of(topic="", partition=None, offset=None, timestamp=None, step="shop/map_async-1"))
    assert facts["sabot.topic"] == b""
    assert facts["sabot.step"] == b"shop/map_async-1"
    assert not facts.keys() & {"sabot.partition", "sabot.offset", "sabot.timestamp"}


def test_a_letter_about_a_letter_keeps_both() -> None:
    first = (("a", b"1"), *headers_of())
    read = letter_of_record(0, 1, STAMP, None, b"x", (*first, *headers_of(topic="orders.dlq", agent="shop.again")))
    assert read.headers == first
    assert read.facts == {**FACTS, "topic": "orders.dlq", "agent": "shop.again"}


BYTES = (
    st.none()
    | st.binary()
    | st.text().map(str.encode)
    | st.sampled_from([b"base64:", b"base64:eA==", b"a\0b", b"\xff", b""])
)


@pytest.mark.slow  # a second of a core, or more
@given(payload=BYTES, key=BYTES, headers=st.lists(st.tuples(st.text(), BYTES), max_size=3))
def test_a_row_of_a_file_or_a_table_says_what_the_record_says(payload: Any, key: Any, headers: Any) -> None:
    own = [(name, value) for name, value in headers if name != "sabot.topic"]
    given_headers = (*own, *headers_of(trace="  File ..., line 3"))
    data = as_columns(records([payload], [key], [given_headers]))
    assert data.schema == LETTER_SCHEMA
    row = json.loads(json.dumps(data.to_pylist()[0]))
    read, record = letter_of_row(row, 0, 5), letter_of_record(0, 5, row["written"], key, payload, given_headers)
    assert read == record
    assert not any("\0" in text for text in row.values() if isinstance(text, str))


def test_records_that_are_no_letters_stay_as_they_are() -> None:
    mixed = records([b"a", b"b"], [None, None], [(), headers_of()])
    plain = records([b"a"], [None], [(("a", b"1"),)])
    assert as_columns(mixed) is mixed
    assert as_columns(plain) is plain
    assert as_columns(records([], [], [])).schema == RECORD_SCHEMA
    assert letter_of_row({"error": "x"}, 0, 0) is None


def test_letters_have_numbers_of_their_own() -> None:
    many = as_columns(records([b"x"] * 5000, [None] * 5000, [headers_of()] * 5000)).column("letter").to_pylist()
    assert len(set(many)) == 5000
    assert min(as_columns(records([b"y"], [None], [headers_of()])).column("letter").to_pylist()) not in many


def test_letters_of_a_source_are_its_records_with_their_reasons() -> None:
    came = records([b"nope", None], [b"k", None], [(("a", b"1"),), ()])
    made = letters_of(came, ["not JSON", "null"], topic="orders", agent="shop/read-1", version="v7")
    one, other = iterate_records(made, "orders.dlq")
    assert (one.payload, one.key, one.timestamp, one.offset) == (b"nope", b"k", STAMP, 7)
    assert dict(header_rows(made.column("headers"))[0])["sabot.message"] == b"not JSON"
    assert letter_of_record(0, 0, 0, None, None, other.headers).facts == {
        **FACTS,
        "agent": "shop/read-1",
        "error": "DataError",
        "message": "null",
        "attempts": "0",
    }


def test_a_row_is_told_whatever_is_in_it() -> None:
    rows = pa.record_batch(
        {
            "n": [1, None],
            "d": pa.array([Decimal("1.5"), None], pa.decimal128(10, 2)),
            "b": pa.array([b"\xff", b"text"]),
            "t": pa.array([STAMP, None], pa.timestamp("ms", "UTC")),
        }
    )
    made = letters_of_rows(
        rows,
        [("OSError", "gone")] * 2,
        [2, None],
        times=None,
        topic="orders",
        step="lookup(price)",
        agent="shop/x",
        version="",
    )
    one, other = iterate_records(made, "dead")
    assert json.loads(one.payload or b"") == {"n": 1, "d": "1.50", "b": "base64:/w==", "t": "2023-11-14T22:13:20Z"}
    assert json.loads(other.payload or b"") == {"n": None, "d": None, "b": "text", "t": None}
    facts = {
        "topic": "orders",
        "agent": "shop/x",
        "error": "OSError",
        "message": "gone",
        "version": "",
        "step": "lookup(price)",
    }
    assert letter_of_record(0, 0, 0, None, None, one.headers).facts == {**facts, "attempts": "2"}
    assert letter_of_record(0, 0, 0, None, None, other.headers).facts == facts


# --- where they lie


def orders(folder: Path, letters: Any, *, stream: bool) -> App:
    """An app over four lines, of which two are no JSON; an agent also gives up the second order."""
    (folder / "orders.ndjson").write_text(LINES)
    os.utime(folder / "orders.ndjson", (STAMP // 1000, STAMP // 1000))  # the time of its records
    app = App("shop", "memory://letters", version="v7")
    source = NdjsonSource(folder / "orders.ndjson")
    if stream:
        app.stream(source, schema={"id": "int64"}, dead_letter=letters).to(NdjsonSink(folder / "good.ndjson"))
        return app

    @app.agent(source, sink=NdjsonSink(folder / "good.ndjson"), dead_letter=letters, on_error="skip")
    async def check(ctx: Any) -> Any:
        if ctx.message["id"] == 2:
            raise ValueError("no order 2")
        return ctx.message

    return app


def check_letters(found: list[dict[str, Any]], path: Path, *, stream: bool) -> None:
    texts = ["nope", '{"id": "x"'] if stream else ["nope", '{"id": 2}', '{"id": "x"']
    offsets = {"nope": 10, '{"id": 2}': 15, '{"id": "x"': 25}
    assert sorted(letter["payload"] for letter in found) == sorted(texts)
    for letter in found:
        assert (letter["topic"], letter["offset"]) == (str(path), offsets[letter["payload"]])
        assert letter["agent"].startswith("shop/" if stream else "shop.check")
        assert letter["error"] == ("ValueError" if letter["payload"] == '{"id": 2}' else "DataError")
        assert (letter["version"], letter["redriven"]) == ("v7", False)


@pytest.mark.one_in(12, "some hundredths of a second of a core each")
@pytest.mark.parametrize("delivery", ["at_least_once", "exactly_once"])
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "agent"])
@pytest.mark.parametrize("where", ["file", "folder", "compressed", "table"])
def test_letters_of_a_file_or_a_table_are_listed_and_shown(
    where: str, stream: bool, delivery: str, tmp_path: Path
) -> None:
    place: dict[str, tuple[Any, list[str]]] = {
        "file": (NdjsonSink(tmp_path / "bad.ndjson"), [f"{tmp_path}/bad.ndjson"]),
        "folder": (NdjsonSink(f"{tmp_path}/bad/"), [f"{tmp_path}/bad/"]),
        "compressed": (NdjsonSink(tmp_path / "bad.ndjson.gz"), [f"{tmp_path}/bad.ndjson.gz"]),
        "table": (SqlSink(f"sqlite:{tmp_path}/bad.db", table="bad"), [f"sqlite:{tmp_path}/bad.db", "--table", "bad"]),
    }
    sink, words = place[where]
    app = orders(tmp_path, sink, stream=stream)
    if delivery == "exactly_once":
        app.configure(state=str(tmp_path / "state"), checkpoint_interval=0.05)
    asyncio.run(app.run())
    found = listed(*words)
    check_letters(found, tmp_path / "orders.ndjson", stream=stream)
    assert listed(*words, "--limit", "1") == found[:1]
    assert listed(*words, "--error", "nothing says this") == []
    broken = next(letter for letter in found if letter["payload"] == '{"id": "x"')
    shown = dlq("show", words[0], broken["letter"], *words[1:])
    assert 'payload\n{"id": "x"\n' in shown
    assert json.loads(dlq("show", words[0], found[0]["letter"], *words[1:], "--json")) == found[0]


async def test_a_file_of_lines_from_elsewhere_is_listed_without_facts(tmp_path: Path) -> None:
    (tmp_path / "old.ndjson").write_bytes(b'nope\n{"kelvin": 0}\n\xff\nhalf')
    found = list(Letters(FileHome(tmp_path / "old.ndjson")).letters())
    assert [(letter.offset, letter.payload, letter.facts) for letter in found] == [
        (0, b"nope", {}),
        (5, b'{"kelvin": 0}', {}),
        (19, b"\xff", {}),
    ]
    home = FileHome(tmp_path / "old.ndjson")
    assert [[letter.offset for letter in home.read(0, first, 19)] for first in range(7)] == [[0, 5], *[[5]] * 5, []]
    with pytest.raises(UserError, match=r"old\.ndjson' has no dead letter at 0:99"):
        Letters(FileHome(tmp_path / "old.ndjson")).find(0, 99)


@pytest.mark.one_in(3, "some hundredths of a second of a core each")
@pytest.mark.parametrize("place", ["file", "table"])
@pytest.mark.parametrize("delivery", ["at_least_once", "exactly_once"])
@pytest.mark.parametrize("step", ["map_async", "lookup"])
def test_rows_whose_calls_failed_are_letters_of_files_and_tables(
    step: str, delivery: str, place: str, tmp_path: Path
) -> None:
    (tmp_path / "orders.csv").write_text("id,item\n1,pen\n2,ink\n3,pad\n")
    sink: Any = NdjsonSink(tmp_path / "bad.ndjson")
    words = [f"{tmp_path}/bad.ndjson"]
    if place == "table":
        sink, words = SqlSink(f"sqlite:{tmp_path}/bad.db", table="bad"), [f"sqlite:{tmp_path}/bad.db", "--table", "bad"]

    async def price(row: Any) -> Any:
        item = row if step == "lookup" else row["item"]
        if item == "ink":
            raise ConnectionError("no answer")
        return {"price": 5}

    app = App("shop", "memory://letters", version="v7")
    if delivery == "exactly_once":
        app.configure(state=str(tmp_path / "state"), checkpoint_interval=0.05)
    orders = app.stream(CsvSource(tmp_path / "orders.csv"))
    how: dict[str, Any] = {
        "schema": {"price": "int64"},
        "on_error": "skip",
        "retries": 1,
        "backoff": 0,
        "dead_letter": sink,
    }
    made = orders.map_async(price, **how) if step == "map_async" else orders.lookup(price, on="item", **how)
    made.to(NdjsonSink(tmp_path / "good.ndjson"))
    asyncio.run(app.run())
    (letter,) = listed(*words)
    assert json.loads(letter["payload"]) == {"id": 2, "item": "ink"}
    assert (letter["topic"], letter["error"], letter["message"]) == (
        f"{tmp_path}/orders.csv",
        "ConnectionError",
        "no answer",
    )
    assert (letter["attempts"], letter["version"]) == (2, "v7")
    assert letter["step"].startswith(f"{step}(")
    assert letter["agent"].startswith("shop/")
    assert "partition" not in letter


def test_a_file_that_was_made_anew_is_another_place(tmp_path: Path) -> None:
    ids = set()
    for payload in (b"a", b"a"):  # the same record: the letter has another number
        path = tmp_path / "bad.ndjson"
        path.write_text(json.dumps(as_columns(records([payload], [None], [headers_of()])).to_pylist()[0]) + "\n")
        ids.add(FileHome(path).id)
    assert len(ids) == 2


def test_what_is_no_place_of_letters_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone\.ndjson' does not exist"):
        FileHome(tmp_path / "gone.ndjson")
    with pytest.raises(UserError, match=r"gone\.db does not exist"):
        TableHome(f"sqlite:{tmp_path}/gone.db", "bad")
    assert not (tmp_path / "gone.db").exists()
    with sqlite3.connect(tmp_path / "other.db") as database:
        database.execute("CREATE TABLE other (letter INTEGER)")
    with pytest.raises(UserError, match=r"table bad of .*does not exist"):
        TableHome(f"sqlite:{tmp_path}/other.db", "bad")
    with pytest.raises(UserError, match="is no table of dead letters: it has no column agent, attempts"):
        TableHome(f"sqlite:{tmp_path}/other.db", "other")
    (tmp_path / "bad.ndjson.gz").write_bytes(gzip.compress(b"nope\n" * 1000)[:-20])
    with pytest.raises(UserError, match=r"bad\.ndjson\.gz' cannot be read"):
        list(Letters(FileHome(tmp_path / "bad.ndjson.gz")).letters())


def test_a_redrive_from_a_file_asks_for_a_broker(tmp_path: Path) -> None:
    (tmp_path / "bad.ndjson").write_text("nope\n")
    done = CliRunner().invoke(commands.cli, ["dlq", "redrive", f"{tmp_path}/bad.ndjson"])
    assert done.exit_code == 2
    assert "no broker is given" in done.stderr


@pytest.mark.parametrize(
    ("sink", "source", "name"),
    [
        (CsvSink, CsvSource, "bad.csv"),
        (ParquetSink, ParquetSource, "bad.parquet"),
        (ArrowSink, ArrowSource, "bad.arrow"),
    ],
)
def test_every_format_of_files_takes_letters(sink: Any, source: Any, name: str, tmp_path: Path) -> None:
    written = sink(tmp_path / name)
    asyncio.run(orders(tmp_path, written, stream=False).run())
    table = App("read", "memory://letters").stream(source(written.name)).collect()
    assert sorted(table.column("payload").to_pylist()) == sorted(["nope", '{"id": 2}', '{"id": "x"'])
    assert table.schema.names == LETTER_SCHEMA.names


def test_letters_of_a_topic_have_the_same_facts(tmp_path: Path) -> None:
    MemoryBroker.get("memory://letters").reset()
    asyncio.run(orders(tmp_path, "bad", stream=False).run())
    asyncio.run(orders(tmp_path, NdjsonSink(tmp_path / "bad.ndjson"), stream=False).run())
    in_topic = [
        letter_of_record(each.partition, each.offset, each.timestamp, each.key, each.payload, each.headers)
        for each in MemoryBroker.get("memory://letters").records("bad")
    ]
    in_file = list(Letters(FileHome(tmp_path / "bad.ndjson")).letters())
    of_topic, of_file = [
        sorted(
            (letter.number("offset"), letter.payload, letter.key, letter.headers, str(letter.facts)) for letter in each
        )
        for each in (in_topic, in_file)
    ]
    assert of_topic == of_file
    assert len(of_topic) == 3
