"""Places with dead letters: the contract of a place (`Home`), and its dead letters in order (`Letters`)."""

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import replace
from heapq import merge
from typing import TypeAlias

from sabot.engine.letters.form import DeadLetter
from sabot.errors import DataError, UserError

# read at once from the newest on: the first block, and the aim for the next ones
_BLOCK_LETTERS, _BLOCK_BYTES = 50, 4 << 20

LetterTime: TypeAlias = tuple[int, int, int]
"""The place of a dead letter in the order of time: the time (ms since 1970), the partition, and the offset."""


class Ranges:
    """A set of offsets, as sorted ranges that do not touch."""

    def __init__(self) -> None:
        self._first: list[int] = []
        self._last: list[int] = []

    def add(self, first: int, last: int) -> None:
        """Adds all offsets from `first` to `last`, both included."""
        at = bisect_right(self._first, first)
        if at and self._last[at - 1] >= first - 1:
            at -= 1
            first = self._first[at]
        end = bisect_right(self._first, last + 1)
        if end > at:
            last = max(last, self._last[end - 1])
        self._first[at:end], self._last[at:end] = [first], [last]

    def __contains__(self, offset: int) -> bool:
        at = bisect_right(self._first, offset)
        return at > 0 and self._last[at - 1] >= offset

    def copy(self) -> "Ranges":
        """Returns an equal set."""
        other = Ranges()
        other._first, other._last = list(self._first), list(self._last)
        return other

    def behind(self, offset: int) -> int:
        """Returns the first offset, from `offset` on, that is not in the set."""
        at = bisect_right(self._first, offset)
        return self._last[at - 1] + 1 if at and self._last[at - 1] >= offset else offset

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(zip(self._first, self._last, strict=True))


class Home(ABC):
    """A place with dead letters, as it was when it was opened. Its methods block, and are called from one thread."""

    name: str
    """The name of the topic, the path of the file, or the name of the table."""
    words: str
    """The kind and the name of the place, for messages."""
    id: str
    """The id of the place. A place that is made later under the same name has another id."""
    bounds: dict[int, tuple[int, int]]
    """The first offset of each partition, and the offset after its last."""
    grows_at_its_end: bool
    """True if later dead letters always have greater offsets than earlier ones."""

    @abstractmethod
    def read(self, partition: int, first: int, end: int) -> Iterator[DeadLetter]:
        """Yields the dead letters of a partition with first <= offset < end, by offset."""

    @abstractmethod
    def before(self, partition: int, end: int, count: int) -> int:
        """Returns an offset before `end`, at least 0. From there to `end` are about `count` dead letters, and at least one if any is
        before `end`, unless offsets are missing.
        """

    @abstractmethod
    def close(self) -> None:
        """Closes the place. May be called twice."""


class Letters:
    """The dead letters of a place as they were when it was opened. Methods block, and are called from one thread.
    `close` it at the end.

    Dead letters that come while the place is read are left out: a record that fails again would otherwise be redriven
    for ever.
    """

    def __init__(self, home: Home) -> None:
        self.home = home
        self.redriven: dict[int, Ranges] = {index: Ranges() for index in home.bounds}

    def letters(self, *, redriven: bool = False, after: tuple[int, int] = (-1, -1)) -> Iterator[DeadLetter]:
        """Yields the dead letters by partition and offset. `redriven`: True includes those that were redriven before.
        `after`: the place behind which to begin.
        """
        for index, (_, end) in sorted(self.home.bounds.items()):
            if index < after[0]:
                continue
            done, begin = self.redriven[index], self.begin(index, redriven=redriven)
            for letter in self.home.read(index, max(begin, after[1] + 1) if index == after[0] else begin, end):
                if redriven or letter.offset not in done:
                    yield replace(letter, redriven=letter.offset in done)

    def newest(self, *, redriven: bool = False) -> "Iterator[tuple[LetterTime, DeadLetter]]":
        """Yields the dead letters, the one that was written last first, each with its place in this order. `redriven`: as in `letters`.
        Only blocks of some megabytes are read at once, one of each partition.
        """
        parts = (self._backwards(index, redriven) for index in sorted(self.home.bounds))
        return merge(*parts, key=lambda each: each[0], reverse=True)

    def _backwards(self, partition: int, redriven: bool) -> "Iterator[tuple[LetterTime, DeadLetter]]":
        begin, end = self.begin(partition, redriven=redriven), self.home.bounds[partition][1]
        done, count, time = self.redriven[partition], _BLOCK_LETTERS, 1 << 62
        while begin < end:
            first = max(begin, self.home.before(partition, end, count))
            block = list(self.home.read(partition, first, end))
            for letter in reversed(block):
                time = min(time, letter.timestamp)  # writers may be behind each other a little
                if redriven or letter.offset not in done:
                    yield (time, partition, letter.offset), replace(letter, redriven=letter.offset in done)
            nbytes = sum(len(each.payload or b"") for each in block)
            count = max(1, min(2 * count, _BLOCK_BYTES * count // max(1, nbytes)))
            end = first

    def begin(self, partition: int, *, redriven: bool = False) -> int:
        """Returns the offset at which reading of a partition begins: its first offset, or, unless `redriven`, the
        first one behind the dead letters that were redriven from its beginning on.
        """
        first, _ = self.home.bounds[partition]
        return first if redriven else self.redriven[partition].behind(first)

    def before(self, letter: DeadLetter) -> tuple[str, str] | None:
        """Returns the name and the place of the dead letter that a record was before it was sent back, or None. A row of a step has no
        headers: those of its record are read from the topic, if the place of the record is known and the broker still has it.
        """
        topic, partition, offset = letter.facts.get("topic"), letter.number("partition"), letter.number("offset")
        if letter.before is not None or "step" not in letter.facts or not topic or partition is None or offset is None:
            return letter.before
        try:
            record = self.record(topic, partition, offset)
        except (UserError, DataError):  # there is no such topic any more, or no such record
            return None
        return None if record is None else record.before

    def record(self, topic: str, partition: int, offset: int) -> DeadLetter | None:
        """Returns a record of a topic of the broker, or None. Raises UserError and DataError if it is not there any more."""
        return None

    def find(self, partition: int, offset: int) -> DeadLetter:
        """Returns the dead letter at this place. Raises UserError if there is none."""
        first, end = self.home.bounds.get(partition, (0, 0))
        if first <= offset < end:
            for letter in self.home.read(partition, offset, offset + 1):
                return replace(letter, redriven=offset in self.redriven[partition])
        held = ", ".join(
            f"{index}:{first} to {index}:{end - 1}" for index, (first, end) in self.home.bounds.items() if first < end
        )
        raise UserError(
            f"{self.home.words} has no dead letter at {partition}:{offset}",
            hint=f"it holds {held}" if held else "it is empty",
        )

    def close(self) -> None:
        """Closes the place. May be called twice."""
        self.home.close()
