"""Reads of jobs for the console, in the process of the console or in one that reads for it: a page of a list, one job, and exports.

What a page shows many times, the rows of its tables, is rendered where it was read: that takes longer than the read.
"""

import json
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from heapq import nlargest
from typing import Any, TypeVar

from markupsafe import Markup

from sabot.agents.app_jobs import AppJobStore, JournalAddress
from sabot.agents.entry_values import as_plain, value_of
from sabot.agents.job_effects import EffectRecord, FoldedJob, effect_record, family_of, folded_job
from sabot.agents.job_history import searched
from sabot.agents.job_reads import JobPage, age_of, jobs_page, short_jobs_page, shown_status
from sabot.agents.job_view import EffectView
from sabot.agents.jobs import JobRecord, JobStatus
from sabot.agents.questions import SAID
from sabot.base.accounts import Amounts
from sabot.base.quantities import plain
from sabot.base.redaction import scrubbed
from sabot.jobs.tree import parent_of
from sabot.journal.base import JournalReader
from sabot.journal.ended_jobs import JobQuery, cursor_of
from sabot.journal.entries import Begin, Entry, Intent, body_of
from sabot.journal.postgres_workers import workers_of
from sabot.web.payloads import MOST_CHARS, Payloads, ShownPayload
from sabot.web.rendering import templates_of
from sabot.web.texts import TableForm, table_text

T = TypeVar("T")

MOST_ROWS = 20_000
"""The most jobs of a list as CSV or JSON, and the most among which a form selects some."""

MOST_SEARCHED = 5_000
"""The number of jobs, the newest of those that other filters select, in whose records a text is looked for."""

_PAGE = 200  # jobs
_LONG_PART = 24  # characters: the topic of a record is there as 32 digits
_MOST_EFFECTS = 2_000  # of a job, on one page
_SHORT_LOG = 20_000  # entries that are read in the process of the run: less than a tenth of a second of processor time
_COLUMNS = (
    "job_id",
    "agent",
    "key",
    "scope_id",
    "principal_id",
    "session_id",
    "status",
    "attempt",
    "effects",
    "created_at",
    "updated_at",
    "completed_at",
)


@dataclass(frozen=True)
class OwnJournal(JournalAddress):
    """The journal of an app as its store reads it in this process."""

    store: AppJobStore

    @contextmanager
    def opened(self) -> Iterator[JournalReader]:
        with self.store.reader() as reader:
            yield reader


def loaded() -> bool:
    """Returns True: a process that is called has loaded this module, and reads jobs from then on without a start."""
    return True


def read_jobs(journal: JournalAddress, query: JobQuery, payloads: Payloads, root: str) -> tuple[str, JobPage]:
    """Returns the table of a page of the jobs of a journal, as HTML, and the page without its jobs. The text of the query may also be in
    a field of the record that began a job, if pages may show that field. `root`: the path below which the pages are. Blocks. Raises as
    `jobs_page`.
    """
    with journal.opened() as reader:
        return _shown_jobs(_found(reader, query, payloads, _PAGE), workers_of(reader), query, root)


def read_short_log(journal: JournalAddress, query: JobQuery, root: str) -> tuple[str, JobPage] | None:
    """Returns the same as `read_jobs` without a text, or None if the log of the journal is too long to be read in the process of a run."""
    with journal.opened() as reader:
        page = short_jobs_page(reader, query, _PAGE, _SHORT_LOG)
        return None if page is None else _shown_jobs(page, workers_of(reader), query, root)


def selected_jobs(journal: JournalAddress, query: JobQuery, payloads: Payloads, is_open: bool) -> list[str]:
    """Returns the open jobs, or the failed ones, that a list has on all its pages, of at most 20,000."""
    with journal.opened() as reader:
        found = _found(reader, query, payloads, MOST_ROWS).jobs
    return [each.job_id for each in found if (not each.ended if is_open else each.status is JobStatus.FAILED)]


def jobs_table(journal: JournalAddress, query: JobQuery, payloads: Payloads, form: TableForm) -> str:
    """Returns a list of jobs as a text of CSV or JSON: all pages, at most 20,000."""
    with journal.opened() as reader:
        page = _found(reader, query, payloads, MOST_ROWS)
        return table_text([_flat(job, shown_status(job), *page.used[job.job_id]) for job in page.jobs], form)


def effects_table(journal: JournalAddress, job_id: str, first: int, form: TableForm) -> str:
    """Returns the effects of a job as a text of CSV or JSON: up to 2,000 from the ordinal `first` on. Raises as `read_job`."""
    with journal.opened() as reader:
        found = [effect_record(each, reader) for each in _page_of(folded_job(reader, job_id), first).values()]
        return table_text([_flat_effect(each, form) for each in found], form)


def read_job(
    journal: JournalAddress, job_id: str, first: int, payloads: Payloads, root: str, now: float
) -> tuple[JobRecord, str]:
    """Returns a job, and the part of its page that says all that the journal knows of it, as HTML. The part has up to 2,000 effects from
    the ordinal `first` on. `now`: the time up to which open effects last. Blocks. Raises UserError if the journal does not have the job.
    """
    with journal.opened() as reader:
        folded = folded_job(reader, job_id)
        page = _page_of(folded, first)
        begun = None if folded.begin is None else _value(reader, folded.begin)
        message = _message(begun)
        end = None if folded.end is None or folded.end.outcome != "succeeded" else _value(reader, folded.end)
        effects = [effect_record(each, reader) for each in page.values()]
        values = [_values(reader, each, payloads) for each in page.values()]
        children, used, doubts = family_of(reader, folded)
    table, span = _shown_effects(folded.record, effects, values, payloads, root, now)
    part = templates_of(root).get_template("parts/job.html")
    return folded.record, part.render(
        job=folded.record,
        parent=parent_of(job_id)[0],
        children=children,
        used_below=used,
        doubts_below=doubts,
        # where the record that began it stands, or ""
        place=str(begun.get("record") or begun.get("records") or "") if isinstance(begun, Mapping) else "",
        given=payloads.shown(as_plain(message)) if message is not None else ShownPayload(),
        result=payloads.shown(as_plain(end)) if end is not None else ShownPayload(),
        effects=Markup(table),  # rendered by the templates, which escape
        span=span,  # the seconds that the bars of the effects show
        count=len(folded.effects),
        following=effects[-1].ordinal + 1 if len(page) == _MOST_EFFECTS else 0,  # the first effect of the next page
        hides=not payloads.shows_any,
    )


def _found(reader: JournalReader, query: JobQuery, payloads: Payloads, most: int) -> JobPage:
    """Returns a page of jobs, as `jobs_page`; with a text, also those that have it in a field of their record that pages may show."""
    page = jobs_page(reader, query, most)
    if not query.text or not payloads.shows_any:
        return page
    text, last = query.text.casefold(), query.last
    newest = jobs_page(reader, replace(query.of_all_pages, text=""), MOST_SEARCHED)
    further = [
        each
        for each in newest.jobs
        if text not in searched(each) and text in shown_record(reader, each.job_id, payloads).text.casefold()
    ]
    counts = Counter(page.counts) + Counter(shown_status(each) for each in further)
    further = [
        each for each in further if query.status in ("", shown_status(each)) and (last is None or age_of(each) < last)
    ]
    jobs = nlargest(most + 1, [*page.jobs, *further], key=age_of)
    more = len(jobs) > most or page.following
    return JobPage(
        jobs[:most],
        newest.used | page.used,
        counts[query.status] if query.status else counts.total(),
        dict(counts),
        cursor_of(*age_of(jobs[:most][-1])) if more else "",
    )


def shown_record(reader: JournalReader, job_id: str, payloads: Payloads, *, most: int = MOST_CHARS) -> ShownPayload:
    """Returns the fields that pages may show of the record that began a job, each cut after `most` characters."""
    begin = next((each for _, each in reader.history.entries(job_id) if isinstance(each, Begin)), None)
    message = None if begin is None else _message(_value(reader, begin))
    return ShownPayload() if message is None else payloads.shown(as_plain(message), most=most)


def _message(begun: Any) -> Any:
    """Returns the message of the record that began a job. `begun`: the input of the job."""
    return begun.get("message") if isinstance(begun, Mapping) and "record" in begun else begun


def _shown_jobs(
    page: JobPage, workers: Sequence[tuple[int, str, str, int]], query: JobQuery, root: str
) -> tuple[str, JobPage]:
    jobs = [(job, shown_status(job), *page.used[job.job_id], _short_id(job), *_why(job)) for job in page.jobs]
    facts: dict[str, Callable[[JobRecord], object]] = {
        "key": lambda job: job.key,
        "scope": lambda job: job.scope_id,
        "session": lambda job: job.session_id not in ("", f"{job.agent}/{job.key}"),  # that of an app's key is its key
        "attempt": lambda job: job.attempt > 1,
        "tokens": lambda job: page.used[job.job_id][0].tokens,
        "dollars": lambda job: page.used[job.job_id][0].cost,
        "worker": lambda job: job.worker,
        "why": lambda job: job.open or job.waits or job.blocked or job.error,
    }
    template = templates_of(root).get_template("parts/job_table.html")
    table = template.render(jobs=jobs, filled=_filled(facts, page.jobs), workers=workers)
    return table, replace(page, jobs=[], used={})


def _shown_effects(
    job: JobRecord,
    effects: list[EffectRecord],
    values: list[tuple[ShownPayload, ShownPayload]],
    payloads: Payloads,
    root: str,
    now: float,
) -> tuple[str, float]:
    """Returns the table of effects, and the seconds that its bars show."""
    begin = min([job.created_at, *(each.asked_at for each in effects)])
    ends = [each.ended_at for each in effects if each.ended_at is not None]
    end = max([now if not job.ended else job.updated_at, *ends, begin + 0.001])
    rows = [
        (each, *_place(each, begin, end), asked, answer) for each, (asked, answer) in zip(effects, values, strict=True)
    ]
    facts: dict[str, Callable[[EffectRecord], object]] = {
        "policy": lambda effect: effect.decision,
        "tokens": lambda effect: effect.tokens,
        "dollars": lambda effect: effect.dollars,
    }
    table = (
        templates_of(root)
        .get_template("parts/effect_table.html")
        .render(job=job, effects=rows, hides=not payloads.shows_any, filled=_filled(facts, effects), said=SAID)
    )
    return table, end - begin


def _filled(columns: Mapping[str, Callable[[T], object]], rows: Collection[T]) -> list[str]:
    """Returns the columns that have a value in some row; a table leaves the others out."""
    return [name for name, value in columns.items() if any(map(value, rows))]


def _page_of(job: FoldedJob, first: int) -> dict[int, EffectView]:
    """Returns the effects of a page, by ordinal."""
    page = [(ordinal, each) for ordinal, each in job.effects.items() if ordinal >= first]
    return dict(page[:_MOST_EFFECTS])


def _short_id(job: JobRecord) -> str:
    """Returns the id of a job without that of its agent, and with the first characters of digests: a row of a table has both beside it."""
    parts = job.job_id.removeprefix(f"{job.agent}/").split("/")
    return "/".join(each if len(each) <= _LONG_PART else f"{each[:8]}…" for each in parts)


def _why(job: JobRecord) -> tuple[str, str]:
    """Returns what a job waits for, and the reason why it cannot continue or has failed."""
    return "" if job.blocked else job.waits or _open_text(job), scrubbed(job.blocked or job.error)


def _open_text(job: JobRecord) -> str:
    words = {"ask": "question", "sleep": "timer", "wait": "signal"}
    named = [f"{words.get(each.kind, each.kind)} {each.name}".strip() for each in job.open[:2]]
    return "; ".join(named) + (f"; {len(job.open) - 2} more" if len(job.open) > 2 else "")


def _flat(job: JobRecord, status: str, used: Amounts, doubts: Amounts) -> dict[str, Any]:
    facts = {name: getattr(job, name) for name in _COLUMNS} | {"status": status}
    facts |= {"waits_for": job.waits or _open_text(job), "error": scrubbed(job.blocked or job.error)}
    facts |= {"tokens": used.tokens, "dollars": plain(used.cost)}
    return facts | {"doubt_tokens": doubts.tokens, "doubt_dollars": plain(doubts.cost)}


def _flat_effect(effect: EffectRecord, form: TableForm) -> dict[str, Any]:
    facts = asdict(effect) | {name: plain(getattr(effect, name)) for name in ("dollars", "doubt_dollars")}
    return facts if form == "json" else facts | {"answers": json.dumps(facts["answers"]) if effect.answers else ""}


def _place(effect: EffectRecord, begin: float, end: float) -> tuple[str, str]:
    """Returns the start and the width of the bar of an effect, in hundredths of the time from `begin` to `end`."""
    start = max(0.0, (effect.asked_at - begin) / (end - begin)) * 100
    wide = ((end if effect.ended_at is None else effect.ended_at) - effect.asked_at) / (end - begin) * 100
    return f"{min(start, 99.5):.2f}", f"{max(wide, 0.5):.2f}"


def _values(reader: JournalReader, effect: EffectView, payloads: Payloads) -> tuple[ShownPayload, ShownPayload]:
    """Returns what an effect was asked with, and what came of it. Nothing is loaded if no option shows anything."""
    if not payloads.shows_any:
        return ShownPayload(), ShownPayload()
    name = effect.intent.name
    asked, answer = _value(reader, effect.intent), None if effect.result is None else _value(reader, effect.result)
    return (
        payloads.shown(as_plain(_arguments(effect.intent, asked)), name) if asked is not None else ShownPayload(),
        payloads.shown(as_plain(answer), name) if answer is not None else ShownPayload(),
    )


def _value(reader: JournalReader, entry: Entry) -> Any:
    body = body_of(entry)
    return None if body is None else value_of(entry, reader.load(body))


def _arguments(intent: Intent, asked: Any) -> Any:
    """Returns the arguments of a call by their names or numbers, and the value of another effect as it is."""
    match asked:
        case [list() as args, dict() as named] if intent.kind == "call":
            return {str(number): each for number, each in enumerate(args, 1)} | named
    return asked
