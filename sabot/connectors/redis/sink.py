"""A sink that adds records to a stream of Redis. Each chunk of a part is one script on the server, which also writes down how many
rows of the part are there: a crash repeats none of them.

The token of a track is a hash beside the stream, in the same slot of a cluster: `sabot:{STREAM}:TRACK` with the fields owner, seq and
incarnation (the last whole part), part and row (the part that is being added). Redis does not take back what a script has done
when one of its commands fails, so a script checks the types of both keys first, and writes down the row that it has reached.
"""

import logging
import re
import uuid
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sabot._cython.arrow.batch import Batch
from sabot._cython.text.records import bytes_list
from sabot.base.checks import TEXT, check
from sabot.clock import SYSTEM_CLOCK
from sabot.codecs.base import Format
from sabot.codecs.formats import JSON
from sabot.codecs.records import to_records
from sabot.connectors.base import KeepsToken, LostFloats, Sink, Token, Track
from sabot.connectors.redis.server import RedisServer
from sabot.errors import AppLocked, DeliveryConflict, RowErrors, TransientError, UserError
from sabot.steps import step

__all__ = ["RedisStreamSink"]

_log = logging.getLogger(__name__)

CHUNK_ROWS = 5_000
CHUNK_BYTES = 4 << 20
_KEY = "key"  # the field of a record's key
_HEADERS_MAX = 1_000  # a script can give some thousand arguments to a command
_DURABLE_MS = 4_000  # less than the time-out of a command
_DIGITS = 20  # of a part's number: texts of one length compare as their numbers, which have more bits than numbers in a script

_TYPES = """
for i, kind in ipairs({'stream', 'hash'}) do
  local found = KEYS[i] and redis.call('TYPE', KEYS[i])['ok'] or 'none'
  if found ~= 'none' and found ~= kind then return {'type', KEYS[i], found} end
end
"""
_OWNED = """
local owner = redis.call('HGET', KEYS[2], 'owner')
if not owner then return {'gone'} end
if owner ~= ARGV[1] then return {'lost'} end
"""
# ARGV: owner, "1" if the owner has claimed the track before
_CLAIM = f"""{_TYPES}
if ARGV[2] == '1' then
  {_OWNED}
end
redis.call('HSET', KEYS[2], 'owner', ARGV[1])
local held = redis.call('HMGET', KEYS[2], 'seq', 'incarnation')
return {{'claimed', held[1] or '', held[2] or ''}}
"""
# ARGV: owner, part, incarnation
_SETTLE = f"""{_OWNED}
redis.call('HSET', KEYS[2], 'seq', ARGV[2], 'incarnation', ARGV[3])
redis.call('HDEL', KEYS[2], 'part', 'row')
return {{'settled'}}
"""
# ARGV: owner, part, incarnation, the number of the first row in the part, "1" if the part ends with these rows, maxlen or "",
# the field of the payload, the number of rows, the payloads, and for rows that have more: a text with 1 for each row with a key,
# the keys, for each row the number of its headers, and the headers as name, value, name, …
_APPEND = f"""{_TYPES}
local stream, token, whole, first, rows = KEYS[1], KEYS[2], ARGV[5] == '1', tonumber(ARGV[4]), tonumber(ARGV[8])
local name = ARGV[3] .. ' ' .. ARGV[2]
if token then
  {_OWNED}
  local held = redis.call('HMGET', token, 'seq', 'incarnation', 'part', 'row')
  if held[1] and held[2] == ARGV[3] and held[1] >= ARGV[2] then return {{'there'}} end
  local row = held[3] == name and tonumber(held[4]) or 0
  if row ~= first then return {{'at', row}} end
end
local payloads, more = 8, #ARGV > 8 + rows
local keyed, keys, counts, header = ARGV[9 + rows], 9 + rows, 9 + 2 * rows, 10 + 3 * rows
local function reach(row)
  if token then redis.call('HSET', token, 'part', name, 'row', row) end
end
for row = 1, rows do
  local entry = {{'XADD', stream}}
  if ARGV[6] ~= '' then
    entry[3], entry[4], entry[5] = 'MAXLEN', '~', ARGV[6]
  end
  local n = #entry
  entry[n + 1], entry[n + 2], entry[n + 3] = '*', ARGV[7], ARGV[payloads + row]
  if more then
    n = n + 3
    if keyed:sub(row, row) == '1' then
      entry[n + 1], entry[n + 2] = 'key', ARGV[keys + row]
      n = n + 2
    end
    for _ = 1, tonumber(ARGV[counts + row]) do
      entry[n + 1], entry[n + 2] = ARGV[header], ARGV[header + 1]
      n, header = n + 2, header + 2
    end
  end
  local done = redis.pcall(unpack(entry))
  if type(done) == 'table' and done['err'] then
    reach(first + row - 1)
    return {{'failed', done['err']}}
  end
end
if not token then return {{'added'}} end
if whole then
  redis.call('HSET', token, 'seq', ARGV[2], 'incarnation', ARGV[3])
  redis.call('HDEL', token, 'part', 'row')
else
  reach(first + rows)
end
return {{'added'}}
"""


class RedisStreamSink(Sink, KeepsToken):
    """A sink that adds an entry to a stream of Redis for each record: `RedisStreamSink("redis://localhost:6379/0", "totals")`.

    `url`: redis://user:password@host:6379/0, rediss://… for TLS, or unix:///path. `stream`: the key of the stream. `field`: the
    field of an entry that has the payload; the field "key" has the key of the record, if it has one, and each header is a field.
    `maxlen`: the number of entries from which on Redis removes the oldest ones, also those that nobody has read; None for no
    limit. Raises MissingExtra without the library, and UserError.

    Exactly once: the token is written in one step with each chunk of rows, so readers may see a part before it is whole. What a
    server that is killed keeps depends on its append-only file: see docs/redis.md.
    """

    whole = False
    format: Format
    chunk_rows = CHUNK_ROWS

    def __init__(
        self, url: str, stream: str, *, field: str = "value", maxlen: int | str | None = None, format: Format = JSON
    ) -> None:
        check("RedisStreamSink: stream", stream, TEXT)
        check("RedisStreamSink: field", field, TEXT)
        if maxlen is not None and not (str(maxlen).isdecimal() and int(maxlen)):
            raise UserError(f"RedisStreamSink: maxlen={maxlen!r}", hint="a whole number, 1 or more")
        self.name = stream
        self.field = field
        self.format = format
        self._maxlen = "" if maxlen is None else str(int(maxlen))
        self._encoder = format.encoder(stream)
        self._server = RedisServer(url, f"stream {stream}", "RedisStreamSink")
        self._client: Any = None
        self._waits = False  # the server can wait until its append-only file is on the disk
        self._told = False
        self._track: Track | None = None
        self._owner = ""

    @property
    def address(self) -> str:
        return f"{self._server.where}/{self.name}"

    def check_types(self, schema: pa.Schema) -> None:
        self.format.check_types(schema, f"stream {self.name!r}")

    def floats_lost(self, kind: pa.DataType) -> LostFloats:
        return self.format.floats_lost(kind)

    # -- at least once ------------------------------------------------------------------------------------------------

    def open(self) -> None:
        self._track = None
        self._connect()
        self._run(f"{_TYPES} return {{'open'}}")

    def write(self, batch: Batch) -> None:
        self._opened()
        self._add([self._records(batch.taken())], None, 0)

    def flush(self) -> None:
        self._opened()
        self._make_durable()

    def close(self) -> None:
        client, self._client = self._client, None
        self._track = None
        if client is not None:
            client.close()

    # -- exactly once -------------------------------------------------------------------------------------------------

    def known(self, track: Track) -> Token | None:
        self._connect()
        try:
            with self._server.explained():
                held = self._client.execute_command("HMGET", self._token_key(track), "seq", "incarnation")
            return _token(*held)
        finally:
            self.close()

    def claim(self, track: Track) -> Token | None:
        again = track == self._track
        if not again:
            self._owner = uuid.uuid4().hex
        self._connect()
        with step("claim", track.key):
            _, seq, incarnation = self._run(_CLAIM, track, self._owner, int(again))
        self._make_durable()
        self._track = track
        return _token(seq, incarnation)

    def fitting(self, data: pa.RecordBatch) -> pa.RecordBatch:
        """Returns rows as records, after all checks: the server refuses no single record."""
        return self._records(data)

    def deliver(self, seq: int, batches: Sequence[pa.RecordBatch]) -> None:
        self._add([self._records(each) for each in batches], self._claimed(), seq)
        self._make_durable()

    def settle(self, seq: int) -> None:
        track = self._claimed()
        with step("token", self.name):
            self._run(_SETTLE, track, self._owner, _padded(seq), track.incarnation)
        self._make_durable()

    # -- rows ---------------------------------------------------------------------------------------------------------

    def _records(self, data: pa.RecordBatch) -> pa.RecordBatch:
        """Returns rows as records. Raises RowErrors for those that no entry can hold."""
        records = to_records(Batch(data), int(SYSTEM_CLOCK.time() * 1000), None, self._encoder)
        payloads, headers = records.column("payload"), records.column("headers")
        wrong: dict[int, str] = {}
        if payloads.null_count:
            without: Any = pc.indices_nonzero(pc.is_null(payloads))
            wrong = dict.fromkeys(without.to_pylist(), f"stream {self.name}: a record without a payload is no entry")
        if headers.null_count < len(headers):
            many: Any = pc.indices_nonzero(
                pc.greater(pc.list_value_length(headers), pa.scalar(_HEADERS_MAX, pa.int32()))
            )
            wrong |= dict.fromkeys(many.to_pylist(), f"stream {self.name}: more than {_HEADERS_MAX} headers")
            for name in (self.field, _KEY):
                named: Any = pc.equal(headers.flatten().flatten()[0], name)
                why = f"stream {self.name}: a header is called {name!r}, as the field of the payload or of the key"
                wrong |= dict.fromkeys(pc.list_parent_indices(headers).filter(named).to_pylist(), why)
        if self.field == _KEY and records.column("key").null_count < len(records):
            keyed: Any = pc.indices_nonzero(pc.is_valid(records.column("key")))
            why = f"stream {self.name}: its field {_KEY!r} has the payload, so it has no place for the key of a record"
            wrong |= dict.fromkeys(keyed.to_pylist(), why)
        if wrong:
            raise RowErrors(wrong)
        return records

    def _add(self, batches: Sequence[pa.RecordBatch], track: Track | None, seq: int) -> None:
        """Adds rows, of a part or without a token, in chunks. Goes on behind the rows of the part that are there."""
        whole = sum(each.num_rows for each in batches)
        part = ("", "", "") if track is None else (self._owner, _padded(seq), track.incarnation)
        at = 0
        while True:
            data = self._chunk(batches, at)
            rows = 0 if data is None else data.num_rows
            words = () if data is None else _words(data)
            last = at + rows == whole
            with step("append", self.name):
                said = self._run(_APPEND, track, *part, at, int(last), self._maxlen, self.field, rows, *words)
            if said[0] == b"at" and said[1] <= whole:
                at = said[1]
                continue
            if said[0] == b"at":
                raise self._gone(f"it has {said[1]} rows of a part of {whole}")
            at += rows
            if said[0] == b"there" or last:
                return

    def _chunk(self, batches: Sequence[pa.RecordBatch], at: int) -> pa.RecordBatch | None:
        """Returns some rows from the row `at` of the part on, or None at its end."""
        for data in batches:
            if at < data.num_rows:
                rows = max(1, min(self.chunk_rows, CHUNK_BYTES * data.num_rows // max(1, data.nbytes)))
                return data.slice(at, rows)
            at -= data.num_rows
        return None

    # -- the server ---------------------------------------------------------------------------------------------------

    def _connect(self) -> None:
        if self._client is not None:
            self._client.close()
        self._client = self._server.blocking()
        try:
            with self._server.explained():
                info = self._client.execute_command("INFO", "server", "persistence").decode()
        except UserError as error:  # users of a server may be denied this command
            _log.debug("%s: whether its rows are on a disk is not known: %s", self._where, error)
            info = ""
        version = re.search(r"redis_version:(\d+)\.(\d+)", info)
        has_log = "aof_enabled:1" in info
        self._waits = has_log and version is not None and (int(version[1]), int(version[2])) >= (7, 2)
        if info and not has_log and not self._told:
            self._told = True
            _log.warning(
                "%s: the server keeps no append-only file, so rows and their token are gone if it is killed",
                self._where,
            )

    def _run(self, script: str, track: Track | None = None, *words: Any) -> Any:
        keys = [self.name] if track is None else [self.name, self._token_key(track)]
        with self._server.explained():
            said = self._opened().execute_command("EVAL", script, len(keys), *keys, *words)
        match said[0]:
            case b"type":
                kind = said[2].decode()
                raise UserError(f"{self._where}: the key {said[1].decode()} is a {kind}", hint="give another stream")
            case b"gone":
                raise self._gone("the token is gone")
            case b"lost":
                raise AppLocked(
                    f"another process delivers {track.key if track else ''!r} into {self._where} now",
                    hint="stop one of the two; two different apps need different names (App(id))",
                )
            case b"failed":
                raise UserError(f"{self._where}: {said[1].decode()}")
        return said

    def _make_durable(self) -> None:
        """Waits until the append-only file of the server is on its disk, if the server can tell."""
        if not self._waits:
            return
        with self._server.explained():
            local, _ = self._opened().execute_command("WAITAOF", 1, 0, _DURABLE_MS)
        if not local:
            raise TransientError(f"{self._where}: its append-only file was not on the disk after {_DURABLE_MS} ms")

    def _gone(self, what: str) -> DeliveryConflict:
        return DeliveryConflict(
            f"{self._where}: {what}, so nobody knows which rows have arrived",
            hint="the server has lost data (no append-only file?), or another program has changed the keys sabot:*; start again, "
            "and choose with --redeliver",
        )

    @property
    def _where(self) -> str:
        return f"stream {self.name} at {self._server.where}"

    def _token_key(self, track: Track) -> str:
        """The key of the track's token, which a cluster keeps where it keeps the stream."""
        tag = re.search(r"\{([^}]+)\}", self.name)
        return f"sabot:{{{tag[1] if tag else self.name}}}:{self.name}:{track.key}"

    def _opened(self) -> Any:
        if self._client is None:
            raise UserError(f"the sink of stream {self.name!r} is not open")
        return self._client

    def _claimed(self) -> Track:
        if self._track is None:
            raise UserError(f"the sink of stream {self.name!r} is not open for parts: no track was claimed")
        return self._track


def _token(seq: bytes | None, incarnation: bytes | None) -> Token | None:
    return Token(int(seq), (incarnation or b"").decode()) if seq else None


def _padded(seq: int) -> str:
    return f"{seq:0{_DIGITS}}"


def _words(data: pa.RecordBatch) -> list[Any]:
    """Returns the arguments of a chunk: the payloads, and if a row has more, the keys and the headers."""
    payloads, keys, headers = (data.column(name) for name in ("payload", "key", "headers"))
    words: list[Any] = bytes_list(payloads)
    if keys.null_count == headers.null_count == len(data):
        return words
    words.append(np.where(np.asarray(pc.is_valid(keys)), ord("1"), ord("0")).astype(np.uint8).tobytes())
    words += bytes_list(keys.fill_null(b""))
    words += pc.list_value_length(headers).fill_null(0).to_pylist()
    names, values = headers.flatten().flatten()
    pairs: list[Any] = [b""] * (2 * len(names))
    pairs[0::2], pairs[1::2] = bytes_list(names), bytes_list(values.fill_null(b""))
    return words + pairs
