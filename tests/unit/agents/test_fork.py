"""A fork: a recorded job goes on from one of its steps otherwise than it did, and nothing outside changes."""

import asyncio
from typing import Any

import pytest
from unit.agents.test_replay import World, recorded
from unit.jobs.hosting import Agent, entries, hosting

from sabot import App
from sabot.agents import (
    Budget,
    ExecutionRequest,
    InMemoryLedgerWriter,
    Ledger,
    PolicyEngine,
    Recording,
    ReplayDifference,
    ReplayMode,
    ReplayPlayer,
    RunMetadata,
    RuntimeKernel,
    ToolPolicy,
    code_of,
    record_job,
)
from sabot.agents.durable.context import DurableContext
from sabot.agents.replay import FORK_ALLOWS, JobCode, fork, verified
from sabot.agents.replay.verification import steps_of
from sabot.clock import ManualClock
from sabot.errors import EffectError, PolicyDenied, UserError
from sabot.journal import Letter
from sabot.journal.memory import MemoryReader, MemoryStorage
from sabot.llm import Effect, ExecutionEngine, ScriptedProvider, tool
from sabot.mcp import McpServerPool
from tools.agent_tools import until
from tools.mcp_servers import Desk, in_memory


class Shop:
    """A job of a model, a look, a payment, and a second model. model: what answers."""

    def __init__(self, answer: str = "old", prompt: str = "what next?") -> None:
        self.world = World()
        self.world.provider = type(self.world.provider)(lambda _: answer)
        self.world.engine = type(self.world.engine)(self.world.provider)
        self.prompt = prompt
        self.looked: list[str] = []
        looked = self.looked

        @tool(effect="read")
        def look(at: str) -> str:
            """Looks."""
            looked.append(at)
            return f"{at} is there"

        self.look = look

    @property
    def asked(self) -> list[str]:
        return [spec.messages[-1].text for spec in self.world.provider.requests]

    async def job(self, ctx: DurableContext) -> Any:
        model = ctx.llm(self.world.engine)
        first = (await model.complete("first")).content
        seen = await ctx.call(self.look, first)
        then = (await model.complete(self.prompt)).content
        try:
            paid = await ctx.call(self.world.pay, cents=7)
        except PolicyDenied as error:
            paid = error.message
        return {"first": first, "seen": seen, "then": then, "paid": paid, "lot": ctx.random().random()}

    @property
    def code(self) -> JobCode:
        return JobCode(Agent(self.job).call)


async def shop_recorded() -> Recording:
    home = MemoryStorage(ManualClock(1_000.0))
    async with hosting(home, Agent(Shop().job)) as running:
        running.begin("job", "hello")
        await running.over("job")
        assert running.agent.done["job"]["paid"] == "paid 7"
    return record_job(MemoryReader(home), "job")


async def test_up_to_the_step_nothing_is_called_and_behind_it_another_model_answers() -> None:
    recording = await shop_recorded()
    shop = Shop("new", "what now?")
    found = await ReplayPlayer(recording).replay(mode=ReplayMode.FORK, code=shop.code, at=2)
    assert found.outcome == "succeeded"
    assert (found.result["first"], found.result["seen"], found.result["then"]) == ("old", "old is there", "new")
    assert "this is a fork of job job, and it is an effect of class unsafe" in found.result["paid"]
    assert (shop.asked, shop.looked, shop.world.paid) == (["what now?"], [], [])
    assert found.first_difference == 3
    assert found.result["lot"] == steps_lot(recording)
    assert [step["outcome"] for step in steps_of(found.recording)] == ["ok", "ok", "ok", "PolicyDenied"]
    assert verified(found.recording, shop.code).same


def steps_lot(recording: Recording) -> float:
    """What the recorded job drew by lot."""
    shop, lots = Shop(), list[float]()

    async def job(ctx: DurableContext) -> Any:
        result = await shop.job(ctx)
        lots.append(result["lot"])
        return result

    assert verified(recording, JobCode(Agent(job).call)).same
    return lots[0]


@pytest.mark.parametrize(
    ("at", "asked", "looked"),
    [(0, ["first", "what next?"], ["new"]), (1, ["what next?"], ["old"]), (3, [], []), (4, [], [])],
)
async def test_only_what_stands_behind_the_step_is_called(at: int, asked: list[str], looked: list[str]) -> None:
    shop = Shop("new")
    found = await fork(await shop_recorded(), shop.code, at=at)
    assert (shop.asked, shop.looked, shop.world.paid) == (asked, looked, [])
    assert found.first_difference == {0: 1, 1: 3, 3: 4, 4: None}[at]
    assert (found.result["paid"] == "paid 7") == (at == 4)


async def test_a_tool_may_have_a_stand_in_or_be_allowed_by_name() -> None:
    recording, shop = await shop_recorded(), Shop()
    found = await fork(recording, shop.code, at=3, answers={"pay": "paid by nobody"})
    assert (found.result["paid"], found.first_difference, shop.world.paid) == ("paid by nobody", 4, [])
    found = await fork(recording, shop.code, at=3, allow=("pay",))
    assert (found.result["paid"], found.first_difference, shop.world.paid) == ("paid 7", None, [7])
    found = await fork(recording, shop.code, at=2, allow=())
    assert (found.outcome, type(found.error), shop.asked) == ("failed", PolicyDenied, [])


async def test_a_question_is_answered_or_the_fork_waits() -> None:
    recording, _ = await recorded(World())
    world = World()
    code = JobCode(Agent(world.job).call)
    found = await fork(recording, code, at=3)
    assert (found.outcome, found.result, found.first_difference) == ("waits", None, 4)
    found = await fork(recording, code, at=3, answers={"confirm": {"approved": False}})
    assert (found.outcome, found.result["approved"], found.result["paid"]) == ("succeeded", False, "paid 7")
    assert (world.provider.requests, world.paid) == ([], [])


@pytest.mark.parametrize("approved", [True, False])
@pytest.mark.parametrize("stands_in", [True, False])
async def test_what_a_policy_wants_a_person_to_allow_is_answered_too(approved: bool, stands_in: bool) -> None:
    """The fork waited for the person, whatever `answers` said."""
    recording, shop = await shop_recorded(), Shop()
    policy = PolicyEngine([ToolPolicy(["pay"], require_approval=True)])
    how: Any = {"allow": ("pay",), "guard": policy}
    found = await fork(recording, shop.code, at=3, **how)
    assert found.waits_for == (
        "a person who says whether call pay (step 4) may be made: answers={'confirm': …} (--answer confirm=JSON) answers it",
    )
    answers = {"confirm": {"approved": approved}, **({"pay": "paid by nobody"} if stands_in else {})}
    found = await fork(recording, shop.code, at=3, answers=answers, **how)
    assert (found.outcome, found.unused, found.waits_for) == ("succeeded", (), ())
    paid = ("paid by nobody" if stands_in else "paid 7") if approved else "pay was not done: it was rejected by fork"
    assert (found.result["paid"], shop.world.paid) == (paid, [7] if approved and not stands_in else [])


@pytest.mark.parametrize("word", ["job", "scope"])
async def test_what_was_approved_for_later_calls_of_the_job_is_not_approved_for_a_fork(word: str) -> None:
    """A fork made the second payment for real, as a person had said "always" in the recorded job."""
    paid: list[int] = []

    @tool(name="pay")  # a name tells it from other tools that the list of a closure does not
    async def pay_cents(cents: int) -> None:
        """Pays."""
        paid.append(cents)

    async def job(ctx: DurableContext) -> None:
        await ctx.call(pay_cents, 1)
        await ctx.call(pay_cents, 2)

    kernel = RuntimeKernel.create(agent=job, policy=PolicyEngine([ToolPolicy(["pay"], require_approval=True)]))
    handle = await kernel.execute(ExecutionRequest(prompt="go"))
    async for event in handle.events():
        if event.type == "action.required":
            await handle.resolve_action(event.data["resume_token"], {"approved": True, "always": word})
    recording, code = await kernel.record(handle.job_id), kernel.code()
    await kernel.close()
    assert paid == [1, 2]
    how: Any = {"at": 1, "allow": ("pay",), "no_wait": True}
    assert (await fork(recording, code, **how)).outcome == "waits"
    assert (await fork(recording, code, **how, answers={"confirm": False})).outcome == "failed"
    assert paid == [1, 2]
    assert (await fork(recording, code, **how, answers={"confirm": True})).outcome == "succeeded"
    assert paid == [1, 2, 2]


async def test_calls_of_a_new_history_and_children_are_allowed_by_answers_too() -> None:
    home, sent = MemoryStorage(ManualClock(1_000.0)), list[str]()

    async def was(ctx: DurableContext) -> None:
        await ctx.sleep("1ms")

    async def send(text: str) -> None:
        sent.append(text)

    async def job(ctx: DurableContext) -> Any:
        await ctx.call(send, ctx.message)
        if ctx.message == "hello":
            ctx.continue_as("again")
        return [await ctx.child("price", 1), await ctx.call(send, "last")]

    async with hosting(home, Agent(was)) as running:
        running.begin("job", "hello")
        await running.over("job")
    recording, code = record_job(MemoryReader(home), "job"), JobCode(Agent(job).call)
    names = ["send", "app.price"]
    policy = PolicyEngine([ToolPolicy(names[:1], require_approval=True), ToolPolicy(names[1:], require_approval=True)])
    how: Any = {"at": 0, "allow": ("send",), "guard": policy}
    found = await fork(recording, code, **how, answers={"confirm": {"approved": True}, "price": 9})
    assert (found.outcome, found.result, sent) == ("succeeded", [9, None], ["hello", "again", "last"])
    assert [step["outcome"] for step in steps_of(found.recording)] == ["ok"] * 4
    found = await fork(recording, code, **how, answers={"price": 9})
    assert (found.outcome, sent[3:]) == ("waits", [])


@pytest.mark.parametrize("said", [5, None, {"a": 1}, [["a text"]]])
async def test_an_answer_of_a_model_that_is_no_text_is_named(said: Any) -> None:
    """The error named a field that the user does not know: Expected `str | array`, got `int` - at `$.message.content`."""
    recording, shop = await shop_recorded(), Shop()
    found = await fork(recording, shop.code, at=0, answers={"llm": said})
    assert found.outcome == "failed"
    assert "answers={'llm': …} has the answer" in str(found.error)


async def test_whether_an_effect_was_done_is_answered_too() -> None:
    recording, shop = await shop_recorded(), Shop()

    @tool(effect="unsafe")
    async def pay(cents: int) -> str:
        """Pays, and nobody knows."""
        raise TimeoutError("no answer")

    shop.world.pay = pay
    found = await fork(recording, shop.code, at=3, allow=("pay",))
    assert found.waits_for[0].startswith("a person who says whether call pay (step 4) was made: answers={'in_doubt'")
    done = {"in_doubt": {"outcome": "done", "result": "paid 7"}}
    found = await fork(recording, shop.code, at=3, allow=("pay",), answers=done)
    assert (found.outcome, found.result["paid"], found.unused) == ("succeeded", "paid 7", ())


@pytest.mark.parametrize("said", ["done", True, {"outcome": "dnoe"}, {"outcome": []}, {}])
async def test_an_answer_that_does_not_say_whether_an_effect_was_done_is_refused(said: Any) -> None:
    """The call was abandoned instead, as if the answer had said so."""
    recording, shop = await shop_recorded(), Shop()

    @tool(effect="unsafe")
    async def pay(cents: int) -> str:
        """Pays, and nobody knows."""
        raise TimeoutError("no answer")

    shop.world.pay = pay
    with pytest.raises(UserError, match="does not say whether call pay was made"):
        await fork(recording, shop.code, at=3, allow=("pay",), answers={"in_doubt": said})


async def test_a_call_whose_outcome_stays_unknown_is_not_repeated_without_end() -> None:
    """The same answer was given after each attempt, so the fork made an unsafe call again and again."""
    recording, shop, tries = await shop_recorded(), Shop(), [0]

    @tool(effect="unsafe")
    async def pay(cents: int) -> str:
        """Pays, and nobody knows."""
        tries[0] += 1
        if tries[0] > 5:
            return "paid at last"
        raise TimeoutError("no answer")

    shop.world.pay = pay
    found = await fork(recording, shop.code, at=3, allow=("pay",), answers={"in_doubt": {"outcome": "not_done"}})
    assert (found.outcome, tries, found.unused) == ("waits", [2], ())
    assert found.waits_for == ("a person who says whether call pay (step 4) was made, and was asked before",)


async def test_what_had_no_result_by_then_is_asked_anew_and_an_unsafe_call_is_not_in_doubt() -> None:
    world = World()

    async def job(ctx: DurableContext) -> Any:
        paying = asyncio.ensure_future(ctx.call(world.pay, cents=7))
        await ctx.sleep("1ms")
        try:
            return await paying
        except PolicyDenied:
            return "denied"

    home = MemoryStorage(ManualClock(1_000.0))
    async with hosting(home, Agent(job)) as running:
        running.begin("job", "hello")
        await running.over("job")
    recording, paid = record_job(MemoryReader(home), "job"), list(world.paid)
    found = await fork(recording, JobCode(Agent(job).call), at=0)
    assert (found.result, world.paid) == ("denied", paid)


@pytest.mark.parametrize(
    ("effect", "allow", "left"),
    [
        ("unsafe", "pay", "open"),
        ("unsafe", "unsafe", "open"),
        ("unsafe", "pay", "abandoned"),
        ("unsafe", "pay", "failed"),
        ("idempotent", "pay", "open"),
    ],
)
async def test_a_call_that_the_job_may_have_made_is_not_made_again_by_a_fork(
    effect: Any, allow: str, left: str
) -> None:
    """A fork with `allow` paid a second time, with another idempotency key, what a person was asked about at that time."""
    paid: list[int] = []

    @tool(effect=effect, in_doubt="fail" if left == "failed" else "ask")
    async def pay(cents: int) -> str:
        paid.append(cents)
        if len(paid) == 1:
            if effect == "idempotent":
                await asyncio.Event().wait()
            raise TimeoutError("no answer")
        return f"paid {cents}"

    async def job(ctx: DurableContext) -> Any:
        try:
            return await ctx.call(pay, cents=7)
        except (EffectError, asyncio.CancelledError) as error:
            return str(error)

    home = MemoryStorage()
    async with hosting(home, Agent(job)) as running:
        running.begin("job", "hello")
        if effect == "idempotent":
            await until(lambda: paid)
        elif left == "failed":
            await running.over("job")
        else:
            await running.parks("job")
            if left == "abandoned":
                (action,) = [entry for entry in entries(home) if getattr(entry, "kind", "") == "ask"]
                running.journal.post(Letter("answer", action.token, body=b'{"outcome": "abandon"}'))
                await running.over("job")
        recording, code = record_job(MemoryReader(home), "job"), JobCode(Agent(job).call)
        with pytest.raises(UserError, match=r"may call pay a second time: job job has called it \(step 1\)"):
            await fork(recording, code, at=0, allow=(allow,))
        assert len(paid) == 1
        assert (await fork(recording, code, at=0, allow=(allow,), answers={"pay": "by nobody"})).result == "by nobody"
        assert (await fork(recording, code, at=0, allow=("other",))).outcome == "succeeded"
        assert len(paid) == 1
        not_done = {"in_doubt": {"outcome": "not_done"}}
        assert (await fork(recording, code, at=0, allow=(allow,), answers=not_done)).result == "paid 7"
        if left != "open" and effect == "unsafe":  # its outcome is what the job saw of it
            assert (await fork(recording, code, at=1, allow=(allow,))).first_difference is None
        assert len(paid) == 2


async def test_a_child_is_not_begun() -> None:
    async def job(ctx: DurableContext) -> Any:
        await ctx.sleep("1ms")
        if ctx.message == "child":
            return "child"
        return await ctx.child("agent", "child")

    home = MemoryStorage()
    async with hosting(home, Agent(job)) as running:
        running.begin("job", "hello")
        await running.over("job")
    found = await fork(record_job(MemoryReader(home), "job"), JobCode(Agent(job).call), at=1, allow=("agent", "unsafe"))
    assert (found.outcome, type(found.error), found.first_difference) == ("failed", PolicyDenied, 2)
    assert "it is a child" in str(found.error)


async def test_a_fork_says_what_it_cannot_do() -> None:
    recording, shop = await shop_recorded(), Shop()
    with pytest.raises(UserError, match="has no result of step 9: its steps are 1 to 4"):
        await fork(recording, shop.code, at=9)
    with pytest.raises(UserError, match="has events only"):
        await fork(Recording(RunMetadata.create()), shop.code, at=1)
    with pytest.raises(UserError, match="from a step on"):
        await ReplayPlayer(recording).replay(mode="fork", code=shop.code)

    async def other(ctx: DurableContext) -> Any:
        return await ctx.call(shop.look, "elsewhere")

    with pytest.raises(ReplayDifference, match=r"before the fork: .*the function asks for call look"):
        await fork(recording, JobCode(Agent(other).call), at=2)
    assert (shop.asked, shop.looked, shop.world.paid) == ([], [], [])


# -- what stands in, and what is asked otherwise ----------------------------------------------------------------------------


async def test_models_have_stand_ins_by_name_or_all_of_them() -> None:
    recording, shop = await shop_recorded(), Shop()
    found = await fork(recording, shop.code, at=2, answers={"llm": "by nobody"}, allow=())
    assert (found.result["then"], found.first_difference, shop.asked) == ("by nobody", 3, [])
    found = await fork(recording, shop.code, at=0, answers={"scripted-1": ["one", "two"], "look": "seen"})
    assert [found.result[each] for each in ("first", "seen", "then")] == ["one", "seen", "two"]
    assert (shop.asked, shop.looked) == ([], [])
    found = await fork(recording, shop.code, at=0, answers={"llm": ["one"]}, allow=("read",))
    assert found.outcome == "failed"
    assert "has 1 answers, and the fork asks for another one" in str(found.error)


async def test_another_model_is_asked_with_other_instructions_behind_the_step() -> None:
    recording, shop = await shop_recorded(), Shop("new")
    found = await fork(recording, shop.code, at=2, model="small", prompt="Be brief.")
    assert found.result["then"] == "new"
    [request] = shop.world.provider.requests
    assert (request.model, [each.text for each in request.messages]) == ("small", ["Be brief.", "what next?"])
    asked = {step["ordinal"]: step["asked"] for step in steps_of(found.recording)}
    assert "Be brief." in str(asked[3])
    assert "Be brief." not in str(asked[1])
    assert found.first_difference == 3


async def test_signals_and_children_have_stand_ins() -> None:
    async def job(ctx: DurableContext) -> Any:
        said = [await ctx.wait("price") for _ in range(2)]
        await ctx.sleep("1ms")
        return [said, await ctx.child("other", "go")]

    recording = await waiting_recorded(job)
    code = JobCode(Agent(job).call)
    found = await fork(recording, code, at=0)
    assert (found.outcome, found.first_difference) == ("waits", 2)
    found = await fork(recording, code, at=0, answers={"price": 7, "other": {"done": True}})
    assert (found.outcome, found.result) == ("succeeded", [[7, 7], {"done": True}])
    found = await fork(recording, code, at=1, answers={"price": 8, "app.other": "done"})
    assert found.result == [[5, 8], "done"]
    found = await fork(recording, code, at=None, answers={"price": 8})
    assert (found.result, type(found.error)) == (None, PolicyDenied)


async def waiting_recorded(job: Any) -> Recording:
    """A job that has had one signal, of the two that it waits for."""
    home = MemoryStorage(ManualClock(1_000.0))
    async with hosting(home, Agent(job)) as running:
        running.begin("job", "hello")
        await running.parks("job")
        running.journal.post(Letter("signal", "one", "job", "price", b"5"))
        await running.until(lambda: running.agent.wakes["job"])
        await running.parks("job", 1)
    return record_job(MemoryReader(home), "job")


async def test_a_fork_goes_on_over_continue_as() -> None:
    shop = Shop()

    async def counts(ctx: DurableContext) -> Any:
        seen = [*ctx.message, await ctx.call(shop.look, str(len(ctx.message))), ctx.random().random()]
        if len(seen) < 6:
            ctx.continue_as(seen)
        return seen

    home = MemoryStorage(ManualClock(1_000.0))
    async with hosting(home, Agent(counts)) as running:
        running.begin("job", [])
        await running.over("job")
        said = running.agent.done["job"]
    recording, code = record_job(MemoryReader(home), "job"), JobCode(Agent(counts).call)
    assert len(recording.seeds) == 3
    for at, calls in ((0, ["0", "2", "4"]), (1, ["2", "4"]), (2, ["4"]), (3, [])):
        shop.looked.clear()
        found = await fork(recording, code, at=at)
        assert (found.outcome, found.result, found.first_difference) == ("succeeded", said, None)
        assert shop.looked == calls
        assert verified(found.recording, code).same
    found = await fork(recording, code, at=1, answers={"look": "nothing"})
    assert [found.result[0], *found.result[2::2]] == ["0 is there", "nothing", "nothing"]
    assert found.result[1::2] == said[1::2]
    assert found.recording.seeds == recording.seeds


async def test_a_job_of_a_kernel_and_one_of_an_app_are_forked_over_continue_as() -> None:
    async def counts(ctx: Any) -> Any:
        said = await ctx.call(Shop().look, "there")
        if ctx.message["left"]:
            ctx.continue_as({"left": ctx.message["left"] - 1})
        return said

    async with RuntimeKernel.create(agent=counts) as kernel:
        handle = await kernel.execute(ExecutionRequest(prompt={"left": 2}))
        await handle.result()
        found = await fork(await kernel.record(handle.job_id), kernel.code(), at=1, answers={"look": "new"})
        assert (found.outcome, found.result) == ("succeeded", "new")
    app = App("forks", broker="memory://forks", journal="memory", state="memory")
    app.agent("orders", durable=True)(counts)
    await app.send("orders", {"left": 2})
    await app.start()
    try:
        await until(lambda: app.statistics()["jobs"]["ended"] == 1)
        [job] = await app.jobs.find()
        with app.jobs.store.reader() as reader:
            recording = record_job(reader, job.job_id)
    finally:
        await app.stop()
    [spec] = [agent.spec for agent in app.agent_runtime.agents.values()]
    found = await fork(recording, code_of(spec), at=1, answers={"look": "new"})
    assert (found.outcome, found.result) == ("succeeded", "new")


# -- its time --------------------------------------------------------------------------------------------------------------


async def sells(ctx: DurableContext) -> Any:
    said = (await ctx.ask("confirm", {}, timeout="5s")).outcome
    try:
        price = await ctx.wait("price", timeout="1s")
    except TimeoutError:
        price = None
    return [said, price, ctx.now()]


async def sold_without_answers() -> Recording:
    clock = ManualClock(1_000.0)
    async with hosting(home := MemoryStorage(clock), Agent(sells, clock)) as running:
        running.begin("job")
        await running.parks("job")
        clock.advance(5)
        await running.until(lambda: any(getattr(entry, "name", "") == "price" for entry in entries(home)))
        clock.advance(1)
        await running.over("job")
        assert running.agent.done["job"] == ["expired", None, 1_006_000]
    return record_job(MemoryReader(home), "job")


@pytest.mark.parametrize(
    ("at", "answers", "result"),
    [
        (0, {"confirm": {}, "price": 7}, ["resolved", 7, 1_000_000]),
        (1, {"price": 7}, ["expired", 7, 1_005_000]),
        (2, {"price": 7}, ["expired", None, 1_006_000]),
    ],
)
async def test_what_has_an_answer_is_answered_though_its_deadline_is_long_past(
    at: int, answers: dict[str, Any], result: list[Any]
) -> None:
    """The deadline of then was held against the clock of today, so the answer was refused, or not looked at."""
    code, recording = JobCode(Agent(sells).call), await sold_without_answers()
    found = await fork(recording, code, at=at, answers=answers, clock=ManualClock(90_000.0))
    assert (found.outcome, found.result, found.unused) == ("succeeded", result, ())
    assert verified(found.recording, code).same


async def test_a_deadline_is_as_far_away_from_the_begin_of_a_fork_as_it_was_for_the_job() -> None:
    code, recording = JobCode(Agent(sells).call), await sold_without_answers()
    clock = ManualClock(90_000.0)
    found = await fork(recording, code, at=0, clock=clock, no_wait=True)
    assert "for 0:00:05: " in found.waits_for[0]
    forking = asyncio.ensure_future(fork(recording, code, at=1, clock=clock))
    while not forking.done():
        await asyncio.sleep(0.001)
        clock.advance(0.25)
    assert forking.result().result[:2] == ["expired", None]


# -- what it waits for -----------------------------------------------------------------------------------------------------


async def asks_for_an_hour(ctx: DurableContext) -> Any:
    return [(await ctx.ask("confirm", {}, timeout="1h")).outcome, await ctx.sleep("30m")]


async def asked_for_an_hour(clock: ManualClock) -> Recording:
    home = MemoryStorage(clock)
    async with hosting(home, Agent(asks_for_an_hour, clock)) as running:
        running.begin("job")
        await running.parks("job")
    return record_job(MemoryReader(home), "job")


async def test_a_fork_that_waits_for_time_to_pass_says_for_what_and_how_long(caplog: pytest.LogCaptureFixture) -> None:
    """It was silent for as long as the question was open."""
    clock = ManualClock(1_000.0)
    recording = await asked_for_an_hour(clock)
    forking = asyncio.ensure_future(fork(recording, JobCode(Agent(asks_for_an_hour).call), at=0, clock=clock))
    await until(lambda: caplog.messages)
    clock.advance(3_600)
    await until(lambda: len(caplog.messages) == 2)
    clock.advance(1_800)
    found = await forking
    assert (found.outcome, found.result, found.waits_for) == ("succeeded", ["expired", None], ())
    assert caplog.messages == [
        "the fork of job job waits for ask confirm (step 1), for 1:00:00: answers={'confirm': …} (--answer confirm=JSON) answers it; "
        "no_wait=True (--no-wait) ends it there",
        "the fork of job job waits for sleep (step 2), for 0:30:00; no_wait=True (--no-wait) ends it there",
    ]


async def test_a_fork_that_is_not_to_wait_ends_with_what_it_needs(caplog: pytest.LogCaptureFixture) -> None:
    clock = ManualClock(1_000.0)
    recording = await asked_for_an_hour(clock)
    code: Any = JobCode(Agent(asks_for_an_hour).call)
    found = await fork(recording, code, at=0, clock=clock, no_wait=True)
    said = "ask confirm (step 1), for 1:00:00: answers={'confirm': …} (--answer confirm=JSON) answers it"
    assert (found.outcome, found.waits_for) == ("waits", (said,))
    found = await fork(recording, code, at=0, clock=clock, no_wait=True, answers={"confirm": {"approved": True}})
    assert (found.outcome, found.waits_for) == ("waits", ("sleep (step 2), for 0:30:00",))
    found = await ReplayPlayer(recording).replay(mode="fork", code=code, at=0, no_wait=True)
    assert (found.outcome, caplog.messages) == ("waits", [])


async def test_the_calls_of_a_fork_have_keys_of_their_own_and_its_attempts_share_one() -> None:
    """With the key of the job's call a service would drop the call of the fork, though its arguments are others."""
    keys: list[str] = []

    @tool(effect="idempotent", retries=1, backoff="1ms")
    def put(cents: int, effect: Effect) -> str:
        keys.append(effect.key)
        if len(keys) == 2:
            raise TimeoutError("no answer")
        return effect.key

    async def job(ctx: DurableContext) -> Any:
        said = (await ctx.llm(engine).complete("how much?")).content
        return await ctx.call(put, cents=int(said))

    provider = ScriptedProvider(lambda spec: "7")
    engine = ExecutionEngine(provider)
    home = MemoryStorage(ManualClock(1_000.0))
    async with hosting(home, Agent(job)) as running:
        running.begin("job", "hello")
        await running.over("job")
    recording = record_job(MemoryReader(home), "job")
    found = await fork(recording, JobCode(Agent(job).call), at=0, answers={}, allow=("idempotent", "metered"))
    of_job, first, second = keys
    assert (found.outcome, found.result) == ("succeeded", second)
    assert first == second != of_job
    assert len(set(provider.keys)) == 2  # what vendors are sent


@pytest.mark.one_in(3, "a tenth of a second of a core each")
@pytest.mark.parametrize(
    ("effects", "allow", "makes"),
    [
        (None, FORK_ALLOWS, False),
        ({"add": "read"}, FORK_ALLOWS, True),
        ("read", FORK_ALLOWS, True),
        (None, ("add",), True),
        (None, ("unsafe",), True),
        ({"add": "unsafe"}, FORK_ALLOWS, False),
    ],
)
async def test_a_class_that_a_server_hints_does_not_hold_in_a_fork(
    effects: Any, allow: tuple[str, ...], makes: bool
) -> None:
    """A server may call what sends mails "read only": an evaluation sent 200 of them."""
    desk = Desk()
    async with McpServerPool() as pool:
        (add,) = await pool.tools("desk", connect=in_memory(lambda key: desk.server()), only=["add"], effects=effects)

        async def job(ctx: DurableContext) -> Any:
            try:
                return (await ctx.call(add, a=1, b=2)).text
            except PolicyDenied as error:
                return error.message

        home = MemoryStorage(ManualClock(1_000.0))
        async with hosting(home, Agent(job)) as running:
            running.begin("job", "hello")
            await running.over("job")
            assert running.agent.done["job"] == "3"
        found = await fork(record_job(MemoryReader(home), "job"), JobCode(Agent(job).call), at=0, allow=allow)
    assert len(desk.calls) == 1 + makes
    assert (found.result == "3") == makes
    if effects is None and not makes:
        assert "by the hints of its MCP server only" in found.result
        assert "effects=…) declares its class, and allow=['add'] makes it" in found.result


async def test_a_fork_is_judged_by_the_policy_and_the_budgets_of_the_kernel_or_app_of_its_code(memory_url: str) -> None:
    """A fork in a program called the denied tools, since `guard=` and `ledger=` of `fork` had no value unless given."""
    looked: list[str] = []

    @tool(effect="read")
    async def look(at: str) -> str:
        looked.append(at)
        return at

    engine = ExecutionEngine(ScriptedProvider(["hi"] * 9))

    async def job(ctx: Any) -> list[str]:
        await ctx.step(lambda: 1, effect="read")
        said = []
        for call in (ctx.call(look, "a"), ctx.llm(engine).complete("hi"), ctx.llm(engine).complete("again")):
            try:
                said.append(str(getattr(await call, "content", "made")))
            except Exception as error:
                said.append(type(error).__name__)
        return said

    denied = PolicyEngine([ToolPolicy(["look"], denied=True)])
    async with RuntimeKernel.create(agent=job, policy=denied, budgets=[Budget("*", max_calls_daily=2)]) as kernel:
        handle = await kernel.execute(ExecutionRequest(prompt="go"))
        assert (await handle.result()).output == ["PolicyDenied", "hi", "hi"]
        recording = await kernel.record(handle.job_id)
        code = kernel.code()
        found = await ReplayPlayer(recording).replay(mode=ReplayMode.FORK, code=code, at=1)
        assert found.result == ["PolicyDenied", "BudgetExceeded", "BudgetExceeded"]
        assert looked == []
        found = await fork(recording, code, at=1, guard=PolicyEngine([]), ledger=Ledger(InMemoryLedgerWriter()))
        assert (found.result, looked) == (["made", "hi", "hi"], ["a"])
    budgets = [Budget("*", max_calls_daily=1)]
    app = App("desk", memory_url, state="memory", journal="memory", policy=denied, budgets=budgets)
    app.agent("tickets", name="job", durable=True)(job)
    spec = app.agent_runtime.agents["desk.job"].spec
    assert spec is not None
    code = code_of(spec)
    assert code.accounts is not None
    assert (code.policy, await code.accounts()) == (denied, app.accounts)
    assert looked == ["a"]


async def test_a_fork_within_judged_code_needs_rules_too() -> None:
    recording, _ = await recorded(World())

    @tool(effect="read")
    async def forks() -> str:
        try:
            return (await fork(recording, JobCode(Agent(World().job).call), at=1)).outcome
        except UserError as error:
            return error.message

    async def job(ctx: Any) -> str:
        return str(await ctx.call(forks))

    async with RuntimeKernel.create(agent=job, policy=PolicyEngine([])) as kernel:
        result = await (await kernel.execute(ExecutionRequest(prompt="go"))).result()
        assert "a fork of job" in result.output
        assert "has no policy=, and code whose calls are judged starts it" in result.output
