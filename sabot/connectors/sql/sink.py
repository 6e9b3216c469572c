"""`SqlSink`: writes rows into the columns of a table, and decides when a transaction begins and ends."""

import logging
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from sabot._cython.arrow.batch import Batch, normalise
from sabot._cython.groups.partition import hash_columns
from sabot.base.arrays import empty_batch
from sabot.base.checks import FLAG, TEXT, TEXTS, check
from sabot.base.quantities import counted_words
from sabot.base.redaction import has_password, keep_url, redacted_url
from sabot.codecs.engine_columns import DELETE
from sabot.codecs.records import RECORD_SCHEMA, carries_changes, check_keys, refuse_types
from sabot.connectors.base import KeepsToken, LostFloats, Sink, TakesChanges, Token, Track
from sabot.connectors.checks import SCHEMA
from sabot.connectors.sql.database import Database, FileDatabase
from sabot.connectors.sql.duckdb import DuckDatabase
from sabot.connectors.sql.postgres import PostgresDatabase
from sabot.connectors.sql.rows import Columns, decoded_records, inferred_schema, last_of_each_key
from sabot.connectors.sql.sqlite import SqliteDatabase
from sabot.engine.letters.form import as_columns
from sabot.engine.letters.refused import parted, refused_in
from sabot.errors import RowErrors, UserError

_log = logging.getLogger(__name__)

_KEYS_AT_A_TIME = 10_000

_FILES: dict[str, type[FileDatabase]] = {"sqlite": SqliteDatabase, "duckdb": DuckDatabase}
_HINT = (
    "write sqlite:///absolute/path.db, sqlite:relative/path.db, duckdb:///absolute/path.duckdb, duckdb:relative/path.duckdb or "
    "postgresql://user@host/database"
)


class SqlSink(Sink, TakesChanges, KeepsToken):
    """A sink that writes rows into a table: `SqlSink("sqlite:///var/lib/alerts.db", table="alerts")`.

    `url`: sqlite:///absolute/path.db or sqlite:relative/path.db, the same with duckdb: (`sabot[duckdb]`), or
    postgresql://user@host/database with any parameters of libpq. `table`: the name of the table, for PostgreSQL and
    DuckDB with its schema, if any ("sales.alerts"). `keys`: columns
    whose values identify a row: a row replaces the one with the same values. They need a unique index, and no value
    may be null. `schema`: the columns, if the plan does not know them. `evolve`: True to add columns that come and that
    an existing table lacks; they are null in its rows. `overwrite`: True to delete all rows of the table when the app
    starts without a checkpoint, in the transaction that opens the table. When a table of the app is written again
    (`--reemit`), the rows whose keys it does not have any more are then deleted too.

    The table is made if it is missing. An existing table keeps its rows; without `evolve` it must have the columns that
    come. Agents' results are JSON objects: their fields are columns; without a table and a schema, their types are those of the
    first results.

    Changes are accepted: the unique key of the changes becomes `keys`. An insert or update writes the row of its key,
    and a delete removes it. Of several changes of one key in a batch only the last is executed.

    Exactly once: the rows of a part and its token (table `sabot_tokens`) are one transaction. At least once: each
    batch is one.
    """

    format = None

    def __init__(
        self,
        url: str,
        table: str,
        *,
        keys: Sequence[str] = (),
        schema: pa.Schema | None = None,
        evolve: bool = False,
        overwrite: bool = False,
    ) -> None:
        if isinstance(keys, str):
            raise UserError(f"table {table}: keys={keys!r} is no list", hint=f"keys=[{keys!r}]")
        check("SqlSink: table", table, TEXT)
        check("SqlSink: keys", keys, TEXTS)
        check("SqlSink: schema", schema, SCHEMA)
        check("SqlSink: evolve", evolve, FLAG)
        check("SqlSink: overwrite", overwrite, FLAG)
        self.name = table
        self.url = str(url)
        self.evolve = evolve
        self._overwrite = overwrite
        self._keys = list(keys)
        self._schema = schema
        self._database = database_of(self.url, table, keys)
        self._track: Track | None = None
        self._owner = ""  # the name under which this sink has claimed the track, from its first claim until `close`
        self._fitting: pa.Schema | None = None  # the last schema whose columns were found in the table
        self._columns: Columns | None = None
        self._told: set[str] = set()
        self._left: Sequence[str] = ()  # columns that the app has written before, and does not write any more
        self._changes = False  # changes are written, not only rows
        self._afresh = False  # the app starts without a checkpoint, and nothing was written since
        self._begins = False  # the table is checked, and nothing was written since

    # -- the contract --------------------------------------------------------------------------------------------------

    @property
    def address(self) -> str:
        return f"{self._database.where}/{self.name}"

    def check_types(self, schema: pa.Schema) -> None:
        refuse_types(schema, lambda empty: self._database.try_types(normalise(empty)), f"table {self.name}", "SQL")

    def floats_lost(self, kind: pa.DataType) -> LostFloats:
        return self._database.floats_lost(kind)

    def start_afresh(self) -> None:
        self._afresh = True

    def expect(self, schema: pa.Schema) -> None:
        if self._schema is None:
            self._schema = schema

    def expect_no_more(self, columns: Sequence[str]) -> None:
        self._left = list(columns)

    def missing_columns(self, schema: pa.Schema) -> list[str] | None:
        if not self._database.exists:
            return None
        self._fitting = self._columns = None
        self._database.connect_to_read()
        try:
            with self._database.explained():
                known = self._table() is not None
                return [field.name for field in self._missing(schema)] if known else None
        finally:
            self._database.close()

    def misfit(self, schema: pa.Schema) -> str:
        if not self._database.exists:
            return ""
        self._fitting = self._columns = None
        self._database.connect_to_read()
        try:
            with self._database.explained():
                return "" if self._table() is None else self._unfit(schema)
        finally:
            self._database.close()

    def expect_changes(self, schema: pa.Schema, keys: Sequence[str]) -> None:
        if not keys:
            raise UserError(
                f"table {self.name}: changes without a key came, so it is unknown which rows they replace",
                hint="give the result a column that is the same in all rows, and group by it",
            )
        if self._keys and set(self._keys) != set(keys):
            raise UserError(
                f"table {self.name}: keys are {', '.join(self._keys)}, but the unique key of the rows is {', '.join(keys)}",
                hint=f"leave keys= out, or write .upsert({', '.join(map(repr, self._keys))}) before .to()",
            )
        self.expect(schema)
        self._keys = self._database.keys = self._keys or list(keys)
        self._changes = True

    def open(self) -> None:
        self._track = None
        self._connect("")
        with self._database.transaction():
            self._check()
        self._begins = True

    def write(self, batch: Batch) -> None:
        data = batch.taken()
        if data.num_rows == 0:
            return
        self._check_values(data)
        with self._writing(keep=True), self._explained():
            self._insert([data])

    def flush(self) -> None:
        """Prepares the table if no row has come so far. Else does nothing: `write` returns when rows are in the table."""
        if self._begins:
            with self._writing():
                pass
        self._database.release()

    def known(self, track: Track) -> Token | None:
        self._connect("")
        try:
            with self._database.transaction():
                return self._database.known(track)
        finally:
            self._database.close()

    def claim(self, track: Track) -> Token | None:
        again = track == self._track
        if not again:
            self._owner = f"sabot-{uuid.uuid4().hex}"
        self._connect(self._owner)
        with self._database.transaction():
            token = self._database.claim(track, self._owner, again=again)
            self._check()
        self._begins = True
        self._track = track
        return token

    def fitting(self, data: pa.RecordBatch) -> pa.RecordBatch:
        """Returns the rows, after the checks that need no database: names, keys that are null, and values that the table
        cannot hold. Records are not checked.
        """
        if not data.schema.equals(RECORD_SCHEMA):
            rows = data.select(data.schema.names[:-1]) if carries_changes(data.schema) else data
            self._check_names(rows.schema)
            self._check_keys(rows)
            self._check_values(rows)
        return data

    def _check_values(self, rows: pa.RecordBatch) -> None:
        """Raises RowErrors for values that the table cannot hold, or would round. Records are not checked."""
        if rows.schema.equals(RECORD_SCHEMA):
            return
        if wrong := self._database.refused(normalise(as_columns(rows))):
            raise RowErrors({row: f"table {self.name}: {why}" for row, why in wrong.items()})

    def refused_rows(self, batches: Sequence[pa.RecordBatch]) -> Mapping[int, str]:
        """Returns the rows that the table refuses, in a transaction that is rolled back: constraints, triggers, and types
        that only the database knows.
        """
        self._connect(self._owner if self._track is not None else "")
        with self._database.trial(), self._explained():
            if self._begins:
                self._prepare()
            found = self._refused_in(batches)
        self._fitting = self._columns = None
        if self._track is None:  # `write` goes on
            self._connect("")
        return found

    def _refused_in(self, batches: Sequence[pa.RecordBatch]) -> dict[int, str]:
        """Returns the rows that the table refuses. Those that repeat a unique value need no attempts if the database finds
        them at once (`Database.repeated`).
        """
        again = self._repeated(batches)
        if not again:
            return refused_in(batches, self._attempted)
        others = [row for row in range(sum(batch.num_rows for batch in batches)) if row not in again]
        refused = refused_in(parted(batches, again), self._attempted)
        found = {others[number]: why for number, why in refused.items()}
        unsure: set[int] = set()  # the rows that repeat only values of rows which are refused themselves, or may be
        for row in sorted(again):
            why = next(
                (why for why, first in again[row] if first is None or not (first in found or first in unsure)), ""
            )
            if why:
                found[row] = why
            else:
                unsure.add(row)
        if unsure:
            refused = refused_in(parted(batches, {*others, *again} - unsure), self._attempted)
            numbers = sorted(unsure)
            found |= {numbers[number]: why for number, why in refused.items()}
        return found

    def _repeated(self, batches: Sequence[pa.RecordBatch]) -> Mapping[int, Sequence[tuple[str, int | None]]]:
        coming = [normalise(as_columns(batch)) for batch in batches if batch.num_rows]
        schema = coming[0].schema if coming else RECORD_SCHEMA
        if self._keys or schema.equals(RECORD_SCHEMA) or any(not each.schema.equals(schema) for each in coming):
            return {}
        return {} if self._table() is None else self._database.repeated(pa.concat_batches(coming))

    def _attempted(self, data: pa.RecordBatch) -> None:
        if not data.num_rows and data.schema.equals(RECORD_SCHEMA):
            return  # their columns are known by their payloads
        try:
            with self._database.attempt(), self._explained():
                self._insert([data])
        except UserError:
            self._fitting = self._columns = None  # the table may have been made, and is not there any more
            raise

    def deliver(self, seq: int, batches: Sequence[pa.RecordBatch]) -> None:
        track = self._claimed()
        with self._writing():
            if self._database.advance(track, self._owner, seq):
                with self._explained():
                    self._insert([batch for batch in batches if batch.num_rows])

    def settle(self, seq: int) -> None:
        track = self._claimed()
        with self._writing():
            self._database.advance(track, self._owner, seq, anyhow=True)

    def close(self) -> None:
        self._track, self._begins = None, False
        self._database.close()

    # -- keys of the table ---------------------------------------------------------------------------------------------

    @property
    def keys(self) -> Sequence[str]:
        """The columns whose values identify a row. For changes, they are known when the sink is open."""
        return self._keys

    @property
    def overwrites(self) -> bool:
        """True if the sink may delete rows that it has not written."""
        return self._overwrite

    def keys_besides(self, known: pa.Array, kinds: pa.Schema) -> pa.RecordBatch | None:
        """Returns the keys of the rows of the table whose hashes (`hash_columns`) are not in `known`, or None for keys
        of these types, which a database may return as other values. Reads the whole table, on a connection of its own.
        """
        if not all(pa.types.is_integer(kind) or pa.types.is_string(kind) for kind in kinds.types):
            return None
        database = database_of(self.url, self.name, self._keys)
        names, mark = ", ".join(map(database.column, self._keys)), database.mark
        marks = ", ".join([mark] * len(self._keys))
        found: list[pa.RecordBatch] = []
        after: tuple[object, ...] = ()
        database.connect_to_read()
        try:
            with database.explained():
                while True:
                    where = f" WHERE ({names}) > ({marks})" if after else ""
                    statement = f"SELECT {names} FROM {database.name}{where} ORDER BY {names} LIMIT {_KEYS_AT_A_TIME}"
                    _, rows = database.run(statement, after)
                    values = list(zip(*rows, strict=True)) or [()] * len(kinds)
                    keys = pa.RecordBatch.from_arrays(list(map(pa.array, values, kinds.types)), schema=kinds)
                    if rows:
                        found.append(keys.filter(pc.invert(pc.is_in(hash_columns(keys.columns), known))))
                    if len(rows) < _KEYS_AT_A_TIME:
                        return pa.concat_batches(found) if found else keys
                    after = rows[-1]
        finally:
            database.close()

    # -- the connection ------------------------------------------------------------------------------------------------

    def _connect(self, session: str) -> None:
        self._fitting = self._columns = None  # another process may have changed the table
        self._database.connect(session)

    def _claimed(self) -> Track:
        if self._track is None:
            raise UserError(f"the sink of table {self.name} is not open: no track was claimed")
        return self._track

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Raises Arrow's errors as UserError, because a value that Arrow cannot convert is a fault of the column."""
        try:
            yield
        except pa.ArrowException as error:
            raise UserError(
                f"table {self.name}: {error}", hint="cast the column, or leave it out (select), before the sink"
            ) from error

    # -- the table -----------------------------------------------------------------------------------------------------

    def _check(self) -> None:
        """Raises UserError for a table that cannot take the rows, as far as that is known before there are rows. Changes
        nothing.
        """
        if (schema := self._expected()) is not None:
            self._check_names(schema)
            if self._table() is not None:
                self._lacking(schema)
                if why := self._unfit(schema):
                    raise UserError(
                        f"table {self.name} of {self._database.where}: {why}",
                        hint="cast the column before the sink, or give another table",
                    )
                if self._keys:
                    self._database.check_keys()

    def _expected(self) -> pa.Schema | None:
        """Returns the columns that will come, or None if they are not known."""
        if self._schema is None or self._schema.equals(RECORD_SCHEMA):
            return None
        return normalise(empty_batch(self._schema)).schema

    @contextmanager
    def _writing(self, *, keep: bool = False) -> Iterator[None]:
        """Runs the block in a transaction (`keep`: as there). The first one also prepares the table."""
        with self._database.transaction(keep=keep):
            if self._begins:
                self._prepare()
            yield
        self._begins = self._afresh = False

    def _prepare(self) -> None:
        """Makes the table, or adds columns that it lacks. At a start without a checkpoint, deletes the rows of an earlier
        run, or logs that they are kept.
        """
        if self._afresh and self._table() is not None:
            if self._overwrite:
                deleted, _ = self._database.run(f"DELETE FROM {self._database.name}")
                _log.info(
                    "table %s: deleted %s of earlier runs, as overwrite= says", self.name, counted_words(deleted, "row")
                )
            elif not self._keys and self._database.has_rows():
                _log.warning(
                    "table %s has rows already, and this start without a checkpoint adds to them (overwrite=True begins empty; keys= "
                    "replaces rows)",
                    self.name,
                )
        if (schema := self._expected()) is not None:
            self._fit(schema)

    def _insert(self, batches: Sequence[pa.RecordBatch]) -> None:
        for place, batch in enumerate(batches):
            data = normalise(as_columns(batch))
            if data.schema.equals(RECORD_SCHEMA):
                if self._table() is None:
                    self._fit(inferred_schema([each for each in batches[place:] if each.schema.equals(RECORD_SCHEMA)]))
                data = decoded_records(data, self._table() or {}, self.name, self._told)
            if carries_changes(data.schema):
                self._change(data)
                continue
            self._fit(data.schema)
            self._check_keys(data)
            self._database.insert(data)

    def _change(self, data: pa.RecordBatch) -> None:
        """Executes the last change of each key, where keys are one if they are equal in the database. Deletes come
        first, because another key may take over a value in a unique column.
        """
        rows = data.select(data.schema.names[:-1])
        if not self._changes:
            raise UserError(
                f"table {self.name}: the checkpoint has changes, but the rows of this program are final",
                hint="run the program that wrote them until they are delivered; or drop them: redeliver=skip",
            )
        self._fit(rows.schema)
        self._check_keys(rows)
        last = last_of_each_key(data, self._keys)
        ends = pc.equal(last.column(last.num_columns - 1), pa.scalar(DELETE, pa.int8()))
        if 0 < ends.true_count < last.num_rows:
            equal = self._database.last_of_equal(normalise(last.select(self._keys)))
            if equal is not None and len(equal) < last.num_rows:
                last, ends = last.take(pa.array(equal)), ends.take(pa.array(equal))
        going = last.filter(ends).select(self._keys)
        if going.num_rows:
            self._database.delete(going)
        coming = last.filter(pc.invert(ends)).select(rows.schema.names)
        if coming.num_rows:
            self._database.insert(coming)

    def _table(self) -> Columns | None:
        if self._columns is None:
            self._columns = self._database.columns()
        return self._columns

    def _fit(self, schema: pa.Schema) -> None:
        """Makes the table with these columns, or checks that an existing table has them. Raises UserError, which
        names the missing columns.
        """
        if self._fitting is not None and schema.equals(self._fitting):
            return
        self._check_names(schema)
        if self._table() is None:
            self._database.create(schema)
        if missing := self._lacking(schema):
            self._database.add_columns(missing)
            self._columns = None
            _log.info(
                "table %s of %s lacked %s, which is added, as evolve= says",
                *(self.name, self._database.where, _with_types(missing)),
            )
        if self._keys:
            self._database.check_keys()
        same = self._database.same_column
        coming, known = set(map(same, schema.names)), set(map(same, self._table() or ()))
        self._database.left = [name for name in self._left if same(name) in known - coming]
        self._fitting = schema

    def _unfit(self, schema: pa.Schema) -> str:
        """Returns which column of the table cannot take the values that come, or ""."""
        found = [(field, self._database.misfit(field)) for field in schema]
        return next((f"its column {field.name} is {own}, and {field.type} comes" for field, own in found if own), "")

    def _lacking(self, schema: pa.Schema) -> pa.Schema:
        """Returns those columns that have to be added to the table. Raises UserError if they may not be added."""
        missing = self._missing(schema)
        if missing and not self.evolve:
            raise UserError(
                f"table {self.name} of {self._database.where} has no column {_with_types(missing)}",
                hint="SqlSink(…, evolve=True) adds the column; or give another table, or leave it out (select) before the sink",
            )
        return missing

    def _missing(self, schema: pa.Schema) -> pa.Schema:
        """Returns those columns that the table lacks."""
        same = self._database.same_column
        columns = {same(name) for name in self._table() or ()}
        return pa.schema([field for field in schema if same(field.name) not in columns])

    def _check_keys(self, data: pa.RecordBatch) -> None:
        check_keys(data, self._keys, f"table {self.name}")

    def _check_names(self, schema: pa.Schema) -> None:
        same = self._database.same_column
        coming = [same(name) for name in schema.names]
        if not coming or len(set(coming)) < len(coming):
            raise UserError(
                f"table {self.name}: {'rows without a column' if not coming else 'two columns of one name'} came",
                hint=f"the columns are {', '.join(schema.names)}" if coming else "results are objects, not empty ones",
            )
        unknown = [key for key in self._keys if key not in schema.names]
        if unknown:
            raise UserError(
                f"table {self.name}: keys: there is no column {', '.join(unknown)}",
                hint=f"the columns are {', '.join(schema.names)}",
            )


def _with_types(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name} ({field.type})" for field in schema)


def database_of(url: str, table: str, keys: Sequence[str]) -> Database:
    """Returns the database at this address, not connected. Raises UserError."""
    scheme, separator, rest = url.partition(":")
    if scheme not in _FILES or has_password(url):
        keep_url(url)
    if scheme in ("postgresql", "postgres") and separator:
        return PostgresDatabase(url, table, keys)
    if scheme not in _FILES or not separator:
        begins = (
            f"begins with {scheme[:20]!r}"
            if re.fullmatch(r"[A-Za-z][\w+.-]*", scheme) and separator
            else "has no scheme"
        )
        raise UserError(f"table {table}: its database's address {begins}", hint=_HINT)
    if rest.startswith("//") and not rest.startswith("///"):
        path = redacted_url(rest[2:])
        raise UserError(f"'{scheme}://{path}' is no absolute path", hint=f"write {scheme}:///{path} or {scheme}:{path}")
    path = rest[2:] if rest.startswith("///") else rest
    if not path.strip("/") or path.endswith(("/", ":memory:")) or rest.startswith("md:"):
        raise UserError(f"{redacted_url(url)!r} names no file", hint=_HINT)
    return _FILES[scheme](Path(path).expanduser(), table, keys)
