"""Journals that an earlier Sabot has written, kept in `kept/`, are read, and their jobs go on: those that run, are parked, are in doubt,
wait for approval or for a child. Jobs of each kind write the same entries today, to the byte. `kept_journals` and `kept_jobs` have the
apps, `kept/make_journals.py` says what the files hold.
"""

import asyncio
import json
import shutil
import sqlite3
import stat
import tarfile
from contextlib import closing
from itertools import zip_longest
from pathlib import Path
from typing import Any

import kept_jobs
import msgspec
import pytest
from kept_jobs import PAY
from kept_journals import (
    BEFORE,
    BEHIND,
    EARLY,
    HOMES,
    LATER,
    LONG,
    RESTORED_S,
    Calls,
    kept_app,
    publish,
    put_back,
    words_of,
)

from sabot import App
from sabot.agents import ActionStatus, Decision, GuardedCall, GuardVerdict, PolicyEngine
from sabot.agents.job_history import job_keeping
from sabot.agents.job_view import JobView
from sabot.engine.calls.effects import EffectId, digest
from sabot.jobs.core import SEQUENCES_APART
from sabot.jobs.guard import decode_verdict, encode_verdict
from sabot.jobs.history import IN_DOUBT
from sabot.jobs.values import pack, pack_error, unpack
from sabot.journal import JournalReader
from sabot.journal.base import EVERY
from sabot.journal.ended_jobs import JobQuery
from sabot.journal.entries import Attempt, Begin, EffectResult, End, Intent, decode_entry, encode_entry
from sabot.journal.history_tables import SESSIONS
from sabot.journal.opening import open_journal, open_reader
from sabot.journal.sqlite import SqliteJournal, SqliteReader
from sabot.testing import ManualClock
from tools.agent_tools import read_lines, started, until

pytestmark = pytest.mark.integration

ARCHIVES = Path(__file__).parent / "kept"
each_home = pytest.mark.parametrize(
    "home", [pytest.param(home, marks=pytest.mark.kafka) if home == "kafka" else home for home in HOMES]
)

# Those of the app of `kept_journals`: of the first format in each home, of the last one without a list of jobs, and of
# the last one without the reasons of blocked jobs.
each_journal = pytest.mark.parametrize(
    ("home", "kept"),
    [
        *(pytest.param(home, "journal", marks=[pytest.mark.kafka] * (home == "kafka")) for home in HOMES),
        ("sqlite", "journal-3"),
        ("postgres", "journal-3"),
        ("sqlite", "journal-4"),
        ("postgres", "journal-4"),
    ],
)


def unpacked(home: str, folder: Path, app: str = "journal") -> Path:
    with tarfile.open(ARCHIVES / f"{app}-{home}.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder


def address_of_broker(home: str, request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue("kafka_url")) if home == "kafka" else ""


def begins_with(found: Any, kept: Any) -> bool:
    """Whether the values are those that are kept, in each entry perhaps with more behind them."""
    return len(found) == len(kept) and all(now[: len(then)] == then for now, then in zip(found, kept, strict=True))


@each_journal
def test_a_kept_journal_says_what_it_said(
    home: str, kept: str, tmp_path: Path, topic: str, request: pytest.FixtureRequest
) -> None:
    folder = unpacked(home, tmp_path, kept)
    with put_back(home, folder, address_of_broker(home, request), topic) as address:
        reader = open_reader(address)
        entries, bodies, letters = json.loads(json.dumps(words_of(reader)))
        reader.close()
    said = json.loads((folder / "words.json").read_text())
    assert begins_with(entries, said[0])
    assert bodies == said[1]
    assert letters == [{**letter, "after_ms": 0, "priority": 0} for letter in said[2]]
    assert sum(LONG[:20] in body for body in bodies) == 1


@each_home
def test_a_kept_journal_has_a_history_as_soon_as_an_owner_has_opened_it(
    home: str, tmp_path: Path, topic: str, request: pytest.FixtureRequest
) -> None:
    with put_back(home, unpacked(home, tmp_path), address_of_broker(home, request), topic) as address:
        reader = open_reader(address)
        jobs = {entry.job: list(reader.read(entry.job)) for _, entry in reader.read()}
        assert reader.history.find(JobQuery(), 10) == reader.history.known(jobs) == []
        assert reader.history.counts(JobQuery()) == reader.history.used_below(jobs) == {}
        assert {job: list(reader.history.entries(job)) for job in jobs} == jobs
        reader.close()
        owner = open_journal(f"{address}/journal" if home == "sqlite" else address)
        owner.keeping = job_keeping("9999d, 1GB")
        assert owner.trim(owner.positions(), 1 << 60) > 0
        assert {job: list(owner.history.entries(job)) for job in jobs} == jobs
        assert sum(owner.history.counts(JobQuery()).values()) > 0
        owner.close()


@each_journal
def test_a_kept_journal_lists_the_same_jobs_before_and_after_its_first_owner(
    home: str, kept: str, tmp_path: Path, topic: str, request: pytest.FixtureRequest
) -> None:
    with put_back(home, unpacked(home, tmp_path, kept), address_of_broker(home, request), topic) as address:
        reader = open_reader(address)
        listed = reader.logged(JobQuery(), EVERY)
        known = JobView.of(reader)
        assert {mark.job: mark.status for mark in listed} == {job.job_id: job.status for job in known.seen()}
        assert {mark.job: (mark.agent, mark.key) for mark in listed} == {
            job.job_id: (job.agent, job.key) for job in known.seen()
        }
        reader.close()
        owner = open_journal(f"{address}/journal" if home == "sqlite" else address)
        reader = open_reader(address)
        assert owner.logged(JobQuery(), EVERY) == reader.logged(JobQuery(), EVERY) == listed
        reader.close()
        owner.close()


async def answer(app: App, job: str, resolution: dict[str, Any]) -> None:
    """Answers the question of the job, once it is asked."""
    while not (pending := await app.actions.find(job_id=job, statuses=[ActionStatus.PENDING])):  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    await app.actions.resolve(pending[0].resume_token, resolution, by="ann")


@pytest.mark.one_in(3, "two seconds of a core each")
@each_journal
async def test_the_jobs_of_a_kept_journal_go_on(
    home: str, kept: str, tmp_path: Path, topic: str, memory_url: str, request: pytest.FixtureRequest
) -> None:
    folder, calls = unpacked(home, tmp_path, kept), Calls()
    with put_back(home, folder, address_of_broker(home, request), topic) as address:
        publish(memory_url, [*EARLY, *BEFORE, *BEHIND, *LATER])
        app = kept_app(folder, memory_url, None if home == "sqlite" else address, RESTORED_S, calls)
        async with started(app):
            await answer(app, "kept.orders/n=4", {"approved": True})
            await answer(app, "kept.orders/n=5", {"approved": True})
            await answer(app, "kept.orders/n=8", {"outcome": "not_done"})
            await answer(app, "kept.orders/n=9", {"outcome": "done", "result": "mailed"})
            await answer(app, "kept.orders/n=10~2", {"choice": "blue"})
            await answer(app, "kept.orders/n=14", {"outcome": "not_done"})
            await app.jobs.signal("kept.orders/n=11", "read")
            await until(lambda: app.statistics()["jobs"]["ended"] == 12, "all jobs to end")
            assert app.statistics()["jobs"]["blocked"] == {}
    said = {row["n"]: row["said"] for row in read_lines(folder / "answers.ndjson")}
    assert said == {
        4: [True, "ann"],
        5: "paid 5",
        6: "refunded 6 which sleeps",
        7: 12.5,
        8: "refunded 8 which hangs",
        9: "mailed",
        10: {"chosen": {"choice": "blue"}},
        11: len(LONG),
        13: "refunded 13 which returns",
        14: "refunded 14 which hangs",
        15: "refunded 15 which returns",
    }
    assert [row["error"] for row in read_lines(folder / "dead.ndjson")] == []
    assert sorted(calls.made) == [
        "pay 5",
        *(f"refund {n}" for n in ("14 which hangs", "15 which returns", "8 which hangs")),
    ]


CANCELLED_IN_A_CALL = "kept.orders/n=21"


def kept_expectations(folder: Path) -> dict[str, Any]:
    """What the code that has written the journals did, but for four things. One job was cancelled during an unsafe
    call, and when a person said that the call was not done, that code made it (record 076). Its questions about calls
    in doubt did not say which result a call gives. A BEGIN had fewer fields. And what its jobs drew came from one
    sequence.
    """
    expected: dict[str, Any] = json.loads((folder / "expected.json").read_text())
    expected["calls"].remove("refund 21 which hangs and is cancelled")
    entries = expected["second"][CANCELLED_IN_A_CALL]
    attempt, made, _ = (decode_entry(bytes.fromhex(each), "a kept journal") for each in entries[-3:])
    assert isinstance(attempt, Attempt)
    assert isinstance(made, EffectResult)
    why = pack_error(asyncio.CancelledError("refund was not done, and its job waits for it no longer"))
    used = made.usage.replace(b"n=21/1/2", b"n=21/1/1")
    not_made = msgspec.structs.replace(made, attempt=1, outcome="cancelled", body=why, usage=used)
    entries[-3:-1] = [encode_entry(not_made).hex()]
    for job, later in expected["second"].items():
        before = len(expected["first"].get(job, ()))
        later[before:] = map(with_names, map(with_sequences_apart, map(with_its_result, later[before:])))
    for entries in (*expected["first"].values(), *expected["second"].values()):
        entries[:] = map(with_later_fields, entries)
    return expected


def with_later_fields(entry: str) -> str:
    """The entry as it is written today: a BEGIN has fields that it had not then, with their defaults."""
    return encode_entry(decode_entry(bytes.fromhex(entry), "a kept journal")).hex()


def with_sequences_apart(entry: str) -> str:
    """The entry as it is written today: a job that begins draws ids and numbers from a sequence each."""
    begin = decode_entry(bytes.fromhex(entry), "a kept journal")
    return (
        encode_entry(msgspec.structs.replace(begin, seed=SEQUENCES_APART)).hex() if isinstance(begin, Begin) else entry
    )


def unsalted(entry: str) -> str:
    """An entry of today as it was before keys were those of a journal, a job knew what was declared where it began, and an end
    said what had made its output.
    """
    found = decode_entry(bytes.fromhex(entry), "a journal")
    if isinstance(found, End):
        return encode_entry(msgspec.structs.replace(found, form="")).hex()
    if isinstance(found, Attempt):
        return encode_entry(msgspec.structs.replace(found, keeps=False)).hex()
    if isinstance(found, Begin):
        return encode_entry(msgspec.structs.replace(found, salt=b"", declared=())).hex()
    if not isinstance(found, Intent) or found.name != IN_DOUBT:
        return entry
    payload = {name: each for name, each in msgspec.json.decode(found.body).items() if name != "key"}
    name = digest(kept_jobs.KEY, "ask", found.name, payload)
    return encode_entry(msgspec.structs.replace(found, body=msgspec.json.encode(payload), digest=name)).hex()


def with_names(entry: str) -> str:
    """The entry as it is written today: a judged call has its arguments by name, and a question the terms of its rule, which hold
    for one call, as the tools here are told from others neither by their names nor by what is in their closures.
    """
    intent = decode_entry(bytes.fromhex(entry), "a kept journal")
    verdict = decode_verdict(intent.note) if isinstance(intent, Intent) and intent.kind == "call" else None
    if verdict is None or not (verdict.decision is Decision.ASK or verdict.hide):
        return entry
    asked = PolicyEngine([PAY]).decide(GuardedCall(EffectId("j", 1), "tool", intent.name))
    assert isinstance(asked, GuardVerdict)
    (line,), _ = unpack(intent.body)
    body = pack([[], {"line": line}], "the arguments")
    once = verdict.once or verdict.decision is Decision.ASK
    note = encode_verdict(msgspec.structs.replace(verdict, named=True, terms=asked.terms, once=once))
    return encode_entry(msgspec.structs.replace(intent, body=body, note=note)).hex()


def without_lots(entries: list[str]) -> list[str]:
    """The entries of a job without the values that it has drawn, which are other ones today."""
    found = [decode_entry(bytes.fromhex(each), "a kept journal") for each in entries]
    return [
        encode_entry(
            msgspec.structs.replace(each, body=b"", **({"digest": b""} if isinstance(each, Intent) else {}))
        ).hex()
        if isinstance(each, Intent | EffectResult) and isinstance(each.body, bytes) and b"draws lots" in each.body
        else entry
        for each, entry in zip(found, entries, strict=True)
    ]


def with_its_result(entry: str) -> str:
    """The entry as it is written today: a question about a refund in doubt says that it gives a text."""
    asked = decode_entry(bytes.fromhex(entry), "a kept journal")
    if not isinstance(asked, Intent) or asked.name != IN_DOUBT or b'"refund"' not in asked.body:
        return entry
    payload = {**msgspec.json.decode(asked.body), "result": {"type": "string"}}
    name = digest(kept_jobs.KEY, "ask", asked.name, payload)
    return encode_entry(msgspec.structs.replace(asked, body=msgspec.json.encode(payload), digest=name)).hex()


def first_difference(found: dict[str, list[str]], kept: dict[str, list[str]]) -> list[Any]:
    """The first entry that differs from the kept one: its job, its number, what it is and what it was. Empty if none differs."""
    for job in sorted(found.keys() | kept.keys()):
        pairs = zip_longest(found.get(job, []), kept.get(job, []), fillvalue="")
        for number, (now, then) in enumerate(pairs):
            if now != then:
                return [job, number, bytes.fromhex(now), bytes.fromhex(then)]
    return []


async def test_jobs_write_the_entries_that_they_have_written(tmp_path: Path, memory_url: str) -> None:
    """A job of each kind, to the byte; so it is up to the crash, and from there to the end in another life."""
    kept, calls = kept_expectations(unpacked("sqlite", tmp_path / "kept", "jobs")), kept_jobs.Calls(hold=True)
    app = kept_jobs.app_of_jobs(tmp_path, memory_url, None, ManualClock(kept_jobs.BEGAN_S), calls)
    with kept_jobs.fixed_key():
        await app.start()
    try:
        await kept_jobs.first_life(app, memory_url, calls)
        reader = open_reader(tmp_path / "state")
        await until(lambda: entries_in(reader) >= sum(map(len, kept["first"].values())), "entries")
        found = {job: list(map(unsalted, entries)) for job, entries in kept_jobs.entries_of(reader).items()}
        reader.close()
    finally:
        calls.released.set()
        await app.stop()
    first = {job: list(map(with_names, map(with_sequences_apart, entries))) for job, entries in kept["first"].items()}
    undrawn = [{job: without_lots(entries) for job, entries in each.items()} for each in (found, first)]
    assert first_difference(*undrawn) == []


def entries_in(reader: JournalReader) -> int:
    return sum(1 for _ in reader.read())


@pytest.mark.one_in(3, "two seconds of a core each")
@each_home
async def test_jobs_of_each_kind_go_on_to_their_ends(
    home: str, tmp_path: Path, topic: str, memory_url: str, request: pytest.FixtureRequest
) -> None:
    """Each call that is still to be made is made once, and each entry is that of the code that has written the journal."""
    folder, calls = unpacked(home, tmp_path, "jobs"), kept_jobs.Calls()
    kept = kept_expectations(folder)
    with put_back(home, folder, address_of_broker(home, request), topic) as address:
        reader = open_reader(address)
        assert first_difference(kept_jobs.entries_of(reader), kept["first"]) == []
        kept_jobs.publish_again(memory_url)
        journal, clock = None if home == "sqlite" else address, ManualClock(kept_jobs.RESTORED_S)
        await kept_jobs.second_life(kept_jobs.app_of_jobs(folder, memory_url, journal, clock, calls))
        found = {job: list(map(unsalted, entries)) for job, entries in kept_jobs.entries_of(reader).items()}
        reader.close()
    assert sorted(calls.made) == kept["calls"] == CALLS
    assert {job: kept_jobs.outputs(folder).get(job) for job in SAID} == SAID
    assert kept_jobs.outputs(folder) == kept["said"]
    assert first_difference(found, kept["second"]) == []


CALLS = [  # of the second life: those that were under way at the crash and may be made again, and those that come after it
    "ask medium: 26 which asks a model that hangs",
    "find 22 which hangs, and is looked up",
    "look 24 which hangs, and only reads",
    "pay 5 which needs approval",
    "put 23 which hangs, and may be repeated sabot-2737953c1a06392dba93809474ad0e69",
    "refund 30 which hangs",
    "refund 32 which returns",
    "refund 6 which sleeps",
    "refund 8 which hangs",
]
SAID: dict[str, Any] = {
    "kept.orders/n=7": 12.5,
    "kept.orders/n=9": "mailed",
    "kept.orders/n=10": {"chosen": {"choice": "blue"}},
    "kept.orders/n=12": None,  # was cancelled
    "kept.orders/n=15": "small says: 15 which is degraded",
    "kept.orders/n=16": ["medium says: a", "small says: b"],
    "kept.orders/n=17": "refunded 17 which is redacted to ***",
    "kept.orders/n=19": [True, "bea"],
    "kept.orders/n=20": None,
    "kept.tries/n=1": ["refunded 1 of a second try", 2],
    "kept.tries/n=2": "ValueError",
}


async def test_a_journal_is_kept_as_it_was_before_its_migration_until_a_savepoint_follows(
    tmp_path: Path, memory_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It was migrated in place without a word, so that the way back to the earlier version, which a savepoint promises,
    ended with "a newer Sabot has written it".
    """
    folder = unpacked("sqlite", tmp_path) / "state" / "journal"
    before = words_of(SqliteReader(folder))
    journal = SqliteJournal(folder)
    journal.close()
    copy = folder / "journal.db.format-1"
    assert f"journal.db has format 1 and is migrated to {SESSIONS}" in caplog.text
    assert f"kept as it was in {copy} until the next savepoint" in caplog.text
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    back = tmp_path / "back"
    back.mkdir(mode=0o700)
    shutil.copy(copy, back / "journal.db")
    with closing(sqlite3.connect(back / "journal.db")) as database:
        assert database.execute("PRAGMA user_version").fetchone() == (1,)
    reader = SqliteReader(back)
    assert words_of(reader) == before
    reader.close()
    caplog.clear()
    SqliteJournal(folder).close()  # migrated once
    assert "migrated" not in caplog.text

    app = App("later", memory_url, state=tmp_path / "later", restart="none", checkpoint_interval="1h")

    @app.agent("orders", durable=True)
    async def work(ctx: Any) -> None:
        await ctx.step(lambda: None)

    there = tmp_path / "later" / "journal" / "journal.db.format-1"
    async with started(app):
        shutil.copy(copy, there)
        for _ in range(4):
            await app.agent_runtime.trigger_checkpoint()
        assert there.exists()
        storage = app.agent_runtime.checkpoint_coordinator.storage
        assert storage is not None
        manifest = storage.latest()
        assert manifest is not None
        (facts,) = [task.meta["journal"] for task in manifest.tasks.values() if "journal" in task.meta]
        assert str(tmp_path / "later" / "journal") in facts["where"]  # so a savepoint names its journal
        storage.copy_to(manifest, tmp_path / "savepoint")
        for _ in range(4):
            await app.agent_runtime.trigger_checkpoint()
        await until(lambda: not there.exists(), "a savepoint that follows lets the copy go")
