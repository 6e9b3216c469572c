"""The proof from outside that effects happen once, and that it can fail: a short run of kills; agents that do things twice, or lose some,
are found out.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "agents" / "kill_effects.py"

pytestmark = [pytest.mark.integration, pytest.mark.slow]


def killed(*words: str) -> tuple[int, dict[str, Any], str]:
    """(exit code, figures, what it said)"""
    done = subprocess.run([sys.executable, SCRIPT, *words], capture_output=True, text=True, timeout=1000, check=False)
    assert done.stdout, done.stderr[-4000:]
    return done.returncode, json.loads(done.stdout.splitlines()[-1]), done.stderr[-4000:]


def test_no_unsafe_effect_happens_twice_or_is_lost_however_the_app_is_killed() -> None:
    code, figures, said = killed("--kills", "12", "--jobs", "60", "--seed", "1")
    assert figures["kills"] >= 12
    assert figures["asked"] > 100
    assert [figures[name] for name in ("twice", "lost", "in_doubt", "not_asked", "unanswered", "errors")] == [0] * 6, (
        said
    )
    assert figures["asked"] == figures["done"] + figures["abandoned"]
    assert code == 0


@pytest.mark.kafka
@pytest.mark.parametrize("journal", ["sqlite", "postgres", "kafka"])
def test_on_topics_all_is_done_once_and_a_stopped_worker_that_was_succeeded_does_nothing_more(journal: str) -> None:
    words = ("--kills", "9", "--jobs", "40", "--seed", "10", "--topics", "--journal", journal)
    code, figures, said = killed(*words)  # with this seed the first life is stopped
    assert figures["kills"] >= 9
    bad = ("twice", "lost", "in_doubt", "not_asked", "unanswered", "errors", "went_on")
    assert [figures[name] for name in bad] == [0] * len(bad), said
    assert figures["redriven"] == len(range(0, figures["jobs"], 11))  # none of which had an effect twice
    paused = "refused_while_paused" if journal == "sqlite" else "taken_over_while_paused"
    assert figures[paused] > 0
    assert code == 0


def found_out(name: str, *words: str) -> list[dict[str, Any]]:
    """The figures of runs until one has found `name`: where a kill falls is up to the machine, and one run of kills may by chance
    interrupt no effect at all.
    """
    runs = []
    for seed in range(1, 7):
        code, figures, _ = killed(*words, "--seed", str(seed))
        runs.append(figures)
        if figures[name]:
            assert code == 1
            return runs
    raise AssertionError(f"{name} is 0 in {len(runs)} runs: the proof cannot fail. {runs}")


def test_agents_that_are_not_durable_do_things_twice_and_are_found_out() -> None:
    found_out("twice", "--kills", "4", "--jobs", "60", "--variant", "plain")


def test_effects_that_are_assumed_to_be_done_are_lost_and_found_out() -> None:
    runs = found_out("lost", "--kills", "8", "--jobs", "60", "--variant", "assume_done")
    assert [figures["twice"] for figures in runs] == [0] * len(runs)
