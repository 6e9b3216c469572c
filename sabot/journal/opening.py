"""The home of a journal by its address, as the command line takes it: a path is that of a journal in SQLite."""

from pathlib import Path

from sabot.clock import SYSTEM_CLOCK, Clock
from sabot.errors import UserError
from sabot.journal.base import Inbox, JournalReader
from sabot.journal.sqlite import SqliteInbox, SqliteReader
from sabot.redaction import keep_url, redacted_url

__all__ = ["open_inbox", "open_reader"]


def open_reader(address: Path | str) -> JournalReader:
    """A reader of the journal at an address. Raises UserError where there is none, or for an address of no home that we know."""
    _check(address)
    return SqliteReader(address)


def open_inbox(address: Path | str, *, clock: Clock = SYSTEM_CLOCK) -> Inbox:
    """An inbox of the journal at an address. Raises as `open_reader`."""
    _check(address)
    return SqliteInbox(address, clock=clock)


def _check(address: Path | str) -> None:
    if isinstance(address, str) and "://" in address:
        keep_url(address)
        raise UserError(
            f"{redacted_url(address)}: no journal has such an address",
            hint="give a path: of a journal.db, its folder, or a state directory",
        )
