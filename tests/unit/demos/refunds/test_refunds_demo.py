"""`sabot demo refunds`, as a user starts it: two kills, and each approved refund made once."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow  # the same with one stop: the example of refunds in test_documents
@pytest.mark.integration
def test_refunds_are_made_once_though_the_app_is_killed_twice(tmp_path: Path) -> None:
    words = [
        sys.executable,
        "-P",
        "-c",
        "from sabot.cli import main; main()",
        "demo",
        "refunds",
        "--jobs",
        "20",
        "--json",
    ]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert list(figures) == ["jobs", "approvals", "asked", "done", "twice", "lost", "in_doubt", "kills", "seconds"]
    assert {name: figures[name] for name in ("jobs", "approvals", "twice", "lost", "kills")} == {
        "jobs": 20,
        "approvals": 20,
        "twice": 0,
        "lost": 0,
        "kills": 2,
    }
    assert figures["asked"] == figures["done"] == 18
    assert list(tmp_path.iterdir()) == []
