"""What programs write, in all shapes that were seen, on each way on which their output is read."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from sabot import App
from sabot.process import (
    AgentConfig,
    AgentHandle,
    ExecutionError,
    LocalProcessRunner,
    ProviderError,
    ResourceLimits,
    backends,
)
from sabot.process.errors import CommunicationError
from tools.agent_tools import publish, records, started, until, values

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="children are owned on Linux only"),
    pytest.mark.usefixtures("no_child_afterwards"),
]

Programs = Callable[[str, str], None]


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Programs:
    """`program(name, script)`: a program on the PATH that is this script of the shell."""
    folder = tmp_path / "programs"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")

    def made(name: str, script: str) -> None:
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)

    return made


@pytest.fixture
async def runner() -> AsyncIterator[LocalProcessRunner]:
    async with LocalProcessRunner() as runner:
        yield runner


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program is ended as soon as it has written its result."""
    monkeypatch.setattr(backends, "RESULT_SECONDS", 0.05)


async def spawned(runner: LocalProcessRunner, name: str, **more: Any) -> AgentHandle:
    return await runner.spawn(AgentConfig(name="tester", model_backend=name, task="look", **more))


async def answered(handle: AgentHandle) -> str:
    return await handle.answer()


async def after_lines(handle: AgentHandle) -> str:
    async for _ in handle.lines():
        pass
    return await handle.answer()


async def after_events(handle: AgentHandle) -> str:
    async for _ in handle.events():
        pass
    return await handle.answer()


async def after_some_lines(handle: AgentHandle) -> str:
    await anext(handle.lines())
    return await handle.answer()


async def twice(handle: AgentHandle) -> str:
    said = await handle.answer()
    assert await handle.answer() == said
    return said


ways = pytest.mark.parametrize(
    "way", [answered, after_lines, after_events, after_some_lines, twice], ids=lambda each: each.__name__
)
Way = Callable[[AgentHandle], Awaitable[str]]


def event(kind: str, **more: Any) -> str:
    return json.dumps({"type": kind, "session_id": "c-1", **more})


def result(text: str, **more: Any) -> str:
    return event("result", subtype="success", result=text, **more)


def says(*lines: str, end: str = "\\n") -> str:
    return "".join(f"printf '%s{end}' '{line}'; " for line in lines)


BEGIN, TALK = event("system"), event("assistant", text='he says "result"')

CLAUDE = {
    "lines": says(BEGIN, TALK, result("done")),
    "lines of another system": says(BEGIN, TALK, result("done"), end="\\r\\n"),
    "no end of the last line": says(BEGIN, TALK) + says(result("done"), end=""),
    "a byte order mark": says(f"\ufeff{result('done')}"),
    "lines that are no events": says(
        "warning: an update is there", "", BEGIN, '{"type": ', "null", "[]", result("done")
    ),
    "more than one result": says(result("first"), BEGIN, result("done")),
    "spaces": says(f"  {result('done')}  "),
    "half of a pair": says(result("done").replace("done", r"done\ud83d")),
}


@pytest.mark.one_in(4, "hundredths of a second of a core each")
@ways
@pytest.mark.parametrize("shape", CLAUDE)
async def test_the_result_event_is_the_answer(
    runner: LocalProcessRunner, program: Programs, shape: str, way: Way
) -> None:
    """After `lines()` or `events()` there was no answer: what they had read was gone."""
    program("claude", CLAUDE[shape])
    assert (await way(await spawned(runner, "claude"))).rstrip("\ufffd") == "done"


@pytest.mark.parametrize(("told", "answer"), [("null", ""), ('{"a": [1, null]}', '{"a": [1, null]}'), ("5", "5")])
async def test_a_result_that_is_no_text_is_its_json(
    runner: LocalProcessRunner, program: Programs, told: str, answer: str
) -> None:
    """It was the Python form: None, {'a': 1}."""
    program("claude", says(f'{{"type": "result", "subtype": "success", "result": {told}}}'))
    assert await (await spawned(runner, "claude")).answer() == answer


TEXTS = {
    "lines": says("one", "two"),
    "lines of another system": says("one", "two", end="\\r\\n"),
    "no end of the last line": says("one") + says("two", end=""),
}


@ways
@pytest.mark.parametrize("shape", TEXTS)
async def test_of_a_program_without_events_all_lines_are_the_answer(
    runner: LocalProcessRunner, program: Programs, shape: str, way: Way
) -> None:
    program("custom", TEXTS[shape])
    assert await way(await spawned(runner, "custom")) == "one\ntwo"


@ways
async def test_the_texts_of_opencode_are_the_answer(runner: LocalProcessRunner, program: Programs, way: Way) -> None:
    texts = [json.dumps({"type": "text", "part": {"text": each}}) for each in ("one", "two")]
    program("opencode", says(event("step_start"), *texts, event("step_finish"), end="\\r\\n"))
    assert await way(await spawned(runner, "opencode")) == "one\ntwo"


HANGS = {
    "hangs": "exec sleep 1000",
    "will not end": "trap '' TERM; while :; do sleep 1000; done",
    "ends and leaves a child behind": "sleep 1000 & exit 0",
    "hangs without an output": "exec >&- 2>&-; exec sleep 1000",
    "goes on to write": "while :; do echo; sleep 0.01; done",
    "ends with an error when it is asked to": "trap 'exit 3' TERM; while :; do sleep 0.01; done",
}


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize("way", [answered, after_lines, after_events])
@pytest.mark.parametrize("how", HANGS)
async def test_a_program_that_does_not_end_after_its_result_is_ended_and_the_answer_counts(
    runner: LocalProcessRunner, program: Programs, how: str, way: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A known fault of one program: `answer()` waited for ever."""
    monkeypatch.setattr("sabot.specified.processes.runner._GRACE_SECONDS", 0.05)
    program("claude", says(BEGIN, result("done")) + HANGS[how])
    async with asyncio.timeout(60):
        assert await way(await spawned(runner, "claude")) == "done"


async def test_a_limit_that_ends_a_program_after_its_result_leaves_the_answer(
    runner: LocalProcessRunner, program: Programs
) -> None:
    limits, goes_on = ResourceLimits(max_output_bytes=100_000), "exec yes ''"
    program("claude", says(BEGIN, result("done")) + goes_on)
    assert await (await spawned(runner, "claude", limits=limits)).answer() == "done"
    program("claude", says(BEGIN) + goes_on)
    without = await spawned(runner, "claude", limits=limits)
    with pytest.raises(ExecutionError, match="more than its max_output_bytes"):
        await without.answer()


async def test_an_answer_that_is_an_error_stays_one(runner: LocalProcessRunner, program: Programs) -> None:
    program("claude", says(event("result", subtype="error_max_turns", is_error=True)) + "exit 1")
    with pytest.raises(ProviderError, match="claude: error_max_turns"):
        await (await spawned(runner, "claude")).answer()
    program("claude", says(result("done")) + "echo why >&2; exit 9")
    with pytest.raises(ExecutionError, match="ended with 9: why"):
        await (await spawned(runner, "claude")).answer()
    program("claude", says(BEGIN, TALK) + "echo why >&2; exit 9")
    with pytest.raises(ExecutionError, match="ended with 9: why"):
        await (await spawned(runner, "claude")).answer()


async def test_text_that_others_have_read_is_kept_up_to_a_bound(runner: LocalProcessRunner, program: Programs) -> None:
    program("custom", says(*["x" * 100] * 30))
    handle = await spawned(runner, "custom", output_bytes=1000, lossless=True)
    assert len([each async for each in handle.lines()]) == 30
    with pytest.raises(CommunicationError, match="more than 1,000 bytes of its answer were read before"):
        await handle.answer()
    alone = await spawned(runner, "custom", output_bytes=1000, lossless=True)
    assert len(await alone.answer()) == 30 * 101 - 1


# -- in an app --------------------------------------------------------------------------------------------------------


@pytest.mark.one_in(9, "some hundredths of a second of a core each")
@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize("durable", [False, True])
@pytest.mark.parametrize("how", HANGS)
async def test_an_agent_that_is_such_a_program_has_its_results(
    memory_url: str, tmp_path: Path, program: Programs, how: str, durable: bool
) -> None:
    program("claude", says(BEGIN, result("done"), end="\\r\\n") + HANGS[how])
    app = App("works", memory_url, state=str(tmp_path / "state"), checkpoint_interval=3600)
    command = ["claude", "-p", "{task}"]
    app.process_agent("tasks", command=command, sink="lines", lines="json", timeout="50s", durable=durable)
    publish(app, "tasks", [{"task": "look"}])
    async with started(app):
        await until(lambda: len(records(app, "lines")) >= 2)
    assert [each["type"] for each in values(app, "lines") if each] == ["system", "result"]


@pytest.mark.one_in(2, "a fifth of a second of a core each")
@pytest.mark.parametrize("durable", [False, True])
async def test_a_time_limit_after_the_result_leaves_the_results(
    memory_url: str, tmp_path: Path, program: Programs, durable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backends, "RESULT_SECONDS", 3.5)
    program("claude", says(result("done")) + HANGS["hangs"])
    app = App("works", memory_url, state=str(tmp_path / "state"), checkpoint_interval=3600)
    command = ["claude", "-p", "{task}"]
    app.process_agent("tasks", command=command, sink="lines", lines="json", timeout="3s", durable=durable)
    publish(app, "tasks", [{"task": "look"}])
    async with started(app):
        await until(lambda: len(records(app, "lines")) == 1)
    assert values(app, "lines")[0]["result"] == "done"


@pytest.mark.one_in(3, "a fifth of a second of a core each")
@pytest.mark.parametrize("shape", TEXTS)
async def test_lines_of_an_agent_have_no_line_ends(
    memory_url: str, tmp_path: Path, program: Programs, shape: str
) -> None:
    """Each line of a program that ends them by CR LF had a CR at its end."""
    program("custom", TEXTS[shape])
    app = App("works", memory_url, state=str(tmp_path / "state"), checkpoint_interval=3600)
    app.process_agent("tasks", command=["custom"], sink="lines")
    publish(app, "tasks", [{"task": "look"}])
    async with started(app):
        await until(lambda: len(records(app, "lines")) == 2)
    assert values(app, "lines") == ["one", "two"]
