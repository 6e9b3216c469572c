"""Drives checkpoints: asks the tasks for barriers, collects their snapshots, and combines them into a checkpoint.

The life of a checkpoint, top to bottom in this file:

    trigger      gives the checkpoint its id; it waits until the checkpoint before it has ended
    _start       asks every attached task to emit its barrier; from here there is a deadline
    acknowledge  a task hands over its snapshot. If a task declines, the checkpoint fails; if a task ends (detach), the
                 checkpoint no longer waits for it
    _write       saves the snapshots outside of the event loop, and the manifest last
    _complete    the sources may commit             or   _fail   every task drops the checkpoint; the app runs on

A failed checkpoint harms nothing else: it leaves no barrier and no file, and recovery uses the checkpoint before it.
From the moment a task hands over its snapshot the coordinator owns it, and always discards it in the end, even a
snapshot that comes too late.
"""

import asyncio
import logging
import re
import threading
from abc import ABC, abstractmethod
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from dataclasses import field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from sabot.base.config import Duration, parse_seconds
from sabot.base.dataclass import dataclass
from sabot.base.disk import link_or_copy, make_folder, private
from sabot.base.process_exit import EXITS, wrap_exit
from sabot.base.supervision import watch_call, watch_task
from sabot.base.threads import run_in_thread
from sabot.clock import SYSTEM_CLOCK, Clock
from sabot.engine.checkpoint.manifest import Manifest, StoredTask, StoredTrack
from sabot.engine.checkpoint.places import StoredFile
from sabot.engine.checkpoint.storage import CheckpointStorage
from sabot.engine.checkpoint.task_states import FinalState, StoredState, save_states
from sabot.engine.state.base import Cut, Snapshot
from sabot.errors import AppLocked, CheckpointFailed, SabotError, StorageLost, UserError

if TYPE_CHECKING:
    from sabot.base.figures import ToldCheckpoints

_log = logging.getLogger(__name__)

_OUTCOMES_KEPT = 128  # results of ended checkpoints that `wait` still returns
_UNFINISHED_MAX = 128  # checkpoints in flight and queued behind it


@dataclass
class TaskSnapshot:
    """The state of a task at its barrier.

    `meta`: JSON values with string keys, which are written into the manifest. `files`: small blobs, or paths of files
    that contain them. `states`: large state, by name: cuts, or the `snapshot` of a user's own backend. `sealed`: for
    each exactly-once sink that the task writes, the number of the last part before the barrier. `times`: seconds that the
    snapshot has taken, by name as in `StoredTask.times`. `last`: for a task
    that has ended for good, a smaller snapshot (fewer states), which checkpoints contain once all tasks have ended;
    else None.
    """

    meta: dict[str, Any] = field(default_factory=dict)
    files: dict[str, bytes | Path | StoredFile] = field(default_factory=dict)
    states: Mapping[str, Cut | Snapshot] = field(default_factory=dict)
    sealed: Mapping[str, int] = field(default_factory=dict)
    times: Mapping[str, float] = field(default_factory=dict)
    last: "TaskSnapshot | None" = None

    def discard(self) -> None:
        """Discards every state in it."""
        for name, state in self.states.items():
            try:
                state.discard()
            except Exception:
                # the other states must be discarded too; the next start removes files that this one leaves
                _log.exception("state %s could not be discarded", name)


@dataclass(frozen=True)
class _Task:
    """A task that takes part, by the functions that the coordinator calls."""

    inject: Callable[[int], None]
    abort: Callable[[int], None]
    hint: Callable[[], str] | None
    saving: Callable[[], bool]


@dataclass
class _InFlight:
    """The checkpoint that is under way."""

    checkpoint_id: int
    started: float
    deadline: float
    waiting: set[str]
    # Last snapshots of tasks that had ended before, or ended while the checkpoint waited for them.
    finals: dict[str, TaskSnapshot]
    cuts: dict[str, TaskSnapshot] = field(default_factory=dict)
    reached: dict[str, float] = field(default_factory=dict)  # by task, the seconds until its snapshot was taken
    writing: bool = False
    writer: asyncio.Task[None] | None = None
    timer: asyncio.TimerHandle | None = None

    def snapshots(self) -> dict[str, TaskSnapshot]:
        """Returns the snapshots by task name, sorted: those at the barrier, and the final ones of tasks that have
        ended. If all tasks have ended for good, returns their smaller snapshots (`TaskSnapshot.last`).
        """
        last = {name: final.last for name, final in self.finals.items() if final.last is not None}
        over = not self.cuts and len(last) == len(self.finals)
        return dict(sorted((last if over else self.finals | self.cuts).items()))


class SavedOutput(ABC):
    """Output that is saved with each checkpoint and delivered once the checkpoint is complete (`sabot.engine.delivery`)."""

    @abstractmethod
    def compose(self, sealed: Mapping[str, int]) -> tuple[dict[str, StoredTrack], dict[str, Path | StoredFile]]:
        """Returns the manifest's entry of each track, and the files of its parts by their path in the checkpoint.

        `sealed`: by track, the number of the part that its task sealed last before it passed the barrier on.
        """
        ...

    @abstractmethod
    def release(self, manifest: Manifest) -> None:
        """Delivers the output that the manifest lists, because the checkpoint is complete. Does not wait for the
        delivery.
        """
        ...


class Coordinator:
    """Makes the checkpoints of one app, one at a time.

    `timeout`: the longest time from the request for barriers until all snapshots are there. Writing them has no
    time-out, because a thread that waits for a disk cannot be stopped. `describe`: JSON values that are written into
    every manifest. `trigger`, `acknowledge`, `decline` and `detach` may be called from any thread, all other methods
    on the event loop. Without storage a checkpoint is complete when all tasks have acknowledged, and only its
    manifest is kept, in memory.
    """

    def __init__(
        self,
        storage: CheckpointStorage | None = None,
        *,
        timeout: Duration = "60s",
        clock: Clock = SYSTEM_CLOCK,
        describe: Mapping[str, Any] | None = None,
    ) -> None:
        self.storage = storage
        self.delivery: SavedOutput | None = None  # the output that is saved with each checkpoint
        self.on_complete: list[Callable[[Manifest], None]] = []
        # Called with the id of the oldest remaining checkpoint: data that only older ones need may be removed.
        self.on_retained: list[Callable[[int], None]] = []
        self.on_failed: Callable[[], None] = lambda: None
        # Called when another worker has taken the app over, and when no checkpoint can be made any more.
        self.on_lost: Callable[[SabotError], None] = lambda error: None
        self.on_broken: Callable[[SabotError], None] = _told
        self._timeout = parse_seconds(timeout, name="checkpoint timeout")
        self._clock = clock
        self._describe = dict(describe or {})
        self._incarnation = ""
        self._tasks: dict[str, _Task] = {}
        self._finals: dict[str, TaskSnapshot] = {}
        self._replaced_finals: list[TaskSnapshot] = []  # not discarded yet: the checkpoint being written may need them
        self._loop: asyncio.AbstractEventLoop | None = None
        self._triggering = threading.RLock()  # ids start in the order in which they are given out
        self._last_id: int | None = None  # None if not yet read from the storage
        self._unfinished: set[int] = set()
        self._queue: deque[int] = deque()
        self._starting = False
        self._refused = ""  # the reason why no checkpoint can be taken, or ""
        self._in_flight: _InFlight | None = None
        self._outcomes: OrderedDict[int, Manifest | CheckpointFailed] = OrderedDict()
        self._waiters: dict[int, list[asyncio.Future[None]]] = {}
        self._oldest: int | None = None  # the oldest remaining checkpoint, or None if not known
        self._completed = self._failed = self._last_completed = self._last_bytes = 0
        self._last_seconds = 0.0
        self._last_error = ""
        self._last_at: float | None = None
        self._failed_at: float | None = None

    def keep_in(self, storage: CheckpointStorage, describe: Mapping[str, Any], incarnation: str = "") -> None:
        """Writes all later checkpoints into `storage`. Their ids are greater than those in the storage and those used
        so far.

        `describe`: JSON values for each manifest. `incarnation`: the id of the app since its last fresh start, or "".
        """
        self.storage = storage
        self._describe = dict(describe)
        self._incarnation = incarnation
        self.begin_after(storage.last_id())

    def begin_after(self, checkpoint_id: int) -> None:
        """Makes all later ids greater than this one, which was given out elsewhere."""
        if self._last_id is None:
            self._last_id = self.storage.last_id() if self.storage is not None else 0
        self._last_id = max(self._last_id, checkpoint_id)

    # Taking part

    def attach(
        self,
        task: str,
        inject: Callable[[int], None],
        abort: Callable[[int], None],
        hint: Callable[[], str] | None = None,
        saving: Callable[[], bool] = lambda: False,
    ) -> None:
        """Adds a running task. Attach all tasks of an app before the first trigger: a manifest lists only the tasks
        that took part. Raises UserError for a name that is attached already.

        `inject(id)`: asks the task to emit its barrier. `abort(id)`: asks it to drop that barrier, even one that it
        never saw. These two are called on the event loop and must not block. `hint()`: returns what the task is
        doing, for the error of a checkpoint that timed out. `saving()`: returns True if the task's snapshot is taken
        and another process is saving it; the time-out is suspended meanwhile. A checkpoint in flight goes on without
        the new task.
        """
        self._remember_loop()
        if task in self._tasks:
            raise UserError(f"task {task!r} is attached already", hint="give every task of an app its own name")
        self._tasks[task] = _Task(inject, abort, hint, saving)
        self._replace_final(task, None)

    def detach(self, task: str, final: TaskSnapshot | None = None) -> None:
        """Removes a task that ended or failed: no checkpoint waits for it any more.

        `final`: its last snapshot, which is part of all later checkpoints, and of the one in flight if that waited
        for the task. None if the task had nothing to save: later manifests do not list it. A task that has passed a
        barrier on must acknowledge or decline that checkpoint before it detaches, because `final` is newer than the
        barrier.
        """
        self._on_loop(self._detach, task, final)

    def _detach(self, task: str, final: TaskSnapshot | None) -> None:
        if final is not None and self.storage is not None:
            kept = {
                name: state if isinstance(state, StoredState) else FinalState(state, self.storage)
                for name, state in final.states.items()
            }
            last = final.last
            if last is not None:
                last = replace(last, states={name: kept[name] for name in last.states})
            final = TaskSnapshot(final.meta, final.files, kept, final.sealed, last=last)
        self._tasks.pop(task, None)
        self._replace_final(task, final)
        flight = self._in_flight
        if flight is not None and task in flight.waiting:
            if final is not None:
                flight.finals[task] = final
            flight.waiting.discard(task)
            self._write_if_all_in(flight)

    def refuse(self, why: str) -> None:
        """Fails the checkpoint in flight and all later ones until `close`, because a task has failed. `why`: the
        reason, for the errors.
        """
        self._on_loop(self._refuse, why)

    def _refuse(self, why: str) -> None:
        self._refused = why
        if self._in_flight is not None and self._in_flight.waiting:
            self._fail(self._in_flight, why)

    def abandon(self, task: str) -> None:
        """Removes a task that is gone without a last snapshot: a checkpoint that waits for it fails, and later ones
        do not list it.
        """
        self._on_loop(self._abandon, task)

    def _abandon(self, task: str) -> None:
        flight = self._in_flight
        if flight is not None and task in flight.waiting:
            self._fail(flight, f"task {task} is gone")
        self._tasks.pop(task, None)
        self._replace_final(task, None)

    def _replace_final(self, task: str, final: TaskSnapshot | None) -> None:
        before = self._finals.pop(task, None)
        if before is not None:
            self._replaced_finals.append(before)
        if final is not None:
            self._finals[task] = final
        if self._in_flight is None:
            self._discard_replaced_finals()

    def _discard_replaced_finals(self) -> None:
        for final in self._replaced_finals:
            final.discard()
        self._replaced_finals.clear()

    # Triggering

    def trigger(self) -> int:
        """Asks for a checkpoint. Returns its id, which is greater than all earlier ids, also of earlier runs. Raises
        UserError if too many checkpoints wait.

        If no task is attached, the checkpoint is complete when this returns. Only if there is storage and ended tasks
        left final snapshots, these are written in the background.
        """
        with self._triggering:
            if len(self._unfinished) >= _UNFINISHED_MAX:
                raise UserError(f"{_UNFINISHED_MAX} checkpoints wait already", hint="wait() for one before the next")
            if self._last_id is None:
                self._last_id = self.storage.last_id() if self.storage is not None else 0
            self._last_id += 1
            checkpoint_id = self._last_id
            self._unfinished.add(checkpoint_id)
            self._queue.append(checkpoint_id)
            self._on_loop(self._start_next)
            return checkpoint_id

    def beat(self) -> int | None:
        """Runs one round of `run`: triggers a checkpoint and returns its id. Returns None without one if a checkpoint
        is under way, if no task runs (nothing is new), or after `refuse`.
        """
        if self._unfinished or not self._tasks or self._refused:
            return None
        try:
            return self.trigger()
        except Exception:  # the next round tries again
            _log.exception("no checkpoint could be triggered")
            return None

    async def run(self, interval: Duration) -> None:
        """Triggers a checkpoint each `interval` until cancelled. A failed checkpoint is logged, and the next one is
        tried, except after `refuse`. Raises UserError for an interval of zero.
        """
        seconds = parse_seconds(interval, name="checkpoint interval")
        if seconds == 0:
            raise UserError("the checkpoint interval is zero", hint='write "1s", or a number of seconds')
        self._remember_loop()
        while True:
            await asyncio.sleep(seconds)
            self.beat()

    async def wait(self, checkpoint_id: int) -> Manifest:
        """Waits until the checkpoint is complete. Returns its manifest. Raises CheckpointFailed with the reason if
        the checkpoint fails, and UserError for an id that is unknown or was too long ago.
        """
        self._remember_loop()
        while (outcome := self._outcomes.get(checkpoint_id)) is None:
            if checkpoint_id not in self._unfinished:
                raise UserError(f"checkpoint {checkpoint_id} is not known", hint="wait for an id from trigger()")
            ended = asyncio.get_running_loop().create_future()
            self._waiters.setdefault(checkpoint_id, []).append(ended)
            await ended
        if isinstance(outcome, Manifest):
            return outcome
        raise CheckpointFailed(outcome.message, hint=outcome.hint) from outcome.__cause__

    async def take(self) -> Manifest:
        """Takes a checkpoint now. Returns its manifest when all tasks have acknowledged it. Raises CheckpointFailed."""
        return await self.wait(self.trigger())

    # Barriers

    def _start_next(self) -> None:
        if self._starting:
            return  # a checkpoint that ends inside _start calls this again; the loop below takes the next one
        self._starting = True
        try:
            while self._in_flight is None and self._queue:
                self._start(self._queue.popleft())
        finally:
            self._starting = False

    def _start(self, checkpoint_id: int) -> None:
        now_s = self._clock.monotonic()
        flight = _InFlight(checkpoint_id, now_s, now_s + self._timeout, set(self._tasks), dict(self._finals))
        self._in_flight = flight
        if self._refused:
            self._fail(flight, self._refused)
            return
        self._set_timer(flight)
        for name, task in list(self._tasks.items()):
            try:
                task.inject(checkpoint_id)
            except Exception as error:
                self._fail(flight, f"task {name} could not emit its barrier: {error!r}", cause=error)
            if self._in_flight is not flight:  # it has just failed, or a task declined inside `inject`
                return
        self._write_if_all_in(flight)

    def acknowledge(self, checkpoint_id: int, task: str, snapshot: TaskSnapshot) -> None:
        """Receives the snapshot of a task that has passed its barrier on. From now on the coordinator owns `snapshot`
        and discards it.
        """
        self._on_loop(self._acknowledge, checkpoint_id, task, snapshot)

    def _acknowledge(self, checkpoint_id: int, task: str, snapshot: TaskSnapshot) -> None:
        flight = self._in_flight
        if flight is None or flight.checkpoint_id != checkpoint_id or task not in flight.waiting:
            snapshot.discard()  # too late, or twice
            return
        flight.waiting.discard(task)
        flight.cuts[task] = snapshot
        # A worker acknowledges a snapshot when it has saved it.
        flight.reached[task] = self._clock.monotonic() - flight.started - snapshot.times.get("saved", 0.0)
        self._write_if_all_in(flight)

    def decline(self, checkpoint_id: int, task: str, reason: str) -> None:
        """Fails the checkpoint because the task cannot take its snapshot. Has no effect on a checkpoint that has
        ended.
        """
        self._on_loop(self._decline, checkpoint_id, task, reason)

    def _decline(self, checkpoint_id: int, task: str, reason: str) -> None:
        flight = self._in_flight
        if flight is not None and flight.checkpoint_id == checkpoint_id and task in flight.waiting:
            self._fail(flight, f"task {task} declined: {reason}")

    def check_timeouts(self) -> None:
        """Fails the checkpoint in flight if its time-out has passed, unless all cuts are taken and are only being
        saved. A timer calls this; tests with a ManualClock call it themselves.
        """
        flight = self._in_flight
        if flight is None or not flight.waiting:
            return
        now_s = self._clock.monotonic()
        if now_s >= flight.deadline and all(self._tasks[name].saving() for name in flight.waiting):
            # Saving a large state takes long on slow storage. If the checkpoint failed, each later one would begin to save it
            # again, and none would be complete.
            flight.deadline = now_s + self._timeout
            _log.warning(
                "checkpoint %d: the state of %s is still being saved after %.0f s; no other checkpoint begins before it ends",
                flight.checkpoint_id,
                ", ".join(sorted(flight.waiting)),
                now_s - flight.started,
            )
        if now_s < flight.deadline:
            self._set_timer(flight)
            return
        missing = ", ".join(self._busy(name) for name in sorted(flight.waiting))
        self._fail(
            flight,
            f"timed out after {self._timeout:g} s, still waiting for {missing}",
        )

    def _busy(self, name: str) -> str:
        task = self._tasks[name]
        if task.hint is None:
            return name
        try:
            return f"{name}: {task.hint()}"
        except Exception as error:  # an error of the hint must not replace the time-out
            return f"{name} (its hint failed: {error!r})"

    def _set_timer(self, flight: _InFlight) -> None:
        loop = _running_loop()
        if loop is not None:
            remaining = flight.deadline - self._clock.monotonic()
            flight.timer = loop.call_later(max(remaining, 0.001), self.check_timeouts)

    # Writing

    def _write_if_all_in(self, flight: _InFlight) -> None:
        if self._in_flight is not flight or flight.waiting or flight.writing:
            return
        flight.writing = True
        if self.storage is None or not (flight.cuts or flight.finals):
            self._complete(flight, self._manifest(flight)[0])
        elif _running_loop() is None:
            asyncio.run(self._write(flight, self.storage))
        else:
            writer = asyncio.create_task(self._write(flight, self.storage), name="sabot checkpoint writer")
            flight.writer = watch_task(writer, f"the writer of checkpoint {flight.checkpoint_id}", self._broke)

    def _broke(self, error: SabotError) -> None:
        """Handles an error inside the coordinator itself: waiting callers get it, and no further checkpoint is tried."""
        self._refused = self._refused or str(error)
        flight, self._in_flight = self._in_flight, None
        for checkpoint_id in [*([] if flight is None else [flight.checkpoint_id]), *self._queue]:
            self._settle(checkpoint_id, self._failure(checkpoint_id, str(error), cause=error))
        self._queue.clear()
        self.on_broken(error)

    async def _write(self, flight: _InFlight, storage: CheckpointStorage) -> None:
        try:
            manifest = await self._save(flight, storage)
        except asyncio.CancelledError:
            storage.abort(flight.checkpoint_id)  # waits for a thread that is inside `commit`
            self._fail(flight, "cancelled while it was written")
            raise
        except (Exception, *EXITS) as error:
            storage.abort(flight.checkpoint_id)
            why = f"it could not be written to {storage.directory}: {error!r}"
            hint = ""
            if isinstance(error, SabotError):
                why, hint = error.message, error.hint
            self._fail(flight, why, hint=hint, cause=error)
            if isinstance(error, AppLocked | StorageLost):
                self.on_lost(error)
            elif isinstance(error, EXITS):
                self.on_lost(wrap_exit(error, "the user's snapshot"))
        else:
            self._complete(flight, manifest)

    async def _save(self, flight: _InFlight, storage: CheckpointStorage) -> Manifest:
        """Saves the states, then the small files and the output, then the manifest."""
        manifest, parts = self._manifest(flight)
        with storage.explained():
            directory = await run_in_thread(storage.begin, flight.checkpoint_id)
            files: dict[str, bytes | Path | StoredFile] = dict(parts)
            states: dict[str, Cut | Snapshot] = {}
            for name, snapshot in flight.snapshots().items():
                stored = manifest.tasks[name]
                for state, path in stored.states.items():
                    cut = snapshot.states[state]
                    if isinstance(cut, StoredState):
                        files.update({f"{path}/{below}": file for below, file in cut.files.items()})
                    else:
                        states[path] = cut
                files.update({path: snapshot.files[file] for file, path in stored.files.items()})
            saved = await save_states(states, directory)
            manifest = _timed(manifest, flight.reached, saved)
            manifest, self._oldest = await run_in_thread(
                _finish, storage, manifest, directory, files, lambda: self._clock.monotonic() - flight.started
            )
            return manifest

    def _manifest(self, flight: _InFlight) -> tuple[Manifest, dict[str, Path | StoredFile]]:
        """Returns the manifest without its contents, and the files of output by their path in the checkpoint."""
        tasks = {}
        for i, (name, snapshot) in enumerate(flight.snapshots().items()):
            folder = _path(i, name)
            tasks[name] = StoredTask(
                meta=snapshot.meta,
                files={file: f"{folder}/files/{_path(j, file)}" for j, file in enumerate(sorted(snapshot.files))},
                states={state: f"{folder}/states/{_path(j, state)}" for j, state in enumerate(sorted(snapshot.states))},
                times={name: round(seconds, 6) for name, seconds in snapshot.times.items()},
            )
        sealed: dict[str, int] = {}
        for snapshot in flight.snapshots().values():
            sealed.update(snapshot.sealed)
        tracks, parts = ({}, {}) if self.delivery is None else self.delivery.compose(sealed)
        generation = 0 if self.storage is None else self.storage.generation
        manifest = Manifest(
            flight.checkpoint_id,
            int(self._clock.time() * 1000),
            self._describe,
            tasks,
            tracks,
            self._incarnation,
            generation,
        )
        return manifest, parts

    # Complete or failed

    def _complete(self, flight: _InFlight, manifest: Manifest) -> None:
        self._completed += 1
        self._last_completed = flight.checkpoint_id
        self._last_at = self._clock.time()
        self._last_seconds = self._clock.monotonic() - flight.started
        self._last_bytes = manifest.nbytes
        if self.delivery is not None and manifest.place is not None:  # a checkpoint without tasks is not stored
            self.delivery.release(manifest)
        callbacks: list[Callable[[], None]] = [partial(callback, manifest) for callback in self.on_complete]
        if self._oldest is not None:
            callbacks += [partial(callback, self._oldest) for callback in self.on_retained]
        for callback in callbacks:
            try:
                callback()
            except Exception:  # the checkpoint is safe anyway, and the other callbacks must run
                _log.exception("checkpoint %d is complete, but a callback failed", flight.checkpoint_id)
        self._end(flight, manifest)

    def _fail(self, flight: _InFlight, why: str, *, hint: str = "", cause: BaseException | None = None) -> None:
        flight.waiting.clear()  # later answers of tasks, even from inside `abort`, are too late
        flight.writing = True
        for name, task in list(self._tasks.items()):
            try:
                task.abort(flight.checkpoint_id)
            except Exception:  # the other tasks must drop the barrier too
                _log.exception("task %s could not abort checkpoint %d", name, flight.checkpoint_id)
        self._end(flight, self._failure(flight.checkpoint_id, why, hint=hint, cause=cause))
        self.on_failed()

    def _failure(
        self, checkpoint_id: int, why: str, *, hint: str = "", cause: BaseException | None = None
    ) -> CheckpointFailed:
        error = CheckpointFailed(f"checkpoint {checkpoint_id}: {why}", hint=hint)
        error.__cause__ = cause
        self._failed += 1
        self._last_error = str(error)
        self._failed_at = self._clock.time()
        if self._refused:  # the failure was reported when it happened
            _log.debug("%s", error)
        else:
            _log.warning("%s; the app goes on, and the checkpoint before it stays valid", error)
        return error

    def _end(self, flight: _InFlight, outcome: Manifest | CheckpointFailed) -> None:
        if flight.timer is not None:
            flight.timer.cancel()
        self._in_flight = None
        for snapshot in flight.cuts.values():
            snapshot.discard()
        self._discard_replaced_finals()
        self._settle(flight.checkpoint_id, outcome)
        self._start_next()

    def _settle(self, checkpoint_id: int, outcome: Manifest | CheckpointFailed) -> None:
        self._outcomes[checkpoint_id] = outcome
        if len(self._outcomes) > _OUTCOMES_KEPT:
            self._outcomes.popitem(last=False)
        self._unfinished.discard(checkpoint_id)
        for waiter in self._waiters.pop(checkpoint_id, []):
            if not waiter.done():
                waiter.set_result(None)

    async def close(self) -> None:
        """Fails the queued checkpoints, aborts the one in flight (or waits until it is written), and discards the
        final snapshots.
        """
        while self._queue:
            checkpoint_id = self._queue.popleft()
            self._settle(checkpoint_id, self._failure(checkpoint_id, "the app is stopping"))
        flight = self._in_flight
        if flight is not None and flight.writer is not None:
            await asyncio.wait({flight.writer})
        elif flight is not None:
            self._fail(flight, "the app is stopping")
        for task in list(self._finals):
            self._replace_final(task, None)
        self._refused = ""

    def statistics(self) -> "ToldCheckpoints":
        """Returns the figures since the start. From any thread."""
        return {
            "completed": self._completed,
            "failed": self._failed,
            "last_id": self._last_completed,
            "last_seconds": self._last_seconds,
            "last_bytes": self._last_bytes,
            "oldest_id": self._oldest or 0,
            "in_flight": self._in_flight.checkpoint_id if self._in_flight is not None else 0,
            "last_error": self._last_error,
            "last_at": self._last_at,
            "failed_at": self._failed_at,
        }

    # Threads

    def _remember_loop(self) -> None:
        if self._loop is None or not self._loop.is_running():
            self._loop = _running_loop()

    def _on_loop(self, step: Callable[..., None], *args: Any) -> None:
        """Calls step(*args) on the event loop; at once if this is the loop's thread, or no loop runs."""
        self._remember_loop()
        if self._loop is None or self._loop is _running_loop():
            step(*args)
        else:
            self._loop.call_soon_threadsafe(watch_call(step, "a step of a checkpoint", self._broke), *args)


def _told(error: SabotError) -> None:
    _log.error("%s", error)


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _path(index: int, name: str) -> str:
    """Returns a file name in which people recognise `name`; the index makes it unique, whatever characters the name
    has.
    """
    return f"{index:04d}-{re.sub('[^A-Za-z0-9._-]+', '_', name)[:80]}"


def _timed(manifest: Manifest, reached: Mapping[str, float], saved: Mapping[str, float]) -> Manifest:
    """Returns the manifest with the seconds of its tasks. `reached`: by task. `saved`: by the path of a state."""
    tasks = dict(manifest.tasks)
    for name in reached:
        task = tasks[name]
        own = sum(saved.get(path, 0.0) for path in task.states.values())
        times = {"saved": round(own, 6), **task.times, "reached": round(reached[name], 6)}
        tasks[name] = msgspec.structs.replace(task, times=times)
    return msgspec.structs.replace(manifest, tasks=tasks)


def _finish(
    storage: CheckpointStorage,
    manifest: Manifest,
    directory: Path,
    files: Mapping[str, bytes | Path | StoredFile],
    seconds: Callable[[], float],
) -> tuple[Manifest, int | None]:
    """Stores a checkpoint, in a thread. Blocks. `seconds`: see `CheckpointStorage.commit`. Returns the stored
    manifest and the oldest remaining checkpoint (None if
    unknown).
    """
    stored = {path: file for path, file in files.items() if isinstance(file, StoredFile)}
    for path, file in files.items():
        if isinstance(file, StoredFile):
            continue
        make_folder((directory / path).parent)
        if isinstance(file, Path):
            link_or_copy(file, directory / path)
            continue
        with open(directory / path, "xb", opener=private) as out:
            out.write(file)
    manifest = storage.commit(manifest.checkpoint_id, manifest, stored, seconds)
    try:
        return manifest, storage.drop_old()
    except OSError as error:  # the new checkpoint is safe; the next one tries to remove the old ones again
        _log.warning("old checkpoints in %s could not be removed: %s", storage.directory, error)
    return manifest, None
