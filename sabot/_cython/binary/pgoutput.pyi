from collections.abc import Sequence

import pyarrow as pa

KINDS: frozenset[str]
"""The kinds of values that are no lists or ranges."""

class SentRelation:
    """A table as it is from here on. `identity`: its replica identity, "d", "n", "f" or "i". `columns`: for each its name, the
    oid and the modifier of its type, and True if it is a part of the identity.
    """

    oid: int
    schema: str
    table: str
    identity: str
    columns: list[tuple[str, int, int, bool]]

class Truncate:
    """All rows of these tables were removed."""

    relations: list[int]
    cascade: bool
    restart: bool

class SentTransaction:
    """A transaction with rows in a run. `first`: the index in `rows` of the first of its rows that are in this run. `lsn`: of its commit
    record. `time`: of its commit, in us since 1970.
    """

    first: int
    lsn: int
    time: int
    xid: int

class BadChange:
    """A row that Arrow does not have. `row`: the index in `rows` before which it would be. `message`: the index of its message. `payload`:
    the columns that were asked for as an object of JSON, with each value as PostgreSQL's text.
    """

    row: int
    message: int
    column: str
    reason: str
    payload: bytes

class ChangeRun:
    """What was decoded in one call.

    `next`: the messages before this index are done. `stop`: the last of them, if it is a table or a truncation, on which the caller
    decides; else None. `position`: the LSN behind the last transaction that ended, 0 if none did. `taken`: the rows, good and bad, that
    were given so far of the transaction that is open now; before it has begun, those that `begin` skips of it.
    """

    rows: pa.RecordBatch
    bad: list[BadChange]
    next: int
    stop: SentRelation | Truncate | None
    position: int
    taken: int
    transactions: list[SentTransaction]

class ChangeDecoder:
    """Decodes the changes of a table of PostgreSQL: messages of pgoutput (protocol 1, with the option binary), and rows of COPY
    (FORMAT binary). Has one owner thread.

    An insertion gives INSERT; an update UPDATE_AFTER, or DELETE of the old key and INSERT if the key changed; a deletion DELETE,
    with nulls in all columns but the keys. An unchanged value that the update does not have is taken from the old row (REPLICA
    IDENTITY FULL).

    These make a row bad, and decoding goes on: NaN and infinities of decimals, infinite dates and times, 24:00:00, times after
    the year 294246, arrays of several dimensions, text that is not UTF-8, a decimal with more digits than its type, null in a column
    that is not nullable, an unchanged value that is nowhere in the message.
    """

    schema: pa.Schema
    """The columns, and OP_COLUMN."""

    def __init__(self, columns: pa.Schema, kinds: Sequence[str], keys: Sequence[str]) -> None:
        """`kinds`: of each column, as `connectors/postgres/types.py` gives it: a member of KINDS, "list KIND", "range KIND", "multirange
        KIND" or "list range KIND". `keys`: the columns of the replica identity that name a row. All other columns have to be nullable.
        Raises TypeError for a kind that does not fit its column, ValueError for the keys.
        """
    def use(self, relation: int, places: Sequence[int]) -> None:
        """Decodes the rows of a relation from now on. `places`: for each of its columns the index of ours, or -1. Columns of ours that it
        does not have are null. Raises ValueError if a key is among these, or an index comes twice.
        """
    def ignore(self, relation: int) -> None:
        """Passes over the rows of a relation from now on."""
    def begin(self, after: int = 0, skip: int = 0) -> None:
        """Forgets relations and transactions, for a new connection. Transactions whose commit record is before `after` are passed
        over, and so are the first `skip` rows of the next one.
        """
    def decode(self, messages: Sequence[bytes], first: int = 0, max_rows: int = 10_000) -> ChangeRun:
        """Decodes messages[first:], each an XLogData with its header (and no keep-alive), until `max_rows` rows, a SentRelation or a
        Truncate. May end before that and before the last message: see `next`.

        The GIL is released. Raises ValueError, with the message and the byte, for bytes that no server sends; nothing of the call then
        counts. Raises OverflowError if a column would take more than 2 GiB.
        """
    def copy(self, messages: Sequence[bytes]) -> ChangeRun:
        """Decodes the rows of messages of COPY, whose columns are ours, in their order. The signature before the first row, and the end
        behind the last one, are passed over. Raises as `decode` does.
        """
