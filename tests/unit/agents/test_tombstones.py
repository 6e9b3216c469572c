"""Record agents that ask for tombstones, and the payload of a record as it came."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from sabot import App, Message, UserError
from sabot._cython.arrow.batch import Batch
from sabot.codecs.records import build_records
from sabot.kafka import open_sink
from sabot.testing import ListSink
from tools.agent_tools import bounded, checkpoint, crash_image, records, started, until, values

Pair = tuple[bytes | None, bytes | None]


def write(app: App, topic: str, pairs: Sequence[Pair]) -> None:
    """Records of (payload, key)."""
    count = len(pairs)
    sink = open_sink(topic, app.broker)
    sink.open()
    payloads, keys = zip(*pairs, strict=True)
    sink.write(Batch(build_records(payloads, keys, [0] * count, 0, range(count)), None, topic))
    sink.flush()
    sink.close()


@pytest.fixture
def app(memory_url: str) -> App:
    return App("shop", memory_url, state="memory")


@pytest.mark.parametrize("durable", [False, True])
async def test_the_payload_is_the_bytes_that_came(memory_url: str, tmp_path: Path, durable: bool) -> None:
    app = App("shop", memory_url, state=str(tmp_path))
    seen = []

    @app.agent("in", on_error="retry", backoff="1ms", durable=durable)
    async def look(ctx: Any) -> None:
        seen.append((ctx.message, ctx.payload))
        if len(seen) == 1:
            raise ValueError("once more")

    write(app, "in", [(b' {"n" :1} ', None), (b"[2 ]", None)])
    async with started(app):
        await until(lambda: len(seen) == 3)
    assert sorted(map(repr, seen)) == sorted(map(repr, [({"n": 1}, b' {"n" :1} ')] * 2 + [([2], b"[2 ]")]))


async def test_a_timer_has_no_payload(app: App) -> None:
    seen = []

    async def due(timer: Any, ctx: Any) -> None:
        seen.append((timer.name, ctx.payload))

    @app.agent("in", key="k", on_timer=due)
    async def look(ctx: Any) -> None:
        ctx.timers.processing(ctx.now(), "now")

    write(app, "in", [(b'{"k": 1}', None)])
    async with started(app):
        await until(lambda: seen == [("now", None)])


@pytest.mark.parametrize("durable", [False, True])
async def test_a_tombstone_is_a_call_without_a_message(memory_url: str, tmp_path: Path, durable: bool) -> None:
    app = App("shop", memory_url, state=str(tmp_path))
    seen = []

    @app.agent("in", tombstones=True, durable=durable)
    async def look(ctx: Any) -> None:
        seen.append((ctx.key, ctx.message, ctx.payload))

    write(app, "in", [(b"1", b"a"), (None, b"a"), (b"null", b"b"), (None, None)])
    async with started(app):
        await until(lambda: len(seen) == 4)
        assert not records(app, "in.dlq")
    assert seen == [(b"a", 1, b"1"), (b"a", None, None), (b"b", None, b"null"), (None, None, None)]


async def test_who_does_not_ask_gets_none(app: App) -> None:
    seen = []

    @app.agent("in")
    async def look(ctx: Any) -> None:
        seen.append(ctx.message)

    write(app, "in", [(None, b"a"), (b"2", b"a")])
    async with started(app):
        await until(lambda: seen == [2])
        await until(lambda: len(records(app, "in.dlq")) == 1)
    letter = records(app, "in.dlq")[0]
    assert letter.payload is None
    assert b"the payload is null" in dict(letter.headers)["sabot.message"]


@pytest.mark.parametrize(
    ("kind", "payloads", "keys"),
    [
        ("string", [b'{"id": "a"}', b'{"id": "7"}'], [b"a", b"7"]),
        ("int64", [b'{"id": 1}', b'{"id": 7}'], [b"1", b'{"id": 7}']),
    ],
)
@pytest.mark.parametrize("concurrency", [1, 4])
async def test_a_tombstone_ends_the_state_of_its_key(
    app: App, kind: str, payloads: list[bytes], keys: list[bytes], concurrency: int
) -> None:
    @app.agent("in", key="id", schema={"id": kind}, tombstones=True, sink="out", concurrency=concurrency)
    async def count(ctx: Any) -> Any:
        state = ctx.state()
        if ctx.message is None:
            gone = await state.get("n")
            await state.delete("n")
            return {"gone": gone}
        await state.put("n", (await state.get("n") or 0) + 1)
        return None

    write(app, "in", [(payload, key) for payload, key in zip(payloads, keys, strict=True) for _ in range(3)])
    write(app, "in", [(None, key) for key in keys] + [(payloads[0], keys[0]), (None, keys[0])])
    async with started(app):
        await until(lambda: len(values(app, "out")) == 3)
    assert sorted(each["gone"] for each in values(app, "out")) == [1, 3, 3]


async def test_a_tombstone_whose_key_cannot_be_read_is_a_dead_letter(app: App) -> None:
    @app.agent("words", key="id", schema={"id": "string"}, tombstones=True)
    async def words(ctx: Any) -> None: ...

    @app.agent("numbers", key="id", schema={"id": "int64"}, tombstones=True)
    async def numbers(ctx: Any) -> None: ...

    write(app, "words", [(None, None), (None, b"\xff")])
    write(app, "numbers", [(None, b"seven"), (None, b'{"other": 7}')])
    async with started(app):
        await until(lambda: len(records(app, "words.dlq")) + len(records(app, "numbers.dlq")) == 4)
    said = [dict(letter.headers)["sabot.message"].decode() for letter in records(app, "words.dlq")]
    said += [dict(letter.headers)["sabot.message"].decode() for letter in records(app, "numbers.dlq")]
    for text, wanted in zip(
        said,
        ["a tombstone without a key", r"no text: b'\xff'", "no JSON: b'seven'", "a key: 'id' is missing"],
        strict=True,
    ):
        assert wanted in text


async def test_a_record_that_does_not_fit_the_schema_stays_a_dead_letter_among_tombstones(app: App) -> None:
    seen = []

    @app.agent("in", schema={"n": "int64"}, tombstones=True)
    async def look(ctx: Any) -> None:
        seen.append(ctx.message)

    write(app, "in", [(b'{"n": "x"}', None), (None, b"k"), (b'{"n": 3}', None)])
    async with started(app):
        await until(lambda: seen == [None, {"n": 3}])
        await until(lambda: len(records(app, "in.dlq")) == 1)


async def test_a_tombstone_that_had_not_ended_is_in_the_checkpoint(memory_url: str, tmp_path: Path) -> None:
    seen = []
    for life, place in enumerate([tmp_path / "before", tmp_path / "after"]):
        app = App("shop", memory_url, state="memory", checkpoint_dir=place, checkpoint_interval=3600)
        begun, crashed = asyncio.Event(), asyncio.Event()

        @app.agent("in", tombstones=True, key="id", schema={"id": "string"})
        async def look(ctx: Any, life: int = life, begun: Any = begun, crashed: Any = crashed) -> None:
            seen.append((life, ctx.key, ctx.message))
            begun.set()
            await crashed.wait()

        if not life:
            write(app, "in", [(None, b"a")])
        async with started(app):
            await bounded(begun.wait())
            if not life:
                await checkpoint(app)
                crash_image(place, tmp_path / "after")
            crashed.set()
    assert seen == [(0, b"a", None), (1, b"a", None)]


async def test_the_job_of_a_tombstone_goes_on_behind_a_restart(memory_url: str, tmp_path: Path) -> None:
    seen = []
    for life in range(2):
        app = App("shop", memory_url, state=str(tmp_path))

        @app.agent("in", tombstones=True, key="id", schema={"id": "string"}, durable=True, sink="out")
        async def look(ctx: Any, life: int = life) -> Any:
            seen.append((life, ctx.key, ctx.message, ctx.payload))
            if not life:
                await asyncio.Event().wait()
            return "gone"

        if not life:
            write(app, "in", [(None, b"a")])
        async with started(app):
            await until(lambda life=life: len(seen) > life)
            if life:
                await until(lambda app=app: values(app, "out") == ["gone"])
    assert seen == [(0, b"a", None, None), (1, b"a", None, None)]


def test_what_cannot_take_tombstones_refuses_them(app: App) -> None:
    async def look(ctx: Any) -> None: ...

    for options, said in [
        ({"tombstones": True, "batch": True}, "tombstones=True with batch=True"),
        ({"tombstones": "yes"}, "tombstones='yes'"),
        ({"tombstones": True, "key": "id"}, r"with key='id'.*schema=\{\"id\": \"string\"\} declares it"),
        ({"tombstones": True, "key": "id", "schema": {"n": "int64"}}, "with key='id'"),
    ]:
        with pytest.raises(UserError, match=said):
            app.agent("in", **options)(look)
    with pytest.raises(UserError, match="no option tombstones"):
        app.process_agent("in", command=["cat"], tombstones=True)


@pytest.mark.one_in(3, "a tenth of a second of a core each")
@pytest.mark.parametrize(("durable", "several"), [(False, False), (False, True), (True, False)])
async def test_a_result_without_a_value_under_a_key_ends_the_row_of_a_table(
    memory_url: str, tmp_path: Path, durable: bool, several: bool
) -> None:
    """It was the text `null`, a dead letter of the table. Exactly once: it waits in the checkpoint."""
    app, log = App("shop", memory_url, state=str(tmp_path), checkpoint_interval="100ms"), ListSink()

    def result(message: Any) -> Message:
        return Message(message.get("row"), key=message["id"])

    if several:

        @app.agent("in", sink="rows", delivery="exactly_once", name="f")
        async def yields(ctx: Any) -> Any:
            yield result(ctx.message)
    else:

        @app.agent("in", sink="rows", delivery="exactly_once", name="f", durable=durable)
        async def returns(ctx: Any) -> Any:
            return result(ctx.message)

    app.table("rows", key="id", schema={"id": "string", "n": "int64"}).changelog().to(log)
    async with started(app):
        await app.send("in", {"id": "a", "row": {"n": 1}})
        await until(lambda: len(log.rows) == 1)
        await app.send("in", {"id": "a"})
        await until(lambda: len(log.rows) == 2)
        assert not records(app, "rows.dlq")
    assert [(record.key, record.payload) for record in records(app, "rows")] == [(b"a", b'{"n":1}'), (b"a", None)]
    assert [row["op"] for row in log.rows] == ["insert", "delete"]


async def test_what_is_sent_without_a_value_is_a_tombstone_under_a_key_and_json_without_one(app: App) -> None:
    @app.agent("in", sink="out")
    async def no_key(ctx: Any) -> Any:
        return Message(None)

    await app.send("in", None)
    await app.send("other", None, key="a")
    await app.send("other", None, key=b"")
    async with started(app):
        await until(lambda: len(records(app, "out")) == 1)
    assert [record.payload for record in records(app, "in")] == [b"null"]
    assert [record.payload for record in records(app, "out")] == [b"null"]
    assert [(record.key, record.payload) for record in records(app, "other")] == [(b"a", None), (b"", None)]
