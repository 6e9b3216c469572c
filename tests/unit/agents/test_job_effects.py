"""The effects of a job as its entries say, and pages of a list of jobs."""

from collections.abc import Iterable, Iterator, Mapping
from decimal import Decimal
from itertools import chain
from pathlib import Path
from typing import Any

import msgspec
import pytest

from sabot import App
from sabot._cython.text.records import state_key
from sabot.agents import DurableContext
from sabot.agents.accounts.budgets import Amounts
from sabot.agents.accounts.contract import LedgerEvent
from sabot.agents.actions import ActionStatus
from sabot.agents.app_jobs import AppJobStore
from sabot.agents.job_effects import EffectRecord, effect_record, effects_of, family_of, folded_job
from sabot.agents.job_history import job_keeping
from sabot.agents.job_reads import find_jobs, jobs_page, short_jobs_page
from sabot.agents.job_view import EffectView, JobView
from sabot.agents.jobs import JobRecord, JobStatus
from sabot.agents.questions import find_question, read_questions
from sabot.agents.replay import record_job
from sabot.errors import UserError
from sabot.jobs.guard import Decision, GuardVerdict, encode_verdict
from sabot.jobs.tree import child_id
from sabot.journal.base import Position
from sabot.journal.ended_jobs import BLOCKED, JobQuery
from sabot.journal.entries import Answer, Attempt, Begin, Cancel, EffectResult, End, Entry, Intent, Signal
from sabot.journal.memory import MemoryJournal
from sabot.testing import ManualClock
from tools.agent_tools import publish, started, until

USED = msgspec.msgpack.encode(
    [LedgerEvent(event_id="1", type="model", scope_id="s", input_tokens=90, output_tokens=10, cost=Decimal("0.25"))]
)


DOUBT = msgspec.msgpack.encode(
    [LedgerEvent(event_id="2", type="doubt", scope_id="s", cost=Decimal("0.75"), reserved_tokens=500)]
)


def call(ordinal: int, at: int = 1000, job: str = "j", note: bytes = b"") -> Intent:
    return Intent(job, at, ordinal, "call", "pay", effect_class="unsafe", note=note)


def family(journal: MemoryJournal, job_id: str) -> tuple[list[JobRecord], Amounts, Amounts]:
    return family_of(journal, folded_job(journal, job_id))


class Folded:
    """The view of job "j", with all of its effects."""

    def __init__(self, *entries: Entry) -> None:
        self.view = JobView()
        self._effects: dict[int, EffectView] = {}
        self.add(Begin("j", 0, "shop.handle"), *entries)

    def add(self, *entries: Entry) -> None:
        self._effects |= effects_of(self.view, entries)

    @property
    def effects(self) -> dict[int, EffectRecord]:
        return {ordinal: effect_record(each, MemoryJournal()) for ordinal, each in self._effects.items()}

    @property
    def job(self) -> JobRecord:
        return self.view.present("j")


def test_what_a_call_may_have_cost_is_in_doubt_until_that_is_known() -> None:
    bound = Amounts(500, Decimal("0.75"), 1)
    doubt = LedgerEvent(event_id="1", type="doubt", scope_id="s", cost=bound.cost, reserved_tokens=bound.tokens)
    known = LedgerEvent(
        event_id="1",
        type="model",
        scope_id="s",
        input_tokens=90,
        output_tokens=10,
        cost=Decimal("0.25"),
        settles=bound[:3],
    )
    folded = Folded(call(1), EffectResult("j", 2000, 1, outcome="ModelTimeout", usage=msgspec.msgpack.encode([doubt])))
    (effect,) = folded.effects.values()
    assert (effect.tokens, effect.dollars) == (500, Decimal("0.75")), "the use that budgets count"
    assert (effect.doubt_tokens, effect.doubt_dollars) == (500, Decimal("0.75"))
    folded.add(End("j", 3000, "failed", usage=msgspec.msgpack.encode([known])))
    state = folded.view.states["j"]
    assert (state.used.tokens, state.used.cost) == (100, Decimal("0.25"))
    assert (state.doubts.tokens, state.doubts.cost) == (0, 0)


def test_a_call_has_its_attempts_its_result_and_its_use() -> None:
    note = encode_verdict(GuardVerdict(Decision.WARN, "large"))
    made = Folded(call(1, note=note), Attempt("j", 2000, 1, 2), EffectResult("j", 3000, 1, 2, usage=USED))
    effect = made.effects[1]
    assert (effect.state, effect.attempts, effect.asked_at, effect.ended_at) == ("done", 2, 1.0, 3.0)
    assert (effect.decision, effect.rule, effect.tokens, effect.dollars) == ("warn", "large", 100, Decimal("0.25"))
    assert (made.job.tokens, made.job.dollars) == (100, Decimal("0.25"))


def test_the_answer_to_a_question_about_an_effect_does_not_end_the_effect() -> None:
    question = Intent("j", 2000, 1, "ask", "in_doubt", token="t")
    asked = Folded(call(1), question)
    assert asked.effects[1].state == "in_doubt"
    assert asked.effects[1].is_open
    asked.add(Answer("j", 3000, 1, "t", by="bob"))
    assert (asked.effects[1].state, asked.effects[1].by, asked.effects[1].ended_at) == ("open", "bob", None)
    asked.add(EffectResult("j", 4000, 1))
    assert (asked.effects[1].kind, asked.effects[1].state) == ("call", "done")


def test_an_effect_says_who_has_answered_the_questions_about_it_how_and_when() -> None:
    made = Folded(
        call(1),
        Intent("j", 2000, 1, "ask", "confirm", token="may"),
        Answer("j", 3000, 1, "may", body=b'{"approved": true, "reason": "small"}', by="ann"),
        Intent("j", 4000, 1, "ask", "in_doubt", token="was"),
        Answer("j", 5000, 1, "was", body=b'{"outcome": "look_up"}', by="bob"),
        Intent("j", 6000, 1, "ask", "in_doubt", token="was it"),
        Answer("j", 7000, 1, "was it", body=b'{"outcome": "done", "result": {"payment": 7}}', by="cid"),
        EffectResult("j", 8000, 1),
        call(2, 9000),
        Intent("j", 9000, 2, "ask", "confirm", token="late"),
        Answer("j", 9500, 2, "late", "expired"),
    )
    assert [(each.question, each.answer, each.by, each.at) for each in made.effects[1].answers] == [
        ("confirm", "approve", "ann", 3.0),
        ("in_doubt", "look-up", "bob", 5.0),
        ("in_doubt", "done", "cid", 7.0),
    ]
    assert [(each.answer, each.by) for each in made.effects[2].answers] == [("expired", "")]


def test_an_effect_that_was_looked_up_again_says_what_was_found() -> None:
    made = Folded(
        call(1),
        Intent("j", 2000, 1, "ask", "confirm", token="may"),
        Answer("j", 3000, 1, "may", body=b'{"approved": true}', by="ann"),
        Attempt("j", 3500, 1, 1),
        Intent("j", 4000, 1, "ask", "in_doubt", token="was"),
        Answer("j", 5000, 1, "was", body=b'{"outcome": "look_up"}', by="bob"),
    )

    def found() -> list[tuple[str, float | None]]:
        return [(each.found, each.again_at) for each in made.effects[1].answers]

    assert found() == [("", None), ("", None)], "the look-up is under way, and the first call was not made again"
    made.add(Intent("j", 6000, 1, "ask", "in_doubt", token="was it"))
    assert found()[1:] == [("unknown", None)]
    made.add(Answer("j", 7000, 1, "was it", body=b'{"outcome": "look_up"}', by="bob"))
    assert found()[1:] == [("unknown", None), ("", None)]
    made.add(Attempt("j", 8000, 1, 2), Attempt("j", 9000, 1, 3), EffectResult("j", 9500, 1, 3))
    assert found()[1:] == [("unknown", None), ("not done", 8.0)]


@pytest.mark.parametrize(("outcome", "state"), [("resolved", "answered"), ("expired", "expired"), ("no", "withdrawn")])
def test_a_question_ends_with_its_answer(outcome: str, state: str) -> None:
    made = Folded(Intent("j", 1000, 1, "ask", "confirm", token="t"), Answer("j", 2000, 1, "t", outcome, by="bob"))
    assert (made.effects[1].state, made.effects[1].by) == (state, "bob")


def test_a_failed_effect_is_open_again_with_its_next_attempt() -> None:
    made = Folded(call(1), EffectResult("j", 2000, 1, outcome="Timeout"))
    assert (made.effects[1].state, made.effects[1].outcome) == ("failed", "Timeout")
    made.add(Attempt("j", 3000, 1, 2))
    assert (made.effects[1].state, made.effects[1].outcome, made.effects[1].ended_at) == ("open", "", None)


def test_a_denied_call_is_not_a_failed_one() -> None:
    note = encode_verdict(GuardVerdict(Decision.DENY, "never"))
    made = Folded(call(1, note=note), EffectResult("j", 2000, 1, outcome="PolicyDenied"))
    assert made.effects[1].state == "denied"


def test_a_signal_ends_a_wait_also_if_it_comes_before() -> None:
    made = Folded(
        Signal("j", 500, "paid", "a"), Intent("j", 1000, 1, "wait", "paid"), Intent("j", 1500, 2, "wait", "paid")
    )
    assert [each.state for each in made.effects.values()] == ["done", "open"]
    made.add(Signal("j", 2000, "paid", "b", by="bank"))
    assert (made.effects[2].state, made.effects[2].by) == ("done", "bank")


def test_the_end_and_a_new_beginning_close_what_is_open() -> None:
    made = Folded(Intent("j", 1000, 1, "sleep"), Begin("j", 2000, "shop.handle"), Intent("j", 2500, 2, "sleep"))
    assert [each.state for each in made.effects.values()] == ["closed", "open"]
    made.add(End("j", 3000, "cancelled", usage=USED))
    assert [each.state for each in made.effects.values()] == ["closed", "closed"]
    assert made.job.tokens == 100


def test_a_job_is_read_with_its_children_and_what_they_cost() -> None:
    journal, child = MemoryJournal(), child_id("j", 1)
    grandchild = child_id(child, 1)
    for entry in [
        Begin("j", 1, "shop.handle"),
        Intent("j", 2, 1, "child", "shop.help"),
        Begin(child, 3, "shop.help"),
        Intent(child, 4, 1, "child", "shop.deep"),
        Begin(grandchild, 5, "shop.deep"),
        call(1, 6, grandchild),
        EffectResult(grandchild, 7, 1, usage=USED),
        call(2, 8, child),
        EffectResult(child, 9, 2, usage=USED),
    ]:
        journal.append(entry)
    children, used, _ = family(journal, "j")
    assert [each.job_id for each in children] == [child]
    assert (folded_job(journal, "j").record.tokens, used.tokens, used.cost) == (0, 200, Decimal("0.50"))
    with pytest.raises(UserError, match="has no job nobody"):
        folded_job(journal, "nobody")


def test_pages_of_jobs_have_each_selected_job_once_the_newest_first() -> None:
    journal = MemoryJournal()
    for number in range(25):
        journal.append(Begin(f"job-{number:02}", 1000 * (number // 2), "shop.a" if number % 2 else "shop.b", scope="x"))
    journal.append(End("job-24", 99_000, "failed", "broken"))
    seen, after = [], ""
    while True:
        page = jobs_page(journal, JobQuery(after=after), 10)
        assert (page.found, page.counts) == (25, {"running": 24, "failed": 1})
        seen += [job.job_id for job in page.jobs]
        if not (after := page.following):
            break
    assert seen == [f"job-{number:02}" for number in reversed(range(25))]
    assert jobs_page(journal, JobQuery(agent="a")).found == 12
    assert jobs_page(journal, JobQuery(agent="shop.b", status=JobStatus.FAILED)).found == 1
    assert jobs_page(journal, JobQuery(text="JOB-2")).found == 5
    assert jobs_page(journal, JobQuery(scope="y")).found == 0
    assert jobs_page(journal, JobQuery(since=12)).found == 1
    with pytest.raises(UserError, match="no cursor"):
        jobs_page(journal, JobQuery(after="markup:x"))


def test_an_effect_with_a_question_of_its_tool_is_open_again_with_the_answer() -> None:
    made = Folded(call(1), Intent("j", 2000, 1, "ask", "which card?", token="t"))
    assert made.job.status is JobStatus.WAITING_ACTION
    made.add(Answer("j", 3000, 1, "t", by="ann"))
    assert (made.effects[1].state, made.job.status) == ("open", JobStatus.RUNNING)


def test_what_was_open_at_the_end_is_open_again_if_the_dead_letter_is_sent_back() -> None:
    made = Folded(call(1), End("j", 2000, "failed", "broken"))
    assert (made.job.open, made.effects[1].state) == ((), "closed")
    made.add(Begin("j", 3000, "shop.handle"))
    assert ([each.ordinal for each in made.job.open], made.effects[1].state) == ([1], "open")
    assert (made.job.attempt, made.job.created_at, made.job.completed_at) == (2, 0.0, None)


def test_entries_of_a_job_whose_beginning_is_not_there_make_no_job() -> None:
    view = JobView()
    for each in (Attempt("gone", 1, 0, 1), call(1, job="gone"), Cancel("gone", 2), End("gone", 3, "succeeded")):
        view.apply(each)
    assert (list(view.seen()), view.job("gone"), view.cancelled, view.states) == ([], None, {}, {})


def test_a_job_whose_clock_was_set_back_has_not_run_for_less_than_nothing() -> None:
    made = Folded(Intent("j", 5000, 1, "ask", "confirm", token="t"), Answer("j", 1000, 1, "t"))
    assert made.job.ran_seconds == 5.0
    made.add(End("j", 500, "succeeded"))
    assert made.job.ran_seconds == 5.0


def test_a_job_that_runs_has_run_until_its_last_entry_and_goes_on_from_there() -> None:
    made = Folded(call(1), EffectResult("j", 4000, 1))
    record = made.job
    assert (record.updated_at, record.ran_seconds, record.ran_until(6.0)) == (4.0, 4.0, 6.0)
    made.add(End("j", 7000, "succeeded"))
    assert made.job.ran_until(9.0) == 7.0


class ReadsFewJobs(MemoryJournal):
    """Says which jobs were read, and that nobody reads the whole log."""

    def __init__(self) -> None:
        super().__init__()
        self.jobs: list[str] = []

    def read(self, job: str | None = None, start: Mapping[int, int] | None = None) -> Iterator[tuple[Position, Entry]]:
        assert job is not None, "the whole log was read"
        self.jobs.append(job)
        return super().read(job, start)


async def test_lists_and_looks_for_questions_read_the_entries_of_what_they_show() -> None:
    """Each read the whole log: a second for each 100,000 entries, whatever was asked for."""
    journal = ReadsFewJobs()
    for number in range(30):
        journal.append(Begin(f"job-{number}", 1000 * number, "shop.a" if number % 3 else "shop.b", scope="x"))
    for each in (
        Intent("job-3", 40_000, 1, "ask", "confirm", token="t3"),
        Intent("job-4", 41_000, 1, "child", "shop.b"),
        Begin(child_id("job-4", 1), 0, "shop.c"),
        End("job-7", 42_000, "failed", "broken"),
    ):
        journal.append(each)

    def read() -> list[str]:
        found, journal.jobs = sorted(set(journal.jobs)), []
        return found

    page = jobs_page(journal, JobQuery(agent="shop.a"), 2)
    assert ([job.job_id for job in page.jobs], read()) == (["job-29", "job-28"], ["job-28", "job-29"])
    assert (page.found, page.counts) == (20, {"running": 19, "failed": 1})
    (waits,) = jobs_page(journal, JobQuery(status="waiting_action")).jobs
    assert ([effect.kind for effect in waits.open], read()) == (["ask"], ["job-3"])
    assert (jobs_page(journal, JobQuery(text="BROKEN")).found, read()) == (1, ["job-7"])
    found, known = find_jobs(journal, statuses=[JobStatus.WAITING_ACTION, JobStatus.FAILED])
    assert ([job.job_id for job in found], read()) == (["job-3", "job-7"], ["job-3", "job-7"])
    found, known = find_jobs(journal, agent="a", scope="x", statuses=[JobStatus.RUNNING])
    assert (len(found), len(known), known[child_id("job-4", 1)].agent) == (19, 20, "shop.c")
    read()
    (asked,) = read_questions(journal)
    assert (asked.action.resume_token, find_question(journal, "t3").job, read()) == ("t3", asked.job, ["job-3"])
    store = AppJobStore(lambda: None, journal.clock, lambda: journal)
    (action,) = await store.actions(statuses=[ActionStatus.PENDING])
    assert (action.job_id, read()) == ("job-3", ["job-3"])
    assert [job.job_id for job in await store.find(statuses=[JobStatus.FAILED])] == ["job-7"]
    await store.resolve("t3", {"approved": True}, "ann")
    assert await store.actions(statuses=[ActionStatus.PENDING]) == []
    read()
    assert (await store.find(statuses=[JobStatus.WAITING_ACTION]), read()) == ([], ["job-3"])


def test_a_short_page_is_none_if_its_jobs_have_many_entries() -> None:
    journal = MemoryJournal()
    for number in range(5):
        journal.append(Begin(f"job-{number}", 1000 * number, "shop.a"))
    for ordinal in range(1, 11):
        journal.append(call(ordinal, job="job-0"))
    short = short_jobs_page(journal, JobQuery(), 200, 15)
    assert short is not None
    assert len(short.jobs) == 5
    assert short_jobs_page(journal, JobQuery(), 200, 14) is None
    assert short_jobs_page(journal, JobQuery(), 4, 4) is not None, "the job with many is on the next page"
    assert short_jobs_page(journal, JobQuery(text="job"), 1, 4) is None


# -- history ------------------------------------------------------------------------------------------------------------


def entries_of(
    job: str, number: int, *, agent: str = "shop.handle", key: object = "ann", end: str = "succeeded"
) -> list[Entry]:
    """A job that has made one call, for 100 tokens."""
    return [
        Begin(job, number * 1000, agent, key=state_key(key), scope=f"scope {number % 2}", principal="pam"),
        call(1, number * 1000 + 1, job),
        EffectResult(job, number * 1000 + 2, 1, usage=USED),
        End(job, number * 1000 + 3, end, "why"),
    ]


def journal_with(jobs: Iterable[list[Entry]], *, keep: str = "99999d, 1GB") -> MemoryJournal:
    """A journal in which all of these jobs are in the history."""
    journal = MemoryJournal(clock=ManualClock(100.0))
    journal.keeping = job_keeping(keep)
    for each in chain.from_iterable(jobs):
        journal.append(each)
    journal.trim(journal.positions(), 1 << 60)
    assert not list(journal.read())
    return journal


def test_a_job_in_the_history_has_the_record_and_the_story_that_it_had_in_the_log() -> None:
    given = entries_of("j", 1, end="failed")
    logged = MemoryJournal()
    for each in given:
        logged.append(each)
    journal = journal_with([given])
    (found,) = jobs_page(journal, JobQuery()).jobs
    assert found == jobs_page(logged, JobQuery()).jobs[0]
    assert (found.key, found.error) == ("ann", "why")
    assert jobs_page(journal, JobQuery()).used == {"j": (Amounts(100, Decimal("0.25")), Amounts())}
    assert family(journal, "j") == family(logged, "j")
    told, told_before = folded_job(journal, "j"), folded_job(logged, "j")
    assert (told.record, told.actions) == (told_before.record, told_before.actions)
    effects = [[effect_record(each, journal) for each in job.effects.values()] for job in (told, told_before)]
    assert effects[0] == effects[1] != []
    assert told.values(journal) == told_before.values(logged)
    assert find_jobs(journal)[0] == find_jobs(logged)[0]


async def test_a_store_finds_jobs_in_the_order_in_which_they_were_created_wherever_they_are() -> None:
    journal = journal_with(entries_of(f"job-{number}", number) for number in (2, 4))
    for number in (1, 3):
        journal.append(entries_of(f"job-{number}", number)[0])
    found = await AppJobStore(lambda: journal.storage, journal.clock).find()
    assert [(job.job_id, str(job.status)) for job in found] == [
        ("job-1", "running"),
        ("job-2", "succeeded"),
        ("job-3", "running"),
        ("job-4", "succeeded"),
    ]


def test_pages_go_over_the_log_and_the_history() -> None:
    journal = journal_with(entries_of(f"job-{number}", number, key=number % 3) for number in range(8))
    for number in (2, 9):  # the first one begins again
        for each in entries_of(f"job-{number}", number, key=number % 3)[:2]:
            journal.append(each)
    seen, after = [], ""
    while True:
        page = jobs_page(journal, JobQuery(after=after), 3)
        assert (page.found, page.counts) == (9, {"succeeded": 7, "running": 2})
        seen += [job.job_id for job in page.jobs]
        if not (after := page.following):
            break
    assert seen == [f"job-{number}" for number in (9, 7, 6, 5, 4, 3, 2, 1, 0)]

    def found(**query: Any) -> str:
        page = jobs_page(journal, JobQuery(**query))
        assert page.found == len(page.jobs)
        return "".join(job.job_id[-1] for job in page.jobs)

    assert found(status="running") == "92"
    assert found(status="succeeded", key="2") == "5"
    assert found(key="0") == "9630"
    assert found(scope="scope 1", text="PAM") == "97531"
    assert found(agent="handle", since=3.0, until=5.0) == "43"
    assert found(agent="shop.nobody") == ""
    journal.note_blocked({"job-9": "another call", "job-7": "it has ended"})
    assert found(status=BLOCKED) == "9"
    assert found(status=BLOCKED, text="PAM") == "9"
    assert found(status="running") == "2"
    page = jobs_page(journal, JobQuery())
    assert page.counts == {"succeeded": 7, "running": 1, "blocked": 1}
    assert {job.job_id: (job.status, job.blocked) for job in page.jobs if job.blocked} == {
        "job-9": ("running", "another call")
    }
    assert [job.blocked for job in find_jobs(journal, statuses=[BLOCKED])[0]] == ["another call"]
    assert [job.job_id[-1] for job in find_jobs(journal, agent="handle")[0]] == list("013456729")
    with pytest.raises(UserError, match="no job of an agent nobody"):
        find_jobs(journal, agent="nobody")


def test_lists_tell_what_is_in_doubt_from_what_was_spent_in_the_log_and_in_the_history() -> None:
    child = child_id("j", 3)
    made: list[Entry] = [
        Begin("j", 1, "shop.handle"),
        call(1, 2),
        EffectResult("j", 3, 1, usage=USED),
        call(2, 4),
        EffectResult("j", 5, 2, outcome="ModelTimeout", usage=DOUBT),
        Intent("j", 6, 3, "child", "shop.help"),
        Begin(child, 7, "shop.help"),
        call(1, 8, child),
        EffectResult(child, 9, 1, outcome="ModelTimeout", usage=DOUBT),
    ]
    journal = journal_with([])
    for each in made:
        journal.append(each)
    used, doubts = jobs_page(journal, JobQuery()).used["j"]
    assert (used.tokens, doubts.tokens) == (1100, 1000), "with the child"
    assert (used.cost, doubts.cost) == (Decimal("1.75"), Decimal("1.50"))
    assert [each.doubt_tokens for each in find_jobs(journal)[0]] == [500, 500]
    assert family(journal, "j")[2] == Amounts(1000, Decimal("1.50"))
    for each in (End(child, 10, "failed"), End("j", 11, "failed")):
        journal.append(each)
    journal.trim(journal.positions(), 1 << 60)
    assert not list(journal.read())
    assert family(journal, "j")[2].tokens == 1000
    page = jobs_page(journal, JobQuery(key=""))
    assert (page.jobs[-1].doubt_tokens, page.jobs[-1].doubt_dollars) == (500, Decimal("0.75"))
    used, doubts = page.used["j"]
    assert (used.tokens, doubts.tokens) == (1100, 500), "rows of jobs below it are only added up"


def test_a_list_says_what_the_children_of_a_job_have_cost_wherever_they_are() -> None:
    child, other = child_id("j", 1), child_id("j", 2)
    begun: list[Entry] = [
        Begin("j", 1, "shop.handle"),
        *(Intent("j", 2, number, "child", "shop.help") for number in (1, 2)),
    ]
    journal = journal_with([entries_of(child, 1)])
    for each in chain(begun, entries_of(other, 2)):
        journal.append(each)
    children, used, _ = family(journal, "j")
    assert (used.tokens, used.cost, len(children)) == (200, Decimal("0.50"), 2)
    page = jobs_page(journal, JobQuery(text="handle"))
    assert page.jobs[-1].job_id == "j"
    assert (page.used["j"][0].tokens, page.used["j"][0].cost) == (200, Decimal("0.50"))
    journal.append(End("j", 9, "succeeded"))
    journal.trim(journal.positions(), 1 << 60)
    assert family(journal, "j")[1].tokens == 200
    assert jobs_page(journal, JobQuery(text="handle")).used["j"][0].tokens == 200


def test_a_job_that_cannot_be_read_does_not_keep_the_journal_from_being_trimmed() -> None:
    journal = journal_with(
        [[*entries_of("j", 1)[:2], EffectResult("j", 1500, 1, usage=b"?"), End("j", 2000, "failed")]]
    )
    (found,) = jobs_page(journal, JobQuery(text="cannot be read")).jobs
    assert (found.job_id, found.status) == ("j", JobStatus.FAILED)


def test_entries_behind_the_end_of_a_job_that_has_left_the_history_are_gone() -> None:
    journal = journal_with([entries_of("j", 1)], keep="1s, 1GB")
    assert jobs_page(journal, JobQuery()).found == 0
    journal.append(EffectResult("j", 5000, 1))
    journal.append(End("j", 5000, "succeeded"))
    journal.trim(journal.positions(), 1 << 60)
    assert (jobs_page(journal, JobQuery()).found, list(journal.read())) == (0, [])


def test_a_record_of_the_history_can_be_replayed() -> None:
    journal = journal_with([entries_of("j", 1)])
    assert [type(each) for each in record_job(journal, "j").entries] == [Begin, Intent, EffectResult, End]


@pytest.mark.parametrize("keep", ["30d", "30d, ", "soon, 1MB", "0s, 1MB", "1d, -1MB", ""])
def test_what_is_kept_has_a_time_and_a_size(keep: str) -> None:
    with pytest.raises(UserError, match="keep_jobs"):
        App("shop", keep_jobs=keep)
    assert job_keeping("none") is None


@pytest.mark.slow  # half a second of a core
async def test_an_app_finds_the_jobs_of_its_history(memory_url: str, tmp_path: Path) -> None:
    app = App("shop", memory_url, state=str(tmp_path), checkpoint_interval=3600)

    @app.agent("orders", key="customer", sink="answers", durable=True)
    async def handle(ctx: DurableContext) -> Any:
        return {"of": ctx.message["customer"]}

    async with started(app):
        publish(app, "orders", [{"customer": "ann"}, {"customer": "bob"}])
        await until(lambda: app.statistics()["jobs"]["ended"] == 2)
        for _ in range(4):
            await app.agent_runtime.trigger_checkpoint()
        await until(lambda: not list(app.agent_runtime.runner.journal.read()))  # type: ignore[union-attr]
        assert [job.key for job in await app.jobs.find()] == ["ann", "bob"]
        (job, _) = await app.jobs.find(statuses=[JobStatus.SUCCEEDED])
        assert await app.jobs.get(job.job_id) == job
        assert await app.jobs.find(statuses=[JobStatus.RUNNING]) == []
