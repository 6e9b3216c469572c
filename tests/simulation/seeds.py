"""Random programs in the simulation against DuckDB, as many as one likes.

    make simulate SEEDS=2000 START=0
    python tests/simulation/seeds.py --start 41 --seeds 1          one of them again

Prints what failed, with its seed, and one JSON line; exit code 1 when something failed.
"""

import argparse
import gc
import json
import logging
import multiprocessing
import sys
import time
import traceback
from functools import partial
from typing import Any

from graphs import Seed

SHOWN = 5  # failures in full; of the others only the seed


def settle() -> None:
    """Has garbage looked for less often, and not in what is imported: that took a fifth of the time."""
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


def try_seed(number: int, workers_of_app: int = 1) -> tuple[int, str, dict[str, int]]:
    """workers_of_app: the number of workers, 0: of each seed another one. -> the seed, how it failed ("": it did not), figures."""
    logging.disable(logging.CRITICAL)
    try:
        seed = Seed(number, workers=workers_of_app or number % 4 + 1)
        done = seed.run()
    except Exception:
        return number, traceback.format_exc(), {}
    steps = len(done.steps)
    figures: dict[str, int] = {
        "lives": done.lives,
        "crashes": done.crashes,
        "stops": done.stops,
        "turns": done.turns,
        "steps": steps,
    }
    for each in seed.worker_faults.done:
        kind = each.split()[2]
        figures[kind] = figures.get(kind, 0) + 1
    return number, "", figures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1, help="processes that share the seeds")
    parser.add_argument("--workers-of-app", type=int, default=1, help="simulated, of each program; 0: 1 to 4 in turn")
    given = parser.parse_args()
    began = time.perf_counter()
    numbers = range(given.start, given.start + given.seeds)
    failed: list[int] = []
    sums: dict[str, int] = {}

    def note(result: tuple[int, str, dict[str, int]]) -> None:
        number, failure, figures = result
        if failure:
            failed.append(number)
            print(failure if len(failed) <= SHOWN else f"seed {number} failed too", file=sys.stderr, flush=True)
        for name, value in figures.items():
            sums[name] = sums.get(name, 0) + value

    if given.workers == 1:
        settle()
        for number in numbers:
            note(try_seed(number, given.workers_of_app))
    else:
        with multiprocessing.get_context("spawn").Pool(given.workers, settle) as pool:
            for result in pool.imap_unordered(
                partial(try_seed, workers_of_app=given.workers_of_app), numbers, chunksize=8
            ):
                note(result)
    line: dict[str, Any] = {"seeds": given.seeds, "start": given.start, "failed": sorted(failed), **sums}
    print(json.dumps(line | {"seconds": round(time.perf_counter() - began, 1)}))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
