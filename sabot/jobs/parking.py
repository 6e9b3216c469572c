"""Jobs that wait for something long. They hold no coroutine and no task; the journal has what they have done.

quiet, all that is open takes long ─▶ Parked ─ timer, answer, signal, cancel ─▶ its owner lets it run ─▶ its history is read ─▶ it runs
"""

from collections import deque
from dataclasses import dataclass
from functools import partial

from sabot.jobs.asking import answered
from sabot.jobs.history import Delivery
from sabot.jobs.owner import Desk, Live
from sabot.jobs.recovery import whole_entries
from sabot.journal import EffectResult, Entry, Position, Signal

__all__ = ["Parking"]

_LOADS = 16  # histories that are read at once


@dataclass(slots=True, eq=False)
class _Parked:
    """agent: its id. waits: names of signals. timers, questions: ordinals of timers, and of questions with a deadline. woken: its owner was
    told that it is to run.
    """

    agent: str
    waits: tuple[str, ...]
    timers: tuple[int, ...]
    questions: tuple[int, ...]
    woken: bool = False


class Parking:
    """The jobs of a host that are parked, and those whose history is being read."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._parked: dict[str, _Parked] = {}
        self._loading: dict[str, list[tuple[Position, Entry]]] = {}  # what has come for it meanwhile
        self._to_load: deque[str] = deque()
        self._loads = 0

    @property
    def parked(self) -> int:
        """How many are parked."""
        return len(self._parked)

    @property
    def loading(self) -> int:
        """How many are being read."""
        return len(self._loading)

    def __contains__(self, job_id: str) -> bool:
        return job_id in self._parked or job_id in self._loading

    def is_loading(self, job_id: str) -> bool:
        """Its history is being read."""
        return job_id in self._loading

    def awaits(self, job_id: str, ordinal: int) -> bool:
        """Whether a timer of this ordinal is awaited, as far as is known."""
        parked = self._parked.get(job_id)
        return job_id in self._loading or (
            parked is not None and (ordinal in parked.timers or ordinal in parked.questions)
        )

    def asks(self, job_id: str, ordinal: int) -> bool:
        """Whether this is a question of a parked job."""
        parked = self._parked.get(job_id)
        return parked is not None and ordinal in parked.questions

    def park(self, live: Live, agent_id: str) -> None:
        """The job holds nothing any more but a small record."""
        asks = live.job.open.values()
        self._parked[live.job.job_id] = _Parked(
            agent_id,
            tuple(ask.name for ask in asks if ask.kind == "wait"),
            tuple(ask.ordinal for ask in asks if ask.due_ms and ask.kind == "sleep"),
            tuple(ask.ordinal for ask in asks if ask.due_ms and ask.kind == "ask"),
        )
        live.job.discard()
        live.owner.parked(live.job.job_id)

    def arrived(self, position: Position, entry: Delivery) -> None:
        """An entry has come for a job that is not in memory."""
        job_id = entry.job
        if job_id in self._loading:
            self._loading[job_id].append((position, entry))
            return
        parked = self._parked.get(job_id)
        if parked is None:
            return  # it has ended
        if isinstance(entry, EffectResult):
            parked.timers = tuple(each for each in parked.timers if each != entry.ordinal)
        if parked.woken or (isinstance(entry, Signal) and entry.name not in parked.waits):
            return  # the journal has it: it comes when the job runs
        parked.woken = True
        owner = self._desk.owner_of(parked.agent)
        assert owner is not None
        owner.woken(job_id)

    def wake(self, job_id: str) -> None:
        """A parked job may run."""
        del self._parked[job_id]
        self.load(job_id)

    def load(self, job_id: str) -> None:
        """Its history is read; then it runs over that."""
        self._loading[job_id] = []
        self._to_load.append(job_id)
        if self._loads < _LOADS:
            self._loads += 1
            self._desk.beside(self._read(), "the reading of histories of jobs")

    async def _read(self) -> None:
        try:
            while self._to_load:
                job_id = self._to_load.popleft()
                await self._desk.journal.flush()  # what woke the job must be among what is read
                entries = await answered(whole_entries, self._desk.journal, job_id)
                self._desk.put(partial(self._loaded, job_id, entries))
        finally:
            self._loads -= 1

    def _loaded(self, job_id: str, entries: list[tuple[Position, Entry]]) -> None:
        behind = self._loading.pop(job_id)
        last = entries[-1][0] if entries else None
        entries += [each for each in behind if last is None or each[0] > last]
        self._desk.resumed(job_id, entries)
