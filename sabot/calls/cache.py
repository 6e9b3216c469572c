"""Equal questions are asked once: answers that are kept, and questions that are under way.

Who finds that a question is neither answered nor under way asks it, and reports its answer. Who comes with an equal question meanwhile
leaves a waiter, and the one who asked passes the answer on to it. Answers are kept up to a number and an age; beyond the number the
one goes that was not used for longest. All of it belongs to one thread, or one event loop.
"""

import math
from collections import OrderedDict
from typing import Any, Generic, TypeVar

from sabot.clock import Clock

Question = TypeVar("Question")
Waiter = TypeVar("Waiter")


class _Unknown:
    __slots__ = ()


UNKNOWN = _Unknown()
"""In place of an answer, since None may be one."""


class AnswerCache(Generic[Question]):
    """Answers by question (hashable). most: how many are kept; 0: none. ttl_s: how long one is kept; None: as long as there is room."""

    def __init__(self, most: int, ttl_s: float | None, clock: Clock) -> None:
        self.hits = 0  # questions that a kept answer answered
        self._most, self._ttl_s, self._clock = most, math.inf if ttl_s is None else ttl_s, clock
        # By question (good until, answer); the one that was used last stands last.
        self._answers: OrderedDict[Question, tuple[float, Any]] = OrderedDict()

    def __len__(self) -> int:
        """How many answers are kept."""
        return len(self._answers)

    def now(self) -> float:
        """The time that `known` takes: read once where many questions come together."""
        return self._clock.monotonic()

    def known(self, question: Question, now: float) -> Any:
        """The answer, if one is kept that is not too old; else UNKNOWN."""
        found = self._answers.get(question)
        if found is None or now >= found[0]:
            return UNKNOWN
        self._answers.move_to_end(question)
        self.hits += 1
        return found[1]

    def keep(self, question: Question, answer: Any) -> None:
        """From now on it is known; beyond the number the answer goes that was not used for longest."""
        if self._most:
            answers = self._answers
            answers[question] = (self._clock.monotonic() + self._ttl_s, answer)
            answers.move_to_end(question)
            if len(answers) > self._most:
                answers.popitem(last=False)


class Questions(AnswerCache[Question], Generic[Question, Waiter]):
    """Answers that are kept, and questions that are under way. A waiter is whatever the caller wants to have back when the answer to an
    equal question comes.
    """

    def __init__(self, most: int, ttl_s: float | None, clock: Clock) -> None:
        super().__init__(most, ttl_s, clock)
        self._waiting: dict[Question, list[Waiter]] = {}  # by question that is under way: who else waits

    def under_way(self, question: Question) -> list[Waiter] | None:
        """The waiters of a question that is under way, to which the caller may add its own. None: it was not; from now on it is, and the
        caller asks it.
        """
        waiting = self._waiting.get(question)
        if waiting is None:
            self._waiting[question] = []
        return waiting

    def answered(self, question: Question, answer: Any, *, keep: bool) -> list[Waiter]:
        """The caller has the answer of the question, or its failure (which is not to be kept). -> the waiters."""
        waiting = self._waiting.pop(question)
        if keep:
            self.keep(question, answer)
        return waiting
