"""Exactly once, shown: each pipeline is killed before and after every step by which it changes the world, and in the middle of what it
writes; what it then has delivered is what it delivers undisturbed.
"""

import asyncio
import json
import sqlite3
import uuid
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import deltalake
import every_step_apps as apps
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest

from sabot.engine.checkpoint import CheckpointStorage
from sabot.engine.operators.reading import state_of
from tools import kafka_eyes
from tools.broker import Broker
from tools.steps import crashes_survived

pytestmark = pytest.mark.slow

# What lives of some of the apps load late, a tenth of a second of the processor each. One list, as another one is another fork server.
PRELOAD = (
    "confluent_kafka.admin",
    "deltalake.writer",
    "pyarrow.acero",
    "sabot.engine.operators.calls.map_async",
    "sabot.engine.operators.functions.process",
    "sabot.engine.operators.patterns.match",
    "sabot.engine.operators.rows.mapped",
    "sabot.engine.runtime.life.refilling",
    "sabot.kafka.admin",
    "sabot.kafka.transactions",
    "sabot.kafka.writer",
)
survived = partial(crashes_survived, preload=PRELOAD)


def prepare(url: str, directory: Path) -> None:
    """Names of its own on the broker, for each run."""
    (directory / "broker").write_text(f"{url} steps-{uuid.uuid4().hex[:12]}")


def committed(url: str, directory: Path, beside: str = "") -> list[str]:
    """What a reader of committed records finds: a plain consumer, no code of ours. beside: which topic, by the end of its name."""
    return sorted(row.decode() for row in kafka_eyes.committed(url, apps.topic_of(directory) + beside))


def on_kafka(kafka: Broker, build: Callable[[Path], Any], found: Callable[..., Any] = committed) -> None:
    kinds = ("begin", "produce", "token", "commit", "manifest", "stage")
    prepared = partial(prepare, kafka.url)
    survived(build, partial(found, kafka.url), *kinds, prepare=prepared)


def test_windows_into_kafka_survive_a_crash_at_every_step(kafka: Broker) -> None:
    on_kafka(kafka, apps.windows_to_kafka)


def test_an_agent_with_an_await_between_its_writes_survives_a_crash_at_every_step(kafka: Broker) -> None:
    on_kafka(kafka, apps.agent_to_kafka)


def both_topics(url: str, directory: Path) -> list[list[str]]:
    """The rows of both topics: those of one account stand in the second one, and in no other."""
    found = [committed(url, directory), committed(url, directory, "-cyd")]
    assert [sorted({json.loads(row)["account"] for row in rows}) for rows in found] == [["ann", "bob"], ["cyd"]]
    return found


def test_an_agent_that_writes_into_two_topics_survives_a_crash_at_every_step(kafka: Broker) -> None:
    on_kafka(kafka, apps.agent_to_topics, both_topics)


def parquet_rows(directory: Path) -> list[str]:
    parts = sorted((directory / "out").glob("part-*.parquet"))
    return sorted(json.dumps(row, default=str) for row in pyarrow.dataset.dataset(parts).to_table().to_pylist())


def test_windows_into_parquet_files_survive_a_crash_at_every_step() -> None:
    crashes = survived(apps.windows_to_parquet, parquet_rows, "manifest", "stage", "rename")
    assert crashes.by_moment["torn"] > 0


def delta_rows(directory: Path) -> list[str]:
    """The rows of the files that the log of the table lists."""
    files = deltalake.DeltaTable(directory / "out").file_uris()
    return sorted(str(row) for file in files for row in pq.read_table(file).to_pylist())


def test_windows_into_a_delta_table_survive_a_crash_at_every_step() -> None:
    survived(apps.windows_to_delta, delta_rows, "manifest", "stage", "create", "claim", "commit", "sync")


def test_an_agent_between_two_streams_survives_a_crash_at_every_step() -> None:
    survived(apps.between_streams, parquet_rows, "manifest", "stage", "state write", "rename")


def test_calls_timers_and_a_pattern_survive_a_crash_at_every_step() -> None:
    survived(apps.calls_to_parquet, parquet_rows, "manifest", "stage", "state write", "rename")


def cities(directory: Path) -> list[Any]:
    """The table, not how it came to be what it is."""
    with sqlite3.connect(directory / "out.db") as database:
        rows = sorted(database.execute("select city, n, total, least from cities").fetchall())
    assert rows == [("Oslo", 4, 18, 0), ("Rome", 4, 22, 1), ("nowhere", 4, 26, 2)]
    return rows


def test_the_changes_of_a_join_into_a_table_survive_a_crash_at_every_step() -> None:
    survived(apps.joined_to_sqlite, cities, "manifest", "stage", "sql")


def totals(directory: Path) -> tuple[list[Any], list[Any]]:
    """The rows, and the state that the agents share."""
    with sqlite3.connect(directory / "out.db") as database:
        rows = sorted(database.execute("select n, sum from totals").fetchall())
    manifest = CheckpointStorage(directory / "state" / "checkpoints").latest()
    assert manifest is not None
    state = state_of(manifest, "shared").to_pylist()
    return rows, sorted((row["key"], row["value"]) for row in state)


def test_two_agents_that_share_state_survive_a_crash_at_every_step() -> None:
    survived(apps.agents_to_sqlite, totals, "manifest", "stage", "sql")


def paid_and_listed(directory: Path) -> list[list[Any]]:
    """The rows of the stream and of the agent: each of the script once."""
    with sqlite3.connect(directory / "out.db") as database:
        found = [
            sorted(number for (number,) in database.execute(f"select amount from {table}"))
            for table in ("paid", "listed")
        ]
    assert found == [[*range(32)]] * 2
    return found


def test_sources_that_know_their_place_by_what_they_remember_survive_a_crash_at_every_step() -> None:
    survived(apps.by_cursor_to_sqlite, paid_and_listed, "manifest", "stage", "sql")


def run_before(directory: Path) -> None:
    """The life of the program before its change."""
    asyncio.run(apps.before_the_change(directory).run())


def windows_in_database(directory: Path) -> list[Any]:
    """The table, which is that of a fresh run of the changed program."""
    with sqlite3.connect(directory / "out.db") as database:
        rows = sorted(database.execute("select account, window_start, n, total from windows").fetchall())
    right: dict[tuple[str, int], list[int]] = {}
    for batch in apps.ROWS[:-1]:
        for row in batch:
            right.setdefault((row["account"], row["ts"] // 10_000), []).append(row["amount"])
    assert [tuple(row[2:]) for row in rows] == [(len(each), sum(each)) for _, each in sorted(right.items())]
    return rows


def test_a_refill_survives_a_crash_at_every_step() -> None:
    survived(apps.refilled, windows_in_database, "manifest", "state write", "sql", prepare=run_before)
