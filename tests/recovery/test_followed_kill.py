"""kill -9 of `sabot run` over a folder that goes on, while programs write, rotate and rename its files: each row comes once."""

import asyncio
import json
import random
import sys
import threading
from pathlib import Path

import pytest

from tools.agent_tools import manifests, read_lines, until

sys.path.append(str(Path(__file__).parents[1] / "integration"))
from tools.fault_tools import lines_of, running

pytestmark = [pytest.mark.integration, pytest.mark.slow]  # six processes; crashes without a kill: test_followed_files

HERE = Path(__file__).parent


class World:
    """Writes rows into two logs, which it rotates, and copies whole files in, until it is over. `written`: the rows so far."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.rng = folder, random.Random(seed)
        self.written = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._write)

    def _rows(self, count: int) -> str:
        first, self.written = self.written, self.written + count
        return "".join(f"{json.dumps({'n': n})}\n" for n in range(first, first + count))

    def _write(self) -> None:
        made, rng = 0, self.rng
        while not self._over.wait(0.01):
            log = self.folder / rng.choice(["a.ndjson", "b.ndjson"])
            text = self._rows(rng.randrange(1, 60))
            half = rng.randrange(len(text))
            for part in (text[:half], text[half:]):
                with log.open("a") as file:
                    file.write(part)
            if rng.random() < 0.1:
                made += 1
                log.rename(self.folder / f"{log.stem}-{made}.ndjson")
            if rng.random() < 0.1:
                made += 1
                (hidden := self.folder / ".copy").write_text(self._rows(rng.randrange(200)))
                hidden.rename(self.folder / f"copy-{made}.ndjson")

    def __enter__(self) -> "World":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


@pytest.mark.parametrize("seed", [1, 2])
async def test_each_row_of_a_folder_that_goes_on_comes_once_whenever_the_process_was_killed(
    tmp_path: Path, seed: int
) -> None:
    rng, log, checkpoints, out = (
        random.Random(seed),
        tmp_path / "log",
        tmp_path / "checkpoints",
        tmp_path / "out.ndjson",
    )
    (folder := tmp_path / "in").mkdir()
    env = {"FOLLOWED_IN": str(folder), "FOLLOWED_OUT": str(out)}
    words = ["followed_app:app", "--checkpoint-dir", str(checkpoints), "--checkpoint-interval", "0.1"]

    def rows() -> list[int]:
        return [row["n"] for row in read_lines(out)] if out.exists() else []

    async def killed() -> None:
        known = manifests(checkpoints)
        with running(log, *words, "--loglevel", "warning", folder=HERE, **env) as process:
            more = lambda: process.poll() is not None or len(manifests(checkpoints) - known) > 1  # noqa: E731
            await until(more, "a checkpoint")
            await asyncio.sleep(rng.uniform(0, 0.3))
            assert process.poll() is None, lines_of(log)
            process.kill()
            process.wait()

    with World(folder, seed) as world:
        for _ in range(4):
            await killed()
    before = len(rows())
    with running(log, *words, folder=HERE, **env) as process:
        await until(lambda: process.poll() is not None or len(rows()) >= world.written, "all rows")
        assert process.poll() is None, lines_of(log)
        process.terminate()
        assert await asyncio.to_thread(process.wait, 60) == 0, lines_of(log)
    assert 0 < before < world.written
    assert sorted(rows()) == list(range(world.written))
