"""`sabot demo orders`: changes two tables of PostgreSQL while an app follows them, kills the app twice, and compares its sums with those
that the database answers.
"""

import os
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from sabot.clock import SYSTEM_CLOCK
from sabot.connectors.sql.server import PostgresServer
from sabot.demos.orders.app import SUMS
from sabot.demos.program import DemoProgram, demo_folder
from sabot.errors import MissingExtra, SabotError, UserError

_KILLED_AT = (0.3, 0.7)  # shares of the changes that are made when the process is killed
_CUSTOMERS = 50
_COUNTRIES = ("de", "fr", "it", "nl", "pl")
_PAUSE_SECONDS = 0.002  # behind each change
_LOOK_SECONDS = 0.1
_PATIENCE_SECONDS = 120.0  # from the last change until the sums are equal
_PROGRAM = """from pathlib import Path
from sabot.demos.orders.app import build

app = build(Path({folder!r}), {url!r}, {schema!r})
"""
_SUMS = """SELECT country, count(*), sum(amount) FROM {0}.orders JOIN {0}.customers c ON c.id = customer
    GROUP BY country ORDER BY country"""
_SLOTS = "FROM pg_replication_slots WHERE slot_name IN (%s, %s) AND {0} active"
Sums = list[tuple[str, int, Decimal]]


def run(url: str, changes: int = 3000, seed: int = 0, *, json: bool = False, web: bool = False) -> dict[str, float]:
    """Runs the demo to its end. `url`: a database of PostgreSQL with wal_level=logical, in which the demo makes a schema of its own, and
    removes it at the end. `changes`: the number of changes. `json`: True prints nothing. `web`: True opens the console, and goes on with
    changes until Ctrl-C (KeyboardInterrupt).

    Returns changes, kills, countries (with orders at the end), equal (True: the app's sums are those of the database), seconds. Raises
    UserError, and SabotError if the sums are not equal in time.
    """
    if changes < 1:
        raise UserError(f"changes: {changes}", hint="ask for at least one")
    console = Console(quiet=json)
    began = SYSTEM_CLOCK.monotonic()
    with demo_folder(web) as folder, _shop(url, seed) as shop:
        text = _PROGRAM.format(folder=str(folder), url=url, schema=shop.schema)
        with DemoProgram(folder, "orders_demo", text, web=web) as program:
            app = _Follower(program, folder / SUMS)
            _change(shop, app, changes, console)
            sums = app.equal(shop)
            console.print(_summary(sums))
            while web:
                shop.change()
                app.check()
                threading.Event().wait(20 * _PAUSE_SECONDS)
    return {
        "changes": changes,
        "kills": len(_KILLED_AT),
        "countries": len(sums),
        "equal": True,
        "seconds": round(SYSTEM_CLOCK.monotonic() - began, 3),
    }


class _ShopOfOrders:
    """The two tables, in a schema of their own, and the programs that would change them."""

    def __init__(self, connection: Any, seed: int) -> None:
        self.schema = f"sabot_demo_{os.getpid()}"
        self._connection, self._random = connection, random.Random(seed)
        self._orders: list[int] = []
        self._made = 0

    def make(self) -> None:
        """Makes the tables, with their customers."""
        schema, run = self.schema, self._connection.execute
        run(f"CREATE SCHEMA {schema}")
        run(f"CREATE TABLE {schema}.customers (id bigint PRIMARY KEY, country char(2) NOT NULL)")
        run(
            f"CREATE TABLE {schema}.orders (id bigint PRIMARY KEY, customer bigint NOT NULL, amount numeric(9, 2) NOT NULL)"
        )
        for table in ("customers", "orders"):
            run(f"ALTER TABLE {schema}.{table} REPLICA IDENTITY FULL")
        for number in range(_CUSTOMERS):
            country = _COUNTRIES[number % len(_COUNTRIES)]
            run(f"INSERT INTO {schema}.customers VALUES (%s, %s)", (number, country))

    def change(self) -> None:
        """Makes one change: an order is placed, its amount changes, it is cancelled, or a customer moves."""
        draw, schema, run = self._random, self.schema, self._connection.execute
        kind = draw.random()
        amount = Decimal(draw.randrange(1, 100_000)) / 100
        if kind < 0.6 or not self._orders:
            self._made += 1
            self._orders.append(self._made)
            run(f"INSERT INTO {schema}.orders VALUES (%s, %s, %s)", (self._made, draw.randrange(_CUSTOMERS), amount))
        elif kind < 0.8:
            run(f"UPDATE {schema}.orders SET amount = %s WHERE id = %s", (amount, draw.choice(self._orders)))
        elif kind < 0.95:
            gone = self._orders.pop(draw.randrange(len(self._orders)))
            run(f"DELETE FROM {schema}.orders WHERE id = %s", (gone,))
        else:
            moved = (draw.choice(_COUNTRIES), draw.randrange(_CUSTOMERS))
            run(f"UPDATE {schema}.customers SET country = %s WHERE id = %s", moved)

    def sums(self) -> Sums:
        """Returns what the database itself answers."""
        found: Sums = self._connection.execute(_SUMS.format(self.schema)).fetchall()
        return found

    def remove(self) -> None:
        """Removes the tables, and the slots and publications of the app, whose process has ended."""
        run, slots = self._connection.execute, (f"{self.schema}_customers", f"{self.schema}_orders")
        until = SYSTEM_CLOCK.monotonic() + _PATIENCE_SECONDS
        while run(f"SELECT {_SLOTS.format('')}", slots).fetchall() and SYSTEM_CLOCK.monotonic() < until:
            threading.Event().wait(_LOOK_SECONDS)
        run(f"SELECT pg_drop_replication_slot(slot_name) {_SLOTS.format('NOT')}", slots)
        for name in slots:
            run(f"DROP PUBLICATION IF EXISTS {name}")
        run(f"DROP SCHEMA IF EXISTS {self.schema} CASCADE")


@contextmanager
def _shop(url: str, seed: int) -> Iterator[_ShopOfOrders]:
    """Makes the tables, and removes them and what the app has made beside them at the end."""
    server = PostgresServer(url, "sabot demo orders", "sabot demo orders")
    connection = server.connect("sabot demo orders")
    try:
        shop = _ShopOfOrders(connection, seed)
        with server.explained():
            try:
                shop.make()
                yield shop
            finally:
                shop.remove()
    finally:
        connection.close()


class _Follower:
    """The process of the app, and the sums in its table."""

    def __init__(self, program: DemoProgram, path: Path) -> None:
        self.program, self._path = program, path

    def check(self) -> None:
        """Raises SabotError if the process has ended."""
        if (code := self.program.poll()) is not None:
            raise SabotError(f"the app of the demo ended with exit code {code}; its output is above")

    def kill(self) -> None:
        """Kills the process when it has written something, and starts it again."""
        self._wait(lambda: bool(self._written()), "the app has written nothing")
        self.program.kill()
        self.program.start()

    def equal(self, shop: _ShopOfOrders) -> Sums:
        """Waits until the sums of the app are those of the database, and returns them."""
        wanted = shop.sums()
        self._wait(lambda: self._written() == wanted, "the sums of the app are not those of the database")
        return wanted

    def _wait(self, is_so: Callable[[], bool], otherwise: str) -> None:
        until = SYSTEM_CLOCK.monotonic() + _PATIENCE_SECONDS
        while not is_so():
            self.check()
            if SYSTEM_CLOCK.monotonic() > until:
                raise SabotError(f"{otherwise} within {_PATIENCE_SECONDS:g} s: {self._written()}")
            threading.Event().wait(_LOOK_SECONDS)

    def _written(self) -> Sums:
        """Returns the rows of the app's table; [] if there are none yet, or while the app has the file open."""
        try:
            import duckdb
        except ImportError as error:
            raise MissingExtra("sabot demo orders", "duckdb") from error
        if not self._path.exists():
            return []
        try:
            with duckdb.connect(str(self._path), read_only=True) as connection:
                found: Sums = connection.execute("SELECT country, orders, amount FROM sums ORDER BY country").fetchall()
                return found
        except (duckdb.IOException, duckdb.CatalogException):
            return []


def _change(shop: _ShopOfOrders, app: _Follower, changes: int, console: Console) -> None:
    """Makes the changes while the app runs, and kills its process twice."""
    kills_at = [int(share * changes) for share in _KILLED_AT]
    app.program.start()
    with _bar(console, changes) as bar:
        for number in range(changes):
            shop.change()
            for _ in range(kills_at.count(number)):
                app.kill()
                bar.console.print(f"kill -9 behind change {number + 1:,}; the app starts again")
            bar.update(bar.task_ids[0], completed=number + 1, refresh=number % 50 == 0 or number == changes - 1)
            threading.Event().wait(_PAUSE_SECONDS)


def _bar(console: Console, changes: int) -> Progress:
    bar = Progress(
        TextColumn("changes"),
        BarColumn(),
        TextColumn("{task.completed:,.0f} of {task.total:,.0f} made"),
        console=console,
        auto_refresh=False,
    )
    bar.add_task("", total=changes)
    return bar


def _summary(sums: Sums) -> Table:
    table = Table(title="Orders by country: the app's, and equal to those of the database, after two kills")
    for name in ("country", "orders", "amount"):
        table.add_column(name, justify="left" if name == "country" else "right")
    for country, orders, amount in sums:
        table.add_row(country, f"{orders:,}", f"{amount:,}")
    return table
