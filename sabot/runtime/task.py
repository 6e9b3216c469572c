"""A task of a stream: one thread that runs one chain of operators for one subtask of a stage.

take an element  ─▶  a batch: the chain processes it, and its output goes into channels; a full channel makes the thread wait
                     a watermark: the chain emits the results that are complete, then passes the watermark on
                     a barrier: a snapshot of the operators and the input's positions is taken, the barrier passed on and acknowledged
                     COMPLETE: is passed on, behind the rows that operators hold
                     END: the chain emits everything that is left; the task's last state stays for the checkpoints to come
"""

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from sabot._cython.arrow.batch import Batch
from sabot._cython.flow.channel import ACTIVE, END, IDLE, Abort, Barrier, Channel, ChannelClosed, Watermark
from sabot._cython.groups.partition import hash_columns, partition_indices
from sabot.base.metrics import Sample, call_samples
from sabot.base.os_errors import hint_of, restoring
from sabot.base.process_exit import EXITS, wrap_exit
from sabot.base.threads import Handle, threads
from sabot.calls.judging import JUDGE, with_judge
from sabot.checkpoint import TaskSnapshot
from sabot.clock import SYSTEM_CLOCK, Clock
from sabot.errors import DataError, InternalError, SabotError
from sabot.operators.base import (
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
from sabot.operators.rows.bad import say_in_sql
from sabot.operators.rows.origin import of_selected, reselected
from sabot.operators.state_size import state_size
from sabot.runtime.blocking import held_up_by
from sabot.runtime.facts import read_to_end
from sabot.runtime.filling import Fill
from sabot.runtime.inputs import SMALL_ROWS, Input, fill
from sabot.runtime.placement import PausableReaders
from sabot.runtime.task_times import OwnWork, TaskState, TaskTimes
from sabot.state.base import Cut, Saved

_log = logging.getLogger(__name__)

_WAIT_SECONDS = 0.05


class Output:
    """An output of a chain: one channel for each subtask of the next stage.

    `keys`: the columns by which the subtask of a row is chosen; without keys all rows go to the first subtask.
    `target`: the id of the next stage, for figures. `right`: True if the rows are its second input. `everywhere`:
    True to send all rows to every subtask. `in_turn`: True to send batches to the subtasks in turn. `last`: True if
    the rows leave the stream, so their origin is not needed any more. `tells`: True if the mark COMPLETE (all rows
    that the sources had at the start have been read) is sent through this output. `timeless`: True if watermarks are
    not sent.
    """

    def __init__(
        self,
        channels: Sequence[Channel],
        keys: Sequence[str],
        task: "StreamTask",
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
        self.seconds = 0.0  # of dividing and sending rows, without waits
        self._keys = list(keys)
        self._task = task
        self._everywhere = everywhere
        self._in_turn = in_turn
        self._last = last
        self._tells = tells
        self._timeless = timeless
        self._turn = 0
        self._refused: deque[tuple[Channel, Any]] = (
            deque()
        )  # elements that full channels refused; only in a task that may not wait

    def put(self, batch: Batch) -> None:
        """Sends a batch. Blocks while a channel is full."""
        if batch.num_rows == 0:
            return
        self._task.times.run(self, self._put, batch)

    def _put(self, batch: Batch) -> None:
        self.rows_out += batch.num_rows
        self.batches_out += 1
        if self._last and batch.records is not None:
            batch = batch.with_selection(batch.selection, batch.hashes)
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
            if self._refused:
                self._refused.append((channel, element))
            else:
                channel.put_nowait(element)

    def send(self, channel: Channel, batch: Batch) -> None:
        """Puts a batch into one of the channels. Blocks while it is full."""
        if not self._task.may_wait:
            if self._refused or not channel.put_nowait(batch):
                self._refused.append((channel, batch))
            return
        if channel.put_nowait(batch):
            return
        self._task.times.wait(TaskState.BACKPRESSURED, self._send_later, channel, batch)

    def _send_later(self, channel: Channel, batch: Batch) -> None:
        while not channel.put(batch, timeout=_WAIT_SECONDS):
            if self._task.stopping:
                raise ChannelClosed(channel.name)

    def figures(self) -> dict[str, Any]:
        """Returns the target, the rows and batches that were sent, and the seconds of sending them without waits. Of
        the channels: the rows that wait in them and their bound, how full the fullest one is (0 to 1), and how often
        one was full. From any thread.
        """
        channels = [each.statistics() for each in self.channels]
        return {
            "to": self.target,
            "right": self.right,
            "keys": self._keys,
            "rows": self.rows_out,
            "batches": self.batches_out,
            "seconds": self._task.times.seconds_of(self),
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


class Link:
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
        self.seconds = 0.0  # of the operator, without waits and without the operators behind it
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

    def figures(self) -> dict[str, Any]:
        """Returns the operator's id as the target, and the rows and batches that it got. From any thread."""
        return {"to": self.operator.step.id, "right": False, "rows": self.rows_in, "batches": self.batches_in}

    def statistics(self) -> dict[str, Any]:
        """Returns rows_in, rows_out, the seconds of work without waits, the watermark, the size of the state, and the
        operator's own figures. From any thread.
        """
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

    def edges(self, stage: str) -> list[dict[str, Any]]:
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


class Cuts(Protocol):
    """A receiver of the snapshots of a task, in the task's thread: the coordinator of the checkpoints, or its
    stand-in in a worker.
    """

    def acknowledge(self, checkpoint_id: int, task: str, snapshot: TaskSnapshot) -> None:
        """Receives the task's snapshot at this barrier."""

    def detach(self, task: str, final: TaskSnapshot | None = None) -> None:
        """Receives the task's last snapshot, at its end."""


class StreamTask:
    """One subtask of a stage. The app's thread builds and opens it; from `start` on only its own thread uses it.

    If the thread may not wait (`step(0)`), the task stores output that a full channel refuses, and processes no
    further element before that output is accepted.
    """

    def __init__(self, name: str, coordinator: Cuts, clock: Clock = SYSTEM_CLOCK) -> None:
        self.name = name
        self.stopping = False
        self.may_wait = True
        self.ended = False
        self.error: BaseException | None = None
        self.batches = self.rows = 0  # taken by the task
        self.taking_since: float | None = None  # the start of the current element, by the monotonic clock
        self.cut_seconds_total = 0.0
        self.cut_seconds = 0.0  # the seconds for which the last barrier delayed rows
        self.watermark_ms: int | None = None
        self.on_over: Callable[[StreamTask], None] | None = (
            None  # called in the task's thread when it has ended or failed
        )
        self.input: Input
        self.chain: Chain
        self._coordinator = coordinator
        self._clock = clock
        self._finishing: Iterator[None] | None = None  # after END, until nothing is in flight
        self._woken = threading.Event()
        self._expected = 0  # the checkpoint whose barrier is on its way, or 0
        self.readers_before: list[
            PausableReaders
        ] = []  # the readers whose rows come through the gate, if the task waits for calls
        self._holds_readers = False
        self.fills: list[Fill] = []  # run before the first element is taken
        self.times = TaskTimes()
        self._reading = OwnWork()  # taking elements from the input: decoding, joining batches
        self._cutting = OwnWork()  # taking snapshots
        # The thread runs in a copy of the context in which the task is made: the app's judge is in it.
        self.handle = threads.spawn(name, with_judge(self.step, JUDGE.get()))

    @property
    def built(self) -> bool:
        """True if the task has its input and its chain. False if an error has ended the building of the app before
        that.
        """
        return hasattr(self, "input") and hasattr(self, "chain")

    def start(self) -> None:
        """Starts the thread."""
        self.handle.start()

    def restore(self, states: Mapping[str, list[Saved]], forgets: Mapping[str, frozenset[str]]) -> None:
        """Restores the operators. Called before `start`.

        `states`: the states of a checkpoint, by operator id. `forgets`: the names whose state an operator does not
        restore, by operator id.
        """
        for operator in self.chain.stateful:
            id = operator.step.id
            if saved := states.get(id):
                with restoring(f"state of {id} ({operator.step.text})", saved[0].directory):
                    operator.restore(saved, forgets.get(id, frozenset()))

    # -- the thread ---------------------------------------------------------------------------------------------------

    def step(self, wait_seconds: float) -> bool | None:
        """Processes one element, and waits at most `wait_seconds` for it. Returns True if it took an element, None if
        there was none or output had no room, and False if the task has ended (`threads.Turn`). Never raises: an error
        is stored in `error`.
        """
        try:
            if not self.times.begun:
                self._begin()
            took = self._turn(wait_seconds)
        except ChannelClosed:
            _log.debug("task %s: the reader of one of its output channels has closed", self.name)
            took = False
        except BaseException as error:
            self.error = error if isinstance(error, SabotError) else _internal(self.name, error)
            took = False
        if took is False:
            self.times.end()
            if self.on_over is not None:
                self.on_over(self)
        return took

    def _begin(self) -> None:
        self.times.begin()
        self.input.times = self.times
        for link in self.chain.links:
            link.times = self.times

    def _turn(self, wait_seconds: float) -> bool | None:
        if self.stopping:
            return False
        if not self.may_wait and not all([output.offer() for output in self.chain.outputs]):
            return None
        if self.ended:
            return False
        self.may_wait = wait_seconds > 0
        while self.fills:
            self.fills.pop(0).run()
        if self.chain.polled and not self._poll():
            return self._without_room(wait_seconds)
        wait_seconds = wait_seconds if self.chain.is_empty else min(wait_seconds, self.input.flight_seconds)
        element = self.times.run(self._reading, self.input.next, wait_seconds)
        if element is None:
            return None
        self._take(element)
        return not self.ended or not self.may_wait

    def _poll(self) -> bool:
        """Polls the operators, which emit results that are ready. Returns True if the task may take rows: the
        operators have room, and END has not come.

        After a checkpoint has begun, the rows in the channels before its barrier are taken even without room, because
        a barrier must not wait for calls. The readers then pause until there is room again; otherwise each checkpoint
        would take in more rows.
        """
        self._woken.clear()
        now_ms = int(self._clock.time() * 1000)
        for link, operator in self.chain.polled:
            self.times.run(link, operator.poll, now_ms)
        if self._finishing is not None:
            self._finish()
            return False
        has_room = self.chain.has_room
        takes_all = self._expected > 0 and self.input.brings_barriers
        if (has_room and self._holds_readers) or (takes_all and not has_room):
            self._hold_readers(not has_room)
        return has_room or takes_all

    def _hold_readers(self, held: bool) -> None:
        self._holds_readers = held
        for reader in self.readers_before:
            if held:
                reader.pause_for(self.name)
            else:
                reader.resume_for(self.name)

    def _without_room(self, wait_seconds: float) -> bool | None:
        """Processes barriers but no rows, while operators have no room. If all channels have ended, no barrier comes
        through them; the task then takes a snapshot for each requested checkpoint.
        """
        if self.ended:
            return not self.may_wait
        element = self.input.mark()
        if self._finishing is not None and self.input.brings_barriers and self._expected:
            element = Barrier(self._expected)
        if element is None:
            self.times.wait(TaskState.WAITING, self._woken.wait, wait_seconds)
            return None
        self._take(element)
        return True

    def expect(self, checkpoint_id: int) -> None:
        """Notes that the barrier of this checkpoint is on its way. From any thread."""
        self._expected = checkpoint_id
        if self.chain.polled:
            self.wake()

    def expect_no_more(self, checkpoint_id: int) -> None:
        """Notes that the barrier of this checkpoint has come, or that the checkpoint was aborted."""
        if checkpoint_id >= self._expected:
            self._expected = 0

    def wake(self) -> None:
        """Makes the task poll its operators soon. From any thread."""
        self._woken.set()
        self.input.wake()

    def _take(self, element: Any) -> None:
        self.taking_since = SYSTEM_CLOCK.monotonic()
        try:
            self._taken(element)
        finally:
            self.taking_since = None

    def _taken(self, element: Any) -> None:
        chain = self.chain
        if element is COMPLETE:
            chain.mark_time(element)
        elif isinstance(element, Batch):
            self.batches += 1
            self.rows += element.num_rows
            if chain.process_right is not None and self.input.right:
                chain.process_right(element)
            else:
                chain.process(element)
        elif isinstance(element, Barrier):
            self._cut(element)
        elif element is END:
            self._finishing = chain.finishing()
            self._finish()
        elif isinstance(element, Abort):
            self.expect_no_more(element.checkpoint_id)
            chain.mark(element)
        elif isinstance(element, Watermark) or element is IDLE or element is ACTIVE:
            if isinstance(element, Watermark):
                self.watermark_ms = element.timestamp_ms
            chain.mark_time(element)

    def _finish(self) -> None:
        """Continues to end the operators after END. If rows are still in flight, returns, and the next poll calls it
        again. When all operators have ended, takes the last snapshot, sends END downstream, and detaches the task
        from the coordinator.
        """
        assert self._finishing is not None
        if next(self._finishing, self) is not self or self.stopping:
            return  # it was abandoned at a stop, and the app has gone on without it
        self._finishing = None
        self.ended = True
        final = self._snapshot()
        final.last = self._last(final)
        self.chain.mark(END)
        self._coordinator.detach(self.name, final)

    def _cut(self, barrier: Barrier) -> None:
        """Takes the snapshot at a barrier: everything before the barrier has been processed, and nothing after it."""
        self.expect_no_more(barrier.checkpoint_id)
        began = SYSTEM_CLOCK.monotonic()
        snapshot = self.times.run(self._cutting, self._snapshot)
        self.cut_seconds = SYSTEM_CLOCK.monotonic() - began
        self.cut_seconds_total += self.cut_seconds
        if self.stopping:
            snapshot.discard()
            return
        snapshot.times = {"aligned": self.input.aligned_seconds, "sync": self.cut_seconds}
        self.chain.mark(barrier)
        self._coordinator.acknowledge(barrier.checkpoint_id, self.name, snapshot)

    def _snapshot(self) -> TaskSnapshot:
        sealed: dict[str, int] = {}
        for writer in self.chain.writers:
            sealed.update(self.times.wait(TaskState.BACKPRESSURED, writer.flush))
        facts: dict[str, Any] = {operator.step.id: {} for operator in self.chain.operators}
        states: dict[str, Cut] = {}
        for operator in self.chain.stateful:
            facts[operator.step.id], state = operator.snapshot()
            if state is not None:
                states[operator.step.id] = state
        texts = {each.step.id: each.step.text for each in self.chain.stateful}
        meta = {"ended": self.ended, "input": self.input.facts(), "operators": facts, "texts": texts}
        for writer in self.chain.writers:
            if writer.wrote is not None:
                meta["wrote"] = writer.wrote
            if writer.stands is not None:
                meta["table"] = writer.stands
        return TaskSnapshot(meta, {**self.input.memory()}, states, sealed)

    def _last(self, final: TaskSnapshot) -> TaskSnapshot | None:
        """Returns the snapshot to be kept once all tasks have ended for good, or None if the task's source was not
        read to its end. It is smaller than `final`: it lacks state that no later run needs.
        """
        meta = final.meta
        if not read_to_end(meta):
            return None
        kept = {each.step.id for each in self.chain.stateful if each.step.named or not each.spent_at_end}
        facts = {id: facts if id in kept else {} for id, facts in meta["operators"].items()}
        texts = {id: text for id, text in meta["texts"].items() if id in kept}
        read = {**meta["input"], "over": True} if meta["input"] else {}
        states = {id: state for id, state in final.states.items() if id in kept}
        return replace(final, meta={**meta, "input": read, "operators": facts, "texts": texts}, states=states)

    # -- from outside -------------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Makes the task take no more elements, and releases threads that wait for its channels. From any thread."""
        self.stopping = True
        self.input.interrupt()

    def join(self, seconds: float) -> bool:
        """Waits at most `seconds` for the thread. Returns True if it has ended, or was never started."""
        if self.handle.is_alive():
            self.handle.join(seconds)
        return not self.handle.is_alive()

    def close(self) -> None:
        """Closes the operators and the input. Called after `join`. Idempotent."""
        for each in self.fills:
            each.close()
        self.input.close()
        self.chain.close()

    def hint(self) -> str:
        """Returns a description of the task's current work, for the message of a checkpoint that timed out."""
        full = [channel.name for output in self.chain.outputs for channel in output.channels if channel.rows]
        thread = getattr(self.handle, "ident", None)  # a simulation has no threads
        found = None if thread is None else held_up_by(thread)
        inside = "" if found is None else f"; in {found[1]}"
        return f"{self.batches} batches taken{inside}" + (f"; rows wait in {', '.join(full[:3])}" if full else "")

    def statistics(self) -> dict[str, Any]:
        """Returns figures. From any thread."""
        return {
            "batches": self.batches,
            "rows": self.rows,
            "ended": self.ended,
            "watermark_ms": self.watermark_ms,
            "cut_seconds": self.cut_seconds,
            "cut_seconds_total": self.cut_seconds_total,
            **self.times.figures(),
            "reading_seconds": self.times.seconds_of(self._reading),
            "cutting_seconds": self.times.seconds_of(self._cutting),
            "operators": {link.operator.step.id: link.statistics() for link in self.chain.links},
            "edges": self.chain.edges(self.name.rsplit("/", 1)[0]),
        }


def task_samples(task: StreamTask) -> Iterator[Sample]:
    """Yields the samples that every built task has: its time, its watermark, its edges and its operators. From any
    thread.
    """
    figures = task.statistics()
    yield from task.times.samples(task.name)
    if task.watermark_ms is not None and task.watermark_ms < END_OF_TIME:
        yield Sample("sabot_watermark_seconds", task.watermark_ms / 1000, task.name)
    for edge in figures["edges"]:
        yield Sample("sabot_edge_rows_total", edge["rows"], task.name, edge["from"], edge["to"])
        if "fill" in edge:
            yield Sample("sabot_channel_fill", edge["fill"], task.name, edge["to"])
    for id, each in figures["operators"].items():
        name = f"{task.name} {id}"
        yield Sample("sabot_step_seconds_total", each["seconds"], name)
        if "state_keys" in each:
            yield Sample("sabot_state_keys", each["state_keys"], name)
            yield Sample("sabot_state_bytes", each["state_bytes"], name)
        if "late_most_ms" in each:
            for quantile, figure in (("0.5", "late_p50_ms"), ("0.99", "late_p99_ms"), ("1", "late_most_ms")):
                yield Sample("sabot_late_seconds", each[figure] / 1000, name, quantile)
        for reason, count in each.get("dead_row_reasons", {}).items():
            yield Sample("sabot_dead_letter_reasons_total", count, name, "", reason)
        yield from call_samples(name, each)


def close_tasks(tasks: Sequence[StreamTask], seconds: float) -> list[tuple[str, Handle]]:
    """Stops the tasks, waits for each at most `seconds`, and closes them. Blocks. Returns the names and threads of
    those that did not end.

    Errors while closing are logged and change nothing, because everything that counts was flushed or is in a
    checkpoint.
    """
    left: list[tuple[str, Handle]] = []
    for task in tasks:
        task.stop()
    for task in tasks:
        if not task.join(seconds):
            _log.error("task %s does not end and is abandoned", task.name)
            left.append((f"task {task.name}", task.handle))
            continue
        try:
            task.close()
        except (Exception, *EXITS):
            _log.exception("task %s could not be closed", task.name)
    return left


def _internal(name: str, error: BaseException) -> SabotError:
    if isinstance(error, EXITS):
        return wrap_exit(error, f"the user's code in task {name}")
    wrapped = InternalError(f"task {name}: {type(error).__name__}: {error}", hint=hint_of(error))
    wrapped.__cause__ = error
    return wrapped
