"""Rows that a step cannot process because an expression or a function of the user fails for them.

    batch ─▶ call ─▶ failed ─▶ its halves ─▶ … ─▶ single rows ─▶ dead letters, nulls, or the error with the place of the row
                └──▶ passed ─▶ emitted, in order

A batch of n rows of which b fail takes O(b · log n) calls, and at most CALLS calls split it. If a piece fails after
that, all its rows are treated as failed.

A row that failed is *set apart*: it is counted, and becomes a dead letter or a row of nulls, as `on_error=` says.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sabot._cython.arrow.batch import Batch
from sabot.api.arguments import RowPolicy
from sabot.base.logs import trace_of
from sabot.base.os_errors import is_environment_error
from sabot.base.redaction import scrubbed
from sabot.base.stored_names import stored_name
from sabot.codecs.engine_columns import UPDATE_AFTER
from sabot.engine.letters.form import letters_of_rows
from sabot.engine.letters.log import LetterLog, ReasonCounts
from sabot.engine.operators.base import INSERT, OP_COLUMN, TIME_COLUMN, OperatorContext, StepInfo, without_marks
from sabot.engine.operators.expressions.casts import RefusedValues
from sabot.engine.operators.expressions.node import Compiled
from sabot.engine.operators.rows.origin import of_selected
from sabot.errors import DataError, SabotError, UserError, message_of

if TYPE_CHECKING:
    from sabot.base.figures import ToldStep

CALLS = 4096
_OF_THE_PROGRAM = (UserError, NameError, ImportError, NotImplementedError)
STEP_LENGTH = 200  # the most characters of a step's text in a dead letter

_SQL_HINTS = {
    "cast(": "TRY_CAST gives NULL for such values",
    "sum a wider type": "SUM(CAST(x AS DOUBLE)), or of a wider DECIMAL",
    "strict=False, or NULL ON": "NULL ON EMPTY or NULL ON ERROR gives NULL",
}
"""What to write in SQL, by the beginning of the hint that says it for Python."""
_SQL_TYPES = {
    **{"bool": "BOOLEAN", "int8": "TINYINT", "int16": "SMALLINT", "int32": "INT", "int64": "BIGINT"},
    **{"float": "FLOAT", "double": "DOUBLE", "string": "STRING", "date32[day]": "DATE", "decimal128": "DECIMAL"},
    **{f"timestamp[{unit}]": f"TIMESTAMP({digits})" for unit, digits in (("s", 0), ("ms", 3), ("us", 6), ("ns", 9))},
    **{
        f"timestamp[{unit}, tz=UTC]": f"TIMESTAMP_LTZ({digits})"
        for unit, digits in (("s", 0), ("ms", 3), ("us", 6), ("ns", 9))
    },
}
_TYPE = re.compile(rf"( is no | than )({'|'.join(map(re.escape, sorted(_SQL_TYPES, key=len, reverse=True)))})")
_VALUE = r"""(?:'.*'|".*"|\w+\([^()]*\)|[^\s:'"][^:'"]*)"""
_COMPUTED = re.compile(
    rf"^((?:column '[^']*': )?)(?!column ').*?\b(?:col|lit|when)\(.*: (?={_VALUE} is no [A-Z])", re.DOTALL
)
"""The expression of Python that a refused value was computed by: the statement says it, at the place before it."""
_DECIMAL = re.compile(r"Decimal\('([^']*)'\)(?= is no [A-Z])")

T = TypeVar("T")


def say_in_sql(error: DataError, step: StepInfo) -> None:
    """Gives an error of a step that a script of SQL has made the place in the script, and the words of SQL.

        select x = col("s").cast("int64"): column 'x': 'a' is no int64 (cast(…, strict=False) makes such values null)
        hours.sql:3:12: column 'x': 'a' is no BIGINT (TRY_CAST gives NULL for such values)

    The innermost step of a script says it; for steps of Python nothing changes.
    """
    place = step.origin.place
    if not place or error.script:
        return
    error.script = place
    own = error.message.removeprefix(f"{_name_of(step, step.text)}: ")
    own = _TYPE.sub(lambda found: found[1] + _SQL_TYPES[found[2]], own)
    own = _DECIMAL.sub(r"\1", _COMPUTED.sub(r"\1", own))
    error.message = f"{place}: {own}"
    error.hint = next((hint for begin, hint in _SQL_HINTS.items() if error.hint.startswith(begin)), error.hint)
    error.args = (error.message,)


def _name_of(step: StepInfo, text: str) -> str:
    """Returns the text of a step for messages and dead letters, behind its place in a script of SQL."""
    return (f"{step.origin.place}: {text}" if step.origin.place else text)[:STEP_LENGTH]


class BadRows:
    """The treatment of rows for which a step fails, as `on_error=` of the stream says.

    `step`: the text of the step for messages and dead letters. `policy`: "fail", "null" or "dead_letter". In an app
    that has no sink for dead letters, "dead_letter" means "fail". `info`: the step, if a script of SQL may have made it.
    """

    def __init__(self, step: str, policy: RowPolicy, context: OperatorContext, info: StepInfo | None = None) -> None:
        self._info = info or StepInfo()
        self.step = _name_of(self._info, step)
        self.count = 0
        self._reasons = ReasonCounts()
        self._context = context
        self._letters = context.dead_letters
        self.nulls = policy == "null"
        self._log = LetterLog(self._reasons, context.clock, "null row" if self.nulls else "dead letter")
        self.fails = policy == "fail" or (policy == "dead_letter" and self._letters is None)

    def are_at_fault(self, error: Exception) -> bool:
        """Returns True if the error may depend on values of rows, and the policy is not to fail; the caller then sets
        the failed rows apart. Returns False for errors of the environment (a full disk) and of the program: a
        UserError that the function itself raises, a NameError, columns that are not in its schema.
        """
        cause = cause_of(error)
        return not self.fails and not is_environment_error(cause) and not isinstance(cause, _OF_THE_PROGRAM)

    def halved(
        self, batch: Batch, call: Callable[[Batch], T], nulls: Callable[[Batch], T]
    ) -> Iterator[tuple[Batch, T]]:
        """Calls `call` with the batch. If the call raises, calls it with each half of the batch, and so on down to
        single rows. Single rows that fail are set apart.

        Yields the pieces that passed, in order, each with its result. With on_error="null", also yields the pieces
        that failed, each with the result of `nulls`. Raises errors that rows cannot have caused.
        """
        pieces, calls = [of_selected(batch, batch.taken())], 0
        while pieces:
            piece = pieces.pop()
            calls += 1
            try:
                made = call(piece)
            except Exception as error:
                if not self.are_at_fault(error):
                    raise
                rows = piece.num_rows
                if rows > 1 and calls < CALLS:
                    pieces += [piece.slice(rows // 2), piece.slice(0, rows // 2)]
                    continue
                self.set_apart(piece, dict.fromkeys(range(rows), error))
                if self.nulls:
                    yield piece, nulls(piece)
                continue
            yield piece, made

    def set_apart(self, batch: Batch, errors: Mapping[int, BaseException]) -> None:
        """Counts these rows as failed, and writes them to the dead letters if the policy says so. The first one is
        logged at once, later ones by the class of their error at most once a minute.

        `errors`: the error of each row, by the row's index among the selected rows.
        """
        if not errors:
            return
        self.count += len(errors)
        for error in errors.values():
            if isinstance(error, DataError):
                say_in_sql(error, self._info)
            self._reasons.add(cause_of(error))
        if self._log.begun:
            self._log.note(self.step)
        else:
            row, error = next(iter(errors.items()))
            what = "null in a row" if self.nulls else "a row was set apart"
            said = scrubbed(self.message(batch, row, error))
            self._log.begin(cause_of(error), "%s: %s, the first one: %s", self.step, what, said)
        if self._letters is not None and not self.nulls:
            self._letters(self._letters_of(batch, errors))

    def close(self) -> None:
        """Logs the failed rows that were only counted. Called at the end of the step."""
        self._log.flush(self.step)

    def statistics(self) -> "ToldStep":
        """Returns the number of rows that were set apart, in total and by the class of their error. Returns an empty
        dict if there are none.
        """
        return {"dead_rows": self.count, "dead_row_reasons": self._reasons.statistics()} if self.count else {}

    def message(self, batch: Batch, row: int, error: BaseException) -> str:
        """Returns the message of an error with the place of its row."""
        message = error.message if isinstance(error, SabotError) else message_of(error)
        place = row_place(batch, row)
        return message if message.endswith(place) else f"{message}; {place}"

    def _letters_of(self, batch: Batch, errors: Mapping[int, BaseException]) -> pa.RecordBatch:
        rows = list(errors)
        places = places_of(batch, rows)
        data = batch.taken().take(pa.array(rows, pa.int32()))
        if OP_COLUMN in data.schema.names:  # a change that takes a row away needs no dead letter
            adds = pc.is_in(data.column(OP_COLUMN), pa.array([INSERT, UPDATE_AFTER], pa.int8()))
            data = data.filter(adds)
            kept = [i for i, each in enumerate(adds.to_pylist()) if each]
            rows, places = [rows[i] for i in kept], [places[i] for i in kept] if places else None
        return letters_of_rows(
            data.select(without_marks(data.schema).names),
            [(stored_name(type(cause_of(errors[row]))), message_of(errors[row])) for row in rows],
            [1] * len(rows),
            times=data.column(TIME_COLUMN).to_pylist() if TIME_COLUMN in data.schema.names else None,
            topic=batch.topic,
            step=self.step,
            agent=self._context.agent,
            version=self._context.version,
            places=places,
            traces=self._traces([errors[row] for row in rows]),
        )

    def _traces(self, errors: Sequence[BaseException]) -> list[str | None]:
        """Returns the traceback of each error. One that all rows of a batch share is written once."""
        causes = {id(each): cause_of(each) for each in errors}
        known = {number: trace_of(cause) for number, cause in causes.items()}
        return [known[id(each)] for each in errors]


def nulls_of(schema: pa.Schema, rows: int) -> pa.RecordBatch:
    """Returns a batch with this number of rows in which all values are null."""
    return pa.RecordBatch.from_arrays([pa.nulls(rows, field.type) for field in schema], schema=schema)


def cause_of(error: BaseException) -> BaseException:
    """Returns the error that the user's function raised. Errors of Sabot that only add its place are unwrapped."""
    while isinstance(error, UserError) and error.__cause__ is not None:
        error = error.__cause__
    return error


def places_of(batch: Batch, rows: Iterable[int]) -> list[tuple[int, int]] | None:
    """Returns the (partition, offset) of each of these rows, or None if they are unknown. `rows`: indices among the
    selected rows.
    """
    if batch.records is None:
        return None
    numbers = list(rows)
    if batch.selection is not None:
        numbers = batch.selection.take(pa.array(numbers, pa.int32())).to_pylist()
    found: list[tuple[int, int]] = batch.records.places(numbers)
    return found


def row_place(batch: Batch, row: int) -> str:
    """Returns the place of a row for messages: topic, partition and offset if they are known, else its index in its
    batch.
    """
    places = places_of(batch, [row])
    if places is not None:
        ((partition, offset),) = places
        return f"{batch.topic}[{partition}]@{offset}"
    return f"row {row} of {batch_place(batch)}"


def batch_place(batch: Batch) -> str:
    """Returns a text for errors that says from which topics and offsets a batch comes, as far as that is known."""
    places = [
        f"{topic}[{partition}] before offset {offset}"
        for (topic, partition), offset in sorted(batch.offsets.items())[:5]
    ]
    return f"a batch of {batch.num_rows} rows of {', '.join(places) or batch.topic or 'unknown origin'}"


def values_or_nulls(name: str, expr: Compiled, data: pa.RecordBatch, bad: dict[int, DataError]) -> pa.Array:
    """Returns the values of an expression, with null in the rows for which it fails.

    `name`: the column that gets the values, or "". `bad`: receives the error of each row that fails, by the row's
    index; if it has an error of the row already, this error is kept.
    """
    column = f"column {name!r}: "

    def said(message: str, hint: str) -> DataError:
        return DataError(message if not name or message.startswith(column) else column + message, hint=hint)

    def of(data: pa.RecordBatch, rows: Any) -> pa.Array:
        """Returns the values for these rows of `data`. `rows`: their indices in the whole batch (numpy)."""
        try:
            return expr(data)
        except RefusedValues as error:
            refused, texts, hint = error.rows.to_numpy(zero_copy_only=False), error.text_of, error.hint
        except DataError as error:
            if len(rows) == 1:
                bad.setdefault(int(rows[0]), said(error.message, error.hint))
                return pa.nulls(1, expr.type)
            half = len(rows) // 2
            parts = [of(data.slice(0, half), rows[:half]), of(data.slice(half), rows[half:])]
            return pa.concat_arrays(parts)
        for row in np.flatnonzero(refused).tolist():
            bad.setdefault(int(rows[row]), said(texts(row), hint))
        passed = of(data.filter(pa.array(~refused)), rows[~refused])
        return passed.take(pa.array(np.cumsum(~refused) - 1, mask=refused))

    return of(data, np.arange(data.num_rows))
