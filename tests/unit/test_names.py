"""Names that users give: what a path, a topic, a database, a header or a line of a log cannot hold is refused where it is written."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sabot import App, Message, UserError
from sabot.base.config import checked_topic
from sabot.connectors.memory import CountSink
from sabot.engine.state import MemoryBackend, ValueState
from sabot.kafka.client import link_of, partitions_of
from sabot.llm import ExecutionEngine, ScriptedProvider
from sabot.testing import MemoryBroker


@pytest.fixture(autouse=True)
def broker() -> MemoryBroker:
    MemoryBroker.get().reset()
    return MemoryBroker.get()


BROKEN = {
    "NUL": ("a\0b", "has a NUL"),
    "line end": ("a\nb", "control character"),
    "escape": ("a\x1bb", "control character"),
    "next line": ("a\x85b", "control character"),
    "half a surrogate pair": ("a\ud800b", "UTF-8"),
    "too long": ("é" * 200, "has 400 bytes"),
    "bytes": (b"ab", "b'ab'"),
    "a number": (3, "3"),
}


def agent(name: Any = "f", topic: Any = "in", **options: Any) -> None:
    App("a").agent(topic, name=name, **options)(lambda ctx: None)


def process(side: Any) -> None:
    stream = App("a").stream("in", schema={"x": "int64"})
    stream.key_by("x").process(lambda row, ctx: None, schema={"x": "int64"}, sides={side: {"x": "int64"}})


def stream() -> Any:
    return App("a").stream("in", schema={"x": "int64"})


class Named(CountSink):
    def __init__(self, name: Any) -> None:
        super().__init__("out")
        self.name = name


PLACES: dict[str, Callable[[Any], object]] = {
    "app": App,
    "agent": agent,
    "topic of an agent": lambda name: agent(topic=name),
    "one of its topics": lambda name: agent(topic=["in", name]),
    "its sink": lambda name: agent(sink=name),
    "its dead letters": lambda name: agent(dead_letter=name),
    "stream": lambda name: App("a").stream(name),
    "dead letters of a stream": lambda name: App("a").stream("in", dead_letter=name),
    "to": lambda name: stream().to(name),
    "side": process,
    "named": lambda name: stream().key_by("x").deduplicate().named(name),
    "dead letters of map_llm": lambda name: stream().map_llm(
        "{x}", ExecutionEngine(ScriptedProvider("")), dead_letter=name
    ),
    "dead letters of map_async": lambda name: stream().map_async(call, schema={"x": "int64"}, dead_letter=name),
}


async def call(row: dict[str, Any]) -> None:
    """Asks nobody."""


@pytest.mark.one_in(4, "hundredths of a second of a core each")
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", BROKEN)
def test_a_name_that_cannot_be_is_refused_where_it_is_written(place: str, kind: str) -> None:
    name, _ = BROKEN[kind]
    with pytest.raises(UserError) as refused:
        PLACES[place](name)
    told = str(refused.value)
    assert repr(name)[:40] in told
    assert told.isprintable()  # nothing of it gets into a terminal


@pytest.mark.parametrize("kind", BROKEN)
def test_the_message_says_what_is_wrong_with_the_name(kind: str) -> None:
    name, words = BROKEN[kind]
    with pytest.raises(UserError, match=words):
        App(name)


@pytest.mark.one_in(9, "a tenth of a second of a core each")
@pytest.mark.parametrize("name", ["a b", "é漢", "a/b", "..", "a#b", "a:b", "a%s", "x" * 255])
async def test_a_name_that_works_is_taken_everywhere(name: str, tmp_path: Path) -> None:
    """An agent's file of unfinished rows, its group, its column families: whatever the characters, all of it comes back."""
    MemoryBroker.get().publish("in", [{"id": 1}])
    topic = name[:249].replace("/", "-")  # a text with a slash is a path, and no topic

    async def run(error: Exception | None) -> None:
        app = App(name, state=str(tmp_path), version=name)

        @app.agent("in", name=name, key="id", sink=topic)
        async def counted(ctx: Any) -> int:
            await ctx.state(name).put("seen", 1)
            if error is not None:
                raise error
            return 1

        await app.start()
        running = app.agent_runtime.agents[f"{name}.{name}"]
        while running.error is None and not running.messages_processed:
            await app.agent_runtime.trigger_checkpoint()
        await app.stop()

    await run(ValueError("not yet"))
    await run(None)
    assert [record.value for record in MemoryBroker.get().records(topic)] == [1]


@pytest.mark.parametrize("name", ["a\0b", "a\ud800b", 3, None, b"ab"])
def test_a_namespace_that_no_database_can_keep_is_refused(name: Any) -> None:
    with pytest.raises(UserError, match="namespace"):
        ValueState(MemoryBackend(), name)


@pytest.mark.parametrize("name", ["a\0b", "a\ud800b", 3, None, b"ab"])
async def test_an_agent_that_names_such_a_namespace_fails_at_its_record(name: Any) -> None:
    """It came out only in the next checkpoint, and in each one after it."""
    app = App("a", state="memory")
    MemoryBroker.get().publish("in", [1])

    @app.agent("in", on_error="skip")
    async def f(ctx: Any) -> None:
        await ctx.state(name).put("k", 1)

    await app.start()
    while not app.agent_runtime.get_stats()["a.f"]["dead_letters"]:
        await app.agent_runtime.trigger_checkpoint()
    await app.stop()
    (letter,) = MemoryBroker.get().records("in.dlq")
    assert b"namespace" in dict(letter.headers)["sabot.message"]


@pytest.mark.parametrize("header", ["a\0b", "a\ud800b"])
def test_a_header_that_cannot_be_sent_is_refused_by_the_message(header: str) -> None:
    """It broke the agent's output, and with it all agents, whatever on_error= said."""
    with pytest.raises(UserError, match="header"):
        Message(1, headers=((header, b""),))


@pytest.mark.parametrize("name", ["a\0b", "a\ud800b"])
def test_the_name_of_a_source_or_a_sink_of_the_user_is_checked(name: str) -> None:
    for what in (
        lambda: stream().to(Named(name)),
        lambda: agent(sink=Named(name)),
        lambda: App("a").stream("in", dead_letter=Named(name)),
    ):
        with pytest.raises(UserError, match="Named"):
            what()


@pytest.mark.parametrize("where", ["state", "checkpoint_dir"])
def test_a_directory_with_a_nul_is_refused_at_once(where: str) -> None:
    with pytest.raises(UserError, match="has a NUL"):
        App("a", **{where: "/tmp/a\0b"})


@pytest.mark.parametrize("where", ["state", "checkpoint_dir"])
@pytest.mark.parametrize(
    ("written", "meant"),
    [
        (Path("s3://key:secret@bucket/apps"), "s3://bucket/apps"),
        ("gs:/bucket", "gs://bucket"),
        ("file:/var/apps", "file:///var/apps"),
    ],
)
def test_an_address_with_one_slash_is_no_directory_of_that_name(where: str, written: Any, meant: str) -> None:
    """Seen before: Path("s3://bucket") was a folder called s3: in the working directory."""
    with pytest.raises(UserError, match="neither a path nor an address") as refused:
        App("a", **{where: written})
    assert meant in str(refused.value)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("version", [None, 3, "a\0b", "a\ud800b"])
def test_a_version_that_no_header_can_hold_is_refused(version: Any) -> None:
    with pytest.raises(UserError, match="version"):
        App("a", version=version)


@pytest.mark.parametrize("topic", ["a b", "é", "a/b", "..", ".", "a#b", "x" * 250])
def test_a_kafka_topic_has_few_characters(topic: str) -> None:
    with pytest.raises(UserError, match="topic"):
        checked_topic(topic, "topic", kafka=True)
    with pytest.raises(UserError, match="topic"):  # before anybody is asked
        partitions_of(None, link_of("kafka://nowhere:1", "test"), topic)


@pytest.mark.parametrize("letters", ["{b}", "{", "{0}", "{topic.x}"])
async def test_braces_in_the_name_of_dead_letters_are_what_they_are(letters: str) -> None:
    """`str.format` made a KeyError of them when the app started; in a stream they were taken as they are."""
    app = App("a")
    agent_function = app.agent("in", dead_letter=letters, on_error="skip")(lambda ctx: 1 / 0)
    assert callable(agent_function)
    MemoryBroker.get().publish("in", [1])
    await app.start()
    while not app.agent_runtime.get_stats()["a.<lambda>"]["dead_letters"]:
        await app.agent_runtime.trigger_checkpoint()
    await app.stop()
    assert len(MemoryBroker.get().records(letters)) == 1


async def test_a_record_is_not_sent_to_a_topic_that_cannot_be() -> None:
    with pytest.raises(UserError, match="NUL"):
        await App("a").send("a\0b", 1)
