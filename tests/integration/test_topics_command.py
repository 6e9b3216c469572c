"""`sabot topics` on a real Kafka broker."""

import json
from typing import Any

import pytest
from confluent_kafka import Producer

from sabot.kafka.log import TopicLog
from tools.command_line import sabot_says
from tools.fault_tools import Place

pytestmark = pytest.mark.kafka


def test_a_topic_is_made_listed_and_grows_but_never_shrinks(kafka_url: str, topic: str) -> None:
    def says(*words: str) -> tuple[int, str]:
        done = sabot_says("topics", *words, "--broker", kafka_url)
        return done.exit_code, done.stdout + done.stderr

    made = says("create", topic, "--partitions", "2", "--config", "cleanup.policy=compact")
    assert made == (0, f"topic {topic} is made: partitions 2\n")
    assert says("create", topic) == (0, f"topic {topic} exists already: partitions 2\n")
    assert says("create", topic, "--partitions", "3") == (0, f"topic {topic} has grown: partitions 3\n")
    code, text = says("create", topic, "--partitions", "1")
    assert code == 1
    assert "has 3 partitions already" in text
    code, text = says("create", topic, "--config", "retention.ms=1")
    assert code == 1
    assert "keeps its settings" in text
    code, text = says("list", "--json")
    assert code == 0
    assert {"topic": topic, "partitions": 3} in map(json.loads, text.splitlines())
    code, text = says("describe", topic + "-missing")
    assert code == 1
    assert topic + "-missing" in text


def test_tail_has_the_last_records_across_the_markers_of_transactions(kafka_url: str) -> None:
    place = Place(kafka_url)
    topic = place.topic(2)
    producer = Producer(place.settings | {"transactional.id": topic})
    producer.init_transactions()
    for number in range(8):  # each transaction takes an offset more, and every other one is aborted
        producer.begin_transaction()
        producer.produce(topic, f"{number}\x1b", b"k", partition=0, timestamp=1000 + number)
        assert producer.flush(60) == 0
        producer.commit_transaction() if number % 2 else producer.abort_transaction()
    producer.begin_transaction()
    producer.produce(topic, None, b"\xff", partition=1, timestamp=1004, headers=[("a", b"1"), ("a", None), ("", b"")])
    producer.commit_transaction()

    done = sabot_says("topics", "tail", topic, "-n", "3", "--broker", kafka_url)
    assert (done.exit_code, done.stderr) == (0, "")
    lines = [line.split() for line in done.stdout.splitlines()[1:]]
    assert [(line[0], *line[3:]) for line in lines] == [
        ("0:6", "k", b"3\x1b".hex()),
        ("1:0", "ff", "null"),
        ("0:10", "k", b"5\x1b".hex()),
        ("0:14", "k", b"7\x1b".hex()),
    ]
    done = sabot_says("topics", "tail", topic, "-n", "1", "--broker", kafka_url, "--json")
    assert json.loads(done.stdout.splitlines()[0]) == {
        "partition": 1,
        "offset": 0,
        "timestamp": 1004,
        "key": "ff",
        "headers": [["a", "1"], ["a", None], ["", ""]],
        "payload": None,
    }
    done = sabot_says("topics", "describe", topic, "--broker", kafka_url, "--json")
    assert [json.loads(line) for line in done.stdout.splitlines()] == [
        {"partition": 0, "first": 0, "end": 16},
        {"partition": 1, "first": 0, "end": 2},
    ]


@pytest.mark.parametrize(("count", "form"), [("1", ["--json"]), ("0", [])])
def test_tail_follows_a_topic_until_ctrl_c(
    kafka_url: str, monkeypatch: pytest.MonkeyPatch, count: str, form: list[str]
) -> None:
    """Records that come while it waits, in every partition, none twice. The last one presses Ctrl-C."""
    place = Place(kafka_url)
    topic = place.topic(2)
    producer = Producer(place.settings)

    def more(*numbers: int) -> None:
        for number in numbers:
            producer.produce(topic, b"%d" % number, partition=number % 2)
        assert producer.flush(60) == 0

    more(0, 2)
    seen: list[int] = []
    follow = TopicLog.follow

    def followed(self: TopicLog, *given: Any) -> Any:
        more(3)
        for message in follow(self, *given):
            yield message
            if message is None and 4 not in seen:
                more(4)  # it has waited for half a second

    def print_(value: Any) -> None:
        seen.append(int(value["payload"]))
        if seen[-1] == 3:
            more(5)
        if {3, 4, 5} <= set(seen):
            raise KeyboardInterrupt

    monkeypatch.setattr(TopicLog, "follow", followed)

    def row(message: Any) -> list[str]:
        print_({"payload": message.value()})
        return ["one", "row"]

    monkeypatch.setattr("sabot.cli.topics.json_line", print_)
    monkeypatch.setattr("sabot.cli.topics._row_of", row)
    done = sabot_says("topics", "tail", topic, "--follow", "-n", count, "--broker", kafka_url, *form)
    assert done.exit_code == 130
    assert done.stdout.splitlines() == ([] if form else ["one  row"] * (len(seen) - 1))
    assert seen[: int(count)] == [2][: int(count)]
    assert sorted(set(seen[int(count) :])) == [3, 4, 5]


@pytest.mark.parametrize("words", [["list"], ["list", "--broker", "memory://"], ["list", "--broker", "nonsense"]])
def test_without_a_broker_it_says_which_is_wanted(words: list[str]) -> None:
    done = sabot_says("topics", *words)
    assert done.exit_code == 2
    assert "kafka://" in done.stderr
