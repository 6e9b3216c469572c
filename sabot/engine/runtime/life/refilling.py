"""Computes the state of steps again before a start, from their topics, and stores it as a new checkpoint.

    the checkpoint ──▶ positions ──▶ a run of the steps before, up to there, without sinks ──▶ their state ─┐
          └──────────── all other state, positions, output that waits ──────────────────────────────────────┴──▶ a new checkpoint

The run is private: its checkpoint is in a folder that the next start removes, it commits no offsets, and its rows go nowhere. The new
checkpoint is stored in one step, as every checkpoint. So a crash before that leaves the earlier checkpoint, and one after it leaves a
start without a refill. If the start is refused after that, for another reason, it removes the new checkpoint.
"""

import asyncio
import logging
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from sabot.api.agent import AgentSpec
from sabot.api.nodes.read import Read, StreamEnd
from sabot.base.disk import make_folder
from sabot.base.threads import call_on_loop, run_in_thread
from sabot.clock import SYSTEM_CLOCK
from sabot.connectors.base import Source, TakesBound
from sabot.connectors.memory import CountSink
from sabot.connectors.places import Place
from sabot.engine.checkpoint import CheckpointStorage, Coordinator, Manifest, StoredTask
from sabot.engine.checkpoint.task_states import RestoredState
from sabot.engine.plan import Refill, check, ending, ending_at, walk
from sabot.engine.runtime.app_spec import AppSpec
from sabot.engine.runtime.life.local_streams import LocalStreams
from sabot.engine.runtime.life.restore import DUE, Asked, Decided, decide, known_columns, plan_of, stored_streams
from sabot.engine.runtime.tasks.inference import StoppedEarly
from sabot.engine.runtime.tasks.replay import Replay
from sabot.engine.state.files import remove_tree

_log = logging.getLogger(__name__)


class Refilling:
    """The refilling of the steps of an app, from one of its checkpoints."""

    def __init__(
        self,
        app: AppSpec,
        ends: Sequence[StreamEnd],
        agents: Sequence[AgentSpec],
        storage: CheckpointStorage,
        manifest: Manifest,
    ) -> None:
        """`storage`: that of the app's checkpoints, where the new one is stored."""
        self._app, self._agents = app, agents
        self._ends = ending(ends, app.settings.end_at)
        self._storage, self._manifest = storage, manifest
        self._due: list[str] = []  # the sinks into which tables are written again
        self._given_up: set[str] = set()  # the ids of state in the checkpoint that no step of the program has
        self._saved_as: dict[str, str] = {}  # by the id of a step that is computed again: its id in the checkpoints

    def look(self, asked: Asked) -> Decided:
        """Returns what the start does with the state, and how the steps are refilled for which the user asks. Raises
        UserError if the start would be refused, or if the state cannot be computed again. Blocks.
        """
        manifest = self._manifest
        plan = plan_of(
            self._ends,
            manifest,
            agents=self._agents,
            parallelism=self._app.settings.parallelism,
            infer=known_columns,
            refresh=self._app.settings.refresh_schema,
        )
        is_savepoint = manifest.home().where != self._storage.directory
        decided = decide(plan, manifest, asked, start_at=self._app.settings.start_at, is_savepoint=is_savepoint)
        check(decided.verdicts, manifest.checkpoint_id)
        again = (each for each in decided.verdicts if each.outcome == "refill")
        self._saved_as = {each.id: each.saved_as for each in again if each.saved_as}
        self._due = [decided.tables[stage].sink for stage in decided.reemits if stage in decided.tables]
        self._given_up = {each.id for each in decided.verdicts if each.outcome == "drop" and each.given_up}
        return decided

    async def run(self, refill: Refill, stop_asked: asyncio.Event) -> Manifest:
        """Computes the state again. Returns the new checkpoint, which is stored. Raises the errors of the sources and steps, and
        StoppedEarly if a stop is requested meanwhile; then nothing is stored.
        """
        names, sources = ", ".join(sorted(refill.topics)), ", ".join(refill.sources)
        _log.info(
            "%s: refilled from %s, up to the positions of checkpoint %d", names, sources, self._manifest.checkpoint_id
        )
        began = SYSTEM_CLOCK.monotonic()
        folder = await run_in_thread(self._storage.keep)
        try:
            made, rows = await self._replayed(refill, folder, stop_asked)
            manifest = await run_in_thread(self._stored, made, refill)
        finally:
            await run_in_thread(remove_tree, folder)
        seconds = SYSTEM_CLOCK.monotonic() - began
        _log.info(
            "%s: refilled with %d rows of %s in %.1f s, as checkpoint %d",
            names,
            rows,
            sources,
            seconds,
            manifest.checkpoint_id,
        )
        return manifest

    async def _replayed(self, refill: Refill, folder: Path, stop_asked: asyncio.Event) -> tuple[Manifest, int]:
        """Returns the checkpoint of the private run, and the number of rows that it has read."""
        app, loop, reached = self._app, asyncio.get_running_loop(), asyncio.Event()
        coordinator = Coordinator(
            CheckpointStorage(folder / "checkpoints"), timeout=app.settings.checkpoint_timeout_s, clock=app.clock
        )
        tables = None if app.open_tables() is None else folder / "tables"
        if tables is not None:
            make_folder(tables)
        settings = replace(
            app.settings_of_run(coordinator),
            app=replace(app.settings, until=None),
            open_sink=lambda topic, format: CountSink(topic),
            directory=tables,
            first_record_s=math.inf,
            stop_asked=stop_asked.is_set,
        )
        ends = ending_at(self._ends, self._places())
        idle = {node.name: node.idle_ms for node in walk(self._ends) if isinstance(node, Read)}
        replay = Replay(refill.topics, self._manifest, idle, partial(call_on_loop, loop, reached.set))
        unbounded = [(source, source.bound, source.bounded) for source in _topics(ends)]
        streams = LocalStreams(ends, settings, agents=self._agents, replay=replay)
        streams.awaited = True
        try:
            await streams.start(self._manifest)
            replay.begun()
            stopped, came = asyncio.ensure_future(stop_asked.wait()), asyncio.ensure_future(reached.wait())
            try:
                waits: list[asyncio.Future[Any]] = [stopped, came, streams.running]
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
                if streams.running.done():
                    await streams.running  # raises the error of a task
                if stopped.done():
                    raise StoppedEarly(f"app {app.id}: stopped before its start was complete; nothing was refilled")
                made = await coordinator.take()
            finally:
                stopped.cancel()
                came.cancel()
            return made, sum(source.rows_in for _, _, source in streams.build.inputs)
        finally:
            await streams.close()
            await coordinator.close()
            for source, bound, bounded in unbounded:  # the app's own run reads on
                source.bound, source.bounded = bound, bounded

    def _places(self) -> dict[str, Place]:
        """Returns the offsets up to which topics are read, by their names."""
        found: dict[str, dict[int, int]] = {}
        for task in stored_streams(self._manifest).values():
            for _, partition, offset in task.meta["input"].get("positions", ()):
                found.setdefault(task.meta["input"]["source"], {})[partition] = offset
        topics = {node.name for node in walk(self._ends) if isinstance(node, Read) and _is_topic(node.source)}
        return {name: places for name, places in found.items() if name in topics}

    def _stored(self, made: Manifest, refill: Refill) -> Manifest:
        """Stores the checkpoint with the state that `made` has of the refilled steps, and everything else as it was. Blocks."""
        old, storage = self._manifest, self._storage
        gone = {*self._saved_as.values(), *self._given_up}
        tasks = {name: _without(task, gone) for name, task in old.tasks.items()}
        kept = {path for task in tasks.values() for path in (*task.states.values(), *task.files.values())}
        kept |= {part.file for track in old.lanes.values() for part in track.pending}
        contents = {path: file for path, file in old.contents.items() if _is_below(path, kept)}
        checkpoint_id = max(storage.last_id(), old.checkpoint_id) + 1
        directory = storage.begin(checkpoint_id)
        try:
            for number, (name, task) in enumerate(sorted(made.tasks.items())):
                found = {id: facts for id, facts in task.meta["operators"].items() if id in self._saved_as}
                states = {}
                for place, id in enumerate(id for id in found if id in task.states):
                    states[self._saved_as[id]] = path = f"refilled/{number:04d}/{place:04d}"
                    RestoredState(made.state_directory(name, id)).save(directory / path)
                operators = {self._saved_as[id]: self._of(id, facts) for id, facts in found.items()}
                texts = {self._saved_as[id]: task.meta["texts"][id] for id in found if id in task.meta["texts"]}
                meta = {"ended": False, "input": {}, "operators": operators, "texts": texts}
                if operators:
                    tasks[f"refilled-{name}"] = StoredTask(meta=meta, states=states)
            describe = {
                **old.describe,
                "refilled": sorted({*old.describe.get("refilled", ()), *refill.topics}),
                "dropped": sorted({*old.describe.get("dropped", ()), *self._given_up}),
                DUE: sorted(self._due),
            }
            created_ms = int(self._app.clock.time() * 1000)
            manifest = msgspec.structs.replace(
                old, checkpoint_id=checkpoint_id, created_ms=created_ms, describe=describe, tasks=tasks, seconds=0.0
            )
            return storage.commit(checkpoint_id, manifest, contents)
        except BaseException:
            storage.abort(checkpoint_id)
            raise

    def _of(self, id: str, facts: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the facts about a refilled step, in which other steps have their ids of the checkpoint."""
        lineage = [
            [{**each, "from": self._saved_as.get(each["from"], each["from"])} for each in every]
            for every in facts.get("lineage", ())
        ]
        return {**facts, "made_for": id, **({"lineage": lineage} if lineage else {})}


def _without(task: StoredTask, gone: Collection[str]) -> StoredTask:
    """Returns the entry of a task without the state of these operators."""
    if "operators" not in task.meta:
        return task

    def left(entries: Mapping[str, Any]) -> dict[str, Any]:
        return {id: each for id, each in entries.items() if id not in gone}

    meta = {**task.meta, "operators": left(task.meta["operators"]), "texts": left(task.meta["texts"])}
    if "table" in meta:
        meta["table"] = {**meta["table"], "partial": [id for id in meta["table"]["partial"] if id not in gone]}
    return msgspec.structs.replace(task, meta=meta, states=left(task.states))


def _is_below(path: str, kept: Collection[str]) -> bool:
    return path in kept or any(path.startswith(f"{each}/") for each in kept)


def _is_topic(source: str | Source) -> bool:
    return isinstance(source, str | TakesBound)


def _topics(ends: Sequence[StreamEnd]) -> list[TakesBound]:
    """Returns the user's Source objects that read topics."""
    sources = [node.source for node in walk(ends) if isinstance(node, Read)]
    return [source for source in sources if isinstance(source, TakesBound)]
