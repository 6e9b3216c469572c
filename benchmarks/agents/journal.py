"""A journal of effects: entries and effects a second, and what one durable intent waits, with the machine's fsync beside it.

    python benchmarks/agents/journal.py --rows 200000 --repeat 3 --dir /var/tmp

`alone`: one durable intent after the other, nobody else waits: the latency of a group commit of one entry. `effects`: --jobs coroutines on
one event loop, each of which writes a durable intent, waits for it, and writes the result, as an agent with unsafe effects does. `burst`:
entries that are appended without waiting, then one flush. `read`: all of them read back. `fsync_ms`: a 4 KiB append and an fsync of a
plain file in the same folder, before each run; a journal on a machine with a slow disk is no slower than its disk. Checked: every entry is
read back, in its order, once, with what was written.
"""

import argparse
import asyncio
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from sabot.journal import Journal
from sabot.journal.entries import Begin, EffectResult, End, Intent
from sabot.journal.memory import MemoryJournal
from sabot.journal.postgres import PostgresJournal
from sabot.journal.sqlite import SqliteJournal

BODY = b'{"order": "o-1234567", "amount": 12.5}' * 4
PROBES = 100


def fsync_ms(folder: Path) -> float:
    """Median, of the machine."""
    taken = []
    with open(folder / "probe", "wb") as file:
        for _ in range(PROBES):
            began = time.perf_counter()
            file.write(bytes(4096))
            file.flush()
            os.fsync(file.fileno())
            taken.append(time.perf_counter() - began)
    return median(taken) * 1000


def alone(journal: Journal, count: int) -> list[float]:
    """Seconds that each intent waited."""
    taken = []
    for number in range(count):
        began = time.perf_counter()
        journal.wait_durable(journal.append(Intent("alone", 0, number, "call", "refund", b"d" * 16, "unsafe", BODY)))
        taken.append(time.perf_counter() - began)
    return taken


async def effects(journal: Journal, count: int, jobs: int) -> None:
    async def one(name: str, share: range) -> None:
        journal.append(Begin(name, 0, "refunds", BODY))
        for ordinal in share:
            await journal.room()
            await journal.durable(journal.append(Intent(name, 0, ordinal, "call", "refund", b"d" * 16, "unsafe", BODY)))
            journal.append(EffectResult(name, 0, ordinal, body=BODY))
        await journal.durable(journal.append(End(name, 0, "succeeded")))

    await asyncio.gather(*(one(f"job-{number}", range(number, count, jobs)) for number in range(jobs)))


async def burst(journal: Journal, count: int) -> None:
    for number in range(count):
        await journal.room()
        journal.append(EffectResult("burst", 0, number, body=BODY))
    await journal.flush()


def check(journal: Journal, asked: dict[str, int], jobs: int) -> int:
    """Everything is there, in order, once. Returns how many entries."""
    ordinals: dict[str, list[int]] = {}
    results: dict[str, list[int]] = {}
    ended = entries = 0
    for position, entry in journal.read():
        assert position.offset == entries, f"entry {entries} is missing"
        entries += 1
        if isinstance(entry, Intent | EffectResult):
            assert entry.body == BODY, "a body is wrong"
            found = ordinals if isinstance(entry, Intent) else results
            found.setdefault(entry.job, []).append(entry.ordinal)
        ended += isinstance(entry, End)
    assert ordinals.pop("alone") == list(range(asked["alone"]))
    assert results.pop("burst") == list(range(asked["burst"]))
    assert ordinals == results, "an effect lacks its intent or its result"
    assert ordinals == {f"job-{number}": list(range(number, asked["effects"], jobs)) for number in range(jobs)}
    assert ended == jobs
    return entries


def timed(work: Callable[[], Any]) -> tuple[float, float]:
    """(seconds, seconds of the processor)."""
    began, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - began, time.process_time() - cpu


def run(journal: Journal, options: argparse.Namespace) -> dict[str, float]:
    count = {
        "alone": max(1, min(300, options.rows // 100)),
        "effects": max(options.jobs, options.rows // 4),
        "burst": options.rows // 2,
    }
    waits = alone(journal, count["alone"])
    before = journal.statistics()["commits"]
    seconds, cpu = timed(lambda: asyncio.run(effects(journal, count["effects"], options.jobs)))
    commits = journal.statistics()["commits"] - before
    burst_seconds, _ = timed(lambda: asyncio.run(burst(journal, count["burst"])))
    found: list[int] = []
    read_seconds, _ = timed(lambda: found.append(check(journal, count, options.jobs)))
    return {
        "alone_ms": round(median(waits) * 1000, 3),
        "effects_per_s": round(count["effects"] / seconds),
        "effects_per_cpu_s": round(count["effects"] / cpu),
        "effects_per_commit": round(count["effects"] / commits, 1),
        "burst_entries_per_s": round(count["burst"] / burst_seconds),
        "read_entries_per_s": round(found[0] / read_seconds),
    }


@contextmanager
def opened(name: str, folder: Path, parent: Path | None) -> Iterator[Journal]:
    """A new journal of this name; of PostgreSQL and Kafka with a server of its own, which syncs its disk."""
    if name == "postgres":
        from tools.postgres import Postgres

        server = Postgres("fsync=on", parent=parent)
        try:
            with server.database() as address:
                journal: Journal = PostgresJournal(address, "benchmark")
                yield journal
                journal.close()
        finally:
            server.remove()
        return
    if name == "kafka":
        from sabot.journal.kafka import KafkaJournal
        from tools.broker import Broker

        with tempfile.TemporaryDirectory(prefix="sabot-bench-broker-", dir=parent) as home:
            broker = Broker(Path(home))
            broker.start()
            try:
                journal = KafkaJournal(f"{broker.url}/benchmark")
                yield journal
                journal.close()
            finally:
                broker.stop()
        return
    journal = SqliteJournal(folder / "journal") if name == "sqlite" else MemoryJournal()
    yield journal
    journal.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000, help="entries of a run, about")
    parser.add_argument("--jobs", type=int, default=256, help="that run at once")
    parser.add_argument(
        "--journal", action="append", choices=["sqlite", "memory", "postgres", "kafka"], help="default: sqlite, memory"
    )
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--dir", type=Path, help="where the journal lies; default: a temporary folder")
    options = parser.parse_args()
    outcome: dict[str, Any] = {"benchmark": "journal", "rows": options.rows, "jobs": options.jobs}
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in options.journal or ["sqlite", "memory"]}
    probes = []
    for _ in range(options.repeat):
        with tempfile.TemporaryDirectory(prefix="sabot-bench-", dir=options.dir) as folder:
            probes.append(fsync_ms(Path(folder)))
            for name, found in runs.items():
                with opened(name, Path(folder), options.dir) as journal:
                    found.append(run(journal, options))
    outcome["fsync_ms"] = round(median(probes), 3)
    for name, found in runs.items():
        outcome[name] = {figure: median(each[figure] for each in found) for figure in found[0]}
    print(json.dumps(outcome))


if __name__ == "__main__":
    main()
