"""A person who answers the questions of an app in another process, through the inbox of its journal. The app need not
be running.
"""

import heapq
import itertools
import json
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from sabot.clock import SYSTEM_CLOCK
from sabot.errors import LetterRefused, TransientError, UserError
from sabot.journal import JournalReader, open_inbox, open_reader
from sabot.journal.entries import Intent, Letter

Decide = Callable[[Intent], tuple[float, Callable[[], dict[str, Any]]] | None]
"""Decides on a question: returns the seconds until it is answered, and the function that returns the answer then; or None, which leaves the
question to somebody else.
"""

_LOOK_SECONDS = 0.02
_GIVEN = ("second", "closed")  # reasons of refusal by which the question was answered or withdrawn already


class Person:
    """A person who follows a journal, and answers a question once, as `decide` says. It works in a thread of its
    own from `start` to `finish`. If the server of the journal is unreachable, it waits.
    """

    def __init__(self, address: str, decide: Decide) -> None:
        self.answered = 0
        self._address = address
        self._decide = decide
        self._due: list[tuple[float, int, Intent, Callable[[], dict[str, Any]]]] = []
        self._numbers = itertools.count()  # keeps questions with the same due time in order
        self._over = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="person", daemon=True)

    def start(self) -> None:
        """Starts the thread. The journal need not exist yet."""
        self._thread.start()

    def finish(self) -> None:
        """Stops the thread. Raises the error with which it ended, if any."""
        self._over.set()
        self._thread.join()
        self.check()

    def check(self) -> None:
        """Raises the error with which the thread has ended, if any."""
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        try:
            reader = self._opened()
            if reader is not None:
                self._follow(reader)
                reader.close()
        except BaseException as error:  # kept for `finish`
            self._error = error

    def _opened(self) -> JournalReader | None:
        while not self._over.wait(_LOOK_SECONDS):
            try:
                return open_reader(self._address)
            except (UserError, TransientError):  # the app has not made the journal yet, or its server is unreachable
                continue
        return None

    def _follow(self, reader: JournalReader) -> None:
        start: dict[int, int] = {}
        while not self._over.wait(_LOOK_SECONDS):
            with suppress(TransientError):  # the next turn tries again
                self._look(reader, start)

    def _look(self, reader: JournalReader, start: dict[int, int]) -> None:
        now = SYSTEM_CLOCK.monotonic()
        for position, entry in reader.read(start=start):
            start[position.partition] = position.offset + 1
            if isinstance(entry, Intent) and entry.kind == "ask":
                decided = self._decide(entry)
                if decided is not None:
                    seconds, answer = decided
                    heapq.heappush(self._due, (now + seconds, next(self._numbers), entry, answer))
        while self._due and self._due[0][0] <= now:
            *_, question, answer = self._due[0]
            self._post(question, answer())
            heapq.heappop(self._due)

    def _post(self, question: Intent, answer: dict[str, Any]) -> None:
        inbox = open_inbox(self._address)
        try:
            inbox.post(Letter("answer", question.token, body=json.dumps(answer).encode(), by="person"))
            self.answered += 1
        except LetterRefused as refused:
            if refused.reason not in _GIVEN:
                raise
        finally:
            inbox.close()
