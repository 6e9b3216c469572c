"""Generator functions as sources: `@app.source(schema=…)`."""

import asyncio
import inspect
import json
import queue
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable, Generator, Mapping, Sequence
from contextlib import aclosing, closing, suppress
from typing import Any

import pyarrow as pa

from sabot._cython.arrow.batch import Batch
from sabot.base.arrays import batch_of_rows
from sabot.base.config import checked_name
from sabot.clock import SYSTEM_CLOCK
from sabot.codecs.json import AbsentColumns
from sabot.codecs.records import BAD_SCHEMA, build_records, encode_json
from sabot.connectors.base import Bounded, Positions, Source
from sabot.errors import SabotError, UserError, short_repr

_ROWS_AHEAD = 8192  # the rows that a generator may yield ahead of the reader, and the last list of them
_GATHER_SECONDS = 0.005  # the time in which a reader that is behind waits for more rows of a batch
_RETRY_SECONDS = 0.05  # between two tries to hand an item over to a reader that is behind
_JOIN_SECONDS = 1.0  # the time that `close` gives a generator to end

_Item = tuple[Sequence[Any], int | None, bytes | None] | BaseException | None
"""Rows, and the position after them or the cursor as JSON, or None twice to count; the error of the generator; None at its end."""


class _Items(queue.Queue[_Item]):
    """A queue whose size is its number of rows, so that a generator which yields long lists does not fill the memory.
    An item without rows counts as one.
    """

    def _init(self, maxsize: int) -> None:
        self._items: deque[_Item] = deque()
        self._rows = 0

    def _qsize(self) -> int:
        return self._rows

    def _put(self, item: _Item) -> None:
        self._items.append(item)
        self._rows += _rows_of(item)

    def _get(self) -> _Item:
        item = self._items.popleft()
        self._rows -= _rows_of(item)
        return item


def _rows_of(item: _Item) -> int:
    return max(1, len(item[0])) if isinstance(item, tuple) else 1


class GeneratorSource(Source, Bounded):
    """A source of the rows that a generator function of the user yields.

    The generator runs in a thread of its own, which an async generator's event loop has too, so that a slow one holds
    up neither checkpoints nor the stop of the app. `function`: see `App.source`. `bounded`: True if it ends.
    """

    def __init__(self, function: Callable[[Any], Any], name: str, schema: pa.Schema, bounded: bool) -> None:
        self.name = checked_name(name, "source")
        self.bounded = bounded
        self._function = function
        self._schema = schema
        self._at = 0
        self._cursor: bytes | None = None  # the place behind the last row as JSON, or None if the position says it
        self._recalled: bytes | None = None
        self._ended = False
        self._run: _Generation | None = None
        self._kept: _Item = None
        self._absent = AbsentColumns(f"source {self.name}")

    @property
    def schema(self) -> pa.Schema:
        return self._schema

    def readers(self, count: int) -> Sequence[Source]:
        """Returns one new source: each stream that reads this one has a generator of its own."""
        return [GeneratorSource(self._function, self.name, self._schema, self.bounded)]

    def open(self, positions: Positions | None, start: str | int = "earliest") -> None:
        known, recalled = (positions or {}).get((self.name, 0)), self._recalled
        self._at, self._cursor, self._recalled = known or 0, None if known is None else recalled, None
        self._ended, self._kept = False, None
        self._run = _Generation(self._function, self._at, self._cursor, self.name)

    def read_batch(self, max_rows: int, timeout: float) -> Batch | None:
        assert self._run is not None
        rows: list[Any] = []
        before, cursor = self._at, self._cursor
        items, began = self._run.items, SYSTEM_CLOCK.monotonic()
        # Rows that wait show that the reader is behind. While it works, a generator that reads from a socket gets the interpreter
        # after 5 ms each time, for the rows of one read, so each batch would be as small. While it waits here, more of them come.
        gathers = self._kept is not None or not items.empty()
        waits, left = timeout > 0, timeout
        while not self._ended and len(rows) < max_rows:
            try:
                item = self._kept or items.get(waits, left)
            except queue.Empty:
                if waits or not (rows and gathers):
                    break
                waits, left = True, max(0.0, began + _GATHER_SECONDS - SYSTEM_CLOCK.monotonic())
                continue
            self._kept = None
            if item is None:
                self._ended = True
            elif rows and (isinstance(item, BaseException) or len(rows) + len(item[0]) > max_rows):
                self._kept = item
                break
            elif isinstance(item, SabotError | OSError | MemoryError):
                raise item
            elif isinstance(item, BaseException):
                raise UserError(f"source {self.name}: the function raised {type(item).__name__}: {item}") from item
            else:
                rows += item[0]
                self._at = self._at + len(item[0]) if item[1] is None else item[1]
                self._cursor = item[2] if item[2] is not None or item[1] is not None else self._cursor
            # A generator that has nothing may yield empty lists, which give the reader no rows to return with.
            waits = waits and not rows
            if not rows and (left := began + timeout - SYSTEM_CLOCK.monotonic()) <= 0:
                break
        if not self._absent.is_done:
            self._absent.look_at([row for row in rows if isinstance(row, Mapping)], self._schema.names)
            if self._ended and not self._absent.is_done:
                self._absent.tell()
        if not rows and self._at == before and self._cursor == cursor:
            return None
        data, bad = self._decoded(rows, before)
        return Batch(data, self.positions(), self.name, bad=bad)

    def _decoded(self, rows: list[Any], before: int) -> tuple[pa.RecordBatch, pa.RecordBatch | None]:
        """Returns the rows as columns, and those that do not fit as dead letters."""
        try:
            return batch_of_rows(rows, self._schema), None
        except (pa.ArrowException, TypeError, ValueError, OverflowError, AttributeError):
            good, bad = [], []
            for row in rows:
                try:
                    if not isinstance(row, Mapping):
                        raise TypeError(f"a row is a dict, and this is {type(row).__name__}")
                    batch_of_rows([row], self._schema)
                    good.append(row)
                except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
                    bad.append((_payload(row), str(error)))
        stamps = [int(SYSTEM_CLOCK.time() * 1000)] * len(bad)
        records = build_records([payload for payload, _ in bad], None, stamps, 0, [before] * len(bad))
        reasons = pa.array([reason for _, reason in bad], pa.string())
        letters = pa.RecordBatch.from_arrays([*records.columns, reasons], schema=BAD_SCHEMA)
        return batch_of_rows(good, self._schema), letters

    @property
    def exhausted(self) -> bool:
        return self._ended

    def positions(self) -> Positions:
        return {(self.name, 0): self._at}

    def remember(self) -> dict[tuple[str, int], bytes]:
        return {} if self._cursor is None else {(self.name, 0): self._cursor}

    def recall(self, memory: Mapping[tuple[str, int], bytes]) -> None:
        self._recalled = memory.get((self.name, 0))
        if self._recalled is not None:
            json.loads(self._recalled)  # what is no JSON is refused here, with the name of the checkpoint

    def close(self) -> None:
        run, self._run = self._run, None
        if run is not None:
            run.stop()


class _Generation:
    """A generator that runs in a thread of its own, from a position or a cursor (JSON) on, until it ends or is stopped."""

    def __init__(self, function: Callable[[Any], Any], position: int, cursor: bytes | None, name: str) -> None:
        self.items = _Items(_ROWS_AHEAD)
        self._name = name
        self._stopped = threading.Event()
        self._cancel: Callable[[], object] = lambda: None
        self._has_cursor = cursor is not None  # a restart would begin at a cursor, and not at the number of rows
        place = position if cursor is None else json.loads(cursor)
        self._thread = threading.Thread(target=self._work, args=(function, place), name=f"source-{name}", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends the generator at its present `yield` or `await`. Waits for its end, but not long: one that blocks ends
        when it yields next.
        """
        self._stopped.set()
        self._cancel()
        self._thread.join(_JOIN_SECONDS)

    def _work(self, function: Callable[[Any], Any], place: Any) -> None:
        end: _Item = None
        try:
            if inspect.isasyncgenfunction(function):
                asyncio.run(self._pump_async(function(place)))
            else:
                self._pump(function(place))
        except BaseException as error:  # the reader raises it, unless `stop` has cancelled the generator
            end = error
        self._hand_over(end)

    def _pump(self, generator: Generator[Any, None, None]) -> None:
        with closing(generator):
            for given in generator:
                if not self._hand_over(self._item(given)):
                    return

    async def _pump_async(self, generator: AsyncGenerator[Any, None]) -> None:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None

        def cancel() -> None:
            with suppress(RuntimeError):  # the loop has ended meanwhile
                loop.call_soon_threadsafe(task.cancel)

        self._cancel = cancel
        if self._stopped.is_set():
            return
        async with aclosing(generator):
            async for given in generator:
                item = self._item(given)
                while not self._stopped.is_set():
                    try:
                        self.items.put_nowait(item)
                        break
                    except queue.Full:
                        await asyncio.sleep(_RETRY_SECONDS)
                else:
                    return

    def _hand_over(self, item: _Item) -> bool:
        """Waits until the item has a place in the queue. Returns False if the run was stopped before."""
        while not self._stopped.is_set():
            try:
                self.items.put(item, timeout=_RETRY_SECONDS)
                return True
            except queue.Full:
                continue
        return False

    def _item(self, given: Any) -> _Item:
        found, place = given if isinstance(given, tuple) and len(given) == 2 else (given, None)
        rows = found if isinstance(found, list) else [found]
        if place is None:
            if self._has_cursor and rows:
                raise UserError(
                    f"source {self._name}: a row came without a cursor, behind rows with one, so a restart would read it again",
                    hint="yield row, cursor: give each row or list of rows the cursor at which to continue after it",
                )
            return rows, None, None
        if isinstance(place, int) and not isinstance(place, bool) and 0 <= place < 1 << 63:
            self._has_cursor = False
            return rows, place, None
        self._has_cursor = True
        return rows, None, self._encoded(place)

    def _encoded(self, cursor: Any) -> bytes:
        """Returns a cursor as JSON, as it is now: the generator may change the object before it is stored."""
        why = ""
        try:
            encoded = json.dumps(cursor, allow_nan=False).encode()
            if (again := json.loads(encoded)) != cursor:
                why = f": it would come back as {short_repr(again)}"
        except (TypeError, ValueError, RecursionError) as error:
            why = f": {error}"
        if why:
            raise UserError(
                f"source {self._name}: the cursor {short_repr(cursor)} is no JSON value{why}",
                hint="yield rows, cursor with numbers, texts, lists and dicts with texts as keys: a restart gives it to the function",
            )
        return encoded


def _payload(row: Any) -> bytes:
    """Returns a row as JSON for a dead letter, or as Python shows it if it is none."""
    try:
        return encode_json(row)
    except (TypeError, ValueError, UserError):
        return repr(row).encode()


def generator_source(function: Any, name: str | None, schema: pa.Schema, bounded: bool) -> GeneratorSource:
    """Returns the source of a generator function. Raises UserError for any other function, and for one that takes no
    position or cursor.
    """
    shown = getattr(function, "__name__", repr(function))
    if not (inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)):
        raise UserError(
            f"source: {shown} is no generator function",
            hint="def numbers(position): … yield {…}, or async def numbers(position): … yield {…}",
        )
    try:
        inspect.signature(function).bind(0)
    except TypeError as error:
        raise UserError(
            f"source: {shown} takes no position, so it could not continue after a restart",
            hint=f"def {shown}(position): … begins with the row at this position, 0 at the first start",
        ) from error
    return GeneratorSource(function, name or shown, schema, bounded)
