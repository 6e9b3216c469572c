"""Finds the dead letters whose records a running app would find too late, before they are sent back.

A record keeps its event time. The checkpoint has the watermark that each source had reached, so a record whose event
time is behind it is late again; the app may have gone further meanwhile.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import pyarrow as pa

from sabot.api.nodes.node import Node, walk
from sabot.api.nodes.read import Read, StreamEnd
from sabot.api.windows import SessionWindow
from sabot.codecs import Codec
from sabot.codecs.base import decode_records
from sabot.codecs.records import build_records
from sabot.engine.checkpoint.manifest import Manifest
from sabot.engine.letters.form import DeadLetter
from sabot.engine.letters.places import Ranges
from sabot.engine.operators.base import START_OF_TIME
from sabot.engine.operators.windows.panes import shape_of
from sabot.engine.runtime.life.restore import columns_at, readers_in
from sabot.engine.runtime.tasks.event_time import SourceTime, source_time
from sabot.engine.runtime.tasks.source_codec import codec_of

_READ = 2000  # dead letters that are decoded together


@dataclass
class LateAtStep:
    """The dead letters that would be late for one step. `late_ms`: the greatest lateness. `goes_to`: the name of the
    place in `late=` of the step, or "" if the step drops late rows. `is_window`: True if the step has an
    `allowed_lateness=`.
    """

    step: str
    goes_to: str
    is_window: bool
    letters: int = 0
    late_ms: int = 0


@dataclass
class LateAgain:
    """The dead letters of a place that would be late. `read`: the number of dead letters that were looked at. `late`:
    the number of those that would be late for a step.
    """

    read: int = 0
    late: int = 0
    steps: list[LateAtStep] = field(default_factory=list)
    _places: dict[int, Ranges] = field(default_factory=dict)

    def __contains__(self, letter: DeadLetter) -> bool:
        """Returns True if a step would find the record of this dead letter late."""
        return letter.partition in self._places and letter.offset in self._places[letter.partition]

    def add(self, letter: DeadLetter) -> None:
        """Adds a dead letter that would be late."""
        self.late += 1
        self._places.setdefault(letter.partition, Ranges()).add(letter.offset, letter.offset)


def late_again(ends: Iterable[StreamEnd], restored: Manifest, letters: Iterable[DeadLetter], to: str = "") -> LateAgain:
    """Returns which of the dead letters would be late for steps of an app at the watermarks of a checkpoint.

    `to`: the topic to which they are to be sent, or "" for the one that each came from. A record that the stream of its
    topic cannot decode, or that has no event time, is not late.
    """
    ends = list(ends)
    streams = [_Stream(node, ends, restored) for node in walk(ends) if isinstance(node, Read)]
    found = LateAgain()
    waiting = iter(letters)
    while some := list(islice(waiting, _READ)):
        found.read += len(some)
        for stream in streams:
            of_topic = [letter for letter in some if stream.steps and (to or letter.facts.get("topic")) == stream.name]
            for letter, time in stream.times(of_topic):
                stream.judge(found, letter, time)
    found.steps = [each for stream in streams for each, _ in stream.steps if each.letters]
    return found


class _Stream:
    """A stream of an app, with the steps that its rows reach by their own event time."""

    def __init__(self, node: Read, ends: Sequence[StreamEnd], restored: Manifest) -> None:
        self.name = node.name
        self.steps = list(_steps_behind(node, ends, restored))
        readers = readers_in(restored, node.name)
        schema = columns_at(node, restored)
        self._codec: Codec | None = None
        self._time: SourceTime | None = None
        if schema is not None and self.steps:
            known = replace(node, schema=schema)
            self._codec = codec_of(known, known.columns or schema, readers, refresh=False)
            self._time = source_time(known)

    def times(self, letters: Sequence[DeadLetter]) -> list[tuple[DeadLetter, int]]:
        """Returns the event times in ms of those records that have one."""
        if self._codec is None or not letters:
            return []
        stamps = [known if (known := each.number("timestamp")) is not None else each.timestamp for each in letters]
        records = build_records(
            [each.payload for each in letters],
            [each.key for each in letters],
            stamps,
            0,
            range(len(letters)),
            [each.headers for each in letters],
        )
        data, records, _ = decode_records(self._codec, records)
        times: pa.Array = records.column("timestamp") if self._time is None else self._time.of(data, records)[0]
        rows = zip(records.column("offset").to_pylist(), times.to_pylist(), strict=True)
        return [(letters[row], time) for row, time in rows if time is not None]

    def judge(self, found: LateAgain, letter: DeadLetter, time: int) -> None:
        """Adds the dead letter to `found` if a step would find it late."""
        late = False
        for step, late_ms in self.steps:
            by = late_ms(time)
            if by > 0:
                late = True
                step.letters += 1
                step.late_ms = max(step.late_ms, by)
        if late and letter not in found:
            found.add(letter)


def _steps_behind(
    read: Read, ends: Sequence[StreamEnd], restored: Manifest
) -> Iterable[tuple[LateAtStep, Callable[[int], int]]]:
    """Yields the steps with late rows that the rows of a stream reach with their event time, each with a function from
    an event time to the lateness in ms of a row with that time (0 or less: in time).
    """
    reached = {id(read)}
    for node in walk(ends):
        before = [place for place, each in enumerate(node.inputs) if id(each) in reached]
        if not before:
            continue
        if "late" in vars(node) and node.needs_time:
            watermark = min(_watermark(each, restored) for each in walk([node]) if isinstance(each, Read))
            if watermark > START_OF_TIME:
                given = vars(node)["late_right" if before == [1] and "late_right" in vars(node) else "late"]
                name = given if isinstance(given, str) else getattr(given, "name", "")
                step = LateAtStep(node.text(), name or "", "allowed_lateness_ms" in vars(node))
                yield step, _lateness_of(node, watermark)
        elif node.keeps_time and not node.gives_time:
            reached.add(id(node))


def _watermark(read: Read, restored: Manifest) -> int:
    """Returns the watermark of a stream in the checkpoint, in ms."""
    readers: Iterable[Mapping[str, Any]] = readers_in(restored, read.name)
    return min((facts["watermark_ms"] for facts in readers), default=START_OF_TIME)


def _lateness_of(node: Node, watermark_ms: int) -> Callable[[int], int]:
    """Returns the function from an event time to the time in ms by which the step has passed the last result with such
    a row.
    """
    window = vars(node).get("window")
    if window is None:
        return lambda time: watermark_ms - time
    over_ms = watermark_ms - vars(node).get("allowed_lateness_ms", 0)
    if isinstance(window, SessionWindow):
        return lambda time: over_ms - (time + window.gap_ms) + 1
    shape = shape_of(window)
    return lambda time: over_ms - shape.last_end(shape.pane(time)) + 1
