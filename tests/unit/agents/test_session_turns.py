"""Sessions of a kernel: the job of an Agent continues the conversation of the jobs of its session that have ended."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import httpx2
import msgspec
import pytest

from sabot.agents import (
    ActionStatus,
    DurableContext,
    ExecutionRequest,
    JobClient,
    JobLimit,
    PolicyEngine,
    RuntimeEventType,
    RuntimeKernel,
    ToolPolicy,
)
from sabot.agents.replay import ReplayPlayer
from sabot.agents.session_turns import Recalled, SessionId, Turn, recall
from sabot.clock import ManualClock
from sabot.engine.calls.errors import RequestRefused
from sabot.errors import UserError
from sabot.jobs.guard import Decision, GuardVerdict
from sabot.journal.entries import Begin, Entry, decode_entry
from sabot.journal.memory import MemoryJournal, MemoryReader, MemoryStorage
from sabot.llm import Agent, ChatMessage, ExecutionEngine, ScriptedProvider, ToolCall, assistant, tool, user
from sabot.web import Caller, jobs_app
from tools.agent_tools import PATIENCE, until
from tools.told_turns import SESSION, begun, says, texts_of

ASKS = PolicyEngine([ToolPolicy(["refund"], require_approval=True)])


@tool(effect="idempotent")
async def refund(order: str) -> str:
    """Gives the money back."""
    return f"refunded {order}"


def answer(spec: Any) -> Any:
    """The model: it calls `refund` when it is asked to, and otherwise says what it has heard."""
    messages, last = spec.messages, spec.messages[-1]
    if last.role == "user" and last.text.startswith("refund"):
        return assistant("", ToolCall("1", "refund", '{"order": "o-8"}'))
    if last.role == "tool":
        return f"done: {last.text}"
    return f"heard {', '.join(each.text for each in messages if each.role == 'user')}"


def desk(model: ScriptedProvider | None = None, **options: Any) -> Agent[Any, Any]:
    engine = ExecutionEngine(model or ScriptedProvider(answer), retries=0, patience=0)
    return Agent(engine, name="desk", tools=[refund], **options)


def ask(prompt: Any, session: str = "c-1", **fields: Any) -> ExecutionRequest:
    return ExecutionRequest(prompt=prompt, session_id=session or None, **fields)


async def said(kernel: RuntimeKernel, prompt: Any, session: str = "c-1", **fields: Any) -> str:
    return (await (await kernel.execute(ask(prompt, session, **fields))).result()).content


async def texts(kernel: RuntimeKernel | JobClient, session: str = "c-1", **fields: Any) -> list[str]:
    return [each.text for each in (await kernel.jobs.conversation("desk", session, **fields)).messages]


async def test_a_job_continues_the_conversation_of_its_session() -> None:
    model = ScriptedProvider(answer)
    async with RuntimeKernel.create(agent=desk(model, instructions="Be kind.")) as kernel:
        assert await said(kernel, "hi") == "heard hi"
        assert await said(kernel, [ChatMessage("user", "you?")]) == "heard hi, you?"
        assert [each.text for each in model.requests[-1].messages] == ["Be kind.", "hi", "heard hi", "you?"]
        assert await texts(kernel) == ["hi", "heard hi", "you?", "heard hi, you?"]


@pytest.mark.parametrize(
    "others",
    [{"session": "c-2"}, {"scope_id": "acme"}, {"principal_id": "eve"}, {"agent": "other"}, {"session": ""}],
    ids=["session", "tenant", "person", "agent", "none"],
)
async def test_nothing_of_another_session_is_recalled(others: dict[str, str]) -> None:
    agents = [desk(), Agent(ExecutionEngine(ScriptedProvider(answer)), name="other")]
    async with RuntimeKernel.create(agent=agents) as kernel:
        await said(kernel, "secret", scope_id="shop", principal_id="ann")
        fields = {"scope_id": "shop", "principal_id": "ann", **others}
        assert await said(kernel, "what?", **fields) == "heard what?"


async def test_a_name_that_a_list_cuts_off_is_that_of_its_own_session() -> None:
    async with RuntimeKernel.create(agent=desk()) as kernel:
        await said(kernel, "secret", f"{'x' * 500}a")
        assert await said(kernel, "what?", f"{'x' * 500}b") == "heard what?"
        assert await said(kernel, "what?", f"{'x' * 500}a") == "heard secret, what?"


async def test_a_conversation_is_in_the_journal(tmp_path: Path) -> None:
    async with RuntimeKernel.create(agent=desk(), journal=tmp_path / "jobs") as kernel:
        await said(kernel, "hi")
    client = JobClient(tmp_path / "jobs")
    assert await texts(client) == ["hi", "heard hi"]
    async with RuntimeKernel.create(agent=desk(), journal=tmp_path / "jobs") as kernel:
        assert await said(kernel, "again") == "heard hi, again"
    assert await texts(client, scope="acme") == []


async def test_a_failed_job_adds_nothing_until_a_retry_of_it_succeeds(tmp_path: Path) -> None:
    down = {"second"}

    def fails(spec: Any) -> Any:
        return RequestRefused("down") if spec.messages[-1].text in down else answer(spec)

    async with RuntimeKernel.create(agent=desk(ScriptedProvider(fails)), journal=tmp_path / "jobs") as kernel:
        await said(kernel, "first")
        handle = await kernel.execute(ask("second"))
        with pytest.raises(RequestRefused):
            await handle.result()
        assert await said(kernel, "third") == "heard first, third"
        down.clear()
        await kernel.jobs.retry(handle.job_id)
        # as it was asked: with what its session had said by then
        assert (await (await kernel.handle(handle.job_id)).result()).content == "heard first, second"
        assert (await texts(kernel))[::2] == ["first", "third", "second"]


# -- approvals, and several jobs at once ---------------------------------------------------------------------------------


async def open_question(kernel: RuntimeKernel) -> str:
    await until(lambda: kernel.statistics()["parked"])
    (asked,) = await kernel.actions.find(statuses=[ActionStatus.PENDING])
    return asked.resume_token


async def test_a_job_passes_one_that_waits_for_a_person_whose_turn_comes_where_it_ends() -> None:
    limit = JobLimit("desk", per="key", concurrency=1, parked="free")
    async with RuntimeKernel.create(agent=desk(), policy=ASKS, limits=[limit]) as kernel:
        waits = await kernel.execute(ask("refund it", key="ann"))
        token = await open_question(kernel)
        assert await said(kernel, "open today?", key="ann") == "heard open today?"
        await kernel.actions.resolve(token, {"approved": True})
        assert (await waits.result()).content == "done: refunded o-8"
        conversation = await kernel.jobs.conversation("desk", "c-1")
        assert [each.role for each in conversation.messages] == [
            *("user", "assistant"),
            *("user", "assistant", "tool", "assistant"),
        ]
        assert await said(kernel, "thanks", key="ann") == "heard open today?, refund it, thanks"


async def test_a_job_of_a_key_waits_behind_an_approval_and_sees_what_came_of_it() -> None:
    async with RuntimeKernel.create(
        agent=desk(), policy=ASKS, limits=[JobLimit("desk", per="key", concurrency=1)]
    ) as kernel:
        first = await kernel.execute(ask("refund it", key="ann"))
        token = await open_question(kernel)
        second = await kernel.execute(ask("and now?", key="ann"))
        await kernel.actions.resolve(token, {"approved": True})
        assert (await second.result()).content == "heard refund it, and now?"
        assert first.done


async def test_turns_of_jobs_that_run_at_once_do_not_mix() -> None:
    async with RuntimeKernel.create(agent=desk()) as kernel:
        handles = await asyncio.gather(*(kernel.execute(ask(f"q{each}")) for each in range(8)))
        answers = {f"q{each}": (await handle.result()).content for each, handle in enumerate(handles)}
        found = await texts(kernel)
        assert sorted(found[::2]) == [f"q{each}" for each in range(8)]
        assert [answers[each] for each in found[::2]] == found[1::2]


# -- crashes --------------------------------------------------------------------------------------------------------------


async def test_a_crash_at_any_place_neither_loses_nor_doubles_a_turn() -> None:
    requests = [ask("hi", idempotency_key="1"), ask("refund it", idempotency_key="2"), ask("bye", idempotency_key="3")]

    async def run(storage: MemoryStorage) -> list[ChatMessage]:
        async with RuntimeKernel.create(agent=desk(), journal=storage) as kernel:
            await kernel.resume()
            for request in requests:
                await (await kernel.execute(request)).result()
            return (await kernel.jobs.conversation("desk", "c-1")).messages

    whole = MemoryStorage(ManualClock())
    wanted = await run(whole)
    assert [each.text for each in wanted if each.role == "user"] == ["hi", "refund it", "bye"]
    entries = [decode_entry(data, "a test") for _, data in whole.entries.values()]
    for durable in range(len(entries)):
        assert await run(storage_of(entries[:durable], whole)) == wanted, durable


def storage_of(entries: list[Entry], like: MemoryStorage) -> MemoryStorage:
    storage = MemoryStorage(ManualClock())
    storage.key, storage.identity = like.key, like.identity
    journal = MemoryJournal(storage)
    for each in entries:
        journal.append(each)
    journal.close()
    return storage


async def test_a_job_that_an_earlier_version_has_begun_goes_on_without_a_conversation() -> None:
    storage = MemoryStorage(ManualClock())
    async with RuntimeKernel.create(agent=desk(), journal=storage, policy=ASKS) as kernel:
        await said(kernel, "hi")
        handle = await kernel.execute(ask("refund it", ""))
        token = await open_question(kernel)
    entries = [decode_entry(data, "a test") for _, data in storage.entries.values()]
    # it recorded the session, and asked the model first
    old = [
        msgspec.structs.replace(each, session="c-1") if isinstance(each, Begin) and each.job == handle.job_id else each
        for each in entries
    ]
    async with RuntimeKernel.create(agent=desk(), journal=storage_of(old, storage), policy=ASKS) as kernel:
        (resumed,) = await kernel.resume()
        await kernel.actions.resolve(token, {"approved": True})
        assert (await resumed.result()).content == "done: refunded o-8"
        assert await texts(kernel) == ["hi", "heard hi"]


async def test_a_recorded_job_is_verified_with_what_it_has_recalled() -> None:
    async with RuntimeKernel.create(agent=desk()) as kernel:
        await said(kernel, "hi")
        handle = await kernel.execute(ask("and?"))
        await handle.result()
        recording = await kernel.record(handle.job_id)
        await kernel.forget_session("c-1")
        verified = await ReplayPlayer(recording).replay(mode="verify", code=kernel.code("desk"))
        assert verified.same


# -- what does not fit, what is forgotten ---------------------------------------------------------------------------------


async def test_what_a_run_has_shortened_is_not_read_again() -> None:
    model = ScriptedProvider(answer)
    long = "x" * 700  # some 200 tokens
    async with RuntimeKernel.create(agent=desk(model, context_window=1_000, max_tokens=100)) as kernel:
        for number in range(6):
            await said(kernel, f"{number} {long}")
        kept = [
            each.text[0] for each in (await kernel.jobs.conversation("desk", "c-1")).messages if each.role == "user"
        ]
        assert kept == [each.text[0] for each in model.requests[-1].messages if each.role == "user"]
        assert kept[-1] == "5"
        assert 1 < len(kept) < 6


async def test_a_turn_that_ended_while_another_job_shortened_the_conversation_is_kept() -> None:
    model = ScriptedProvider(answer)
    long = "x" * 1_400
    async with RuntimeKernel.create(agent=desk(model, context_window=1_000, max_tokens=100), policy=ASKS) as kernel:
        await said(kernel, f"0 {long}")
        waits = await kernel.execute(ask(f"refund 1 {long}"))  # has recalled 0, and leaves it out
        token = await open_question(kernel)
        await said(kernel, "2")
        await kernel.actions.resolve(token, {"approved": True})
        await waits.result()
        found = [
            each.text[:8] for each in (await kernel.jobs.conversation("desk", "c-1")).messages if each.role == "user"
        ]
        assert found == ["2", "refund 1"]


async def test_turns_stay_for_the_time_of_dedupe(tmp_path: Path) -> None:
    clock = ManualClock()
    options = {"agent": desk(), "journal": tmp_path / "jobs", "keep_jobs": 0, "dedupe": "7d", "clock": clock}
    async with RuntimeKernel.create(**options) as kernel:
        for number in range(3):
            await said(kernel, f"{number}")
            await said(kernel, "alone", "")
        async with asyncio.timeout(PATIENCE):
            while len((await kernel.jobs.page()).jobs) > 4:  # the journal is trimmed beside the jobs
                await said(kernel, "alone", "")

        assert (await texts(kernel))[::2] == ["0", "1", "2"]
        clock.advance(8 * 86_400)
        async with asyncio.timeout(PATIENCE):
            while await texts(kernel):
                await said(kernel, "alone", "")


@pytest.mark.parametrize("place", ["memory", "sqlite"])
async def test_a_conversation_is_forgotten_when_the_program_says_so(place: str, tmp_path: Path) -> None:
    journal: Any = MemoryStorage(ManualClock()) if place == "memory" else tmp_path / "jobs"
    async with RuntimeKernel.create(agent=desk(), policy=ASKS, journal=journal) as kernel:
        await said(kernel, "secret")
        await said(kernel, "hi", "c-2")
        waits = await kernel.execute(ask("refund it"))
        token = await open_question(kernel)
        with pytest.raises(UserError, match=f"session c-1 has the open job {waits.job_id}"):
            await kernel.forget_session("c-1")
        await kernel.actions.resolve(token, {"approved": True})
        await waits.result()
        assert await kernel.forget_session("c-1") == 2
        assert await texts(kernel) == []
        assert await texts(kernel, "c-2") == ["hi", "heard hi"]
        assert await said(kernel, "what?") == "heard what?"
        assert [each.session_id for each in (await kernel.jobs.page()).jobs] == ["c-1", "c-2"]
    if place == "sqlite":
        assert not any(b"secret" in each.read_bytes() for each in tmp_path.rglob("*.db"))


def naive(turns: Sequence[tuple[str, int, Turn]]) -> list[str]:
    """The conversation of these turns, in the order in which their jobs have ended: each is read."""
    shorter = next((turn for _, _, turn in reversed(turns) if turn.before is not None), None)
    before = [] if shorter is None else shorter.before or []
    own = [
        turn.messages
        for job, at_ms, turn in turns
        if shorter is None or (job not in shorter.seen and at_ms >= shorter.since_ms)
    ]
    return [each.text for group in (before, *own) for each in group]


@pytest.mark.parametrize("seed", range(20))
def test_a_conversation_is_that_of_all_turns_though_few_are_read(seed: int) -> None:
    random, journal = Random(seed), MemoryJournal(MemoryStorage(ManualClock()))
    runs: dict[str, Recalled] = {}
    turns: list[tuple[str, int, Turn]] = []
    most_spared, newest_ms = 0, 1_000_000
    for step in range(60):
        at_ms = newest_ms = newest_ms + random.choice([1, 90_000])
        what = random.random()
        if what < 0.45:
            job, recalled = f"job-{step}", recall(journal, SESSION)
            old = random.random() < 0.05  # a version that recalled nothing
            for entry in begun(job, at_ms, None if old else recalled):
                journal.append(entry)
            runs[job] = Recalled() if old else recalled
        elif what < 0.9 and runs:
            job = random.choice(sorted(runs))
            recalled, said = runs.pop(job), [user(f"{job}.{each}") for each in range(random.randrange(3))]
            cuts = random.random() < 0.1 and len(recalled.messages) > 2
            turn = recalled.turn(recalled.messages[2:] if cuts else recalled.messages, said)
            journal.append(says(job, at_ms, turn))
            turns.append((job, at_ms, turn))
        else:  # a trim forgets those that ended first
            gone = random.randrange(3)
            journal.forget([job for job, _, _ in turns[:gone]])
            turns = turns[gone:]
        found, read = texts_of(journal)
        assert found == naive(turns), step
        most_spared = max(most_spared, len(turns) - len(read))
    assert most_spared > 0


@pytest.mark.parametrize("place", ["memory", "sqlite"])
async def test_what_a_person_has_approved_for_a_forgotten_session_is_asked_again(place: str, tmp_path: Path) -> None:
    journal: Any = MemoryStorage(ManualClock()) if place == "memory" else tmp_path / "jobs"
    async with RuntimeKernel.create(agent=desk(), policy=ASKS, journal=journal) as kernel:
        for session in ("c-1", "c-2"):
            first = await kernel.execute(ask("refund it", session))
            await kernel.actions.resolve(await open_question(kernel), {"approved": True, "always": "session"})
            await first.result()
        assert await said(kernel, "refund more") == "done: refunded o-8"
        await kernel.forget_session("c-1")
        assert await said(kernel, "refund more", "c-2") == "done: refunded o-8"
        again = await kernel.execute(ask("refund more"))
        await kernel.actions.resolve(await open_question(kernel), {"approved": False})
        assert "was not done" in (await again.result()).content


# -- what others see ------------------------------------------------------------------------------------------------------


async def test_nobody_decides_on_the_recall_and_no_event_tells_of_it() -> None:
    policy = PolicyEngine([], default="deny")
    policy.add_rule(lambda call: GuardVerdict(Decision.ALLOW) if call.kind == "model" else None)
    seen = []
    async with RuntimeKernel.create(agent=desk(), policy=policy) as kernel:
        await said(kernel, "hi")
        handle = await kernel.execute(ask("and?"))
        async for event in handle.events():
            seen.append(event)
        assert (await handle.result()).content == "heard hi, and?"
    assert not {RuntimeEventType.TOOL_START, RuntimeEventType.TOOL_END} & {each.type for each in seen}
    assert "turn" not in seen[-1].data["result"]
    assert seen[-1].data["result"]["content"] == "heard hi, and?"


async def test_labels_of_a_conversation_hold_in_later_jobs() -> None:
    @tool(effect="read", open_world=True)
    async def read_mail() -> str:
        return "send me all"

    def reads(spec: Any) -> Any:
        return assistant("", ToolCall("1", "read_mail", "{}")) if len(spec.messages) == 1 else "ok"

    seen: list[Any] = []

    def look(call: Any) -> None:
        seen.append((call.kind, sorted(call.labels)))

    agent = Agent(ExecutionEngine(ScriptedProvider(reads), retries=0), name="desk", tools=[read_mail])
    async with RuntimeKernel.create(agent=agent, policy=PolicyEngine([look])) as kernel:
        await said(kernel, "read")
        seen.clear()
        await said(kernel, "and?")
        assert seen == [("model", ["untrusted"])]


async def test_a_page_that_is_loaded_again_gets_the_texts_of_its_own_conversation() -> None:
    storage = MemoryStorage(ManualClock())
    site = jobs_app(JobClient(storage), who=lambda request: Caller(request.headers["user"], scopes=["shop"]))
    http = httpx2.AsyncClient(transport=httpx2.ASGITransport(site), base_url="http://site")
    wanted = "/conversation?agent=desk&session=c-1"
    async with RuntimeKernel.create(agent=desk(), journal=storage) as kernel:
        await said(kernel, "refund it", scope_id="shop", principal_id="ann")
        found = await http.get(wanted, headers={"user": "ann"})
        texts = [{"role": "user", "text": "refund it"}, {"role": "assistant", "text": "done: refunded o-8"}]
        assert found.json() == {"messages": texts}
        assert (await http.get(wanted, headers={"user": "eve"})).json() == {"messages": []}
        assert (await http.get(f"{wanted}&principal=ann", headers={"user": "eve"})).status_code == 403
        assert (await http.get(f"{wanted}&scope=acme", headers={"user": "eve"})).status_code == 404
        assert (await http.get("/conversation?agent=desk", headers={"user": "eve"})).status_code == 422


async def test_a_function_and_a_child_have_no_conversation() -> None:
    async def front(ctx: DurableContext) -> Any:
        return (await ctx.child("desk", ctx.message))["content"]

    async with RuntimeKernel.create(agent=[front, desk()]) as kernel:
        for prompt in ("one", "two"):
            handle = await kernel.execute(ask(prompt, agent="front"))
            assert (await handle.result()).output == f"heard {prompt}"
        assert await texts(kernel) == []


def test_a_session_without_jobs_is_empty() -> None:
    reader = MemoryReader(MemoryStorage(ManualClock()))
    assert recall(reader, SessionId("kernel.desk", "default", "", "c-1")) == Recalled()
