"""Durable agents that die before, after and in the middle of every step: of the journal, of the checkpoints, of their tools' calls."""

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from recovery import durable_apps as apps

from tools.steps import crashes_survived

pytestmark = pytest.mark.slow

# Half a second of the processor of each of their lives otherwise.
PRELOAD = (
    "sabot.agents.durable.batch_operator",
    "sabot.agents.durable.kind",
    "sabot.journal.sqlite",
    "sabot.llm.agent",
)


def charged(directory: Path) -> list[Any]:
    with sqlite3.connect(directory / "out.db") as database:
        return sorted(database.execute("select id, half, n from charged").fetchall())


def once(directory: Path) -> tuple[list[Any], list[str]]:
    """Rows and calls: all of them, and each once."""
    calls = apps.done(directory, "calls.txt")
    assert len(set(calls)) == len(calls) == 3 * apps.ORDERS
    rows = charged(directory)
    assert len(rows) == 2 * apps.ORDERS
    return rows, sorted(calls)


def at_most_once(directory: Path) -> list[Any]:
    """No call twice, and none lost in silence: whatever was not made, or nobody knows of, is in a dead letter."""
    calls = apps.done(directory, "calls.txt")
    assert len(set(calls)) == len(calls), f"made twice: {calls}"
    letters = [json.loads(json.loads(line)["payload"]) for line in apps.done(directory, "bad.ndjson")]
    failed = {letter["id"] for letter in letters if "half" not in letter}
    told = {(letter["id"], letter["half"]) for letter in letters if "half" in letter}
    rows = {(number, half) for number, half, _ in charged(directory)}
    for number in range(apps.ORDERS):
        for half in ("one", "two"):
            lost = (number, half) not in rows | told and number not in failed
            assert not lost, f"{number} {half} is neither done nor told of: {calls} {letters} {rows}"
    for number, half in rows:
        assert f"{number} {half}" in calls
    return list(range(apps.ORDERS))


def paid(directory: Path) -> list[int]:
    with sqlite3.connect(directory / "out.db") as database:
        return sorted(number for (number,) in database.execute("select id from charged").fetchall())


def rows_of(calls: list[str], word: str) -> list[int]:
    """The rows for which this call was made."""
    lines = [line.removeprefix(word) for line in calls if line.startswith(word)]
    return sorted(int(number) for line in lines for number in line.split(","))


def each_row_once(directory: Path) -> list[int]:
    """Each row is in one batch, and both calls of that are made once: the second one for the same rows as the first one."""
    calls = apps.done(directory, "calls.txt")
    assert len(set(calls)) == len(calls), f"made twice: {calls}"
    begun, paid_for = ({line for line in calls if line.startswith(word)} for word in ("begins ", "pays "))
    assert {line.removeprefix("begins ") for line in begun} == {line.removeprefix("pays ") for line in paid_for}
    assert rows_of(calls, "pays ") == list(range(apps.ORDERS)), calls
    return paid(directory)


def each_row_at_most_once(directory: Path) -> list[int]:
    """No row is in two calls, and each is paid or a dead letter."""
    calls = apps.done(directory, "calls.txt")
    for word in ("begins ", "pays "):
        rows = rows_of(calls, word)
        assert len(set(rows)) == len(rows), f"made twice: {calls}"
    letters = [json.loads(json.loads(line)["payload"])["id"] for line in apps.done(directory, "bad.ndjson")]
    assert sorted({*letters, *paid(directory)}) == list(range(apps.ORDERS)), f"lost: {calls} {letters}"
    assert not {*letters} & {*paid(directory)}, f"paid, and given up: {calls} {letters}"
    return list(range(apps.ORDERS))


@pytest.mark.parametrize(
    ("app", "check"), [(apps.reconciled_batches, each_row_once), (apps.unsafe_batches, each_row_at_most_once)]
)
def test_a_batch_is_the_same_batch_after_a_crash_wherever_the_process_dies(app: Any, check: Any) -> None:
    crashes_survived(app, check, "journal", "manifest", "call", "stage", share=0.7, preload=PRELOAD)


def test_reconciled_calls_are_made_once_wherever_the_process_dies() -> None:
    crashes_survived(apps.reconciled, once, "journal", "manifest", "call", "stage", share=0.7, preload=PRELOAD)


def test_unsafe_calls_are_never_made_twice_wherever_the_process_dies() -> None:
    crashes_survived(apps.unsafe, at_most_once, "journal", "manifest", "call", "stage", share=0.7, preload=PRELOAD)
