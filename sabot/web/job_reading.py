"""Reads of jobs for the console, in the process of the console or in one that reads for it: a page of a list, and one job."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sabot.agents.app_jobs import JournalAddress
from sabot.agents.entry_values import as_plain, value_of
from sabot.agents.job_effects import FoldedJob, JobStory, folded_job, story_of
from sabot.agents.job_reads import JobPage, JobQuery, jobs_page
from sabot.agents.job_view import EffectView
from sabot.journal.base import JournalReader
from sabot.journal.entries import Entry, Intent, body_of
from sabot.web.payloads import Payloads, ShownPayload

MOST_EFFECTS = 2_000
"""The most effects of a job that one page shows."""


@dataclass(frozen=True)
class ShownJob:
    """A job, with the part of its values that a page may show. `place`: where the record that began it stands, or "". `given`, `result`:
    the input and the output. `values`: for each effect of the story, its arguments and its answer. `count`: the number of
    all effects; the story has those from a number on.
    """

    story: JobStory
    place: str
    given: ShownPayload
    result: ShownPayload
    values: list[tuple[ShownPayload, ShownPayload]]
    count: int


def read_jobs(journal: JournalAddress, query: JobQuery, most: int) -> JobPage:
    """Returns a page of the jobs of a journal, as `jobs_page`."""
    with journal.opened() as reader:
        return jobs_page(reader, query, most)


def read_job(journal: JournalAddress, job_id: str, first: int, payloads: Payloads) -> ShownJob:
    """Returns one job of a journal, as `shown_job`."""
    with journal.opened() as reader:
        return shown_job(reader, job_id, first, payloads)


def shown_job(reader: JournalReader, job_id: str, first: int, payloads: Payloads) -> ShownJob:
    """Returns a job with up to 2,000 effects from the ordinal `first` on. Blocks. Raises UserError if the journal does not have it."""
    folded = folded_job(reader, job_id)
    count = len(folded.effects)
    page = {ordinal: each for ordinal, each in folded.effects.items() if ordinal >= first}
    page = dict(list(page.items())[:MOST_EFFECTS])
    begun = None if folded.begin is None else _value(reader, folded.begin)
    message = begun.get("message") if isinstance(begun, Mapping) and "record" in begun else begun
    end = None if folded.end is None or folded.end.outcome != "succeeded" else _value(reader, folded.end)
    return ShownJob(
        story=story_of(reader, FoldedJob(folded.record, folded.effects, folded.begin, folded.end), page),
        place=str(begun.get("record") or begun.get("records") or "") if isinstance(begun, Mapping) else "",
        given=payloads.shown(as_plain(message)) if message is not None else ShownPayload(),
        result=payloads.shown(as_plain(end)) if end is not None else ShownPayload(),
        values=[_values(reader, each, payloads) for each in page.values()],
        count=count,
    )


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
