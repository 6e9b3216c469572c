"""kill -9 of a worker, and of the coordinator, of `sabot run minutes.sql --workers 2`: every window is in the file once."""

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from tools.agent_tools import manifests, read_lines, until, write_lines

sys.path.append(str(Path(__file__).parents[1] / "integration"))
from fault_tools import lines_of, running
from test_workers_kill import attempts

pytestmark = pytest.mark.integration

ROWS, ACCOUNTS = 400_000, 7
SCRIPT = """
SET 'pipeline.name' = 'minutes-of-sql';
CREATE TABLE payments (account STRING, amount BIGINT, ts TIMESTAMP(3), WATERMARK FOR ts AS ts - INTERVAL '2' SECOND)
    WITH ('connector' = 'files', 'path' = 'in.ndjson', 'format' = 'json');
CREATE TABLE minutes (account STRING, until TIMESTAMP_LTZ(3), n BIGINT, total BIGINT)
    WITH ('connector' = 'files', 'path' = 'out.ndjson', 'format' = 'json', 'sink.delivery-guarantee' = 'exactly-once');
INSERT INTO minutes
SELECT account, window_end, COUNT(*), SUM(amount)
FROM TABLE(TUMBLE(TABLE payments, DESCRIPTOR(ts), INTERVAL '10' SECOND))
GROUP BY account, window_start, window_end;
"""


def payment(number: int) -> dict[str, object]:
    return {"account": f"a{number % ACCOUNTS}", "amount": number, "ts": number * 10}


@pytest.mark.slow  # some ten processes
async def test_a_script_of_sql_is_exact_whichever_process_was_killed(tmp_path):
    rows = [payment(number) for number in range(ROWS)]
    write_lines(tmp_path / "in.ndjson", rows)
    (tmp_path / "minutes.sql").write_text(SCRIPT)
    checkpoints, log = tmp_path / "state" / "checkpoints", tmp_path / "log"
    words = ["minutes.sql", "--workers", "2", "--state", "state", "--checkpoint-interval", "0.02"]

    async def checkpoint_of(process, life):
        await until(
            lambda: process.poll() is not None or len(attempts(log)) == life, f"the workers of life {life}", patience=60
        )
        known = manifests(checkpoints)
        await until(lambda: process.poll() is not None or manifests(checkpoints) - known, "a checkpoint", patience=60)
        assert process.poll() is None, lines_of(log)

    with running(log, *words, "--restart", "fixed(5, 10ms)", folder=tmp_path) as process:
        await checkpoint_of(process, 1)
        os.kill(attempts(log)[-1][0], signal.SIGKILL)
        await checkpoint_of(process, 2)
        process.kill()
        process.wait()
    with running(log, *words, folder=tmp_path) as process:
        assert await asyncio.to_thread(process.wait, 150) == 0, lines_of(log)
    assert "was killed by SIGKILL" in lines_of(log)
    found = read_lines(tmp_path / "out.ndjson")
    expected: dict[tuple[object, int], list[int]] = {}
    for row in rows:
        answer = expected.setdefault((row["account"], (row["ts"] // 10_000 + 1) * 10_000), [0, 0])
        answer[0] += 1
        answer[1] += row["amount"]
    assert len(found) == len(expected), "a window came twice, or is missing"
    assert {(row["account"], row["until"]): [row["n"], row["total"]] for row in found} == expected
