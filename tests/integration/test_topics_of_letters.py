"""The topic of dead letters is made with the first dead letter, and a kill at any step loses and repeats none."""

import json
import subprocess
import sys
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from delivery_child import part, payloads, track_of

from sabot import App
from sabot.connectors.base import Token
from sabot.errors import AppLocked
from sabot.kafka import KafkaSink, admin
from tools.agent_tools import bounded, checkpoint, started, until
from tools.fault_tools import Place, eventually, running, sabot_run
from tools.kafka_eyes import committed

pytestmark = [pytest.mark.integration, pytest.mark.kafka]
CHILD = Path(__file__).with_name("delivery_child.py")
FIRST = [
    f"first {when} {name}" for name in ("claim", "first", "begin", "token", "commit") for when in ("before", "after")
]
LETTER = [f"letter {when} {name}" for name in ("produce", "token", "commit") for when in ("before", "after")]


def letters_sink(url: str, topic: str) -> Any:
    sink = KafkaSink(topic, url)
    sink.only_letters = True
    return sink


def test_a_claim_makes_no_topic_and_shuts_the_last_producer_out_all_the_same(kafka_url: str, topic: str) -> None:
    older, newer = letters_sink(kafka_url, topic), letters_sink(kafka_url, topic)
    nothing = Token(0, track_of(topic).incarnation, empty=True)
    assert older.known(track_of(topic)) is None
    assert older.claim(track_of(topic)) == nothing
    older.settle(0)
    assert newer.claim(track_of(topic)) == nothing
    newer.settle(0)
    assert topic not in admin.topics(kafka_url)
    with pytest.raises(AppLocked):
        older.deliver(1, part(1))
    newer.deliver(1, part(1))
    assert committed(kafka_url, topic) == payloads(1)
    newer.close()
    older.close()


def test_a_topic_that_others_have_made_meanwhile_is_taken_as_it_is(kafka_url: str, topic: str) -> None:
    sink = letters_sink(kafka_url, topic)
    sink.claim(track_of(topic))
    sink.settle(0)
    other = letters_sink(kafka_url, topic)
    other.claim(track_of(f"{topic}-of-another"))
    other.deliver(7, part(7))
    sink.deliver(1, part(1))
    assert sorted(committed(kafka_url, topic)) == sorted(payloads(7, 1))
    assert letters_sink(kafka_url, topic).claim(track_of(topic)) == Token(1, "this-one")
    for each in (sink, other):
        each.close()


@pytest.mark.slow  # a second of a core, or more
def test_a_worker_killed_at_any_step_of_its_first_letters_leaves_nothing_lost_and_nothing_twice(
    kafka_url: str, topic: str
) -> None:
    kills = FIRST + LETTER
    command = [sys.executable, "-P", str(CHILD), kafka_url, topic, *kills]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout == done.stderr == ""  # each was killed
    made = admin.topics(kafka_url)
    absent = {"first before claim", "first after claim", "first before first"}
    assert {which for number, which in enumerate(kills) if f"{topic}-{number}" not in made} == absent

    def go_on(number: int) -> tuple[Token | None, list[bytes]]:
        name = f"{topic}-{number}"
        sink = letters_sink(kafka_url, name)
        found = sink.claim(track_of(name))
        assert found is not None  # it is certain what has arrived
        for missing in range(found.seq + 1, 3):
            sink.deliver(missing, part(missing))
        sink.close()
        return found, committed(kafka_url, name)

    with ThreadPoolExecutor(len(kills)) as pool:
        outcomes = dict(zip(kills, pool.map(go_on, range(len(kills))), strict=True))
    assert {which for which, (_, found) in outcomes.items() if found != payloads(1, 2)} == set()
    assert {which for which, (found, _) in outcomes.items() if found is not None and found.seq} == {
        "letter after commit"
    }


# Whole programs


@pytest.fixture
def place(kafka_url: str) -> Place:
    return Place(kafka_url)


@pytest.fixture
def name() -> str:
    return f"app-{uuid.uuid4().hex[:8]}"


def rows_of(place: Place, topic: str) -> list[Any]:
    return [json.loads(record.payload or b"null") for record in place.read(topic)]


@pytest.mark.slow  # a second of a core
@pytest.mark.parametrize("delivery", ["exactly_once", "at_least_once"])
async def test_a_program_without_bad_records_makes_no_topic_of_dead_letters_in_any_run(
    place: Place, name: str, tmp_path: Path, delivery: Any
) -> None:
    topic, out = place.topic(1), place.topic(1)
    for run in range(3):
        app = App(name, broker=place.url, state=tmp_path)
        app.stream(topic, schema={"n": "int64"}, dead_letter="{topic}.bad").to(out, delivery=delivery)

        @app.agent(f"{topic}-asked")
        async def asked(ctx: Any) -> None:
            return None

        if run == 0:
            place.topic(1, f"{topic}-asked")
        place.fill(topic, [b'{"n": %d}' % run])
        async with started(app):
            await until(lambda run=run: len(place.read(out)) > run)
            await checkpoint(app)
            await bounded(app.stop())
        assert [each for each in admin.topics(place.url) if topic in each and each.endswith((".bad", ".dlq"))] == []
    assert rows_of(place, out) == [{"n": 0}, {"n": 1}, {"n": 2}]

    app = App(name, broker=place.url, state=tmp_path)
    app.stream(topic, schema={"n": "int64"}, dead_letter="{topic}.bad").to(out, delivery=delivery)
    place.fill(topic, [b"no number"])
    async with started(app):
        await until(lambda: f"{topic}.bad" in admin.topics(place.url) and len(place.read(f"{topic}.bad")) == 1)


PROGRAM = """
import os, signal
from sabot import App, steps

class Killer:
    def __init__(self, at):
        self.when, self.name, self.times = at.split(" ")
        self.times = int(self.times)
    def passing(self, when, name, what):
        if (when, name) == (self.when, self.name) and os.environ["LETTERS"] in what:
            self.times -= 1
            if self.times == 0:
                os.kill(os.getpid(), signal.SIGKILL)
    def before(self, name, what):
        self.passing("before", name, what)
    def after(self, name, what):
        self.passing("after", name, what)
    def torn(self, name, what, size):
        return size

if os.environ.get("KILL"):
    steps.watch(Killer(os.environ["KILL"]))
app = App(os.environ["NAME"], checkpoint_interval="200ms")
app.stream(os.environ["TOPIC"], schema={"n": "int64"}, dead_letter=os.environ["LETTERS"]).to(os.environ["TOPIC"] + "-out")
"""


@pytest.mark.slow  # a second of a core, or more
@pytest.mark.parametrize(
    ("at", "more"),
    [
        *(
            (at, ())
            for at in ("before first 1", "after first 1", "after commit 1", "before commit 2", "after commit 2")
        ),
        ("before commit 2", ("--workers", "2")),
    ],
)
async def test_an_app_killed_at_a_step_of_its_first_letters_has_each_of_them_once(
    place: Place, name: str, tmp_path: Path, at: str, more: tuple[str, ...]
) -> None:
    """The app is killed between the checkpoint and the topic, between the topic and the token, between the token and
    the letters, in their transaction, and after it, before a checkpoint notes it. It goes on without a question.
    """
    (tmp_path / "letters_program.py").write_text(PROGRAM)
    topic = place.topic(1)
    letters = f"{topic}.bad"
    words = ["letters_program:app", "--broker", place.url, "--state", str(tmp_path / "state"), *more]
    env = {"NAME": name, "TOPIC": topic, "LETTERS": letters, "PYTHONPATH": str(tmp_path)}
    place.fill(topic, [b'{"n": 1}', b"first", b"second"])
    died = sabot_run(*words, folder=tmp_path, KILL=at, **env)
    assert died.returncode == -9, died.stderr
    assert (letters in admin.topics(place.url)) == (at != "before first 1")
    place.fill(topic, [b"third"])
    with running(tmp_path / "log", *words, folder=tmp_path, **env):
        await eventually(place, letters, 3)
        place.fill(topic, [b"fourth"])
        await eventually(place, letters, 4)
        await eventually(place, f"{topic}-out", 1)  # another sink, whose rows may come later
    assert committed(place.url, letters) == [b"first", b"second", b"third", b"fourth"]
    assert rows_of(place, f"{topic}-out") == [{"n": 1}]
    assert "token" not in (tmp_path / "log").read_text()
