"""A PostgreSQL server: its address, connections to it, and its errors as SabotErrors. Only this module imports
psycopg.
"""

import os
import re
import select
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar
from urllib.parse import quote, urlencode

from sabot.base.redaction import clean_cause, keep_secret
from sabot.base.threads import run_in_thread
from sabot.clock import SYSTEM_CLOCK
from sabot.errors import BrokerUnavailable, MissingExtra, ServerRefusal, TransientError, UserError, short_repr

T = TypeVar("T")

# With these a server that no longer answers is noticed within a minute. Settings in the user's URL take precedence.
_DEFAULTS = {
    "connect_timeout": "10",
    "keepalives_idle": "10",
    "keepalives_interval": "10",
    "keepalives_count": "3",
    "tcp_user_timeout": "40000",
}
_SESSION = {"client_encoding": "UTF8", "datestyle": "ISO", "lock_timeout": "30s"}
# The server must answer a COMMIT only when the rows are on its disk.
_SAFE = (
    "set_config('synchronous_commit', CASE current_setting('synchronous_commit') WHEN 'off' THEN 'on' "
    "ELSE current_setting('synchronous_commit') END, false)"
)
_REFUSED = re.compile(
    r"authentication failed|does not exist|pg_hba|no password supplied|permission denied|not permitted"
)
# The server's own words are in its language, and these states in none: a login, a database that is missing, an option that is unknown.
_REFUSAL_STATES = ("28", "3D", "3F", "42", "22", "0A")
_STATE = re.compile(rb'ErrorResponse\t S .*? V "[A-Z]+" C "(\w{5})"', re.DOTALL)
_STATE_SECONDS = 5.0
# libpq's own words for bytes that no server of PostgreSQL sends. They may be in another language, and then the other hint is given.
_OTHER = re.compile(r"invalid response to|expected authentication request|unsupported frontend protocol")
_ASKED = "Is the server running"  # libpq's own hint
_UNRESOLVED = re.compile("resolve host|translate host name")
_ADDRESS = "postgresql://user@host:5432/database; in a name or a password @ is written %40, / %2F, ? %3F, # %23, % %25"
NO_ANSWER = "is a server of PostgreSQL up at this address, and can it be reached from here?"
"""The hint for a server that does not answer."""
_NO_POSTGRES = "the answer is none of PostgreSQL: check host and port, which another program may have"
_READ_ONLY = "25006"  # a server that has become a standby


# The parameters of asyncpg.connect for the server, the user and the password, by their names in an address.
_POOL_WORDS = {
    "host": "host",
    "port": "port",
    "user": "user",
    "password": "password",
    "passfile": "passfile",
    "service": "service",
    "database": "dbname",
    "target_session_attrs": "target_session_attrs",
    "krbsrvname": "krbsrvname",
}


def address_of(given: object, feature: str) -> str:
    """Returns the address of a database: `given`, or the address of a pool of asyncpg. Only the pool's settings are
    read, so the pool may belong to any event loop. Raises UserError for anything else, and for a pool whose address
    cannot be written as a URL; MissingExtra without psycopg.
    """
    if isinstance(given, str):
        return given
    pool: Any = given
    if type(given).__module__.partition(".")[0] != "asyncpg" or not hasattr(given, "_connect_args"):
        raise UserError(f"{feature}: {short_repr(given)} is no address of a database", hint="a pool of asyncpg, or one")
    (dsn, *_), words = pool._connect_args, dict(pool._connect_kwargs)
    ssl, settings = words.pop("ssl", None), words.pop("server_settings", None) or {}
    for name, unknown in (
        ("connect", getattr(pool._connect, "__module__", "") != "asyncpg.connection"),
        ("password", callable(words.get("password"))),
        ("ssl", ssl is True or not (ssl is None or isinstance(ssl, str | bool))),
    ):
        if unknown:
            raise UserError(
                f"{feature}: the pool has {name}= of the program's own, which an address cannot hold",
                hint="give the address in place of the pool: postgresql://user@host:5432/database?sslmode=verify-full",
            )
    found: dict[str, Any] = PostgresServer(dsn or "", feature, feature).given
    for name, word in _POOL_WORDS.items():
        if (value := words.get(name)) is not None:
            found[word] = ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    if ssl is not None:
        found["sslmode"] = ssl or "disable"
    if settings:
        escaped = ((name, re.sub(r"([ \\])", r"\\\1", str(value))) for name, value in settings.items())
        options = [f"-c {name}={value}" for name, value in escaped]
        found["options"] = " ".join([*filter(None, [found.get("options")]), *options])
    return _url(found)


def _url(words: dict[str, Any]) -> str:
    """Returns an address with these parameters. A single host is written into the part of the address that messages
    show.
    """
    host, port = str(words.get("host", "")), str(words.get("port", ""))
    place = ""
    if host and not set("/,") & set(host + port):
        place = (f"[{host}]" if ":" in host else quote(host)) + (f":{port}" if port else "")
        words = {name: value for name, value in words.items() if name not in ("host", "port")}
    who = ":".join(quote(str(words[name]), safe="") for name in ("user", "password") if words.get(name))
    if who and "user" in words:
        words = {name: value for name, value in words.items() if name not in ("user", "password")}
        place = f"{who}@{place}"
    database = quote(str(words.pop("dbname", "")), safe="")
    query = urlencode({name: value for name, value in words.items() if value is not None}, quote_via=quote)
    return f"postgresql://{place}/{database}{'?' * bool(query)}{query}"


class PostgresServer:
    """The database at an address. `what`: the part of Sabot that uses it, for messages, as in "table alerts".
    `extra`: the extra that installs psycopg, for the error if it is missing.
    """

    def __init__(self, url: str, what: str, extra: str) -> None:
        try:
            import psycopg
        except ImportError as error:
            raise MissingExtra(extra, "postgres") from error
        self._driver = psycopg
        self._what = what
        try:
            given = self._driver.conninfo.conninfo_to_dict(url)
        except self._driver.Error:  # the error quotes the part that it could not read, which is mostly a password
            raise UserError(f"{what}: its database's address cannot be read", hint=_ADDRESS) from None
        shown = [value for key, value in given.items() if key not in ("password", "sslpassword")]
        keep_secret(given.get("password"), given.get("sslpassword"), os.environ.get("PGPASSWORD"), beside=shown)
        self.given: dict[str, Any] = dict(given)
        """The parameters in the address, by libpq's names."""
        self.where = _where(url, what)
        """The text host:port/database, for messages."""
        self._conninfo: str = psycopg.conninfo.make_conninfo(url, **{**_DEFAULTS, **given})

    def connect(self, session: str, settings: Mapping[str, str] | None = None) -> Any:
        """Returns a new connection of psycopg that commits each statement, unless the caller changes that. `session`:
        its name for other processes, or "". `settings`: further settings of the session. Raises BrokerUnavailable, or
        ServerRefusal if the server refuses the connection.
        """
        try:
            connection = self._driver.connect(self._conninfo, autocommit=True)
        except self._driver.errors.ConnectionTimeout as error:
            raise BrokerUnavailable(f"PostgreSQL at {self.where}: {error}", hint=NO_ANSWER) from clean_cause(error)
        except self._driver.Error as error:
            passing = isinstance(error, self._driver.OperationalError)
            raise self.not_connected(str(error), passing=passing) from clean_cause(error)
        try:
            with self.explained():
                named = {"application_name": session} if session else {}
                told = [*{**_SESSION, **named, **(settings or {})}.items()]
                calls = ["set_config(%s, %s, false)"] * len(told)
                connection.execute(f"SELECT {', '.join([*calls, _SAFE])}", [word for each in told for word in each])
        except BaseException as error:
            connection.close()
            if isinstance(error, TransientError):  # the server is shutting down, or has just started
                raise BrokerUnavailable(f"PostgreSQL at {self.where}: {error}") from error
            raise
        return connection

    def not_connected(self, why: str, *, passing: bool = True) -> ServerRefusal | BrokerUnavailable:
        """Returns the error for a connection that could not be made. `passing`: True if that may be otherwise later, unless `why`
        is a refusal. Connects once more if the words do not tell, which may take 5 s.
        """
        message, state = f"PostgreSQL at {self.where}: {in_one_line(why)}", ""
        if passing and not _REFUSED.search(why):
            unresolved = bool(_UNRESOLVED.search(why))
            state = "" if unresolved else self._refusal_state()
            if not state.startswith(_REFUSAL_STATES):
                hint = _NO_POSTGRES if _OTHER.search(why) else NO_ANSWER
                error = BrokerUnavailable(message, hint="" if state or _ASKED in why else hint)
                error.unresolved = unresolved
                return error
        return ServerRefusal(
            message, state, hint=f"check the address given for {self._what}, and the server's pg_hba.conf"
        )

    def _refusal_state(self) -> str:
        """Returns the SQLSTATE with which the server refuses another connection. Returns "" if it refuses none, does not answer, or
        if the client library does not tell.

        libpq has only the server's words of a connection that has failed, but the trace of its messages has the state. That trace has
        the password too, so it stays in memory.
        """
        pq, until = self._driver.pq, SYSTEM_CLOCK.monotonic() + _STATE_SECONDS
        connection = pq.PGconn.connect_start(self._conninfo.encode())
        try:
            with open(os.memfd_create("sabot-refusal"), "w+b") as trace:
                traced = False
                while connection.status != pq.ConnStatus.BAD:
                    # not of a server that does not answer at all, as each trace keeps some bytes for ever
                    if not traced and connection.status != pq.ConnStatus.STARTED:
                        connection.trace(trace.fileno())
                        traced = True
                    state = connection.connect_poll()
                    left = until - SYSTEM_CLOCK.monotonic()
                    if state in (pq.PollingStatus.OK, pq.PollingStatus.FAILED) or left <= 0:
                        break
                    changes = select.poll()  # unlike select.select, also for descriptors above 1024
                    changes.register(
                        connection.socket, select.POLLIN if state == pq.PollingStatus.READING else select.POLLOUT
                    )
                    changes.poll(left * 1000)
                connection.untrace()  # writes what it still has in memory
                trace.seek(0)
                found = _STATE.search(trace.read())
        except (self._driver.NotSupportedError, AttributeError):  # trace and memfd_create are there on Linux
            return ""
        finally:
            connection.finish()
        return found[1].decode() if found else ""

    @property
    def errors(self) -> type[Exception]:
        """The class of the driver's errors."""
        found: type[Exception] = self._driver.Error
        return found

    def begun(self, session: str, **settings: str) -> Any:
        """Returns a connection of libpq (`psycopg.pq.PGconn`) that is being made: its owner polls it, and so is never held by a server
        that does not answer. `settings`: more parameters of libpq, such as replication="database".
        """
        words = {"application_name": session, "client_encoding": "UTF8", **settings}
        made = self._driver.conninfo.make_conninfo(self._conninfo, **words)
        return self._driver.pq.PGconn.connect_start(made.encode())

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Converts errors of the driver: into TransientError if the error may pass; into UserError for values that the server
        does not take, and else into ServerRefusal.
        """
        driver = self._driver
        try:
            yield
        except driver.Error as error:
            message = f"{self._what} of {self.where}: {str(error).strip()}"
            passing = isinstance(error, driver.OperationalError | driver.InterfaceError) or error.sqlstate == _READ_ONLY
            too_large = isinstance(error, driver.errors.ProgramLimitExceeded)
            if passing and not too_large:
                raise TransientError(in_one_line(message)) from clean_cause(error)
            if too_large or isinstance(error, driver.DataError):
                raise UserError(message) from clean_cause(error)
            raise ServerRefusal(message, error.sqlstate or "") from clean_cause(error)

    async def run_within(
        self, connection: Any, asked: Generator[tuple[str, Sequence[Any]], list[tuple[Any, ...]], T], what: str
    ) -> T:
        """Runs statements in the transaction that a caller has open on a connection of psycopg, of either kind. Nothing is
        committed here.

        `asked`: yields statements with their values, gets the rows of each, and returns the result. `what`: the argument that is
        the connection, for messages. Raises UserError for a connection on which no transaction is open or can begin, and the
        errors of `asked` and `explained`.
        """
        driver = self._driver
        if not isinstance(connection, driver.Connection | driver.AsyncConnection):
            raise UserError(
                f"{what}={short_repr(connection)} is no connection of psycopg",
                hint="psycopg.connect(…), or its AsyncConnection",
            )
        with self.explained():
            state = connection.info.transaction_status
        if state == driver.pq.TransactionStatus.INERROR:
            raise UserError(f"{what}: its transaction has failed", hint="roll it back, and begin another one")
        if connection.autocommit and state == driver.pq.TransactionStatus.IDLE:
            raise UserError(
                f"{what}: it commits each statement by itself",
                hint="with connection.transaction(): …, or without autocommit",
            )
        rows: list[tuple[Any, ...]] | None = None
        with self.explained():  # not with rows of a class of the caller's own
            cursor: Any = connection.cursor(row_factory=driver.rows.tuple_row)
        while True:
            try:
                statement, values = asked.send(rows)  # type: ignore[arg-type]  # the first one gets None
            except StopIteration as done:
                found: T = done.value
                return found
            with self.explained():
                if isinstance(connection, driver.AsyncConnection):
                    await cursor.execute(statement, values)
                    rows = await cursor.fetchall()
                else:
                    rows = await run_in_thread(_rows_of, cursor, statement, values)

    def pipeline(self, connection: Any) -> AbstractContextManager[Any]:
        """Returns a block in which statements are sent without waiting for earlier answers, if the client library can
        do that.
        """
        return connection.pipeline() if self._driver.Pipeline.is_supported() else nullcontext()


def _rows_of(cursor: Any, statement: str, values: Sequence[Any]) -> list[tuple[Any, ...]]:
    found: list[tuple[Any, ...]] = cursor.execute(statement, values).fetchall()
    return found


def in_one_line(said: object) -> str:
    """Returns the words of libpq, which are of several lines, for a line of the log."""
    return " ".join(line.strip() for line in str(said).strip().splitlines())


def _where(url: str, what: str) -> str:
    """Returns host:port/database of a URL. As in libpq, user and password end at the first `@` before a `/`."""
    rest = url.partition("://")[2]
    at = re.match(r"[^@/]*@", rest)
    place = rest[at.end() if at is not None else 0 :].partition("?")[0]
    if "@" in place:  # libpq would read part of the password as the host or the port
        raise UserError(f"{what}: its database's address has an @ behind its user and password", hint=_ADDRESS)
    place = place.partition("#")[0]
    return f"postgresql{place}" if place[:1] in ("", "/") else place
