"""The inbox in a real browser; and a kill in the middle of answers in bulk, which a witness counts."""

import asyncio
import http.client
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from integration.test_console_jobs_browser import look
from playwright.sync_api import expect
from unit.web.test_console import Browser as Client
from unit.web.test_inbox_screens import fields, office, ticket

from sabot.testing import Witness
from sabot.web.console import Console
from sabot.web.payloads import Payloads
from tools.agent_tools import until
from tools.browser import Visit, opened_browser
from tools.command_line import ENV, SABOT, child

pytestmark = pytest.mark.usefixtures("warm_starts")

QUESTIONS = 60

# Whether a click finds a button that stands at the lower end of the window.
AT_THE_END = """each => {
    each.scrollIntoView({block: "end"});
    const {left, right, bottom} = each.getBoundingClientRect();
    return document.elementFromPoint((left + right) / 2, bottom - 3) === each;
}"""

PROGRAM = f"""
import asyncio, os, sys
from sabot import App, NdjsonSink, NdjsonSource
from sabot.llm import Effect, tool
from sabot.testing import WitnessClient

bank = WitnessClient(open("bank").read())
app = App("refunds", state="state", checkpoint_interval="200ms")

@tool
async def refund(order: int, effect: Effect) -> int:
    if order == {QUESTIONS - 1} and not os.path.exists("again"):
        await asyncio.Event().wait()  # so the kill comes before the last one
    return (await bank.do_async("refund", {{"order": order}}, key=effect.key))["number"]

@app.agent(NdjsonSource("tickets.ndjson"), sink=NdjsonSink("answers.ndjson"), durable=True, concurrency=100)
async def handle(ctx):
    answer = await ctx.ask("confirm", {{"order": ctx.message["order"]}})
    return await ctx.call(refund, ctx.message["order"]) if answer.approved else None
"""


class Served:
    """A run of the program, and a client that may act."""

    def __init__(self, log: Path, process: Any) -> None:
        deadline = time.monotonic() + 60
        while (found := re.search(r"http://[\w.-]+:(\d+)/enter\?token=(\S+)", log.read_text())) is None:
            assert time.monotonic() < deadline, log.read_text()
            assert process.poll() is None, log.read_text()
            time.sleep(0.05)
        self.process = process
        self.client = Client(type("Port", (), {"port": int(found[1])})())  # type: ignore[arg-type]
        self.client.enter(found[2])

    def open_questions(self) -> list[str]:
        return fields(self.client.ask("/inbox")[1])


@contextmanager
def served(folder: Path, name: str) -> Iterator[Served]:
    log = folder / name
    words = ["run", "refunds:app", "--web", "--web-port", "0", "--loglevel", "warning"]
    with open(log, "w") as file, child(*SABOT, *words, cwd=folder, env=ENV, stdout=file, stderr=file) as process:
        yield Served(log, process)


def wait_for(condition: Any, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.slow
def test_a_kill_in_the_middle_of_answers_in_bulk_makes_no_effect_twice_and_loses_none(tmp_path: Path) -> None:
    (tmp_path / "refunds.py").write_text(PROGRAM)
    (tmp_path / "tickets.ndjson").write_text("".join(f'{{"order": {n}}}\n' for n in range(QUESTIONS)))
    with Witness(tmp_path / "bank.db") as bank:
        (tmp_path / "bank").write_text(bank.url)
        with served(tmp_path, "first.log") as first:
            wait_for(lambda: len(first.open_questions()) == QUESTIONS)
            form = dict.fromkeys(first.open_questions(), "1") | {"answer": "approve"}

            def send() -> None:
                with suppress(OSError, http.client.HTTPException):  # the app is killed
                    first.client.ask("/act/answer", form=form)

            sending = threading.Thread(target=send)
            sending.start()
            wait_for(lambda: bank.effects("refund"))
            os.kill(first.process.pid, signal.SIGKILL)
            sending.join()
        (tmp_path / "again").touch()
        with served(tmp_path, "second.log") as second:
            before = len(bank.effects("refund"))
            rest = second.open_questions()
            assert before < QUESTIONS, "the kill came in the middle"
            # The same form again: an answer that was given before is not given again.
            status, page = second.client.ask("/act/answer", form=form)
            answered = re.search(r"(\d+) of 60 questions", page)
            # An answer that the first process had posted may be read only now: its question is still open, and answered already.
            if status == 200:
                assert answered is not None, page
                assert 0 < int(answered[1]) <= len(rest), page
            else:
                named, more = page.count("before your answer."), re.search(r"(\d+) more were closed before", page)
                assert (status, named + int(more[1] if more else 0)) == (409, QUESTIONS), page
            while second.process.poll() is None:  # it ends with the last job
                with suppress(OSError, http.client.HTTPException):
                    decide_doubts(second.client, bank)
                time.sleep(0.05)
            assert second.process.returncode == 0
        assert bank.twice("refund") == []
        assert {each.arguments["order"] for each in bank.effects("refund")} == set(range(QUESTIONS))


def decide_doubts(client: Client, bank: Witness) -> None:
    """Looks each call in doubt up by its idempotency key, and says whether it was made."""
    cards = re.findall(
        r'idempotency key: <code>([^<]+)</code>.*?name="(ask:[^"]+)"', client.ask("/inbox")[1], re.DOTALL
    )
    for key, field in cards:
        made = [each.number for each in bank.effects("refund") if each.key == key]
        client.ask(
            "/act/answer",
            form={field: "1"} | ({"answer": "done", "value": str(made[0])} if made else {"answer": "not-done"}),
        )


def answer_by_keyboard(console: Console, folder: Path, dark: bool, width: int) -> None:
    with opened_browser() as browser:
        visit = Visit(browser, dark=dark, width=width)
        page = visit.page
        page.goto(console.link)
        expect(page).to_have_title(re.compile(r"^\(3\) App"))
        page.get_by_role("link", name=re.compile("^Inbox")).press("Enter")
        cards = page.locator("article")
        expect(cards).to_have_count(3)
        look(visit, folder / "inbox.png")
        card = cards.filter(has_text="Was transfer done?")
        expect(card).to_contain_text("4711")
        assert cards.get_by_role("button", name="Approve").first.evaluate(AT_THE_END), "the bar below does not cover it"
        for name in ("Approve the selected", "Reject the selected"):
            expect(page.get_by_role("button", name=name)).to_be_disabled()
        page.get_by_role("checkbox").first.focus()
        page.keyboard.press("Space")
        page.get_by_role("checkbox").nth(1).press("Space")
        bulk = page.locator("#bulk")
        reasons = [bulk.get_by_label("Reason"), cards.get_by_label("Reason").first, page.get_by_label("Result as JSON")]
        page.locator("summary", has_text="Approve otherwise").first.click()
        for field in (*reasons, page.get_by_label("Changed arguments as JSON")):
            field.fill("not today")
            field.press("Enter")  # no answer is the default of a form with several
            field.fill("")
        expect(cards).to_have_count(3)
        bulk.get_by_label("Reason").focus()
        page.keyboard.type("not today")
        page.keyboard.press("Tab")
        page.keyboard.press("Tab")
        expect(bulk.get_by_role("button", name="Reject the selected")).to_be_focused()
        page.keyboard.press("Enter")
        expect(page.locator("main p").first).to_have_text("2 of 2 questions: rejected.")
        page.get_by_role("link", name="Back to Inbox").press("Enter")
        expect(cards).to_have_count(1)
        expect(page).to_have_title(re.compile(r"^\(1\) Inbox"))
        page.get_by_label("Result as JSON").fill('"found in the list of the bank"')
        page.get_by_role("button", name="It was done").press("Enter")
        expect(page.locator("h1")).to_have_text("Done")
        page.get_by_role("link", name="Back to Inbox").click()
        expect(page.locator("main")).to_contain_text("Nobody is asked now.")
        expect(page).to_have_title(re.compile("^Inbox"))
        visit.check()
        visit.context.close()


@pytest.mark.slow  # a second of a core
@pytest.mark.parametrize(("dark", "width"), [(False, 1280), (True, 360)])
async def test_questions_are_answered_by_keyboard(memory_url: str, tmp_path: Path, dark: bool, width: int) -> None:
    messages = [ticket("refund"), ticket("transfer"), ticket("ask")]
    async with office(memory_url, tmp_path / "state", messages, Payloads("all")) as (app, console, bank):
        await asyncio.to_thread(answer_by_keyboard, console, tmp_path, dark, width)
        await until(lambda: app.statistics()["jobs"]["ended"] == 3)
        assert (len(bank.asked), bank.refunded) == (1, [])
