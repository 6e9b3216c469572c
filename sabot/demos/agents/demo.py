"""`sabot demo agents`: serves a model over HTTP, runs the agent in a process, kills that twice in the middle, answers its questions, and
asks the model's server and the bank what they were asked.
"""

import json
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from sabot.agents.store import JobsOfJournal
from sabot.clock import SYSTEM_CLOCK
from sabot.demos.agents.app import LIMIT, MODEL, PRICES, answers, build
from sabot.demos.agents.model import DemoModel
from sabot.demos.person import Person
from sabot.errors import SabotError, UserError
from sabot.journal import EffectId, Intent, open_reader
from sabot.testing import FakeModelServer, Witness

_LEAST = 10
_KILLS = 2
_ANSWERED_AFTER = 0.3  # seconds from a question to its answer
_PATIENCE_SECONDS = 120.0  # for the whole demo
_LOOK_SECONDS = 0.02
_HANGS_SECONDS = 600.0  # longer than anybody waits: the process is killed before


def run(tickets: int = 40, *, json: bool = False) -> dict[str, Any]:
    """Runs the demo to its end. json: show nothing.

    Returns tickets (answered), model_calls (that the agent has made use of), asked (of the model's server), paid_twice (of these: answers
    that were made a second time, since the process was killed before it had the first one), tokens and cost (what the server has made; US
    dollars), approvals, refunds (that the bank has made), twice, lost (due, and not made), in_doubt (refunds of which nobody knew after a
    kill, until the person looked them up), kills, seconds. Raises SabotError where something is not as it must be.
    """
    if tickets < _LEAST:
        raise UserError(f"tickets: {tickets}", hint=f"ask for {_LEAST} or more, so that there is a middle to kill in")
    console = Console(quiet=json)
    with tempfile.TemporaryDirectory(prefix="sabot-demo-") as name:
        folder = Path(name)
        shop = _Shop(folder, tickets)
        model = DemoModel(shop.middle)
        with Witness(folder / "bank.db") as bank, FakeModelServer(model.answer) as server:
            demo = _KilledDesk(folder, shop, bank, server, model, console)
            build(folder, bank.url, server.openai_url)  # says at once what is missing
            outcome = demo.outcome()
            wrong = demo.wrong(outcome)
    if wrong:
        raise SabotError(f"the demo came out wrong: {'; '.join(wrong)}", hint=f"its figures: {outcome}")
    console.print(_summary(outcome))
    return outcome


class _Shop:
    """What the demo is about: orders, tickets, and what is right to do with them.

    Each customer writes two tickets: one about an order, and then, which payment it was. Of three orders two came broken, of them every
    other one cost more than the agent may give back by itself, and of those a person refuses some.
    """

    def __init__(self, folder: Path, tickets: int) -> None:
        self.tickets = tickets
        self.due: dict[str, int] = {}  # orders that are to be paid back
        self.refused: set[str] = set()
        orders: dict[str, dict[str, Any]] = {}
        rows = []
        for number in range(tickets):
            customer, is_second = number // 2, number % 2
            order = f"o-{customer}"
            text = "Thank you. Which payment was it?" if is_second else f"What about my order {order}?"
            rows.append({"ticket": number, "customer": f"c-{customer}", "text": text})
            if not is_second:
                orders[order] = self._order(order, customer)
        (folder / "orders.json").write_text(json.dumps(orders))
        (folder / "tickets.ndjson").write_text("".join(f"{json.dumps(row)}\n" for row in rows))

    def _order(self, order: str, number: int) -> dict[str, Any]:
        broken = number % 3 != 2
        amount = 20 + number if number % 2 else LIMIT + 1 + number
        if broken and amount > LIMIT and number % 5 == 4:
            self.refused.add(order)
        elif broken:
            self.due[order] = amount
        return {"order": order, "amount": amount, "state": "broken" if broken else "on its way"}

    @property
    def middle(self) -> list[str]:
        """Two of the orders that are to be paid back."""
        first = len(self.due) // 3
        return [*self.due][first : first + 2]

    def answers(self, payments: dict[str, int]) -> dict[int, str]:
        """What each ticket must be answered, by the payments that the bank has made for orders."""
        right = {}
        for ticket in range(self.tickets):
            customer, is_second = ticket // 2, ticket % 2
            order, paid = f"o-{customer}", payments.get(f"o-{customer}")
            if is_second:
                right[ticket] = "Nothing was given back." if paid is None else f"It was payment {paid}."
            elif order in self.due:
                right[ticket] = f"You have your money back: payment {paid}."
            else:
                right[ticket] = (
                    "We cannot give the money back." if order in self.refused else "Your order is on its way."
                )
        return right


class _KilledDesk:
    """One run of the demo: the worker, and what is done to it."""

    def __init__(
        self, folder: Path, shop: _Shop, bank: Witness, server: FakeModelServer, model: DemoModel, console: Console
    ) -> None:
        self._folder = folder
        self._shop = shop
        self._bank = bank
        self._server = server
        self._model = model
        self._console = console
        self._person = Person(str(folder / "state"), self._decide)
        self._doubts = self._kills = 0
        self._until = SYSTEM_CLOCK.monotonic() + _PATIENCE_SECONDS

    def outcome(self) -> dict[str, Any]:
        """Runs it, and returns the figures."""
        began = SYSTEM_CLOCK.monotonic()
        person = self._person
        person.start()
        try:
            self._work()
        finally:
            person.finish()
        answered = answers(self._folder)
        made = self._bank.effects("refund")
        cost = PRICES.cost("openai", MODEL, self._model.used)
        return {
            "tickets": len(answered),
            "model_calls": sum(each["model_calls"] for each in answered),
            "asked": len(self._server.requests),
            "paid_twice": sum(times - 1 for times in self._model.made.values()),
            "tokens": self._model.used.total_tokens,
            "cost": f"{cost:f}",
            "approvals": person.answered - self._doubts,
            "refunds": len(made),
            "twice": len(self._bank.twice("refund")),
            "lost": len(self._shop.due.keys() - {each.arguments["order"] for each in made}),
            "in_doubt": self._doubts,
            "kills": self._kills,
            "seconds": round(SYSTEM_CLOCK.monotonic() - began, 3),
        }

    def wrong(self, outcome: dict[str, Any]) -> list[str]:
        """What is not as it must be."""
        made = self._bank.effects("refund")
        answered = answers(self._folder)
        right = self._shop.answers({each.arguments["order"]: each.number for each in made})
        recorded = sum(each["tokens"] for each in answered)
        must = {
            "each ticket has its answer, once": sorted(each["ticket"] for each in answered) == [*right],
            "an answer says what has happened": all(right[each["ticket"]] == each["answer"] for each in answered),
            "no refund is made twice": outcome["twice"] == 0,
            "no refund is lost": outcome["lost"] == 0,
            "nothing is paid back that a person has refused": len(made) == len(self._shop.due),
            "the model is asked once for each answer, but for those that a kill has cut off": (
                outcome["model_calls"] == len(self._model.made) <= outcome["asked"]
            ),
            "what the model's server has made, and a kill has lost, is paid twice": (
                outcome["paid_twice"] >= len(self._shop.middle) and outcome["tokens"] > recorded
            ),
            "it was killed": outcome["kills"] == _KILLS,
            "a refund was cut off, and looked up": outcome["in_doubt"] >= 1,
        }
        return [f"not so: {what}" for what, holds in must.items() if not holds]

    def _work(self) -> None:
        """Starts the worker, kills it in two bad moments, starts it again, and waits for its end."""
        shop, bank = self._shop, self._bank
        self._say(f"A model answers {shop.tickets} tickets, with two tools: look_up reads, refund moves money.")
        self._say(f"A policy has refunds above {LIMIT} dollars wait for a person.")
        worker = self._start()
        try:
            self._wait(worker, lambda: self._model.kept_back == len(shop.middle))
            self._kill(worker, "model answers are paid, and not here yet")
            bank.client.plan(
                "slow", "refund", seconds=0
            )  # those that were kept back are still to come, so there are two at least
            bank.client.plan("late", "refund", seconds=_HANGS_SECONDS)
            worker = self._start()
            self._wait(worker, lambda: bank.requests("refund")["late"] == 1)
            self._kill(worker, "one of them was not answered yet")
            worker = self._start()
            self._wait(worker, lambda: worker.poll() is not None)
        finally:
            worker.kill()
            worker.wait()

    def _start(self) -> "subprocess.Popen[bytes]":
        words = ["-P", "-m", "sabot.demos.agents.app", str(self._folder), self._bank.url, self._server.openai_url]
        return subprocess.Popen([sys.executable, *words], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)

    def _kill(self, worker: "subprocess.Popen[bytes]", when: str) -> None:
        worker.kill()
        worker.wait()
        self._kills += 1
        self._say(f"kill -9: {self._refunds()} refunds are made; {when}. Starting again.")

    def _wait(self, worker: "subprocess.Popen[bytes]", until: Callable[[], bool]) -> None:
        """Returns when it is so. Raises SabotError where the worker has ended before, and where that takes too long."""
        while not until():
            self._person.check()
            code = worker.poll()
            if code is not None and not until():
                raise SabotError(f"the app of the demo ended too early, with exit code {code}")
            if SYSTEM_CLOCK.monotonic() > self._until:
                raise SabotError(f"the demo did not come to its end in {_PATIENCE_SECONDS:g} s")
            threading.Event().wait(_LOOK_SECONDS)
        if worker.returncode:
            raise SabotError(f"the app of the demo ended with exit code {worker.returncode}, and said why above")

    def _refunds(self) -> int:
        return len(self._bank.effects("refund"))

    def _decide(self, question: Intent) -> tuple[float, Callable[[], dict[str, Any]]]:
        """A person: refunds are approved, but for some. One of which nobody knows whether it was made is looked up at the bank."""
        if question.name != "in_doubt":
            approved = self._order(question) not in self._shop.refused
            return _ANSWERED_AFTER, lambda: {"approved": approved}
        self._doubts += 1
        key = EffectId(question.job, question.ordinal).key

        def look() -> dict[str, Any]:
            found = self._bank.client.find(key)
            if found is None:
                return {"outcome": "not_done"}
            return {"outcome": "done", "result": f"payment {found['number']}"}

        return _ANSWERED_AFTER, look

    def _order(self, question: Intent) -> str:
        """Which order's refund is to be approved, as `sabot actions list` would show it."""
        with closing(open_reader(str(self._folder / "state"))) as reader:
            action = JobsOfJournal(reader, question.job).of_token(question.token)
        assert action is not None
        _, arguments = action.payload["arguments"]
        order: str = arguments["order"]
        return order

    def _say(self, text: str) -> None:
        self._console.print(text, highlight=False)


def _summary(outcome: dict[str, Any]) -> Table:
    table = Table(title="Tickets answered by a model with tools, killed twice", show_header=False)
    table.add_column(style="bold")
    table.add_column(justify="right")
    words = {
        "tickets": "tickets answered",
        "model_calls": "answers of the model that were used",
        "asked": "requests to the model, says its server",
        "paid_twice": "answers paid twice, since a kill lost the first",
        "tokens": "tokens, says the server",
        "cost": "cost in dollars, what was paid twice too",
        "approvals": "questions to a person answered",
        "refunds": "refunds made, says the bank",
        "twice": "refunds made twice",
        "lost": "refunds lost",
        "in_doubt": "refunds in doubt after a kill, and looked up",
        "kills": "kills",
        "seconds": "seconds",
    }
    for name, value in outcome.items():
        table.add_row(words[name], f"{value}")
    return table
