"""What `sabot dlq` refuses before it asks a broker, and the set of offsets that it keeps."""

import json
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from sabot.cli import commands
from sabot.engine.letters.form import LETTER_SCHEMA
from sabot.engine.letters.places import Ranges


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["list", "orders.dlq"], "no broker is given (give --broker kafka://host:port"),
        (
            ["list", "orders.dlq", "--broker", "memory://"],
            "memory://: the topics of a memory broker end with their process",
        ),
        (["list", "orders.dlq", "--broker", "amqp://x"], "amqp://x"),
        (["list", "orders.dlq", "--broker", "kafka://x:1", "--kafka", "ssl"], "write --kafka NAME=VALUE"),
        (
            ["show", "orders.dlq", "17", "--broker", "kafka://x:1"],
            "'17' is not the place of a dead letter: write PARTITION:OFFSET",
        ),
        (
            ["redrive", "orders.dlq", "--only", "0:x", "--broker", "kafka://x:1"],
            "'0:x' is not the place of a dead letter",
        ),
        (["redrive", "orders.dlq", "--limit", "0", "--broker", "kafka://x:1"], "Invalid value"),
    ],
)
def test_wrong_use_is_told_with_what_to_write(words: list[str], said: str) -> None:
    done = CliRunner().invoke(commands.cli, ["dlq", *words])
    assert done.exit_code == 2
    assert said in done.stderr


def test_the_broker_of_the_app_is_taken(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "dlq_shop.py").write_text("from sabot import App\napp = App('shop', 'memory://shop')\n")
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(commands.cli, ["-A", "dlq_shop:app", "dlq", "list", "orders.dlq"])
    assert done.exit_code == 2
    assert "memory://shop: the topics of a memory broker end with their process" in done.stderr


def test_a_list_says_of_how_many_and_counts_them_by_reason(tmp_path: Path) -> None:
    letters = []
    for number in range(30):
        error, step = ("DataError", "read-1") if number % 3 else ("ValueError", "check")
        facts = {"letter": number, "written": 0, "topic": "orders", "error": error, "step": step, "agent": "read"}
        facts["message"] = f"field n: invalid value '{number}' for int64" if number % 2 else f"{number} is too long"
        letters.append(json.dumps(dict.fromkeys(LETTER_SCHEMA.names) | facts | {"headers": "[]", "payload": "{}"}))
    (tmp_path / "bad.ndjson").write_text("\n".join(letters) + "\n")
    done = CliRunner().invoke(commands.cli, ["dlq", "list", str(tmp_path / "bad.ndjson"), "--limit", "4"])
    assert len(done.stdout.splitlines()) == 5
    assert done.stderr == (
        "4 of 30 dead letters: 10 × ValueError in check; 10 × field n: invalid value … for int… in read-1; "
        "10 × … is too long in read-1\n"
    )
    found = CliRunner().invoke(commands.cli, ["dlq", "list", str(tmp_path / "bad.ndjson"), "--error", "ValueError"])
    assert found.stderr == "10 of 10 dead letters: 10 × ValueError in check\n"


@pytest.mark.parametrize("words", [["list"], ["show", "0:0"]])
def test_what_a_letter_says_cannot_control_the_terminal(tmp_path: Path, words: list[str]) -> None:
    """Who may write to a topic of dead letters chooses every header of theirs."""
    facts = dict.fromkeys(LETTER_SCHEMA.names) | {
        "letter": 1,
        "written": 0,
        "topic": "orders",
        "error": "ValueError",
        "message": "\x1b]0;owned\x07",
        "agent": "a\x1b]0;owned\x07",
        "headers": json.dumps([["\x9b2J", "x"]]),
        "payload": "{}",
    }
    (tmp_path / "bad.ndjson").write_text(json.dumps(facts) + "\n")
    done = CliRunner().invoke(commands.cli, ["dlq", words[0], str(tmp_path / "bad.ndjson"), *words[1:]])
    assert done.exit_code == 0, done.output
    assert all(char.isprintable() or char == "\n" for char in done.output)
    assert "\\x1b]0;owned\\x07" in done.output


def test_the_letters_of_a_job_are_listed(tmp_path: Path) -> None:
    """A job of a durable agent that has failed is a letter with its id; sent back, it is the same job."""
    headers = [[["sabot.job", "shop.handle/x/0/1"]], [["sabot.job", "shop.handle/x/0/17"]], [["a", "b"]]]
    lines = [
        json.dumps(
            dict.fromkeys(LETTER_SCHEMA.names)
            | {"letter": n, "written": 0, "topic": "orders", "headers": json.dumps(each), "payload": str(n)}
        )
        for n, each in enumerate(headers)
    ]
    (tmp_path / "bad.ndjson").write_text("\n".join(lines) + "\n")
    words = ["dlq", "list", str(tmp_path / "bad.ndjson"), "--json", "--job"]
    done = CliRunner().invoke(commands.cli, [*words, "shop.handle/x/0/1"])
    assert [json.loads(line)["payload"] for line in done.stdout.splitlines()] == ["0"], done.stderr
    assert CliRunner().invoke(commands.cli, [*words, "b"]).stdout == ""


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 8)), max_size=12))
def test_ranges_hold_what_a_set_holds(pieces: list[tuple[int, int]]) -> None:
    ranges, oracle = Ranges(), set[int]()
    for first, more in pieces:
        ranges.add(first, first + more)
        oracle.update(range(first, first + more + 1))
    assert {at for at in range(60) if at in ranges} == oracle
    assert [ranges.behind(at) for at in range(60)] == [
        next(x for x in range(at, 99) if x not in oracle) for at in range(60)
    ]
    pairs = list(ranges)
    assert all(first <= last for first, last in pairs)
    assert all(later[0] > earlier[1] + 1 for earlier, later in pairwise(pairs))
