"""A connection of libpq that never holds its thread: each call ends in time, also if the server is paused or cut off."""

import select
import threading
from collections.abc import Sequence
from typing import Any

from sabot.base.redaction import clean_cause
from sabot.clock import SYSTEM_CLOCK
from sabot.connectors.sql.server import NO_ANSWER, PostgresServer, in_one_line
from sabot.errors import BrokerUnavailable, ServerRefusal, TransientError

CONNECT_SECONDS = 10.0
QUERY_SECONDS = 30.0
_SLICE_SECONDS = 0.2  # after so long a waiting call looks whether it has to stop
_SESSION = (
    "SET datestyle TO 'ISO'; SET intervalstyle TO 'postgres'; SET extra_float_digits TO 3; SET bytea_output TO 'hex'; "
    "SET statement_timeout TO 0; SET idle_in_transaction_session_timeout TO 0; SET lock_timeout TO '30s'"
)
# What passes: connection, conflicts between transactions, resources, a lock that is held, operator's intervention, and the system.
_PASSING = ("08", "40", "530", "531", "532", "533", "55P03", "57", "58")
IN_USE = "55006"


class PostgresLink:
    """A connection to a server for one thread. `session`: its name for the server. `stopped`: set when all calls have to end."""

    def __init__(self, server: PostgresServer, session: str, stopped: threading.Event, *, replication: bool) -> None:
        self._server, self._session, self._stopped = server, session, stopped
        self._settings = {"replication": "database"} if replication else {}
        self._pg: Any = None

    def connect(self) -> None:
        """Makes the connection. Raises BrokerUnavailable after 10 s, and ServerRefusal if the server refuses it."""
        self.close()
        until = SYSTEM_CLOCK.monotonic() + CONNECT_SECONDS
        pg = self._pg = self._server.begun(self._session, **self._settings)
        while True:
            state = 0 if pg.status == 1 else int(pg.connect_poll())  # 1: CONNECTION_BAD
            if state == 3:  # PGRES_POLLING_OK
                break
            if state == 0:
                why = pg.get_error_message()
                self.close()
                raise self._server.not_connected(why)
            if not self._ready(until, writes=state == 2):
                self.close()
                raise BrokerUnavailable(
                    f"PostgreSQL at {self._server.where} does not answer within {CONNECT_SECONDS:.0f} s", hint=NO_ANSWER
                )
        pg.nonblocking = 1
        self.query(_SESSION)

    @property
    def backend(self) -> int:
        """The id of the server's process for this connection."""
        return int(self._pg.backend_pid)

    def setting(self, name: str) -> str:
        """Returns a setting that the server reports by itself, such as server_version, or ""."""
        found = self._pg.parameter_status(name.encode())
        return "" if found is None else str(found.decode())

    def query(self, text: str, seconds: float = QUERY_SECONDS) -> list[tuple[Any, ...]]:
        """Returns the rows of a statement, or of the last one of several, as texts. Raises TransientError if the server does not answer in
        time, and ServerRefusal.
        """
        self._send(text)
        return self._rows(seconds)

    def texts_of(self, values: Sequence[bytes], types: Sequence[int]) -> tuple[str, ...]:
        """Returns values in PostgreSQL's binary form as its texts. `types`: the oids of their types. Raises the errors of `query`."""
        asked = ", ".join(f"${number}::text" for number in range(1, len(values) + 1))
        try:
            self._pg.send_query_params(f"SELECT {asked}".encode(), values, types, [1] * len(values))
        except self._server.errors as error:
            raise self._lost(str(error)) from clean_cause(error)
        [row] = self._rows(QUERY_SECONDS)
        return row

    def _rows(self, seconds: float) -> list[tuple[Any, ...]]:
        until = SYSTEM_CLOCK.monotonic() + seconds
        rows: list[tuple[Any, ...]] = []
        error: Exception | None = None
        while (result := self._result(until)) is not None:
            if result.status == 2:  # PGRES_TUPLES_OK
                rows = [
                    tuple(_text(result.get_value(row, column)) for column in range(result.nfields))
                    for row in range(result.ntuples)
                ]
            elif result.status != 1:  # PGRES_COMMAND_OK
                error = error or self._refused(result)
        if error is not None:
            raise error
        return rows

    def begin_copy(self, text: str, seconds: float = QUERY_SECONDS) -> None:
        """Sends a statement that turns the connection into a stream of data: COPY … TO STDOUT, or START_REPLICATION."""
        self._send(text)
        result = self._result(SYSTEM_CLOCK.monotonic() + seconds)
        if result is None or result.status not in (3, 8):  # PGRES_COPY_OUT, PGRES_COPY_BOTH
            error = self._lost("it ended") if result is None else self._refused(result)
            while result is not None:
                result = self._result(SYSTEM_CLOCK.monotonic() + seconds)
            raise error

    def take(self, into: list[bytes], most_bytes: int, most: int = 1 << 30) -> tuple[int, bool]:
        """Moves messages of the stream that have arrived to `into`: at most `most`, and, but for the last one, `most_bytes`. Returns the
        bytes, and True if the stream has ended. Does not wait.
        """
        pg, took, end = self._pg, 0, len(into) + most
        try:
            while took < most_bytes and len(into) < end:
                size, data = pg.get_copy_data(1)
                if size > 0:
                    into.append(bytes(data))
                    took += size
                elif size == 0:
                    pg.consume_input()
                    size, data = pg.get_copy_data(1)
                    if size <= 0:
                        return took, size < 0
                    into.append(bytes(data))
                    took += size
                else:
                    return took, True
        except self._server.errors as error:
            raise self._lost(str(error)) from clean_cause(error)
        return took, False

    def end_copy(self) -> None:
        """Takes the results behind a stream that has ended. Raises its error."""
        error: Exception | None = None
        until = SYSTEM_CLOCK.monotonic() + QUERY_SECONDS
        while (result := self._result(until)) is not None:
            if result.status not in (1, 2):
                error = error or self._refused(result)
            if result.status == 8:  # the server has ended the stream, but waits for our end
                break
        if error is not None:
            raise error

    def put(self, message: bytes) -> None:
        """Sends a message of the stream, as far as the network takes it now."""
        try:
            self._pg.put_copy_data(message)
            self._pg.flush()
        except self._server.errors as error:
            raise self._lost(str(error)) from clean_cause(error)

    def wait(self, seconds: float, waker: int | None = None) -> bool:
        """Waits for something to read, at most so long. Returns True if there may be. `waker`: a file whose bytes end the wait too."""
        pg = self._pg
        try:
            left = pg.flush()
            poll = select.poll()
            poll.register(pg.socket, select.POLLIN | (select.POLLOUT if left else 0))
        except self._server.errors as error:
            raise self._lost(str(error)) from clean_cause(error)
        if waker is not None:
            poll.register(waker, select.POLLIN)
        return bool(poll.poll(max(0, int(seconds * 1000))))

    def close(self) -> None:
        pg, self._pg = self._pg, None
        if pg is not None:
            pg.finish()

    def _send(self, text: str) -> None:
        if self._pg is None:
            raise BrokerUnavailable(f"PostgreSQL at {self._server.where}: the connection is closed")
        try:
            self._pg.send_query(text.encode())
        except self._server.errors as error:
            raise self._lost(str(error)) from clean_cause(error)

    def _result(self, until: float) -> Any:
        pg = self._pg
        try:
            while pg.flush():
                self._await(until, writes=True)
            while pg.is_busy():
                self._await(until)
                pg.consume_input()
            return pg.get_result()
        except self._server.errors as error:
            raise self._lost(str(error)) from clean_cause(error)

    def _await(self, until: float, *, writes: bool = False) -> None:
        if not self._ready(until, writes=writes):
            raise self._lost("it does not answer")

    def _ready(self, until: float, *, writes: bool = False) -> bool:
        """Waits until the network is ready. Returns False at `until`, or if all calls have to end."""
        poll = select.poll()
        poll.register(self._pg.socket, select.POLLIN | (select.POLLOUT if writes else 0))
        while not self._stopped.is_set() and (left := until - SYSTEM_CLOCK.monotonic()) > 0:
            if poll.poll(int(1000 * min(left, _SLICE_SECONDS)) + 1):
                return True
        return False

    def _lost(self, why: str) -> TransientError:
        return BrokerUnavailable(f"PostgreSQL at {self._server.where}: {in_one_line(why)}")

    def _refused(self, result: Any) -> TransientError | ServerRefusal:
        state = _text(result.error_field(ord("C"))) or ""  # PG_DIAG_SQLSTATE
        message = _text(result.error_field(ord("M"))) or result.get_error_message()
        said = f"PostgreSQL at {self._server.where}: {message.strip()}"
        if not state or state.startswith(_PASSING):
            return BrokerUnavailable(said)
        return ServerRefusal(said, state, hint=_text(result.error_field(ord("H"))) or "")


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode(errors="replace")


def lsn_of(text: str) -> int:
    """Returns the number of a place in the WAL that is written as "16/B374D848"."""
    high, _, low = text.partition("/")
    return (int(high, 16) << 32) | int(low, 16)


def lsn_text(lsn: int) -> str:
    """Returns a place in the WAL as PostgreSQL writes it."""
    return f"{lsn >> 32:X}/{lsn & 0xFFFFFFFF:X}"


def literal(value: str) -> str:
    """Returns a text as a constant of SQL."""
    escaped = value.replace("'", "''")
    return f" E'{escaped.replace(chr(92), 2 * chr(92))}'" if "\\" in escaped else f"'{escaped}'"
