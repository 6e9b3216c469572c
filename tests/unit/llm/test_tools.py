"""How a function becomes a tool: what can be said of it, what is refused and how, and how it gets its effect."""

from __future__ import annotations

import functools
import gc
import re
import types
import weakref
from collections.abc import AsyncIterator, Iterator  # the types of tools are looked up
from typing import TYPE_CHECKING, Any

import pytest

import sabot.llm
from sabot import AgentContext
from sabot.agents import ExecutionContext, OperatorContext
from sabot.agents.durable.context import DurableContext
from sabot.engine.calls import Retry
from sabot.engine.calls.effects import EffectClass, EffectId, Reconciled
from sabot.engine.calls.tool_context import Effect as TheEffect
from sabot.engine.calls.tools import Tool, as_tool, tool
from sabot.errors import UserError
from sabot.llm import Agent, ExecutionEngine, RequestContext, ScriptedProvider, ToolCall, assistant

if TYPE_CHECKING:
    from sabot.llm import Effect


async def look(effect: TheEffect, *args: Any, **kwargs: Any) -> Reconciled:
    return Reconciled.UNKNOWN


def test_a_function_is_an_unsafe_tool_that_asks_a_person_when_it_is_in_doubt() -> None:
    @tool
    async def send_mail(to: str) -> str:
        """Sends a mail."""
        return to

    assert (send_mail.name, send_mail.effect, send_mail.in_doubt) == ("send_mail", EffectClass.UNSAFE, "ask")
    assert (send_mail.timeout_s, send_mail.retry, send_mail.is_async) == (None, Retry(0, 0.1), True)
    assert send_mail.__doc__ == "Sends a mail."


@pytest.mark.parametrize("kind", list(EffectClass))
def test_a_tool_says_how_it_may_be_repeated(kind: EffectClass) -> None:
    made = tool(effect=kind.value, reconcile=look if kind is EffectClass.RECONCILABLE else None)(len)
    assert (made.name, made.effect, made.is_async) == ("len", kind, False)


def test_a_reconciling_function_makes_a_tool_reconcilable() -> None:
    assert tool(reconcile=look)(len).effect is EffectClass.RECONCILABLE


def test_time_outs_and_retries_are_parsed() -> None:
    made = tool(effect="read", timeout="2s", retries=3, backoff="50ms", name="length")(len)
    assert (made.name, made.timeout_s, made.retry) == ("length", 2.0, Retry(3, 0.05))


def test_a_tool_that_is_called_is_its_function() -> None:
    assert tool(len)("abc") == 3


def test_a_tool_has_the_names_of_its_function_so_that_wraps_finds_them() -> None:
    @tool(name="mail")
    async def send_mail(to: str) -> str:
        return to

    @functools.wraps(send_mail)
    async def inner(to: str) -> str:
        return await send_mail(to)

    assert (inner.__name__, inner.__qualname__.rpartition(".")[2]) == ("send_mail", "send_mail")
    assert tool(functools.partial(max, 1), name="most").__name__ == "most"  # type: ignore[attr-defined]  # set at runtime


def test_a_tool_may_be_a_method() -> None:
    class Shop:
        name = "shop"

        @tool(effect="read")
        def price(self, item: str) -> str:
            return f"{self.name}: {item}"

    bound = Shop().price
    assert (bound.name, bound.effect, bound("shoe")) == ("price", EffectClass.READ, "shop: shoe")
    assert isinstance(Shop.price, Tool)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"effect": "harmless"}, "tool len: effect='harmless' is no class of effects"),
        ({"in_doubt": "guess"}, "tool len: in_doubt='guess'"),
        ({"effect": "read", "in_doubt": "fail"}, "tool len: in_doubt='fail' of a tool whose effect is 'read'"),
        ({"effect": "reconcilable"}, "tool len: reconcile=None"),
        ({"effect": "idempotent", "reconcile": look}, "tool len: reconcile= of a tool whose effect is 'idempotent'"),
        ({"reconcile": "look"}, "tool len: reconcile='look'"),
        ({"timeout": "soon"}, "tool len: timeout: 'soon' is no duration"),
        ({"timeout": 0}, "tool len: timeout=0"),
        ({"backoff": "-1s"}, "tool len: backoff: '-1s' is a negative duration"),
        ({"retries": -1}, "tool len: retries=-1"),
        ({"retries": True}, "tool len: retries=True"),
        ({"name": "a\nb"}, "tool: name='a\\\\nb' has a control character"),
    ],
)
def test_what_cannot_be_is_refused_with_the_name_of_the_tool(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        tool(**options)(len)


def test_what_is_no_function_is_refused() -> None:
    with pytest.raises(UserError, match="tool: 'read' is no function"):
        tool("read")  # type: ignore[call-overload]
    with pytest.raises(UserError, match="tool Shop: it is a class"):
        tool(type("Shop", (), {}))
    with pytest.raises(UserError, match="tool len: it is a tool already"):
        tool(tool(len))


async def test_the_result_of_a_generator_is_the_list_of_what_it_yields() -> None:
    def pieces(most: int = 3) -> Iterator[int]:
        yield from range(most)

    async def later(most: int) -> AsyncIterator[int]:
        for each in range(most):
            yield each

    class Pieces:
        def __call__(self, most: int) -> Iterator[int]:
            yield from range(most)

    assert (tool(pieces)(2), tool(pieces)(), await tool(later)(2)) == ([0, 1], [0, 1, 2], [0, 1])
    for each in (pieces, later, functools.partial(later), tool(name="pieces")(Pieces())):
        assert as_tool(each).schema.parameters["properties"]["most"]["type"] == "integer"
    provider = ScriptedProvider([assistant("", ToolCall("c", "later", '{"most": 3}')), "done"])
    await Agent(ExecutionEngine(provider, retries=0), tools=[later]).run("x")
    assert provider.requests[1].messages[-1].text == "[0,1,2]"


def test_a_tool_gets_its_effect_by_a_parameter_also_where_its_annotation_is_text() -> None:
    def named(x: int, effect: Effect) -> None: ...
    def dotted(x: int, *, effect: sabot.llm.Effect) -> None: ...
    def optional(x: int, effect: Effect | None = None) -> None: ...
    def another(x: int, effect: str) -> None: ...
    def without(x: int) -> Effect: ...

    assert [as_tool(each).takes_effect for each in (named, dotted, optional, another, without)] == [
        *(True, True, True),
        *(False, False),
    ]


def test_an_annotation_of_a_class_gives_the_effect_too() -> None:
    def real(effect): ...

    real.__annotations__ = {"effect": TheEffect}
    assert as_tool(real).takes_effect
    real.__annotations__ = {"effect": TheEffect | None}
    assert as_tool(real).takes_effect


def test_a_class_of_the_users_that_is_called_effect_too_is_not_ours() -> None:
    def tints(effect): ...

    tints.__annotations__ = {"effect": "LocalEffect"}
    assert not as_tool(tints).takes_effect
    elsewhere = types.FunctionType(tints.__code__, {"Effect": str, "shop": types.SimpleNamespace(Effect=str)}, "tints")
    for text in ("Effect", "shop.Effect", "shop.Effect | None"):
        elsewhere.__annotations__ = {"effect": text}
        assert not as_tool(elsewhere).takes_effect


@pytest.mark.parametrize(
    "function",
    [
        lambda e: None,
        lambda effect, /: None,
        lambda e, effect: None,
    ],
)
def test_an_effect_by_another_name_or_by_place_alone_is_refused(function: Any) -> None:
    function.__name__ = "pay"
    function.__annotations__ = dict.fromkeys(function.__code__.co_varnames, TheEffect)
    with pytest.raises(UserError, match=r"tool pay: its parameter '(e|effect)' is an Effect .*effect: Effect"):
        tool(function)


def test_what_is_behind_a_partial_or_an_object_decides_whether_it_is_async() -> None:
    class Caller:
        async def __call__(self, x: int, effect: Effect) -> int:
            return x

    async def call(x: int, effect: Effect) -> int:
        return x

    for each, name in ((Caller(), "Caller"), (functools.partial(call, 1), "call")):
        made = as_tool(each)
        assert (made.name, made.is_async, made.takes_effect) == (name, True, True)


def test_what_a_call_says_stands_before_what_the_tool_says() -> None:
    search = tool(effect="read", timeout="1s", retries=2)(len)
    assert as_tool(search) is search
    changed = as_tool(search, effect="idempotent", timeout="5s", retries=0)
    assert (changed.effect, changed.timeout_s, changed.retry.retries) == (EffectClass.IDEMPOTENT, 5.0, 0)
    assert (as_tool(abs).effect, as_tool(abs, effect="read").effect) == (EffectClass.UNSAFE, EffectClass.READ)
    assert as_tool(len) is search, "its function"
    with pytest.raises(UserError, match="tool len: effect='x' is no class"):
        as_tool(search, effect="x")
    with pytest.raises(UserError, match="tool len: timeout=0"):
        as_tool(search, timeout=0)


def test_an_effect_has_what_a_service_needs_to_know_a_call_again() -> None:
    first, second = EffectId("job", 3, 1), EffectId("job", 3, 2)
    assert TheEffect(first, first.key, 1, None).key == TheEffect(second, second.key, 2, 12.0).key


def test_a_function_is_looked_into_once_and_not_kept_alive() -> None:
    def made() -> weakref.ref[Any]:
        async def pay(amount: int) -> int:
            return amount

        first, again, other = as_tool(pay, effect="read"), as_tool(pay, effect="read"), as_tool(pay)
        assert (first, first.effect, other.effect) == (again, EffectClass.READ, EffectClass.UNSAFE)
        assert again.func is pay
        return weakref.ref(pay)

    function = made()
    gc.collect()
    assert function() is None


def _of_kind(kind: Any) -> Any:
    def gives(order: int, ctx: Any) -> int:
        """Gives money back."""
        return order

    gives.__annotations__["ctx"] = kind
    return gives


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (ExecutionContext, "ExecutionContext"),
        (RequestContext, "RequestContext"),
        (AgentContext, "AgentContext"),
        (DurableContext, "DurableContext"),
        (OperatorContext, "OperatorContext"),
        (ExecutionContext | None, "ExecutionContext"),
        (list[RequestContext], "RequestContext"),
        ("ExecutionContext | None", "ExecutionContext"),
    ],
)
def test_a_context_of_ours_is_no_parameter_that_a_model_fills(kind: Any, name: str) -> None:
    """A model wrote the scope and the principal for which the tool then worked."""
    engine = ExecutionEngine(ScriptedProvider("yes"))
    with pytest.raises(UserError, match=f"tool gives: its parameter 'ctx' is a {name}, which the model") as caught:
        Agent(engine, tools=[_of_kind(kind)])
    assert "a first one `ctx: ToolContext`" in caught.value.hint


def test_the_tools_of_a_method_have_its_objects_and_keep_none_alive() -> None:
    """Inspecting the method anew for each `ctx.step(desk.pay, …)` took a third of the time of an effect."""

    class Desk:
        async def pay(self, amount: int) -> Any:
            return self, amount

    one, other = Desk(), Desk()
    made = [as_tool(each.pay, effect="read") for each in (one, other)]
    assert [each.func.__self__ for each in made] == [one, other]
    plain = as_tool(Desk.pay, effect="read")
    assert [each.name for each in (*made, plain)] == ["pay"] * 3
    assert all(each.is_async and not each.takes_effect for each in made)
    assert as_tool(one.pay, effect="unsafe").effect is EffectClass.UNSAFE
    assert made[0].effect is EffectClass.READ
    kept = weakref.ref(one)
    del one, made
    gc.collect()
    assert kept() is None


async def test_a_partial_of_a_tool_is_a_tool_with_its_parameters() -> None:
    """Its types were sought in the class of tools: "name 'Callable' is not defined"."""

    @tool
    async def pay(order: str, effect: TheEffect, amount: int = 5) -> str:
        return f"{amount} for {order} by {effect.key}"

    model = ScriptedProvider([assistant("", ToolCall("1", "pay", '{"order": "o-1"}')), assistant("done")], model="m")
    part = functools.partial(functools.partial(pay, amount=7))
    assert as_tool(part).takes_effect
    assert as_tool(part).is_async
    await Agent(ExecutionEngine(model, retries=0), tools=[part], name="desk").run("go")
    assert model.requests[-1].messages[-1].content.startswith("7 for o-1 by sabot-")


async def test_a_function_that_wraps_a_tool_has_its_types() -> None:
    @tool(effect="read")
    async def add(first: int, second: int) -> int:
        return first + second

    @functools.wraps(add)
    async def logged(*args: Any, **kwargs: Any) -> int:
        return await add(*args, **kwargs)

    made = as_tool(logged)
    assert made.arguments('{"first": 1, "second": 2}') == {"first": 1, "second": 2}
    with pytest.raises(sabot.llm.ToolError, match="Expected `int`"):
        made.arguments('{"first": "1", "second": 2}')


def find_order(order: str, amount: int = 5) -> bool:
    return False


def find_perhaps(order: str | None, amount: int = 5) -> bool:
    return False


def find_any(order: Any, amount: int = 5) -> bool:
    return False


class Bank:
    def find(self, order: dict[str, int]) -> bool:
        return False


@pytest.mark.parametrize(
    ("look", "says"),
    [
        (
            find_order,
            "reconcile=find_order gets the Effect of the call as its first argument, and order is declared as str",
        ),
        (lambda order: False, "and order is a parameter of the tool"),
        (find_perhaps, "and order is declared as str | NoneType"),
        (find_any, "and order is a parameter of the tool"),
        (Bank().find, "and order is declared as dict"),
        (lambda: False, "and it takes none by place"),
        (lambda **arguments: False, "and it takes none by place"),
        (lambda o, a=0: False, "and it does not take order, amount behind o, which does not say that it is the Effect"),
        (lambda given, order: False, "and it does not take order, amount behind given"),
    ],
)
def test_a_look_up_that_is_written_with_the_arguments_of_its_tool_is_refused(look: Any, says: str) -> None:
    """It got the Effect in place of the order, did not find it, and the payment was made again."""

    def pay(order: str, amount: int = 5) -> None:
        """Pays."""

    with pytest.raises(UserError, match=re.escape(says)) as refused:
        tool(reconcile=look)(pay)
    assert "(effect: Effect, …)" in refused.value.hint


def find_anything(given: Any, order: str, amount: int) -> bool:
    return True


def find_key(given: Effect) -> bool:
    return True


@pytest.mark.parametrize(
    "look",
    [
        find_anything,
        find_key,
        lambda effect: True,
        lambda found, order, *, amount: True,
        lambda effect, order, amount=5: True,
        lambda _, **arguments: True,
        lambda *arguments: True,
        functools.partial(lambda bank, effect, order: True, "bank"),
    ],
)
def test_a_look_up_that_may_take_an_effect_first_is_taken(look: Any) -> None:
    def pay(order: str, amount: int = 5) -> None:
        """Pays."""

    assert tool(reconcile=look)(pay).reconcile is look
