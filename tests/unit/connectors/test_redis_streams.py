"""Streams of Redis: what only they have, beside what the suites in `tests/contracts/` check of every source and sink."""

import contextlib
import json
import logging
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pytest
import redis
from redis.crc import key_slot

from sabot import App
from sabot.clock import SYSTEM_CLOCK
from sabot.codecs.records import Record, build_records, iterate_records
from sabot.connectors.base import Positions, Token, Track
from sabot.connectors.places import Bound
from sabot.connectors.redis import RedisStreamSink, RedisStreamSource
from sabot.errors import AppLocked, BrokerUnavailable, DeliveryConflict, RowErrors, UserError
from tools.answering import answering
from tools.broker import free_ports
from tools.redis_server import Redis, server_or_skip

WAIT = 60.0  # seconds; only a test that fails waits so long
TRACK = Track("app", "sink.1", "first")


@pytest.fixture
def url() -> str:
    return server_or_skip().url


@pytest.fixture
def client(url: str) -> Iterator[Any]:
    with contextlib.closing(redis.Redis.from_url(url)) as found:
        yield found


@pytest.fixture
def own_server() -> Iterator[Redis]:
    """A server without an append-only file, for this test."""
    server = server_or_skip(keeps=False)
    yield server
    server.remove()


def add(client: Any, stream: str, *numbers: int) -> None:
    for n in numbers:
        client.xadd(stream, {"value": json.dumps({"n": n})})


def opened(url: str, stream: str, positions: Positions | None = None, memory: Any = None, **more: Any) -> Any:
    source = RedisStreamSource(url, stream, more.pop("group", ""), **more)
    if memory is not None:
        source.recall(memory)
    source.open(positions)
    return source


def read(source: RedisStreamSource, rows: int, max_rows: int = 1000) -> list[Record]:
    found: list[Record] = []
    while len(found) < rows:
        batch = source.read_batch(min(max_rows, rows - len(found)), WAIT)
        assert batch is not None
        found += iterate_records(batch.data, source.name)
    return found


def numbers(source: RedisStreamSource, rows: int, max_rows: int = 1000) -> list[int]:
    return [record.value["n"] for record in read(source, rows, max_rows)]


# -- the source -------------------------------------------------------------------------------------------------------


def test_an_entry_is_a_record_with_payload_key_headers_and_the_time_of_its_id(
    url: str, client: Any, topic: str
) -> None:
    client.xadd(topic, {"value": b"1"}, id="5-1")
    client.xadd(topic, {"key": b"k", "trace": b"\xff", "value": b"2", "": b""}, id="5-2")
    client.execute_command("XADD", topic, "6-0", "value", b"", "value", b"again", b"\xfe", b"x")
    source = opened(url, topic)
    one, two, three = read(source, 3)
    assert (one.payload, one.key, one.headers, one.timestamp, one.offset) == (b"1", None, (), 5, (5 << 20) + 1)
    assert (two.payload, two.key, two.headers) == (b"2", b"k", (("trace", b"\xff"), ("", b"")))
    assert (three.payload, three.headers, three.timestamp) == (b"", (("value", b"again"), ("\ufffd", b"x")), 6)
    source.close()


def test_an_entry_without_the_field_is_a_dead_letter_with_all_its_fields(url: str, client: Any, topic: str) -> None:
    client.xadd(topic, {"body": b"1"})
    client.xadd(topic, {"value": b"2", "other": b"x"})
    client.xadd(topic, {"body": b"3", "key": b"k"})
    source = opened(url, topic, field="body")
    batch = source.read_batch(10, WAIT)
    assert batch is not None
    assert batch.bad is not None
    assert [record.payload for record in iterate_records(batch.data, topic)] == [b"1", b"3"]
    assert batch.bad.column("reason").to_pylist() == ["the entry has no field 'body'"]
    assert batch.bad.column("headers").to_pylist() == [
        [{"name": "value", "value": b"2"}, {"name": "other", "value": b"x"}]
    ]
    assert source.lag() == {(topic, 0): 0}
    source.close()


@pytest.mark.parametrize("read_before", [0, 2, 5])
def test_entries_that_are_trimmed_before_they_were_read_are_an_error(
    url: str, client: Any, topic: str, read_before: int
) -> None:
    """Redis goes on behind such a hole in silence."""
    add(client, topic, *range(10))
    source = opened(url, topic)
    assert numbers(source, read_before) == list(range(read_before))
    client.xtrim(topic, maxlen=10 - read_before, approximate=False)  # what was read may go
    assert numbers(source, 1) == [read_before]
    positions, memory = source.positions(), source.remember()
    client.xtrim(topic, maxlen=2, approximate=False)
    lost = 10 - read_before - 1 - 2
    with pytest.raises(UserError, match=f"{lost} entries were trimmed or deleted before they were read"):
        source.read_batch(10, 0)
    source.close()
    with pytest.raises(UserError, match=f"{lost} entries were trimmed"):
        opened(url, topic, positions, memory)
    on = RedisStreamSource(url, topic)
    on.skip_removed()
    on.recall(memory)
    on.open(positions)
    assert numbers(on, 2) == [8, 9]
    on.close()


def test_what_was_deleted_and_read_around_is_no_hole_later(url: str, client: Any, topic: str) -> None:
    add(client, topic, 0)
    middle = client.xadd(topic, {"value": b"{}"})
    add(client, topic, 2)
    client.xdel(topic, middle)
    source = opened(url, topic)
    assert numbers(source, 2) == [0, 2]
    client.xtrim(topic, maxlen=1, approximate=False)
    assert source.read_batch(1, 0) is None
    add(client, topic, 3)
    last = client.xadd(topic, {"value": b"{}"})
    client.xdel(topic, last)  # not there when it would be read
    assert numbers(source, 1) == [3]
    assert source.read_batch(1, 0) is None
    client.xtrim(topic, maxlen=0, approximate=False)
    assert source.read_batch(1, 0) is None
    assert source.remember() == {(topic, 0): b"5"}
    source.close()


def test_an_entry_that_is_deleted_between_two_reads_counts_once_the_end_is_reached(
    url: str, client: Any, topic: str
) -> None:
    add(client, topic, 0)
    middle = client.xadd(topic, {"value": b"{}"})
    add(client, topic, 2)
    source = opened(url, topic)
    assert numbers(source, 1) == [0]
    client.xdel(topic, middle)
    assert numbers(source, 1) == [2]
    client.xtrim(topic, maxlen=0, approximate=False)
    assert source.read_batch(1, 0) is None
    source.close()


def test_a_stream_that_was_made_again_or_has_lost_entries_is_an_error(url: str, client: Any, topic: str) -> None:
    add(client, topic, *range(5))
    source = opened(url, topic)
    read(source, 5)
    positions, memory = source.positions(), source.remember()
    client.delete(topic)
    with pytest.raises(UserError, match=r"position \d+ does not exist, with 5 entries before it"):
        source.read_batch(1, 0)
    source.close()
    add(client, topic, 0, 1)  # later ids, but fewer entries
    with pytest.raises(UserError, match="the server has lost entries"):
        opened(url, topic, positions, memory)


@pytest.mark.parametrize("memory", [{}, {("other", 0): b"3"}, "many"])
def test_a_position_without_its_count_is_refused(url: str, client: Any, topic: str, memory: Any) -> None:
    add(client, topic, 1)
    with pytest.raises(UserError, match="without the count of entries"):
        opened(url, topic, {(topic, 0): 7}, {(topic, 0): b"-1"} if memory == "many" else memory)


def test_a_ms_may_have_a_million_entries_and_more_are_an_error(url: str, client: Any, topic: str) -> None:
    client.xadd(topic, {"value": b"1"}, id=f"7-{2**20 - 1}")
    source = opened(url, topic)
    assert [record.offset for record in read(source, 1)] == [(8 << 20) - 1]
    client.xadd(topic, {"value": b"2"}, id=f"7-{2**20}")
    with pytest.raises(UserError, match="the entry 7-1048576 has no position of 63 bits"):
        source.read_batch(1, 0)
    source.close()
    client.delete(topic)
    client.xadd(topic, {"value": b"2"}, id=f"{2**43}-1")
    with pytest.raises(UserError, match="has no position of 63 bits"):
        opened(url, topic)


@pytest.mark.slow  # half a second of a core
def test_reading_begins_at_a_time_at_the_end_or_where_the_group_is(url: str, client: Any, topic: str) -> None:
    for n in range(2_005):
        client.xadd(topic, {"value": b'{"n": %d}' % n}, id=f"{n}-1")
    for start, first in ((3, 3), (0, 0), (900, 900), ("earliest", 0)):
        source = RedisStreamSource(url, topic)
        source.open(None, start)
        assert numbers(source, 2) == [first, first + 1]
        assert source.remember() == {(topic, 0): b"%d" % (first + 2)}  # also the entries before the start count
        source.close()
    source = RedisStreamSource(url, topic)
    source.open(None, "latest")
    assert source.remember() == {(topic, 0): b"2005"}
    assert source.read_batch(1, 0) is None
    source.close()
    source.open(None, 99_999)
    assert source.positions() == {(topic, 0): (2_004 << 20) + 2}
    source.close()
    with pytest.raises(UserError, match="does not exist"):
        source.open(None, {0: 1 << 60})  # type: ignore[arg-type]


def test_a_commit_sets_the_group_and_its_lag_for_tools(url: str, client: Any, topic: str) -> None:
    add(client, topic, *range(10))
    source = opened(url, topic, group="shop")
    read(source, 4)
    at_four = source.positions()
    read(source, 2)
    source.commit(at_four)
    (group,) = client.xinfo_groups(topic)
    assert (group["name"], group["entries-read"], group["lag"]) == (b"shop", 4, 6)
    source.commit(source.positions())
    (group,) = client.xinfo_groups(topic)
    assert (group["entries-read"], group["lag"]) == (6, 4)
    source.close()
    again = RedisStreamSource(url, topic, "shop")
    again.open(None, "committed")
    assert again.remember() == {(topic, 0): b"6"}
    assert numbers(again, 4) == [6, 7, 8, 9]
    again.close()


def test_reading_ends_at_what_is_there_now_also_if_the_last_entries_are_deleted(
    url: str, client: Any, topic: str
) -> None:
    add(client, topic, 0, 1)
    last = client.xadd(topic, {"value": b"{}"})
    for delete in (False, True):
        source = RedisStreamSource(url, topic)
        source.end_at(Bound("now"))
        source.open(None)
        read(source, 1)
        if delete:
            client.xdel(topic, last)
        add(client, topic, 7)
        rest = 1 if delete else 2
        assert len(read(source, rest)) == rest
        if not source.exhausted:
            assert source.read_batch(10, 0) is None
        assert source.exhausted
        assert source.read_batch(10, 3600) is None
        source.close()
        client.delete(topic)
        add(client, topic, 0, 1)
        last = client.xadd(topic, {"value": b"{}"})
    empty = RedisStreamSource(url, f"{topic}.none")
    empty.end_at(Bound("now"))
    empty.open(None)
    assert empty.exhausted
    empty.close()


def test_a_held_source_gives_no_rows_and_goes_on_where_it_was(url: str, client: Any, topic: str) -> None:
    add(client, topic, 0, 1)
    source = opened(url, topic)
    assert source.backlog() == 2
    source.hold({(topic, 0)})
    assert source.read_batch(10, 0) is None
    source.hold(set())
    assert numbers(source, 2) == [0, 1]
    assert source.backlog() == 0
    source.close()


def test_a_server_that_is_away_is_waited_for_and_named_once(topic: str, caplog: pytest.LogCaptureFixture) -> None:
    server = server_or_skip(keeps=True)
    try:
        with contextlib.closing(redis.Redis.from_url(server.url)) as client:
            add(client, topic, 0, 1)
            source = opened(server.url, topic)
            assert numbers(source, 1) == [0]
            server.stop()
            with caplog.at_level(logging.INFO):
                assert source.read_batch(1, 0) is None
                assert source.read_batch(1, 0) is None
                server.start()
                add(client, topic, 2)
                assert numbers(source, 2) == [1, 2]
            source.close()
    finally:
        server.remove()
    said = [record.message for record in caplog.records if record.name.startswith("sabot.connectors.redis")]
    assert len(said) == 2, said
    assert "is tried again until it answers" in said[0]
    assert "answers again" in said[1]


def test_a_server_without_append_only_file_that_is_killed_is_no_empty_stream(own_server: Redis, topic: str) -> None:
    with contextlib.closing(redis.Redis.from_url(own_server.url)) as client:
        add(client, topic, 0, 1)
    source = opened(own_server.url, topic)
    assert numbers(source, 2) == [0, 1]
    own_server.stop()
    own_server.start()
    with pytest.raises(UserError, match="the server has lost entries"):
        read(source, 1)
    source.close()


def test_no_server_no_stream_and_no_address_are_errors(url: str, client: Any, topic: str) -> None:
    (port,) = free_ports(1)
    before = SYSTEM_CLOCK.monotonic()
    for connect in (
        lambda: opened(f"redis://127.0.0.1:{port}/0", topic),
        lambda: RedisStreamSink(f"redis://127.0.0.1:{port}/0", topic).open(),
    ):
        with pytest.raises(BrokerUnavailable, match=f"127.0.0.1:{port}"):
            connect()
    assert SYSTEM_CLOCK.monotonic() - before < WAIT
    client.set(topic, "text")
    with pytest.raises(UserError, match="it is a string, and no stream"):
        opened(url, topic)
    with pytest.raises(UserError, match="no address of a Redis server"):
        RedisStreamSource("localhost:6379", topic)


@pytest.mark.parametrize("said", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b""])
def test_a_port_of_another_program_is_an_error_that_says_so(said: bytes, topic: str) -> None:
    """One that takes TLS alone closes the connection without a word."""
    with answering(said) as port:
        for connect in (
            lambda: opened(f"redis://127.0.0.1:{port}/0", topic),
            lambda: RedisStreamSink(f"redis://127.0.0.1:{port}/0", topic).open(),
        ):
            with pytest.raises(UserError if said else BrokerUnavailable, match=f"127.0.0.1:{port}") as raised:
                connect()
            assert ("none of a Redis server" if said else "rediss://") in str(raised.value.hint)


# -- the sink ---------------------------------------------------------------------------------------------------------


def records(*payloads: bytes | None, keys: Any = None, headers: Any = None) -> pa.RecordBatch:
    return build_records(payloads, keys, [0] * len(payloads), 0, range(len(payloads)), headers)


def test_keys_and_headers_are_fields_and_come_back(url: str, topic: str) -> None:
    sink = RedisStreamSink(url, topic)
    sink.claim(TRACK)
    pairs = (("trace", b"\x00\xff"), ("trace", b""), ("none", None))
    rows = records(b"1", b"", b"3", b"4", keys=[None, b"k", b"", None], headers=[(), pairs, (), pairs[:1]])
    sink.deliver(1, [rows, rows.slice(1, 2), records(b"5")])
    sink.close()
    source = opened(url, topic)
    found = [(record.payload, record.key, record.headers) for record in read(source, 7)]
    with_none = (*pairs[:2], ("none", b""))
    four = [(b"1", None, ()), (b"", b"k", with_none), (b"3", b"", ()), (b"4", None, pairs[:1])]
    assert found == [*four, *four[1:3], (b"5", None, ())]
    source.close()


def test_a_part_goes_on_behind_the_chunks_that_are_there(url: str, client: Any, topic: str) -> None:
    payloads = [b"%d" % n for n in range(12_000)]
    sink = RedisStreamSink(url, topic)
    sink.claim(TRACK)
    sink.chunk_rows = 700
    part = [records(*payloads[:5_000]), records(*payloads[5_000:])]
    sent = []

    class Stopped(Exception):
        """The process is gone."""

    original = sink._run

    def run(*words: Any) -> Any:
        if len(sent) == 9:
            raise Stopped
        sent.append(words)
        return original(*words)

    sink._run = run  # type: ignore[method-assign]
    with pytest.raises(Stopped):
        sink.deliver(2**62 + 1, part)
    there = client.xlen(topic)
    assert there == 7 * 700 + 100 + 700
    later = RedisStreamSink(url, topic)
    assert later.claim(TRACK) is None
    with pytest.raises(AppLocked, match="another process delivers"):
        original("return {'lost'}")
    later.deliver(2**62 + 1, part)
    later.deliver(2**62 + 1, part)
    assert [fields[b"value"] for _, fields in client.xrange(topic)] == payloads
    assert later.claim(TRACK) == Token(2**62 + 1, "first")
    later.close()
    sink.close()


def test_what_no_entry_can_hold_is_refused_before_it_is_in_a_part(url: str, topic: str) -> None:
    sink = RedisStreamSink(url, topic)
    many = tuple((f"h{n}", b"") for n in range(1_001))
    with pytest.raises(RowErrors) as caught:
        sink.fitting(records(b"1", None, b"3", headers=[(), (), many]))
    assert caught.value.rows.keys() == {1, 2}
    sink.claim(TRACK)
    sink.deliver(1, [records(b"x" * 10_000_000, headers=[many[:1_000]])])
    sink.close()


def test_keys_of_other_types_are_refused_before_anything_is_written(url: str, client: Any, topic: str) -> None:
    client.rpush(topic, "x")
    for begin in (lambda sink: sink.open(), lambda sink: sink.claim(TRACK)):
        with pytest.raises(UserError, match=f"the key {topic} is a list"):
            begin(RedisStreamSink(url, topic))
    client.delete(topic)
    sink = RedisStreamSink(url, topic)
    sink.claim(TRACK)
    client.set(topic, "x")
    with pytest.raises(UserError, match=f"the key {topic} is a string"):
        sink.deliver(1, [records(b"1")])
    client.delete(topic)
    sink.deliver(1, [records(b"1")])
    assert client.xlen(topic) == 1
    sink.close()


def test_an_entry_that_the_server_refuses_does_not_repeat_those_before_it(url: str, client: Any, topic: str) -> None:
    client.xadd(topic, {"value": b"0"}, id=f"{2**64 - 1}-{2**64 - 3}")  # two more ids are left
    sink = RedisStreamSink(url, topic)
    for _ in range(2):
        sink.claim(TRACK)
        with pytest.raises(UserError, match="ID"):
            sink.deliver(1, [records(b"1", b"2", b"3")])
        assert [fields[b"value"] for _, fields in client.xrange(topic)] == [b"0", b"1", b"2"]
    client.delete(topic)  # there is room again
    sink.claim(TRACK)
    sink.deliver(1, [records(b"1", b"2", b"3")])
    assert [fields[b"value"] for _, fields in client.xrange(topic)] == [b"3"]
    sink.close()


def test_a_token_that_the_server_has_lost_is_no_silence(
    own_server: Redis, topic: str, caplog: pytest.LogCaptureFixture
) -> None:
    sink = RedisStreamSink(own_server.url, topic)
    sink.claim(TRACK)
    assert "the server keeps no append-only file" in caplog.text
    sink.deliver(1, [records(b"1")])
    own_server.stop()
    with pytest.raises(BrokerUnavailable):
        sink.deliver(2, [records(b"2")])
    own_server.start()
    with pytest.raises(DeliveryConflict, match="the token is gone, so nobody knows which rows have arrived"):
        sink.claim(TRACK)
    sink.close()


def test_maxlen_and_field_are_those_of_the_stream(url: str, client: Any, topic: str) -> None:
    sink = RedisStreamSink(url, topic, field="body", maxlen="100")
    sink.open()
    sink._add([records(*[b"x"] * 1_000)], None, 0)
    sink.flush()
    assert 100 <= client.xlen(topic) < 300  # whole nodes of 100 entries are removed
    assert client.xrange(topic, count=1)[0][1] == {b"body": b"x"}
    sink.close()
    for wrong in (0, -1, "many", 1.5):
        with pytest.raises(UserError, match="maxlen="):
            RedisStreamSink(url, topic, maxlen=wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("stream", ["orders", "a{b}c", "{x}{y}"])
def test_the_token_is_in_the_slot_of_the_stream(url: str, client: Any, topic: str, stream: str) -> None:
    stream = f"{stream}.{topic}"
    sink = RedisStreamSink(url, stream)
    sink.claim(TRACK)
    sink.deliver(1, [records(b"1")])
    sink.close()
    found = [key for key in client.keys("sabot:*") if stream.encode() in key]
    assert [key_slot(key) for key in found] == [key_slot(stream.encode())]


# -- in an app --------------------------------------------------------------------------------------------------------


def rows_of(client: Any, stream: str) -> list[Any]:
    return [json.loads(fields[b"value"]) for _, fields in client.xrange(stream)]


async def test_sql_reads_and_writes_streams(url: str, client: Any, topic: str) -> None:
    add(client, topic, *range(6))
    app = App("sql-redis")
    app.sql(
        f"CREATE TABLE ins (n BIGINT) WITH ('connector' = 'redis-streams', 'url' = '{url}', 'stream' = '{topic}', "
        "'scan.startup.mode' = 'earliest-offset', 'scan.bounded.mode' = 'latest-offset');"
        f"CREATE TABLE outs (tens BIGINT) WITH ('connector' = 'redis-streams', 'url' = '{url}', 'stream' = '{topic}.out', "
        "'maxlen' = '1000');"
        "INSERT INTO outs SELECT n * 10 FROM ins WHERE n > 3"
    )
    await app.run()
    assert rows_of(client, f"{topic}.out") == [{"tens": 40}, {"tens": 50}]
    for options, said in (
        ("'steam' = 's'", "missing 1 required positional argument: 'stream'"),
        ("'stream' = 's', 'maxlen' = 'many'", "maxlen='many'"),
        ("'stream' = 's', 'files' = 'x'", "there is no option 'files'"),
    ):
        with pytest.raises(UserError, match=said):
            app.sql(f"CREATE TABLE x (n BIGINT) WITH ('connector' = 'redis-streams', 'url' = '{url}', {options})")


def test_to_a_source_writes_to_its_stream(url: str, topic: str) -> None:
    sink = RedisStreamSource(url, topic, field="body").as_sink()
    assert isinstance(sink, RedisStreamSink)
    assert (sink.name, sink.field) == (topic, "body")


def test_a_header_or_a_key_that_readers_would_take_for_another_field_is_a_refused_row(url: str) -> None:
    """A header called "value" took the place of the payload for redis-py, and one called "key" was read back as the key."""
    headers = [(("value", b"2"),), (("a", b"b"),), (("b", b"c"), ("key", b"k")), ()]
    records = build_records([b"1"] * 4, [None, b"k", None, None], [0] * 4, 0, range(4), headers)
    with pytest.raises(RowErrors) as refused:
        RedisStreamSink(url, "fields").fitting(records)
    assert list(refused.value.rows) == [0, 2]
    assert "a header is called 'value', as the field of the payload or of the key" in refused.value.rows[0]
    with pytest.raises(RowErrors) as refused:
        RedisStreamSink(url, "fields", field="key").fitting(records.slice(1))
    assert list(refused.value.rows) == [1, 0]
