"""The questions in a journal to people, and their answers. The command line and the console only render them.

`read_questions` and `find_question` read a whole journal once. `OpenQuestions` is for a journal that is read again and
again: it reads only new entries.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sabot.agents.actions import ActionRecord, ActionStatus, check_resolution
from sabot.agents.job_reads import jobs_that_ask, oldest_first
from sabot.agents.job_view import JobView
from sabot.agents.jobs import JobRecord
from sabot.agents.store import as_json, shown_json
from sabot.engine.calls.effects import key_in_doubt
from sabot.errors import LetterRefused, UserError
from sabot.jobs.history import IN_DOUBT, LOOK_UP
from sabot.journal.base import EVERY, JournalReader
from sabot.journal.ended_jobs import JobQuery
from sabot.journal.entries import Letter

ANSWERS: dict[str, dict[str, Any]] = {
    "approve": {"approved": True},
    "reject": {"approved": False},
    "done": {"outcome": "done"},
    "not-done": {"outcome": "not_done"},
    "abandon": {"outcome": "abandon"},
    "look-up": {"outcome": LOOK_UP},
}
"""The answers by their short names. The last four are for effects in doubt: the call was made; make the call again;
raise an error in the job; ask the `reconcile=` function of the tool once more.
"""

SAID = {
    "approve": "approved",
    "reject": "rejected",
    "done": "known to be done",
    "not-done": "made again",
    "abandon": "given up",
    "look-up": "looked up again",
    "value": "answered",
}
"""The outcome of a question in words, by the short name of its answer (`answer_name`)."""

OF_DOUBTS = ("done", "not-done", "abandon", "look-up")


@dataclass(frozen=True, slots=True)
class InboxQuestion:
    """A question of a job to a person, with the job that asks it.

    - `action`: the question itself.
    - `job`: the job that asks, or None if the journal does not have the BEGIN entry of that job.
    - `answered`: True if the inbox of the journal contains an answer that was not applied yet. The process that runs
      the jobs applies it when it next reads the inbox.
    """

    action: ActionRecord
    job: JobRecord | None = None
    answered: bool = False

    @property
    def status(self) -> str:
        """The status of the question as a word: that of the action, or "answered, not taken yet" for an open question
        whose answer was not applied yet.
        """
        pending = self.action.status is ActionStatus.PENDING
        return "answered, not taken yet" if pending and self.answered else str(self.action.status)

    @property
    def effect(self) -> str:
        """The name of the effect if the question is whether an effect may be made, or whether it was made. "" for any
        other question.
        """
        asks = self.in_doubt or self.action.approves_effect
        return str(self.action.payload["effect"]) if asks else ""

    @property
    def in_doubt(self) -> bool:
        """True if the question is whether an effect was made. It is asked when a crash or a lost connection has left
        this unknown.
        """
        return self.action.type == IN_DOUBT and "effect" in self.action.payload

    @property
    def result_wanted(self) -> str:
        """The words that tell a person which result the answer "done" needs; "" if it needs none."""
        asked = self.action.payload if self.in_doubt else {}
        if asked.get("gives") == "rows":
            return "a list of rows"
        schema = f"JSON of the schema {shown_json(asked['result'], 'schema').decode()}" if "result" in asked else ""
        return f"if it is known, {schema or 'a text or JSON'}" if asked.get("gives") == "answer" else schema

    @property
    def can_look_up(self) -> bool:
        """True if the question is whether an effect was made, and the tool has a function `reconcile=` that can find
        this out. Then the answer "look-up" is allowed.
        """
        return self.in_doubt and LOOK_UP in self.action.payload.get("answers", ())

    @property
    def key(self) -> str:
        """The idempotency key of the call, if the question is whether that call was made; "" for any other question. A
        person can search for this key in the called system.
        """
        return key_in_doubt(self.action.job_id, self.action.payload) if self.in_doubt else ""

    @property
    def context(self) -> Any:
        """The data to show to the person. For a question about an effect, it is a dict of the arguments of the effect;
        arguments without a name have the keys "1", "2" and so on. If the effect is a request to a model, it is the last
        message of the request. For any other question it is the payload.
        """
        if not self.effect:
            return dict(self.action.payload)
        match self.action.payload.get("arguments"):
            case [list() as args, dict() as named]:
                edited = self.action.payload.get("edited")
                shown = {str(number): each for number, each in enumerate(args, 1)} | named
                return shown | ({"edited": edited} if edited else {})
            case [*_, last] if self.action.payload.get("kind") == "model":
                return last  # the last message of the request
            case other:
                return {} if other is None else other


def answer_name(answer: Mapping[str, Any]) -> str:
    """Returns the short name of an answer: "approve", "reject", "done", "not-done", "abandon" or "look-up" for the
    answers in `ANSWERS`, and "value" for any other answer.
    """
    return next((name for name, given in ANSWERS.items() if given.items() <= answer.items()), "value")


def _answered(reader: JournalReader) -> set[str]:
    """Returns the tokens of questions whose answers the owner of the journal has not taken yet. Read before the entries: an
    answer that is taken meanwhile is seen twice, and not missed. Blocks.
    """
    return {letter.token for letter in reader.letters() if letter.kind == "answer"}


def _questions(known: JobView, answered: Collection[str], actions: Collection[ActionRecord]) -> list[InboxQuestion]:
    return [InboxQuestion(each, known.job(each.job_id), each.resume_token in answered) for each in actions]


def read_questions(reader: JournalReader, *, everything: bool = False) -> list[InboxQuestion]:
    """Returns the open questions in a journal, in the order in which they were asked. With `everything=True` it also
    returns the closed ones. Reads the entries of the jobs that wait for an answer, or with `everything=True` the whole
    log of the journal. Blocks the thread.
    """
    answered = _answered(reader)
    every = (
        [mark.job for mark in oldest_first(reader.logged(JobQuery(), EVERY))] if everything else jobs_that_ask(reader)
    )
    known = JobView.of_jobs(reader, every)
    found = [each for each in known.actions.values() if everything or each.status is ActionStatus.PENDING]
    return _questions(known, answered, sorted(found, key=lambda action: action.created_at))


def find_question(reader: JournalReader, word: str) -> InboxQuestion:
    """Returns the question, open or closed, whose id or token is `word`. Reads the entries of its job, and blocks the
    thread. Raises UserError if there is no such question.
    """
    answered, asked = _answered(reader), reader.question(word)
    known = JobView.of(reader, word.rpartition("/")[0] if asked is None else asked.job)
    action = known.actions.get(word) or known.of_token(word)
    if action is None:
        raise UserError(
            f"{reader.where} has no action with the id or token {word}", hint="sabot actions list --all shows them"
        )
    return _questions(known, answered, [action])[0]


class OpenQuestions:
    """A reader of the open questions in a journal, for a program that reads them again and again. Each call of `read`
    reads only the entries that are new. If entries were removed from the journal before they were read, the next call
    reads the whole log again. The reader keeps the jobs that have not ended in memory. Only one thread may use it at a
    time.
    """

    def __init__(self) -> None:
        self._identity = ""
        self._known: JobView | None = None

    def read(self, reader: JournalReader) -> list[InboxQuestion]:
        """Returns the open questions of the journal, the oldest first. Blocks the thread. `reader` may be another
        object in each call; if it reads another journal, everything is read again.
        """
        known, trimmed = self._known, reader.trimmed()
        # then all is read again, since the missed entries may have ended jobs
        if known is None or reader.identity != self._identity or known.has_missed(reader):
            self._identity, known = reader.identity, JobView(reader)
            self._known = known
        known.bodies, answered = reader, _answered(reader)
        known.follow(reader)
        if reader.trimmed() != trimmed:  # the END of a job may be gone that was not read: the next call reads all again
            self._known = None
        known.forget_ended()
        for job_id in [job_id for job_id, job in known.states.items() if not job.begun]:
            known.forget(job_id)  # the job has ended before, and these are late entries
        return _questions(
            known, answered, [each for each in known.actions.values() if each.status is ActionStatus.PENDING]
        )


@dataclass(slots=True)
class AnswerCount:
    """The outcome of one answer that was given to several questions.

    - `answered`: the number of questions that accepted the answer.
    - `refused`: a tuple of three values for each question that did not accept it: the id of the question; the reason in
      words; and True if the question was already closed, or False if the answer does not fit the question.
    """

    answered: int = 0
    refused: list[tuple[str, str, bool]] = field(default_factory=list)


def check_answer(action: ActionRecord, word: str, answer: Mapping[str, Any]) -> None:
    """Raises UserError if an answer does not fit the question `action`; for example, "done" fits only a question
    whether an effect was made. `word` is the short name of the answer (`answer_name`), or "" if it has none.
    """
    check_resolution(action, answer)
    if action.type != IN_DOUBT and word in OF_DOUBTS:
        raise UserError(
            f"{word} answers only effects in doubt, and action {action.action_id} is a question of type {action.type}",
            hint="approve, reject, or answer with a JSON object",
        )


def answer_questions(
    post: Callable[[Letter], object],
    questions: Sequence[InboxQuestion],
    word: str,
    answer: Mapping[str, Any],
    by: str,
) -> AnswerCount:
    """Gives the same answer to several questions, one after the other. Returns how many accepted it, and which did not.
    Blocks the thread.

    - `post`: a function that stores the answer as a letter in the inbox of the journal (`Inbox.post`).
    - `word`: the short name of `answer` (`answer_name`), or "" if it has none.
    - `answer`: the answer as a JSON object.
    - `by`: the person who answers.

    Each answer is durable before the next one is given, and a question accepts only one answer. So if a crash
    interrupts this call, the same call can be made again, and then answers the remaining questions.
    """
    count = AnswerCount()
    for each in questions:
        try:
            check_answer(each.action, word, answer)
            post(Letter("answer", each.action.resume_token, body=as_json(dict(answer), "the answer"), by=by))
        except (LetterRefused, UserError) as error:
            count.refused.append((each.action.action_id, error.message, isinstance(error, LetterRefused)))
        else:
            count.answered += 1
    return count
