"""Values from outside that are nested without end: each reader says so of the value, and goes on with what stands beside it."""

import inspect
import json
import sys

import msgspec
import pyarrow as pa
import pytest

from sabot import App, DataError, UserError
from sabot._cython.text.json import NESTING_MAX, JsonDecoder, is_too_deep
from sabot.codecs.json import infer_schema
from sabot.codecs.records import decode_json, encode_json
from sabot.engine.checkpoint import CheckpointStorage
from sabot.engine.checkpoint.requests import Requests
from sabot.engine.operators.agents.records import RecordAgentOperator
from sabot.engine.operators.functions.state import parts_of
from sabot.engine.state import MemoryBackend, ValueState
from sabot.engine.state.backends.database import MARK_FILE, read_mark
from sabot.engine.state.reading import json_text, key_candidates
from sabot.errors import CorruptCheckpoint
from tools.agent_tools import bounded, publish, records, started, until, values

ENDLESS = 100_000


def lists(depth):
    return b"[" * depth + b"1" + b"]" * depth


def objects(depth):
    return b'{"a":' * depth + b"1" + b"}" * depth


@pytest.fixture
def app(memory_url):
    return App("shop", broker=memory_url)


@pytest.mark.parametrize("deep", [lists(ENDLESS), objects(ENDLESS), objects(NESTING_MAX + 1), b"[" * ENDLESS])
async def test_a_deep_payload_is_a_dead_letter_and_the_records_around_it_are_processed(app, deep):
    seen = []

    @app.agent("orders")
    async def check(ctx):
        seen.append(ctx.message)

    publish(app, "orders", [{"n": 1}, deep, {"n": 2}])
    async with started(app):
        await until(lambda: seen == [{"n": 1}, {"n": 2}])
        await until(lambda: len(records(app, "orders.dlq")) == 1)
    letter = records(app, "orders.dlq")[0]
    assert letter.payload == deep
    assert b"nested deeper than 512" in dict(letter.headers)["sabot.message"]


async def test_a_payload_as_deep_as_may_be_goes_through_state_and_out_and_in_again(memory_url):
    app = App("shop", broker=memory_url, state="memory")
    seen = []

    @app.agent("orders", sink="copies")
    async def copy(ctx):
        await ctx.state().put("last", ctx.message)
        return await ctx.state().get("last")

    @app.agent("copies")
    async def read(ctx):
        seen.append(ctx.message)

    publish(app, "orders", [objects(NESTING_MAX), lists(NESTING_MAX)])
    async with started(app):
        await until(lambda: len(seen) == 2)
    assert [json.dumps(value, separators=(",", ":")).encode() for value in seen] == [
        objects(NESTING_MAX),
        lists(NESTING_MAX),
    ]


async def test_a_batch_agent_and_a_record_agent_with_a_schema_set_deep_rows_apart(app):
    seen = []

    @app.agent("orders", batch=True, schema=pa.schema([("n", pa.int64())]))
    def by_batch(batch, ctx):
        seen.extend(batch.column("n").to_pylist())

    @app.agent("orders", schema={"n": "int64"})
    async def by_record(ctx):
        seen.append(ctx.message["n"])

    publish(app, "orders", [{"n": 1}, b'{"n":2,"x":' + lists(ENDLESS) + b"}", {"n": 3}])
    async with started(app):
        await until(lambda: sorted(seen) == [1, 1, 3, 3])
        await until(lambda: len(records(app, "orders.dlq")) == 2)


async def test_a_stream_sets_deep_rows_apart(app):
    app.stream("orders", schema={"n": "int64"}).to("numbers")
    publish(app, "orders", [{"n": 1}, b'{"n":2,"x":' + lists(ENDLESS) + b"}", {"n": 3}])
    async with started(app):
        await until(lambda: values(app, "numbers") == [{"n": 1}, {"n": 3}])
        await until(lambda: len(records(app, "orders.dlq")) == 1)


async def test_a_deep_table_key_is_a_dead_letter(app):
    app.table("prices", key=["a", "b"], schema={"a": "int64", "b": "int64", "p": "int64"}).to("out")
    publish(app, "prices", [b'{"p":1}'], key=lists(ENDLESS))
    publish(app, "prices", [b'{"p":2}'], key=b'{"a":1,"b":2}')
    async with started(app):
        await until(lambda: values(app, "out") == [{"a": 1, "b": 2, "p": 2}])
        await until(lambda: len(records(app, "prices.dlq")) == 1)


async def test_a_result_that_is_too_deep_for_json_is_the_calls_own_error(app):
    @app.agent("orders", on_error="skip", sink="out")
    async def wrap(ctx):
        value = ctx.message
        for _ in range(ENDLESS if value == "deep" else 3):
            value = [value]
        return value

    publish(app, "orders", ["a", "deep", "b"])
    async with started(app):
        await until(lambda: values(app, "out") == [[[["a"]]], [[["b"]]]])
        await until(lambda: values(app, "orders.dlq") == ["deep"])


def test_the_bound_is_one_for_all_decoders_of_json():
    fits, over = objects(NESTING_MAX), objects(NESTING_MAX + 1)
    assert encode_json(decode_json(fits, where="x")) == fits
    with pytest.raises(DataError, match="x: the payload is nested deeper than 512"):
        decode_json(over, where="x")
    bad = JsonDecoder(pa.schema([])).decode([fits, over])[1]
    assert [row.row for row in bad] == [1]
    assert "nested deeper than 512" in bad[0].reason


@pytest.mark.parametrize(
    ("payload", "deep"),
    [
        (b'{"a":"' + b"[" * 1000 + b'"}', False),
        (b'{"a":"\\"' + b"[" * 1000 + b'"}', False),
        (b"[" + b"[]," * 1000 + b"[]]", False),
        (b'["\\\\",' + lists(512) + b"]", True),
        (b"[" * 513, True),
        (b"", False),
    ],
)
def test_brackets_count_where_they_open_something(payload, deep):
    assert is_too_deep(payload) is deep


def test_inference_passes_over_rows_that_are_too_deep():
    assert infer_schema([b'{"n":1}', b'{"n":' + lists(ENDLESS) + b"}"]).names == ["n"]


async def test_state_refuses_values_that_no_reader_could_take():
    state = ValueState(MemoryBackend(), "seen")
    value = msgspec.json.decode(objects(NESTING_MAX + 64))  # the deepest payload, and what an agent wraps around it
    await state.put("k", value)
    assert await state.get("k") == value
    assert json_text(value).encode() == objects(NESTING_MAX + 64)
    with pytest.raises(UserError, match="state 'seen' cannot keep this list: nested deeper than 576"):
        await state.put("k", [value])


def test_files_that_are_too_deep_are_corrupt_and_named(tmp_path):
    mark = tmp_path / MARK_FILE
    mark.write_bytes(b'{"format":' + lists(ENDLESS) + b"}")
    with pytest.raises(CorruptCheckpoint, match=MARK_FILE):
        read_mark(tmp_path)
    with pytest.raises(CorruptCheckpoint, match="is not a key of state"):
        parts_of(b"\x91" * ENDLESS + b"\x01")
    assert key_candidates(lists(ENDLESS).decode()) == [lists(ENDLESS).decode(), lists(ENDLESS)]


def test_a_manifest_that_is_too_deep_is_corrupt_and_named(tmp_path):
    manifest = tmp_path / "checkpoints" / "0000000001-0000000001.json"
    manifest.parent.mkdir()
    for damage in (lists(ENDLESS), b'{"format_version":2,"crc32":0,"body":' + lists(ENDLESS) + b"}"):
        manifest.write_bytes(damage)
        with pytest.raises(CorruptCheckpoint, match=manifest.name):
            CheckpointStorage(tmp_path).latest()


def test_a_request_that_is_too_deep_is_answered(tmp_path):
    folder = tmp_path / "requests"
    folder.mkdir()
    (folder / f"{'a' * 32}.json").write_bytes(lists(ENDLESS))
    assert Requests(tmp_path).pending() == []
    assert "not JSON" in json.loads((folder / f"{'a' * 32}.done.json").read_text())["error"]


async def test_where_the_callers_own_stack_is_deep_the_record_is_a_dead_letter_all_the_same(app, monkeypatch):
    """The interpreter's stack may have less room than the bound: nothing but that record suffers."""
    inner = RecordAgentOperator.put

    def put(self, batch, frames=None):
        if frames is None:
            frames = sys.getrecursionlimit() - len(inspect.stack(0)) - 250
        return inner(self, batch) if frames == 0 else put(self, batch, frames - 1)

    monkeypatch.setattr(RecordAgentOperator, "put", put)
    seen = []

    @app.agent("orders")
    async def check(ctx):
        seen.append(ctx.message)

    publish(app, "orders", [1, lists(NESTING_MAX), 2])
    async with started(app):
        await until(lambda: seen == [1, 2])
        await until(lambda: len(records(app, "orders.dlq")) == 1)
    await bounded(app.stop())
