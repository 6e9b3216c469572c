"""map_llm: prompts of rows, answers as columns, what is asked once, errors, and what a checkpoint holds of it."""

import asyncio
import dataclasses
import datetime
import decimal
import enum
import json
import random
from collections import Counter
from typing import Annotated, Literal, TypedDict

import msgspec
import pyarrow as pa
import pydantic
import pytest
from unit.engine.operators.calls.async_runs import LoopClock, Run, Service, letters_in
from unit.engine.operators.calls.conftest import loop as loop

from sabot import App, col, lit
from sabot._cython.flow.channel import Watermark
from sabot.engine.operators.base import OperatorContext
from sabot.engine.operators.calls.async_operator import AsyncOperator
from sabot.engine.operators.calls.map_llm import MapLlm
from sabot.errors import UserError
from sabot.llm import (
    AuthenticationFailed,
    Completion,
    ExecutionEngine,
    Limits,
    MemoryCache,
    ModelUnavailable,
    RateLimited,
    ScriptedProvider,
    ToolCall,
    assistant,
    system,
)
from sabot.llm.asked_batches import AgentModel
from sabot.llm.asking import map_llm_node
from sabot.llm.columns import AnswerColumns
from sabot.testing import BARRIER, END, ListSink, ScriptedSource, simulate

INPUT = pa.schema([("n", pa.int64()), ("text", pa.string())])
LABELS = {"label": "string", "score": "float64"}
PROMPT = "Sentiment of: {text}"


def rows(*texts, first=0):
    return pa.RecordBatch.from_pylist([{"n": n, "text": text} for n, text in enumerate(texts, first)], INPUT)


def verdict_of(prompt):
    """What the model says of a prompt."""
    text = prompt.rpartition(" ")[2]
    return json.dumps({"label": text.upper(), "score": len(text) / 2})


def stream_of(schema=None):
    return App("reviews").stream(ScriptedSource([END], schema=schema or INPUT), schema=schema or INPUT)


class Model:
    """A model that answers when the test says so, and its engine. asked: the prompts, in the order of the requests."""

    def __init__(self, loop, answer=verdict_of, **engine):
        self.service = Service(loop, answer)
        self.provider = ScriptedProvider(lambda spec: self.service(spec.messages[-1].text))
        self.engine = ExecutionEngine(self.provider, clock=LoopClock(loop), seed=1, **engine)

    @property
    def asked(self):
        return [prompt.removeprefix("Sentiment of: ") for prompt in self.service.asked]


class Prompts(Run):
    """The operator that `map_llm` of these arguments makes. Requests take some turns of the loop."""

    def __init__(self, model, loop, prompt=PROMPT, *, output=LABELS, input=INPUT, keys=(), node=None, **how):
        running = {name: how.pop(name) for name in ("restored", "subtask", "parallelism") if name in how}
        options = {"concurrency": None, "ordered": True, "on_error": "fail", "cache": 100}
        options |= {name: how.pop(name) for name in (*options, "allow_cut") if name in how}
        self.model = model
        source = stream_of(input)._node
        node = node or map_llm_node(
            source, prompt, model.engine, output, how.pop("instructions", ""), None, options, how, lambda: None
        )
        self.node = node
        super().__init__(MapLlm(node.asked, keys=keys), loop, input, **running)
        self.settle()

    def feed(self, data):
        super().feed(data)
        self.settle()

    def settle(self):
        for _ in range(8):
            self.poll()

    def told(self, *texts):
        """-> what comes out when these are answered, one after the other."""
        for text in texts:
            self.model.service.answer(f"Sentiment of: {text}")
            self.settle()
        self.settle()
        out, self.out = self.out, []
        return out


# -- rows and answers -----------------------------------------------------------------------------------------------------


def test_answers_stand_behind_the_row_and_equal_prompts_are_asked_once(loop):
    model = Model(loop)
    run = Prompts(model, loop)
    assert run.schema.names == ["n", "text", "label", "score"]
    run.feed(rows("good", "bad", "good"))
    run.feed(rows("bad", "fine", first=3))
    assert model.asked == ["bad", "good", "fine"]
    assert run.told("good") == [(0, "good", "GOOD", 2.0)]
    assert run.told("bad") == [(1, "bad", "BAD", 1.5), (2, "good", "GOOD", 2.0), (3, "bad", "BAD", 1.5)]
    assert run.told("fine") == [(4, "fine", "FINE", 2.0)]
    run.feed(rows("good", "fine", first=5))
    assert run.told() == [(5, "good", "GOOD", 2.0), (6, "fine", "FINE", 2.0)]
    assert len(model.asked) == 3
    assert run.operator.statistics()["cache_hits"] == 2
    run.close()


def test_rows_come_out_as_their_answers_come_where_their_order_does_not_matter(loop):
    model = Model(loop)
    run = Prompts(model, loop, ordered=False)
    run.feed(rows("a", "b", "a"))
    run.mark(Watermark(7))
    assert run.told("b") == [(1, "b", "B", 0.5)]
    assert run.told("a") == [(0, "a", "A", 0.5), (2, "a", "A", 0.5), 7]
    run.close()


def test_a_row_without_a_prompt_has_no_answer_and_is_not_asked_about(loop):
    model = Model(loop)
    run = Prompts(model, loop)
    run.feed(rows(None, "good", None))
    assert model.asked == ["good"]
    assert run.told() == [(0, None, None, None)]
    assert run.told("good") == [(1, "good", "GOOD", 2.0), (2, None, None, None)]
    run.feed(rows(None))
    assert run.told() == [(0, None, None, None)]
    run.close()


def test_prompts_with_equal_beginnings_follow_each_other(loop):
    model = Model(loop, limits=Limits(concurrency=1))
    run = Prompts(model, loop, "{text}: {n}")
    run.feed(rows("long manual", "other manual", "long manual", "other manual"))
    for prompt in ("long manual: 0", "long manual: 2", "other manual: 1", "other manual: 3"):
        assert model.service.in_flight == [prompt]
        model.service.answer(prompt)
        run.settle()
    assert [row[0] for row in run.out] == [0, 1, 2, 3]
    run.close()


def test_answers_are_kept_so_many(loop):
    model = Model(loop)
    run = Prompts(model, loop, cache=1)
    run.feed(rows("a", "b"))
    run.told("a", "b")
    run.feed(rows("b"))
    assert run.told() == [(0, "b", "B", 0.5)]
    run.feed(rows("a"))
    run.told("a")
    assert model.asked == ["a", "b", "a"]
    run.close()


def test_as_many_requests_are_in_flight_as_the_engine_allows_and_fewer_after_a_429(loop):
    turned_away = iter([RateLimited("slow down", retry_after_s=5.0)])
    model = Model(loop, lambda prompt: next(turned_away, None) or verdict_of(prompt), limits=Limits(concurrency=4))
    run = Prompts(model, loop)
    run.feed(rows(*"abcdefghijkl"))
    assert model.service.in_flight == ["Sentiment of: a", "Sentiment of: b", "Sentiment of: c", "Sentiment of: d"]
    assert run.told("a", "b", "c", "d") == []  # a was turned away
    assert model.service.in_flight == []
    loop.advance(5.0)
    loop.advance(5.0)
    run.settle()
    assert len(model.service.in_flight) == 2
    while model.service.in_flight:
        run.model.service.answer(*model.service.in_flight)
        run.settle()
        loop.advance(1.0)
        run.settle()
    assert [row[1] for row in run.out] == list("abcdefghijkl")
    assert model.service.most == 4
    run.close()


def test_subtasks_ask_equal_prompts_once(loop):
    model = Model(loop)
    first = Prompts(model, loop, parallelism=2)
    second = Prompts(model, loop, parallelism=2, subtask=1, node=first.node)
    first.feed(rows("good"))
    second.feed(rows("good"))
    assert model.asked == ["good"]
    assert first.told("good") == [(0, "good", "GOOD", 2.0)]
    assert second.told() == [(0, "good", "GOOD", 2.0)]
    first.feed(rows("bad"))
    first.told("bad")
    second.feed(rows("bad"))
    assert second.told() == [(0, "bad", "BAD", 1.5)]
    assert model.asked == ["good", "bad"]
    first.close()
    second.close()


def test_a_cache_of_the_engine_s_own_is_asked_first(loop):
    model = Model(loop, cache=MemoryCache())
    for parallelism in (1, 2):
        run = Prompts(model, loop, parallelism=parallelism)
        run.feed(rows("good"))
        if parallelism == 1:
            run.told("good")
        else:
            assert run.told() == [(0, "good", "GOOD", 2.0)]
        run.close()
    assert model.asked == ["good"]


# -- prompts --------------------------------------------------------------------------------------------------------------


def made_of(prompt, data):
    """The prompts that the step makes of these rows; those that are null are left out."""
    provider = ScriptedProvider("{}")
    stream = App("reviews").stream(ScriptedSource([[*data.to_pylist()], END], schema=data.schema), schema=data.schema)
    stream.map_llm(prompt, ExecutionEngine(provider)).collect()
    return sorted(request.messages[-1].text for request in provider.requests)


PLACES = pa.RecordBatch.from_pylist(
    [
        {"n": 1, "x": 0.5, "b": True, "at": datetime.datetime(2026, 1, 2), "place": {"city": "Rome"}},
        {"n": None, "x": 1.0, "b": False, "at": None, "place": None},
    ]
)


@pytest.mark.one_in(4, "hundredths of a second of a core each")
@pytest.mark.parametrize(
    ("prompt", "found"),
    [
        ("{n} of {x}, {b}", ["1 of 0.5, true"]),
        ("{{literally}} {x}", ["{literally} 0.5", "{literally} 1"]),
        ("Where is {place.city}?", ["Where is Rome?"]),
        ("{x}{x}", ["0.50.5", "11"]),
        ("When? {at}", ["When? 2026-01-02 00:00:00.000000"]),
        (col("place")["city"], ["Rome"]),
        (col("n").fill_null(7).cast("string"), ["1", "7"]),
        (lit("the same"), ["the same"]),
        (lambda batch: [None if n is None else f"n = {n}" for n in batch.column("n").to_pylist()], ["n = 1"]),
        (lambda batch: pa.chunked_array([batch.column("n").cast(pa.large_string())]), ["1"]),
        (lambda batch: pa.array(["a", "a"]).dictionary_encode(), ["a"]),
        (lambda batch: [None] * batch.num_rows, []),
    ],
)
def test_prompts_are_made_by_column(prompt, found):
    assert made_of(prompt, PLACES) == found


@pytest.mark.parametrize(
    ("prompt", "message", "hint"),
    [
        ("Sentiment of: {txt}", "map_llm: there is no column 'txt'", "did you mean 'text'"),
        ("no column", "names no column", "without f before it"),
        ("{text:>10}", "has a format", "make a column of it before"),
        ("{text!r}", "has a format", "make a column of it before"),
        ("{} or {0}", "is not a column", "is a brace"),
        ("{0}", "is not a column", "is a brace"),
        ("{text[0]}", "is not a column", "is a brace"),
        ("open {text", "expected '}'", "are braces"),
        ("close } {text}", "Single '}'", "are braces"),
        (7, "7 is not a prompt", "a template over columns"),
        (col("txt"), "no column 'txt'", "did you mean 'text'"),
        (col("n"), "is int64, not text", 'cast("string")'),
        ("{text.city}", "string has no field 'city'", ""),
    ],
)
def test_a_prompt_that_cannot_be_is_said_when_the_plan_is_made(prompt, message, hint):
    with pytest.raises(UserError) as told:
        stream_of().map_llm(prompt, ExecutionEngine(ScriptedProvider(""))).explain()
    assert message in told.value.message
    assert "map_llm" in told.value.message
    assert hint in told.value.hint


def test_a_column_that_makes_no_text_is_refused(loop):
    schema = pa.schema([("words", pa.list_(pa.string()))])
    with pytest.raises(UserError, match=r"map_llm.*\{words\} is list<.*which makes no text"):
        Prompts(Model(loop), loop, "{words}", input=schema)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda batch: ["one"], "1 prompts for 2 rows"),
        (lambda batch: [1, 2], "the prompts are int64, not text"),
        (lambda batch: 7, "int is not a column of prompts"),
        (lambda batch: 1 // 0, "ZeroDivisionError"),
    ],
)
def test_a_function_that_makes_no_prompts_is_told_by_its_name(loop, function, message):
    run = Prompts(Model(loop), loop, function)
    with pytest.raises(UserError, match=rf"map_llm\(scripted-1\): .*<lambda>: .*{message}"):
        run.feed(rows("a", "b"))
    run.close()


# -- answers --------------------------------------------------------------------------------------------------------------


class Mood(enum.Enum):
    GOOD = "good"
    BAD = "bad"


class Reason(msgspec.Struct):
    words: list[str]
    mood: Mood


class Verdict(msgspec.Struct, rename="camel"):
    label: Literal["good", "bad"]
    how_sure: Annotated[float, msgspec.Meta(ge=0, le=1)]
    reasons: list[Reason] = []
    day: datetime.date | None = None


@dataclasses.dataclass
class Plain:
    label: str
    count: int | None


class Typed(TypedDict):
    label: str
    reason: Reason


REASON = pa.struct([("words", pa.list_(pa.string())), ("mood", pa.string())])


@pytest.mark.parametrize(
    ("output", "said", "schema", "row"),
    [
        (None, "It is good.", {"content": pa.string()}, ["It is good."]),
        ("summary", "It is good.", {"summary": pa.string()}, ["It is good."]),
        (
            {"n": int, "day": "date32", "list": pa.list_(pa.int8()), "price": pa.decimal128(5, 2)},
            {"n": 7, "day": "2026-01-02", "list": [1], "price": "1.50"},
            {"n": pa.int64(), "day": pa.date32(), "list": pa.list_(pa.int8()), "price": pa.decimal128(5, 2)},
            [7, datetime.date(2026, 1, 2), [1], decimal.Decimal("1.50")],
        ),
        (
            Verdict,
            {"label": "good", "howSure": 0.5, "reasons": [{"words": ["fine"], "mood": "good"}], "day": "2026-01-02"},
            {
                "label": pa.string(),
                "howSure": pa.float64(),
                "reasons": pa.list_(REASON),
                "day": pa.date32(),
            },
            ["good", 0.5, [{"words": ["fine"], "mood": "good"}], datetime.date(2026, 1, 2)],
        ),
        (Plain, {"label": "x", "count": None}, {"label": pa.string(), "count": pa.int64()}, ["x", None]),
        (
            Typed,
            {"label": "x", "reason": {"words": [], "mood": "bad"}},
            {"label": pa.string(), "reason": REASON},
            ["x", {"words": [], "mood": "bad"}],
        ),
    ],
)
def test_the_columns_of_an_answer_are_known_before_anything_is_asked(output, said, schema, row):
    text = said if isinstance(said, str) else json.dumps(said)
    source = ScriptedSource([[{"text": "a"}], END], schema=pa.schema([("text", pa.string())]))
    stream = App("reviews").stream(source, schema=source.schema)
    made = stream.map_llm("{text}", ExecutionEngine(ScriptedProvider(text)), output=output)
    assert made.schema == pa.schema([("text", pa.string()), *schema.items()])
    (found,) = made.collect().to_pylist()
    assert list(found.values()) == ["a", *row]


def test_a_model_of_pydantic_makes_columns(loop):
    class Part(pydantic.BaseModel):
        word: str

    class Whole(pydantic.BaseModel):
        mood: Mood
        parts: list[Part]
        count: int | None = None

    model = Model(loop, lambda prompt: '{"mood": "good", "parts": [{"word": "a"}]}')
    run = Prompts(model, loop, output=Whole)
    assert run.schema.field("parts").type == pa.list_(pa.struct([("word", pa.string())]))
    run.feed(rows("x"))
    assert run.told("x") == [(0, "x", "good", [{"word": "a"}], None)]
    run.close()


class Priced(msgspec.Struct):
    price: decimal.Decimal


class Mixed(msgspec.Struct):
    value: int | str


class Empty(msgspec.Struct):
    pass


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"output": {"label": "strin"}}, "column 'label' has unknown type 'strin'"),
        ({"output": {"label": 7}}, "is no column"),
        ({"output": {}}, "has no columns"),
        ({"output": {"m": pa.map_(pa.string(), pa.string())}}, "a model cannot write map"),
        ({"output": {"type": "object", "properties": {}}}, "is a JSON schema"),
        ({"output": int}, "makes no columns"),
        ({"output": list[Verdict]}, "makes no columns"),
        ({"output": 7}, "makes no columns"),
        ({"output": ""}, "is no name of a column"),
        ({"output": Empty}, "has no fields"),
        ({"output": Priced}, "Priced.price: Decimal is no type of a column"),
        ({"output": Mixed}, "has values of several types"),
        ({"output": {"text": "string"}}, "the answer has a column 'text', which the rows have already"),
        ({"output": "n"}, "the answer has a column 'n', which the rows have already"),
        ({"output": {"__time": "int64"}}, "no column can be called '__time'"),
        ({"tools": []}, "tools= would need a conversation"),
        ({"temprature": 0}, "'temprature' is no field of a request"),
        ({"concurrency": 0}, "concurrency=0"),
        ({"cache": -1}, "cache=-1"),
        ({"on_error": "ignore"}, "on_error='ignore'"),
        ({"dead_letter": 7}, "dead_letter"),
    ],
)
def test_what_cannot_be_asked_is_said_when_the_plan_is_made(how, message):
    with pytest.raises(UserError) as told:
        stream_of().map_llm("{text}", ExecutionEngine(ScriptedProvider("")), **how).explain()
    assert message in told.value.message


def test_an_engine_is_needed_and_not_its_provider():
    with pytest.raises(UserError, match="is not an engine"):
        stream_of().map_llm("{text}", ScriptedProvider(""))


def test_a_clash_of_names_that_only_the_records_show_is_refused_too(loop):
    node = Prompts(Model(loop), loop).node
    operator = MapLlm(node.asked)
    operator_input = pa.schema([("text", pa.string()), ("label", pa.string())])
    with pytest.raises(UserError, match="two columns 'label'"):
        Run(operator, loop, operator_input)


def test_instructions_and_fields_go_into_each_request():
    provider = ScriptedProvider("yes")
    source = ScriptedSource([[{"text": "a"}, {"text": "b"}], END], schema=pa.schema([("text", pa.string())]))
    stream = App("reviews").stream(source, schema=source.schema)
    stream.map_llm(
        "{text}", ExecutionEngine(provider), instructions="Be short.", model="other", temperature=0, stop=["."]
    ).collect()
    for request in provider.requests:
        assert request.messages[0] == system("Be short.")
        assert (request.model, request.temperature, request.stop) == ("other", 0, (".",))


def test_only_the_columns_that_somebody_needs_are_read():
    schema = pa.schema([("n", pa.int64()), ("text", pa.string()), ("unread", pa.string())])
    stream = App("reviews").stream(ScriptedSource([END], schema=schema), schema=schema)
    asked = stream.map_llm("{text}", ExecutionEngine(ScriptedProvider(""))).select("n", "content")
    assert "unread" not in asked.explain().partition("map_llm")[0]
    assert "map_llm scripted-1, '{text}'" in asked.explain()


def test_an_engine_serves_one_event_loop_after_the_other():
    provider = ScriptedProvider("yes")
    source = ScriptedSource([[{"text": "a"}], END], schema=pa.schema([("text", pa.string())]))
    stream = App("reviews").stream(source, schema=source.schema)
    asked = stream.map_llm("{text}", ExecutionEngine(provider, limits=Limits(concurrency=1)))
    for _ in range(2):
        assert asked.collect()["content"].to_pylist() == ["yes"]
    assert len(provider.requests) == 2


# -- failures -------------------------------------------------------------------------------------------------------------


def test_a_call_that_fails_ends_the_app_with_the_model_s_error(loop):
    error = AuthenticationFailed("the key is wrong", provider="openai", model="gpt", request_id="req-1")
    model = Model(loop, lambda prompt: error)
    run = Prompts(model, loop)
    run.feed(rows("good"))
    with pytest.raises(UserError) as told:
        run.told("good")
    assert told.value.message == (
        "map_llm(scripted-1): openai, gpt, request req-1: the key is wrong; prompt 'Sentiment of: good'"
    )
    assert told.value.hint == "ExecutionEngine(retries=…) repeats the call; on_error='skip' goes on without the row"
    run.close()


@pytest.mark.parametrize(
    ("answer", "kind", "message"),
    [
        (
            AuthenticationFailed("the key is wrong", provider="openai", model="gpt", request_id="req-1"),
            "AuthenticationFailed",
            "openai, gpt, request req-1: the key is wrong",
        ),
        (
            "no JSON",
            "MalformedAnswer",
            "scripted, scripted-1, request scripted-1: the answer does not match: it is no JSON",
        ),
        ('{"label": "x", "score": "high"}', "MalformedAnswer", "Expected `float`, got `str` - at `$.score`"),
        (assistant("", ToolCall("1", "search", "{}")), "MalformedAnswer", "the answer calls the tool search"),
    ],
)
def test_rows_that_fail_go_to_the_dead_letters_with_the_model_s_error(loop, answer, kind, message):
    model = Model(loop, lambda prompt: answer if prompt.endswith("bad") else verdict_of(prompt))
    run = Prompts(model, loop, on_error="skip")
    run.feed(rows("bad", "good", "bad"))
    run.feed(rows("bad", first=3))
    assert run.told("good", "bad") == [(1, "good", "GOOD", 2.0)]
    assert [json.loads(letter.payload) for letter in run.letters] == [{"n": n, "text": "bad"} for n in (0, 2, 3)]
    for letter in run.letters:
        assert letter.facts["error"] == kind
        assert message in letter.facts["message"]
        assert letter.facts["step"] == "map_llm(scripted-1)"
    assert model.asked == ["bad", "good"]
    run.feed(rows("bad"))  # what failed is not kept
    assert model.asked == ["bad", "good", "bad"]
    run.close()


def test_an_answer_that_a_filter_held_back_is_no_answer(loop):
    held_back = Completion(
        message=assistant("I"), finish_reason="content_filter", provider="openai", model="gpt", request_id="req-1"
    )
    model = Model(loop, lambda prompt: held_back)
    run = Prompts(model, loop, output=None, on_error="skip")
    run.feed(rows("x"))
    assert run.told("x") == []
    (letter,) = run.letters
    assert letter.facts["error"] == "ContentFiltered"
    assert (
        letter.facts["message"] == "scripted, scripted-1, request req-1: a filter of the provider held the answer back"
    )
    run.close()


@pytest.mark.parametrize("text", ["It is Ro", ""])
def test_an_answer_that_was_cut_off_is_no_answer(loop, text):
    model = Model(loop, lambda prompt: Completion(message=assistant(text), finish_reason="length"))
    run = Prompts(model, loop, output=None, on_error="skip")
    run.feed(rows("x"))
    assert run.told("x") == []
    (letter,) = run.letters
    assert letter.facts["error"] == "MalformedAnswer"
    assert "the answer was cut off at max_tokens" in letter.facts["message"]
    run.close()


def test_answers_that_were_cut_off_are_taken_with_a_mark_where_that_is_asked_for(loop):
    said = {
        "a": Completion(message=assistant("It is Ro"), finish_reason="length"),
        "b": Completion(message=assistant("I"), finish_reason="content_filter"),
        "c": assistant("It is Rome"),
    }
    model = Model(loop, lambda prompt: said[prompt.rpartition(" ")[2]])
    columns = AnswerColumns("place", allow_cut=True)
    assert columns.schema.names == ["place", "finish_reason"]
    run = Prompts(model, loop, output="place", allow_cut=True)
    run.feed(rows("a", "b", "c"))
    told = run.told("a", "b", "c")
    assert [row[2:] for row in told] == [("It is Ro", "length"), ("I", "content_filter"), ("It is Rome", "stop")]
    run.close()
    with pytest.raises(UserError, match="map_llm: allow_cut=True with output="):
        stream_of().map_llm("{text}", model.engine, output=LABELS, allow_cut=True)


def test_a_value_that_its_column_does_not_take_is_a_malformed_answer(loop):
    model = Model(loop, lambda prompt: '{"price": "1.234"}')
    run = Prompts(model, loop, output={"price": pa.decimal128(4, 2)}, on_error="skip")
    run.feed(rows("x"))
    assert run.told("x") == []
    (letter,) = run.letters
    assert letter.facts["error"] == "MalformedAnswer"
    assert "column 'price' is to be decimal128(4, 2)" in letter.facts["message"]
    run.close()


def test_a_provider_that_is_down_for_a_minute_loses_no_row(loop):
    began = loop.time()

    def answer(prompt):
        return verdict_of(prompt) if loop.time() - began >= 60 else ModelUnavailable("no connection", provider="openai")

    model = Model(loop, answer, retries=10)
    run = Prompts(model, loop, on_error="skip")
    run.feed(rows("good", "bad"))
    attempts = 0
    while not run.operator.is_empty:
        attempts += 1
        model.service.answer(*set(model.service.in_flight))
        loop.advance(5.0)
        run.settle()
    assert loop.time() - began >= 60
    assert attempts < 40
    assert run.out == [(0, "good", "GOOD", 2.0), (1, "bad", "BAD", 1.5)]
    assert run.letters == []
    run.close()


# -- state ----------------------------------------------------------------------------------------------------------------


def test_after_a_restore_each_row_has_its_answer_and_nulls_stay(loop, tmp_path):
    before = Model(loop)
    run = Prompts(before, loop)
    run.feed(rows("a", "b", None, "b"))
    assert run.told("b") == []
    saved = run.saved(tmp_path / "saved")
    assert saved.facts["groups"] == 4
    run.close()

    after = Model(loop)
    run = Prompts(after, loop, restored=[saved])
    assert after.asked == ["a"]
    run.feed(rows("b", first=4))
    assert run.told("a") == [
        (0, "a", "A", 0.5),
        (1, "b", "B", 0.5),
        (2, None, None, None),
        (3, "b", "B", 0.5),
        (4, "b", "B", 0.5),
    ]
    assert after.asked == ["a"]
    run.close()


def test_rows_that_were_given_up_stay_given_up(loop, tmp_path):
    before = Model(loop, lambda prompt: AuthenticationFailed("no", provider="openai", model="gpt", request_id="req-1"))
    run = Prompts(before, loop, on_error="skip")
    run.feed(rows("a", "b"))
    assert run.told("b") == []
    saved = run.saved(tmp_path / "saved")
    run.close()

    after = Model(loop)
    run = Prompts(after, loop, on_error="skip", restored=[saved])
    assert after.asked == ["a"]
    assert run.told("a") == [(0, "a", "A", 0.5)]
    (letter,) = run.letters
    assert letter.facts["message"] == "openai, gpt, request req-1: no"
    run.close()


@pytest.mark.parametrize(("before", "now"), [(1, 3), (2, 1)])
def test_with_another_parallelism_each_row_in_flight_has_one_owner(loop, tmp_path, before, now):
    saved = []
    for subtask in range(before):
        run = Prompts(Model(loop), loop, parallelism=before, subtask=subtask)
        run.feed(rows(*"abcd", first=subtask * 10))
        run.told("c") if subtask == 0 else None
        saved.append(run.saved(tmp_path / str(subtask)))
        run.close()
    after = Model(loop)
    runs = [Prompts(after, loop, parallelism=now, subtask=subtask, restored=saved) for subtask in range(now)]
    while after.service.in_flight:
        after.service.answer(*set(after.service.in_flight))
        for run in runs:
            run.settle()
    found = [row for run in runs for row in run.out]
    assert Counter(found) == Counter(
        (n + part * 10, t, t.upper(), 0.5) for part in range(before) for n, t in enumerate("abcd")
    )
    for run in runs:
        run.close()


def test_rows_in_flight_can_be_read_without_the_model(loop, tmp_path):
    run = Prompts(Model(loop), loop)
    run.feed(rows("a", "b"))
    saved = run.saved(tmp_path / "saved")
    reader = run.operator.state_reader()
    run.close()
    assert run.operator.state_schema()["kind"] == "map_llm"
    reading = AsyncOperator(keys=reader["keys"])
    reading.open(OperatorContext(INPUT, loop=lambda: pytest.fail("nobody is to be asked")))
    reading.restore([saved])
    assert [row for data in reading.contents() for row in data.to_pylist()] == rows("a", "b").to_pylist()
    reading.close()


@pytest.mark.one_in(5, "half a second of a core each")
@pytest.mark.parametrize("seed", range(6))
def test_whatever_crashes_each_row_has_its_answer_once(seed):
    """In a simulation: rows with equal prompts, some without, some whose calls fail; parallelism and order change between lives."""
    rng = random.Random(seed)
    texts = [rng.choice(["a", "b", "c", "dd", None, "bad", f"word{n}"]) for n in range(60)]
    waits = {text: rng.choice([0, 0.001, 0.05, 2.0]) for text in texts}
    out, dead = ListSink(), ListSink("dead")

    async def answer(spec):
        text = spec.messages[-1].text.rpartition(" ")[2]
        await asyncio.sleep(waits[text])
        return AuthenticationFailed("no") if text == "bad" else verdict_of(text)

    def build(folder):
        engine = ExecutionEngine(ScriptedProvider(answer), limits=Limits(concurrency=5))
        app = App(
            "calls",
            checkpoint_dir=str(folder),
            checkpoint_interval="100ms",
            parallelism=rng.choice([1, 2]),
        )
        script = []
        for first in range(0, 60, 10):
            script += [[{"n": n, "text": texts[n]} for n in range(first, first + 10)], BARRIER]
        stream = app.stream(ScriptedSource([*script, END], schema=INPUT), schema=INPUT)
        asked = stream.map_llm(
            PROMPT, engine, output=LABELS, ordered=rng.random() < 0.5, on_error="skip", dead_letter=dead, cache=3
        )
        asked.to(out, delivery="exactly_once")
        return app

    found = simulate(build, seed, crashes=2, stops=1)
    assert found.lives > 1
    want = {
        n: {"n": n, "text": text, "label": text and text.upper(), "score": text and len(text) / 2}
        for n, text in enumerate(texts)
        if text != "bad"
    }
    assert sorted(out.rows, key=lambda row: row["n"]) == list(want.values())
    letters = [letter for data in dead.batches for letter in letters_in(data)]
    assert {json.loads(letter.payload)["n"] for letter in letters} == set(range(60)) - want.keys()


async def test_an_answer_of_a_model_that_its_column_would_cut_is_an_error_of_its_row() -> None:
    model = AgentModel(ExecutionEngine(ScriptedProvider(lambda spec: '{"x": 1e40}')))
    asked = pa.record_batch({"text": ["a"]})
    found = await model.map("{text}", asked, output={"x": "float32"}, error="wrong")
    assert found.column("x").to_pylist() == [None]
    assert "column 'x' is to be float: 1e+40 would be infinite as float" in found.column("wrong").to_pylist()[0]
