"""Durable agents of random programs: what they ask, the world that keeps what they do, a person who answers, and what must come of it.

A message has a name, and so has each effect that its job asks for: the name of the message, and where it stands in the program. The world
counts by name what was really done, in all lives. What a job returns is compared with what a plain walk of its program gives.
"""

import asyncio
import json
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flows import Dice

from sabot import App, NotSent
from sabot.agents.durable.context import DurableContext
from sabot.engine.calls.effects import Reconciled
from sabot.engine.calls.tool_context import Effect
from sabot.engine.calls.tools import Tool, tool
from sabot.errors import EffectError, LetterRefused, SabotError
from sabot.jobs.values import unpack
from sabot.journal import Letter
from sabot.journal.entries import Intent
from sabot.journal.sqlite import SqliteInbox, SqliteReader
from sabot.steps import step
from sabot.testing import ScriptedSource
from sabot.testing.script import BARRIER, END

SHARE = 0.12  # of the seeds that have such agents
CLASSES = ("local", "read", "metered", "idempotent", "reconcilable", "unsafe")
ONCE = ("reconcilable", "unsafe", "idempotent")
RETRIES = 2  # of jobs
SETTLED_SECONDS = 1000.0  # of virtual time: then all jobs of a life are over


# -- programs -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """What a job asks, or several things side by side.

    effect, does: of a call: its class, and what goes wrong with it the first times. sync: it is made in a thread. timeout_s: of a tool.
    """

    kind: str
    effect: str = ""
    does: str = "works"
    sync: bool = False
    timeout_s: float | None = None
    seconds: float = 0.0
    steps: tuple["Step", ...] = ()


def make_steps(dice: Dice, most: int, *, deep: int = 0, children: bool = False) -> tuple[Step, ...]:
    kinds = ["call"] * 8 + ["sleep", "sleep", "ask", "expires", "wait", "given", "impatient"]
    kinds += ["gather"] * 3 if deep < 2 else []
    kinds += ["child"] * 2 if children else []
    steps = []
    for kind in (dice.choice(kinds) for _ in range(dice.randint(1, most))):
        effect = dice.choice([*CLASSES, "unsafe", "unsafe"])
        does = ["works"] * 6 + (["not sent"] if effect != "local" else [])
        does += ["breaks before", "breaks after", "hangs before", "hangs after"] if effect != "local" else []
        fault = dice.choice(does)
        sync = dice.random() < 0.2 and not fault.startswith("hangs")
        timeout_s = 2.0 if fault.startswith("hangs") else None if sync else dice.choice([None, 20.0])
        seconds = dice.choice([0.0, 0.1, 0.9, 1.5, 6.0])
        inner = make_steps(dice, 3, deep=deep + 1, children=children) if kind == "gather" else ()
        steps.append(Step(kind, effect, fault, sync, timeout_s, seconds, inner))
    return tuple(steps)


@dataclass(frozen=True)
class Program:
    """What one agent does for a message. rounds: it goes on as a new history so often (`continue_as`)."""

    agent: str
    steps: tuple[Step, ...]
    rounds: int = 1
    copies: int = 0  # messages for the agent behind it; 0: it is the last one

    def named(self, name: str) -> Iterator[tuple[str, Step]]:
        """Its effects for the message of this name, those of children left out."""
        for round_ in range(self.rounds):
            yield from _named(self.steps, f"{name}.{round_}")


def _named(steps: Sequence[Step], name: str) -> Iterator[tuple[str, Step]]:
    for at, each in enumerate(steps):
        yield f"{name}/{at}", each
        yield from _named(each.steps, f"{name}/{at}")


def answer(steps: Sequence[Step], name: str, helper: Program | None) -> list[Any]:
    """What `perform` returns."""
    said: list[Any] = []
    for at, each in enumerate(steps):
        line = f"{name}/{at}"
        match each.kind:
            case "gather":
                said.append(answer(each.steps, line, helper))
            case "child":
                assert helper is not None
                said.append(answer(helper.steps, f"{line}.0", None))
            case kind:
                said.append(f"{kind} {line}")
    return said


async def perform(ctx: DurableContext, steps: Sequence[Step], name: str, tools: dict[Step, Tool]) -> list[Any]:
    """The program, as a job walks it."""
    return [await _perform(ctx, each, f"{name}/{at}", tools) for at, each in enumerate(steps)]


async def _perform(ctx: DurableContext, each: Step, line: str, tools: dict[Step, Tool]) -> Any:
    match each.kind:
        case "call":
            assert await ctx.call(tools[each], line) == f"did {line}"
        case "given":  # blocked, where chance is another one when the job runs again
            assert await ctx.call(tools[each], line, str(ctx.uuid()), ctx.random().random()) == f"did {line}"
        case "impatient":
            try:
                async with asyncio.timeout(each.seconds):
                    await ctx.call(tools[each], line)
            except (TimeoutError, EffectError):
                pass  # whether it is, and whether it was abandoned before that, is a matter of chance
        case "sleep":
            await ctx.sleep(each.seconds)
        case "ask":
            reply = await ctx.ask("confirm", {"line": line})
            assert reply.resolution == {"line": line}
        case "expires":
            assert (await ctx.ask("nobody", {"line": line}, timeout=each.seconds + 0.1)).expired
        case "wait":
            assert await ctx.wait(line) == line
        case "gather":
            beside = [_perform(ctx, inner, f"{line}/{at}", tools) for at, inner in enumerate(each.steps)]
            return await asyncio.gather(*beside)
        case "child":
            return await ctx.child("helper", {"id": line, "k": line[-1], "fails": 0, "round": 0})
    return f"{each.kind} {line}"


# -- the world and its people ---------------------------------------------------------------------------------------------


@dataclass
class World:
    """What really happened, by the name of the effect. keys: under which idempotency key. abandoned: by the person, and not done."""

    done: Counter[str] = field(default_factory=Counter)
    calls: Counter[str] = field(default_factory=Counter)
    keys: dict[str, str] = field(default_factory=dict)
    abandoned: set[str] = field(default_factory=set)
    wrong: list[str] = field(default_factory=list)

    def do(self, line: str, each: Step) -> None:
        with step("call", line):
            if each.effect != "idempotent" or not self.done[line]:  # a service that honours keys
                self.done[line] += 1

    def found(self, effect: Effect, line: str, *more: Any) -> Any:
        """What the reconciling function says."""
        return (Reconciled.DONE, f"did {line}") if self.done[line] else Reconciled.NOT_DONE

    def tool(self, each: Step, dice: Dice) -> Tool:
        """The tool of a step, for one life. Its faults come in the first calls only."""
        waits = dice.choice([0.0, 0.05, 0.5])
        fault, _, when = each.does.partition(" ")

        def begins(line: str, effect: Effect) -> bool:
            """-> whether this call goes wrong."""
            if self.keys.setdefault(line, effect.key) != effect.key:
                self.wrong.append(f"{line} has another key than before")
            self.calls[line] += 1
            faulty = self.calls[line] == 1 and fault != "works"
            if faulty and fault == "not":
                raise NotSent("no line")
            return faulty

        def breaks(line: str) -> None:
            raise ConnectionResetError(f"{line} broke")

        def act(line: str, *more: Any, effect: Effect) -> str:
            faulty = begins(line, effect)
            if faulty and when == "before":
                breaks(line)
            self.do(line, each)
            if faulty:
                breaks(line)
            return f"did {line}"

        async def act_later(line: str, *more: Any, effect: Effect) -> str:
            faulty = begins(line, effect)
            for moment in ("before", "after"):
                if dice.random() < 0.5:
                    await asyncio.sleep(waits * dice.random())
                if faulty and when == moment:
                    if fault == "hangs":
                        await asyncio.sleep(10_000)
                    breaks(line)
                if moment == "before":
                    self.do(line, each)
            return f"did {line}"

        found = self.found if each.effect == "reconcilable" else None
        options: dict[str, Any] = {"effect": "unsafe"} if found else {"effect": each.effect}
        return tool(
            **options, reconcile=found, timeout=each.timeout_s, retries=50, backoff="10ms", name=f"act_{each.effect}"
        )(act if each.sync else act_later)


@dataclass
class Person:
    """Answers the questions in a journal, and sends the signals that are waited for; whether the app runs or not.

    What somebody is asked about an effect in doubt is answered by what the world knows; sometimes an effect that was not made is abandoned.
    """

    world: World
    dice: Dice
    answered: set[str] = field(default_factory=set)

    def look(self, folder: Path) -> None:
        """Reads the journal, and answers about the half of it. Raises what a step raises."""
        reader, inbox = SqliteReader(folder), SqliteInbox(folder)
        try:
            intents = [entry for _, entry in reader.read() if isinstance(entry, Intent)]
            calls = {(each.job, each.ordinal): each for each in intents if each.kind == "call"}
            for each in intents:
                letter = self.letter(each, calls.get((each.job, each.ordinal)))
                if letter is None or letter.token in self.answered or self.dice.random() < 0.5:
                    continue
                try:
                    inbox.post(letter)
                except LetterRefused as refused:
                    if refused.reason not in ("second", "closed"):
                        raise
                self.answered.add(letter.token)
                if b"abandon" in letter.body:
                    self.world.abandoned.add(letter.name)
        finally:
            inbox.close()
            reader.close()

    def letter(self, asked: Intent, call: Intent | None) -> Letter | None:
        match asked.kind, asked.name:
            case "wait", name:
                return Letter(
                    "signal", f"{asked.job} {asked.ordinal}", job=asked.job, name=name, body=json.dumps(name).encode()
                )
            case "ask", "confirm":
                return Letter("answer", asked.token, body=bytes(asked.body))  # type: ignore[arg-type]
            case "ask", "in_doubt":
                assert call is not None
                line = unpack(call.body)[0][0]  # type: ignore[arg-type]
                said: dict[str, Any] = {"outcome": "not_done"}
                if self.world.done[line]:
                    said = {"outcome": "done", "result": f"did {line}"}
                elif random.Random(f"abandon {line}").random() < 0.2:
                    said = {"outcome": "abandon"}
                return Letter("answer", asked.token, name=line, body=json.dumps(said).encode())
        return None


# -- a seed's agents ------------------------------------------------------------------------------------------------------


class Jobs:
    """One or two durable agents behind each other, perhaps a third one for children, and the messages that they get."""

    def __init__(self, number: int, sink: Callable[[str], Any]) -> None:
        """sink: makes one of this name that survives the lives."""
        dice = self.dice = random.Random(f"jobs {number}")
        self.world = World()
        self.person = Person(self.world, random.Random(f"person {number}"))
        self.helper = Program("helper", make_steps(dice, 3)) if dice.random() < 0.4 else None
        children = self.helper is not None
        rounds = [1, 1, 1, 2, 3]
        self.last = Program("last", make_steps(dice, 4, children=children), dice.choice(rounds))
        self.first = None
        if dice.random() < 0.4:
            self.first = Program(
                "first", make_steps(dice, 3, children=children), dice.choice(rounds), dice.choice([1, 2])
            )
        self.keyed = dice.random() < 0.7
        self.once = dice.random() < 0.8
        keys = dice.choice([["a"], ["a", "b", "c"]])
        self.messages = [
            {"id": f"m{at}", "k": dice.choice(keys), "fails": dice.choice([0] * 6 + [1, RETRIES, 99]), "round": 0}
            for at in range(dice.choice([2, 5, 12]))
        ]
        self.script: list[Any] = []
        for message in self.messages:
            self.script += [message, BARRIER] if dice.random() < 0.1 else [message]
        self.script.append(END)
        self.rows, self.letters = sink("rows of jobs"), sink("letters of jobs")
        self.looks_s = dice.choice([0.2, 1.0])  # so often timers and inboxes are looked at

    @property
    def programs(self) -> list[Program]:
        return [each for each in (self.first, self.last, self.helper) if each is not None]

    def add(self, app: App, folder: Path, dice: Dice) -> None:
        """The agents of a life. folder: where its journal is."""
        tools = {
            each: self.world.tool(each, dice)
            for program in self.programs
            for _, each in program.named("")
            if each.kind in ("call", "given", "impatient")
        }

        def options(program: Program) -> dict[str, Any]:
            mailbox = dice.choice([1, 2, 10_000])
            keyed = {"key": "k", "mailbox": mailbox} if self.keyed or program is self.helper else {}
            return keyed | {
                "name": program.agent,
                "durable": True,
                "concurrency": dice.choice([1, 2, 8]),
                "delivery": "exactly_once" if self.once else "at_least_once",
                "on_error": "retry",
                "retries": RETRIES,
                "backoff": "50ms",
                "dead_letter": self.letters,
            }

        async def walk(ctx: DurableContext, program: Program) -> list[Any]:
            message = ctx.message
            said = await perform(ctx, program.steps, f"{message['id']}.{message['round']}", tools)
            if ctx.attempt <= message["fails"]:
                raise ValueError("not yet")
            if message["round"] < program.rounds - 1:
                ctx.continue_as({**message, "round": message["round"] + 1})
            return said

        async def last(ctx: DurableContext) -> dict[str, Any]:
            seen = (await ctx.state().get("seen") or 0) + 1
            await ctx.state().put("seen", seen)
            said = await walk(ctx, self.last)
            return {"id": ctx.message["id"], "k": ctx.message["k"], "said": said, "seen": seen}

        async def helper(ctx: DurableContext) -> list[Any]:
            assert self.helper is not None
            return await walk(ctx, self.helper)

        async def first(ctx: DurableContext) -> AsyncIterator[dict[str, Any]]:
            assert self.first is not None
            await walk(ctx, self.first)
            for copy in range(self.first.copies):
                yield {**ctx.message, "id": f"{ctx.message['id']}-{copy}", "round": 0}

        source = ScriptedSource(self.script, name="messages")
        if self.helper is not None:
            app.agent(ScriptedSource([END], name="no messages"), **options(self.helper))(helper)
        if self.first is None:
            app.agent(source, sink=self.rows, **options(self.last))(last)
        else:
            app.agent(sink=self.rows, **options(self.last))(last)
            app.agent(source, sink=last, **options(self.first))(first)
        self.life = asyncio.get_running_loop().create_task(self.beside(app, folder, dice))

    async def beside(self, app: App, folder: Path, dice: Dice) -> None:
        """A person at work while the app runs, who sees jobs that are blocked, and an end that does not come."""
        wait_s = dice.choice([0.2, 1.0, 2.0])
        loop = asyncio.get_running_loop()
        while loop.time() < SETTLED_SECONDS:
            await asyncio.sleep(wait_s * dice.random())
            if app.agent_runtime.runner.started:
                try:
                    self.person.look(folder)
                except (SabotError, OSError):
                    continue  # a fault of the simulation, or its crash
                blocked = app.statistics()["jobs"]["blocked"]
                if blocked:
                    self.world.wrong.append(f"blocked: {blocked}")
                    break
        else:
            self.world.wrong.append(f"jobs are not over: {app.statistics()['jobs']}")
        app.request_stop()

    # -- the answer ---------------------------------------------------------------------------------------------------

    def check(self) -> None:
        world = self.world
        rows, letters = self.expected()
        found = Counter(_named_row(row) for row in self.rows.rows)
        assert not world.wrong, "; ".join(world.wrong)
        lines = Counter({line: count for line, count in world.done.items() if count > 1 and self.classes[line] in ONCE})
        assert not lines, f"done more than once: {lines}"
        lost = [line for line in self.wanted if world.done[line] != 1 and self.classes[line] != "local"]
        lost = [line for line in lost if self.classes[line] in ONCE or not world.done[line]]
        assert not lost, f"lost: {lost}"
        told = Counter(row["id"] for row in self.letters.rows)
        for line in [line for line in told if "/" in line]:  # of a child, which each attempt of its parent asks for
            assert line in letters, f"a letter of {line}"
            del told[line]
        letters = [line for line in letters if "/" not in line]
        if not self.once:
            found, told = Counter(set(found)), Counter(set(told))
        assert found == Counter(rows), f"rows of jobs: {found - Counter(rows)} {Counter(rows) - found}"
        assert told == Counter(letters), f"letters of jobs: {told - Counter(letters)} {Counter(letters) - told}"
        if self.keyed:
            seen = Counter((row["k"], row["seen"]) for row in self.rows.rows)
            per_key = Counter(k for k, _ in seen)
            assert set(seen) == {(k, n + 1) for k, count in per_key.items() for n in range(count)}, f"state: {seen}"

    def expected(self) -> tuple[list[str], list[str]]:
        """Rows and letters. Sets `wanted`, the effects that are made for certain, and `classes`, those of all effects."""
        self.classes: dict[str, str] = {}
        self.wanted: list[str] = []
        letters: list[str] = []
        messages = self.messages
        if self.first is not None:
            passed = [each for each in messages if not self.fails(self.first, each, letters, self.wanted)]
            messages = [{**each, "id": f"{each['id']}-{copy}"} for each in passed for copy in range(self.first.copies)]
        rows = []
        for each in messages:
            if not self.fails(self.last, each, letters, self.wanted):
                said = answer(self.last.steps, f"{each['id']}.{self.last.rounds - 1}", self.helper)
                rows.append(json.dumps([each["id"], each["k"], said]))
        return rows, letters

    def fails(self, program: Program, message: dict[str, Any], letters: list[str], wanted: list[str]) -> bool:
        """Whether the job of this message ends as a dead letter. wanted: gets the effects that it makes for certain."""
        bad, abandoned = message["fails"] > RETRIES, False
        made: list[str] = []
        for line, each in program.named(message["id"]):
            self.classes[line] = each.effect
            if bad and not line.startswith(f"{message['id']}.0/"):
                continue
            if each.kind == "child":
                assert self.helper is not None
                abandoned |= self.fails(self.helper, {"id": line, "fails": 0}, letters, made)
            elif each.kind in ("call", "given"):
                made.append(line)
                abandoned |= line in self.world.abandoned
        if bad or abandoned:
            letters.append(message["id"])
        if not abandoned:  # else what stands behind it is not asked for
            wanted += made
        return bad or abandoned

    def __str__(self) -> str:
        return f"jobs: {len(self.messages)} messages, keyed {self.keyed}, once {self.once}, {self.programs}"


def _named_row(row: dict[str, Any]) -> str:
    return json.dumps([row["id"], row["k"], row["said"]])
