"""The table that a step of a stream keeps, as a checkpoint has it, as a source of rows."""

from collections.abc import Callable
from functools import cached_property
from typing import TypeAlias

import pyarrow as pa

from sabot._cython.arrow.batch import Batch
from sabot._cython.groups.partition import KEY_GROUPS
from sabot.connectors.base import Bounded, Positions, Source
from sabot.engine.checkpoint.manifest import Manifest
from sabot.engine.checkpoint.state_reads import groups_for
from sabot.engine.operators.reading import columns_of_table, keys_of_table, parts_of, table_of

_ROWS_AT_ONCE = 100_000

Clean: TypeAlias = Callable[[pa.RecordBatch], pa.RecordBatch]


class SavedTable(Source, Bounded):
    """The rows of the table that the operator `id` keeps, as they were at a checkpoint.

    They are read by key group, so that about `_ROWS_AT_ONCE` rows are in memory at once; the rows of a table without keys are all
    read together. The files of the state are linked or fetched here, and so are still there when the app has removed the
    checkpoint. `columns`: those of the table. `clean`: changes the rows as they are read, but not their columns.
    """

    def __init__(self, manifest: Manifest, id: str, columns: pa.Schema, clean: Clean | None = None) -> None:
        self.name = id
        self._manifest, self._columns, self._clean = manifest, columns, clean
        self._groups = range(0)
        self._left = columns.empty_table()
        self._rows = 0
        self._only: pa.RecordBatch | None = None
        parts_of(manifest, id)

    @cached_property
    def keys(self) -> pa.Schema:
        """The key columns, by which single rows can be read; none if the table has no such columns."""
        return keys_of_table(self._manifest, self.name, self._columns)

    def read_only(self, keys: pa.RecordBatch) -> None:
        """Lets `read_batch` give the rows of these keys, which are rows of the columns `keys`; rows of other keys may be among them.
        Called before `open`.
        """
        self._only = keys

    @property
    def schema(self) -> pa.Schema:
        return self._columns

    def open(self, positions: Positions | None, start: str | int = "earliest") -> None:
        at_once = KEY_GROUPS if self._only is not None else groups_for(self._manifest, self.name, _ROWS_AT_ONCE)
        self._groups = range(0, KEY_GROUPS, at_once)

    def read_batch(self, max_rows: int, timeout: float) -> Batch | None:
        while not self._left.num_rows and self._groups:
            begin, step, self._groups = self._groups[0], self._groups.step, self._groups[1:]
            groups = range(begin, min(begin + step, KEY_GROUPS))
            self._left = table_of(self._manifest, self.name, groups, self._only)
        if not self._left.num_rows:
            return None
        batch = self._left.to_batches(max_chunksize=max_rows)[0]
        self._left = self._left.slice(batch.num_rows)
        self._rows += batch.num_rows
        return Batch(batch if self._clean is None else self._clean(batch), self.positions(), self.name)

    @property
    def exhausted(self) -> bool:
        return not self._left.num_rows and not self._groups

    def positions(self) -> Positions:
        return {(self.name, 0): self._rows}

    def close(self) -> None:
        """Does nothing: the files of the state stay until the checkpoints are released."""


def saved_tables(manifest: Manifest) -> dict[str, tuple[str, str, pa.Schema]]:
    """Returns, for each table that a step keeps in a checkpoint, by the id of the step: the path that its rows have come (see
    `plan.paths`), the text of the step, and the columns of the table.
    """
    found: dict[str, tuple[str, str, pa.Schema]] = {}
    for task in manifest.tasks.values():
        for id, facts in task.meta.get("operators", {}).items():
            if id not in found and facts.get("path"):
                columns = columns_of_table(manifest, id)
                if columns is not None:
                    found[id] = facts["path"], task.meta["texts"].get(id, id), columns
    return found
