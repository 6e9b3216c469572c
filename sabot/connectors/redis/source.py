"""A source that reads a stream of Redis by the ids of its entries. No consumer group takes part: a checkpoint keeps the id of the
last entry, and how many entries were added up to it.

`entries-added` less `length` is the number of entries that the stream has removed. Trimming removes the oldest first, so if this
number is above the count of entries up to our place, some were removed that were not read. `max-deleted-entry-id` does not tell:
XTRIM and MAXLEN leave it as it is.
"""

import logging
import threading
from collections import deque
from collections.abc import Collection, Mapping, Set
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sabot._cython.arrow.batch import Batch
from sabot._cython.text.records import binary_array
from sabot.base.checks import TEXT, check
from sabot.base.dataclass import dataclass
from sabot.clock import SYSTEM_CLOCK
from sabot.codecs.records import BAD_SCHEMA, RECORD_SCHEMA
from sabot.connectors.base import Positions, Sink, Source, TakesBound
from sabot.connectors.places import offsets_of
from sabot.connectors.redis.server import RedisServer
from sabot.errors import TransientError, UserError

__all__ = ["RedisStreamSource"]

_log = logging.getLogger(__name__)

NUMBER_BITS = 20  # of the number of an entry within its ms
_MS_BITS = 43
_BATCH_BYTES = 16 << 20
_BATCH_ROWS = 10_000
_BLOCK_SECONDS = 1.0  # the longest wait in the server: less than the time-out of a command
_PAUSE_SECONDS = 0.2  # between two tries to reach a server that is away
_COUNTS = 4096  # places whose counts are remembered for `commit`

# The stream's length, the entries that were ever added, and its last id. XINFO alone would send the first and the last entry too.
_FACTS = """
if redis.call('EXISTS', KEYS[1]) == 0 then return {0, 0, '0-0'} end
local facts, info = {}, redis.call('XINFO', 'STREAM', KEYS[1])
for i = 1, #info, 2 do facts[info[i]] = info[i + 1] end
return {facts['length'], facts['entries-added'] or -1, facts['last-generated-id']}
"""

# Of at most ARGV[3] entries between two ids: how many there are, and the last of their ids.
_COUNT = """
local found = redis.call('XRANGE', KEYS[1], ARGV[1], ARGV[2], 'COUNT', ARGV[3])
return {#found, #found > 0 and found[#found][1] or ''}
"""
_COUNTED_AT_ONCE = 1000


@dataclass(frozen=True)
class _Facts:
    """A stream at one moment. `length`: its entries. `added`: those that were ever added. `end`: the offset behind its last id."""

    length: int
    added: int
    end: int

    @property
    def removed(self) -> int:
        """The number of entries that were removed."""
        return self.added - self.length


class RedisStreamSource(Source, TakesBound):
    """A source of the entries of a stream of Redis: `RedisStreamSource("redis://localhost:6379/0", "orders")`.

    `url`: redis://user:password@host:6379/0, rediss://… for TLS, or unix:///path. `stream`: the key of the stream; one that does
    not exist yet has no entries. `field`: the field of an entry that has the payload of the record. The field "key", if there is
    one, is its key, and all other fields are its headers; the time is that of the id. An entry without `field` becomes a dead
    letter. `group`: a consumer group that is set to the place of each checkpoint, so that tools can show how far the app is; ""
    for none. Needs Redis 7.0 or Valkey. Raises MissingExtra without the library, and UserError.

    The offset of an entry is ms · 2²⁰ + number, from its id. The source reads with XREAD, so an entry that is trimmed or
    deleted before it was read is missing: that is an error if it can be seen, see docs/redis.md.
    """

    def __init__(self, url: str, stream: str, group: str = "", *, field: str = "value") -> None:
        check("RedisStreamSource: stream", stream, TEXT)
        check("RedisStreamSource: field", field, TEXT)
        self.name = stream
        self.group = group
        self.field = field
        self._url = url
        self._server = RedisServer(url, f"stream {stream}", "RedisStreamSource")
        self._client: Any = None
        self._next = 0  # the offset of the next entry
        self._count = 0  # the entries that were added before it
        self._facts = _Facts(0, 0, 0)
        self._counts: deque[tuple[int, int]] = deque(maxlen=_COUNTS)
        self._recalled: bytes | None = None
        self._there = 0  # the entries that had been added at `open`
        self._ask = 16  # entries of a read: few, until their size is known
        self._held = self._away = False
        self._woken = threading.Event()

    # -- read ---------------------------------------------------------------------------------------------------------

    def recall(self, memory: Mapping[tuple[str, int], bytes]) -> None:
        self._recalled = memory.get((self.name, 0))

    def open(self, positions: Positions | None, start: str | int = "earliest") -> None:
        self.close()
        recalled, self._recalled = self._recalled, None
        self._client = client = self._server.blocking()
        with self._server.explained():
            kind = client.execute_command("TYPE", self.name)
            if kind not in (b"stream", b"none"):
                raise UserError(
                    f"{self._where}: it is a {kind.decode()}, and no stream", hint="give the key of a stream"
                )
            self._facts = facts = self._facts_of(client.execute_command("EVAL", _FACTS, 1, self.name))
            if kind == b"none":
                _log.info("%s does not exist yet: it is read when its first entry is added", self._where)
            log = _StreamLog(self, client)
            known = (positions or {}).get((self.name, 0))
            if known is not None:
                self._next, self._count = known, self._count_of(recalled, known)
                self._check(facts)
            else:
                self._next = offsets_of(start, log, [0], [0])[0]
                if self._next > facts.end:
                    raise self._behind(facts)
                self._count = self._count_before(client, self._next, facts)
            self._there = facts.added
            if self.bound is not None:
                self.bound.settle(log, [0], [0])
                self.bound.comes(0, self._next)
        self._note()

    def read_batch(self, max_rows: int, timeout: float) -> Batch | None:
        client = self._opened()
        if self.exhausted:
            return None
        until = SYSTEM_CLOCK.monotonic() + timeout
        while True:
            left = until - SYSTEM_CLOCK.monotonic()
            if self._held:
                self._woken.wait(max(0.0, left))
                return None
            try:
                with self._server.explained():
                    batch = self._read(client, max_rows)
                    if self._away:
                        _log.info("%s answers again", self._where)
                    self._away = False
                    if batch is not None or self.exhausted or left <= 0:
                        return batch
                    ms = max(1, int(1000 * min(left, _BLOCK_SECONDS)))
                    self._command("XREAD", "COUNT", 1, "BLOCK", ms, "STREAMS", self.name, self._id(self._next))
            except TransientError as error:
                if not self._away:
                    _log.warning("%s cannot be read, and is tried again until it answers: %s", self._where, error)
                self._away = True
                if left <= 0:
                    return None
                self._woken.wait(min(left, _PAUSE_SECONDS))

    def _read(self, client: Any, max_rows: int) -> Batch | None:
        """Returns the next entries, if there are any, and checks that none was removed before them: both at one moment."""
        transaction = client.pipeline(transaction=True)
        transaction.execute_command("EVAL", _FACTS, 1, self.name)
        ask = min(max_rows, self._ask)
        transaction.execute_command("XREAD", "COUNT", ask, "STREAMS", self.name, self._id(self._next))
        said, found = transaction.execute()
        facts = self._facts_of(said)
        self._check(facts)
        self._facts = facts
        entries = found[0][1] if found else []
        if not entries:
            self._over(facts.end, facts)
            return None
        offsets, records, missing = self._columns(entries)
        self._ask = max(1, min(4 * self._ask, _BATCH_ROWS, _BATCH_BYTES * len(offsets) // max(1, records.nbytes)))
        rows = len(offsets)
        if self.bound is not None and offsets[-1] >= (end := self.bound.of(0)):
            rows = int(np.searchsorted(offsets, end))
            if not rows:
                self._over(end, facts)
                return None
        self._next = int(offsets[rows - 1]) + 1
        self._count += rows
        if self._next >= facts.end:
            self._count = facts.added  # also those that were deleted in between
        if self.bound is not None:
            self.bound.comes(0, self.bound.of(0) if rows < len(offsets) else self._next)
        self._note()
        return self._batch(records.slice(0, rows), missing[:rows])

    def _over(self, end: int, facts: _Facts) -> None:
        """Notes that there is no entry between our place and `end`."""
        if self.bound is not None:
            end = min(end, self.bound.of(0))
        if end > self._next:
            self._next = end
        if self._next >= facts.end:
            self._count = facts.added
        if self.bound is not None:
            self.bound.comes(0, self._next)
        self._note()

    def _columns(self, entries: list[Any]) -> "tuple[np.ndarray[Any, Any], pa.RecordBatch, np.ndarray[Any, Any]]":
        """Returns the offsets of entries, their records, and which of them have no payload."""
        ids, fields = zip(*entries, strict=True)
        rows = len(ids)
        stamps, offsets = self._offsets(binary_array(ids))
        flat = list(chain.from_iterable(fields))
        pairs = np.fromiter(map(len, fields), np.int64, rows) // 2
        names, values = binary_array(flat[0::2]), binary_array(flat[1::2])
        is_payload = np.asarray(pc.equal(names, pa.scalar(self.field.encode(), pa.binary())))
        missing = np.zeros(rows, bool)
        if len(names) == rows and is_payload.all():  # what RedisStreamSink writes for rows without keys
            payloads, keys, headers = values, pa.nulls(rows, pa.binary()), pa.nulls(rows, _HEADERS)
        else:
            of_row = np.repeat(np.arange(rows), pairs)
            payloads, at_payload = _first(values, is_payload, of_row, rows)
            is_key = np.asarray(pc.equal(names, pa.scalar(b"key", pa.binary()))) & ~is_payload
            keys, at_key = _first(values, is_key, of_row, rows)
            missing = np.asarray(pc.is_null(payloads))
            rest = np.ones(len(names), bool)
            rest[at_payload] = rest[at_key] = False
            headers = _headers(names, values, rest, of_row, rows)
        columns = [payloads, keys, pa.array(stamps), pa.array(np.zeros(rows, np.int32)), pa.array(offsets), headers]
        return offsets, pa.RecordBatch.from_arrays(columns, schema=RECORD_SCHEMA), missing

    def _offsets(self, ids: Any) -> "tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]":
        """Returns the times of ids, in ms, and their offsets. Raises UserError for an id whose offset has more than 63 bits."""
        parts: Any = pc.split_pattern(ids.cast(pa.string()), "-").flatten().cast(pa.uint64())
        numbers = parts.to_numpy().reshape(-1, 2)
        wide = np.flatnonzero((numbers[:, 0] >> np.uint64(_MS_BITS)) | (numbers[:, 1] >> np.uint64(NUMBER_BITS)))
        if len(wide):
            raise UserError(
                f"{self._where}: the entry {ids[int(wide[0])].as_py().decode()} has no position of 63 bits",
                hint=f"a ms may have 2^{NUMBER_BITS} entries, and a time {_MS_BITS} bits: let Redis choose the ids (XADD … *)",
            )
        stamps = numbers[:, 0].astype(np.int64)
        return stamps, (stamps << NUMBER_BITS) | numbers[:, 1].astype(np.int64)

    def _batch(self, records: pa.RecordBatch, missing: "np.ndarray[Any, Any]") -> Batch:
        bad = None
        if missing.any():
            without = records.filter(pa.array(missing))
            reasons = pa.array([f"the entry has no field {self.field!r}"] * len(without), pa.string())
            bad = pa.RecordBatch.from_arrays([*without.columns, reasons], schema=BAD_SCHEMA)
            records = records.filter(pa.array(~missing))
        return Batch(records, self.positions(), self.name, bad=bad)

    def hold(self, partitions: Set[tuple[str, int]]) -> None:
        self._held = (self.name, 0) in partitions

    def close(self) -> None:
        client, self._client = self._client, None
        self._held = self._away = False
        if client is not None:
            client.close()

    # -- position -----------------------------------------------------------------------------------------------------

    def positions(self) -> Positions:
        return {(self.name, 0): self._next}

    def remember(self) -> dict[tuple[str, int], bytes]:
        return {(self.name, 0): b"%d" % self._count}

    def _count_of(self, memory: bytes | None, position: int) -> int:
        """Returns the count that a checkpoint has. Raises UserError."""
        if memory is None or not memory.isdigit():
            raise UserError(
                f"{self._where}: the checkpoint has the position {position} without the count of entries before it",
                hint="the checkpoint is none of this source; start afresh (--fresh)",
            )
        return int(memory)

    def _count_before(self, client: Any, offset: int, facts: _Facts) -> int:
        """Returns how many entries were added before this offset, as far as those that were deleted show it."""
        if offset <= 1:
            return facts.removed
        if offset >= facts.end:
            return facts.added
        behind: int = 0
        first, last = self._text(offset), self._text(facts.end - 1)
        while True:
            found, seen = client.execute_command("EVAL", _COUNT, 1, self.name, first, last, _COUNTED_AT_ONCE)
            behind += found
            if found < _COUNTED_AT_ONCE:
                return max(facts.removed, facts.added - behind)
            first = b"(" + seen

    def _check(self, facts: _Facts) -> None:
        """Raises UserError if entries were removed before they were read, or if the stream has lost entries that were read."""
        if facts.end < self._next or facts.added < self._count:
            raise self._behind(facts)
        lost = facts.removed - self._count
        if lost <= 0:
            return
        if not self.skips_removed:
            raise UserError(
                f"{self._where}: {lost} entries were trimmed or deleted before they were read, which is the position {self._next}",
                hint=f"--from-earliest {self.name} goes on without them, with all state; give the stream a larger MAXLEN",
            )
        _log.warning("%s: %d entries that were not read are missing, as from_earliest= says", self._where, lost)
        self._count = facts.removed

    def _behind(self, facts: _Facts) -> UserError:
        return UserError(
            f"{self._where}: position {self._next} does not exist, with {self._count} entries before it; the stream ends at "
            f"{facts.end}, and {facts.added} were added to it",
            hint="the server has lost entries (no append-only file, a replica that was behind), or the stream was made again; "
            "start afresh (--fresh)",
        )

    # -- delivery -----------------------------------------------------------------------------------------------------

    def commit(self, positions: Positions) -> None:
        position = positions.get((self.name, 0), 0)
        if not self.group or not position:
            return
        counts = dict(self._counts)
        while self._counts and self._counts[0][0] < position:
            self._counts.popleft()
        place: list[Any] = [self._id(position)]
        if position in counts:
            place += ["ENTRIESREAD", counts[position]]
        with self._server.explained():
            groups = self._command("XINFO", "GROUPS", self.name)
            known = {facts[facts.index(b"name") + 1] for facts in groups}
            step = "SETID" if self.group.encode() in known else "CREATE"
            self._command("XGROUP", step, self.name, self.group, *place)

    # -- facts --------------------------------------------------------------------------------------------------------

    @property
    def exhausted(self) -> bool:
        return self.bound is not None and self._client is not None and self.bound.reached

    def lag(self) -> dict[tuple[str, int], int]:
        return {} if self._client is None else {(self.name, 0): max(0, self._facts.added - self._count)}

    def backlog(self) -> int:
        return max(0, self._there - self._count)

    def as_sink(self) -> Sink:
        from sabot.connectors.redis.sink import RedisStreamSink  # here, since most sources are only read

        return RedisStreamSink(self._url, self.name, field=self.field)

    # -- the server ---------------------------------------------------------------------------------------------------

    @property
    def _where(self) -> str:
        return f"stream {self.name} at {self._server.where}"

    def _opened(self) -> Any:
        if self._client is None:
            raise UserError(f"the source of stream {self.name!r} is not open")
        return self._client

    def _command(self, *words: Any) -> Any:
        return self._opened().execute_command(*words)

    def _note(self) -> None:
        if not self._counts or self._counts[-1] != (self._next, self._count):
            self._counts.append((self._next, self._count))

    def _facts_of(self, said: list[Any]) -> _Facts:
        length, added, last = said
        if added < 0:
            raise UserError(f"{self._where}: the server does not count entries", hint="Redis 7.0 or newer, or Valkey")
        end = 0 if last == b"0-0" else int(self._offsets(pa.array([last]))[1][0]) + 1
        return _Facts(length, added, end)

    @staticmethod
    def _text(offset: int) -> str:
        return f"{offset >> NUMBER_BITS}-{offset & ((1 << NUMBER_BITS) - 1)}"

    @classmethod
    def _id(cls, position: int) -> str:
        """Returns the id behind which reading goes on."""
        return cls._text(max(0, position - 1))


_HEADERS = RECORD_SCHEMA.field("headers").type


def _first(
    values: Any, chosen: "np.ndarray[Any, Any]", of_row: "np.ndarray[Any, Any]", rows: int
) -> "tuple[Any, np.ndarray[Any, Any]]":
    """Returns the first chosen value of each row, null where a row has none, and the places of these values."""
    places = np.flatnonzero(chosen)
    found, firsts = np.unique(of_row[places], return_index=True)
    index, none = np.zeros(rows, np.int64), np.ones(rows, bool)
    index[found], none[found] = places[firsts], False
    return values.take(pa.array(index, mask=none)), places[firsts]


def _headers(names: Any, values: Any, rest: "np.ndarray[Any, Any]", of_row: "np.ndarray[Any, Any]", rows: int) -> Any:
    """Returns the column of headers: those pairs of a row that are `rest`, null for a row without any."""
    counts = np.bincount(of_row[rest], minlength=rows)
    ends = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    kept = pa.array(rest)
    try:
        texts = names.filter(kept).cast(pa.string())
    except pa.ArrowInvalid:  # a name that is no UTF-8
        texts = pa.array([name.decode(errors="replace") for name in names.filter(kept).to_pylist()], pa.string())
    pairs = pa.StructArray.from_arrays([texts, values.filter(kept)], fields=list(_HEADERS.value_type))
    bounds = pa.array(ends, mask=np.append(counts == 0, False))
    return pa.ListArray.from_arrays(bounds, pairs, type=_HEADERS)


class _StreamLog:
    """A stream in the form that `offsets_of` needs."""

    def __init__(self, source: RedisStreamSource, client: Any) -> None:
        self.name = source.name
        self._source, self._client = source, client

    def span(self, partition: int) -> tuple[int, int]:
        return 0, self._source._facts.end

    def committed(self, partitions: Collection[int]) -> dict[int, int]:
        groups = self._client.execute_command("XINFO", "GROUPS", self.name) if self._source._facts.added else []
        found = [dict(zip(facts[0::2], facts[1::2], strict=True)) for facts in groups]
        last = [each[b"last-delivered-id"] for each in found if each[b"name"] == self._source.group.encode()]
        return {0: int(self._source._offsets(pa.array([last[0]]))[1][0]) + 1} if last else {}

    def at(self, partitions: Collection[int], ms: int) -> dict[int, int]:
        return {0: ms << NUMBER_BITS} if ms << NUMBER_BITS < self._source._facts.end else {}
