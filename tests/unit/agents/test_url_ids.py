"""A job's id in a URL: a form without slashes that every place takes in the place of the id."""

import string
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from sabot.agents import ExecutionRequest, RuntimeKernel
from sabot.cli import commands
from sabot.errors import JobCancelled, UserError
from sabot.jobs.tree import child_id
from sabot.jobs.url_ids import stored_id, url_id

UNRESERVED = set(string.ascii_letters + string.digits + "-._~")


@pytest.mark.parametrize(
    ("job_id", "form"),
    [
        ("kernel.refund/9f86d081", "kernel.refund~~9f86d081"),
        (child_id("kernel.refund/9f86d081", 3), "kernel.refund~~9f86d081~3"),
        ("shop.desk/a1/0/17", "shop.desk~~a1~~0~~17"),
        ("order=7 ü%/", "~b3JkZXI9NyDDvCUv"),
        ("a~~b", "~YX5-Yg"),
        ("~YX5-Yg", "~fllYNS1ZZw"),
    ],
)
def test_an_id_has_a_form_that_no_url_escapes(job_id: str, form: str) -> None:
    assert url_id(job_id) == form
    assert stored_id(form) == job_id


@given(st.text(min_size=1).filter(lambda text: not any("\ud800" <= each <= "\udfff" for each in text)))
def test_every_id_has_its_own_form_and_comes_back(job_id: str) -> None:
    form = url_id(job_id)
    assert set(form) <= UNRESERVED
    assert stored_id(form) == job_id


@given(st.text(alphabet="ab~/.-_=%é"))
def test_a_text_that_is_no_form_is_taken_as_it_is(text: str) -> None:
    job_id = stored_id(text)
    assert job_id == text or url_id(job_id) == text


async def asks(ctx: Any) -> str:
    reply = await ctx.ask("confirm", {"message": "sure?"})
    return "yes" if reply.approved else "no"


async def test_every_place_takes_the_form_in_the_place_of_the_id(tmp_path: Path) -> None:
    async with RuntimeKernel.create(agent=asks, journal=tmp_path / "jobs") as kernel:
        handle = await kernel.execute(ExecutionRequest(prompt="a"))
        form = handle.url_id
        assert "/" in handle.job_id
        assert set(form) <= UNRESERVED
        assert await kernel.handle(form) is handle
        async with aclosing(handle.events()) as events:
            async for event in events:
                if event.type == "action.required":
                    break
        asked = await kernel.actions.find(job_id=form)
        assert len(asked) == 1
        assert asked == await kernel.actions.find(job_id=handle.job_id)
        record = await kernel.jobs.get(form)
        assert (record.job_id, record.url_id) == (handle.job_id, form)
        await kernel.jobs.signal(form, "hello")
        await kernel.actions.resolve(asked[0].resume_token, {"approved": True})
        assert (await handle.result()).output == "yes"
        assert (await (await kernel.handle(form)).result()).output == "yes"
        assert (await kernel.record(form)).job_id == handle.job_id
        assert await kernel.recorded_events(form) == await kernel.recorded_events(handle.job_id)
        for unknown in ("kernel.asks~~nobody", "~bm9ib2R5", "~!"):
            with pytest.raises(UserError, match="there is none of this name"):
                await kernel.handle(unknown)
            with pytest.raises(UserError):
                await kernel.jobs.get(unknown)


async def test_a_cancel_by_the_form_reaches_the_job(tmp_path: Path) -> None:
    async with RuntimeKernel.create(agent=asks, journal=tmp_path / "jobs") as kernel:
        handle = await kernel.execute(ExecutionRequest(prompt="a"))
        await kernel.jobs.cancel(handle.url_id)
        with pytest.raises(JobCancelled):
            await handle.result()


async def test_the_command_line_takes_the_form(tmp_path: Path) -> None:
    journal = tmp_path / "jobs"
    async with RuntimeKernel.create(agent=asks, journal=journal) as kernel:
        handle = await kernel.execute(ExecutionRequest(prompt="a"))
    for words in (["show", handle.url_id], ["signal", handle.url_id, "hello"], ["cancel", handle.url_id]):
        done = CliRunner().invoke(commands.cli, ["jobs", *words, "--journal", str(journal)])
        assert done.exit_code == 0, done.output
    assert (
        handle.job_id
        in CliRunner().invoke(commands.cli, ["jobs", "show", handle.url_id, "--journal", str(journal)]).output
    )
    async with RuntimeKernel.create(agent=asks, journal=journal) as kernel:
        (handle,) = await kernel.resume()
        with pytest.raises(JobCancelled):
            await handle.result()
