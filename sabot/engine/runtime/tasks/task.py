"""A task of a stream: one thread that runs one chain of operators for one subtask of a stage.

take an element  ─▶  a batch: the chain processes it, and its output goes into channels; a full channel makes the thread wait
                     a watermark: the chain emits the results that are complete, then passes the watermark on
                     a barrier: a snapshot of the operators and the input's positions is taken, the barrier passed on and acknowledged
                     COMPLETE: is passed on, behind the rows that operators hold
                     END: the chain emits everything that is left; the task's last state stays for the checkpoints to come
"""

import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol, cast

from sabot._cython.arrow.batch import Batch
from sabot._cython.flow.channel import ACTIVE, END, IDLE, Abort, Barrier, ChannelClosed, Watermark
from sabot.base.figures import STEP_COUNTS
from sabot.base.metrics import Sample, call_samples
from sabot.base.os_errors import hint_of, restoring
from sabot.base.process_exit import EXITS, wrap_exit
from sabot.base.threads import Handle, threads
from sabot.clock import SYSTEM_CLOCK, Clock
from sabot.engine.calls.judging import JUDGE, with_judge
from sabot.engine.checkpoint import TaskSnapshot
from sabot.engine.operators.base import COMPLETE, END_OF_TIME
from sabot.engine.operators.layout.stages import HINT_OF_MANY_STEPS
from sabot.engine.runtime.tasks.blocking import held_up_by
from sabot.engine.runtime.tasks.chain import Chain
from sabot.engine.runtime.tasks.filling import Fill
from sabot.engine.runtime.tasks.inputs import Input
from sabot.engine.runtime.tasks.manifest_facts import read_to_end
from sabot.engine.runtime.tasks.placement import PausableReaders
from sabot.engine.runtime.tasks.task_times import TaskState, TaskTimes, TimedWork
from sabot.engine.state.base import Cut, Saved
from sabot.errors import InternalError, SabotError

if TYPE_CHECKING:
    from sabot.base.figures import ToldTask

_log = logging.getLogger(__name__)


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
        self._may_wait = True
        self.ended = False
        self.error: BaseException | None = None
        self.batches = self.rows = 0  # taken by the task
        self.taking_since: float | None = None  # the start of the current element, by the monotonic clock
        self.cut_seconds_total = 0.0
        self.cut_seconds = 0.0  # the seconds for which the last barrier delayed rows
        self.watermark_ms: int | None = None
        # Called in the task's thread when it has ended or failed.
        self.on_over: Callable[[StreamTask], None] | None = None
        self.input: Input
        self.chain: Chain
        self._coordinator = coordinator
        self._clock = clock
        self._finishing: Iterator[None] | None = None  # after END, until nothing is in flight
        self._woken = threading.Event()
        self._expected = 0  # the checkpoint whose barrier is on its way, or 0
        # The readers whose rows come through the gate, if the task waits for calls.
        self.readers_before: list[PausableReaders] = []
        self._holds_readers = False
        self.fills: list[Fill] = []  # run before the first element is taken
        self.times = TaskTimes()
        self._reading = TimedWork()  # taking elements from the input: decoding, joining batches
        self._cutting = TimedWork()  # taking snapshots
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
        self.chain.begin(self.times)

    def _turn(self, wait_seconds: float) -> bool | None:
        if self.stopping:
            return False
        if not self._may_wait and not self.chain.offer():
            return None
        if self.ended:
            return False
        if self._may_wait is not (wait_seconds > 0):
            self._may_wait = wait_seconds > 0
            self.chain.let_wait(self._may_wait)
        while self.fills:
            self.fills.pop(0).run()
        if self.chain.polled and not self._poll():
            return self._without_room(wait_seconds)
        wait_seconds = wait_seconds if self.chain.is_empty else min(wait_seconds, self.input.flight_seconds)
        element = self.times.run(self._reading, self.input.next, wait_seconds)
        if element is None:
            return None
        self._take(element)
        return not self.ended or not self._may_wait

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
            return not self._may_wait
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
        # `next` returns the task itself only when all operators have ended. One that ends during a stop was abandoned:
        # the app has gone on without it, and must not get its last state.
        if next(self._finishing, self) is not self or self.stopping:
            return
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
        if self.stopping:  # the app may have gone on without this task, and another one may have its place
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
        self.chain.stop()
        self.input.interrupt()

    def join(self, seconds: float) -> bool:
        """Waits at most `seconds` for the thread. Returns True if it has ended, or was never started."""
        if self.handle.is_alive():
            self.handle.join(seconds)
        return not self.handle.is_alive()

    @property
    def taking(self) -> tuple[str, float | None, int | None]:
        """The task for `blocking.BlockingMonitor`, which asks from its own thread."""
        return self.name, self.taking_since, getattr(self.handle, "ident", None)

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

    def statistics(self) -> "ToldTask":
        """Returns figures. From any thread."""
        return {
            "batches": self.batches,
            "rows": self.rows,
            "ended": self.ended,
            "watermark_ms": self.watermark_ms,
            "cut_seconds": self.cut_seconds,
            "cut_seconds_total": self.cut_seconds_total,
            **cast("ToldTask", self.times.figures()),
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
        told: Mapping[str, Any] = each
        for shown in STEP_COUNTS:
            if told.get(shown.figure) or (shown.from_zero and shown.figure in told):
                yield Sample(shown.metric, told[shown.figure], name, "")
        if "state_keys" in each:
            yield Sample("sabot_state_keys", each["state_keys"], name)
            yield Sample("sabot_state_bytes", each["state_bytes"], name)
        if "late_most_ms" in each:
            late_ms = {"0.5": each["late_p50_ms"], "0.99": each["late_p99_ms"], "1": each["late_most_ms"]}
            for quantile, value in late_ms.items():
                yield Sample("sabot_late_seconds", value / 1000, name, quantile)
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
    otherwise = HINT_OF_MANY_STEPS if isinstance(error, RecursionError) else ""
    wrapped = InternalError(f"task {name}: {type(error).__name__}: {error}", hint=hint_of(error, otherwise))
    wrapped.__cause__ = error
    return wrapped
