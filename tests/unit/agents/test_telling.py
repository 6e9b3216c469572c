"""What the jobs of a host tell: which events, with which ids, and when they are told again."""

import asyncio
from collections import Counter
from contextlib import asynccontextmanager, suppress

import pytest
from unit.jobs.hosting import Agent, entries, hosting, prefix

from sabot import App
from sabot.agents import InMemoryEventBus
from sabot.agents.events.job_events import JobEvents
from sabot.agents.job_view import JobView
from sabot.engine.calls.effects import Reconciled
from sabot.engine.calls.tools import tool
from sabot.errors import NotSent, PolicyDenied
from sabot.jobs import log
from sabot.jobs.guard import Decision, EffectGuard, GuardVerdict
from sabot.journal import Letter
from sabot.journal.entries import Answer, Begin, End, Intent, Signal
from sabot.journal.memory import MemoryJournal, MemoryStorage
from sabot.llm import ChatMessage, Completion, ModelUnavailable, Usage
from sabot.llm.engine import ExecutionEngine
from sabot.llm.providers.scripted import ScriptedProvider
from tools.agent_tools import until


class Heard:
    """All events of a bus, and a host that publishes there."""

    def __init__(self, **options):
        self.bus, self.events = InMemoryEventBus(), []
        self.subscription = self.bus.on(self.events.append, **options)

    @asynccontextmanager
    async def hosting(self, journal, agent):
        async with hosting(journal, agent, listener=JobEvents(self.bus.publish, self.bus.wants)) as jobs:
            yield jobs
        await self.bus.flush()

    def ids(self):
        return [event.event_id for event in self.events]

    def types(self, job="j"):
        return [str(event.type) for event in self.events if event.job_id == job]

    def data(self, kind):
        return [event.data for event in self.events if event.type == kind]


@tool(effect="read")
async def look(what):
    return {"found": what}


@tool(effect="read", retries=1, backoff=0)
async def fails():
    raise ValueError("no such thing")


async def test_a_job_tells_its_calls_and_its_end():
    heard = Heard()

    async def f(ctx):
        return await ctx.call(look, ctx.message)

    async with heard.hosting(MemoryStorage(), Agent(f)) as jobs:
        jobs.begin("j", "gold")
        await jobs.over("j")
    assert heard.types() == ["job.started", "tool.start", "tool.end", "job.completed", "final.result"]
    assert heard.data("tool.start") == [
        {"tool": "look", "ordinal": 1, "attempt": 1, "effect": "read", "arguments": ["gold"]}
    ]
    assert [each["result"] for each in heard.data("tool.end")] == [{"found": "gold"}]
    assert heard.data("final.result") == [{"outcome": "succeeded", "result": {"found": "gold"}}]
    assert heard.ids()[1:3] == ["j/1/1/tool.start", "j/1/1/tool.end"]


async def test_attempts_and_errors_are_told():
    heard = Heard()

    async def f(ctx):
        await ctx.call(fails)

    async with heard.hosting(MemoryStorage(), Agent(f)) as jobs:
        jobs.begin("j")
        await jobs.over("j")
    assert heard.types() == ["job.started", "tool.start", "tool.start", "tool.error", "job.failed", "final.error"]
    assert heard.ids()[1:4] == ["j/1/1/tool.start", "j/1/2/tool.start", "j/1/2/tool.error"]
    assert [(each["error"], each["message"]) for each in heard.data("final.error")] == [("ValueError", "no such thing")]


async def test_a_question_and_its_answer_are_told():
    heard, home = Heard(), MemoryStorage()

    async def f(ctx):
        return (await ctx.ask("confirm", {"amount": 5})).approved

    async with heard.hosting(home, Agent(f)) as jobs:
        jobs.begin("j")
        await jobs.parks("j")
        await heard.bus.flush()
        [asked] = heard.data("action.required")
        assert (asked["action_id"], asked["type"], asked["payload"]) == ("j/1", "confirm", {"amount": 5})
        jobs.journal.post(Letter("answer", asked["resume_token"], body=b'{"approved": true}', by="ann"))
        await jobs.over("j")
    [answered] = heard.data("action.resolved")
    assert (answered["action_id"], answered["resolution"], answered["by"]) == ("j/1", {"approved": True}, "ann")
    assert heard.types() == [
        "job.started",
        "action.required",
        "job.status_changed",
        "action.resolved",
        "job.status_changed",
        "job.completed",
        "final.result",
    ]
    assert [each["status"] for each in heard.data("job.status_changed")] == ["waiting_action", "running"]
    assert max(Counter(heard.ids()).values()) == 1


async def test_each_question_about_a_doubt_is_told_with_the_id_that_its_action_has():
    """A person said "look up", which found nothing out: the second question had the event id of the first, and the id of its action."""

    async def unknown(effect):
        return Reconciled.UNKNOWN

    @tool(reconcile=unknown)
    async def pay():
        return "paid"

    async def f(ctx):
        return await ctx.call(pay)

    heard, home = Heard(), MemoryStorage()
    async with hosting(home, Agent(f)) as jobs:
        jobs.begin("j")
        await jobs.over("j")
    home = prefix(home, 2)  # killed during the call
    async with heard.hosting(home, Agent(f)) as jobs:
        for count, answer in enumerate(
            (b'{"outcome": "look_up"}', b'{"outcome": "look_up"}', b'{"outcome": "done"}'), 1
        ):
            await until(lambda count=count: len(heard.data("action.required")) == count)
            asked = heard.data("action.required")
            jobs.journal.post(Letter("answer", asked[-1]["resume_token"], body=answer))
            await until(lambda count=count: len(heard.data("action.resolved")) == count)
        await jobs.over("j")
        known = JobView.of(jobs.journal)
    assert [each["action_id"] for each in asked] == ["j/1.1", "j/1.1.1", "j/1.1.2"] == list(known.actions)
    assert [known.actions[each["action_id"]].resume_token for each in asked] == [each["resume_token"] for each in asked]
    assert max(Counter(heard.ids()).values()) == 1


async def test_a_letter_that_comes_after_the_end_of_its_job_leaves_nothing_behind():
    class Counts(JobEvents):
        @property
        def known(self):
            return len(self._view.states)

    told = []

    async def publish(event):
        told.append(str(event.type))

    listener = Counts(publish, lambda event_type, job_id: True)
    for number in range(5):
        job_id = f"j{number}"
        entries = Begin(job_id, 1, "a"), Intent(job_id, 2, 1, "ask", "confirm", token="t"), End(job_id, 3, "succeeded")
        for entry in (*entries, Signal(job_id, 4, "go", "s"), Answer(job_id, 4, 1, "t")):
            await listener.publish(entry)
    assert listener.known == 0
    assert told.count("final.result") == 5
    assert told[-1] == "final.result"


async def test_a_cancelled_job_is_told_as_one():
    heard, home = Heard(), MemoryStorage()

    async def f(ctx):
        await ctx.wait("never")

    async with heard.hosting(home, Agent(f)) as jobs:
        jobs.begin("j")
        await jobs.parks("j")
        jobs.journal.post(Letter("cancel", job="j", name="not wanted"))
        await jobs.over("j")
    assert heard.types() == ["job.started", "job.cancelled", "final.error"]
    assert heard.data("job.cancelled")[0]["reason"] == "not wanted"


async def test_pieces_of_an_answer_are_told_before_it_and_are_not_in_the_journal():
    heard, home = Heard(), MemoryStorage()
    provider = ScriptedProvider([("Once ", "upon ", "a time")])
    async with ExecutionEngine(provider) as engine:

        async def f(ctx):
            return (await ctx.llm(engine).complete("a tale")).content

        async with heard.hosting(home, Agent(f)) as jobs:
            jobs.begin("j")
            await jobs.over("j")
            assert jobs.agent.done == {"j": "Once upon a time"}
    assert heard.types() == ["job.started", *["model.token"] * 3, "model.done", "job.completed", "final.result"]
    assert "".join(each["text"] for each in heard.data("model.token")) == "Once upon a time"
    assert heard.ids()[1:5] == [*(f"j/1/1/{number}/model.token" for number in range(3)), "j/1/1/model.done"]
    [done] = heard.data("model.done")
    assert (done["content"], done["model"], done["usage"]["output_tokens"]) == ("Once upon a time", "scripted-1", 4)
    assert [type(entry).__name__ for entry in entries(home)] == ["Begin", "Intent", "EffectResult", "End"]


async def test_a_stream_that_breaks_off_is_asked_for_as_a_whole():
    heard = Heard()
    provider = ScriptedProvider([("Once ", ModelUnavailable("it broke")), "Once upon a time"])
    async with ExecutionEngine(provider, retries=0) as engine:

        async def f(ctx):
            return (await ctx.llm(engine).complete("a tale")).content

        async with heard.hosting(MemoryStorage(), Agent(f)) as jobs:
            jobs.begin("j")
            await jobs.over("j")
            assert jobs.agent.done == {"j": "Once upon a time"}


async def test_a_model_is_asked_for_the_whole_where_nobody_wants_pieces():
    heard = Heard(event_types={"job.completed", "model.done"})
    streamed = []

    async def answer(spec):
        return Completion(message=ChatMessage("assistant", "all of it"), usage=Usage(3, 4))

    async with ExecutionEngine(ScriptedProvider(answer)) as engine:
        engine.stream = streamed.append

        async def f(ctx):
            await ctx.llm(engine).complete("a tale")

        async with heard.hosting(MemoryStorage(), Agent(f)) as jobs:
            jobs.begin("j")
            await jobs.over("j")
    assert (heard.types(), streamed) == (["model.done", "job.completed"], [])


async def _steps(ctx):
    await ctx.call(look, 1)
    await ctx.ask("confirm", {})
    await ctx.call(look, 2)


@pytest.mark.parametrize("count", range(1, 8))
async def test_after_a_crash_at_each_entry_all_events_have_come_at_least_once_with_the_ids_they_had(count):
    whole, home = Heard(), MemoryStorage()
    async with whole.hosting(home, Agent(_steps)) as jobs:
        jobs.begin("j")
        await jobs.parks("j")
        await jobs.until(lambda: whole.data("action.required"))  # it is told when it is durable
        token = whole.data("action.required")[0]["resume_token"]
        jobs.journal.post(Letter("answer", token, body=b"{}"))
        await jobs.over("j")
    assert len(entries(home)) == 8
    again, cut = Heard(), prefix(home, count)
    async with again.hosting(cut, Agent(_steps)) as jobs:
        await jobs.until(lambda: jobs.agent.sleeping or jobs.agent.outcomes)
        if count < 5:
            jobs.journal.post(Letter("answer", token, body=b"{}"))
        await jobs.over("j")
    before, cut_short = TOLD[:count], count in (2, 6)  # then a call was under way, which is made again: another attempt
    assert again.ids()[: sum(before)] == whole.ids()[: sum(before)]
    repeated = Counter(["tool.start"]) if cut_short else Counter()
    assert Counter(again.types()) == Counter(whole.types()) + repeated


TOLD = [1, 1, 1, 2, 2, 1, 1]  # events of each entry but the last


async def test_nothing_is_told_before_it_is_durable():
    heard = Heard()

    class Slow(MemoryJournal):
        """A disk that takes its time."""

        def __init__(self):
            super().__init__(MemoryStorage())
            self.safe = asyncio.Event()

        async def durable(self, position):
            await self.safe.wait()

    async def f(ctx):
        return await ctx.call(look, 1)

    journal = Slow()
    async with heard.hosting(journal, Agent(f)) as jobs:
        jobs.begin("j")
        await jobs.over("j")
        assert heard.events == []
        journal.safe.set()
    assert heard.types()[-1] == "final.result"
    journal.close()


async def test_one_that_holds_the_host_up_is_waited_for(monkeypatch):
    monkeypatch.setattr(log, "AHEAD_MOST", 100)
    bus, held, begun = InMemoryEventBus(), asyncio.Event(), []

    async def holds(event):
        await held.wait()

    bus.on(holds, slow="hold", capacity=1)

    async def f(ctx):
        begun.append(ctx.job_id)

    async with hosting(MemoryStorage(), Agent(f), listener=JobEvents(bus.publish, bus.wants)) as jobs:
        for number in range(200):
            jobs.begin(f"j{number}")
        await jobs.until(lambda: jobs.host.log.behind)
        for _ in range(100):
            await asyncio.sleep(0)
        assert len(begun) < 60  # each job has two entries
        held.set()
        await jobs.until(lambda: len(begun) == 200)
    await bus.close()


async def test_a_stop_waits_for_no_listener_that_hangs(monkeypatch):
    monkeypatch.setattr(log, "AHEAD_MOST", 10)
    monkeypatch.setattr(log, "LAST_SECONDS", 0.01)
    bus = InMemoryEventBus()
    bus.on(lambda event: asyncio.Event().wait(), slow="hold", capacity=1)

    async def f(ctx):
        return None

    async with hosting(MemoryStorage(), Agent(f), listener=JobEvents(bus.publish, bus.wants)) as jobs:
        for number in range(30):
            jobs.begin(f"j{number}")
        await jobs.until(lambda: jobs.host.log.behind)
    assert not jobs.broken
    await bus.close()


async def test_no_listener_costs_no_task_and_no_memory():
    async def f(ctx):
        await ctx.call(look, 1)

    async with hosting(MemoryStorage(), Agent(f)) as jobs:
        jobs.begin("j")
        await jobs.over("j")
        assert jobs.host.log.behind is None
        assert not await jobs.host.log.wants_fragments("j")


async def test_what_was_not_sent_is_told_as_another_attempt():
    heard, tries = Heard(), []

    @tool(retries=2, backoff=0)
    async def mail(effect_number):
        tries.append(effect_number)
        if len(tries) == 1:
            raise NotSent("nobody was there")

    async def f(ctx):
        await ctx.call(mail, 1)

    async with heard.hosting(MemoryStorage(), Agent(f)) as jobs:
        jobs.begin("j")
        await jobs.over("j")
    assert heard.types() == ["job.started", "tool.start", "tool.start", "tool.end", "job.completed", "final.result"]


async def test_an_app_tells_what_happens_in_the_jobs_of_its_durable_agents():
    heard = Heard()
    app = App("tells", broker="memory://tells", journal="memory", state="memory", events=heard.bus)

    @app.agent("orders", durable=True)
    async def handle(ctx):
        return await ctx.call(look, ctx.message["id"])

    await app.send("orders", {"id": 7})
    await app.start()
    await until(lambda: "final.result" in [event.type for event in heard.events])
    await app.stop()
    assert [str(event.type) for event in heard.events] == [
        "job.started",
        "tool.start",
        "tool.end",
        "job.completed",
        "final.result",
    ]
    assert heard.data("job.started")[0]["agent"] == "tells.handle"


async def test_a_call_that_is_denied_was_not_started_and_one_that_a_person_allows_has_started_then():
    heard, home, verdicts = Heard(), MemoryStorage(), iter([Decision.DENY, Decision.ASK, Decision.ASK])

    class Judge(EffectGuard):
        def decide(self, call):
            return GuardVerdict() if call.after else GuardVerdict(next(verdicts), reason="so")

    @tool(effect="read")
    async def look_at(number):
        return number

    async def f(ctx):
        for number in range(3):
            with suppress(PolicyDenied):
                await ctx.call(look_at, number)

    agent = Agent(f)
    async with hosting(home, agent, listener=JobEvents(heard.bus.publish, heard.bus.wants), guard=Judge()) as jobs:
        jobs.begin("j")
        for ordinal, approved in ((2, b"true"), (3, b"false")):
            await jobs.parks("j", ordinal - 2)
            token = next(each.token for each in reversed(entries(home)) if getattr(each, "ordinal", 0) == ordinal)
            jobs.journal.post(Letter("answer", token, body=b'{"approved": %s}' % approved))
        await jobs.over("j")
    await heard.bus.flush()
    calls = [each.event_id for each in heard.events if str(each.type).startswith("tool")]
    assert calls == ["j/1/1/tool.error", "j/2/1/tool.start", "j/2/1/tool.end", "j/3/0/tool.error"]
