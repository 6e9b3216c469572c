"""Which tasks of an app's streams run in this process, and how rows reach those that run in others."""

from typing import Protocol

import pyarrow as pa

from sabot._cython.flow.channel import Channel
from sabot.plan import Plan


class PausableReaders(Protocol):
    """Readers that stand still while somebody behind them has no room."""

    def pause_for(self, name: str) -> None:
        """Reads no more until `resume_for` is called with the same name. From any thread."""

    def resume_for(self, name: str) -> None:
        """No longer waits for this name. From any thread."""


class TaskPlacement(Protocol):
    """Where the tasks of an app are, as one of its processes sees them. `Build` asks it."""

    whole: bool
    """Every task of the app is in this process."""

    def is_here(self, task: str) -> bool:
        """Whether this process runs the task."""

    def agree(self, plan: Plan) -> None:
        """Called with the plan of this process before anything of it is opened. Raises where it is not that of the whole app."""

    def columns_of(self, stream: str) -> pa.Schema | None:
        """The columns of a stream that were inferred for the whole app; None: this process infers them."""

    def arrives(self, edge: str, channel: Channel) -> None:
        """What a task of another process sends along this edge goes into the channel."""

    def leaves(self, edge: str, channel: Channel, task: str) -> None:
        """What comes into the channel goes along this edge, to the process that runs the task."""

    def readers_elsewhere(self, stage: str) -> PausableReaders | None:
        """The readers of other processes whose rows reach this stage. None: there are no other processes."""

    def has_first(self, stage: str, task: str) -> None:
        """A task of this process has processed the input for which sources of the others wait. From the task's thread."""


class SingleProcess:
    """The spread of an app that runs in one process."""

    whole = True

    def is_here(self, task: str) -> bool:
        """Always."""
        return True

    def agree(self, plan: Plan) -> None:
        """There is no other plan."""

    def columns_of(self, stream: str) -> pa.Schema | None:
        """None: they are inferred here."""
        return None

    def arrives(self, edge: str, channel: Channel) -> None:
        """Not called."""
        raise NotImplementedError

    def leaves(self, edge: str, channel: Channel, task: str) -> None:
        """Not called."""
        raise NotImplementedError

    def readers_elsewhere(self, stage: str) -> PausableReaders | None:
        """There are none."""
        return None

    def has_first(self, stage: str, task: str) -> None:
        """Nobody else waits."""
