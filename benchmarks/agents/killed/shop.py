"""The app that kill_effects.py kills: three durable agents of a shop, one feeding another, whose tools change what a witness sees.

    orders --> handle: look up, ask a person (every third order), wait (every fifth), refund, then record and post side by side
                 │ every eleventh fails: a dead letter; sent back, every second one of them does not fail again
                 └─> settle: mail --> settled
    payouts --> pay: some batches ask a person; one payout for all rows of a batch --> paid

Payouts come from a file, which each life reads in batches of another size. The others are files, or topics of a broker; with topics
checkpoints are kept as on another machine, so another worker can take over.
`expected` says what all of them must have done in the end, and knows nothing of the engine.
"""

import asyncio
import os
import random
import signal
import sys
import traceback
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import fs

from sabot import App, steps
from sabot.connectors.files import NdjsonSink, NdjsonSource
from sabot.engine.calls.effects import Reconciled
from sabot.errors import AppLocked, EffectError
from sabot.llm import Effect, tool
from sabot.testing import WitnessClient

__all__ = ["FAILED", "LOCKED", "UNSAFE", "Failpoint", "Order", "World", "expected", "live", "orders_of"]

UNSAFE = ("refund", "mail", "payout")  # what the witness calls the effects that may happen once at most
LOCKED, FAILED = 3, 1  # exit codes
CUSTOMERS = 7
APPROVED = 1  # an order of which a person says yes
AT_ONCE = 12
TIMEOUT_SECONDS = 1.0
LATE_SECONDS = 1.5  # an answer that is late comes after the time-out
FAULTS = {"late": 0.06, "slow": 0.04, "drop_before": 0.04, "drop_after": 0.04}


@dataclass(frozen=True)
class World:
    """Where a round happens. variant: "durable", or a broken one that must be found out: "plain" (the agents are not durable),
    "assume_done" (an effect in doubt counts as done). broker: of the topics; "": orders and what comes of them are files.
    """

    folder: Path
    witness: str
    journal: str  # an address; "": in the state directory
    seed: int
    variant: str = "durable"
    broker: str = ""

    @property
    def orders(self) -> Path:
        return self.folder / "orders.ndjson"

    @property
    def payouts(self) -> Path:
        return self.folder / "payouts.ndjson"

    @property
    def paid(self) -> Path:
        return self.folder / "paid.ndjson"

    def topic(self, name: str) -> str:
        """Of "orders", "settled", "dead" or "paid"."""
        return f"{self.folder.name}-{name}"

    @property
    def shared(self) -> bool:
        """Checkpoints and journal are where several workers reach them, each with a state of its own."""
        return bool(self.broker and self.journal)

    @property
    def over(self) -> Path:
        """There when the app may stop: topics have no end."""
        return self.folder / "over"

    def mended(self, number: int) -> Path:
        """There when this order fails no more."""
        return self.folder / f"mended-{number}"

    def mark(self, pid: int) -> Path:
        """There when the app of this process has started: it has the journal."""
        return self.folder / f"started-{pid}"

    @property
    def settled(self) -> Path:
        return self.folder / "settled.ndjson"

    @property
    def dead(self) -> Path:
        return self.folder / "dead.ndjson"


@dataclass(frozen=True)
class Order:
    """An order by its number, and what is to become of it."""

    number: int

    @property
    def asks(self) -> bool:
        return self.number % 3 == 0

    @property
    def approved(self) -> bool:
        return not self.asks or self.number % 7 != 0

    @property
    def waits(self) -> bool:
        return self.number % 5 == 0

    @property
    def fails(self) -> bool:
        return self.number % 11 == 0

    @property
    def mendable(self) -> bool:
        """It fails until its dead letter is sent back."""
        return self.number % 22 == 11


def expected(numbers: range, *, mended: bool = False) -> Counter[tuple[str, int]]:
    """The unsafe effects of these orders: (name, order), each once. mended: dead letters are sent back."""
    orders = [Order(number) for number in numbers]
    refunds = [("refund", order.number) for order in orders if order.approved]
    mails = [("mail", order.number) for order in orders if not order.fails or (mended and order.mendable)]
    payouts = [("payout", order.number) for order in orders]
    return Counter(refunds + mails + payouts)


@dataclass(frozen=True)
class Failpoint:
    """A process dies at the nth step of this name (`sabot.steps`): before or after it."""

    name: str
    nth: int
    moment: str = "before"


class _Watcher:
    def __init__(self, point: Failpoint) -> None:
        self._point, self._before, self._after = point, 0, 0

    def before(self, name: str, what: str) -> None:
        self._before += name == self._point.name
        if self._point.moment == "before" and self._before == self._point.nth:
            os.kill(os.getpid(), signal.SIGKILL)

    def after(self, name: str, what: str) -> None:
        self._after += name == self._point.name
        if self._point.moment == "after" and self._after == self._point.nth:
            os.kill(os.getpid(), signal.SIGKILL)

    def torn(self, name: str, what: str, size: int) -> int:
        return size


def build(world: World) -> App:
    durable = world.variant != "plain"
    bank = WitnessClient(world.witness)
    in_doubt: Any = "assume_done" if world.variant == "assume_done" else "ask"

    async def do(name: str, number: int | list[int], effect: Effect | None) -> int:
        """What a service does, for an order or a batch of them. The faults are those of an effect and its attempt, in every life; without
        an effect there are none.
        """
        if effect is None:
            return int((await bank.do_async(name, number))["number"])
        drawn = random.Random(f"{world.seed} {name} {number} {effect.attempt}").random()
        fault: Any = None
        for each, share in FAULTS.items():
            if (drawn := drawn - share) < 0:
                fault = each
                break
        until = (
            effect.deadline if world.shared else None
        )  # what a paused worker sends when another one goes on is refused
        done = await bank.do_async(name, number, key=effect.key, fault=fault, seconds=LATE_SECONDS, deadline=until)
        return int(done["number"])

    async def look(effect: Effect, number: int) -> Any:
        found = await bank.find_async(effect.key)
        return Reconciled.NOT_DONE if found is None else (Reconciled.DONE, found["number"])

    async def look_up(number: int) -> dict[str, Any]:
        return {"order": number, "customer": number % CUSTOMERS}

    @tool(timeout=TIMEOUT_SECONDS, in_doubt=in_doubt)
    async def refund(number: int, effect: Effect) -> int:
        return await do("refund", number, effect)

    @tool(timeout=TIMEOUT_SECONDS, in_doubt=in_doubt)
    async def mail(number: int, effect: Effect) -> int:
        return await do("mail", number, effect)

    @tool(timeout=TIMEOUT_SECONDS, in_doubt=in_doubt)
    async def payout(rows: pa.RecordBatch, effect: Effect) -> int:
        return await do("payout", rows.column("order").to_pylist(), effect)

    @tool(timeout=TIMEOUT_SECONDS, reconcile=look)
    async def record(number: int, effect: Effect) -> int:
        return await do("record", number, effect)

    @tool(timeout=TIMEOUT_SECONDS, effect="idempotent", retries=3)
    async def post(number: int, effect: Effect) -> int:
        return await do("post", number, effect)

    places: dict[str, Any] = {"journal": world.journal} if world.journal else {}
    if world.shared:  # as a file system of another machine: without locks
        places["checkpoint_dir"] = fs.SubTreeFileSystem(str(world.folder), fs.LocalFileSystem()), "checkpoints"
    state = world.folder / (f"state-{os.getpid()}" if world.shared else "state")
    app = App("shop", world.broker or "memory://", state=str(state), checkpoint_interval="300ms", **places)
    orders: Any = NdjsonSource(world.orders)
    settled: Any = NdjsonSink(world.settled)
    dead: Any = NdjsonSink(world.dead)
    paid: Any = NdjsonSink(world.paid)
    if world.broker:
        orders, settled, dead, paid = map(world.topic, ("orders", "settled", "dead", "paid"))
    common: dict[str, Any] = {"durable": True} if durable else {}

    @app.agent(sink=settled, concurrency=AT_ONCE, **common)
    async def settle(ctx: Any) -> Any:
        number = ctx.message["order"]
        try:
            await (ctx.call(mail, number) if durable else do("mail", number, None))
        except EffectError as error:
            return {"order": number, "mail": error.type}
        return {"order": number, "mail": "sent"}

    @app.agent(
        orders,
        key="customer",
        sink=settle,
        concurrency=AT_ONCE,
        on_error="skip",
        dead_letter=dead,
        **common,
    )
    async def handle(ctx: Any) -> Any:
        order = Order(ctx.message["order"])
        if not durable:
            if order.approved:
                await do("refund", order.number, None)
        else:
            await refunded(ctx, order)
        if order.fails and not world.mended(order.number).exists():
            raise ValueError(f"order {order.number} fails")
        return {"order": order.number}

    async def refunded(ctx: Any, order: Order) -> None:
        found = await ctx.step(look_up, order.number, effect="read")
        if order.asks:
            answer = await ctx.ask("confirm", {"order": found["order"]})
            if not answer.approved:
                return
        if order.waits:
            await ctx.sleep(1.2)
        try:
            await ctx.call(refund, order.number)
        except EffectError as error:
            if error.type != "Abandoned":
                raise
        await asyncio.gather(ctx.call(record, order.number), ctx.call(post, order.number), return_exceptions=True)

    block_bytes = random.Random(os.getpid()).randint(40, 400)  # of three rows or thirty
    payouts = NdjsonSource(world.payouts, block_bytes=block_bytes)
    side_by_side: dict[str, Any] = {"concurrency": AT_ONCE} if durable else {}  # others take one batch at a time

    @app.agent(payouts, batch=True, schema={"order": "int64"}, sink=paid, **common, **side_by_side)
    async def pay(batch: pa.RecordBatch, ctx: Any) -> pa.RecordBatch:
        numbers = batch.column("order").to_pylist()
        if not durable:
            await do("payout", numbers, None)
        else:
            if Order(numbers[0]).asks:
                await ctx.ask("confirm", {"order": APPROVED})
            await ctx.call(payout, batch)
        return batch

    return app


async def _run(app: App, world: World) -> None:
    running = asyncio.ensure_future(app.run())
    while not running.done():
        if app.agent_runtime.runner.started:
            world.mark(os.getpid()).touch()
        if world.over.exists():
            app.request_stop()
        await asyncio.wait([running], timeout=0.05)
    await running


def live(world: World, point: Failpoint | None, log: Path) -> None:
    """One life of the app, in a process that does nothing else. Ends with 0 when all orders are settled."""
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(out, 1)
    os.dup2(out, 2)
    print(f"-- {os.getpid()} {point}", file=sys.stderr, flush=True)
    if point is not None:
        steps.watch(_Watcher(point))
    try:
        asyncio.run(_run(build(world), world))
    except AppLocked:
        os._exit(LOCKED)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(FAILED)
    os._exit(0)


def orders_of(numbers: range) -> list[dict[str, int]]:
    """The input of a round."""
    return [{"order": number, "customer": number % CUSTOMERS} for number in numbers]
