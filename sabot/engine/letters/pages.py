"""Dead letters for people: filters, pages with counts, and the facts about each. `sabot dlq` and the console render what
these functions return. All of them block.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from sabot.codecs.records import text_or_hex
from sabot.engine.letters.form import DeadLetter
from sabot.engine.letters.log import reason_in
from sabot.engine.letters.places import Letters, LetterTime
from sabot.engine.operators.agents.rows import JOB_HEADER
from sabot.errors import DataError

_NUMBERS = {"partition", "offset", "timestamp", "attempts"}
_MOST_ROWS = 50  # rows of steps whose records are read for one page
MOST_READ = 20_000  # dead letters that are read for one page, and for its counts


@dataclass(frozen=True)
class LetterFilter:
    """A filter of dead letters. An empty value selects all.

    `error`: a text in the name of the error or in its message. `reason`: the name of the error. `step`: the step, or the agent or
    task if the dead letter has no step. `job`: the id of a durable agent's job. `text`: a text in one of the facts, in any letter
    case; keys, headers and payloads are not searched.
    """

    error: str = ""
    reason: str = ""
    step: str = ""
    job: str = ""
    text: str = ""

    def selects(self, letter: DeadLetter) -> bool:
        """Returns True if all parts of the filter select the dead letter."""
        return (
            letter.says(self.error)
            and self.reason in ("", reason_of(letter))
            and self.step in ("", step_of(letter))
            and self.job in ("", job_of(letter))
            and (not self.text or self.text.casefold() in "\n".join([letter.place, *letter.facts.values()]).casefold())
        )


@dataclass(frozen=True)
class LetterPage:
    """A page of dead letters. `following`: the place behind which the next page begins, or None; of a page with the newest first a
    `LetterTime`. `counts`: the number of selected dead letters by reason and step. `messages`: the same by what the log calls them; only
    of a page with the oldest first. `complete`: False if there are more than were counted.
    """

    letters: list[DeadLetter]
    following: tuple[int, ...] | None
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    complete: bool = True
    messages: Counter[tuple[str, str]] = field(default_factory=Counter)

    @property
    def found(self) -> int:
        """The number of counted dead letters."""
        return self.counts.total()


def letters_page(
    dead: Letters, chosen: LetterFilter, *, after: tuple[int, int] = (-1, -1), redriven: bool = False, most: int = 50
) -> LetterPage:
    """Returns the selected dead letters behind a place, at most `most`, the oldest first. `redriven`: True includes those that were
    redriven before.

    At most 20,000 dead letters are read for the page, and for the counts, which are those of all pages.
    """
    letters: list[DeadLetter] = []
    following: tuple[int, int] | None = None
    at = after
    for read, letter in enumerate(dead.letters(redriven=redriven, after=after)):
        if len(letters) == most or read == MOST_READ:
            following = at
            break
        at = (letter.partition, letter.offset)
        if chosen.selects(letter):
            letters.append(letter)
    counts: Counter[tuple[str, str]] = Counter()
    messages: Counter[tuple[str, str]] = Counter()
    complete = True
    for read, letter in enumerate(dead.letters(redriven=redriven)):
        if read == MOST_READ:
            complete = False
            break
        if chosen.selects(letter):
            counts[reason_of(letter), step_of(letter)] += 1
            messages[_words_of(letter), step_of(letter)] += 1
    return LetterPage(letters, following, counts, complete, messages)


def newest_page(
    dead: Letters, chosen: LetterFilter, *, after: LetterTime | None = None, redriven: bool = False, most: int = 50
) -> LetterPage:
    """Returns the selected dead letters behind a place, at most `most`, the newest first. `redriven`: True includes those that were
    redriven before. Only the newest 20,000 are read and counted; `complete` is False if there are older ones.
    """
    letters: list[DeadLetter] = []
    at: LetterTime | None = None
    following: LetterTime | None = None
    counts: Counter[tuple[str, str]] = Counter()
    complete = True
    for read, (place, letter) in enumerate(dead.newest(redriven=redriven)):
        if read == MOST_READ:
            complete = False
            break
        if not chosen.selects(letter):
            continue
        counts[reason_of(letter), step_of(letter)] += 1
        if after is not None and place >= after:
            continue
        if len(letters) < most:
            letters.append(letter)
            at = place
        else:
            following = at
    return LetterPage(letters, following, counts, complete)


def letter_after(dead: Letters, letter: DeadLetter, name: str) -> DeadLetter | None:
    """Returns the dead letter that a record became after it was sent back, or None. `dead`: the place where it is searched for. `name`:
    the name of the place of `letter`, as in `DeadLetter.before`.

    At most the newest 20,000 are read, and the records of the newest 50 rows of steps.
    """
    rows = 0
    for read, ((time, *_), each) in enumerate(dead.newest(redriven=True)):
        if read == MOST_READ or time < letter.timestamp:
            break
        rows += "step" in each.facts
        before = each.before if rows > _MOST_ROWS else dead.before(each)
        if before == (name, letter.place):
            return each
    return None


def reason_of(letter: DeadLetter) -> str:
    """Returns the name of the error, or "?" for a record that Sabot did not write as a dead letter."""
    return letter.facts.get("error", "?")


def _words_of(letter: DeadLetter) -> str:
    """Returns the reason as the log counts it: of errors in the record itself the message, without its values."""
    reason, message = reason_of(letter), letter.facts.get("message")
    return reason_in(message) if reason == DataError.__name__ and message else reason


def step_of(letter: DeadLetter) -> str:
    """Returns the step of the row, or the agent or task that set a whole record apart, or "?"."""
    return letter.facts.get("step") or letter.facts.get("agent", "?")


def job_of(letter: DeadLetter) -> str | None:
    """Returns the id of the durable agent's job that the dead letter is about, or None for other records."""
    found = next((value for name, value in reversed(letter.headers) if name == JOB_HEADER), None)
    return None if found is None else found.decode(errors="replace")


def origin_of(letter: DeadLetter) -> str:
    """Returns the place from which the record came, as topic[partition]@offset."""
    facts = letter.facts
    return f"{facts.get('topic', '?')}[{facts.get('partition', '?')}]@{facts.get('offset', '?')}"


def letter_facts(letter: DeadLetter) -> dict[str, Any]:
    """Returns what is known of a dead letter, without its record: place, time, origin, error, agent and step."""
    facts = {name: letter.number(name) if name in _NUMBERS else value for name, value in letter.facts.items()}
    return {"letter": letter.place, "written": letter.timestamp, "redriven": letter.redriven, **facts}


def record_facts(letter: DeadLetter) -> dict[str, Any]:
    """Returns the record of a dead letter: key, headers and payload, as text or hexadecimal digits."""
    return {
        "key": None if letter.key is None else text_or_hex(letter.key),
        "headers": [[name, text_or_hex(value)] for name, value in letter.headers],
        "payload": None if letter.payload is None else text_or_hex(letter.payload),
    }
