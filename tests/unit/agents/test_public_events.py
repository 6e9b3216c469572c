"""What a customer hears of a job: each answer once and whole, whenever he comes, and nothing that is not his."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

import msgspec
import pytest

from sabot.agents import (
    ExecutionRequest,
    PolicyEngine,
    RuntimeEvent,
    RuntimeEventType,
    RuntimeKernel,
    ToolPolicy,
)
from sabot.agents.events.bus import Subscription
from sabot.agents.kernel import pieces as kept_pieces
from sabot.engine.calls.errors import ModelUnavailable
from sabot.errors import UserError
from sabot.journal.memory import MemoryJournal, MemoryStorage
from sabot.llm import Completion, Conversation, Piece, ScriptedProvider, ToolCall, Usage, assistant, tool, user
from sabot.llm.agent import Agent
from sabot.llm.engine import ExecutionEngine
from tools.agent_tools import bounded, until


class Writer(ScriptedProvider):
    """A model that writes what the test says, when it says it: `say`, `think`, `end`, `fail`."""

    def __init__(self) -> None:
        super().__init__("")
        self.said: asyncio.Queue[Piece | Exception | None] = asyncio.Queue()
        self.asked = 0

    def say(self, *texts: str) -> None:
        for text in texts:
            self.said.put_nowait(Piece(text))

    def think(self, text: str) -> None:
        self.said.put_nowait(Piece(reasoning=text))

    def end(self) -> None:
        self.said.put_nowait(None)

    def fail(self, error: Exception) -> None:
        self.said.put_nowait(error)

    async def complete(self, *given: Any, **how: Any) -> Completion:
        async with aclosing(self.stream(*given, **how)) as pieces:
            return [piece.completion async for piece in pieces if piece.completion is not None][-1]

    async def stream(self, spec: Any, **how: Any) -> AsyncGenerator[Piece, None]:  # type: ignore[override]
        self.asked += 1
        texts = []
        while (said := await self.said.get()) is not None:
            if isinstance(said, Exception):
                raise said
            texts.append(said.text)
            yield said
        yield Piece(completion=Completion(message=assistant("".join(texts)), usage=Usage(1, 1)))


def subscribed(kernel: RuntimeKernel) -> list[Subscription]:
    """Who reads the events of the kernel now."""
    return kernel.event_bus._subscriptions()


def kernel_of(provider: Any, **options: Any) -> RuntimeKernel:
    return RuntimeKernel.create(agent=Agent(ExecutionEngine(provider), name="tells"), **options)


class Customer:
    """Somebody who listens: the events that he has got, and the text that his page shows."""

    def __init__(self, handle: Any, after: str | None = None, **how: Any) -> None:
        self.events: list[RuntimeEvent] = []
        self.shown: dict[int, str] = {}
        self.place = after
        self._stream = handle.public_events(after=after, **how)
        self.task = asyncio.create_task(self._listen())

    async def _listen(self) -> None:
        async with aclosing(self._stream) as stream:
            async for event in stream:
                self.events.append(event)
                self.place = event.event_id
                show(self.shown, event)

    @property
    def text(self) -> str:
        return "".join(self.shown.values())

    async def leave(self) -> str:
        self.task.cancel()
        await asyncio.wait([self.task])
        return self.place or ""


def show(shown: dict[int, str], event: RuntimeEvent) -> None:
    """As the page of a customer does it."""
    if event.type == "job.started":
        shown.clear()
    elif event.type == "model.token":
        before = "" if event.data.get("reset") else shown.get(event.data["ordinal"], "")
        shown[event.data["ordinal"]] = before + event.data["text"]


async def heard(handle: Any, **how: Any) -> list[RuntimeEvent]:
    return [event async for event in handle.public_events(**how)]


def resets(event: RuntimeEvent) -> bool:
    return event.data.get("reset", False)


def tokens(events: list[RuntimeEvent]) -> list[str]:
    return [event.data["text"] for event in events if event.type == "model.token"]


# -- pieces for who comes late, and for who comes back


async def test_who_comes_while_the_model_writes_gets_the_text_so_far_and_then_each_piece() -> None:
    model = Writer()
    async with kernel_of(model) as kernel:
        handle = await kernel.execute(ExecutionRequest(prompt="a"))
        model.say("Once ", "upon ")
        await until(lambda: len(kernel.kept_pieces(handle.job_id)) and model.said.empty())
        late = Customer(handle)
        await until(lambda: late.text == "Once upon ")
        model.say("a ", "time")
        await until(lambda: late.text == "Once upon a time")
        model.end()
        await bounded(late.task)
        assert tokens(late.events) == ["Once upon ", "a ", "time"]
        assert kernel.kept_pieces(handle.job_id) == [], "what is recorded is not kept"
        assert tokens(await heard(handle)) == ["Once upon a time"], "a recorded answer is one piece"


async def test_events_have_the_pieces_for_who_comes_late_too() -> None:
    model = Writer()
    async with kernel_of(model) as kernel:
        handle = await kernel.execute(ExecutionRequest(prompt="a"))
        model.think("hm, ")
        model.say("Once ")
        model.think("well")
        model.say("upon ")
        await until(lambda: model.said.empty() and kernel.kept_pieces(handle.job_id))
        pieces: list[tuple[str, str, int]] = []

        async def listen() -> None:
            async for event in handle.events():
                if event.type in ("model.token", "model.reasoning"):
                    pieces.append((event.type.value, event.data["text"], event.data["number"]))

        late = asyncio.create_task(listen())
        await until(lambda: len(pieces) == 2)
        model.say("a time")
        model.end()
        await bounded(late)
        assert pieces == [
            ("model.token", "Once upon ", 3),
            ("model.reasoning", "hm, well", 3),
            ("model.token", "a time", 4),
        ]


async def test_who_comes_back_goes_on_behind_what_he_has_at_each_place() -> None:
    """Also between the pieces of an answer: while it is written, when it is recorded, and in the next process."""
    home, model = MemoryStorage(), Writer()
    journal = MemoryJournal(home)
    async with kernel_of(model, journal=journal) as kernel:
        handle = await kernel.execute(ExecutionRequest(prompt="a"))
        first = Customer(handle)
        model.say("Ōnce ", "üpon ", "ã ", "\U0001f600 time")
        await until(lambda: first.text == "Ōnce üpon ã \U0001f600 time")
        places = [event.event_id for event in first.events]
        assert len(set(places)) == len(places)
        back = [Customer(handle, place) for place in places]
        model.say(", long ago")
        model.end()
        for each in [*back, first]:
            await bounded(each.task)
        whole = first.events
        for number, each in enumerate(back):
            shown: dict[int, str] = {}
            for event in [*whole[: number + 1], *each.events]:
                show(shown, event)
            assert "".join(shown.values()) == "Ōnce üpon ã \U0001f600 time, long ago", number
            assert not any(map(resets, each.events))
            assert [event.type for event in each.events][-4:] == [event.type for event in whole[-4:]]
        job_id, places = handle.job_id, [event.event_id for event in whole]
    async with kernel_of(Writer(), journal=journal) as kernel:
        handle = await kernel.handle(job_id)
        for number, place in enumerate(places):
            shown = {}
            rest = await heard(handle, after=place)
            for event in [*whole[: number + 1], *rest]:
                show(shown, event)
            assert "".join(shown.values()) == "Ōnce üpon ã \U0001f600 time, long ago", number
            left = [event.type for event in whole[number + 1 :] if event.type != "model.token"]
            assert [event.type for event in rest if event.type != "model.token"] == left
        assert rest == [], "who has heard all hears nothing more"


async def test_two_listeners_and_one_who_leaves_do_not_disturb_each_other() -> None:
    model = Writer()
    async with kernel_of(model) as kernel:
        handle = await kernel.execute(ExecutionRequest(prompt="a"))
        one, two = Customer(handle), Customer(handle)
        model.say("Once ")
        await until(lambda: one.text == two.text == "Once ")
        place = await two.leave()
        model.say("upon ")
        await until(lambda: one.text == "Once upon ")
        two = Customer(handle, place)
        await until(lambda: two.text == "upon ")
        model.say("a time")
        model.end()
        await bounded(asyncio.gather(one.task, two.task))
        assert (one.text, two.text) == ("Once upon a time", "upon a time")
        assert not subscribed(kernel)


async def test_a_listener_is_told_that_an_answer_begins_again_and_shows_no_text_twice() -> None:
    model = Writer()
    async with kernel_of(model) as kernel:
        handle = await kernel.execute(ExecutionRequest(prompt="a"))
        there = Customer(handle)
        model.say("Once upon ")
        await until(lambda: there.text == "Once upon ")
        place = there.place
        model.fail(ModelUnavailable("the connection broke"))
        await until(lambda: model.asked == 2)
        model.say("Another ", "tale")
        model.end()
        await bounded(there.task)
        assert (await handle.result()).content == "Another tale"
        assert there.text == "Another tale"
        assert [event.data["text"] for event in there.events if resets(event)] == ["Another tale"]
        back = await heard(handle, after=place)
        assert (resets(back[0]), tokens(back)) == (True, ["Another tale"])


async def test_an_answer_that_a_stop_has_cut_begins_again_in_the_next_process() -> None:
    model = Writer()
    journal = MemoryJournal(MemoryStorage())
    async with kernel_of(model, journal=journal, stop_grace="0ms") as kernel:
        handle = await kernel.execute(ExecutionRequest(prompt="a"))
        there = Customer(handle)
        model.say("Once ")
        await until(lambda: there.text == "Once ")
    with pytest.raises(UserError, match="was closed"):
        await there.task
    model = Writer()
    async with kernel_of(model, journal=journal) as kernel:
        (handle,) = await kernel.resume()
        back = Customer(handle, there.place)
        await until(lambda: model.asked == 1)
        model.say("Upon ", "a time")
        model.end()
        await bounded(back.task)
        shown: dict[int, str] = {}
        for event in [*there.events, *back.events]:
            show(shown, event)
        assert shown == {1: "Upon a time"}
        assert back.events[0].type == "model.token", "he goes on where he was"


async def test_a_listener_that_does_not_read_holds_little_and_gets_all_when_it_reads() -> None:
    words = [f"{number} " for number in range(12_000)]
    model = Writer()
    async with kernel_of(model) as kernel:
        handle = await kernel.execute(ExecutionRequest(prompt="a"))
        slow = handle.public_events()
        got = [await anext(slow)]
        model.say(*words)
        await until(model.said.empty)
        (live,) = subscribed(kernel)
        await until(lambda: live.dropped > 0)
        assert len(live.queue) <= 1_024
        reading = asyncio.create_task(anext(slow))
        got.append(await bounded(reading))
        model.end()
        got += [event async for event in slow]
        assert "".join(tokens(got)) == "".join(words)
        assert not any(map(resets, got))


@pytest.mark.parametrize("limit", ["MOST_OF_JOB", "MOST_OF_ALL"])
async def test_beyond_what_is_kept_who_comes_late_waits_for_the_record(
    limit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept_pieces, limit, 20)
    model = Writer()
    async with kernel_of(model) as kernel:
        handle = await kernel.execute(ExecutionRequest(prompt="a"))
        there = Customer(handle)
        model.say("Once upon a time ", "there was ")
        await until(lambda: there.text == "Once upon a time there was ")
        assert kernel.kept_pieces(handle.job_id) == []
        late, back = Customer(handle), Customer(handle, there.events[-2].event_id)
        await until(lambda: late.events)
        model.say("a ", "king")
        await until(lambda: there.text.endswith("a king"))
        model.end()
        await bounded(asyncio.gather(late.task, there.task, back.task))
    assert tokens(there.events) == ["Once upon a time ", "there was ", "a ", "king"]
    assert tokens(late.events) == ["Once upon a time there was a king"], "whole, and never its end alone"
    assert tokens(back.events) == ["there was a king"]


async def test_any_text_is_a_place_and_one_that_the_job_does_not_have_begins_anew() -> None:
    model = Writer()
    model.say("Once")
    model.end()
    async with kernel_of(model) as kernel:
        handle = await kernel.execute(ExecutionRequest(prompt="a"))
        await handle.result()
        whole = await heard(handle)
        for forged in (
            "x",
            "1/1/tool.end",
            ";;;",
            "\0",
            "ü",
            "9" * 100_000,
            f"{whole[-1].event_id};1.1.1",
            "1;" * 9_000,
        ):
            got = await heard(handle, after=forged)
            assert got == whole, forged[:20]
        place = f"{whole[0].event_id};1.1.999999999.00000000"
        got = await heard(handle, after=place)
        assert (resets(got[0]), got[0].data["text"]) == (True, "Once"), "he cannot have the text of that place"
        for nothing in (None, ""):
            assert await heard(handle, after=nothing) == whole


# -- what a customer must not see

SECRET = "s3cret"


def planted(kind: RuntimeEventType, job_id: str) -> RuntimeEvent:
    """An event with a secret wherever events have something that is private, and in fields that nobody knows."""
    told = (
        "agent",
        "code",
        "input",
        "restored",
        "status",
        "effect",
        "arguments",
        "policy",
        "result",
        "error",
        "message",
    )
    told += ("action_id", "type", "payload", "resume_token", "expires_at", "resolution", "by", "outcome", "reason")
    told += ("content", "tool_calls", "usage", "cost", "model", "provider", "request_id", "cached", "finish_reason")
    told += ("labels", "traceback", "new_field", "began_at", "text")
    data: dict[str, Any] = {name: {"a": [SECRET]} if name == "arguments" else SECRET for name in told}
    data |= {"ordinal": 99, "attempt": 1, "number": 0, "tool": "refund"}
    return RuntimeEvent(kind, job_id, data, scope_id=SECRET, principal_id=SECRET)


async def test_no_event_of_any_type_shows_a_customer_what_is_not_listed() -> None:
    async def waits(ctx: Any) -> str:
        await ctx.wait("go")
        return SECRET

    async with RuntimeKernel.create(agent=waits) as kernel:
        handle = await kernel.execute(ExecutionRequest(prompt=SECRET, scope_id=SECRET, principal_id=SECRET))
        customer = Customer(handle)
        await until(lambda: customer.events)
        last = {RuntimeEventType.FINAL_RESULT}
        for kind in [*(each for each in RuntimeEventType if each not in last), *last]:
            if kind is not RuntimeEventType.FINAL_ERROR:
                await kernel.event_bus.publish(planted(kind, handle.job_id))
        await bounded(customer.task)
        assert len({event.type for event in customer.events}) > 10
        for event in customer.events:
            assert SECRET not in msgspec.json.encode(event).decode(), event
        await handle.cancel()


@tool
async def refund(order: str, amount: int, note: str) -> str:
    """Gives money back."""
    if amount == 1:
        raise ValueError(f"the bank says {SECRET}")
    return f"paid, {SECRET}"


POLICY = PolicyEngine([ToolPolicy(["refund"], require_approval=True)], name=SECRET)


def asks_refund(number: int, amount: int) -> Any:
    return assistant(
        "", ToolCall(str(number), "refund", json.dumps({"order": "o-1", "amount": amount, "note": SECRET}))
    )


async def test_a_customer_finds_no_token_and_nothing_private_in_his_refund() -> None:
    model = ScriptedProvider([asks_refund(1, 80), asks_refund(2, 1), asks_refund(3, 90), "You have your money."])
    agent = Agent(ExecutionEngine(model), name="desk", tools=[refund], instructions=SECRET, max_tool_retries=0)
    async with RuntimeKernel.create(agent=agent, policy=POLICY) as kernel:
        asked = ExecutionRequest(prompt=f"My name is {SECRET}", scope_id=SECRET, principal_id=SECRET)
        handle = await kernel.execute(asked)
        customer = Customer(handle, arguments={"refund": ["order", "nothing"]})
        tokens_seen = set()
        for answer in (True, True, False):
            asked_now = len(tokens_seen) + 1
            await until(lambda: sum(event.type == "action.required" for event in customer.events) == asked_now)  # noqa: B023
            (question,) = await handle.get_pending_actions()
            tokens_seen.add(question.resume_token)
            await kernel.actions.resolve(question.resume_token, {"approved": answer, "comment": SECRET}, by=SECRET)
        await bounded(customer.task)
        said = "\n".join(msgspec.json.encode(event).decode() for event in customer.events)
        private = [event async for event in handle.events()]
        sse = b"".join([each async for each in handle.server_sent_events()]).decode()
    assert SECRET in str([event.data for event in private]), "the program's own stream has it"
    for hidden in (SECRET, *tokens_seen, "ValueError", "amount", "approval", "cost", "input_tokens"):
        assert hidden not in said, hidden
        assert hidden not in sse
    starts = [event.data for event in customer.events if event.type == "tool.start"]
    assert [each.get("arguments") for each in starts] == [{"order": "o-1"}] * 2
    assert customer.text == "You have your money."
    assert customer.events[-1].data == {"result": "You have your money."}
    assert [event.data["ordinal"] for event in customer.events if event.type == "action.resolved"] == [
        event.data["ordinal"] for event in customer.events if event.type == "action.required"
    ]


async def test_what_the_models_of_a_function_write_is_not_public_unless_the_program_says_so() -> None:
    engine = ExecutionEngine(ScriptedProvider("an angry customer"))

    async def triage(ctx: Any) -> dict[str, Any]:
        verdict = await ctx.llm(engine).complete("Classify")
        return {"verdict": verdict.content}

    async with RuntimeKernel.create(agent=triage) as kernel:
        handle = await kernel.execute(ExecutionRequest(prompt="a"))
        await handle.result()
        closed, shown = await heard(handle), await heard(handle, answers=True)
    assert "angry" not in str(closed)
    assert closed[-1].data == {}
    assert (tokens(shown), shown[-1].data) == (["an angry customer"], {"result": {"verdict": "an angry customer"}})


async def test_a_summary_for_the_model_is_no_part_of_an_answer() -> None:
    def answer(spec: Any) -> str:
        return f"facts: {SECRET}" if spec.messages[-1].text.startswith("Summarize") else "fine"

    engine = ExecutionEngine(ScriptedProvider(answer))
    agent = Agent(engine, context_window=2000, max_tokens=500, trim="summarize")

    async def talks(ctx: Any) -> str:
        before = Conversation([each for n in range(40) for each in (user(f"{n} " + "x " * 60), assistant("yes"))])
        return (await agent.run("and now?", effects=ctx.llm(engine), conversation=before)).content

    async with RuntimeKernel.create(agent=talks) as kernel:
        handle = await kernel.execute(ExecutionRequest(prompt="a"))
        live = Customer(handle, answers=True)
        await bounded(live.task)
        private = [event async for event in handle.events()]
        late = await heard(handle, answers=True)
    assert [event.data.get("summary", False) for event in private if event.type == "model.done"] == [True, False]
    assert tokens(live.events) == tokens(late) == ["fine"]
    assert SECRET not in f"{live.events} {late}"


async def test_the_answer_of_an_agent_that_is_a_tool_is_shown_to_nobody_outside() -> None:
    """It is the result of a tool, and was shown as an answer: while it was written, and from the journal."""
    writer = Writer()
    asked = ScriptedProvider([assistant("", ToolCall("1", "clerk", '{"prompt": "who?"}')), assistant("served")])
    clerk = Agent(ExecutionEngine(writer), name="clerk")
    boss = Agent(ExecutionEngine(asked), name="boss", tools=[clerk])
    async with RuntimeKernel.create(agent=boss) as kernel:
        handle = await kernel.execute(ExecutionRequest(prompt="hello"))
        customer = Customer(handle)
        seen: list[RuntimeEvent] = []

        async def listen() -> None:
            async for event in handle.events():
                seen.append(event)

        listening = asyncio.create_task(listen())
        writer.say("inside ", "only")
        await until(lambda: [event.data["text"] for event in seen if event.type == "model.token"])
        assert customer.text == ""
        writer.end()
        await bounded(handle.result())
        await bounded(customer.task)
        await bounded(listening)
        for events in (customer.events, await bounded(heard(handle))):
            tokens = [event.data["text"] for event in events if event.type == "model.token"]
            assert "".join(tokens) == "served"
    said = [(event.type, event.data.get("agent")) for event in seen if event.type in ("model.token", "model.done")]
    assert set(said) == {("model.token", "clerk"), ("model.done", "clerk"), ("model.token", None), ("model.done", None)}


async def test_an_agent_shows_no_answer_with_answers_false() -> None:
    async with kernel_of(ScriptedProvider("Once upon a time")) as kernel:
        handle = await kernel.execute(ExecutionRequest(prompt="a"))
        closed = await heard(handle, answers=False)
    assert tokens(closed) == []
    assert closed[-1].data == {}


@pytest.mark.parametrize(
    ("how", "hint"),
    [({"arguments": ["order"]}, "refund"), ({"arguments": {"refund": "order"}}, ""), ({"answers": "yes"}, "True")],
)
async def test_wrong_arguments_are_refused_before_the_stream_begins(how: Any, hint: str) -> None:
    model = Writer()
    async with kernel_of(model) as kernel:
        handle = await kernel.execute(ExecutionRequest(prompt="a"))
        with pytest.raises(UserError, match="public_events") as refused:
            handle.public_events(**how)
        assert hint in (refused.value.hint or "")
        model.end()


# -- server-sent events


def parsed(body: bytes) -> list[dict[str, str]]:
    """As a browser reads it."""
    events = []
    for block in body.decode().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.split("\n") if line and not line.startswith(":"))
        if "data" in fields:
            events.append(fields)
    return events


async def test_a_browser_gets_server_sent_events_and_comes_back_by_their_ids() -> None:
    model = Writer()
    async with kernel_of(model) as kernel:
        handle = await kernel.execute(ExecutionRequest(prompt="a"))
        body = handle.server_sent_events(pause="10ms")
        got: list[bytes] = []

        async def read(stream: AsyncIterator[bytes], ends: str) -> None:
            async for each in stream:
                got.append(each)
                if ends in each.decode():
                    return

        model.say('line\nbreak "quoted" \u2028 ', "é")
        await bounded(read(body, "é"))
        await bounded(read(body, ": \n"))
        await body.aclose()
        await until(lambda: not subscribed(kernel), "who leaves is forgotten")
        events = parsed(b"".join(got))
        assert [json.loads(each["data"]).get("text") for each in events if each["event"] == "model.token"][-1] == "é"
        model.say(" end")
        model.end()
        rest = parsed(b"".join([each async for each in handle.server_sent_events(after=events[-1]["id"])]))
    texts = [json.loads(each["data"])["text"] for each in [*events, *rest] if each["event"] == "model.token"]
    assert "".join(texts) == 'line\nbreak "quoted" \u2028 é end'
    assert [each["event"] for each in rest][-3:] == ["model.done", "job.completed", "final.result"]


async def test_the_body_ends_quietly_when_the_kernel_stops() -> None:
    model = Writer()
    kernel = kernel_of(model, stop_grace="0ms")
    handle = await kernel.execute(ExecutionRequest(prompt="a"))
    got: list[bytes] = []

    async def read() -> None:
        async for each in handle.server_sent_events():
            got.append(each)

    reading = asyncio.create_task(read())
    await until(lambda: got)
    await kernel.close()
    await bounded(reading)
    assert parsed(b"".join(got))[0]["event"] == "job.started"
