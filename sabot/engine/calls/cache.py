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
    """A cache of answers, each stored under its question, which is any hashable value.

    - `most`: the maximum number of answers in the cache; 0 to store none. If there are more, the least recently used
      answer is removed.
    - `ttl_s`: the number of seconds after which an answer is too old to be returned; None for no limit.
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
        """Returns the present time in seconds, for the parameter `now` of the method `known`. A caller with many
        questions can read the time once for all of them.
        """
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
        """Stores the answer to a question. If the cache then has more than `most` answers, removes the least recently
        used one.
        """
        if self._most:
            answers = self._answers
            answers[question] = (self._clock.monotonic() + self._ttl_s, answer)
            answers.move_to_end(question)
            if len(answers) > self._most:
                answers.popitem(last=False)


class Questions(AnswerCache[Question], Generic[Question, Waiter]):
    """An `AnswerCache` that also makes one call serve all callers who have the same question at the same time.

    The first caller makes the call. Each caller that comes while the call is in flight adds an object of its own, a
    waiter, to the list that `under_way` returns. When the call has ended, `answered` returns these waiters to the
    first caller, which passes the answer on to them.
    """

    def __init__(self, most: int, ttl_s: float | None, clock: Clock) -> None:
        super().__init__(most, ttl_s, clock)
        self._waiting: dict[Question, list[Waiter]] = {}  # by question in flight: its waiters

    def under_way(self, question: Question) -> list[Waiter] | None:
        """Returns the list of waiters if a call for this question is in flight. The caller then appends its own
        waiter to the list, and makes no call.

        Returns None if no such call is in flight, and records that one is in flight from now on. The caller then has
        to make the call, and has to pass its answer or its failure to `answered`.
        """
        waiting = self._waiting.get(question)
        if waiting is None:
            self._waiting[question] = []
        return waiting

    def answered(self, question: Question, answer: Any, *, keep: bool) -> list[Waiter]:
        """Records that the call for a question has ended. Returns the waiters that were added while it was in flight.

        `keep`: True to store `answer` in the cache. False after a failure; `answer` is then ignored.
        """
        waiting = self._waiting.pop(question)
        if keep:
            self.keep(question, answer)
        return waiting
