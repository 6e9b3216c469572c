"""The requests of the command line to a running app (`checkpoint.requests`), and their execution."""

import asyncio
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sabot.base.redaction import scrubbed_values
from sabot.base.threads import run_in_thread
from sabot.engine.checkpoint import CheckpointStorage, Coordinator
from sabot.engine.runtime.app_spec import AppSpec, AppStatus
from sabot.engine.runtime.life.parts import RunParts
from sabot.engine.runtime.tasks.taps import TapPoint, plain_rows
from sabot.engine.runtime.watch.app_watch import AppWatch
from sabot.errors import UserError, short_repr

_log = logging.getLogger(__name__)

_STOP_SECONDS = 0.2  # after the answer to a request for the stop


class AppRequests:
    """The requests to one run of an app. All methods run on its event loop.

    {"checkpoint": true}    takes a checkpoint now
    {"savepoint": PLACE}    takes a checkpoint and copies it
    {"figures": true}       reports the figures of `App.statistics`
    {"workers": true}       reports the tasks of each worker, and their rates
    {"rows": [ID, BRANCH]}  copies the last rows behind a step, and goes on to copy them for some seconds
    {"budgets": {…}}        reports the budgets, as `AgentKind.budgets` says
    {"stop": true}          stops the app in good order
    {"rescale": N}          ends the run with a checkpoint, from which the app resumes with N workers
    """

    def __init__(
        self,
        app: AppSpec,
        storage: CheckpointStorage,
        coordinator: Coordinator,
        parts: RunParts,
        status: AppStatus,
        watch: AppWatch,
        *,
        begin_anew: Callable[[], None] | None,
        stop: Callable[[], None] | None,
    ) -> None:
        """`begin_anew`: ends this run so that another one begins, or None if none would begin. `stop`: ends the app, or
        None if only its own program may.
        """
        self._app = app
        self._storage = storage
        self._coordinator = coordinator
        self._parts = parts
        self._status = status
        self._watch = watch
        self._begin_anew = begin_anew
        self._stop = stop

    async def answer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Executes a request and returns the answer. Raises UserError for a request that is not possible, and
        CheckpointFailed.
        """
        if "figures" in request:
            return await run_in_thread(self._reading)
        if "workers" in request:
            return self._workers()
        if "rows" in request:
            return await run_in_thread(self._rows, request["rows"])
        if "budgets" in request:
            return await self._app.durable_kind().budgets(request["budgets"])
        if "stop" in request:
            return self._stopped()
        if "rescale" in request:
            return await self._rescale(request["rescale"], request["id"])
        return await self._kept(request.get("savepoint"))

    def _stopped(self) -> dict[str, str]:
        if self._stop is None:
            raise UserError(
                f"app {self._app.id} was started by app.start(), and only its own program can stop it",
                hint="call await app.stop() there",
            )
        # The answer is written before the run ends: this event loop serves requests until then.
        asyncio.get_running_loop().call_later(_STOP_SECONDS, self._stop)
        return {"app": self._app.id}

    async def _kept(self, location: object) -> dict[str, int | str]:
        if location is not None and not isinstance(location, str):
            raise UserError(f"savepoint: the location is a {type(location).__name__}, not a text")
        manifest = await self._coordinator.take()
        path: Path | str | None = manifest.path
        if location is not None:
            path = await run_in_thread(self._storage.copy_to, manifest, location)
        return {"checkpoint": manifest.checkpoint_id, "path": str(path)}

    def _reading(self) -> dict[str, Any]:
        """Returns the figures of the app, with the time of both clocks. Known secrets are hidden in them."""
        clock = self._app.clock
        text = json.dumps(self._watch.report(), default=str)
        return {
            "app": self._app.id,
            "restarts": self._status.restarts,
            "seconds": clock.monotonic(),
            "now_ms": clock.time() * 1000,
            "figures": scrubbed_values(json.loads(text)),
        }

    def _rows(self, point: object) -> dict[str, Any]:
        """Returns the copies since the last such request. Known secrets are hidden in them."""
        match point:
            case [str() as origin, str() as branch]:
                columns, rows = plain_rows(self._watch.tap(TapPoint(origin, branch)))
            case _:
                raise UserError(f"rows: {short_repr(point)} is not the id of a step and a branch")
        return {"columns": columns, "rows": scrubbed_values(json.loads(json.dumps(rows, default=str)))}

    def _workers(self) -> dict[str, Any]:
        return {
            "app": self._app.id,
            "workers": self._parts.workers(),
            "restarts": self._status.restarts,
            "checkpoint": self._coordinator.statistics()["last_id"],
        }

    async def _rescale(self, wanted: object, request: str) -> dict[str, Any]:
        """Returns at once if the app already has this number of workers. Otherwise it ends the run with a checkpoint
        and does not return: the next run finds the request again, and answers it. Raises UserError if the app cannot
        have this number.
        """
        maker = self._app.workers
        if maker is None:
            raise UserError(
                f"app {self._app.id} runs in one process, and has no workers",
                hint="stop it, and start it again with --workers N: it resumes from its last checkpoint",
            )
        if not isinstance(wanted, int) or isinstance(wanted, bool):
            raise UserError(f"rescale: the number of workers is a {type(wanted).__name__}, not an int")
        if (refusal := maker.refusal(request)) is not None:
            raise UserError(f"app {self._app.id}: {refusal}", hint="the log of the app has the errors of the workers")
        before = maker.workers
        if wanted == before:
            return self._workers()
        if self._begin_anew is None:
            raise UserError(
                f"app {self._app.id} was started by app.start(), and only `sabot run` or app.run() can restart its workers",
                hint="stop it, and start it with the new number of workers",
            )
        maker.check(wanted)
        await maker.make_room(wanted)
        await self._coordinator.take()  # if that fails, the app goes on unchanged
        maker.rescale(wanted, request)
        _log.info(
            "app %s: its %d workers end, and it resumes with %d workers from a checkpoint", self._app.id, before, wanted
        )
        self._begin_anew()
        await asyncio.Event().wait()  # until the stop of the run cancels it
        raise AssertionError("the run goes on though it was to end")
