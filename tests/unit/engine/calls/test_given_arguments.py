"""The quick ways to a call's arguments beside `call_arguments`, which takes longer and knows all functions."""

from functools import partial, wraps

import pytest

from sabot.engine.calls.arguments import all_given, call_arguments, values_left_out
from sabot.engine.calls.tool_context import Effect
from sabot.engine.calls.tools import as_tool, tool


def two(a, b): ...
def with_default(a, b=2): ...
def by_name(a, *, b): ...
def by_place(a, /, b): ...
def with_rest(a, b, *rest): ...
def with_more(a, b, **more): ...
def with_effect(a, b, effect: Effect): ...


@wraps(two)
def wrapper(*args, **kwargs): ...


class Till:
    def pay(self, a, b): ...


FUNCTIONS = [two, with_default, by_name, by_place, with_rest, with_more, with_effect, wrapper, Till().pay]
FUNCTIONS += [partial(two, 1), partial(two, b=2), tool(two)]
CALLS = [((), {"b": 2, "a": 1}), ((1,), {"b": 2}), ((1, 2), {}), ((1,), {}), ((), {"a": 1}), ((), {}), ((1, 2, 3), {})]
CALLS += [((1,), {"c": 3}), ((1, 2), {"c": 3})]


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda each: getattr(each, "__qualname__", "partial"))
@pytest.mark.parametrize(("args", "kwargs"), CALLS)
def test_arguments_that_are_all_given_are_those_of_each_call(function, args, kwargs):
    made = as_tool(function)
    found = all_given(made, args, kwargs)
    if found is not None:
        assert [*found.items()] == [*call_arguments(made, args, kwargs).items()]
        assert [*found.items()] == [*call_arguments(made, args, kwargs, filled=False).items()]
        assert values_left_out(made, args, kwargs) == {}


def test_most_calls_give_all_arguments_of_a_plain_function():
    for function in (two, with_default, by_name, tool(two)):
        assert all_given(as_tool(function), (1,), {"b": 2}) == {"a": 1, "b": 2}
    for function in (with_effect, wrapper, Till().pay, partial(two, 1)):
        assert all_given(as_tool(function), (1,), {"b": 2}) is None
