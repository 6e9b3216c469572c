"""A source of the rows of a table of PostgreSQL, and of its changes.

start      publication, slot with an exported snapshot (LSN₀), the rows in the order of the key, the changes from LSN₀
position   the LSN behind the last whole transaction; until all rows were read LSN₀
memory     how far the rows were read, and how many changes were taken of the next transaction
commit     confirms the position: only then may the server forget what lies before it
"""

import logging
import re
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, wait
from typing import Literal

import numpy as np
import pyarrow as pa

from sabot._cython.arrow.batch import Batch
from sabot._cython.binary.pgoutput import ChangeDecoder, ChangeRun, SentRelation, Truncate
from sabot.base.arrays import empty_batch
from sabot.base.checks import TEXT, check
from sabot.base.config import Duration, parse_ms
from sabot.base.threads import begin_in_thread
from sabot.clock import SYSTEM_CLOCK
from sabot.codecs.engine_columns import OP_COLUMN
from sabot.codecs.records import BAD_SCHEMA, build_records
from sabot.connectors.base import Positions, Scans, Source, TakesBound
from sabot.connectors.places import Bound
from sabot.connectors.postgres.catalog import CatalogTable, check_changes, check_readable, check_there, read_table
from sabot.connectors.postgres.link import PostgresLink, lsn_of, lsn_text
from sabot.connectors.postgres.memory import TableMemory
from sabot.connectors.postgres.names import FRESH, session_of, slot_name
from sabot.connectors.postgres.relations import places_of
from sabot.connectors.postgres.slot import Slot, SlotNames
from sabot.connectors.postgres.snapshot import Pass, TableScan, WholeTable, in_snapshots
from sabot.connectors.postgres.walsender import BUFFER_BYTES, WalChunk, WalReceiver
from sabot.connectors.sql.server import PostgresServer
from sabot.errors import ServerRefusal, TransientError, UserError

__all__ = ["PostgresChanges"]

_log = logging.getLogger(__name__)

_JOIN_SECONDS = 15.0
_PAUSE_SECONDS = 0.5  # between two tries to reach a server that is away
OnTruncate = Literal["error", "ignore"]


class PostgresChanges(Source, Scans, TakesBound):
    """A source of the rows of a table of PostgreSQL, and then of its changes: `PostgresChanges("postgresql://…/shop", "public.orders")`.

    `app.table(source)` has the table itself, with the key of its primary key; `app.stream(source)` its insertions, and stops at any
    other change. `until="now"` reads the rows that are there, and needs no slot.

    `url`: the address of the database. `table`: "schema.table", as the catalog writes it; "table" is public.table. `slot`: the name of
    the replication slot, by default made of the names of app and table. `publication`: a publication that has the table, if the
    user may not make one. `heartbeat`: how often the slot is looked at, and an empty transaction written if it holds WAL.
    `on_truncate`: "ignore" goes on behind a TRUNCATE, whose rows stay in the state; "error" stops. Raises MissingExtra without the
    library, and UserError.

    Each change counts once, also across a crash. The server needs wal_level=logical, and keeps all WAL from the last checkpoint on.
    """

    has_records = False
    lag_unit = "bytes"

    def __init__(
        self,
        url: str,
        table: str,
        *,
        slot: str | None = None,
        publication: str | None = None,
        heartbeat: Duration = "10s",
        on_truncate: OnTruncate = "error",
    ) -> None:
        check("PostgresChanges: table", table, TEXT)
        place = table.split(".")
        if len(place) > 2 or not all(place):
            raise UserError(
                f"PostgresChanges: table={table!r} is no name of a table", hint='"schema.table", or "table"'
            )
        if slot is not None and not re.fullmatch(r"[a-z0-9_]{1,59}", slot):
            raise UserError(
                f"PostgresChanges: slot={slot!r} is no name of a slot", hint="1 to 59 lower case letters, digits and _"
            )
        if publication is not None:
            check("PostgresChanges: publication", publication, TEXT)
        if on_truncate not in ("error", "ignore"):
            raise UserError(f"PostgresChanges: on_truncate={on_truncate!r}", hint='"error" or "ignore"')
        self._schema_name, self._table_name = place if len(place) == 2 else ("public", table)
        self.name = f"{self._schema_name}.{self._table_name}"
        self._given_slot, self._given_publication = slot, publication
        self._heartbeat_s = parse_ms(heartbeat, name="PostgresChanges: heartbeat") / 1000
        self._on_truncate = on_truncate
        self._server = PostgresServer(url, f"table {self.name}", "PostgresChanges")
        self._facts: CatalogTable | None = None
        self._scanned: pa.Schema | None = None
        self._recalled: bytes | None = None
        self._stopped = threading.Event()
        self._slot: Slot | None = None
        self._reset()

    def _reset(self) -> None:
        self._decoder: ChangeDecoder | None = None
        self._names: list[str] = []  # of the decoder's columns
        self._position = self._taken = self._commit = 0
        self._passes: list[Pass] = []
        self._system, self._timeline = "", 0
        self._snapshot: TableScan | None = None
        self._reading = False  # rows are left to be read
        self._renewal: Future[None] | None = None
        self._receiver: WalReceiver | None = None
        self._connections = 0
        self._chunk, self._at = WalChunk([], 0, 0), 0
        self._stop: SentRelation | Truncate | None = None  # what the decoder waits for
        self._filtered: ChangeRun | None = None  # a run whose keys are not compared yet
        self._side: PostgresLink | None = None  # a connection for comparisons of keys
        self._there = 0  # where the log ended at `open`
        self._looked = 0  # where it ended before the columns were looked at
        self._committed_us = 0  # the time of the last commit that was read
        self._warned: set[str] = set()
        self._away = False

    # -- columns ------------------------------------------------------------------------------------------------------

    @property
    def keys(self) -> Sequence[str]:
        return self._table().keys

    def infer_schema(self) -> pa.Schema:
        return self._table().arrow()

    def scan(self, schema: pa.Schema | None, columns: Sequence[str] | None) -> bool:
        table = self._table()
        names = list(columns if columns is not None else schema.names if schema is not None else table.arrow().names)
        for name in names:
            if name not in table.columns:
                raise UserError(f"{self._where}: it has no column {name}", hint=f"it has {', '.join(table.columns)}")
        found = table.arrow(names)
        for field in schema or ():
            if field.name in names and (kind := found.field(field.name).type) != field.type:
                raise UserError(
                    f"{self._where}: {field.name} is {kind}, and schema= of the stream says {field.type}",
                    hint=f'leave schema= out, and cast: .with_columns({field.name}=col("{field.name}").cast(…))',
                )
        self._scanned = found
        return True

    @property
    def schema(self) -> pa.Schema | None:
        return self._scanned

    def end_at(self, bound: Bound) -> None:
        if bound.asked != "now":
            raise UserError(
                f"{self._where}: until={bound.asked!r} is no place in a table",
                hint='until="now" reads the rows that are there now',
            )
        super().end_at(bound)

    def _table(self) -> CatalogTable:
        """Returns the facts about the table; the first call asks the server."""
        if self._facts is None:
            link = self._link(replication=False)
            try:
                link.connect()
                self._facts = self._read_table(link)
            finally:
                link.close()
        return self._facts

    def _read_table(self, link: PostgresLink) -> CatalogTable:
        table = read_table(link, self._schema_name, self._table_name, self._where)
        check_readable(table, self._where)
        return table

    # -- read ---------------------------------------------------------------------------------------------------------

    def recall(self, memory: Mapping[tuple[str, int], bytes]) -> None:
        self._recalled = memory.get((self.name, 0))

    def open(self, positions: Positions | None, start: str | int = "earliest") -> None:
        self.close()
        recalled, self._recalled = self._recalled, None
        self._reset()
        self._stopped = threading.Event()
        known = (positions or {}).get((self.name, 0))
        self._slot = None
        memory = None if known is None else TableMemory.recalled(recalled, known, self._where)
        if start not in ("earliest", "latest"):
            raise UserError(
                f"{self._where}: start={start!r} is no place in a table",
                hint='"earliest" reads all rows, "latest" only changes',
            )
        link = self._link(replication=not self.bounded)
        try:
            link.connect()
            self._look(link)
            if self.bound is not None:
                self._open_rows(self.bound, known, memory)
            elif known is None or memory is None:
                self._begin(link, rows=start == "earliest")
            else:
                self._resume(link, known, memory)
        except BaseException:
            self.close()
            raise
        finally:
            link.close()

    def _look(self, link: PostgresLink) -> None:
        """Looks at the table, and makes the decoder of its columns."""
        if not self.bounded:
            [(end,)] = link.query("SELECT CASE WHEN pg_is_in_recovery() THEN '0/0' ELSE pg_current_wal_flush_lsn() END")
            self._looked = lsn_of(end)
        table = self._facts = self._read_table(link)
        if self._scanned is None:
            self._scanned = table.arrow()
        names = self._names = [*self._scanned.names, *(key for key in table.keys if key not in self._scanned.names)]
        if missing := [name for name in names if name not in table.columns]:
            raise UserError(f"{self._where}: column {missing[0]} is gone", hint="start the program again")
        kinds = [table.columns[name].kind for name in names]
        columns = table.arrow(names)
        if any(columns.field(field.name) != field for field in self._scanned):
            raise UserError(f"{self._where}: its columns have changed while the app started", hint="start it again")
        self._decoder = ChangeDecoder(columns, kinds, list(table.keys))

    # -- a start ------------------------------------------------------------------------------------------------------

    def _open_rows(self, bound: Bound, known: int | None, memory: TableMemory | None) -> None:
        """Opens the source for the rows that are there now."""
        if memory is not None and not (memory.reading and known == 0) and known != 1:
            raise self._other_mode("has read changes before")
        bound.settle(WholeTable(self.name), [0], [0])
        self._position = known or 0
        self._passes = list(memory.passes) if memory is not None else [Pass(0, [])]
        self._reading = self._position == 0
        if self._reading:
            self._snapshot = self._snapshot_of("", self._passes[-1].last)
        else:
            bound.comes(0, 1)

    def _begin(self, link: PostgresLink, *, rows: bool) -> None:
        """Makes publication and slot, and begins to read."""
        table, slot = self._table(), self._slot_of()
        check_changes(link, table, self._names, self._where)
        self._system, self._timeline = slot.identify(link)
        made = slot.make(link, table, self._names, snapshot=rows)
        try:
            self._position = self._there = made.lsn
            if rows:
                self._passes, self._reading = [Pass(made.lsn, [])], True
                self._snapshot = self._snapshot_of(made.snapshot, [])
            else:
                self._receive()
        except BaseException:
            slot.remove(published=made.published)
            raise
        slot.watch(table, self._names)

    def _resume(self, link: PostgresLink, position: int, memory: TableMemory) -> None:
        table, slot = self._table(), self._slot_of()
        if position <= 1:
            raise self._other_mode("has read rows only, with until=")
        check_changes(link, table, self._names, self._where)
        memory.check_log(slot.identify(link), table, self._where)
        if position > self._looked:
            raise UserError(
                f"{self._where}: the server's log ends at {lsn_text(self._looked)}, before the position {lsn_text(position)} of the "
                "checkpoint: the server has lost changes that it had sent, or an older copy of its files was restored",
                hint=FRESH,
            )
        slot.membership = memory.membership
        slot.check_table(link, table, self._names)
        slot.check(link, position, ends_old=True)
        self._system, self._timeline = memory.system, memory.timeline
        self._position, self._taken, self._commit = position, memory.taken, memory.commit
        self._passes, self._reading = list(memory.passes), memory.reading
        if self._reading:
            self._renew()
        else:
            [(end,)] = link.query("SELECT pg_current_wal_flush_lsn()")
            self._there = max([lsn_of(end), *(each.lsn for each in self._passes)])
            self._receive()
        slot.watch(table, self._names)

    def _other_mode(self, what: str) -> UserError:
        return UserError(f"{self._where}: the app {what}, and the checkpoint has no place for the other", hint=FRESH)

    def _snapshot_of(self, exported: str, after: Sequence[bytes]) -> TableScan:
        """Returns a pass over the rows, under a snapshot of another session, or a new one for ""."""
        link = self._link(replication=False)
        try:
            link.connect()
            check_there(link, self._table(), self._where)
            link.query("SET row_security TO off; SET enable_sort TO off; SET synchronize_seqscans TO off")
            taken = f"SET TRANSACTION SNAPSHOT '{exported}'" if exported else "SELECT 1"  # BEGIN takes none
            link.query(f"BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; {taken}")
            return TableScan(link, self._table(), self._names, after)
        except BaseException:
            link.close()
            raise

    def _renew(self) -> None:
        """Begins another pass over the rows, behind the last key."""
        passes, last = list(self._passes), self._passes[-1].last
        if last == (passes[-2].last if len(passes) > 1 else []):
            passes.pop()  # it has read nothing
        if self.bound is not None:
            lsn, snapshot = 0, self._snapshot_of("", last)
        else:
            link = self._link(replication=True)
            try:
                link.connect()
                made = self._slot_of().temporary(link)
                lsn, snapshot = made.lsn, self._snapshot_of(made.snapshot, last)
            finally:
                link.close()  # and with it the slot; the snapshot stays
        self._snapshot, self._passes, self._there = snapshot, [*passes, Pass(lsn, last)], lsn

    def _receive(self) -> None:
        """Begins to read the changes behind the position."""
        slot, position, before = self._slot_of(), self._position, self._receiver
        ours = 0 if before is None else before.backend
        if before is not None:
            before.close()
        self._connections += 1

        def connect() -> tuple[PostgresLink, float]:
            table = self._table()
            look, link = self._link(replication=False), self._link(replication=True)
            try:
                look.connect()
                slot.check(look, position, ours=ours)
                [(timeout_ms,)] = look.query("SELECT setting FROM pg_settings WHERE name = 'wal_sender_timeout'")
                # The connection of the changes reads no catalog before: a server of version 18 would keep what it has read, and decode
                # rows from before an ALTER TABLE as the table is now, or end with all its connections.
                link.connect()
                memory = TableMemory(self._system, self._timeline, table.oid, [], False, 0, 0)
                memory.check_log(slot.identify(link), table, self._where)
            except BaseException:
                link.close()
                raise
            finally:
                look.close()
            return link, int(timeout_ms) / 1000

        assert self._decoder is not None
        self._decoder.begin(after=position, skip=self._taken)
        self._chunk, self._at, self._stop, self._filtered = WalChunk([], 0, 0), 0, None, None
        self._receiver = WalReceiver(
            connect, slot.name, slot.publication, position, self._stopped, self._where, again=before is not None
        )

    def _explained(self, refusal: ServerRefusal) -> UserError:
        """Returns what a look at table and publication says in place of an error that ends the changes, which has no place and no way
        out; the error itself if they are as they were.
        """
        link = self._link(replication=False)
        try:
            link.connect()
            self._slot_of().check_table(link, self._table(), self._names)
        except TransientError:  # the server is away now
            return refusal
        except UserError as error:
            return error
        finally:
            link.close()
        return refusal

    # -- rows and changes ---------------------------------------------------------------------------------------------

    def read_batch(self, max_rows: int, timeout: float) -> Batch | None:
        if self._decoder is None:
            raise UserError(f"the source of table {self.name} is not open")
        if self.exhausted:
            return None
        if self._slot is not None and self._slot.failure is not None:
            error, behind = self._slot.failure
            if self._reading or self._position >= behind:
                raise error
        until = SYSTEM_CLOCK.monotonic() + timeout
        try:
            batch = self._read_rows(max_rows, until) if self._reading else self._read_changes(max_rows, until)
            if batch is not None and self._away:
                _log.info("%s answers again", self._where)
                self._away = False
            return batch
        except TransientError as error:
            if not self._away:
                _log.warning("%s cannot be read, and is tried again until it answers: %s", self._where, error)
            self._away = True
            self._lost()
            self._stopped.wait(max(0.0, min(until - SYSTEM_CLOCK.monotonic(), _PAUSE_SECONDS)))
            return None

    def _lost(self) -> None:
        """Lets go of connections that have ended, so that the next call makes others."""
        for each in (self._snapshot, self._side):
            if each is not None:
                each.close()
        self._snapshot = self._side = None

    def _read_rows(self, max_rows: int, until: float) -> Batch | None:
        if self._snapshot is None and not self._renewed(until):
            return None
        assert self._snapshot is not None
        assert self._decoder is not None
        messages = self._snapshot.read(max_rows, until - SYSTEM_CLOCK.monotonic())
        if messages is None:
            return None
        if messages:
            self._passes[-1] = Pass(self._passes[-1].lsn, self._snapshot.last)
            run = self._decoder.copy(messages)
            return self._batch(run.rows, run)
        self._snapshot.close()
        self._snapshot, self._reading = None, False
        if self.bound is not None:
            self._position, self._passes = 1, []
            self.bound.comes(0, 1)
        else:
            if len(self._passes) == 1 and self._passes[0].lsn <= self._position:
                self._passes = []  # one snapshot, whose place is that of the slot
            self._receive()
        return self._batch(empty_batch(self._decoder.schema), None)

    def _renewed(self, until: float) -> bool:
        """Returns True if there is another pass. Makes it in a thread, because the server makes a snapshot only when the
        transactions that were under way have ended.
        """
        if self._renewal is None:
            self._renewal = begin_in_thread(self._renew)
        if not wait([self._renewal], max(0.0, until - SYSTEM_CLOCK.monotonic())).done:
            return False
        renewal, self._renewal = self._renewal, None
        renewal.result()
        return True

    def _read_changes(self, max_rows: int, until: float) -> Batch | None:
        assert self._decoder is not None
        while True:
            if self._stop is not None:
                self._decide(self._stop)
                self._stop = None
            if self._filtered is not None:
                run = self._filtered
            elif self._at < len(self._chunk.messages):
                run = self._decoder.decode(self._chunk.messages, self._at, max_rows)
                self._at = run.next
            else:
                if (moved := self._reach(self._chunk.end)) is not None:
                    return moved
                assert self._receiver is not None
                try:
                    chunk = self._receiver.take(max(0.0, until - SYSTEM_CLOCK.monotonic()))
                except ServerRefusal as error:
                    raise self._explained(error) from error
                except TransientError as error:
                    _log.info("%s: %s", self._where, error)
                    self._receive()
                    return None
                if chunk is None:
                    return None
                self._chunk, self._at = chunk, 0
                continue
            kept = self._without_seen(run)
            self._stop = run.stop
            before = self._position
            self._note(run)
            if len(kept) or run.bad or self._position != before:
                return self._batch(kept, run)

    def _reach(self, end: int) -> Batch | None:
        """Moves the position to a place that the server has reached behind all that was read, if no transaction is under way."""
        self._chunk = WalChunk([], 0, 0)
        if self._taken or end <= self._position:
            return None
        self._position = end
        self._pass_over()
        assert self._decoder is not None
        return self._batch(empty_batch(self._decoder.schema), None)

    def _note(self, run: ChangeRun) -> None:
        if run.transactions:
            first = run.transactions[0]
            if self._taken and first.lsn < self._commit:
                raise UserError(
                    f"{self._where}: the transaction behind the position {lsn_text(self._position)} is not that of before: its commit is "
                    f"at {lsn_text(first.lsn)}, and was at {lsn_text(self._commit)}",
                    hint=FRESH,
                )
            self._committed_us = run.transactions[-1].time
        if run.position:
            self._position, self._commit = run.position, 0
        self._taken = run.taken
        if self._taken and run.transactions:
            self._commit = run.transactions[-1].lsn
        self._pass_over()

    def _pass_over(self) -> None:
        """Forgets the passes over the rows when no change is left out any more."""
        if self._passes and self._position >= max(each.lsn for each in self._passes):
            self._passes = []

    def _without_seen(self, run: ChangeRun) -> pa.RecordBatch:
        """Returns the changes without those that the rows of a later pass have already."""
        rows = run.rows
        last = max((each.lsn for each in self._passes), default=0)
        if not len(rows) or not run.transactions or run.transactions[0].lsn >= last:
            return rows
        self._filtered = run
        table = self._table()
        firsts = [each.first for each in run.transactions]
        counts = np.diff([*firsts, len(rows)])
        lsns = np.repeat(np.array([each.lsn for each in run.transactions], np.int64), counts)
        asked = np.flatnonzero(lsns < last)
        if self._side is None:
            self._side = self._link(replication=False)
            self._side.connect()
        keys = rows.select(list(table.keys)).take(pa.array(asked))
        seen = np.zeros(len(rows), bool)
        seen[asked] = in_snapshots(self._side, table, self._passes, keys, lsns[asked])
        self._filtered = None
        return rows.filter(pa.array(~seen))

    def _decide(self, stop: SentRelation | Truncate) -> None:
        table, decoder = self._table(), self._decoder
        assert decoder is not None
        if isinstance(stop, Truncate):
            if table.oid not in stop.relations:
                return
            if self._on_truncate == "ignore":
                _log.warning(
                    "%s: a TRUNCATE is passed over, as on_truncate= says: its rows stay in the state of the app",
                    self._where,
                )
                return
            raise UserError(
                f"{self._where}: a TRUNCATE behind {lsn_text(self._position)} has removed all rows without naming them",
                hint=f'{FRESH}; or on_truncate="ignore", which keeps the rows in the state',
            )
        if stop.oid != table.oid:
            decoder.ignore(stop.oid)
            return
        # Columns that the table has got since the position are null in its rows.
        later = self._position < self._looked
        behind = f"{self._where}: behind {lsn_text(self._position)}"
        decoder.use(stop.oid, places_of(stop, table, self._names, behind, later=later))
        for name in sorted({name for name, *_ in stop.columns} - set(table.columns) - self._warned):
            self._warned.add(name)
            _log.warning("%s: its new column %s is not read: a start of the app takes it", self._where, name)

    def _batch(self, rows: pa.RecordBatch, run: ChangeRun | None) -> Batch:
        assert self._scanned is not None
        bad = None
        if run is not None and run.bad:
            payloads = [each.payload for each in run.bad]
            records = build_records(
                payloads, None, [self._committed_us // 1000] * len(payloads), 0, [self._position] * len(payloads)
            )
            reasons = pa.array([each.reason for each in run.bad], pa.string())
            bad = pa.RecordBatch.from_arrays([*records.columns, reasons], schema=BAD_SCHEMA)
        return Batch(rows.select([*self._scanned.names, OP_COLUMN]), self.positions(), self.name, bad=bad)

    def close(self) -> None:
        self._stopped.set()
        receiver, self._receiver = self._receiver, None
        if receiver is not None:
            receiver.close()
        if self._renewal is not None and wait([self._renewal], _JOIN_SECONDS).done:
            self._renewal = None
        self._lost()
        if self._slot is not None:
            self._slot.close()
        self._decoder = None
        self._away = False

    # -- position -----------------------------------------------------------------------------------------------------

    def positions(self) -> Positions:
        return {(self.name, 0): self._position}

    def remember(self) -> dict[tuple[str, int], bytes]:
        table = self._facts
        memory = TableMemory(
            self._system,
            self._timeline,
            0 if table is None else table.oid,
            self._passes,
            self._reading,
            self._taken,
            self._commit,
            "" if self._slot is None else self._slot.membership,
        )
        return {(self.name, 0): memory.stored()}

    # -- delivery -----------------------------------------------------------------------------------------------------

    def commit(self, positions: Positions) -> None:
        position = positions.get((self.name, 0), 0)
        if self._receiver is not None and position > 1:
            self._receiver.confirm(position)

    # -- facts --------------------------------------------------------------------------------------------------------

    @property
    def exhausted(self) -> bool:
        return self.bound is not None and self._decoder is not None and self.bound.reached

    def lag(self) -> dict[tuple[str, int], int]:
        if self._decoder is None or self._facts is None:
            return {}
        if self._reading:
            share = self._left() / max(1, self._facts.rows)
            return {(self.name, 0): max(1, int(self._facts.bytes * share))}
        receiver = self._receiver
        if receiver is None:
            return {}
        full = receiver.held >= BUFFER_BYTES
        waiting = self._at < len(self._chunk.messages)
        return {(self.name, 0): max(receiver.held, receiver.end - self._position) if full else receiver.held + waiting}

    def backlog(self) -> int:
        if self._reading:
            return max(1, self._left())
        return int(bool(self._passes) or self._position < self._there)

    def _left(self) -> int:
        """Returns an estimate of the rows that are not read yet."""
        snapshot, facts = self._snapshot, self._facts
        return 0 if facts is None else max(0, facts.rows - (0 if snapshot is None else snapshot.rows))

    def figures(self) -> Mapping[str, int | float | str]:
        """Returns the WAL that the server keeps for us, the age of the snapshot, the buffered bytes, and the time of the last commit."""
        found: dict[str, int | float | str] = {} if self._slot is None else dict(self._slot.figures)
        snapshot, receiver = self._snapshot, self._receiver
        if snapshot is not None:
            found["snapshot_seconds"] = SYSTEM_CLOCK.monotonic() - snapshot.began
        if receiver is not None:
            found["buffered_bytes"] = receiver.held
            found["reconnects"] = self._connections - 1
        if self._committed_us:
            found["committed_ms"] = self._committed_us // 1000
        return found

    # -- the server ---------------------------------------------------------------------------------------------------

    @property
    def _where(self) -> str:
        return f"table {self.name} at {self._server.where}"

    @property
    def _owner(self) -> str:
        return f"sabot {self.app} {self.name}"

    def _link(self, *, replication: bool) -> PostgresLink:
        return PostgresLink(self._server, session_of(self._owner), self._stopped, replication=replication)

    def _slot_of(self) -> Slot:
        if self._slot is None:
            name = self._given_slot or slot_name(f"sabot_{self.app}_{self.name.removeprefix('public.')}")
            names = SlotNames(name, self._given_slot is None, self._given_publication, self._owner)
            self._slot = Slot(names, self._link, self._where, self._heartbeat_s)
        return self._slot
