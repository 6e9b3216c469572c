"""What a function of the user raises is in the log once, with its own lines and no secrets: of tools, of jobs of a kernel, of agents."""

import logging
from pathlib import Path
from typing import Any

import pytest

from sabot import App, secret
from sabot.agents import ExecutionRequest, RuntimeKernel
from sabot.connectors.memory import MemoryBroker
from sabot.errors import AgentFailed, EffectError
from sabot.llm import tool

PASSWORD = "correct horse battery staple"


@tool(effect="unsafe")
def charge(amount: int, key: Any = None) -> None:
    raise ValueError(f"the card is refused for {amount}{key or ''}")  # the line of the tool


def traces(caplog: pytest.LogCaptureFixture, words: str) -> list[logging.LogRecord]:
    return [each for each in caplog.records if words in (each.exc_text or "")]


async def test_the_exception_of_a_tool_is_logged_once_with_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    async def pays(ctx: Any) -> None:
        try:
            await ctx.call(charge, 5)
        except EffectError:
            return

    async with RuntimeKernel.create(agent=pays) as kernel:
        await (await kernel.execute(ExecutionRequest(prompt=1))).result()
    (record,) = traces(caplog, "# the line of the tool")
    assert record.levelno == logging.WARNING
    assert "ValueError: the card is refused for 5; tool charge, effect" in record.getMessage()
    assert "/sabot/" not in (record.exc_text or "")


async def test_the_exception_of_a_job_of_a_kernel_is_logged_once_with_its_traceback(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def breaks(ctx: Any) -> None:
        raise LookupError("no such customer")  # the line of the job

    async with RuntimeKernel.create(agent=breaks) as kernel:
        job = await kernel.execute(ExecutionRequest(prompt=1))
        with pytest.raises(EffectError):
            await job.result()
    (record,) = traces(caplog, "# the line of the job")
    assert record.levelno == logging.WARNING
    assert f"job {job.job_id}; it has failed" in record.getMessage()


async def test_no_secret_is_in_the_traceback(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CARD_KEY", PASSWORD)

    async def pays(ctx: Any) -> None:
        try:
            await ctx.call(charge, 5, secret("CARD_KEY"))
        except EffectError:
            return

    async with RuntimeKernel.create(agent=pays) as kernel:
        await (await kernel.execute(ExecutionRequest(prompt=1))).result()
    (record,) = traces(caplog, "# the line of the tool")
    assert PASSWORD not in f"{record.getMessage()} {record.exc_text}"


@pytest.mark.parametrize("durable", [True, False])
async def test_an_agent_of_an_app_that_fails_shows_where(
    memory_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, durable: bool
) -> None:
    app = App("shop", memory_url, state=str(tmp_path))

    @app.agent("orders", durable=durable)
    async def breaks(ctx: Any) -> None:
        raise LookupError("no such customer")  # the line of the agent

    MemoryBroker.get(memory_url).publish("orders", [{"id": 1}])
    with pytest.raises(AgentFailed):
        await app.run()
    (record,) = traces(caplog, "# the line of the agent")
    assert record.levelno == logging.ERROR
    assert "no such customer" in record.getMessage()
