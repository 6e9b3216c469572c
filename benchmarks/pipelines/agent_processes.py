"""A batch agent in plain Python over the rows of a file, with one process of its own and with several.

    python benchmarks/pipelines/agent_processes.py --rows 2000000 --processes 2 --repeat 3

The function parses a text of each row with `re` and adds a checksum of it, as `workers.py` does. Each call notes its sums, which must be
those of the same function over all rows. `seconds` runs from the first batch that any process takes to the last one that any has done; the
start of processes is not in it. The best of --repeat rounds, in which both take turns.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from workers import parsed, text_of

from sabot import App, NdjsonSource

HERE = Path(__file__).parent


def build(folder: Path, processes: int) -> App:
    """The program, over the files of a folder."""
    app = App("agents")

    @app.agent(
        NdjsonSource(folder / "in.ndjson", block_bytes=256 << 10),
        batch=True,
        schema={"text": "string"},
        process=processes,
    )
    async def parse(batch, ctx):
        began = time.time()
        took: Counter[str] = Counter()
        for text in batch.column("text").to_pylist():
            user, value = parsed(text)
            took[user] += value
        with open(folder / f"{os.getpid()}.calls", "a", encoding="ascii") as file:
            file.write(json.dumps({"began": began, "ended": time.time(), "took": took}) + "\n")

    return app


def run(folder: Path, processes: int, wanted: Counter[str]) -> float:
    """The seconds of one run of `sabot run`. Raises where the answer is wrong."""
    for left in folder.glob("*.calls"):
        left.unlink()
    environment = {
        **os.environ,
        "AGENTS_FOLDER": str(folder),
        "AGENTS_PROCESSES": str(processes),
        "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")]),
    }
    command = [sys.executable, "-P", "-m", "sabot", "run", "agent_processes:app", "--loglevel", "warning"]
    subprocess.run(command, env=environment, check=True, cwd=folder)
    notes = list(folder.glob("*.calls"))
    calls = [json.loads(line) for file in notes for line in file.read_text("ascii").splitlines()]
    found: Counter[str] = Counter()
    for call in calls:
        found.update(call["took"])
    if found != wanted or len(notes) != processes:
        raise SystemExit(f"wrong: sums {sum(found.values())}, not {sum(wanted.values())}, by {len(notes)} processes")
    return max(call["ended"] for call in calls) - min(call["began"] for call in calls)


def main() -> None:
    """Prints one JSON object."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rows", type=int, default=2_000_000)
    options.add_argument("--processes", type=int, default=2)
    options.add_argument("--repeat", type=int, default=1)
    given = options.parse_args()
    best: dict[int, float] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        texts = [text_of(row) for row in range(given.rows)]
        (folder / "in.ndjson").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), "ascii")
        wanted: Counter[str] = Counter()
        for user, value in map(parsed, texts):
            wanted[user] += value
        for _ in range(given.repeat):
            for processes in (1, given.processes):
                seconds = run(folder, processes, wanted)
                best[processes] = min(seconds, best.get(processes, seconds))
    figures = {str(each): {"seconds": round(s, 3), "rows_s": round(given.rows / s)} for each, s in best.items()}
    times = round(best[1] / best[given.processes], 2)
    print(json.dumps({"rows": given.rows, "processes": figures, "times": times}))


if __name__ == "__main__":
    main()
elif "AGENTS_FOLDER" in os.environ:  # `sabot run agent_processes:app` imports this file
    app = build(Path(os.environ["AGENTS_FOLDER"]), int(os.environ["AGENTS_PROCESSES"]))
