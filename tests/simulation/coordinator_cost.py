"""What a checkpoint of many workers costs their coordinator, by the simulation of `model`.

    python tests/simulation/coordinator_cost.py --workers 1000 --rows 40

Prints one JSON line: processor time of the coordinator (its event loop and the work beside it, with the codec of messages) for the start of
an attempt and for each checkpoint, messages and bytes of the control protocol, files and bytes of a checkpoint. Disk and network cost
nothing here, and workers have two tasks each and a small state.
"""

import argparse
import json
import logging
import statistics
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # where tools are
from model import World

from sabot.engine.checkpoint import Manifest


class Measured(World):
    """A world that notes what its coordinator has spent at each checkpoint."""

    def __init__(self, workers: int, rows: int) -> None:
        super().__init__(1, workers, rows=rows, faults=0, coordinators=0, declines=0.0)
        self.notes: list[tuple[float, int, int]] = []
        self.files = self.manifest_bytes = self.tasks = 0
        self.checks_s = 0.0

    def look(self, manifest: Manifest) -> None:
        spent = sum(
            seconds for process, seconds in self.loop.spent.items() if "coordinator" in str(process and process.name)
        )
        network = self.networks[0]
        self.notes.append((spent - self.checks_s, network.messages, network.message_bytes))
        began = time.thread_time()
        super().look(manifest)
        self.checks_s += time.thread_time() - began
        if manifest.path is not None:
            self.tasks, self.files = len(manifest.tasks), len(manifest.contents)
            self.manifest_bytes = manifest.path.stat().st_size


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--workers", type=int, default=1000)
    options.add_argument("--rows", type=int, default=40, help="of each worker")
    given = options.parse_args()
    logging.disable(logging.CRITICAL)
    began = time.perf_counter()
    world = Measured(given.workers, given.rows)
    world.run()
    between: list[tuple[Any, ...]] = [
        tuple(b - a for a, b in zip(first, second, strict=True))
        for first, second in zip(world.notes, world.notes[1:], strict=False)
    ]
    print(
        json.dumps(
            {
                "workers": given.workers,
                "tasks": world.tasks,
                "checkpoints": len(world.notes),
                "first_checkpoint_s": round(world.notes[0][0], 3),  # with the start of the attempt
                "checkpoint_s": round(statistics.median(each[0] for each in between), 4),
                "messages": round(statistics.median(each[1] for each in between)),
                "message_bytes": round(statistics.median(each[2] for each in between)),
                "files": world.files,
                "manifest_bytes": world.manifest_bytes,
                "virtual_s": round(world.loop.time(), 1),
                "seconds": round(time.perf_counter() - began, 1),
            }
        )
    )


if __name__ == "__main__":
    main()
