"""Equal questions are asked once: answers that are kept, and questions that are under way.

One thread's or one event loop's. A question that nobody has asked is the caller's to ask; whoever comes with an equal one meanwhile is told
of the answer by him. Answers are kept up to a number and an age; those that were used last stay.
"""

import math
from collections import OrderedDict
from typing import Any, Generic, TypeVar

from sabot.clock import Clock

__all__ = ["UNKNOWN", "Questions"]

Question = TypeVar("Question")
Waiter = TypeVar("Waiter")


class _Unknown:
    __slots__ = ()


UNKNOWN = _Unknown()
"""In place of an answer, since None may be one."""


class Questions(Generic[Question, Waiter]):
    """Answers by question (hashable). most: so many are kept, the last used; 0: none. ttl_s: for so long; None: as long as there is room.

    A waiter is whatever the caller wants to have back, when an answer comes, for an equal question that he did not ask.
    """

    def __init__(self, most: int, ttl_s: float | None, clock: Clock) -> None:
        self.hits = 0  # questions that a kept answer answered
        self._most, self._ttl_s, self._clock = most, math.inf if ttl_s is None else ttl_s, clock
        self._answers: OrderedDict[Question, tuple[float, Any]] = (
            OrderedDict()
        )  # -> (good until, answer); the last used last
        self._waiting: dict[Question, list[Waiter]] = {}  # by question that is under way: who else waits

    def __len__(self) -> int:
        """Answers that are kept."""
        return len(self._answers)

    def now(self) -> float:
        """For `known`, where many questions come together."""
        return self._clock.monotonic()

    def known(self, question: Question, now: float) -> Any:
        """The answer, if one is kept that is not too old; else UNKNOWN."""
        found = self._answers.get(question)
        if found is None or now >= found[0]:
            return UNKNOWN
        self._answers.move_to_end(question)
        self.hits += 1
        return found[1]

    def under_way(self, question: Question) -> list[Waiter] | None:
        """Who waits for the answer of a question that is asked already: one may join them. None: it is the caller's to ask, from now on."""
        waiting = self._waiting.get(question)
        if waiting is None:
            self._waiting[question] = []
        return waiting

    def answered(self, question: Question, answer: Any, *, keep: bool) -> list[Waiter]:
        """The question has its answer, or has failed (not to be kept). -> who else waited for it."""
        waiting = self._waiting.pop(question)
        if keep and self._most:
            answers = self._answers
            answers[question] = (self._clock.monotonic() + self._ttl_s, answer)
            answers.move_to_end(question)
            if len(answers) > self._most:
                answers.popitem(last=False)
        return waiting
