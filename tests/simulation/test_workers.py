"""An app over workers keeps its word under a seeded scheduler, whatever dies, falls silent or is cut off: random programs over two to four
workers (`graphs`, `cluster`), and the coordinator with up to a hundred, or as many as one likes (`model`).

python tests/simulation/seeds.py --seeds 200 --workers-of-app 0        programs; 0: with 1 to 4 workers in turn
SABOT_SEEDS=300 pytest tests/simulation/test_workers.py      more than the few of a normal run
"""

import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from graphs import Seed
from model import World

from sabot.engine.checkpoint import Coordinator, Manifest, TaskSnapshot

pytestmark = pytest.mark.integration

SEEDS = int(os.environ.get("SABOT_SEEDS", "4"))


@pytest.mark.one_in(4, "half a second of a core each")
@pytest.mark.parametrize("seed", range(SEEDS))
def test_the_answer_over_workers_is_that_of_all_rows_at_once(seed: int) -> None:
    """As `test_seeds`, with 2 to 4 workers, some of which die, fall silent, or are cut off."""
    Seed(seed, workers=2 + seed % 3).run()


@pytest.mark.one_in(4, "a third of a second of a core each")
@pytest.mark.parametrize("seed", range(1, 1 + SEEDS))
def test_every_row_is_there_once_whatever_becomes_of_workers_and_coordinators(seed: int) -> None:
    World(seed, 2 + seed % 7).run()


@pytest.mark.one_in(2, "a second of a core each")
@pytest.mark.parametrize("seed", range(SEEDS // 2))
def test_two_coordinators_never_both_complete_checkpoints(seed: int) -> None:
    """The second one takes the first one for dead, in a place without a lock that would tell it better."""
    World(seed, 2 + seed % 3, coordinators=0, rivals=1).run()


@pytest.mark.parametrize("killed", [1, 2])
def test_a_worker_that_dies_between_the_last_row_and_the_last_checkpoint_costs_a_restart(killed: int) -> None:
    """The run ended as if it were complete, without its last checkpoint and the output that this delivers (program 49 over 2 workers)."""
    world = World(1, 3, faults=0, coordinators=0, declines=0.0)
    world.stops_killed = killed
    assert world.run().attempts == 2


class Standing(World):
    """Something holds the event loop of the coordinator for a minute, after a checkpoint."""

    def look(self, manifest: Manifest) -> None:
        super().look(manifest)
        if self.checked == 1:
            self.loop.pass_time(60.0)


@pytest.mark.parametrize("seed", [1, 2])
def test_no_worker_is_taken_for_dead_because_the_coordinator_did_not_read(seed: int) -> None:
    """The heartbeats of that minute were there, and waited to be read."""
    world = Standing(seed, 3, faults=0, coordinators=0, declines=0.0).run()
    assert world.checked > 1
    assert world.attempts == 1


@pytest.mark.slow  # ten thousand messages
def test_many_workers_take_whole_checkpoints_though_some_of_them_die() -> None:
    """With this seed the coordinator dies, too."""
    world = World(7, 100, rows=5, faults=2, coordinators=1, declines=0.0).run()
    assert world.checked >= 3
    assert world.lives == 2


@pytest.mark.slow  # four processes each
@pytest.mark.parametrize("seed", [5, 12, 40])
def test_random_programs_over_processes_give_the_answer_of_all_rows_at_once(seed: int, tmp_path: Path) -> None:
    """As `graphs` in the simulation, here with sockets, Arrow Flight and a kernel."""
    paths = [str(Path(__file__).parent), str(Path(__file__).parents[2])]
    environment = {**os.environ, "SEED": f"{seed} {tmp_path}", "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-P", "-m", "sabot", "run", "seed_app:app", "--workers", "3"]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    Seed(seed, workers=3, is_real=True).check(tmp_path)


def of_any_checkpoint(self: Coordinator, checkpoint_id: int, task: str, snapshot: TaskSnapshot) -> None:
    """As `Coordinator._acknowledge`, for whichever checkpoint is under way."""
    flight = self._in_flight
    acknowledge(self, checkpoint_id if flight is None else flight.checkpoint_id, task, snapshot)


def nobody(*asked: Any) -> None:
    """Nobody has taken the app over."""


acknowledge = Coordinator._acknowledge
FAULTS = [
    ("sabot.engine.checkpoint.Coordinator._acknowledge", of_any_checkpoint, {"declines": 0.1}, "is not whole"),
    ("sabot.engine.workers.streams.SILENT_SECONDS", 1e9, {"faults": 6}, "is silent for"),
    ("sabot.engine.checkpoint.ownership.Ownership.renew", nobody, {"rivals": 1}, "behind generation|too many"),
]


@pytest.mark.slow  # several seeds, until one has its fault where it shows
@pytest.mark.parametrize(("name", "wrong", "options", "told"), FAULTS)
def test_a_fault_of_the_coordinator_is_found(
    name: str, wrong: Callable[..., Any], options: dict[str, Any], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(name, wrong)
    with pytest.raises(AssertionError, match=told):
        run_all(range(200), options)


def run_all(seeds: Iterable[int], options: dict[str, Any]) -> None:
    for seed in seeds:
        World(seed, 3, **options).run()
