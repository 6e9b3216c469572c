"""The pages with commands, played in a folder as a reader would: files are saved, commands run, and their output is compared."""

import contextlib
import itertools
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tools.broker import Broker
from tools.command_line import child
from tools.source_tree import PROJECT

DOCS = PROJECT / "docs"
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PROGRAMS = {"python": [sys.executable], "sabot": [sys.executable, "-c", "from sabot.cli import main; main()"]}
BACKGROUND = "# leave it running"
SECONDS = 90


def shape(text: str) -> "re.Pattern[str]":
    """A pattern for the output of a command: … stands for any text, and spaces for any number of spaces."""
    parts = [re.escape(" ".join(part.split())).replace(r"\ ", r"\s+") for part in text.split("…")]
    return re.compile(r"\s*" + r"[\s\S]*?".join(parts) + r"\s*")


class Reader:
    """A reader of a page: a folder, an environment, and the app that runs in another terminal."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.env = {**os.environ, "PYTHONPATH": str(PROJECT), "NO_COLOR": "1", "COLUMNS": "400"}
        self.running: contextlib.ExitStack | None = None

    def words_of(self, line: str) -> list[str]:
        """The command of a line, without its comment, as it is called here."""
        program, *words = line.partition("#")[0].split()
        return [*PROGRAMS[program], *words]

    def runs(self, line: str) -> "subprocess.CompletedProcess[str]":
        """The result of a command that ends."""
        return subprocess.run(
            self.words_of(line), cwd=self.folder, env=self.env, capture_output=True, text=True, timeout=SECONDS
        )

    def begins(self, line: str) -> None:
        """Starts an app in the background. An app that runs gets Ctrl-C first, as a reader has one app."""
        self.stops()
        self.running = contextlib.ExitStack()
        process = self.running.enter_context(
            child(*self.words_of(line), cwd=self.folder, env=self.env, stderr=subprocess.PIPE)
        )
        self.running.callback(self._stopped, process)

    def _stopped(self, process: "subprocess.Popen[str]") -> None:
        process.send_signal(signal.SIGINT)
        errors = process.communicate(timeout=SECONDS)[1]
        assert process.returncode == 0, errors

    def stops(self) -> None:
        """Ends the app that runs, if there is one, with Ctrl-C."""
        if self.running is not None:
            running, self.running = self.running, None
            running.close()

    def reads(self, page: str) -> int:
        """Plays a page. Returns the number of outputs that were compared."""
        compared = 0
        blocks = [*BLOCK.findall(page), ("", "")]
        for (kind, text), (next_kind, expected) in itertools.pairwise(blocks):
            if kind == "python" and (name := re.match(r"# (\w+\.py)\n", text)):
                (self.folder / name[1]).write_text(text)
            lines = [line for line in text.splitlines() if not line.startswith("make ")] if kind == "sh" else []
            for number, line in enumerate(lines):
                if BACKGROUND in line:
                    self.begins(line)
                else:
                    wanted = expected if next_kind == "text" and number == len(lines) - 1 else None
                    self.compares(line, wanted)
                    compared += wanted is not None
        return compared

    def compares(self, line: str, expected: str | None) -> None:
        """Runs a command until its output is the expected one: an app that runs beside it needs a moment."""
        limit = time.monotonic() + SECONDS
        while True:
            done = self.runs(line)
            right = done.returncode == 0 and (expected is None or shape(expected).fullmatch(done.stdout))
            if right or self.running is None or time.monotonic() > limit:
                assert right, f"{line}\n{done.stdout}\n{done.stderr}\nexpected:\n{expected}"
                return
            time.sleep(0.5)


@pytest.fixture
def person(tmp_path: Path) -> Iterator[Reader]:
    """A reader in a new folder. Whatever runs ends with the test."""
    made = Reader(tmp_path)
    yield made
    if made.running is not None:  # the test has failed, and says why
        with contextlib.suppress(Exception):
            made.stops()


@pytest.mark.slow  # ten processes, one after the other
def test_the_page_of_an_app_with_state_prints_what_it_says(person: Reader) -> None:
    assert person.reads((DOCS / "tutorial" / "3-app.md").read_text()) == 6


@pytest.mark.slow
@pytest.mark.kafka
@pytest.mark.parametrize(
    ("page", "outputs", "topics"),
    [("tutorial/4-kafka.md", 2, ["payments", "totals"]), ("how-to/first-kafka-app.md", 7, ["orders", "totals"])],
)
def test_a_page_on_kafka_prints_what_it_says(
    page: str, outputs: int, topics: list[str], kafka: Broker, topic: str, person: Reader
) -> None:
    text = (DOCS / page).read_text()
    for name in topics:  # the broker may be one that others use: topics and the app get names of their own
        before = r"(?:stream|to|send)\(\"|topics (?:create|tail) |dlq (?:list|redrive) |--to |…  "
        text = re.sub(rf"({before}){name}\b", rf"\g<1>{topic}-{name}", text)
    text = text.replace('App("shop"', f'App("shop-{topic}"').replace("shop/read", f"shop-{topic}/read")
    person.env["SABOT_BROKER"] = kafka.url
    assert person.reads(text) == outputs
    person.stops()


def test_an_output_may_have_gaps() -> None:
    assert shape("a  …  c\n").fullmatch("a    b   c\n")
    assert not shape("a …").fullmatch("b")
