"""Rows that come too late for a step that goes by event time: they are counted, reported in the log, and sent where
`late=` says.

    late=          the step's output branch        what goes there
    nothing        none                            nothing: the rows are dropped
    another sink   "late", "late_right"            the rows as they came
    dead letters   "late/letters", …               each row as a dead letter that says how late it was
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from sabot._cython.arrow.batch import Batch
from sabot.base.quantities import counted_words, duration_words
from sabot.engine.letters.form import letters_of_rows
from sabot.engine.operators.base import LETTERS, TIME_COLUMN, OperatorContext
from sabot.engine.operators.rows.bad import STEP_LENGTH
from sabot.engine.operators.state_facts import OwnFacts
from sabot.errors import DataError

if TYPE_CHECKING:
    from sabot.base.figures import ToldStep

_log = logging.getLogger(__name__)

_STEPS = 4  # steps of the histogram in which lateness doubles
_DROPPED_IN_SQL = "do not count (the interval of WATERMARK FOR … AS … - INTERVAL … says how late rows may be)"
DROPPED = "do not count (lateness= of the stream says how late rows may be, late= of the step where they go)"
_EVERY_S = 60.0  # the least time between two lines of the log about one step


class LateRows:
    """Counts and reports the rows of one input of a step that come too late, and sends them to their branch. Only the
    thread of the subtask may use it.

    The first late rows are logged at once; later ones at most once a minute and at the end, always with the number of
    all late rows.
    """

    def __init__(
        self,
        context: OperatorContext,
        step: str,
        branch: str = "late",
        hidden: Sequence[str] = (TIME_COLUMN,),
        fate: str = DROPPED,
        place: str = "",
    ) -> None:
        """`step`: the text of the step for messages and dead letters. `branch`: the name of the output branch.
        `hidden`: the columns that rows in the branch do not have. `fate`: what becomes of the rows without a branch, as the
        end of a sentence. `place`: the position of the step in a script of SQL, empty for a program of Python.
        """
        self._fate, self._place = _DROPPED_IN_SQL if place and fate == DROPPED else fate, place
        self.count = 0
        self._context, self._step, self._hidden = context, step[:STEP_LENGTH], list(hidden)
        self._rows, self._letters = context.branches.get(branch), context.branches.get(branch + LETTERS)
        self._told, self._told_at, self._most_ms = 0, -_EVERY_S, 0
        self._partly = 0  # the late rows that missed only some of their windows
        self._greatest_ms = 0
        self._by_lateness = np.zeros(64 * _STEPS, np.int64)  # late rows by the logarithm of their lateness
        self._all = 0  # the rows so far, late or not

    def came(self, rows: int) -> None:
        """Counts rows of the input, whether they are late or not. Called before `reject` or `note` for these rows."""
        self._all += rows

    def reject(self, batch: Batch, rows: pa.Int32Array, watermark_ms: int) -> None:
        """Counts these rows of the batch's data, and sends them to the branch. `watermark_ms`: the watermark at which
        they are late.
        """
        times = batch.data.column(TIME_COLUMN).take(rows).to_numpy()
        if self._rows is not None:
            self._rows(batch.with_data(batch.data.take(rows).drop_columns(self._hidden)))
        elif self._letters is not None:
            self._letters(Batch(self._letters_of(batch, rows, times.tolist(), watermark_ms), None, batch.topic))
        self.note(times, watermark_ms)

    def note(self, times: Any, watermark_ms: int, rows: Any = None, *, partly: bool = False) -> None:
        """Counts late rows without sending them to a branch. `times`: their event times in ms (numpy). `rows`: the
        number of rows that each entry of `times` stands for (numpy), or None for one. `partly`: True if they have
        missed only some of their windows.
        """
        late_ms = np.maximum(watermark_ms - times, 1)
        count = len(times) if rows is None else int(rows.sum())
        self._partly += count if partly else 0
        self._most_ms = max(self._most_ms, int(late_ms.max()))
        self._greatest_ms = max(self._greatest_ms, self._most_ms)
        steps = np.minimum((np.log2(late_ms) * _STEPS).astype(np.int64), len(self._by_lateness) - 1)
        np.add.at(self._by_lateness, steps, 1 if rows is None else rows)
        self.count += count  # the last: who reads the figures in another thread sees no row before its lateness
        now = self._context.clock.monotonic()
        if now - self._told_at >= _EVERY_S:
            self._tell(now)

    def restore(self, saved: Iterable[Mapping[str, Any]]) -> None:
        """Goes on with the figures of a checkpoint. These rows are not logged again. `saved`: results of `facts` (`StateParts.share`)."""
        for facts in saved:
            self.count += facts["late_rows"]
            lateness = facts.get("lateness")  # earlier versions stored the number alone
            if lateness is not None:
                self._all += lateness["rows"]
                self._partly += lateness.get("partly", 0)
                self._greatest_ms = max(self._greatest_ms, lateness["most_ms"])
                np.add.at(self._by_lateness, np.array(lateness["steps"], np.int64), lateness["late"])
        self._told = self.count

    def facts(self) -> OwnFacts:
        """Returns the figures for a checkpoint."""
        steps = np.flatnonzero(self._by_lateness)
        late = self._by_lateness[steps].tolist()
        lateness: dict[str, Any] = {
            "rows": self._all,
            "most_ms": self._greatest_ms,
            "steps": steps.tolist(),
            "late": late,
        }
        if self._partly:
            lateness["partly"] = self._partly
        return {"late_rows": self.count, "lateness": lateness}

    def statistics(self) -> "ToldStep":
        """Returns the figures since the begin of the step's state. From any thread."""
        return late_figures(self.count, self._greatest_ms, self._by_lateness)

    @staticmethod
    def together(parts: "Iterable[LateRows]") -> "ToldStep":
        """Returns the figures of several inputs as one."""
        each = list(parts)
        histogram = np.sum([part._by_lateness for part in each], axis=0)
        return late_figures(sum(part.count for part in each), max(part._greatest_ms for part in each), histogram)

    def tell_rest(self) -> None:
        """Logs the number of late rows if some of them have not been logged yet. Called at the end."""
        if self.count > self._told:
            self._tell(self._context.clock.monotonic())

    def _tell(self, now: float) -> None:
        taken = self._rows is not None or self._letters is not None
        half, most = quantiles_ms(self._by_lateness, self._greatest_ms, (0.5, 0.99))
        _log.log(
            logging.INFO if taken else logging.WARNING,
            "%s came too late for %s, %sby up to %s (half of them by up to %s, 99 %% by up to %s; %s): they %s",
            *(
                counted_words(self.count, "row"),
                f"{self._step}{self._place and f' (at {self._place})'}",
                "since the last message " if self._told else "",
                span_text(self._most_ms),
                span_text(half),
                span_text(most),
                self._nearly_all(),
            ),
            self._what_becomes_of_them("go where late= says" if taken else self._fate),
        )
        self._told, self._told_at, self._most_ms = self.count, now, 0

    def _what_becomes_of_them(self, fate: str) -> str:
        missed = "missed only some of their windows, and count in the others"
        if not self._partly:
            return fate
        return missed if self._partly == self.count else f"{fate}; {self._partly} of them {missed}"

    def _nearly_all(self) -> str:
        """Returns the lateness with which 99.9 % of all rows so far would have been in time, as a part of a sentence."""
        late = int(self._by_lateness.sum())
        allowed = (self._all or late) // 1000  # this many rows may be late
        if late <= allowed:
            return "99.9 % of all rows were in time"
        (more,) = quantiles_ms(self._by_lateness, self._greatest_ms, (1 - allowed / late,))
        what = "an interval of WATERMARK that is" if self._place else "lateness="
        return f"{what} greater by {span_text(more)} would have kept 99.9 % of all rows"

    def _letters_of(self, batch: Batch, rows: pa.Int32Array, times: list[int], watermark_ms: int) -> pa.RecordBatch:
        data = batch.data.take(rows)
        places: Any = None if batch.records is None else batch.records.places(rows.to_pylist())
        behind = f"too old: the watermark was at {_moment(watermark_ms)}"
        return letters_of_rows(
            data.drop_columns(self._hidden),
            [
                (DataError.__name__, f"late: {_moment(time)} is {span_text(watermark_ms - time)} {behind}")
                for time in times
            ],
            [1] * len(rows),
            times=times,
            topic=batch.topic,
            step=self._step,
            agent=self._context.agent,
            version=self._context.version,
            places=places,
        )


def late_figures(count: int, most_ms: int, by_lateness: Any) -> "ToldStep":
    """Returns the figures of `LateRows.statistics`. `by_lateness`: the rows by the logarithm of their lateness (numpy)."""
    figures: ToldStep = {"late_rows": count}
    if by_lateness.any():
        figures["late_p50_ms"], figures["late_p99_ms"] = quantiles_ms(by_lateness, most_ms, (0.5, 0.99))
        figures["late_most_ms"] = most_ms
    return figures


def quantiles_ms(by_lateness: Any, most_ms: int, shares: Sequence[float]) -> list[int]:
    """Returns the lateness in ms that these shares of the rows do not exceed. Each is at most a fifth too high, and at most `most_ms`."""
    upto = np.cumsum(by_lateness)
    steps = np.searchsorted(upto, np.array(shares) * upto[-1])
    return [min(most_ms, int(2 ** ((step + 1) / _STEPS))) for step in steps.tolist()]


def _moment(ms: int) -> str:
    try:
        return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=ms)).isoformat(timespec="milliseconds")
    except OverflowError:
        return f"{ms} ms"


def span_text(ms: int) -> str:
    """Returns a duration for people: "250 ms", "3.2 s", "5 h"."""
    if ms >= 60_000:
        return duration_words(ms / 1000)
    return f"{ms / 1000:.3g} s" if ms >= 1000 else f"{ms} ms"
