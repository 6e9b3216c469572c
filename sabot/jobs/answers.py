"""The answers of people to questions about an effect: whether a call may be made, and whether it was made.

An answer is a JSON object. What takes it from a person checks it before it becomes a letter (`agents.actions`). A program
may post any letter, so a job looks at it once more when it gets the answer: `fault_of`.
"""

import json
import math
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

import msgspec

from sabot.base.redaction import HIDDEN
from sabot.errors import UNREADABLE, UserError, short_repr
from sabot.journal.entries import Answer

ALWAYS = ("job", "session", "scope")
"""The words of an approval that holds for later calls too: {"approved": true, "always": "job"}."""

APPROVAL_WORDS = ("approved", "arguments", "always", "comment", "reason")
"""The fields of an answer to the question whether a call may be made."""

DOUBT_WORDS = ("outcome", "answer", "result", "comment", "reason")
"""The fields of an answer to the question whether a call was made."""


def answer_object(answer: Answer) -> dict[str, Any]:
    """Returns the JSON object that is the body of a person's answer; {} if the body is not a JSON object."""
    try:
        body: dict[str, Any] = msgspec.json.decode(answer.body or b"{}", type=dict[str, Any])  # type: ignore[arg-type]
    except UNREADABLE:
        return {}
    return body


def fault_of(answer: Answer, words: Sequence[str]) -> str:
    """Returns why nobody knows what an answer means, as words that follow "its approval"; "" if it is clear: it has a field
    that is none of `words`, two fields of one name, or a number that is none of JSON.
    """
    if answer.outcome != "resolved":
        return ""
    try:
        said = json_value(bytes(answer.body or b"{}").decode())  # type: ignore[arg-type]  # it was loaded
    except (UserError, UnicodeDecodeError) as error:
        return f"cannot be read: {error.message if isinstance(error, UserError) else error}"
    if not isinstance(said, Mapping):
        return f"is no object: {short_repr(said)}"
    for name in said:
        if name not in words:
            near = get_close_matches(name, words, n=1)
            return (
                f"has a field {name!r} ({f'did you mean {near[0]!r}?' if near else 'its fields: ' + ', '.join(words)})"
            )
    if "always" in words and said.get("always") not in (None, *ALWAYS):
        return f"has always={short_repr(said['always'])}, which is none of {', '.join(ALWAYS)}"
    return ""


def says_yes(answer: Answer) -> bool:
    """Returns True if the answer is an object {"approved": true}, also one that a job of today does not take."""
    return answer.outcome == "resolved" and answer_object(answer).get("approved") is True


def is_approved(answer: Answer) -> bool:
    """Returns True if the answer is the object {"approved": true}, with or without further fields, and it is clear what
    all of them mean.
    """
    return says_yes(answer) and not fault_of(answer, APPROVAL_WORDS)


def edit_of(answer: Answer) -> Any:
    """Returns the arguments that a person has given a call with the approval; None if the person has changed none."""
    changes = answer_object(answer).get("arguments")
    return None if changes == {} else changes


def check_no_mask(changes: Any, path: str) -> None:
    """Raises UserError if a text in the arguments that a person gives has `***` in it. That stands for what nobody was
    shown, so it was copied from the question, and the call would be made with the stars. `path`: the name of the value.
    """
    if isinstance(changes, str) and HIDDEN in changes:
        raise UserError(
            f"{path} has {HIDDEN} in it, which stands for what a question hides",
            hint="leave it out, and the call keeps the hidden value; or give the whole value",
        )
    if isinstance(changes, Mapping):
        for name, each in changes.items():
            check_no_mask(name, f"a name in {path}")
            check_no_mask(each, f"{path}.{name}")
    elif isinstance(changes, list | tuple):
        for at, each in enumerate(changes):
            check_no_mask(each, f"{path}.{at}")


def refusal_words(answer: Answer) -> str:
    """Returns the reason for which a call is not made, if a person has refused it: with the comment of the person."""
    said = answer_object(answer)
    if said.get("approved") is not False and (fault := fault_of(answer, APPROVAL_WORDS)):
        return f"its approval {fault}"
    comment = next((each for name in ("comment", "reason") if isinstance(each := said.get(name), str) and each), "")
    return "it was rejected" + (f" by {answer.by}" if answer.by else "") + (f": {comment}" if comment else "")


def json_value(text: str) -> Any:
    """Returns what a person has written as JSON. Raises UserError if it is not JSON, with what is wrong in it: also where
    Python reads it, but takes the last of two fields of one name, and numbers that JSON does not have.
    """
    try:
        return json.loads(text, parse_constant=_refused, parse_float=_finite, object_pairs_hook=_once_each)
    except RecursionError as error:
        raise UserError("it is nested too deep") from error
    except ValueError as error:
        raise UserError(str(error)) from error


def _refused(text: str) -> Any:
    raise ValueError(f"{text} is no number of JSON")


def _finite(text: str) -> float:
    return number if math.isfinite(number := float(text)) else _refused(text)


def _once_each(fields: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(fields)
    if len(found) < len(fields):
        names = [name for name, _ in fields]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the field {twice!r} is there twice")
    return found
