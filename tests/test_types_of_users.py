"""Types as users meet them: options that an editor completes, programs that mypy takes or refuses, classes that have a public name."""

import builtins
import importlib
import inspect
import re
import subprocess
import sys
import typing
import venv
from dataclasses import fields
from pathlib import Path

import pyarrow as pa
import pytest

import sabot
from sabot.api.agent import AgentOptions, AgentSpec, BatchAgentOptions, RecordAgentOptions
from sabot.app.agents import AgentDeclarations, LlmAgentOptions
from sabot.base.options import options_of
from sabot.engine.calls.effects import EffectClass, EffectName
from sabot.engine.calls.options import CALL_WORDS
from sabot.llm import Agent
from tools.source_tree import PROJECT

GOOD = """
import pyarrow as pa

import sabot
from sabot import App, Stream, col
from sabot.kafka import KafkaSink, KafkaSource

app = App("shop")


@app.agent("orders", key="user", sink="alerts", on_error="retry", retries=3, backoff="1s")
async def watch(order: dict[str, object], ctx: sabot.AgentContext) -> dict[str, object] | None:
    return order


@app.agent(["a", "b"], batch=True, schema={"x": "int64"}, sink=watch)
def score(batch: pa.RecordBatch, ctx: sabot.AgentContext) -> pa.RecordBatch:
    return batch


def large(orders: Stream) -> sabot.GroupedStream:
    return orders.filter(col("amount") > 100).group_by("user")


def copied(broker: str) -> None:
    app.stream(KafkaSource("orders", broker, "group")).to(KafkaSink("copies", broker))


table: pa.Table = app.stream(sabot.files("orders.ndjson")).collect()
def measured(orders: Stream, *, exact: bool) -> Stream:
    middle: sabot.Aggregate = sabot.median("amount") if exact else sabot.approx_quantile("amount", 0.5)
    measures: dict[str, sabot.Aggregate] = {
        "n": sabot.count(),
        "total": sabot.sum("amount").filter(col("paid")),
        "middle": middle.filter(col("paid")),
        "most": sabot.quantile("amount", 0.9),
    }
    windows = orders.key_by("user").window(sabot.tumbling("1h"))
    return windows.aggregate(**measures, spread=sabot.max("amount") - sabot.median("amount"))


def kept(orders: Stream, sums: dict[str, sabot.Aggregate]) -> list[Stream]:
    users = orders.key_by("user")
    return [
        orders.group_by("user").aggregate(**sums),
        orders.group_by("user").aggregate(ttl="1h", n=sabot.count(), **sums),
        users.aggregate(**sums),
        users.aggregate(**sums, ttl="1h"),
        users.over(**sums),
        users.over(preceding="1h", last=sabot.lag("amount"), **sums),
    ]


rows: list[dict[str, object]] = []
app.stream([{"id": 1}, {"id": 2, "shop": "oslo"}]).to(rows)
app.stream(table).to(rows)
"""

BAD = """
import sabot
from sabot import App

app = App("shop")

@app.agent("orders", on_eror="skip")
async def first(order: object, ctx: object) -> None: ...

@app.agent("orders", on_error="ignore")
async def second(order: object, ctx: object) -> None: ...

@app.agent("orders", batch=True, on_timer=print)
async def third(order: object, ctx: object) -> None: ...

app.stream("orders").filtr()

app.stream("orders").group_by("user").aggregate(ttl=sabot)
app.stream("orders").group_by("user").aggregate(n=1)
"""

TOOLS = """
from decimal import Decimal

import msgspec

from sabot import App
from sabot.agents import Budget, BudgetSpec, DurableContext, ExecutionContext, Ledger, ToolContext
from sabot.llm import Agent, CallBudget, Effect, ExecutionEngine, OpenAIProvider, Tool, tool

app = App("shop")
engine = ExecutionEngine(OpenAIProvider("m"))


@tool
async def refund(order: str, amount: int = 3) -> str:
    return order


@tool(effect="idempotent", retries=2)
async def put(path: str, effect: Effect) -> None: ...


@tool
async def by_name(path: str, *, effect: Effect) -> None: ...


@tool(effect="read")
def look(order: str) -> dict[str, int]:
    return {}


def plain(order: str) -> float:
    return 1.0


class Desk:
    @tool
    async def close(self, name: str) -> int:
        return 1


class Shop:
    name = "gold"


class Verdict(msgspec.Struct):
    ok: bool


@tool
async def cancel(ctx: ToolContext[Shop], order: str, days: int = 3) -> str:
    return ctx.deps.name.upper() + order


async def of_shop(ctx: ToolContext) -> Shop:
    return Shop()


async def ask() -> object:
    agent = Agent(engine, tools=[cancel], deps=Shop(), output=Verdict, instructions=lambda ctx: ctx.deps.name)
    made: Agent[Shop, Verdict] = Agent(engine, tools=[cancel], deps=of_shop, output=Verdict)
    several = Agent(engine, output=int | str, name="several")
    right: bool = (await agent.run("x")).output.ok and (await made.run("x")).output.ok
    return right, (await several.run("x")).output


async def work(ctx: DurableContext) -> object:
    text: str = await ctx.call(refund, "o-1", amount=5)
    text = await ctx.call(cancel, "o-1", days=5)
    text = await cancel(ToolContext(deps=Shop()), "o-1")
    number: float = await ctx.call(plain, "o")
    number = await ctx.step(plain, "o", effect="read", retries=2)
    await ctx.call(put, "a")
    await ctx.call(put, path="a")
    await ctx.call(by_name, path="a")
    await ctx.call(Desk().close, "x")
    await ctx.step(lambda: 3, effect="local")
    return [text, number, await ctx.call(look, "o-1")]


def name_of(one: Tool) -> str:
    return one.name


day = Budget("*", max_cost_daily=5)
budgets = [Budget("a", max_cost_hourly=Decimal("0.5"), max_cost_monthly="99.90"), Budget("b", max_cost_hourly=0.5)]
jobs = [BudgetSpec(max_cost=1.0), BudgetSpec(max_cost=2), BudgetSpec(max_cost="0.10"), BudgetSpec(max_cost=Decimal(1))]
calls = [CallBudget(max_cost=1.0), CallBudget(max_cost=2), CallBudget(max_cost="0.10"), CallBudget(max_cost=Decimal(1))]
spent: list[Decimal | None] = [day.max_cost_daily, jobs[0].max_cost, calls[0].max_cost]


async def judged(ledger: Ledger) -> object:
    context = ExecutionContext(scope_id="a")
    return [await ledger.check_budget(context, pending_cost=each) for each in (1, 0.5, "0.5", Decimal(1))]


tools: list[Tool] = [refund, put, look]
agent = Agent(engine, tools=[refund, put, look, plain])
name_of(refund)
app.llm_agent("questions", engine, tools=[refund], output=int, key="customer", sink="out", concurrency=5)
app.process_agent("tasks", command=["x"], effect="read", durable=True, timeout="30s")
"""

BAD_TOOLS = """
from sabot import App
from sabot.agents import Budget, BudgetSpec, DurableContext, RuntimeKernel, ToolContext
from sabot.llm import Agent, ExecutionEngine, OpenAIProvider, tool

app = App("shop")
engine = ExecutionEngine(OpenAIProvider("m"))


@tool
async def pay(order: str, amount: int = 3) -> str:
    return order


@tool
async def cancel(ctx: ToolContext[int], order: str, days: int = 3) -> str:
    return order


def plain(order: str) -> float:
    return 1.0


async def work(ctx: DurableContext) -> None:
    await ctx.call(cancel, "o-1", days="x")  # wrong
    await ctx.call(cancel)  # wrong
    await cancel("o-1")  # wrong
    (await Agent(engine, output=str).run("x")).output.nothing  # wrong
    Budget("*", max_cost_daily=[5])  # wrong
    BudgetSpec(max_cost=b"1")  # wrong
    BudgetSpec(max_cost=1).max_cost.nothing  # wrong
    Agent(engine, deps="x", instructions=lambda ctx: ctx.deps.nothing)  # wrong
    await ctx.call(pay, "o-1", amount="x")  # wrong
    await ctx.call(pay, "o-1", amont=3)  # wrong
    await ctx.call(pay)  # wrong
    await ctx.call(plain, 3)  # wrong
    (await ctx.call(pay, "o-1")).nothing  # wrong
    (await ctx.step(plain, "o-1")).nothing  # wrong
    await ctx.step(plain, "x", effect="raed")  # wrong
    await pay(3)  # wrong


tool(effect="raed")  # wrong
app.agent("orders", kye="x")  # wrong
app.agent("orders", on_error="skp")  # wrong
app.llm_agent("questions", engine, kye="customer")  # wrong
app.llm_agent("questions", engine, output_type=int)  # wrong
app.llm_agent("questions", engine, on_error="skp")  # wrong
app.process_agent("tasks", command=["x"], effect="raed", durable=True)  # wrong
app.process_agent("tasks", command=["x"], kye="x")  # wrong
app.process_agent("tasks", command=["x"], lines="jsn")  # wrong
Agent(engine, output_type=int)  # wrong
RuntimeKernel(engine, work, jornal="x")  # wrong
App("x", jornal="y")  # wrong
"""

PARTS = ("sabot", "sabot.agents", "sabot.llm", "sabot.journal", "sabot.process", "sabot.testing")

INNER = {
    "Listener": "of App.surround_jobs, for the runtime",
    "Settings": "of App.settings, which App.configure changes",
    "ArrowTable": "what the tables of other libraries are",
    "AgentSpec": "only App.agent_of returns it, for the runtime",
    "CsvOptions": "the keywords of files, of which nobody makes one",
    "CallTimers": "of the constructor of a context, which the runtime calls",
    "CheckpointStorage": "of App.open_storage, for tools",
    "DataFile": "of a file's columns in the names of its folders, for sources of files",
    "ClockWindow": "what hopping(…, time_zone=) and cumulative(…, time_zone=) return: nobody makes one",
    "Codec": "what a Format makes for a reader",
    "DateExpr": "a namespace of Expr: .dt",
    "Engine": "what ExecutionEngine is, for models of an agent",
    "EffectGuard": "of App.guards, for the runtime",
    "Encoder": "what a Format makes for a writer",
    "Format": "what Json, Csv, Raw, ArrowIpc, Avro and Protobuf are",
    "GuardJudge": "of App.judge, for the runtime",
    "EffectClass": "what the texts of effect= are",
    "EffectName": "a choice of texts, and no class",
    "InDoubt": "a choice of texts, and no class",
    "LineFormat": "a choice of texts, and no class",
    "LlmAgentOptions": "the keywords of llm_agent, of which nobody makes one",
    "ListExpr": "a namespace of Expr: .list",
    "LookupOptions": "the keywords of lookup, of which nobody makes one",
    "MapAsyncOptions": "the keywords of map_async, of which nobody makes one",
    "Node": "of the graph behind a stream",
    "Owner": "of the graph behind a stream",
    "PatternGroup": "of the constructor of a pattern, which `pattern` calls",
    "PatternStep": "of the constructor of a pattern, which `pattern` calls",
    "Plan": "of App.plan, for the pages and commands that show a running app",
    "PoolProtocol": "a choice of texts, and no class",
    "RecordAgentOptions": "the keywords of process_agent, of which nobody makes one",
    "Reference": "how a registry keeps what a Protobuf file imports: of Registry.refer, for the format",
    "SchemaRegistry": "what Registry is",
    "Session": "of App.sql_session, for the SQL shell",
    "Snapshot": "of a backend of one's own, which sabot.engine.state describes",
    "SortedFiles": "what files(…, sort=) returns: nobody makes one",
    "Steps": "of the graph behind a stream",
    "StreamEnd": "of App.write, which Stream.to calls",
    "StringExpr": "a namespace of Expr: .str",
    "StructExpr": "a namespace of Expr: .struct",
    "TemplateText": "what a template string of Python 3.14 is",
    "Summary": "what app.summary returns: nobody makes one",
    "LakePlace": "of the constructor that DeltaSink and IcebergSink share: each makes its own",
}


def test_the_signature_of_agent_spells_out_each_option_with_its_default() -> None:
    shown = inspect.signature(AgentDeclarations.agent).parameters
    known = {name: each.default for name, each in options_of(AgentOptions).items()}
    assert {name: each.default for name, each in shown.items() if name not in ("self", "topic")} == {
        "name": None,
        **known,
    }
    assert shown["retries"].annotation is int
    assert "`mailbox`: the number of records that may wait behind a busy key" in (AgentDeclarations.agent.__doc__ or "")


def test_each_option_of_an_agent_has_a_field_in_its_description() -> None:
    assert options_of(AgentOptions).keys() - set(CALL_WORDS) <= {each.name for each in fields(AgentSpec)}


def test_an_agent_of_batches_has_the_options_that_mean_something_for_batches() -> None:
    only_records = {"on_timer", "mailbox", "mailbox_full", "job_id", "scope", "principal", "tombstones"}
    assert options_of(AgentOptions).keys() - options_of(BatchAgentOptions).keys() == only_records | {"batch"}


def test_what_collect_returns_is_a_table_to_mypy_too() -> None:
    assert typing.get_type_hints(sabot.Stream.collect, localns=vars(sabot))["return"] is pa.Table


def names_in(hint: object, module: typing.Any) -> set[str]:
    """The names of our classes in a type. hint: the type, or its text, in which a name that `module` lacks is there for mypy alone."""
    if isinstance(hint, str):
        known = {**vars(builtins), **vars(module)}
        words = [word for word in re.findall(r"(?<!\.)\b[A-Z]\w*", hint) if word not in typing.__all__]
        return set().union(*(names_in(known[word], module) if word in known else {word} for word in words))
    if isinstance(hint, type) and hint.__module__.startswith("sabot."):
        return {hint.__name__}
    return set().union(
        *(names_in(each, module) for each in (typing.get_args(hint) or (hint if isinstance(hint, list) else ())))
    )


def test_each_class_that_public_functions_take_or_return_has_a_public_name() -> None:
    public = {name for part in PARTS for name in importlib.import_module(part).__all__}
    things = [getattr(sabot, name) for name in sabot.__all__]
    functions = [each for each in things if inspect.isfunction(each)]
    for each in things:
        for base in each.__mro__ if isinstance(each, type) and not issubclass(each, Exception) else ():
            functions += [
                member.fget if isinstance(member, property) else getattr(base, name)
                for name, member in vars(base).items()
                if base.__module__.startswith("sabot.") and (name == "__init__" or not name.startswith("_"))
            ]
    missing = {
        name
        for function in functions
        if inspect.isfunction(function)
        for hint in function.__annotations__.values()
        for name in names_in(hint, sys.modules[function.__module__])
        if name not in public and not name.startswith("_")
    }
    assert missing == INNER.keys(), "export these from sabot; or, where no user meets them, say so in INNER"


@pytest.mark.slow  # mypy reads the whole package
def test_mypy_takes_a_program_and_refuses_a_misspelled_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mypy import api

    (tmp_path / "good.py").write_text(GOOD)
    (tmp_path / "bad.py").write_text(BAD)
    monkeypatch.setenv("MYPYPATH", str(PROJECT))
    monkeypatch.chdir(PROJECT)  # its settings, hence what its own check has found out already
    said, trouble, _ = api.run(["--no-error-summary", str(tmp_path / "good.py"), str(tmp_path / "bad.py")])
    assert trouble == ""
    wrong = {int(line.split(":")[1]) for line in said.splitlines() if "error:" in line}
    assert "good.py" not in said
    assert {7, 10, 13, 16, 18, 19} == wrong, said
    assert "on_eror" in said
    assert "filtr" in said


@pytest.mark.slow  # mypy reads the whole package
def test_mypy_sees_misspelt_options_of_agents_and_the_arguments_of_tools(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mypy import api

    (tmp_path / "good.py").write_text(TOOLS)
    (tmp_path / "bad.py").write_text(BAD_TOOLS)
    monkeypatch.setenv("MYPYPATH", str(PROJECT))
    monkeypatch.chdir(PROJECT)
    said, trouble, _ = api.run(["--no-error-summary", str(tmp_path / "good.py"), str(tmp_path / "bad.py")])
    assert trouble == ""
    assert "good.py" not in said, said
    wrong = {int(line.split(":")[1]) for line in said.splitlines() if "error:" in line}
    assert wrong == {number for number, line in enumerate(BAD_TOOLS.splitlines(), 1) if "# wrong" in line}, said


def test_the_options_of_llm_agent_are_those_of_an_agent_and_of_a_model_with_tools() -> None:
    own = LlmAgentOptions.__annotations__.keys() - RecordAgentOptions.__annotations__.keys()
    assert own == inspect.signature(Agent).parameters.keys() - {"engine", "name"}


def test_the_classes_of_effects_have_the_names_that_type_checkers_know() -> None:
    assert typing.get_args(EffectName) == tuple(EffectClass)


@pytest.mark.slow  # mypy reads a package
def test_type_checkers_see_what_the_set_up_installs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mypy import api

    (script,) = re.findall(r"""-c '(import os, pathlib, sysconfig\n[^']*)'""", (PROJECT / "tools/setup.sh").read_text())
    python = tmp_path / "venv/bin/python"
    venv.create(tmp_path / "venv", symlinks=True)
    (tmp_path / "project/shop").mkdir(parents=True)
    (tmp_path / "project/shop/py.typed").touch()
    (tmp_path / "project/shop/__init__.py").write_text("def pay(amount: int) -> None: ...\n")
    subprocess.run([python, "-c", script], cwd=tmp_path / "project", check=True)
    monkeypatch.chdir(tmp_path)
    said, trouble, _ = api.run(["--python-executable", str(python), "-c", "import shop; shop.pay('x')"])
    assert trouble == ""
    assert 'Argument 1 to "pay" has incompatible type "str"' in said
