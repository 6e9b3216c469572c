"""Durable agents that die before, after and in the middle of every step: of the journal, of the checkpoints, of their tools' calls."""

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from recovery import durable_apps as apps

from sabot.testing import crash_at_every_step

pytestmark = pytest.mark.slow


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


def test_reconciled_calls_are_made_once_wherever_the_process_dies() -> None:
    crashes = crash_at_every_step(apps.reconciled, once, workers=2)
    print(crashes)
    assert {"journal", "manifest", "call", "stage"} <= crashes.kinds.keys()
    assert crashes.died >= 2 * crashes.steps * 0.7


def test_unsafe_calls_are_never_made_twice_wherever_the_process_dies() -> None:
    crashes = crash_at_every_step(apps.unsafe, at_most_once, workers=2)
    print(crashes)
    assert {"journal", "manifest", "call", "stage"} <= crashes.kinds.keys()
    assert crashes.died >= 2 * crashes.steps * 0.7
