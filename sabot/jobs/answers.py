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

from sabot.base.redaction import HIDDEN, scrubbed
from sabot.base.surrogates import has_lone_halves
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
    if words is DOUBT_WORDS and "outcome" in said and "answer" in said:
        return "has outcome and answer, which are two names of one field"
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


def always_in(answer: Answer) -> str:
    """Returns the word by which an approval holds for later calls too, one of ALWAYS; "" if it holds for its call only. So it does if
    the person has changed the arguments: of later calls, which have others, the person has seen none.
    """
    word = answer_object(answer).get("always")
    return word if word in ALWAYS and is_approved(answer) and edit_of(answer) is None else ""


def edit_of(answer: Answer) -> Any:
    """Returns the arguments that a person has given a call with the approval; None if the person has changed none."""
    changes = answer_object(answer).get("arguments")
    return None if changes == {} else changes


def check_no_mask(changes: Mapping[str, Any], shown: Any, hidden: Sequence[str], path: str = "") -> None:
    """Raises UserError if the changes of a call have `***` where the question has it in place of a value: it was copied from
    there, and the call would be made with the stars.

    - `changes`: the arguments that a person gives, by name. `shown`: those of the question.
    - `hidden`: the paths of the values that the question hides (`hidden_in`). `path`: the path of the arguments.
    """
    for name, each in changes.items():
        where = f"{path}.{name}" if path else str(name)
        if not isinstance(shown, Mapping) or name not in shown or HIDDEN in str(name):
            _check_none({name: each}, shown, hidden, path)  # it may be another name of what is hidden
        elif isinstance(each, Mapping):
            check_no_mask(each, shown[name], hidden, where)
        else:
            _check_none(each, shown[name], hidden, where)


def _check_none(changes: Any, shown: Any, hidden: Sequence[str], path: str) -> None:
    starred = starred_in(changes, path)
    if not starred or not (
        _is_scrubbed(shown) or any(f"{each}.".startswith(f"{path}." if path else "") for each in hidden)
    ):
        return
    raise UserError(
        f"{'.'.join(filter(None, ('arguments', starred[0])))} has {HIDDEN} in it, which stands for what the question hides",
        hint="leave it out, and the call keeps the hidden value; or give the whole value",
    )


def starred_in(value: Any, path: str = "") -> list[str]:
    """Returns the paths of the texts and names in a value that have `***` in them."""
    if isinstance(value, str):
        return [path] if HIDDEN in value else []
    if isinstance(value, Mapping):
        found = [path for name in value if isinstance(name, str) and HIDDEN in name]
        return found + [
            at for name, each in value.items() for at in starred_in(each, f"{path}.{name}" if path else str(name))
        ]
    if isinstance(value, list | tuple):
        return [
            at
            for number, each in enumerate(value)
            for at in starred_in(each, f"{path}.{number}" if path else str(number))
        ]
    return []


def _is_scrubbed(shown: Any) -> bool:
    """Returns True if a text of a question has a secret that this process knows, and hides wherever it shows texts."""
    if isinstance(shown, Mapping):
        return any(_is_scrubbed(each) for pair in shown.items() for each in pair)
    if isinstance(shown, list | tuple):
        return any(map(_is_scrubbed, shown))
    return isinstance(shown, str) and scrubbed(shown) != shown


def refusal_words(answer: Answer) -> str:
    """Returns the reason for which a call is not made, if a person has refused it: with the comment of the person."""
    said = answer_object(answer)
    if said.get("approved") is not False and (fault := fault_of(answer, APPROVAL_WORDS)):
        return f"its approval {fault}"
    comment = next((each for name in ("comment", "reason") if isinstance(each := said.get(name), str) and each), "")
    return "it was rejected" + (f" by {answer.by}" if answer.by else "") + (f": {comment}" if comment else "")


def json_value(text: str) -> Any:
    """Returns what a person has written as JSON. Raises UserError if it is not JSON, with what is wrong in it: also where
    Python reads it, but takes the last of two fields of one name, numbers that JSON does not have, and halves of
    surrogate pairs, which no journal can hold.
    """
    try:
        found = json.loads(text, parse_constant=_refused, parse_float=_finite, object_pairs_hook=_once_each)
        if has_lone_halves(text.encode(errors="surrogatepass")):
            json.dumps(found, ensure_ascii=False).encode()
        return found
    except UnicodeEncodeError as error:
        raise UserError("a text in it has half of a surrogate pair") from error
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
