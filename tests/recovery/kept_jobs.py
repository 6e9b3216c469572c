"""The app whose jobs are kept in `kept/jobs-*.tar.xz`: one job of each kind, and each entry of each job to the byte.

Its clock is moved by hand and its journal has the key `KEY`, so two runs of it write the same entries. Its first life is killed
after `first_life`, with jobs of all kinds open; `second_life` leads them to their ends. `kept/make_journals.py` has written the
archives with the code of before. The program here stays as it is for as long as the archives are kept.
"""

import asyncio
import json
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from sabot import App, NdjsonSink
from sabot.agents import ActionStatus, Budget, Effect, ModelPolicy, PolicyEngine, RedactionPolicy, ToolPolicy
from sabot.engine.calls.effects import Reconciled
from sabot.errors import EffectError
from sabot.journal import JournalReader
from sabot.journal.entries import Letter, encode_entry
from sabot.llm import Completion, ExecutionEngine, Price, PriceTable, Usage, assistant, tool
from sabot.llm.providers.scripted import ScriptedProvider
from sabot.testing import ManualClock, MemoryBroker
from tools.agent_tools import checkpoint, read_lines, until

KEY = bytes(range(32))  # of the journal: tokens and digests are made with it
BEGAN_S = 1_600_000_000.0  # the clock of the first life, seconds since 1970
RESTORED_S = BEGAN_S + 7200  # that of the second one: a sleep of an hour is over
LONG = "conversation " * 20_000  # a body that is stored by its hash
CARD = "4111111111111111"

# For the first order the account of its tenant is loaded; the decisions on all later ones are made at once.
FIRST = [{"n": 1, "what": "returns"}]
KINDS = """
fails | is told of an error | asks | needs approval | sleeps | waits | hangs | is in doubt | has a child | is
long | was cancelled | does three things | draws lots | is degraded | spends | is redacted | goes on anew | is
answered | is to be cancelled | hangs and is cancelled | hangs, and is looked up | hangs, and may be repeated
| hangs, and only reads | is denied | asks a model that hangs | gives up a call | has a child that fails
"""
BEFORE: list[dict[str, Any]] = [  # the orders of which the checkpoint knows, with the first
    {"n": n, "what": " ".join(what.split())} for n, what in enumerate(KINDS.split("|"), 2)
]
TRIES = [{"n": 1, "last": False}, {"n": 2, "last": True}]  # each fails once; the second one fails for good later
BEHIND = [{"n": 29, "what": "returns"}, {"n": 30, "what": "hangs"}, {"n": 31, "what": "asks"}]  # behind the checkpoint
LATER = [{"n": 32, "what": "returns"}]  # of the second life


def with_tenants(orders: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"tenant": "poor" if order["what"] == "spends" else "acme", **order} for order in orders]


@dataclass
class Calls:
    """The calls that the tools and the model have got, each as a line. `hold`: calls that hang are counted in `held`, and end
    when they are `released`.
    """

    hold: bool = False
    made: list[str] = field(default_factory=list)
    held: int = 0
    released: asyncio.Event = field(default_factory=asyncio.Event)

    async def make(self, line: str) -> None:
        self.made.append(line)
        if self.hold and "hangs" in line:
            self.held += 1
            await self.released.wait()


class OutOfStock(Exception):
    """An error of the user's: its name is in the journal."""


PAY = ToolPolicy(["pay"], require_approval=True, reason="pay needs approval")


class Rules(PolicyEngine):
    """The policy. The version of its rules is a digest of their code, and is in the note of each decision: here it is fixed."""

    version = "1"  # type: ignore[assignment]


class Hides(RedactionPolicy):
    """A redaction whose reason is fixed: the words of Sabot's own reasons may change."""

    def decide(self, call: Any) -> Any:
        found = super().decide(call)
        return found and msgspec.structs.replace(found, reason="cards are hidden")


@contextmanager
def fixed_key() -> Iterator[None]:
    """A journal that is made inside has the key `KEY`, in each home."""
    token_bytes, token_hex = secrets.token_bytes, secrets.token_hex
    secrets.token_bytes = lambda nbytes=None: KEY if nbytes == len(KEY) else token_bytes(nbytes)
    secrets.token_hex = lambda nbytes=None: KEY.hex() if nbytes == len(KEY) else token_hex(nbytes)
    try:
        yield
    finally:
        secrets.token_bytes, secrets.token_hex = token_bytes, token_hex


def app_of_jobs(folder: Path, broker: str, journal: str | None, clock: ManualClock, calls: Calls) -> App:
    """`journal`: its address, or None: in the state directory."""
    home: dict[str, Any] = {"state": str(folder / "state"), "journal": journal}
    app = App(
        "kept",
        broker,
        version="1",
        clock=clock,
        policy=Rules(
            [
                PAY,
                ToolPolicy(["destroy"], denied=True, reason="nothing is destroyed"),
                Hides([r"\d{16}"]),
                ModelPolicy(["large"], degrade_to="small", reason="large is dear"),
            ]
        ),
        budgets=[Budget("poor", max_calls_daily=1, exhausted="degrade", degrade_to="small")],
        checkpoint_interval=3600,
        **home,
    )

    def doing(verb: str, past: str, **kind: Any) -> Any:
        """A tool of this name, which says that it has done it."""

        async def call(line: str) -> str:
            await calls.make(f"{verb} {line}")
            return f"{past} {line}"

        call.__name__ = verb
        return tool(**kind)(call)

    def failing(verb: str, error: Exception) -> Any:
        async def call(line: str) -> None:
            await calls.make(f"{verb} {line}")
            raise error

        call.__name__ = verb
        return tool(effect="unsafe")(call)

    async def find(effect: Any, line: str) -> Any:
        calls.made.append(f"find {line}")
        return Reconciled.DONE

    refund, pay, destroy = (
        doing(verb, past, effect="unsafe")
        for verb, past in [("refund", "refunded"), ("pay", "paid"), ("destroy", "destroyed")]
    )
    send = doing("send", "sent", reconcile=find)
    mail = failing("mail", ConnectionResetError("the line is dead"))
    order_of = failing("order_of", OutOfStock("none left"))

    @tool(effect="read")
    async def look(line: str) -> str:
        await calls.make(f"look {line}")
        return LONG if "long" in line else f"seen {line}"

    @tool(effect="idempotent")
    async def put(line: str, effect: Effect) -> str:
        await calls.make(f"put {line} {effect.key}")
        return f"put {line}"

    async def answer(spec: Any) -> Completion:
        text = spec.messages[-1].text
        await calls.make(f"ask {spec.model}: {text}")
        said = assistant(f"{spec.model} says: {text}")
        return Completion(
            message=said, usage=Usage(input_tokens=7, output_tokens=5), model=spec.model, request_id="r-1"
        )

    prices = PriceTable({"small": Price(1, 2), "medium": Price(3, 4)}, version="1")
    engine = ExecutionEngine(ScriptedProvider(answer), retries=0, patience=0, prices=prices)
    options = {"durable": True, "dead_letter": NdjsonSink(str(folder / "dead.ndjson"))}

    @app.agent("helps", on_error="skip", **options)
    async def helps(ctx: Any) -> Any:
        if ctx.message.get("fails"):
            raise ValueError("no help")
        answer = await ctx.ask("choose", {"message": f"Which one for {ctx.message['n']}?"})
        return {"chosen": answer.resolution}

    @app.agent(
        "tries",
        job_id="n",
        sink=NdjsonSink(str(folder / "tried.ndjson")),
        on_error="retry",
        retries=1,
        backoff=0,
        **options,
    )
    async def tries(ctx: Any) -> Any:
        said = await ctx.call(refund, f"{ctx.message['n']} of a second try")
        if ctx.attempt == 1:
            raise ValueError("the first attempt fails")
        await ctx.wait("go")
        if ctx.message["last"]:
            raise ValueError("the last attempt fails")
        return {"n": ctx.message["n"], "said": [said, ctx.attempt]}

    @app.agent(
        "orders",
        job_id="n",
        scope="tenant",
        sink=NdjsonSink(str(folder / "answers.ndjson")),
        concurrency=100,
        on_error="skip",
        **options,
    )
    async def orders(ctx: Any) -> Any:
        n, what = ctx.message["n"], ctx.message["what"]
        line = f"{n} which {what}"
        said: Any = None
        match what:
            case "returns" | "hangs" | "hangs and is cancelled":
                said = await ctx.call(refund, line)
            case "fails":
                await ctx.call(refund, line)
                raise ValueError("no such order")
            case "is told of an error":
                try:
                    await ctx.call(order_of, line)
                except EffectError as error:
                    said = [error.type, str(error)]
                await ctx.wait("go")
            case "asks" | "is answered":
                answer = await ctx.ask("confirm", {"message": "Go?"}, timeout="30d")
                said = [answer.approved, answer.by]
            case "needs approval":
                said = await ctx.call(pay, line)
            case "sleeps":
                await ctx.sleep("1h")
                said = await ctx.call(refund, line)
            case "waits":
                said = await ctx.wait("paid", timeout="30d")
            case "is in doubt":
                said = await ctx.call(mail, line)
            case "has a child":
                said = await ctx.child(helps, {"n": n})
            case "has a child that fails":
                try:
                    await ctx.child(helps, {"n": n, "fails": True})
                except EffectError as error:
                    said = error.type
                await ctx.wait("go")
            case "is long":
                said = len(await ctx.call(look, line))
                await ctx.wait("go")
            case "was cancelled" | "is to be cancelled":
                await ctx.sleep("30d")
            case "does three things":
                seen, choice, _ = await asyncio.gather(
                    ctx.call(look, line), ctx.ask("choose", {"message": "Which?"}), ctx.sleep("1h")
                )
                said = [seen, choice.resolution]
            case "draws lots":
                lots = [ctx.now(), str(ctx.uuid()), ctx.random().randrange(1_000_000), ctx.patched("newer")]
                await ctx.call(refund, f"{line}: {lots}")
                said = await ctx.wait("go")
            case "is degraded":
                said = (await ctx.llm(engine).complete(line, model="large", max_tokens=50)).content
                await ctx.wait("go")
            case "spends":
                said = [
                    (await ctx.llm(engine).complete(each, model="medium", max_tokens=50)).content for each in ("a", "b")
                ]
                await ctx.wait("go")
            case "is redacted":
                said = await ctx.call(refund, f"{line} to {CARD}")
                await ctx.wait("go")
            case "goes on anew":
                await ctx.call(refund, line)
                ctx.continue_as({**ctx.message, "what": "has gone on anew"})
            case "has gone on anew":
                await ctx.call(refund, line)
                said = await ctx.wait("go")
            case "hangs, and is looked up":
                said = await ctx.call(send, line)
            case "hangs, and may be repeated":
                said = await ctx.call(put, line)
            case "hangs, and only reads":
                said = await ctx.call(look, line)
            case "is denied":
                try:
                    await ctx.call(destroy, line)
                except Exception as error:
                    said = type(error).__name__
                await ctx.wait("go")
            case "asks a model that hangs":
                said = (await ctx.llm(engine).complete(line, model="medium", max_tokens=50)).content
            case "gives up a call":
                waiting = asyncio.ensure_future(ctx.ask("confirm", {"message": "Too late?"}))
                await ctx.call(refund, line)
                waiting.cancel()
                await ctx.wait("go")
        return {"n": n, "said": said}

    return app


def publish(broker: str, topic: str, records: list[dict[str, Any]]) -> None:
    """Into a log that counts as the one of the first life."""
    memory = MemoryBroker.get(broker)
    memory.log_id = "kept"
    memory.publish(topic, records, timestamp=int(BEGAN_S * 1000))


async def first_life(app: App, broker: str, calls: Calls) -> None:
    """Returns when all jobs stand where the kept ones do: the app may be killed then."""

    async def stand(parked: int, ended: int, held: int) -> None:
        def there() -> bool:
            jobs = app.statistics()["jobs"]
            return (jobs["parked"], jobs["ended"], calls.held) == (parked, ended, held)

        try:
            await until(there, "jobs to stand")
        except AssertionError:
            raise AssertionError((app.statistics()["jobs"], calls.held)) from None

    publish(broker, "helps", [])
    publish(broker, "orders", with_tenants(FIRST))
    await stand(*AT_FIRST)
    publish(broker, "tries", TRIES)
    publish(broker, "orders", with_tenants(BEFORE))
    await stand(*BEGUN)
    await app.jobs.cancel("kept.orders/n=12")
    await app.jobs.cancel("kept.orders/n=21")
    await stand(*CANCELLED)
    for _ in range(5):  # the last one knows that the outputs are delivered: a second life puts its own elsewhere
        await checkpoint(app)
    publish(broker, "orders", with_tenants(BEHIND))
    await stand(*KILLED)


AT_FIRST = (0, 1, 0)  # jobs that are parked, jobs that have ended, calls that are held
BEGUN = (23, 3, 6)
CANCELLED = (22, 4, 6)
KILLED = (23, 5, 7)

LETTERS = [  # which come when the app is dead; that of job 19 answers its question
    Letter("signal", "s-7", "kept.orders/n=7", "paid", b"12.5", "bank"),
    Letter("signal", "s-1", "kept.tries/n=1", "go", b"1", "bank"),
    Letter("cancel", "", "kept.orders/n=20", "not needed", b"", "ann"),
]


def letters(reader: JournalReader) -> list[Letter]:
    """The letters that nobody has taken."""
    (token,) = (entry.token for _, entry in reader.read("kept.orders/n=19") if getattr(entry, "token", ""))
    return [*LETTERS, Letter("answer", token, "", "", b'{"approved":true}', "bea")]


def entries_of(reader: JournalReader) -> dict[str, list[str]]:
    """The entries of each job in their order, encoded, as hexadecimal digits. BEGIN names the version of Python: here any is 3.11."""
    found: dict[str, list[str]] = {}
    for _, entry in reader.read():
        data = encode_entry(entry).replace(f" on Python 3.{sys.version_info.minor}".encode(), b" on Python 3.11")
        found.setdefault(entry.job, []).append(data.hex())
    return dict(sorted(found.items()))


def outputs(folder: Path) -> dict[str, Any]:
    """By job: its output, or the error of its dead letter."""
    said = {f"kept.orders/n={row['n']}": row["said"] for row in read_lines(folder / "answers.ndjson")}
    said |= {f"kept.tries/n={row['n']}": row["said"] for row in read_lines(folder / "tried.ndjson")}
    dead = {dict(json.loads(row["headers"]))["sabot.job"]: row["error"] for row in read_lines(folder / "dead.ndjson")}
    return dict(sorted((said | dead).items()))


async def second_life(app: App) -> None:
    """Leads all jobs that are open to their ends; returns when they have ended."""

    async def resolve(job: str, resolution: dict[str, Any]) -> None:
        while not (pending := await app.actions.find(job_id=job, statuses=[ActionStatus.PENDING])):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        await app.actions.resolve(pending[0].resume_token, resolution, by="ann")

    await app.start()
    try:
        for n in (4, 5, 31):
            await resolve(f"kept.orders/n={n}", {"approved": True})
        for n in (8, 21, 30):
            await resolve(f"kept.orders/n={n}", {"outcome": "not_done"})
        await resolve("kept.orders/n=9", {"outcome": "done", "result": "mailed"})
        await resolve("kept.orders/n=10~1", {"choice": "blue"})
        await resolve("kept.orders/n=13", {"choice": "red"})
        for n in (3, 11, 14, 15, 16, 17, 18, 25, 27, 28):
            await app.jobs.signal(f"kept.orders/n={n}", "go", token=f"g-{n}", by="ann")
        await app.jobs.signal("kept.tries/n=2", "go", token="g-2", by="ann")
        await until(
            lambda: not any(app.statistics()["jobs"][each] for each in ("parked", "running")), "all jobs to end"
        )
        assert app.statistics()["jobs"]["blocked"] == {}
    finally:
        await app.stop()


def publish_again(broker: str) -> None:
    """The inputs of the first life, for a second one in another process, and an order more."""
    publish(broker, "helps", [])
    publish(broker, "tries", TRIES)
    publish(broker, "orders", with_tenants([*FIRST, *BEFORE, *BEHIND, *LATER]))
