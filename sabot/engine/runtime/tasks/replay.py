"""The second reading of sources up to the positions of a checkpoint, by which state is computed again.

Each reader stops where the reader of its task stood at the checkpoint. Then it emits the watermark that this reader had emitted, and
not the one of its rows alone: idle partitions, or other readers of the source, may have let it go further. So a window is closed
after the replay if it was closed at the checkpoint, and a result that has come out does not come out again.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sabot._cython.flow.channel import IDLE, Watermark
from sabot.connectors.base import Positions, TakesBound
from sabot.engine.checkpoint import Manifest
from sabot.engine.operators.base import START_OF_TIME
from sabot.engine.runtime.tasks.reading import SourceInput
from sabot.errors import UserError


class Replay:
    """One replay. `steps`: the ids of the steps whose state is computed. `manifest`: the checkpoint. `idle_ms`:
    by the name of a source, the time after which its partitions are idle. `on_end`: called, in a reader's thread, when all readers
    have come to their positions.
    """

    def __init__(
        self,
        steps: frozenset[str],
        manifest: Manifest,
        idle_ms: Mapping[str, int],
        on_end: Callable[[], None],
    ) -> None:
        self.steps = steps
        self.manifest = manifest
        self._idle_ms = idle_ms
        self._on_end = on_end
        self._left: set[str] = set()
        self._armed = False
        self._lock = threading.Lock()

    def begin(self, task: str, reader: SourceInput) -> None:
        """Adds a reader, which is open and has read nothing. It reads nothing if the checkpoint does not know its source, which
        the app then reads from its start. Raises UserError if its source no longer has its first rows.
        """
        tasks = (each for each in self.manifest.tasks.values() if "operators" in each.meta)
        known = any(each.meta["input"].get("source") == reader.name for each in tasks)
        for (topic, partition), offset in reader.positions.items():
            if offset and known and isinstance(reader.source, TakesBound):  # the parts of a file do not begin at 0
                raise UserError(
                    f"{topic}[{partition}] begins at {offset} now: its first rows are gone, and so the state cannot be computed again",
                    hint="give the state up (--drop), or run the program that wrote the checkpoint",
                )
        with self._lock:
            self._left.add(task)
        reader.replay_to(lambda: self._end(task, reader), reads=known)

    def begun(self) -> None:
        """Says that all readers are added."""
        with self._lock:
            self._armed = True
            over = not self._left
        if over:
            self._on_end()

    def _end(self, task: str, reader: SourceInput) -> Sequence[Any] | None:
        """Returns the marks of the checkpoint's reader, or None if its task had ended. Called when the reader is at its end."""
        stored = self.manifest.tasks.get(task)
        if stored is None:  # the checkpoint has no reader of this number: its partitions came later
            self._over(task)
            return []
        facts = stored.meta["input"]
        reached: Positions = {(topic, partition): offset for topic, partition, offset in facts["positions"]}
        for place, offset in reader.positions.items():
            if offset != reached.get(place, 0):
                raise UserError(
                    f"{place[0]}[{place[1]}] was read up to {offset}, and the checkpoint is at {reached.get(place, 0)}: only a topic, "
                    "and files that were read to their ends and have not changed since, can be read once more",
                    hint="give the state up (--drop), or run the program that wrote the checkpoint",
                )
        self._over(task)
        if stored.meta["ended"]:
            return None
        idle_ms = self._idle_ms.get(facts["source"], 0)
        silent = facts.get("silent_ms", [])
        idle = bool(silent) and all(ms >= idle_ms for _, _, ms in silent)
        marks: list[Any] = [Watermark(facts["watermark_ms"])] if facts["watermark_ms"] > START_OF_TIME else []
        return [*marks, IDLE] if idle else marks

    def _over(self, task: str) -> None:
        with self._lock:
            self._left.discard(task)
            over = self._armed and not self._left
        if over:
            self._on_end()
