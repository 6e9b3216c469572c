"""Flows: what each pattern hands from step to step, what its bounds are, how it fails."""

import asyncio
from typing import Any

import msgspec
import pytest

from sabot.agents import (
    AgentNode,
    AgentStep,
    BudgetSpec,
    ChainOperator,
    ConditionalNode,
    DebateOperator,
    DepthExceeded,
    DurableContext,
    Effect,
    EndNode,
    ExecutionContext,
    ExecutionGraph,
    ExecutionRequest,
    FlowCycle,
    FlowFailed,
    FlowTimeout,
    FunctionStep,
    GraphEdge,
    GraphExecutor,
    GraphNode,
    MapReduceOperator,
    Operator,
    OperatorContext,
    OperatorResult,
    OrchestrationConfig,
    ParallelNode,
    ParallelOperator,
    PlannerExecutorOperator,
    PolicyRef,
    Router,
    RuntimeKernel,
    Workflow,
    WorkflowState,
)
from sabot.engine.calls.messages import ToolCall
from sabot.errors import UserError
from sabot.llm import Agent, ExecutionEngine, ModelUnavailable, RequestContext, ScriptedProvider, assistant, tool


def context(**bounds: Any) -> OperatorContext:
    return OperatorContext(config=OrchestrationConfig(**bounds))


def seen(into: list[Any], content: Any = "done") -> FunctionStep:
    """An operator that keeps what it is given."""

    def look(given: Any) -> Any:
        into.append(given)
        return content

    return FunctionStep(look)


def fails(given: Any) -> Any:
    raise ModelUnavailable("the model is down", provider="p", model="m")


class Answer(msgspec.Struct):
    label: str


# -- operators -------------------------------------------------------------------------------------------------------------


async def test_an_agent_as_a_step_is_shown_the_fields_and_gives_its_output() -> None:
    provider = ScriptedProvider(['{"label": "spam"}', "a text"])
    engine = ExecutionEngine(provider)
    one = AgentStep(Agent(engine, output=Answer), prompt="Classify: {text}")
    assert (await one.execute({"text": "buy"})).content == Answer("spam")
    assert provider.requests[0].messages[-1].text == "Classify: buy"
    result = await AgentStep(Agent(engine)).execute({"topic": "tea", "results": ["a", 1]})
    assert provider.requests[1].messages[-1].text == 'topic: tea\nresults: ["a",1]'
    assert result.content == "a text"
    assert result.usage.total_tokens > 0


async def test_a_prompt_that_needs_a_field_which_is_not_there_says_which() -> None:
    step = AgentStep(Agent(ExecutionEngine(ScriptedProvider("x")), name="writer"), prompt="{topic}")
    with pytest.raises(UserError, match=r"operator writer.*'topic'.*its input has text"):
        await step.execute({"text": "a"})


async def test_a_step_of_one_s_own_has_its_agent_and_its_name() -> None:
    class Summarizer(Operator):
        @property
        def name(self) -> str:
            return "summarizer"

        async def execute(self, input_data: dict[str, Any], context: OperatorContext) -> OperatorResult:
            ran = await self.agent.run(f"Summarize: {input_data['text']}")
            return OperatorResult(content=ran.content, success=True)

    provider = ScriptedProvider("short")
    chain = ChainOperator([Summarizer(Agent(ExecutionEngine(provider)))])
    assert (await chain.execute({"text": "long"}, ExecutionContext(scope_id="t"))).content == "short"
    assert provider.requests[0].messages[-1].text == "Summarize: long"


async def test_what_is_no_result_and_what_is_no_operator_is_refused() -> None:
    class Wrong(Operator):
        async def execute(self, input_data: Any, context: Any = None) -> Any:
            return "text"

    with pytest.raises(UserError, match="operator Wrong: execute returned 'text'"):
        await ChainOperator([Wrong()]).execute({})
    with pytest.raises(UserError, match="ChainOperator: 7 is no operator"):
        ChainOperator([7])  # type: ignore[list-item]
    with pytest.raises(UserError, match="ParallelOperator"):
        ParallelOperator([])
    with pytest.raises(UserError, match="is no context of an operator"):
        await ChainOperator([seen([])]).execute({}, {"scope_id": "t"})


async def test_an_error_of_the_program_ends_the_flow_and_one_of_the_world_is_its_result() -> None:
    def broken(given: Any) -> Any:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await ChainOperator([broken]).execute({})
    result = await ChainOperator([fails, broken]).execute({})
    assert not result.success
    assert isinstance(result.error, ModelUnavailable)
    with pytest.raises(FlowFailed, match=r"the chain has failed.*the model is down"):
        result.checked("the chain")


# -- patterns --------------------------------------------------------------------------------------------------------------


async def test_a_chain_hands_on_the_fields_and_the_content() -> None:
    given: list[Any] = []
    chain = ChainOperator([seen(given, "a"), seen(given, {"found": 1}), seen(given, Answer("x")), seen(given, "end")])
    result = await chain.execute({"topic": "tea"})
    assert given == [
        {"topic": "tea"},
        {"topic": "tea", "text": "a"},
        {"topic": "tea", "found": 1},
        {"topic": "tea", "label": "x"},
    ]
    assert result.content == "end"
    assert result.metadata["steps"] == 4


async def test_parallel_steps_keep_their_order_and_run_at_most_so_many_at_a_time() -> None:
    running = most = 0

    def step(number: int) -> FunctionStep:
        async def run(given: Any) -> int:
            nonlocal running, most
            running += 1
            most = max(most, running)
            for _ in range(10 - number):
                await asyncio.sleep(0)
            running -= 1
            return number

        return FunctionStep(run)

    steps = [step(number) for number in range(6)]
    assert (await ParallelOperator(steps).execute({}, context(max_parallel=3))).content == list(range(6))
    assert most == 3
    most = 0
    await ParallelOperator(steps).execute({}, context(parallel_execution=False))
    assert most == 1


async def test_a_branch_that_fails_is_the_failure_of_all_unless_they_are_aggregated() -> None:
    result = await ParallelOperator([seen([], "a"), fails]).execute({})
    assert not result.success
    assert isinstance(result.error, ModelUnavailable)
    assert result.content[0] == "a"
    best = ParallelOperator(
        [seen([], "a"), fails], aggregate=lambda all_: [each.content for each in all_ if each.success]
    )
    result = await best.execute({})
    assert result.success
    assert result.content == ["a"]
    assert not (await ParallelOperator([fails], aggregate=len).execute({})).success


async def test_a_mistake_of_one_branch_ends_the_branches_before_it() -> None:
    """A branch that waited for an approval was made days after the flow had failed by the mistake of a later branch."""
    ended: list[str] = []

    async def waits(given: Any) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("waits")

    async def mistakes(given: Any) -> None:
        raise RuntimeError("a mistake")

    with pytest.raises(RuntimeError, match="a mistake"):
        await asyncio.wait_for(ParallelOperator([waits, mistakes]).execute({}), timeout=60)
    assert ended == ["waits"]


async def test_map_and_reduce() -> None:
    mapped: list[Any] = []
    reduced: list[Any] = []
    flow = MapReduceOperator(seen(mapped, "found"), seen(reduced, "all"))
    result = await flow.execute({"topic": "tea", "items": ["a", {"url": "b"}]})
    assert mapped == [{"topic": "tea", "text": "a"}, {"topic": "tea", "url": "b"}]
    assert reduced == [{"topic": "tea", "results": ["found", "found"], "text": "found\n\nfound"}]
    assert result.content == "all"
    assert (await flow.execute({"items": []})).content == "all"
    with pytest.raises(FlowFailed, match="its input has no list 'items'"):
        await flow.execute({"items": "abc"})
    failed = await MapReduceOperator(fails, seen(reduced)).execute({"items": [1]})
    assert not failed.success
    assert failed.metadata == {"item": 0}
    assert len(reduced) == 2


@pytest.mark.parametrize(
    ("plan", "steps"),
    [
        (["a", "b"], ["a", "b"]),
        ({"steps": ["a", "b"]}, ["a", "b"]),
        ('["a", "b"]', ["a", "b"]),
        ('{"tasks": ["a", "b"]}', ["a", "b"]),
        ("The plan:\n1. a\n 2) b\n", ["a", "b"]),
        ("- a\n* b", ["a", "b"]),
        ("a\n\nb\n", ["a", "b"]),
    ],
)
async def test_a_plan_is_read_however_a_model_writes_it(plan: Any, steps: list[str]) -> None:
    given: list[Any] = []
    flow = PlannerExecutorOperator(planner=seen([], plan), executor=seen(given, "did"))
    result = await flow.execute({"topic": "tea"})
    assert given == [{"topic": "tea", "text": step, "results": ["did"] * number} for number, step in enumerate(steps)]
    assert result.content == ["did"] * len(steps)
    assert result.metadata["plan"] == steps


async def test_a_plan_may_be_executed_as_map_and_reduce_and_put_together() -> None:
    ended: list[Any] = []
    flow = PlannerExecutorOperator(
        planner=seen([], ["a", "b"]),
        executor=MapReduceOperator(
            map_operator=lambda given: given["text"] * 2, reduce_operator=lambda given: given["text"]
        ),
        synthesizer=seen(ended, "report"),
    )
    result = await flow.execute({"topic": "tea"})
    assert result.content == "report"
    assert ended == [{"topic": "tea", "results": ["aa\n\nbb"], "text": "aa\n\nbb"}]


async def test_a_plan_that_is_empty_too_long_or_none_is_a_failure() -> None:
    for plan in ([], ["a"] * 51, {"goal": "x"}, None, 7):
        with pytest.raises(FlowFailed, match="plan"):
            await PlannerExecutorOperator(seen([], plan), seen([])).execute({})
    result = await PlannerExecutorOperator(seen([], ["a", "b"]), fails).execute({})
    assert not result.success
    assert result.metadata["step"] == 0


async def test_a_debate_goes_on_until_the_moderator_sees_a_consensus() -> None:
    told: list[Any] = []

    def moderator(given: Any) -> Any:
        told.append(given)
        return {"consensus": given["round"] == 2, "answer": len(given["arguments"])}

    def optimist(given: Any) -> str:
        return f"yes {given['round']}"

    debate = DebateOperator(debaters=[optimist, fails], moderator=moderator)
    result = await debate.execute({"topic": "tea"})
    assert result.content == {"consensus": True, "answer": 2}
    assert result.metadata["rounds"] == 2
    assert told[1]["arguments"] == [
        {"debater": "optimist", "round": 1, "text": "yes 1"},
        {"debater": "optimist", "round": 2, "text": "yes 2"},
    ]
    assert (await DebateOperator([optimist], lambda given: "no", max_rounds=3).execute({})).metadata["rounds"] == 3
    assert not (await DebateOperator([fails], moderator).execute({})).success


async def test_a_router_goes_one_way() -> None:
    routes = {"refund": lambda given: "paid back", "other": lambda given: "read"}
    router = Router(routes, lambda given: f' "{given["kind"]}". ', default="other")
    assert (await router.execute({"kind": "refund"})).content == "paid back"
    assert (await router.execute({"kind": "??"})).metadata["route"] == "other"
    with pytest.raises(FlowFailed, match=r"'\?\?' is no route; routes are: refund, other"):
        await Router(routes, lambda given: "??").execute({})
    with pytest.raises(UserError, match="default='no'"):
        Router(routes, fails, default="no")


# -- bounds ----------------------------------------------------------------------------------------------------------------


async def test_a_flow_within_a_flow_has_a_depth() -> None:
    flow: Operator = seen([])
    for _ in range(3):
        flow = ChainOperator([flow])
    assert (await flow.execute({}, context(max_depth=3))).success
    with pytest.raises(DepthExceeded, match=r"3 deep here, and may be 2"):
        await flow.execute({}, context(max_depth=2))


@pytest.mark.parametrize(("limits", "most"), [({}, 5), ({"max_child_jobs": 3}, 3), ({"max_parallel": 30}, 10)])
async def test_items_and_branches_above_the_limits_wait_for_others(limits: dict[str, int], most: int) -> None:
    """A list of eleven items was refused, though the documents ask for a limit of what one operator starts at a time."""
    running: list[int] = []
    counts: list[int] = []

    async def work(given: Any) -> int:
        running.append(1)
        counts.append(len(running))
        await asyncio.sleep(0)
        running.pop()
        return len(counts)

    flows: list[Any] = [
        (MapReduceOperator(work, lambda given: len(given["results"])), 25),
        (MapReduceOperator(work, lambda given: len(given["results"])), 11),
        (ParallelOperator([work] * 11, aggregate=len), 11),
        (
            PlannerExecutorOperator(
                lambda given: list(range(12)), MapReduceOperator(work, lambda g: len(g["results"]))
            ),
            12,
        ),
    ]
    for flow, width in flows:
        counts.clear()
        result = await flow.execute({"items": list(range(width))}, context(**limits))
        assert (result.success, len(counts), max(counts)) == (True, width, most)
        assert result.content in (width, [width])


async def test_calls_outside_of_a_job_are_made_for_the_tenant_of_the_execution_context() -> None:
    seen: list[RequestContext] = []

    async def watch(call: Any, forward: Any) -> Any:
        seen.append(call.context)
        return await forward(call)

    engine = ExecutionEngine(ScriptedProvider(lambda spec: "said"), middleware=[watch])
    agent = Agent(engine, name="helper", instructions="Help.")

    @tool(effect="read")
    async def look(given: Any) -> str:
        """Looks."""
        return (await engine.complete("look", context=execution)).content

    execution = ExecutionContext(scope_id="acme", principal_id="ann", session_id="c-1")
    assert (await ChainOperator([agent, look]).execute("go", execution)).success
    assert (await agent.run("go", context=execution)).content == "said"
    found = {(each.tenant_id, each.user_id, each.session_id, each.job_id) for each in seen}
    assert (found, len(seen)) == ({("acme", "ann", "c-1", None)}, 3)
    assert len({each.request_id for each in seen}) == 3
    with pytest.raises(UserError, match="context='acme' is no context"):
        await agent.run("go", context="acme")  # type: ignore[arg-type]


LIMITED = [
    ({"budgets": BudgetSpec(max_tokens=5)}, r"its budgets \(max_tokens\) would limit nothing outside of a job"),
    ({"policy_ref": PolicyRef("house")}, "its policy_ref would limit nothing outside of a job"),
]


@pytest.mark.parametrize(("declared", "words"), LIMITED)
async def test_limits_that_nobody_would_hold_are_refused_outside_of_a_job(declared: Any, words: str) -> None:
    ran: list[Any] = []
    engine = ExecutionEngine(ScriptedProvider(lambda spec: ran.append(spec) or "said"))
    agent = Agent(engine, name="helper", instructions="Help.")
    execution = ExecutionContext(scope_id="acme", **declared)
    calls: list[Any] = [
        lambda: ChainOperator([agent]).execute("go", execution),
        lambda: AgentStep(agent).execute("go", execution),
        lambda: FunctionStep(ran.append).execute("go", OperatorContext(execution=execution)),
        lambda: OperatorContext(execution=execution).call(ran.append, object="go"),
        lambda: agent.run("go", context=execution),
        lambda: anext(aiter(agent.stream("go", context=execution))),
        lambda: engine.complete("go", context=execution),
        lambda: engine.embed(["go"], context=execution),
    ]
    for call in calls:
        with pytest.raises(UserError, match=words) as refused:
            await call()
        assert "kernel.execute(ExecutionRequest(" in (refused.value.hint or "")
    assert ran == []


@pytest.mark.parametrize(("declared", "words"), LIMITED)
async def test_in_a_job_its_own_limits_hold(declared: Any, words: str) -> None:
    async def f(ctx: DurableContext) -> Any:
        execution = ExecutionContext(scope_id="acme", **declared)
        flow = ChainOperator([FunctionStep(lambda given: given["text"])])
        return (
            await flow.execute("go", OperatorContext(execution=execution, effects=OperatorContext.of(ctx).effects))
        ).content

    async with RuntimeKernel.create(agent=f) as kernel:
        assert (await (await kernel.execute(ExecutionRequest(prompt=1))).result()).output == "go"


async def test_a_flow_has_a_time_and_ends_what_it_has_started() -> None:
    ended: list[str] = []

    async def hangs(given: Any) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("cancelled")

    with pytest.raises(FlowTimeout, match=r"ChainOperator has not ended within 0.01 s"):
        await ChainOperator([ParallelOperator([hangs, hangs])]).execute({}, context(timeout_seconds=0.01))
    assert ended == ["cancelled"] * 2


@pytest.mark.parametrize("seconds", [300.0, None])
@pytest.mark.parametrize("propagates", [True, False])
@pytest.mark.parametrize("times", [1, 2])
async def test_a_cancelled_flow_ends_what_it_has_started_or_waits_for_it(
    propagates: bool, seconds: float | None, times: int
) -> None:
    """At the second cancel, nobody waited for the flow any more."""
    began, go_on, ended = asyncio.Event(), asyncio.Event(), []

    async def works(given: Any) -> None:
        began.set()
        try:
            await go_on.wait()
            ended.append("done")
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise

    how = context(propagate_cancellation=propagates, timeout_seconds=seconds)
    flow = asyncio.create_task(ChainOperator([works]).execute({}, how))
    await began.wait()
    for _ in range(times):
        flow.cancel()
        await asyncio.sleep(0)
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await flow
    assert ended == ["cancelled" if propagates else "done"]


def test_bounds_that_are_none_are_refused() -> None:
    for bound in (
        {"max_depth": 0},
        {"max_parallel": "5"},
        {"timeout_seconds": 0},
        {"timeout_seconds": True},
        {"timeout_seconds": float("nan")},
        {"timeout_seconds": float("inf")},
        {"max_child_jobs": True},
        {"inherit_budgets": "no"},
        {"propagate_cancellation": 0},
        {"parallel_execution": None},
    ):
        with pytest.raises(UserError, match=next(iter(bound))):
            OrchestrationConfig(**bound)


async def test_a_text_is_the_field_text_of_every_step_also_of_the_first() -> None:
    def shout(given: dict[str, str]) -> str:
        return given["text"].upper()

    for flow, content in (
        (ChainOperator([shout, shout]), "ABC"),
        (ParallelOperator([shout, ChainOperator([shout])]), ["ABC", "ABC"]),
        (Router({"a": shout}, lambda given: "a" if given["text"] else ""), "ABC"),
        (DebateOperator([shout], shout), "ABC"),
        (Workflow("w", [AgentNode("say", shout, "end"), EndNode("end", content="say")]), "ABC"),
    ):
        assert (await flow.execute("abc")).content == content


@pytest.mark.parametrize("number", [0, -1, 1.5, True, "2"])
def test_a_number_of_rounds_steps_or_visits_that_is_none_is_refused(number: Any) -> None:
    for make in (
        lambda: DebateOperator([fails], fails, max_rounds=number),
        lambda: PlannerExecutorOperator(fails, fails, max_steps=number),
        lambda: AgentNode("a", fails, "b", max_visits=number),
        lambda: EndNode("a", max_visits=number),
    ):
        with pytest.raises(UserError, match="a whole number, at least 1"):
            make()


# -- graphs ----------------------------------------------------------------------------------------------------------------


def graph(*nodes: tuple[str, Any], edges: list[GraphEdge]) -> ExecutionGraph:
    made = ExecutionGraph()
    for node, operator in nodes:
        made.add_node(GraphNode(node, operator))
    for edge in edges:
        made.add_edge(edge)
    return made


async def test_a_node_gets_what_the_nodes_before_it_made() -> None:
    given: list[Any] = []
    made = graph(
        ("a", lambda given: "A"),
        ("b", lambda given: "B"),
        ("c", seen(given, "C")),
        ("d", seen(given, "D")),
        edges=[GraphEdge("a", "c"), GraphEdge("b", "c"), GraphEdge("c", "d")],
    )
    result = await GraphExecutor(made).execute({"topic": "tea"})
    assert given == [{"topic": "tea", "a": "A", "b": "B"}, {"topic": "tea", "c": "C", "text": "C"}]
    assert result.content == "D"
    assert list(result) == ["a", "b", "c", "d"]
    assert result["c"].content == "C", "document 001: results = await executor.execute(…), by the ids of the nodes"
    assert result.success
    assert "x" not in result


async def test_an_edge_that_is_not_taken_and_a_node_that_fails_stop_what_is_behind_them() -> None:
    ran: list[Any] = []
    made = graph(
        ("a", lambda given: 3),
        ("low", seen(ran)),
        ("high", lambda given: "high"),
        ("behind", seen(ran)),
        edges=[
            GraphEdge("a", "low", when=lambda content: content < 2),
            GraphEdge("a", "high", when=lambda content: content > 2),
            GraphEdge("low", "behind"),
        ],
    )
    assert (await GraphExecutor(made).execute({})).content == "high"
    made = graph(("a", fails), ("b", seen(ran)), ("c", lambda given: "C"), edges=[GraphEdge("a", "b")])
    result = await GraphExecutor(made).execute({})
    assert not result.success
    assert result.content == "C"
    assert ran == []


async def test_a_node_that_depends_through_others_on_one_that_has_failed_does_not_run() -> None:
    ran: list[Any] = []
    made = graph(
        ("a", fails),
        ("b", seen(ran)),
        ("other", lambda given: "other"),
        ("c", seen(ran)),
        edges=[GraphEdge("a", "b"), GraphEdge("b", "c"), GraphEdge("other", "c")],
    )
    result = await GraphExecutor(made).execute({})
    assert (result.success, list(result), ran) == (False, ["a", "other"], [])


def test_a_graph_that_cannot_be_executed_is_refused() -> None:
    loop = graph(("a", fails), ("b", fails), edges=[GraphEdge("a", "b"), GraphEdge("b", "a")])
    with pytest.raises(FlowCycle, match=r"wait for each other: \w -> \w -> \w.*Workflow") as told:
        GraphExecutor(loop)
    assert told.value.code == "E2010"
    with pytest.raises(UserError, match=r"there is no node 'x'.*nodes are: a"):
        GraphExecutor(graph(("a", fails), edges=[GraphEdge("a", "x")]))
    with pytest.raises(UserError, match="it has no nodes"):
        GraphExecutor(ExecutionGraph())
    with pytest.raises(UserError, match="node 'a'"):
        graph(("a", fails), ("a", fails), edges=[])
    with pytest.raises(UserError, match="two edges from a to b"):
        graph(("a", fails), ("b", fails), edges=[GraphEdge("a", "b"), GraphEdge("a", "b")])
    with pytest.raises(UserError, match=r"'a' is no node.*GraphNode\(id, operator\)"):
        ExecutionGraph().add_node("a")  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"is no edge.*GraphEdge\(source, target\)"):
        ExecutionGraph().add_edge(("a", "b"))  # type: ignore[arg-type]
    with pytest.raises(UserError, match="when=3"):
        ExecutionGraph().add_edge(GraphEdge("a", "b", 3))  # type: ignore[arg-type]
    with pytest.raises(UserError, match="is no graph"):
        GraphExecutor({"a": fails})  # type: ignore[arg-type]


async def test_a_loop_that_is_added_to_a_graph_behind_its_executor_is_refused_when_it_is_executed() -> None:
    made = graph(("a", fails), ("b", fails), edges=[GraphEdge("a", "b")])
    executor = GraphExecutor(made)
    made.add_edge(GraphEdge("b", "a"))
    with pytest.raises(FlowCycle, match="wait for each other"):
        await executor.execute({})


# -- workflows -------------------------------------------------------------------------------------------------------------


def drafts(**bound: Any) -> list[Any]:
    """A draft that is written until it is good."""
    return [
        AgentNode("draft", lambda state: state.get("draft", "") + "x", next="check", **bound),
        ConditionalNode("check", lambda state: len(state["draft"]) >= 3, routes={"yes": "both", "no": "draft"}),
        ParallelNode("both", [lambda state: "b1", lambda state: "b2"], next="end"),
        EndNode("end"),
    ]


async def test_a_workflow_goes_where_the_state_says_and_loops() -> None:
    states: list[WorkflowState] = []
    flow = Workflow("paper", drafts(max_visits=5), on_step=states.append)
    result = await flow.execute({"topic": "tea"})
    assert result.content == {"topic": "tea", "draft": "xxx", "text": "xxx", "both": ["b1", "b2"]}
    assert [state.node for state in states] == ["check", "draft", "check", "draft", "check", "both", "end"]
    assert result.metadata["state"].visits == {"draft": 3, "check": 3, "both": 1}


async def test_a_workflow_goes_on_from_any_of_its_states() -> None:
    states: list[WorkflowState] = []
    flow = Workflow("paper", drafts(max_visits=5), on_step=states.append)
    whole = (await flow.execute({"topic": "tea"})).content
    for state in [WorkflowState.from_bytes(state.to_bytes()) for state in states]:
        assert (await flow.execute(state)).content == whole
    with pytest.raises(UserError, match="no state of a workflow"):
        WorkflowState.from_bytes(b"x")
    with pytest.raises(UserError, match="no node 'gone' to go on at"):
        await flow.execute(WorkflowState(node="gone", fields={}))


async def test_a_loop_without_a_bound_is_refused_and_one_with_a_bound_ends() -> None:
    with pytest.raises(FlowCycle, match=r"workflow paper: a loop has no bound.*max_visits") as told:
        Workflow("paper", drafts())
    assert told.value.code == "E2010"
    with pytest.raises(DepthExceeded, match="come to node draft 2 times") as deep:
        await Workflow("paper", drafts(max_visits=2)).execute({})
    assert deep.value.code == "E2011"
    gave_up = await Workflow("paper", drafts(max_visits=2, exhausted="end")).execute({})
    assert gave_up.content["draft"] == "xx"


async def test_a_run_ends_after_so_many_nodes_and_so_much_time() -> None:
    with pytest.raises(DepthExceeded, match="has been at 4 nodes"):
        await Workflow("paper", drafts(max_visits=50), max_depth=4).execute({})

    async def hangs(state: Any) -> None:
        await asyncio.Event().wait()

    with pytest.raises(FlowTimeout, match=r"slow has not ended within 0.01 s") as told:
        await Workflow("slow", [AgentNode("a", hangs, "end"), EndNode("end")], timeout_seconds=0.01).execute({})
    assert told.value.code == "E2013"


async def test_a_node_that_fails_is_named() -> None:
    result = await Workflow("w", [AgentNode("ask", fails, "end"), EndNode("end")]).execute({"n": 1})
    assert isinstance(result.error, FlowFailed)
    assert result.error.code == "E2012"
    assert "workflow w: node ask has failed" in str(result.error)
    assert result.metadata["state"].node == "ask"
    lost = Workflow("w", [ConditionalNode("c", lambda state: "left", routes={"right": "end"}), EndNode("end")])
    with pytest.raises(FlowFailed, match="node c chose 'left'; routes are: right"):
        await lost.execute({})


@pytest.mark.parametrize(
    ("nodes", "why"),
    [
        ([], "has no nodes"),
        ([EndNode("a"), EndNode("a")], "two nodes are called 'a'"),
        ([AgentNode("a", fails, "b"), EndNode("end")], "node a leads to 'b', which is not there"),
        ([AgentNode("a", fails, "a", max_visits=1)], "has no end"),
        ([ParallelNode("a", [fails] * 11, "end"), EndNode("end")], "11 branches, of at most 10"),
    ],
)
def test_a_workflow_that_cannot_run_is_refused(nodes: list[Any], why: str) -> None:
    with pytest.raises((UserError, DepthExceeded), match=why):
        Workflow("w", nodes)
    with pytest.raises(UserError, match="no node 'x' to start at"):
        Workflow("w", [EndNode("end")], start="x")


@pytest.mark.parametrize(
    ("nodes", "bounds", "why"),
    [
        (3, {}, "nodes=3"),
        ("ab", {}, "nodes='ab'"),
        ([EndNode], {}, "is no node"),
        ([EndNode("end")], {"max_depth": 0}, "workflow w: max_depth=0"),
        ([EndNode("end")], {"max_branches": "2"}, "workflow w: max_branches='2'"),
        ([EndNode("end")], {"timeout_seconds": float("nan")}, "workflow w: timeout_seconds=nan"),
    ],
)
def test_a_workflow_of_what_is_no_node_or_bound_is_refused(nodes: Any, bounds: Any, why: str) -> None:
    with pytest.raises(UserError, match=why):
        Workflow("w", nodes, **bounds)


# -- the world -------------------------------------------------------------------------------------------------------------


async def test_tools_are_called_through_the_context() -> None:
    @tool(effect="read")
    def look(name: str) -> str:
        """Looks."""
        return f"saw {name}"

    async def step(given: Any, context: OperatorContext) -> Any:
        return await context.call(look, name=given["text"])

    assert (await ChainOperator([step]).execute({"text": "a"})).content == "saw a"
    provider = ScriptedProvider([assistant("", ToolCall("1", "look", '{"name": "b"}')), "seen"])
    agent = Agent(ExecutionEngine(provider), tools=[look])
    assert (await ChainOperator([agent, lambda given: given["text"]]).execute("go")).content == "seen"


async def test_an_agent_of_another_engine_is_asked_by_its_own() -> None:
    one, other = ScriptedProvider("one"), ScriptedProvider("other")
    inner = Agent(ExecutionEngine(other))

    async def step(given: Any) -> Any:
        return (await inner.run("x")).content

    assert (await ChainOperator([Agent(ExecutionEngine(one)), step]).execute("go")).content == "other"
    assert (len(one.requests), len(other.requests)) == (1, 1)


async def test_tools_of_a_flow_are_called_as_those_of_an_agent_are() -> None:
    tried: list[int] = []

    @tool(effect="read", retries=1, timeout="5s")
    def look(effect: Effect) -> int:
        """Fails once."""
        tried.append(effect.attempt)
        if len(tried) == 1:
            raise OSError("not yet")
        return effect.attempt

    async def step(given: Any, context: OperatorContext) -> Any:
        return await context.call(look)

    assert (await ChainOperator([step]).execute({})).content == 2
    assert tried == [1, 2]
