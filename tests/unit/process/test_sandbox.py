"""What a child in a sandbox cannot do, tried by a program that wants to get out (`intruder.py`); what it still can; and what is refused
where the system has no means.
"""

import json
import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from unit.process.children import alive, everything, line, sh

from sabot.errors import UserError
from sabot.process import (
    AgentConfig,
    Command,
    CommunicationError,
    LocalProcessRunner,
    ProcessConfig,
    ProcessRunnerConfig,
    ProcessRuntime,
    RuntimeConfig,
    Sandbox,
    SandboxPathRefused,
    SandboxStepFailed,
    SandboxSupport,
    SandboxUnavailable,
    SpawnFailed,
    Supervisor,
    TaskDelegation,
    TrustExceeded,
    TrustLevel,
)
from sabot.process.sandbox import levels, reach
from sabot.process.sandbox.confine import NOBODY
from sabot.process.sandbox.levels import MEANS, available, check_available, stricter, support_of
from tools.agent_tools import until

INTRUDER = Path(__file__).with_name("intruder.py").read_text()
PYTHON = shutil.which("python3", path="/usr/bin:/bin") or sys.executable
# What a program is trusted with: all else that the intruder tries is denied.
TRUSTED = {
    "list_state",
    "listen",
    "read_state",
    "tcp",
    "tcp_by_fast_open",
    "tcp_of_many_paths",
    "udp",
    "unix_socket",
    "unix_socket_from_a_pair",
    "unix_socket_from_a_pair_of_raw_ones",
}
ALLOWED = {
    TrustLevel.TRUSTED: TRUSTED,
    TrustLevel.STANDARD: set[str](),
    TrustLevel.UNTRUSTED: {"listen"},  # in a network of its own
    TrustLevel.CONFIDENTIAL: {"listen"},
}
NOT_EVERYWHERE = {"tcp_of_many_paths", "tcp_by_fast_open"}  # a kernel may be without
ROADS = ["as this worker", "in a user namespace", "without mounts", "as the same user"]
BETWEEN_SIBLINGS = {
    "abstract_socket",
    "environment_of_the_sibling",
    "memory_of_the_sibling",
    "signal_the_sibling",
    "signal_the_sibling_by_its_descriptor",
    "words_of_the_sibling",
}

AS_ROOT = {
    "be_of_the_group_of_root",
    "be_root",
    "change_the_mode_outside",
    "read_passwords",
}  # as its owner, without a capability
AS_THE_WORKERS_USER = {
    "abstract_socket",
    "signal_the_sibling",
    "signal_the_sibling_by_its_descriptor",
    "signal_the_supervisor",
    "signal_the_worker",
    "words_of_the_sibling",
}


def support(road: str) -> SandboxSupport:
    """What this system has, or a part of it; and an encrypted memory, of which a program sees nothing."""
    here = available()
    here = replace(here, there=here.there | {"encryption"})
    match road:
        case "in a user namespace":
            return replace(here, user="namespace", proc=False)
        case "without mounts":
            left = {"mounts", "writes"} if here.landlock < 3 else {"mounts"}
        case "as the same user":
            left = {"user", "mounts", "ipc"}
            here = replace(here, user="", namespace=False)
        case "without Landlock":
            left = {"reads", "neighbours", "ports"}
            here = replace(here, landlock=0)
        case _:
            return here
    missing = {**here.missing, **dict.fromkeys(left, "left out")}
    return replace(here, there=here.there - left, missing=missing, proc=here.proc and "mounts" not in left)


needs_some, needs = pytest.mark.usefixtures("some_means"), pytest.mark.usefixtures("all_means")


@pytest.fixture
def services(area: Path) -> Iterator[dict[str, Any]]:
    """What listens in this process: a child that reaches one of them has got out."""
    with ExitStack() as opened:
        tcp = opened.enter_context(socket.create_server(("127.0.0.1", 0)))
        udp = opened.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        udp.bind(("127.0.0.1", 0))
        local, datagrams, abstract = (
            opened.enter_context(socket.socket(socket.AF_UNIX, kind))
            for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_STREAM)
        )
        for each, name in (local, "unix"), (datagrams, "datagrams"):
            each.bind(str(area / name))
            (area / name).chmod(0o777)
        abstract.bind(f"\0{area}")
        local.listen()
        abstract.listen()

        def answer() -> None:
            while True:
                said, sender = udp.recvfrom(10)
                if said == b"end":
                    return
                udp.sendto(b"y", sender)

        answering = threading.Thread(target=answer)
        answering.start()
        yield {
            "tcp": tcp.getsockname()[1],
            "udp": udp.getsockname()[1],
            "unix": str(area / "unix"),
            "datagrams": str(area / "datagrams"),
            "abstract": str(area),
        }
        udp.sendto(b"end", udp.getsockname())
        answering.join()


async def attempts(supervisor: Supervisor, area: Path, level: Sandbox, services: dict[str, Any]) -> dict[str, str]:
    """What became of each attempt of the intruder."""
    secret = {"SECRET": "secret"}
    sibling = await supervisor.spawn(
        sh("echo on; exec sleep 1000", trust=level, working_dir=area / "mine", environment=secret)
    )
    assert await line(sibling) == "on"
    targets = {
        **services,
        "outside": str(area / "outside"),
        "state": str(area / "state"),
        "directory": str(area / "mine"),
        "sibling": sibling.pid,
        "worker": os.getpid(),
        "supervisor": supervisor.pid,
    }
    argv = [PYTHON, "-I", "-S", "-c", INTRUDER, json.dumps(targets)]
    intruder = await supervisor.spawn(Command(argv=argv, trust=level, working_dir=area / "mine"))
    out, _ = await everything(intruder)
    sibling.kill()
    await sibling.wait()
    became: dict[str, str] = json.loads(out)
    return became


@pytest.mark.one_in(4, "hundredths of a second of a core each")
@needs_some
@pytest.mark.parametrize(
    ("level", "road"),
    [
        *((level, road) for level in (TrustLevel.TRUSTED, TrustLevel.STANDARD, TrustLevel.UNTRUSTED) for road in ROADS),
        (TrustLevel.CONFIDENTIAL, "as this worker"),
        (TrustLevel.TRUSTED, "without Landlock"),
    ],
)
async def test_nobody_gets_out(
    supervisor: Supervisor,
    monkeypatch: pytest.MonkeyPatch,
    area: Path,
    services: dict[str, Any],
    level: TrustLevel,
    road: str,
) -> None:
    found = support(road)
    monkeypatch.setattr(levels, "available", lambda: found)
    degraded = Sandbox(level=level, allow_degraded=road == "as the same user")
    try:
        check_available(degraded, "intruder")
    except SandboxUnavailable as error:
        pytest.skip(str(error))
    if found.user == "root":
        os.chown(area / "mine", NOBODY, NOBODY)
    allowed = set(ALLOWED[level])
    if "mounts" not in found.there:
        allowed.add("change_the_times_outside")  # of a file that everybody may write: Landlock does not judge that
        if os.geteuid():
            allowed.add("change_the_mode_outside")  # of a file of the worker's user
    if road == "in a user namespace" and os.geteuid() == 0:
        allowed.add("read_passwords")  # root in a user namespace still owns the file
    if level is TrustLevel.TRUSTED:
        allowed |= {"words_of_the_sibling"} if not found.proc else set()
        allowed |= {"find_sockets_of_services"} if "mounts" not in found.there and os.listdir("/run") else set()
    if "neighbours" not in found.there:  # they are one user
        allowed |= BETWEEN_SIBLINGS if found.user == "root" else AS_THE_WORKERS_USER
    if not found.user:
        allowed -= {"listen"} if level is TrustLevel.UNTRUSTED else set()  # it can make no socket
        allowed |= AS_ROOT if os.geteuid() == 0 else set()
    became = await attempts(supervisor, area, degraded, services)
    out = {name for name, error in became.items() if not error}
    assert out | (allowed & NOT_EVERYWHERE) == allowed


@needs
@pytest.mark.parametrize("level", ["trusted", "standard", "untrusted"])
async def test_python_git_and_a_shell_work_in_its_directory(supervisor: Supervisor, area: Path, level: str) -> None:
    script = """
    set -e
    echo noted > /dev/stderr
    git init -q . && echo one > file && git add file && git -c user.name=a -c user.email=a@b commit -q -m one && git log --oneline | wc -l
    python -c 'import subprocess, tempfile, threading
with tempfile.TemporaryFile() as file:
    file.write(b"x")
thread = threading.Thread(target=print, args=["in a thread"], kwargs={"flush": True})
thread.start()
thread.join()
print(subprocess.run(["sh", "-c", "id -u; pwd"], capture_output=True, text=True, check=True).stdout)'
    """
    venv = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}  # as in a shell in which it is active
    child = await supervisor.spawn(sh(script, trust=level, working_dir=area / "mine", environment=venv))
    out, err = await everything(child)
    assert err == "noted\n"
    assert out.split() == ["1", "in", "a", "thread", str(NOBODY), str(area / "mine")]
    assert child.confined_by >= {"user", "capabilities", "filter", "writes"}
    made = (area / "mine/file").stat()
    assert (made.st_uid, made.st_gid) == (os.geteuid(), os.getegid()), "what it makes belongs to who owns the directory"


@needs
@pytest.mark.parametrize("level", ["trusted", "untrusted"])
async def test_it_sets_the_cores_and_the_priority_of_itself(supervisor: Supervisor, level: str) -> None:
    """As numpy, OpenMP and `nice` do."""
    script = """
import os, resource, threading
def both():
    os.sched_setaffinity(0, os.sched_getaffinity(0))
    os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
thread = threading.Thread(target=both)
thread.start()
thread.join()
both()
os.nice(3)
resource.prlimit(0, resource.RLIMIT_NOFILE, (100, 100))
print(os.sched_getscheduler(0) == os.SCHED_BATCH, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
"""
    child = await supervisor.spawn(Command(argv=[PYTHON, "-I", "-S", "-c", script], trust=level))
    assert await everything(child) == ("True 100\n", "")


@needs
async def test_an_untrusted_program_has_a_loopback_of_its_own(supervisor: Supervisor) -> None:
    script = """
import socket
with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
    server.accept()[0].sendall(b"heard")
    print(client.recv(10).decode())
"""
    child = await supervisor.spawn(Command(argv=[PYTHON, "-I", "-S", "-c", script], trust="untrusted"))
    assert (await everything(child))[0].split() == ["heard"]


@needs
async def test_a_standard_program_connects_to_the_ports_that_it_is_given(
    supervisor: Supervisor, services: dict[str, Any]
) -> None:
    script = "import socket, sys; socket.create_connection(('127.0.0.1', int(sys.argv[1])), 5); print('connected')"
    given = Sandbox(level="standard", ports=[services["tcp"]])
    argv = [PYTHON, "-I", "-S", "-c", script, str(services["tcp"])]
    assert (await everything(await supervisor.spawn(Command(argv=argv, trust=given))))[0] == "connected\n"
    child = await supervisor.spawn(Command(argv=argv, trust="standard"))
    assert (await child.wait()).code == 1
    assert child.stderr is not None
    assert b"PermissionError" in await child.stderr.read()


@needs
async def test_files_that_it_is_given(supervisor: Supervisor, area: Path) -> None:
    given = Sandbox(level="untrusted", readable=[area / "state/data"], writable=[area / "outside"])
    script = 'cat "$1/state/data"; echo mine > "$1/outside/new"; ls "$1/state" 2>/dev/null || echo "and no more"'
    child = await supervisor.spawn(Command(argv=["sh", "-c", script, "sh", str(area)], trust=given))
    assert (await everything(child))[0] == "theirsand no more\n"
    assert (area / "outside/new").read_text() == "mine\n"


@needs
async def test_a_program_below_a_folder_that_nobody_may_pass(supervisor: Supervisor, area: Path) -> None:
    """pyenv, uv and npm put programs into the home of who installs them. Of that home it sees nothing else."""
    (area / "state/bin").mkdir()
    program = area / "state/bin/program"
    program.write_text("#!/bin/sh\necho ran; ls -A " + str(area / "state"))
    program.chmod(0o755)
    (area / "state/current").symlink_to(".")
    (area / "state").chmod(0o700)
    for path in program, area / "state/current/bin/program":
        child = await supervisor.spawn(Command(argv=[str(path)], trust="trusted"))
        assert (await everything(child))[0] == "ran\nbin\n" + "current\n" * (path != program)


@needs
async def test_what_it_may_write_it_may_write_also_where_its_programs_are(supervisor: Supervisor) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "bin").mkdir()
        where = {"PATH": f"{folder}/bin:/usr/bin:/bin"}
        script = "echo 'echo made' > bin/made; chmod +x bin/made; PATH=$PWD/bin sh -c made || made"
        child = await supervisor.spawn(sh(script, trust="untrusted", working_dir=folder, environment=where))
        assert (await everything(child))[0] == "made\n"


@needs
async def test_a_program_of_node_finds_its_packages(supervisor: Supervisor, area: Path) -> None:
    packages = area / "state/node_modules"
    for folder in ".bin", "one/dist", "two":
        (packages / folder).mkdir(parents=True)
    (packages / "two/words").write_text("found")
    (packages / "one/dist/cli.js").write_text('#!/bin/sh\ncat "$(dirname "$(readlink -f "$0")")/../../two/words"\n')
    (packages / "one/dist/cli.js").chmod(0o755)
    (packages / ".bin/one").symlink_to("../one/dist/cli.js")
    child = await supervisor.spawn(Command(argv=[str(packages / ".bin/one")], trust="untrusted"))
    assert (await everything(child))[0] == "found"


def installed(prefix: Path, name: str, script: str) -> Path:
    """A program with a library of its own, `lib/words`. -> its file"""
    for each in "bin", "lib":
        (prefix / each).mkdir(parents=True, exist_ok=True)
    (prefix / "lib/words").write_text(f"of {name}\n")
    (prefix / "secret").write_text("secret")
    (prefix / "bin" / name).write_text(script)
    (prefix / "bin" / name).chmod(0o755)
    return prefix / "bin" / name


@needs
@pytest.mark.parametrize("level", ["trusted", "standard", "untrusted"])
@pytest.mark.parametrize("named", ["itself", "by a link", "by env", "by env on the path"])
async def test_a_program_of_a_prefix_of_its_own_finds_what_was_installed_with_it(
    supervisor: Supervisor, area: Path, level: str, named: str
) -> None:
    """An interpreter in a folder that nobody knows; and a program whose first line asks `env` for it."""
    reads = 'cat "$(dirname "$(dirname "$(readlink -f "$0")")")/lib/words"'
    shout = installed(area / "odd", "shout", f"#!/bin/sh\n{reads}\n")
    environment = {"PATH": f"/usr/bin:/bin:{area}/odd/bin"}
    program = str(shout)
    if named == "by a link":
        (area / "mine/bin").mkdir()
        (area / "mine/bin/shout").symlink_to(shout)
        program = str(area / "mine/bin/shout")
    elif named.startswith("by env"):
        caller = installed(area / "tools", "caller", "#!/usr/bin/env -S LANG=C shout\n")
        program = str(caller) if named == "by env" else "caller"
        environment["PATH"] += f":{area}/tools/bin"
    child = await supervisor.spawn(Command(argv=[program], trust=level, environment=environment))
    assert await everything(child) == ("of shout\n", "")


@needs
async def test_a_home_and_what_lies_beside_an_installation_are_not_opened_with_it(
    supervisor: Supervisor, area: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = '#!/bin/sh\ncat "$(dirname "$0")/../$1"\n'
    odd, home = [installed(area / name, "look", script) for name in ("odd", "home")]
    monkeypatch.setattr(reach, "_homes", lambda: frozenset([str(area / "home")]))
    for program, what, code in (odd, "lib/words", 0), (odd, "secret", 1), (home, "lib/words", 1), (home, "secret", 1):
        child = await supervisor.spawn(Command(argv=[str(program), what], trust="untrusted"))
        assert (await child.wait()).code == code, (program, what)


@needs
async def test_its_path_opens_no_home(supervisor: Supervisor, area: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(area / "state"))
    for folder in "/", area / "state":
        child = await supervisor.spawn(
            sh(
                'cat "$FILE"',
                trust="standard",
                environment={"PATH": f"/usr/bin:/bin:{folder}", "FILE": f"{area}/state/data"},
            )
        )
        assert (await child.wait()).code == 1


@needs
async def test_its_tmp_is_its_own_and_bounded(supervisor: Supervisor) -> None:
    script = "pwd; ls -A /tmp /dev/shm; echo $HOME $TMPDIR; head -c 200000 /dev/zero > big || wc -c < big"
    given = Sandbox(level="untrusted", temp_bytes=100_000)
    child = await supervisor.spawn(sh(script, trust=given, environment={"PATH": "/usr/bin:/bin"}))
    out, err = await everything(child)
    assert out.splitlines()[:4] == ["/tmp", "/dev/shm:", "", "/tmp:"]
    assert out.splitlines()[4:] == ["/tmp /tmp", "102400"]
    assert "No space left" in err


@needs
@pytest.mark.skipif(os.uname().machine != "x86_64", reason="calls of 32-bit programs")
async def test_a_call_of_another_architecture_ends_the_program(supervisor: Supervisor) -> None:
    script = """
import ctypes, mmap
code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
code.write(bytes.fromhex("b814000000cd80c3"))  # mov eax, 20 (getpid); int 0x80; ret
ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))()
"""
    child = await supervisor.spawn(Command(argv=[PYTHON, "-I", "-S", "-c", script], trust="trusted"))
    assert (await child.wait()).signal in (signal.SIGSYS, signal.SIGSEGV)


@needs
async def test_what_it_has_started_is_measured_stopped_and_ended(supervisor: Supervisor) -> None:
    child = await supervisor.spawn(sh("setsid sh -c 'echo on; sleep 1000' & sleep 1000", trust="untrusted"))
    assert await line(child) == "on"
    assert (await child.usage()).processes >= 3
    assert (await child.stop(5)).signal == signal.SIGTERM


@needs
async def test_agents_of_a_runner_and_of_a_runtime(supervisor: Supervisor) -> None:
    answers = """read -r task; echo "{\\"result\\": $(id -u)}"; read -r more"""
    async with LocalProcessRunner(ProcessRunnerConfig(trust="untrusted")) as runner:
        agent = await runner.spawn(AgentConfig(name="who", model_backend="sh", task="x", arguments=("-c", "id -u")))
        assert [each async for each in agent.lines()] == [str(NOBODY)]
        with pytest.raises(TrustExceeded):
            await runner.spawn(AgentConfig(name="more", model_backend="sh", task="x", trust="trusted"))
    async with ProcessRuntime(RuntimeConfig(process=ProcessConfig(trust="trusted"))) as runtime:
        agent_id = await runtime.spawn_agent("who", "x", "sh", ["-c", answers], trust="untrusted")
        assert (await runtime.execute_task(agent_id, TaskDelegation(objective="x"))).result == NOBODY


@pytest.mark.slow  # it waits for processes that die; without a sandbox: test_supervisor
@needs
async def test_a_killed_supervisor_leaves_nothing_of_it(supervisor: Supervisor) -> None:
    child = await supervisor.spawn(sh("setsid sleep 1000 & echo $!; exec sleep 1000", trust="untrusted"))
    stray = int(await line(child))
    os.kill(supervisor.pid, signal.SIGKILL)
    with pytest.raises(CommunicationError):
        await child.wait()
    await until(lambda: not alive(child.pid) and not alive(stray))


# -- what is refused ------------------------------------------------------------------------------------------------------


NOTHING = SandboxSupport(frozenset(), dict.fromkeys(MEANS, "not here"))


async def test_a_level_that_the_system_cannot_hold_is_refused(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(levels, "available", lambda: NOTHING)
    with pytest.raises(
        SandboxUnavailable, match="trust='trusted' demands what this system does not have: user"
    ) as raised:
        await supervisor.spawn(sh("true", trust="trusted", working_dir=tmp_path))
    assert raised.value.missing == ("user", "capabilities", "filter", "writes")
    assert raised.value.code == "E2041"
    with pytest.raises(SandboxUnavailable) as raised:
        await supervisor.spawn(sh("true", trust="confidential", working_dir=tmp_path))
    assert {"network", "neighbours", "reads", "encryption"} < set(raised.value.missing)


async def test_or_is_held_as_far_as_it_goes_and_that_is_told(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(levels, "available", lambda: NOTHING)
    anyhow = Sandbox(level="untrusted", allow_degraded=True)
    child = await supervisor.spawn(
        sh("echo $HOME; cat /proc/self/status | grep NoNewPrivs", trust=anyhow, working_dir=tmp_path)
    )
    assert (await everything(child))[0].split() == [str(tmp_path), "NoNewPrivs:", "1"]
    assert child.confined_by == frozenset()
    assert "sh runs with trust='untrusted' without what this system does not have: user" in caplog.text
    with pytest.raises(SandboxPathRefused, match="it needs a working_dir"):
        await supervisor.spawn(sh("true", trust=anyhow))


@needs
@pytest.mark.skipif(os.geteuid() != 0, reason="another user's child writes as that user")
async def test_a_directory_that_its_user_may_not_write_is_refused(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch, area: Path
) -> None:
    found = support("without mounts")
    monkeypatch.setattr(levels, "available", lambda: found)
    with pytest.raises(SandboxPathRefused, match=f"may not write in its working directory '{area}/state'") as raised:
        await supervisor.spawn(sh("true", trust="trusted", working_dir=area / "state"))
    assert raised.value.code == "E2043"
    assert isinstance(raised.value, SpawnFailed)


@needs
async def test_a_step_that_fails_is_named(supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch, area: Path) -> None:
    monkeypatch.setattr(os.path, "lexists", lambda path: True)
    with pytest.raises(SandboxStepFailed, match=r"its sandbox .paths.: /nowhere: No such file or directory") as raised:
        await supervisor.spawn(sh("true", trust=Sandbox(level="trusted", readable=["/nowhere"])))
    assert raised.value.code == "E2042"


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("/", "may not write in '/'"),
        ("/usr/lib", "may not write in '/usr/lib'"),
        ("/nowhere", "names '/nowhere', which is not there"),
        pytest.param(tempfile.gettempdir(), "where the supervisor keeps its leases", id="the temporary folder"),
    ],
)
async def test_places_that_are_given_to_nobody(supervisor: Supervisor, path: str, why: str) -> None:
    anyhow = Sandbox(level="trusted", allow_degraded=True)
    with pytest.raises(SandboxPathRefused, match=why):
        await supervisor.spawn(sh("true", trust=anyhow, working_dir=path))


def test_who_asks_for_one_gets_at_most_the_trust_of_all() -> None:
    assert stricter(None, None) is None
    assert stricter("standard", None) == stricter(None, "standard") == Sandbox(level=TrustLevel.STANDARD)
    both = stricter(Sandbox(level="standard", readable=["/a"]), Sandbox(level="untrusted", readable=["/b"]))
    assert both == Sandbox(level="untrusted", readable=("/a", "/b"))
    with pytest.raises(
        TrustExceeded, match="trust='trusted' is asked for, where no more than 'standard' is given"
    ) as raised:
        stricter("standard", "trusted")
    assert raised.value.code == "E2044"
    few = Sandbox(level="standard", ports=[8443, 53], temp_bytes=1 << 20)
    assert stricter(few, "standard") == few, "a level alone asks for no other ports than those of all"
    assert stricter(few, Sandbox(level="standard", ports=[53], temp_bytes=1 << 30)) == replace(
        few, ports=[53], readable=(), writable=()
    )
    assert stricter("trusted", Sandbox(level="standard", ports=[22])).ports == [22]
    with pytest.raises(TrustExceeded, match="the ports 22, 443 are asked for, where all have 8443, 53"):
        stricter(few, Sandbox(level="standard", ports=[443, 53, 22]))
    with pytest.raises(TrustExceeded, match="allow_degraded=True is asked for"):
        stricter("standard", Sandbox(level="standard", allow_degraded=True))


def test_settings_that_mean_nothing() -> None:
    with pytest.raises(UserError, match=r"trust='high'.*'trusted', 'standard', 'untrusted', 'confidential'"):
        Command(argv=["true"], trust="high")
    with pytest.raises(UserError, match="no ports of TCP: 0, 70000"):
        Sandbox(level="standard", ports=[0, 443, 70000])
    with pytest.raises(UserError, match="are lists of paths"):
        Sandbox(level="standard", readable="/data")
    with pytest.raises(UserError, match="less than 4096 bytes"):
        Sandbox(level="standard", temp_bytes=0)


# -- what there is -----------------------------------------------------------------------------------------------------------


def found(landlock: int = 7, user: str = "root", *missing: str, encrypted: bool = False) -> SandboxSupport:
    return support_of(
        {"user": user, "landlock": landlock, "missing": dict.fromkeys(missing, "no"), "encrypted": encrypted}
    )


@pytest.mark.parametrize(
    ("support", "missing"),
    [
        (found(), {"encryption"}),
        (found(encrypted=True), set()),
        (found(5), {"encryption", "neighbours"}),
        (found(3), {"encryption", "neighbours", "ports"}),
        (found(2), {"encryption", "neighbours", "ports"}),  # a mount namespace holds what it writes
        (found(2, "root", "mounts"), {"encryption", "neighbours", "ports", "mounts", "writes"}),
        (found(0), {"encryption", "neighbours", "ports", "reads"}),
        (
            found(7, "", "user", "mounts", "network", "ipc"),
            {"encryption", "user", "mounts", "ipc"},
        ),  # no socket is no network
        (found(7, "", "filter", "network"), {"encryption", "filter", "ports", "network"}),
        (found(7, "namespace", "proc"), {"encryption"}),
    ],
)
def test_what_findings_come_to(support: SandboxSupport, missing: set[str]) -> None:
    assert set(support.missing) == missing
    assert support.there == set(MEANS) - missing
    assert all(support.missing.values())
    assert all(name in str(support) for name in MEANS)


def test_other_systems_have_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    support = available.__wrapped__()
    assert support.there == frozenset()
    assert set(support.missing.values()) == {"darwin has no such means"}


def test_a_trial_that_fails_finds_nothing_and_that_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(sys, "executable", "/nowhere")
    support = available.__wrapped__()
    assert support.there == frozenset()
    assert "the trial of it failed" in support.missing["user"]
    assert (
        "sandboxes of this worker's children can have: nothing (not there: user: the trial of it failed" in caplog.text
    )
