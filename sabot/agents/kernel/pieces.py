"""The pieces of answers that models are writing in the jobs of a kernel. They are kept until the answer is recorded, so
that a listener who comes late, or comes back, gets the text from its beginning.

   piece of a model ─▶ KeptPieces ─▶ what a listener has not heard yet     (HeardPieces: one for each listener)
   RESULT, END      ─▶ dropped: the whole answer is in the journal
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import msgspec

from sabot.agents.events.bus import RuntimeEvent, RuntimeEventType
from sabot.agents.events.job_events import piece_events
from sabot.jobs.log import Fragment

MOST_OF_JOB = 1_000_000
"""The most characters that are kept of the answers of one job."""

MOST_OF_ALL = 50_000_000
"""The most characters that are kept in a kernel."""

_LOOSE = (
    256  # pieces of an answer that are kept apart before they are joined: short texts cost more than their characters
)


@dataclass(slots=True, eq=False)
class _OpenAnswer:
    """The pieces of one attempt of an answer: `last` is the newest piece, `texts` and `reasoning` are all texts."""

    last: Fragment
    texts: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    size: int = 0

    def add(self, piece: Fragment) -> None:
        self.last = piece
        for texts, text in ((self.texts, piece.text), (self.reasoning, piece.reasoning)):
            if text:
                texts.append(text)
                if len(texts) >= _LOOSE:
                    texts[:] = ["".join(texts)]
        self.size += len(piece.text) + len(piece.reasoning)

    def joined(self) -> Fragment:
        """Returns one piece that has the texts of all pieces, and the number of the newest one."""
        return _with_texts(self.last, "".join(self.texts), "".join(self.reasoning))


class KeptPieces:
    """The pieces of all answers of a kernel that are not recorded yet.

    What exceeds a limit is dropped: with MOST_OF_JOB the answer that grows, with MOST_OF_ALL the answers that began
    first. Late listeners get a dropped answer when it is recorded.
    """

    def __init__(self) -> None:
        self._jobs: dict[str, dict[int, _OpenAnswer]] = {}
        self._order: dict[tuple[str, int], None] = {}  # the answers, those that began first are the first
        self._size = 0

    def add(self, piece: Fragment) -> None:
        """Keeps a piece. A piece of a new attempt replaces those of the attempt before. A piece whose predecessors were
        dropped is not kept.
        """
        answers = self._jobs.get(piece.job, {})
        answer = answers.get(piece.ordinal)
        if piece.number == 0:
            self.drop(piece.job, piece.ordinal)
            answers = self._jobs.setdefault(piece.job, {})
            answer = answers[piece.ordinal] = _OpenAnswer(piece)
            self._order[piece.job, piece.ordinal] = None
        elif answer is None or (answer.last.attempt, answer.last.number + 1) != (piece.attempt, piece.number):
            return
        before = answer.size
        answer.add(piece)
        self._size += answer.size - before
        if sum(each.size for each in answers.values()) > MOST_OF_JOB:
            self.drop(piece.job, piece.ordinal)
        while self._size > MOST_OF_ALL:
            self.drop(*next(iter(self._order)))

    def __bool__(self) -> bool:
        return bool(self._jobs)

    def drop(self, job_id: str, ordinal: int | None = None) -> None:
        """Drops the pieces of one answer of a job, or of all with None. Does nothing if there are none."""
        answers = self._jobs.get(job_id)
        if answers is None:
            return
        for each in list(answers) if ordinal is None else [ordinal]:
            answer = answers.pop(each, None)
            if answer is not None:
                self._size -= answer.size
                del self._order[job_id, each]
        if not answers:
            del self._jobs[job_id]

    def of(self, job_id: str) -> list[Fragment]:
        """Returns the kept pieces of a job: for each of its answers one piece, with the texts of all pieces so far."""
        return [answer.joined() for answer in self._jobs.get(job_id, {}).values()]


class _Heard(msgspec.Struct):
    """The part of an answer that a listener has: its attempt, the number of the last piece and whether that was its
    reasoning, and the numbers of characters.
    """

    attempt: int = 0
    last: tuple[int, bool] = (-1, True)
    text: int = 0
    reasoning: int = 0


class HeardPieces:
    """The pieces that one listener has got. It gets the pieces of an answer without a gap from the first one on, and
    none twice. If a piece is missing, it gets no more of that attempt.
    """

    def __init__(self) -> None:
        self._answers: dict[int, _Heard] = {}
        self._recorded: set[int] = set()

    def begin(self) -> None:
        """Forgets all answers, because the job begins a new history."""
        self._answers.clear()
        self._recorded.clear()

    def close(self, ordinal: int) -> None:
        """Notes that the listener has got the whole answer of this effect, so it gets no pieces of it any more."""
        self._answers.pop(ordinal, None)
        self._recorded.add(ordinal)

    def takes(self, event: RuntimeEvent) -> bool:
        """Returns True if the listener gets this event of a piece next, and notes that it has it."""
        data, is_reasoning = event.data, event.type is RuntimeEventType.MODEL_REASONING
        ordinal, attempt, place = data["ordinal"], data["attempt"], (data["number"], is_reasoning)
        if ordinal in self._recorded:
            return False
        heard = self._answers.get(ordinal)
        if heard is None or attempt > heard.attempt:
            heard = _Heard(attempt)
        if attempt < heard.attempt or not heard.last < place < (heard.last[0] + 2, False):
            return False
        heard.last = place
        heard.text += 0 if is_reasoning else len(data["text"])
        heard.reasoning += len(data["text"]) if is_reasoning else 0
        self._answers[ordinal] = heard
        return True

    def rest(self, kept: Fragment) -> Fragment | None:
        """Returns the part of a kept answer that the listener does not have, and notes that it has it. Returns None if
        there is no such part.
        """
        heard = self._answers.get(kept.ordinal)
        if kept.ordinal in self._recorded or (heard is not None and heard.attempt > kept.attempt):
            return None
        if heard is None or heard.attempt < kept.attempt:
            heard = _Heard(kept.attempt)
        if heard.last >= (kept.number, True):
            return None
        rest = _with_texts(kept, kept.text[heard.text :], kept.reasoning[heard.reasoning :])
        self._answers[kept.ordinal] = _Heard(kept.attempt, (kept.number, True), len(kept.text), len(kept.reasoning))
        return rest

    def of(
        self, kept: Iterable[Fragment], live: Iterable[RuntimeEvent], whom: tuple[str, str, str], ordinal: int | None
    ) -> Iterator[RuntimeEvent]:
        """Yields the events of the pieces that the listener gets next.

        - `kept`: the kept pieces at some moment. `live`: the events of pieces that came after that moment.
        - `whom`: the tenant, the actor and the session of the job.
        - `ordinal`: only pieces of the answer of this effect; None for those of all.
        """
        for each in kept:
            if (ordinal is None or each.ordinal == ordinal) and (rest := self.rest(each)) is not None:
                yield from piece_events(rest, whom)
        for event in live:
            if (ordinal is None or event.data["ordinal"] == ordinal) and self.takes(event):
                yield event


def _with_texts(piece: Fragment, text: str, reasoning: str) -> Fragment:
    place = piece.job, piece.ordinal, piece.attempt, piece.number
    return Fragment(*place, text, reasoning, piece.at_ms, piece.agent)
