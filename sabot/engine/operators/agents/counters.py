"""The counters of an agent."""

from typing import Protocol


class Counters(Protocol):
    """The counters of an agent. A checkpoint saves them, so they continue over restarts."""

    messages_processed: int
    errors_count: int
    dead_letters: int
    last_message_time: float | None
