"""What is counted of an agent."""

from typing import Protocol


class Counters(Protocol):
    """The figures of an agent that outlive a run: a checkpoint keeps them."""

    messages_processed: int
    errors_count: int
    dead_letters: int
    last_message_time: float | None
