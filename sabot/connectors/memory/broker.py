"""The broker inside the process: topics, partitions, offsets, groups; `memory://` in an address.

A partition is a log of Arrow chunks. A batch that a sink writes becomes a chunk, a batch that a source reads
is a slice of one: no record becomes a Python object. Records published one at a time gather in an open tail,
which is sealed into a chunk when somebody reads it; small neighbours are merged as they are sealed, so the
log stays short.

Everything may be called from any thread and any event loop. Each topic has one lock, held for slices and list
work only. The log dies with the process.
"""

import threading
import uuid
from collections.abc import Callable, Sequence
from typing import Any

from sabot.base.config import parse_broker
from sabot.clock import SYSTEM_CLOCK
from sabot.codecs.records import Headers, HeadersLike, Record, checked_headers, encode_json, encode_key
from sabot.connectors.base import Token, Track
from sabot.connectors.memory.topic import Topic, size_of
from sabot.engine.letters.places import Ranges
from sabot.errors import AppLocked, UserError
from sabot.steps import step


class MemoryBroker:
    """An embedded broker; a process has one for each name. Get it with `MemoryBroker.get("memory://")` or
    `get("memory://name")`.

    `retention_bytes`: the most bytes of each topic. If a topic is full, its oldest records that all live readers have
    read are dropped (`statistics()["dropped_rows"]`). If that does not suffice, a sink that writes waits for the
    readers.
    """

    _brokers: dict[str, "MemoryBroker"] = {}  # noqa: RUF012 - the registry itself
    _registry = threading.Lock()

    def __init__(self, name: str) -> None:
        self.name = name
        self.retention_bytes = 1 << 30
        self._lock = threading.Lock()
        self._topics: dict[str, Topic] = {}
        self.log_id = uuid.uuid4().hex  # the id of the log whose offsets positions are
        self._groups: dict[tuple[str, str], dict[int, int]] = {}
        self._tracks: dict[
            str, tuple[object, Token | None]
        ] = {}  # by key of the track: the owner that claimed it last, and its token
        self._notes_lock = threading.Lock()
        self._notes: dict[
            str, dict[int, Ranges]
        ] = {}  # by id of the place of dead letters, and partition: the offsets that were sent back

    @classmethod
    def get(cls, url: str = "memory://") -> "MemoryBroker":
        """Returns the broker of this address, which is made on first use. Raises UserError if the address is not
        memory://.
        """
        scheme, name = parse_broker(url)
        if scheme != "memory":
            raise UserError(f"{url!r} is no embedded broker", hint="write memory:// or memory://name")
        with cls._registry:
            return cls._brokers.setdefault(name, cls(name))

    def create_topic(self, name: str, partitions: int = 1) -> None:
        """Makes the topic, or grows it to `partitions`; a topic never shrinks."""
        if partitions < 1:
            raise UserError(f"topic {name!r}: {partitions} partitions", hint="a topic has at least 1")
        self.topic(name).grow(partitions)

    def topics(self) -> dict[str, int]:
        """Returns the number of partitions by topic."""
        with self._lock:
            return {name: len(topic.partitions) for name, topic in self._topics.items()}

    def publish(
        self,
        topic: str,
        values: Sequence[Any],
        *,
        key: Any = None,
        partition: int | None = None,
        headers: HeadersLike = (),
        timestamp: int | None = None,
    ) -> int:
        """Appends the values, and returns the offset of the last one, or -1 if there are none.

        A value that is bytes is written as it is, None is a null payload, and anything else becomes JSON. `key`
        (bytes, str as UTF-8, else JSON), `headers` (as in `Message`) and `timestamp` (ms, by default now) are those
        of all values. Without `partition` the key decides, and without a key the partitions take turns (a turn is
        8,192 values). Never waits: raises TransientError if the topic is full of records that a live reader has not
        read.
        """
        if isinstance(values, bytes | str | dict):
            raise UserError(f"publish({topic!r}) takes a list of values, not one {type(values).__name__}")
        pairs = checked_headers(headers, f"publish({topic!r})")
        payloads = [v if v is None or isinstance(v, bytes) else encode_json(v) for v in values]
        where = self.topic(topic)
        stamp = _stamp(topic, timestamp)
        last = where.publish(payloads, encode_key(key), partition, pairs, stamp)
        if last is None:
            raise where.full()
        return last

    async def send(
        self,
        topic: str,
        payload: bytes | None,
        key: bytes | None = None,
        headers: Headers = (),
        timestamp: int | None = None,
        partition: int | None = None,
    ) -> int:
        """Appends one record and returns its offset. While the topic is full it waits, without blocking the event
        loop.
        """
        where = self.topic(topic)
        stamp = _stamp(topic, timestamp)
        pairs = tuple(headers)
        while True:
            offset = where.publish([payload], key, partition, pairs, stamp)
            if offset is not None:
                return offset
            await where.writers.turn(lambda: where.has_room(size_of(payload, key, pairs)))

    def records(self, topic: str) -> list[Record]:
        """Returns every record that the topic holds, by partition and offset; [] for a topic that does not exist."""
        with self._lock:
            where = self._topics.get(topic)
        return [] if where is None else where.records()

    def reset(self) -> None:
        """Removes all topics, groups and tokens. Sources and sinks that are open raise UserError at their next call."""
        with self._lock:
            topics = list(self._topics.values())
            self.log_id = uuid.uuid4().hex
            self._topics.clear()
            self._groups.clear()
            self._tracks.clear()
        with self._notes_lock:
            self._notes.clear()
        for topic in topics:
            topic.forget()

    def commit(self, group: str, topic: str, positions: dict[int, int]) -> None:
        """Stores the group's next offset of each partition."""
        with self._lock:
            self._groups.setdefault((group, topic), {}).update(positions)

    def committed(self, group: str, topic: str) -> dict[int, int]:
        """Returns the group's next offset of each partition that has one."""
        with self._lock:
            return dict(self._groups.get((group, topic), {}))

    def claim(self, track: Track, owner: object, *, again: bool) -> Token | None:
        """Makes `owner` the only one that may deliver on this track, and returns the track's token. `again`: True if
        `owner` has claimed it before; AppLocked if another owner has claimed it since.
        """
        with self._lock:
            now, token = self._tracks.get(track.key, (owner, None))
            if again and now is not owner:
                raise self._lost(track)
            self._tracks[track.key] = (owner, token)
        return token

    def advance(self, track: Track, owner: object, seq: int, then: Callable[[], None], *, anyhow: bool = False) -> None:
        """Calls `then` and sets the token to `seq`, in one step. Does neither if the token says that the part has
        arrived, unless `anyhow` is True. Raises AppLocked if `owner` no longer owns the track.
        """
        with self._lock:
            now, token = self._tracks.get(track.key, (None, None))
            if now is not owner:
                raise self._lost(track)
            if anyhow or token is None or token.incarnation != track.incarnation or token.seq < seq:
                then()
                self._tracks[track.key] = (owner, Token(seq, track.incarnation))

    def send_back(self, home: str, begin: int, letter: Record, topic: str, partition: int | None) -> bool:
        """Appends the record of a dead letter to a topic, and notes that it was sent, in one step. Returns False, and
        appends nothing, if there is a note already. Never waits: raises TransientError if the topic is full.

        `home`: the id of the place of the dead letter. `letter`: its record, with the partition and offset of the dead
        letter. `begin`: the first offset that the note covers. `partition`: that of the topic, or None to let the key
        decide.
        """
        where = self.topic(topic)
        with self._notes_lock:
            sent = self._notes.setdefault(home, {}).setdefault(letter.partition, Ranges())
            if letter.offset in sent:
                return False
            with step("append", topic):
                if where.publish([letter.payload], letter.key, partition, letter.headers, letter.timestamp) is None:
                    raise where.full()
                sent.add(begin, letter.offset)
        return True

    def sent_back(self, home: str) -> dict[int, Ranges]:
        """Returns the offsets of the dead letters of a place that were sent back, by partition."""
        with self._notes_lock:
            return {partition: sent.copy() for partition, sent in self._notes.get(home, {}).items()}

    def _lost(self, track: Track) -> AppLocked:
        return AppLocked(
            f"another app of this process delivers {track.key!r} into memory://{self.name} now",
            hint="stop one of the two; two different apps need different names (App(id))",
        )

    def statistics(self) -> dict[str, int]:
        """Returns figures: `topics`, `retention_bytes`, the `rows` and `bytes` held, `rows_total` ever written, `dropped_rows`,
        and open `readers`.
        """
        with self._lock:
            topics = list(self._topics.values())
        total = {"topics": len(topics), "retention_bytes": self.retention_bytes}
        for topic in topics:
            for name, value in topic.statistics().items():
                total[name] = total.get(name, 0) + value
        return total

    def topic(self, name: str) -> Topic:
        """Returns the topic of this name, which is made on first use."""
        with self._lock:
            topic = self._topics.get(name)
            if topic is None:
                topic = self._topics[name] = Topic(name, lambda: self.retention_bytes)
            return topic


def _stamp(topic: str, timestamp: int | None) -> int:
    """Returns the time of a record, in ms. Raises UserError for a time that no record can hold, at which each reader
    would fail.
    """
    stamp = int(SYSTEM_CLOCK.time() * 1000) if timestamp is None else int(timestamp)
    if abs(stamp) >= 1 << 63:
        raise UserError(f"topic {topic!r}: timestamp={timestamp}", hint="ms since 1970, in 64 bits")
    return stamp
