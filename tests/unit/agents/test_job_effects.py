"""The effects of a job as its entries say, and pages of a list of jobs."""

from decimal import Decimal

import msgspec
import pytest

from sabot.agents.accounts.contract import LedgerEvent
from sabot.agents.job_effects import EffectRecord, effect_record, effects_of, job_story
from sabot.agents.job_reads import jobs_page
from sabot.agents.job_view import EffectView, JobView
from sabot.agents.jobs import JobRecord, JobStatus
from sabot.errors import UserError
from sabot.jobs.guard import Decision, GuardVerdict, encode_verdict
from sabot.jobs.tree import child_id
from sabot.journal.entries import Answer, Attempt, Begin, Cancel, EffectResult, End, Entry, Intent, Signal
from sabot.journal.memory import MemoryJournal

USED = msgspec.msgpack.encode(
    [LedgerEvent(event_id="1", type="model", scope_id="s", input_tokens=90, output_tokens=10, cost=Decimal("0.25"))]
)


def call(ordinal: int, at: int = 1000, job: str = "j", note: bytes = b"") -> Intent:
    return Intent(job, at, ordinal, "call", "pay", effect_class="unsafe", note=note)


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
        return {ordinal: effect_record(each) for ordinal, each in self._effects.items()}

    @property
    def job(self) -> JobRecord:
        return self.view.present("j")


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
    story = job_story(journal, "j")
    assert [each.job_id for each in story.children] == [child]
    assert (story.record.tokens, story.tree_tokens, story.tree_dollars) == (0, 200, Decimal("0.50"))
    assert job_story(journal, child).parent == "j"
    with pytest.raises(UserError, match="has no job nobody"):
        job_story(journal, "nobody")


def test_pages_of_jobs_have_each_selected_job_once_the_newest_first() -> None:
    journal = MemoryJournal()
    for number in range(25):
        journal.append(Begin(f"job-{number:02}", 1000 * (number // 2), "shop.a" if number % 2 else "shop.b", scope="x"))
    journal.append(End("job-24", 99_000, "failed", "broken"))
    seen, after = [], ""
    while True:
        page = jobs_page(journal, most=10, after=after)
        assert (page.found, page.counts) == (25, {"running": 24, "failed": 1})
        seen += [job.job_id for job in page.jobs]
        if not (after := page.following):
            break
    assert seen == [f"job-{number:02}" for number in reversed(range(25))]
    assert jobs_page(journal, agent="a").found == 12
    assert jobs_page(journal, agent="shop.b", status=JobStatus.FAILED).found == 1
    assert jobs_page(journal, text="JOB-2").found == 5
    assert jobs_page(journal, scope="y").found == 0
    assert jobs_page(journal, since=12).found == 1
    with pytest.raises(UserError, match="no cursor"):
        jobs_page(journal, after="markup:x")


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
