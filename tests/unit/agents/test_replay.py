"""Replay: recordings of a bus and of a journal, played at once, at their pace, step by step; and today's code run over them."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from unit.jobs.hosting import Agent, hosting

from sabot.agents import (
    ConstraintPolicy,
    ExecutionRequest,
    InMemoryEventBus,
    PolicyEngine,
    Recording,
    RedactionPolicy,
    ReplayDifference,
    ReplayMode,
    ReplayPlayer,
    ReplayRecorder,
    RunMetadata,
    RuntimeEvent,
    RuntimeEventType,
    RuntimeKernel,
    record_job,
)
from sabot.agents.durable.context import DurableContext
from sabot.agents.replay.verification import JobCode, hash_of_steps, steps_of, verified
from sabot.clock import ManualClock
from sabot.errors import DataError, UserError
from sabot.journal.entries import Letter
from sabot.journal.memory import MemoryReader, MemoryStorage
from sabot.llm import Agent as ModelAgent
from sabot.llm import ExecutionEngine, ScriptedProvider, ToolCall, assistant, tool

Type = RuntimeEventType


class World:
    """What a job asks of, and how often."""

    def __init__(self) -> None:
        self.provider = ScriptedProvider(lambda spec: f"<{spec.messages[-1].text}>")
        self.engine = ExecutionEngine(self.provider)
        self.paid: list[int] = []

        @tool(effect="unsafe")
        def pay(cents: int) -> str:
            """Pays."""
            self.paid.append(cents)
            return f"paid {cents}"

        self.pay = pay

    async def job(self, ctx: DurableContext) -> Any:
        said = (await ctx.llm(self.engine).complete(f"{ctx.message} {ctx.uuid()}")).content
        await ctx.sleep("10ms")
        paid = await ctx.call(self.pay, cents=7)
        reply = await ctx.ask("confirm", {"said": said})
        return {"said": said, "paid": paid, "approved": reply.approved, "at": ctx.now(), "lot": ctx.random().random()}


async def recorded(world: World, function: Callable[..., Any] | None = None) -> tuple[Recording, Agent]:
    home = MemoryStorage(ManualClock(1_000.0))
    agent = Agent(function or world.job)
    async with hosting(home, agent) as running:
        running.begin("job", "hello")
        if function is None:
            await running.parks("job")
            (action,) = [entry for _, entry in MemoryReader(home).read() if getattr(entry, "kind", "") == "ask"]
            running.journal.post(Letter("answer", action.token, body=b'{"approved": true}'))
        await running.over("job")
    return record_job(MemoryReader(home), "job"), agent


# -- of a bus --------------------------------------------------------------------------------------------------------------


async def test_what_a_bus_has_told_is_saved_loaded_and_played(tmp_path: Path) -> None:
    bus, clock = InMemoryEventBus(), ManualClock()
    recorder = ReplayRecorder(bus, RunMetadata.create(runtime_version="1.0.0", model_version="gpt-4-0125"), clock=clock)
    await recorder.start(initial_input={"prompt": "Hello"})
    events = [
        RuntimeEvent(Type.JOB_STARTED, "j", {"agent": "a"}, "1", 10.0),
        RuntimeEvent(Type.MODEL_TOKEN, "j", {"text": "Hi"}, "2", 10.5),
        RuntimeEvent(Type.MODEL_TOKEN, "j", {"text": "Hi"}, "2", 10.5),
        RuntimeEvent(Type.FINAL_RESULT, "j", {"result": {"content": "Hi"}}, "3", 12.0),
    ]
    for event, seconds in zip(events, (0.25, 2.0, 5.0, 0.5), strict=True):
        clock.advance(seconds)
        await bus.publish(event)
        await bus.flush()
    recording = await recorder.stop()
    await bus.publish(events[0])
    recording.save(tmp_path / "execution.replay.json")
    assert (tmp_path / "execution.replay.json").stat().st_mode & 0o777 == 0o600
    loaded = Recording.load(tmp_path / "execution.replay.json")
    assert loaded == recording
    assert loaded.metadata.model_version == "gpt-4-0125"
    assert loaded.initial_input == {"prompt": "Hello"}
    assert [event.event_id for event in loaded.events] == ["1", "2", "3"]
    heard: list[RuntimeEvent] = []
    other = InMemoryEventBus()
    other.on(heard.append)
    waited: list[float] = []

    async def sleep(seconds: float) -> None:
        waited.append(seconds)

    player = ReplayPlayer(loaded, other, sleep=sleep)
    assert await player.replay(mode=ReplayMode.FAST) == {"content": "Hi"}
    await other.flush()
    assert tuple(heard) == loaded.events
    assert waited == []
    assert await player.replay(mode="timed") == {"content": "Hi"}
    assert waited == [2.0, 5.5], "as they came; the times of the events themselves are 0.5 and 1.5 s apart"
    waited.clear()
    await ReplayPlayer(replace(loaded, arrivals=()), other, sleep=sleep).replay(mode="timed")
    assert waited == [0.5, 1.5], "of a journal only those are known"
    assert [event.type async for event in player.step()] == [Type.JOB_STARTED, Type.MODEL_TOKEN, Type.FINAL_RESULT]


async def test_a_recorder_says_how_it_is_used() -> None:
    recorder = ReplayRecorder(InMemoryEventBus(), RunMetadata.create(), most=1)
    with pytest.raises(UserError, match="was not started"):
        await recorder.stop()
    await recorder.start()
    with pytest.raises(UserError, match="has been started"):
        await recorder.start()
    for number in range(3):
        await recorder.event_bus.publish(RuntimeEvent(Type.PROGRESS, "j", {}, str(number)))
    with pytest.raises(DataError, match="keeps 1 events, and there were 2 more"):
        await recorder.stop()
    with pytest.raises(UserError, match="one by one"):
        await ReplayPlayer(Recording(RunMetadata.create())).replay(mode=ReplayMode.STEP)
    with pytest.raises(UserError, match="one of fast, timed, step, verify, fork"):
        await ReplayPlayer(Recording(RunMetadata.create())).replay(mode="slow")
    with pytest.raises(UserError, match="has events only"):
        await ReplayPlayer(Recording(RunMetadata.create())).replay(mode="verify", code=JobCode(Agent(World().job).call))
    with pytest.raises(UserError, match="RunMetadata"):
        RunMetadata.create(model="x")


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda text: text[: len(text) // 2], "cut short"),
        (lambda text: text.replace("hello", "HELLO"), "was changed since it was recorded"),
        (lambda text: text.replace('"sabot_recording":2', '"sabot_recording":1'), "of version 1.*knows 2"),
        (lambda text: "[1]", "is no recording"),
        (lambda text: "", "cannot be read"),
    ],
)
async def test_a_recording_that_is_not_whole_is_refused(tmp_path: Path, damage: Callable[[str], str], why: str) -> None:
    path = tmp_path / "job.replay.json"
    Recording(RunMetadata.create(), {"text": "hello"}).save(path)
    path.write_text(damage(path.read_text()))
    with pytest.raises(UserError, match=why):
        Recording.load(path)
    with pytest.raises(UserError, match="cannot be written as JSON"):
        Recording(RunMetadata.create(), object()).save(path)
    assert [each.name for each in tmp_path.iterdir()] == ["job.replay.json"]


# -- of a journal ----------------------------------------------------------------------------------------------------------


async def test_a_job_is_verified_without_a_call(tmp_path: Path) -> None:
    world = World()
    recording, agent = await recorded(world)
    recording.save(tmp_path / "job")
    loaded = Recording.load(tmp_path / "job")
    assert loaded == recording
    assert loaded.initial_input == "hello"
    other = World()
    found = await ReplayPlayer(loaded).replay(mode=ReplayMode.VERIFY, code=JobCode(Agent(other.job).call))
    assert found.same
    assert (found.steps, found.events_hash) == (4, hash_of_steps(recording))
    assert (other.provider.requests, other.paid) == ([], [])
    assert (len(world.provider.requests), world.paid) == (1, [7])
    events = [event async for event in ReplayPlayer(loaded).step()]
    assert [event.type for event in events if event.type.category in ("job", "final")][-1] is Type.FINAL_RESULT
    assert events[-1].data["result"] == agent.done["job"]
    assert [step["name"] for step in steps_of(loaded)] == ["llm", "", "pay", "confirm"]
    assert steps_of(loaded)[2]["value"] == "paid 7"


async def test_a_recording_has_no_token_and_no_digest_of_its_journal() -> None:
    home = MemoryStorage(ManualClock(1_000.0))
    world = World()
    async with hosting(home, Agent(world.job)) as running:
        running.begin("job", "hello")
        await running.parks("job")
    intents = [entry for _, entry in MemoryReader(home).read() if hasattr(entry, "digest") and hasattr(entry, "token")]
    recording = record_job(MemoryReader(home), "job")
    kept = repr(recording)
    assert home.key not in (recording.key, *recording.seeds)
    assert [each for each in intents if each.token] != []
    for intent in intents:
        assert not intent.token or intent.token not in kept
        assert intent.kind == "sleep" or repr(intent.digest) not in kept
    assert verified(recording, JobCode(Agent(World().job).call)).same, "it stops where the recording stops"


async def says_otherwise(ctx: DurableContext, world: World) -> Any:
    await ctx.llm(world.engine).complete("something else")


async def ends_early(ctx: DurableContext, world: World) -> Any:
    return "early"


async def goes_on(ctx: DurableContext, world: World) -> Any:
    await world.job(ctx)
    await ctx.call(world.pay, cents=8)


async def gives_another(ctx: DurableContext, world: World) -> Any:
    return {**await world.job(ctx), "said": "!"}


async def raises(ctx: DurableContext, world: World) -> Any:
    await world.job(ctx)
    raise ValueError("no")


async def reads_state(ctx: DurableContext, world: World) -> Any:
    return await ctx.state().get("seen")


@pytest.mark.parametrize(
    ("function", "why"),
    [
        (says_otherwise, "at step 1, it asks for call llm with other arguments"),
        (ends_early, "at step 1, call llm, the function has not asked for it yet"),
        (goes_on, "at its end, the function goes on"),
        (gives_another, "its result is another one now"),
        (raises, "it fails now: ValueError: no"),
        (reads_state, "it reads its state"),
    ],
)
async def test_the_first_difference_ends_a_verification(function: Callable[..., Any], why: str) -> None:
    recording, _ = await recorded(World())
    world = World()
    code = JobCode(Agent(lambda ctx: function(ctx, world), backend=None).call)  # type: ignore[arg-type]
    with pytest.raises(ReplayDifference, match=why):
        await ReplayPlayer(recording).replay(mode="verify", code=code)
    assert (world.provider.requests, world.paid) == ([], [])


async def test_a_job_that_failed_is_verified_too() -> None:
    async def fails(ctx: DurableContext) -> Any:
        await ctx.sleep("1ms")
        raise ValueError("no")

    async def ends_well(ctx: DurableContext) -> Any:
        await ctx.sleep("1ms")

    recording, _ = await recorded(World(), fails)
    assert verified(recording, JobCode(Agent(fails).call)).same
    assert (
        verified(recording, JobCode(Agent(ends_well).call)).difference
        == "it ends well now, and the recording ends as failed"
    )


async def test_a_job_that_is_not_there_is_refused() -> None:
    with pytest.raises(UserError, match="has no job nobody"):
        record_job(MemoryReader(MemoryStorage(ManualClock(1.0))), "nobody")


async def test_jobs_of_a_kernel_are_verified_by_its_own_code() -> None:
    provider = ScriptedProvider([assistant("", ToolCall("1", "look", "{}")), "seen"])

    @tool(effect="read")
    def look() -> str:
        """Looks."""
        return "x"

    engine = ExecutionEngine(provider)
    kernel = RuntimeKernel.create(engine=engine, agent=ModelAgent(engine, tools=[look]))
    async with kernel:
        handle = await kernel.execute(ExecutionRequest(prompt="go"))
        await handle.result()
        recording = await kernel.record(handle.job_id)
        player = ReplayPlayer(recording)
        assert (await player.replay(mode="verify", code=kernel.code())).steps == 3
        with pytest.raises(UserError, match="has no agent 'other'"):
            kernel.code("other")
    assert len(provider.requests) == 2
    changed = RuntimeKernel.create(engine=engine, agent=ModelAgent(engine, tools=[look], instructions="Be brief."))
    with pytest.raises(ReplayDifference, match="at step 1, it asks for call llm with other arguments"):
        await player.replay(mode="verify", code=changed.code())


@pytest.mark.parametrize("effect", ["read", "idempotent", "unsafe"])
async def test_a_call_with_defaults_that_a_rule_has_seen_is_verified_and_forked_as_the_same(effect: str) -> None:
    """A journal has the arguments of a judged call with their defaults, and without hidden texts."""
    paid: list[tuple[Any, ...]] = []

    def paying(default: int) -> Any:
        @tool(name="refund", effect=effect)
        async def refund(order: str, amount: int = default, note: str = "", *, tags: tuple[str, ...] = ("new",)) -> str:
            paid.append((order, amount, note))
            return "paid"

        return refund

    def job(refund: Any, *, order: str = "o-1") -> Any:
        async def pay(ctx: Any) -> list[Any]:
            first = await ctx.call(refund, order)
            second = await ctx.call(refund, order, note="card 4711", amount=7)
            said = await ctx.step(str.upper, "card 4711", effect=effect)
            return [first, second, said]

        return pay

    bound = ConstraintPolicy(["refund"], "amount", max=500)
    async with RuntimeKernel.create(
        agent=job(paying(500)), policy=PolicyEngine([bound, RedactionPolicy(["4711"])])
    ) as kernel:
        handle = await kernel.execute(ExecutionRequest(prompt="go"))
        assert (await handle.result()).output == ["paid", "paid", "CARD ***"]
        recording = await kernel.record(handle.job_id)
        assert verified(recording, kernel.code()).difference == ""
    for default, order, same in ((500, "o-1", True), (600, "o-1", True), (500, "o-2", False)):
        async with RuntimeKernel.create(agent=job(paying(default), order=order)) as later:
            found = verified(recording, later.code())
            assert found.same is same, found.difference
    paid.clear()
    async with RuntimeKernel.create(agent=job(paying(500)), policy=PolicyEngine([bound])) as kernel:
        forked = await ReplayPlayer(recording).replay(mode=ReplayMode.FORK, code=kernel.code(), at=3)
    assert (forked.result, forked.error, forked.first_difference, paid) == (
        ["paid", "paid", "CARD ***"],
        None,
        None,
        [],
    )
