"""`sabot demo agents`: serves a model over HTTP, runs the agent in a process, kills the process twice, answers the
agent's questions, and compares the answers with the requests that the model's server and the bank received.
"""

import json
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from sabot.agents.job_view import JobView
from sabot.clock import SYSTEM_CLOCK
from sabot.demos.agents.app import LIMIT, MODEL, PRICES, answers, build
from sabot.demos.agents.model import DemoModel
from sabot.demos.person import Person
from sabot.demos.program import DemoProgram, demo_folder
from sabot.engine.calls.effects import key_in_doubt
from sabot.errors import SabotError, UserError
from sabot.journal import open_reader
from sabot.journal.entries import Intent
from sabot.testing import FakeModelServer, Witness

_LEAST = 10
_KILLS = 2
_ANSWERED_AFTER = 0.3  # seconds from a question to its answer
_PATIENCE_SECONDS = 120.0  # for the whole demo
_LOOK_SECONDS = 0.02
_HANGS_SECONDS = 600.0  # so long that the process is killed first
_LEFT = 2  # questions that are left to those who look at the console
_CALLS_OF_LEFT = 2  # of the model, before such a question
_PROGRAM = """from pathlib import Path
from sabot.demos.agents.app import build

app = build(Path({folder!r}), {bank!r}, {model!r}, ends={ends})
"""


def run(tickets: int = 40, *, json: bool = False, web: bool = False) -> dict[str, Any]:
    """Runs the demo to its end. `tickets`: the number of tickets, at least 10. `json`: True prints nothing. `web`: True opens the console,
    leaves some questions to those who look at it, and ends with KeyboardInterrupt.

    Returns tickets (answered), model_calls (answers of the model that the agent used), asked (requests that the
    model's server received), paid_twice (answers made a second time, because the process was killed before it had
    received the first), tokens and cost (of all answers made, in US dollars), approvals, refunds (made by the bank),
    twice (refunds made twice), lost (refunds due and not made), in_doubt (refunds that were in doubt after a kill,
    until the person looked them up), kills, seconds. Raises SabotError if a figure is wrong.
    """
    if tickets < _LEAST:
        raise UserError(f"tickets: {tickets}", hint=f"ask for {_LEAST} or more, so that there is a middle to kill in")
    console = Console(quiet=json)
    with demo_folder(web) as folder:
        shop = _Shop(folder, tickets, _LEFT if web else 0)
        model = DemoModel(shop.middle)
        with Witness(folder / "bank.db") as bank, FakeModelServer(model.answer) as server:
            build(folder, bank.url, server.openai_url)  # raises here if a library is missing
            text = _PROGRAM.format(folder=str(folder), bank=bank.url, model=server.openai_url, ends=not web)
            with DemoProgram(folder, "agents_demo", text, web=web) as program:
                demo = _SupportDemo(folder, shop, bank, server, model, program, console)
                outcome = demo.outcome()
                if wrong := demo.wrong(outcome):
                    raise SabotError(f"the demo came out wrong: {'; '.join(wrong)}", hint=f"its figures: {outcome}")
                console.print(_summary(outcome))
                if web:
                    program.show(f"{len(shop.left)} questions are left to you in the inbox")
    return outcome


class _Shop:
    """The shop of the demo: its orders, its tickets, and the right answer to each ticket.

    Each customer writes two tickets: one about an order, and one that asks which payment the shop made. Two of three
    orders arrived broken, so their price should be refunded. Half of these refunds are larger than the agent may make
    without approval; a person refuses some of them, and leaves the last `left` to others.
    """

    def __init__(self, folder: Path, tickets: int, left: int = 0) -> None:
        self.tickets = tickets
        self.left: list[str] = []  # orders about which others decide
        self.due: dict[str, int] = {}  # orders that have to be refunded, with their amounts
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
        self.left = [order for order, amount in self.due.items() if amount > LIMIT][-left:] if left else []
        for order in self.left:
            del self.due[order]
        (folder / "orders.json").write_text(json.dumps(orders))
        (folder / "tickets.ndjson").write_text("".join(f"{json.dumps(row)}\n" for row in rows))

    def _order(self, order: str, number: int) -> dict[str, str | float]:
        broken = number % 3 != 2
        amount = 20 + number if number % 2 else LIMIT + 1 + number
        if broken and amount > LIMIT and number % 5 == 4:
            self.refused.add(order)
        elif broken:
            self.due[order] = amount
        return {"order": order, "amount": amount, "state": "broken" if broken else "on its way"}

    @property
    def middle(self) -> list[str]:
        """Two of the orders that have to be refunded."""
        first = len(self.due) // 3
        return [*self.due][first : first + 2]

    def answers(self, payments: dict[str, int]) -> dict[int, str]:
        """Returns the right answer to each ticket, given the bank's payments by order; without tickets about orders that are left."""
        right = {}
        for ticket in range(self.tickets):
            customer, is_second = ticket // 2, ticket % 2
            if f"o-{customer}" in self.left:
                continue
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


class _SupportDemo:
    """One run of the demo: the process of the app, its kills, and the person who answers."""

    def __init__(
        self,
        folder: Path,
        shop: _Shop,
        bank: Witness,
        server: FakeModelServer,
        model: DemoModel,
        program: DemoProgram,
        console: Console,
    ) -> None:
        self._folder = folder
        self._shop = shop
        self._bank = bank
        self._server = server
        self._model = model
        self._program = program
        self._console = console
        self._person = Person(str(folder / "state"), self._decide)
        self._left: set[str] = set()  # orders about which a question was left
        self._doubts = self._kills = 0
        self._until = SYSTEM_CLOCK.monotonic() + _PATIENCE_SECONDS

    def outcome(self) -> dict[str, Any]:
        """Runs the demo, and returns the figures."""
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
        """Returns the expectations that are not met."""
        made = self._bank.effects("refund")
        answered = answers(self._folder)
        right = self._shop.answers({each.arguments["order"]: each.number for each in made})
        recorded = sum(each["tokens"] for each in answered)
        must = {
            "each ticket is answered once": sorted(each["ticket"] for each in answered) == [*right],
            "each answer is true": all(right[each["ticket"]] == each["answer"] for each in answered),
            "no refund is made twice": outcome["twice"] == 0,
            "no refund is lost": outcome["lost"] == 0,
            "only refunds that are due are made": len(made) == len(self._shop.due),
            "the model is asked again only where a kill has lost the answer": (
                outcome["model_calls"] + _CALLS_OF_LEFT * len(self._left) == len(self._model.made) <= outcome["asked"]
            ),
            "an answer that a kill has lost is paid twice": (
                outcome["paid_twice"] >= len(self._shop.middle) and outcome["tokens"] > recorded
            ),
            "the app was killed twice": outcome["kills"] == _KILLS,
            "a refund was in doubt, and looked up": outcome["in_doubt"] >= 1,
        }
        return [f"not true: {what}" for what, holds in must.items() if not holds]

    def _work(self) -> None:
        """Starts the app's process, kills it at two moments that leave a call open, starts it again, and waits for its end, or for all
        answers but those to questions that are left to others.
        """
        shop, bank = self._shop, self._bank
        self._print(f"A model answers {shop.tickets} tickets, with two tools: look_up reads, refund moves money.")
        self._print(f"Refunds above {LIMIT} dollars wait for the approval of a person.")
        program = self._program
        program.start()
        self._wait(lambda: self._model.kept_back == len(shop.middle))
        self._kill("answers of the model are paid and have not arrived")
        # At least two more refunds follow, those of the answers that were kept back: the first is made, the second hangs.
        bank.client.plan("slow", "refund", seconds=0)
        bank.client.plan("late", "refund", seconds=_HANGS_SECONDS)
        program.start()
        self._wait(lambda: bank.requests("refund")["late"] == 1)
        self._kill("the app has no answer to one of them")
        program.start()
        if shop.left:
            right = len(shop.answers({}))
            self._wait(lambda: len(answers(self._folder)) >= right and len(self._left) == len(shop.left))
        else:
            self._wait(lambda: program.poll() is not None)

    def _kill(self, when: str) -> None:
        self._program.kill()
        self._kills += 1
        self._print(f"kill -9: {self._refunds()} refunds are made; {when}. Starting again.")

    def _wait(self, until: Callable[[], bool]) -> None:
        """Waits until `until()` is true. Raises SabotError if the process ends earlier, or if the wait takes too
        long.
        """
        while not until():
            self._person.check()
            code = self._program.poll()
            if code is not None and not until():
                raise SabotError(f"the app of the demo ended too early, with exit code {code}; its output is above")
            if SYSTEM_CLOCK.monotonic() > self._until:
                raise SabotError(f"the demo did not end within {_PATIENCE_SECONDS:g} s")
            threading.Event().wait(_LOOK_SECONDS)
        if code := self._program.poll():
            raise SabotError(f"the app of the demo ended with exit code {code}; its output is above")

    def _refunds(self) -> int:
        return len(self._bank.effects("refund"))

    def _decide(self, question: Intent) -> tuple[float, Callable[[], dict[str, Any]]] | None:
        """Decides as a person: approves refunds, except some, and leaves some. A refund in doubt is looked up at the bank."""
        if question.name != "in_doubt":
            order = self._order(question)
            if order in self._shop.left:
                self._left.add(order)
                return None
            approved = order not in self._shop.refused
            return _ANSWERED_AFTER, lambda: {"approved": approved}
        self._doubts += 1
        key = key_in_doubt(question.job, json.loads(bytes(question.body)))  # type: ignore[arg-type]

        def look() -> dict[str, Any]:
            found = self._bank.client.find(key)
            if found is None:
                return {"outcome": "not_done"}
            return {"outcome": "done", "result": f"payment {found['number']}"}

        return _ANSWERED_AFTER, look

    def _order(self, question: Intent) -> str:
        """Returns the order whose refund has to be approved, as `sabot actions list` shows it."""
        with closing(open_reader(str(self._folder / "state"))) as reader:
            action = JobView.of(reader, question.job).of_token(question.token)
        assert action is not None
        _, arguments = action.payload["arguments"]
        order: str = arguments["order"]
        return order

    def _print(self, text: str) -> None:
        self._console.print(text, highlight=False)


def _summary(outcome: dict[str, Any]) -> Table:
    table = Table(title="Tickets answered by a model with tools, killed twice", show_header=False)
    table.add_column(style="bold")
    table.add_column(justify="right")
    words = {
        "tickets": "tickets answered",
        "model_calls": "answers of the model used",
        "asked": "requests to the model's server",
        "paid_twice": "answers paid twice, because a kill lost the first",
        "tokens": "tokens, counted by the server",
        "cost": "cost in dollars, with answers paid twice",
        "approvals": "questions answered by a person",
        "refunds": "refunds made, counted by the bank",
        "twice": "refunds made twice",
        "lost": "refunds lost",
        "in_doubt": "refunds in doubt after a kill, looked up",
        "kills": "kills",
        "seconds": "seconds",
    }
    for name, value in outcome.items():
        table.add_row(words[name], f"{value}")
    return table
