"""The placement of an app's stream tasks: which of them run in this process, and how rows reach those in other
processes.
"""

from abc import ABC, abstractmethod

import pyarrow as pa

from sabot._cython.flow.channel import Channel
from sabot.engine.plan import Plan


class PausableReaders(ABC):
    """Readers that pause while a downstream task has no room."""

    @abstractmethod
    def pause_for(self, name: str) -> None:
        """Pauses reading until `resume_for` is called with the same name. Several names may pause at once. From any
        thread.
        """

    @abstractmethod
    def resume_for(self, name: str) -> None:
        """Ends the pause for this name. From any thread."""


class TaskPlacement:
    """The placement of the tasks of an app, as one of its processes sees it. `Build` uses it. This class is that of an
    app in one process.
    """

    whole = True
    """True if every task of the app is in this process."""

    def is_here(self, task: str) -> bool:
        """Returns True if this process runs the task."""
        return True

    def agree(self, plan: Plan) -> None:
        """Compares the plan of this process with that of the whole app. Called before anything of the plan is opened.
        Raises an error if they differ.
        """

    def columns_of(self, stream: str) -> pa.Schema | None:
        """Returns the columns of a stream that were inferred for the whole app, or None if this process infers them."""
        return None

    def arrives(self, edge: str, channel: Channel) -> None:
        """Puts the elements of this edge, which a task of another process sends, into the channel."""
        raise NotImplementedError  # no edge comes from another process

    def leaves(self, edge: str, channel: Channel, task: str) -> None:
        """Sends the elements of the channel along this edge to `task`, which runs in another process."""
        raise NotImplementedError

    def readers_elsewhere(self, stage: str) -> PausableReaders | None:
        """Returns the readers in other processes whose rows reach this stage, or None if there are no other
        processes.
        """
        return None

    def has_first(self, stage: str, task: str) -> None:
        """Notifies the other processes that a task of this process has processed the input for which their sources
        wait. Called in the task's thread.
        """
