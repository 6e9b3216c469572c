"""Values of a wrong type at the public entries of `sabot.agents`: each is refused by an error that names what was given, and none comes
from the depth (an AttributeError of None, a KeyError, a list that cannot be hashed).
"""

import asyncio
import inspect
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import sabot.agents
from sabot.agents import (
    ActionManager,
    ActionSpec,
    AgentRuntime,
    ExecutionContext,
    ExecutionRequest,
    InMemoryActionStore,
    InMemoryEventBus,
    InMemoryJobStore,
    InMemoryLedgerWriter,
    JobManager,
    JobSpec,
    Ledger,
    PolicyEngine,
    PolicyRef,
    RedisJobCache,
    RedisStreamsAdapter,
    RedisStreamsConfig,
    ReplayPlayer,
    RuntimeEvent,
    RuntimeEventType,
    RuntimeKernel,
    RunVersions,
    StateManager,
)
from sabot.errors import EffectError, LetterRefused, SabotError, UserError
from sabot.journal import Journal
from sabot.journal.memory import MemoryStorage
from sabot.llm import Effect, Usage, tool
from tools.agent_tools import until

WRONG: list[Any] = [None, 5, object(), b"\xff", "nope", [], {}, {"a": object()}]
WRONG += [math.nan, math.inf, -1, True, 10**400]

SOUND: dict[str, Any] = {
    "context": ExecutionContext(scope_id="t"),
    "usage": Usage(1, 1),
    "name": "n",
    "event": RuntimeEvent(RuntimeEventType.PROGRESS, "j"),
    "handler": print,
    "request": ExecutionRequest(prompt=1),
    "resolution": {"approved": True},
    "scope_id": "t",
    "writer": InMemoryLedgerWriter(),
    "store": InMemoryJobStore(),
    "event_bus": InMemoryEventBus(),
}
SEAMS = {
    # what hosts and guards call for each effect, with values that they have made
    *(f"Ledger.{name}" for name in ("correct", "hold", "is_news", "limits_answers", "note", "ready", "release")),
    "Ledger.reserve",
    *(f"PolicyEngine.{name}" for name in ("begin_job", "decide", "drop", "settle", "reopen", "end_job", "take")),
    *(f"InMemoryEventBus.{name}" for name in ("drained", "holds", "leave", "wants")),
    *(f"ExecutionHandle.{name}" for name in ("settle", "begun", "ends")),
    *(f"InMemoryJobStore.{name}" for name in ("lend", "show")),
}
MADE_BY_OTHERS = {
    "Operator",
    "ExecutionHandle",
}  # an abstract class; a kernel makes it


async def asks(ctx: Any) -> Any:
    return await ctx.ask("confirm", {})


@dataclass
class World:
    """Objects whose methods programs call."""

    of: list[Any]
    job_id: str


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with RuntimeKernel.create(agent=asks, budgets=[]) as kernel:
        handle = await kernel.execute(ExecutionRequest(prompt=1, scope_id="t"))
        store = InMemoryJobStore()
        jobs = JobManager(store)
        await jobs.create(JobSpec(scope_id="t"))
        of = [kernel, handle, jobs, kernel.jobs, ActionManager(store), kernel.actions, Ledger(InMemoryLedgerWriter())]
        recording = await kernel.record(handle.job_id)
        of += [store, InMemoryEventBus(), StateManager(kernel), recording, ReplayPlayer(recording), PolicyEngine()]
        yield World(of, handle.job_id)


def parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [each for each in inspect.signature(function).parameters.values() if each.kind in kinds]


async def raw_errors(where: str, function: Callable[..., Any], sound: dict[str, Any]) -> list[str]:
    """The errors that come from the depth, where one parameter after the other is of a wrong type."""
    given, found = parameters(function), []
    needed = [each.name for each in given if each.default is each.empty]
    for name in (each.name for each in given):
        for wrong in WRONG:
            arguments = {other: sound.get(other, "x") for other in needed if other != name} | {name: wrong}
            try:
                made = function(**arguments)
                if inspect.isawaitable(made):
                    made = await made
                if isinstance(made, Journal):
                    made.close()
            except SabotError:
                continue
            except Exception as error:
                if not (isinstance(error, TypeError) and name in str(error)):
                    found.append(f"{where}({name}={wrong!r}): {type(error).__name__}: {error}")
    return found


async def test_methods_refuse_values_of_a_wrong_type(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    sound = {**SOUND, "job_id": world.job_id, "token": "tok", "path": tmp_path / "file"}
    found, seen = [], 0
    for each in world.of:
        kind = type(each).__name__
        for name in [name for name in dir(each) if not name.startswith("_") and f"{kind}.{name}" not in SEAMS]:
            function = getattr(each, name)
            if inspect.isroutine(function) and parameters(function):
                seen += 1
                found += await raw_errors(f"{kind}.{name}", function, sound)
    assert (found, seen > 40) == ([], True)


@pytest.mark.slow  # half a second of a core
async def test_classes_and_functions_refuse_values_of_a_wrong_type(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = []
    for name in set(sabot.agents.__all__) - MADE_BY_OTHERS:
        thing = getattr(sabot.agents, name)
        is_class = inspect.isclass(thing)
        if not callable(thing) or (is_class and issubclass(thing, BaseException | Enum)) or name == "Any":
            continue
        try:
            parameters(thing)
        except ValueError:  # an alias of types
            continue
        found += await raw_errors(name, thing, SOUND)
    assert found == []


async def test_the_errors_say_what_is_wanted(world: World, tmp_path: Path) -> None:
    kernel, handle = world.of[:2]
    ledger = next(each for each in world.of if isinstance(each, Ledger))
    states = next(each for each in world.of if isinstance(each, StateManager))
    await states.create(handle.job_id, "here")
    (action,) = await handle.get_pending_actions()
    wrong: dict[str, Callable[[], Any]] = {
        r"execute: request='x' \(ExecutionRequest\(prompt=…\)\)": lambda: kernel.execute("x"),
        r"resolve: resume_token=.* a text is wanted": lambda: handle.resolve_action(None, 5),
        r"resolve: resolution=None \(an object, as in": lambda: handle.resolve_action(action.resume_token, None),
        r"record_model_usage: usage=None \(Usage\(": lambda: ledger.record_model_usage(SOUND["context"], None),
        r"file\.json cannot be written: No such file or directory \(its folder must be there": lambda: states.export(
            handle.job_id, "here", tmp_path / "nothing" / "file.json"
        ),
    }
    for said, call in wrong.items():
        with pytest.raises(UserError, match=said):
            await call()
    for given in (None, 5, "shop"):
        with pytest.raises(UserError, match=r"AgentRuntime: app=.* \(an App, which makes its own"):
            AgentRuntime(given)  # type: ignore[arg-type]
    events = RedisStreamsAdapter("redis://127.0.0.1:1/0", InMemoryEventBus(), RedisStreamsConfig(stream_prefix="t"))
    for stream, after in ((5, "0"), (None, "0"), ("", "0"), ("t", 5)):
        with pytest.raises(UserError, match=r"read_events: (stream|after)=.*: a text is wanted"):
            await anext(events.read_events(stream, after=after))  # type: ignore[arg-type]
    with pytest.raises(UserError, match="RedisJobCache: store=None"):
        RedisJobCache(None, None)  # type: ignore[arg-type]
    with pytest.raises(LetterRefused):
        await handle.resolve_action("nobody's", {"approved": True})


async def test_a_question_whose_payload_is_a_text_does_not_hide_those_of_other_jobs() -> None:
    """It was written to the journal, from which it could not be read: its job hung, and nobody found any question any more."""
    actions = ActionManager(InMemoryActionStore())

    @tool(effect="read")
    async def deploy(effect: Effect) -> None:
        payload: Any = "Deploy?"
        await actions.require_action(ActionSpec(job_id=effect.id.job, type="confirm", payload=payload))

    async def operator(ctx: Any) -> Any:
        if ctx.message == "deploy":
            return await ctx.call(deploy)
        return (await ctx.ask("confirm", {"item": ctx.message})).approved

    async with RuntimeKernel.create(agent=operator, action_store=actions.store) as kernel:
        sound = await kernel.execute(ExecutionRequest(prompt="a book"))
        wrong = await kernel.execute(ExecutionRequest(prompt="deploy"))
        with pytest.raises(SabotError, match=r"payload='Deploy\?': fields by their names are wanted"):
            await asyncio.wait_for(wrong.result(), 60)
        async for event in sound.events():
            if event.type == "action.required":
                (action,) = await actions.find()
                await actions.resolve(action.resume_token, {"approved": True})
        assert (await sound.result()).output is True


async def test_metadata_of_one_request_does_not_end_the_kernel_for_all() -> None:
    """Keys that are no texts were recorded and could not be read back, which ended the task that runs all jobs."""

    async def agent(ctx: Any) -> Any:
        return ctx.message

    async with RuntimeKernel.create(agent=agent) as kernel:
        for wrong in (
            lambda: ExecutionRequest(prompt="x", metadata={7: "seven"}),  # type: ignore[dict-item]
            lambda: ExecutionRequest(prompt="x", versions=RunVersions(runtime_version=1.0)),  # type: ignore[arg-type]
            lambda: ExecutionRequest(prompt="x", policy_ref=PolicyRef("production", version=2)),  # type: ignore[arg-type]
        ):
            with pytest.raises(UserError, match=r"metadata=|runtime_version=1\.0|version=2"):
                await kernel.execute(wrong())
        handle = await kernel.execute(ExecutionRequest(prompt="fine", metadata={"a": {7: "seven"}}))
        assert (await handle.result()).output == "fine"


async def test_a_job_that_a_store_could_not_read_back_is_refused_in_words() -> None:
    jobs = JobManager(InMemoryJobStore())
    wrong: list[dict[str, Any]] = [{"tags": ["urgent"]}, {"tags": {"a": object()}}, {"metadata": {"a": 1, 2: 3}}]
    wrong += [{"metadata": "x"}, {"metadata": {"a": object()}}, {"versions": "1.0"}, {"policy_ref": "production"}]
    for given in wrong:
        with pytest.raises(UserError, match=f"{next(iter(given))}=|the job cannot be written as JSON"):
            await jobs.create(JobSpec(scope_id="t", **given))
    assert (await jobs.create(JobSpec(scope_id="t", budgets={"max_tokens": 5}))).budgets.max_tokens == 5  # type: ignore[arg-type]


def waits(url: str, timeout: int = 1) -> list[Any]:
    return [url, timeout]


def waits_as_tool(url: str, timeout: int = 1) -> list[Any]:
    return [url, timeout]


def paints(effect: str = "none", *, retries: int = 0) -> list[Any]:
    return [effect, retries]


SHARED: dict[str, tuple[Callable[[Any], Awaitable[Any]], Any]] = {
    "given to both": (lambda ctx: ctx.step(waits, "x", timeout=7), None),
    "given to both, another": (lambda ctx: ctx.step(paints, effect="read"), None),
    "given to both, a third": (lambda ctx: ctx.step(paints, "blur", retries=2), None),
    "of a tool": (lambda ctx: ctx.step(tool(waits_as_tool), "x", timeout=7), None),
    "left out": (lambda ctx: ctx.step(waits, "x", effect="read"), ["x", 1]),
    "by place": (lambda ctx: ctx.step(paints, "blur", effect="read"), ["blur", 0]),
    "by a partial": (lambda ctx: ctx.step(partial(waits, timeout=7), "x", timeout="30s"), ["x", 7]),
    "by a call": (lambda ctx: ctx.call(tool(timeout="30s")(waits_as_tool), "x", timeout=7), ["x", 7]),
}


@pytest.mark.parametrize("name", SHARED)
async def test_an_option_of_a_step_that_may_be_for_its_function_is_refused(name: str) -> None:
    """It was taken as that of the step without a word, and the function got its default."""
    call, made = SHARED[name]
    async with RuntimeKernel.create(agent=call) as kernel:
        handle = await kernel.execute(ExecutionRequest(prompt="go"))
        if made is not None:
            assert (await handle.result()).output == made
            return
        with pytest.raises(EffectError, match=r"has a parameter '\w+' too, so this may be for it"):
            await handle.result()


@pytest.mark.parametrize("effect", ["read", "local", "unsafe"])
async def test_a_job_that_has_passed_such_a_step_in_an_earlier_version_goes_on(
    effect: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work(ctx: Any) -> Any:
        said = await ctx.step(waits, "x", effect=effect, timeout=7)
        return [said, (await ctx.ask("confirm", {})).approved]

    journal = MemoryStorage()
    with monkeypatch.context() as earlier:
        earlier.setattr("sabot.agents.durable.context._shared_names", lambda *_: ())
        async with RuntimeKernel.create(agent=work, journal=journal) as kernel:
            await kernel.execute(ExecutionRequest(prompt="go"))
            await until(lambda: kernel.statistics()["parked"])
    async with RuntimeKernel.create(agent=work, journal=journal) as kernel:
        (handle,) = await kernel.resume()
        (asked,) = await kernel.actions.find(statuses=["pending"])
        await kernel.actions.resolve(asked.resume_token, {"approved": True})
        assert (await handle.result()).output == [["x", 1], True]
