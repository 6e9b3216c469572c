"""The screen of the schedules of kernels, and their actions: pause, go on, trigger. They are notes of the journal, as those of clients."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sabot.agents.kernel.client import JobClient
from sabot.agents.kernel.schedules import Schedules, ShownSchedule, kernels_with_schedules
from sabot.base.threads import run_in_thread
from sabot.clock import SYSTEM_CLOCK
from sabot.errors import UserError
from sabot.web.screen import BY, Query, Rows, Screen, ScreenGroup
from sabot.web.shown import ShownApp

if TYPE_CHECKING:
    from sabot.agents.app_jobs import AppJobStore

_FACTS = ("agent", "cron", "zone", "missed", "overlap", "scope")


class ScheduleScreens:
    """The facts of the screen, and its actions. Used by the thread of the server."""

    def __init__(self, app: ShownApp) -> None:
        self._known = None if app.live is not None else app.jobs  # an App has no schedules: those are of kernels

    def group(self) -> ScreenGroup:
        """Returns the screen and its actions; none for an App, and without a journal."""
        if self._known is None:
            return ScreenGroup()
        screen = Screen("Schedules", "/schedules", more=self._list, rows=self._rows, role="act", listed=False)
        actions = {
            "pause-schedule": self._pause,
            "resume-schedule": self._go_on,
            "trigger-schedule": self._trigger,
        }
        return ScreenGroup({"schedules": screen}, actions)

    @property
    def _store(self) -> "AppJobStore":
        assert self._known is not None  # without jobs there is no such screen
        return self._known.store

    def _of(self, kernel: str) -> Schedules:
        return JobClient.of_store(self._store, kernel).schedules

    async def _found(self, query: Query) -> list[tuple[str, ShownSchedule]]:
        """Returns the schedules of all kernels of the journal in which a search finds its text, with the names of the kernels. Raises
        UserError if the journal cannot be read.
        """
        wanted = query.get("q", "").casefold()
        kernels = await run_in_thread(kernels_with_schedules, self._store)
        found = [(kernel, each) for kernel in kernels for each in await self._of(kernel).find()]
        return [
            (kernel, each)
            for kernel, each in found
            if wanted in "\n".join((kernel, each.schedule.name, each.schedule.agent, each.schedule.scope)).casefold()
        ]

    async def _list(self, query: Query) -> Mapping[str, Any]:
        return {"schedules": await self._found(query), "at": SYSTEM_CLOCK.time()}

    async def _rows(self, query: Query) -> Rows:
        return [
            {
                "kernel": kernel,
                "schedule": each.schedule.name,
                **{name: getattr(each.schedule, name) for name in _FACTS},
                "paused": each.paused,
                "paused_since": each.since if each.paused else None,
                "paused_by": each.by,
                "next_at": each.next_at,
            }
            for kernel, each in await self._found(query)
        ]

    # -- actions ------------------------------------------------------------------------------------------------------

    async def _pause(self, form: Mapping[str, str]) -> str:
        """Pauses the schedule of the form. Raises UserError if there is none of this name, or if it is paused."""
        of, name, shown = await self._asked(form)
        if shown.paused:
            raise UserError(f"schedule {name} is paused already{f', by {shown.by}' if shown.by else ''}")
        await of.pause(name, by=form[BY])
        return f"Schedule {name} is paused: no kernel begins a job by it."

    async def _go_on(self, form: Mapping[str, str]) -> str:
        """Ends the pause of the schedule of the form. Raises UserError if there is none of this name, or if it is not paused."""
        of, name, shown = await self._asked(form)
        if not shown.paused:
            raise UserError(f"schedule {name} is not paused")
        await of.go_on(name, by=form[BY])
        return f"Schedule {name} goes on with its next time."

    async def _trigger(self, form: Mapping[str, str]) -> str:
        """Begins a job of the schedule of the form now. Raises UserError if there is none of this name."""
        of, name, _ = await self._asked(form)
        return f"Schedule {name} has begun job {(await of.trigger(name, by=form[BY])).job_id}."

    async def _asked(self, form: Mapping[str, str]) -> tuple[Schedules, str, ShownSchedule]:
        """Returns the schedules of the kernel of a form, and the name and the schedule that the form names."""
        of, name = self._of(form.get("kernel", "")), form.get("schedule", "")
        return of, name, await of.get(name)
