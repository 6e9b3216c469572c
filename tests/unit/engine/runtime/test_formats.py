"""`format=` of streams, tables and agents: what comes in, what goes out, and what becomes of records that are of another format."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from sabot import App, ArrowIpc, Avro, Csv, Json, NdjsonSource, Raw, col, files
from sabot.base.arrays import as_type
from sabot.codecs.base import Codec, Format
from sabot.codecs.formats import JSON
from sabot.connectors.files import NdjsonSink
from sabot.connectors.memory import MemoryBroker
from sabot.errors import RegistryUnavailable, UserError
from sabot.kafka import KafkaSink
from sabot.testing import ListSink
from tools.agent_tools import (
    bounded,
    checkpoint,
    crash_image,
    processed,
    publish,
    records,
    started,
    until,
    values,
    within,
)

ORDERS = {"id": "int64", "name": "string", "x": "float64"}
ENVELOPE = {"type": "record", "name": "E", "fields": [{"name": n, "type": "string"} for n in ("before", "after", "op")]}
LINES = [f"{n},n{n},{n / 2}".encode() for n in range(6)]
ROWS = [{"id": n, "name": f"n{n}", "x": n / 2} for n in range(6)]


@pytest.fixture
def app(memory_url: str) -> App:
    return App("shop", memory_url)


async def test_rows_go_from_csv_through_arrow_and_raw(app: App) -> None:
    publish(app, "orders", [*LINES[:3], b"three,n,1", *LINES[3:]])
    orders = app.stream("orders", format="csv", schema=ORDERS, fields=["offset"])
    orders.filter(col("x") > 0.4).to("big", format="arrow")
    orders.select("name").to("names", format="raw", key=None)
    orders.to("keyed", key="name", format=Csv(";"))
    async with started(app):
        await until(lambda: len(records(app, "names")) == 6, "all names")
        await until(lambda: len(records(app, "keyed")) == 6, "all rows")
    assert [record.payload for record in records(app, "names")] == [row["name"].encode() for row in ROWS]
    assert records(app, "keyed")[4].key == b"n4"
    assert records(app, "keyed")[4].payload == b"4;n4;2;5"
    big = [row for record in records(app, "big") for row in pa.ipc.open_stream(record.payload).read_all().to_pylist()]
    assert [row["id"] for row in big] == [1, 2, 3, 4, 5]


async def test_a_record_that_is_no_csv_is_a_dead_letter_as_it_came(app: App) -> None:
    publish(app, "orders", [*LINES[:3], b"three,n,1", *LINES[3:]])
    app.stream("orders", format="csv", schema=ORDERS).to("out")
    async with started(app):
        await until(lambda: len(records(app, "out")) == 6, "all rows")
        await until(lambda: records(app, "orders.dlq"), "the dead letter")
    assert values(app, "out") == ROWS
    (letter,) = records(app, "orders.dlq")
    assert letter.payload == b"three,n,1"
    headers = dict(letter.headers)
    assert headers["sabot.offset"] == b"3"
    assert b"field id is not a value of type int64" in headers["sabot.message"]


@pytest.mark.parametrize("parallelism", [1, 2])
async def test_rows_without_columns_are_rows(memory_url: str, parallelism: int) -> None:
    """A topic of ticks, whose payloads say nothing; they were read and never came out."""
    app = App("ticks", memory_url, parallelism=parallelism)
    MemoryBroker.get(memory_url).create_topic("ticks", partitions=2)
    publish(app, "ticks", [b"{}", b"no JSON", b"{}"])
    app.stream("ticks", until="now").to("out")
    await bounded(app.run())
    assert [record.payload for record in records(app, "out")] == [b"{}", b"{}"]
    assert len(records(app, "ticks.dlq")) == 1


UNION = pa.UnionArray.from_dense(pa.array([0], pa.int8()), pa.array([0], pa.int32()), [pa.array([1])])


@pytest.mark.parametrize(
    "odd",
    [
        pa.record_batch([UNION], names=["u"]),
        pa.record_batch([pa.StructArray.from_arrays([UNION], ["inside"])], names=["u"]),
        pa.record_batch([pa.array([1]), pa.array([2])], names=["n", "n"]),
    ],
    ids=["union", "union within", "a name twice"],
)
async def test_columns_that_no_stream_has_are_not_learnt_from_an_arrow_record(app: App, odd: pa.RecordBatch) -> None:
    """They ended the job by a KeyError or ArrowNotImplementedError of its first step."""
    columns = [odd, pa.record_batch([pa.array([7])], names=["n"])]
    publish(app, "many", [ArrowIpc().encoder("t").encode(each)[0].as_py() for each in columns])
    with pytest.raises(UserError, match="not of format arrow"):
        app.stream("many", format="arrow", until="now").collect()
    given = app.stream("many", format="arrow", schema={"n": "int64"}, until="now").collect().to_pylist()
    assert given in ([{"n": None}, {"n": 7}], [{"n": 7}]), "as a schema takes columns by name"


async def test_a_letter_does_not_repeat_its_payload_in_the_reason(
    app: App, memory_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """With a value of 9 MB in its message it was twice as large as its record, and Kafka refused it: the job ended for one bad record."""
    publish(app, "orders", [b"1,a,1", b"9" * 1_000_000 + b",n,1"])
    app.stream("orders", format="csv", schema=ORDERS, until="now").to("out")

    @app.agent("orders", format="raw", on_error="skip", until="now", dead_letter="of-agent.dlq")
    async def refuses(ctx: Any) -> None:
        raise ValueError(ctx.message["value"].decode())

    await bounded(app.run())
    assert [value["id"] for value in values(app, "out")] == [1]
    for topic in ("orders.dlq", "of-agent.dlq"):
        *_, letter = records(app, topic)
        assert letter.payload == b"9" * 1_000_000 + b",n,1"
        assert sum(len(name) + len(value or b"") for name, value in letter.headers) < 10_000
        assert dict(letter.headers)["sabot.message"].endswith(b" characters more"), topic
    (said,) = (each for each in caplog.messages if "went to the dead letters" in each)
    assert len(said) < 2_000


async def test_an_arrow_record_has_many_rows_and_a_bad_one_is_one_dead_letter(app: App) -> None:
    """Offsets count records: each row says that of its record, and the checkpoint that of the record behind the last one."""
    schema = pa.schema([("id", pa.int64())])
    encoder = ArrowIpc(rows=4).encoder("t")
    payloads = encoder.encode(pa.RecordBatch.from_pylist([{"id": n} for n in range(10)], schema=schema)).to_pylist()
    publish(app, "many", [payloads[0], b"no arrow", *payloads[1:]])
    app.stream("many", format="arrow", fields=["offset"]).to("out")
    async with started(app):
        await until(lambda: len(records(app, "out")) == 10, "all rows")
        await until(lambda: records(app, "many.dlq"), "the dead letter")
    offsets = [0, 0, 0, 0, 2, 2, 2, 2, 3, 3]
    assert values(app, "out") == [{"id": n, "offset": offset} for n, offset in enumerate(offsets)]
    assert [dict(letter.headers)["sabot.offset"] for letter in records(app, "many.dlq")] == [b"1"]


async def test_a_table_of_csv_ends_rows_by_tombstones(app: App) -> None:
    for payload, key in ((b"a,1", "a"), (b"b,2", "b")):
        publish(app, "stock", [payload], key=key)
    table = app.table("stock", key="item", schema={"item": "string", "n": "int64"}, format="csv")
    table.to("now", format=Csv(";"))
    async with started(app):
        await until(lambda: len(records(app, "now")) == 2, "the first rows")
        publish(app, "stock", [None], key="b")
        publish(app, "stock", [b"c"], key="c")
        publish(app, "stock", [b"a,3"], key="a")
        await until(lambda: len(records(app, "now")) == 4, "the changes")
        await until(lambda: records(app, "stock.dlq"), "the dead letter")
    assert {record.key: record.payload for record in records(app, "now")} == {b"a": b"a;3", b"b": None}
    assert records(app, "stock.dlq")[0].payload == b"c"


async def test_rows_that_a_checkpoint_keeps_are_of_the_format_of_their_program(memory_url: str, tmp_path: Path) -> None:
    """They were written by one program, and are delivered by the next one, which writes another format."""

    def program(format: Any) -> App:
        app = App("shop", memory_url, checkpoint_dir=tmp_path / "checkpoints", checkpoint_interval="1h")
        app.stream("orders", format="csv", schema=ORDERS).to("out", format=format, delivery="exactly_once")
        return app

    first = program(ArrowIpc(rows=2))
    publish(first, "orders", LINES[:4])
    async with started(first):
        await until(lambda: rows_in(first) == 4, "the first rows")
    second = program("csv")
    publish(second, "orders", LINES[4:])
    async with started(second):
        await until(lambda: rows_in(second) == 2, "the rows behind the checkpoint")
    payloads = [record.payload for record in records(second, "out")]
    many = [row for payload in payloads[:-2] for row in pa.ipc.open_stream(payload).read_all().to_pylist()]
    assert many == ROWS[:4]
    assert payloads[-2:] == [b"4,n4,2", b"5,n5,2.5"]


def rows_in(app: App) -> int:
    """How many records the streams have read in this run."""
    return sum(task["input"].get("rows_in", 0) for task in app.statistics()["streams"].values())


async def test_an_agent_gets_the_columns_of_a_record_and_writes_rows_of_a_format(app: App) -> None:
    seen = []

    @app.agent("orders", format="raw", sink="out", sink_format=Raw(text=True))
    async def raw(ctx: Any) -> str:
        seen.append(ctx.message)
        if ctx.message["value"] == b"bad":
            raise ValueError("no")
        return ctx.message["value"].decode().upper()

    @app.agent("lines", format="csv", schema=ORDERS, key="name", sink="doubled")
    def double(ctx: Any) -> dict[str, Any]:
        return {"id": ctx.message["id"], "x": ctx.message["x"] * 2}

    publish(app, "orders", [b"a", b"b"])
    publish(app, "lines", [LINES[1], b"oops", LINES[2], None], key="k")
    async with started(app):
        await until(lambda: processed(app, "raw") == 2, "the raw records")
        await until(lambda: processed(app, "double") == 2, "the lines")
        await until(lambda: len(records(app, "lines.dlq")) == 2, "the dead letters")
        await until(lambda: len(records(app, "doubled")) == 2, "the results")
        await until(lambda: len(records(app, "out")) == 2, "the results")
    assert seen == [{"value": b"a"}, {"value": b"b"}]
    assert [record.payload for record in records(app, "out")] == [b"A", b"B"]
    assert values(app, "doubled") == [{"id": 1, "x": 1.0}, {"id": 2, "x": 2.0}]
    assert [letter.payload for letter in records(app, "lines.dlq")] == [b"oops", None]


async def test_a_record_with_a_time_that_python_has_no_value_for_is_a_dead_letter_of_the_agent(app: App) -> None:
    """The app ended with an InternalError, and again at each restart."""
    time = {"type": "long", "logicalType": "timestamp-millis"}
    schema = {"type": "record", "name": "Seen", "fields": [{"name": "at", "type": time}]}
    seen = []

    @app.agent("seen", format=Avro(schema))
    async def see(ctx: Any) -> None:
        seen.append(ctx.message["at"].timestamp())

    publish(app, "seen", [zigzag(5000), zigzag(10**15), zigzag(7000)])
    async with started(app):
        await until(lambda: len(seen) == 2 and records(app, "seen.dlq"), "two calls and a dead letter")
    (letter,) = records(app, "seen.dlq")
    assert (seen, letter.payload) == ([5, 7], zigzag(10**15))
    assert b"column 'at' is 1000000000000000 ms since 1970" in dict(letter.headers)["sabot.message"]


def zigzag(number: int) -> bytes:
    """A positive number as Avro writes it: twice, seven bits in a byte, the lowest first."""
    left, found = 2 * number, []
    while left > 0x7F:
        found.append(left & 0x7F | 0x80)
        left >>= 7
    return bytes([*found, left])


async def test_what_streams_and_agents_hand_to_an_agent_is_json_whatever_its_topic_holds(app: App) -> None:
    seen: dict[str, list[Any]] = {"lines": [], "jobs": []}
    fails = {2}

    @app.agent("lines", format="csv", schema=ORDERS, on_error="retry", backoff=0)
    async def lines(ctx: Any) -> None:
        if ctx.message["id"] in fails:
            fails.clear()
            raise ValueError("once")
        seen["lines"].append(ctx.message)

    @app.agent("words", sink=lines)
    async def words(ctx: Any) -> Any:
        return ctx.message

    rows = app.stream("orders", format="csv", schema=ORDERS)
    rows.to(lines)
    publish(app, "lines", [LINES[0]])
    publish(app, "words", [{"id": 2, "more": [1]}])
    publish(app, "orders", [LINES[1]])
    async with started(app):
        await until(lambda: len(seen["lines"]) == 3, "all rows")
    assert sorted(seen["lines"], key=lambda row: row["id"]) == [*ROWS[:2], {"id": 2, "more": [1]}]


async def test_a_failed_call_is_tried_again_with_the_same_columns_and_then_a_dead_letter_as_it_came(app: App) -> None:
    seen = []

    @app.agent("orders", format="csv", schema=ORDERS, on_error="retry", retries=2, backoff=0)
    async def fails(ctx: Any) -> None:
        seen.append(dict(ctx.message))
        ctx.message.clear()
        raise ValueError("no")

    publish(app, "orders", [LINES[1]])
    async with started(app):
        await until(lambda: records(app, "orders.dlq"), "the dead letter")
    assert seen == [ROWS[1]] * 3
    assert records(app, "orders.dlq")[0].payload == LINES[1]


async def test_a_batch_agent_reads_and_writes_arrow(app: App) -> None:
    encoder = ArrowIpc(rows=3).encoder("t")
    payloads = encoder.encode(pa.RecordBatch.from_pylist(ROWS)).to_pylist()
    publish(app, "orders", [payloads[0], b"oops", payloads[1]])
    taken: list[dict[str, Any]] = []

    @app.agent("orders", batch=True, format="arrow", sink="out", sink_format="arrow")
    def double(batch: pa.RecordBatch, ctx: Any) -> pa.RecordBatch:
        taken.extend(batch.to_pylist())
        return batch.select(["id"])

    async with started(app):
        await until(lambda: len(taken) == 6, "the rows")
        await until(lambda: records(app, "orders.dlq"), "the dead letter")
        await until(lambda: records(app, "out"), "the results")
    assert taken == ROWS
    assert records(app, "orders.dlq")[0].payload == b"oops"
    found = [pa.ipc.open_stream(record.payload).read_all() for record in records(app, "out")]
    assert pa.concat_tables(found).to_pylist() == [{"id": n} for n in range(6)]


async def test_rows_of_a_batch_agent_that_a_checkpoint_repeats_are_those_of_their_format(
    memory_url: str, tmp_path: Path
) -> None:
    """A call that has not ended at the checkpoint: its rows come again, in their format, after a crash."""
    hold = True

    def program(folder: Path) -> tuple[App, list[Any]]:
        app, taken = (
            App("shop", memory_url, state="memory", checkpoint_dir=folder, checkpoint_interval="1h"),
            list[Any](),
        )

        @app.agent("orders", batch=True, format="csv", schema=ORDERS)
        async def take(batch: pa.RecordBatch, ctx: Any) -> None:
            taken.extend(batch.to_pylist())
            await until(lambda: not hold, "the release")

        return app, taken

    first, taken = program(tmp_path / "first")
    publish(first, "orders", LINES)
    await first.start()
    await until(lambda: len(taken) >= 1, "the call")
    await checkpoint(first)
    image = crash_image(tmp_path / "first", tmp_path / "image")
    hold = False
    await first.stop()
    second, again = program(image)
    async with started(second):
        await until(lambda: len(again) == 6, "the rows, again")
    assert sorted(again, key=lambda row: row["id"]) == ROWS


# -- what is refused --------------------------------------------------------------------------------------------------


def test_formats_that_do_not_fit_are_refused_where_they_are_written(app: App, tmp_path: Path) -> None:
    rows = app.stream("orders", schema=ORDERS)
    file = tmp_path / "rows.ndjson"
    file.write_text("{}\n")

    def agent(**options: Any) -> Any:
        return lambda: app.agent("t", name="n", **options)(lambda ctx: None)

    async def other(ctx: Any) -> None: ...

    app.agent("other")(other)
    for refused, told in (
        (lambda: app.stream("orders", format="xml"), "format='xml'"),
        (lambda: app.stream("orders", format="csv"), "format csv, and no schema="),
        (lambda: app.stream("orders", format="raw", schema=ORDERS), "format raw takes no schema="),
        (lambda: app.stream("orders", format="csv", schema={"tags": pa.list_(pa.string())}), "cannot be read from CSV"),
        (lambda: app.stream("orders", format="csv", schema={"n": pa.decimal256(50, 2)}), "cannot be read from CSV"),
        (lambda: app.stream(NdjsonSource(str(file)), format="csv", schema=ORDERS), "format= is for records, and"),
        (lambda: app.table("orders", key="id", format="arrow"), "whose records have many rows"),
        (
            lambda: app.table(NdjsonSource("cdc.ndjson"), key="id", schema=ORDERS, format="debezium"),
            "format='debezium' is for records, and .*cdc.ndjson has rows",
        ),
        (
            lambda: app.table([{"id": 1}], key="id", schema=ORDERS, format="debezium"),
            "format='debezium' is for records",
        ),
        (lambda: app.table("orders", key="id", format=Avro(ENVELOPE)), "those of Debezium's envelopes, in avro"),
        (lambda: app.stream(other, schema=ORDERS, format="csv"), "the results of an agent are rows"),
        (lambda: rows.to("out", format="arrow", key="id"), "many rows, so it cannot have a key"),
        (lambda: rows.upsert("id").to("out", format="arrow"), "many rows, so it cannot have a key"),
        (lambda: rows.to(KafkaSink("out", app.broker, format="arrow"), key="id"), "many rows, so it cannot have a key"),
        (lambda: rows.to(ListSink(), format="csv"), "format= is for topics"),
        (lambda: rows.to(other, format="csv"), "format= is for sinks"),
        (agent(format="arrow"), "whose records have many rows each"),
        (agent(format="arrow", durable=True), "a job has one record"),
        (agent(format="arrow", durable=True, batch=True), "a job has one record"),
        (agent(sink="out", sink_format="arrow"), "many rows, so it cannot have a key"),
        (agent(sink="out", sink_format="csv"), "have none declared"),
        (agent(sink_format="raw"), "format= is for topics"),
    ):
        with pytest.raises(UserError, match=told):
            refused()


async def test_columns_that_the_format_of_a_topic_cannot_say_end_the_start(app: App) -> None:
    app.stream("orders", schema=ORDERS).to("out", format="raw")
    with pytest.raises(UserError, match="topic 'out': format raw takes one column"):
        await app.start()


async def test_two_that_write_one_topic_agree_on_its_format(app: App) -> None:
    rows = app.stream("orders", schema=ORDERS)
    rows.to("out", format="csv")
    rows.to("out")
    with pytest.raises(UserError, match="two writers with different formats: csv and json"):
        await app.start()
    other = App("agents", app.broker)
    for name, format in (("one", "raw"), ("two", None)):
        other.agent("in", name=name, sink="out", sink_format=format)(lambda ctx: None)
    with pytest.raises(UserError, match="raw and json"):
        await other.start()


# -- a registry that does not answer ----------------------------------------------------------------------------------


class Unanswered(Format):
    """JSON whose schemas are in a registry that has stopped answering."""

    name = "unanswered"
    down = False
    asked = 0

    def codec(self, topic: str, schema: Any, columns: Any = None, text: Any = None) -> Codec:
        codec = JSON.codec(topic, schema, columns, text)
        decode = codec.decode

        def asks(batch: pa.RecordBatch) -> Any:
            type(self).asked += 1
            if type(self).down:
                raise RegistryUnavailable("http://registry:8081 does not answer")
            return decode(batch)

        codec.decode = asks  # type: ignore[method-assign]
        codec.another = lambda: self.codec(topic, schema, columns, text)  # type: ignore[method-assign]
        return codec

    def encoder(self, topic: str) -> Any:
        return JSON.encoder(topic)

    def check_types(self, schema: pa.Schema, where: str) -> None:
        JSON.check_types(schema, where)


@pytest.mark.slow  # half a second of a core
async def test_readers_wait_for_a_registry_while_barriers_pass_and_nothing_is_lost(
    memory_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The position of a checkpoint in an outage is before the batch that waits, so it comes again after a crash, too."""
    Unanswered.down, Unanswered.asked = True, 0

    def program(folder: Path) -> App:
        app = App("shop", memory_url, state="memory", checkpoint_dir=folder, checkpoint_interval="1h", kafka={})
        app.stream("orders", format=Unanswered(), schema={"id": "int64"}).to("out", delivery="at_least_once")

        @app.agent(
            "orders", format=Unanswered(), batch=True, schema={"id": "int64"}, sink="seen", delivery="at_least_once"
        )
        def take(batch: pa.RecordBatch, ctx: Any) -> pa.RecordBatch:
            return batch

        return app

    app = program(tmp_path / "first")
    publish(app, "orders", [{"id": n} for n in range(5)])
    async with started(app):
        await until(lambda: Unanswered.asked >= 4, "some tries of both readers")
        await checkpoint(app)
        image = crash_image(tmp_path / "first", tmp_path / "image")
        figures = app.statistics()
        inputs = [task["input"] for task in figures["streams"].values() if "registry" in task["input"]]
        waiting = [each["registry"] for each in (*inputs, *figures["sources"].values())]
        assert waiting == ["http://registry:8081 does not answer"] * 2
        assert records(app, "out") == []
        Unanswered.down = False
        await until(lambda: len(records(app, "out")) == 5, "the rows of the stream")
        await until(lambda: len(records(app, "seen")) == 5, "the rows of the agent")
    assert "reading is paused: http://registry:8081 does not answer" in caplog.text
    assert "orders.dlq" not in MemoryBroker.get(app.broker).topics() or records(app, "orders.dlq") == []
    again = program(image)
    async with started(again):
        await until(lambda: len(records(again, "out")) == 10, "the rows, again")
        await until(lambda: len(records(again, "seen")) == 10, "the rows, again")
    assert [value["id"] for value in values(again, "out")] == [*range(5), *range(5)]


async def test_an_app_whose_registry_does_not_answer_stops_at_once(app: App) -> None:
    Unanswered.down, Unanswered.asked = True, 0
    publish(app, "orders", [{"id": 1}])
    app.stream("orders", format=Unanswered(), schema={"id": "int64"}).to("out")
    await app.start()
    await until(lambda: Unanswered.asked >= 2, "some tries")
    with within(5):
        await bounded(app.stop())
    Unanswered.down = False


# -- a program that changes its format --------------------------------------------------------------------------------


async def test_a_changed_format_is_told_of_and_the_positions_stay(
    memory_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def program(format: Any) -> App:
        app = App("shop", memory_url, checkpoint_dir=tmp_path / "checkpoints")
        app.stream("orders", format=format, schema=ORDERS).to("out", delivery="at_least_once")
        return app

    first = program("csv")
    publish(first, "orders", LINES[:2])
    async with started(first):
        await until(lambda: len(records(first, "out")) == 2, "the first rows")
    second = program(None)
    publish(second, "orders", [json.dumps(ROWS[2]).encode()])
    async with started(second):
        await until(lambda: len(records(second, "out")) == 3, "the row behind them")
    assert values(second, "out") == ROWS[:3]
    assert (
        "stream orders: its records were decoded as csv until the checkpoint, and are decoded as json now"
        in caplog.text
    )


@pytest.mark.parametrize("times", ["ms", "iso"])
@pytest.mark.parametrize("type", ["timestamp[us]", "timestamp[ns, UTC]"])
async def test_times_that_json_cuts_are_warned_of_once(
    memory_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, times: Any, type: str
) -> None:
    """They were cut off in silence."""
    at = pa.array([1_700_000_000_123_000, 1_700_000_000_123_001], pa.timestamp("us"))
    rows = pa.table({"whole": pa.array([at[0], at[0]]), "at": at}).cast(
        pa.schema({"whole": at.type, "at": as_type(type)})
    )
    app = App("fine", memory_url)
    stream = app.stream(rows)
    stream.to("out", format=Json(times=times))
    stream.to(NdjsonSink(tmp_path / "out.ndjson", times=times))
    await app.run()
    said = sorted(each.partition(":")[0] for each in caplog.messages if "below a millisecond" in each)
    assert said == ([] if times == "iso" else [f"file {str(tmp_path / 'out.ndjson')!r}", "topic 'out'"])
    read = App("read").stream(files(tmp_path / "out.ndjson"), schema=rows.schema).collect()
    assert (read["at"].to_pylist() == rows["at"].to_pylist()) is (times == "iso")
