"""The screen of the questions to people, and its action: the answers. Tokens of questions stay here, forms have the ids of questions."""

import asyncio
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from markupsafe import Markup

from sabot.agents.actions import ActionStatus
from sabot.agents.questions import (
    ANSWERS,
    OF_DOUBTS,
    SAID,
    InboxQuestion,
    OpenQuestions,
    answer_name,
    answer_questions,
)
from sabot.base.redaction import scrubbed
from sabot.base.threads import run_in_thread
from sabot.clock import SYSTEM_CLOCK
from sabot.errors import SabotError, UserError
from sabot.jobs.answers import json_value
from sabot.web.job_reading import shown_record
from sabot.web.payloads import ShownPayload
from sabot.web.screen import BY, Query, Rows, Screen, ScreenGroup
from sabot.web.shown import ShownApp
from sabot.web.texts import moment_text

if TYPE_CHECKING:
    from sabot.agents.app_jobs import AppJobStore

_FRESH_SECONDS = 2.0  # between two looks at the journal for the number in the head of the pages
_MOST_SHOWN = 100  # questions on a page, whose ids fit into a form
_MOST_CHARS = 200  # of a field of the record that began a job
_MOST_NAMED = 20  # questions whose earlier answers are said
_ASK = "ask:"  # before the id of a question, in the name of a field


class InboxScreens:
    """The facts of the screen, and the answers. Used by the thread of the server."""

    def __init__(self, app: ShownApp, root: str = "") -> None:
        """`root`: the path below which the pages are, or ""."""
        self._root = root
        self._known = app.jobs
        self._payloads = app.payloads
        self._following = OpenQuestions()
        self._lock = asyncio.Lock()
        self._questions: list[InboxQuestion] = []
        self._read_at = 0.0
        self._reading: asyncio.Task[list[InboxQuestion]] | None = None

    def group(self) -> ScreenGroup:
        """Returns the screen and its action; none if the app has no durable agents."""
        if self._known is None:
            return ScreenGroup()
        screen = Screen("Inbox", "/inbox", more=self._list, rows=self._rows, role="act", badge=self._count)
        return ScreenGroup({"inbox": screen}, {"answer": self._answer})

    @property
    def _store(self) -> "AppJobStore":
        assert self._known is not None  # without jobs there is no such screen
        return self._known.store

    def _count(self) -> int:
        """Returns the number of questions that nobody has answered, as of the last look, and begins another one if that was long ago."""
        now = SYSTEM_CLOCK.monotonic()
        if now - self._read_at > _FRESH_SECONDS and (self._reading is None or self._reading.done()):
            self._read_at = now
            self._reading = asyncio.get_running_loop().create_task(self._read())
            self._reading.add_done_callback(_look)
        return len(self._questions)

    async def _read(self) -> list[InboxQuestion]:
        """Returns the questions that nobody has answered. Raises SabotError if the journal cannot be read."""

        def read() -> list[InboxQuestion]:
            with self._store.reader() as reader:
                return [each for each in self._following.read(reader) if not each.answered]

        async with self._lock:
            self._questions = await run_in_thread(read)
        return self._questions

    async def _found(self, query: Query) -> list[InboxQuestion]:
        wanted = query.get("q", "").casefold()
        return [each for each in await self._read() if wanted in self._searched(each).casefold()]

    def _searched(self, question: InboxQuestion) -> str:
        """Returns the texts of a question in which a search looks: of its context only what the page shows."""
        agent = "" if question.job is None else f"{question.job.agent}\n{question.job.scope_id}"
        shown = self._context(question).text
        return "\n".join((question.action.action_id, question.action.type, question.effect, agent, shown))

    async def _list(self, query: Query) -> dict[str, Any]:
        """Returns the facts of the list, the oldest question first. Raises UserError if the journal cannot be read."""
        found = await self._found(query)
        now, shown = self._store.clock.time(), found[:_MOST_SHOWN]
        records = await run_in_thread(self._records, {each.action.job_id for each in shown})
        cards = [
            (each, self._context(each), records.get(each.action.job_id), each.action.overdue(now)) for each in shown
        ]
        return {
            "doubts": [each for each in cards if each[0].in_doubt],
            "asked": [each for each in cards if not each[0].in_doubt],
            "found": len(found),
            "shown": len(cards),
            "at": SYSTEM_CLOCK.time(),
            "field": _ASK,
            "scrubbed": scrubbed,
        }

    def _context(self, question: InboxQuestion) -> ShownPayload:
        """Returns the part of the context that the page may show. If it is about an effect, its name shows all arguments."""
        return self._payloads.shown(question.context, question.effect or question.action.type)

    def _records(self, jobs: Collection[str]) -> dict[str, ShownPayload]:
        """Returns the part that the page may show of the records that began these jobs, by job. Blocks."""
        if not self._payloads.shows_any:
            return {}
        with self._store.reader() as reader:
            return {job: shown_record(reader, job, self._payloads, most=_MOST_CHARS) for job in jobs}

    async def _rows(self, query: Query) -> Rows:
        return [
            {
                "id": each.action.action_id,
                "job": each.action.job_id,
                "agent": "" if each.job is None else each.job.agent,
                "type": each.action.type,
                "effect": each.effect,
                "asked_at": each.action.created_at,
                "until": each.action.expires_at,
                "context": "; ".join(f"{name}: {text}" if name else text for name, text in self._context(each).fields),
            }
            for each in await self._found(query)
        ]

    async def _answer(self, form: Mapping[str, str]) -> str:
        """Answers the questions that the form has. Raises UserError if it has none, or if an answer was not taken."""
        word, wanted = form.get("answer", ""), {name.removeprefix(_ASK) for name in form if name.startswith(_ASK)}
        answer = _answer_of(word, form)
        if not wanted:
            raise UserError("no question is selected", hint="select the questions of this answer, then send it")
        questions = [each for each in await self._read() if each.action.action_id in wanted]
        count = await run_in_thread(answer_questions, self._store.post, questions, word, answer, form[BY])
        await self._read()
        gone = sorted(wanted - {each.action.action_id for each in questions})
        said = [f"{count.answered:,} of {len(wanted):,} questions: {SAID[word]}."] if count.answered else []
        said += [self._looked_up(questions)] if count.answered and word == "look-up" else []
        said += [await self._before(name) for name in gone[:_MOST_NAMED]]
        said += [f"{len(gone) - _MOST_NAMED:,} more were closed before."] if len(gone) > _MOST_NAMED else []
        said += [await self._before(name) if closed else f"{name}: {why}." for name, why, closed in count.refused]
        if count.refused or not count.answered:
            raise UserError(" ".join(said))
        return Markup(" ").join(said)  # which escapes the words

    def _looked_up(self, questions: Sequence[InboxQuestion]) -> Markup:
        """Returns where the results of second look-ups are, with links."""
        jobs = list(dict.fromkeys(each.action.job_id for each in questions))[:_MOST_NAMED]
        link = Markup('<a href="{}/job?{}">job {}</a>')
        links = Markup(", ").join(link.format(self._root, urlencode({"id": each}), each) for each in jobs)
        words = "What was found is on the page of {}; if the tool does not know either, the question comes again."
        return Markup(words).format(links)

    async def _before(self, name: str) -> str:
        """Returns what became of a question that takes no answer any more: who has answered it, how, and when."""
        action = await self._store.action(name)
        if action is None or action.status is ActionStatus.PENDING:
            return f"{name} is over: its job has ended."
        at = moment_text(action.resolved_at or action.created_at)
        if action.status is not ActionStatus.RESOLVED:
            return f"{name} was {'withdrawn' if action.status is ActionStatus.CANCELLED else action.status} at {at}."
        how, by = SAID[answer_name(action.resolution)], f" by {action.by}" if action.by else ""
        return f"{name} was {how}{by} at {at}, before your answer."


def _answer_of(word: str, form: Mapping[str, str]) -> dict[str, Any]:
    """Returns the answer that the form gives. Raises UserError for a word that is no answer, and for a value that is not JSON."""
    if word != "value" and word not in ANSWERS:
        raise UserError("the form has no answer", hint="send it by one of its buttons")
    if word in ("approve", "reject") and form.get("value"):
        raise UserError(f"the form has a value beside the answer {word!r}", hint="send one of the two")
    if word == "value" and (form.get("arguments") or form.get("always")):
        raise UserError("the form has changes of a call beside another answer", hint="send one of the two")
    answer = dict(ANSWERS.get(word, {}))
    if word == "value" or (word == "done" and form.get("value")):
        value = _json_of(form.get("value", ""))
        if word == "value" and not isinstance(value, dict):
            raise UserError("the value is not a JSON object", hint='write an object, as in {"choice": 2}')
        answer |= value if word == "value" else {"result": value}
    if word == "approve" and form.get("arguments"):
        answer["arguments"] = _json_of(form["arguments"])
        if answer["arguments"] is None:  # in an answer null stands for no change
            raise UserError("the changed arguments are null", hint='write an object, as in {"amount": 50}')
    if word == "approve" and form.get("always"):
        answer["always"] = form["always"]
    if word not in OF_DOUBTS and form.get("reason"):
        answer.setdefault("reason", form["reason"])
    return answer


def _json_of(text: str) -> Any:
    try:
        return json_value(text)
    except UserError as error:
        raise UserError(f"the value is not JSON: {error.message}", hint='write JSON, as in {"choice": 2}') from None


def _look(reading: "asyncio.Task[list[InboxQuestion]]") -> None:
    """Takes the error of a look at the journal: the page of the inbox raises it again, and shows it."""
    if not reading.cancelled() and (error := reading.exception()) is not None and not isinstance(error, SabotError):
        raise error
