"""All interleavings of workers that hand over a tree of jobs: a model of `postgres_workers`, and faults that it must find.

The job "p" begins its child "c", and waits for a letter. "c" makes one unsafe call. Two workers and a third, which starts at any time
and lives, hold the tree in turn. One of the first two is killed, one is paused beyond its lease, one leaves, the clock of the
server jumps, and a server that takes its place has lost the last commit: one or two of these in a run, each at any moment. A commit
under way may arrive when its process is paused or dead.
"""

from collections.abc import Iterator
from itertools import combinations
from typing import NamedTuple

import pytest

NOBODY, REFUSED = -1, -3
WORKERS = 0, 1, 2
LATER = 2  # the number of the worker that is never killed
Entries = tuple[str, ...]
BEHIND = {"I": {"Bc"}, "R": {"I"}, "Ec": {"R"}, "Ep": {"A", "Ec"}}  # the entries that each one needs before itself
EARLY = "a tree is given back before its entries are durable"


class State(NamedTuple):
    """Each tuple has a value for each worker. process: new, runs, paused, leaves, dead or left. sure: by its own clock it has its
    lease. over: by the clock of the server its lease is over. gone: it was declared dead. earlier: and may still send calls.
    memory: the jobs in it. seen: the entries that it has read or written. pending: those that it has appended. fresh: it has written
    that the call comes next, and has not made it. calls: its call is under way. passed: it looks for letters behind the letter only.
    holders: of "p" and "c", in the tables. lost: the worker whose last entry the server has lost.
    """

    process: tuple[str, ...] = ("runs", "runs", "new")
    sure: tuple[bool, ...] = (True, True, True)
    over: tuple[bool, ...] = (False, False, False)
    gone: tuple[bool, ...] = (False, False, False)
    earlier: tuple[bool, ...] = (False, False, False)
    memory: Entries = ("p", "", "")
    seen: tuple[frozenset[str], ...] = (frozenset(), frozenset(), frozenset())
    pending: tuple[Entries, ...] = ((), (), ())
    fresh: tuple[bool, ...] = (False, False, False)
    calls: tuple[bool, ...] = (False, False, False)
    passed: tuple[bool, ...] = (False, False, False)
    holders: tuple[int, int] = (0, NOBODY)
    log: tuple[tuple[str, int], ...] = ()
    made: int = 0
    lost: int = NOBODY
    letter: str = ""  # "", drawn (it has its number, and its transaction runs), posted or taken
    letter_to: int = NOBODY
    refused: frozenset[int] = frozenset()
    left: frozenset[str] = frozenset(("kill", "pause", "leave", "jump"))  # what may still happen

    def at(self, worker: int, **changes: object) -> "State":
        """The state in which this worker has these values."""
        whole = {}
        for name, value in changes.items():
            before = getattr(self, name)
            whole[name] = (*before[:worker], value, *before[worker + 1 :])
        return self._replace(**whole)

    def without(self, event: str) -> "State":
        return self._replace(left=self.left - {event})

    def dropped(self, worker: int, process: str) -> "State":
        """The state in which this worker has nothing in memory any more."""
        return self.at(worker, process=process, memory="", fresh=False, calls=False)

    @property
    def written(self) -> list[str]:
        return [entry for entry, _ in self.log]


class Model:
    """What may happen next. fault: which guard is missing. refuses: workers whose code cannot continue the tree."""

    def __init__(self, fault: str = "", refuses: frozenset[int] = frozenset()) -> None:
        self.fault, self.refuses = fault, refuses

    def next(self, state: State) -> Iterator[State]:
        if not state.letter:
            yield state._replace(letter="drawn")
        if state.letter == "drawn":
            yield state._replace(letter="posted", letter_to=state.holders[0])
        if "lose" in state.left:
            yield from self._lose(state)
        for worker in WORKERS:
            process = state.process[worker]
            if process == "new":
                yield state.at(worker, process="runs")
                continue
            yield from self._outside(state, worker, process)
            if state.pending[worker] and not (process == "dead" and state.gone[worker]):
                yield self._commit(state, worker)
            if process in ("runs", "leaves"):
                yield from self._pass(state, worker)
                yield from self._lease(state, worker)
                yield from self._work(state, worker, process == "runs")
            if process == "runs" or (process == "leaves" and self.fault == "a leaving worker takes"):
                yield from self._take(state, worker)
            if process == "leaves":
                yield from self._leave(state, worker)

    def _outside(self, state: State, worker: int, process: str) -> Iterator[State]:
        if worker != LATER and process in ("runs", "leaves", "paused") and "kill" in state.left:
            yield state.dropped(worker, "dead").at(worker, sure=False).without("kill")
        if worker != LATER and process == "runs":
            if "pause" in state.left:
                yield state.at(worker, process="paused").without("pause")
            if "leave" in state.left:
                yield state.at(worker, process="leaves").without("leave")
        if process == "paused":
            yield state.at(worker, process="runs")
            if state.sure[worker]:
                yield state.at(worker, sure=False, over=True)
        if "jump" in state.left and process in ("runs", "leaves"):
            yield state.at(worker, over=True).without("jump")

    def _lose(self, state: State) -> Iterator[State]:
        """The server loses its last commit. Not one of a call, whose effect is then known to nobody: no guard helps."""
        for entry, writer in state.log[-1:]:
            holder = state.holders[entry == "Ec"]
            if entry in ("Bc", "A", "Ec") and writer == holder and writer != LATER and not state.gone[writer]:
                lost = state._replace(log=state.log[:-1], lost=writer).without("lose")
                holders = (holder, NOBODY) if entry == "Bc" else state.holders
                yield lost._replace(holders=holders, letter="posted" if entry == "A" else state.letter)

    def _pass(self, state: State, worker: int) -> Iterator[State]:
        """A look of a worker finds no letter, and the next one looks behind the number of the letter. Where nothing is missing, it
        passes over no number whose transaction runs, nor over that of a letter which waits for any worker.
        """
        runs = self.fault == "a letter that does not wake" and state.letter == "drawn"
        elsewhere = state.letter == "posted" and state.holders[0] != worker
        if runs or (self.fault == "a give-back that does not look for letters" and elsewhere):
            yield state.at(worker, passed=True)

    def _lease(self, state: State, worker: int) -> Iterator[State]:
        """It renews its lease, or its own clock says that it is over, since it can renew it no more."""
        if self._has_lost(state, worker):
            yield self._failed(state, worker)
        elif not state.gone[worker] and (state.over[worker] or not state.sure[worker]):
            yield state.at(worker, over=False, sure=True)
        if state.gone[worker]:
            yield state.at(worker, sure=False).dropped(worker, "dead").at(worker, pending=())

    def _has_lost(self, state: State, worker: int) -> bool:
        """Its session has broken, and it asks the server for its last entry, which is missing."""
        return state.lost == worker and self.fault != "a check of places that only the client makes"

    def _failed(self, state: State, worker: int) -> State:
        return state.dropped(worker, "dead").at(worker, pending=(), sure=False)

    def _commit(self, state: State, worker: int) -> State:
        entries, holders, memory = state.pending[worker], state.holders, state.memory[worker]
        gone = state.gone[worker] and self.fault != "no fence"
        theirs = holders[0] != worker and self.fault not in ("no fence", EARLY)  # a tree has one holder
        if gone or theirs or self._has_lost(state, worker):
            return self._failed(state, worker)
        if "Bc" in entries:
            holders, memory = (holders[0], worker), memory + "c" * (memory == "p")
        fresh = state.fresh[worker] or (("I" in entries or "N" in entries) and "c" in memory)
        after = state.at(worker, pending=(), memory=memory, seen=state.seen[worker] | set(entries), fresh=fresh)
        letter = "taken" if "A" in entries else state.letter
        return after._replace(log=(*state.log, *((entry, worker) for entry in entries)), holders=holders, letter=letter)

    def _work(self, state: State, worker: int, begins: bool) -> Iterator[State]:
        """What the jobs in its memory do. A leaving worker begins no effect."""
        seen, memory, pending = state.seen[worker], state.memory[worker], state.pending[worker]
        known = seen | set(pending)

        def append(entry: str) -> State:
            return state.at(worker, pending=(*pending, entry))

        if state.calls[worker]:
            yield append("R").at(worker, calls=False) if "c" in memory else state.at(worker, calls=False)
        if "p" in memory:
            if "Bc" not in known and begins:
                yield append("Bc")
            to = state.letter_to if self.fault == "a letter to who held it when it was posted" else state.holders[0]
            if state.letter == "posted" and to == worker and "A" not in known and not state.passed[worker]:
                yield append("A")
            if {"A", "Ec"} <= seen and "Ep" not in known:
                yield append("Ep")
        if "c" not in memory:
            return
        if "R" in seen and "Ec" not in known:
            yield append("Ec")
        if not begins or "R" in known or state.calls[worker]:
            return
        if "I" not in known:
            yield append("I")
        sure = state.sure[worker] or self.fault == "a call without a look at the lease"
        early = self.fault == "a call before its intent is durable" and "I" in pending
        if (state.fresh[worker] or early) and sure:
            yield state.at(worker, calls=True, fresh=False)._replace(made=min(2, state.made + 1))
        if "I" in seen and not state.fresh[worker] and "N" not in pending:  # in doubt
            if self.fault == "what is in doubt is called again":
                yield state.at(worker, calls=True)._replace(made=min(2, state.made + 1))
            sends = any(state.earlier[other] and state.sure[other] for other in WORKERS if other != worker)
            if not sends or self.fault == "a doubt that waits for no earlier worker":
                yield append("R" if state.made else "N")  # somebody looks there

    def _take(self, state: State, worker: int) -> Iterator[State]:
        for other in {0, 1} - {worker}:
            ended = state.process[other] in ("dead", "left")
            if not state.gone[other] and (
                ended or state.over[other] or self.fault == "reaping without a look at the lease"
            ):
                earlier = not ended and self.fault != "a lease that is over counts as an end"
                pending = () if ended else state.pending[other]  # its sessions are ended
                yield state.at(other, gone=True, earlier=earlier, pending=pending)
        if state.gone[worker] or "Ep" in state.written:
            return
        takes = [
            number
            for number, holder in enumerate(state.holders)
            if (holder in WORKERS and state.gone[holder])
            or (holder == NOBODY and (number == 0 or "Bc" in state.written))
            or (holder == REFUSED and worker not in state.refused)
        ]
        if not takes:
            return
        for chosen in [takes, takes[:1], takes[1:]] if self.fault == "a part of a tree is taken" else [takes]:
            if worker in self.refuses:
                to = worker if self.fault == "a refused tree is kept" else REFUSED
                holders = tuple(to if number in chosen else holder for number, holder in enumerate(state.holders))
                yield state._replace(holders=holders, refused=state.refused | {worker})  # type: ignore[arg-type]
                continue
            holders = tuple(worker if number in chosen else holder for number, holder in enumerate(state.holders))
            memory = "".join(job for number, job in enumerate("pc") if number in chosen or job in state.memory[worker])
            taken = state.at(worker, memory=memory, seen=frozenset(state.written), fresh=False)
            yield taken._replace(holders=holders)  # type: ignore[arg-type]

    def _leave(self, state: State, worker: int) -> Iterator[State]:
        durable = not state.pending[worker] or self.fault.startswith(EARLY)
        if state.memory[worker] and not state.calls[worker] and durable:
            holders = tuple(NOBODY if holder == worker else holder for holder in state.holders)
            if not state.gone[worker]:
                yield state.at(worker, memory="", fresh=False)._replace(holders=holders)  # type: ignore[arg-type]
        if not state.memory[worker] and not state.pending[worker]:
            yield state.at(worker, process="left", gone=True, sure=False)


def broken(state: State) -> str:
    """What is wrong in a state, or ""."""
    if state.made > 1:
        return "an unsafe call was made twice"
    for number, entry in enumerate(state.written):
        if not BEHIND.get(entry, set()).issubset(state.written[:number]):
            return "an entry is behind one that was lost"
    once = [entry for entry in state.written if entry != "N"]
    if len(set(once)) < len(once):
        return "an entry, or a letter, is there twice"
    writers = [writer for _, writer in state.log]
    turns = [writer for before, writer in zip([None, *writers], writers, strict=False) if writer != before]
    return "two holders have written in turns" if len(set(turns)) < len(turns) else ""


def walked(model: Model, *events: str) -> tuple[int, str]:
    """The number of states, and what is wrong in one of them: also that the first job ends in no way from there. events: what
    happens, each once.
    """
    first = State(left=frozenset(events))
    before: dict[State, list[State]] = {first: []}
    waiting, ends = [first], list[State]()
    while waiting:
        state = waiting.pop()
        if wrong := broken(state):
            return len(before), wrong
        if "Ep" in state.written:
            ends.append(state)
            continue
        for following in model.next(state):
            if following not in before:
                before[following] = []
                waiting.append(following)
            before[following].append(state)
    live, waiting = set(ends), ends
    while waiting:
        for state in before[waiting.pop()]:
            if state not in live:
                live.add(state)
                waiting.append(state)
    return len(before), "" if len(live) == len(before) else "nobody goes on with the tree"


@pytest.mark.parametrize("event", ["kill", "pause", "jump", "leave", "lose"])
def test_no_way_of_one_event_breaks_anything(event: str) -> None:
    states, wrong = walked(Model(), event)
    assert wrong == ""
    assert states > 1_500


@pytest.mark.slow  # seconds of a core each
@pytest.mark.parametrize("events", [*combinations(("kill", "pause", "leave", "jump", "lose"), 2)], ids="-".join)
def test_no_way_of_two_events_breaks_anything(events: tuple[str, str]) -> None:
    states, wrong = walked(Model(), *events)
    assert wrong == ""
    assert states > 10_000


FAULTS: dict[str, tuple[tuple[str, ...], str]] = {  # the events with which it is found, and what breaks first
    "no fence": (("pause",), "an entry, or a letter, is there twice"),
    "a letter to who held it when it was posted": (("kill",), "nobody goes on with the tree"),
    "a call without a look at the lease": (("pause",), "an unsafe call was made twice"),
    "a call before its intent is durable": (("kill",), "an unsafe call was made twice"),
    "what is in doubt is called again": (("kill",), "an unsafe call was made twice"),
    "a doubt that waits for no earlier worker": (("jump",), "an unsafe call was made twice"),
    "a lease that is over counts as an end": (("jump",), "an unsafe call was made twice"),
    "a part of a tree is taken": (
        ("kill",),
        "nobody goes on with the tree",
    ),  # no commit of either of its holders is made
    EARLY: (("leave",), "an entry, or a letter, is there twice"),
    "a leaving worker takes": (("leave", "kill"), "two holders have written in turns"),
    "a letter that does not wake": (("kill",), "nobody goes on with the tree"),
    "a give-back that does not look for letters": (("leave",), "nobody goes on with the tree"),
    "a check of places that only the client makes": (("lose",), "an entry is behind one that was lost"),
}


@pytest.mark.one_in(3, "a third of a second of a core each")
@pytest.mark.parametrize("fault", FAULTS)
def test_each_planted_fault_is_found(fault: str) -> None:
    events, wrong = FAULTS[fault]
    assert walked(Model(fault), *events)[1] == wrong


def test_a_commit_that_looks_at_the_holders_stops_a_worker_that_gives_a_tree_back_too_early() -> None:
    assert walked(Model(f"{EARLY}, and commits look at who has their jobs"), "leave")[1] == ""


@pytest.mark.parametrize("event", ["kill", "leave"])
def test_a_tree_that_the_code_of_a_worker_refuses_goes_on_in_another(event: str) -> None:
    refuses = frozenset({1})
    assert walked(Model(refuses=refuses), event)[1] == ""
    assert walked(Model("a refused tree is kept", refuses), event)[1] == "nobody goes on with the tree"
