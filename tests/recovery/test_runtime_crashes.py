"""The agent runtime under crashes at every step: what the ledger, the budget, the policy, the children and the views say afterwards."""

import asyncio
import functools
import json
import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from recovery import runtime_apps as apps

from sabot.agents import InMemoryLedgerWriter, Ledger
from sabot.agents.accounts.journal_rows import update_ledger
from sabot.jobs.guard import Decision, decode_verdict
from sabot.journal import open_reader
from sabot.journal.entries import Begin, EffectResult, End, Entry, Intent
from sabot.llm import Completion, Usage, assistant
from sabot.testing import FakeModelServer, crash_at_every_step

ANSWER = Usage(20, 10)
PRELOAD = (
    "anyio._backends._asyncio",
    "h11",
    "httpcore2",
    "jiter",
    "openai.resources.chat.chat",
    "openai.resources.embeddings",
    "sabot.agents.kernel",
    "sabot.llm.providers.openai",
    "recovery.runtime_apps",
)
_TABLE = "SELECT event_id, type, total_tokens, reserved_tokens FROM runtime_ledger"


@pytest.fixture
def model() -> Iterator[FakeModelServer]:
    """It counts what it is asked, and what its answers cost."""
    said = Completion(message=assistant("yes"), usage=ANSWER, model="small", provider="fake")
    with FakeModelServer(lambda spec: said) as server:
        yield server


def prepare(model: FakeModelServer, directory: Path) -> None:
    (directory / apps.MODEL).write_text(model.openai_url)


def check(model: FakeModelServer, directory: Path) -> Any:
    """-> what is the same wherever it died: the jobs that have ended."""
    with closing(open_reader(directory / "state")) as reader:
        entries = [entry for _, entry in reader.read()]
        rebuilt = asyncio.run(rows_of_journal(reader))
    with closing(sqlite3.connect(directory / "state" / "ledger.db")) as database:
        rows = database.execute(_TABLE).fetchall()
    assert sorted(rows) == sorted(rebuilt), "the ledger is not what the journal says"
    asked = [request for request in model.requests if request.text.split()[0] == directory.name]
    calls_are_counted(rows, len(asked))
    verdicts_hold(entries, apps.lines(directory, apps.CALLS))
    jobs = {entry.job for entry in entries if isinstance(entry, Begin)}
    ended = {entry.job: entry.outcome for entry in entries if isinstance(entry, End)}
    assert ended == dict.fromkeys(jobs, "succeeded"), "a job has not ended"
    assert len(jobs) == 2 * apps.JOBS, f"{jobs}: each job has one child"
    told = {line.split()[0] for line in apps.lines(directory, apps.EVENTS) if line.endswith("final.result")}
    assert {name.rpartition("/0/")[0] for name in told} == jobs, "nobody was told of the end of a job"
    results = [json.loads(line) for line in apps.lines(directory, "out.ndjson")]
    return sorted({each["id"] if isinstance(each, dict) else each for each in results})


async def rows_of_journal(reader: Any) -> list[tuple[Any, ...]]:
    writer = InMemoryLedgerWriter()
    await update_ledger(Ledger(writer), reader)
    return [(row.event_id, row.type, row.total_tokens, row.reserved_tokens) for row in writer.events]


def calls_are_counted(rows: list[tuple[Any, ...]], asked: int) -> None:
    """The ledger has each call that the model saw, and the budget holds whatever became of those in doubt."""
    answers = [tokens for _, kind, tokens, _ in rows if kind == "model"]
    doubts = [reserved for _, kind, _, reserved in rows if kind == "doubt"]
    assert len(answers) <= asked <= len(answers) + len(doubts), f"{asked} calls, and the ledger has {rows}"
    assert set(answers) <= {ANSWER.total_tokens}
    tokens = asked * ANSWER.total_tokens
    assert sum(answers) <= tokens <= sum(answers) + sum(doubts)
    assert sum(answers) + sum(doubts) <= apps.LIMIT, "more may have been used than the budget has"


def verdicts_hold(entries: list[Entry], made: list[str]) -> None:
    """What came of each effect is what was decided of it, once, whichever rules a later life had. Only a call about which a person was
    asked, and of which no attempt had begun, may be denied by the rules of a later life (decision 162).
    """
    intents = [entry for entry in entries if isinstance(entry, Intent) and entry.kind in ("call", "child")]
    assert max(Counter((each.job, each.ordinal) for each in intents).values()) == 1
    outcomes = {(each.job, each.ordinal): each.outcome for each in entries if isinstance(each, EffectResult)}
    done = 0
    for intent in intents:
        verdict, outcome = decode_verdict(intent.note), outcomes[intent.job, intent.ordinal]
        assert verdict is not None
        if verdict.decision is Decision.DENY:
            assert outcome == verdict.error
        elif verdict.decision is Decision.ASK:
            assert outcome in ("ok", "PolicyDenied"), f"{intent}: {outcome}"
        else:
            assert outcome in (("ok", "BudgetExceeded") if verdict.about else ("ok",)), f"{intent}: {outcome}"
        done += outcome == "ok" and intent.name in ("pay", "wipe")
    assert len(made) == len(set(made)) == done, f"{done} calls of tools were recorded, and made were {made}"


def crashed(build: Any, model: FakeModelServer, **how: Any) -> Any:
    checks = functools.partial(check, model)
    return crash_at_every_step(build, checks, prepare=functools.partial(prepare, model), preload=PRELOAD, **how)


def test_a_kernel_that_dies_at_some_steps_counts_each_call_and_keeps_each_verdict(model: FakeModelServer) -> None:
    crashes = crashed(apps.kernel, model, sample=2, seed=1)
    assert crashes.runs == 2


@pytest.mark.slow  # a hundred lives of a process; without `sample=` all of its steps, which takes minutes
@pytest.mark.parametrize(("build", "deaths"), [(apps.app, 1), (apps.kernel, 2)])
def test_wherever_it_dies_each_call_is_counted_and_each_verdict_holds(
    build: Any, deaths: int, model: FakeModelServer
) -> None:
    crashes = crashed(build, model, workers=2, sample=40 // deaths, deaths=deaths)
    print(crashes)
    assert {"journal", "call", "outcome", "ledger"} <= crashes.kinds.keys()
    assert crashes.died >= 0.7 * crashes.runs
