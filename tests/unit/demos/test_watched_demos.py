"""`sabot demo … --web`: each demo says where its console is, and its pages have what there is to see."""

import json
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from typer.testing import CliRunner
from unit.process.children import alive
from unit.web.test_console import Browser
from unit.web.test_inbox_screens import fields

from sabot.cli import commands
from tools.command_line import ENV, SABOT, child

pytestmark = pytest.mark.integration


class Watched:
    """A demo that runs with its console, and a client that may act."""

    def __init__(self, process: Any, log: Path) -> None:
        self.process = process
        self.log = log
        # The words about Ctrl-C come behind the last kill, after which the console stays.
        self.until(lambda: "/enter?token=" in self.said() and "; Ctrl-C ends the demo" in self.said())
        found = re.search(r"http://[\w.-]+:(\d+)/enter\?token=(\S+)", self.said())
        assert found is not None
        self.client = Browser(type("Port", (), {"port": int(found[1])})())  # type: ignore[arg-type]
        self.client.enter(found[2])
        self.link = found[0]

    def said(self) -> str:
        return self.log.read_text()

    def until(self, holds: Callable[[], Any]) -> Any:
        """Waits until something holds, while the demo runs, and returns it."""
        deadline = time.monotonic() + 180
        while not (found := holds()):
            assert time.monotonic() < deadline, self.said()
            assert self.process.poll() is None, self.said()
            time.sleep(0.1)
        return found

    def page(self, path: str) -> str:
        status, page = self.client.ask(path)
        assert status == 200, page
        return page

    def rows(self, path: str) -> list[dict[str, Any]]:
        return json.loads(self.page(path))

    def ends(self) -> None:
        """Ends the demo as Ctrl-C does: nothing of it is left, and its console is gone."""
        self.process.send_signal(signal.SIGINT)
        assert self.process.wait(60) == 130, self.said()
        with pytest.raises(OSError):
            self.client.ask("/")


@contextmanager
def watched(folder: Path, *words: str, **variables: str) -> Iterator[Watched]:
    folder.mkdir(exist_ok=True)
    log = folder / "log"
    with (
        open(log, "w") as file,
        child(*SABOT, "demo", *words, "--web", cwd=folder, env=ENV | variables, stdout=file, stderr=file) as process,
    ):
        try:
            yield Watched(process, log)
        finally:
            process.terminate()  # so that the demo stops its own process
            process.wait(60)
    assert [each.name for each in folder.iterdir()] == ["log"]


@pytest.mark.slow  # a processor is busy until a window has closed
def test_the_fraud_demo_has_a_narrow_place_late_rows_and_dead_letters(tmp_path: Path) -> None:
    with watched(tmp_path, "fraud") as demo:
        demo.until(lambda: "card_tokens" in re.sub(r"<svg.*?</svg>", "", demo.page("/"), flags=re.DOTALL))
        assert "is the narrow place" in demo.page("/")
        demo.until(lambda: sum(each["late_rows"] or 0 for each in demo.rows("/steps.json")) > 0)
        (first, *_) = demo.until(lambda: demo.rows("/letters.json"))
        assert "amount is missing" in str(first)
        lines = demo.rows("/log.json?level=info")
        assert [each for each in lines if each["level"] == "info"], "the log is not empty"
        assert " INFO " not in demo.said(), "and the terminal stays as it was"
        demo.ends()


@pytest.mark.slow  # three runs
def test_the_folder_of_a_demo_stays_when_it_is_needed_for_the_next_start(tmp_path: Path) -> None:
    """A savepoint is "never removed automatically", and the commands on the pages start the program that is in the folder."""

    def left(*actions: str, ends: bool) -> tuple[str, list[Path]]:
        folder = tmp_path / "-".join(("run", *actions))
        places = folder / "temporary"
        places.mkdir(parents=True)
        with watched(folder / "here", "fraud", "--rows", "10000", TMPDIR=str(places)) as demo:
            pages = [demo.client.ask(f"/act/{each}", form={})[1] for each in actions]
            if ends:
                demo.ends()
            else:
                assert demo.process.wait(60) == 0, demo.said()
        kept = list(places.glob("sabot-demo-*"))
        assert all(f"sabot: {each} is kept" in demo.said() for each in kept)
        return pages[-1] if pages else "", kept

    assert left(ends=True)[1] == [], "a demo that ends leaves nothing"
    page, (folder,) = left("savepoint", ends=True)
    assert f"cd {folder}" in page
    assert (folder / "fraud_demo.py").exists()
    assert list(folder.rglob("savepoints/*")), "the savepoint is where the page has said"
    _, (folder,) = left("stop", ends=False)
    assert (folder / "fraud_demo.py").exists(), "the advice to start it with other workers holds"


@pytest.mark.slow
def test_the_app_of_a_demo_that_was_killed_stops(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [*SABOT, "demo", "fraud", "--web"], cwd=tmp_path, env=ENV, stderr=subprocess.PIPE, text=True, process_group=0
    )
    assert process.stderr is not None
    with process, process.stderr:
        try:
            line = next(each for each in process.stderr if "/enter?token=" in each)
            (app,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            assert "fraud_demo:app" in Path(f"/proc/{app}/cmdline").read_text(), line
        finally:
            process.kill()
    deadline = time.monotonic() + 60
    while alive(int(app)):
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.slow  # the app is killed twice
def test_the_refunds_demo_leaves_questions_to_approve_and_to_refuse(tmp_path: Path) -> None:
    with watched(tmp_path, "refunds", "--jobs", "12") as demo:
        assert "3 questions and an effect in doubt are left to you in the inbox" in demo.said()
        assert demo.said().count("/enter?token=") == 2, (
            "the address is said once, although the app was started three times"
        )
        questions, doubts = map(fields, demo.page("/inbox").split("<h2>Effects in doubt</h2>"))
        (first, second, third), (doubt,) = questions, doubts
        assert 'value="look-up"' in demo.page("/inbox")
        forms = [{first: "1", "answer": "reject"}, {second: "1", third: "1", "answer": "approve"}]
        for form in [{doubt: "1", "answer": "look-up"}, *forms]:
            status, page = demo.client.ask("/act/answer", form=form)
            assert status == 200, page
        ended = {"succeeded"}

        def over() -> bool:
            for again in fields(demo.page("/inbox")):  # the bank answers an enquiry some seconds later
                demo.client.ask("/act/answer", form={again: "1", "answer": "look-up"})
            return {each["status"] for each in demo.rows("/jobs.json")} == ended

        demo.until(over)
        page = demo.page(f"/job?id={quote(doubt.removeprefix('ask:').rpartition('/')[0])}")
        assert re.search(r"was in doubt: looked up again by console:[0-9a-f]{12} at", page)
        demo.ends()


@pytest.mark.slow  # the app is killed twice
def test_the_agents_demo_shows_what_the_agent_did_for_a_ticket_and_what_it_cost(tmp_path: Path) -> None:
    with watched(tmp_path, "agents", "--tickets", "12") as demo:
        ticket, *_ = [each for each in demo.rows("/jobs.json?key=c-1") if each["effects"] > 1]
        assert float(ticket["dollars"]) > 0
        page = demo.page(f"/job?id={ticket['job_id']}")
        assert all(word in page for word in ("call look_up", "call refund", "o-1", "You have your money back"))
        assert "agents-demo" in demo.page("/budgets")
        demo.ends()


@pytest.mark.parametrize("demo", ["fraud", "refunds", "agents"])
def test_figures_at_the_end_and_a_console_exclude_each_other(demo: str) -> None:
    done = CliRunner().invoke(commands.cli, ["demo", demo, "--json", "--web"])
    assert done.exit_code == 2
    assert "leave out --json or --web" in done.stderr
