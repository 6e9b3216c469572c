"""kill -9 of a worker, and of the coordinator, of `sabot run minutes.sql --workers 2`: every window is in the file once,
and so are every row in the totals of keys that expire, and the first row of each key.
"""

import asyncio
import os
import signal
import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import deltalake
import pytest

from tools.agent_tools import manifests, read_lines, until, write_lines

sys.path.append(str(Path(__file__).parents[1] / "integration"))
from test_workers_kill import attempts

from tools.fault_tools import HOLDING, lines_of, running

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("warm_children")]

ROWS, ACCOUNTS = 400_000, 7
SCRIPT = """
SET 'pipeline.name' = 'minutes-of-sql';
CREATE TABLE payments (account STRING, amount BIGINT, ts TIMESTAMP(3), WATERMARK FOR ts AS ts - INTERVAL '2' SECOND)
    WITH ('connector' = 'files', 'path' = 'in.ndjson', 'format' = 'json');
CREATE TABLE minutes (account STRING, until TIMESTAMP_LTZ(3), n BIGINT, total BIGINT)
    WITH ({options}, 'sink.delivery-guarantee' = 'exactly-once');
INSERT INTO minutes
SELECT account, window_end, COUNT(*), SUM(amount)
FROM TABLE(TUMBLE(TABLE payments, DESCRIPTOR(ts), INTERVAL '10' SECOND))
GROUP BY account, window_start, window_end;
"""

EXPIRING = """
SET 'pipeline.name' = 'expiring-of-sql';
CREATE TABLE payments (account STRING, amount BIGINT, ts TIMESTAMP(3), WATERMARK FOR ts AS ts - INTERVAL '2' SECOND)
    WITH ('connector' = 'files', 'path' = 'in.ndjson', 'format' = 'json');
CREATE TABLE totals (account STRING, n BIGINT, total BIGINT, PRIMARY KEY (account) NOT ENFORCED)
    WITH ('connector' = 'sqlite', 'url' = 'sqlite:out.db', 'table-name' = 'totals');
INSERT INTO totals
SELECT /*+ STATE_TTL('payments' = '10s') */ account, COUNT(*), SUM(amount) FROM payments GROUP BY account;
"""

FIRSTS = """
SET 'pipeline.name' = 'firsts-of-sql';
CREATE TABLE payments (account STRING, amount BIGINT, ts TIMESTAMP(3), WATERMARK FOR ts AS ts - INTERVAL '2' SECOND)
    WITH ('connector' = 'files', 'path' = 'in.ndjson', 'format' = 'json');
CREATE TABLE firsts (account STRING, amount BIGINT)
    WITH ('connector' = 'files', 'path' = 'out.ndjson', 'format' = 'json', 'sink.delivery-guarantee' = 'exactly-once');
INSERT INTO firsts
SELECT account, amount
FROM (SELECT *, ROW_NUMBER() OVER (PARTITION BY account ORDER BY ts ASC) AS rn FROM payments) WHERE rn = 1;
"""


FILE = (
    "'connector' = 'files', 'path' = 'out.ndjson', 'format' = 'json', 'json.timestamp-format.standard' = 'EPOCH-MILLIS'"
)
DELTA = "'connector' = 'delta', 'table-path' = 'out'"


def delta_rows(table: Path) -> list[dict[str, Any]]:
    """The rows of the table, with times in ms as in the file."""
    rows = deltalake.DeltaTable(table).to_pyarrow_table().to_pylist()
    return [{**row, "until": int(row["until"].timestamp() * 1000)} for row in rows]


def payment(number: int) -> dict[str, object]:
    return {"account": f"a{number % ACCOUNTS}", "amount": number, "ts": number * 10}


async def run_killed(folder: Path, script: str) -> None:
    """Runs the script over the rows of in.ndjson until they end; a worker is killed on the way, and then the coordinator."""
    (folder / "minutes.sql").write_text(script)
    checkpoints, log = folder / "state" / "checkpoints", folder / "log"
    words = ["minutes.sql", "--workers", "2", "--state", "state", "--checkpoint-interval", "0.02"]

    async def checkpoint_of(process, life):
        await until(lambda: process.poll() is not None or len(attempts(log)) >= life, f"the workers of life {life}")
        known = manifests(checkpoints)
        await until(lambda: process.poll() is not None or manifests(checkpoints) - known, "a checkpoint")
        assert process.poll() is None, lines_of(log)

    with running(log, *words, "--restart", "fixed(5, 10ms)", folder=folder, program=HOLDING) as process:
        await checkpoint_of(process, 1)
        os.kill(attempts(log)[-1][0], signal.SIGKILL)
        (folder / "killed-1").touch()
        await checkpoint_of(process, 2)
        process.kill()
        process.wait()
    with running(log, *words, folder=folder) as process:
        assert await asyncio.to_thread(process.wait, 150) == 0, lines_of(log)
    assert "was killed by SIGKILL" in lines_of(log)


@pytest.mark.slow  # some ten processes
@pytest.mark.parametrize("options", [FILE, DELTA], ids=["file", "delta"])
async def test_a_script_of_sql_is_exact_whichever_process_was_killed(tmp_path, options):
    rows = [payment(number) for number in range(ROWS)]
    write_lines(tmp_path / "in.ndjson", rows)
    await run_killed(tmp_path, SCRIPT.format(options=options))
    found = read_lines(tmp_path / "out.ndjson") if options == FILE else delta_rows(tmp_path / "out")
    expected: dict[tuple[object, int], list[int]] = {}
    for row in rows:
        answer = expected.setdefault((row["account"], (row["ts"] // 10_000 + 1) * 10_000), [0, 0])
        answer[0] += 1
        answer[1] += row["amount"]
    assert len(found) == len(expected), "a window came twice, or is missing"
    assert {(row["account"], row["until"]): [row["n"], row["total"]] for row in found} == expected


@pytest.mark.slow  # some ten processes
async def test_keys_that_expire_count_each_row_of_their_last_stretch_once_whichever_process_was_killed(tmp_path):
    """Every 30,000 rows, no payment comes for a minute. All accounts expire then, but those of the last stretch."""
    stretch = 30_000
    rows = [{**payment(number), "ts": number + number // stretch * 60_000} for number in range(ROWS)]
    write_lines(tmp_path / "in.ndjson", [{"account": "once", "amount": 1, "ts": 0}, *rows])
    await run_killed(tmp_path, EXPIRING)
    expected = {"once": (1, 1)}
    for row in rows[(ROWS - 1) // stretch * stretch :]:
        n, total = expected.get(row["account"], (0, 0))
        expected[row["account"]] = (n + 1, total + row["amount"])
    with closing(sqlite3.connect(tmp_path / "out.db")) as connection:
        found = {
            account: (n, total) for account, n, total in connection.execute("SELECT account, n, total FROM totals")
        }
    assert found == expected


@pytest.mark.slow  # some ten processes
async def test_the_first_row_of_each_key_by_event_time_is_there_once_whichever_process_was_killed(tmp_path):
    """Payments come up to 1.5 seconds late, so that the first of an account is seldom the first to arrive."""
    rows = [
        {"account": f"a{number // 40}", "amount": number, "ts": number * 10 - number * 7919 % 1500}
        for number in range(2_000, ROWS)
    ]
    write_lines(tmp_path / "in.ndjson", rows)
    await run_killed(tmp_path, FIRSTS)
    first: dict[object, dict[str, Any]] = {}
    for row in rows:
        if row["account"] not in first or row["ts"] < first[row["account"]]["ts"]:
            first[row["account"]] = row
    arrived_first = {row["account"]: row["amount"] for row in reversed(rows)}
    expected = {account: row["amount"] for account, row in first.items()}
    assert sum(arrived_first[account] != amount for account, amount in expected.items()) > len(expected) / 2
    found = read_lines(tmp_path / "out.ndjson")
    assert len(found) == len(expected), "the first row of a key came twice, or is missing"
    assert {row["account"]: row["amount"] for row in found} == expected
