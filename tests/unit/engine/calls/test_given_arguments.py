"""The quick ways to a call's arguments beside `call_arguments`, which takes longer and knows all functions."""

import gc
import weakref
from functools import partial, wraps

import pytest

from sabot.engine.calls.arguments import all_given, call_arguments, plain_arguments, values_left_out
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


def test_parameters_of_a_function_are_read_once_and_not_for_each_step():
    # each look at __code__ or __defaults__ raises an audit event, for which the hook of `jobs.direct_io` is called
    assert as_tool(two).plain is as_tool(two).plain
    assert as_tool(two).plain == (("a", "b"), 2, False)
    assert as_tool(by_name).plain == (("a", "b"), 1, False)
    assert as_tool(with_default).plain == (("a", "b"), 2, True)
    assert [as_tool(each).plain for each in (wrapper, Till().pay, partial(two, 1))] == [None] * 3


def test_defaults_are_those_of_each_function_of_one_name():
    made = []
    for amount in (1, 2):

        def pay(order, amount=amount): ...

        made.append(as_tool(pay))
    assert [plain_arguments(each, ("o-1",), {}) for each in made] == [{"order": "o-1", "amount": n} for n in (1, 2)]


def test_a_step_function_is_freed_although_its_defaults_and_annotations_refer_to_it():
    class Till:
        pass

    till = Till()

    def pay(order: till, till=till): ...

    till.pay, gone = pay, weakref.ref(pay)
    assert [as_tool(pay).name for _ in range(2)] == ["pay", "pay"]
    del pay, till
    gc.collect()
    assert gone() is None
