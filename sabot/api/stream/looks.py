"""Methods that show a stream to a program or a notebook: its rows now, and its plan."""

import re
import time
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from sabot.api.nodes.agents import AgentRead
from sabot.api.nodes.changes import Materialize
from sabot.api.nodes.node import Node, walk
from sabot.api.nodes.read import endless_read
from sabot.api.nodes.rows import Head
from sabot.api.notebook import FAILURES, drawing_or_none, html, page
from sabot.api.stream.outputs import shown
from sabot.api.stream.owner import Owner
from sabot.base.arrays import merges_integers, python_value
from sabot.base.checks import FLAG, check, is_whole
from sabot.base.config import Duration, parse_seconds
from sabot.base.quantities import counted_words
from sabot.errors import MissingExtra, UserError

if TYPE_CHECKING:
    import pandas
    import polars

_PRINT_SECONDS = 10.0  # the time that `print` waits for rows of an endless stream


class PlanText(str):
    """A text of several lines. Notebooks show it with its line breaks."""

    __slots__ = ()

    def _repr_html_(self) -> str:
        return html(self)


class Shown(ABC):
    """A base class of all kinds of streams, with the methods by which IPython and notebooks show a stream."""

    _owner: Owner
    _node: Node

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """Shows the columns and their types in IPython, as in notebooks. Nothing runs."""
        printer.text(f"{self._heading()}\n{self._columns()}")

    def __repr__(self) -> str:
        # In this class: IPython prefers a `__repr__` to a `_repr_pretty_` of a class above it.
        return self._words()

    def _repr_svg_(self) -> str | None:
        return drawing_or_none(self._draw)

    def _repr_html_(self) -> str:
        """Returns the columns, if they are known, and the plan, for notebooks. Nothing runs."""
        return page(self._heading(), self._columns(), self._draw, lambda: self._owner.explain(self._node))

    def _columns(self) -> str:
        """Returns a line for each column with its type, or the reason why they are not known."""
        try:
            return "\n".join(f"{field.name}: {field.type}" for field in self._owner.schema(self._node))
        except FAILURES as error:
            return str(error)

    def _draw(self) -> str:
        return self._owner.draw(self._node)

    @abstractmethod
    def _words(self) -> str:
        """Returns the text of `repr`."""

    def _heading(self) -> str:
        return self._words()


class Looks(Shown):
    """A base class of Stream, with the methods that run the stream now, or describe it."""

    def collect(self, *, limit: int | None = None, seconds: Duration | None = None) -> pa.Table:
        """Runs the stream now and returns its rows. If the rows are changes, it returns the rows that exist at the
        end. It works in notebooks.

        - `limit`: the greatest number of rows; reading stops when so many have arrived.
        - `seconds`: the time after which reading stops, such as "500ms".

        A stream over a topic needs one of the two, unless it ends in `head(n)`; changes without an end need
        `seconds`. Reading begins at the place of the app's `start=`, and commits no offsets. A window that is still
        open at the end emits no row.

        Raises UserError for an endless stream without a limit, and for a stream that reads an agent.
        """
        return self._rows("collect", limit, seconds)

    def to_arrow(self, *, limit: int | None = None, seconds: Duration | None = None) -> pa.Table:
        """Does the same as `collect`. Data frames of other libraries have a method of this name."""
        return self._rows("to_arrow", limit, seconds)

    def to_polars(self, *, limit: int | None = None, seconds: Duration | None = None) -> "polars.DataFrame":
        """Runs the stream now and returns its rows as a data frame of polars. The arguments and errors are those of
        `collect`. Raises MissingExtra without polars.
        """
        try:
            import polars
        except ImportError as error:
            raise MissingExtra("to_polars", "polars") from error
        frame = polars.from_arrow(self._rows("to_polars", limit, seconds))
        assert isinstance(frame, polars.DataFrame)
        return frame

    def to_pandas(self, *, limit: int | None = None, seconds: Duration | None = None) -> "pandas.DataFrame":
        """Runs the stream now and returns its rows as a data frame of pandas. The arguments and errors are those of
        `collect`. Raises MissingExtra without pandas.

        pandas has integers beside nulls as floats. Where these would merge integers (above 2^53), the column has the type
        `Int64` or `UInt64`, and lists are lists of Python values.
        """
        try:
            import pandas
        except ImportError as error:
            raise MissingExtra("to_pandas", "pandas") from error
        table = self._rows("to_pandas", limit, seconds)
        frame: Any = table.to_pandas()
        wide = {pa.int64(): pandas.Int64Dtype(), pa.uint64(): pandas.UInt64Dtype()}
        for place, column in enumerate(table.columns):
            if merges_integers(column.combine_chunks()):
                exact: Any = pandas.Series(column.to_pylist(), dtype=wide.get(column.type, object))
                frame.isetitem(place, exact)
        made: pandas.DataFrame = frame
        return made

    def to_duckdb(
        self,
        connection: Any,
        table: str,
        *,
        overwrite: bool = False,
        limit: int | None = None,
        seconds: Duration | None = None,
    ) -> None:
        """Runs the stream now and makes a table of its rows in a database of DuckDB.

        - `connection`: an open connection, such as `duckdb.connect("shop.db")`.
        - `table`: the name of the new table, also as "schema.table".
        - `overwrite`: what happens if there is a table of this name. With True it is replaced, so that a cell of a
          notebook can run twice; with False UserError is raised.

        The other arguments and the errors are those of `collect`.
        """
        if not hasattr(connection, "from_arrow"):
            raise UserError(
                f"to_duckdb: {connection!r} is no connection of DuckDB", hint='to_duckdb(duckdb.connect(), "orders")'
            )
        relation = connection.from_arrow(self._rows("to_duckdb", limit, seconds))
        try:
            if check("to_duckdb: overwrite", overwrite, FLAG):
                parts = re.findall(r'"(?:[^"]|"")*"|[^."]+', table)
                quoted = ".".join(part if part.startswith('"') else f'"{part}"' for part in parts)
                relation.query("sabot_rows", f"CREATE OR REPLACE TABLE {quoted} AS SELECT * FROM sabot_rows")
            else:
                relation.create(table)
        except Exception as error:
            raise UserError(
                f"to_duckdb: table {table!r} cannot be made: {error}", hint="give another name, or overwrite=True"
            ) from error

    def _rows(self, where: str, limit: int | None, seconds: Duration | None) -> pa.Table:
        """Returns the rows for `collect` and `print`. `where`: the name of the method, for errors."""
        node, endless = self._node, endless_read(self._node) is not None
        if agents := [each.agent.agent_id for each in walk([node]) if isinstance(each, AgentRead)]:
            raise UserError(
                f"{where}: agent {agents[0]} gives rows only while the app runs",
                hint="write the stream with .to(…), .to(sabot.console()) to see it, and start the app; explain() shows its plan",
            )
        limit = python_value(limit)
        if limit is not None and not is_whole(limit, 0):
            raise UserError(f"{where}: limit={limit!r} is not a number of rows", hint="a whole number, 0 or more")
        if endless and isinstance(node, Head):
            limit = node.n if limit is None else min(limit, node.n)
        wait = None if seconds is None else parse_seconds(seconds, name=f"{where}: seconds", zero=False)
        return self._owner.collect(Materialize(node) if node.changes else node, limit, wait)

    def print(self, n: int = 20, *, seconds: Duration | None = None) -> None:
        """Runs the stream now and prints the first `n` rows.

        For a stream over a topic it prints the next n rows, or those that arrive within `seconds` (by default 10).
        Raises UserError in the same cases as `collect`.
        """
        n = python_value(n)
        if not is_whole(n, 0):
            raise UserError(f"print: {n!r} is not a number of rows", hint="a whole number, 0 or more")
        if endless_read(self._node) is None:
            table, within = self._rows("print", None, seconds), ""
        else:
            wait = _PRINT_SECONDS if seconds is None else parse_seconds(seconds, name="print: seconds", zero=False)
            begun = time.monotonic()
            table = self._rows("print", n, wait)
            most = min(n, self._node.n) if isinstance(self._node, Head) else n
            within = f" in {time.monotonic() - begun:.3g} s" if table.num_rows < most else ""
        print(f"{shown(table.slice(0, n))}\n{counted_words(table.num_rows, 'row')}{within}")

    def explain(self) -> str:
        """Returns the plan as text: its stages, the steps and inputs of each stage, and the edges that carry changes.
        Nothing runs.
        """
        return PlanText(self._owner.explain(self._node))

    def _words(self) -> str:
        return f"Stream({type(self._node).__name__})"

    def _heading(self) -> str:
        return "Stream"
