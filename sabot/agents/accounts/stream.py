"""The rows of a ledger as a stream, read from the journal of the app's jobs."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import msgspec
import pyarrow as pa

from sabot.agents.accounts.contract import LedgerEvent
from sabot.agents.accounts.journal_rows import rows_of
from sabot.journal import JournalReader
from sabot.journal.entries import Entry
from sabot.journal.source import JournalRow, JournalSource

LEDGER_SCHEMA = pa.schema(
    [
        ("at", pa.timestamp("ms", "UTC")),
        ("id", pa.string()),
        ("type", pa.string()),
        ("scope", pa.string()),
        ("principal", pa.string()),
        ("agent", pa.string()),
        ("job", pa.string()),
        ("model", pa.string()),
        ("tool", pa.string()),
        ("calls", pa.int64()),
        ("input_tokens", pa.int64()),
        ("output_tokens", pa.int64()),
        ("tokens", pa.int64()),
        ("cost", pa.float64()),
        ("in_doubt", pa.int64()),
        ("cost_in_doubt", pa.float64()),
    ]
)
"""The columns of the stream. `calls`: the number of model calls; -1 if one in doubt was none. `cost`: US dollars,
or null if the price is not known.
`in_doubt`, `cost_in_doubt`: the most tokens and US dollars of a call of which nobody knows whether it has to be paid.
They are negative in a row with the later result of such a call, because that row takes the upper bound back.
"""

_encode = msgspec.json.Encoder().encode


def ledger_source(name: str, reading: Callable[[], AbstractContextManager[JournalReader]]) -> JournalSource:
    """Returns a stream source that reads the ledger rows in a journal. The rows come in the order in which the
    journal's entries became durable.

    - `name`: the name of the source.
    - `reading`: a function that opens the journal. It returns a context manager that provides a JournalReader.
    """
    return JournalSource(name, reading, lambda entry: list(_rows(entry)))


def _rows(entry: Entry) -> Iterator[JournalRow]:
    for row in rows_of([entry]):
        yield JournalRow(_encode(_fields(row)), row.scope_id.encode(), row.at_ms)


def _fields(row: LedgerEvent) -> dict[str, object]:
    is_tool, in_doubt, doubts = row.type == "tool", row.type == "doubt", row.doubts
    return {
        "at": row.at_ms,
        "id": row.event_id,
        "type": row.type,
        "scope": row.scope_id,
        "principal": row.principal_id,
        "agent": row.agent,
        "job": row.job_id,
        "model": "" if is_tool else row.name,
        "tool": row.name if is_tool else "",
        "calls": row.adds.calls,
        "input_tokens": row.input_tokens,
        "output_tokens": row.output_tokens,
        "tokens": row.total_tokens,
        "cost": None if is_tool or in_doubt or row.cost is None else float(row.cost),
        "in_doubt": doubts.tokens,
        "cost_in_doubt": float(doubts.cost),
    }
