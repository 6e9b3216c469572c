"""Opens a journal by its address. `kafka://host:port/topic` is a topic, `postgresql://user@host/database` is a
database, and a path is the folder of a journal in SQLite.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sabot.base.backoff import Backoff
from sabot.base.redaction import keep_url, redacted_url
from sabot.clock import SYSTEM_CLOCK, Clock
from sabot.errors import BrokerUnavailable, TransientError, UserError
from sabot.journal.base import Inbox, Journal, JournalReader
from sabot.journal.postgres import PostgresInbox, PostgresJournal, PostgresReader
from sabot.journal.postgres_workers import PostgresWorker
from sabot.journal.schemas import JournalSchema
from sabot.journal.sqlite import SqliteInbox, SqliteJournal, SqliteReader

_WAITS = Backoff(0.5, 10.0)
_MOST_UNRESOLVED = (
    10  # failures in a row, which take a minute: the name of a container is known when the container starts
)


class ServerWait:
    """The wait of a start for the server of a journal. Containers start in any order, so it has no end while the server may
    still come. A host whose name stays unknown does not come.
    """

    def __init__(self) -> None:
        self._failures = self._unresolved = 0

    def next_s(self, error: TransientError) -> float:
        """Returns the seconds to wait after this error of an attempt. Raises UserError if it is time to give up."""
        self._failures += 1
        self._unresolved = self._unresolved + 1 if isinstance(error, BrokerUnavailable) and error.unresolved else 0
        if self._unresolved > _MOST_UNRESOLVED:
            raise UserError(
                f"the journal's server stays unknown: {error.message}",
                hint="check the name of the host in journal=, and that this machine or container can look it up",
            ) from error
        return _WAITS.wait_s(self._failures)


def open_reader(address: Path | str, *, app: str = "", kafka: Mapping[str, Any] | None = None) -> JournalReader:
    """Opens a reader of the journal at an address. `app`: the id of the app, if the address does not name it.
    `kafka`: settings of the Kafka client, for a journal in a topic. Raises UserError if there is no journal, or if
    the address has an unknown form.
    """
    match _scheme(address):
        case "kafka":
            from sabot.journal.kafka import KafkaJournalReader  # imported late, because this loads the Kafka client

            return KafkaJournalReader(str(address), app=app, kafka=kafka)
        case "postgresql":
            return PostgresReader(str(address), app or None)
    return SqliteReader(address)


def open_inbox(
    address: Path | str, *, app: str = "", clock: Clock = SYSTEM_CLOCK, kafka: Mapping[str, Any] | None = None
) -> Inbox:
    """Opens an inbox of the journal at an address. `app` and `kafka` have the same meaning as in `open_reader`, and
    the same errors are raised. `clock`: decides whether the deadline of a question has passed.
    """
    match _scheme(address):
        case "kafka":
            from sabot.journal.kafka import KafkaInbox  # imported late, because this loads the Kafka client

            return KafkaInbox(str(address), app=app, clock=clock, kafka=kafka)
        case "postgresql":
            return PostgresInbox(str(address), app or None, clock=clock)
    return SqliteInbox(address, clock=clock)


def open_journal(
    address: Path | str,
    *,
    app: str = "",
    clock: Clock = SYSTEM_CLOCK,
    kafka: Mapping[str, Any] | None = None,
    anew: bool = False,
    shared: bool = False,
) -> Journal:
    """Opens the journal at an address as its owner. A missing journal is created: in the folder that the path names,
    in the topic (`{app}.journal` if the address names none), or in the schema `sabot_{app}` of the database. Returns
    a SqliteJournal, a KafkaJournal or a PostgresJournal, whose constructors raise the errors.

    `anew`: True to delete the existing content first, and to give the journal a new identity. With True, raises
    UserError for a topic and a database, because other processes may read them.

    `shared`: True to open it as one of several workers (PostgresWorker). Raises UserError for a folder and a topic.
    """
    scheme = _scheme(address)
    if shared and scheme != "postgresql":
        raise UserError(
            f"{redacted_url(str(address))}: several workers share a journal in PostgreSQL only",
            hint="postgresql://user@host/database?app=NAME; or leave shared=True out: one process runs the jobs of a folder, and any "
            "number of others begin and answer them",
        )
    if anew and scheme:
        raise UserError(
            f"{redacted_url(str(address))}: a journal on another machine is not forgotten from here",
            hint="delete its topic or its schema, and start with --fresh; or give another address",
        )
    match scheme:
        case "kafka":
            from sabot.journal.kafka import KafkaJournal  # imported late, because this loads the Kafka client

            return KafkaJournal(str(address), app=app, clock=clock, kafka=kafka)
        case "postgresql":
            kind = PostgresWorker if shared else PostgresJournal
            return kind(str(address), app or None, clock=clock)
    return SqliteJournal(address, clock=clock, anew=anew)


def schema_of(address: Path | str, app: str) -> JournalSchema | None:
    """Returns the schema of the journal at an address of PostgreSQL; None for any other address. `app`: as in `open_reader`."""
    return JournalSchema(str(address), app) if _scheme(address) == "postgresql" else None


def is_at_server(address: Path | str) -> bool:
    """Returns True if the journal at this address is on a server, and False if it is in a folder. Raises UserError
    for an address of an unknown form.
    """
    return _scheme(address) != ""


def _scheme(address: Path | str) -> str:
    """Returns the scheme of the address, "kafka" or "postgresql", or "" for a path. Raises UserError for an unknown
    scheme.
    """
    scheme, separator, _ = str(address).partition("://")
    if not separator or not isinstance(address, str):
        return ""
    if scheme == "kafka":
        return scheme
    if scheme in ("postgresql", "postgres"):
        return "postgresql"
    keep_url(address)
    raise UserError(
        f"{redacted_url(address)}: no journal has such an address",
        hint="give kafka://host:port/topic, postgresql://user@host/database?app=NAME, or a path: of a journal.db, its folder, or a "
        "state directory",
    )
