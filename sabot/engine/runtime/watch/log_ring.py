"""The last lines of the log of this process, in a ring of bounded size, with secrets hidden."""

import asyncio
import logging
import re
import traceback
from collections import deque
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from sabot.base.dataclass import dataclass
from sabot.base.logs import is_new
from sabot.base.redaction import scrubbed, visible

_MOST_LINES = 2_000
_MOST_CHARACTERS = 4_000_000  # of all lines together
_MOST_IN_A_LINE = 8_000
_CUT = " … (cut)"
_MOST_SHOWN_BYTES = 40_000  # so that a page of texts that cannot be compressed stays small
_JOB = re.compile(r"\bjob ([^\s:,]+)")


@dataclass(frozen=True)
class LogLine:
    """A line of the log. `number`: 1, 2, … since the console was opened. `at`: seconds since 1970. `level`: debug, info, warning,
    error or critical. `step`: the name of the thread or coroutine that wrote the line; the threads of streams are named after their
    task. `job`: the job that the message names, or "". `traceback`: of the error, or "".
    """

    number: int
    at: float
    level: str
    step: str
    job: str
    logger: str
    message: str
    traceback: str

    @property
    def characters(self) -> int:
        """The length of all texts of the line."""
        return sum(map(len, (self.step, self.job, self.logger, self.message, self.traceback)))


class LogRing(logging.Handler):
    """A handler that keeps the last 2,000 lines. Lines are added by any thread.

    The ring is a handler of the root logger from `open` to `close`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.addFilter(is_new)
        self._lines: deque[LogLine] = deque()
        self._characters = 0
        self._number = 0

    def open(self) -> None:
        """Begins to keep lines, if the program has set logging up. Otherwise a handler would change where its lines go: Python writes
        warnings to stderr only while there is no handler, and `logging.basicConfig` does nothing if there is one.
        """
        if logging.getLogger().handlers:
            logging.getLogger().addHandler(self)

    def close(self) -> None:
        """Ends keeping lines. The kept ones stay."""
        logging.getLogger().removeHandler(self)
        super().close()

    def emit(self, record: logging.LogRecord) -> None:
        """Keeps a line, in place of the oldest ones if there are too many."""
        try:
            message = record.getMessage()
            trace = record.exc_text or ""
            if not trace and record.exc_info:
                trace = "".join(traceback.format_exception(*record.exc_info))
        except Exception:  # a message with wrong arguments: as in other handlers, the program goes on
            self.handleError(record)
            return
        message = _clean(message)
        job = _JOB.search(message)
        self._number += 1
        line = LogLine(
            self._number,
            record.created,
            record.levelname.lower(),
            _clean(_step_of(record))[:200],
            "" if job is None else job[1][:200],
            record.name[:200],
            message,
            _clean(trace.rstrip()),
        )
        self._lines.append(line)
        self._characters += line.characters
        while len(self._lines) > _MOST_LINES or self._characters > _MOST_CHARACTERS:
            self._characters -= self._lines.popleft().characters

    def load(self, lines: Iterable[LogLine]) -> None:
        """Replaces the kept lines by those of a file, the oldest first."""
        self.acquire()
        try:
            self._lines = deque(lines)
            self._characters = sum(each.characters for each in self._lines)
        finally:
            self.release()

    def lines(self, level: str = "", search: str = "") -> list[LogLine]:
        """Returns the kept lines, the newest first. `level`: only lines of this level or a more severe one, or "" for all; an unknown
        level counts as "". `search`: only lines in which this text occurs, in any letter case.
        """
        self.acquire()
        try:
            kept = list(self._lines)
        finally:
            self.release()
        levels = logging.getLevelNamesMapping()
        least = levels.get(level.upper(), 0)
        wanted = search.casefold()
        return [
            each
            for each in reversed(kept)
            if levels.get(each.level.upper(), logging.CRITICAL) >= least
            and wanted in "\n".join((each.step, each.job, each.logger, each.message, each.traceback)).casefold()
        ]


def log_rows(lines: Iterable[LogLine]) -> list[dict[str, Any]]:
    """Returns the values of lines by name, for CSV and JSON."""
    return [asdict(each) for each in lines]


def first_page(lines: Iterable[LogLine]) -> list[LogLine]:
    """Returns the first lines, as many as a page of the console shows."""
    shown: list[LogLine] = []
    left = _MOST_SHOWN_BYTES
    for each in lines:
        left -= 100 + len(repr(asdict(each)).encode(errors="replace"))  # the markup of a row, and its texts
        if left < 0 and shown:
            break
        shown.append(each)
    return shown


def _step_of(record: logging.LogRecord) -> str:
    """Returns the name of the coroutine that writes the record, or that of its thread."""
    try:
        task = asyncio.current_task()
    except RuntimeError:  # no event loop runs in this thread
        task = None
    return task.get_name() if task is not None else str(record.threadName or "")


def _clean(text: str) -> str:
    """Returns a text without secrets, cut to a length. A cut comes last, because half a secret is not recognised."""
    clean = visible(scrubbed(text))
    return clean if len(clean) <= _MOST_IN_A_LINE else clean[: _MOST_IN_A_LINE - len(_CUT)] + _CUT
