"""The placement of an app's stream tasks: which of them run in this process, and how rows reach those in other
processes.
"""

from typing import Protocol

import pyarrow as pa

from sabot._cython.flow.channel import Channel
from sabot.engine.plan import Plan


class PausableReaders(Protocol):
    """Readers that pause while a downstream task has no room."""

    def pause_for(self, name: str) -> None:
        """Pauses reading until `resume_for` is called with the same name. Several names may pause at once. From any
        thread.
        """

    def resume_for(self, name: str) -> None:
        """Ends the pause for this name. From any thread."""


class TaskPlacement(Protocol):
    """The placement of the tasks of an app, as one of its processes sees it. `Build` uses it."""

    whole: bool
    """True if every task of the app is in this process."""

    def is_here(self, task: str) -> bool:
        """Returns True if this process runs the task."""

    def agree(self, plan: Plan) -> None:
        """Compares the plan of this process with that of the whole app. Called before anything of the plan is opened.
        Raises an error if they differ.
        """

    def columns_of(self, stream: str) -> pa.Schema | None:
        """Returns the columns of a stream that were inferred for the whole app, or None if this process infers them."""

    def arrives(self, edge: str, channel: Channel) -> None:
        """Puts the elements of this edge, which a task of another process sends, into the channel."""

    def leaves(self, edge: str, channel: Channel, task: str) -> None:
        """Sends the elements of the channel along this edge to `task`, which runs in another process."""

    def readers_elsewhere(self, stage: str) -> PausableReaders | None:
        """Returns the readers in other processes whose rows reach this stage, or None if there are no other
        processes.
        """

    def has_first(self, stage: str, task: str) -> None:
        """Notifies the other processes that a task of this process has processed the input for which their sources
        wait. Called in the task's thread.
        """


class SingleProcess:
    """The placement of an app that runs in one process."""

    whole = True

    def is_here(self, task: str) -> bool:
        """Returns True."""
        return True

    def agree(self, plan: Plan) -> None:
        """Does nothing: there is no other plan."""

    def columns_of(self, stream: str) -> pa.Schema | None:
        """Returns None: this process infers the columns."""
        return None

    def arrives(self, edge: str, channel: Channel) -> None:
        """Raises NotImplementedError; it is not called."""
        raise NotImplementedError

    def leaves(self, edge: str, channel: Channel, task: str) -> None:
        """Raises NotImplementedError; it is not called."""
        raise NotImplementedError

    def readers_elsewhere(self, stage: str) -> PausableReaders | None:
        """Returns None: there are no other processes."""
        return None

    def has_first(self, stage: str, task: str) -> None:
        """Does nothing: no other process waits."""
