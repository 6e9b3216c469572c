"""The chain of operators in a task: a batch goes through it by plain calls, and leaves it through the outputs.

Chain                 the operators of one subtask, and its outputs
  Link                an operator, with its figures and the receivers of its rows
  Output              the channels to the subtasks of the next stage: divides a batch by the hash of its keys
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sabot._cython.arrow.batch import Batch
from sabot._cython.flow.channel import ACTIVE, IDLE, Channel, ChannelClosed, Watermark
from sabot._cython.groups.partition import hash_columns, partition_indices
from sabot.engine.operators.base import (
    COMPLETE,
    END_OF_TIME,
    START_OF_TIME,
    HoldsMarks,
    Operator,
    Polled,
    SecondInput,
    Stateful,
    WaitsForCalls,
    WritesOutside,
)
from sabot.engine.operators.rows.bad import say_in_sql
from sabot.engine.operators.rows.origin import of_selected, reselected
from sabot.engine.operators.state_size import state_size
from sabot.engine.runtime.tasks.inputs import SMALL_ROWS, fill
from sabot.engine.runtime.tasks.task_times import TaskState, TaskTimes, TimedWork
from sabot.errors import DataError

if TYPE_CHECKING:
    from sabot.base.figures import ToldEdge, ToldStep

_WAIT_SECONDS = 0.05


class Output(TimedWork):
    """An output of a chain: one channel for each subtask of the next stage.

    `keys`: the columns by which the subtask of a row is chosen; without keys all rows go to the first subtask.
    `target`: the id of the next stage, for figures. `right`: True if the rows are its second input. `everywhere`:
    True to send all rows to every subtask. `in_turn`: True to send batches to the subtasks in turn. `last`: True if
    the rows leave the stream, so their origin is not needed any more. `tells`: True if the mark COMPLETE (all rows
    that the sources had at the start have been read) is sent through this output. `timeless`: True if watermarks are
    not sent.

    If its task may not wait, the output keeps what a full channel refuses, and `offer` tries it again.
    """

    def __init__(
        self,
        channels: Sequence[Channel],
        keys: Sequence[str],
        *,
        target: str = "",
        right: bool = False,
        everywhere: bool = False,
        in_turn: bool = False,
        last: bool = False,
        tells: bool = False,
        timeless: bool = False,
    ) -> None:
        self.channels = list(channels)
        self.target = target
        self.right = right
        self.rows_out = 0
        self.batches_out = 0
        self.times = TaskTimes()  # those of the task, once it runs
        self.may_wait = True
        self.stopping = False
        self._keys = list(keys)
        self._everywhere = everywhere
        self._in_turn = in_turn
        self._last = last
        self._tells = tells
        self._timeless = timeless
        self._turn = 0
        self._refused: deque[tuple[Channel, Any]] = deque()

    def put(self, batch: Batch) -> None:
        """Sends a batch. Blocks while a channel is full."""
        if batch.num_rows == 0:
            return
        self.times.run(self, self._put, batch)

    def _put(self, batch: Batch) -> None:
        self.rows_out += batch.num_rows
        self.batches_out += 1
        if self._last and batch.records is not None:
            batch = batch.with_selection(batch.selection, batch.hashes)
        # Few rows are copied out of their batch, so that they do not keep a large one alive while they wait in a channel.
        if batch.selection is not None and 2 * batch.num_rows < batch.data.num_rows:
            batch = of_selected(batch, batch.taken())
        if len(self.channels) == 1 or self._everywhere or self._in_turn:
            # the hashes may be of other keys than the next ones
            batch = batch if batch.hashes is None else reselected(batch, batch.selection, None)
            self._turn = (self._turn + 1) % len(self.channels)
            for channel in self.channels if self._everywhere else [self.channels[self._turn]]:
                self.send(channel, batch)
            return
        data, selection = batch.data, batch.selection
        hashes = hash_columns([data.column(name) for name in self._keys], selection)
        rows, bounds = partition_indices(hashes, len(self.channels), selection)
        # A gate joins small parts, and copies their rows for that: taken together, they are slices of one copy.
        taken = data.take(rows) if len(rows) < SMALL_ROWS * len(self.channels) else None
        for channel, start, end in zip(self.channels, bounds.to_pylist(), bounds.to_pylist()[1:], strict=False):
            part = reselected(batch, rows.slice(start, end - start), hashes)
            if taken is not None:
                part = of_selected(part, taken.slice(start, end - start))
            elif 4 * len(self.channels) * part.num_rows < data.num_rows:
                part = of_selected(part, part.taken())
            if part.num_rows:
                self.send(channel, part)

    def mark(self, element: Any) -> None:
        """Sends a mark to all channels. A full channel accepts marks too, except COMPLETE, which waits for room like
        rows.
        """
        if element is COMPLETE:
            for channel in self.channels if self._tells else []:
                self.send(channel, element)
            return
        if self._timeless and (element is IDLE or element is ACTIVE or isinstance(element, Watermark)):
            return
        for channel in self.channels:
            if self._refused:  # a mark must not overtake rows
                self._refused.append((channel, element))
            else:
                channel.put_nowait(element)

    def send(self, channel: Channel, batch: Batch) -> None:
        """Puts a batch into one of the channels. Blocks while it is full."""
        if not self.may_wait:
            if self._refused or not channel.put_nowait(batch):
                self._refused.append((channel, batch))
            return
        if channel.put_nowait(batch):
            return
        self.times.wait(TaskState.BACKPRESSURED, self._send_later, channel, batch)

    def _send_later(self, channel: Channel, batch: Batch) -> None:
        while not channel.put(batch, timeout=_WAIT_SECONDS):
            if self.stopping:
                raise ChannelClosed(channel.name)

    def figures(self) -> "ToldEdge":
        """Returns the figures of the way and its channels. From any thread."""
        channels = [each.statistics() for each in self.channels]
        return {
            "to": self.target,
            "right": self.right,
            "keys": self._keys,
            "rows": self.rows_out,
            "batches": self.batches_out,
            "seconds": self.times.seconds_of(self),
            "waiting": sum(each["rows"] for each in channels),
            "capacity_rows": sum(each["capacity_rows"] for each in channels),
            "fill": fill(self.channels),
            "full_total": sum(each["full_total"] for each in channels),
        }

    def offer(self) -> bool:
        """Tries again to put the elements that full channels have refused. Returns True if none is left."""
        while self._refused:
            channel, element = self._refused[0]
            if not channel.put_nowait(element):
                return False
            self._refused.popleft()
        return True


class Link(TimedWork):
    """An operator in its chain, with the receivers of its rows: `targets` of the main output, `branches` of the
    others.
    """

    def __init__(
        self,
        operator: Operator,
        targets: "Sequence[Link | Output]",
        branches: "Mapping[str, Sequence[Link | Output]] | None" = None,
        exits: Mapping[str, Any] | None = None,
    ) -> None:
        """`exits`: by branch, the object whose attribute `receive` gets the rows."""
        self.operator = operator
        self.targets = list(targets)
        self.branches = [(name, target) for name, branch in (branches or {}).items() for target in branch]
        self.exits = exits or {}
        self.times = TaskTimes()  # those of the task, once it runs
        self.rows_in = 0
        self.batches_in = 0
        self.watermark_ms: int | None = None  # the last one that has come
        self._writes = isinstance(operator, WritesOutside)  # its task waits for the sink, and does nothing else
        self._told = START_OF_TIME  # the last watermark that the operator returned in place of its input's
        operator.emit = receiver_of(targets)
        self._holder = operator if isinstance(operator, HoldsMarks) else None
        if self._holder is not None:
            self._holder.on_mark = self._pass

    def receive(self, batch: Batch) -> None:
        """Gives rows to the operator."""
        self._counted(self.operator.process, batch)

    def receive_right(self, batch: Batch) -> None:
        """Gives rows of the second input to the operator."""
        assert isinstance(self.operator, SecondInput)
        self._counted(self.operator.process_right, batch)

    def _counted(self, process: Callable[[Batch], None], batch: Batch) -> None:
        self.rows_in += batch.num_rows
        self.batches_in += 1
        try:
            if self._writes:
                self.times.wait(TaskState.BACKPRESSURED, process, batch)
            else:
                self.times.run(self, process, batch)
        except DataError as error:
            say_in_sql(error, self.operator.step)
            raise

    def mark(self, element: Any) -> None:
        """Passes WATERMARK, IDLE, ACTIVE or COMPLETE to the operator, and then to those behind it, unless the
        operator holds it back and passes it on later.
        """
        self.times.run(self, self._mark, element)

    def _mark(self, element: Any) -> None:
        if isinstance(element, Watermark) and element.timestamp_ms != END_OF_TIME:
            self.watermark_ms = element.timestamp_ms
        if self._holder is not None:
            self._holder.hold(element)
        elif isinstance(element, Watermark):
            try:
                told = self.operator.advance(element.timestamp_ms)
            except DataError as error:
                say_in_sql(error, self.operator.step)
                raise
            if told is None or element.timestamp_ms == END_OF_TIME:
                self._pass(element)
            elif told > self._told:
                self._told = told
                self._pass(Watermark(told))
        else:
            self._pass(element)

    @property
    def rows_out(self) -> int:
        """The rows that the operator has emitted, without those of its branches."""
        first = next(iter(self.targets), None)  # each target gets all rows
        return 0 if first is None else first.rows_in if isinstance(first, Link) else first.rows_out

    def figures(self) -> "ToldEdge":
        """Returns the operator's id as the target, and the rows and batches that it got. From any thread."""
        return {"to": self.operator.step.id, "right": False, "rows": self.rows_in, "batches": self.batches_in}

    def statistics(self) -> "ToldStep":
        """Returns the figures of the step: its own, and those of its operator. From any thread."""
        figures = self.operator.statistics()
        return {
            "rows_in": self.rows_in,
            "rows_out": self.rows_out,
            "seconds": self.times.seconds_of(self),
            "watermark_ms": self.watermark_ms,
            **(state_size(figures) if isinstance(self.operator, Stateful) else {}),
            **figures,
        }

    def finish(self) -> None:
        """Ends the operator."""
        if self._writes:
            self.times.wait(TaskState.BACKPRESSURED, self.operator.finish)
        else:
            self.times.run(self, self.operator.finish)

    def _pass(self, element: Any) -> None:
        for target in (*self.targets, *(branch for _, branch in self.branches)):
            # END_OF_TIME completes the results in this chain only: the tasks behind it get END, after the last rows.
            if isinstance(target, Link) or not isinstance(element, Watermark) or element.timestamp_ms != END_OF_TIME:
                target.mark(element)


def receiver_of(targets: Sequence[Link | Output]) -> Callable[[Batch], None]:
    """Returns a function that gives a batch to all targets."""
    receivers: list[Callable[[Batch], None]] = [
        target.receive if isinstance(target, Link) else target.put for target in targets
    ]
    return receivers[0] if len(receivers) == 1 else _fan_out(receivers)


def _fan_out(receivers: Sequence[Callable[[Batch], None]]) -> Callable[[Batch], None]:
    def emit(batch: Batch) -> None:
        for receive in receivers:
            receive(batch)

    return emit


class Chain:
    """The operators of one subtask, and its outputs. An output gets rows from an operator, or, for dead letters, from
    the task.
    """

    def __init__(self, roots: Sequence[Link | Output], outputs: Sequence[Output]) -> None:
        self.roots = list(roots)
        self.outputs = list(outputs)
        self._beside: list[Output] = []
        self.links: list[Link] = []
        for root in roots:
            self._gather(root)
        self.process = receiver_of(roots)
        self.process_right: Callable[[Batch], None] | None = None
        operators = self.operators
        if operators and isinstance(operators[0], SecondInput):
            self.process_right = self.links[0].receive_right
        self.polled = [(each, each.operator) for each in self.links if isinstance(each.operator, Polled)]
        self.waiting = [each for each in operators if isinstance(each, WaitsForCalls)]
        self.stateful = [each for each in operators if isinstance(each, Stateful)]
        self.writers = [each for each in operators if isinstance(each, WritesOutside)]

    def begin(self, times: TaskTimes) -> None:
        """Counts the time of operators and outputs as the task's. Called in the thread of the task, before the first row."""
        for link in self.links:
            link.times = times
        for output in self.outputs:
            output.times = times

    def let_wait(self, may_wait: bool) -> None:
        """Sets whether the outputs may wait for room in a channel."""
        for output in self.outputs:
            output.may_wait = may_wait

    def offer(self) -> bool:
        """Offers the channels again what they have refused. Returns True if nothing is left."""
        # A list, since each output offers what it has, also behind one whose channel is full.
        return all([output.offer() for output in self.outputs])

    def stop(self) -> None:
        """Ends waits for room in a channel: they raise ChannelClosed. From any thread."""
        for output in self.outputs:
            output.stopping = True

    def _gather(self, target: Link | Output) -> None:
        if isinstance(target, Link):
            self.links.append(target)
            for each in (*target.targets, *(branch for _, branch in target.branches)):
                self._gather(each)

    def add_beside(self, output: Output) -> None:
        """Adds an output that no operator feeds."""
        self.outputs.append(output)
        self._beside.append(output)

    @property
    def operators(self) -> list[Operator]:
        """The operators, upstream first."""
        return [link.operator for link in self.links]

    @property
    def has_room(self) -> bool:
        """True unless operators are at their limit of rows in flight."""
        return all([operator.has_room for operator in self.waiting])

    @property
    def is_empty(self) -> bool:
        """True if no row is in flight."""
        return all([operator.is_empty for operator in self.waiting])

    def edges(self, stage: str) -> "list[ToldEdge]":
        """Returns the figures of all connections over which rows move: into the chain and between operators, with
        counts of rows and batches; out of the chain, with the figures of `Output`. `stage`: the id of the stage,
        which names the chain's input. From any thread.
        """
        beside = [(stage, "dead letters", each) for each in self._beside]
        ways = [(stage, "", each) for each in self.roots] + beside
        for link in self.links:
            named = [("", each) for each in link.targets] + link.branches
            ways += [(link.operator.step.id, branch, each) for branch, each in named]
        return [{"from": origin, "branch": branch, **target.figures()} for origin, branch, target in ways]

    def mark_time(self, element: Any) -> None:
        """Passes WATERMARK, IDLE, ACTIVE or COMPLETE down the chain behind the rows, and out of it."""
        for target in (*self.roots, *self._beside):
            target.mark(element)

    def finishing(self) -> Iterator[None]:
        """Ends the operators at the end of the input, from the first to the last. Yields each time that rows in
        flight must be emitted before it can continue.
        """
        for root in self.roots:
            if isinstance(root, Link):
                root.mark(Watermark(END_OF_TIME))
        for link in self.links:
            operator = link.operator
            while isinstance(operator, WaitsForCalls) and not operator.is_empty:
                yield
            link.finish()

    def mark(self, element: Any) -> None:
        """Sends a mark to every channel behind the chain, at once."""
        for output in self.outputs:
            output.mark(element)

    def close(self) -> None:
        """Closes every operator."""
        for operator in self.operators:
            operator.close()
