"""Agents that are programs: a child for each record, whose lines are results; what is refused, what fails, what crashes."""

import asyncio
import contextlib
import http.client
import json
import os
import signal
import sqlite3
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from sabot import App, SqlSink, UserError
from sabot.agents import ActionRecord, ActionStatus, ConstraintPolicy, PolicyEngine, ToolPolicy
from sabot.connectors.memory import MemoryBroker
from sabot.errors import AgentFailed, CheckpointFailed
from sabot.process import HealthConfig, ResourceLimits, Sandbox, SandboxSupport, SandboxUnavailable, Supervisor
from sabot.process.sandbox import levels
from tools.agent_tools import bounded, checkpoint, processed, publish, records, started, until, values

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="children are owned on Linux only"),
    pytest.mark.usefixtures("no_child_afterwards"),
]

CLAUDE = """#!/bin/sh
for each in "$@"; do echo "[$each]" >> "$CALLED"; done
echo '{"type": "system", "session_id": "c-1"}'
echo
echo '{"type": "result", "result": "done"}'
"""


@pytest.fixture
def app(memory_url: str, tmp_path: Path) -> App:
    return App("works", memory_url, state=str(tmp_path / "state"), checkpoint_interval=3600)


def headers(app: App, topic: str = "lines") -> list[dict[str, bytes]]:
    return [dict(record.headers) for record in records(app, topic)]


def messages(app: App) -> list[str]:
    """What the dead letters say of their errors."""
    return [each["sabot.message"].decode() for each in headers(app, "tasks.dlq")]


@pytest.mark.one_in(3, "a tenth of a second of a core each")
@pytest.mark.parametrize("way", [{"stdin": True}, {"pool": 1}, {"stdin": True, "durable": True}])
@pytest.mark.parametrize(
    "policy",
    [
        PolicyEngine([ToolPolicy(["runner"], denied=True)]),
        PolicyEngine([ConstraintPolicy(["runner"], "stdin", max_length=3)]),
        PolicyEngine([], default="deny"),
    ],
    ids=["denied", "bound", "default"],
)
async def test_each_run_of_a_program_is_judged_by_the_name_of_its_agent(
    memory_url: str, tmp_path: Path, way: dict[str, Any], policy: PolicyEngine
) -> None:
    """Without `durable=True` the program ran past every rule that named it."""
    app = App("works", memory_url, state=str(tmp_path / "state"), checkpoint_interval=3600, policy=policy)
    program = [
        sys.executable,
        "-uc",
        f"import sys\nfor line in sys.stdin: open({str(tmp_path / 'ran')!r}, 'a').write(line)",
    ]
    app.process_agent("tasks", command=program, name="runner", sink="lines", on_error="skip", **way)
    publish(app, "tasks", [{"task": "hello"}])
    async with started(app):
        await until(lambda: len(records(app, "tasks.dlq")) == 1)
    assert "runner was not" in messages(app)[0]
    assert not (tmp_path / "ran").exists()


async def test_a_rule_that_asks_about_a_program_without_jobs_refuses_the_start(memory_url: str, tmp_path: Path) -> None:
    policy = PolicyEngine([ToolPolicy(["runner"], require_approval=True)])
    app = App("works", memory_url, state=str(tmp_path / "state"), policy=policy)
    app.process_agent("tasks", command=["cat"], name="runner", stdin=True, sink="lines")
    with pytest.raises(UserError, match="would ask a person about the tool runner"):
        await app.start()


async def test_an_app_whose_programs_cannot_be_confined_does_not_start(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing = SandboxSupport(frozenset(), dict.fromkeys(levels.MEANS, "not here"))
    monkeypatch.setattr(levels, "available", lambda: nothing)
    app.process_agent("tasks", command=["id", "-u"], sink="lines", trust="trusted")
    with pytest.raises(SandboxUnavailable, match="id: trust='trusted' demands what this system does not have"):
        await app.start()
    with pytest.raises(UserError, match="process_agent other: trust='high'"):
        app.process_agent("tasks", command=["id", "-u"], name="other", trust="high")


@pytest.mark.one_in(2, "a tenth of a second of a core each")
@pytest.mark.parametrize("programs", ["one agent, two records", "two agents, over a restart"])
async def test_what_one_record_has_planted_leads_the_next_one_out_of_no_sandbox(
    app: App, tmp_path: Path, programs: str
) -> None:
    """A program replaces a folder in its own by a link; the next one has that folder as its own."""
    if not {"user", "mounts", "filter", "writes"} <= levels.available().there:
        pytest.skip("this system does not have the means")
    (tmp_path / "home").mkdir()
    (tmp_path / "home/secret").write_text("theirs")
    (tmp_path / "home/secret").chmod(0o600)
    (tmp_path / "repo/docs").mkdir(parents=True)
    shell = {"command": ["sh", "-c", 'eval "$1"', "sh", "{script}"], "on_error": "skip", "sink": "lines"}
    plant = {"script": f"cd {tmp_path}/repo && rmdir docs && ln -s {tmp_path}/home docs && echo planted"}
    write = {"script": "echo mine > secret && echo wrote"}
    both = Sandbox(level="trusted", writable=[tmp_path / "repo"])
    if programs == "one agent, two records":
        app.process_agent("tasks", **shell, trust=both, working_dir=tmp_path / "repo/docs")
        publish(app, "tasks", [plant, write])
    else:  # the link is there since the last run, and the second program is started first
        (tmp_path / "repo/docs").rmdir()
        (tmp_path / "repo/docs").symlink_to(tmp_path / "home")
        app.process_agent("others", **shell, name="first", trust="trusted", working_dir=tmp_path / "repo")
        app.process_agent("tasks", **shell, name="second", trust="trusted", working_dir=tmp_path / "repo/docs")
        publish(app, "tasks", [write])
    async with started(app):
        await until(lambda: len(messages(app)) == 1)
    assert f"'{tmp_path}/repo/docs' is a symbolic link to '{tmp_path}/home'" in messages(app)[0]
    assert "wrote" not in values(app, "lines")
    assert (tmp_path / "home/secret").read_text() == "theirs"


@pytest.mark.parametrize("pool", [None, 1])
async def test_a_program_in_a_sandbox(app: App, pool: int | None) -> None:
    command = ["sh", "-c", "while read -r record; do grep ^NoNewPrivs /proc/self/status; done"]
    anyhow = Sandbox(level="trusted", allow_degraded=True)
    app.process_agent("tasks", command=command, sink="lines", stdin=True, pool=pool, trust=anyhow)
    publish(app, "tasks", [{"task": "x"}])
    async with started(app):
        await until(lambda: len(records(app, "lines")) == 1)
    assert values(app, "lines") == ["NoNewPrivs:\t1"]


@pytest.mark.parametrize("pool", [None, 1])
async def test_a_program_that_is_stopped_is_told_on_the_metrics_port(
    app: App, tmp_path: Path, pool: int | None
) -> None:
    script = "while read -r record; do while [ ! -e go ]; do sleep 0.005; done; echo done; done"
    command = ["sh", "-c", script]
    app.process_agent("tasks", command=command, sink="lines", stdin=True, pool=pool, working_dir=tmp_path)
    app.health.config = HealthConfig(liveness_interval_secs=0.01, readiness_interval_secs=0.01)
    app.configure(metrics_port=0)
    publish(app, "tasks", [{"task": "x"}])
    async with started(app):
        port = app.statistics()["metrics"]["port"]
        assert await asked(port, "/healthz") == (
            200,
            {"app": "works", "healthy": True, "why": "", "processes": {"works.process": ""}},
        )
        supervisor = await Supervisor.running()
        await until(lambda: any(child.pid for child in supervisor.children))
        (child,) = supervisor.children
        os.kill(child.pid, signal.SIGSTOP)
        why = f"its process {child.pid} is stopped (SIGSTOP)"
        status, report = await answers(port, "/healthz", 503)
        assert (status, report["why"]) == (503, f"instance works.process does not live: {why}")
        status, report = await answers(port, "/ready", 503)
        assert (status, report["processes"]) == (503, {"works.process": why})
        _, figures = await asked(port, "/metrics")
        assert 'sabot_process_stuck{agent="works.process",app="works"} 1.0' in figures
        os.kill(child.pid, signal.SIGCONT)
        (tmp_path / "go").touch()
        await until(lambda: values(app, "lines") == ["done"])
        for path in ("/healthz", "/ready"):
            await answers(port, path, 200)
        _, figures = await asked(port, "/metrics")
        assert 'sabot_process_requests_total{agent="works.process",app="works"} 1.0' in figures


async def asked(port: int, path: str) -> tuple[int, Any]:
    def ask() -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        connection.request("GET", path)
        answer = connection.getresponse()
        body = answer.read().decode()
        connection.close()
        return answer.status, json.loads(body) if path != "/metrics" else body

    return await asyncio.to_thread(ask)


async def answers(port: int, path: str, status: int) -> tuple[int, Any]:
    """What the path answers, once it is with this status."""
    async with asyncio.timeout(60):
        while (found := await asked(port, path))[0] != status:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    return found


# -- what a program gets, and gives --------------------------------------------------------------------------------------


async def test_fields_fill_words_without_a_shell_and_lines_are_results(app: App) -> None:
    command = ["printf", "%s\\n", "{task}", "{n}", "{{{place.city}}}", "{flag}-{of}", "plain"]
    app.process_agent("tasks", command=command, sink="lines")
    publish(
        app, "tasks", [{"task": "$(id); *", "n": -1, "place": {"city": "Graz é"}, "flag": True, "of": [1, 2]}], key=b"k"
    )
    async with started(app):
        await until(lambda: len(records(app, "lines")) == 5)
    assert values(app, "lines") == ["$(id); *", "-1", "{Graz é}", "true-[1,2]", "plain"]
    assert {record.key for record in records(app, "lines")} == {b"k"}
    assert headers(app)[1] == {
        "process.agent": b"works.process",
        "process.job": b"tasks[0]@0",
        "process.line": b"2",
    }


async def test_the_record_is_json_on_stdin_and_the_last_result_says_how_it_ended(app: App) -> None:
    script = "cat; pwd; echo $WORD; exit 3"
    options: dict[str, Any] = {"stdin": True, "exit_record": True, "exit_codes": (0, 3)}
    app.process_agent(
        "tasks", command=["sh", "-c", script], sink="lines", environment={"WORD": "hi"}, working_dir="/", **options
    )
    publish(app, "tasks", [{"task": "x" * 200_000}])
    async with started(app):
        await until(lambda: len(records(app, "lines")) == 4)
    record, folder, word, end = values(app, "lines")
    assert json.loads(record) == {"task": "x" * 200_000}
    assert (folder, word, end["exit"], end["lines"]) == ("/", "hi", 3, 3)
    assert headers(app)[3]["process.exit"] == b"3"


async def test_lines_that_are_no_json_are_skipped_and_counted_if_the_agent_says_so(
    app: App, caplog: pytest.LogCaptureFixture
) -> None:
    script = r"""printf 'Warning: old\n\n{{"n": 1}}\n[trace] {{\n2\n'"""
    app.process_agent(
        "tasks", command=["sh", "-c", script], lines="json", noise="skip", exit_record=True, sink="lines", live="live"
    )
    publish(app, "tasks", [{}])
    async with started(app):
        await until(lambda: len(records(app, "lines")) == 3)
    one, two, end = values(app, "lines")
    assert (one, two, end["lines"], end["skipped"]) == ({"n": 1}, 2, 5, 2)
    assert [dict(each.headers)["process.line"] for each in records(app, "lines")[:2]] == [b"3", b"5"]
    assert values(app, "live") == [{"n": 1}, 2]
    assert "2 of 5 lines for tasks[0]@0 are no JSON" in caplog.text


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"noise": "skip"}, "noise='skip' without lines='json'"),
        ({"noise": "skip", "lines": "json", "pool": 1}, "noise='skip' with pool="),
        ({"noise": "drop", "lines": "json"}, "noise"),
    ],
)
def test_noise_that_cannot_be_skipped_is_refused(app: App, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=f"process_agent process: {words}"):
        app.process_agent("tasks", command=["cat"], **options)


async def test_a_program_need_not_read_its_stdin(app: App) -> None:
    app.process_agent("tasks", command=["echo", "done"], sink="lines", stdin=True)
    publish(app, "tasks", [{"task": "x" * 500_000}])
    async with started(app):
        await until(lambda: values(app, "lines") == ["done"])


async def test_claude_is_called_with_the_task_and_its_json_lines_are_results(
    app: App, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "claude").write_text(CLAUDE)
    (tmp_path / "claude").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    called = tmp_path / "called"
    command = ["claude", "-p", "Do: {task}", "--output-format", "stream-json"]
    app.process_agent(
        "tasks",
        command=command,
        sink="lines",
        lines="json",
        limits=ResourceLimits(max_memory_mb=2048, max_runtime_secs=600),
        environment={"CALLED": str(called)},
        durable=True,
    )
    publish(app, "tasks", [{"task": "review"}])
    async with started(app):
        await until(lambda: len(records(app, "lines")) == 2)
    assert [each["type"] for each in values(app, "lines")] == ["system", "result"]
    assert [each["process.line"] for each in headers(app)] == [b"1", b"3"], "an empty line is no value"
    assert called.read_text().split("\n")[:2] == ["[-p]", "[Do: review]"]


async def test_many_lines_come_in_order_and_other_agents_take_them(app: App) -> None:
    taken = []

    @app.agent()
    async def take(ctx: Any) -> None:
        taken.append(ctx.message)

    app.process_agent("tasks", command=["seq", "{to}"], sink=take, name="count")
    publish(app, "tasks", [{"to": 5000}])
    async with started(app):
        await until(lambda: len(taken) == 5000)
    assert taken == [str(number) for number in range(1, 5001)]


# -- records that are none for it ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("durable", [False, True])
async def test_a_record_that_does_not_fill_the_command_is_a_dead_letter(app: App, durable: bool) -> None:
    missing = "'task', which the command has, is missing or null"
    bad: list[tuple[Any, str]] = [
        ({}, missing),
        ({"task": None}, missing),
        ("text", missing),
        ({"task": "--dangerous"}, "would take for an option"),
        ({"task": "a\0b"}, "a null character"),
        ({"task": "x" * 131_072}, "has 131,072 bytes"),
    ]
    app.process_agent("tasks", command=["echo", "{task}"], sink="lines", durable=durable)
    publish(app, "tasks", [*(task for task, _ in bad), {"task": "good"}])
    async with started(app):
        await until(lambda: values(app, "lines") == ["good"] and len(messages(app)) == len(bad))
    assert [why for (_, why), said in zip(bad, messages(app), strict=True) if why not in said] == []
    assert {each["sabot.error"] for each in headers(app, "tasks.dlq")} == {b"DataError"}


async def test_behind_two_dashes_a_value_is_no_option(app: App) -> None:
    app.process_agent("tasks", command=["printf", "--", "{task}"], sink="lines")
    publish(app, "tasks", [{"task": "-e"}])
    async with started(app):
        await until(lambda: values(app, "lines") == ["-e"])


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"command": ["echo", "{}"]}, "names no field"),
        ({"command": ["echo", "{0}"]}, "names no field"),
        ({"command": ["echo", "{a[b]}"]}, "names no field"),
        ({"command": ["echo", "{a!r}"]}, "names no field"),
        ({"command": ["echo", '{"a": 1}']}, "names no field"),
        ({"command": ["echo", "{task"]}, "expected '}'"),
        ({"command": ["{task}"]}, "would be named by a record"),
        ({"command": ["/bin/sh", "-ec", "echo {task}"]}, "part of the script"),
        ({"command": "echo hi"}, "a sequence of words"),
        ({"command": []}, "a sequence of words"),
        ({"command": ["echo", "{other}"], "schema": {"task": "string"}}, "no field of schema="),
        ({"lines": "xml"}, "lines='xml'"),
        ({"limits": 5}, "limits=5"),
        ({"timeout": 0}, "timeout=0"),
        ({"exit_codes": ()}, r"exit_codes=\(\)"),
        ({"effect": "idempotent"}, "are of durable agents"),
        ({"durable": True, "effect": "safe"}, "safe"),
        ({"durable": True, "on_error": "retry"}, "of a program whose effect is 'unsafe'"),
        ({"batch": True}, "no option batch"),
        ({"retrys": 1}, "no option retrys"),
    ],
)
def test_a_declaration_that_cannot_be_is_refused(app: App, options: dict[str, Any], why: str) -> None:
    with pytest.raises(UserError, match=why):
        app.process_agent("tasks", **{"command": ["echo", "{task}"], **options})


# -- programs that end badly ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("durable", [False, True])
async def test_an_exit_code_is_an_error_with_the_last_lines_of_stderr_without_secrets(app: App, durable: bool) -> None:
    script = "echo lost; seq 50 >&2; echo the key is $API_KEY >&2; exit 7"
    environment = {"API_KEY": "sk-0123456789abcdef"}
    app.process_agent(
        "tasks", command=["sh", "-c", script], sink="lines", environment=environment, on_error="skip", durable=durable
    )
    publish(app, "tasks", [{"task": "one"}])
    async with started(app):
        await until(lambda: messages(app))
    assert records(app, "lines") == []
    (said,) = messages(app)
    assert "sh ended with 7:" in said
    assert said.endswith("49\n50\nthe key is ***")
    assert "\n41\n" not in said


@pytest.mark.one_in(2, "a tenth of a second of a core each")
@pytest.mark.parametrize("durable", [False, True])
async def test_a_program_that_ends_badly_is_an_error_of_the_agent(app: App, durable: bool) -> None:
    bad: list[tuple[list[str], dict[str, Any], str]] = [
        (["sleep", "1000"], {"timeout": "50ms"}, "sleep has not ended in 0.05 s, and was ended"),
        (["sleep", "1000"], {"limits": ResourceLimits(max_runtime_secs=0.1)}, "more than its max_task_duration"),
        (["yes"], {"limits": ResourceLimits(max_output_bytes=1000)}, "more than its max_output_bytes"),
        (["yes"], {}, "because it wrote more than 10 MB, or 100,000 lines"),
        (["head", "-c", "20000000", "/dev/zero"], {}, "because it wrote more than 10 MB, or 100,000 lines"),
        (["sh", "-c", "kill -9 $$"], {}, "ended by signal 9"),
        (["no-such-program"], {}, "not found on PATH"),
        (["echo", "no json"], {"lines": "json"}, "line 1 is not JSON: 'no json'"),
    ]
    for number, (command, options, _) in enumerate(bad):
        wiring: dict[str, Any] = {"sink": "lines", "on_error": "skip", "durable": durable, **options}
        app.process_agent(f"tasks{number}", command=command, name=f"agent{number}", dead_letter="tasks.dlq", **wiring)
        publish(app, f"tasks{number}", [{"task": "one"}])
    async with started(app):
        await until(lambda: len(messages(app)) == len(bad))
    said = {each["sabot.topic"].decode(): each["sabot.message"].decode() for each in headers(app, "tasks.dlq")}
    assert {
        number: said[f"tasks{number}"] for number, (_, _, why) in enumerate(bad) if why not in said[f"tasks{number}"]
    } == {}
    assert records(app, "lines") == []


async def test_an_error_ends_the_agent_where_nothing_else_is_said(app: App) -> None:
    app.process_agent("tasks", command=["false"])
    publish(app, "tasks", [{"task": "one"}])
    with pytest.raises(AgentFailed, match="false ended with 1"):
        await bounded(app.run())


@pytest.mark.parametrize("durable", [False, True])
async def test_a_program_that_has_failed_is_run_again_on_request(app: App, tmp_path: Path, durable: bool) -> None:
    script = "echo run >> runs; [ $(wc -l < runs) -gt 1 ] && echo good"
    options: dict[str, Any] = {"on_error": "retry", "backoff": "1ms", "durable": durable}
    options |= {"effect": "idempotent"} if durable else {}
    app.process_agent("tasks", command=["sh", "-c", script], sink="lines", working_dir=tmp_path, **options)
    publish(app, "tasks", [{"task": "one"}])
    async with started(app):
        await until(lambda: values(app, "lines") == ["good"])
    assert (tmp_path / "runs").read_text() == "run\nrun\n"


# -- crashes -------------------------------------------------------------------------------------------------------------


class Runs:
    """An app in a directory, again and again, and how often its program was run."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url, self.folder = url, folder
        (folder / "go").touch()

    def app(self, **options: Any) -> App:
        app = App("works", self.url, state=str(self.folder / "state"), checkpoint_interval=3600)
        script = 'echo "$1" >> runs; [ -e go ] || exec sleep 1000; echo "did $1"'
        options = {"sink": "lines", "working_dir": self.folder, "name": "work", **options}
        app.process_agent("tasks", **{"command": ["sh", "-c", script, "sh", "{task}"], **options})
        return app

    def runs(self) -> list[str]:
        path = self.folder / "runs"
        return path.read_text().split() if path.exists() else []

    def hang(self) -> None:
        (self.folder / "go").unlink()

    def go(self) -> None:
        (self.folder / "go").touch()


@pytest.fixture
def runs(memory_url: str, tmp_path: Path) -> Runs:
    return Runs(memory_url, tmp_path)


async def crash(app: App) -> None:
    """The next start finds the journal as it is now, and no later checkpoint than there is."""
    app.agent_runtime.checkpoint_coordinator.refuse("the process died")
    with pytest.raises(CheckpointFailed):
        await app.stop()


def lines(runs: Runs) -> list[Any]:
    return [record.value for record in MemoryBroker.get(runs.url).records("lines")]


async def question(app: App) -> ActionRecord:
    while True:
        for each in await app.actions.find(statuses=[ActionStatus.PENDING]):
            return each
        await asyncio.sleep(0.002)


@pytest.mark.one_in(2, "a tenth of a second of a core each")
@pytest.mark.parametrize(("durable", "times"), [(False, 2), (True, 1)])
async def test_a_run_whose_end_is_in_the_journal_is_not_repeated(runs: Runs, durable: bool, times: int) -> None:
    app = runs.app(durable=durable)
    await app.start()
    await checkpoint(app)  # the first one, which comes by itself, might have the record
    publish(app, "tasks", [{"task": "one"}])
    await until(lambda: lines(runs) == ["did one"])
    await crash(app)
    async with started(app := runs.app(durable=durable)):
        await until(lambda: lines(runs) == ["did one", "did one"])  # as this sink is not transactional
        await checkpoint(app)
    assert runs.runs() == ["one"] * times


@pytest.mark.slow  # half a second of a core
async def test_lines_come_from_the_journal_so_that_their_rows_are_exactly_once(runs: Runs) -> None:
    script = 'echo "$1" >> runs; printf \'{{"pid": %d, "task": "%s"}}\' $$ "$1"'
    table = f"sqlite:///{runs.folder / 'rows.db'}"
    columns = pa.schema([("pid", pa.int64()), ("task", pa.string())])

    def app() -> App:
        sink = SqlSink(table, table="said", schema=columns)
        return runs.app(durable=True, lines="json", command=["sh", "-c", script, "sh", "{task}"], sink=sink)

    def rows() -> list[Any]:
        with contextlib.closing(sqlite3.connect(runs.folder / "rows.db")) as database:
            return database.execute("SELECT task, pid FROM said").fetchall()

    async def delivered(by: App, count: int) -> None:
        while len(rows()) < count:  # a row is delivered behind the checkpoint that has the end of its job
            await checkpoint(by)

    first = app()
    await first.start()
    publish(first, "tasks", [{"task": "one"}])
    await until(lambda: processed(first, "work") == 1)
    await bounded(delivered(first, 1))
    (before,) = rows()
    publish(first, "tasks", [{"task": "two"}])
    await until(lambda: processed(first, "work") == 2)
    await crash(first)
    assert rows() == [before], "that of the second one was not committed"
    second = app()
    async with started(second):
        publish(second, "tasks", [{"task": "three"}])
        await bounded(delivered(second, 3))
    assert [task for task, _ in rows()] == ["one", "two", "three"]
    assert rows()[0] == before
    assert runs.runs() == ["one", "two", "three"]


async def test_a_stop_ends_the_child_and_the_record_is_read_again(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sabot.engine.runtime.agents.local_agents._GRACE_SECONDS", 0.0)
    runs.hang()
    app = runs.app()
    await app.start()
    publish(app, "tasks", [{"task": "one"}])
    await until(lambda: runs.runs() == ["one"])
    await app.stop()
    assert (await Supervisor.running()).children == []
    runs.go()
    async with started(runs.app()):
        await until(lambda: lines(runs) == ["did one"])
    assert runs.runs() == ["one", "one"]


@pytest.mark.one_in(2, "a second of a core each")
@pytest.mark.parametrize("effect", ["unsafe", "idempotent"])
async def test_a_run_that_dies_with_its_supervisor_is_in_doubt(runs: Runs, effect: str) -> None:
    runs.hang()
    app = runs.app(durable=True, effect=effect, on_error="skip")
    async with started(app):
        publish(app, "tasks", [{"task": "one"}])
        await until(lambda: runs.runs() == ["one"])
        os.kill((await Supervisor.running()).pid, 9)
        if effect == "unsafe":
            action = await bounded(question(app))
            assert action.type == "in_doubt"
            await app.actions.resolve(action.resume_token, {"outcome": "done", "result": ["seen", "by eye"]})
            await until(lambda: lines(runs) == ["seen", "by eye"])
            assert runs.runs() == ["one"]
        else:
            await until(lambda: len(records(app, "tasks.dlq")) == 1)
            assert "supervisor" in messages(app)[0]


@pytest.mark.parametrize(
    "command",
    [
        ["env", "sh", "-c", "echo {task}"],
        ["env", "-i", "A=b", "/bin/bash", "-ec", "echo {task}"],
        ["timeout", "5", "sh", "-o", "errexit", "-c", "echo {task}"],
        ["nice", "-n", "5", "zsh", "-c", "{task}"],
        ["find", ".", "-exec", "sh", "-c", "{task}", ";"],
        ["busybox", "sh", "-c", "{task}"],
        ["sh", "--", "-c", "{task}"],
        ["su", "root", "-c", "{task}"],
        ["su", "--command={task}"],
        ["flock", "lock", "-c", "{task}"],
        ["/usr/bin/python3.11", "-c", "print('{task}')"],
        ["python3", "-c{task}"],
        ["perl", "-ne", "{task}"],
        ["node", "--eval", "{task}"],
    ],
)
def test_a_record_is_no_part_of_a_script_behind_another_program(app: App, command: list[str]) -> None:
    """Behind `timeout 60` a record was a part of a shell's script, which ran what its sender had written."""
    with pytest.raises(UserError, match="part of the script of"):
        app.process_agent("tasks", command=command)


@pytest.mark.parametrize(
    "command",
    [["env", "{task}"], ["timeout", "-k", "5", "10s", "./{task}"], ["env", "A={task}", "nice", "-n", "5", "{task}"]],
)
def test_a_record_names_no_program_behind_another_one(app: App, command: list[str]) -> None:
    with pytest.raises(UserError, match=f"behind {command[0]} would be named by a record"):
        app.process_agent("tasks", command=command)


@pytest.mark.parametrize(
    "command",
    [
        ["timeout", "60", "sh", "-c", 'grep "$1" log', "sh", "{task}"],
        ["env", "A={task}", "grep", "{task}", "log"],
        ["python3", "-c", "import sys; print(sys.argv)", "{task}"],
        ["python3", "read.py", "{task}"],
        ["grep", "-c", "{task}", "log"],
        ["nice", "-n", "5", "grep", "-e", "{task}"],
        ["node", "read.js", "Task: {task}"],
    ],
)
def test_a_record_is_an_argument_of_a_program_and_of_a_script(app: App, command: list[str]) -> None:
    app.process_agent("tasks", command=command)
