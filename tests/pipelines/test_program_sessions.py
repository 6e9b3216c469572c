"""Programs that keep sessions go on with them when they were cut off, and lines are told as they come."""

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from sabot import App, UserError
from sabot.agents import ActionRecord, ActionStatus, ConstraintPolicy, PolicyEngine, ToolPolicy
from sabot.agents.programs.runs import LiveLines, RunId
from sabot.errors import BrokerUnavailable, CheckpointFailed
from sabot.jobs.host import JobHost
from sabot.process import Supervisor
from tools.agent_tools import bounded, publish, records, started, until, values

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="children are owned on Linux only"),
    pytest.mark.usefixtures("no_child_afterwards"),
]

# Names its session at once, or hangs before; says what it did when there is a file "go".
PROGRAM = """#!/bin/sh
echo "$*" >> called
[ -e silent ] && exec sleep 1000
echo '{"type": "%(first)s", "%(field)s": "ses-1"}'
[ -e bad ] && { echo "no credits" >&2; exit 3; }
[ -e go ] || exec sleep 1000
echo '{"type": "result", "result": "done"}'
"""
FIELDS = {"claude": "session_id", "opencode": "sessionID", "other": "session_id"}
COMMANDS = {
    "claude": ["claude", "-p", "Do: {task}", "--output-format", "stream-json", "--verbose"],
    "opencode": ["opencode", "run", "--format", "json", "Do: {task}"],
    "other": ["other", "{task}"],
}
RESUMES = {
    "claude": ["claude", "-p", "Go on", "--resume", "{session}", "--output-format", "stream-json", "--verbose"],
    "opencode": ["opencode", "run", "--format", "json", "--session", "{session}", "Go on"],
    "other": ["other", "--session={session}", "{task}"],
}
FIRST = {"claude": "-p Do: it --output", "opencode": "run --format json Do: it", "other": "it"}
RESUMED = {
    "claude": "-p Go on --resume ses-1 --output-format stream-json --verbose",
    "opencode": "run --format json --session ses-1 Go on",
    "other": "--session=ses-1 it",
}


class Works:
    """An app in a directory, again and again, with programs on its PATH."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url, self.folder = url, folder

    def app(self, program: str = "claude", *, policy: PolicyEngine | None = None, **options: Any) -> App:
        app = App("works", self.url, state=str(self.folder / "state"), checkpoint_interval=3600, policy=policy)
        given: dict[str, Any] = {"command": COMMANDS[program], "resume": RESUMES[program], "lines": "json"}
        given |= {"working_dir": self.folder, "durable": True, "sink": "lines", "name": "work"}
        app.process_agent("tasks", **{**given, **options})
        return app

    def make(self, name: str) -> None:
        (self.folder / name).touch()

    def called(self) -> list[str]:
        path = self.folder / "called"
        return path.read_text().splitlines() if path.exists() else []


@pytest.fixture
def works(memory_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Works:
    for name, field in FIELDS.items():
        (tmp_path / name).write_text(PROGRAM % {"first": "system" if name == "claude" else "text", "field": field})
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr("sabot.engine.runtime.agents.local_agents._GRACE_SECONDS", 0.0)
    monkeypatch.setitem(JobHost.__init__.__kwdefaults__, "stop_grace_s", 0.0)
    return Works(memory_url, tmp_path)


async def crash(app: App) -> None:
    """The next start finds the journal as it is now, and no later checkpoint than there is."""
    app.agent_runtime.checkpoint_coordinator.refuse("the process died")
    with pytest.raises(CheckpointFailed):
        await app.stop()


async def session_known(app: App, jobs: int = 1) -> None:
    """The journal has it: so many jobs wait for the ends of their runs."""
    while True:
        found = await app.jobs.find()
        if sum(job.effects >= 2 for job in found) == jobs:
            return
        await asyncio.sleep(0.01)


async def question(app: App) -> ActionRecord:
    while True:
        for each in await app.actions.find(statuses=[ActionStatus.PENDING]):
            return each
        await asyncio.sleep(0.002)


def kinds(app: App) -> list[str]:
    return [value["type"] for value in values(app, "lines")]


# -- sessions ------------------------------------------------------------------------------------------------------------


async def test_a_run_that_is_not_cut_off_is_made_once(works: Works) -> None:
    works.make("go")
    async with started(app := works.app()):
        publish(app, "tasks", [{"task": "it"}])
        await until(lambda: kinds(app) == ["system", "result"])
    (called,) = works.called()
    assert called.startswith(FIRST["claude"])


@pytest.mark.one_in(3, "a tenth of a second of a core each")
@pytest.mark.parametrize("program", COMMANDS)
async def test_a_run_that_was_cut_off_goes_on_with_its_session(works: Works, program: str) -> None:
    app = works.app(program)
    await app.start()
    publish(app, "tasks", [{"task": "it"}])
    await bounded(session_known(app))
    await crash(app)
    assert (await Supervisor.running()).children == []
    works.make("go")
    async with started(app := works.app(program)):
        await until(lambda: len(records(app, "lines")) == 2)
        assert await app.actions.find(statuses=[ActionStatus.PENDING]) == []
    first, resumed = works.called()
    assert first.startswith(FIRST[program])
    assert resumed == RESUMED[program]


async def test_it_may_be_cut_off_again_and_again(works: Works) -> None:
    app = works.app()
    await app.start()
    publish(app, "tasks", [{"task": "it"}])
    for times in range(1, 4):
        await until(lambda times=times: len(works.called()) == times)  # type: ignore[misc]
        await bounded(session_known(app))
        await crash(app)
        if times == 3:
            works.make("go")
        app = works.app()
        await app.start()
    await until(lambda: kinds(app) == ["system", "result"])
    await app.stop()
    assert works.called()[1:] == [RESUMED["claude"]] * (len(works.called()) - 1)


@pytest.mark.parametrize("count", [12, pytest.param(100, marks=pytest.mark.slow(reason="two hundred programs"))])
async def test_each_job_of_each_tenant_goes_on_with_a_session_of_its_own(works: Works, count: int) -> None:
    script = works.folder / "own"
    script.write_text(
        '#!/bin/sh\necho "$*" >> called\necho "{\\"session_id\\": \\"of $1\\"}"\n[ -e go ] || exec sleep 1000\n'
    )
    script.chmod(0o755)
    options: dict[str, Any] = {"command": ["own", "{task}"], "resume": ["own", "{task}", "with", "{session}"]}
    options |= {"concurrency": count, "scope": "tenant"}
    tasks = [{"task": f"task{number}", "tenant": f"tenant{number}"} for number in range(count)]
    await (app := works.app(**options)).start()
    publish(app, "tasks", tasks)
    await bounded(session_known(app, count))
    await crash(app)
    works.make("go")
    async with started(app := works.app(**options)):
        await until(lambda: len(records(app, "lines")) == count)
    names = [each["task"] for each in tasks]
    assert sorted(works.called()) == sorted([*names, *(f"{name} with of {name}" for name in names)])
    assert sorted(value["session_id"] for value in values(app, "lines")) == sorted(f"of {name}" for name in names)


@pytest.mark.slow  # half a second of a core
async def test_when_the_supervisor_is_killed_the_session_goes_on(works: Works) -> None:
    async with started(app := works.app()):
        publish(app, "tasks", [{"task": "it"}])
        await bounded(session_known(app))
        works.make("go")
        os.kill((await Supervisor.running()).pid, 9)
        await until(lambda: kinds(app) == ["system", "result"])
    assert works.called()[1:] == [RESUMED["claude"]]


async def test_before_its_session_is_known_a_run_is_in_doubt(works: Works) -> None:
    works.make("silent")
    async with started(app := works.app()):
        publish(app, "tasks", [{"task": "it"}])
        await until(works.called)
        os.kill((await Supervisor.running()).pid, 9)
        action = await bounded(question(app))
        assert action.type == "in_doubt"
        await app.actions.resolve(action.resume_token, {"outcome": "done", "result": ['{"type": "by eye"}']})
        await until(lambda: kinds(app) == ["by eye"])
    assert len(works.called()) == 1


async def test_a_person_may_know_the_session(works: Works) -> None:
    works.make("silent")
    async with started(app := works.app()):
        publish(app, "tasks", [{"task": "it"}])
        await until(works.called)
        os.kill((await Supervisor.running()).pid, 9)
        action = await bounded(question(app))
        (works.folder / "silent").unlink()
        works.make("go")
        await app.actions.resolve(action.resume_token, {"outcome": "done", "result": {"session": "ses-1"}})
        await until(lambda: kinds(app) == ["system", "result"])
    assert works.called()[1:] == [RESUMED["claude"]]


async def test_a_run_that_ends_badly_has_failed_and_is_not_resumed(works: Works) -> None:
    works.make("bad")
    async with started(app := works.app(on_error="skip")):
        publish(app, "tasks", [{"task": "it"}])
        await until(lambda: records(app, "tasks.dlq"))
    (said,) = [dict(each.headers)["sabot.message"].decode() for each in records(app, "tasks.dlq")]
    assert "claude ended with 3:\nno credits" in said
    assert len(works.called()) == 1


# -- rules ----------------------------------------------------------------------------------------------------------------

ASKS = ToolPolicy(["work"], require_approval=True)


@pytest.mark.parametrize(
    ("rule", "why"),
    [
        (ToolPolicy(["work"], denied=True), "tool work is denied"),
        (ConstraintPolicy(["work"], "argv.*", denied=["--resume"]), "argv.* is '--resume', which is denied"),
    ],
)
async def test_a_rule_about_a_program_judges_its_next_run_too(works: Works, rule: Any, why: str) -> None:
    """The program was started again behind a crash, though a rule denied it by then."""
    app = works.app(policy=PolicyEngine([ToolPolicy(["work"], warn=True)]))
    await app.start()
    publish(app, "tasks", [{"task": "it"}])
    await bounded(session_known(app))
    await crash(app)
    works.make("go")
    async with started(app := works.app(policy=PolicyEngine([rule]), on_error="skip")):
        await until(lambda: records(app, "tasks.dlq"))
    (said,) = [dict(each.headers)["sabot.message"].decode() for each in records(app, "tasks.dlq")]
    assert why in said
    assert len(works.called()) == 1


@pytest.mark.parametrize("changed", [False, True])
async def test_a_person_is_asked_once_about_a_run_and_its_sessions(works: Works, changed: bool) -> None:
    """With changed words, the next run is another one: it has none of the changes."""
    app = works.app("other", policy=PolicyEngine([ASKS]))
    await app.start()
    publish(app, "tasks", [{"task": "it"}])
    action = await bounded(question(app))
    edit = {"arguments": {"argv": ["other", "less"]}} if changed else {}
    await app.actions.resolve(action.resume_token, {"approved": True, **edit})
    await bounded(session_known(app))
    await crash(app)
    works.make("go")
    async with started(app := works.app("other", policy=PolicyEngine([ASKS]))):
        if changed:
            action = await bounded(question(app))
            assert action.payload["arguments"][1]["argv"] == ["other", "--session=ses-1", "it"]
            assert len(works.called()) == 1
            await app.actions.resolve(action.resume_token, {"approved": True})
        await until(lambda: kinds(app) == ["text", "result"])
        assert await app.actions.find(statuses=[ActionStatus.PENDING]) == []
    assert works.called() == ["less" if changed else "it", "--session=ses-1 it"]


async def test_the_result_of_a_program_that_is_allowed_is_allowed(works: Works) -> None:
    works.make("go")
    policy = PolicyEngine([ToolPolicy(["work"])], default="deny")
    async with started(app := works.app(policy=policy)):
        publish(app, "tasks", [{"task": "it"}])
        await until(lambda: kinds(app) == ["system", "result"])


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"durable": False}, "resume= is of durable agents"),
        ({"on_error": "retry", "effect": "idempotent"}, "without on_error='retry'"),
        ({"resume": ["claude", "--resume"]}, "where the session's id goes"),
        ({"resume": "claude --resume {session}"}, "is no command"),
        ({"resume": ["{session}"]}, "would be named by a record"),
        ({"resume": ["sh", "-c", "claude --resume {session}"]}, "part of the script"),
        ({"resume": ["claude", "{session}", "{other}"], "schema": {"task": "string"}}, "no field of schema="),
        ({"resume": None, "session": "id"}, "session='id' without resume="),
        ({"command": ["claude"], "pool": 2}, "resume= with pool="),
        ({"command": ["cat"], "pool": 2, "resume": None, "live": "now"}, "live= with pool="),
        ({"live": ""}, "live"),
    ],
)
def test_a_declaration_that_cannot_be_is_refused(works: Works, options: dict[str, Any], why: str) -> None:
    with pytest.raises(UserError, match=why):
        works.app(**options)


# -- lines as they come --------------------------------------------------------------------------------------------------


WAITS = 'echo one; echo "$0" >> runs; until [ -e go ]; do sleep 0.01; done; echo; printf two'


def live(app: App) -> list[tuple[Any, str, str]]:
    """The lines, with their numbers and their runs."""
    found = [(each.value, dict(each.headers)) for each in records(app, "now")]
    return [(value, said["process.line"].decode(), said["process.run"].decode()) for value, said in found]


@pytest.mark.parametrize("durable", [False, True])
async def test_lines_are_told_as_they_come_and_are_results_when_the_program_has_ended(
    works: Works, durable: bool
) -> None:
    command = ["sh", "-c", WAITS]
    async with started(app := works.app(command=command, durable=durable, resume=None, lines="text", live="now")):
        publish(app, "tasks", [{"task": "it"}])
        await until(lambda: len(live(app)) == 1)
        assert records(app, "lines") == []
        works.make("go")
        await until(lambda: len(records(app, "lines")) == 3 and len(live(app)) == 3)
    assert [(value, line) for value, line, _ in live(app)] == [("one", "1"), ("", "2"), ("two", "3")]
    assert len({run for *_, run in live(app)}) == 1
    said, result = records(app, "now")[0], records(app, "lines")[0]
    ours = ("process.agent", "process.job")
    assert [dict(said.headers)[each] for each in ours] == [dict(result.headers)[each] for each in ours]
    assert said.key == dict(said.headers)["process.job"]


async def test_lines_of_a_run_that_was_cut_off_are_told_and_never_results(works: Works) -> None:
    options: dict[str, Any] = {"resume": None, "lines": "text", "live": "now", "effect": "idempotent"}
    app = works.app(command=["sh", "-c", WAITS], **options)
    await app.start()
    publish(app, "tasks", [{"task": "it"}])
    await until(lambda: len(live(app)) == 1)
    await crash(app)
    works.make("go")
    async with started(app := works.app(command=["sh", "-c", WAITS], **options)):
        await until(lambda: len(records(app, "lines")) == 3)
    assert values(app, "lines") == ["one", "", "two"]
    first, *second = live(app)
    assert [(value, line) for value, line, _ in second] == [("one", "1"), ("", "2"), ("two", "3")]
    assert first[:2] == ("one", "1")
    assert first[2] != second[0][2]


async def test_a_flood_of_lines_is_told_whole_and_in_order(works: Works) -> None:
    command = ["seq", "500"]
    async with started(app := works.app(command=command, resume=None, live="now")):
        publish(app, "tasks", [{"task": "it"}])
        await until(lambda: len(records(app, "lines")) == 500)
    assert [value for value, *_ in live(app)] == list(range(1, 501))


async def test_where_lines_cannot_be_told_the_program_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    sent = []

    async def send(topic: str, value: Any, **more: Any) -> int:
        sent.append(value)
        raise BrokerUnavailable("away")

    heard = LiveLines(send, "now", "works.work", json=False).of(RunId("job", "key"), None)
    await heard(["one", "two"])
    await heard(["three"])
    assert sent == ["one", "two"]
    assert "the lines of a run for job are not told in now: away" in caplog.text
