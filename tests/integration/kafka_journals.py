"""What the tests of the journal in a topic share."""

import time
from collections.abc import Callable

from sabot.clock import SYSTEM_CLOCK
from sabot.journal import Position
from sabot.journal.entries import Entry
from sabot.journal.kafka import KafkaJournal, KafkaJournalReader

WAIT = 60.0


def written(journal: KafkaJournal, *entries: Entry) -> Position:
    for entry in entries:
        last = journal.append(entry)
    assert journal.wait_durable(last, WAIT)
    return last


def until(what: Callable[[], bool]) -> None:
    deadline = SYSTEM_CLOCK.monotonic() + WAIT
    while not what():
        assert SYSTEM_CLOCK.monotonic() < deadline
        time.sleep(0.02)


def jobs_of(address: str) -> list[str]:
    """Of all entries, as a reader finds them."""
    reader = KafkaJournalReader(address)
    try:
        return [entry.job for _, entry in reader.read()]
    finally:
        reader.close()
