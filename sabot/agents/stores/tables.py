"""Tables in a PostgreSQL database: made where they are missing, used over one connection that is made anew when it breaks."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from sabot.connectors.sql.server import PostgresServer, address_of
from sabot.journal.schemas import PostgresSession

_log = logging.getLogger(__name__)

_LOCK = 0x5AB08  # held while tables are made, so that two processes do not make one
_MISSING = (  # asked of the catalog: `to_regclass` does not see at once what another session has made
    "SELECT name FROM unnest(%s::text[]) AS name WHERE NOT EXISTS (SELECT 1 FROM pg_class c JOIN pg_namespace n ON c.relnamespace = n.oid "
    "WHERE relname = name AND nspname = ANY (current_schemas(false)))"
)
_NARROW = (  # of those that we may alter
    "SELECT c.relname, a.attname FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid WHERE (c.relname, a.attname) IN "
    "(SELECT * FROM unnest(%s::text[], %s::text[])) AND a.atttypid = 'int4'::regtype AND pg_table_is_visible(c.oid) "
    "AND pg_has_role(c.relowner, 'USAGE')"
)


class PostgresTables:
    """By their names, with the statement that makes each of them; in the first schema of the address's user. Its methods block.

    A user who may not make tables can be given them. Raises UserError for what is no address, MissingExtra without psycopg.
    """

    def __init__(
        self,
        place: Any,
        what: str,
        feature: str,
        made_by: dict[str, str],
        wide: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        """place: the address, or a pool of asyncpg, whose address is taken. wide: columns by their table that are BIGINT, and were made as
        INTEGER by an earlier version: they are altered.
        """
        self.server = PostgresServer(address_of(place, feature), what, feature)
        self.where = f"{what} in {self.server.where}"
        self._made_by = made_by
        self._wide = [(table, column) for table, columns in (wide or {}).items() for column in columns]
        self._made = False
        self._session: PostgresSession | None = None

    def connect(self) -> Any:
        """A new connection. What it does in a transaction is ended by the server when it hangs there."""
        return self.server.connect("", {"idle_in_transaction_session_timeout": "20s"})

    @contextmanager
    def transaction(self, *, look: bool = False) -> Iterator[Any]:
        """A connection, what is done over which is durable at the end, or not done. look: for the tables, also where they were there.

        Raises BrokerUnavailable or TransientError while the server does not answer, when what was done may be durable all the same;
        UserError where it refuses.
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

    def create(self) -> None:
        """Makes the tables where they are missing. Raises as `transaction`."""
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
            except connection.NotSupportedError as error:  # somebody has a view of it
                connection.execute("ROLLBACK TO SAVEPOINT wider")
                _log.warning("%s: %s.%s stays INTEGER: %s", self.where, table, column, str(error).strip())

    def close(self) -> None:
        """The next use connects again."""
        session, self._session = self._session, None
        if session is not None:
            session.close()
