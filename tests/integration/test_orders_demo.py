"""`sabot demo orders`, as a user starts it: two kills, and the sums of the database."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tools.postgres import server_or_skip


@pytest.mark.slow  # 20 seconds: the app starts three times
def test_the_sums_of_orders_are_those_of_the_database_though_the_app_is_killed_twice(tmp_path: Path) -> None:
    server = server_or_skip()
    with server.database() as url:
        program = [sys.executable, "-P", "-c", "from sabot.cli import main; main()"]
        done = subprocess.run(
            [*program, "demo", "orders", url, "--changes", "300", "--json"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        figures = json.loads(done.stdout)
        assert list(figures) == ["changes", "kills", "countries", "equal", "seconds"]
        assert (figures["changes"], figures["kills"], figures["equal"]) == (300, 2, True)
        with server.connect() as connection:
            left = connection.execute("SELECT count(*) FROM pg_replication_slots WHERE slot_name LIKE 'sabot_demo_%'")
            assert left.fetchall() == [(0,)]
    assert list(tmp_path.iterdir()) == []


def test_a_database_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-P",
            "-c",
            "from sabot.cli import main; main()",
            "demo",
            "orders",
            "postgresql://127.0.0.1:9/x",
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode != 0
    assert done.stderr.startswith("sabot: PostgreSQL at 127.0.0.1:9/x")
    assert "Traceback" not in done.stderr
