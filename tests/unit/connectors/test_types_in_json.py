"""The table of types in JSON (docs/formats.md): a value of each type, written by a connector, and read back by others."""

import datetime
import decimal
import math
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import httpx2
import pyarrow as pa
import pytest
import redis
from websockets.sync.server import ServerConnection, serve

from sabot._cython.text.json import JsonDecoder
from sabot.connectors.base import Source, Track
from sabot.connectors.http import HttpSink, PollSource, SseSource, WebhookSource, WebsocketSource
from sabot.connectors.redis import RedisStreamSink, RedisStreamSource
from sabot.errors import UserError
from tools.redis_server import server_or_skip
from tools.web_server import WebServer

WAIT = 60.0  # seconds; only a test that fails waits so long
TRACK = Track("app", "sink.1", "first")
NOON = datetime.datetime(2026, 3, 1, 12, 0, 0, 250_123)
TIME = datetime.time(12, 30, 0, 250_000)
ZONE = "Europe/Berlin"

TYPES: dict[str, tuple[pa.DataType, Any]] = {
    "bool": (pa.bool_(), True),
    **{f"int{bits}": (getattr(pa, f"int{bits}")(), -128) for bits in (8, 16, 32, 64)},
    **{f"uint{bits}": (getattr(pa, f"uint{bits}")(), 255) for bits in (8, 16, 32)},
    "uint64": (pa.uint64(), 2**64 - 1),
    "float": (pa.float32(), 0.5),
    "double": (pa.float64(), 0.5),
    "decimal128(38, 2)": (pa.decimal128(38, 2), decimal.Decimal("1.50")),
    "decimal256(60, 2)": (pa.decimal256(60, 2), decimal.Decimal("1.50")),
    "string": (pa.string(), "ü"),
    "large_string": (pa.large_string(), "ü"),
    "binary": (pa.binary(), b"ab"),
    "large_binary": (pa.large_binary(), b"ab"),
    "date32[day]": (pa.date32(), NOON.date()),
    "date64[ms]": (pa.date64(), NOON.date()),
    "time32[ms]": (pa.time32("ms"), TIME),
    "time64[us]": (pa.time64("us"), TIME),
    "timestamp[ms]": (pa.timestamp("ms"), NOON.replace(microsecond=250_000)),
    "timestamp[us]": (pa.timestamp("us"), NOON),
    "timestamp[ns]": (pa.timestamp("ns"), NOON),
    "timestamp[us, tz=Europe/Berlin]": (pa.timestamp("us", ZONE), NOON.replace(tzinfo=datetime.UTC)),
    "list<item: int64>": (pa.list_(pa.int64()), [1, None]),
    "struct<a: int64>": (pa.struct([("a", pa.int64())]), {"a": 1}),
    "map<string, int64>": (pa.map_(pa.string(), pa.int64()), [("k", 1)]),
    "null": (pa.null(), None),
    "halffloat": (pa.float16(), None),
    "fixed_size_binary[3]": (pa.binary(3), None),
    "fixed_size_list<item: int64>[2]": (pa.list_(pa.int64(), 2), None),
    "duration[s]": (pa.duration("s"), None),
    "month_day_nano_interval": (pa.month_day_nano_interval(), None),
    "map<int64, string>": (pa.map_(pa.int64(), pa.string()), None),
}
READ_AS = {pa.large_string(): pa.string(), pa.large_binary(): pa.binary()}
SINKS: list[Callable[[], Any]] = [
    lambda: RedisStreamSink("redis://localhost", "types"),
    lambda: HttpSink("http://localhost/rows"),
]


def table() -> list[tuple[list[str], str, str]]:
    """The lines of the table in the documents: types, what is written, and what is read."""
    page = (Path(__file__).parents[3] / "docs" / "formats.md").read_text()
    part = page.partition("| Arrow | written | read |")[2].partition("\n\n")[0]
    lines = re.findall(r"^\| (`[^|]+) \| ([^|]*?) ?\| ([^|]+) \|$", part, re.MULTILINE)
    return [(re.findall("`([^`]+)`", types), text.strip("`"), read) for types, text, read in lines]


def line_of(columns: list[tuple[str, pa.Array]]) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([array for _, array in columns], [name for name, _ in columns])


def kept() -> tuple[pa.RecordBatch, str, list[Any]]:
    """A row with a column for each type that is not refused: its payload, and the values that are read."""
    columns: list[tuple[str, pa.Array]] = []
    texts: list[str] = []
    values: list[Any] = []
    for types, text, read in table():
        for name in types if text else ():
            kind, value = TYPES[name]
            for given in (math.nan, math.inf, -math.inf) if read == "null" and pa.types.is_floating(kind) else (value,):
                columns.append((f"c{len(columns)}", pa.array([given], kind)))
                texts.append(text)
                cut = "without digits behind the ms" in read
                values.append(given.replace(microsecond=250_000) if cut else None if read == "null" else given)
    payload = ",".join(f'"{name}":{text}' for (name, _), text in zip(columns, texts, strict=True))
    return line_of(columns), f"{{{payload}}}", values


def test_the_table_has_each_type_and_says_of_the_others_that_they_are_refused() -> None:
    lines = table()
    assert {name for types, _, _ in lines for name in types} == TYPES.keys()
    assert all(str(kind) == name for name, (kind, _) in TYPES.items())
    for types, text, read in lines:
        assert (read == "refused at the start") == (not text)
        for name in types:
            for sink in SINKS:
                refused: str | None = None
                try:
                    sink().check_types(pa.schema([("v", TYPES[name][0])]))
                except UserError as error:
                    refused = str(error)
                assert bool(text) == (refused is None), name
                assert refused is None or "column 'v'" in refused


@pytest.mark.parametrize("sink", SINKS)
def test_bytes_that_are_not_text_are_refused_before_a_checkpoint(sink: Any) -> None:
    with pytest.raises(Exception, match=r"column 'v' has a value that JSON cannot hold"):
        sink().fitting(pa.record_batch({"v": [b"\xff"]}))


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebServer]:
    server = WebServer(tmp_path_factory.mktemp("types"))
    yield server
    server.stop()


def read_back(source: Source, begin: Callable[[], object] = lambda: None) -> list[Any]:
    """The values of the one row that a source gives. `begin`: lets it come when the source is open."""
    data, _, _ = kept()
    schema = pa.schema([(field.name, READ_AS.get(field.type, field.type)) for field in data.schema])
    source.open(None)
    try:
        begin()
        batch = source.read_batch(10, WAIT)
        assert batch is not None
        found, bad = JsonDecoder(schema).decode(batch.data.column("payload"))
        assert not bad, bad[0].reason
        [row] = found.to_pylist()
        return list(row.values())
    finally:
        source.close()


def test_a_stream_of_redis_has_the_values_of_the_table(topic: str) -> None:
    data, payload, values = kept()
    url = server_or_skip().url
    sink = RedisStreamSink(url, topic)
    sink.claim(TRACK)
    sink.deliver(1, [sink.fitting(data)])
    sink.close()
    with closing(redis.Redis.from_url(url)) as client:
        assert [fields[b"value"].decode() for _, fields in client.xrange(topic)] == [payload]
    assert read_back(RedisStreamSource(url, topic)) == values


def test_a_request_has_the_values_of_the_table(web: WebServer) -> None:
    data, payload, _ = kept()
    web.clear()
    web.watch()
    sink = HttpSink(web.url)
    sink.claim(TRACK)
    sink.deliver(1, [sink.fitting(data)])
    sink.close()
    assert [body for *_, body in web.requests] == [payload]


def test_sources_of_the_web_read_the_values_of_the_table(web: WebServer, tmp_path: Path) -> None:
    _, payload, values = kept()
    web.clear()
    web.fail({"text": f"[{payload}]"})
    assert read_back(PollSource(f"{web.origin}/pages")) == values
    web.fail({"events": f"id: 1\ndata: {payload}\n\n"})
    assert read_back(SseSource(f"{web.origin}/events")) == values

    hooks = WebhookSource(tmp_path / "hooks.db", port=0, path="/in", key="Webhook-Id")

    def post() -> None:
        url = f"http://127.0.0.1:{hooks.port}/in"
        httpx2.post(url, content=payload, headers={"Webhook-Id": "1"}).raise_for_status()

    assert read_back(hooks, post) == values

    def say(connection: ServerConnection) -> None:
        connection.send(payload)
        for _ in connection:
            pass

    with ExitStack() as ended:
        server = ended.enter_context(serve(say, "127.0.0.1", 0))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        ended.callback(server.shutdown)
        assert read_back(WebsocketSource(f"ws://127.0.0.1:{server.socket.getsockname()[1]}")) == values
