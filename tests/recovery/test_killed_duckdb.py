"""An app that writes two tables of DuckDB is killed 20 times, while another program reads them: each row is there once."""

import random
import subprocess
import sys
import time
from pathlib import Path

import duckdb
import pytest

from tools.command_line import child

KILLS, AT_ONCE, ROWS = 20, 50, 4_000
GUARD_SECONDS = 60.0
APP = f"""
import asyncio, sys
import sabot
from sabot import App
from sabot.connectors.sql import SqlSink

app = App("killed", state="state", checkpoint_interval="50ms")


@app.source(schema={{"n": "int64", "tenth": "int64"}}, bounded=True)
def numbers(position):
    for n in range(position, {ROWS}):
        if n % {AT_ONCE} == 0:
            print(n, flush=True)
            sys.stdin.readline()
        yield {{"n": n, "tenth": n // 10}}


rows = app.stream(numbers)
rows.to(SqlSink("duckdb:out.duckdb", table="every"))
tenths = rows.group_by("tenth").aggregate(count=sabot.count())
tenths.upsert("tenth").to(SqlSink("duckdb:out.duckdb", table="tenths"))
asyncio.run(app.run())
"""


def count(path: Path) -> int:
    """The rows that another program sees now; it waits while the app has the file."""
    end = time.monotonic() + GUARD_SECONDS
    while path.exists():
        try:
            with duckdb.connect(path, read_only=True) as connection:
                return int(connection.execute("SELECT count(*) FROM every").fetchall()[0][0])
        except duckdb.IOException:  # the app writes
            assert time.monotonic() < end
            time.sleep(0.01)
        except duckdb.CatalogException:  # no part has arrived
            return 0
    return 0


def go(process: "subprocess.Popen[str]") -> bool:
    """Lets the source read the next rows once it waits for that. Returns False at the end of the rows."""
    assert process.stdin is not None
    assert process.stdout is not None
    if not process.stdout.readline():
        return False
    process.stdin.write("\n")
    process.stdin.flush()
    return True


@pytest.mark.slow  # 21 processes
def test_an_app_that_is_killed_again_and_again_loses_and_repeats_no_row_of_duckdb(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(APP)
    path, moments = tmp_path / "out.duckdb", random.Random(53)
    grown = 0
    for life in range(KILLS + 1):
        with child(
            sys.executable,
            "app.py",
            cwd=tmp_path,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        ) as process:
            if life == KILLS:
                while go(process):
                    """The rest of the rows."""
                assert process.wait(GUARD_SECONDS) == 0
                break
            before = count(path)
            for _ in range(moments.randint(1, 3)):
                go(process)
            if moments.random() < 0.7:  # else it dies among rows that no checkpoint has
                end = time.monotonic() + GUARD_SECONDS
                while count(path) == before and process.poll() is None:
                    assert time.monotonic() < end, f"life {life}: nothing arrives"
                grown += 1
            process.kill()
    with duckdb.connect(path, read_only=True) as connection:
        assert connection.execute("SELECT n, tenth FROM every ORDER BY n").fetchall() == [
            (n, n // 10) for n in range(ROWS)
        ]
        found = connection.execute("SELECT tenth, count FROM tenths ORDER BY tenth").fetchall()
    assert found == [(tenth, 10) for tenth in range(ROWS // 10)]
    assert grown > KILLS // 2
