"""The replication slot of a source, and its publication: how they are made, found again, looked at and removed.

A slot keeps the WAL that its app has not confirmed, so a slot without an app fills the disk of the server. A start that fails removes
what it has made; a start without a checkpoint removes what an earlier one has left.
"""

import logging
import threading
from collections.abc import Callable, Mapping, Sequence

from sabot.base.dataclass import dataclass
from sabot.base.quantities import bytes_words
from sabot.clock import SYSTEM_CLOCK
from sabot.connectors.postgres.catalog import (
    CatalogTable,
    check_keys,
    check_publication,
    check_there,
    make_publication,
    membership_of,
    publication_statement,
)
from sabot.connectors.postgres.link import PostgresLink, literal, lsn_of, lsn_text
from sabot.connectors.postgres.names import FRESH, session_of
from sabot.connectors.sql.database import quoted
from sabot.errors import BrokerUnavailable, SabotError, TransientError, UserError

_log = logging.getLogger(__name__)

_MAKE_SECONDS = 60.0  # the server waits for transactions that are under way
_END_SECONDS = 10.0  # for an old connection to end
_POLL_SECONDS = 0.05
_JOIN_SECONDS = 15.0
_SHARED_NAME = 50  # characters of a temporary slot's name, of 63; the others are the number of a process
HELD_BYTES = 16 << 20  # so much WAL is held before an empty transaction is written
_KEPT = 13  # the version from which a server tells how much WAL it will keep


@dataclass(frozen=True)
class Made:
    """A new slot. `lsn`: changes that were committed behind it come by the slot, those before are in `snapshot`, which lives until the
    next command of its connection. `published`: True if the publication was made too.
    """

    lsn: int
    snapshot: str
    published: bool


@dataclass(frozen=True)
class SlotNames:
    """The names of a slot at its server. `derived`: True if `slot` is made of the names of app and table. `publication`: one of the
    user's, or None for one of the name of the slot. `owner`: the app and the source.
    """

    slot: str
    derived: bool
    publication: str | None
    owner: str


class Slot:
    """A slot by its name. `link`: makes a connection that is not open."""

    def __init__(self, names: SlotNames, link: Callable[..., PostgresLink], where: str, heartbeat_s: float) -> None:
        self.name, self.publication = names.slot, names.publication or names.slot
        self._given, self._derived = names.publication is not None, names.derived
        self._owner, self._session, self._link, self._where = names.owner, session_of(names.owner), link, where
        self._heartbeat_s = heartbeat_s
        self.figures: Mapping[str, int | float | str] = {"slot": names.slot}
        self.failure: tuple[UserError, int] | None = None
        """What has happened beside the changes, and the place that the log had reached then: the changes before it can still be read."""
        self.membership = ""
        """What the publication has the table by since the start (`membership_of`), or "" if that is not known."""
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._warned = False

    # -- a start ------------------------------------------------------------------------------------------------------

    @staticmethod
    def identify(link: PostgresLink) -> tuple[str, int]:
        """Returns the id of the server's data, and its timeline."""
        [(system, timeline, *_)] = link.query("IDENTIFY_SYSTEM")
        return system, int(timeline)

    def make(self, link: PostgresLink, table: CatalogTable, used: Sequence[str], *, snapshot: bool) -> Made:
        """Makes the publication and the slot, in place of those that an earlier start of this app has left."""
        self._remove_left(link)
        published = False
        if self._given:
            check_publication(link, self.publication, table, used, self._where)
        else:
            published = make_publication(link, self.publication, table, self._owner, self._where)
        try:
            self.membership = membership_of(link, self.publication, table)
            return self._make(
                link,
                f"{quoted(self.name)} LOGICAL pgoutput {'EXPORT_SNAPSHOT' if snapshot else 'NOEXPORT_SNAPSHOT'}",
                published,
            )
        except BaseException:
            self.remove(published=published, backend=link.backend)
            raise

    def temporary(self, link: PostgresLink) -> Made:
        """Makes a slot that ends with its connection, for its snapshot. It is named after the process of the server: that of a
        start before, whose connection has broken, may be there until the server notices.
        """
        name = quoted(f"{self.name[:_SHARED_NAME]}_{link.backend}")
        return self._make(link, f"{name} TEMPORARY LOGICAL pgoutput EXPORT_SNAPSHOT", False)

    def _make(self, link: PostgresLink, what: str, published: bool) -> Made:
        try:
            [(_, lsn, exported, _)] = link.query(f"CREATE_REPLICATION_SLOT {what}", _MAKE_SECONDS)
        except BrokerUnavailable as error:
            raise BrokerUnavailable(
                f"{error}. A slot is made when the transactions that were under way have ended",
                hint="SELECT pid, xact_start, query FROM pg_stat_activity WHERE backend_xid IS NOT NULL shows them",
            ) from error
        return Made(lsn_of(lsn), exported or "", published)

    def remove(self, *, published: bool, backend: int = 0) -> None:
        """Removes the slot, and the publication if `published`, after a start that has failed. `backend`: the server's process that may
        still be making the slot.
        """
        link = self._link(replication=False)
        try:
            link.connect()
            if backend:
                link.query(f"SELECT pg_terminate_backend({backend})")
            self._drop(link)
            if published:
                link.query(f"DROP PUBLICATION IF EXISTS {quoted(self.publication)}")
        except SabotError as error:  # the failure of the start is what is raised
            _log.warning("%s: slot %s could not be removed; the next start does it: %s", self._where, self.name, error)
        finally:
            link.close()

    def _remove_left(self, link: PostgresLink) -> None:
        """Removes the slot that a start of this app without a checkpoint has left. Raises UserError if it is that of another."""
        if not self._facts(link):
            return
        mark = link.query(
            f"SELECT obj_description(oid, 'pg_publication') FROM pg_publication WHERE pubname = {literal(self.name)}"
        )
        if mark != [(self._owner,)] and not (self._derived and (self._given or not mark)):
            raise UserError(
                f"{self._where}: there is a slot {self.name} already, and this app has not made it",
                hint=f'give slot="another name"; or, if nobody needs it: SELECT pg_drop_replication_slot({literal(self.name)})',
            )
        _log.info("%s: slot %s, which a start without a checkpoint has left, is made anew", self._where, self.name)
        self._end_old(link, ends_old=True, ours=0)
        self._drop(link)

    def _drop(self, link: PostgresLink) -> None:
        until = SYSTEM_CLOCK.monotonic() + _END_SECONDS
        while (facts := self._facts(link)) and facts[0] is not None and SYSTEM_CLOCK.monotonic() < until:
            self._ended.wait(_POLL_SECONDS)
        link.query(
            f"SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = {literal(self.name)}"
        )

    def _facts(self, link: PostgresLink) -> tuple[str | None, ...]:
        """Returns the process that reads the slot, the confirmed place, the state of its WAL and its database; () if there is no slot."""
        status = "wal_status" if _version(link) >= _KEPT else "'reserved'"
        found = link.query(
            f"SELECT active_pid, confirmed_flush_lsn, {status}, database, plugin FROM pg_replication_slots "
            f"WHERE slot_name = {literal(self.name)}"
        )
        return found[0] if found else ()

    # -- a start at a checkpoint --------------------------------------------------------------------------------------

    def check(self, link: PostgresLink, position: int, *, ends_old: bool = False, ours: int = 0) -> None:
        """Raises UserError if the slot cannot go on at a position. `ends_old`: True ends an older process of this app that still reads it.
        `ours`: a process of the server whose connection we have lost.
        """
        facts = self._facts(link)
        if not facts:
            raise self._gone(f"the changes behind {lsn_text(position)}")
        _, confirmed, status, database, plugin = facts
        [(here,)] = link.query("SELECT current_database()")
        if database != here or plugin != "pgoutput":
            raise UserError(f"{self._where}: slot {self.name} is one of database {database}, with {plugin}", hint=FRESH)
        if status == "lost":
            raise UserError(
                f"{self._where}: the server has removed WAL that {self.name} had not read: changes behind {lsn_text(position)} are lost",
                hint=f"{FRESH}; a larger max_slot_wal_keep_size keeps more",
            )
        if confirmed is not None and lsn_of(confirmed) > position:
            raise UserError(
                f"{self._where}: slot {self.name} is confirmed to {confirmed}, behind the position {lsn_text(position)} of the checkpoint, "
                "so the changes in between are gone",
                hint=f"an older checkpoint was restored, or another program has read the slot; {FRESH}",
            )
        self._end_old(link, ends_old=ends_old, ours=ours)

    def check_table(self, link: PostgresLink, table: CatalogTable, used: Sequence[str]) -> None:
        """Raises UserError if the table is not what it was, or the publication does not bring all of its changes, or has not done so in
        between.
        """
        check_there(link, table, self._where)
        if self._given:
            check_publication(link, self.publication, table, used, self._where)
        found = membership_of(link, self.publication, table)
        if not found:
            check_there(link, table, self._where)  # it may have been dropped since the first look
            raise UserError(
                f"{self._where}: publication {self.publication} is gone, or does not have the table any more: changes of the time "
                "without it are in no log",
                hint=f"{publication_statement(self.publication, table)}, and {FRESH}",
            )
        if self.membership not in ("", found):
            raise UserError(
                f"{self._where}: publication {self.publication} was made again, or the table was taken out of it and put back: changes of "
                "the time in between are in no log",
                hint=FRESH,
            )
        self.membership = found

    def _gone(self, what: str) -> UserError:
        return UserError(f"{self._where}: slot {self.name} is gone, and with it {what}", hint=FRESH)

    def _end_old(self, link: PostgresLink, *, ends_old: bool, ours: int) -> None:
        """Ends a connection of ours that still reads the slot. Raises UserError if it is not ours."""
        until = SYSTEM_CLOCK.monotonic() + _END_SECONDS
        while (facts := self._facts(link)) and facts[0] is not None:
            [(name,)] = link.query(f"SELECT max(application_name) FROM pg_stat_activity WHERE pid = {facts[0]}")
            if int(facts[0]) == ours or (ends_old and name == self._session):
                link.query(f"SELECT pg_terminate_backend({facts[0]})")
            elif name is not None:
                raise UserError(
                    f"{self._where}: slot {self.name} is read by another process: {name or 'without a name'}, pid {facts[0]} of the server",
                    hint='stop it; or give this source a slot of its own: PostgresChanges(…, slot="another name")',
                )
            if SYSTEM_CLOCK.monotonic() > until:
                raise BrokerUnavailable(f"{self._where}: the old connection of slot {self.name} does not end")
            self._ended.wait(_POLL_SECONDS)

    # -- while it runs ------------------------------------------------------------------------------------------------

    def watch(self, table: CatalogTable, used: Sequence[str]) -> None:
        """Begins to look at slot, table and publication from time to time, and to write an empty transaction while the slot holds WAL."""
        self.close()
        self.failure = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, args=(table, used), name=f"slot {self.name}", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends the watch."""
        self._ended.set()
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.join(_JOIN_SECONDS)

    def _watch(self, table: CatalogTable, used: Sequence[str]) -> None:
        link = self._link(replication=False)
        connected = False
        try:
            while not self._ended.is_set():
                try:
                    if not connected:
                        link.connect()
                        connected = True
                    try:
                        self._look(link, table, used)
                    except UserError as error:
                        [(end,)] = link.query("SELECT pg_current_wal_flush_lsn()")
                        self.failure = error, lsn_of(end)
                        return
                except TransientError:  # the reader of the changes says it
                    connected = False
                except UserError as error:
                    self.failure = error, 0
                    return
                self._ended.wait(self._heartbeat_s)
        finally:
            link.close()

    def _look(self, link: PostgresLink, table: CatalogTable, used: Sequence[str]) -> None:
        kept = (
            "wal_status, safe_wal_size, CASE WHEN current_setting('max_slot_wal_keep_size') = '-1' THEN NULL ELSE "
            "pg_size_bytes(current_setting('max_slot_wal_keep_size')) END"
        )
        found = link.query(
            "SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn), "
            f"{kept if _version(link) >= _KEPT else 'NULL, NULL, NULL'} FROM pg_replication_slots WHERE slot_name = {literal(self.name)}"
        )
        if not found:  # the reader of the changes would notice when it begins, which may be hours later
            raise self._gone("the changes that were not read")
        held, status, safe, most = found[0]
        figures: dict[str, int | float | str] = {"slot": self.name, "held_wal_bytes": int(held or 0)}
        if status is not None:
            figures["wal_status"] = status
        if safe is not None:
            figures["safe_wal_bytes"] = int(safe)
        self.figures = figures
        low = safe is not None and most is not None and int(safe) < int(most) / 2
        if low and not self._warned:
            _log.warning(
                "%s: slot %s holds %s of WAL, and the server keeps %s more: then the changes are lost. Is a checkpoint held up?",
                self._where,
                self.name,
                bytes_words(int(held or 0)),
                bytes_words(max(0, int(safe))),
            )
        self._warned = low
        self.check_table(link, table, used)
        check_keys(link, table, self._where)
        if int(held or 0) >= HELD_BYTES:
            link.query("SELECT pg_logical_emit_message(true, 'sabot', '')")


def _version(link: PostgresLink) -> int:
    return int(link.setting("server_version").partition(".")[0])
