"""The runner of document 003, with programs of the tests in the place of claude and opencode."""

import asyncio
import json
import logging
import os
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from unit.process.children import alive, children_of

import sabot.process.client as client
from sabot.errors import SabotError, UserError
from sabot.process import (
    AgentConfig,
    AgentError,
    AgentHandle,
    AgentSignal,
    AgentStatus,
    CommunicationError,
    ExecutionError,
    GracefulShutdown,
    InvalidContext,
    IoError,
    LocalProcessRunner,
    NotFound,
    ProcessRunnerConfig,
    ProviderError,
    ResourceLimits,
    SpawnFailed,
    Supervisor,
    Timeout,
)
from tools.agent_tools import until

pytestmark = pytest.mark.usefixtures("supervisor")

CLAUDE = """
echo '{"type": "system", "subtype": "init", "session_id": "c-1"}'
echo '{"type": "assistant", "message": {"content": [{"type": "text", "text": "I look"}]}, "session_id": "c-1"}'
echo "{\\"type\\": \\"result\\", \\"subtype\\": \\"${SUBTYPE:-success}\\", \\"is_error\\": ${IS_ERROR:-false}, \\"result\\": \\"done\\"}"
exit ${CODE:-0}
"""
OPENCODE = """
echo '{"type": "step_start", "sessionID": "ses_1", "part": {}}'
echo '{"type": "text", "sessionID": "ses_1", "part": {"type": "text", "text": "first"}}'
echo '{"type": "text", "sessionID": "ses_1", "part": {"type": "text", "text": "second"}}'
[ -z "$BROKEN" ] || echo '{"type": "error", "sessionID": "ses_1", "error": {"name": "APIError"}}'
"""


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder before all others of PATH, with a `claude`, an `opencode` and a `custom` that record how they were called."""
    folder = tmp_path / "bin"
    folder.mkdir()
    record = f"""#!/bin/sh
python3 -I -S -c 'import json, sys; print(json.dumps(sys.argv[1:]))' "$(basename "$0")" "$@" >> {folder}/called
cat > {folder}/stdin
"""
    for name, script in {"claude": CLAUDE, "opencode": OPENCODE, "custom": 'echo "did: $1"'}.items():
        (folder / name).write_text(record.replace("cat >", "cat >" if name != "custom" else ": >") + script)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def called(programs: Path) -> list[str]:
    """The last call: the program and its arguments."""
    found: list[str] = json.loads((programs / "called").read_text().splitlines()[-1])
    return found


@pytest.fixture
async def runner() -> AsyncIterator[LocalProcessRunner]:
    async with LocalProcessRunner() as runner:
        yield runner


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A backend whose task is a script of the shell."""
    folder = tmp_path / "shell"
    folder.mkdir()
    (folder / "script").write_text('#!/bin/sh\neval "$1"\n')
    (folder / "script").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return "script"


def agent(backend: str, task: str, **more: Any) -> AgentConfig:
    return AgentConfig(name="tester", model_backend=backend, task=task, **more)


async def first_line(handle: AgentHandle) -> str:
    return await anext(handle.lines())


# -- configuration ------------------------------------------------------------------------------------------------------


def test_defaults() -> None:
    config = ProcessRunnerConfig()
    assert config == LocalProcessRunner().config
    assert (config.working_dir, config.max_concurrent_agents) == (None, None)
    assert (config.enable_json_streaming, config.enable_health_checks, config.health_check_interval_secs) == (
        True,
        True,
        30,
    )
    assert LocalProcessRunner.with_config(config).config is config
    plain = agent("claude", "look")
    assert (plain.context, plain.system_prompt, plain.environment) == (None, None, {})
    assert GracefulShutdown().timeout_secs == 5


@pytest.mark.one_in(4, "hundredths of a second of a core each")
@pytest.mark.parametrize(
    ("wrong", "kind", "why"),
    [
        ({"model_backend": "no-such-program"}, SpawnFailed, "no-such-program: not found on PATH"),
        ({"model_backend": "/etc/passwd"}, SpawnFailed, "/etc/passwd: it is not executable"),
        ({"model_backend": None}, InvalidContext, "AgentConfig: model_backend=None"),
        ({"working_dir": "/nowhere"}, SpawnFailed, "its working directory '/nowhere': No such file"),
        ({"working_dir": 3}, InvalidContext, "working_dir=3"),
        ({"working_dir": "/a\0"}, InvalidContext, "a null character"),
        ({"environment": None}, InvalidContext, "instance 'a': an environment maps names to texts"),
        ({"environment": {"A": 1}}, InvalidContext, "instance 'a': an environment maps names to texts"),
        ({"environment": {"A=B": "1"}}, InvalidContext, "no names of environment variables"),
        ({"environment": {"A": "\ud800"}}, InvalidContext, "half a surrogate pair"),
        ({"task": "a\0b"}, InvalidContext, "a null character"),
        ({"task": "x" * 3_000_000}, SpawnFailed, "longer than the system takes"),
        ({"arguments": "--verbose"}, InvalidContext, "arguments='--verbose'"),
        ({"arguments": None}, InvalidContext, "arguments=None"),
        ({"arguments": (1,)}, InvalidContext, r"arguments=\(1,\)"),
        ({"inherit": "PATH"}, InvalidContext, "inherit='PATH'"),
        ({"inherit": None}, InvalidContext, "inherit=None"),
        ({"limits": "2GB"}, InvalidContext, "limits='2GB'"),
        ({"trust": "high"}, InvalidContext, "trust='high'"),
        ({"output_bytes": -1}, InvalidContext, "output_bytes=-1"),
        ({"lossless": "yes"}, InvalidContext, "lossless='yes'"),
    ],
)
async def test_whatever_makes_a_spawn_fail_is_an_agent_error(
    wrong: dict[str, Any], kind: type[AgentError], why: str
) -> None:
    """As document 003 has it: who writes `except AgentError` gets all of it."""
    config = AgentConfig(**{"name": "a", "model_backend": "sh", "task": "x", **wrong})
    async with LocalProcessRunner() as runner:
        with pytest.raises(AgentError, match=why) as raised:
            await runner.spawn(config)
        assert type(raised.value) is kind
        assert await runner.list_agents() == []


async def test_what_is_no_configuration_and_another_system_are_agent_errors_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(InvalidContext, match=r"spawn\('claude'\)"):
        await LocalProcessRunner().spawn("claude")  # type: ignore[arg-type]
    monkeypatch.setattr(Supervisor, "_current", None)
    monkeypatch.setattr("sys.platform", "darwin")
    with pytest.raises(SpawnFailed, match=r"instance 'a' could not be started: .* which darwin has not"):
        await LocalProcessRunner().spawn(AgentConfig(name="a", model_backend="sh", task="x"))


def test_settings_that_allow_nothing_are_refused() -> None:
    with pytest.raises(UserError, match="max_concurrent_agents=0"):
        ProcessRunnerConfig(max_concurrent_agents=0)
    with pytest.raises(UserError, match="health_check_interval_secs=0"):
        ProcessRunnerConfig(health_check_interval_secs=0)


@pytest.mark.parametrize(
    "error",
    [SpawnFailed, ExecutionError, CommunicationError, NotFound, Timeout, InvalidContext, IoError, ProviderError],
    ids=lambda error: error.__name__,
)
def test_errors_are_one_family(error: type[AgentError]) -> None:
    made = error("what happened", hint="what to do")
    assert isinstance(made, AgentError)
    assert isinstance(made, SabotError)
    assert str(made) == "what happened (what to do)"
    assert isinstance(made, TimeoutError) == (error is Timeout)
    assert isinstance(made, OSError) == (error in (IoError, Timeout))


# -- backends -----------------------------------------------------------------------------------------------------------


async def test_claude_is_called_for_one_task_with_events(runner: LocalProcessRunner, programs: Path) -> None:
    config = agent("claude", "Review it", context="In C", system_prompt="Be brief", arguments=("--model", "opus"))
    handle = await runner.spawn(config)
    assert await handle.answer() == "done"
    assert called(programs) == [
        *("claude", "-p", "In C\n\nReview it", "--output-format", "stream-json", "--verbose"),
        *("--append-system-prompt", "Be brief", "--model", "opus"),
    ]
    assert handle.session_id == "c-1"
    again = await runner.spawn(agent("claude", "Go on", resume=handle.session_id))
    assert [event["type"] async for event in again.events()] == ["system", "assistant", "result"]
    assert called(programs)[-2:] == ["--resume", "c-1"]
    assert (await again.wait()).success


async def test_opencode_is_called_for_one_task_with_events(runner: LocalProcessRunner, programs: Path) -> None:
    handle = await runner.spawn(agent("opencode", "Review it", system_prompt="Be brief", resume="ses_0"))
    assert await handle.answer() == "first\nsecond"
    assert called(programs) == ["opencode", "run", "--format", "json", "--session", "ses_0", "Be brief\n\nReview it"]


async def test_without_json_streaming_their_output_is_text(programs: Path) -> None:
    async with LocalProcessRunner(ProcessRunnerConfig(enable_json_streaming=False)) as runner:
        await (await runner.spawn(agent("claude", "look"))).wait()
        assert called(programs) == ["claude", "-p", "look", "--output-format", "text"]
        await (await runner.spawn(agent("opencode", "look"))).wait()
        assert called(programs) == ["opencode", "run", "look"]


@pytest.mark.parametrize("backend", ["custom-cli", "custom"])
async def test_any_program_gets_the_task_as_its_argument(
    runner: LocalProcessRunner, programs: Path, backend: str
) -> None:
    handle = await runner.spawn(agent(backend, "the task"))
    assert await handle.answer() == "did: the task"
    assert called(programs) == ["custom", "the task"]
    await (await runner.spawn(agent(backend, "--version", arguments=("--",)))).answer()
    assert called(programs) == ["custom", "--", "--version"]


async def test_what_a_backend_cannot_be_given_is_said(runner: LocalProcessRunner, programs: Path) -> None:
    with pytest.raises(SpawnFailed, match="no-such-model: not found on PATH"):
        await runner.spawn(agent("no-such-model", "x"))
    for backend in ("claude", "opencode", "custom"):
        with pytest.raises(InvalidContext, match=f"{backend} would take a task that begins with '-' for options"):
            await runner.spawn(agent(backend, "--dangerously-skip-permissions"))
    with pytest.raises(InvalidContext, match="it is not known how custom resumes a session"):
        await runner.spawn(agent("custom", "x", resume="1"))
    with pytest.raises(InvalidContext, match="no program can be called '-cli'"):
        await runner.spawn(agent("-cli", "x"))
    with pytest.raises(InvalidContext, match="AgentConfig: task=5"):
        await runner.spawn(agent("custom", 5))  # type: ignore[arg-type]
    with pytest.raises(InvalidContext, match="an instance has no name, or no task"):
        await runner.spawn(agent("custom", ""))
    assert not (programs / "called").exists()
    assert await runner.list_agents() == []


async def test_an_answer_that_fails_says_who_has_failed(runner: LocalProcessRunner, programs: Path, shell: str) -> None:
    failed = await runner.spawn(agent("claude", "x", environment={"SUBTYPE": "error_max_turns", "IS_ERROR": "true"}))
    with pytest.raises(ProviderError, match="claude: error_max_turns: done"):
        await failed.answer()
    broken = await runner.spawn(agent("opencode", "x", environment={"BROKEN": "1"}))
    with pytest.raises(ProviderError, match=r"opencode: .*APIError"):
        await broken.answer()
    crashed = await runner.spawn(agent(shell, "echo why >&2; exit 9"))
    with pytest.raises(ExecutionError, match="instance 'tester' ended with 9: why"):
        await crashed.answer()
    limited = await runner.spawn(agent(shell, "exec sleep 1000", limits=ResourceLimits(max_runtime_secs=0.01)))
    with pytest.raises(ExecutionError, match="was ended, because it had more than its max_task_duration"):
        await limited.answer()
    assert limited.status() is AgentStatus.FAILED


# -- handles ------------------------------------------------------------------------------------------------------------


async def test_stdio_is_written_and_read_without_waiting(runner: LocalProcessRunner, shell: str) -> None:
    handle = await runner.spawn(agent(shell, "read x; echo got $x; echo err >&2; read x"))
    assert await handle.read_stdout() is None
    await handle.write_stdin(b"this\n")
    assert await first_line(handle) == "got this"
    assert await handle.read_stdout() is None
    while (err := await handle.read_stderr()) is None:  # noqa: ASYNC110
        await asyncio.sleep(0.005)
    assert err == b"err\n"
    await handle.write_stdin(b"\n")
    await handle.wait()
    assert await handle.read_stdout() is None
    with pytest.raises(CommunicationError, match="stdin of the child is closed"):
        await handle.write_stdin(b"more\n")


async def test_a_program_that_gets_its_task_as_an_argument_has_no_stdin(
    runner: LocalProcessRunner, programs: Path
) -> None:
    handle = await runner.spawn(agent("claude", "look"))
    with pytest.raises(CommunicationError, match="claude gets its task as an argument"):
        await handle.write_stdin(b"x")
    await handle.wait()
    assert (programs / "stdin").read_bytes() == b"", "it does not wait for one"


async def test_status_of_a_life(runner: LocalProcessRunner, shell: str) -> None:
    good = await runner.spawn(agent(shell, "echo up; read x"))
    assert await first_line(good) == "up"
    assert good.status() is AgentStatus.RUNNING
    await good.signal(AgentSignal.PAUSE)
    await until(lambda: good.status() is AgentStatus.PAUSED)
    await good.signal(AgentSignal.RESUME)
    await until(lambda: good.status() is AgentStatus.RUNNING)
    await good.write_stdin(b"\n")
    assert (await good.wait()).code == 0
    assert good.status() is AgentStatus.COMPLETED

    bad = await runner.spawn(agent(shell, "exit 3"))
    assert (await bad.wait()).code == 3
    assert bad.status() is AgentStatus.FAILED

    killed = await runner.spawn(agent(shell, "sleep 1000"))
    status = await killed.kill()
    assert (status.code, status.signal) == (None, signal.SIGKILL)
    assert killed.status() is AgentStatus.TERMINATED
    assert repr(killed) == f"<AgentHandle 'tester' {killed.id} Terminated>"


async def test_a_stop_that_comes_from_elsewhere_is_noticed(runner: LocalProcessRunner, shell: str) -> None:
    handle = await runner.spawn(agent(shell, "echo up; read x"))
    await first_line(handle)
    os.kill(handle.child.pid, signal.SIGSTOP)
    await until(lambda: handle.status() is AgentStatus.PAUSED)
    os.kill(handle.child.pid, signal.SIGKILL)
    assert (await handle.wait()).signal == signal.SIGKILL
    assert handle.status() is AgentStatus.FAILED, "nobody has asked for it"


@pytest.mark.parametrize(
    ("what", "caught"), [(AgentSignal.INTERRUPT, "INT"), (AgentSignal.TERMINATE, "TERM")], ids=lambda each: str(each)
)
async def test_signals_can_be_caught(runner: LocalProcessRunner, shell: str, what: AgentSignal, caught: str) -> None:
    script = "trap 'echo INT; exit 5' INT; trap 'echo TERM; exit 5' TERM; echo up; while :; do sleep 0.01; done"
    handle = await runner.spawn(agent(shell, script))
    assert await first_line(handle) == "up"
    await runner.signal(handle.id, what)
    assert await first_line(handle) == caught
    assert (await handle.wait()).code == 5
    await runner.signal(handle.id, what)


async def test_a_wait_that_is_over_leaves_the_agent_running(runner: LocalProcessRunner, shell: str) -> None:
    handle = await runner.spawn(agent(shell, "sleep 1000"))
    with pytest.raises(Timeout, match=r"instance 'tester' has not ended in 0\.01 s"):
        await handle.wait(0.01)
    assert handle.status() is AgentStatus.RUNNING
    await handle.kill()


async def test_a_shutdown_that_has_not_ended_an_agent_says_so(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its supervisor is stopped. The shutdown returned as if nothing of the agent were left."""
    runner = LocalProcessRunner()
    agent = await runner.spawn(AgentConfig(name="a", model_backend="sleep-cli", task="1000"))
    os.kill(supervisor.pid, signal.SIGSTOP)
    try:
        monkeypatch.setattr(client, "_ANSWER_SECONDS", 0.05)
        with pytest.raises(CommunicationError, match="is to end"):
            await runner.shutdown(0)
        assert runner._health is None
    finally:
        os.kill(supervisor.pid, signal.SIGCONT)
    assert (await agent.wait()).signal == signal.SIGKILL
    await runner.shutdown(0)


async def test_graceful_shutdown_lets_who_will_end_and_kills_who_will_not(
    runner: LocalProcessRunner, shell: str
) -> None:
    polite = await runner.spawn(agent(shell, "trap 'exit 0' TERM; echo up; while :; do sleep 0.01; done"))
    await first_line(polite)
    assert (await GracefulShutdown(30).shutdown(polite)).code == 0
    assert polite.status() is AgentStatus.COMPLETED
    deaf = await runner.spawn(agent(shell, "trap '' TERM; sleep 1000 & echo $!; while :; do sleep 1; done"))
    inner = int(await first_line(deaf))
    assert (await GracefulShutdown(0.05).shutdown(deaf)).signal == signal.SIGKILL
    assert deaf.status() is AgentStatus.TERMINATED
    assert not alive(inner)


# -- many ---------------------------------------------------------------------------------------------------------------


async def test_agents_are_listed_found_and_killed_by_their_ids(runner: LocalProcessRunner, shell: str) -> None:
    handles = await asyncio.gather(*(runner.spawn(agent(shell, "sleep 1000")) for _ in range(10)))
    assert len({handle.id for handle in handles}) == 10
    listed = await runner.list_agents()
    assert {each.id for each in listed} == {handle.id for handle in handles}
    assert {(each.name, each.model_backend, each.status) for each in listed} == {("tester", shell, AgentStatus.RUNNING)}
    for each in listed:
        ended = await runner.kill(each.id)
        assert ended is not None
        assert ended.signal == signal.SIGKILL
    assert await runner.kill(handles[0].id) is None
    assert {each.status for each in await runner.list_agents()} == {AgentStatus.TERMINATED}
    found = await runner.get_agent(handles[0].id)
    assert found is not None
    assert found.pid == handles[0].child.pid
    assert await runner.get_agent("nobody") is None
    with pytest.raises(NotFound, match="no instance 'nobody'"):
        await runner.kill("nobody")
    with pytest.raises(NotFound):
        await runner.signal("nobody", AgentSignal.KILL)


async def test_no_more_agents_than_allowed_run_at_once(shell: str) -> None:
    async with LocalProcessRunner.with_config(ProcessRunnerConfig(max_concurrent_agents=2)) as runner:
        spawned = await asyncio.gather(
            *(runner.spawn(agent(shell, "sleep 1000")) for _ in range(4)), return_exceptions=True
        )
        running = [each for each in spawned if isinstance(each, AgentHandle)]
        refused = [each for each in spawned if isinstance(each, SpawnFailed)]
        assert (len(running), len(refused)) == (2, 2)
        assert "max_concurrent_agents=2 run already" in str(refused[0])
        await running[0].kill()
        await runner.spawn(agent(shell, "sleep 1000"))


async def test_an_agent_costs_no_task_and_the_runner_one(shell: str) -> None:
    before = len(asyncio.all_tasks())
    async with LocalProcessRunner() as runner:
        await asyncio.gather(*(runner.spawn(agent(shell, "sleep 1000")) for _ in range(5)))
        assert len(asyncio.all_tasks()) == before + 1
    assert len(asyncio.all_tasks()) == before


@pytest.mark.slow(reason="200 processes")
async def test_200_agents(supervisor: Supervisor) -> None:
    async with LocalProcessRunner() as runner:
        for _ in range(20):
            await asyncio.gather(*(runner.spawn(agent("sleep", "1000")) for _ in range(10)))
        assert len(children_of(supervisor.pid)) == 200
        assert len(await runner.list_agents()) == 200
    assert children_of(supervisor.pid) == []


async def test_health_checks_measure_and_end_with_the_last_agent(shell: str) -> None:
    config = ProcessRunnerConfig(health_check_interval_secs=0.01)
    async with LocalProcessRunner(config) as runner:
        handle = await runner.spawn(agent(shell, "while :; do :; done"))
        await until(lambda: handle.metrics is not None and handle.metrics.cpu_usage > 0)
        assert handle.metrics is not None
        assert handle.metrics.memory_mb > 0.1
        assert handle.metrics.uptime_secs > 0
        found = await runner.get_agent(handle.id)
        assert found is not None
        assert found.metrics == handle.metrics
        await handle.kill()
        await until(lambda: len(asyncio.all_tasks()) == 1)
        await runner.spawn(agent(shell, "sleep 1000"))
        assert len(asyncio.all_tasks()) == 2


@pytest.mark.slow  # a second of a core, or more
async def test_an_agent_whose_supervisor_is_killed_has_failed(shell: str) -> None:
    async with LocalProcessRunner(ProcessRunnerConfig(health_check_interval_secs=0.01)) as runner:
        handle = await runner.spawn(agent(shell, "sleep 1000"))
        os.kill((await Supervisor.running()).pid, signal.SIGKILL)
        await until(lambda: handle.status() is AgentStatus.FAILED)
        with pytest.raises(CommunicationError, match="the supervisor of this worker's children"):
            await handle.wait()
        again = await runner.spawn(agent(shell, "exit 0"))
        assert (await again.wait()).success


# -- secrets ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def _all_logged(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    with caplog.at_level(logging.DEBUG):
        yield


@pytest.mark.usefixtures("_all_logged")
async def test_secrets_of_an_environment_are_shown_nowhere(
    runner: LocalProcessRunner, shell: str, caplog: pytest.LogCaptureFixture
) -> None:
    secret = "sesame-open-4711"
    config = agent(shell, "echo using $API_KEY >&2; exit 1", environment={"API_KEY": secret})
    handle = await runner.spawn(config)
    with pytest.raises(ExecutionError, match="using") as failed:
        await handle.answer()
    with pytest.raises(SpawnFailed) as refused:
        await runner.spawn(agent("no-such-program", "x", environment={"API_KEY": secret}))
    shown = [repr(config), repr(handle), repr(handle.child), str(await runner.list_agents()), caplog.text]
    shown += [str(failed.value), str(refused.value)]
    assert [each for each in shown if secret in each] == []
    supervisor = (await Supervisor.running()).pid
    held = [Path(f"/proc/{supervisor}/{file}").read_bytes() for file in ("cmdline", "environ")]
    assert not any(secret.encode() in each for each in held)


@pytest.mark.parametrize("what", ["KILL", "hup", signal.SIGTERM, 9, None])
async def test_what_is_no_signal_of_an_agent_is_refused(what: Any) -> None:
    """It was taken without a word, and the agent went on."""
    async with LocalProcessRunner() as runner:
        agent = await runner.spawn(AgentConfig(name="sleeper", model_backend="sleep", task="1000"))
        with pytest.raises(InvalidContext, match=r"AgentSignal\.INTERRUPT"):
            await runner.signal(agent.id, what)
        await runner.signal(agent.id, AgentSignal.KILL)
        assert (await agent.wait()).signal == signal.SIGKILL


@pytest.mark.parametrize("seconds", ["soon", None, float("inf"), float("nan")])
async def test_a_grace_that_is_no_number_is_refused_and_the_agents_go_on(seconds: Any) -> None:
    async with LocalProcessRunner() as runner:
        agent = await runner.spawn(AgentConfig(name="sleeper", model_backend="sleep", task="1000"))
        with pytest.raises(UserError):
            GracefulShutdown(seconds)
        for refused in (agent.stop, runner.shutdown):
            with pytest.raises(UserError):
                await refused(seconds)
        assert agent.status() is AgentStatus.RUNNING
        await GracefulShutdown(5).shutdown(agent)
        assert agent.status() is AgentStatus.TERMINATED


async def test_a_line_that_is_nested_too_deep_is_a_line_and_no_event() -> None:
    deep = "import sys; sys.stdout.write('[' * 200000 + chr(10) + '{}' + chr(10))"
    async with LocalProcessRunner() as runner:
        for what, found in (("events", [{}]), ("lines", ["[" * 200000, "{}"])):
            agent = await runner.spawn(
                AgentConfig(name="deep", model_backend="python3", task=deep, arguments=["-I", "-S", "-c"])
            )
            assert [each async for each in getattr(agent, what)()] == found
