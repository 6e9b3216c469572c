"""The app whose journals are kept in `kept/journal-*.tar.xz`, and how a kept journal is put back where an app finds it.

`kept/make_journals.py` has written them: one life of this app, which was killed, so jobs of all kinds are open. `test_kept_journals` reads
them and goes on. The program here stays as it is for as long as the journals are kept: it is the one that wrote them.
"""

import asyncio
import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import psycopg
from confluent_kafka import Producer
from kept_apps import StartingClock

from sabot import App, NdjsonSink
from sabot.agents import PolicyEngine, ToolPolicy
from sabot.journal import JournalReader
from sabot.llm import tool
from sabot.testing import MemoryBroker
from tools.postgres import server_or_skip

HOMES = ("sqlite", "postgres", "kafka")
WRITTEN_S = 1_600_000_000.0  # the clock of the first life, seconds since 1970
RESTORED_S = WRITTEN_S + 7200  # that of the second one: `sleeps` is due
EARLY = [  # the orders of which a checkpoint covers all, so that their entries are trimmed
    {"n": 1, "what": "returns"},
    {"n": 2, "what": "returns"},
    {"n": 3, "what": "fails"},
]
BEFORE = [  # of which the checkpoint knows
    {"n": 4, "what": "asks"},
    {"n": 5, "what": "is asked about"},
    {"n": 6, "what": "sleeps"},
    {"n": 7, "what": "waits"},
    {"n": 8, "what": "hangs"},
    {"n": 9, "what": "is in doubt"},
    {"n": 10, "what": "has a child"},
    {"n": 11, "what": "is long"},
    {"n": 12, "what": "was cancelled"},
]
BEHIND = [{"n": 13, "what": "returns"}, {"n": 14, "what": "hangs"}]  # behind the checkpoint
LATER = [{"n": 15, "what": "returns"}]  # of the second life
LONG = "conversation " * 20_000  # a body that is stored by its hash


@dataclass
class Calls:
    """What the tools were asked. hold: calls of `refund` for jobs that hang do not end."""

    hold: bool = False
    made: list[str] = field(default_factory=list)

    async def make(self, line: str) -> None:
        self.made.append(line)
        if self.hold and "hangs" in line:
            await asyncio.Event().wait()


def kept_app(folder: Path, broker: str, journal: str | None, clock_s: float, calls: Calls) -> App:
    """journal: its address; None: in the state directory."""
    app = App(
        "kept",
        broker,
        state=str(folder / "state"),
        journal=journal,
        checkpoint_interval=3600,
        clock=StartingClock(clock_s),
        policy=PolicyEngine([ToolPolicy(["pay"], require_approval=True)]),
        version="1",
    )

    @tool(effect="unsafe")
    async def refund(line: str) -> str:
        await calls.make(f"refund {line}")
        return f"refunded {line}"

    @tool(effect="unsafe", timeout="50ms")
    async def mail(line: str) -> str:
        calls.made.append(f"mail {line}")
        await asyncio.Event().wait()
        return ""

    @tool(effect="unsafe")
    async def pay(line: str) -> str:
        await calls.make(f"pay {line}")
        return f"paid {line}"

    @tool(effect="read")
    async def look(line: str) -> str:
        await calls.make(f"look {line}")
        return LONG

    options = {"durable": True, "dead_letter": NdjsonSink(str(folder / "dead.ndjson")), "on_error": "skip"}

    @app.agent("helps", **options)
    async def helps(ctx: Any) -> Any:
        answer = await ctx.ask("choose", {"message": f"Which one for {ctx.message['n']}?"})
        return {"chosen": answer.resolution}

    @app.agent("orders", job_id="n", sink=NdjsonSink(str(folder / "answers.ndjson")), concurrency=100, **options)
    async def orders(ctx: Any) -> Any:
        n, what = ctx.message["n"], ctx.message["what"]
        said: Any = await ctx.call(refund, f"{n} which {what}")
        match what:
            case "fails":
                raise ValueError("no such order")
            case "asks":
                answer = await ctx.ask("confirm", {"message": "Go?"}, timeout="30d")
                said = [answer.approved, answer.by]
            case "is asked about":
                said = await ctx.call(pay, f"{n}")
            case "sleeps":
                await ctx.sleep("1h")
            case "waits":
                said = await ctx.wait("paid", timeout="30d")
            case "is in doubt":
                said = await ctx.call(mail, f"{n}")
            case "has a child":
                said = await ctx.child(helps, {"n": n})
            case "is long":
                said = len(await ctx.call(look, f"{n}"))
                await ctx.wait("read")
            case "was cancelled":
                await ctx.sleep("30d")
        return {"n": n, "said": said}

    return app


def publish(broker: str, orders: list[dict[str, Any]]) -> None:
    """Into a log that counts as the one of the first life."""
    memory = MemoryBroker.get(broker)
    memory.log_id = "kept"
    memory.publish("orders", orders)
    memory.publish("helps", [])


def words_of(reader: JournalReader) -> list[Any]:
    """All entries and letters, as plain values: an entry is where it stands, its kind, and its fields in order."""
    entries = [[position.offset, *msgspec.to_builtins(entry)] for position, entry in reader.read()]
    bodies = [reader.load(entry.body).decode("latin1")[:40] for _, entry in reader.read() if hasattr(entry, "body")]
    return [entries, bodies, [msgspec.to_builtins(letter) for letter in reader.letters()]]


@contextmanager
def put_back(kind: str, folder: Path, kafka: str, topic: str) -> Iterator[str]:
    """A kept journal, of which `folder` has the files, where an app finds it: its address, as the command line takes it."""
    if kind == "sqlite":
        yield str(folder / "state")
    elif kind == "postgres":
        with server_or_skip().database() as url:
            with psycopg.connect(url, autocommit=True) as connection:
                script = (folder / "journal.sql").read_text()
                connection.execute("\n".join(line for line in script.splitlines() if not line.startswith("\\")))  # type: ignore[arg-type]
            yield f"{url}?app=kept"
    else:
        from sabot.kafka.client import ensure_topic, link_of

        link = link_of(kafka, "a kept journal", {}, "Write")
        ensure_topic(link, topic, {}, 2, {"retention.ms": "-1", "retention.bytes": "-1", "cleanup.policy": "delete"})
        producer = Producer({"bootstrap.servers": kafka.removeprefix("kafka://"), "acks": "all"})
        for line in (folder / "journal.ndjson").read_text().splitlines():
            partition, value = json.loads(line)
            producer.produce(topic, base64.b64decode(value), partition=partition)
        assert producer.flush(60) == 0
        yield f"{kafka}/{topic}"
