"""Places in a topic, as users name them: the place where reading begins (`start=`), and the place where it ends
(`until=`).

A place becomes an offset in each partition when the topic is opened. A checkpoint stores the offsets of a bound, so
that a restart ends at the same records as the first start.
"""

import logging
from collections.abc import Collection, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from sabot.base.arrays import python_value
from sabot.base.checks import is_whole
from sabot.errors import UserError

_log = logging.getLogger(__name__)

Start = str | int | datetime | Mapping[int, int]
"""The place where reading begins: "earliest", "latest", "committed" (the group's offsets), the first record of a
time, or offsets by partition.
"""

Until = str | int | datetime | Mapping[int, int]
"""The place where reading ends: "now", before the first record of a time or later, or before these offsets by
partition.
"""

Place = str | int | Mapping[int, int]
"""A `start=` or `until=` that was checked; a time is in ms since 1970."""

_STARTS = ("earliest", "latest", "committed")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_OFFSETS = "an offset of each partition ({0: 500, 1: 480})"


class Log(Protocol):
    """A topic with the methods that turn a place into offsets. Every method may block."""

    name: str

    def span(self, partition: int) -> tuple[int, int]:
        """Returns the first offset of a partition that the broker holds, and the offset after the last."""

    def committed(self, partitions: Collection[int]) -> Mapping[int, int]:
        """Returns the offsets that the group has committed, for those partitions that have one."""

    def at(self, partitions: Collection[int], ms: int) -> Mapping[int, int]:
        """Returns the offset of the first record with this timestamp or a later one, for those partitions that have
        such a record.
        """


def checked_start(start: Any, where: str) -> Place:
    """Returns a `start=` as a place. Raises UserError, whose text begins with `where`, for anything else."""
    place = _place(start)
    if place is None and start not in _STARTS:
        raise UserError(
            f"{where}: start={start!r} is not a place to start at",
            hint=f'"earliest", "latest", "committed", a timestamp in ms or a datetime with a zone, or {_OFFSETS}',
        )
    return str(start) if place is None else place


def checked_until(until: Any, where: str) -> Place | None:
    """Returns an `until=` as a place, or None for None. Raises UserError, whose text begins with `where`, for
    anything else.
    """
    place = _place(until)
    if place is None and until not in (None, "now"):
        raise UserError(
            f"{where}: until={until!r} is not a place to end at",
            hint=f'"now", a timestamp in ms or a datetime with a zone, or {_OFFSETS}',
        )
    return until if place is None else place


def _place(value: Any) -> int | Mapping[int, int] | None:
    """Returns a time in ms, or offsets by partition; None for anything else."""
    value = python_value(value)
    if isinstance(value, datetime) and value.tzinfo is not None:
        return (value - _EPOCH) // (_EPOCH.resolution * 1000)
    if is_whole(value, 0):
        return int(value)
    if isinstance(value, Mapping) and value:
        pairs = [(python_value(partition), python_value(offset)) for partition, offset in value.items()]
        if all(is_whole(partition, 0) and is_whole(offset, 0) for partition, offset in pairs):
            return dict(sorted(pairs))
    return None


def offsets_of(place: Place, log: Log, partitions: Collection[int], every: Collection[int]) -> dict[int, int]:
    """Returns the offsets of a place in these partitions. `every`: the numbers of all partitions of the topic. Raises
    UserError for an unknown place, and for offsets whose partitions are not exactly these.
    """
    found: Mapping[int, int] = {}
    behind = place in ("latest", "now") or isinstance(place, int)  # without a record of that time, the end
    if isinstance(place, Mapping):
        if set(place) != set(every):
            raise UserError(
                f"topic {log.name!r} has partitions {_listed(every)}, but the offsets are for {_listed(place)}",
                hint="give an offset for each partition and no other; 0 is the beginning",
            )
        return {partition: place[partition] for partition in partitions}
    if place == "committed":
        found = log.committed(partitions)
    elif isinstance(place, int):
        found = log.at(partitions, place)
    else:
        checked_start("latest" if place == "now" else place, f"topic {log.name!r}")
    return {each: found[each] if each in found else log.span(each)[behind] for each in partitions}


def goes_on_at(topic: str, partition: int, position: int, held: tuple[int, int], *, skips: bool) -> int:
    """Returns the offset at which reading goes on from a position. `held`: the first offset that the log holds, and the one
    after its last. `skips`: True if records that were removed are skipped, with a warning that says how many.

    Raises UserError if the log does not hold the position otherwise.
    """
    first, end = held
    if first <= position <= end:
        return position
    if position > end or not skips:
        hint = "the log was made again, or has lost records; start afresh (--fresh)"
        if position < first:
            hint = (
                f"retention has removed {first - position} records that were not read; --from-earliest {topic} goes on without them, "
                "with all state"
            )
        raise UserError(
            f"{topic}[{partition}]: position {position} does not exist; the log holds {first} to {end}", hint=hint
        )
    _log.warning(
        "%s[%d]: %d records that were not read are missing: retention has removed them; reading goes on at %d, as from_earliest= says",
        *(topic, partition, first - position, first),
    )
    return first


def _listed(partitions: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(partitions)))


def made_again(topic: str, before: str, now: str, when: str) -> UserError:
    """Returns the error for a topic that is not the one that was read before. `before`, `now`: the broker's ids of
    the two topics.
    """
    return UserError(
        f"topic {topic} was deleted and made again {when}: it was {before}, and is {now} now. "
        "Positions in the old topic mean nothing in the new one",
        hint="start afresh (--fresh), which reads the new topic from its start and drops the state of the old one; "
        "--reprocess NAME does so for one durable agent, and keeps the rest",
    )


class Bound:
    """The end of one reader of a topic: by partition, the offset of the first record that is no longer read.

    A partition that is newer than the bound has no record before it, so none of its records is read.
    """

    def __init__(self, asked: Place) -> None:
        self.asked = asked
        self.ends: dict[int, int] = {}
        self._over: set[int] = set()
        self._kept: dict[int, int] | None = None

    def keep(self, facts: Mapping[str, Any] | None) -> None:
        """Takes the ends from a checkpoint (`facts`), if the checkpoint had the same `until=`. Called before an
        opening; None forgets them.
        """
        self._kept = None
        if facts is not None and facts["asked"] == self._said:
            self._kept = {partition: offset for partition, offset in facts["ends"]}

    def settle(self, log: Log, partitions: Collection[int], every: Collection[int]) -> None:
        """Finds the ends of these partitions. Raises as `offsets_of`."""
        self._over = set()
        if self._kept is None:
            self.ends = offsets_of(self.asked, log, partitions, every)
        else:
            self.ends = {partition: self._kept.get(partition, 0) for partition in partitions}

    def facts(self) -> dict[str, Any]:
        """Returns the facts about the bound that a checkpoint stores."""
        return {"asked": self._said, "ends": [[partition, offset] for partition, offset in self.ends.items()]}

    def of(self, partition: int) -> int:
        """Returns the end of a partition."""
        return self.ends.get(partition, 0)

    def comes(self, partition: int, position: int) -> bool:
        """Notes that a partition has been read up to `position`. Returns True if that is its end, which was not
        reached before.
        """
        if partition in self._over or position < self.of(partition):
            return False
        self._over.add(partition)
        return True

    def is_over(self, partition: int) -> bool:
        """Returns True if no record of the partition is left to read."""
        return partition in self._over or partition not in self.ends

    @property
    def over(self) -> tuple[int, ...]:
        """The partitions that have been read up to their ends."""
        return tuple(self._over)

    @property
    def reached(self) -> bool:
        """True if all partitions have been read up to their ends."""
        return len(self._over) == len(self.ends)

    def before(self, data: pa.RecordBatch) -> pa.RecordBatch:
        """Returns those records that come before the bound."""
        partitions, offsets = data.column("partition").to_numpy(), data.column("offset").to_numpy()
        limits = np.zeros(int(partitions.max()) + 1, np.int64)
        for partition, end in self.ends.items():
            if partition < len(limits):
                limits[partition] = end
        return data.filter(pa.array(offsets < limits[partitions]))

    @property
    def _said(self) -> str:
        return repr(self.asked)
