"""Code of values (validators, serializers, properties, copies) that calls a tool, a model or a kernel while the call with
these values is judged, shown, recorded or copied.
"""

import asyncio
import dataclasses
from collections.abc import Callable
from typing import Any

import pydantic
import pytest

from sabot.agents import (
    ConstraintPolicy,
    ExecutionRequest,
    GuardedCall,
    PolicyEngine,
    RedactionPolicy,
    RuntimeKernel,
    ToolPolicy,
    tool,
)
from sabot.errors import UserError
from sabot.llm import Agent, ExecutionEngine, ScriptedProvider, ToolCall, assistant

made: list[str] = []
tasks: list[asyncio.Task[None]] = []


@tool
def wire(order: str) -> None:
    made.append(order)


class Serialized(pydantic.BaseModel):
    x: int = 1

    @pydantic.field_serializer("x")
    def _x(self, value: int) -> int:
        wire("serializer")
        return value


class Computed(pydantic.BaseModel):
    x: int = 1

    @pydantic.computed_field  # type: ignore[prop-decorator]
    @property
    def total(self) -> int:
        wire("computed field")
        return 2


class CopiedModel(pydantic.BaseModel):
    x: int = 1

    def __deepcopy__(self, memo: Any = None) -> "CopiedModel":
        wire("copy")
        return self


@dataclasses.dataclass
class Copied:
    x: int = 1

    def __deepcopy__(self, memo: Any) -> "Copied":
        wire("copy")
        return self


@dataclasses.dataclass
class Read:
    x: int = 1

    def __getattribute__(self, name: str) -> Any:
        if name == "x":
            wire("attribute")
        return object.__getattribute__(self, name)


class Pairs(dict[str, int]):
    def items(self) -> Any:
        wire("items")
        return super().items()


class Items(list[int]):
    def __iter__(self) -> Any:
        wire("iteration")
        return super().__iter__()


class Checked(pydantic.BaseModel):
    x: int = 1

    @pydantic.field_validator("x")
    @classmethod
    def _x(cls, value: int) -> int:
        wire("validator")
        return value


class Asks(pydantic.BaseModel):
    x: int = 1

    @pydantic.field_serializer("x")
    def _x(self, value: int) -> int:
        tasks.append(asyncio.get_running_loop().create_task(ask_directly()))
        return value


async def ask_directly() -> None:
    for start in (
        lambda: ExecutionEngine(ScriptedProvider(["hi"])).complete("hi"),
        lambda: Agent(ExecutionEngine(ScriptedProvider(["hi"]))).run("hi"),
        lambda: RuntimeKernel.create(agent=pays, policy=PolicyEngine([]), budgets=[]).execute(
            ExecutionRequest(prompt="go")
        ),
    ):
        try:
            await start()
        except UserError as error:
            made.append(error.message.partition(":")[0])
        else:
            made.append("started")


async def pays(ctx: Any) -> None:
    await ctx.call(wire, "kernel")


def taking(value: Any) -> Any:
    """Returns a tool with this default."""

    def take(x: Any = value) -> str:
        return "taken"

    plain = next((each for each in (dict, list) if isinstance(value, each)), type(value))
    take.__annotations__["x"] = plain
    return tool(take)


async def run(function: Any, *rules: Any, answer: Any = None) -> str:
    """Runs a job whose policy denies the tool, and returns its output or the message of its error."""
    policy = PolicyEngine([ToolPolicy(["wire"], denied=True), *rules])
    async with RuntimeKernel.create(agent=function, policy=policy) as kernel:
        handle = await kernel.execute(ExecutionRequest(prompt="go"))
        waiting = asyncio.ensure_future(handle.result())
        while not waiting.done() and not (questions := await handle.get_pending_actions()):
            await asyncio.wait([waiting], timeout=0.001)
        if not waiting.done():
            await kernel.actions.resolve(questions[0].resume_token, answer, by="ann")
        try:
            result = await waiting
            return str(result.content if result.output is None else result.output)
        except Exception as error:
            return str(error)


REFUSED = "wire was not called: code of a value of take does it"


@pytest.mark.one_in(4, "hundredths of a second of a core each")
@pytest.mark.parametrize("value", [Serialized, Computed, CopiedModel, Copied, Read, Pairs, Items])
@pytest.mark.parametrize("rule", ["bound", "own rule", "approval"])
@pytest.mark.parametrize("asked_by", ["function", "model"])
async def test_code_of_a_default_calls_no_tool_while_the_call_is_judged_and_shown(
    value: Callable[..., Any], rule: str, asked_by: str
) -> None:
    """A default is copied, packed and looked into on the event loop of the app, where no job's judge was: each of these
    classes called the denied tool up to 14 times for one call.
    """
    take = taking(value() if value not in (Pairs, Items) else value({"x": 1} if value is Pairs else [1]))

    def seen(call: GuardedCall) -> None:
        if call.kind == "tool":
            dict(call.arguments)

    rules = {
        "bound": ConstraintPolicy(["take"], "x.*" if value is Items else "x.x", max=5),
        "own rule": seen,
        "approval": ToolPolicy(["take"], require_approval=True),
    }

    async def function(ctx: Any) -> str:
        return str(await ctx.call(take))

    model = Agent(ExecutionEngine(ScriptedProvider([assistant("", ToolCall("c", "take", "{}")), "done"])), tools=[take])
    made.clear()
    said = await run(function if asked_by == "function" else model, rules[rule], answer={"approved": True})
    assert made == []
    assert REFUSED in said or (asked_by == "model" and said == "done")


@pytest.mark.parametrize("value", [Read, Pairs, Items])
async def test_code_of_a_default_calls_no_tool_while_texts_are_hidden_in_it(value: Callable[..., Any]) -> None:
    take = taking(value() if value is Read else value({"x": 1} if value is Pairs else [1]))

    async def function(ctx: Any) -> str:
        return str(await ctx.call(take))

    made.clear()
    assert REFUSED in await run(function, RedactionPolicy(["[0-9]{8}"]))
    assert made == []


async def test_a_validator_calls_no_tool_when_an_edit_is_checked_and_applied() -> None:
    """The answer is checked where it is given, if the process has the tool, and applied by the host of the job."""

    def take(x: Checked) -> str:
        return "taken"

    checked, value = tool(take), Checked.model_construct(x=1)

    async def function(ctx: Any) -> str:
        return str(await ctx.call(checked, value))

    made.clear()
    answer = {"approved": True, "arguments": {"x": {"x": 2}}}
    said = await run(function, ToolPolicy(["take"], require_approval=True), answer=answer)
    assert REFUSED in said
    assert made == []


class ShownSchema(pydantic.BaseModel):
    x: int = 1

    @classmethod
    def __get_pydantic_json_schema__(cls, core: Any, handler: Any) -> Any:
        wire("schema")
        return handler(core)


class NoSchema(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(json_schema_extra={"examples": [object()]})  # type: ignore[list-item]
    x: int = 1


@pytest.mark.parametrize(
    ("kind", "words"), [(ShownSchema, "{'x': 2}"), (NoSchema, "{'x': 2}"), (Checked, REFUSED), (Serialized, REFUSED)]
)
async def test_code_of_the_type_of_a_result_in_doubt_calls_no_tool_and_ends_no_kernel(kind: Any, words: str) -> None:
    """A schema that is no JSON ended the kernel with all its jobs."""

    def take() -> Any:
        raise ConnectionResetError("lost")

    take.__annotations__["return"] = kind
    lost = tool(take)

    async def function(ctx: Any) -> str:
        return str(await ctx.call(lost))

    made.clear()
    assert words in await run(function, answer={"outcome": "done", "result": {"x": 2}})
    assert made == []


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (Serialized(), "wire was not called: code of a value of ctx.continue_as does it"),
        (object(), "it has a value of type object in it"),
    ],
    ids=["calls a tool", "is no value"],
)
async def test_a_message_with_which_a_job_cannot_continue_fails_this_job_only(message: Any, words: str) -> None:
    """It ended the kernel with all its jobs."""

    async def function(ctx: Any) -> str:
        if ctx.message == "go":
            ctx.continue_as(message)
        return "done"

    made.clear()
    async with RuntimeKernel.create(agent=function) as kernel:
        for prompt, wanted in (("go", words), ("on", "done")):
            handle = await kernel.execute(ExecutionRequest(prompt=prompt))
            try:
                said = str((await handle.result()).output)
            except Exception as error:
                said = str(error)
            assert wanted in said
    assert made == []


async def test_code_of_the_output_of_a_job_calls_no_tool() -> None:
    async def function(ctx: Any) -> Any:
        return Serialized()

    made.clear()
    async with RuntimeKernel.create(agent=function) as kernel:
        with pytest.raises(Exception, match="wire was not called: code of a value of function does it"):
            await (await kernel.execute(ExecutionRequest(prompt="go"))).result()
    assert made == []


async def test_code_of_a_default_asks_no_model_and_begins_no_job() -> None:
    """A task that the code begins has its context, so what it calls later is refused too."""
    take = taking(Asks())

    async def function(ctx: Any) -> str:
        return str(await ctx.call(take))

    made.clear()
    tasks.clear()
    await run(function, ConstraintPolicy(["take"], "x.x", max=5))
    await asyncio.gather(*tasks)
    assert set(made) == {"a model was not asked", "kernel kernel was not started"}


async def test_a_start_runs_no_code_of_values_that_an_agent_names() -> None:
    """The tools that an agent can reach are looked for in lists and dicts that its function names."""
    take = taking(Items([1]))

    async def function(ctx: Any) -> str:
        return str(take.name)

    made.clear()
    assert await run(function) == "take"
    assert made == []
