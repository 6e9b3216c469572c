"""The screen of the stack of one busy task: the lines of the user's code that its thread executes, sampled for some seconds."""

import asyncio
import threading
from dataclasses import asdict
from typing import Any

from sabot.base.threads import run_in_thread
from sabot.engine.runtime.tasks.blocking import StackSample, sample_stack
from sabot.errors import UserError
from sabot.web.screen import Query, Rows, Screen, ScreenGroup
from sabot.web.shown import ShownApp

_SECONDS = 5.0
_LOOP = "event loop"


def has_stacks(app: ShownApp) -> bool:
    """Returns True if the tasks of an app run in this process, and not in workers: only there their stacks can be looked at."""
    return app.here and app.live is not None and not app.figures.last.figures.workers


class StackScreens:
    """The facts of the screen. Used by the thread of the server."""

    def __init__(self, app: ShownApp) -> None:
        self._app = app
        self._one = asyncio.Lock()  # a sample takes the interpreter some hundred times a second

    def group(self) -> ScreenGroup:
        """Returns the screen, which shows lines of the program; none if the app does not run in this process."""
        if self._app.live is None or not self._app.here:
            return ScreenGroup()
        screen = Screen("Stack", "/stack", more=self._facts, rows=self._rows, role="act", listed=False)
        return ScreenGroup({"stack": screen})

    async def _facts(self, query: Query) -> dict[str, Any]:
        """Returns the facts of a sample that is taken now. Raises UserError if the task does not run in this process."""
        return {"task": query.get("task", ""), "sample": await self._sample(query.get("task", ""))}

    async def _rows(self, query: Query) -> Rows:
        sample = await self._sample(query.get("task", ""))
        return [asdict(each) | {"share": share} for each, share in sample.lines]

    async def _sample(self, task: str) -> StackSample:
        thread = self._thread_of(task)
        if thread is None:
            hint = "the screen Steps links to the tasks of this process; those of workers run elsewhere"
            raise UserError(f"no thread of this process runs task {task}", hint=hint)
        async with self._one:
            return await run_in_thread(sample_stack, thread, _SECONDS)

    def _thread_of(self, task: str) -> int | None:
        """Returns the thread of a task of a stream, or of the event loop, on which agents run; None if there is none."""
        assert self._app.live is not None  # without an app there is no such screen
        if not has_stacks(self._app):
            return None
        if task == _LOOP:
            return self._app.live.agent_runtime.runner.status.loop_thread
        tasks = self._app.figures.last.figures.streams
        return next((each.ident for each in threading.enumerate() if task in tasks and each.name == task), None)
