"""The tables of a store in a PostgreSQL database. Creates missing tables. Uses one connection, and opens a new one when
it breaks.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from sabot.connectors.sql.server import PostgresServer, address_of
from sabot.errors import AppLocked
from sabot.journal.schemas import PostgresSession

_log = logging.getLogger(__name__)

_LOCK = 0x5AB08  # the advisory lock that is held while tables are created, so that two processes do not create the same
LOCK_SECONDS = 5.0
"""The seconds for which a start waits for the session of a process that was killed."""

_NO_LOCK = "55P03"
_MISSING = (  # from the catalog, since `to_regclass` does not see at once what another session has created
    "SELECT name FROM unnest(%s::text[]) AS name WHERE NOT EXISTS (SELECT 1 FROM pg_class c JOIN pg_namespace n ON c.relnamespace = n.oid "
    "WHERE relname = name AND nspname = ANY (current_schemas(false)))"
)
_NARROW = (  # only columns of tables that this user may alter
    "SELECT c.relname, a.attname FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid WHERE (c.relname, a.attname) IN "
    "(SELECT * FROM unnest(%s::text[], %s::text[])) AND a.atttypid = 'int4'::regtype AND pg_table_is_visible(c.oid) "
    "AND pg_has_role(c.relowner, 'USAGE')"
)


class PostgresTables:
    """The tables of one store in a PostgreSQL database, with one connection to it. The tables are in the first schema
    of the search path of the user who is named in the address. All methods block the thread.

    A user who may not create tables can use tables that another user has created. The constructor raises UserError for
    a wrong address, and MissingExtra if psycopg is not installed.
    """

    def __init__(
        self,
        place: Any,
        what: str,
        feature: str,
        made_by: dict[str, str],
        wide: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        """Makes the object, and does not connect yet.

        - `place`: the address of the database, or a pool of asyncpg, of which only the address is used.
        - `what`, `feature`: the name of the store, and the name of the class that needs psycopg, for error messages.
        - `made_by`: by the name of a table, the SQL statements that create it.
        - `wide`: by the name of a table, the columns that have to be BIGINT. If an earlier version of Sabot has created
          them as INTEGER, their type is changed.
        """
        self.server = PostgresServer(address_of(place, feature), what, feature)
        self.where = f"{what} in {self.server.where}"
        self._made_by = made_by
        self._wide = [(table, column) for table, columns in (wide or {}).items() for column in columns]
        self._made = False
        self._session: PostgresSession | None = None
        self._held: tuple[str, Callable[[], AppLocked]] | None = None

    def connect(self) -> Any:
        """Opens and returns a new connection. The server ends a transaction on it that has been idle for 20 seconds. If a lock
        is held (`hold`), the new connection takes it first.
        """
        settings = {"idle_in_transaction_session_timeout": "20s"}
        if self._held is None:
            return self.server.connect("", settings)
        # the server ends the session of a machine that is gone, and so its lock, after half a minute
        alive = {"tcp_keepalives_idle": "10", "tcp_keepalives_interval": "5", "tcp_keepalives_count": "4"}
        connection = self.server.connect("", settings | alive | {"lock_timeout": f"{round(LOCK_SECONDS * 1000)}ms"})
        try:
            with self.server.explained():
                self._lock(connection, *self._held)
                connection.execute("SELECT set_config('lock_timeout', '0', false)")
        except BaseException:
            connection.close()
            raise
        return connection

    def hold(self, lock: str, taken: Callable[[], AppLocked]) -> None:
        """Takes an advisory lock for the session, also for each one that follows after an error, until `close`. `lock`: the
        statement that takes it. Raises `taken()` if another session has held it for 5 seconds.
        """
        if self._held is None:
            self.close()
            self._held = lock, taken
        try:
            with self.transaction():
                pass
        except AppLocked:
            self._held = None
            raise

    @staticmethod
    def _lock(connection: Any, lock: str, taken: Callable[[], AppLocked]) -> None:
        try:
            connection.execute(lock)
        except connection.OperationalError as error:
            if error.sqlstate != _NO_LOCK:
                raise
            raise taken() from None

    @contextmanager
    def transaction(self, *, look: bool = False) -> Iterator[Any]:
        """Runs the `with` block as one transaction, and yields its connection. Missing tables are created first.
        `look=True` checks for missing tables even if an earlier transaction has done so.

        Raises BrokerUnavailable or TransientError if the server does not answer; then nobody knows whether the changes
        were made. Raises UserError if the server refuses a statement.
        """
        if self._session is None:
            self._session = PostgresSession(self)
        made, self._made = self._made and not look, False
        with self._session.using("BEGIN") as connection:
            if not made:
                self._make(connection)
            yield connection
            connection.execute("COMMIT")
        self._made = True

    def select(self, statement: str, values: Sequence[Any]) -> list[tuple[Any, ...]]:
        """Runs a query in a transaction of its own, and returns the rows. `values` are the values for the parameters of
        the statement. Raises the errors of `transaction`.
        """
        with self.transaction() as connection:
            rows: list[tuple[Any, ...]] = connection.execute(statement, values).fetchall()
            return rows

    def create(self) -> None:
        """Creates missing tables now, even if an earlier transaction has found them. Raises the errors of
        `transaction`.
        """
        with self.transaction(look=True):
            pass

    def _make(self, connection: Any) -> None:
        names = list(self._made_by)
        wide = [list(each) for each in zip(*self._wide, strict=True)] or [[], []]
        if not (connection.execute(_MISSING, (names,)).fetchall() or connection.execute(_NARROW, wide).fetchall()):
            return
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
        for (name,) in connection.execute(_MISSING, (names,)).fetchall():
            for statement in filter(str.strip, self._made_by[name].split(";")):
                connection.execute(statement)
        for table, column in connection.execute(_NARROW, wide).fetchall():
            connection.execute("SAVEPOINT wider")
            try:
                connection.execute(f"ALTER TABLE {table} ALTER COLUMN {column} TYPE BIGINT")
            except connection.NotSupportedError as error:  # a view depends on the column
                connection.execute("ROLLBACK TO SAVEPOINT wider")
                _log.warning("%s: %s.%s stays INTEGER: %s", self.where, table, column, str(error).strip())

    def close(self) -> None:
        """Closes the connection to the database. The next use opens a new one."""
        session, self._session, self._held = self._session, None, None
        if session is not None:
            session.close()
