"""What is seen of an app from outside: its figures, its metrics and probes, the record of its runs, and its reports.

open ─▶ begins ─▶ follow ─▶ begun ─▶ keep ─▶ over ─▶ close
        └──────────────── each run ────────────┘
"""

import logging
import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

import pyarrow as pa

from sabot.base.config import parse_broker
from sabot.base.figures import AppFigures
from sabot.base.metrics import Health, Metrics, Sample
from sabot.base.probes import Page
from sabot.base.threads import run_in_thread, run_to_end, threads
from sabot.base.version import sabot_version
from sabot.clock import process_cpu_seconds
from sabot.connectors.memory import MemoryBroker
from sabot.engine.calls.judging import judged_by
from sabot.engine.calls.model_figures import RunEngines
from sabot.engine.checkpoint import Coordinator
from sabot.engine.delivery import StagedSinks
from sabot.engine.runtime.agents.groups import TASK
from sabot.engine.runtime.app_spec import AppSpec, AppStatus
from sabot.engine.runtime.life.parts import RunParts
from sabot.engine.runtime.tasks.blocking import BlockingMonitor
from sabot.engine.runtime.tasks.taps import TapPoint
from sabot.engine.runtime.watch.app_rates import AppReading
from sabot.engine.runtime.watch.guarantees import guarantees_of
from sabot.engine.runtime.watch.reports import Reporter, Summary, screen_of_person, summary_of
from sabot.engine.runtime.watch.run_record import RunRecorder
from sabot.engine.state import StateBackend
from sabot.errors import SabotError

_log = logging.getLogger(__name__)

_LASTING = ("delivery", "streams", "engines", "sources", "sinks")  # figures that stay readable after the run
_MOST_EDGES = 5  # that a line of the log names


class AppWatch:
    """All by which an app is seen from outside, over all its runs in this process. Figures, samples and pages are read from
    any thread; all else is called on the event loop of the app.
    """

    def __init__(self, app: AppSpec, status: AppStatus, coordinator: Coordinator) -> None:
        self.metrics = Metrics(app.id, self._samples, {"/healthz": self._healthz, "/ready": self._readiness})
        self.recorder = RunRecorder(app, self.report, status)
        self.health: Health | None = None  # of child processes
        self.says_summary = True
        """False if `run` does not print its counts at the end."""
        # What the present run has open; the run sets them.
        self.parts: RunParts | None = None
        self.backend: StateBackend | None = None
        self.delivery: StagedSinks | None = None
        self._app, self._status, self._coordinator = app, status, coordinator
        self._recording = False
        self._monitor: BlockingMonitor | None = None
        self._reporter: Reporter | None = None
        self._began = 0.0  # the last run, on the app's steady clock
        self._ended: float | None = 0.0  # None from `begins` to `over`
        self._open = False  # from `begins` to `keep`
        self._engines: RunEngines | None = None  # of the last run
        self._last: dict[str, Any] = {name: {} for name in _LASTING}  # the figures of the last run

    # -- the life of the app and its runs -----------------------------------------------------------------------------

    def open(self) -> None:
        """Begins the record, unless an earlier run of the same life has."""
        if not self._recording and not threads.simulated:
            self._recording = True
            self.recorder.open()

    def begins(self) -> None:
        """Serves the metrics, unless an earlier run has. Raises UserError if their port is taken."""
        self._open, self._ended, self._engines = True, None, RunEngines()
        self._began = self._app.clock.monotonic()
        settings = self._app.settings
        if settings.metrics_port is not None and self.metrics.port is None:
            self.metrics.serve(settings.metrics_port, settings.metrics_host)

    def follow(self) -> None:
        """Includes the samples of the tasks of a run, which run from now on. `metrics.settle` ends it."""
        self.metrics.follow(self._task_samples)

    def begun(self, *, in_run: bool) -> None:
        """Begins the reports and the record of a run. `in_run`: True if a caller waits for its end in `AppRunner.run`."""
        self._tell_guarantees()
        if self._recording:  # without an await: else agents would run before the start is complete
            self.recorder.begun()
        self._began = self._app.clock.monotonic()
        if not threads.simulated:
            assert self.parts is not None
            self._monitor = BlockingMonitor(self.parts.busy)
            screen = screen_of_person() if in_run else None
            every = self._app.settings.report_s
            self._reporter = Reporter(self._read, self.progress, every, screen=screen, clock=self._app.clock)

    def keep(self) -> None:
        """Keeps the figures of a run that stay readable. Called before its parts are closed. The parts ask the app's clock: if that
        raises, none are kept, and nobody asks the closed parts for them.
        """
        last: dict[str, Any] = {name: {} for name in _LASTING}
        try:
            last = self._lasting({} if self.parts is None else self.parts.agent_statistics())
        finally:
            self._last, self._open = last, False

    def over(self) -> None:
        """Ends the reports of a run."""
        for watching in (self._monitor, self._reporter):
            if watching is not None:
                watching.close()
        self._monitor = self._reporter = self._engines = self.parts = self.backend = self.delivery = None
        self._ended = self._app.clock.monotonic()

    async def close(self) -> None:
        """Writes the record for the last time, and closes the port of the metrics, which stays open while a run follows on
        another one.
        """
        if self._recording:
            self._recording = False
            try:
                if self._status.failure is not None:
                    self.recorder.note("failed", str(self._status.failure))
                self.recorder.ended()
            finally:  # each of them asks the app's clock
                self.recorder.close()
        if self.metrics.port is not None:
            await run_to_end(run_in_thread(self.metrics.close))

    def _tell_guarantees(self) -> None:
        """Logs the guarantees of all sources and sinks, one line for each guarantee, and gives them to the record."""
        app = self._app
        try:
            with judged_by(app.judge_of_functions()):
                edges = guarantees_of(app.plan(), app.ends, app.settings)
        except SabotError:  # the plan is known only with the columns of the data
            return
        self.recorder.guarantees = edges
        for said in dict.fromkeys(each.guarantee for each in edges):
            names = [f"{each.way} {each.name}" for each in edges if each.guarantee == said]
            more = f" and {len(names) - _MOST_EDGES} more" if len(names) > _MOST_EDGES else ""
            _log.info("%s%s: %s", ", ".join(names[:_MOST_EDGES]), more, said)

    # -- figures ------------------------------------------------------------------------------------------------------

    def report(self) -> dict[str, Any]:
        """Returns the figures of all long-lived parts, as `App.statistics` describes them."""
        app, failure = self._app, self._status.failure or self._status.stalled_by
        scheme, _ = parse_broker(app.settings.broker)
        return {
            "agents": {agent_id: agent.figures() for agent_id, agent in list(app.agents.items())},
            "checkpoints": self._coordinator.statistics(),
            **{
                "state": {},
                "sources": {},
                "operators": {},
                "sinks": {},
                "gate": {},
                "jobs": {},
                "workers": [],
                "agent_tasks": {},
            },
            **self._of_run(),
            "broker": MemoryBroker.get(app.settings.broker).statistics() if scheme == "memory" else {},
            "metrics": self.metrics.statistics(),
            "process": {"cpu_seconds": process_cpu_seconds(), "cpus": _processors()},
            "failure": None if failure is None else str(failure),
        }

    def _of_run(self) -> dict[str, Any]:
        """Returns the figures of the open parts: state, sources, operators, sinks, gate, workers, delivery, streams. After
        the run, those that stay readable.
        """
        if not self._open:
            return self._last
        parts, backend = self.parts, self.backend
        agents: Mapping[str, Any] = {} if parts is None else parts.agent_statistics()
        return {
            **self._lasting(agents),
            "state": {} if backend is None else backend.statistics(),
            **agents,
            "workers": [] if parts is None else parts.workers(),
        }

    def _lasting(self, agents: Mapping[str, Any]) -> dict[str, Any]:
        parts, delivery = self.parts, self.delivery
        engines = {} if self._engines is None else self._engines.statistics()
        return {
            "sources": agents.get("sources", {}),
            "sinks": agents.get("sinks", {}),
            "delivery": {} if delivery is None else delivery.statistics(),
            "streams": {} if parts is None else parts.statistics(),
            "engines": agents.get("engines", engines),
        }

    def figures(self) -> AppFigures:
        """Returns what `report` tells, as structs."""
        return AppFigures.of(self.report())

    def progress(self) -> tuple[float, float] | None:
        """Returns (read, total) in bytes for the bounded sources of streams; None if there are none."""
        parts = self.parts
        return None if parts is None else parts.progress()

    def tap(self, point: TapPoint) -> list[pa.RecordBatch]:
        """Copies rows behind a step of the present run, as `LocalStreams.tap` does; none if the app does not run."""
        parts = self.parts
        return [] if parts is None or not self._open else parts.tap(point)

    @property
    def summary(self) -> Summary:
        """The counts of this run or the last one."""
        end = self._app.clock.monotonic() if self._ended is None else self._ended
        return summary_of(self._app.id, self.figures(), end - self._began, self._status.restarts)

    def print_summary(self) -> None:
        """Prints the summary, or logs it if nobody looks at stderr; does nothing without `says_summary`."""
        if not self.says_summary:
            return
        said, screen = str(self.summary), screen_of_person()
        if screen is None:
            _log.info("%s", "; ".join(line.strip() for line in said.splitlines()))
        else:
            with suppress(OSError, ValueError):  # after SIGHUP the terminal is gone
                print(said, file=screen)

    def _read(self) -> AppReading:
        clock = self._app.clock
        return AppReading(self._app.id, clock.monotonic(), clock.time() * 1000, self._status.restarts, self.figures())

    # -- samples: the counters of a run are kept after it, its gauges are not ------------------------------------------

    def _samples(self) -> Iterator[Sample]:
        """Yields those of the checkpoints, of the state, and of the output that waits for its delivery."""
        yield Sample("sabot_build_info", 1, sabot_version(), platform.python_version(), self._app.settings.version)
        checkpoints = self._coordinator.statistics()
        yield Sample("sabot_checkpoint_failed_total", checkpoints["failed"])
        if checkpoints["last_at"] is not None:
            yield Sample("sabot_checkpoint_seconds", checkpoints["last_seconds"])
            yield Sample("sabot_checkpoint_bytes", checkpoints["last_bytes"])
            yield Sample("sabot_checkpoint_timestamp_seconds", checkpoints["last_at"])
        if checkpoints["failed_at"] is not None:
            yield Sample("sabot_checkpoint_failure_timestamp_seconds", checkpoints["failed_at"])
        yield Sample("sabot_restarts_total", self._status.restarts)
        if self.health is not None:
            yield from self.health.samples()
        delivery, backend = self.delivery, self.backend
        if not self._open:
            return
        for track, figures in ({} if delivery is None else delivery.statistics()).items():
            yield Sample("sabot_undelivered_records", figures["undelivered_rows"], track, figures["sink"])
        if backend is not None:
            state = backend.statistics()
            yield Sample("sabot_state_bytes", state["bytes"], TASK)
            yield Sample("sabot_state_keys", state["keys"], TASK)

    def _task_samples(self) -> Iterator[Sample]:
        """Yields those of the running tasks and of the calls of models, and the counters of the delivery."""
        parts, delivery = self.parts, self.delivery
        if parts is not None:
            yield from parts.samples()
        if self._engines is not None:
            yield from self._engines.samples()
        for track, figures in ({} if delivery is None else delivery.statistics()).items():
            yield Sample("sabot_delivered_records_total", figures["delivered_rows"], track, figures["sink"])
            yield Sample("sabot_delivery_failures_total", figures["failures_total"], track, figures["sink"])

    # -- probes, called from the threads of their server --------------------------------------------------------------

    def _healthz(self) -> Page:
        from sabot.engine.runtime.watch.probes import liveness  # late: few programs have a port

        failed = None if self._status.will_restart else self._status.failure
        return liveness(self._app.id, failed, self._status.loop, self.health)

    def _readiness(self) -> Page:
        from sabot.engine.runtime.watch.probes import readiness

        status = self._status
        failed, phase = status.failure or status.stalled_by, status.phase
        why = "" if phase == "running" else f"the app is {'starting' if phase == 'starting' else 'stopping'}"
        figures = None if self._ended is not None else self._of_run()
        return readiness(self._app, failed, why, self._coordinator.statistics()["last_id"], figures, self.health)


def _processors() -> int:
    """Returns the number of processors that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on every system
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1
