"""A call in an empty context of `contextvars` is judged by whose code makes it, or refused.

The function of a job is known by its event loop. Elsewhere nobody can tell whether a tool, an agent or the program has
begun the task, so the call is refused while something judges in this process.
"""

import asyncio
import gc
from collections.abc import Awaitable, Callable
from contextvars import Context
from typing import Any

import pytest

from sabot import App
from sabot.agents import (
    Budget,
    ExecutionRequest,
    GuardedCall,
    InMemoryLedgerWriter,
    ModelPolicy,
    PolicyEngine,
    RuntimeKernel,
    ToolPolicy,
)
from sabot.errors import EffectError, PolicyDenied, UserError
from sabot.journal.memory import MemoryJournal, MemoryStorage
from sabot.llm import Agent, ExecutionEngine, ScriptedProvider, ToolCall, assistant, tool
from tools.agent_tools import publish, started, until

POLICY = PolicyEngine([ToolPolicy(["pay*"], denied=True), ModelPolicy(["*"], denied=True)])
UNKNOWN = (
    "an app or a kernel with a policy or budgets runs in this process, and this code has no context of the program"
)


class Bank:
    """The tools and models of one test, and what was called of them."""

    def __init__(self) -> None:
        made: list[str] = []
        self.made = made

        @tool
        async def pay(to: str) -> str:
            made.append(to)
            return "paid"

        @tool
        def pay_now(to: str) -> str:
            made.append(to)
            return "paid"

        def answer(spec: Any) -> Any:
            made.append("model")
            return "done" if spec.messages[-1].role == "tool" else assistant("", ToolCall("1", "pay", '{"to": "eve"}'))

        self.pay, self.pay_now = pay, pay_now
        self.engine = ExecutionEngine(ScriptedProvider(answer, model="m"), retries=0, patience=0)
        self.agent = Agent(self.engine, tools=[pay])


def in_context(call: Awaitable[Any]) -> Awaitable[Any]:
    return asyncio.create_task(call, context=Context())  # type: ignore[arg-type]


async def soon(bank: Bank) -> Any:
    done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def calls() -> None:
        try:
            done.set_result(bank.pay_now("eve"))
        except Exception as error:
            done.set_exception(error)

    asyncio.get_running_loop().call_soon(calls, context=Context())
    return await done


async def by_hand(bank: Bank) -> Any:
    call = bank.pay("eve")
    try:
        Context().run(call.send, None)
    except StopIteration as end:
        return end.value
    finally:
        call.close()


WAYS: dict[str, Callable[[Bank], Awaitable[Any]]] = {
    "task": lambda bank: in_context(bank.pay("eve")),
    "model": lambda bank: in_context(bank.engine.complete("pay")),
    "agent": lambda bank: in_context(bank.agent.run("pay")),
    "callback": soon,
    "coroutine": by_hand,
}


@pytest.mark.parametrize("rules", [True, False])
@pytest.mark.parametrize("way", [*WAYS, "def"])
async def test_the_function_of_a_job_makes_no_call_in_an_empty_context(way: str, rules: bool) -> None:
    bank = Bank()

    async def work(ctx: Any) -> Any:
        return Context().run(bank.pay_now, "eve") if way == "def" else await WAYS[way](bank)

    async with RuntimeKernel.create(agent=work, policy=POLICY if rules else None) as kernel:
        handle = await kernel.execute(ExecutionRequest(prompt="go"))
        with pytest.raises(EffectError, match=r"the function calls (the tool pay|an engine)"):
            await handle.result()
    assert bank.made == []


@pytest.mark.parametrize("way", [*WAYS, "def"])
async def test_a_tool_of_a_job_makes_no_call_in_an_empty_context(way: str) -> None:
    bank = Bank()

    @tool
    async def works() -> Any:
        return Context().run(bank.pay_now, "eve") if way == "def" else await WAYS[way](bank)

    async def work(ctx: Any) -> Any:
        return await ctx.call(works)

    async with RuntimeKernel.create(agent=work, policy=POLICY) as kernel:
        handle = await kernel.execute(ExecutionRequest(prompt="go"))
        with pytest.raises(EffectError, match=f"{UNKNOWN}|is denied"):
            await handle.result()
    assert bank.made == []


async def test_an_agent_without_jobs_makes_no_call_in_an_empty_context(memory_url: str) -> None:
    bank, said = Bank(), list[str]()
    app = App("bank", memory_url, policy=POLICY, state="memory")

    @app.agent("orders")
    async def handle(message: Any) -> None:
        for way in WAYS.values():
            try:
                await way(bank)
            except Exception as error:
                said.append(str(error))

    async with started(app):
        publish(app, "orders", [{"n": 1}])
        await until(lambda: len(said) == len(WAYS))
    assert all(UNKNOWN in each or "is denied" in each for each in said), said
    assert bank.made == []


@pytest.mark.parametrize("kind", ["kernel", "app"])
async def test_what_is_begun_in_an_empty_context_has_rules_of_its_own(kind: str) -> None:
    """A tool could begin it to call everything."""
    bank = Bank()

    async def pays(ctx: Any) -> Any:
        return await ctx.call(bank.pay, "eve")

    async def begin(policy: PolicyEngine | None) -> Any:
        if kind == "app":
            async with started(App("inner", "memory://inner", state="memory", policy=policy)):
                return None
        async with RuntimeKernel.create(agent=pays, policy=policy) as inner:
            return await (await inner.execute(ExecutionRequest(prompt="go"))).result()

    async with RuntimeKernel.create(agent=pays, policy=POLICY):
        with pytest.raises(UserError, match="has no policy=, and code whose calls are judged starts it"):
            await in_context(begin(None))
        if kind == "kernel":
            with pytest.raises(EffectError, match="tool pay is denied"):
                await in_context(begin(POLICY))
    assert bank.made == []


async def test_a_finalizer_that_the_garbage_collector_runs_makes_no_call_beside_rules() -> None:
    """It may be code of any job or agent, and runs in the context of whoever makes the next object."""
    bank, said = Bank(), list[str]()

    class Holder:
        def __init__(self) -> None:
            self.me = self

        def __del__(self) -> None:
            try:
                bank.pay_now("eve")
            except (UserError, PolicyDenied) as error:  # whoever lets it run
                said.append(str(error))

    async def work(ctx: Any) -> None:
        Holder()

    async with RuntimeKernel.create(agent=work, policy=POLICY) as kernel:
        await (await kernel.execute(ExecutionRequest(prompt="go"))).result()
        gc.collect()
    assert bank.made == []
    assert len(said) == 1


async def test_the_program_itself_calls_beside_rules() -> None:
    bank = Bank()

    async def work(ctx: Any) -> None: ...

    async with RuntimeKernel.create(agent=work, policy=POLICY):
        assert await bank.pay("ann") == bank.pay_now("ann") == await asyncio.create_task(bank.pay("ann")) == "paid"
        assert (await bank.agent.run("pay")).content == "done"


async def test_an_empty_context_may_call_where_nothing_judges() -> None:
    bank = Bank()
    assert await in_context(bank.pay("ann")) == Context().run(bank.pay_now, "ann") == "paid"


async def test_a_plain_thread_that_runs_the_app_is_the_program() -> None:
    """A page of a notebook server runs in a plain thread, whose own contexts are all empty."""
    bank = Bank()

    async def work(ctx: Any) -> None: ...

    async def program() -> str:
        async with RuntimeKernel.create(agent=work, policy=POLICY):
            return await bank.pay("ann")

    assert await asyncio.get_running_loop().run_in_executor(None, lambda: asyncio.run(program())) == "paid"


class Spy:
    """Parts of a program's own that a kernel calls for no job, each of which calls a denied tool. `said`: what became of
    the call, by the part.
    """

    def __init__(self) -> None:
        bank, said, looks = Bank(), dict[str, list[str]](), [False]
        self.bank, self.said, self.looks = bank, said, looks

        def pays(part: str) -> None:
            if not looks[0]:
                return
            try:
                bank.pay_now(part)
            except (PolicyDenied, UserError) as error:
                said.setdefault(part, []).append(str(error))

        class Writer(InMemoryLedgerWriter):
            async def write(self, events: Any) -> None:
                pays("writer")
                await super().write(events)

            async def close(self) -> None:
                pays("end of the writer")
                await super().close()

        class OwnJournal(MemoryJournal):
            def append(self, *entry: Any, **options: Any) -> Any:
                pays("journal")
                return super().append(*entry, **options)

        class OwnError(Exception):
            def __str__(self) -> str:
                pays("text of an error")
                return "broken"

        async def fails() -> None:
            raise OwnError

        def rule(call: GuardedCall) -> None:
            if call.name == "fails":
                pays("rule")

        async def slow_rule(call: GuardedCall) -> None:
            if call.name == "fails":
                pays("async rule")

        self.writer, self.journal, self.fails = Writer(), OwnJournal(MemoryStorage()), fails
        self.rules = [rule, slow_rule]


async def test_what_a_kernel_calls_for_no_job_is_judged() -> None:
    spy = Spy()

    async def work(ctx: Any) -> str:
        try:
            await ctx.step(spy.fails)
        except EffectError:
            await ctx.llm(spy.bank.engine).complete("go")
            return "done"
        return ""

    policy = PolicyEngine([ToolPolicy(["pay*"], denied=True), *spy.rules])
    parts: dict[str, Any] = {
        "journal": spy.journal,
        "ledger_writer": spy.writer,
        "budgets": [Budget("*", max_calls_daily=9)],
    }
    async with RuntimeKernel.create(agent=work, policy=policy, **parts) as kernel:
        spy.looks[0] = True  # what the start itself calls, the program calls
        await (await kernel.execute(ExecutionRequest(prompt="go"))).result()
    parts_seen = {"writer", "end of the writer", "journal", "text of an error", "rule", "async rule"}
    assert spy.said.keys() == parts_seen
    assert all("tool pay_now is denied" in each for said in spy.said.values() for each in said), spy.said
    assert spy.bank.made == ["model"]


async def test_a_journal_that_the_program_reaches_is_its_own_and_otherwise_judged() -> None:
    """`execute` and the stores of a kernel wait for the journal in the task of the program. It calls there as it likes."""
    bank, program, said = Bank(), asyncio.current_task(), dict[str, set[str]]()

    def pays(part: str) -> None:
        whose = "program" if asyncio.current_task() is program else "kernel"
        try:
            said.setdefault(f"{part} of the {whose}", set()).add(bank.pay_now(part))
        except PolicyDenied:
            said.setdefault(f"{part} of the {whose}", set()).add("denied")

    class OwnJournal(MemoryJournal):
        async def flush(self) -> dict[int, int]:
            pays("flush")
            return await super().flush()

        def append(self, *entry: Any, **options: Any) -> Any:
            pays("append")
            return super().append(*entry, **options)

    async def work(ctx: Any) -> Any:
        return await ctx.step(lambda: "done")

    async with RuntimeKernel.create(agent=work, policy=POLICY, journal=OwnJournal(MemoryStorage())) as kernel:
        handle = await kernel.execute(ExecutionRequest(prompt="go"))
        assert (await handle.result()).output == "done"
    assert said.pop("append of the kernel") == {"denied"}
    assert said.pop("flush of the program") == {"paid"}
    assert said.pop("flush of the kernel", {"denied"}) == {"denied"}
    assert said == {}
