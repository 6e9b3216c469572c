"""Record agents with several sinks: each result says where it goes."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from sabot import AgentFailed, App, Message, NdjsonSink, UserError
from sabot.engine.runtime.tasks.writing import SeveralSinks
from tools.agent_tools import bounded, publish, records, started, until, values


@pytest.fixture
def app(memory_url: str) -> App:
    return App("shop", memory_url, state="memory")


def parted(app: App, **options: Any) -> None:
    @app.agent("in", sink=["even", "odd"], **options)
    async def part(ctx: Any) -> Any:
        n = ctx.message["n"]
        return Message({"n": n}, topic="odd", headers=(("n", b"%d" % n),)) if n % 2 else {"n": n}


def written(app: App) -> dict[str, int]:
    return {name: sink["rows_out"] for name, sink in app.statistics()["sinks"].items() if "dlq" not in name}


def numbers(app: App, topic: str) -> list[int]:
    return [value["n"] for value in values(app, topic)]


@pytest.mark.parametrize("durable", [False, True])
async def test_each_result_goes_where_it_says_and_others_into_the_first(
    memory_url: str, tmp_path: Path, durable: bool
) -> None:
    app = App("shop", memory_url, state=str(tmp_path))
    parted(app, durable=durable)
    publish(app, "in", [{"n": n} for n in range(20)], key="k")
    async with started(app):
        await until(lambda: len(numbers(app, "even")) == len(numbers(app, "odd")) == 10)
        assert app.statistics()["operators"]["shop.part"]["rows_out"] == 20
        await until(lambda: written(app) == {"even": 10, "odd": 10})  # a sink counts rows that it has written
    assert (numbers(app, "even"), numbers(app, "odd")) == ([*range(0, 20, 2)], [*range(1, 20, 2)])
    last = records(app, "odd")[-1]
    assert (last.key, dict(last.headers)["n"]) == (b"k", b"19")


async def test_a_generator_gives_to_several(app: App) -> None:
    @app.agent("in", sink=["a", "b"])
    async def both(ctx: Any) -> Any:
        yield Message(1, topic="a")
        yield Message(2, topic="b", key="x")
        yield 3

    publish(app, "in", [0])
    async with started(app):
        await until(lambda: (values(app, "a"), values(app, "b")) == ([1, 3], [2]))
    assert records(app, "b")[0].key == b"x"


async def test_a_sink_of_ones_own_goes_by_its_name(app: App, tmp_path: Path) -> None:
    file = NdjsonSink(tmp_path / "odd.ndjson")

    @app.agent("in", sink=["even", file])
    async def part(ctx: Any) -> Any:
        return Message(ctx.message, topic=file.name if ctx.message["n"] % 2 else "even")

    publish(app, "in", [{"n": n} for n in range(4)])
    async with started(app):
        await until(lambda: len(numbers(app, "even")) == 2)
        await bounded(app.stop(drain=True))
    assert (tmp_path / "odd.ndjson").read_text() == '{"n":1}\n{"n":3}\n'


@pytest.mark.parametrize(
    ("sink", "said"),
    [
        (["a", "b"], r"Message\(topic='c'\) is for none of its sinks: a, b .*sink=\[\"a\", \"b\", \"c\"\]"),
        ("a", r"none of its sinks: a .*sink=\[\"a\", \"c\"\]"),
        (None, r"for no sink of its own, as it has none .*sink=\[\"c\"\]"),
    ],
)
async def test_an_unknown_topic_is_an_error_of_the_agent(app: App, sink: Any, said: str) -> None:
    @app.agent("in", sink=sink)
    async def lost(ctx: Any) -> Any:
        return Message(ctx.message, topic="c")

    publish(app, "in", [1])
    with pytest.raises(AgentFailed, match=said):
        await bounded(app.run())


@pytest.mark.parametrize("durable", [False, True])
async def test_a_result_for_an_unknown_topic_is_a_dead_letter_of_who_skips(
    memory_url: str, tmp_path: Path, durable: bool
) -> None:
    app = App("shop", memory_url, state=str(tmp_path))

    @app.agent("in", sink=["a", "b"], on_error="skip", durable=durable)
    async def some(ctx: Any) -> Any:
        return Message(ctx.message, topic=ctx.message)

    publish(app, "in", ["a", "c", "b"])
    async with started(app):
        await until(lambda: (values(app, "a"), values(app, "b")) == (["a"], ["b"]))
        await until(lambda: values(app, "in.dlq") == ["c"])


def test_what_cannot_have_several_sinks_is_refused(app: App) -> None:
    async def part(ctx: Any) -> Any: ...

    async def other(ctx: Any) -> Any: ...

    for sink, options, said in [
        (["a", "a"], {}, "has one name twice"),
        ([], {}, r"sink \[\] is no place for results \(a topic name, a Sink"),
        (["a", other], {}, "a list has topics and Sinks only"),
        (["a", "b"], {"batch": True}, "with batch=True .*a list is for a record agent"),
        (["a", ""], {}, r"agent shop\.part: sink is empty"),
    ]:
        with pytest.raises(UserError, match=said):
            app.agent("in", sink=sink, **options)(part)
    with pytest.raises(UserError, match="Message: topic"):
        Message(1, topic=3)  # type: ignore[arg-type]


class Full:
    """A port that is full until somebody makes room."""

    def __init__(self, name: str) -> None:
        self.name, self.room = name, asyncio.Event()

    @property
    def full(self) -> bool:
        return not self.room.is_set()

    async def writable(self) -> None:
        await self.room.wait()


async def test_an_agent_waits_until_all_its_sinks_have_room() -> None:
    ports: Any = [Full("even"), Full("odd")]
    several, waiting = SeveralSinks(ports), None
    for port in ports:
        assert several.full
        waiting = waiting or asyncio.ensure_future(several.writable())
        await asyncio.sleep(0)
        assert not waiting.done()
        port.room.set()
    assert waiting is not None
    await bounded(waiting)
    assert not several.full


@pytest.mark.parametrize("durable", [False, True])
async def test_a_list_of_messages_is_told_to_yield_them(memory_url: str, tmp_path: Path, durable: bool) -> None:
    """The error named a class that cannot be written as JSON, and not what to do."""
    app = App("shop", memory_url, state=str(tmp_path))

    @app.agent("in", sink=["a", "b"], on_error="skip", durable=durable)
    async def both(ctx: Any) -> Any:
        return [Message(1, topic="a"), Message(2, topic="b")]

    publish(app, "in", [1])
    async with started(app):
        await until(lambda: len(records(app, "in.dlq")) == 1)
    said = dict(records(app, "in.dlq")[0].headers)["sabot.message"]
    assert b"yield each Message" in said
