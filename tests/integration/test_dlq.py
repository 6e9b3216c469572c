"""Dead letters in real Kafka topics: looked at, and sent back exactly once, also by a redrive that is killed in the middle."""

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from confluent_kafka import KafkaException, Producer
from typer.testing import CliRunner

import sabot.engine.letters.redrive as selecting
import sabot.engine.letters.topics as redriving
from sabot import App, NdjsonSink, SqlSink, steps
from sabot._cython.arrow.batch import Batch
from sabot.cli import commands
from sabot.codecs.records import Headers, build_records
from sabot.connectors.base import Sink
from sabot.engine.letters.form import letter_headers
from sabot.engine.letters.topics import DeadLetters
from sabot.errors import AppLocked
from sabot.kafka import admin, client
from tools.kafka_eyes import messages

pytestmark = pytest.mark.kafka
ROOT = Path(__file__).parents[2]
STAMP = 1_700_000_000_000


def facts(topic: str, number: int, **other: Any) -> Headers:
    kind = type("ValueError" if number % 2 else "KeyError", (Exception,), {})
    return letter_headers(
        kind(f"no account {number}"),
        topic=topic,
        partition=number % 3,
        offset=100 + number,
        timestamp=STAMP + number,
        agent="shop.check",
        attempts=1,
        version="v7",
        **other,
    )


def with_letters(url: str, topic: str, count: int, partitions: int = 2, headers: Headers = (("a", b"1"),)) -> None:
    """`count` dead letters of records of `topic`, in `<topic>.dlq`; letter n stands at n % partitions : n // partitions."""
    admin.create_topic(url, topic, 3)
    admin.create_topic(url, f"{topic}.dlq", partitions)
    write(url, f"{topic}.dlq", [(b"%d" % n, (*headers, *facts(topic, n)), n % partitions) for n in range(count)])


def write(url: str, topic: str, rows: list[tuple[bytes, Headers, int]]) -> None:
    producer = Producer({"bootstrap.servers": url.removeprefix("kafka://")})
    for payload, headers, partition in rows:
        producer.produce(topic, payload, b"k" + payload, headers=list(headers), partition=partition)
    producer.flush()


def payloads(url: str, topic: str, least: int) -> list[int]:
    return sorted(int(message.value()) for message in messages(url, topic, least=least))


def sabot(url: str, *words: str) -> Any:
    return CliRunner().invoke(commands.cli, [*words, "--broker", url], catch_exceptions=False)


def redriven(url: str, *words: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(sabot(url, "dlq", "redrive", *words, "--json").stdout)
    return found


# --- looking at them


async def test_the_letters_of_an_agent_are_listed_with_all_that_is_known_of_them(kafka_url: str, topic: str) -> None:
    admin.create_topic(kafka_url, topic, 1)
    app = App(f"shop-{topic}", kafka_url, version="v7")

    @app.agent(topic, on_error="skip", name="check")
    async def check(ctx: Any) -> None:
        app.request_stop()
        raise ValueError(f"no account {ctx.message['n']}")

    began = int(time.time() * 1000)
    await app.send(topic, {"n": 7}, key="seven", headers=(("a", b"1"),), timestamp=STAMP)
    await app.run()
    done = await asyncio.to_thread(sabot, kafka_url, "dlq", "list", f"{topic}.dlq", "--json")
    (letter,) = map(json.loads, done.stdout.splitlines())
    assert letter.pop("written") >= began
    assert 'raise ValueError(f"no account' in letter.pop("traceback")
    assert letter == {
        "letter": f"{letter['letter'].partition(':')[0]}:0",
        "redriven": False,
        "topic": topic,
        "partition": 0,
        "offset": 0,
        "timestamp": STAMP,
        "agent": f"shop-{topic}.check",
        "error": "ValueError",
        "message": "no account 7",
        "attempts": 1,
        "version": "v7",
        "key": "seven",
        "headers": [["a", "1"]],
        "payload": '{"n":7}',
    }


def test_a_list_begins_with_the_oldest_and_can_be_cut_and_searched(kafka_url: str, topic: str) -> None:
    with_letters(kafka_url, topic, 60)
    lines = sabot(kafka_url, "dlq", "list", f"{topic}.dlq", "--limit", "3").stdout.splitlines()
    assert lines[0].split() == ["letter", "written", "record", "agent", "version", "error", "payload"]
    assert [line.split()[0] for line in lines[1:]] == ["0:0", "0:1", "0:2"]
    assert f"{topic}[2]@102  shop.check  v7       KeyError: no account 2" in lines[2]
    found = sabot(kafka_url, "dlq", "list", f"{topic}.dlq", "--error", "account 17", "--json").stdout
    assert [json.loads(line)["letter"] for line in found.splitlines()] == ["1:8"]


def test_a_letter_is_shown_whole_as_text_or_as_hexadecimal_digits(kafka_url: str, topic: str) -> None:
    with_letters(kafka_url, topic, 0)
    write(kafka_url, f"{topic}.dlq", [(b'{"long": 1}', (("trace", b"\xff\x01"), *facts(topic, 4)), 0)])
    write(kafka_url, f"{topic}.dlq", [(b"\x00\xfe", facts(topic, 5), 0)])
    shown = sabot(kafka_url, "dlq", "show", f"{topic}.dlq", "0:0").stdout
    for line in ("message    no account 4", "agent      shop.check", "version    v7", "header     trace: ff01"):
        assert f"{line}\n" in shown
    assert "timestamp  2023-11-14 22:13:20.004Z\n" in shown
    assert shown.endswith('payload\n{"long": 1}\n')
    assert sabot(kafka_url, "dlq", "show", f"{topic}.dlq", "0:1").stdout.endswith("payload\n00fe\n")
    missing = sabot(kafka_url, "dlq", "show", f"{topic}.dlq", "1:9")
    assert (missing.exit_code, "has no dead letter at 1:9 (it holds 0:0 to 0:1)" in missing.stderr) == (1, True)


def test_a_topic_that_is_not_there_is_named(kafka_url: str, topic: str) -> None:
    done = sabot(kafka_url, "dlq", "list", topic)
    assert (done.exit_code, f"topic '{topic}' does not exist" in done.stderr) == (1, True)
    assert "it is made with the first dead letter" in done.stderr


def test_letters_are_read_from_the_newest_on(kafka_url: str, topic: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sabot.engine.letters.places._BLOCK_LETTERS", 2)
    admin.create_topic(kafka_url, f"{topic}.dlq", 3)
    rows = []
    for n in range(20):
        written = ("sabot.written", b"%d" % n)
        rows.append((b"%d" % n, (*(each for each in facts(topic, n) if each[0] != written[0]), written), n % 3))
    write(kafka_url, f"{topic}.dlq", rows)
    with closing(DeadLetters(f"{topic}.dlq", kafka_url)) as dead:
        assert [int(letter.payload or b"") for _, letter in dead.newest()] == list(reversed(range(20)))


# --- sending them back


def test_a_letter_goes_back_as_the_record_that_it_was(kafka_url: str, topic: str) -> None:
    with_letters(kafka_url, topic, 1, headers=(("a", b"1"), ("sabot.x", b"own"), ("a", b"2")))
    assert redriven(kafka_url, f"{topic}.dlq") == {"redriven": 1, "already": 0, "topics": {topic: 1}, "left": {}}
    (record,) = messages(kafka_url, topic, least=1)
    assert (record.key(), record.value(), record.partition()) == (b"k0", b"0", 0)
    sent_back = ("sabot.letter", f"{topic}.dlq 0:0".encode())
    assert record.headers() == [
        sent_back,
        ("sabot.letter.attempts", b"1"),
        ("a", b"1"),
        ("sabot.x", b"own"),
        ("a", b"2"),
    ]
    assert record.timestamp()[1] == STAMP


def test_a_letter_about_a_letter_keeps_what_the_first_one_said(kafka_url: str, topic: str) -> None:
    with_letters(kafka_url, topic, 0)
    admin.create_topic(kafka_url, f"{topic}.dlq.dlq", 1)
    first = facts(topic, 1)
    write(kafka_url, f"{topic}.dlq.dlq", [(b"1", (*first, *facts(f"{topic}.dlq", 2)), 0)])
    assert redriven(kafka_url, f"{topic}.dlq.dlq")["topics"] == {f"{topic}.dlq": 1}
    back = messages(kafka_url, f"{topic}.dlq")[0].headers()
    assert back == [("sabot.letter", f"{topic}.dlq.dlq 0:0".encode()), ("sabot.letter.attempts", b"1"), *first]
    (listed,) = map(json.loads, sabot(kafka_url, "dlq", "list", f"{topic}.dlq", "--json").stdout.splitlines())
    assert (listed["letter"], listed["offset"]) == ("1:0", 101), "the header is none of the facts of the first letter"


@pytest.mark.slow  # half a second of a core
def test_a_second_redrive_goes_on_behind_the_first_and_selections_leave_the_others_waiting(
    kafka_url: str, topic: str
) -> None:
    with_letters(kafka_url, topic, 20)
    dlq = f"{topic}.dlq"
    assert redriven(kafka_url, dlq, "--only", "1:3", "--only", "0:9", "--only", "1:3")["redriven"] == 2
    assert redriven(kafka_url, dlq, "--only", "1:3", "--only", "0:8")["already"] == 1
    assert payloads(kafka_url, topic, 3) == [7, 16, 18]
    assert redriven(kafka_url, dlq, "--error", "KeyError", "--limit", "4")["redriven"] == 4
    assert payloads(kafka_url, topic, 7) == [0, 2, 4, 6, 7, 16, 18]
    listed = sabot(kafka_url, "dlq", "list", dlq, "--all", "--json").stdout.splitlines()
    assert sum(json.loads(line)["redriven"] for line in listed) == 7
    assert len(sabot(kafka_url, "dlq", "list", dlq, "--json").stdout.splitlines()) == 13
    write(kafka_url, dlq, [(b"20", facts(topic, 20), 0)])
    assert redriven(kafka_url, dlq)["redriven"] == 14
    assert redriven(kafka_url, dlq)["redriven"] == 0
    assert payloads(kafka_url, topic, 21) == list(range(21))


def test_the_letter_of_a_job_is_sent_back_by_the_jobs_id(kafka_url: str, topic: str) -> None:
    admin.create_topic(kafka_url, topic, 3)
    rows = [(b"%d" % n, (("sabot.job", b"shop.handle/x/0/%d" % n), *facts(topic, n)), 0) for n in range(20)]
    admin.create_topic(kafka_url, f"{topic}.dlq", 1)
    write(kafka_url, f"{topic}.dlq", rows)
    redrive = ["redrive", f"{topic}.dlq", "--broker", kafka_url, "--job"]
    done = CliRunner().invoke(commands.cli, ["dlq", *redrive, "shop.handle/x/0/1"])
    assert done.exit_code == 0, done.stderr
    assert done.stdout.startswith("1 dead letter is redriven")
    (record,) = messages(kafka_url, topic, least=1)
    assert (record.value(), dict(record.headers())) == (
        b"1",
        {"sabot.job": b"shop.handle/x/0/1", "sabot.letter": f"{topic}.dlq 0:1".encode(), "sabot.letter.attempts": b"1"},
    )
    again = CliRunner().invoke(commands.cli, ["dlq", *redrive, "shop.handle/x/0/1"])
    assert "0 dead letters are redriven; 1 were redriven before" in again.stdout
    nobody = CliRunner().invoke(commands.cli, ["dlq", *redrive, "shop.handle/x/0/99"])
    assert (nobody.exit_code, "no dead letter here is of job" in nobody.stderr) == (1, True)


def test_a_job_is_tried_again_by_its_name(
    kafka_url: str, topic: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The app says where the dead letters of its agent are."""
    admin.create_topic(kafka_url, topic, 3)
    admin.create_topic(kafka_url, f"{topic}.dlq", 1)
    rows = [(b"%d" % n, (("sabot.job", b"shop.handle/x/0/%d" % n), *facts(topic, n)), 0) for n in range(3)]
    write(kafka_url, f"{topic}.dlq", rows)
    module = f"m{topic.replace('-', '_')}"
    (tmp_path / f"{module}.py").write_text(
        f"import sabot\napp = sabot.App('shop', {kafka_url!r})\n"
        f"@app.agent({topic!r}, name='handle', durable=True)\nasync def handle(ctx): ...\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    asks = ["-A", f"{module}:app", "jobs", "retry"]
    done = CliRunner().invoke(commands.cli, [*asks, "shop.handle/x/0/2"])
    assert (done.exit_code, done.stdout) == (0, f"1 dead letter is redriven: 1 to {topic}\n"), done.stderr
    assert [record.value() for record in messages(kafka_url, topic, least=1)] == [b"2"]
    for job, words in {
        "shop.handle/x/0/99": "no dead letter here is of job",
        "shop.other/x/0/1": "has no agent of job",
    }.items():
        nobody = CliRunner().invoke(commands.cli, [*asks, job])
        assert (nobody.exit_code != 0, words in nobody.stderr) == (True, True)
    nowhere = CliRunner().invoke(commands.cli, ["jobs", "retry", "shop.handle/x/0/1"])
    assert "--letters" in nowhere.stderr


def test_letters_can_go_elsewhere_and_count_as_redriven(kafka_url: str, topic: str) -> None:
    with_letters(kafka_url, topic, 4)
    admin.create_topic(kafka_url, f"{topic}.again", 1)
    done = sabot(kafka_url, "dlq", "redrive", f"{topic}.dlq", "--to", f"{topic}.again")
    assert done.stdout == f"4 dead letters are redriven: 4 to {topic}.again\n"
    assert payloads(kafka_url, f"{topic}.again", 4) == [0, 1, 2, 3]
    assert redriven(kafka_url, f"{topic}.dlq")["redriven"] == 0


def test_what_nobody_takes_back_stays_and_the_others_go(kafka_url: str, topic: str) -> None:
    """A record of somebody else's, and one of a topic that is gone: neither may block those behind it."""
    with_letters(kafka_url, topic, 2)
    rows: list[tuple[bytes, Headers, int]] = [
        (b"2", (("a", b"1"),), 0),
        (b"3", facts(f"{topic}.gone", 3), 0),
        (b"5", (("sabot.topic", topic.encode()), ("sabot.partition", b"far"), ("sabot.timestamp", b"late")), 0),
    ]
    write(kafka_url, f"{topic}.dlq", rows)
    assert "partition  null\n" in sabot(kafka_url, "dlq", "show", f"{topic}.dlq", "0:3").stdout
    done = sabot(kafka_url, "dlq", "redrive", f"{topic}.dlq")
    assert (done.exit_code, done.stdout) == (1, f"3 dead letters are redriven: 3 to {topic}\n")
    assert "1 dead letter is not redriven: no dead letters of sabot" in done.stderr
    assert f"there is no topic '{topic}.gone'" in done.stderr
    assert payloads(kafka_url, topic, 3) == [0, 1, 5]
    left = sabot(kafka_url, "dlq", "list", f"{topic}.dlq", "--json").stdout.splitlines()
    assert [json.loads(line)["letter"] for line in left] == ["0:1", "0:2"]
    again = sabot(kafka_url, "dlq", "redrive", f"{topic}.dlq", "--to", topic)
    assert (again.exit_code, again.stdout) == (0, f"2 dead letters are redriven: 2 to {topic}\n")


def test_a_letter_that_its_topic_refuses_is_named_and_can_be_left_out(kafka_url: str, topic: str) -> None:
    """The topic takes 1,000 bytes at a time: small letters go one by one, a large one not at all."""
    admin.create_topic(kafka_url, topic, 3, config={"max.message.bytes": "1000"})
    with_letters(kafka_url, topic, 6)
    write(kafka_url, f"{topic}.dlq", [(random.Random(4).randbytes(3000), facts(topic, 4), 0)])
    write(kafka_url, f"{topic}.dlq", [(random.Random(n).randbytes(300), facts(topic, 4), 1) for n in range(5)])
    done = sabot(kafka_url, "dlq", "redrive", f"{topic}.dlq")
    assert (done.exit_code, done.stdout) == (1, "")
    assert f"dead letter 0:3 of '{topic}.dlq' is refused" in done.stderr
    assert "--skip 0:3" in done.stderr
    assert messages(kafka_url, topic) == []
    assert redriven(kafka_url, f"{topic}.dlq", "--skip", "0:3")["redriven"] == 11
    assert len(messages(kafka_url, topic, least=11)) == 11
    (left,) = sabot(kafka_url, "dlq", "list", f"{topic}.dlq", "--json").stdout.splitlines()
    assert json.loads(left)["letter"] == "0:3"


def test_a_record_that_the_broker_would_delete_at_once_stays_unless_it_gets_the_time_of_now(
    kafka_url: str, topic: str
) -> None:
    """Retention goes by the timestamp: what is older than it may be gone before anybody has read it."""
    admin.create_topic(kafka_url, topic, 3, config={"retention.ms": "60000", "cleanup.policy": "delete"})
    with_letters(kafka_url, topic, 2)
    done = sabot(kafka_url, "dlq", "redrive", f"{topic}.dlq")
    assert (done.exit_code, "older than the retention of topic" in done.stderr) == (1, True)
    assert redriven(kafka_url, f"{topic}.dlq", "--now")["redriven"] == 2
    assert min(record.timestamp()[1] for record in messages(kafka_url, topic, least=2)) > STAMP + 1000


def test_letters_of_a_topic_that_was_made_anew_are_not_taken_for_redriven_ones(kafka_url: str, topic: str) -> None:
    with_letters(kafka_url, topic, 4)
    assert redriven(kafka_url, f"{topic}.dlq")["redriven"] == 4
    admin.delete_topic(kafka_url, f"{topic}.dlq")
    while admin.partitions(kafka_url, f"{topic}.dlq"):
        pass
    with_letters(kafka_url, topic, 2)
    assert redriven(kafka_url, f"{topic}.dlq")["redriven"] == 2
    assert payloads(kafka_url, topic, 6) == [0, 0, 1, 1, 2, 3]


def test_letters_of_transactions_are_read_as_far_as_they_are_committed(kafka_url: str, topic: str) -> None:
    """Aborted ones are not there, and one that hangs open does not make the command wait."""
    with_letters(kafka_url, topic, 0, partitions=1)
    settings = {"bootstrap.servers": kafka_url.removeprefix("kafka://"), "transactional.id": topic}
    producer = Producer(settings)
    producer.init_transactions(60)
    for number, end in enumerate(
        [producer.commit_transaction, producer.abort_transaction, producer.commit_transaction]
    ):
        producer.begin_transaction()
        producer.produce(f"{topic}.dlq", b"%d" % number, headers=list(facts(topic, number)))
        producer.flush()
        end(60)
    producer.begin_transaction()
    producer.produce(f"{topic}.dlq", b"3", headers=list(facts(topic, 3)))
    producer.flush()
    assert redriven(kafka_url, f"{topic}.dlq")["redriven"] == 2
    producer.commit_transaction(60)
    assert redriven(kafka_url, f"{topic}.dlq")["redriven"] == 1
    assert payloads(kafka_url, topic, 3) == [0, 2, 3]
    dead = DeadLetters(f"{topic}.dlq", kafka_url)
    dead.read_notes()
    assert dead.begin(0) == 7  # behind the last letter and all markers before it
    dead.close()


# --- letters that lie elsewhere


def letter_rows(topic: str, numbers: Iterable[int]) -> pa.RecordBatch:
    """Dead letters of records of `topic`, as files and tables have them."""
    made = [(b"%d" % n, b"k%d" % n, (("a", b"1"), *facts(topic, n))) for n in numbers]
    data, keys, headers = zip(*made, strict=True)
    return build_records(data, keys, [STAMP] * len(made), 0, [0] * len(made), headers)


@pytest.mark.one_in(2, "a tenth of a second of a core each")
@pytest.mark.parametrize("place", ["file", "table"])
def test_letters_of_a_file_or_a_table_go_back_once(place: str, kafka_url: str, topic: str, tmp_path: Path) -> None:
    admin.create_topic(kafka_url, topic, 3)
    sink: Sink = NdjsonSink(tmp_path / "bad.ndjson")
    words = [f"{tmp_path}/bad.ndjson"]
    if place == "table":
        sink, words = SqlSink(f"sqlite:{tmp_path}/bad.db", table="bad"), [f"sqlite:{tmp_path}/bad.db", "--table", "bad"]
    sink.open()
    sink.write(Batch(letter_rows(topic, range(5))))
    sink.flush()
    first = json.loads(sabot(kafka_url, "dlq", "list", *words, "--json", "--limit", "1").stdout)["letter"]
    assert redriven(kafka_url, *words, "--only", first)["redriven"] == 1
    assert redriven(kafka_url, *words)["redriven"] == 4
    assert redriven(kafka_url, *words)["redriven"] == 0
    sink.write(Batch(letter_rows(topic, range(5, 8))))
    sink.finish()
    sink.close()
    waiting = sabot(kafka_url, "dlq", "list", *words, "--json").stdout.splitlines()
    assert [json.loads(line)["payload"] for line in waiting] == ["5", "6", "7"]
    everything = sabot(kafka_url, "dlq", "list", *words, "--all", "--json").stdout.splitlines()
    assert sum(json.loads(line)["redriven"] for line in everything) == 5
    assert redriven(kafka_url, *words)["redriven"] == 3
    back = sorted(messages(kafka_url, topic, least=8), key=lambda message: int(message.value()))
    assert [(each.value(), each.key(), each.headers()[2:], each.partition()) for each in back] == [
        (b"%d" % n, b"k%d" % n, [("a", b"1")], n % 3) for n in range(8)
    ]
    assert back[0].headers()[0] == ("sabot.letter", f"{'bad' if place == 'table' else 'bad.ndjson'} {first}".encode())
    assert [each.timestamp()[1] for each in back] == [STAMP + n for n in range(8)]


def test_rows_of_a_step_are_sent_where_one_says(kafka_url: str, topic: str) -> None:
    admin.create_topic(kafka_url, f"{topic}.dlq", 1)
    write(kafka_url, f"{topic}.dlq", [(b"1", facts(topic, 1, step="shop/map_async-1"), 0)])
    done = sabot(kafka_url, "dlq", "redrive", f"{topic}.dlq")
    assert done.exit_code == 1
    assert "1 dead letter is not redriven: they are rows of a step" in done.stderr
    admin.create_topic(kafka_url, topic, 1)
    assert redriven(kafka_url, f"{topic}.dlq", "--to", topic)["redriven"] == 1
    assert payloads(kafka_url, topic, 1) == [1]


# --- two at once, and none to its end


class Watching:
    """Calls `act` before the nth step of this name, once."""

    def __init__(self, name: str, nth: int, act: Any) -> None:
        self.left, self.name, self.act = nth, name, act

    def before(self, name: str, what: str) -> None:
        self.left -= name == self.name
        if self.left == 0 and name == self.name:
            self.act()

    def after(self, name: str, what: str) -> None: ...

    def torn(self, name: str, what: str, size: int) -> int:
        return size


@pytest.fixture
def small_transactions(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(selecting, "_LETTERS", 3)
    yield
    steps.watch(None)


@pytest.mark.one_in(3, "a tenth of a second of a core each")
@pytest.mark.usefixtures("small_transactions")
@pytest.mark.parametrize(("name", "nth"), [("begin", 1), ("produce", 5), ("commit", 2)])
def test_a_second_redrive_takes_over_and_the_first_ends_and_each_letter_goes_once(
    kafka_url: str, topic: str, name: str, nth: int
) -> None:
    with_letters(kafka_url, topic, 10)
    taken_over: list[int] = []

    def other() -> None:
        steps.watch(None)
        taken_over.append(redriven(kafka_url, f"{topic}.dlq")["redriven"])

    steps.watch(Watching(name, nth, other))
    dead = DeadLetters(f"{topic}.dlq", kafka_url)
    with pytest.raises(AppLocked, match="another redrive"):
        redriving.redrive(dead)
    dead.close()
    assert taken_over == [10 if nth == 1 else 7]
    assert payloads(kafka_url, topic, 10) == list(range(10))


@pytest.mark.usefixtures("small_transactions")
@pytest.mark.parametrize(("name", "nth"), [("produce", 5), ("token", 3)])
def test_a_redrive_whose_client_knows_already_that_it_is_fenced_says_so(
    kafka_url: str, topic: str, monkeypatch: pytest.MonkeyPatch, name: str, nth: int
) -> None:
    """The client learns it in a thread of its own; `produce` then raises no more than "Local: Fatal error". Seen once."""
    with_letters(kafka_url, topic, 10)
    producers: list[Any] = []

    def producer_of(*about: Any, **settings: Any) -> Any:
        producers.append(client.producer_of(*about, **settings))
        return producers[-1]

    def other() -> None:
        steps.watch(None)
        redriven(kafka_url, f"{topic}.dlq")
        producers[0].produce(topic, b"of the transaction that is aborted", partition=1)
        with suppress(KafkaException, SystemError):
            producers[0].flush(60)

    monkeypatch.setattr("sabot.kafka.redrive.producer_of", producer_of)
    steps.watch(Watching(name, nth, other))
    dead = DeadLetters(f"{topic}.dlq", kafka_url)
    with pytest.raises(AppLocked, match="another redrive"):
        redriving.redrive(dead)
    dead.close()
    assert payloads(kafka_url, topic, 10) == list(range(10))


KILLED = """
import os, signal, sys, threading
import sabot.engine.letters.redrive as selecting
import sabot.engine.letters.topics as redriving
from sabot import steps
from sabot.engine.letters.topics import DeadLetters

url, topic, wanted, delay = sys.argv[1:]

class Killer:
    def at(self, *where):
        seen.append(where)
        if f"{where[0]} {where[1]} {seen.count(where)}" == wanted:
            if float(delay):
                threading.Timer(float(delay), os.kill, [os.getpid(), signal.SIGKILL]).start()
            else:
                os.kill(os.getpid(), signal.SIGKILL)
    def before(self, name, what):
        self.at("before", name)
    def after(self, name, what):
        self.at("after", name)
    def torn(self, name, what, size):
        return size

seen = []
selecting._LETTERS = 3
steps.watch(Killer())
redriving.redrive(DeadLetters(topic, url))
print("not killed")
"""
MOMENTS = [
    *(("after claim 1", 0.0), ("after produce 5", 0.0), ("after token 2", 0.0), ("before commit 3", 0.0)),
    *(("after commit 2", 0.0), ("before commit 2", 0.004)),
]


@pytest.mark.slow
def test_a_redrive_that_is_killed_in_the_middle_loses_nothing_and_its_successor_repeats_nothing(
    kafka_url: str, topic: str
) -> None:
    topics = [f"{topic}-{number}" for number in range(len(MOMENTS))]
    for name in topics:
        with_letters(kafka_url, name, 12)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    pairs = list(zip(topics, MOMENTS, strict=True))
    for some in (pairs[:3], pairs[3:]):
        children = [
            subprocess.Popen(
                [sys.executable, "-c", KILLED, kafka_url, f"{name}.dlq", moment, str(delay)], env=environment
            )
            for name, (moment, delay) in some
        ]
        for child, (_, (moment, delay)) in zip(children, some, strict=True):
            code = child.wait(60)
            assert code == -signal.SIGKILL or (delay and code == 0), moment
    went = [redriven(kafka_url, f"{name}.dlq")["redriven"] for name in topics]
    assert went[:5] == [12, 9, 9, 6, 6]
    assert went[5] in (0, 3, 6, 9)
    for name in topics:
        assert payloads(kafka_url, name, 12) == list(range(12)), name
    assert redriven(kafka_url, f"{topics[0]}.dlq")["redriven"] == 0


# --- the page


@pytest.mark.slow  # half a second of a core
def test_the_commands_of_the_page_on_operations_do_what_it_says(
    kafka_url: str, topic: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "operations.md").read_text()
    commands_of_page = [line for line in page.splitlines() if line.startswith("sabot dlq ")]
    with_letters(kafka_url, topic, 8, partitions=1)
    written: list[Sink] = [NdjsonSink("bad.ndjson"), SqlSink("sqlite:shop.db", table="bad")]
    for sink in written:
        sink.open()
        sink.write(Batch(letter_rows(topic, [8])))
        sink.finish()
        sink.close()
    printed = []
    for line in commands_of_page:
        words = line.replace("kafka://localhost:19092", kafka_url).replace("orders", topic).split()[1:]
        done = CliRunner().invoke(commands.cli, words, catch_exceptions=False)
        assert done.exit_code == 0, (line, done.stderr)
        printed.append(done.stdout)
    assert [len(text.splitlines()) for text in printed[:2]] == [9, 4]
    assert [len(text.splitlines()) for text in printed[3:5]] == [2, 2]
    assert [text.split()[0] for text in printed[5:]] == ["2", "1", "4", "1", "1"]
    assert payloads(kafka_url, topic, 9) == list(range(9))


APP_WITH_STEPS = """
import sabot
app = sabot.App("shop", {url!r})
orders = app.stream({topic!r}, schema={{"k": "string", "ts": "int64"}}, time="ts")
orders.key_by("k").window(sabot.tumbling("1m"){late}).aggregate(n=sabot.count()).to("out")
"""


@pytest.mark.parametrize("late", ["", ', late="{topic}.dlq"'])
def test_a_redrive_says_before_it_which_steps_drop_records_that_are_late_again(
    kafka_url: str, topic: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, late: str
) -> None:
    with_letters(kafka_url, topic, 1)
    name = f"shop_{topic.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(APP_WITH_STEPS.format(url=kafka_url, topic=topic, late=late))
    monkeypatch.syspath_prepend(tmp_path)
    done = CliRunner().invoke(commands.cli, ["-A", f"{name}:app", "dlq", "redrive", f"{topic}.dlq"])
    assert done.exit_code == 0, done.stderr
    assert ("by k: n = count() drops late records" in done.stderr) == (not late), done.stderr
    assert f"1 dead letter is redriven: 1 to {topic}" in done.stdout


TIMED_APP = """
import sabot
app = sabot.App("shop", {url!r}, checkpoint_dir={folder!r}, state="memory")
orders = app.stream({topic!r}, schema={{"k": "string", "ts": "int64"}}, time="ts", until="now")
late = orders.key_by("k").window(sabot.tumbling("1m"), allowed_lateness="1m")
late.aggregate(n=sabot.count()).to({topic!r} + ".counts")
"""
MINUTE = 60_000


@pytest.fixture
def timed(kafka_url: str, topic: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An app whose windows are at minute 100, and five dead letters of its topic: of minutes 10, 97, 99 and 101, and one without a
    time.
    """
    rows = [100 * MINUTE, 10 * MINUTE, 97 * MINUTE, 99 * MINUTE, 101 * MINUTE]
    payloads = [json.dumps({"k": "x", "ts": ts}).encode() for ts in rows]
    for name in (topic, f"{topic}.dlq", f"{topic}.counts"):
        admin.create_topic(kafka_url, name, 1)
    write(kafka_url, topic, [(payloads[0], (), 0)])
    letters = [(payload, facts(topic, 3 * n), 0) for n, payload in enumerate([*payloads[1:], b'{"k": "x"}'])]
    write(kafka_url, f"{topic}.dlq", letters)
    name = f"timed_{topic.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(
        TIMED_APP.format(url=kafka_url, topic=topic, folder=str(tmp_path / "checkpoints"))
    )
    monkeypatch.syspath_prepend(tmp_path)
    ran = CliRunner().invoke(commands.cli, ["run", f"{name}:app"])
    assert ran.exit_code == 0, ran.output
    return f"{name}:app"


@pytest.mark.slow  # half a second of a core
def test_a_redrive_says_before_it_how_many_records_would_be_late_for_which_step_and_by_how_much(
    kafka_url: str, topic: str, timed: str
) -> None:
    done = CliRunner().invoke(commands.cli, ["-A", timed, "dlq", "redrive", f"{topic}.dlq"])
    assert done.exit_code == 0, done.stderr
    (said,) = [line for line in done.stderr.splitlines() if "too late" in line]
    assert said.startswith("2 of 5 dead letters are too late for tumbling window (1 min) by k: n = count()"), said
    assert "by up to 1 h 28 min: it drops them; --late TOPIC sends them" in said
    assert "an allowed_lateness= greater by 1 h 28 min takes them" in said
    assert f"5 dead letters are redriven: 5 to {topic}" in done.stdout


@pytest.mark.slow  # half a second of a core
def test_a_redrive_sends_records_that_would_be_late_to_a_topic_of_their_own(
    kafka_url: str, topic: str, timed: str
) -> None:
    admin.create_topic(kafka_url, f"{topic}.late", 1)
    words = ["-A", timed, "dlq", "redrive", f"{topic}.dlq", "--late", f"{topic}.late"]
    done = CliRunner().invoke(commands.cli, [*words, "--limit", "4"])
    assert f"4 dead letters are redriven: 2 to {topic}.late, 2 to {topic}" in done.stdout, done.output
    late = [json.loads(each.value())["ts"] // MINUTE for each in messages(kafka_url, f"{topic}.late", least=2)]
    assert late == [10, 97]
    rest = CliRunner().invoke(commands.cli, words)
    assert f"1 dead letter is redriven: 1 to {topic}" in rest.stdout, rest.output
    assert "none of 1 dead letter is late" in rest.stderr


def test_a_redrive_of_late_records_needs_to_know_the_app(kafka_url: str, topic: str) -> None:
    with_letters(kafka_url, topic, 1)
    done = sabot(kafka_url, "dlq", "redrive", f"{topic}.dlq", "--late", f"{topic}.late")
    assert done.exit_code == 2
    assert "late records are those of an app" in done.stderr


def test_a_redrive_without_the_app_says_what_becomes_of_late_records(kafka_url: str, topic: str) -> None:
    with_letters(kafka_url, topic, 1)
    assert "records keep their event time" in sabot(kafka_url, "dlq", "redrive", f"{topic}.dlq").stderr
