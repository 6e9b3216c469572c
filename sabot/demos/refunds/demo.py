"""`sabot demo refunds`: runs the agent in a process, kills the process twice, answers questions, and asks a witness
which refunds were made.
"""

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from sabot.clock import SYSTEM_CLOCK
from sabot.demos.person import Person
from sabot.demos.program import DemoProgram, demo_folder
from sabot.demos.refunds.app import answers, write_tickets
from sabot.engine.calls.effects import key_in_doubt
from sabot.errors import SabotError, UserError
from sabot.journal.entries import Intent
from sabot.testing import Witness

_KILLED_AT = (0.2, 0.6)  # shares of the refunds that are done when the process is killed
_BANK_SECONDS = 0.1  # from a payment to the answer of the bank
_HANGS_SECONDS = 600.0  # so long that the process is killed first
_ANSWERED_AFTER = 1.0  # seconds from a question to its answer
_PATIENCE_SECONDS = 120.0  # for the whole demo
_LOOK_SECONDS = 0.02
_REFUSED_EACH = 10  # of this number of tickets one is refused
_LEFT = 3  # questions that are left to those who look at the console
_PROGRAM = """from pathlib import Path
from sabot.demos.refunds.app import build

app = build(Path({folder!r}), {bank!r}, ends={ends})
"""


def run(jobs: int = 60, *, json: bool = False, web: bool = False) -> dict[str, Any]:
    """Runs the demo to its end. `jobs`: the number of tickets. `json`: True prints nothing. `web`: True opens the console, leaves the last
    questions to those who look at it, and ends with KeyboardInterrupt.

    Returns jobs (with an answer), approvals (given), asked (refunds that were approved), done (refunds that the
    witness has recorded), twice (refunds made twice), lost (approved, but not recorded), in_doubt (refunds that were
    in doubt after a kill, until the person looked them up), kills, seconds.
    """
    if jobs < 1:
        raise UserError(f"jobs: {jobs}", hint="ask for at least one")
    console = Console(quiet=json)
    with demo_folder(web) as folder:
        write_tickets(folder, jobs)
        with Witness(folder / "witness.db") as witness:
            text = _PROGRAM.format(folder=str(folder), bank=witness.url, ends=not web)
            with DemoProgram(folder, "refunds_demo", text, web=web) as program:
                demo = _RefundsDemo(folder, witness, program, jobs, console, min(_LEFT, jobs) if web else 0)
                outcome = demo.outcome()
                console.print(_summary(outcome))
                if web:
                    program.show(demo.left)
    return outcome


class _RefundsDemo:
    """One run of the demo: the process of the app, its kills, and the person who answers."""

    def __init__(
        self, folder: Path, witness: Witness, program: DemoProgram, jobs: int, console: Console, left: int
    ) -> None:
        self._folder = folder
        self._witness = witness
        self._program = program
        self._jobs = jobs
        self._kills_at = [int(share * jobs) for share in _KILLED_AT]  # refunds that are done before the one in doubt
        self._left = left  # the questions that this person leaves to others
        self._console = console
        self._approved: set[str] = set()  # ids of jobs
        self._seen = self._doubts = self._kills = 0
        self._left_doubt = ""  # the key of the one that is left to others, after the last kill

    @property
    def left(self) -> str:
        """The questions that are left to those who look at the console, in words."""
        doubt = " and an effect in doubt" if self._left_doubt else ""
        return f"{self._left} questions{doubt} are left to you in the inbox"

    def outcome(self) -> dict[str, Any]:
        """Runs the demo, and returns the figures."""
        began = SYSTEM_CLOCK.monotonic()
        self._plan_bank()
        person = Person(str(self._folder / "state"), self._decide)
        person.start()
        try:
            self._work(began + _PATIENCE_SECONDS)
        finally:
            person.finish()
        asked, done = len(self._approved), len(self._witness.effects("refund"))
        twice = len(self._witness.twice("refund"))
        left = bool(self._left_doubt) and self._witness.client.find(self._left_doubt) is None
        return {
            "jobs": len(answers(self._folder)),
            "approvals": person.answered - self._doubts,
            "asked": asked,
            "done": done,
            "twice": twice,
            "lost": asked - (done - twice) - left,
            "in_doubt": self._doubts,
            "kills": self._kills,
            "seconds": round(SYSTEM_CLOCK.monotonic() - began, 3),
        }

    def _plan_bank(self) -> None:
        """Lets the bank pay at once, and answer late; never where a kill shall come in the middle of a call."""
        plan, made = self._witness.client.plan, 0
        for before in self._kills_at:
            if before > made:
                plan("late", "refund", times=before - made, seconds=_BANK_SECONDS)
            if before >= made:
                plan("late", "refund", seconds=_HANGS_SECONDS)
                made = before + 1
        plan("late", "refund", times=10 * self._jobs, seconds=_BANK_SECONDS)

    def _work(self, until: float) -> None:
        """Starts the process, kills it twice, starts it again each time, and waits for its end, or for all answers but those to questions
        that are left to others.
        """
        program = self._program
        program.start()
        with _bar(self._console, self._jobs) as bar:
            while True:
                code, done, answered = program.poll(), len(self._witness.effects("refund")), len(answers(self._folder))
                bar.update(bar.task_ids[0], completed=answered, done=done, refresh=True)
                left = self._left + bool(self._left_doubt)
                if code is not None or (self._left and answered >= self._jobs - left):
                    break
                if self._kills < len(_KILLED_AT) and done > self._kills_at[self._kills]:
                    program.kill()
                    self._kills += 1
                    bar.console.print(f"kill -9: {done} refunds are done; the app starts again")
                    program.start()
                if SYSTEM_CLOCK.monotonic() > until:
                    raise SabotError(f"the demo did not end within {_PATIENCE_SECONDS:g} s")
                threading.Event().wait(_LOOK_SECONDS)
        if code:
            raise SabotError(f"the app of the demo ended with exit code {code}; its output is above")

    def _decide(self, question: Intent) -> tuple[float, Callable[[], dict[str, Any]]] | None:
        """Decides as a person: approves refunds except every tenth, leaves the last ones. A refund in doubt is looked up at the bank; the
        first one after the last kill is left if others look at the console.
        """
        if question.name == "in_doubt":
            key = key_in_doubt(question.job, json.loads(bytes(question.body)))  # type: ignore[arg-type]
            if self._left and self._kills == len(_KILLED_AT) and self._left_doubt in ("", key):
                self._left_doubt = key
                return None
            self._doubts += 1
            return _ANSWERED_AFTER, lambda: self._looked_up(key)
        self._seen += 1
        if self._seen > self._jobs - self._left:
            return None
        approved = self._seen % _REFUSED_EACH != 0
        if approved:
            self._approved.add(question.job)
        return _ANSWERED_AFTER, lambda: {"approved": approved}

    def _looked_up(self, key: str) -> dict[str, Any]:
        found = self._witness.client.find(key)
        return {"outcome": "not_done"} if found is None else {"outcome": "done", "result": found["number"]}


def _bar(console: Console, jobs: int) -> Progress:
    columns = (
        TextColumn("tickets"),
        BarColumn(),
        TextColumn("{task.completed:.0f} of {task.total:.0f} answered"),
        TextColumn("{task.fields[done]} refunds done"),
    )
    bar = Progress(*columns, console=console, auto_refresh=False)
    bar.add_task("", total=jobs, done=0)
    return bar


def _summary(outcome: dict[str, Any]) -> Table:
    table = Table(title="Refunds by a durable agent, killed twice", show_header=False)
    table.add_column(style="bold")
    table.add_column(justify="right")
    words = {
        "jobs": "jobs",
        "approvals": "approvals answered",
        "asked": "refunds asked for",
        "done": "refunds done, counted by the witness",
        "twice": "done twice",
        "lost": "lost",
        "in_doubt": "in doubt after a kill, looked up",
        "kills": "kills",
        "seconds": "seconds",
    }
    for name, value in outcome.items():
        table.add_row(words[name], f"{value}")
    return table
