"""The patterns: chain, parallel, map and reduce, plan and execute, debate, router. Each pattern is itself an operator, so
patterns can contain patterns.

A step gets the fields of the input of its pattern, and the results of earlier steps under names that each pattern
describes.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import msgspec

from sabot.base.checks import is_whole
from sabot.base.options import answers_wrong_options
from sabot.engine.calls.tool_results import model_or_text
from sabot.errors import UNREADABLE, UserError, short_repr
from sabot.specified.flows.base import (
    Flow,
    FlowFailed,
    Operator,
    OperatorContext,
    OperatorLike,
    OperatorResult,
    as_operator,
    fields_of,
    prompt_of,
    run_parallel,
    step,
    usage_of,
    with_content,
)

Aggregate = Callable[[list[OperatorResult]], Any]


def _several(given: Sequence[OperatorLike], what: str) -> list[Operator]:
    if isinstance(given, str) or not isinstance(given, Sequence) or not given:
        raise UserError(f"{what}: {short_repr(given)}", hint="a list of operators, not empty")
    return [as_operator(each, what) for each in given]


@answers_wrong_options
class ChainOperator(Flow):
    """A flow that executes operators one after the other. Each operator gets the input of the chain and the content of
    the previous operator. If that content is a mapping, its fields are added to the input; otherwise it is the field
    "text". The result of the last operator is the result of the chain. If an operator fails, the chain ends, and its
    result is that of the failed operator.
    """

    def __init__(self, operators: Sequence[OperatorLike], *, name: str = "") -> None:
        super().__init__(name=name)
        self.operators = _several(operators, "ChainOperator")

    async def _flow(self, given: Any, context: OperatorContext) -> OperatorResult:
        done: list[OperatorResult] = []
        next_given = given
        for operator in self.operators:
            result = await step(operator, next_given, context)
            done.append(result)
            if not result.success:
                break
            next_given = with_content(given, result.content)
        return replace(done[-1], usage=usage_of(done), metadata={**done[-1].metadata, "steps": len(done)})


@answers_wrong_options
class ParallelOperator(Flow):
    """A flow that executes several operators at the same time with the same input. The content of its result is the
    list of their contents. It succeeds if all operators succeed.

    `aggregate` is a function that makes the content of the result instead. It gets the list of the results
    (OperatorResult) of all operators, including those that have failed. With `aggregate`, the flow succeeds if at least
    one operator succeeds. If none does, the function is not called.
    """

    def __init__(
        self, operators: Sequence[OperatorLike], *, aggregate: Aggregate | None = None, name: str = ""
    ) -> None:
        super().__init__(name=name)
        self.operators = _several(operators, "ParallelOperator")
        self._aggregate = aggregate

    async def _flow(self, given: Any, context: OperatorContext) -> OperatorResult:
        results = await run_parallel([(each, given) for each in self.operators], context)
        failed = [result for result in results if not result.success]
        success = len(failed) < len(results) if self._aggregate else not failed
        made = self._aggregate and success
        content = self._aggregate(results) if made and self._aggregate else [result.content for result in results]
        return OperatorResult(
            content,
            success=success,
            error=failed[0].error if failed else None,
            usage=usage_of(results),
            metadata={"results": results},
        )


@answers_wrong_options
class MapReduceOperator(Flow):
    """A flow that executes one operator for each item of a list, and then another operator once with all the results.
    `items` is the name of the field of the input that contains the list.

    - `map_operator` gets the other fields of the input, and one item. If the item is a mapping, its fields are added to
      the input; otherwise it is the field "text".
    - `reduce_operator` gets the other fields of the input, "results" (the list of contents, in the order of the items)
      and "text" (the contents joined to one text). If the map operator fails for an item, the reduce operator is not
      executed, and the flow has failed.
    """

    def __init__(
        self, map_operator: OperatorLike, reduce_operator: OperatorLike, *, items: str = "items", name: str = ""
    ) -> None:
        super().__init__(name=name)
        self.map_operator = as_operator(map_operator, "MapReduceOperator: map_operator")
        self.reduce_operator = as_operator(reduce_operator, "MapReduceOperator: reduce_operator")
        self._items = items

    @property
    def takes_items(self) -> bool:
        """True, so that a PlannerExecutorOperator executes this operator once, with all steps of the
        plan as its items.
        """
        return True

    async def _flow(self, given: Any, context: OperatorContext) -> OperatorResult:
        fields = fields_of(given)
        items = fields.pop(self._items, None)
        if isinstance(items, str | Mapping) or not isinstance(items, Sequence):
            raise FlowFailed(f"{self.name}: its input has no list {self._items!r}: {short_repr(given)}")
        mapped = await run_parallel([(self.map_operator, with_content(fields, item)) for item in items], context)
        for number, result in enumerate(mapped):
            if not result.success:
                return replace(result, usage=usage_of(mapped), metadata={"item": number})
        reduced = await step(self.reduce_operator, _with_results(fields, mapped), context)
        return replace(reduced, usage=usage_of([*mapped, reduced]), metadata={**reduced.metadata, "results": mapped})


def _with_results(fields: Mapping[str, Any], results: Sequence[OperatorResult]) -> dict[str, Any]:
    contents = [result.content for result in results]
    return {**fields, "results": contents, "text": "\n\n".join(map(prompt_of, contents))}


@answers_wrong_options
class PlannerExecutorOperator(Flow):
    """A flow of three operators: the planner makes a plan, the executor executes each step of the plan, and the
    synthesizer writes the answer. In the following, the content of an operator is the content of its result.

    - `planner`: its content is the plan. It is a list; or a mapping with a list "steps", "items" or "tasks"; or a text
      with JSON of this form, or with one step per line.
    - `executor`: is executed once for each step, in order. It gets the input of the flow; the step (its fields are
      added if it is a mapping, otherwise it is the field "text"); and "results", the list of the contents for the
      earlier steps. A MapReduceOperator, and any operator with `takes_items`, is executed only once, with all steps in
      the field "items".
    - `synthesizer`: gets the input of the flow, "results" (the list of the executor's contents) and "text" (these
      contents, joined to one text). Its content is the content of the flow. With None, the content of the flow is the
      list "results", or for an executor with `takes_items` the single content of the executor.
    - `max_steps`: the most steps of a plan; a longer plan is a failure.

    If one of the three operators fails, the flow ends and has failed.
    """

    def __init__(
        self,
        planner: OperatorLike,
        executor: OperatorLike,
        synthesizer: OperatorLike | None = None,
        *,
        max_steps: int = 50,
        name: str = "",
    ) -> None:
        super().__init__(name=name)
        self.planner = as_operator(planner, "PlannerExecutorOperator: planner")
        self.executor = as_operator(executor, "PlannerExecutorOperator: executor")
        self.synthesizer = None if synthesizer is None else as_operator(synthesizer, "PlannerExecutorOperator")
        if not is_whole(max_steps, 1):
            raise UserError(
                f"PlannerExecutorOperator: max_steps={short_repr(max_steps)}", hint="a whole number, at least 1"
            )
        self._max_steps = max_steps

    async def _flow(self, given: Any, context: OperatorContext) -> OperatorResult:
        plan = await step(self.planner, given, context)
        if not plan.success:
            return plan
        steps = _steps_of(plan.content)
        if not 0 < len(steps) <= self._max_steps:
            raise FlowFailed(f"{self.name}: the plan has {len(steps)} steps, of at most {self._max_steps}")
        done = [plan]
        fields = fields_of(given)
        if self.executor.takes_items:
            results = [await step(self.executor, {**fields, "items": steps}, context)]
        else:
            results = []
            for each in steps:
                before = [result.content for result in results]
                results.append(await step(self.executor, {**with_content(fields, each), "results": before}, context))
                if not results[-1].success:
                    break
        done += results
        if not results[-1].success:
            return replace(results[-1], usage=usage_of(done), metadata={"plan": steps, "step": len(results) - 1})
        if self.synthesizer is not None:
            last = await step(self.synthesizer, _with_results(fields, results), context)
            done.append(last)
        elif self.executor.takes_items:
            last = results[0]
        else:
            last = OperatorResult([result.content for result in results])
        return replace(last, usage=usage_of(done), metadata={**last.metadata, "plan": steps})


_LISTED = re.compile(r"^\s*(?:[-*•]|\d+[.):])\s+(.+)$")


def _steps_of(content: Any) -> list[Any]:
    plan = (
        content if isinstance(content, str | Mapping | list) else msgspec.to_builtins(content, enc_hook=model_or_text)
    )
    if isinstance(plan, str):
        plan = _read(plan)
    if isinstance(plan, Mapping):
        found = [plan[name] for name in ("steps", "items", "tasks") if isinstance(plan.get(name), list)]
        if not found:
            raise FlowFailed(f'a plan has no list "steps", "items" or "tasks": {short_repr(content)}')
        plan = found[0]
    if not isinstance(plan, list | tuple):
        raise FlowFailed(f"a plan is a list, fields or a text, and this is none: {short_repr(content)}")
    return list(plan)


def _read(text: str) -> Any:
    """Returns the steps of a plan from a text. The text is JSON, or has one step per line. If lines begin with list
    marks ("-", "1."), only these lines are steps, without their marks.
    """
    try:
        plan = msgspec.json.decode(text)
    except UNREADABLE:
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        return [found[1].strip() for line in lines if (found := _LISTED.match(line))] or lines
    return plan if isinstance(plan, list | dict) else [plan]


@answers_wrong_options
class DebateOperator(Flow):
    """A flow in which debaters argue in rounds, and a moderator decides.

    - In each round, all debaters run at the same time. They get the input, "round" (the number of the round, from 1)
      and "arguments" (the contributions of all earlier rounds). A contribution is a dict with "debater", "round" and
      "text".
    - Then the moderator gets the input, "round", "rounds" (the most rounds) and "arguments" (now with those of this
      round).
    - The debate ends when the content of the moderator has the field "consensus" with the value True, or after
      `max_rounds` rounds. The content of the flow is the moderator's content in the last round.
    - If a debater fails, its contribution is left out in this round. If all debaters fail, or the moderator fails, the
      flow has failed.
    """

    def __init__(
        self, debaters: Sequence[OperatorLike], moderator: OperatorLike, *, max_rounds: int = 3, name: str = ""
    ) -> None:
        super().__init__(name=name)
        self.debaters = _several(debaters, "DebateOperator: debaters")
        self.moderator = as_operator(moderator, "DebateOperator: moderator")
        if not is_whole(max_rounds, 1):
            raise UserError(f"DebateOperator: max_rounds={short_repr(max_rounds)}", hint="a whole number, at least 1")
        self.max_rounds = max_rounds

    async def _flow(self, given: Any, context: OperatorContext) -> OperatorResult:
        fields, done = fields_of(given), []
        arguments: list[dict[str, Any]] = []
        for number in range(1, self.max_rounds + 1):
            told = {**fields, "round": number, "arguments": list(arguments)}
            said = await run_parallel([(each, told) for each in self.debaters], context)
            done += said
            if not any(result.success for result in said):
                return replace(said[0], usage=usage_of(done), metadata={"rounds": number})
            arguments += [
                {"debater": debater.name, "round": number, "text": prompt_of(result.content)}
                for debater, result in zip(self.debaters, said, strict=True)
                if result.success
            ]
            asked = {**fields, "round": number, "rounds": self.max_rounds, "arguments": list(arguments)}
            decided = await step(self.moderator, asked, context)
            done.append(decided)
            if not decided.success or _agreed(decided.content):
                break
        metadata = {**decided.metadata, "rounds": number, "arguments": arguments}
        return replace(decided, usage=usage_of(done), metadata=metadata)


def _agreed(content: Any) -> bool:
    value = content.get("consensus") if isinstance(content, Mapping) else getattr(content, "consensus", False)
    return value is True


@answers_wrong_options
class Router(Flow):
    """A flow that executes one of several operators. `routes` contains the operators by name. `choose` is an operator
    or a function; the content of its result is the name of a route. If there is no route with this name, the route
    `default` is used. Without a `default`, the flow then fails.
    """

    def __init__(
        self,
        routes: Mapping[str, OperatorLike],
        choose: OperatorLike,
        *,
        default: str | None = None,
        name: str = "",
    ) -> None:
        super().__init__(name=name)
        if not isinstance(routes, Mapping) or not routes:
            raise UserError(f"Router: routes={short_repr(routes)}", hint='{"name": operator}')
        self.routes = {str(key): as_operator(each, f"Router: {key}") for key, each in routes.items()}
        self.choose = as_operator(choose, "Router: choose")
        if default is not None and default not in self.routes:
            raise UserError(f"Router: default={short_repr(default)}", hint=f"one of {', '.join(self.routes)}")
        self.default = default

    async def _flow(self, given: Any, context: OperatorContext) -> OperatorResult:
        chosen = await step(self.choose, given, context)
        if not chosen.success:
            return chosen
        route = _route_of(chosen.content)
        if route not in self.routes:
            if self.default is None:
                raise FlowFailed(f"{self.name}: {short_repr(route)} is no route; routes are: {', '.join(self.routes)}")
            route = self.default
        result = await step(self.routes[route], given, context)
        return replace(result, usage=usage_of([chosen, result]), metadata={**result.metadata, "route": route})


def _route_of(content: Any) -> str:
    if isinstance(content, str):
        return content.strip().strip("\"'`.")
    named = content.get("route") if isinstance(content, Mapping) else getattr(content, "route", content)
    return str(named)
