"""Each limit ends or denies, and says so; measured where no control group can be made, by control groups where they can."""

import asyncio
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from unit.process.children import children_of, line, sh

from sabot.errors import UserError
from sabot.process import (
    Command,
    FleetConfig,
    HealthConfig,
    InvalidContext,
    ProcessConfig,
    ProcessRunnerConfig,
    RecoveryConfig,
    ResourceLimits,
    Supervisor,
    TaskDelegation,
    WarmPoolConfig,
)
from sabot.process.cgroups import ControlGroups, group_of
from sabot.process.tree import tag_of


def python(script: str, limits: ResourceLimits | None = None) -> Command:
    return Command(argv=[sys.executable, "-I", "-S", "-c", script], limits=limits)


def only(**limits: float) -> ResourceLimits:
    return ResourceLimits(**(dict.fromkeys(ResourceLimits.__slots__) | limits))  # type: ignore[arg-type]


def test_the_defaults_are_those_of_document_004() -> None:
    limits = ResourceLimits()
    assert (limits.max_memory_bytes, limits.cpu_limit_percent, limits.max_task_duration) == (2 << 30, 80.0, 300.0)
    assert (limits.max_open_files, limits.max_output_bytes, limits.max_tool_calls_per_task) == (1024, 10 << 20, 50)
    assert (limits.max_processes, limits.max_file_bytes) == (None, None)


def test_the_spellings_of_document_003_are_the_same_limits() -> None:
    limits = ResourceLimits(max_memory_mb=512, max_cpu_percent=50, max_runtime_secs=60)
    assert (limits.max_memory_bytes, limits.cpu_limit_percent, limits.max_task_duration) == (512 << 20, 50, 60)
    assert (limits.max_memory_mb, limits.max_cpu_percent, limits.max_runtime_secs) == (512, 50, 60)
    assert limits == ResourceLimits(max_memory_bytes=512 << 20, cpu_limit_percent=50, max_task_duration=60)
    with pytest.raises(TypeError, match="ResourceLimits has no max_memory_gb"):
        ResourceLimits(max_memory_gb=1)
    with pytest.raises(UserError, match="ResourceLimits: max_memory_bytes=0"):
        ResourceLimits(max_memory_mb=0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_runtime_secs": float("nan")},
        {"max_cpu_percent": float("inf")},
        {"max_memory_mb": "x"},
        {"max_memory_mb": float("inf")},
        {"max_memory_bytes": 1.5},
        {"max_open_files": True},
        {"max_processes": "4"},
        {"max_memory_mb": 1, "max_memory_bytes": 3},
    ],
    ids=str,
)
def test_limits_that_are_no_numbers_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"ResourceLimits: (max_|cpu_)"):
        ResourceLimits(**wrong)


NAN = float("nan")


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        (HealthConfig, {"stuck_secs": NAN}),
        (HealthConfig, {"stuck_secs": "x"}),
        (HealthConfig, {"max_error_rate": NAN}),
        (WarmPoolConfig, {"max_age_secs": NAN}),
        (WarmPoolConfig, {"size": "x"}),
        (WarmPoolConfig, {"grace_secs": -1}),
        (FleetConfig, {"drain_secs": NAN}),
        (FleetConfig, {"max_replicas": "x"}),
        (ProcessRunnerConfig, {"health_check_interval_secs": NAN}),
        (ProcessRunnerConfig, {"max_concurrent_agents": 1.5}),
        (ProcessConfig, {"shutdown_grace_period": NAN}),
        (RecoveryConfig, {"backoff_seconds": "x"}),
        (Command, {"output_bytes": 0}),
        (Command, {"stdin": "file"}),
        (Command, {"stdout": "stdout"}),
        (TaskDelegation, {"timeout": NAN}),
    ],
    ids=str,
)
def test_values_that_nobody_takes_are_refused_by_name(kind: Any, wrong: dict[str, Any]) -> None:
    needed = {Command: {"argv": ["true"]}, TaskDelegation: {"objective": "read"}}.get(kind, {})
    with pytest.raises(UserError, match=f"{kind.__name__}: {next(iter(wrong))}[=:]") as raised:
        kind(**needed, **wrong)
    assert raised.value.hint


def test_an_environment_and_a_task_are_refused_that_cannot_be_passed_on() -> None:
    with pytest.raises(UserError, match="an environment maps names to texts"):
        Command(argv=["true"], environment={"A": 1})  # type: ignore[dict-item]
    for task in ({"objective": "read", "context": {"a": object()}}, {"objective": "\ud800"}):
        with pytest.raises(InvalidContext, match="a task that cannot be written as JSON"):
            TaskDelegation(**task)  # type: ignore[arg-type]
    with pytest.raises(InvalidContext, match="no objective"):
        TaskDelegation(objective=5)  # type: ignore[arg-type]


def test_limits_are_narrowed_never_widened() -> None:
    wide, narrow = ResourceLimits(max_memory_mb=100), only(max_memory_mb=200, max_processes=5)
    both = wide.narrowed(narrow)
    assert (both.max_memory_mb, both.max_processes, both.max_open_files) == (100, 5, 1024)
    assert wide.narrowed(None) is wide
    assert hash(both) == hash(narrow.narrowed(wide))
    assert repr(only(max_processes=5)) == "ResourceLimits(max_processes=5)"


@pytest.fixture(params=["groups", "measured"])
async def supervisor(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Supervisor]:
    """One that uses the control groups of this machine, if it may; and one that finds none."""
    supervisor = await Supervisor.running() if request.param == "groups" else Supervisor(mount=str(tmp_path))
    yield supervisor
    left = supervisor.children
    for child in left:
        child.kill()
    if request.param == "measured":
        supervisor.close()
    assert left == []


async def test_memory_of_a_child_and_its_descendants_together(supervisor: Supervisor) -> None:
    each = "import time; held = b'x' * (40 << 20); print(1, flush=True); time.sleep(1000)"
    script = f'{sys.executable} -I -S -c "{each}" & {sys.executable} -I -S -c "{each}" & wait'
    child = await supervisor.spawn(sh(script, limits=only(max_memory_mb=70)))
    status = await child.wait()
    assert (status.signal, status.limit) == (signal.SIGKILL, "max_memory_bytes")


MEMFD = "f = os.memfd_create('held'); os.posix_fallocate(f, 0, 80 << 20)"
# IPC_CREAT | 0600; it is filled, and let go.
SEGMENT = """
libc = ctypes.CDLL(None); libc.shmat.restype = ctypes.c_void_p
f = libc.shmget(0, 80 << 20, 0o1600); at = libc.shmat(f, None, 0)
ctypes.memset(at, 1, 80 << 20); libc.shmdt(ctypes.c_void_p(at))
"""


@pytest.mark.one_in(3, "a tenth of a second of a core each")
@pytest.mark.parametrize("hold", ["memfd", "segment"])
async def test_shared_memory_that_nobody_has_mapped_counts(supervisor: Supervisor, hold: str) -> None:
    script = f"import ctypes, os, sys\n{MEMFD if hold == 'memfd' else SEGMENT}\nprint(f, flush=True)\nsys.stdin.read()"
    child = await supervisor.spawn(python(script))
    number = int(await line(child))
    try:
        used = await child.usage()
        assert 80 << 20 <= used.memory_bytes < 140 << 20
    finally:
        child.kill()
        await child.wait()
        if hold == "segment":
            assert ctypes.CDLL(None).shmctl(number, 0, None) == 0  # IPC_RMID


@pytest.mark.one_in(2, "half a second of a core each")
async def test_shared_memory_is_counted_once(supervisor: Supervisor) -> None:
    script = (
        f"import mmap, os, sys\n{MEMFD}\nheld = mmap.mmap(f, 0)\nheld[::4096] = bytes(80 << 8)\ng = os.dup(f)\n"
        "print(1, flush=True)\nsys.stdin.read()"
    )
    child = await supervisor.spawn(python(script))
    await line(child)
    assert 80 << 20 <= (await child.usage()).memory_bytes < 140 << 20
    assert (await child.stop()).limit is None


async def test_memory_that_is_only_in_a_file_without_a_name_is_limited(supervisor: Supervisor) -> None:
    script = f"import os, sys\n{MEMFD}\nsys.stdin.read()"
    child = await supervisor.spawn(python(script, only(max_memory_mb=60)))
    status = await child.wait()
    assert (status.signal, status.limit) == (signal.SIGKILL, "max_memory_bytes")


async def test_a_process_that_takes_far_more_memory_at_once_is_ended_for_it(supervisor: Supervisor) -> None:
    """At twice its limit it was denied more, so it ended as if by a fault of its own."""
    child = await supervisor.spawn(python("x = b'x' * (1 << 30); import time; time.sleep(9)", only(max_memory_mb=100)))
    status = await child.wait()
    assert (status.signal, status.limit) == (signal.SIGKILL, "max_memory_bytes")


async def test_memory_that_a_program_had_only_for_a_moment_before_it_failed_counts(supervisor: Supervisor) -> None:
    child = await supervisor.spawn(python("x = b'x' * (150 << 20); raise SystemExit(3)", only(max_memory_mb=100)))
    status = await child.wait()
    assert status.limit == "max_memory_bytes"


async def test_a_process_that_asks_for_more_than_the_machine_has_is_denied(supervisor: Supervisor) -> None:
    child = await supervisor.spawn(python("bytearray(1 << 40)", only(max_memory_mb=100)))
    assert (await child.wait()).code == 1
    assert child.stderr is not None
    assert b"MemoryError" in await child.stderr.read()


async def test_time(supervisor: Supervisor) -> None:
    child = await supervisor.spawn(sh("sleep 1000", limits=only(max_runtime_secs=0.05)))
    status = await child.wait()
    assert (status.signal, status.limit) == (signal.SIGTERM, "max_task_duration")


async def test_a_program_that_is_ended_before_it_runs_hears_so(supervisor: Supervisor) -> None:
    """Until then the child has the supervisor's handlers, which took the SIGTERM for theirs."""
    for _ in range(20):
        child = await supervisor.spawn(sh("sleep 1000", limits=only(max_runtime_secs=1e-6)))
        status = await child.wait()
        assert (status.signal, status.limit) == (signal.SIGTERM, "max_task_duration")


async def test_open_files(supervisor: Supervisor) -> None:
    script = "held = [open('/dev/null') for _ in range(100)]"
    child = await supervisor.spawn(python(script, only(max_open_files=50)))
    assert (await child.wait()).code == 1
    assert child.stderr is not None
    assert b"Too many open files" in await child.stderr.read()


async def test_output(supervisor: Supervisor) -> None:
    child = await supervisor.spawn(sh("exec yes", limits=only(max_output_bytes=100_000)))
    status = await child.wait()
    assert (status.signal, status.limit) == (signal.SIGKILL, "max_output_bytes")
    exact = await supervisor.spawn(sh("head -c 100000 /dev/zero", limits=only(max_output_bytes=100_000)))
    assert (await exact.wait()).success


async def test_files(supervisor: Supervisor, tmp_path: Path) -> None:
    command = sh("exec head -c 200000 /dev/zero > big", limits=only(max_file_bytes=100_000), working_dir=tmp_path)
    status = await (await supervisor.spawn(command)).wait()
    assert (status.signal, status.limit) == (signal.SIGXFSZ, "max_file_bytes")
    assert (tmp_path / "big").stat().st_size == 100_000


async def test_processes(supervisor: Supervisor) -> None:
    script = "for i in 1 2 3 4 5 6; do sleep 1000 & done; wait"
    status = await (await supervisor.spawn(sh(script, limits=only(max_processes=4)))).wait()
    if "pids" in supervisor.control_groups:
        assert (status.code, status.limit) == (2, None), "the kernel has denied them, and the shell gave up"
    else:
        assert (status.signal, status.limit) == (signal.SIGKILL, "max_processes")


@pytest.mark.slow(reason="500 processes")
async def test_who_forks_and_forks_is_ended_as_a_whole_where_it_is_measured(tmp_path: Path) -> None:
    """It stops at 511 processes by itself, for the sake of the machine of the tests."""
    supervisor = Supervisor(mount=str(tmp_path))
    fork = "f() { if [ $1 -gt 0 ]; then f $(($1 - 1)) & f $(($1 - 1)) & fi; exec sleep 1000; }; f 8"
    child = await supervisor.spawn(sh(fork, limits=only(max_processes=100)))
    assert (await child.wait()).limit == "max_processes"
    assert children_of(supervisor.pid) == []
    supervisor.close()


async def test_a_child_has_the_priority_of_its_worker(supervisor: Supervisor) -> None:
    child = await supervisor.spawn(Command(argv=["nice"]))
    assert int(await line(child)) == os.getpriority(os.PRIO_PROCESS, 0)
    await child.wait()


@pytest.mark.one_in(2, "half a second of a core each")
async def test_cpu(supervisor: Supervisor) -> None:
    busy = "while time.process_time() < 0.4: pass"
    script = f"import time; begin = time.monotonic()\n{busy}\nprint(time.monotonic() - begin)"
    child = await supervisor.spawn(python(script, only(max_cpu_percent=50)))
    assert float(await line(child)) > 0.5, "0.4 s of CPU, at half a core (who measures waits for one too)"
    assert (await child.wait()).success


@pytest.mark.one_in(2, "a fifth of a second of a core each")
async def test_cpu_of_a_child_that_runs_is_held_and_let_go(supervisor: Supervisor) -> None:
    """Of all its processes together, whatever its command said. Held, they would take 15 s for what they have to compute in the end."""
    burn = f'{sys.executable} -I -S -c "while True: pass"'
    child = await supervisor.spawn(sh(f"{burn} & {burn} & wait"))

    async def used() -> float:
        return (await child.usage()).cpu_seconds

    async with asyncio.timeout(60):
        while await used() < 0.05:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        child.hold_cpu(1)
        held = False
        while not held:
            before = await used()
            await asyncio.sleep(0.3)
            held = await used() - before < 0.03
    async with asyncio.timeout(12):
        child.hold_cpu(None)
        before = await used()
        while await used() < before + 0.15:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    child.kill()
    assert (await child.wait()).limit is None


async def test_a_child_within_its_limits_is_left_alone(supervisor: Supervisor) -> None:
    child = await supervisor.spawn(sh("echo fine", limits=ResourceLimits()))
    status = await child.wait()
    assert (status.code, status.limit) == (0, None)


# -- control groups -----------------------------------------------------------------------------------------------------


def test_groups_of_version_2_are_made_where_controllers_are_handed_down(tmp_path: Path) -> None:
    own = tmp_path / "user" / "app.scope"
    own.mkdir(parents=True)
    for folder in (tmp_path, own.parent, own):
        (folder / "cgroup.procs").touch()
        (folder / "cgroup.subtree_control").write_text("" if folder == own else "cpu memory pids io")
    (tmp_path / "cgroup.controllers").touch()
    (tmp_path / "mine").write_text("0::/user/app.scope\n")
    groups = ControlGroups(tmp_path, tmp_path / "mine")
    assert groups.controllers == ["cpu", "memory", "pids"]
    joins = groups.make("sabot-7", {"cpu": 50, "memory": 1 << 20, "processes": 9})
    folder = own.parent / "sabot-7"
    assert joins == [os.fspath(folder / "cgroup.procs")]
    written = {each: (folder / each).read_text() for each in ("cpu.max", "memory.max", "pids.max")}
    assert written == {"cpu.max": "50000 100000", "memory.max": "1048576", "pids.max": "9"}
    groups.free_cpu("sabot-7")
    assert (folder / "cpu.max").read_text() == "max 100000"
    assert not groups.ran_out_of_memory("sabot-7")
    (folder / "memory.events").write_text("low 0\noom 1\noom_kill 1\n")
    assert groups.ran_out_of_memory("sabot-7")
    assert (folder / "memory.oom.group").read_text() == "1"
    groups.kill("sabot-7")
    assert (folder / "cgroup.kill").read_text() == "1"
    assert groups.left_of("sabot-") == ["sabot-7"]
    assert not groups.remove("sabot-7"), "it is not empty"


@pytest.mark.parametrize("foreign", [False, True])
def test_a_group_that_is_made_over_hands_its_controllers_down(tmp_path: Path, foreign: bool) -> None:
    """The root of a container, as the files of the kernel are: the worker is moved away from it, if it is alone there."""
    (tmp_path / "cgroup.type").write_text("domain")
    (tmp_path / "cgroup.controllers").write_text("cpuset cpu io memory pids")
    (tmp_path / "cgroup.subtree_control").write_text("")
    (tmp_path / "cgroup.procs").write_text("7\n8\n" + "9\n" * foreign)
    (tmp_path / "mine").write_text("0::/\n")
    groups = ControlGroups(tmp_path, tmp_path / "mine")
    assert groups.controllers == []
    groups.hand_down([7, 8])
    if foreign:
        assert groups.controllers == []
        assert not (tmp_path / "sabot.worker").exists()
        return
    assert (tmp_path / "sabot.worker/cgroup.procs").read_text() == "8"
    assert (tmp_path / "cgroup.subtree_control").read_text() == "+cpu +memory +pids"
    (tmp_path / "cgroup.subtree_control").write_text("cpu memory pids")  # as the kernel then says it
    (tmp_path / "mine").write_text("0::/sabot.worker\n")
    assert ControlGroups(tmp_path, tmp_path / "mine").controllers == ["cpu", "memory", "pids"]


def test_without_control_groups_nothing_is_made(tmp_path: Path) -> None:
    groups = ControlGroups(tmp_path, tmp_path / "no such file")
    assert groups.controllers == []
    assert groups.make("sabot-7", {"cpu": 50, "memory": 1, "processes": 1}) == []
    groups.free_cpu("sabot-7")
    assert groups.remove("sabot-7")
    assert not groups.ran_out_of_memory("sabot-7")


async def test_no_control_group_is_left(supervisor: Supervisor) -> None:
    groups = ControlGroups()
    child = await supervisor.spawn(sh("sleep 1000 & echo; wait", limits=only(max_processes=50, max_cpu_percent=100)))
    await line(child)
    tag = tag_of(child.pid)
    assert tag is not None
    assert (group_of(tag) in groups.left_of("sabot-")) == bool(supervisor.control_groups)
    await child.stop()
    async with asyncio.timeout(60):
        while group_of(tag) in groups.left_of("sabot-"):  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def test_the_peak_of_a_process_does_not_begin_with_that_of_its_starter() -> None:
    """A supervisor that a large worker had started took no child for one that had been above its limit."""
    asks = "from sabot.process.tree import peak_memory; print(peak_memory())"
    large = b"x" * (200 << 20)
    said = subprocess.run([sys.executable, "-c", asks], capture_output=True, check=True)
    assert 1 << 20 < int(said.stdout) < len(large)
