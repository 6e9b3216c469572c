"""The running streams of an app in this process: their start, stop, commits and figures."""

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from sabot._cython.groups.tables import give_back
from sabot.api.agent import AgentSpec
from sabot.api.nodes.agents import AgentRead
from sabot.api.nodes.read import StreamEnd
from sabot.base.metrics import Sample
from sabot.base.quantities import counted_words
from sabot.base.threads import Handle, call_on_loop, run_in_thread, run_to_end
from sabot.connectors.base import Delivery
from sabot.engine.calls.judging import begin_judging, end_judging, with_judge
from sabot.engine.checkpoint import Manifest
from sabot.engine.plan import fed_by_streams, walk
from sabot.engine.runtime.agents.output import AgentInput
from sabot.engine.runtime.life.build import Build
from sabot.engine.runtime.life.host import interpreter
from sabot.engine.runtime.life.parts import had_ended, keep_finals
from sabot.engine.runtime.life.restore import DUE, positions_in
from sabot.engine.runtime.life.settings import RunSettings
from sabot.engine.runtime.tasks.inputs import GateInput
from sabot.engine.runtime.tasks.taps import TapPoint, Taps, share_of, tapped
from sabot.engine.runtime.tasks.task import StreamTask, close_tasks, task_samples

if TYPE_CHECKING:
    from sabot.base.figures import ToldTask
    from sabot.engine.runtime.tasks.replay import Replay

_log = logging.getLogger(__name__)

_JOIN_SECONDS = 30.0


class LocalStreams:
    """The streams of one run, with all tasks in this process. All methods run on one event loop. It is started once."""

    def __init__(
        self,
        ends: Sequence[StreamEnd],
        settings: RunSettings,
        *,
        agents: Sequence[AgentSpec] = (),
        wanted: Mapping[str | int, Delivery] | None = None,
        replay: "Replay | None" = None,
    ) -> None:
        """`agents`: the agents of the app. `wanted`: `delivery=` of each Sink that agents write, by the id of the
        Sink. `replay`: as in `Build`.
        """
        self.settings = settings
        self.was_complete = False
        self.awaited = False  # True if a caller awaits `running`, and gets the failure
        # called if nobody awaits `running`
        self.on_failed: Callable[[BaseException], None] = lambda error: _log.error("%s", error)
        self._loop = asyncio.get_running_loop()
        self._over: asyncio.Future[None] = self._loop.create_future()
        self._left = 0
        self._taps = Taps(settings.clock)
        self._closed = False
        self.started = False  # its tasks run
        self.left: list[tuple[str, Handle]] = []  # threads that did not end at the stop
        self.build = Build(list(ends), settings, agents=agents, wanted=wanted or {}, loop=self._loop, replay=replay)

    @property
    def linked(self) -> bool:
        """True if the streams pass rows to agents, or get rows from them."""
        return bool(fed_by_streams(self.build.ends)) or any(
            isinstance(each, AgentRead) for each in walk(self.build.ends)
        )

    # -- the start -----------------------------------------------------------------------------------------------------

    async def start(self, restored: Manifest | None = None) -> None:
        """Calls `open`, then `run`."""
        await self.open(restored)
        self.run()

    async def open(self, restored: Manifest | None = None) -> None:
        """Opens everything at the positions of the checkpoint. If it raises, nothing is left open."""
        if restored is not None and self._was_complete(restored):
            return
        judge = self.settings.judge()
        if judge is not None:
            begin_judging(self, judge.declared)
        building = asyncio.ensure_future(run_in_thread(with_judge(self.build.open, judge), restored))
        try:
            await asyncio.shield(building)
        except BaseException:
            self.build.cancelled.set()
            await run_to_end(self._give_up(building))
            raise

    def run(self) -> None:
        """Starts the tasks that `open` has opened."""
        if self.was_complete:
            return
        for task in self.tasks:
            source = next((each for _, owner, each in self.build.inputs if owner is task), None)
            inject = source.request_barrier if source is not None else task.expect
            abort = _nothing
            if isinstance(task.input, GateInput):
                abort = task.input.gate.abort
            elif isinstance(task.input, AgentInput):
                abort = task.input.source.gate.abort
            self.settings.coordinator.attach(task.name, inject, abort, task.hint)
        if self.build.replay is None:
            self.settings.coordinator.on_complete.append(self._commit)
        self._left = len(self.tasks)
        self.started = True
        interpreter.suit()
        # Downstream first: these wait, without the interpreter's lock. Behind a reader that works each start would wait for that lock.
        for task in reversed(self.tasks):
            task.on_over = self._task_over
            task.start()
        if self.tasks:
            names = ", ".join(sorted({reading.node.name for reading, _, _ in self.build.inputs}))
            _log.info("streams run in %s, reading %s", counted_words(len(self.tasks), "task"), names)

    async def _give_up(self, building: asyncio.Future[None]) -> None:
        await asyncio.wait([building])
        building.exception()  # the start was cancelled, or raises it itself
        await self.close()

    def _was_complete(self, restored: Manifest) -> bool:
        """Returns True if every task of the checkpoint had ended. Then no task is opened, and the streams are over at
        once.
        """
        if (
            self.build.replay is not None
            or self.settings.reemit
            or restored.describe.get(DUE)
            or self.build.shared
            or self.linked
            or not had_ended(restored)
        ):
            return False
        keep_finals(restored, self.settings.coordinator)
        self.was_complete = True
        self._over.set_result(None)
        return True

    # -- checkpoints --------------------------------------------------------------------------------------------------

    def _commit(self, manifest: Manifest) -> None:
        for _, task, source in self.build.inputs:
            stored = manifest.tasks.get(task.name)
            if stored is not None:
                source.request_commit(positions_in(stored.meta["input"]))

    # -- running ------------------------------------------------------------------------------------------------------

    @property
    def tasks(self) -> list[StreamTask]:
        """The tasks, upstream first."""
        return self.build.tasks

    @property
    def running(self) -> asyncio.Future[None]:
        """A future that is done when every task has ended. It raises the error of a task that failed."""
        return self._over

    @property
    def failure(self) -> BaseException | None:
        """The error of the first task that failed, or None."""
        return self._over.exception() if self._over.done() and not self._over.cancelled() else None

    @property
    def broken(self) -> bool:
        """True if a task has failed, so no checkpoint can be taken any more."""
        return any(task.error is not None for task in self.tasks)

    def _task_over(self, task: StreamTask) -> None:
        """Called in the task's thread when the task has ended."""
        call_on_loop(self._loop, self._count_out, task)

    def _count_out(self, task: StreamTask) -> None:
        self._left -= 1
        if self._over.done():
            return
        if task.error is not None:
            self.settings.coordinator.refuse(f"task {task.name} has failed: {task.error}")
            self._over.set_exception(task.error)
            for other in self.tasks:
                other.stop()
            if not self.awaited:
                self.on_failed(task.error)
        elif self._left == 0:
            self._over.set_result(None)

    def hold(self, held: bool) -> None:
        """Pauses reading while `held`; barriers pass. From any thread."""
        for _, _, source in self.build.inputs:
            source.hold(held)

    async def stop(self, *, drain: bool) -> None:
        """Stops reading. `drain`: True to process the rows that were read to their end: windows close, tasks end."""
        for _, _, source in self.build.inputs:
            source.end() if drain else source.pause()
        if drain and self.tasks:
            await asyncio.wait([self._over])

    async def close(self) -> None:
        """Ends the threads, and closes everything. Idempotent."""
        if self._closed:
            return
        self._closed = True
        end_judging(self)
        self.build.cancelled.set()
        if self.started:
            interpreter.restore()
        coordinator = self.settings.coordinator
        if self._commit in coordinator.on_complete:
            coordinator.on_complete.remove(self._commit)
        for task in self.tasks:
            coordinator.abandon(task.name)
        self.left += await run_in_thread(_close, [task for task in self.tasks if task.built])
        self.build.give_back_sources()
        if self._over.done() and not self._over.cancelled():
            self._over.exception()  # whoever ran the app has reported it
        elif not self._over.done():
            self._over.cancel()

    @property
    def left_behind(self) -> list[str]:
        """The user's calls that refused to be cancelled. Valid after `close`."""
        tasks = [task for task in self.tasks if task.built]
        return [call for task in tasks for operator in task.chain.waiting for call in operator.left_behind]

    # -- figures ------------------------------------------------------------------------------------------------------

    def progress(self) -> tuple[float, float] | None:
        """Returns the bytes read and the total bytes of the bounded sources, or None if there are none."""
        parts = [part for _, _, source in self.build.inputs if (part := source.progress()) is not None]
        return (sum(part[0] for part in parts), sum(part[1] for part in parts)) if parts else None

    def statistics(self) -> "dict[str, ToldTask]":
        """Returns the figures of each task. From any thread."""
        return {task.name: task.statistics() | {"input": task.input.statistics()} for task in self.tasks if task.built}

    def tap(self, point: TapPoint, rows: int | None = None) -> list[pa.RecordBatch]:
        """Begins to copy rows at this point, or goes on for six seconds more. Returns the rows since the last call, at most 50 for each
        second. From any thread.

        `rows`: the most that each task copies in a second; default: its share of 50.
        """
        tasks = tapped(self.tasks, point)
        return self._taps.take(tasks, point, share_of(len(tasks)) if rows is None else rows)

    def samples(self) -> Iterator[Sample]:
        """Yields metrics samples. From any thread."""
        now_ms = self.settings.clock.time() * 1000
        for reading, task, source in [*self.build.inputs, *self.build.of_agents]:
            topic = reading.node.name
            yield Sample("sabot_records_in_total", source.rows_in, task.name, topic)
            yield Sample("sabot_dead_letters_total", source.dead_letters, task.name, topic)
            if reading.timed and task.watermark_ms is not None:
                yield Sample("sabot_watermark_lag_seconds", (now_ms - task.watermark_ms) / 1000, task.name, topic)
            if backlog := source.backlog:
                yield Sample("sabot_backlog_records", backlog, task.name, topic)
            for (name, partition), lag in source.unread().items():
                yield Sample("sabot_consumer_lag", lag, task.name, name, str(partition))
            for reason, count in source.reasons.statistics().items():
                yield Sample("sabot_dead_letter_reasons_total", count, task.name, topic, reason)
        for task in self.tasks:
            yield from task_samples(task)
            yield Sample("sabot_checkpoint_sync_seconds", task.cut_seconds, task.name)
            if isinstance(task.input, GateInput):
                aligned = task.input.gate.statistics()["alignment_seconds"]
                yield Sample("sabot_checkpoint_alignment_seconds", aligned, task.name)
                yield Sample("sabot_channel_rows", task.input.gate.statistics()["rows"], task.name, "")
            for operator in task.chain.operators:
                figures: Mapping[str, Any] = operator.statistics()
                if figures.get("nulled"):
                    yield Sample("sabot_sink_nulled_total", figures["nulled"], task.name, operator.step.id)
                if "rows_out" in figures:
                    yield Sample("sabot_records_out_total", figures["rows_out"], task.name, operator.step.id)


def _nothing(checkpoint_id: int) -> None:
    """Does nothing: a task that reads channels gets the barrier from them, and need not be asked for it."""


def _close(tasks: list[StreamTask]) -> list[tuple[str, Handle]]:
    """Closes the tasks, with the result of `close_tasks`, and returns their memory to the system; allocators would
    keep it.
    """
    left = close_tasks(tasks, _JOIN_SECONDS)
    pa.default_memory_pool().release_unused()
    give_back()
    return left
