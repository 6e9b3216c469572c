"""Quotas of agents, with programs that really allocate and really compute."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import pytest
from unit.process.children import ByHand, alive, line, sh, state

from sabot.errors import UserError
from sabot.process import (
    AgentError,
    AgentInstance,
    Child,
    Command,
    FleetConfig,
    FleetManager,
    InvalidQuota,
    LifecycleConfig,
    LifecycleManager,
    LifecycleState,
    QuotaAction,
    QuotaError,
    QuotaExceeded,
    QuotaMode,
    QuotaNotFound,
    QuotaResource,
    QuotaSuspendFailed,
    QuotaTerminateFailed,
    QuotaUpdateFailed,
    QuotaViolation,
    ResourceLimits,
    ResourceManager,
    ResourceQuota,
    ResourceReport,
    RestartFailed,
    Supervisor,
    SuspendFailed,
    UnknownAgent,
    WarmPool,
    WarmPoolConfig,
    inspection,
)
from sabot.process import instance as instances
from sabot.specified.processes.quotas import parse_cpu, parse_memory
from tools.agent_tools import until

pytestmark = pytest.mark.usefixtures("supervisor")

SLEEP = Command(argv=["sleep", "1000"])
BURNS = Command(argv=[sys.executable, "-I", "-S", "-c", "while True: pass"])
RUNNING, SUSPENDED, TERMINATED = LifecycleState.RUNNING, LifecycleState.SUSPENDED, LifecycleState.TERMINATED
CPU, MEMORY, TOKENS = QuotaResource
HOUR = 3600.0


def allocates(*megabytes: int) -> Command:
    """So much in as many processes, which say so when they have it."""
    each = "held = b'x' * ({} << 20); print('has it', flush=True); import time; time.sleep(1000)"
    calls = [f'{sys.executable} -I -S -c "{each.format(many)}"' for many in megabytes]
    return sh(" & ".join(calls) + " & wait")


async def has(agent: AgentInstance, count: int) -> None:
    assert agent.child is not None
    for _ in range(count):
        assert await line(agent.child) == "has it"


def only(**limits: Any) -> ResourceQuota:
    return ResourceQuota(**{"cpu": None, "memory": None, "tokens_per_hour": None, **limits})


@pytest.mark.parametrize("kind", ["fleet", "fleet of a pool", "pool"])
@pytest.mark.parametrize("action", [QuotaAction.TERMINATE, QuotaAction.SUSPEND])
async def test_quotas_hold_for_children_of_fleets_and_warm_pools(kind: str, action: QuotaAction) -> None:
    """They went by the manager, so that a default quota for all agents was none for them."""
    time, told = ByHand(), list[QuotaViolation]()
    lives = LifecycleManager(LifecycleConfig(idle_suspend=0.001), clock=time.clock, sleep=time.sleep)
    quota = only(memory="8Mi", on_memory=action)
    greedy = allocates(30)
    pool = WarmPool(
        greedy, WarmPoolConfig(size=1), ready="has it", lives=lives, name="greedy", clock=time.clock, sleep=time.sleep
    )
    fleet = FleetManager(
        greedy if kind == "fleet" else pool,
        FleetConfig(min_replicas=1),
        lives=lives if kind == "fleet" else None,
        name="greedy",
        clock=time.clock,
        sleep=time.sleep,
    )
    resources = ResourceManager(lives, default=quota, on_violation=told.append, clock=time.clock, sleep=time.sleep)
    async with AsyncExitStack() as opened:
        if kind != "fleet":
            await opened.enter_async_context(pool)
        if kind != "pool":
            await opened.enter_async_context(fleet)
        children = [each.child for each in fleet.replicas] if kind != "pool" else [await pool.allocate()]
        if kind == "fleet":
            assert await line(children[0]) == "has it"
        (agent,) = [each for each in lives.list_agents() if each.pid == children[0].pid]
        assert (agent.name, agent.state) == ("greedy", RUNNING)
        assert await lives.suspend_idle() == []
        with pytest.raises(RestartFailed, match="not started again here"):
            await lives.restart(agent.id)
        with pytest.raises(SuspendFailed, match=r"not started again here \(suspend"):
            await lives.suspend(agent.id, release_memory=True)
        await resources.check(agent.id)
        assert [each.action for each in told if each.agent_id == agent.id] == [action]
        if action is QuotaAction.TERMINATE:
            assert children[0].is_over
            assert lives.agent(agent.id).state is TERMINATED
        else:
            assert lives.agent(agent.id).state is SUSPENDED
            await until(lambda: children[0].paused)
        await lives.close()
        assert children[0].is_over == (action is QuotaAction.TERMINATE), "who has started it ends it"
    assert children[0].is_over


def test_the_replicas_of_a_pool_are_agents_where_the_pool_says_so() -> None:
    with pytest.raises(UserError, match="lives= is of its warm pool"):
        FleetManager(WarmPool(SLEEP), lives=LifecycleManager())


async def looks(resources: ResourceManager, until: Callable[[ResourceReport], bool]) -> ResourceReport:
    """At agent "a", by the system's clock, until a report is like this."""
    async with asyncio.timeout(60):
        while not until(report := await resources.check("a")):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    return report


@pytest.fixture
def by_hand() -> ByHand:
    return ByHand()


@pytest.fixture
async def lives(by_hand: ByHand) -> AsyncIterator[LifecycleManager]:
    config = LifecycleConfig(idle_suspend=None, shutdown_timeout=5)
    async with LifecycleManager(config, clock=by_hand.clock, sleep=by_hand.sleep) as manager:
        yield manager


Make = Callable[..., ResourceManager]


@pytest.fixture
async def make(lives: LifecycleManager, by_hand: ByHand) -> AsyncIterator[Make]:
    made: list[ResourceManager] = []

    def manager(**settings: Any) -> ResourceManager:
        made.append(ResourceManager(lives, clock=by_hand.clock, sleep=by_hand.sleep, **settings))
        return made[-1]

    yield manager
    for each in made:
        await each.close()


async def eleven(agent_id: str) -> int:
    """Tokens that a ledger has of each agent."""
    return 11


def told(violations: list[QuotaViolation]) -> list[tuple[str, str]]:
    return [(str(each.resource), str(each.action)) for each in violations]


# -- what a quota is ----------------------------------------------------------------------------------------------------


def test_the_defaults_are_those_of_the_document() -> None:
    quota = ResourceQuota()
    assert quota.limits() == {CPU: 2.0, MEMORY: 2 << 30, TOKENS: 100_000}
    assert [str(each) for each in QuotaMode] == ["hard", "soft_then_hard", "warn_only"]
    assert [str(each) for each in QuotaAction] == ["warn", "throttle", "suspend", "terminate"]
    assert only().limits() == {}


@pytest.mark.parametrize(
    ("value", "cores"), [("2", 2), ("0.5", 0.5), ("500m", 0.5), ("1m", 0.001), (" 2 ", 2), (3, 3), (0.25, 0.25)]
)
def test_cpu_is_cores_or_thousandths(value: str | float, cores: float) -> None:
    assert parse_cpu(value) == cores


@pytest.mark.parametrize(
    ("value", "size"),
    [
        ("2Gi", 2 << 30),
        ("512Mi", 512 << 20),
        ("64Ki", 64 << 10),
        ("1Ti", 1 << 40),
        ("1.5Gi", 3 << 29),
        ("2G", 2 * 10**9),
        ("500M", 500 * 10**6),
        ("10k", 10_000),
        ("1024", 1024),
        (4096, 4096),
    ],
)
def test_memory_is_bytes_with_a_unit_or_without(value: str | int, size: int) -> None:
    assert parse_memory(value) == size


BAD_CPU = ["", "0", "0m", "-1", "m", "500M", "1.5m", "2 cores", "1e3", "inf", "nan", "0.0001", "²", 0, -1, True]
BAD_CPU += [float("inf"), float("nan"), None, [2], 10**9]
BAD_MEMORY = ["", "0", "-1Gi", "Gi", "2gi", "2GB", "2 Gi", "1e9", "0.5", "five", "9999999Ei", "1²", 0, -5, True]
BAD_MEMORY += [1.5, None, [1], 1 << 63]


@pytest.mark.parametrize("value", BAD_CPU, ids=repr)
def test_what_is_no_cpu_is_refused(value: Any) -> None:
    with pytest.raises(InvalidQuota, match="is no CPU"):
        parse_cpu(value)


@pytest.mark.parametrize("value", BAD_MEMORY, ids=repr)
def test_what_is_no_memory_is_refused(value: Any) -> None:
    with pytest.raises(InvalidQuota, match="is no size"):
        parse_memory(value)


@pytest.mark.parametrize(
    "wrong",
    [
        {"cpu": "two"},
        {"memory": "much"},
        {"tokens_per_hour": 0},
        {"tokens_per_hour": 1.5},
        {"tokens_per_hour": True},
        {"tokens_per_hour": "100000"},
        {"mode": "sometimes"},
        {"on_cpu": "shout"},
        {"on_memory": None},
        {"on_tokens": []},
        {"grace_seconds": -1},
        {"throttled_cpu": "0"},
    ],
    ids=str,
)
def test_a_quota_that_cannot_be_is_refused_by_its_field(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidQuota, match=next(iter(wrong))):
        ResourceQuota(**wrong)


@pytest.mark.parametrize(
    ("error", "code", "also"),
    [
        (QuotaNotFound, "E2070", AgentError),
        (InvalidQuota, "E2071", UserError),
        (QuotaExceeded, "E2072", AgentError),
        (QuotaUpdateFailed, "E2073", AgentError),
        (QuotaSuspendFailed, "E2074", AgentError),
        (QuotaTerminateFailed, "E2075", AgentError),
    ],
)
def test_errors_have_the_codes_of_document_002(error: type[QuotaError], code: str, also: type) -> None:
    assert issubclass(error, QuotaError)
    assert issubclass(error, also)
    assert error("it was so", hint="do that").code == code


# -- measured -----------------------------------------------------------------------------------------------------------


async def test_memory_of_all_its_processes_is_measured_and_ends_it(make: Make, lives: LifecycleManager) -> None:
    """Neither of the two is above the limit by itself."""
    resources = make()
    agent = await lives.spawn(allocates(40, 40), agent_id="a")
    await resources.set_quota("a", only(memory="70Mi"))
    await has(agent, 2)
    report = await resources.check("a")
    assert agent.state is TERMINATED
    assert report.memory_bytes > 80 << 20
    assert (report.peak_memory_bytes, report.exceeded) == (report.memory_bytes, (MEMORY,))
    assert report.processes >= 3
    (violation,) = resources.violations
    assert (violation.limit, violation.used, violation.action) == (70 << 20, report.memory_bytes, "terminate")
    assert agent.why == str(violation)


async def test_exactly_at_the_limit_is_allowed(make: Make, lives: LifecycleManager) -> None:
    resources = make()
    agent = await lives.spawn(SLEEP, agent_id="a")
    await resources.set_quota("a", only(tokens_per_hour=100))
    await resources.report_tokens("a", 100)
    assert (agent.state, resources.violations) == (RUNNING, [])
    await resources.report_tokens("a", 1)
    assert agent.state is SUSPENDED


async def test_an_agent_that_computes_is_held_to_its_cpu(lives: LifecycleManager) -> None:
    """Of its descendants, too: the shell only waits."""
    resources = ResourceManager(lives)
    agent = await lives.spawn(sh(f'{sys.executable} -I -S -c "while True: pass" & wait'), agent_id="a")
    await resources.set_quota("a", only(cpu="10m"))
    report = await looks(resources, lambda report: report.held_to is not None)
    assert (report.held_to, report.exceeded) == (0.01, (CPU,))
    report = await looks(resources, lambda report: report.cpu_cores < 0.02)
    assert report.cpu_seconds > 0
    assert (agent.state, told(resources.violations)) == (RUNNING, [("cpu", "throttle")])
    await resources.update_quota("a", cpu="10")
    assert (await resources.check("a")).held_to is None


async def test_an_agent_that_is_started_again_is_held_again(
    make: Make, lives: LifecycleManager, by_hand: ByHand
) -> None:
    resources = make()
    agent = await lives.spawn(SLEEP, agent_id="a")
    await resources.set_quota("a", only(tokens_per_hour=10, on_tokens="throttle", throttled_cpu="50m"))
    assert (await resources.check("a")).held_to is None
    await resources.report_tokens("a", 11)
    assert (await resources.check("a")).held_to == 0.05
    await lives.restart("a", at_once=True)
    assert (await resources.check("a")).held_to == 0.05
    by_hand.advance(HOUR)
    assert (await resources.check("a")).held_to is None
    assert agent.state is RUNNING


async def test_what_a_process_used_after_the_last_look_counts(make: Make, lives: LifecycleManager) -> None:
    resources = make()
    agent = await lives.spawn(BURNS, agent_id="a")
    await resources.set_quota("a", only(cpu="100"))
    before = (await resources.check("a")).cpu_seconds
    child = agent.child
    assert child is not None
    while (await child.usage()).cpu_seconds < before + 0.05:  # noqa: ASYNC110
        await asyncio.sleep(0.005)
    await lives.terminate("a", grace_seconds=0)
    report = await resources.check("a")
    assert child.status is not None
    assert report.cpu_seconds == pytest.approx(child.status.cpu_seconds, abs=0.011)
    assert (report.memory_bytes, report.processes, report.state) == (0, 0, TERMINATED)


async def test_cpu_time_is_counted_once_though_the_supervisor_did_not_answer_at_a_look(
    make: Make, lives: LifecycleManager, supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    resources = make()
    agent = await lives.spawn(BURNS, agent_id="a")
    await resources.set_quota("a", only(cpu="100"))
    child = agent.child
    assert child is not None
    while (await child.usage()).cpu_seconds < 0.1:  # noqa: ASYNC110
        await asyncio.sleep(0.005)
    assert (await resources.check("a")).cpu_seconds >= 0.1
    os.kill(supervisor.pid, signal.SIGSTOP)
    try:
        with monkeypatch.context() as patched:
            patched.setattr(inspection, "_USAGE_SECONDS", 0.02)
            assert (await resources.check("a")).processes == 0
    finally:
        os.kill(supervisor.pid, signal.SIGCONT)
    assert (await resources.check("a")).processes == 1
    await lives.terminate("a", grace_seconds=0)
    report = await resources.check("a")
    assert child.status is not None
    assert report.cpu_seconds == pytest.approx(child.status.cpu_seconds, abs=0.011)


# -- modes and actions --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", list(QuotaMode))
async def test_a_mode_says_when_a_quota_acts(
    make: Make, lives: LifecycleManager, by_hand: ByHand, mode: QuotaMode
) -> None:
    resources = make(tokens_of=eleven)
    agent = await lives.spawn(SLEEP, agent_id="a")
    await resources.set_quota("a", only(tokens_per_hour=10, mode=mode, grace_seconds=60))
    states, seconds = [], (0, 59, 1, 60)
    for each in seconds:
        by_hand.advance(each)
        await resources.check("a")
        states.append(agent.state)
    warned, acted = ("tokens", "warn"), ("tokens", "suspend")
    match mode:
        case QuotaMode.HARD:
            assert (states, told(resources.violations)) == ([SUSPENDED] * 4, [acted])
        case QuotaMode.SOFT_THEN_HARD:
            assert states == [RUNNING, RUNNING, SUSPENDED, SUSPENDED]
            assert told(resources.violations) == [warned, acted]
        case QuotaMode.WARN_ONLY:
            assert (states, told(resources.violations)) == ([RUNNING] * 4, [warned])


async def test_who_is_within_the_limit_again_begins_a_new_grace(
    make: Make, lives: LifecycleManager, by_hand: ByHand
) -> None:
    used = 11

    async def tokens_of(agent_id: str) -> int:
        return used

    resources = make(tokens_of=tokens_of)
    agent = await lives.spawn(SLEEP, agent_id="a")
    await resources.set_quota("a", only(tokens_per_hour=10, mode="soft_then_hard", grace_seconds=60))
    for used, seconds in ((11, 50), (10, 50), (11, 59)):  # noqa: B007 - `tokens_of` reads it
        await resources.check("a")
        by_hand.advance(seconds)
    await resources.check("a")
    assert agent.state is RUNNING
    by_hand.advance(1)
    await resources.check("a")
    assert (agent.state, told(resources.violations)) == (
        SUSPENDED,
        [("tokens", "warn"), ("tokens", "warn"), ("tokens", "suspend")],
    )


@pytest.mark.parametrize("action", list(QuotaAction))
async def test_each_action_does_what_it_says(make: Make, lives: LifecycleManager, action: QuotaAction) -> None:
    resources = make(tokens_of=eleven)
    agent = await lives.spawn(SLEEP, agent_id="a")
    assert agent.child is not None
    pid = agent.child.pid
    await resources.set_quota("a", only(tokens_per_hour=10, on_tokens=action, throttled_cpu="200m"))
    report = await resources.check("a")
    await resources.check("a")  # it is done once
    assert told(resources.violations) == [("tokens", action)]
    assert report.held_to == (0.2 if action is QuotaAction.THROTTLE else None)
    match action:
        case QuotaAction.SUSPEND:
            await until(lambda: state(pid) == "T")
        case QuotaAction.TERMINATE:
            assert not alive(pid)
        case _:
            assert (agent.state, alive(pid)) == (RUNNING, True)


async def test_who_is_resumed_by_hand_and_still_has_too_much_is_suspended_again(
    make: Make, lives: LifecycleManager
) -> None:
    resources = make(tokens_of=eleven)
    agent = await lives.spawn(SLEEP, agent_id="a")
    await resources.set_quota("a", only(tokens_per_hour=10))
    await resources.check("a")
    await lives.resume("a")
    assert agent.state is RUNNING
    await resources.check("a")
    assert agent.state is SUSPENDED


async def test_an_action_that_fails_is_told_and_tried_again(
    make: Make, lives: LifecycleManager, supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The supervisor is stopped, so nobody stops or ends anything."""
    resources = make()
    agents = [await lives.spawn(SLEEP, agent_id=each) for each in ("s", "t")]
    await resources.set_quota("s", only(tokens_per_hour=1, on_tokens="suspend"))
    await resources.set_quota("t", only(tokens_per_hour=1, on_tokens="terminate"))
    os.kill(supervisor.pid, signal.SIGSTOP)
    try:
        with monkeypatch.context() as impatient:
            impatient.setattr(instances, "_KILL_SECONDS", 0.02)
            impatient.setattr(inspection, "_USAGE_SECONDS", 0.02)
            impatient.setattr(lives, "config", LifecycleConfig(shutdown_timeout=0))
            with pytest.raises(QuotaSuspendFailed, match=r"uses 2 of tokens, more than 1: suspend: .*has not answered"):
                await resources.report_tokens("s", 2)
            with pytest.raises(
                QuotaTerminateFailed, match=r"uses 2 of tokens, more than 1: terminate: .*has not ended"
            ):
                await resources.report_tokens("t", 2)
        assert [each.state for each in agents] == [RUNNING, RUNNING]
        assert ["has not" in each.error for each in resources.violations] == [True, True]
    finally:
        os.kill(supervisor.pid, signal.SIGCONT)
    await resources.check_all()
    await until(lambda: [each.state for each in agents] == [SUSPENDED, TERMINATED])


# -- tokens -------------------------------------------------------------------------------------------------------------


@dataclass
class Usage:
    total_tokens: int


async def test_tokens_count_in_an_hour_of_the_clock_and_a_new_one_lets_the_agent_go_on(
    make: Make, lives: LifecycleManager, by_hand: ByHand
) -> None:
    resources = make()
    agent = await lives.spawn(SLEEP, agent_id="a")
    await resources.set_quota("a", only(tokens_per_hour=100_000))
    by_hand.advance(HOUR - by_hand.clock.time() % HOUR)
    await resources.report_tokens("a", 99_000)
    await resources.report_tokens("a", Usage(2_000))
    assert agent.state is SUSPENDED
    by_hand.advance(HOUR - 1)
    assert (await resources.check("a")).tokens == 101_000
    assert agent.state is SUSPENDED
    by_hand.advance(1)
    report = await resources.check("a")
    assert (report.tokens, report.total_tokens, report.exceeded) == (0, 101_000, ())
    assert agent.state is RUNNING


async def test_who_was_meanwhile_suspended_for_something_else_stays_so(
    make: Make, lives: LifecycleManager, by_hand: ByHand
) -> None:
    resources = make()
    agent = await lives.spawn(SLEEP, agent_id="a")
    await resources.set_quota("a", only(tokens_per_hour=1))
    await resources.report_tokens("a", 2)
    await lives.suspend("a", why="a person said so")
    by_hand.advance(HOUR)
    await resources.check("a")
    assert (agent.state, agent.why) == (SUSPENDED, "a person said so")


async def test_a_call_that_would_use_more_than_is_left_is_refused_before_it_is_made(
    make: Make, lives: LifecycleManager, by_hand: ByHand
) -> None:
    resources = make()
    await lives.spawn(SLEEP, agent_id="a")
    await resources.set_quota("a", only(tokens_per_hour=100))
    by_hand.advance(HOUR - by_hand.clock.time() % HOUR + 600)
    await resources.report_tokens("a", 60)
    await resources.require_tokens("a", 40)
    with pytest.raises(QuotaExceeded, match=r"has used 60 of 100 tokens in this hour, and wants 41 \(in 3000 s"):
        await resources.require_tokens("a", 41)
    for kind in ({"mode": "warn_only"}, {"mode": "soft_then_hard"}, {"mode": "hard", "on_tokens": "warn"}):
        await resources.update_quota("a", **kind)
        await resources.require_tokens("a", 41)
    await resources.update_quota("a", tokens_per_hour=None)
    await resources.require_tokens("a", 10**9)


@pytest.mark.parametrize("wrong", [-1, True, 1.5, Usage(-5)], ids=repr)
async def test_what_is_no_number_of_tokens_is_refused(make: Make, lives: LifecycleManager, wrong: Any) -> None:
    resources = make()
    await lives.spawn(SLEEP, agent_id="a")
    await resources.set_quota("a", only(tokens_per_hour=100))
    with pytest.raises(UserError, match="is no number of tokens"):
        await resources.report_tokens("a", wrong)


# -- quotas come and go -------------------------------------------------------------------------------------------------


async def test_quotas_are_set_changed_reset_and_removed(make: Make, lives: LifecycleManager) -> None:
    resources = make()
    agent = await lives.spawn(SLEEP, agent_id="a")
    await resources.set_quota("a", only(tokens_per_hour=10))
    await resources.report_tokens("a", 15)
    assert agent.state is SUSPENDED
    await resources.update_quota("a", tokens_per_hour=20)
    assert (resources.quota("a").tokens_per_hour, agent.state) == (20, RUNNING)
    await resources.update_quota("a", tokens_per_hour=14)
    assert agent.state is SUSPENDED
    await resources.reset("a")
    assert agent.state is RUNNING
    report = await resources.check("a")
    assert (report.tokens, report.total_tokens) == (0, 0)
    await resources.report_tokens("a", 15)
    await resources.remove_quota("a")
    assert agent.state is RUNNING
    for call in (resources.check, resources.reset, resources.remove_quota, resources.update_quota):
        with pytest.raises(QuotaNotFound, match="instance 'a' has no quota"):
            await call("a")  # type: ignore[operator]
    with pytest.raises(UnknownAgent):
        await resources.set_quota("nobody", ResourceQuota())


@pytest.mark.parametrize("changes", [{"cpu": "many"}, {"mode": "never"}, {"gpu": "1"}], ids=str)
async def test_a_change_that_cannot_be_changes_nothing(
    make: Make, lives: LifecycleManager, changes: dict[str, Any]
) -> None:
    resources = make()
    await lives.spawn(SLEEP, agent_id="a")
    await resources.set_quota("a", before := ResourceQuota())
    with pytest.raises(QuotaUpdateFailed, match=f"the quota of instance 'a' stays: .*{next(iter(changes))}"):
        await resources.update_quota("a", **changes)
    assert resources.quota("a") == before


async def test_a_default_holds_for_agents_without_a_quota(make: Make, lives: LifecycleManager) -> None:
    resources = make(tokens_of=eleven, default=only(tokens_per_hour=10, on_tokens="warn"))
    for each in ("a", "b"):
        await lives.spawn(SLEEP, agent_id=each)
    await resources.set_quota("b", only(tokens_per_hour=11))
    assert [each.agent_id for each in await resources.check_all()] == ["a", "b"]
    assert [each.agent_id for each in resources.violations] == ["a"]
    with pytest.raises(UnknownAgent):
        await resources.check("nobody")


async def test_a_hold_is_never_above_what_the_command_allows(make: Make, lives: LifecycleManager) -> None:
    """A hold that is lifted leaves the limit of the command."""
    limits = ResourceLimits(**{**dict.fromkeys(ResourceLimits.__slots__), "cpu_limit_percent": 5.0})
    asked: list[Any] = []
    agent = await lives.spawn(Command(argv=["sleep", "1000"], limits=limits), agent_id="a")
    assert isinstance(agent.child, Child)
    agent.child._ask = lambda what, **more: asked.append((what, more))  # type: ignore[method-assign]
    for percent in (10.0, 2.0, None):
        agent.child.hold_cpu(percent)
    assert asked == [("cpu", {"percent": each}) for each in (5.0, 2.0, 5.0)]
    del agent.child._ask  # type: ignore[method-assign]


# -- the loop -----------------------------------------------------------------------------------------------------------


async def test_the_manager_looks_by_itself_and_tells_listeners_also_bad_ones(
    make: Make, lives: LifecycleManager, by_hand: ByHand
) -> None:
    reports: list[ResourceReport] = []
    violations: list[QuotaViolation] = []

    def on_report(report: ResourceReport) -> None:
        reports.append(report)
        raise RuntimeError("it listens badly")

    async def tokens_of(agent_id: str) -> int:
        if agent_id == "broken":
            raise ConnectionError("the ledger does not answer")
        return 11

    resources = make(tokens_of=tokens_of, on_report=on_report, on_violation=violations.append, report_interval=10)
    for each in ("broken", "a", "ended"):
        await lives.spawn(SLEEP, agent_id=each)
        await resources.set_quota(each, only(tokens_per_hour=10, on_tokens="warn"))
    await lives.terminate("ended")
    async with resources:
        await resources.start()  # it has begun
        for looks in (1, 2):
            await until(lambda looks=looks: len(by_hand.waits) == looks)  # type: ignore[misc]
            by_hand.advance(10)
        await until(lambda: len(by_hand.waits) == 3)
    assert by_hand.waits == [10, 10, 10]
    assert [(each.agent_id, each.tokens) for each in reports] == [("a", 11), ("a", 11)]
    assert [each.agent_id for each in violations] == ["a"]
