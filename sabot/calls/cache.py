"""A cache of answers by question, which also makes one call serve equal questions that come while the call runs.

A question is any hashable value, such as the request of a call. The first caller with a new question makes the call
and reports its answer. A caller that comes with an equal question meanwhile adds a waiter; the first caller then
passes the answer to all waiters. Answers are kept up to a number and an age; above the number, the least recently
used one is removed. A cache belongs to one thread or one event loop.
"""

import math
from collections import OrderedDict
from typing import Any, Generic, TypeVar

from sabot.clock import Clock

Question = TypeVar("Question")
Waiter = TypeVar("Waiter")


UNKNOWN: Any = object()
"""Stands for a missing answer, because None may be an answer."""


class AnswerCache(Generic[Question]):
    """A cache of answers by question (hashable). `most`: the most answers that are kept, 0 for none. `ttl_s`: the
    seconds for which an answer is kept, or None for no limit.
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
        """Returns the kept answer to a question, or UNKNOWN if there is none or it is too old."""
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
    """Kept answers, and questions whose call is in flight. A waiter is any object that stands for a caller;
    `answered` returns the waiters of a question, so that its first caller can pass the answer on.
    """

    def __init__(self, most: int, ttl_s: float | None, clock: Clock) -> None:
        super().__init__(most, ttl_s, clock)
        self._waiting: dict[Question, list[Waiter]] = {}  # by question in flight: its waiters

    def under_way(self, question: Question) -> list[Waiter] | None:
        """Returns the list of waiters if a call for this question is in flight: add a waiter to it. Returns None if
        no such call is in flight; from then on the question counts as in flight, and the caller must make the call
        and report its end to `answered`.
        """
        waiting = self._waiting.get(question)
        if waiting is None:
            self._waiting[question] = []
        return waiting

    def answered(self, question: Question, answer: Any, *, keep: bool) -> list[Waiter]:
        """Reports the end of a question's call: the answer, which is kept with keep=True, or a failure (keep=False).
        Returns the waiters.
        """
        waiting = self._waiting.pop(question)
        if keep:
            self.keep(question, answer)
        return waiting
