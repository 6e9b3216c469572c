"""The answers of DuckDB, over the same events, and where results differ from them."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from .generator import PER_EPOCH, Generator, count_rows
from .streams import SIDE_ROWS

QUERIES = Path(__file__).parent / "queries"
NEAR = 1e-12  # relative: means may differ by the order of addition
# What ORDER BY of the standard query leaves open, where bids are equal in it: any of them is right.
OPEN = {"q19": ["bidder", "channel", "url", "dateTime", "extra"]}


class Oracle:
    """Tables of the first `events` events."""

    def __init__(self, generator: Generator, events: int) -> None:
        self._connection = duckdb.connect()
        self._connection.execute("set enable_progress_bar = false")
        for kind in PER_EPOCH:
            rows = generator.rows(kind, 0, count_rows(kind, events))
            self.put(kind, pa.Table.from_batches([rows]))
        self._connection.execute(
            f"create table side as select key, key::varchar as value from range({SIDE_ROWS}) t(key)"
        )

    def put(self, name: str, rows: pa.Table) -> None:
        """Makes `rows` the table of this name; its rowid is the order of the rows. Times in UTC lose their zone."""
        zoned = [
            each.with_type(pa.timestamp(each.type.unit)) if pa.types.is_timestamp(each.type) else each
            for each in rows.schema
        ]
        rows = rows.cast(pa.schema(zoned))
        self._connection.register("given", rows)
        self._connection.execute(f"create or replace table {name} as from given")
        self._connection.unregister("given")

    def differences(
        self,
        query: str,
        found: pa.Table,
        *,
        any_of_equals: bool = False,
        left_open: Sequence[str] = (),
        flinks: bool = False,
    ) -> str:
        """What is wrong with the result of a query: "" if nothing is.

        any_of_equals: rows arrived in another order than that of their numbers, so of bids that the query holds for equal any may be there.
        flinks: the types are those of Flink SQL, where the mean of integers is an integer.
        left_open: columns in which another engine may choose among such bids by a rule of its own.
        """
        self._connection.execute(f"create or replace table expected as {(QUERIES / f'{query}.sql').read_text()}")
        self.put("found", found)
        columns = self._columns("expected")
        if flinks and "avg_price" in columns:
            self._connection.execute(
                "create or replace table expected as select * replace (trunc(avg_price) as avg_price) from expected"
            )
        if found.column_names != columns:
            return f"{query}: its columns are {found.column_names}, and should be {columns}"
        left_open = [*left_open, *(OPEN.get(query, []) if any_of_equals else [])]
        wrong = self._unequal([name for name in columns if name not in left_open])
        if left_open and not wrong:
            bid = ", ".join(f'"{name}"' for name in self._columns("bid"))
            invented = self.rows(f"select {bid} from found except all select {bid} from bid")
            wrong = [f"has a bid that there is not: {row}" for row in invented]
        return "\n".join([f"{query}:", *wrong[:10]]) if wrong else ""

    def _unequal(self, columns: Iterable[str]) -> list[str]:
        """Rows by which the two differ as multisets: a mean counts as equal to one that is near it."""
        names = {name: f'"{name}"' for name in columns}
        floats = [name for name in names if name == "avg_price"]
        exact = ", ".join(quoted for name, quoted in names.items() if name not in floats)
        lacking = self.rows(f"select {exact} from expected except all select {exact} from found")
        beyond = self.rows(f"select {exact} from found except all select {exact} from expected")
        wrong = [f"lacks {row}" for row in lacking] + [f"has, and should not, {row}" for row in beyond]
        for name in floats if not wrong else []:
            rows = f"expected e join found f using ({exact})"
            far = self.rows(
                f"select {exact}, e.{name}, f.{name} from {rows} where abs(e.{name} - f.{name}) > {NEAR} * abs(e.{name})"
            )
            wrong += [f"{name} differs: {row}" for row in far]
        return wrong

    def _columns(self, table: str) -> list[str]:
        return [row[0] for row in self.rows(f"describe {table}")]

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        """What the statement gives over person, auction, bid and side."""
        return self._connection.execute(sql).fetchall()
