"""Trees of jobs under a model checker: all interleavings of a job with two children, one of which has a child of its own, with the turns
of the children, a timeout, a cancel, the calls of the leaves and a crash, which may cut any step short. The model has no host, no clock
and no event loop; scripts stand in for the functions of the jobs.
"""

from collections import deque
from collections.abc import Iterator
from copy import copy, deepcopy
from dataclasses import dataclass, field
from typing import Any

import pytest
from unit.jobs.test_core import Broken, walk

from sabot.api.child_limits import ChildLimits
from sabot.engine.calls.certainty import Certainty
from sabot.engine.calls.effects import EffectId
from sabot.jobs import core
from sabot.jobs.core import DONE, OPEN, EffectState, Outcome
from sabot.jobs.history import NOT_MADE, History
from sabot.jobs.tree import JobTree, child_id, parent_of
from sabot.journal.entries import Begin, Cancel, EffectResult, End, Entry

ROOT = "j"
AWAITED, BESIDE, TIMEOUT, CALL = ("child", "a"), ("child", "a"), ("sleep", ""), ("call", "put")
SCRIPTS = {ROOT: (AWAITED, BESIDE, TIMEOUT), "j~1": (AWAITED,), "j~2": (CALL,), "j~1~1": (CALL,)}
"""What each job asks for in its first turn. It waits for the first effect alone, the root no longer than its timeout."""
Event = tuple[str, str]


@dataclass
class Facts:
    job_id: str
    history: History
    key: bytes = b""


@dataclass
class Running:
    """A job in memory. `finished`: its function has returned or was cancelled."""

    effects: dict[int, EffectState]
    finished: bool = False


@dataclass
class Model:
    """The jobs of a host, and their journal. `waiting`: children whose agent has not added them. `coming`: added, and not begun. `loading`:
    open jobs that run over their history next. `step`: how many entries there were before the last event.
    """

    entries: list[Entry] = field(default_factory=lambda: [Begin(ROOT, 0, "a")])
    step: int = 1
    tree: JobTree = field(default_factory=JobTree)
    running: dict[str, Running] = field(default_factory=dict)
    waiting: frozenset[str] = frozenset()
    coming: frozenset[str] = frozenset()
    loading: frozenset[str] = frozenset()
    again: frozenset[str] = frozenset()
    flying: frozenset[str] = frozenset()
    items: deque[tuple[str, int]] = field(default_factory=deque)
    arriving: deque[Entry] | None = None
    cancels: int = 1
    crashes: int = 1

    # -- the journal --------------------------------------------------------------------------------------------------

    def of(self, job: str) -> list[Entry]:
        return [each for each in self.entries if each.job == job]

    def has(self, job: str, kind: type[Entry]) -> bool:
        return any(isinstance(each, kind) for each in self.entries if each.job == job)

    def append(self, entry: Entry) -> Entry:
        job, (parent, ordinal) = entry.job, parent_of(entry.job)
        if isinstance(entry, Begin | Cancel | End) and self.has(job, type(entry)):
            raise Broken(f"{job} has two {type(entry).__name__}")
        if isinstance(entry, End) and job in self.flying:
            raise Broken(f"{job} has ended during a call")
        if isinstance(entry, Cancel) and parent in self.running and not self.has(parent, Cancel):
            waits = self.running[parent]
            if not waits.finished and ordinal in waits.effects:
                raise Broken(f"{job} is cancelled, and its parent waits for it")
        if self.crashes and not isinstance(entry, Cancel):  # a crash may have cut the step short
            below = [each for each in self.open if self.has(parent_of(each)[0], Cancel) and not self.has(each, Cancel)]
            if below:
                raise Broken(f"{below[0]} is not told of a cancel in one step")
        self.entries.append(entry)
        return entry

    # -- the host, without I/O ----------------------------------------------------------------------------------------

    def start(self, job: str) -> None:
        """Runs the script over the history of the job."""
        history = History.of(job, self.of(job))
        effects = {
            at: EffectState(at, *asked, "idempotent" * (asked is CALL)) for at, asked in enumerate(SCRIPTS[job], 1)
        }
        now = self.running[job] = Running(effects)
        for ordinal in history.intents:
            effects[ordinal].phase, effects[ordinal].attempt = OPEN, history.attempt_of(history.intents[ordinal])
        for entry in history.deliveries:
            self.turn(job, entry)
        for effect in [each for each in effects.values() if each.phase is not DONE]:
            asked = "asked" if effect.ordinal in now.effects else "unawaited"
            if effect.recorded and asked == "asked":
                self.happened(job, effect, "resumed")
            elif not effect.recorded:
                self.happened(job, effect, asked)
        self.settle(job)

    def happened(self, job: str, effect: EffectState, event: core.EffectEvent) -> None:
        """As `Effects.step`."""
        entries, command = core.step(Facts(job, History.of(job, self.of(job))), effect, event, 0)
        for entry in entries:
            self.append(entry)
            if isinstance(entry, EffectResult):
                self.deliver([entry])
        match command.kind:
            case "begin":
                self.begin_child(job, effect)
            case "make":
                self.flying |= {job}
            case "doubt":
                self.happened(job, effect, "unsure")
            case "again":
                self.happened(job, effect, core.Judged(None))

    def begin_child(self, job: str, effect: EffectState) -> None:
        child = child_id(job, effect.ordinal)
        if child in self.tree:
            return
        refusal = self.tree.refusal(job, "a", cancelled=False)
        if refusal is not None:
            self.happened(job, effect, Outcome(EffectId(job, effect.ordinal), Certainty.DONE, refusal.type, b""))
        elif self.has(job, Cancel):
            raise Broken(f"{job} was cancelled, and begins {child}")
        else:
            self.tree.ask(child)
            self.waiting |= {child}

    def turn(self, job: str, entry: Entry) -> None:
        """Tells the script, which may drop effects."""
        now = self.running[job]
        dropped: list[int] = []
        if isinstance(entry, Cancel):
            now.finished = True
            dropped = [at for at in now.effects if SCRIPTS[job][at - 1] is not BESIDE or at == 1]
        elif isinstance(entry, EffectResult) and (effect := now.effects.pop(entry.ordinal, None)) is not None:
            effect.enter(DONE)
            now.finished |= entry.ordinal in (1, 3)
            dropped = [at for at in (1, 3) if at in now.effects] if now.finished else []
        for ordinal in dropped:
            effect = now.effects[ordinal]
            effect.dropped = True
            if effect.kind != "call":  # a call goes on to its end
                del now.effects[ordinal]
                self.items.append((job, ordinal))

    def deliver(self, entries: list[Entry]) -> None:
        if self.arriving is not None:
            self.arriving.extend(entries)
            return
        self.arriving = deque(entries)
        while self.arriving:
            entry = self.arriving.popleft()
            if entry.job in self.running:
                self.turn(entry.job, entry)
                self.settle(entry.job)
        self.arriving = None

    def drop(self, job: str, ordinal: int) -> None:
        if SCRIPTS[job][ordinal - 1][0] == "child":
            told = [self.append(each) for each in self.tree.drop(job, [ordinal], "late", 0)]
            if job in self.running and not History.of(job, self.of(job)).has_result(ordinal):
                told.append(self.append(EffectResult(job, 0, ordinal, 1, NOT_MADE)))
            self.deliver(told)
        self.settle(job)

    def settle(self, job: str) -> None:
        now = self.running.get(job)
        if now is None or not now.finished or any(each == job for each, _ in self.items):
            return
        if core.may_happen(now.effects.values()):
            return
        children = [at for at, each in now.effects.items() if each.kind == "child"]
        told = [self.append(each) for each in self.tree.leave(job, children, "left", 0)]
        outcome = "cancelled" if self.has(job, Cancel) else "succeeded"
        self.append(End(job, 0, outcome))
        del self.running[job]
        self.tree.end(job)
        self.tell_parent(job, outcome)
        self.deliver(told)

    def tell_parent(self, job: str, outcome: str) -> None:
        result = self.tree.result(job, 0, outcome, b"", ())
        if result is None or (result.job in self.running and result.ordinal not in self.running[result.job].effects):
            return
        self.deliver([self.append(result)])

    # -- what may come ------------------------------------------------------------------------------------------------

    @property
    def ended(self) -> bool:
        return not self.open and not self.waiting | self.coming | self.again

    @property
    def open(self) -> set[str]:
        return {each.job for each in self.entries} - {each.job for each in self.entries if isinstance(each, End)}

    def events(self) -> Iterator[Event]:
        for kind in ("waiting", "coming", "loading", "again", "flying"):
            yield from ((kind, job) for job in sorted(getattr(self, kind)))
        if ROOT in self.running and 3 in self.running[ROOT].effects:
            yield "timeout", ROOT
        if self.cancels and ROOT in self.open:
            yield "cancel", ROOT
        if self.crashes:
            yield from (("crash", str(kept)) for kept in range(self.step, len(self.entries) + 1))

    def after(self, event: Event) -> "Model":
        """A copy of the model, after this event and what follows from it at once."""
        then = copy(self)
        then.entries, then.step, then.items = self.entries[:], len(self.entries), deque()
        then.tree, then.running = deepcopy(self.tree), deepcopy(self.running)
        then.apply(*event)
        while then.items:
            job, ordinal = then.items.popleft()
            then.drop(job, ordinal)
        then.check()
        return then

    def apply(self, kind: str, job: str) -> None:
        if kind in ("waiting", "coming", "loading", "again", "flying"):
            setattr(self, kind, getattr(self, kind) - {job})
        match kind:
            case "waiting":
                self.tree.add(job, "a", begun=False)
                self.coming |= {job}
            case "coming":
                if self.tree.begins(job):
                    self.append(Begin(job, 0, "a"))
                    self.start(job)
                else:
                    self.tree.end(job)
                    self.tell_parent(job, "cancelled")
            case "loading":
                self.start(job)
            case "again":
                (outcome,) = (each.outcome for each in self.of(job) if isinstance(each, End))
                self.tree.end(job)
                self.tell_parent(job, outcome)
            case "timeout":
                self.deliver([self.append(EffectResult(ROOT, 0, 3))])
            case "flying":
                effect = self.running[job].effects[1]
                self.happened(job, effect, Outcome(EffectId(job, 1), Certainty.DONE, "ok", b""))
            case "cancel":
                self.cancels = 0
                cancel = Cancel(ROOT, 0, "enough")
                below = self.tree.cancel(cancel, 0)
                self.deliver([self.append(each) for each in (cancel, *below)])
            case "crash":
                self.crashes -= 1
                self.crash(int(job))

    def crash(self, kept: int) -> None:
        """The entries behind a place are lost, and the host starts anew. It tells again of jobs that had ended."""
        del self.entries[kept:]
        first = Model()
        self.tree, self.running, self.items = first.tree, {}, deque()
        self.tree.limits = {"a": ChildLimits()}
        self.waiting = self.coming = self.flying = frozenset()
        begun = {each.job for each in self.entries if isinstance(each, Begin)}
        for job in sorted(begun):
            self.tree.add(job, "a", begun=True, cancelled=self.has(job, Cancel))
        self.loading, self.again = frozenset(begun & self.open), frozenset(begun - self.open)

    def check(self) -> None:
        """Looks for jobs that go on below one that was cancelled or has ended, unless jobs are still to be loaded after a crash."""
        for job in self.open if not self.loading else ():
            parent = parent_of(job)[0]
            if parent and not self.has(job, Cancel) and (self.has(parent, Cancel) or self.has(parent, End)):
                raise Broken(f"{job} goes on, and nobody waits for it")
        for each in self.entries:
            if (
                isinstance(each, EffectResult)
                and each.outcome == "ok"
                and SCRIPTS[each.job][each.ordinal - 1][0] == "child"
            ):
                ends = (end.outcome for end in self.of(child_id(each.job, each.ordinal)) if isinstance(end, End))
                if next(ends, "") != "succeeded":
                    raise Broken(f"{each.job} has a result of a child that has not succeeded")

    def state(self) -> Any:
        """What the future depends on: two states that are equal here are one."""
        running = [
            (job, now.finished, *((at, each.phase, each.attempt, each.dropped) for at, each in now.effects.items()))
            for job, now in sorted(self.running.items())
        ]
        tree = [sorted(each) for each in (self.tree.cancelled, self.tree._unwanted, self.tree._coming)]
        return (
            tuple(tuple(self.of(job)) for job in SCRIPTS),
            tuple(self.entries[self.step :]),
            repr(running),
            repr(tree),
            (self.waiting, self.coming, self.loading, self.again, self.flying),
            (self.cancels, self.crashes),
        )


def first() -> Model:
    model = Model()
    model.crash(1)
    model.start(*model.loading)
    model.loading = frozenset()
    return model


@pytest.mark.slow  # four seconds of a core
def test_every_interleaving_of_a_tree_keeps_what_the_documents_guarantee() -> None:
    assert walk(first()) > 1_000  # states


def told_no_further(tree: JobTree, cancel: Cancel, now_ms: int) -> list[Cancel]:
    tree.cancelled.add(cancel.job)
    return []


def told_while_they_begin(tree: JobTree, job: str, ordinals: list[int], why: str, now_ms: int) -> list[Cancel]:
    tree._asked.pop(job, None)
    tree._coming.difference_update(child_id(job, each) for each in ordinals)
    return drop(tree, job, ordinals, why, now_ms)


def left_hanging(tree: JobTree, job: str) -> None:
    above, below = tree._above.get(job, ""), tree._below.get(job, set())
    end(tree, job)
    tree._below.setdefault(above, set()).update(below | {job})


def added_without_its_cancel(tree: JobTree, job: str, agent: str, *, begun: bool, cancelled: bool = False) -> None:
    add(tree, job, agent, begun=begun)


add, drop, end = JobTree.add, JobTree.drop, JobTree.end
FAULTS = {
    "a cancel is not told to the jobs below": ("cancel", told_no_further, "is not told of a cancel in one step"),
    "a child that nobody waits for is left alone": ("drop", lambda *_: [], "goes on, and nobody waits for it"),
    "children outlive their job": ("leave", lambda *_: [], "goes on, and nobody waits for it"),
    "a child that is on its way is forgotten": ("drop", told_while_they_begin, "goes on, and nobody waits for it"),
    "an unwanted child begins": ("begins", lambda tree, job: True, "goes on, and nobody waits for it"),
    "a cancelled job begins children": ("refusal", lambda *_, **__: None, "was cancelled, and begins"),
    "nobody tells the parent": ("result", lambda *_: None, "waits for ever|has two Begin"),
    "an ended job still stands in its tree": ("end", left_hanging, "has two Cancel"),
    "a start forgets who was cancelled": ("add", added_without_its_cancel, "has two Cancel|was cancelled, and begins"),
}


@pytest.mark.one_in(3, "a tenth of a second of a core each")
@pytest.mark.parametrize("name", FAULTS)
def test_a_broken_guarantee_of_trees_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    method, fault, told = FAULTS[name]
    monkeypatch.setattr(JobTree, method, fault)
    with pytest.raises(Broken, match=told):
        walk(first())
