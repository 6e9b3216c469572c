"""The durable core under a model checker: all interleavings of three calls, one of them with an approval, a child, a timer, a cancel, a
connection that is lost or refused, a crash and a job that is sent back, against the guarantees of docs/durable-agents.md. The model has no
host, no clock and no event loop; a script stands in for the function of the job.
"""

import json
from collections import Counter
from collections.abc import Iterator
from copy import copy
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest

from sabot.engine.calls.certainty import Certainty
from sabot.engine.calls.effects import RULES, Doubt, EffectClass, EffectId, Reconciled
from sabot.jobs import core
from sabot.jobs.core import ASKED, DONE, OPEN, EffectCommand, EffectState, LookedUp, Outcome
from sabot.jobs.guard import Decision, GuardVerdict
from sabot.jobs.history import IN_DOUBT, NOT_MADE, History
from sabot.jobs.values import pack
from sabot.journal.entries import UNSENT, Answer, Attempt, Begin, Cancel, EffectResult, End, Entry, Intent

JOB = "j"
PAY, PUT, BOOK, CHILD, TIMER = ("call", "pay"), ("call", "put"), ("call", "book"), ("child", "helper"), ("sleep", "")
SCRIPT = {PAY: "unsafe", PUT: "idempotent", BOOK: "reconcilable", CHILD: "", TIMER: ""}
VERDICTS = {PAY: GuardVerdict(Decision.ASK)}
Event = tuple[Any, ...]


class Broken(AssertionError):
    """A guarantee does not hold."""


@dataclass
class Model:
    """A job, its journal, and the world. `flying`: calls whose outcome has not come. `resting`: those that wait for their next attempt.
    `durable`: the entries that no crash loses.
    """

    entries: list[Entry] = field(default_factory=lambda: [Begin(JOB, 0, "a")])
    durable: int = 1
    effects: dict[int, EffectState] = field(default_factory=dict)
    flying: frozenset[int] = frozenset()
    resting: frozenset[int] = frozenset()
    looking: frozenset[int] = frozenset()
    children: frozenset[int] = frozenset()
    done: Counter[str] = field(default_factory=Counter)
    keys: dict[str, str] = field(default_factory=dict)
    crashes: int = 1
    losses: int = 1
    sent_back: int = 1
    job_id: str = JOB
    key: bytes = b"key"

    # -- the host, without I/O ----------------------------------------------------------------------------------------

    def start(self) -> None:
        """Runs the script over the journal."""
        history = History.of(JOB, self.entries)
        self.flying = self.resting = self.looking = self.children = frozenset()
        self.effects = {}
        recorded = {(each.kind, each.name): each for each in history.intents.values()}
        for asked, effect_class in SCRIPT.items():
            intent = recorded.get(asked)
            history.last_ordinal += intent is None
            ordinal = history.last_ordinal if intent is None else intent.ordinal
            effect = EffectState(ordinal, *asked, effect_class, due_ms=9 * (asked == TIMER), retries=2)
            effect.verdict = VERDICTS.get(asked)
            if intent is not None:
                effect.phase, effect.attempt = OPEN, history.attempt_of(intent)
            if not history.has_result(ordinal):
                self.effects[ordinal] = effect
        if self.cancelled:
            self.drop()
        for effect in list(self.effects.values()):
            if effect.ordinal in self.effects:
                self.step(effect, "asked" if effect.phase is ASKED else "resumed")
        self.settle()

    @property
    def history(self) -> History:
        return History.of(JOB, self.entries)

    def step(self, effect: EffectState, event: core.EffectEvent) -> None:
        """As `Effects.step`: the entries, and then the command."""
        entries, command = core.step(self, effect, event, 0)
        for entry in entries:
            if isinstance(entry, EffectResult):
                self.result(effect, entry)
            else:
                if isinstance(entry, Intent) and entry.name == IN_DOUBT and self.is_unsent(effect):
                    raise Broken(f"a person is asked about {effect.name}, which was not sent")
                self.entries.append(entry)
        match command.kind:
            case "make":
                self.make(effect)
            case "begin":
                self.children |= {effect.ordinal}
            case "again":
                self.step(effect, core.Judged(None))
            case "later":
                self.resting |= {effect.ordinal}
            case "doubt":
                self.step(effect, "unsure")
            case "reconcile":
                self.looking |= {effect.ordinal}

    def make(self, effect: EffectState) -> None:
        """The call is sent, when its entry is durable."""
        name, key = effect.name, EffectId(JOB, effect.ordinal, effect.attempt).key
        last = next(each for each in reversed(self.entries) if getattr(each, "ordinal", 0) == effect.ordinal)
        if not isinstance(last, Intent | Attempt) or getattr(last, "attempt", 1) != effect.attempt:
            raise Broken(f"{name} is called, and no entry says so before")
        if self.keys.setdefault(name, key) != key:
            raise Broken(f"{name} is called with another key")
        if effect.verdict is not None and not self.approved(effect.ordinal):
            raise Broken(f"{name} is called, and nobody has approved it")
        if effect.dropped and not RULES[EffectClass(SCRIPT["call", name])].repeatable:
            raise Broken(f"{name} is called again, and its job waits for it no longer")
        if effect.ordinal in self.flying:
            raise Broken(f"{name} is called twice at once")
        self.durable = len(self.entries)
        self.flying |= {effect.ordinal}

    def result(self, effect: EffectState, entry: EffectResult) -> None:
        name, ok, done = effect.name, entry.outcome == "ok", self.done[effect.name]
        if effect.kind == "call" and ok != (done > 0):
            raise Broken(f"{name} is {entry.outcome}, and was done {done} times")
        self.deliver(effect, entry)

    def deliver(self, effect: EffectState, entry: EffectResult) -> None:
        if effect.ordinal not in self.effects:
            raise Broken(f"{effect.name} has two results")
        self.entries.append(entry)
        effect.enter(DONE)
        del self.effects[effect.ordinal]
        self.settle()

    def drop(self) -> None:
        """The function was cancelled, and waits for nothing any more (as `JobRun` and `JobHost` do it)."""
        for ordinal, effect in list(self.effects.items()):
            if core.drop(effect):
                continue
            del self.effects[ordinal]
            self.children -= {ordinal}
            if effect.kind == "child" and effect.recorded:
                self.entries.append(EffectResult(JOB, 0, ordinal, 1, NOT_MADE))
            elif effect.token:
                self.entries.append(Answer(JOB, 0, ordinal, effect.token, "cancelled", by=JOB))

    def settle(self) -> None:
        """The job ends when its function has, and nothing that it has asked may still happen."""
        if not self.ended and (self.cancelled or not self.effects) and not core.may_happen(self.effects.values()):
            if any(
                RULES[EffectClass(self.effects[each].effect_class)].settles for each in self.flying & {*self.effects}
            ):
                raise Broken("the job has ended during a call")
            self.entries.append(End(JOB, 0, "cancelled" if self.cancelled else "succeeded"))
            self.durable = len(self.entries)

    # -- what may come ------------------------------------------------------------------------------------------------

    @property
    def ended(self) -> bool:
        return isinstance(self.entries[-1], End)

    @property
    def cancelled(self) -> bool:
        begun = max(at for at, each in enumerate(self.entries) if isinstance(each, Begin))
        return any(isinstance(each, Cancel) for each in self.entries[begun:])

    def approved(self, ordinal: int) -> bool:
        answers = [each for each in self.entries if isinstance(each, Answer) and each.ordinal == ordinal]
        return any(b'"approved": true' in bytes(each.body) for each in answers)  # type: ignore[arg-type]

    def is_unsent(self, effect: EffectState) -> bool:
        attempts = [each for each in self.entries if isinstance(each, Attempt) and each.ordinal == effect.ordinal]
        return bool(attempts) and attempts[-1].note == UNSENT

    def events(self) -> Iterator[Event]:
        if self.ended:
            if self.cancelled and self.sent_back:
                yield ("sent back",)
            return
        for ordinal, effect in self.effects.items():
            if ordinal in self.flying:
                yield "returns", ordinal
                if self.losses:
                    yield from (("breaks", ordinal, done) for done in (True, False))
                    yield "is refused", ordinal
            elif ordinal in self.resting:
                yield "is due", ordinal
            elif ordinal in self.looking:
                yield "found", ordinal
            elif effect.token:
                yield from (("answers", ordinal, said) for said in ((True, False) if not effect.attempt else (True,)))
            elif ordinal in self.children or effect.kind == "sleep":
                yield "ends", ordinal
        if not self.cancelled:
            yield ("cancel",)
        if self.crashes:
            for kept in {self.durable, len(self.entries)}:
                yield from (("crash", kept, done) for done in (True, False))

    def after(self, event: Event) -> "Model":
        """A copy of the model, after this event."""
        then = copy(self)
        then.entries, then.effects = self.entries[:], {at: copy(each) for at, each in self.effects.items()}
        then.done, then.keys = self.done.copy(), {**self.keys}
        then.apply(*event)
        return then

    def apply(self, kind: str, at: int = 0, given: bool = True) -> None:
        effect = self.effects.get(at)
        match kind:
            case "cancel":
                self.entries.append(Cancel(JOB, 0, "enough"))
                self.durable = len(self.entries)
                self.drop()
                self.settle()
            case "sent back":
                self.sent_back -= 1
                self.entries.append(Begin(JOB, 0, "a", run=2))
                self.start()
            case "crash":
                self.crashes -= 1
                for ordinal in self.flying if given else ():
                    self.happens(self.effects[ordinal])
                del self.entries[at:]
                self.durable = len(self.entries)
                self.start()
            case _:
                assert effect is not None
                self.happened(kind, effect, given)

    def happened(self, kind: str, effect: EffectState, given: bool) -> None:
        done = self.done[effect.name] > 0
        match kind:
            case "returns" | "breaks":
                self.losses -= kind == "breaks"
                self.flying -= {effect.ordinal}
                if given:
                    self.happens(effect)
                certainty = Certainty.DONE if kind == "returns" else Certainty.UNKNOWN
                outcome = "ok" if kind == "returns" else "ConnectionResetError"
                self.step(effect, Outcome(EffectId(JOB, effect.ordinal), certainty, outcome, pack(None, "")))
            case "is refused":
                self.losses -= 1
                self.flying -= {effect.ordinal}
                self.step(effect, Outcome(EffectId(JOB, effect.ordinal), Certainty.NOT_SENT, "NotSent", b""))
            case "is due":
                self.resting -= {effect.ordinal}
                self.step(effect, "due")
            case "found":
                self.looking -= {effect.ordinal}
                found = Reconciled.DONE if done else Reconciled.NOT_DONE
                self.step(effect, LookedUp(EffectId(JOB, effect.ordinal), found))
            case "answers":
                said = {"approved": given} if not effect.attempt else {"outcome": "done" if done else "not_done"}
                if any(isinstance(each, Answer) and each.token == effect.token for each in self.entries):
                    raise Broken(f"a person is asked twice about {effect.name}")
                answer = Answer(JOB, 0, effect.ordinal, effect.token, body=json.dumps(said).encode())
                self.entries.append(answer)
                self.step(effect, answer)
            case "ends":
                self.children -= {effect.ordinal}
                self.deliver(effect, EffectResult(JOB, 0, effect.ordinal))

    def happens(self, effect: EffectState) -> None:
        """The world does what the call says; a service that honours keys does it once."""
        self.done[effect.name] += effect.effect_class != "idempotent" or not self.done[effect.name]
        if self.done[effect.name] > 1:
            raise Broken(f"{effect.name} was done twice")

    def state(self) -> Any:
        """What the future depends on: two states that are equal here are one."""
        states = [(each.ordinal, each.phase, each.attempt, each.token, each.dropped) for each in self.effects.values()]
        return (
            frozenset(self.entries),
            frozenset(self.entries[self.durable :]),
            self.ended,
            tuple(states),
            (self.flying, self.resting, self.looking, self.children),
            (self.crashes, self.losses, self.sent_back),
            frozenset(self.done.items()),
        )


def walk(first: Any) -> int:
    """Walks all interleavings of a model, and returns how many states there are. Raises Broken, with the events that lead there."""
    seen, waiting = {first.state()}, [(first, ())]
    while waiting:
        model, path = waiting.pop()
        events = list(model.events())
        if not events and not model.ended:
            raise Broken(f"after {path}: the job waits for ever")
        for event in events:
            try:
                then = model.after(event)
            except Broken as broken:
                raise Broken(f"after {(*path, event)}: {broken}") from None
            if (key := then.state()) not in seen:
                seen.add(key)
                waiting.append((then, (*path, event)))
    return len(seen)


def first(**counts: int) -> Model:
    model = Model(**counts)
    model.start()
    return model


@pytest.mark.parametrize(
    ("crashes", "losses", "states"),
    [
        (1, 0, 7_000),
        pytest.param(0, 1, 5_000, marks=pytest.mark.slow),
        pytest.param(1, 1, 70_000, marks=pytest.mark.slow),
    ],
)
def test_every_interleaving_keeps_what_the_documents_guarantee(crashes: int, losses: int, states: int) -> None:
    assert walk(first(crashes=crashes, losses=losses)) > states


def allowed_at_once(effect: EffectState, at_ms: int, **more: Any) -> EffectCommand:
    effect.attempt = effect.attempt or 1
    return intended(effect, at_ms, **{**more, "asks": False})


def again_for_nobody(effect: EffectState) -> EffectCommand:
    return core.AGAIN


def dropped_at_once(effect: EffectState) -> bool:
    effect.dropped = True
    return False


def taken_as_result(effect: EffectState, outcome: Outcome) -> EffectCommand:
    return ended(effect, msgspec.structs.replace(outcome, certainty=Certainty.DONE))


def without(*kinds: type[Entry]) -> Any:
    return lambda history, entry: None if isinstance(entry, kinds) else add(history, entry)


def forgotten_when_given_up(history: History, attempt: int, at_ms: int, *error: bytes, keeps: bool) -> None:
    for each in history.deliveries:
        if isinstance(each, EffectResult) and each.outcome == NOT_MADE:
            history.intents.pop(each.ordinal, None)
    tried(history, attempt, at_ms, *error, keeps=keeps)


intended, ended, add, tried = core.intended, core.attempt_ended, History.add, History._try
FAULTS = {
    "a call in doubt is made again": (
        "sabot.jobs.core.in_doubt",
        lambda *_, **__: Doubt.AGAIN,
        "done twice|was done 1",
    ),
    "a call in doubt is taken for done": ("sabot.jobs.core.in_doubt", lambda *_, **__: Doubt.ASSUME_DONE, "was done 0"),
    "a lost connection is a result": ("sabot.jobs.core.attempt_ended", taken_as_result, "was done"),
    "all calls may be repeated": ("sabot.jobs.core.EffectState.repeatable", True, "done twice|waits for it no longer"),
    "nobody has to approve": ("sabot.jobs.core.intended", allowed_at_once, "nobody has approved it"),
    "a no is a yes": ("sabot.jobs.core.is_approved", lambda answer: True, "nobody has approved it"),
    "calls of a cancelled job go on": ("sabot.jobs.core.repeat_or_drop", again_for_nobody, "waits for it no longer"),
    "a cancel withdraws calls": ("sabot.jobs.core.drop", dropped_at_once, "has ended during a call|was done 1"),
    "a job ends during its calls": ("sabot.jobs.core.may_happen", lambda effects: False, "has ended during a call"),
    "results are forgotten": ("sabot.jobs.history.History.add", without(EffectResult), "was done"),
    "that a call was not sent is forgotten": (
        "sabot.jobs.history.History.add",
        lambda history, entry: None if isinstance(entry, Attempt) and entry.note else add(history, entry),
        "which was not sent",
    ),
    "attempts are forgotten": ("sabot.jobs.history.History.add", without(Attempt), "."),
    "answers are forgotten": ("sabot.jobs.history.History.add", without(Answer), "a person is asked twice"),
    "a call that was given up gets another key": (
        "sabot.jobs.history.History._try",
        forgotten_when_given_up,
        "another key",
    ),
    "an attempt has a key of its own": (
        "sabot.engine.calls.effects.EffectId.key",
        property(lambda effect: f"{effect.ordinal} {effect.attempt}"),
        "another key",
    ),
}


@pytest.mark.one_in(5, "a third of a second of a core each")
@pytest.mark.parametrize("name", FAULTS)
def test_a_broken_guarantee_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    place, fault, told = FAULTS[name]
    monkeypatch.setattr(place, fault)
    with pytest.raises(Broken, match=told):
        walk(first())
