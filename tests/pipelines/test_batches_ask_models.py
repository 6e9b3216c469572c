"""ctx.llm(engine).map in batch agents: columns of prompts, equal ones once; in a durable agent each of them an effect."""

import asyncio
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from sabot import App, NdjsonSource, UserError, col
from sabot.connectors.memory import MemoryBroker
from sabot.errors import CheckpointFailed
from sabot.jobs.host import JobHost
from sabot.journal.entries import Begin, EffectResult
from sabot.journal.sqlite import SqliteReader
from sabot.llm import (
    Agent,
    AuthenticationFailed,
    BudgetExceeded,
    CallBudget,
    ExecutionEngine,
    Limits,
    MalformedAnswer,
    RequestRefused,
    RequestSpec,
    ScriptedProvider,
    ToolCall,
    assistant,
    system,
    tool,
)
from sabot.llm.asked_batches import AgentModel
from sabot.testing import ManualClock
from tools.agent_tools import started, until

LABELS = {"label": "string", "score": "float64"}
PROMPT = "Sentiment of: {text}"


def verdict(spec: RequestSpec) -> str:
    return json.dumps({"label": spec.messages[-1].text.rpartition(" ")[2].upper(), "score": 0.5})


def refusing(spec: RequestSpec) -> Any:
    """One text is refused, another one has an answer of other columns."""
    text = spec.messages[-1].text.rpartition(" ")[2]
    if text == "bad":
        return RequestRefused("not this one", provider="openai", model="gpt", request_id="req-1")
    return '{"label": 7}' if text == "odd" else verdict(spec)


def batch_of(*texts: str | None) -> pa.RecordBatch:
    return pa.record_batch({"id": pa.array(range(len(texts))), "text": pa.array(texts, pa.string())})


class Reviews:
    """An app with one batch agent that asks a model about its rows, in a directory, again and again. asked: how often each prompt was."""

    def __init__(self, url: str, directory: Path) -> None:
        self.url, self.directory = url, directory
        self.clock = ManualClock(1_000_000.0)
        self.asked: Counter[str] = Counter()
        self.held: set[str] = set()
        self.answer: Any = verdict

    async def answers(self, spec: RequestSpec) -> Any:
        prompt = spec.messages[-1].text
        self.asked[prompt] += 1
        if prompt in self.held:
            await asyncio.Event().wait()
        return self.answer(spec)

    def app(self, *, limit: int = 64, how: Any = None, source: Any = "reviews", **wiring: Any) -> App:
        engine = ExecutionEngine(ScriptedProvider(self.answers), limits=Limits(concurrency=limit), retries=0)
        app = App("reviews", self.url, state=str(self.directory), checkpoint_interval=3600, clock=self.clock)
        schema = {"id": "int64", "text": "string"}

        @app.agent(source, name="label", batch=True, sink="labelled", schema=schema, **wiring)
        async def label(batch: pa.RecordBatch, ctx: Any) -> Any:
            return await ctx.llm(engine).map(PROMPT, batch, output=LABELS, **(how or {}))

        return app

    def send(self, *texts: str | None) -> None:
        rows = [{"id": id, "text": text} for id, text in enumerate(texts)]
        MemoryBroker.get(self.url).publish("reviews", rows, partition=0)

    def entries(self, kind: type) -> list[Any]:
        """Those of this kind in the journal."""
        reader = SqliteReader(self.directory)
        try:
            return [entry for _, entry in reader.read() if isinstance(entry, kind)]
        finally:
            reader.close()

    def labelled(self) -> list[Any]:
        return [record.value for record in MemoryBroker.get(self.url).records("labelled")]


@pytest.fixture
def reviews(memory_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Reviews:
    """A stop cuts calls off that are under way, as a crash does."""
    monkeypatch.setitem(JobHost.__init__.__kwdefaults__, "stop_grace_s", 0.0)
    return Reviews(memory_url, tmp_path / "state")


async def crash(app: App) -> None:
    """The next start finds the journal as it is now, and no checkpoint."""
    app.agent_runtime.checkpoint_coordinator.refuse("the process died")
    with pytest.raises(CheckpointFailed):
        await app.stop()


# -- by column ----------------------------------------------------------------------------------------------------------


async def test_answers_stand_behind_the_columns_and_equal_prompts_are_asked_once() -> None:
    provider = ScriptedProvider(verdict)
    model = AgentModel(ExecutionEngine(provider))
    data = batch_of("good", "bad", None, "good")
    found = await model.map(PROMPT, data, output=LABELS, instructions="Be short.", temperature=0)
    assert found.schema == pa.schema([*data.schema, ("label", pa.string()), ("score", pa.float64())])
    assert found.column("label").to_pylist() == ["GOOD", "BAD", None, "GOOD"]
    assert found.column("score").to_pylist() == [0.5, 0.5, None, 0.5]
    assert [request.messages[-1].text for request in provider.requests] == ["Sentiment of: bad", "Sentiment of: good"]
    assert provider.requests[0].messages[0] == system("Be short.")


@pytest.mark.parametrize(
    "prompt",
    [
        "{text}",
        lambda batch: batch.column("text"),
        ["a", "b", None],
        pa.array(["a", "b", None]),
        pa.chunked_array([["a"], ["b", None]]),
    ],
)
async def test_prompts_are_a_template_a_function_or_a_column(prompt: Any) -> None:
    model = AgentModel(ExecutionEngine(ScriptedProvider(lambda spec: spec.messages[-1].text * 2)))
    for data in (batch_of("a", "b", None), pa.Table.from_batches([batch_of("a", "b", None)])):
        found = await model.map(prompt, data)
        assert found.column("content").to_pylist() == ["aa", "bb", None]


async def test_a_batch_without_rows_or_questions_asks_nobody() -> None:
    provider = ScriptedProvider([])
    model = AgentModel(ExecutionEngine(provider))
    for data in (batch_of(), batch_of(None, None)):
        found = await model.map(PROMPT, data, output=LABELS, error="wrong")
        assert found.num_rows == data.num_rows
        assert found.schema.names == ["id", "text", "label", "score", "wrong"]
        assert found.column("wrong").null_count == data.num_rows


async def test_errors_are_a_column_or_the_first_one_is_raised_when_all_have_ended() -> None:
    provider = ScriptedProvider(refusing)
    model = AgentModel(ExecutionEngine(provider))
    data = batch_of("good", "odd", "bad", None, "odd")
    found = await model.map(PROMPT, data, output=LABELS, error="wrong")
    assert found.column("label").to_pylist() == ["GOOD", None, None, None, None]
    wrong = found.column("wrong").to_pylist()
    assert wrong[0] is None
    assert wrong[2] == "RequestRefused: openai, gpt, request req-1: not this one"
    assert wrong[3] is None
    assert wrong[1] == wrong[4]
    assert wrong[1].startswith("MalformedAnswer: scripted, scripted-1, request ")
    with pytest.raises(MalformedAnswer):
        await model.map(PROMPT, data, output=LABELS)
    assert len(provider.requests) == 6
    with pytest.raises(RequestRefused):
        await model.map(PROMPT, data.slice(2), output=LABELS)


async def test_a_budget_that_is_used_up_is_an_error_of_its_rows() -> None:
    engine = ExecutionEngine(ScriptedProvider(verdict), budget=CallBudget(max_tokens=1))
    found = await AgentModel(engine).map(PROMPT, batch_of("a"), output=LABELS, error="wrong")
    assert found.column("wrong").to_pylist()[0].startswith("BudgetExceeded: ")
    with pytest.raises(BudgetExceeded):
        await AgentModel(engine).map(PROMPT, batch_of("a"), output=LABELS)


@pytest.mark.parametrize(
    ("prompt", "how", "message"),
    [
        ("{txt}", {}, "there is no column 'txt'"),
        ("no column", {}, "names no column"),
        (col("text"), {}, "which only streams can use"),
        (["a"], {}, "1 prompts for 2 rows"),
        (lambda batch: [1, 2], {}, "the prompts are int64, not text"),
        ("{text}", {"output": "text"}, "two columns 'text'"),
        ("{text}", {"error": "content"}, "two columns 'content'"),
        ("{text}", {"output": int}, "makes no columns"),
        ("{text}", {"tools": []}, "tools= would need a conversation"),
        ("{text}", {"temprature": 0}, "'temprature' is no field"),
    ],
)
async def test_what_cannot_be_asked_is_refused_before_anything_is(prompt: Any, how: Any, message: str) -> None:
    provider = ScriptedProvider([])
    with pytest.raises(UserError, match=message) as told:
        await AgentModel(ExecutionEngine(provider)).map(prompt, batch_of("a", "b"), **how)
    assert "llm.map" in told.value.message
    assert provider.requests == []


async def test_agents_that_are_not_durable_ask_models_too(reviews: Reviews) -> None:
    app = reviews.app()
    engine = ExecutionEngine(ScriptedProvider(["again", assistant("", ToolCall("1", "look", "{}")), "seen", "yes"]))
    looked = []

    @tool(effect="read")
    async def look() -> None:
        looked.append(1)

    @app.agent("questions", sink="answers")
    async def answer(ctx: Any) -> Any:
        pieces = [piece.text async for piece in ctx.llm(engine).stream("again") if piece.completion is None]
        told = await Agent(engine, tools=[look]).run("look", effects=ctx.llm(engine))
        return {
            "said": (await ctx.llm(engine).complete(ctx.message["text"])).content,
            "pieces": pieces,
            "told": told.content,
        }

    async with started(app):
        reviews.send("good", "good", "bad")
        MemoryBroker.get(reviews.url).publish("questions", [{"text": "May I?"}])
        broker = MemoryBroker.get(reviews.url)
        await until(lambda: len(reviews.labelled()) == 3 and len(broker.records("answers")) == 1)
    assert [row["label"] for row in reviews.labelled()] == ["GOOD", "GOOD", "BAD"]
    assert reviews.asked == Counter({"Sentiment of: good": 1, "Sentiment of: bad": 1})
    assert broker.records("answers")[0].value == {"said": "yes", "pieces": ["again"], "told": "seen"}
    assert looked == [1]


# -- in the journal -----------------------------------------------------------------------------------------------------


async def test_after_a_crash_only_what_had_no_answer_is_asked_again(reviews: Reviews) -> None:
    """A batch whose questions are answered but for two, which were in flight: these two are paid twice, and nothing else."""
    texts = [f"t{number % 10}" for number in range(20)]
    reviews.held = {"Sentiment of: t3", "Sentiment of: t8"}
    app = reviews.app(durable=True)
    await app.start()
    reviews.send(*texts)
    await until(lambda: len(reviews.asked) == 10 and len(reviews.entries(EffectResult)) == 8)
    await crash(app)
    assert reviews.labelled() == []

    reviews.held = set()
    app = reviews.app(durable=True)
    async with started(app):
        await until(lambda: len(reviews.labelled()) == 20)
    assert [(row["text"], row["label"]) for row in reviews.labelled()] == [(text, text.upper()) for text in texts]
    assert reviews.asked == Counter({f"Sentiment of: t{n}": 1 + (n in (3, 8)) for n in range(10)})


async def test_an_attempt_after_an_error_asks_only_what_failed(reviews: Reviews) -> None:
    failing = iter([AuthenticationFailed("not yet")])
    reviews.answer = lambda spec: (
        next(failing, None) or verdict(spec) if "t1" in spec.messages[-1].text else verdict(spec)
    )
    async with started(reviews.app(durable=True, on_error="retry", backoff=0)):
        reviews.send("t0", "t1", "t2", "t1")
        await until(lambda: len(reviews.labelled()) == 4)
    assert [row["label"] for row in reviews.labelled()] == ["T0", "T1", "T2", "T1"]
    assert reviews.asked == Counter({"Sentiment of: t0": 1, "Sentiment of: t1": 2, "Sentiment of: t2": 1})


async def test_errors_as_a_column_are_the_same_in_a_replay(reviews: Reviews) -> None:
    reviews.answer = refusing
    reviews.held = {"Sentiment of: slow"}
    app = reviews.app(durable=True, how={"error": "wrong"})
    await app.start()
    reviews.send("good", "bad", "odd", "slow")
    await until(lambda: len(reviews.asked) == 4 and len(reviews.entries(EffectResult)) == 3)
    await crash(app)
    reviews.held = set()
    async with started(reviews.app(durable=True, how={"error": "wrong"})):
        await until(lambda: len(reviews.labelled()) == 4)
    found = reviews.labelled()
    assert [row["label"] for row in found] == ["GOOD", None, None, "SLOW"]
    assert found[1]["wrong"] == "RequestRefused: openai, gpt, request req-1: not this one"
    assert found[2]["wrong"].startswith("MalformedAnswer: ")
    assert reviews.asked == Counter({f"Sentiment of: {t}": 1 + (t == "slow") for t in ("good", "bad", "odd", "slow")})


async def test_a_large_batch_is_jobs_that_may_ask_for_each_of_their_rows(reviews: Reviews, tmp_path: Path) -> None:
    """What the source gives at once are more rows than a job may have effects."""
    file = tmp_path / "reviews.ndjson"
    file.write_text("".join(f'{{"id": {id}, "text": null}}\n' for id in range(10_001)))
    async with started(reviews.app(durable=True, source=NdjsonSource(file))):
        await until(lambda: len(reviews.labelled()) == 10_001)
    begins = reviews.entries(Begin)
    assert [int(begin.job.rpartition("+")[2]) for begin in begins] == [3334, 3334, 3333]
