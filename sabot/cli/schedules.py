"""`sabot schedules`: lists, pauses and triggers the schedules of kernels, also while no kernel runs."""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Annotated, Any

import typer

from sabot.agents.kernel.client import JobClient
from sabot.agents.kernel.schedules import Schedules, ShownSchedule
from sabot.cli.journal import Json, Place, quietly, this_user
from sabot.cli.printing import columns, json_line, moment

schedules = typer.Typer(
    help="List, pause and trigger the schedules of a kernel.", no_args_is_help=True, rich_markup_mode=None
)

_NAMES = ("name", "agent", "cron", "zone", "missed", "overlap", "scope")

Name = Annotated[str, typer.Argument(metavar="SCHEDULE", help="KERNEL.NAME, or NAME of a kernel without a name.")]
Kernel = Annotated[str, typer.Option(metavar="NAME", help="The name of the kernel.")]


@schedules.command("list")
def list_schedules(place: Place, kernel: Kernel = "kernel", json: Json = False) -> None:
    """List the schedules that kernels of this name have noted in a journal, with the next time of each."""

    def work() -> None:
        found = asyncio.run(JobClient(place, name=kernel).schedules.find())
        if json:
            for each in found:
                said = {name: getattr(each.schedule, name) for name in _NAMES}
                json_line({**said, "paused": each.paused, "next_at": each.next_at})
            return
        titles = ["schedule", "agent", "cron", "zone", "missed", "overlap", "next"]
        columns(titles, [_row(each) for each in found])

    quietly(work)


def _row(shown: ShownSchedule) -> list[object]:
    of = shown.schedule
    at = "paused" if shown.paused else "never" if shown.next_at is None else moment(round(shown.next_at * 1000))
    return [of.name, of.agent, of.cron, of.zone, of.missed, of.overlap, at]


@schedules.command("pause")
def pause(name: Name, place: Place) -> None:
    """Let no job begin by a schedule until go-on, in all kernels of the journal."""
    _ask(name, place, partial(Schedules.pause, by=this_user()), "is paused")


@schedules.command("go-on")
def go_on(name: Name, place: Place) -> None:
    """End the pause of a schedule. Times that were in it are not made up for."""
    _ask(name, place, partial(Schedules.go_on, by=this_user()), "goes on")


@schedules.command("remove")
def remove(name: Name, place: Place) -> None:
    """Forget a schedule that no kernel has any more."""
    _ask(name, place, Schedules.remove, "is removed; a kernel that has it notes it again when it starts")


@schedules.command("trigger")
def trigger(name: Name, place: Place) -> None:
    """Begin a job of a schedule now, and print its id."""

    def work() -> None:
        typer.echo(asyncio.run(_of(place, name, partial(Schedules.trigger, by=this_user()))).job_id)

    quietly(work)


def _ask(name: str, place: str, what: Callable[[Schedules, str], Awaitable[None]], words: str) -> None:
    def work() -> None:
        asyncio.run(_of(place, name, what))
        typer.echo(f"schedule {name} {words}")

    quietly(work)


async def _of(place: str, name: str, what: Callable[[Schedules, str], Awaitable[Any]]) -> Any:
    kernel, dot, short = name.rpartition(".")
    return await what(JobClient(place, name=kernel if dot else "kernel").schedules, short)
