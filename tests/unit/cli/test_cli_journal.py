"""`sabot journal`, `sabot jobs`, `sabot actions` on a journal in SQLite, while its owner is there and while it is not."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from sabot.agents import ActionManager, ActionSpec, JobManager, JobSpec, JournalStore, SqliteJournal
from sabot.cli import commands
from sabot.clock import ManualClock
from sabot.journal import Begin, EffectResult, End, Intent


def says(*words: object) -> Result:
    return CliRunner().invoke(commands._cli, list(map(str, words)))


def printed(*words: object) -> str:
    done = says(*words)
    assert done.exit_code == 0, done.output + done.stderr
    return done.stdout


def objects(*words: object) -> list[dict[str, Any]]:
    return [json.loads(line) for line in printed(*words, "--json").splitlines()]


async def waiting(folder: Path) -> tuple[str, str, str]:
    """A job that waits for an action, left behind: (job, action, token)."""
    journal = SqliteJournal(folder / "journal")
    store = JournalStore(journal)
    jobs, actions = JobManager(store), ActionManager(store)
    job = await jobs.start((await jobs.create(JobSpec(scope_id="shop", metadata={"order": 7}))).job_id)
    action = await actions.require_action(ActionSpec(job_id=job.job_id, payload={"message": "Refund?"}))
    journal.close()
    return job.job_id, action.action_id, action.resume_token


async def test_an_action_is_answered_from_a_shell_while_the_app_is_down(tmp_path: Path) -> None:
    job, action, token = await waiting(tmp_path)
    listed = printed("actions", "list", "--journal", tmp_path)
    assert token in listed
    assert "Refund?" in listed
    assert printed("actions", "resolve", token, "--journal", tmp_path, "--approve", "--by", "ann") == "answered\n"
    assert "answered, not taken yet" in printed("actions", "list", "--journal", tmp_path)
    second = says("actions", "resolve", token, "--journal", tmp_path, "--reject")
    assert (second.exit_code, "already answered" in second.stderr) == (1, True)
    journal = SqliteJournal(tmp_path / "journal")
    record = await ActionManager(JournalStore(journal)).get(action)
    assert (record.resolution, record.by) == ({"approved": True}, "ann")
    await journal.flush()
    (seen,) = objects("jobs", "list", "--journal", tmp_path)  # beside the owner
    assert (seen["job_id"], seen["status"]) == (job, "running")
    journal.close()
    assert printed("actions", "list", "--journal", tmp_path).count("\n") == 1
    assert "resolved" in printed("actions", "list", "--journal", tmp_path, "--all")


async def test_answers_are_objects(tmp_path: Path) -> None:
    _, action, token = await waiting(tmp_path)
    for words in ([], ["--approve", "--reject"], ["--with", "7"], ["--with", "{"]):
        assert says("actions", "resolve", token, "--journal", tmp_path, *words).exit_code == 2
    printed("actions", "resolve", token, "--journal", tmp_path, "--with", '{"choice": 2}')
    journal = SqliteJournal(tmp_path / "journal")
    assert (await ActionManager(JournalStore(journal)).get(action)).resolution == {"choice": 2}
    journal.close()


async def test_a_job_is_cancelled_from_a_shell(tmp_path: Path) -> None:
    job, *_ = await waiting(tmp_path)
    printed("jobs", "cancel", job, "--journal", tmp_path / "journal", "--reason", "duplicate")
    assert says("jobs", "cancel", job, "--journal", tmp_path).exit_code == 1
    journal = SqliteJournal(tmp_path / "journal")
    assert (await JobManager(JournalStore(journal)).get(job)).error == "duplicate"
    journal.close()
    (seen,) = objects("jobs", "list", "--journal", tmp_path, "--status", "cancelled")
    assert seen["error"] == "duplicate"
    assert objects("jobs", "list", "--journal", tmp_path, "--scope", "other") == []


async def test_a_job_and_an_action_are_shown(tmp_path: Path) -> None:
    job, action, token = await waiting(tmp_path)
    shown = printed("jobs", "show", job, "--journal", tmp_path)
    assert "waiting_action" in shown
    assert action in shown
    assert json.loads(printed("actions", "show", action, "--journal", tmp_path))["resume_token"] == token
    for words in (["jobs", "show", "nobody"], ["actions", "show", "nobody"], ["journal", "show", "nobody"]):
        done = says(*words, "--journal", tmp_path)
        assert (done.exit_code, "nobody" in done.stderr) == (1, True)


async def test_the_entries_of_a_job_are_shown_step_by_step_without_its_tokens(tmp_path: Path) -> None:
    journal = SqliteJournal(tmp_path / "journal", clock=ManualClock())
    for entry in (
        Begin("job", 1_700_000_000_000, "refunds", b'{"order": 7}', code="v3"),
        Intent("job", 1_700_000_000_001, 1, "call", "refund", b"d", "unsafe", b'{"amount": 12.5}'),
        EffectResult("job", 1_700_000_000_250, 1, 2, body=b"x" * 100_000),
        Intent("job", 1_700_000_000_251, 2, "ask", "confirm", token="secret-token", due_ms=1_700_000_300_000),
        End("job", 1_700_000_000_300, "failed", "no luck"),
    ):
        last = journal.append(entry)
    journal.wait_durable(last)
    lines = printed("journal", "show", "job", "--journal", tmp_path).splitlines()
    assert [" ".join(line.split()) for line in lines] == [
        "place written entry effect what",
        '0 2023-11-14 22:13:20.000Z begin refunds v3 {"order": 7}',
        '1 2023-11-14 22:13:20.001Z intent 1 call refund (unsafe) {"amount": 12.5}',
        "2 2023-11-14 22:13:20.250Z result 1.2 ok [100.0 kB]",
        "3 2023-11-14 22:13:20.251Z intent 2 ask confirm until 2023-11-14 22:18:20.000Z",
        "4 2023-11-14 22:13:20.300Z end failed no luck",
    ]
    found = objects("journal", "show", "job", "--journal", tmp_path / "journal" / "journal.db")
    assert [each["entry"] for each in found] == ["begin", "intent", "result", "intent", "end"]
    assert "secret-token" not in json.dumps(found)
    journal.close()


@pytest.mark.parametrize("words", [["jobs", "list"], ["actions", "list"], ["journal", "show", "job"]])
def test_a_place_without_a_journal_is_told(tmp_path: Path, words: list[str]) -> None:
    done = says(*words, "--journal", tmp_path)
    assert (done.exit_code, "has no journal" in done.stderr) == (1, True)


def test_an_address_of_no_home_is_refused_without_its_password() -> None:
    done = says("jobs", "list", "--journal", "mongodb://ann:hunter2-hunter2@host/refunds")
    assert done.exit_code == 1
    assert "mongodb://host/refunds: no journal has such an address" in done.stderr
    assert "hunter2" not in done.stderr
