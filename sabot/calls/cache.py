"""A cache that asks equal questions once: it has answers, and questions whose call is in flight.

The first caller with a new question makes the call and reports its answer. A caller with an equal question meanwhile
adds a waiter; the first caller then passes the answer to all waiters. Answers are kept up to a number and an age;
above the number, the least recently used one is removed. Everything belongs to one thread or one event loop.
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
"""Stands for a missing answer, because None may be an answer."""


class AnswerCache(Generic[Question]):
    """Answers by question (hashable). `most`: the most answers that are kept, 0 for none. `ttl_s`: seconds for which
    an answer is kept, or None for no limit.
    """

    def __init__(self, most: int, ttl_s: float | None, clock: Clock) -> None:
        self.hits = 0  # the number of questions that a kept answer answered
        self._most, self._ttl_s, self._clock = most, math.inf if ttl_s is None else ttl_s, clock
        # question: (good until, answer); the most recently used one is last.
        self._answers: OrderedDict[Question, tuple[float, Any]] = OrderedDict()

    def __len__(self) -> int:
        """Returns the number of kept answers."""
        return len(self._answers)

    def now(self) -> float:
        """Returns the time for `known`. Read it once for many questions."""
        return self._clock.monotonic()

    def known(self, question: Question, now: float) -> Any:
        """Returns the answer if a kept one is not too old, else UNKNOWN."""
        found = self._answers.get(question)
        if found is None or now >= found[0]:
            return UNKNOWN
        self._answers.move_to_end(question)
        self.hits += 1
        return found[1]

    def keep(self, question: Question, answer: Any) -> None:
        """Keeps the answer. Above the number of answers, removes the least recently used one."""
        if self._most:
            answers = self._answers
            answers[question] = (self._clock.monotonic() + self._ttl_s, answer)
            answers.move_to_end(question)
            if len(answers) > self._most:
                answers.popitem(last=False)


class Questions(AnswerCache[Question], Generic[Question, Waiter]):
    """Kept answers, and questions whose call is in flight. A waiter is any object that the caller wants back when the
    answer to an equal question comes.
    """

    def __init__(self, most: int, ttl_s: float | None, clock: Clock) -> None:
        super().__init__(most, ttl_s, clock)
        self._waiting: dict[Question, list[Waiter]] = {}  # by question in flight: its waiters

    def under_way(self, question: Question) -> list[Waiter] | None:
        """Returns the waiters of a question in flight, to which the caller may add its own; or None if the question
        was not in flight. From then on it is, and the caller has to make the call.
        """
        waiting = self._waiting.get(question)
        if waiting is None:
            self._waiting[question] = []
        return waiting

    def answered(self, question: Question, answer: Any, *, keep: bool) -> list[Waiter]:
        """Ends a question: the caller has its answer, or its failure (with keep=False). Returns the waiters."""
        waiting = self._waiting.pop(question)
        if keep:
            self.keep(question, answer)
        return waiting
