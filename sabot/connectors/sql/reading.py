"""The rows of a table of SQLite, DuckDB or PostgreSQL: all of them, or those with some values in some columns."""

import datetime
import decimal
import json
import logging
import re
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa

from sabot.connectors.sql.database import Database
from sabot.connectors.sql.sink import database_of
from sabot.errors import TransientError, UserError, short_repr

_log = logging.getLogger(__name__)

ROWS_AT_ONCE = 10_000  # of a statement
PAUSE_SECONDS = 0.2  # between two tries to reach a database that is away

_MICROS = {"s": 1_000_000, "ms": 1000}  # in a unit of a time
_BELOW_MICROS = re.compile(r"[.,]\d{6}0*[1-9]")

_TRUTHS = {"true": True, "false": False, "t": True, "f": False, "1": True, "0": False}

Row = Mapping[str, Any]


class DatabaseTable:
    """A table of a database to read. `schema`: the columns that are read, with the types of their values here. `keys`: the columns of its
    primary key, or none.

    Several threads may use it. Connections are opened when they are needed, and closed when nobody uses the table.
    """

    def __init__(self, url: str, table: str, schema: pa.Schema, keys: Sequence[str] = ()) -> None:
        self._address = (url, table)
        self._made().close()  # an address that cannot be is refused before the app runs
        self._schema, self._table = schema, table
        types = [schema.field(name).type for name in keys]
        # a cursor is JSON
        self._keys = list(keys) if all(pa.types.is_integer(each) or pa.types.is_string(each) for each in types) else []
        self._lock = threading.Lock()
        self._users = 0
        self._idle: list[Database] = []
        self._answered = False
        self._away = False  # and the log has said so

    def rows(self, place: Any) -> Iterator[tuple[list[Row], Any]]:
        """Yields all rows, as a function of `App.source`: in parts, in the order of the key, each with the last key. Rows that are added or
        changed meanwhile come if their key is still ahead. A database that is away once the first rows were read is waited for.

        Without a key of texts and integers the rows are read at once, sorted by all columns, each part with its number of rows.
        """
        if not self._keys:
            rows = self._read("ORDER BY " + ", ".join(str(i + 1) for i in range(len(self._schema.names))), (), False)
            for start in range(int(place), len(rows), ROWS_AT_ONCE):
                part = rows[start : start + ROWS_AT_ONCE]
                yield part, start + len(part)
            return
        last: Sequence[Any] = place if isinstance(place, list) else ()
        begun = False
        while True:
            try:
                rows = self._behind(last)
            except TransientError as error:
                if not begun:
                    raise
                self._lacks(error)
                time.sleep(PAUSE_SECONDS)
                yield [], last  # at which the reader may end
                continue
            self._answers()
            begun = True
            if rows:
                last = [rows[-1][name] for name in self._keys]
                yield rows, last
            if len(rows) < ROWS_AT_ONCE:
                return

    def _behind(self, last: Sequence[Any]) -> list[Row]:
        """Returns the next rows behind a key, or the first ones."""
        with self._connected() as database:
            names, mark = ", ".join(map(database.column, self._keys)), database.mark
        behind = f"WHERE ({names}) > ({', '.join([mark] * len(last))}) " if last else ""
        return self._read(f"{behind}ORDER BY {names} LIMIT {ROWS_AT_ONCE}", last, False)

    def found(self, columns: Sequence[str], values: Sequence[Any]) -> list[Row] | None:
        """Returns the rows with these values in these columns, or None if the database has answered before and is away now. Raises
        TransientError if it has never answered, and UserError for a value that its column cannot have.
        """
        try:
            with self._connected() as database:
                same = " AND ".join(f"{database.column(name)} = {database.mark}" for name in columns)
            rows = self._read(f"WHERE {same}", values, True)
        except TransientError as error:
            if not self._answered:
                raise
            self._lacks(error)
            return None
        self._answers()
        return rows

    def _lacks(self, error: TransientError) -> None:
        """Logs that the database is away, once until it answers."""
        with self._lock:
            told, self._away = self._away, True
        if not told:
            _log.warning("table %s cannot be read, and is tried again until it answers: %s", self._table, error)

    def _answers(self) -> None:
        self._answered = True
        if self._away:
            with self._lock:
                told, self._away = self._away, False
            if told:
                _log.info("table %s answers again", self._table)

    def _read(self, clauses: str, values: Sequence[Any], strict: bool) -> list[Row]:
        names, types = self._schema.names, self._schema.types
        with self._connected() as database:
            columns = ", ".join(
                (database.as_text if pa.types.is_string(type) else database.column)(name)
                for name, type in zip(names, types, strict=True)
            )
            found = database.read(f"SELECT {columns} FROM {database.name} {clauses}", values)
        return [
            {name: self._value(name, value, type, strict) for name, value, type in zip(names, row, types, strict=True)}
            for row in found
        ]

    def _value(self, name: str, value: Any, type: pa.DataType, strict: bool) -> Any:
        """Returns a value of the driver as one of the column's type. `strict`: False to leave a value as it is that cannot be one, so
        that its row becomes a dead letter.
        """
        try:
            return None if value is None else value_of(value, type)
        except (ValueError, TypeError, ArithmeticError) as error:
            if not strict:
                return value
            message = f"table {self._table}: column {name}: {short_repr(value)} is no {type}"
            raise UserError(message, hint="declare the type that the database has") from error

    @contextmanager
    def _connected(self) -> Iterator[Database]:
        with self._lock:
            self._users += 1
            database = self._idle.pop() if self._idle else None
        whole = False
        try:
            if database is None:
                database = self._made()
                database.connect_to_read()
            yield database
            whole = True
        finally:
            with self._lock:
                self._users -= 1
                if database is not None and whole:
                    self._idle.append(database)
                unused, self._idle = ([], self._idle) if self._users else (self._idle, [])
            if database is not None and not whole:
                database.close()
            for each in unused:
                each.close()

    def _made(self) -> Database:
        return database_of(*self._address, ())


def value_of(value: Any, type: pa.DataType) -> Any:
    """Returns a value that a driver gives as Arrow takes it for a column of this type. SQLite has times, decimals and truths as texts and
    numbers. Raises ValueError, TypeError or ArithmeticError for one that is none.
    """
    types = pa.types
    if types.is_boolean(type):
        return _truth(value)
    if types.is_integer(type):
        whole = int(value)
        if not isinstance(value, str) and whole != value:
            raise ValueError("it has a fraction")
        return whole
    if types.is_floating(type):
        return _float(value, type)
    if types.is_decimal(type):
        exact = value if isinstance(value, decimal.Decimal) else decimal.Decimal(str(value))
        return exact.quantize(decimal.Decimal(1).scaleb(-type.scale), None, _exactly(type.precision))
    if types.is_string(type):
        return value.decode() if isinstance(value, bytes) else str(value)
    if types.is_binary(type):
        return value.encode() if isinstance(value, str) else bytes(value)
    if types.is_timestamp(type):
        return _moment(value, type)
    if types.is_date(type):
        return _day(value)
    if types.is_time(type):
        return _clock(value, type)
    return json.loads(value) if isinstance(value, str) else value


def _truth(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, int) and value in (0, 1):
        return bool(value)
    if (word := str(value).lower()) not in _TRUTHS:
        raise ValueError("it is neither true nor false")
    return _TRUTHS[word]


def _float(value: Any, type: pa.DataType) -> float:
    nearest = float(value) if pa.types.is_float64(type) else float(np.float32(value))
    exact = decimal.Decimal(value) if isinstance(value, int | str) else value
    if (
        isinstance(exact, decimal.Decimal)
        and exact.is_finite()
        and exact == exact.to_integral_value()
        and exact != nearest
    ):
        raise ValueError("it is a whole number of which a float loses digits")
    return nearest


def _exactly(precision: int) -> decimal.Context:
    """Returns a context that refuses to round, and numbers with more digits."""
    return decimal.Context(precision, traps=[decimal.Inexact, decimal.InvalidOperation])


def _day(value: Any) -> datetime.date:
    if isinstance(value, datetime.date) and not isinstance(value, datetime.datetime):
        return value
    moment = value if isinstance(value, datetime.datetime) else datetime.datetime.fromisoformat(str(value).strip())
    if moment.time() != datetime.time():
        raise ValueError("it has a time of day")
    return moment.date()


def _clock(value: Any, type: pa.DataType) -> datetime.time:
    if not isinstance(value, datetime.time):
        value = datetime.time.fromisoformat(_within_micros(value))
    if value.tzinfo is not None:
        raise ValueError("it has a zone")
    if value.microsecond % _MICROS.get(type.unit, 1):
        raise ValueError("it has more digits of the second")
    clock: datetime.time = value
    return clock


def _within_micros(value: Any) -> str:
    """Returns a text of a time. Raises ValueError for one with digits behind the sixth of a second, which Python would cut."""
    text = str(value).strip()
    if _BELOW_MICROS.search(text):
        raise ValueError("it has more than six digits of the second")
    return text


def _moment(value: Any, type: pa.DataType) -> datetime.datetime:
    """Returns a time whose digits of the second are those of the type; a time without a zone is one of UTC where the type is an instant."""
    if not isinstance(value, datetime.datetime):
        value = datetime.datetime.fromisoformat(_within_micros(value) if type.unit == "ns" else str(value).strip())
    if type.tz is None:
        value = (
            value.replace(tzinfo=None) if value.tzinfo is None else value.astimezone(datetime.UTC).replace(tzinfo=None)
        )
    elif value.tzinfo is None:
        value = value.replace(tzinfo=datetime.UTC)
    kept = _MICROS.get(type.unit, 1)
    found: datetime.datetime = value.replace(microsecond=value.microsecond // kept * kept)
    return found
