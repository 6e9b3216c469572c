"""Topics that are read from a place and up to a bound (`start=`, `until=`), on the embedded broker and on a real Kafka."""

import asyncio
import json
import uuid
from pathlib import Path
from typing import Any

import pytest

import sabot
from sabot import App, UserError, files, tumbling
from sabot.kafka import KafkaSource
from tools.agent_tools import bounded, checkpoint, crash_image, processed, started, until
from tools.fault_tools import Place, jsons
from tools.stream_tools import PARTITIONS, SCHEMA, Row, answers, expected, payments

pytestmark = pytest.mark.integration


@pytest.fixture(params=["memory", pytest.param("kafka", marks=pytest.mark.kafka)])
def place(request: pytest.FixtureRequest) -> Place:
    return Place(request.getfixturevalue(f"{request.param}_url"))


@pytest.fixture
def name() -> str:
    return f"app-{uuid.uuid4().hex[:8]}"


def send(place: Place, topic: str, rows: list[Row]) -> None:
    """Rows to the partitions in turn."""
    for partition in range(PARTITIONS):
        payloads = [json.dumps(row).encode() for row in rows[partition::PARTITIONS]]
        place.fill(topic, payloads, partition=partition)


def windows(stream: sabot.Stream) -> sabot.Stream:
    return (
        stream.filter(sabot.col("amount") > 0)
        .key_by("account")
        .window(tumbling("10s"))
        .aggregate(n=sabot.count(), total=sabot.sum("amount"), ids=sabot.collect_list("id"))
    )


@pytest.mark.one_in(3, "a tenth of a second of a core each")
@pytest.mark.parametrize("parallelism", [1, 2])
async def test_up_to_now_every_window_closes_and_the_app_ends(
    place: Place, name: str, tmp_path: Path, parallelism: int
) -> None:
    topic, out, rows = place.topic(PARTITIONS), place.topic(), payments(900)

    def build() -> App:
        app = App(name, broker=place.url, state=str(tmp_path / "state"), parallelism=parallelism)
        stream = app.stream(topic, schema=SCHEMA, time="ts", lateness="2s", until="now")
        windows(stream).to(out, key="account", delivery="exactly_once")
        return app

    send(place, topic, rows)
    await bounded(build().run())
    assert answers(jsons(place.read(out))) == expected(rows)
    send(place, topic, payments(100, first=900))
    await bounded(build().run())  # the app is complete: what came later is none of it
    assert answers(jsons(place.read(out))) == expected(rows)


@pytest.mark.one_in(2, "a third of a second of a core each")
async def test_a_restart_in_the_middle_ends_at_the_offsets_that_were_asked_for(
    place: Place, name: str, tmp_path: Path
) -> None:
    """The crash is a copy of a complete checkpoint. Rows come behind the bound before the second start."""
    topic, rows = place.topic(PARTITIONS), payments(1200)
    ends = {0: 200, 1: 150, 2: 0, 3: 200}
    wanted = [row for number, row in enumerate(rows) if number // PARTITIONS < ends[number % PARTITIONS]]

    def build(root: Path, out: str) -> App:
        app = App(name, broker=place.url, state=str(root / "state"), checkpoint_dir=root / "checkpoints", parallelism=2)
        stream = app.stream(topic, schema=SCHEMA, time="ts", lateness="2s", until=ends)
        windows(stream).to(out, key="account", delivery="at_least_once")
        return app

    first, second = place.topic(), place.topic()
    app = build(tmp_path / "first", first)
    send(place, topic, rows[:400])
    async with started(app):
        await until(lambda: rows_in(app) == 300)
        await checkpoint(app)
        crash_image(tmp_path / "first" / "checkpoints", tmp_path / "crash" / "checkpoints")
        send(place, topic, rows[400:])
        await until(lambda: answers(jsons(place.read(first))) == expected(wanted))
    app = build(tmp_path / "crash", first)
    await bounded(app.run())
    assert app.agent_runtime.runner.restored_from is not None
    assert answers(jsons(place.read(first))) == expected(wanted)
    fresh = build(tmp_path / "fresh", second)
    await bounded(fresh.run())
    assert answers(jsons(place.read(second))) == expected(wanted)


def rows_in(app: App) -> int:
    return sum(each["input"].get("rows_in", 0) for each in app.statistics()["streams"].values())


@pytest.mark.one_in(2, "a tenth of a second of a core each")
async def test_an_agent_that_goes_on_after_a_crash_keeps_the_now_of_its_first_start(
    place: Place, name: str, tmp_path: Path
) -> None:
    topic = place.topic()
    place.fill(topic, [b"%d" % n for n in range(50)])
    go_on = asyncio.Event()
    seen: list[int] = []

    def build(root: Path) -> App:
        app = App(name, broker=place.url, state=str(root / "state"), checkpoint_dir=root / "checkpoints")

        @app.agent(topic, until="now", delivery="at_least_once")
        async def take(ctx: sabot.AgentContext) -> None:
            if ctx.message >= 20:
                await go_on.wait()
            seen.append(ctx.message)

        return app

    app = build(tmp_path / "first")
    async with started(app):
        await until(lambda: processed(app, "take") == 20)
        place.fill(topic, [b"%d" % n for n in range(50, 60)])
        waiting = asyncio.create_task(checkpoint(app))  # the call that waits is repeated after a restart
        await until(lambda: (tmp_path / "first" / "checkpoints" / "checkpoints").exists())
        await waiting
        crash_image(tmp_path / "first" / "checkpoints", tmp_path / "crash" / "checkpoints")
        go_on.set()
    seen.clear()
    await bounded(build(tmp_path / "crash").run())
    assert seen == list(range(20, 50))


async def test_the_records_between_two_times_are_read(place: Place, name: str) -> None:
    topic = place.topic()
    for n in range(10):
        place.fill(topic, [b'{"n": %d}' % n], timestamp=1_700_000_000_000 + n * 1000)
    app = App(name, broker=place.url)
    stream = app.stream(topic, schema={"n": "int64"}, start=1_700_000_003_000, until=1_700_000_007_000)
    assert stream.collect().column("n").to_pylist() == [3, 4, 5, 6]
    assert "until 1700000007000" in stream.explain()


async def test_offsets_say_where_each_partition_begins_and_others_begin_at_their_first_record(
    place: Place, name: str
) -> None:
    topic = place.topic(2)
    for partition in (0, 1):
        place.fill(topic, [b'{"n": %d}' % (10 * partition + n) for n in range(5)], partition=partition)
    app = App(name, broker=place.url)
    stream = app.stream(topic, start={0: 3}, until={0: 5, 1: 2})
    assert sorted(stream.collect().column("n").to_pylist()) == [3, 4, 10, 11]
    nowhere = app.stream(topic, schema={"n": "int64"}, start={0: 9}, until="now")
    with pytest.raises(UserError, match=r"\[0\]: position 9 does not exist"):
        nowhere.collect()
    missing = app.stream(topic, schema={"n": "int64"}, start={7: 0}, until="now")
    with pytest.raises(UserError, match=r"\[7\]"):
        missing.collect()


async def test_a_partition_that_is_over_holds_event_time_back_no_longer(place: Place, name: str) -> None:
    """Its one row is of long ago, and `idle=` would hold the windows of the other one for an hour."""
    topic = place.topic(2)
    place.fill(topic, [b'{"ts": 0}'], partition=0)
    place.fill(topic, [b'{"ts": %d}' % (1000 * n) for n in range(60)], partition=1)
    app, out = App(name, broker=place.url), place.topic()
    stream = app.stream(topic, schema={"ts": "int64"}, time="ts", idle="1h", until={0: 1, 1: 100})
    stream.window(tumbling("10s")).aggregate(n=sabot.count()).to(out)
    async with started(app):
        await until(lambda: [record.value["n"] for record in place.read(out)] == [11, 10, 10, 10, 10])


async def test_a_source_that_is_read_by_hand_ends_at_its_bound(place: Place) -> None:
    topic = place.topic()
    place.fill(topic, [b"%d" % n for n in range(5)])
    source = KafkaSource(topic, place.url, topic, until={0: 3})
    await source.start()
    assert [value async for value in source] == [0, 1, 2]
    with pytest.raises(UserError, match=r"has been read up to until="):
        await bounded(source.get_next())
    await source.stop()
    empty = KafkaSource(topic, place.url, topic, until={0: 3})  # goes on where the group stands
    await empty.start()
    assert [value async for value in empty] == []
    await empty.stop()


async def test_a_topic_without_records_up_to_the_bound_has_no_columns_to_infer(place: Place, name: str) -> None:
    app = App(name, broker=place.url)
    with pytest.raises(UserError, match=r"no record before until=.*columns are inferred"):
        app.stream(place.topic(), until="now").collect()
    assert app.stream(place.topic(), schema={"n": "int64"}, until="now").collect().num_rows == 0


@pytest.mark.one_in(2, "a tenth of a second of a core each")
async def test_a_table_ends_at_its_bound_and_what_is_joined_with_it_keeps_its_rows(place: Place, name: str) -> None:
    accounts, moves, out = place.topic(), place.topic(), place.topic()
    place.fill(
        accounts, [b'{"id": "a", "owner": "Ada"}', b'{"id": "b", "owner": "Bo"}', b'{"id": "a", "owner": "Ann"}']
    )
    place.fill(moves, [b'{"id": "a"}', b'{"id": "b"}'])
    app = App(name, broker=place.url)
    table = app.table(accounts, key="id", schema={"id": "string", "owner": "string"}, until={0: 2})
    assert sorted(row["owner"] for row in table.collect().to_pylist()) == ["Ada", "Bo"]
    app.stream(moves, schema={"id": "string"}, until="now").lookup(table, on="id").to(out)
    await bounded(app.run())
    assert [record.value["owner"] for record in place.read(out)] == ["Ada", "Bo"]


@pytest.mark.one_in(2, "a quarter of a second of a core each")
async def test_an_app_that_is_told_where_to_end_says_it_for_topics_that_name_no_end(
    place: Place, name: str, tmp_path: Path
) -> None:
    """A stream, a table and an agent end where the app says; a stream with an end of its own keeps it."""
    topic, other, out, short = place.topic(), place.topic(), place.topic(), place.topic()
    for n in range(6):
        place.fill(topic, [b'{"n": %d}' % n], timestamp=1_700_000_000_000 + n * 1000)
        place.fill(other, [b'{"n": %d, "m": %d}' % (n, n * n)], timestamp=1_700_000_000_000 + n * 1000)
    seen: list[int] = []

    def build() -> App:
        app = App(name, broker=place.url, state=str(tmp_path / "state"))
        squares = app.table(other, key="n", schema={"n": "int64", "m": "int64"})
        app.stream(topic, schema={"n": "int64"}).lookup(squares, on="n").to(out)
        app.stream(topic, schema={"n": "int64"}, until={0: 1}).to(short)

        @app.agent(topic)
        async def take(ctx: sabot.AgentContext) -> None:
            seen.append(ctx.message["n"])

        app.configure(until=1_700_000_004_000)
        return app

    await bounded(build().run())
    assert [(record.value["n"], record.value["m"]) for record in place.read(out)] == [(n, n * n) for n in range(4)]
    assert [record.value["n"] for record in place.read(short)] == [0]
    assert seen == [0, 1, 2, 3]
    seen.clear()
    await bounded(build().run())  # the app is complete
    assert (seen, len(place.read(out))) == ([], 4)


def test_what_has_no_offsets_and_what_is_of_several_topics_is_refused(tmp_path: Path) -> None:
    app = App("refusals")
    (tmp_path / "rows.ndjson").write_text("{}\n")
    source = files(str(tmp_path / "rows.ndjson"))
    with pytest.raises(UserError, match=r"until= needs a topic, and .*rows.ndjson is none"):
        app.stream(source, until="now")
    with pytest.raises(UserError, match=r"until= needs a topic"):
        app.agent(source, name="a", until="now")(print)
    with pytest.raises(UserError, match=r"start=\{0: 1\} with several topics"):
        app.agent(["a", "b"], name="b", start={0: 1})(print)
    with pytest.raises(UserError, match=r"until=\{0: 1\} with several topics"):
        app.agent(["a", "b"], name="c", until={0: 1})(print)
    offsets: Any = {0: 1}
    with pytest.raises(UserError, match=r"start=\{0: 1\}") as caught:
        App("other", start=offsets)
    assert "app.stream(topic, start=" in str(caught.value.hint)
    with pytest.raises(UserError, match=r"until=\{0: 1\}") as caught:
        App("other").configure(until=offsets)
    assert "app.stream(topic, until=" in str(caught.value.hint)

    @app.agent("t")
    async def gives(ctx: sabot.AgentContext) -> None:
        """Gives nothing."""

    with pytest.raises(UserError, match=r"until= is for topics, and this stream reads an agent"):
        app.stream(gives, schema={"n": "int64"}, until="now")
