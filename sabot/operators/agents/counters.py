"""The counters of an agent."""

from typing import Protocol


class Counters(Protocol):
    """The counters of an agent that continue over restarts, because a checkpoint keeps them."""

    messages_processed: int
    errors_count: int
    dead_letters: int
    last_message_time: float | None
