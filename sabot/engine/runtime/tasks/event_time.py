"""The event time of a stream's rows, by a column or an expression, and checks of the first event times."""

import datetime
import logging
import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from sabot.api.expr import Expr
from sabot.api.nodes.read import Read
from sabot.base.arrays import PER_SECOND, is_time, scalar_of, to_ms
from sabot.engine.operators.base import DELETE, OP_COLUMN
from sabot.engine.operators.event_time import ComputedTime
from sabot.errors import UserError

_log = logging.getLogger(__name__)

_FIRST_ROWS = 100  # if the first rows, this many, have no event time, time= is wrong
_FROM_MS, _TO_MS = 631_152_000_000, 4_102_444_800_000  # the years 1990 to 2099
_DATES = ("%Y/%m/%d", "%d.%m.%Y", "%m/%d/%Y", "%d/%m/%Y", "%b %d %Y", "%b %d, %Y", "%d %b %Y", "%Y%m%d")
_USUAL = [date + clock for date in _DATES for clock in ("", " %H:%M", " %H:%M:%S")]
_DELETE = scalar_of(DELETE, pa.int8())


class SourceTime:
    """Reads the event times of rows. All readers of a source share it; it may be called from any thread.

    `column`: the column with the event time. `expr`: the expression that computes it, in which numbers count `unit`, texts have
    `format`, and texts and timestamps without a zone have `zone`.
    """

    def __init__(
        self,
        name: str,
        column: str | None,
        expr: Expr | None = None,
        *,
        unit: str | None = None,
        format: str | None = None,
        zone: str | None = None,
        text: str | None = None,
    ) -> None:
        self.text = text or column
        self._name = name
        self._column = column
        self._expr = expr
        self._unit = unit
        self._format = format
        self._zone = zone
        self._computed: tuple[pa.Schema, ComputedTime] | None = None
        self._is_new = True  # no rows have been looked at
        self._numbers = False  # True if event times are numbers
        self._failed = 0  # the number of rows without event time before the first row with one

    def of(self, data: pa.RecordBatch, records: pa.RecordBatch | None) -> tuple[Any, Mapping[int, str]]:
        """Returns the event times in ms, null where a row has none, and the reasons for these nulls by row number.

        A row that deletes a key has only the key; its time is that of its record. Raises UserError if the columns
        have types without times (a Source may return other types than `schema=` says).
        """
        if self._column is not None:
            self._numbers = pa.types.is_integer(data.schema.field(self._column).type)
            return self._as_it_is(data.column(self._column)), {}
        assert self._expr is not None
        computed = self._computed
        if computed is None or computed[0] != data.schema:
            made = ComputedTime(f"stream {self._name}", self._expr, self._unit, self._format, data.schema, self._zone)
            computed = self._computed = (data.schema, made)
        self._numbers = computed[1].numbers
        times, reasons = computed[1].of(data)
        if records is not None and OP_COLUMN in data.schema.names:
            times = pc.if_else(pc.equal(data.column(OP_COLUMN), _DELETE), records.column("timestamp"), times)
        return times, reasons

    def _as_it_is(self, column: pa.Array) -> pa.Array:
        if not is_time(column.type):
            raise UserError(
                f"stream {self._name}: the column of event time, {self._column!r}, has type {column.type}, which is not a time",
                hint="use a timestamp, a date, or int64 as ms since 1970 UTC",
            )
        return to_ms(column)

    def trust(self) -> None:
        """Turns off `count_failed` and `look`, because rows of this source had event times in the run of the checkpoint."""
        self._failed = -1
        self._is_new = False

    def count_failed(self, rows: int, reason: str) -> None:
        """Counts rows without an event time. Raises UserError if none of the first rows has one: `time=` is then
        wrong, and every row would become a dead letter. `reason`: the reason for the first of these rows.
        """
        if not self._is_new or self._failed < 0:
            return
        self._failed += rows
        if self._failed >= _FIRST_ROWS:
            raise UserError(
                f"stream {self._name}: none of its first {self._failed:,} rows has an event time by time={self.text!r}: {reason}",
                hint=_fitting_format(reason)
                or "time= names the column with the event time; time_format= and time_unit= describe how it is written",
            )

    def look(self, least_ms: int, greatest_ms: int) -> None:
        """Logs a warning if the event times of the first rows are numbers, and lie before 1990 or after 2100: `time=` may name another
        column, or numbers count another unit. A time_unit= that is given answers the second question.
        """
        if not self._is_new:
            return
        self._is_new = False
        if not self._numbers or (_FROM_MS <= least_ms < _TO_MS and _FROM_MS <= greatest_ms < _TO_MS):
            return
        unit = self._unit or "ms"
        for ms in (least_ms, greatest_ms):
            for other in PER_SECOND if not _FROM_MS <= ms < _TO_MS else ():
                then_ms = ms * PER_SECOND[unit] // PER_SECOND[other]
                if _FROM_MS <= then_ms < _TO_MS:
                    _log.warning(
                        "stream %s: event time %r of its first rows is %s, as its numbers count %s; in %s it would be %s: "
                        'time_unit="%s" (a column of numbers, "int64" in schema=, takes it)',
                        *(self._name, self.text, _shown(ms), unit, other, _shown(then_ms), other),
                    )
                    return
        if self._unit is None and least_ms:  # numbers that begin at 0 count from a start of their own
            ms = least_ms if least_ms < _FROM_MS else greatest_ms
            _log.warning(
                'stream %s: event time %r of its first rows is %s: time="%s" may be no time; time_unit="ms" says that it is one',
                *(self._name, self.text, _shown(ms), self.text),
            )


def source_time(node: Read) -> SourceTime | None:
    """Returns the reader of a stream's event time, or None if the stream has no event time."""
    if node.time is None:
        return None
    options = {"unit": node.time_unit, "format": node.time_format, "zone": node.time_zone, "text": node.time_text}
    return SourceTime(node.name, node.time_column, node.time_expr, **options)


def _fitting_format(reason: str) -> str:
    """Returns the time_format= that reads the text of the reason, or "" if none of the usual ones does."""
    for text in re.findall(r"'([^']*)' is no timestamp", reason)[:1]:
        for format in _USUAL:
            with suppress(ValueError):
                datetime.datetime.strptime(text, format)
                return f'time_format="{format}" reads {text!r}'
    return ""


def _shown(ms: int) -> str:
    try:
        return datetime.datetime.fromtimestamp(ms / 1000, datetime.UTC).isoformat(" ", "seconds")
    except (ValueError, OverflowError, OSError):
        return f"{ms} ms since 1970"
