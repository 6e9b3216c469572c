"""`sabot schedules`: what a terminal sees and changes of the schedules of a kernel, while no kernel runs."""

import asyncio
import json
from pathlib import Path
from typing import Any

from click.testing import Result
from typer.testing import CliRunner

from sabot.agents import RuntimeKernel, Schedule
from sabot.cli import commands

YEARLY = Schedule("new-year", "receipt", "0 9 1 jan *", message={"order": "all"}, zone="Europe/Berlin")


async def receipt(ctx: Any) -> Any:
    return ctx.message


def says(*words: object) -> Result:
    return CliRunner().invoke(commands.cli, [str(word) for word in words])


def printed(*words: object) -> str:
    done = says(*words)
    assert done.exit_code == 0, done.output + done.stderr
    return done.stdout


async def noted(place: Path) -> None:
    """Runs a kernel until it has noted its schedule."""
    async with RuntimeKernel.create(agent=receipt, journal=place, name="shop", schedules=[YEARLY]) as kernel:

        async def find() -> None:
            while not (await kernel.schedules.find()):  # noqa: ASYNC110
                await asyncio.sleep(0.005)

        await asyncio.wait_for(find(), 60)


async def result(place: Path, job_id: str) -> Any:
    async with RuntimeKernel.create(agent=receipt, journal=place, name="shop") as kernel:
        return (await (await kernel.handle(job_id)).result()).output


def test_schedules_are_listed_paused_triggered_and_removed_at_a_terminal(tmp_path: Path) -> None:
    place = tmp_path / "jobs"
    asyncio.run(noted(place))
    at, of = ("--journal", place), "shop.new-year"
    listed = printed("schedules", "list", *at, "--kernel", "shop")
    assert "new-year  receipt  0 9 1 jan *  Europe/Berlin  last    skip" in listed
    assert printed("schedules", "pause", of, *at) == "schedule shop.new-year is paused\n"
    (shown,) = map(json.loads, printed("schedules", "list", *at, "--kernel", "shop", "--json").splitlines())
    assert (shown["name"], shown["paused"], shown["next_at"]) == ("new-year", True, None)
    job_id = printed("schedules", "trigger", of, *at).strip()
    assert asyncio.run(result(place, job_id)) == {"order": "all"}
    assert printed("schedules", "go-on", of, *at) == "schedule shop.new-year goes on\n"
    assert "paused" not in printed("schedules", "list", *at, "--kernel", "shop")
    assert "is removed" in printed("schedules", "remove", of, *at)
    wrong = says("schedules", "pause", of, *at)
    assert (wrong.exit_code, "has no schedule 'new-year'" in wrong.stderr) == (1, True)


def test_a_list_says_when_a_queued_job_starts(tmp_path: Path) -> None:
    place = tmp_path / "jobs"
    asyncio.run(noted(place))
    words = "--journal", place
    job_id = printed("jobs", "start", "shop.receipt", *words, "--after", "2077-01-01T09:00+01:00").strip()
    assert "starts at 2077-01-01 08:00:00 UTC" in printed("jobs", "list", *words)
    assert "starts at 2077-01-01 08:00:00 UTC" in printed("jobs", "show", job_id, *words)
