"""What random jobs (`programs`) may do: rules and a budget that decide, a person who allows or refuses, and what must hold of it all."""

import asyncio
import random
import re
from collections import Counter
from collections.abc import Awaitable, Collection, Iterator, Mapping, Sequence
from copy import copy
from typing import Any

from sabot.agents.accounts.budgets import Budget
from sabot.agents.accounts.guard import LedgerGuard
from sabot.agents.accounts.ledger import Ledger
from sabot.agents.accounts.rows import InMemoryLedgerWriter
from sabot.base.accounts import Amounts
from sabot.base.redaction import HIDDEN
from sabot.engine.calls.effects import EffectId
from sabot.engine.calls.model_requests import RequestSpec
from sabot.jobs.guard import Decision, EffectGuard, EffectGuards, GuardedCall, GuardVerdict, OpenCall
from sabot.journal import Journal
from sabot.journal.entries import Intent

SCOPE = "app"
SECRET = "4111-1111"
CHEAP = "cheap"
ANSWER_TOKENS = 20
DENIED = ("PolicyDenied", "BudgetExceeded")


def some_verdict(dice: random.Random, kind: str) -> dict[str, Any]:
    """What is decided of a step of this kind: "call", "model" or "child"."""
    decisions = {"allow": 6, "warn": 1, "deny": 1, "ask": 2}
    if kind != "child":
        decisions["redact"] = 1
    if kind == "model":
        decisions["degrade"] = 1
    decision = dice.choices(list(decisions), list(decisions.values()))[0]
    late_s = dice.choice((None, None, 0.0, 0.02))
    return {"verdict": decision, "wait_s": dice.choice((0.0, 0.0, 0.5, 3.0)), "late_s": late_s}


_NO_LIMIT = 10**12


class Rows(InMemoryLedgerWriter):
    """The rows of a ledger, and how many of them there were with its last mark."""

    marked = 0

    async def note(self, notes: Mapping[str, str]) -> None:
        await super().note(notes)
        self.marked = len(self.events)


class Law:
    """The rules of a seed, its ledger, and what has come of them in all lives. wrong: where things that must not be are told."""

    def __init__(self, dice: random.Random, steps: Iterator[dict[str, Any]], wrong: list[str]) -> None:
        self.wrong = wrong
        self.limit = dice.choice((None, 100, 400, 1500))  # tokens
        self.writer = Rows()
        self.of_step = {step["n"]: some_verdict(dice, step["kind"]) for step in steps}
        self.names: dict[tuple[str, int], str] = {}  # of effects that were decided
        self.approved: set[str] = set()
        self.paid: Counter[str] = Counter()  # calls of models, by job

    def of(self, name: str) -> dict[str, Any]:
        """What is decided of the step of this name."""
        found: dict[str, Any] = self.of_step[int(name.rpartition("/")[2].partition(".")[0])]
        return found

    def answered(self, intent: Intent, approved: bool) -> None:
        """A person's answer was accepted."""
        if approved:
            self.approved.add(self.names[intent.job, intent.ordinal])

    def made(self, name: str, word: str) -> None:
        """The world sees a call of this step."""
        verdict = self.of(name)["verdict"]
        if verdict == "deny":
            self.wrong.append(f"{name} was denied, and made")
        if verdict == "ask" and name not in self.approved:
            self.wrong.append(f"{name} was made, and nobody has allowed it")
        if word != (HIDDEN if verdict == "redact" else SECRET):
            self.wrong.append(f"{name} ({verdict}) was made with {word!r}")

    def asked(self, spec: RequestSpec) -> str:
        """A model is asked. -> the name of the step."""
        name, word = spec.messages[-1].text.split()
        self.made(name, word)
        if (spec.model == CHEAP) != (self.of(name)["verdict"] == "degrade"):
            self.wrong.append(f"{name} ({self.of(name)['verdict']}) asks model {spec.model!r}")
        self.paid[name.partition("/")[0]] += 1
        return name

    def may_deny(self, name: str, error: str) -> bool:
        """Whether a job may see this error of a step."""
        verdict = self.of(name)["verdict"]
        if error == "BudgetExceeded":
            return self.limit is not None
        return verdict == "deny" or (verdict == "ask" and name not in self.approved)

    def crashed(self) -> None:
        """The last rows may be lost, but for those before a mark, and what the dead life still writes while it is closed."""
        rows = self.writer.events
        lost = random.Random(f"rows {len(rows)}").choice((0, 1, 3))

        async def left() -> "Rows":
            writer = Rows()
            await writer.write(rows[: max(len(rows) - lost, self.writer.marked)])
            await writer.note(await self.writer.notes(""))
            return writer

        self.writer = asyncio.run(left())

    def check(self) -> None:
        """All jobs are over: what the ledger says against what the world has seen."""
        rows = [row for row in self.writer.events if row.type != "tool"]
        answered = Counter(row.job_id for row in rows if row.type == "model")
        counted = Counter(row.job_id for row in rows)
        for job in {*counted, *self.paid}:
            if not answered[job] <= self.paid[job] <= counted[job]:
                told = f"{answered[job]} answers and {counted[job] - answered[job]} doubts"
                self.wrong.append(f"{job} has asked models {self.paid[job]} times, and the ledger has {told}")
        used = sum(row.amounts.tokens for row in rows)
        if self.limit is not None and used > self.limit:
            self.wrong.append(f"{used} tokens may have been used, and the budget has {self.limit}")


class Judges(EffectGuards):
    """The guard of one life: the ledger, and behind it the rules."""

    def __init__(self, law: Law) -> None:
        writer = law.writer = copy(
            law.writer
        )  # the same rows: the ledger of the life before has ended with its process
        self.ledger = LedgerGuard(Ledger(writer, budgets=[Budget(SCOPE, max_tokens_monthly=law.limit or _NO_LIMIT)]))
        super().__init__((self.ledger, _Rules(law)))

    def check_nothing_reserved(self, law: Law) -> None:
        """All jobs are over."""
        reserved = self.ledger.ledger._accounts.by_scope[SCOPE].reserved
        if reserved != Amounts() or self.ledger._open:
            law.wrong.append(f"reserved at the end: {reserved}, of {self.ledger._open}")


class _Rules(EffectGuard):
    declared = frozenset({"policy"})

    def __init__(self, law: Law) -> None:
        self._law = law
        self._decided: set[tuple[str, int]] = set()  # what the journal has, or will have

    async def take(self, journal: Journal, jobs: Collection[str], calls: Sequence[OpenCall]) -> None:
        kinds = ("call", "child")
        entries = [entry for _, entry in journal.read()]
        self._decided = {(e.job, e.ordinal) for e in entries if isinstance(e, Intent) and e.kind in kinds}

    def decide(self, call: GuardedCall) -> GuardVerdict | Awaitable[GuardVerdict]:
        if call.after == "again":
            return GuardVerdict()
        effect = call.effect.job, call.effect.ordinal
        match call.kind:
            case "model":
                assert call.spec is not None
                name = call.spec.messages[-1].text.split()[0]
            case "tool":
                name = call.args[0]["name"]
            case "child":
                name = f"{call.effect.job}/{call.args[0]['n']}.0"
        if effect in self._decided:
            self._law.wrong.append(f"{name} ({effect}) was decided twice")
        self._decided.add(effect)
        self._law.names[effect] = name
        said = self._law.of(name)
        verdict = GuardVerdict(
            Decision(said["verdict"]),
            rule="of the step",
            version="1",
            model=CHEAP if said["verdict"] == "degrade" else "",
            hide=(re.escape(SECRET),) if said["verdict"] == "redact" else (),
            wait_s=said["wait_s"],
        )
        return verdict if said["late_s"] is None else self._later(verdict, said["late_s"])

    async def _later(self, verdict: GuardVerdict, seconds: float) -> GuardVerdict:
        await asyncio.sleep(seconds)
        return verdict

    def drop(self, effect: EffectId) -> None:
        self._decided.discard((effect.job, effect.ordinal))
