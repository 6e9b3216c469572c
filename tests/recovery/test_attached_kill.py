"""`sabot sql --attach` beside an app that is killed: each answer is of one barrier, whatever was killed meanwhile."""

import asyncio
import json
import os
import signal
import sqlite3
import sys
from contextlib import closing
from pathlib import Path

import pytest

from tools.agent_tools import manifests, until
from tools.command_line import sabot_says

sys.path.append(str(Path(__file__).parents[1] / "integration"))
from test_workers_kill import attempts

from tools.fault_tools import lines_of, running

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.usefixtures("warm_children")]

ACCOUNTS, LIVES = 7, 3
SCRIPT = """
CREATE TABLE payments (amount BIGINT, account AS MOD(amount, 7)) WITH (
    'connector' = 'datagen', 'rows-per-second' = '5000',
    'fields.amount.kind' = 'sequence', 'fields.amount.start' = '0', 'fields.amount.end' = '100000000'
);
CREATE VIEW whole AS SELECT COUNT(*) AS n, SUM(amount) AS total FROM payments;
CREATE TABLE totals (account BIGINT, n BIGINT, total BIGINT, PRIMARY KEY (account) NOT ENFORCED)
    WITH ('connector' = 'sqlite', 'url' = 'sqlite:out.db', 'table-name' = 'totals');
CREATE TABLE seen (n BIGINT, total BIGINT) WITH ('connector' = 'blackhole');
INSERT INTO totals SELECT account, COUNT(*), SUM(amount) FROM payments GROUP BY account;
INSERT INTO seen SELECT * FROM whole;
"""
ASKED = "SELECT account, n, total FROM totals UNION ALL SELECT -1, n, total FROM whole"


def first(rows: int) -> dict[int, tuple[int, int]]:
    """The answer to ASKED after the first rows of the source."""
    found = {each: range(each, rows, ACCOUNTS) for each in range(ACCOUNTS)}
    return {account: (len(each), sum(each)) for account, each in found.items()} | {-1: (rows, sum(range(rows)))}


def asked() -> dict[int, tuple[int, int]]:
    done = sabot_says("sql", "--attach", "payments.sql", "--state", "state", "--format", "json", "-c", ASKED)
    assert done.exit_code == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    return {row["account"]: (row["n"], row["total"]) for row in rows}


def test_an_answer_is_that_of_the_rows_before_one_barrier_while_processes_are_killed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "payments.sql").write_text(SCRIPT)
    checkpoints, log = tmp_path / "state" / "checkpoints", tmp_path / "log"
    words = ["payments.sql", "--workers", "2", "--state", "state", "--checkpoint-interval", "0.05"]
    counts = [0]

    def ask() -> None:
        answer = asked()
        counts.append(answer[-1][0])
        assert answer == first(counts[-1])

    def wait_for_rows(process) -> None:
        known = manifests(checkpoints)
        asyncio.run(until(lambda: process.poll() is not None or len(manifests(checkpoints) - known) > 1, "checkpoints"))
        assert process.poll() is None, lines_of(log)

    for life in range(1, LIVES + 1):
        with running(log, *words, "--restart", "fixed(5, 10ms)", folder=tmp_path) as process:
            wait_for_rows(process)
            ask()
            if life == 2:
                os.kill(attempts(log)[-1][0], signal.SIGKILL)  # a worker
                ask()
                wait_for_rows(process)
                ask()
            if life < LIVES:
                process.kill()
                process.wait()
            else:
                process.send_signal(signal.SIGTERM)
                assert process.wait(150) == 0, lines_of(log)
        ask()  # nothing runs
    assert counts == sorted(counts), "an answer was older than the one before"
    with closing(sqlite3.connect(tmp_path / "out.db")) as db:
        rows = {account: (n, total) for account, n, total in db.execute("SELECT account, n, total FROM totals")}
    assert rows == {account: value for account, value in asked().items() if account >= 0}, "its sink has other rows"
