"""`JobClient` over each home that other processes can reach. What it does is in tests/unit/agents/test_client.py, over SQLite."""

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sabot.agents import ExecutionRequest, JobClient, JobStatus, RuntimeKernel
from sabot.errors import JobCancelled
from tools.postgres import server_or_skip


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    with server_or_skip().database() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgres", pytest.param("kafka", marks=pytest.mark.kafka)])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return str(tmp_path / "jobs")
    name = f"jobs-{uuid.uuid4().hex[:12]}"
    if request.param == "kafka":
        return f"{request.getfixturevalue('kafka_url')}/{name}"
    return f"{request.getfixturevalue('database')}?app={name}"


@pytest.mark.one_in(3, "a tenth of a second of a core each")
async def test_clients_begin_await_and_cancel_jobs_of_a_kernel_at_rest_and_at_work(place: str) -> None:
    made: list[Any] = []

    async def double(ctx: Any) -> Any:
        return await ctx.step(lambda: made.append(ctx.message) or ctx.message * 2)

    def kernel() -> RuntimeKernel:
        return RuntimeKernel.create(agent=double, journal=place, name="shop")

    async with kernel():
        pass
    client = JobClient(place, name="shop")
    first = await client.start("double", 1, idempotency_key="k")
    unwanted = await client.start("double", 2)
    await unwanted.cancel()
    assert (await client.start("double", 1, idempotency_key="k")).job_id == first.job_id
    assert (await client.jobs.get(first.job_id)).status == JobStatus.QUEUED
    async with kernel() as running:
        assert (await first.result()).output == 2
        with pytest.raises(JobCancelled):
            await unwanted.result()
        again = await running.execute(ExecutionRequest(prompt=1, idempotency_key="k"))
        assert (again.job_id, (await again.result()).output) == (first.job_id, 2)
        handles = await client.start_all([ExecutionRequest(prompt=n, agent="double") for n in range(3, 9)])
        assert [(await each.result()).output for each in handles] == [n * 2 for n in range(3, 9)]
    assert (await (await client.handle(first.job_id)).result()).output == 2
    assert sorted(made) == [1, *range(3, 9)]
