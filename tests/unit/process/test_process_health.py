"""Health of child processes: whether they live, are ready, are stuck; and who is told of it."""

import asyncio
import http.client
import json
import os
import signal
from collections.abc import AsyncIterator
from typing import Any

import pytest
from unit.process.children import ByHand, line, sh

from sabot.errors import UserError
from sabot.process import (
    Command,
    HealthChange,
    HealthConfig,
    HealthMonitor,
    NotFound,
    Supervisor,
    WarmPool,
    WarmPoolConfig,
)
from tools.agent_tools import until

pytestmark = pytest.mark.usefixtures("supervisor")

SLEEP = Command(argv=["sleep", "1000"])


class Watch(HealthMonitor):
    """A monitor whose time goes by hand, and that remembers what it has told."""

    def __init__(self, **config: Any) -> None:
        self.time = ByHand()
        self.told: list[tuple[str, str, bool]] = []
        super().__init__(
            "office",
            HealthConfig(**config),
            on_change=self.hear,
            clock=self.time.clock,
            sleep=self.time.sleep,
        )

    def hear(self, change: HealthChange) -> None:
        self.told.append((change.agent_id, change.what, change.now))

    async def goes_on(self, seconds: int) -> None:
        """So much time passes, in which the probes do their work, each five seconds."""
        for _ in range(seconds // 5):
            await self.until_asleep()
            self.time.advance(5)
            await self.until_asleep()

    async def until_asleep(self) -> None:
        await until(lambda: self.time.asleep == 2)


@pytest.fixture
async def watch() -> AsyncIterator[Watch]:
    watch = Watch()
    yield watch
    await watch.close()


# -- settings ---------------------------------------------------------------------------------------------------------


def test_the_settings_are_those_of_the_document() -> None:
    config = HealthConfig()
    assert (config.liveness_interval_secs, config.liveness_failures) == (10, 3)
    assert (config.readiness_interval_secs, config.readiness_failures) == (5, 2)
    assert (config.stuck_secs, config.window_secs) == (600, 300)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, 0) for name in HealthConfig.__dataclass_fields__ if name != "max_error_rate"),
        ("max_error_rate", -0.1),
        ("max_error_rate", 1.1),
    ],
)
def test_settings_that_cannot_be_are_refused(name: str, value: float) -> None:
    with pytest.raises(UserError, match=name):
        HealthConfig(**{name: value})  # type: ignore[arg-type]


# -- liveness -----------------------------------------------------------------------------------------------------------


async def test_an_agent_that_sends_heartbeats_lives_until_three_probes_have_missed_one(watch: Watch) -> None:
    watch.register("beats", heartbeats=True)
    watch.register("silent")
    for _ in range(4):
        await watch.goes_on(10)
        watch.beat("beats")
    assert watch.told == []
    await watch.goes_on(30)  # at 10 s it is in time; two probes have found nothing
    assert watch.snapshot("beats").live
    await watch.goes_on(10)
    assert watch.snapshot("beats").why_not_live == "its last heartbeat was 40 s ago"
    watch.beat("beats")
    await watch.goes_on(10)
    assert watch.snapshot("beats").live
    assert [each for each in watch.told if each[1] == "live"] == [("beats", "live", False), ("beats", "live", True)]
    assert watch.snapshot("silent").live


async def test_an_agent_whose_process_has_ended_does_not_live_and_another_process_heals_it(
    watch: Watch, supervisor: Supervisor
) -> None:
    children = [await supervisor.spawn(SLEEP)]
    watch.register("worker", lambda: children[-1])
    await watch.goes_on(30)
    assert watch.snapshot("worker").live
    children[0].kill()
    await children[0].wait()
    await watch.goes_on(20)
    assert watch.snapshot("worker").live
    await watch.goes_on(10)
    assert watch.snapshot("worker").why_not_live == "its process has ended"
    children.append(await supervisor.spawn(SLEEP))
    await watch.goes_on(10)
    assert watch.snapshot("worker").live
    await children[-1].stop(0)


async def test_a_child_that_is_stopped_is_noticed_within_thirty_seconds(watch: Watch, supervisor: Supervisor) -> None:
    child = await supervisor.spawn(SLEEP)
    watch.register("worker", child)
    await watch.goes_on(5)
    os.kill(child.pid, signal.SIGSTOP)
    await until(lambda: child.paused)
    await watch.goes_on(5)
    assert watch.snapshot("worker").why_stuck == f"its process {child.pid} is stopped (SIGSTOP)"
    await watch.goes_on(25)
    snapshot = watch.snapshot("worker")
    assert (snapshot.live, snapshot.ready) == (False, False)
    os.kill(child.pid, signal.SIGCONT)
    await until(lambda: not child.paused)
    await watch.goes_on(10)
    snapshot = watch.snapshot("worker")
    assert (snapshot.live, snapshot.ready, snapshot.stuck) == (True, True, False)
    assert ("worker", "stuck", True) in watch.told
    assert {*watch.told[-3:]} == {("worker", what, what != "stuck") for what in ("stuck", "ready", "live")}
    await child.stop(0)


async def test_who_is_suspended_lives_and_is_not_ready(watch: Watch, supervisor: Supervisor) -> None:
    child = await supervisor.spawn(SLEEP)
    suspended = [True]
    watch.register("worker", child, is_suspended=lambda: suspended[0])
    child.pause()
    await until(lambda: child.paused)
    await watch.goes_on(60)
    snapshot = watch.snapshot("worker")
    assert (snapshot.live, snapshot.stuck, snapshot.why_not_ready) == (True, False, "it is suspended")
    await child.stop(0)


# -- readiness ----------------------------------------------------------------------------------------------------------


async def test_an_agent_that_fails_too_often_is_not_ready_until_it_is_forgotten(watch: Watch) -> None:
    watch.register("worker")
    for _ in range(4):
        with pytest.raises(RuntimeError), watch.request("worker"):
            raise RuntimeError("no")
    await watch.goes_on(10)
    assert watch.snapshot("worker").ready  # four are too few to tell
    with watch.request("worker") as request:
        request.failed = True
    await watch.goes_on(5)
    assert watch.snapshot("worker").ready  # once is no rule
    await watch.goes_on(5)
    snapshot = watch.snapshot("worker")
    assert snapshot.why_not_ready == "5 of 5 requests of the last 300 s have failed"
    assert snapshot.live
    for _ in range(5):
        watch.record_request("worker", 0.1)
    await watch.goes_on(5)
    assert watch.snapshot("worker").ready  # half of them is what it may be


async def test_probes_end_when_all_is_well_and_nothing_is_left_to_watch(watch: Watch) -> None:
    watch.register("worker")
    for _ in range(5):
        watch.record_request("worker", 1.0, failed=True)
    with watch.request("worker"):
        pass
    await watch.goes_on(10)
    assert not watch.snapshot("worker").ready
    await watch.goes_on(290)
    assert not watch.snapshot("worker").ready
    watch.time.advance(5)
    await until(lambda: watch.time.asleep == 0)
    assert watch.snapshot("worker").ready
    assert watch.snapshot("worker").requests == 0
    with watch.request("worker"):
        await watch.until_asleep()


# -- stuck --------------------------------------------------------------------------------------------------------------


async def test_work_without_progress_is_stuck_after_ten_minutes(watch: Watch) -> None:
    watch.register("worker")
    with watch.request("worker") as request:
        await watch.goes_on(600)
        assert not watch.snapshot("worker").stuck
        await watch.goes_on(5)
        snapshot = watch.snapshot("worker")
        assert snapshot.why_stuck == "its work has made no progress for 605 s"
        assert (snapshot.in_progress, snapshot.live) == (1, True)
        await watch.goes_on(5)
        assert not watch.snapshot("worker").ready
        request.progress()
        await watch.goes_on(5)
        snapshot = watch.snapshot("worker")
        assert (snapshot.stuck, snapshot.ready) == (False, True)
    assert watch.snapshot("worker").in_progress == 0


async def test_what_a_child_writes_is_progress(watch: Watch, supervisor: Supervisor) -> None:
    watch.config = HealthConfig(stuck_secs=50)
    child = await supervisor.spawn(Command(argv=["cat"]))
    assert child.stdin is not None
    watch.register("worker")
    with watch.request("worker", child):
        for _ in range(3):
            await watch.goes_on(40)
            child.stdin.write(b"on\n")
            assert await line(child) == "on"
        assert not watch.snapshot("worker").stuck
        await watch.goes_on(60)
        assert watch.snapshot("worker").stuck
    await child.stop(0)


# -- figures ------------------------------------------------------------------------------------------------------------


async def test_latency_and_errors_are_those_of_the_window(watch: Watch) -> None:
    watch.register("worker")
    watch.record_request("worker", 99.0, failed=True)
    watch.time.clock.advance(301)
    for seconds in range(1, 101):
        watch.record_request("worker", float(seconds), failed=seconds % 4 == 0)
    snapshot = watch.snapshot("worker")
    assert (snapshot.requests, snapshot.error_rate) == (100, 0.25)
    assert (snapshot.latency_mean_secs, snapshot.latency_p50_secs, snapshot.latency_p99_secs) == (50.5, 50, 99)
    found = {each.name: each.value for each in watch.samples()}
    assert (found["sabot_process_requests_total"], found["sabot_process_errors_total"]) == (101, 26)


async def test_what_was_never_asked_has_no_latency(watch: Watch) -> None:
    watch.register("worker")
    (snapshot,) = watch.snapshots()
    assert (snapshot.requests, snapshot.error_rate, snapshot.latency_p50_secs) == (0, None, None)


async def test_work_that_is_cancelled_says_nothing_of_its_agent(watch: Watch) -> None:
    watch.register("worker")
    with pytest.raises(asyncio.CancelledError), watch.request("worker"):
        raise asyncio.CancelledError
    assert (watch.snapshot("worker").requests, watch.snapshot("worker").in_progress) == (0, 0)


async def test_memory_and_cpu_of_children_are_measured(watch: Watch, supervisor: Supervisor) -> None:
    child = await supervisor.spawn(sh("i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done; echo done; cat"))
    assert await line(child) == "done"  # after more than ten ticks of 10 ms, in which the kernel counts its time
    watch.register("worker", child)
    await watch.probe_liveness()
    snapshot = watch.snapshot("worker")
    assert snapshot.memory_bytes > 100_000
    assert snapshot.cpu_seconds > 0
    await child.stop(0)


async def test_work_counts_for_its_agent_whatever_child_it_has_by_then(watch: Watch, supervisor: Supervisor) -> None:
    watch.register("worker")
    with watch.request("worker"):
        child = await supervisor.spawn(SLEEP)
        watch.register("worker", child)
        assert watch.snapshot("worker").in_progress == 1
    assert (watch.snapshot("worker").requests, watch.snapshot("worker").in_progress) == (1, 0)
    assert next(each.value for each in watch.samples() if each.name == "sabot_process_requests_total") == 1
    await child.stop(0)


async def test_an_agent_that_is_registered_anew_is_told_to_live_again(watch: Watch, supervisor: Supervisor) -> None:
    """Its owner has replaced the process that ended. The listener stayed with "does not live" for ever."""
    children = [await supervisor.spawn(SLEEP) for _ in range(2)]
    watch.register("worker", children[0])
    await children[0].stop(0)
    await watch.goes_on(30)
    assert [each[1:] for each in watch.told] == [("ready", False), ("live", False)]
    watch.register("worker", children[1])
    assert [each[1:] for each in watch.told[2:]] == [("live", True), ("ready", True)]
    await watch.goes_on(30)
    assert len(watch.told) == 4
    await children[1].stop(0)


async def test_who_is_not_watched_is_not_known(watch: Watch) -> None:
    watch.register("worker")
    watch.unregister("worker")
    for verb in (watch.snapshot, watch.beat):
        with pytest.raises(NotFound, match="'worker' is not watched"):
            verb("worker")


# -- pages --------------------------------------------------------------------------------------------------------------


def asked(port: int, path: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", path)
    answer = connection.getresponse()
    body = answer.read().decode()
    connection.close()
    return answer.status, body


async def test_health_is_served_with_the_figures_of_agents_and_of_pools(watch: Watch, supervisor: Supervisor) -> None:
    child = await supervisor.spawn(SLEEP)
    watch.register("good", child)
    watch.register("bad", heartbeats=True)
    port = watch.serve()
    with pytest.raises(UserError, match="served already"):
        watch.serve()
    status, body = await asyncio.to_thread(asked, port, "/healthz")
    assert (status, json.loads(body)) == (
        200,
        {"app": "office", "healthy": True, "why": "", "agents": {"good": "", "bad": ""}},
    )
    async with WarmPool(Command(argv=["cat"]), WarmPoolConfig(size=1), name="spare") as pool:
        watch.include(pool.samples)
        status, body = await asyncio.to_thread(asked, port, "/metrics")
        assert status == 200
        assert 'sabot_process_live{agent="good",app="office"} 1.0' in body
        assert 'sabot_warm_pool_children{app="office",pool="spare",state="warm"} 1.0' in body
    watch.time.clock.advance(31)
    for _ in range(3):
        await watch.probe_liveness()
        await watch.probe_readiness()
    status, body = await asyncio.to_thread(asked, port, "/healthz")
    assert status == 503
    assert json.loads(body)["why"] == "instance bad does not live: its last heartbeat was 31 s ago"
    status, body = await asyncio.to_thread(asked, port, "/ready")
    assert (status, json.loads(body)["agents"]["good"]) == (503, "")
    _, body = await asyncio.to_thread(asked, port, "/metrics")
    assert 'sabot_process_live{agent="bad",app="office"} 0.0' in body
    await watch.close()
    with pytest.raises(OSError, match="refused"):
        await asyncio.to_thread(asked, port, "/healthz")
    await child.stop(0)
