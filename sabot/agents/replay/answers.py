"""The values that a fork uses in place of calls, children and answers (`answers=` of `fork`): which effect each value
fits, and the checks of it.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import msgspec

from sabot.engine.calls.effects import EffectClass
from sabot.engine.calls.messages import assistant
from sabot.errors import UserError, short_repr
from sabot.jobs.core import DOUBT
from sabot.jobs.guard import CONFIRM, decode_verdict
from sabot.jobs.history import ASKS, IN_DOUBT, LOOK_UP, VERDICTS
from sabot.jobs.run import Ask, effect_words
from sabot.journal.entries import Answer, Entry, Intent, Signal
from sabot.llm.results import Completion


@dataclass(slots=True)
class ForkAnswers:
    """The changes that a fork makes to a recorded job.

    - `answers`, `prompt`: the arguments of `fork`.
    - `said`: the number of values of a model that were used already, by the key of the model in `answers`.
    - `stood_in`: the job id and the ordinal of each call that was not made, because a value of `answers` was used
      instead.
    - `doubts`: by the ordinal of a call, the token of the first question whether the call was made.
    """

    answers: Mapping[str, Any]
    prompt: str | None
    said: Counter[str] = field(default_factory=Counter)
    stood_in: set[tuple[str, int]] = field(default_factory=set)
    doubts: dict[int, str] = field(default_factory=dict)

    @property
    def not_done(self) -> bool:
        """True if `answers` says of calls in doubt that they were not made."""
        said = self.answers.get(IN_DOUBT)
        return isinstance(said, Mapping) and said.get("outcome", said.get("answer")) == "not_done"

    def of(self, name: str) -> str | None:
        """Returns the key of `answers` that fits a tool or an agent with this name: the name itself, or the name
        without the id of the app. Returns None if there is none.
        """
        return next((each for each in (name, name.rpartition(".")[2]) if each in self.answers), None)

    def of_model(self, name: str) -> str | None:
        """Returns the key of `answers` that fits the model with this name: the name itself, or "llm". Returns None if
        there is none.
        """
        return next((each for each in (name, ASKS) if each in self.answers), None)

    def answers_question(self, ask: Ask) -> bool:
        """Returns True if `answers` has the answer for which an effect waits. Returns False if it is asked again whether
        a call was made: with the same answer, the call could be repeated without end.
        """
        question = _question(ask)
        if question not in self.answers:
            return False
        return not _is_doubt(ask) or self.doubts.setdefault(ask.ordinal, ask.token) == ask.token

    def completion(self, name: str) -> Completion:
        """Returns the next value in `answers` for a model, as a Completion. `name` is the key in `answers`. Raises
        UserError if the value is no text and no Completion, or if it is a list whose items were all used already.
        """
        said = self.answers[name]
        if isinstance(said, list):
            if self.said[name] == len(said):
                raise UserError(f"answers={{{name!r}: …}} has {len(said)} answers, and the fork asks for another one")
            said = said[self.said[name]]
        self.said[name] += 1
        if isinstance(said, Completion):
            return said
        if not isinstance(said, str):
            raise UserError(
                f"answers={{{name!r}: …}} has the answer {short_repr(said)}",
                hint="a text, a Completion, or a list of these",
            )
        return Completion(message=assistant(said), model=name)

    def entry(self, ask: Ask, job_id: str, at_ms: int) -> Answer | Signal:
        """Returns the entry with which the journal answers the question, or records the signal, for which an effect
        waits. Raises UserError if the value in `answers` is no valid answer to a question about a call.
        """
        question = _question(ask)
        said = self.answers[question]
        if question == CONFIRM and ask.kind != "wait":
            said = _approval(said, of_function=ask.kind == "ask")
        elif _is_doubt(ask):
            said = _checked_verdict(said, ask)
        body = msgspec.json.encode(said)
        if ask.kind == "wait":
            return Signal(job_id, at_ms, ask.name, f"fork {ask.ordinal}", body, "fork")
        return Answer(job_id, at_ms, ask.ordinal, ask.token, "resolved", body, "fork")

    def words(self, ask: Ask, now_s: float) -> str:
        """Returns words for what an effect waits for, with the argument that would answer it. `now_s`: the time of the
        fork.
        """
        words, question = f"{effect_words(ask.kind, ask.model or ask.name)} (step {ask.ordinal})", _question(ask)
        if question in (CONFIRM, IN_DOUBT) and ask.kind != "ask":
            words = f"a person who says whether {words} {'may be' if question == CONFIRM else 'was'} made"
        if ask.due_ms:
            left_s = max(0, round(ask.due_ms / 1000 - now_s))
            words += f", for {timedelta(seconds=left_s)}"
        if _is_doubt(ask) and ask.ordinal in self.doubts:
            words += ", and was asked before"
        elif answer := question or (ask.name if ask.kind == "child" else ""):
            words += f": answers={{{answer!r}: …}} (--answer {answer}=JSON) answers it"
        return words


def _question(ask: Ask) -> str:
    """Returns the key under which `answers` may have the answer for which an effect waits: the type of a question, or
    the name of a signal. It is "confirm" or "in_doubt" if a person is asked about the effect. Returns "" if the effect
    waits for something else.
    """
    if ask.kind in ("ask", "wait"):
        return ask.name
    return IN_DOUBT if _is_doubt(ask) else CONFIRM if ask.token else ""


def _is_doubt(ask: Ask) -> bool:
    """Returns True if a person is asked whether the call `ask` was made."""
    return ask.kind not in ("ask", "wait") and ask.phase is DOUBT and bool(ask.token)


def _approval(said: Any, *, of_function: bool) -> Any:
    """Converts the value `said`, which the user has given for "confirm", to the form in which the journal stores an
    approval ({"approved": True}). If the function of the job has asked the question itself (`of_function`), any value
    other than a dict is also accepted, and returned unchanged. Raises UserError for a value of another form.
    """
    if isinstance(said, bool):
        return {"approved": said}
    if isinstance(said, dict) and isinstance(said.get("approved", False if of_function else None), bool):
        return said
    if of_function and not isinstance(said, dict):
        return said
    raise UserError(
        f"answers={{{CONFIRM!r}: {short_repr(said)}}} says neither yes nor no",
        hint='true or false, or {"approved": true}, as in --answer confirm=true',
    )


def _checked_verdict(said: Any, ask: Ask) -> Any:
    """Returns the value `said`, which the user has given for "in_doubt", if it says whether the call `ask` was made.
    Otherwise raises UserError. Without this check, the job would treat the value as "abandon".
    """
    words = (*VERDICTS, LOOK_UP) if ask.effect_class == EffectClass.RECONCILABLE else VERDICTS
    if isinstance(said, dict) and said.get("outcome", said.get("answer")) in words:
        return said
    raise UserError(
        f"answers={{{IN_DOUBT!r}: {short_repr(said)}}} does not say whether call {ask.model or ask.name} was made",
        hint=f'{{"outcome": …}} with one of {", ".join(words)}; "done" may have a "result" too',
    )


def names_asked_for(entries: Sequence[Entry]) -> set[str]:
    """Returns the names by which the arguments `answers` and `allow` of `fork` can refer to the effects in these
    entries. An agent has two names: with the id of its app and without it. A request to a model also has two names:
    "llm" and the name of the model.
    """
    found = set[str]()
    for entry in entries:
        if isinstance(entry, Intent):
            verdict = decode_verdict(entry.note)
            found |= {entry.name, entry.name.rpartition(".")[2]}
            if verdict is not None:
                found |= {verdict.about, verdict.model}
    return found
