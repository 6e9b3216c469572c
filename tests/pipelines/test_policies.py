"""A policy of an app: what its durable agents may do, on whose behalf, over crashes, and from one agent to the next."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from sabot import App
from sabot.agents import (
    ActionStatus,
    LabelPolicy,
    ModelPolicy,
    PolicyDenied,
    PolicyEngine,
    RedactionPolicy,
    ToolPolicy,
    tool,
)
from sabot.connectors.memory import MemoryBroker
from sabot.errors import CheckpointFailed, UserError
from sabot.llm import RequestSpec, ToolCall, assistant
from sabot.llm.engine import ExecutionEngine
from sabot.llm.providers.scripted import ScriptedProvider
from tools.agent_tools import started, until


class Office:
    """A broker, and a state directory over which apps come and go."""

    def __init__(self, url: str, directory: Path) -> None:
        self.url = url
        self.directory = directory

    def app(self, policy: PolicyEngine) -> App:
        return App("desk", self.url, state=str(self.directory), checkpoint_interval=3600, policy=policy)

    def ask(self, **fields: Any) -> None:
        MemoryBroker.get(self.url).publish("questions", [fields])

    def answers(self) -> list[Any]:
        return [record.value for record in MemoryBroker.get(self.url).records("answers")]

    def records(self, topic: str) -> list[Any]:
        return MemoryBroker.get(self.url).records(topic)


@pytest.fixture
def office(memory_url: str, tmp_path: Path) -> Office:
    return Office(memory_url, tmp_path / "state")


async def parked(app: App) -> Any:
    """The one action of a job that is parked, when the journal has it."""
    await until(lambda: app.statistics()["jobs"]["parked"] == 1)
    for _ in range(2000):
        if found := await app.actions.find():
            (action,) = found
            return action
        await asyncio.sleep(0.005)
    raise AssertionError("a job is parked, and has no action")


async def test_a_denied_tool_is_a_result_that_the_model_can_read(office: Office) -> None:
    refunded: list[str] = []

    @tool
    async def refund(order: str) -> str:
        """Gives the money back."""
        refunded.append(order)
        return f"refunded {order}"

    def answer(spec: RequestSpec) -> Any:
        said = [each.text for each in spec.messages if each.role == "tool"]
        return said[0] if said else assistant("", ToolCall("c", "refund", '{"order": "o1"}'))

    policy = PolicyEngine([ToolPolicy(["refund"], allowed_scopes=["acme"], reason="only acme gives refunds")])
    app = office.app(policy)
    engine = ExecutionEngine(ScriptedProvider(answer))
    app.llm_agent("questions", engine, name="support", tools=[refund], sink="answers", scope="tenant")
    async with started(app):
        office.ask(tenant="guests", text="my money!")
        office.ask(tenant="acme", text="my money!")
        office.ask(text="whose?")
        office.ask(tenant="ac\0me", text="what can no database keep?")
        await until(lambda: len(office.answers()) == 2 and len(office.records("questions.dlq")) == 2)
        jobs = await app.jobs.find()
    said = sorted(each["content"] for each in office.answers())
    denied = "PolicyDenied: refund was not done: only acme gives refunds (rule ToolPolicy refund)"
    assert said == [denied, "refunded o1"]
    assert refunded == ["o1"]
    assert {job.scope_id for job in jobs} == {"guests", "acme"}
    for letter in office.records("questions.dlq"):
        assert "field 'tenant' has no scope (scope=)" in dict(letter.headers)["sabot.message"].decode()


@pytest.mark.one_in(2, "a tenth of a second of a core each")
@pytest.mark.parametrize("approved", [True, False])
async def test_a_model_that_needs_approval_is_asked_after_it_also_over_a_crash(office: Office, approved: bool) -> None:
    policy = PolicyEngine([ModelPolicy(["scripted*"], require_approval=True)])
    provider = ScriptedProvider("fine")
    engine = ExecutionEngine(provider)

    def app() -> App:
        app = office.app(policy)

        @app.agent("questions", sink="answers", durable=True)
        async def handle(ctx: Any) -> Any:
            try:
                return (await ctx.llm(engine).complete(ctx.message["text"])).content
            except PolicyDenied as error:
                return error.message

        return app

    first = app()
    await first.start()
    office.ask(text="hello")
    action = await parked(first)
    assert (action.type, action.payload["effect"], provider.requests) == ("confirm", provider.model, [])
    first.agent_runtime.checkpoint_coordinator.refuse("the process died")
    with pytest.raises(CheckpointFailed):
        await first.stop()
    second = app()
    async with started(second):
        action = await parked(second)
        with pytest.raises(UserError, match="may be done"):
            await second.actions.resolve(action.resume_token, {"choice": 1})
        await second.actions.resolve(action.resume_token, {"approved": approved}, by="ada")
        await until(lambda: len(office.answers()) == 1)
    refused = f"{provider.model} was not done: it was rejected by ada"
    assert office.answers() == ["fine" if approved else refused]
    assert len(provider.requests) == int(approved)


async def test_a_model_is_asked_as_the_policy_has_it(office: Office) -> None:
    policy = PolicyEngine([ModelPolicy(["large"], degrade_to="small"), RedactionPolicy([r"\d{16}"])])
    provider = ScriptedProvider("fine")
    app, engine = office.app(policy), ExecutionEngine(provider)

    @app.agent("questions", sink="answers", durable=True)
    async def handle(ctx: Any) -> Any:
        return (await ctx.llm(engine).complete(ctx.message["text"], model="large")).content

    async with started(app):
        office.ask(text="my card is 1234567812345678")
        await until(lambda: office.answers() == ["fine"])
    (spec,) = provider.requests
    assert (spec.model, spec.messages[0].text) == ("small", "my card is ***")


async def test_a_label_goes_with_the_output_to_the_next_agent(office: Office) -> None:
    sent: list[str] = []

    @tool(effect="read", open_world=True)
    async def web(page: str) -> str:
        return f"text of {page}"

    @tool
    async def mail(text: str) -> None:
        sent.append(text)

    app = office.app(PolicyEngine([LabelPolicy()]))

    @app.agent("questions", sink="pages", durable=True)
    async def read(ctx: Any) -> Any:
        found = await ctx.call(web, ctx.message["page"]) if "page" in ctx.message else ctx.message["text"]
        return {"text": found, "labels": sorted(ctx.labels)}

    @app.agent("pages", durable=True)
    async def tell(ctx: Any) -> None:
        await ctx.call(mail, ctx.message["text"])

    async with started(app):
        office.ask(text="plain")
        await until(lambda: sent == ["plain"])
        office.ask(page="a")
        action = await parked(app)
        assert action.payload["reason"] == "its job has read what is untrusted (tool mail)"
        await app.actions.resolve(action.resume_token, {"approved": True})
        await until(lambda: sent == ["plain", "text of a"])
    plain, labelled = office.records("pages")
    assert (plain.value["labels"], dict(plain.headers).get("sabot.labels")) == ([], None)
    assert (labelled.value["labels"], dict(labelled.headers)["sabot.labels"]) == (["untrusted"], b"untrusted")


async def test_labels_stay_with_the_state_of_a_key_over_its_jobs_and_a_restart(office: Office) -> None:
    sent: list[str] = []

    @tool(effect="read", open_world=True)
    async def web(page: str) -> str:
        return f"text of {page}"

    @tool(effect="unsafe")
    async def mail(text: str) -> None:
        sent.append(text)

    def desk() -> App:
        app = office.app(PolicyEngine([LabelPolicy(otherwise="deny")]))

        @app.agent("questions", key="user", sink="done", durable=True)
        async def handle(ctx: Any) -> Any:
            seen = ctx.state("seen")
            if page := ctx.message.get("page"):
                await seen.put("text", await ctx.call(web, page))
            elif "note" in ctx.message:
                await seen.put("note", ctx.message["note"])
            else:
                try:
                    await ctx.call(mail, await seen.get("text") or "nothing")
                except PolicyDenied as error:
                    return {"user": ctx.message["user"], "denied": error.message}
            return {"user": ctx.message["user"], "labels": sorted(ctx.labels)}

        return app

    async with started(desk()):
        office.ask(user="ann", page="a")
        office.ask(user="ann", note="call back")
        office.ask(user="bob", mail=True)
        await until(lambda: len(office.records("done")) == 3)
    assert sent == ["nothing"], "the state of another key has no labels"
    async with started(desk()):
        office.ask(user="ann", mail=True)
        await until(lambda: len(office.records("done")) == 4)
    assert sent == ["nothing"]
    *_, noted, mailed = [each.value for each in office.records("done") if each.value["user"] == "ann"]
    assert noted["labels"] == ["untrusted"]
    assert "its job has read what is untrusted" in mailed["denied"]


async def test_a_conversation_keeps_the_labels_of_what_was_said_in_it(office: Office) -> None:
    sent: list[str] = []

    @tool(effect="read", open_world=True)
    async def web(page: str) -> str:
        return f"text of {page}"

    @tool(effect="unsafe")
    async def mail(text: str) -> None:
        sent.append(text)

    app = office.app(PolicyEngine([LabelPolicy(otherwise="deny")]))
    script = [
        assistant("", ToolCall("1", "web", '{"page": "a"}')),
        "read",
        assistant("", ToolCall("2", "mail", '{"text": "what the page says"}')),
        "not sent",
    ]
    model = ScriptedProvider(script)
    app.llm_agent("questions", ExecutionEngine(model), tools=[web, mail], key="user", sink="done")
    async with started(app):
        office.ask(user="ann", text="Read it.")
        office.ask(user="ann", text="Do it.")
        await until(lambda: len(office.records("done")) == 2)
    assert sent == []
    assert "its job has read what is untrusted" in model.requests[-1].messages[-1].text


async def test_the_records_of_an_agent_may_be_untrusted(office: Office) -> None:
    app = office.app(PolicyEngine([LabelPolicy(otherwise="deny")]))

    @app.agent("questions", sink="answers", durable=True, labels=["untrusted"])
    async def handle(ctx: Any) -> Any:
        try:
            await ctx.step(print, "hello")
        except PolicyDenied as error:
            return error.message

    async with started(app):
        office.ask(text="x")
        await until(lambda: len(office.answers()) == 1)
    assert office.answers()[0].startswith("print was not done: its job has read what is untrusted")


@pytest.mark.parametrize(
    "options",
    [
        {"scope": "t"},
        {"principal": "p", "durable": True, "batch": True},
        {"labels": "untrusted", "durable": True},
        {"labels": ["a,b"], "durable": True},
    ],
)
def test_options_that_cannot_be_meant_are_refused(office: Office, options: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        office.app(PolicyEngine()).agent("questions", **options)(print)


REFUNDED: list[
    str
] = []  # no part of the tool: of one that has a list, nobody can tell after a restart that it is the same


@pytest.mark.slow  # half a second of a core
async def test_an_approval_for_a_session_holds_for_the_jobs_of_its_key_over_a_restart_and_for_no_other(
    office: Office,
) -> None:
    @tool
    async def refund(order: str) -> str:
        REFUNDED.append(order)
        return order

    REFUNDED.clear()

    def desk() -> App:
        app = office.app(PolicyEngine([ToolPolicy(["refund"], require_approval=True)]))

        @app.agent("questions", key="thread", sink="answers", durable=True, scope="tenant")
        async def handle(ctx: Any) -> Any:
            return await ctx.child("pay", {"order": ctx.message["order"], "till": 1})

        @app.agent("nothing", key="till", durable=True)
        async def pay(ctx: Any) -> Any:
            return [await ctx.call(refund, ctx.message["order"]), ctx.session]

        @app.agent("alone", durable=True, sink="answers")
        async def lone(ctx: Any) -> Any:
            return [await ctx.call(refund, ctx.message["order"]), ctx.session, await ctx.child("talk", {"till": 1})]

        @app.agent("nothing", key="till", durable=True)
        async def talk(ctx: Any) -> Any:
            return ctx.session

        return app

    async def asked(app: App) -> Any:
        async with asyncio.timeout(60):
            while not (found := await app.actions.find(statuses=[ActionStatus.PENDING])):  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        (action,) = found
        return action

    async with started(app := desk()):
        office.ask(order="o-1", thread=7, tenant="acme")
        action = await asked(app)
        assert action.payload["always"] == ["job", "session", "scope"]
        await app.actions.resolve(action.resume_token, {"approved": True, "always": "session"}, by="ann")
        await until(lambda: len(office.answers()) == 1)
        office.ask(order="o-2", thread=7, tenant="acme")
        await until(lambda: len(office.answers()) == 2)
    async with started(app := desk()):
        office.ask(order="o-3", thread=7, tenant="acme")
        await until(lambda: len(office.answers()) == 3)
        for count, fields in ((4, {"thread": 8, "tenant": "acme"}), (5, {"thread": 7, "tenant": "guests"})):
            office.ask(order="o-4", **fields)
            action = await asked(app)
            await app.actions.resolve(action.resume_token, {"approved": True})
            await until(lambda count=count: len(office.answers()) == count)
        MemoryBroker.get(office.url).publish("alone", [{"order": "o-5"}])
        action = await asked(app)
        with pytest.raises(UserError, match=r"belongs to no session .*key="):
            await app.actions.resolve(action.resume_token, {"approved": True, "always": "session"})
        await app.actions.resolve(action.resume_token, {"approved": True})
        await until(lambda: len(office.answers()) == 6)
        sessions = {job.session_id for job in await app.jobs.find()}
    assert REFUNDED == ["o-1", "o-2", "o-3", "o-4", "o-4", "o-5"]
    *of_keys, of_none = office.answers()
    assert [session for _, session in of_keys] == ["desk.handle/7"] * 3 + ["desk.handle/8", "desk.handle/7"]
    assert of_none[1:] == ["", ""], "neither the job, nor its child, whose record has a key"
    assert sessions == {"desk.handle/7", "desk.handle/8", ""}, "ended jobs too"


class _Redriven:
    """An app with one durable agent over `questions` that fails until it is told not to, and its dead letters."""

    def __init__(self, office: Office, policy: PolicyEngine, **options: Any) -> None:
        self.office, self.fails, self.seen, self.wired = office, True, list[Any](), list[str]()
        self.app = office.app(policy)

        @tool(effect="read", open_world=True)
        async def web(page: str) -> str:
            return f"text of {page}"

        @tool
        async def wire(to: str) -> None:
            self.wired.append(to)

        @self.app.agent("questions", durable=True, on_error="skip", **options)
        async def pay(ctx: Any) -> None:
            self.seen.append((ctx.scope, ctx.principal, ctx.session, sorted(ctx.labels)))
            if "next" in ctx.message:
                ctx.continue_as(ctx.message["next"])
            if "page" in ctx.message:
                ctx.continue_as({"to": await ctx.call(web, ctx.message["page"])})
            if self.fails:
                raise ValueError("a bug")
            try:
                await ctx.call(wire, ctx.message["to"])
            except PolicyDenied as error:
                self.seen.append(str(error))

    def letters(self) -> list[Any]:
        return self.office.records("questions.dlq")

    async def send_back(self, without: str = "", **changed: bytes) -> None:
        """Waits for the dead letter of the job and sends it to the topic again, without one of its headers, or with
        other values of some.
        """
        await until(lambda: len(self.letters()) == 1)
        letter, self.fails = self.letters()[0], False
        headers = [
            (name, changed.get(name.partition(".")[2], value)) for name, value in letter.headers if name != without
        ]
        MemoryBroker.get(self.office.url).publish("questions", [letter.value], headers=headers)


INTERNAL = {"tenant": "internal", "user": "boss", "k": "k2", "to": "eve"}


@pytest.mark.one_in(3, "a tenth of a second of a core each")
@pytest.mark.parametrize("message", [INTERNAL, {"to": "eve"}], ids=["another tenant", "no tenant"])
@pytest.mark.parametrize("key", [None, "k"])
async def test_a_job_that_is_sent_back_keeps_the_tenant_person_and_session_of_its_begin(
    office: Office, message: Any, key: str | None
) -> None:
    """Its dead letter has the message of `ctx.continue_as`, and that named the tenant for whom a denial did not hold."""
    policy = PolicyEngine([ToolPolicy(["wire"], denied_scopes=["guest"])])
    job = _Redriven(office, policy, scope="tenant", principal="user", key=key)
    async with started(job.app):
        office.ask(tenant="guest", user="eve", k="k1", next=message)
        await job.send_back()
        await until(lambda: len(job.seen) == 4)
        (found,) = await job.app.jobs.find()
    session = "desk.pay/k1" if key else ""
    assert job.seen[:3] == [("guest", "eve", session, [])] * 3
    assert "scope guest may not use tool wire (rule ToolPolicy wire)" in job.seen[3]
    assert (job.wired, found.scope_id, found.principal_id) == ([], "guest", "eve")


async def test_the_journal_says_for_whom_a_job_that_is_sent_back_runs_if_its_dead_letter_does_not(
    office: Office,
) -> None:
    """As of a dead letter of an earlier version, or of one whose header somebody has changed."""
    policy = PolicyEngine([ToolPolicy(["wire"], denied_scopes=["guest"])])
    job = _Redriven(office, policy, scope="tenant", principal="user")
    async with started(job.app):
        office.ask(tenant="guest", user="eve", next=INTERNAL)
        await job.send_back(without="sabot.begun")
        await until(lambda: len(job.seen) == 4)
    assert job.seen[2] == ("guest", "eve", "", [])
    assert (job.wired, len(job.letters())) == ([], 1)


async def test_a_dead_letter_with_another_key_than_its_job_is_refused_if_its_header_was_changed(office: Office) -> None:
    """It would run beside the jobs of its own key, and in the order of another one."""
    job = _Redriven(office, PolicyEngine(), key="k")
    async with started(job.app):
        office.ask(k="k1", next={"k": "k2", "to": "eve"})
        await until(lambda: len(job.letters()) == 1)
        begun = dict(job.letters()[0].headers)["sabot.begun"]
        await job.send_back(begun=begun.replace(b"guest", b"other")[:-1] + b" ]")
        await until(lambda: len(job.letters()) == 2)
    said = dict(job.letters()[1].headers)["sabot.message"].decode()
    assert "began with k 'k1', and its dead letter has 'k2'" in said
    assert job.wired == []


async def test_a_dead_letter_has_the_labels_of_its_job_and_a_job_that_is_sent_back_too(office: Office) -> None:
    """After `ctx.continue_as` it has the text of a page as its value."""
    job = _Redriven(office, PolicyEngine([LabelPolicy()]))
    async with started(job.app):
        office.ask(page="a")
        await job.send_back()
        action = await parked(job.app)
    assert action.payload["reason"] == "its job has read what is untrusted (tool wire)"
    assert dict(job.letters()[0].headers)["sabot.labels"] == b"untrusted"
    assert job.seen == [("desk", "", "", labels) for labels in ([], ["untrusted"], ["untrusted"])]
    assert job.wired == []


async def test_another_agent_that_reads_dead_letters_has_their_labels(office: Office) -> None:
    job = _Redriven(office, PolicyEngine([LabelPolicy()]))

    @tool
    async def wire(to: str) -> None:
        job.wired.append(to)

    @job.app.agent("questions.dlq", durable=True)
    async def clerk(ctx: Any) -> None:
        await ctx.call(wire, ctx.message["to"])

    async with started(job.app):
        office.ask(page="a")
        action = await parked(job.app)
    assert action.payload["reason"] == "its job has read what is untrusted (tool wire)"
    assert job.wired == []
