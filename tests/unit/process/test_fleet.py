"""A fleet of children: how many there are, who does what, and how one leaves."""

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from unit.process.children import ByHand, alive, children_of, line, sh

from sabot.errors import UserError
from sabot.process import (
    Child,
    Command,
    DrainTimeout,
    FleetConfig,
    FleetManager,
    FleetReplica,
    LifecycleManager,
    ResourceLimits,
    ScaleDownFailed,
    ScaleUpFailed,
    Supervisor,
    Timeout,
    WarmPool,
    WarmPoolConfig,
    WarmPoolExhausted,
)
from tools.agent_tools import until

pytestmark = pytest.mark.usefixtures("supervisor")

CAT = Command(argv=["cat"])
SLEEP = Command(argv=["sleep", "1000"])


def fleet_of(what: Command | WarmPool = CAT, time: ByHand | None = None, **options: Any) -> FleetManager:
    config = {name: options.pop(name) for name in list(options) if name in FleetConfig.__dataclass_fields__}
    time = time or ByHand()
    return FleetManager(what, FleetConfig(**config), clock=time.clock, sleep=time.sleep, **options)


def echo(text: str) -> Callable[[Child], Awaitable[str]]:
    async def work(child: Child) -> str:
        assert child.stdin is not None
        child.stdin.write(f"{text}\n".encode())
        return await line(child)

    return work


class Gate:
    """Work that begins, and ends when it is let."""

    def __init__(self) -> None:
        self.begun: list[int] = []
        self._open = asyncio.Event()

    async def __call__(self, child: Child) -> int:
        self.begun.append(child.pid)
        await self._open.wait()
        return child.pid

    def open(self) -> None:
        self._open.set()


async def busy(fleet: FleetManager, gate: Gate, count: int) -> list["asyncio.Future[int]"]:
    """So many pieces of work, all of them begun or in the queue."""
    before = len(gate.begun)
    work = [asyncio.ensure_future(fleet.run(gate)) for _ in range(count)]
    await until(lambda: len(gate.begun) - before == min(count, len(fleet.replicas)))
    return work


# -- settings ---------------------------------------------------------------------------------------------------------


def test_the_settings_are_those_of_the_document() -> None:
    config = FleetConfig()
    assert (config.min_replicas, config.max_replicas, config.target_cpu_percent) == (1, 100, 70)
    assert (config.scale_up_secs, config.scale_down_secs, config.drain_secs) == (60, 300, 30)


@pytest.mark.parametrize(
    "wrong",
    [
        {"min_replicas": -1},
        {"min_replicas": 3, "max_replicas": 2},
        {"min_replicas": 0, "max_replicas": 0},
        {"target_cpu_percent": 0},
        {"target_memory_percent": 0},
        {"target_lag": 0},
        {"interval_secs": 0},
        {"tolerance": -0.1},
        {"scale_up_secs": -1},
        {"scale_down_secs": -1},
        {"drain_secs": -1},
        {"grace_secs": -1},
    ],
    ids=lambda wrong: ",".join(wrong),
)
def test_settings_that_cannot_be_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UserError, match=list(wrong)[-1]):
        FleetConfig(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("error", "code", "base"),
    [
        (ScaleUpFailed, "E2090", Exception),
        (ScaleDownFailed, "E2091", Exception),
        (WarmPoolExhausted, "E2092", Exception),
        (DrainTimeout, "E2093", Timeout),
    ],
)
def test_codes_are_those_of_the_document(error: Any, code: str, base: type[Exception]) -> None:
    assert error("what").code == code
    assert issubclass(error, base)


# -- work ---------------------------------------------------------------------------------------------------------------


async def test_work_is_done_by_free_replicas_side_by_side() -> None:
    async with fleet_of(min_replicas=2) as fleet:
        gate = Gate()
        work = await busy(fleet, gate, 2)
        assert len(set(gate.begun)) == 2
        gate.open()
        assert await asyncio.gather(*work) == gate.begun
        assert [each.done for each in fleet.replicas] == [1, 1]


async def test_what_finds_no_free_replica_waits_in_its_order() -> None:
    async with fleet_of() as fleet:
        gate, order = Gate(), list[str]()

        async def told(text: str) -> None:
            order.append(await fleet.run(echo(text)))

        (work,) = await busy(fleet, gate, 1)
        waiting = [asyncio.ensure_future(told(str(number))) for number in range(4)]
        await asyncio.sleep(0)
        metrics = await fleet.measure()
        assert (metrics.active, metrics.busy, metrics.waiting) == (1, 1, 4)
        gate.open()
        await asyncio.gather(work, *waiting)
        assert order == ["0", "1", "2", "3"]


async def test_a_replica_whose_work_has_failed_or_was_cancelled_is_replaced() -> None:
    async def fails(child: Child) -> None:
        raise RuntimeError("the answer is not the one")

    async with fleet_of() as fleet:
        (first,) = fleet.replicas
        with pytest.raises(RuntimeError):
            await fleet.run(fails)
        assert await fleet.run(echo("on")) == "on"
        assert first.child.is_over or first.state == "ending"
        gate = Gate()
        (work,) = await busy(fleet, gate, 1)
        second = [each for each in fleet.replicas if each.state == "active"]
        work.cancel()
        assert await fleet.run(echo("and on")) == "and on"
        assert second[0].number < max(each.number for each in fleet.replicas)
        await until(lambda: len(fleet.replicas) == 1)


async def test_who_does_not_wait_any_more_holds_nobody_up() -> None:
    async with fleet_of() as fleet:
        gate = Gate()
        (work, waiting) = await busy(fleet, gate, 2)
        waiting.cancel()
        last = asyncio.ensure_future(fleet.run(echo("last")))
        gate.open()
        await work
        assert await last == "last"


async def test_a_replica_that_dies_is_replaced_after_a_moment(supervisor: Supervisor) -> None:
    time = ByHand()
    async with fleet_of(SLEEP, time, min_replicas=3) as fleet:
        for seconds in (1.0, 2.0):
            for each in fleet.replicas:
                os.kill(each.child.pid, signal.SIGKILL)
            await until(lambda seconds=seconds: time.waits.count(seconds) == 3)  # type: ignore[misc]
            assert fleet.replicas == []
            time.advance(seconds)
            await until(lambda: len(fleet.replicas) == 3)
        assert value(fleet, "sabot_fleet_events_total", "died") == 6


@pytest.mark.slow  # half a second of a core
async def test_the_end_of_the_supervisor_is_survived(supervisor: Supervisor) -> None:
    time = ByHand()
    async with fleet_of(CAT, time) as fleet:
        os.kill(supervisor.pid, signal.SIGKILL)
        await until(lambda: 1.0 in time.waits)
        time.advance(1)
        assert await fleet.run(echo("on")) == "on"


async def test_a_replica_that_is_stopped_is_replaced_before_the_next_look_if_work_asks_for_it() -> None:
    time = ByHand()
    async with fleet_of(CAT, time) as fleet:
        (first,) = fleet.replicas
        os.kill(first.child.pid, signal.SIGSTOP)
        await until(lambda: first.child.paused)
        assert await fleet.run(echo("on")) == "on"
        assert first.child.is_over
        assert [each.number for each in fleet.replicas] == [2]
        assert [each.value for each in fleet.samples() if each.topic == "died"] == [1]


async def test_a_replica_that_is_stopped_gets_no_work_and_is_replaced_at_the_next_look() -> None:
    time = ByHand()
    async with fleet_of(CAT, time, min_replicas=2) as fleet:
        first, second = fleet.replicas
        os.kill(first.child.pid, signal.SIGSTOP)
        await until(lambda: first.child.paused)
        gate = Gate()
        (work,) = await busy(fleet, gate, 1)
        assert gate.begun == [second.child.pid]
        os.kill(second.child.pid, signal.SIGSTOP)
        await until(lambda: second.child.paused)
        waiting = asyncio.ensure_future(fleet.run(echo("on")))
        await until(lambda: 15 in time.waits)
        time.advance(15)
        assert await waiting == "on"
        assert first.child.is_over or first.state == "ending"
        assert not {each.number for each in fleet.replicas if each.state == "active"} & {1, 2}
        gate.open()
        await work


# -- how many -----------------------------------------------------------------------------------------------------------


async def test_more_are_started_when_more_were_wanted_for_a_minute() -> None:
    time = ByHand()
    async with fleet_of(CAT, time, target_lag=5) as fleet:
        gate = Gate()
        work = await busy(fleet, gate, 12)
        decisions = []
        for seconds in (15, 15, 15, 15, 15):
            time.clock.advance(seconds)  # nobody is woken: the test looks itself
            decisions.append(await fleet.evaluate())
        assert [each.action for each in decisions] == ["none", "none", "none", "none", "up"]
        last = decisions[-1]
        assert (last.current, last.recommended, last.desired) == (1, 4, 4)  # one is busy, and 11 wait
        assert last.reason == "work: 1 busy, 11 waiting"
        await fleet.scale_to(last.desired)
        await until(lambda: len(gate.begun) == 4)
        assert value(fleet, "sabot_fleet_replicas", "busy") == 4
        gate.open()
        await asyncio.gather(*work)


async def test_fewer_are_kept_when_fewer_were_wanted_for_five_minutes() -> None:
    time = ByHand()
    async with fleet_of(CAT, time, min_replicas=1) as fleet:
        await fleet.scale_to(3)
        actions = []
        for _ in range(20):
            time.clock.advance(15)
            actions.append((await fleet.evaluate()).action)
        assert actions == ["none"] * 19 + ["down"]


async def test_a_fleet_of_none_starts_a_replica_for_the_first_work_at_once(supervisor: Supervisor) -> None:
    async with fleet_of(min_replicas=0) as fleet:
        assert children_of(supervisor.pid) == []
        assert await asyncio.gather(*(fleet.run(echo(str(number))) for number in range(3))) == ["0", "1", "2"]
        assert len(fleet.replicas) == 1
        await fleet.scale_to(0)
        assert children_of(supervisor.pid) == []
        assert await fleet.run(echo("again")) == "again"


async def test_a_scaling_that_is_cancelled_leaves_as_many_as_are_counted(supervisor: Supervisor) -> None:
    async with fleet_of(max_replicas=9) as fleet:
        growing = asyncio.ensure_future(fleet.scale_to(4))
        await asyncio.sleep(0)
        growing.cancel()
        await asyncio.wait([growing])
        assert len(fleet.replicas) == (await fleet.evaluate()).current == 4
        gate = Gate()
        work = await busy(fleet, gate, 4)
        shrinking = asyncio.ensure_future(fleet.scale_to(1))
        await until(lambda: sum(each.state == "draining" for each in fleet.replicas) == 3)
        shrinking.cancel()
        await asyncio.wait([shrinking])
        assert [each.state for each in fleet.replicas] == ["active"] * 4
        assert (await fleet.evaluate()).current == 4
        gate.open()
        await asyncio.gather(*work)


@pytest.mark.parametrize("ticks", [0, 1, 2, 3, 4, 5])
async def test_a_fleet_is_closed_while_it_waits_for_a_warm_child(tmp_path: Path, ticks: int) -> None:
    (tmp_path / "go").touch()
    command = sh("while [ ! -e go ]; do sleep 0.005; done; echo ready; exec cat", working_dir=tmp_path)
    async with WarmPool(command, WarmPoolConfig(size=1), ready="ready") as pool:
        (tmp_path / "go").unlink()
        fleet = fleet_of(pool)
        await fleet.start()
        growing = asyncio.ensure_future(fleet.scale_to(3))
        for _ in range(ticks):
            await asyncio.sleep(0)
        await fleet.close()
        with pytest.raises(UserError, match="does not run"):
            await growing
        assert pool.status().given_out == 0


async def test_what_comes_and_goes_changes_nothing() -> None:
    time, lag = ByHand(), [0.0]
    async with fleet_of(CAT, time, lag=lambda: lag[0]) as fleet:
        for seconds in range(0, 1200, 15):
            lag[0] = 50.0 if seconds % 60 else 0.0
            time.clock.advance(15)
            assert (await fleet.evaluate()).action == "none"


async def looks(time: ByHand, times: int) -> None:
    """Lets a fleet look so many times, and returns when it waits for the next one."""
    for _ in range(times):
        await until(lambda: any(time.waits[-3:].count(each) for each in (15,)))
        before = time.waits.count(15)
        time.advance(15)
        await until(lambda before=before: time.waits.count(15) > before)  # type: ignore[misc]


async def test_the_fleet_looks_by_itself(supervisor: Supervisor) -> None:
    time, lag = ByHand(), [30.0]
    async with fleet_of(CAT, time, lag=lambda: lag[0]) as fleet:
        await looks(time, 6)
        assert len(children_of(supervisor.pid)) == 3
        lag[0] = 0
        await looks(time, 22)
        assert len(children_of(supervisor.pid)) == 1
        assert value(fleet, "sabot_fleet_events_total", "up") == value(fleet, "sabot_fleet_events_total", "down") == 1


async def test_a_fleet_looks_on_after_an_error_of_a_look(caplog: pytest.LogCaptureFixture) -> None:
    """It never looked again, and stayed as large as it was then: here its warm pool was started late."""
    time, pool = ByHand(), WarmPool(CAT, WarmPoolConfig(size=1), name="late")
    async with fleet_of(pool, time, lag=lambda: 10.0, min_replicas=0) as fleet:
        await looks(time, 6)
        assert "warm pool 'late' does not run" in caplog.text
        async with pool:
            await looks(time, 1)
            assert len(fleet.replicas) == 1


async def test_replicas_that_compute_become_more_and_those_that_sleep_do_not() -> None:
    time = ByHand()
    script = "while read -r what; do while :; do :; done; done"
    async with fleet_of(sh(script), time, min_replicas=1) as fleet:
        (replica,) = fleet.replicas
        time.clock.advance(1)
        idle = await fleet.evaluate()
        assert idle.metrics.cpu_percent is not None
        assert idle.metrics.cpu_percent < 30
        assert idle.recommended == 1
        assert replica.child.stdin is not None
        replica.child.stdin.write(b"burn\n")
        while (await replica.child.usage()).cpu_seconds < 0.2:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        time.clock.advance(0.1)  # in which it has used more
        burning = await fleet.evaluate()
        assert burning.metrics.cpu_percent is not None
        assert burning.metrics.cpu_percent > 140
        assert burning.recommended >= 3
        assert burning.reason.startswith("CPU: ")


async def test_the_cpu_of_a_replica_is_measured_by_what_it_may_use() -> None:
    time = ByHand()
    limits = ResourceLimits(cpu_limit_percent=50, max_task_duration=None)
    async with fleet_of(sh("while :; do :; done", limits=limits), time) as fleet:
        (replica,) = fleet.replicas
        while (used := (await replica.child.usage()).cpu_seconds) < 0.1:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        time.clock.advance(10)
        metrics = await fleet.measure()
        assert metrics.cpu_percent is not None
        assert round(metrics.cpu_percent, 6) >= round(100 * used / 10 / 0.5, 6)


async def test_replicas_that_hold_much_memory_become_more() -> None:
    held = 20 << 20
    script = f"(head -c {held} /dev/zero; sleep 1000) | tail -c {held}"
    limits = ResourceLimits(max_memory_mb=200, max_task_duration=None)
    async with fleet_of(sh(script, limits=limits), target_memory_percent=5) as fleet:
        while (metrics := await fleet.measure()).memory_bytes < held:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        assert metrics.memory_percent is not None
        assert 10 <= metrics.memory_percent < 20
        decision = await fleet.evaluate()
        assert decision.recommended >= 2
        assert decision.reason.startswith("memory: ")
        assert value(fleet, "sabot_fleet_memory_bytes") >= held


@pytest.mark.parametrize("how", ["function", "coroutine"])
@pytest.mark.parametrize(("behind", "wanted"), [(0, 2), (20, 2), (21, 3), (95, 10), (100_000, 20)])
async def test_the_lag_says_how_many_are_wanted(how: str, behind: int, wanted: int) -> None:
    async def later() -> float:
        return behind

    lag = later if how == "coroutine" else lambda: behind
    async with fleet_of(SLEEP, min_replicas=2, max_replicas=20, lag=lag) as fleet:
        decision = await fleet.evaluate()
        assert (decision.recommended, decision.metrics.lag) == (wanted, behind)


async def test_a_lag_that_cannot_be_told_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    time = ByHand()

    def lag() -> float:
        raise RuntimeError("no broker")

    async with fleet_of(CAT, time, lag=lag) as fleet:
        for _ in range(2):
            await until(lambda: 15 in time.waits)
            time.waits.clear()
            time.advance(15)
        await until(lambda: 15 in time.waits)
        assert "no broker" in caplog.text
        assert await fleet.run(echo("on")) == "on"


async def test_more_than_there_may_be_and_fewer_are_refused() -> None:
    async with fleet_of(SLEEP, min_replicas=1, max_replicas=2) as fleet:
        with pytest.raises(ScaleUpFailed, match="max_replicas=2"):
            await fleet.scale_to(3)
        with pytest.raises(ScaleDownFailed, match="min_replicas=1"):
            await fleet.scale_to(0)
        assert len(fleet.replicas) == 1


async def test_replicas_that_do_not_start_fail_the_start_and_a_scaling(supervisor: Supervisor, tmp_path: Path) -> None:
    with pytest.raises(ScaleUpFailed, match="2 of 2 replicas did not start: no-such-program"):
        await fleet_of(Command(argv=["no-such-program"]), min_replicas=2).start()
    assert children_of(supervisor.pid) == []
    program = tmp_path / "program"
    program.symlink_to("/bin/cat")
    async with fleet_of(Command(argv=[str(program)]), min_replicas=1) as fleet:
        program.unlink()
        with pytest.raises(ScaleUpFailed, match=r"3 of 3 replicas did not start: .* there is no such file") as failed:
            await fleet.scale_to(4)
        assert failed.value.code == "E2090"
        assert await fleet.run(echo("on")) == "on"


async def test_a_warm_pool_that_has_no_more_fails_a_scaling(tmp_path: Path) -> None:
    (tmp_path / "go").touch()
    command = sh("while [ ! -e go ]; do sleep 0.005; done; echo ready; exec cat", working_dir=tmp_path)
    async with WarmPool(command, WarmPoolConfig(size=2), ready="ready") as pool:
        (tmp_path / "go").unlink()
        async with fleet_of(pool, spawn_timeout_secs=0) as fleet:
            with pytest.raises(ScaleUpFailed, match="2 of 3 replicas did not start: warm pool") as failed:
                await fleet.scale_to(4)
            assert isinstance(failed.value.__cause__, WarmPoolExhausted)
            assert len(fleet.replicas) == 2


async def test_a_fleet_takes_its_replicas_from_a_warm_pool(supervisor: Supervisor) -> None:
    async with WarmPool(CAT, WarmPoolConfig(size=2)) as pool:
        warm = {child.pid for child in pool.children}
        async with fleet_of(pool, min_replicas=2) as fleet:
            assert {each.child.pid for each in fleet.replicas} == warm
            assert await fleet.run(echo("on")) == "on"
        assert pool.status().given_out == 0
        assert not any(map(alive, warm))


async def test_a_manager_lists_replicas_and_warm_children_while_they_live_and_what_became_of_them() -> None:
    async with LifecycleManager() as lives, WarmPool(CAT, WarmPoolConfig(size=1), lives=lives, name="warm") as pool:
        async with fleet_of(SLEEP, min_replicas=1, lives=lives, name="busy") as fleet:
            (replica,) = fleet.replicas
            infos = {each.name: each for each in lives.list_agents()}
            assert {name: (each.state, each.pid) for name, each in infos.items()} == {
                "warm": ("running", pool.children[0].pid),
                "busy": ("running", replica.child.pid),
            }
            await lives.suspend(infos["busy"].id)
            await until(lambda: replica.child.paused)
            await lives.resume(infos["busy"].id)
            gate = Gate()
            (work,) = await busy(fleet, gate, 1)
            os.kill(replica.child.pid, signal.SIGKILL)
            await replica.child.wait()
            await until(lambda: lives.agent(infos["busy"].id).info.state == "failed")
            ended = lives.agent(infos["busy"].id).info
            assert (ended.pid, ended.why, ended.next_start_at) == (0, "it was ended by signal 9", None)
            gate.open()
            await work
        await pool.close()
        states = {(each.name, str(each.state), each.pid) for each in lives.list_agents()}
        assert states == {("warm", "terminated", 0), ("busy", "failed", 0)}


# -- drains -------------------------------------------------------------------------------------------------------------


async def test_what_is_done_nothing_by_leaves_first_and_what_is_done_may_end() -> None:
    saved: list[tuple[int, bool]] = []

    async def checkpoint(replica: FleetReplica) -> None:
        saved.append((replica.number, replica.is_busy))

    async with fleet_of(min_replicas=1, checkpoint=checkpoint) as fleet:
        await fleet.scale_to(3)
        gate = Gate()
        work = await busy(fleet, gate, 2)
        idle = [each.number for each in fleet.replicas if not each.is_busy]
        going = asyncio.ensure_future(fleet.scale_to(1))
        await until(lambda: len(fleet.replicas) == 2)  # the idle one is gone
        assert saved == [(idle[0], False)]
        assert [each.state for each in fleet.replicas] == ["active", "draining"]
        later = asyncio.ensure_future(fleet.run(echo("later")))
        await asyncio.sleep(0)
        assert not going.done()
        gate.open()
        await going
        assert await later == "later"
        assert [await each for each in work] == gate.begun
        assert [number for number, _ in saved] == [idle[0], 2]
        assert [each.number for each in fleet.replicas] == [1]


async def test_what_is_not_done_in_time_is_given_back() -> None:
    time = ByHand()
    async with fleet_of(CAT, time) as fleet:
        await fleet.scale_to(2)
        gate = Gate()
        work = await busy(fleet, gate, 2)
        again = asyncio.ensure_future(fleet.run(gate, repeatable=True))
        going = asyncio.ensure_future(fleet.scale_to(1))
        await until(lambda: 30 in time.waits)
        (drained,) = [each for each in fleet.replicas if each.state == "draining"]
        time.advance(30)
        await going
        assert drained.child.is_over
        with pytest.raises(DrainTimeout, match="the work is given back: it was not done in 30 s") as back:
            await work[1]
        assert back.value.code == "E2093"
        gate.open()
        assert await work[0] == await again == fleet.replicas[0].child.pid
        assert value(fleet, "sabot_fleet_events_total", "given_back") == 1


async def test_work_that_may_be_repeated_is_done_again_before_what_waits() -> None:
    time, order = ByHand(), list[str]()
    async with fleet_of(CAT, time) as fleet:
        await fleet.scale_to(2)
        gate = Gate()

        async def told(name: str) -> None:
            await fleet.run(gate, repeatable=True)
            order.append(name)

        work = [asyncio.ensure_future(told(name)) for name in ("first", "second")]
        await until(lambda: len(gate.begun) == 2)
        work.append(asyncio.ensure_future(told("third")))
        going = asyncio.ensure_future(fleet.scale_to(1))
        await until(lambda: 30 in time.waits)
        time.advance(30)
        await going
        gate.open()
        await asyncio.gather(*work)
        assert order == ["first", "second", "third"]
        assert gate.begun[0] == gate.begun[2] == gate.begun[3]


@pytest.mark.parametrize("how", ["fails", "hangs"])
async def test_a_replica_whose_checkpoint_is_not_made_goes_on(how: str) -> None:
    time, allowed, asked = ByHand(), [False], asyncio.Event()

    async def checkpoint(replica: FleetReplica) -> None:
        if allowed[0]:
            return
        asked.set()
        if how == "fails":
            raise OSError("the disk is full")
        await asyncio.Event().wait()

    async with fleet_of(CAT, time, checkpoint=checkpoint) as fleet:
        await fleet.scale_to(2)
        going = asyncio.ensure_future(fleet.scale_to(1))
        if how == "hangs":
            await asked.wait()
            time.advance(30)
        said = "has failed: the disk is full" if how == "fails" else "was not made in 30 s"
        with pytest.raises(ScaleDownFailed, match=said) as failed:
            await going
        assert failed.value.code == "E2091"
        gate = Gate()
        work = await busy(fleet, gate, 2)
        assert len(gate.begun) == 2
        gate.open()
        await asyncio.gather(*work)
        allowed[0] = True
        await fleet.scale_to(1)
        assert len(fleet.replicas) == 1


async def test_a_fleet_that_is_closed_lets_work_end_gives_back_what_waits_and_leaves_no_child(
    supervisor: Supervisor,
) -> None:
    fleet = fleet_of(min_replicas=2)
    await fleet.start()
    gate = Gate()
    work = await busy(fleet, gate, 3)
    closing = asyncio.ensure_future(fleet.close())
    with pytest.raises(DrainTimeout, match="it was not begun"):
        await work[2]
    assert not closing.done()
    gate.open()
    await asyncio.gather(*work[:2])
    await closing
    assert children_of(supervisor.pid) == []
    for verb in (fleet.run(gate), fleet.scale_to(2)):
        with pytest.raises(UserError, match="does not run"):
            await verb
    await fleet.close()


async def test_a_fleet_whose_checkpoint_fails_at_the_end_says_so_and_leaves_no_child(supervisor: Supervisor) -> None:
    async def checkpoint(replica: FleetReplica) -> None:
        raise OSError("the disk is full")

    fleet = fleet_of(min_replicas=2, checkpoint=checkpoint)
    await fleet.start()
    with pytest.raises(ScaleDownFailed, match="the disk is full"):
        await fleet.close()
    assert children_of(supervisor.pid) == []


def value(fleet: FleetManager, name: str, state: str = "") -> float:
    (found,) = [each.value for each in fleet.samples() if each.name == name and each.topic == state]
    assert isinstance(found, int | float)
    return found
