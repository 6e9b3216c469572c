"""Children that are started before they are needed."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from unit.process.children import ByHand, alive, children_of, line, sh

from sabot.errors import UserError
from sabot.process import (
    Child,
    Command,
    ResourceLimits,
    SpawnFailed,
    Supervisor,
    WarmPool,
    WarmPoolConfig,
    WarmPoolExhausted,
)
from tools.agent_tools import until

pytestmark = pytest.mark.usefixtures("supervisor")

CAT = Command(argv=["cat"])


def pool_of(by_hand: ByHand | None = None, command: Command = CAT, **options: Any) -> WarmPool:
    config = {name: options.pop(name) for name in list(options) if name in WarmPoolConfig.__dataclass_fields__}
    time = by_hand or ByHand()
    return WarmPool(command, WarmPoolConfig(**config), clock=time.clock, sleep=time.sleep, **options)


def gated(folder: Path) -> Command:
    """A program that is warm when there is a file `go`."""
    return sh("while [ ! -e go ]; do sleep 0.005; done; echo ready; exec cat", working_dir=folder)


@pytest.fixture
def time() -> ByHand:
    return ByHand()


@pytest.fixture
async def emptied(time: ByHand, tmp_path: Path) -> AsyncIterator[WarmPool]:
    """A pool whose child was given out, and that gets no other one before there is a file `go`."""
    (tmp_path / "go").touch()
    async with pool_of(time, gated(tmp_path), size=1, ready="ready") as pool:
        (tmp_path / "go").unlink()
        await pool.allocate()
        yield pool


def full(pool: WarmPool) -> Any:
    return until(lambda: pool.status().warm == pool.config.size)


async def echo(child: Child, text: str) -> str:
    assert child.stdin is not None
    child.stdin.write(f"{text}\n".encode())
    return await line(child)


def test_the_settings_are_those_of_the_document() -> None:
    config = WarmPoolConfig()
    assert (config.size, config.refresh_interval_secs, config.max_age_secs) == (5, 3600, 7200)


@pytest.mark.parametrize("name", ["size", "refresh_interval_secs", "max_age_secs", "spawn_timeout_secs"])
def test_a_setting_that_allows_nothing_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=name):
        WarmPoolConfig(**{name: 0})


@pytest.mark.parametrize(
    ("command", "ready"), [(Command(argv=["cat"], stdin="null"), None), (Command(argv=["cat"], stdout="null"), "ready")]
)
def test_a_command_that_cannot_be_spoken_with_is_refused(command: Command, ready: str | None) -> None:
    with pytest.raises(UserError, match="stdin"):
        WarmPool(command, ready=ready)


async def test_the_pool_is_full_at_the_start_and_after_each_child_that_it_gives_out(supervisor: Supervisor) -> None:
    async with pool_of(size=3) as pool:
        before = set(children_of(supervisor.pid))
        assert len(before) == 3
        child = await pool.allocate()
        assert child.pid in before
        assert await echo(child, "work") == "work"
        await full(pool)
        status = pool.status()
        assert (status.warm, status.given_out, status.spawned, status.allocated) == (3, 1, 4, 1)
        assert len(children_of(supervisor.pid)) == 4


async def test_a_pool_that_is_closed_leaves_no_child_also_of_those_that_it_gave_out(supervisor: Supervisor) -> None:
    pool = pool_of(size=2)
    await pool.start()
    given = await pool.allocate()
    await pool.close()
    assert (given.is_over, children_of(supervisor.pid), pool.status().warm) == (True, [], 0)
    with pytest.raises(UserError, match="does not run"):
        await pool.allocate()
    await pool.close()


async def test_a_pool_that_is_closed_while_it_starts_leaves_none(supervisor: Supervisor, tmp_path: Path) -> None:
    pool = pool_of(command=gated(tmp_path), size=3, ready="ready")
    starting = asyncio.ensure_future(pool.start())
    await until(lambda: len(children_of(supervisor.pid)) == 3)
    starting.cancel()
    await asyncio.wait([starting])
    assert children_of(supervisor.pid) == []


async def test_the_oldest_child_is_given_out_first() -> None:
    time = ByHand()
    async with pool_of(time, size=2) as pool:
        await pool.allocate()
        await full(pool)
        time.advance(100)
        await pool.allocate()
        await full(pool)
        time.advance(50)
        assert pool.status().ages_secs == (150, 50)  # were the youngest given out, it would be (250, 150)


# -- empty --------------------------------------------------------------------------------------------------------------


async def test_an_empty_pool_refuses(emptied: WarmPool) -> None:
    with pytest.raises(WarmPoolExhausted, match=r"'warm' of sh: none of its children is warm") as refused:
        await emptied.allocate()
    assert refused.value.code == "E2092"
    assert "size=" in refused.value.hint
    assert emptied.status().refused == 1


async def test_or_it_serves_those_who_wait_in_their_order(emptied: WarmPool, tmp_path: Path) -> None:
    order: list[int] = []

    async def wait(number: int) -> Child:
        child = await emptied.allocate(wait_secs=None)
        order.append(number)
        return child

    waiting = [asyncio.ensure_future(wait(number)) for number in range(3)]
    await asyncio.sleep(0)
    (tmp_path / "go").touch()
    children = await asyncio.gather(*waiting)
    assert order == [0, 1, 2]
    assert [await echo(child, str(number)) for number, child in enumerate(children)] == ["0", "1", "2"]


async def test_who_waits_longer_than_it_wanted_to_is_refused(emptied: WarmPool, time: ByHand) -> None:
    waiting = asyncio.ensure_future(emptied.allocate(wait_secs=30))
    await until(lambda: 30 in time.waits)
    time.advance(29)
    await asyncio.sleep(0)
    assert not waiting.done()
    time.advance(1)
    with pytest.raises(WarmPoolExhausted, match="none of its children was warm in 30 s"):
        await waiting


async def test_who_waits_when_the_pool_is_closed_is_refused(emptied: WarmPool) -> None:
    waiting = asyncio.ensure_future(emptied.allocate(wait_secs=None))
    await asyncio.sleep(0)
    await emptied.close()
    with pytest.raises(WarmPoolExhausted, match="it was closed"):
        await waiting


async def test_who_does_not_wait_any_more_takes_no_child(emptied: WarmPool, tmp_path: Path) -> None:
    waiting = asyncio.ensure_future(emptied.allocate(wait_secs=None))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait([waiting])
    (tmp_path / "go").touch()
    await full(emptied)
    assert emptied.status().given_out == 1  # that of the fixture


# -- ends ---------------------------------------------------------------------------------------------------------------


async def test_a_child_that_ends_while_it_is_warm_is_replaced_and_never_given_out() -> None:
    time = ByHand()
    async with pool_of(time, size=1) as pool:
        (first,) = pool.children
        os.kill(first.pid, signal.SIGKILL)
        await until(lambda: not alive(first.pid))
        with pytest.raises(WarmPoolExhausted, match="ended"):
            await pool.allocate()
        await until(lambda: 1.0 in time.waits)  # the replacement comes after a second
        assert (pool.status().died, pool.status().starting) == (1, 1)
        time.advance(1)
        await full(pool)
        assert (await pool.allocate()).pid != first.pid
        assert pool.status().failure == ""


async def test_a_child_that_is_stopped_while_it_is_warm_is_not_given_out() -> None:
    time = ByHand()
    async with pool_of(time, size=1) as pool:
        (first,) = pool.children
        os.kill(first.pid, signal.SIGSTOP)
        await until(lambda: first.paused)
        with pytest.raises(WarmPoolExhausted, match="was stopped"):
            await pool.allocate()
        await first.wait()
        await until(lambda: 1.0 in time.waits)
        time.advance(1)
        await full(pool)


async def test_children_that_end_again_and_again_are_replaced_later_each_time() -> None:
    time = ByHand()
    async with pool_of(time, size=2) as pool:
        for seconds in (1.0, 2.0, 4.0):
            both = pool.children
            for child in both:
                os.kill(child.pid, signal.SIGKILL)
            await until(lambda: pool.status().starting == 2)
            await until(lambda seconds=seconds: time.waits.count(seconds) == 2)  # type: ignore[misc]
            time.advance(seconds)
            await full(pool)
        await pool.allocate()  # they are good again
        await full(pool)
        assert 8.0 not in time.waits


@pytest.mark.slow  # half a second of a core
async def test_the_end_of_the_supervisor_is_that_of_all_and_the_next_one_has_new_ones(supervisor: Supervisor) -> None:
    time = ByHand()
    async with pool_of(time, size=2) as pool:
        os.kill(supervisor.pid, signal.SIGKILL)
        await until(lambda: pool.status().starting == 2 and time.waits.count(1.0) == 2)
        assert "its supervisor was killed" in pool.status().failure
        time.advance(1)
        await full(pool)
        assert await echo(await pool.allocate(), "on") == "on"


async def test_a_program_that_is_not_there_fails_the_start(supervisor: Supervisor) -> None:
    pool = pool_of(command=Command(argv=["no-such-program"]))
    with pytest.raises(SpawnFailed, match="no-such-program"):
        await pool.start()
    assert children_of(supervisor.pid) == []


async def test_a_program_that_ends_before_it_is_warm_fails_the_start(supervisor: Supervisor) -> None:
    with pytest.raises(SpawnFailed, match="instance 'warm': it was not ready before it ended with 3"):
        await pool_of(command=sh("echo hello; exit 3"), ready="ready").start()
    assert children_of(supervisor.pid) == []


async def test_a_program_that_is_not_warm_in_time_fails_the_start(supervisor: Supervisor, tmp_path: Path) -> None:
    with pytest.raises(SpawnFailed, match=r"sh was not warm in 0\.05 s"):
        await pool_of(command=gated(tmp_path), size=1, ready="ready", spawn_timeout_secs=0.05).start()
    assert children_of(supervisor.pid) == []


async def test_the_time_of_a_child_begins_when_it_is_given_out() -> None:
    command = Command(argv=["cat"], limits=ResourceLimits(max_task_duration=0.05))
    async with pool_of(command=command, size=1) as pool:
        (child,) = pool.children
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.15):
                await child.wait()
        assert await pool.allocate() is child
        assert (await child.wait()).limit == "max_task_duration"


# -- back -----------------------------------------------------------------------------------------------------------------


async def test_a_child_that_is_given_back_is_ended() -> None:
    async with pool_of(size=1) as pool:
        async with pool.borrowed() as child:
            assert await echo(child, "a secret") == "a secret"
        assert child.is_over
        await full(pool)
        assert (await pool.allocate()).pid != child.pid
        await pool.give_back(child)  # nothing happens
        assert pool.status().given_out == 1


async def test_a_child_that_was_reset_is_given_out_again() -> None:
    async def reset(child: Child) -> bool:
        assert child.stdin is not None
        child.stdin.write(b"reset\n")
        while await line(child) != "reset":
            pass
        return True

    limits = ResourceLimits(max_task_duration=30)
    async with pool_of(command=Command(argv=["cat"], limits=limits), size=1, reset=reset) as pool:
        async with pool.borrowed() as child:
            child.stdin.write(b"first\n")  # type: ignore[union-attr]
        assert not child.is_over
        await until(lambda: pool.status().warm == 2)
        given = [await pool.allocate(), await pool.allocate()]
        assert child in given
        assert await echo(child, "second") == "second"


@pytest.mark.parametrize("rest", ["a line\n", "half a line", "late\n", "input"])
async def test_a_child_with_a_rest_of_its_work_is_given_to_nobody(rest: str, caplog: pytest.LogCaptureFixture) -> None:
    """It stood where the next work looked for its answer."""
    out: list[Child] = []

    async def reset(child: Child) -> bool:
        assert child.stdin is not None
        out.append(child)
        if rest == "input":
            child.stdin.write(b"x" * 1_000_000)
        elif rest != "late\n":
            child.stdin.write(rest.encode())
            await until(lambda: child.output_bytes == len(rest))
        return True

    command = Command(argv=["sleep", "100"]) if rest == "input" else CAT
    async with pool_of(command=command, size=1, reset=reset) as pool:
        async with pool.borrowed() as child:
            await full(pool)
        if rest == "late\n":
            assert not child.is_over
            child.stdin.write(rest.encode())  # type: ignore[union-attr]
            await until(lambda: child.output_bytes == len(rest))
            await pool.give_back(await pool.allocate())
            given = await pool.allocate(None)
        else:
            given = await pool.allocate()
        assert given is not child
        await until(lambda: child.is_over)
        assert "has output of its last work, or input, that nobody has read, and is ended" in caplog.text


@pytest.mark.parametrize("how", ["no", "error", "ended"])
async def test_a_child_that_cannot_be_reset_is_ended(how: str) -> None:
    async def reset(child: Child) -> bool:
        if how == "error":
            raise RuntimeError("it does not answer")
        if how == "ended":
            child.kill()
            await child.wait()
        return how == "ended"

    async with pool_of(size=1, reset=reset) as pool:
        child = await pool.allocate()
        if how == "error":
            with pytest.raises(RuntimeError):
                await pool.give_back(child)
        else:
            await pool.give_back(child)
        assert child.is_over
        assert pool.status().given_out == 0


async def test_a_child_that_ends_while_it_is_given_out_is_nobodys_any_more() -> None:
    async with pool_of(size=1) as pool:
        child = await pool.allocate()
        await child.stop()
        await until(lambda: pool.status().given_out == 0)
        await pool.give_back(child)
        await full(pool)
        assert pool.status().died == 0


# -- age ----------------------------------------------------------------------------------------------------------------


async def test_children_are_replaced_before_they_are_too_old() -> None:
    time = ByHand()
    async with pool_of(time, size=2) as pool:
        first = pool.children
        await until(lambda: 3600 in time.waits)
        time.advance(3600)  # at the next look they are just as old as they may be
        await until(lambda: time.waits.count(3600) == 2)
        assert pool.children == first
        time.advance(3600)
        await until(lambda: time.waits.count(3600) == 3)
        await full(pool)
        assert not set(pool.children) & set(first)
        assert all(child.is_over for child in first)
        assert pool.status().refreshed == 2
        assert pool.status().ages_secs == (0, 0)


async def test_a_child_that_is_too_old_is_not_given_out() -> None:
    time = ByHand()
    async with pool_of(time, size=1, refresh_interval_secs=100_000) as pool:
        (first,) = pool.children
        time.advance(7201)
        with pytest.raises(WarmPoolExhausted):
            await pool.allocate()
        await full(pool)
        assert (await pool.allocate()) is not first
        await first.wait()


async def test_a_pool_has_figures() -> None:
    async with pool_of(size=2, name="reviewers") as pool:
        await pool.allocate()
        await full(pool)
        found = {(each.name, each.operator, each.topic): each.value for each in pool.samples()}
        children, events = "sabot_warm_pool_children", "sabot_warm_pool_events_total"
        assert found[children, "reviewers", "warm"] == 2
        assert found[children, "reviewers", "given_out"] == 1
        assert found[events, "reviewers", "allocated"] == 1
        assert found[events, "reviewers", "refused"] == 0
