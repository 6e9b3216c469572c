"""Changes on a real Kafka broker: written to a compacted topic, exactly once, and read back as the table that they make.

What the topic holds is looked at with the plain client; what Debezium writes is written with it.
"""

import itertools
import json
import random
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, ConfigResource, ResourceType

from sabot import App, col
from sabot._cython.arrow.batch import Batch
from sabot.codecs import TableCodec
from sabot.codecs.records import Record
from sabot.connectors.base import Sink, Track
from sabot.engine.delivery.parts import PartWriter, read_part
from sabot.engine.operators.base import DELETE, INSERT, OP_COLUMN, UPDATE_AFTER, OperatorContext, with_marks
from sabot.engine.operators.sink import SinkWriter
from sabot.errors import UserError
from sabot.kafka import KafkaSink, KafkaSource
from sabot.kafka.admin import create_topic
from sabot.testing import ListSink
from tools.agent_tools import checkpoint, started, until
from tools.fault_tools import Place

pytestmark = [pytest.mark.integration, pytest.mark.kafka]

SCHEMA = pa.schema([("account", pa.string()), ("n", pa.int64()), ("total", pa.float64())])
MARKED = with_marks(SCHEMA, op=True, timed=False)
Table = dict[Any, dict[str, Any]]


@pytest.fixture
def place(kafka_url: str) -> Place:
    return Place(kafka_url)


@pytest.fixture
def track() -> Track:
    return Track(f"app-{uuid.uuid4().hex[:8]}", "sink.1", "first")


def changes(count: int, seed: int) -> list[dict[str, Any]]:
    """Of a few accounts, which come and go."""
    rng = random.Random(seed)
    rows: Table = {}
    told = []
    for number in range(count):
        account = f"a{rng.randrange(12)}"
        if account in rows and rng.random() < 0.3:
            told.append({**rows.pop(account), OP_COLUMN: DELETE})
            continue
        op = UPDATE_AFTER if account in rows else INSERT
        rows[account] = {"account": account, "n": number, "total": rng.randrange(64) / 64}
        told.append({**rows[account], OP_COLUMN: op})
    return told


def applied(rows: Sequence[dict[str, Any]], keys: Sequence[str]) -> Table:
    """The table that they make, by plain Python."""
    table: Table = {}
    for row in rows:
        key = tuple(row[name] for name in keys)
        if row[OP_COLUMN] == DELETE:
            table.pop(key, None)
        else:
            table[key] = {name: value for name, value in row.items() if name != OP_COLUMN}
    return table


def read_table(place: Place, topic: str, codec: TableCodec, records: int) -> list[dict[str, Any]]:
    """So many records of the topic, as the rows of a table, in the order in which they were read; keys keep theirs."""
    source = KafkaSource(topic, place.url)
    source.open(None)
    rows: list[dict[str, Any]] = []
    count = 0
    while count < records:
        batch = source.read_batch(1000, 60.0)
        assert batch is not None, f"{count} of {records} records came"
        data, bad = codec.decode(batch.taken())
        assert not bad
        rows += data.to_pylist()
        count += batch.num_rows
    source.close()
    return rows


def setting(place: Place, topic: str, name: str) -> str:
    resource = ConfigResource(ResourceType.TOPIC, topic)
    admin = AdminClient(place.settings)
    return admin.describe_configs([resource])[resource].result()[name].value


def batches(rows: Sequence[dict[str, Any]], size: int) -> list[pa.RecordBatch]:
    return [pa.RecordBatch.from_pylist(rows[start : start + size], MARKED) for start in range(0, len(rows), size)]


def test_a_topic_of_changes_is_compacted_and_reads_back_as_their_table(place: Place) -> None:
    topic, told = f"t-{uuid.uuid4().hex[:12]}", changes(500, seed=1)
    writer = SinkWriter(KafkaSink(topic, place.url), None, None, lambda: 0, changes=("account",))
    writer.open(OperatorContext(MARKED))
    for data in batches(told, 37):
        writer.process(Batch(data))
    writer.flush()
    writer.close()
    assert setting(place, topic, "cleanup.policy") == "compact"
    records = place.read(topic)
    assert [(record.key, record.payload is None) for record in records] == [
        (row["account"].encode(), row[OP_COLUMN] == DELETE) for row in told
    ]
    assert any(record.payload is None for record in records)
    rows = read_table(place, topic, TableCodec(SCHEMA, ["account"]), len(told))
    table = applied(rows, ["account"])
    assert table == applied(told, ["account"])
    assert table
    last = {record.key: record.payload for record in records}  # what compaction leaves
    kept = {key: json.loads(payload) for key, payload in last.items() if payload is not None}
    assert kept == {name.encode(): row for (name,), row in table.items()}


def test_parts_of_changes_are_in_the_topic_once_whatever_ends_in_between(
    place: Place, track: Track, tmp_path: Path
) -> None:
    topic, told = f"t-{uuid.uuid4().hex[:12]}", changes(300, seed=2)
    create_topic(place.url, topic, 3)

    def claimed() -> Sink:
        sink = KafkaSink(topic, place.url)
        sink.expect_changes(SCHEMA, ("account",))
        sink.claim(track)
        return sink

    first = claimed()
    parts: dict[int, list[pa.RecordBatch]] = {}
    for seq, rows in ((1, told[:100]), (2, told[100:200]), (3, told[200:])):
        part = PartWriter(tmp_path / f"{seq}.arrow")
        for data in batches(rows, 40):
            part.write(first.fitting(data))
        part.close()
        parts[seq] = list(read_part(part.path))
    with pytest.raises(UserError, match=r"the key .* of a row is null"):
        first.fitting(batches([{**told[0], "account": None}], 1)[0])
    first.deliver(1, parts[1])
    first.deliver(1, parts[1])
    first.deliver(2, parts[2])
    first.close()
    second = KafkaSink(topic, place.url)  # of a program that knows nothing of changes any more: parts are records
    token = second.claim(track)
    assert token is not None
    assert token.seq == 2
    second.deliver(2, parts[2])
    second.deliver(3, parts[3])
    second.close()
    codec = TableCodec(SCHEMA, ["account"])
    rows = read_table(place, topic, codec, len(told))
    assert applied(rows, ["account"]) == applied(told, ["account"])
    assert len(place.read(topic)) == len(told)
    assert {record.partition for record in place.read(topic)} == {0, 1, 2}
    by_account = {row["account"] for row in told}
    for account in by_account:  # the story of each key is as it was told
        story = [
            (row[OP_COLUMN] == DELETE, None if row[OP_COLUMN] == DELETE else row["n"])
            for row in rows
            if row["account"] == account
        ]
        wanted = [
            (row[OP_COLUMN] == DELETE, None if row[OP_COLUMN] == DELETE else row["n"])
            for row in told
            if row["account"] == account
        ]
        assert story == wanted


def test_a_table_by_several_keys_comes_back_from_its_tombstones(place: Place) -> None:
    topic = place.topic(2)
    schema = pa.schema([("at", pa.timestamp("ms")), ("region", pa.string()), ("n", pa.int32())])
    marked = with_marks(schema, op=True, timed=False)
    ops = [INSERT, INSERT, UPDATE_AFTER, DELETE, INSERT]
    data = pa.RecordBatch.from_arrays(
        [
            pa.array([1, 2, 1, 2, 3], pa.timestamp("ms")),
            pa.array(["a", 'b"', "a", 'b"', ""]),
            pa.array([1, 2, 3, 4, 5], pa.int32()),
            pa.array(ops, pa.int8()),
        ],
        schema=marked,
    )
    sink = KafkaSink(topic, place.url)
    sink.expect_changes(schema, ["region", "at"])
    sink.open()
    sink.write(Batch(data))
    sink.flush()
    sink.close()
    rows = read_table(place, topic, TableCodec(schema, ["region", "at"]), len(ops))
    table = applied(rows, ["region", "at"])
    assert table == applied(data.to_pylist(), ["region", "at"])
    assert sorted(row["n"] for row in table.values()) == [3, 5]


def test_a_topic_of_debezium_reads_as_its_table(place: Place) -> None:
    topic, producer = place.topic(), Producer(place.settings)
    told = changes(200, seed=3)
    count = 0
    for number, row in enumerate(told):
        values, key = {name: row[name] for name in SCHEMA.names}, {"account": row["account"]}
        ends = row[OP_COLUMN] == DELETE
        envelope = {
            "before": values if ends else None,
            "after": None if ends else values,
            "source": {"connector": "mysql", "snapshot": "false"},
            "op": "d" if ends else "cu"[number % 2],
            "ts_ms": number,
        }
        producer.produce(topic, json.dumps({"schema": {}, "payload": envelope}), json.dumps(key))
        count += 1
        if ends:
            producer.produce(topic, None, json.dumps({"schema": {}, "payload": key}))
            count += 1
    assert producer.flush(60) == 0
    rows = read_table(place, topic, TableCodec(SCHEMA, ["account"], "debezium"), count)
    assert applied(rows, ["account"]) == applied(told, ["account"])
    assert len(rows) == count > len(told)


@pytest.mark.slow  # a second of a core
async def test_a_table_that_a_stream_filters_is_kept_exactly_once_over_two_lives(place: Place, tmp_path: Path) -> None:
    topic, out, told = place.topic(3), f"t-{uuid.uuid4().hex[:12]}", changes(600, seed=4)
    columns = {"account": "string", "n": "int64", "total": "float64"}
    name = f"app-{uuid.uuid4().hex[:8]}"
    people = KafkaSink(topic, place.url)
    people.expect_changes(SCHEMA, ["account"])
    people.open()

    def written() -> Table:
        return {(row["account"],): row for row in final(place.read(out)).values()}

    for end in (350, 600):
        app = App(name, broker=place.url, state=str(tmp_path / "state"), checkpoint_interval="100ms")
        app.table(topic, key="account", schema=columns).filter(col("total") < 0.5).to(out)
        goal = {key: row for key, row in applied(told[:end], ["account"]).items() if row["total"] < 0.5}
        async with started(app):
            for data in batches(told[:end] if end == 350 else told[350:], 7):
                people.write(Batch(data))
                people.flush()
            await until(lambda goal=goal: written() == goal)
            await checkpoint(app)
        copied, folder = ListSink(), str(tmp_path / f"copy-{end}")
        copy = App(f"copy-{name}-{end}", broker=place.url, state=folder, checkpoint_interval="100ms")
        copy.table(out, key="account", schema=columns).to(copied)
        async with started(copy):
            await until(lambda goal=goal, copied=copied: {(row["account"],): row for row in copied.current} == goal)
    people.close()
    assert setting(place, out, "cleanup.policy") == "compact"
    stories: dict[bytes | None, list[Any]] = {}
    for record in place.read(out):
        stories.setdefault(record.key, []).append(None if record.payload is None else record.value["n"])
    for story in stories.values():
        assert story[0] is not None  # nothing ends that never was
        assert all(one != other for one, other in itertools.pairwise(story))
        numbers = [number for number in story if number is not None]
        assert numbers == sorted(set(numbers))  # nothing comes twice


def final(records: Sequence[Record]) -> dict[bytes | None, Any]:
    """The last row of each key."""
    rows: dict[bytes | None, Any] = {}
    for record in records:
        rows.pop(record.key, None)
        if record.payload is not None:
            rows[record.key] = record.value
    return rows


@pytest.mark.slow  # half a second of a core
async def test_each_order_finds_its_account_at_a_cold_start(place: Place, tmp_path: Path) -> None:
    """Both topics were there before; the accounts end in markers of transactions, one of them aborted."""
    orders, out, app_id = place.topic(2), ListSink(), f"app-{uuid.uuid4().hex[:8]}"
    accounts = place.topic(3)
    place.fill(orders, [b'{"account": "a%d", "n": %d}' % (n % 1500, n) for n in range(2000)])
    producer = Producer({"bootstrap.servers": place.url.removeprefix("kafka://"), "transactional.id": app_id})
    producer.init_transactions(60)
    for word, good in (("old", True), ("Ada", True), ("bad", False)):
        producer.begin_transaction()
        for n in range(1500):
            producer.produce(accounts, b'{"name": "%s%d"}' % (word.encode(), n), key=b"a%d" % n)
        producer.flush()
        producer.commit_transaction() if good else producer.abort_transaction()
    app = App(app_id, broker=place.url, state=str(tmp_path / "state"), checkpoint_interval="100ms", parallelism=2)
    table = app.table(accounts, key="account", schema={"account": "string", "name": "string"})
    app.stream(orders, schema={"account": "string", "n": "int64"}).lookup(table, on="account").to(out)
    async with started(app):
        await until(lambda: len(out.rows) == 2000)
    assert {row["n"]: row["name"] for row in out.rows} == {n: f"Ada{n % 1500}" for n in range(2000)}
