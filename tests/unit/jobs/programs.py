"""Random jobs that crash, against what really happened: a seed is some programs, the world that they change, a person, and crashes.

    python tests/unit/jobs/programs.py --seeds 1000 [--start 41]

The programs run as jobs in a simulated loop: one thread, virtual time, all choices by the seed. A life of them ends behind an entry of the
journal or at any turn, and the next one goes on with what was durable then. The world and the person stay, and know what they did.
"""

import argparse
import asyncio
import json
import logging
import random
import shutil
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))

from unit.jobs.hosting import AGENT, Agent
from unit.jobs.rules import ANSWER_TOKENS, DENIED, SECRET, Judges, Law

from sabot.agents.durable.context import DurableContext
from sabot.clock import SYSTEM_CLOCK
from sabot.engine.calls.effects import Reconciled
from sabot.engine.calls.model_requests import RequestSpec
from sabot.engine.calls.tool_context import Effect
from sabot.engine.calls.tools import Tool, tool
from sabot.errors import EffectError, LetterRefused, NotSent
from sabot.jobs.host import JobHost
from sabot.jobs.owner import AfterFailure, OpenJob
from sabot.jobs.run import JobRun
from sabot.jobs.values import pack, unpack
from sabot.journal import Journal, Position
from sabot.journal.entries import Answer, Cancel, Entry, Intent, Letter, Signal
from sabot.journal.job_marks import JobMarks
from sabot.journal.memory import MemoryJournal, MemoryStorage
from sabot.journal.sqlite import SqliteJournal
from sabot.llm import BudgetExceeded, ExecutionEngine, ModelError, ScriptedProvider
from sabot.testing.lives import temporary_directory
from sabot.testing.loop import SimulatedLoop

CLASSES = ("local", "read", "metered", "idempotent", "reconcilable", "unsafe")
ONCE = ("reconcilable", "unsafe")  # classes whose calls change the world at most once, whoever asks
BREAKS = ("breaks before", "breaks after")
TIMEOUT_S = 0.7  # of tools that are cancelled
STEPS = 12  # about so many a program
ATTEMPTS = 3


# -- programs -----------------------------------------------------------------------------------------------------------


class Programs:
    """Draws programs. Each step has a number of its own, `n`, so what the world sees of it is known."""

    def __init__(self, dice: random.Random, *, guarded: bool = False) -> None:
        """guarded: they ask models too, whose calls have a budget."""
        self.dice = dice
        self.guarded = guarded
        self.numbers = 0

    def program(self, deep: int = 0) -> dict[str, Any]:
        dice = self.dice
        size = dice.randint(1, STEPS if deep == 0 else 4)
        tried = dice.choice((1, 1, 1, 2, 3))
        made = {
            "steps": [self.step(deep, tried > 1) for _ in range(size)],
            "undo": self.call() if dice.random() < 0.5 else None,
            "tried": tried,  # the attempt that does not fail
            "rounds": dice.choice((1, 1, 1, 2, 3)) if deep == 0 else 1,
            "round": 0,
        }
        made["fails at"] = dice.randint(0, size)
        return made

    def number(self) -> int:
        self.numbers += 1
        return self.numbers

    def steps(self, deep: int, tried: bool) -> list[dict[str, Any]]:
        return [self.step(deep + 1, tried) for _ in range(self.dice.randint(1, 4))]

    def step(self, deep: int, tried: bool) -> dict[str, Any]:
        dice = self.dice
        kinds = {"call": 8, "sleep": 2, "ask": 2, "wait": 2, "look": 1}
        if deep < 3:
            kinds |= {"gather": 2, "group": 2, "first": 2, "timeout": 2, "aside": 1, "child": 1 if deep < 2 else 0}
        kind = dice.choices(list(kinds), list(kinds.values()))[0]
        if kind == "call":
            if self.guarded and dice.random() < 0.3:
                return {"kind": "model", "n": self.number()}
            return self.call(tried)
        step: dict[str, Any] = {"kind": kind, "n": self.number()}
        match kind:
            case "sleep":
                step["seconds"] = dice.choice((0.0, 0.001, 0.3, 0.9, 1.5, 4.0))
            case "ask":
                step["timeout"] = dice.choice((None, None, 0.5, 3.0))
            case "wait":
                step |= {"name": dice.choice("ab"), "timeout": dice.choice((None, 0.5, 3.0))}
            case "gather" | "group" | "first":
                step["steps"] = self.steps(deep, tried)
            case "timeout":
                step |= {"seconds": dice.choice((0.0, 0.2, 1.0, 2.5)), "steps": self.steps(deep, tried)}
            case "aside":
                step |= {"steps": self.steps(deep, tried), "beside": self.steps(deep, tried)}
            case "child":
                step["program"] = {**self.program(deep + 1), "n": step["n"]}
        return step

    def call(self, tried: bool = False) -> dict[str, Any]:
        dice = self.dice
        effect, sync = dice.choice(CLASSES), dice.random() < 0.3
        does = ["ok"] * 6 + ["fails", "declines", "not sent", "unsayable", *BREAKS]
        if not sync:
            does += ["late before", "late after"]
        return {
            "kind": "call",
            "n": self.number(),
            "effect": effect,
            "sync": sync,
            "does": dice.choice(does),
            "times": dice.choice((1, 1, 2)),  # it breaks so often
            "in_doubt": dice.choice(("ask", "ask", "ask", "fail", "assume_done")) if effect in ONCE else "ask",
            "retries": dice.choice((0, 0, 2)),
            "pauses": [dice.choice((0.0, 0.0, 0.01, 0.3)), dice.choice((0.0, 0.0, 0.01, 0.3))],
            "given": "nothing" if tried else dice.choice(("nothing", "random", "uuid", "now", "seen")),
        }


def walk(steps: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """All steps, with those of children."""
    for step in steps:
        yield step
        yield from walk(step.get("steps", []))
        yield from walk(step.get("beside", []))
        if step["kind"] == "child":
            yield from walk_program(step["program"])


def walk_program(program: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield from walk(program["steps"])
    if program["undo"]:
        yield program["undo"]


# -- the world ----------------------------------------------------------------------------------------------------------


class Dead(Exception):
    """Raised to what goes on when its life is over."""


@dataclass
class World:
    """What really happened, and what was seen of it. A step is named job/n.round."""

    honours_keys: bool
    calls: defaultdict[str, list[tuple[str, str]]] = field(default_factory=lambda: defaultdict(list))  # key, arguments
    done: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))
    keys: dict[str, str] = field(default_factory=dict)  # that were honoured
    names: dict[tuple[str, int], tuple[str, str]] = field(
        default_factory=dict
    )  # of effects: the step's name, its class
    wrong: list[str] = field(default_factory=list)

    def called(self, name: str, kind: str, effect: Effect, arguments: str) -> int:
        """-> which call of this step it is, from 1."""
        calls = self.calls[name]
        calls.append((effect.key, arguments))
        self.names[effect.id.job, effect.id.ordinal] = name, kind
        if calls[0][0] != effect.key:
            self.wrong.append(f"{name} ({kind}) has another key")
        # Of the others nothing is durable before they are called: a crash may lose the time or the answer that their arguments are made of.
        if kind in (*ONCE, "idempotent") and calls[0][1] != arguments:
            self.wrong.append(f"{name} ({kind}) was called with {calls[0][1]}, and with {arguments}")
        return len(calls)

    def does(self, name: str, kind: str, key: str) -> None:
        if kind == "idempotent" and self.honours_keys and self.keys.setdefault(key, name) == name and self.done[name]:
            return
        self.done[name] += 1
        if kind in ONCE and self.done[name] > 1:
            self.wrong.append(f"{name} ({kind}) was done twice")


@dataclass
class Person:
    """Answers questions, truthfully where they are about what happened; sends signals and cancels; tries what is refused."""

    dice: random.Random
    answered: dict[str, Letter] = field(default_factory=dict)  # by token, what was accepted
    said: dict[str, dict[str, Any]] = field(default_factory=dict)  # by name of the step
    asked: dict[str, str] = field(default_factory=dict)  # token, by name of the step
    abandoned: set[str] = field(default_factory=set)
    signals: list[Letter] = field(default_factory=list)  # that were accepted
    cancels: dict[str, Letter] = field(default_factory=dict)
    posted: int = 0

    def answer(self, token: str, intent: Intent, world: World) -> Letter:
        said = json.loads(bytes(intent.body))  # type: ignore[arg-type]
        if is_approval(said):
            body: dict[str, Any] = {"approved": self.dice.random() < 0.7}
            return Letter("answer", token, body=json.dumps(body).encode(), by="ann")
        if intent.name != "in_doubt":
            return Letter("answer", token, body=json.dumps({"approved": True, "for": said["name"]}).encode(), by="ann")
        name, _ = world.names.get((intent.job, said["ordinal"]), ("", ""))
        if self.dice.random() < 0.15:
            self.abandoned.add(name or f"{intent.job}/{said['ordinal']}")
            body = {"outcome": "abandon"}
        elif name and world.done[name]:
            body = {"outcome": "done", "result": {"did": name}}
        else:
            body = {"outcome": "not_done"}
        return Letter("answer", token, body=json.dumps(body).encode(), by="ann")

    def sent(self, letter: Letter, intent: Intent | None = None) -> None:
        """It was accepted."""
        match letter.kind:
            case "answer":
                self.answered[letter.token] = letter
                assert intent is not None
                said = json.loads(bytes(intent.body))  # type: ignore[arg-type]
                if intent.name != "in_doubt" and not is_approval(said):
                    self.said[said["name"]] = json.loads(letter.body)  # type: ignore[arg-type]
            case "signal":
                self.signals.append(letter)
            case "cancel":
                self.cancels[letter.job] = letter

    @property
    def letters(self) -> list[Letter]:
        return [*self.answered.values(), *self.signals, *self.cancels.values()]


def is_approval(payload: dict[str, Any]) -> bool:
    """Whether this question asks whether an effect may be made."""
    return payload.get("answers") == ["approve", "reject"]


# -- a life -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Crash:
    """How a life ends: behind so many entries of it, or after so many turns, or in good order after so many seconds."""

    entries: int = 0
    turns: int = 0
    stops_s: float = 0.0


class Cut(MemoryJournal):
    """A journal in memory that keeps what it held when it had so many entries."""

    def __init__(self, home: MemoryStorage, at: int) -> None:
        super().__init__(home)
        self._at = home.next + at if at else 0
        self._taking = False
        self.image: MemoryStorage | None = None

    def append(self, entry: Entry) -> Position:
        position = super().append(entry)
        if not self._taking:
            self._look()
        return position

    def take(self) -> list[tuple[Position, Entry]]:
        self._taking = True  # a letter leaves the inbox in the step in which it becomes an entry
        taken = super().take()
        self._taking = False
        self._look()
        return taken

    def _look(self) -> None:
        if self._at and self.image is None and self.storage.next >= self._at:
            self.image = image_of(self.storage)


def image_of(home: MemoryStorage) -> MemoryStorage:
    """What a crash would leave of it now."""
    image = MemoryStorage(home.clock)
    image.identity, image.key, image.next, image.removed = home.identity, home.key, home.next, home.removed
    image.last_letter = home.last_letter
    for name in ("entries", "bodies", "uses", "questions", "letters", "untaken"):
        setattr(image, name, dict(getattr(home, name)))
    image.known = JobMarks(dict(home.marks), {job: set(tokens) for job, tokens in home.known.asked.items()})
    image.of_job = {job: list(offsets) for job, offsets in home.of_job.items()}
    image.tokens = {job: list(tokens) for job, tokens in home.tokens.items()}
    return image


class InMemory:
    """Lives over a journal in memory."""

    def __init__(self, dice: random.Random) -> None:
        self._home = MemoryStorage(SYSTEM_CLOCK)
        self._home.key = dice.randbytes(32)
        self._journal: Cut | None = None

    def open(self, crash: Crash) -> Cut:
        self._journal = Cut(self._home, crash.entries)
        return self._journal

    def is_over(self) -> bool:
        """Whether the journal has as many entries as this life may write."""
        return self._journal is not None and self._journal.image is not None

    def crash(self) -> int:
        """-> the offset behind what was durable."""
        self._home = (self._journal and self._journal.image) or image_of(self._home)
        return self._home.next

    def close(self) -> None:
        if self._journal is not None:
            self._journal.close()
            self._journal = None  # else the next life is over before it begins


class InSqlite:
    """Lives over a journal in SQLite. What waits for its writer's thread at a crash is lost."""

    def __init__(self, dice: random.Random, folder: Path) -> None:
        self._folder, self._lives, self._dice = folder, 0, dice
        self._journal: SqliteJournal | None = None
        self._old: SqliteJournal | None = None

    @property
    def _place(self) -> Path:
        return self._folder / str(self._lives)

    def open(self, crash: Crash) -> SqliteJournal:
        with mock.patch("secrets.token_bytes", self._dice.randbytes):
            self._journal = SqliteJournal(self._place)
        return self._journal

    def is_over(self) -> bool:
        return False

    def crash(self) -> int:
        if self._journal is None:
            return 0
        durable = self._journal.positions()[0]
        before = self._place
        self._lives += 1
        self._place.mkdir(mode=0o700)
        for path in before.glob("journal.db*"):
            if not path.name.endswith("-shm"):
                shutil.copy(path, self._place)
        return durable

    def close(self) -> None:
        if self._journal is not None:
            self._journal.close()


class Notes(dict[str, bytes]):
    """Of parked jobs (`jobs.parking.ParkedNotes`). cuts: of each checkpoint the entries of the journal that it waits for, and its notes."""

    def __init__(self, notes: dict[str, bytes]) -> None:
        super().__init__(notes)
        self.cuts: list[tuple[int, dict[str, bytes]]] = [(0, dict(notes))]

    def put(self, job_id: str, note: bytes) -> None:
        self[job_id] = note

    def remove(self, job_id: str) -> None:
        self.pop(job_id, None)

    def restored(self, durable: int, dice: random.Random) -> dict[str, bytes]:
        """What the next life gets: of one of the last checkpoints that were complete."""
        return dice.choice([notes for entries, notes in self.cuts if entries <= durable][-dice.choice((1, 3, 100)) :])


class Seed:
    """The jobs of a seed, from their first life to the last."""

    def __init__(self, number: int, kind: str, folder: Path | None = None, *, guarded: bool = False) -> None:
        """guarded: rules and a budget decide what the jobs may do."""
        self.number = number
        self.dice = random.Random(f"jobs {number} {kind}")
        programs = Programs(self.dice, guarded=guarded)
        self.plan = {f"job{at}": programs.program() for at in range(self.dice.randint(1, 3))}
        self.world = World(self.dice.random() < 0.5)
        self.person = Person(self.dice)
        steps = (step for program in self.plan.values() for step in walk_program(program))
        self.law = Law(self.dice, steps, self.world.wrong) if guarded else None
        self.storage = InMemory(self.dice) if folder is None else InSqlite(self.dice, folder)
        self.traces: dict[tuple[str, int, int], list[tuple[int, Any]]] = {}  # what was seen, and when: entries so far
        self.values: dict[str, Any] = {}
        self.outcomes: dict[str, str] = {}
        self.programs: dict[str, dict[str, Any]] = {}
        self.notes: dict[str, bytes] = {}  # of the checkpoint from which the next life begins
        self.rested = 0  # jobs that were parked again without a run over their history
        self.lives = self.entries = self.turns = 0

    def run(self) -> "Seed":
        crashes = self.dice.choice((0, 1, 2, 3, 6))
        for at in range(crashes + 1):
            self.lives += 1
            crash = self._some_crash() if at < crashes else Crash()
            if LifeOf(self, crash).live():
                break
        self.check()
        return self

    def _some_crash(self) -> Crash:
        dice = self.dice
        match dice.choice(("entries", "turns", "stop")):
            case "entries" if isinstance(self.storage, InMemory):
                return Crash(entries=dice.choice((1, 2, 3, dice.randint(1, 12), dice.randint(1, 80))))
            case "stop":
                return Crash(stops_s=dice.choice((0.0, 0.02, 0.4, 2.0, 10.0)))
        return Crash(turns=dice.choice((dice.randint(1, 200), dice.randint(1, 1500))))

    def wrong(self, what: str) -> None:
        self.world.wrong.append(what)

    def saw(self, key: tuple[str, int, int], at: int, event: Any, entries: int) -> None:
        """A job's run saw this as number `at`. Each run must see what those before it saw."""
        trace = self.traces.setdefault(key, [])
        if at == len(trace):
            trace.append((entries, event))
        elif trace[at][1] != event:
            self.wrong(f"{key} saw {trace[at][1]} as number {at}, and {event} when it ran again")

    def crashed(self, durable: int) -> None:
        """What was seen of entries that are lost is not known to the journal."""
        for trace in self.traces.values():
            del trace[next((at for at, (entries, _) in enumerate(trace) if entries > durable), len(trace)) :]

    # -- what must hold at the end --

    def check(self) -> None:
        for job, program in self.programs.items():
            if job in self.values:
                self._check_values(job, program, self.values[job])
        calls = {step["n"]: step for program in self.plan.values() for step in walk_program(program)}
        for name, count in self.world.done.items():
            step = calls[int(name.rpartition("/")[2].partition(".")[0])]
            if step["effect"] == "idempotent" and self.world.honours_keys and count > 1:
                self.wrong(f"{name}: done {count} times")
            if step["does"] in ("fails", "not sent") and step["does"] == "fails" and count:
                self.wrong(f"{name}: done, and it always fails")
        if self.law is not None:
            self.law.check()
        assert not self.world.wrong, "\n".join(self.world.wrong)

    def _check_values(self, job: str, program: dict[str, Any], value: Any) -> None:
        if value["values"] is None:  # it was cancelled, and has made up for what it did
            return
        last = program["rounds"] - 1
        if program["round"] != last:
            self.wrong(f"{job} ended in round {program['round']} of {last}")
        for step, each in zip(program["steps"], value["values"], strict=True):
            self._check(job, program["round"], step, each)

    def _check(self, job: str, round_: int, step: dict[str, Any], value: Any) -> None:
        name = f"{job}/{step['n']}.{round_}"
        match step["kind"], value:
            case "call" | "model" | "child", ["error", str() as error] if self.law is not None and error in DENIED:
                if not self.law.may_deny(name, error):
                    self.wrong(f"{job}: {name} got {error}, and {self.law.of(name)}")
            case "model", ["ok", said]:
                if said != name:
                    self.wrong(f"{job}: a model was asked {name}, and the answer is {said}")
            case "call", [outcome, what]:
                self._check_call(name, step, outcome, what)
            case "sleep", "slept":
                return
            case "look", [int(), str(), float()]:
                return
            case "ask", ["resolved", resolution]:
                if resolution != self.person.said.get(name):
                    self.wrong(
                        f"{job}: question {name} was answered {self.person.said.get(name)}, and got {resolution}"
                    )
            case "ask", ["expired", _]:
                if step["timeout"] is None or name in self.person.said:
                    self.wrong(f"{job}: question {name} is expired, and it was answered {self.person.said.get(name)}")
            case "wait", "late":
                assert step["timeout"] is not None
            case "wait", int() as signal:
                if not any(
                    int(letter.token) == signal and letter.name == step["name"] for letter in self.person.signals
                ):
                    self.wrong(f"{job}: signal {signal} of {name} was not sent")
            case "gather" | "group", list() as values:
                for inner, each in zip(step["steps"], values, strict=True):
                    self._check(job, round_, inner, each)
            case "first", dict() as values:
                assert values
                for at, each in values.items():
                    self._check(job, round_, step["steps"][int(at)], each)
            case "timeout", "late":
                return
            case "timeout", list() as values:
                for inner, each in zip(step["steps"], values, strict=True):
                    self._check(job, round_, inner, each)
            case "aside", [beside, values]:
                for inner, each in zip([*step["beside"], *step["steps"]], [*beside, *values], strict=True):
                    self._check(job, round_, inner, each)
            case "child", ["ok", value]:
                self._check_values(value["job"], step["program"], value)
            case "child", ["error", kind]:
                if kind != "Cancelled" and kind != "CancelledError":
                    self.wrong(f"{job}: child {name} has failed with {kind}")
            case kind, other:
                self.wrong(f"{job}: {kind} {name} gave {other}")

    def _check_call(self, name: str, step: dict[str, Any], outcome: str, what: Any) -> None:
        """The job's word on a call against the world's."""
        effect, does, doubt = step["effect"], step["does"], step["in_doubt"]
        done, calls = self.world.done[name], len(self.world.calls[name])
        told = f"{name} ({effect}, {does}, in_doubt={doubt}, retries={step['retries']}): job saw {outcome} {what}, done {done}"
        if outcome == "ok" and what == {"did": name}:
            if not done or (effect in ONCE and done != 1) or does in ("fails", "declines", "unsayable"):
                known_doubt = does in ("declines", "unsayable")  # a crash behind it: a person says that it was done
                if not (known_doubt and done == 1 and effect in ONCE):
                    self.wrong(told)
        elif outcome == "ok":
            if not (doubt == "assume_done" and what is None):
                self.wrong(told)
        elif name in self.person.abandoned or self._was_abandoned_unmade(name, calls):
            if effect not in ONCE or done > 1:
                self.wrong(told)
        elif doubt == "fail" and effect in ONCE:
            if done > 1:
                self.wrong(told)
        elif does == "fails":
            if done or what != "ValueError":
                self.wrong(told)
        elif does == "declines":
            if not done or what != "ValueError":
                self.wrong(told)
        elif does == "unsayable":
            if not done or what != "ResultNotRecorded":
                self.wrong(told)
        elif does in (*BREAKS, "late before", "late after"):
            if (
                effect in ONCE
                or (step["retries"] >= step["times"] and self.lives == 1)
                or done > len(self.world.calls[name])
            ):
                self.wrong(told)
        elif does == "not sent":
            if done or what != "NotSent" or (step["retries"] >= step["times"] and self.lives == 1):
                self.wrong(told)
        else:
            self.wrong(told)

    def _was_abandoned_unmade(self, name: str, calls: int) -> bool:
        return not calls and any("/" in each for each in self.person.abandoned)


class LifeOf:
    """One life."""

    def __init__(self, seed: Seed, crash: Crash) -> None:
        self.seed, self.crash = seed, crash
        self.world, self.person, self.dice = seed.world, seed.person, seed.dice
        self.dead = self.closing = False
        self.broken: list[tuple[str, BaseException]] = []
        self.tools: dict[tuple[Any, ...], Tool] = {}
        self.journal: Journal
        self.first = 0
        self.agent = AgentOf(self)
        self.notes = Notes(seed.notes)
        self.guard = None if seed.law is None else Judges(seed.law)
        self.engine = ExecutionEngine(ScriptedProvider(self._model), retries=0)

    def live(self) -> bool:
        """-> whether all jobs are over."""
        dice = random.Random(self.dice.random())  # of its own, because what is drawn after a crash varies
        loop = SimulatedLoop(dice, most_turns=200_000)  # type: ignore[abstract]  # sockets and processes are not simulated

        def look() -> None:
            if self.seed.storage.is_over() or 0 < self.crash.turns <= loop.turns:
                raise Dead

        loop.on_turn = look
        over = False
        main = loop.create_task(self._main())
        try:
            over = bool(loop.run_until_complete(main))
        except Dead:
            self.dead = True
            durable = self.seed.storage.crash()
            self.seed.crashed(durable)
            if self.seed.law is not None:
                self.seed.law.crashed()
            self.seed.notes = self.notes.restored(durable, dice)
        finally:
            self.dead = True
            loop.on_turn = None
            main.cancel()  # a life that died within its start does not start the host that is closed now
            if self.agent.host is not None and not self.closing:  # so that what is left of a dead life says nothing
                loop.run_until_complete(self.agent.host.close())
            self.seed.storage.close()
            loop.close()
            self.seed.turns += loop.turns
        return over

    def now_entries(self) -> int:
        return self.first + int(self.journal.statistics()["entries"])

    async def _main(self) -> bool:
        seed = self.seed
        self.journal = seed.storage.open(self.crash)
        self.first = self.journal.positions().get(0, 0)
        self._check_inbox()
        host = self.agent.host = JobHost(
            self.journal,
            clock=SYSTEM_CLOCK,
            on_broken=lambda what, error: self.broken.append((what, error)),
            stop_grace_s=self.dice.choice((0.0, 0.1)),
            notes=self.notes,
            guard=self.guard,
        )
        host.register(AGENT, self.agent)
        found = await host.open(None)
        host.start()
        before = {job.job_id: job for job in found}
        for job in found:
            if host.stays_parked(job):
                seed.rested += 1
                self.agent.begun.add(job.job_id)
            else:
                host.resume(job)
        for job_id, program in seed.plan.items():
            if job_id not in before:
                host.begin(AGENT, job_id, record=pack(program, "input"), key=b"", digest=b"")
        person = asyncio.create_task(self._person())
        until = SYSTEM_CLOCK.time() + self.crash.stops_s if self.crash.stops_s else None
        while not self._all_over(before) and (until is None or SYSTEM_CLOCK.time() < until):
            if self.broken:
                raise AssertionError(f"the host is broken: {self.broken[0]}") from self.broken[0][1]
            assert not self.agent.blocks, self.agent.blocks
            if person.done():
                person.result()
            self.notes.cuts.append((self.now_entries(), dict(self.notes)))  # a checkpoint
            await asyncio.sleep(0.05)
        over = self._all_over(before)
        person.cancel()
        await asyncio.wait([person])
        if over:
            await self._check_nothing_left(host)
            self._check_journal()
        self.closing = True
        await host.close()
        if self.guard is not None:
            await self.guard.close()
        seed.notes = self.notes.restored(self.now_entries(), self.dice)
        for job in before.values():
            ended = job.ended if over else None
            if ended is None or ended.outcome != "succeeded":
                continue
            if unpack(bytes(ended.body)) != self.agent.done.get(job.job_id):  # type: ignore[arg-type]
                seed.wrong(f"{job.job_id} had another value in the run before")
        return over

    def _check_inbox(self) -> None:
        """What was accepted is an entry, or in the inbox still."""
        there = {letter.once for letter in self.journal.letters()}
        for _, entry in self.journal.read():
            if isinstance(entry, Answer):
                there.add(f"token:{entry.token}")
            elif isinstance(entry, Signal):
                there.add(Letter("signal", entry.token, entry.job).once)
            elif isinstance(entry, Cancel):
                there.add(Letter("cancel", job=entry.job).once)
        lost = [letter for letter in self.person.letters if letter.once not in there]
        assert not lost, f"accepted, and lost: {lost}"

    def _all_over(self, before: dict[str, OpenJob]) -> bool:
        """All that were begun, with children."""
        outcomes = self.agent.outcomes | self.agent.had_outcomes
        return self.seed.plan.keys() <= outcomes.keys() and not self.agent.running()

    async def _check_nothing_left(self, host: JobHost) -> None:
        for _ in range(200):
            left = {name: host.statistics()[name] for name in ("running", "parked", "in_flight", "doubts")}
            if not any((left["running"], left["parked"], left["in_flight"])):
                break
            await asyncio.sleep(0.05)
        else:
            self.seed.wrong(f"left in memory at the end: {left}; {self.agent.begun} {self.agent.outcomes}")
        if host.statistics()["blocked"]:
            self.seed.wrong(f"blocked: {host.statistics()['blocked']}")
        if self.guard is not None and self.seed.law is not None:
            self.guard.check_nothing_reserved(self.seed.law)

    def _check_journal(self) -> None:
        """Questions that functions ask stand in the journal once, but for those that an attempt of the job has withdrawn."""
        asked: dict[tuple[str, str], str] = {}
        withdrawn: set[str] = set()
        for _, entry in self.journal.read():
            if isinstance(entry, Answer) and entry.outcome == "cancelled":
                withdrawn.add(entry.token)
            if isinstance(entry, Intent) and entry.kind == "ask" and entry.name != "in_doubt":
                payload = json.loads(bytes(entry.body))  # type: ignore[arg-type]
                name = f"whether {payload['ordinal']}" if is_approval(payload) else payload["name"]
                before = asked.get((entry.job, name))
                asked[entry.job, name] = entry.token
                if before is not None and before not in withdrawn:
                    self.seed.wrong(f"{entry.job}: question {name} was asked twice")

    # -- the person --

    async def _person(self) -> None:
        """Looks now and then, and is in no hurry."""
        dice, person = self.dice, self.person
        start: dict[int, int] = {}
        open_: dict[str, Intent] = {}
        jobs: set[str] = set()
        while True:
            await asyncio.sleep(dice.choice((0.01, 0.2, 1.0)))
            if self.dead:
                return
            for position, entry in list(self.journal.read(start=start)):
                start = {position.partition: position.offset + 1}
                jobs.add(entry.job)
                if isinstance(entry, Intent) and entry.token:
                    open_[entry.token] = entry
            for token, intent in list(open_.items()):
                if dice.random() < 0.3:
                    continue
                letter = (
                    person.answer(token, intent, self.world) if token not in person.answered else person.answered[token]
                )
                if self._post(letter, intent):
                    if token in person.answered:
                        self.seed.wrong(f"an answer was taken twice: {letter}")
                    person.sent(letter, intent)
                    payload = json.loads(bytes(intent.body))  # type: ignore[arg-type]
                    if self.seed.law is not None and is_approval(payload):
                        self.seed.law.answered(intent, json.loads(letter.body)["approved"])
                if dice.random() < 0.9:
                    del open_[token]  # else it is answered twice
            if jobs:
                person.posted += 1
                job = dice.choice(sorted(jobs))
                number = str(person.posted)
                signal = Letter("signal", number, job, dice.choice("ab"), number.encode())
                if self._post(signal):
                    person.sent(signal)
                if dice.random() < 0.01 and self._post(Letter("cancel", job=job, name="enough")):
                    person.sent(Letter("cancel", job=job, name="enough"))
            if self._post(Letter("answer", "no such token", body=b"{}")):
                self.seed.wrong("a wrong token was taken")

    def _post(self, letter: Letter, intent: Intent | None = None) -> bool:
        try:
            self.journal.post(letter)
        except LetterRefused:
            return False
        return True

    # -- the tools --

    def tool_of(self, step: dict[str, Any]) -> Tool:
        late = step["does"].startswith("late")
        key = (step["effect"], step["sync"], late, step["in_doubt"], step["retries"])
        if key not in self.tools:
            self.tools[key] = self._tool(*key)
        return self.tools[key]

    def _tool(self, kind: str, sync: bool, late: bool, in_doubt: Any, retries: int) -> Tool:
        world = self.world
        options: dict[str, Any] = {"effect": kind, "retries": retries, "backoff": "10ms", "in_doubt": in_doubt}
        if late:
            options["timeout"] = TIMEOUT_S
        if kind == "reconcilable":
            options["reconcile"] = self._look
        name = f"{kind}_{'sync' if sync else 'async'}"

        def began(ask: dict[str, Any], effect: Effect) -> tuple[str, bool]:
            if self.dead:
                raise Dead
            if self.seed.law is not None:
                self.seed.law.made(ask["name"], ask["word"])
            time_ = world.called(ask["name"], kind, effect, json.dumps(ask["given"]))
            return ask["does"], time_ <= ask["times"]

        def before(does: str, breaks: bool) -> None:
            if does == "fails":
                raise ValueError("it fails")
            if does == "not sent" and breaks:
                raise NotSent("nothing has left")
            if does == "breaks before" and breaks:
                raise ConnectionResetError("on the way there")

        def after(ask: dict[str, Any], effect: Effect, does: str, breaks: bool) -> Any:
            if self.dead:
                raise Dead
            world.does(ask["name"], kind, effect.key)
            if does == "declines":
                raise ValueError("it declines")
            if does == "breaks after" and breaks:
                raise ConnectionResetError("on the way back")
            return object() if does == "unsayable" else {"did": ask["name"]}

        @tool(name=name, **options)
        async def make(ask: dict[str, Any], effect: Effect) -> Any:
            does, breaks = began(ask, effect)
            await asyncio.sleep(ask["pauses"][0])
            before(does, breaks)
            if does == "late before" and breaks:
                await asyncio.sleep(10)
            result = after(ask, effect, does, breaks)
            if does == "late after" and breaks:
                await asyncio.sleep(10)
            await asyncio.sleep(ask["pauses"][1])
            return result

        @tool(name=name, **options)
        def make_sync(ask: dict[str, Any], effect: Effect) -> Any:
            does, breaks = began(ask, effect)
            before(does, breaks)
            return after(ask, effect, does, breaks)

        return make_sync if sync else make

    async def _model(self, spec: RequestSpec) -> str:
        assert self.seed.law is not None
        if self.dead:
            raise Dead
        name = self.seed.law.asked(spec)
        await asyncio.sleep(len(name) % 3 * 0.1)
        if self.dead:
            raise Dead
        return name

    async def _look(self, effect: Effect, ask: dict[str, Any]) -> Any:
        if self.dead:
            raise Dead
        await asyncio.sleep(ask["pauses"][0])
        name = ask["name"]
        self.world.names[effect.id.job, effect.id.ordinal] = name, "reconcilable"
        if self.dice.random() < 0.2:
            return Reconciled.UNKNOWN
        return (Reconciled.DONE, {"did": name}) if self.world.done[name] else Reconciled.NOT_DONE


class AgentOf(Agent):
    """The owner of a life's jobs."""

    def __init__(self, life: LifeOf) -> None:
        super().__init__(lambda ctx: Run(life, ctx).run())
        self.life = life
        self.begun: set[str] = set()
        self.had_outcomes: dict[str, str] = {}

    def running(self) -> set[str]:
        return self.begun - self.outcomes.keys() - self.had_outcomes.keys()

    def call(self, job: JobRun) -> Any:
        self.begun.add(job.job_id)
        return super().call(job)

    def ended(self, job: JobRun, value: Any) -> bytes:
        if not self.life.dead:
            # a child that was given up runs again over what it has made
            if job.job_id in self.done and (job.history.begin.run == 1 or self.done[job.job_id] != value):
                self.life.seed.wrong(f"{job.job_id} ended twice")
            self.life.seed.programs[job.job_id] = unpack(job.history.begin.body)  # type: ignore[arg-type]
            self.life.seed.values[job.job_id] = value
        return super().ended(job, value)

    def failed(self, job: JobRun, error: BaseException) -> AfterFailure:
        super().failed(job, error)
        if self.life.dead:
            return "stop"
        if isinstance(error, ValueError) and str(error) == "it is to fail" and job.history.attempt < ATTEMPTS:
            return "again"
        self.life.seed.wrong(f"{job.job_id} failed: {error!r}")
        return "end"

    def job_closed(self, job_id: str, outcome: str) -> None:
        super().job_closed(job_id, outcome)
        if not self.life.dead:
            self.life.seed.outcomes[job_id] = outcome

    def had_ended(self, job: OpenJob) -> None:
        super().had_ended(job)
        assert job.ended is not None
        self.had_outcomes[job.job_id] = job.ended.outcome
        if job.ended.outcome == "succeeded":
            self.life.seed.wrong(f"{job.job_id} had succeeded, and does not run again")


class Run:
    """One run of a job's function: interprets the program, and tells the seed what it sees."""

    def __init__(self, life: LifeOf, ctx: DurableContext) -> None:
        self.life, self.ctx = life, ctx
        self.program: dict[str, Any] = ctx.message
        self.round: int = self.program["round"]
        self.seen = 0
        self.last: Any = None

    def sees(self, what: str, value: Any) -> Any:
        if not self.life.dead:
            key = (self.ctx.job_id, self.round, self.ctx.attempt)
            self.life.seed.saw(key, self.seen, [what, value, self.ctx.now()], self.life.now_entries())
            self.seen += 1
        self.last = value
        return value

    async def run(self) -> Any:
        program = self.program
        values = []
        try:
            for at, step in enumerate([*program["steps"], None]):
                if at == program["fails at"] and self.ctx.attempt < program["tried"]:
                    raise ValueError("it is to fail")
                if step is not None:
                    values.append(await self.step(step))
        except asyncio.CancelledError:
            if program["undo"] is None:
                raise
            # Each cancel of a child that runs again comes at a time of its own, so a call that is made of what was seen is another one.
            apart = program["undo"].get("given") in ("now", "seen") and self.ctx.attempt > 1
            await self.step(program["undo"], f"^{self.ctx.attempt}" if apart else "")
            return {"job": self.ctx.job_id, "values": None}
        if self.round + 1 < program["rounds"]:
            self.ctx.continue_as({**program, "round": self.round + 1})
        return {"job": self.ctx.job_id, "values": values}

    async def steps(self, steps: list[dict[str, Any]]) -> list[Any]:
        return [await self.step(each) for each in steps]

    async def step(self, step: dict[str, Any], apart: str = "") -> Any:
        ctx, name = self.ctx, f"{self.ctx.job_id}/{step['n']}.{self.round}{apart}"
        match step["kind"]:
            case "call":
                value = await self.call(step, name)
            case "model":
                value = await self.model(name)
            case "sleep":
                await (ctx.sleep(step["seconds"]) if step["n"] % 2 else asyncio.sleep(step["seconds"]))
                value = "slept"
            case "ask":
                reply = await ctx.ask("confirm", {"name": name}, timeout=step["timeout"])
                value = [reply.outcome, dict(reply.resolution)]
            case "wait":
                try:
                    value = await ctx.wait(step["name"], timeout=step["timeout"])
                except TimeoutError:
                    value = "late"
            case "look":
                value = [ctx.now(), str(ctx.uuid()), ctx.random().random()]
            case "gather":
                value = await asyncio.gather(*map(self.step, step["steps"]))
            case "group":
                async with asyncio.TaskGroup() as group:
                    tasks = [group.create_task(self.step(each)) for each in step["steps"]]
                value = [task.result() for task in tasks]
            case "first":
                value = await self.first(step)
            case "timeout":
                try:
                    async with asyncio.timeout(step["seconds"]):
                        value = await self.steps(step["steps"])
                except TimeoutError:
                    value = "late"
            case "aside":
                async with asyncio.TaskGroup() as group:
                    beside = group.create_task(self.steps(step["beside"]))
                    values = await self.steps(step["steps"])
                value = [beside.result(), values]
            case "child":
                try:
                    value = ["ok", await ctx.child("agent", step["program"])]
                except EffectError as error:
                    value = ["error", error.type]
        return self.sees(name, value)

    async def first(self, step: dict[str, Any]) -> Any:
        tasks = [asyncio.create_task(self.step(each)) for each in step["steps"]]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            return {str(at): task.result() for at, task in enumerate(tasks) if task.done()}
        finally:
            for task in tasks:
                task.cancel()

    async def model(self, name: str) -> Any:
        try:
            said = await self.ctx.llm(self.life.engine).complete(f"{name} {SECRET}", max_tokens=ANSWER_TOKENS)
        except (ModelError, EffectError, BudgetExceeded) as error:
            return ["error", error.type if isinstance(error, EffectError) else type(error).__name__]
        return ["ok", said.content]

    async def call(self, step: dict[str, Any], name: str) -> Any:
        ctx = self.ctx
        given: Callable[[], Any] = {
            "nothing": lambda: None,
            "random": lambda: ctx.random().random(),
            "uuid": lambda: str(ctx.uuid()),
            "now": ctx.now,
            "seen": lambda: self.last,
        }[step["given"]]
        ask = {"name": name, "word": SECRET, "does": step["does"], "times": step["times"], "pauses": step["pauses"]}
        ask["given"] = given()
        try:
            return ["ok", await ctx.call(self.life.tool_of(step), ask)]
        except EffectError as error:
            return ["error", error.type]


@contextmanager
def quiet() -> Iterator[None]:
    logger = logging.getLogger("sabot")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(level)


def run_seed(number: int, kind: str, *, guarded: bool = False) -> Seed:
    """An error gets the seed as a note."""
    try:
        with quiet():
            if kind == "memory":
                return Seed(number, kind, guarded=guarded).run()
            with temporary_directory() as folder:
                return Seed(number, kind, folder, guarded=guarded).run()
    except BaseException as error:
        error.add_note(f"seed {number} over {kind}{', guarded' if guarded else ''}")
        raise


def main() -> int:
    import traceback

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--journal", choices=("memory", "sqlite", "both"), default="both")
    parser.add_argument("--guarded", action="store_true", help="rules and a budget decide what jobs may do")
    given = parser.parse_args()
    began, failed, lives, calls, turns = time.perf_counter(), [], 0, 0, 0
    for number in range(given.start, given.start + given.seeds):
        for kind in ("memory", "sqlite") if given.journal == "both" else (given.journal,):
            try:
                seed = run_seed(number, kind, guarded=given.guarded)
            except Exception:
                failed.append(f"{number} {kind}")
                if len(failed) <= 5:
                    traceback.print_exc()
                continue
            lives += seed.lives
            turns += seed.turns
            calls += sum(map(len, seed.world.calls.values()))
    seconds = round(time.perf_counter() - began, 1)
    print(
        json.dumps(
            {"seeds": given.seeds, "failed": failed, "lives": lives, "calls": calls, "turns": turns, "seconds": seconds}
        )
    )
    return bool(failed)


if __name__ == "__main__":
    raise SystemExit(main())
