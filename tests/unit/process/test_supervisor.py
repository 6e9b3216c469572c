"""A supervisor starts real programs, and leaves nothing of them behind."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from unit.process.children import alive, children_of, line, sh, state

from sabot.errors import UserError
from sabot.process import Child, Command, CommunicationError, IoError, SpawnFailed, Supervisor, client
from tools.agent_tools import until

# -- a child and its streams --------------------------------------------------------------------------------------------


def waited_for(supervisor: Supervisor) -> tuple[int, int]:
    """How many replies, and how many children, also those whose start is under way."""
    return len(supervisor._replies), len(supervisor._children)


async def test_a_program_gets_its_stdin_and_gives_its_output_and_its_code(supervisor: Supervisor) -> None:
    child = await supervisor.spawn(sh("cat; echo bad >&2; exit 3"))
    assert child.stdin is not None
    assert child.stderr is not None
    child.stdin.write(b"one\ntwo")
    child.stdin.close()
    status = await child.wait()
    assert (status.code, status.signal, status.success) == (3, None, False)
    assert [each async for each in child.stdout.lines()] == [b"one", b"two"]  # type: ignore[union-attr]
    assert await child.stderr.read() == b"bad\n"
    assert await child.stderr.read() == b""
    assert (await child.usage()).processes == 0


async def test_streams_that_are_not_wanted_are_null_and_stderr_may_be_stdout(supervisor: Supervisor) -> None:
    child = await supervisor.spawn(sh("cat; echo out; echo err >&2", stdin="null", stderr="stdout"))
    assert (child.stdin, child.stderr) == (None, None)
    assert [await line(child), await line(child)] == ["out", "err"]
    assert (await child.wait()).success
    silent = await supervisor.spawn(sh("echo lost", stdout="null", stderr="null"))
    assert (await silent.wait()).success
    assert silent.stdout is None


async def test_a_child_sees_only_the_variables_that_are_named(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("API_KEY_OF_THE_WORKER", "worker's own")
    monkeypatch.setenv("PASSED_ON", "yes")
    child = await supervisor.spawn(
        Command(argv=["env"], environment={"GIVEN": "a b"}, inherit=["PATH", "PASSED_ON"], working_dir=tmp_path)
    )
    seen = [await line(child) for _ in range(3)]
    assert sorted(seen) == sorted([f"PATH={os.environ['PATH']}", "PASSED_ON=yes", "GIVEN=a b"])
    assert (await child.wait()).success
    where = await supervisor.spawn(Command(argv=["pwd"], working_dir=tmp_path))
    assert await line(where) == str(tmp_path)
    await where.wait()


async def test_a_child_leads_a_session_of_its_own_with_default_signals_and_no_file_of_the_worker(
    supervisor: Supervisor,
) -> None:
    script = (
        "import os, signal; print(os.getsid(0) == os.getpid(), signal.getsignal(signal.SIGINT) is not signal.SIG_IGN,"
    )
    script += " [int(x) for x in os.listdir('/proc/self/fd') if int(x) > 2 and os.path.exists(f'/proc/self/fd/{x}')])"
    child = await supervisor.spawn(Command(argv=[sys.executable, "-I", "-S", "-c", script]))
    assert await line(child) == "True True []"
    await child.wait()


# -- what does not start ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "directory", "said"),
    [
        (["no-such-program"], None, r"no-such-program: not found on PATH \("),
        (["/no/such/program"], None, "/no/such/program: there is no such file"),
        (["/etc/passwd"], None, "/etc/passwd: it is not executable"),
        (["true"], "/no/such/folder", "true: its working directory '/no/such/folder': No such file"),
        (["true"], os.fsdecode(b"/no/\xff"), "true: its working directory .*: No such file"),
        (["true", "x" * 200_000], None, "true: its arguments and environment are longer than the system takes"),
    ],
    ids=["no program", "no file", "not executable", "no folder", "a folder that is no text", "too long"],
)
async def test_a_program_that_does_not_start_is_named_with_the_reason(
    supervisor: Supervisor, argv: list[str], directory: str | None, said: str
) -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    with pytest.raises(SpawnFailed, match=said):
        await supervisor.spawn(Command(argv=argv, working_dir=directory))
    assert sorted(os.listdir("/proc/self/fd")) == before


async def test_a_worker_that_has_no_more_files_for_the_request_says_so_and_keeps_nothing_of_it(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pipes are open, and the second copy for the supervisor is one file too many: it was an OSError, 5 s later."""
    copies: list[int] = []
    before, dup = sorted(os.listdir("/proc/self/fd")), os.dup

    def once(descriptor: int) -> int:
        if copies:
            raise OSError(24, os.strerror(24))
        copies.append(descriptor)
        return dup(descriptor)

    with monkeypatch.context() as patched:
        patched.setattr(os, "dup", once)
        with pytest.raises(IoError, match=f"true could not be started: {os.strerror(24)}"):
            await asyncio.wait_for(supervisor.spawn(Command(argv=["true"])), 60)
    assert sorted(os.listdir("/proc/self/fd")) == before
    assert waited_for(supervisor) == (0, 0)
    assert (await (await supervisor.spawn(Command(argv=["true"]))).wait()).success


@pytest.mark.parametrize(("call", "number"), [("pipe", 24), ("getcwd", 2)], ids=["no more files", "no current folder"])
async def test_a_worker_that_cannot_ask_for_a_child_says_so_and_keeps_nothing_of_it(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    def refused() -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patched:
        patched.setattr(os, call, refused)
        with pytest.raises(IoError, match=f"true could not be started: {os.strerror(number)}"):
            await supervisor.spawn(Command(argv=["true"]))
    assert waited_for(supervisor) == (0, 0)
    assert (await (await supervisor.spawn(Command(argv=["true"]))).wait()).success


async def test_a_script_whose_interpreter_is_not_there_says_so(supervisor: Supervisor, tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("#!/no/such/interpreter\n")
    script.chmod(0o755)
    with pytest.raises(SpawnFailed, match="the interpreter that its first line names is not there"):
        await supervisor.spawn(Command(argv=[str(script)]))


@pytest.mark.parametrize("argv", ["ls -l", [], [""], ["a\0b"]], ids=["a text", "nothing", "no program", "null"])
def test_a_command_is_a_sequence_of_words(argv: object) -> None:
    with pytest.raises(UserError):
        Command(argv=argv)  # type: ignore[arg-type]


def test_a_command_does_not_show_the_values_of_its_environment() -> None:
    assert "sesame" not in repr(Command(argv=["true"], environment={"KEY": "sesame"}))


# -- ends ---------------------------------------------------------------------------------------------------------------


async def test_a_signal_goes_to_the_program_and_its_process_group(supervisor: Supervisor) -> None:
    child = await supervisor.spawn(sh("trap 'echo caught; exit 7' INT; echo ready; while :; do sleep 0.01; done"))
    assert await line(child) == "ready"
    child.signal(signal.SIGINT)
    assert await line(child) == "caught"
    assert (await child.wait()).code == 7


async def test_a_killed_child_says_by_which_signal(supervisor: Supervisor) -> None:
    child = await supervisor.spawn(Command(argv=["sleep", "1000"]))
    child.kill()
    status = await child.wait()
    assert (status.code, status.signal) == (None, signal.SIGKILL)
    child.kill()
    child.signal(signal.SIGTERM)
    assert await child.stop() == status


async def test_stop_closes_stdin_first(supervisor: Supervisor) -> None:
    child = await supervisor.spawn(sh("trap '' TERM; echo ready; cat; echo bye"))
    assert await line(child) == "ready"
    assert (await child.stop(30)).code == 0
    assert await line(child) == "bye"


async def test_who_ignores_sigterm_is_killed_after_the_grace_and_so_are_its_children(supervisor: Supervisor) -> None:
    child = await supervisor.spawn(sh("trap '' TERM; sleep 1000 & echo $!; wait; sleep 1000"))
    grandchild = int(await line(child))
    status = await child.stop(0.05)
    assert status.signal == signal.SIGKILL
    assert not alive(grandchild)


async def test_what_a_child_has_left_outside_of_its_session_ends_with_it(supervisor: Supervisor) -> None:
    """By setsid and a double fork, and with an empty environment: neither session, nor parent, nor a variable says whose it is."""
    child = await supervisor.spawn(sh("setsid env -i sh -c 'setsid sleep 1000 & echo $!; exec sleep 1000' & read x"))
    stray = int(await line(child))
    await until(lambda: len(children_of(child.pid)) == 1)
    assert (await child.usage()).processes >= 3
    assert alive(stray)
    assert child.stdin is not None
    child.stdin.close()
    assert (await child.wait()).code is not None
    assert not alive(stray)


async def test_a_stray_of_one_child_does_not_end_with_another(supervisor: Supervisor) -> None:
    first = await supervisor.spawn(sh("(setsid sleep 1000 & echo $!); read x"))
    stray = int(await line(first))
    second = await supervisor.spawn(Command(argv=["true"]))
    await second.wait()
    assert alive(stray)
    while (await first.usage()).processes != 2:  # noqa: ASYNC110
        await asyncio.sleep(0.005)
    await first.stop(5)
    assert not alive(stray)


async def test_what_an_orphan_has_computed_counts_when_it_is_gone(supervisor: Supervisor) -> None:
    burn = f"{sys.executable} -I -S -c 'import time\nwhile time.process_time() < 0.1: pass'"
    child = await supervisor.spawn(sh(f"({burn} &); exec sleep 1000"))
    while (await child.usage()).cpu_seconds < 0.1 or (await child.usage()).processes > 1:  # noqa: ASYNC110
        await asyncio.sleep(0.005)
    child.kill()
    assert (await child.wait()).cpu_seconds >= 0.1


async def test_a_paused_child_goes_on_when_it_is_resumed_and_can_be_stopped(supervisor: Supervisor) -> None:
    child = await supervisor.spawn(sh("sleep 1000 & echo $!; wait"))
    inner = int(await line(child))
    child.pause()
    await until(lambda: child.paused and state(inner) == "T")
    child.resume()
    await until(lambda: not child.paused and state(inner) != "T")
    child.pause()
    await until(lambda: child.paused)
    assert (await child.stop(10)).signal == signal.SIGTERM


async def test_a_paused_child_that_somebody_else_continues_is_stopped_again(supervisor: Supervisor) -> None:
    """It ran on, though its owner had suspended it, for example because of a quota."""
    child = await supervisor.spawn(Command(argv=["sleep", "1000"]))
    child.pause()
    await until(lambda: child.paused and state(child.pid) == "T")
    os.kill(child.pid, signal.SIGCONT)  # it is not T any more when this returns
    await until(lambda: child.paused and state(child.pid) == "T")
    child.signal(signal.SIGCONT)  # by its owner
    await until(lambda: not child.paused and state(child.pid) == "S")
    child.pause()
    await until(lambda: child.paused)
    os.kill(child.pid, signal.SIGCONT)
    assert (await child.stop(10)).signal == signal.SIGTERM


async def test_a_spawn_that_is_cancelled_leaves_no_child(supervisor: Supervisor) -> None:
    os.kill(supervisor.pid, signal.SIGSTOP)  # it does not answer before the call is cancelled
    try:
        await until(lambda: state(supervisor.pid) == "T")
        spawning = asyncio.ensure_future(supervisor.spawn(Command(argv=["sleep", "1000"])))
        await asyncio.sleep(0)
        assert supervisor.children == []  # none that has no pid yet: os.kill(0) would be for the caller's own group
        spawning.cancel()
        await asyncio.sleep(0)
    finally:
        os.kill(supervisor.pid, signal.SIGCONT)
    with pytest.raises(asyncio.CancelledError):
        await spawning
    await until(lambda: waited_for(supervisor)[1] == 0)


def test_the_end_of_a_child_that_is_just_getting_a_session_does_not_reach_who_ends_it() -> None:
    """Its group was asked for before the session: that of the supervisor, which stopped itself for good."""
    script = """
import os
from sabot.process import tree

def tag_of(pid):
    os.write(go, b"1")
    os.read(done, 1)  # the child has a session now
    return 1

tree.tag_of = tag_of
(started, go), (done, told) = os.pipe(), os.pipe()
if not (pid := os.fork()):
    os.read(started, 1)
    os.setsid()
    os.write(told, b"1" * 100)
    os.read(started, 1)
    os.read(started, 1)
tree.end([pid])
print(os.waitpid(pid, 0)[1])
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        start_new_session=True,
        stdout=subprocess.PIPE,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout == f"{signal.SIGKILL}\n"


async def test_a_stopped_supervisor_is_named_and_starts_nothing_later(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.kill(supervisor.pid, signal.SIGSTOP)
    try:
        await until(lambda: state(supervisor.pid) == "T")
        monkeypatch.setattr(client, "_ANSWER_SECONDS", 0.05)
        said = rf"sleep: the supervisor of this worker's children .pid {supervisor.pid}, T .stopped.. has not answered in 0.05 s"
        with pytest.raises(CommunicationError, match=said):
            await supervisor.spawn(Command(argv=["sleep", "1000"]))
        assert supervisor.children == []
    finally:
        os.kill(supervisor.pid, signal.SIGCONT)
    monkeypatch.undo()
    assert (await (await supervisor.spawn(Command(argv=["true"]))).wait()).success
    await until(lambda: waited_for(supervisor)[1] == 0 and not children_of(supervisor.pid))


async def test_a_stopped_supervisor_whose_socket_is_full_holds_nobody_up_and_is_named(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests go out from the event loop: one that waited in the socket held up all of it."""
    child = await supervisor.spawn(sh("trap 'echo heard; exit 7' USR1; echo ready; while :; do sleep 0.01; done"))
    assert await line(child) == "ready"
    os.kill(supervisor.pid, signal.SIGSTOP)
    try:
        await until(lambda: state(supervisor.pid) == "T")
        monkeypatch.setattr(client, "_ANSWER_SECONDS", 0.05)

        def ask_much() -> None:
            for _ in range(5_000):  # a socket holds some hundreds
                child.signal(0)
            child.signal(signal.SIGUSR1)

        await asyncio.wait_for(asyncio.to_thread(ask_much), 60)
        said = (
            rf"the supervisor of this worker's children .pid {supervisor.pid}, T .stopped.. has not answered in 0.05 s"
        )
        with pytest.raises(CommunicationError, match=said):
            await child.usage()
        with pytest.raises(CommunicationError, match=rf"sh .pid {child.pid}. is to end: {said}"):
            await child.stop(0)
        monkeypatch.setattr(client, "_MOST_UNSENT", 1)
        with pytest.raises(CommunicationError, match=rf"requests wait: {said}"):
            child.resume()
        waiting = waited_for(supervisor)[0]
        for refused in (child.usage(), supervisor.spawn(Command(argv=["true"]))):
            with pytest.raises(CommunicationError, match="requests wait"):
                await refused
        assert waited_for(supervisor) == (waiting, 1)
    finally:
        os.kill(supervisor.pid, signal.SIGCONT)
    monkeypatch.undo()
    assert (await child.wait()).code in (7, None), "it was asked in the order in which it was said"
    assert supervisor.children == []


@pytest.mark.parametrize(
    ("given", "where"),
    [
        ({"argv": ["tool\ud800"]}, r"argv\[0\]"),
        ({"argv": ["tool", "--key", "a\udfff"]}, r"argv\[2\]"),
        ({"argv": ["tool"], "environment": {"A\ud800": "1"}}, "the name of the variable 'A.*'"),
        ({"argv": ["tool"], "environment": {"API_KEY": "geheim\ud800"}}, r"environment\['API_KEY'\]"),
        ({"argv": ["tool"], "working_dir": "/tmp/\ud800"}, "working_dir"),
    ],
)
def test_half_a_surrogate_pair_is_refused_where_it_stands(given: dict[str, Any], where: str) -> None:
    with pytest.raises(UserError, match=rf"'tool.*': {where} has half a surrogate pair") as raised:
        Command(**given)
    assert "geheim" not in str(raised.value)


async def test_bytes_that_are_no_text_reach_the_program_as_they_are(supervisor: Supervisor) -> None:
    """Names of files and variables of the worker may be such; Python has them as surrogates of its own."""
    odd = os.fsdecode(b"a\xff")
    command = Command(argv=["sh", "-c", 'printf "%s %s" "$1" "$ODD"', "sh", odd], environment={"ODD": odd})
    child = await supervisor.spawn(command)
    assert child.stdout is not None
    assert await child.stdout.read() == b"a\xff a\xff"
    await child.wait()


# -- one supervisor for a worker ----------------------------------------------------------------------------------------


def test_the_event_loops_of_a_worker_share_one_supervisor() -> None:
    found: list[tuple[int, int | None]] = []

    async def run() -> None:
        supervisor = await Supervisor.running()
        child = await supervisor.spawn(sh("exit 4"))
        found.append((supervisor.pid, (await child.wait()).code))

    threads = [threading.Thread(target=asyncio.run, args=(run(),)) for _ in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert len(set(found)) == 1
    assert len(found) == 4


def test_a_child_outlives_the_loop_that_spawned_it_and_can_be_awaited_on_another() -> None:
    async def spawn() -> Child:
        return await (await Supervisor.running()).spawn(Command(argv=["sleep", "1000"]))

    child = asyncio.run(spawn())
    before = len(os.listdir("/proc/self/fd"))

    async def end() -> int | None:
        child.kill()
        return (await child.wait()).signal

    assert asyncio.run(end()) == signal.SIGKILL
    assert len(os.listdir("/proc/self/fd")) < before, "its pipes are closed"


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
async def test_a_fork_of_the_worker_holds_neither_the_supervisor_nor_a_childs_stdin(supervisor: Supervisor) -> None:
    child = await supervisor.spawn(Command(argv=["cat"]))
    reader, writer = os.pipe()
    fork = os.fork()
    if fork == 0:
        os.write(writer, b"1" if Supervisor._current is None else b"0")
        signal.pause()
        os._exit(7)
    os.close(writer)
    try:
        assert os.read(reader, 1) == b"1"
        assert child.stdin is not None
        child.stdin.close()
        async with asyncio.timeout(60):
            assert (await child.wait()).success, "the fork does not keep its stdin open"
    finally:
        os.kill(fork, signal.SIGKILL)
        os.waitid(os.P_PID, fork, os.WEXITED)  # noqa: ASYNC222
        os.close(reader)


@pytest.mark.slow  # a second of a core, or more
async def test_when_the_supervisor_is_killed_its_children_end_and_the_next_spawn_has_a_new_one() -> None:
    first = await Supervisor.running()
    child = await first.spawn(Command(argv=["sleep", "1000"]))
    os.kill(first.pid, signal.SIGKILL)
    with pytest.raises(
        CommunicationError, match=f"the supervisor of this worker's children .pid {first.pid}. has ended"
    ):
        await child.wait()
    await until(lambda: not alive(child.pid))
    assert child.is_over
    with pytest.raises(CommunicationError):
        await first.spawn(Command(argv=["true"]))
    second = await Supervisor.running()
    assert second.pid != first.pid
    assert (await (await second.spawn(Command(argv=["true"]))).wait()).success


async def test_a_supervisor_that_is_asked_to_end_ends_its_tree() -> None:
    supervisor = await Supervisor.running()
    child = await supervisor.spawn(sh("setsid sleep 1000 & echo $!; wait"))
    stray = int(await line(child))
    os.kill(supervisor.pid, signal.SIGTERM)
    with pytest.raises(CommunicationError):
        await child.wait()
    assert not alive(child.pid)
    assert not alive(stray)


@pytest.mark.parametrize("seconds", ["soon", None, float("inf"), float("nan"), True])
async def test_a_time_that_is_none_is_refused_and_ends_no_other_child(supervisor: Supervisor, seconds: Any) -> None:
    """The supervisor itself failed at it, and with it ended all children of the worker."""
    child, other = await supervisor.spawn(sh("sleep 1000")), await supervisor.spawn(sh("sleep 1000"))
    with pytest.raises(UserError, match="stop: grace_seconds"):
        await child.stop(seconds)
    if seconds is not None:
        for refused in (child.end_after, child.hold_cpu):
            with pytest.raises(UserError):
                refused(seconds)
    for each in (child, other):
        assert (await each.usage()).processes
        await each.stop(0)


@pytest.mark.parametrize("percent", [0, -5, -0.0])
async def test_a_hold_to_no_cpu_is_refused(supervisor: Supervisor, percent: float) -> None:
    """Without control groups it was no limit at all, and with them a hundredth of a core."""
    child = await supervisor.spawn(sh("sleep 1000"))
    with pytest.raises(UserError, match="hold_cpu"):
        child.hold_cpu(percent)
    await child.stop(0)


async def test_a_time_beyond_what_the_kernel_waits_for_is_taken(supervisor: Supervisor) -> None:
    child, other = await supervisor.spawn(sh("sleep 1000")), await supervisor.spawn(sh("sleep 1000"))
    other.end_after(1e18)
    assert (await child.stop(1e9)).signal == signal.SIGTERM
    assert (await other.usage()).processes
    await other.stop(0)


@pytest.mark.parametrize("number", [999, -5, 1 << 40, "9"])
async def test_a_signal_that_the_system_does_not_have_is_refused_and_ends_no_other_child(
    supervisor: Supervisor, number: Any
) -> None:
    child, other = await supervisor.spawn(sh("sleep 1000")), await supervisor.spawn(sh("sleep 1000"))
    with pytest.raises(UserError, match="a signal of the module signal"):
        child.signal(number)
    assert (await other.usage()).processes
    for each in (child, other):
        await each.stop(0)
