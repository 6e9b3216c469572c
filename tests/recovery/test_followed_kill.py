"""kill -9 of `sabot run` over a folder that goes on, while programs write, rotate, rename and replace its files: each row comes once."""

import asyncio
import json
import random
import sys
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tools.agent_tools import manifests, until

sys.path.append(str(Path(__file__).parents[1] / "integration"))
from tools.fault_tools import lines_of, running

pytestmark = [pytest.mark.integration, pytest.mark.slow]  # six processes; crashes without a kill: test_followed_files

HERE = Path(__file__).parent


class World:
    """Writes rows into two logs, which it rotates, copies whole files in, and puts others in their place, until it is over.

    delivered: tells which rows are in the output. `written`: the number of the rows so far. `replaced`: rows that were
    not in the output when their file was replaced, which may have been read or not.
    """

    def __init__(self, folder: Path, seed: int, delivered: Callable[[], list[int]]) -> None:
        self.folder, self.rng, self.delivered = folder, random.Random(seed), delivered
        self.written = 0
        self.replaced: set[int] = set()
        self._files: dict[Path, list[int]] = {}
        self._made = 0
        self._over, self._lock = threading.Event(), threading.Lock()
        self._pool = ThreadPoolExecutor(1)

    def _rows(self, path: Path, count: int) -> str:
        first, self.written = self.written, self.written + count
        self._files.setdefault(path, []).extend(range(first, self.written))
        return "".join(f"{json.dumps({'n': n})}\n" for n in range(first, self.written))

    def _name(self, stem: str) -> Path:
        self._made += 1
        return self.folder / f"{stem}-{self._made}.ndjson"

    def _append(self) -> Path:
        log = self.folder / self.rng.choice(["a.ndjson", "b.ndjson"])
        text = self._rows(log, self.rng.randrange(1, 60))
        half = self.rng.randrange(len(text))
        for part in (text[:half], text[half:]):
            with log.open("a") as file:
                file.write(part)
        return log

    def _rename(self, path: Path) -> None:
        self._files[path.rename(self._name(path.stem.partition("-")[0]))] = self._files.pop(path)

    def _give_up(self, path: Path) -> None:
        self.replaced |= set(self._files.pop(path)) - set(self.delivered())

    def _copy_in(self, path: Path) -> None:
        """Puts a whole file there, in place of the one that has the name."""
        (hidden := self.folder / ".copy").write_text("")
        if path in self._files:
            self._give_up(path)
        hidden.write_text(self._rows(path, self.rng.randrange(1, 200)))
        hidden.rename(path)

    def _write(self) -> None:
        rng = self.rng
        while not self._over.wait(0.01):
            with self._lock:
                log = self._append()
                if rng.random() < 0.1:
                    self._rename(log)
                if rng.random() < 0.1:
                    self._copy_in(self._name("copy"))
                if rng.random() < 0.05:
                    self._copy_in(rng.choice(sorted(self._files)))

    def change_while_nobody_reads(self) -> None:
        """Renames, replaces, grows, and writes files anew under their inodes, which a reader could see half done."""
        with self._lock:
            for act in self.rng.sample(["rename", "replace", "anew", "anew", "grow", "swap"], 4):
                path = self.rng.choice(sorted(self._files))
                if act == "rename":
                    self._rename(path)
                elif act == "replace":
                    self._copy_in(path)
                elif act == "anew":
                    self._give_up(path)
                    path.write_text(self._rows(path, self.rng.randrange(1, 400)))
                elif act == "grow":
                    with path.open("a") as file:
                        file.write(self._rows(path, 20))
                else:
                    other = self.rng.choice(sorted(self._files))
                    if other != path:
                        path.rename(hidden := self.folder / ".swap")
                        other.rename(path)
                        hidden.rename(other)
                        self._files[path], self._files[other] = self._files[other], self._files[path]

    def __enter__(self) -> "World":
        self._writing = self._pool.submit(self._write)
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._writing.result()
        self._pool.shutdown()


@pytest.mark.parametrize("words", ["python", "sql"])
@pytest.mark.parametrize("seed", [1, 2])
async def test_each_row_of_a_folder_that_goes_on_comes_once_whenever_the_process_was_killed(
    tmp_path: Path, seed: int, words: str
) -> None:
    rng, log, checkpoints, out = (
        random.Random(seed),
        tmp_path / "log",
        tmp_path / "checkpoints",
        tmp_path / "out.ndjson",
    )
    (folder := tmp_path / "in").mkdir()
    env = {"FOLLOWED_IN": str(folder), "FOLLOWED_OUT": str(out), "FOLLOWED_IN_WORDS_OF": words}
    start = ["followed_app:app", "--checkpoint-dir", str(checkpoints), "--checkpoint-interval", "0.1"]

    def rows() -> list[int]:
        whole = out.read_text().rpartition("\n")[0] if out.exists() else ""  # the last line may be half written
        return [json.loads(line)["n"] for line in whole.splitlines()]

    async def killed() -> None:
        known = manifests(checkpoints)
        with running(log, *start, "--loglevel", "warning", folder=HERE, **env) as process:
            more = lambda: process.poll() is not None or len(manifests(checkpoints) - known) > 1  # noqa: E731
            await until(more, "a checkpoint")
            await asyncio.sleep(rng.uniform(0, 0.3))
            assert process.poll() is None, lines_of(log)
            process.kill()
            process.wait()

    with World(folder, seed, rows) as world:
        for _ in range(4):
            await killed()
            world.change_while_nobody_reads()
    before = len(rows())
    certain = set(range(world.written)) - world.replaced
    with running(log, *start, folder=HERE, **env) as process:
        await until(lambda: process.poll() is not None or certain <= set(rows()), "all rows")
        assert process.poll() is None, lines_of(log)
        process.terminate()
        assert await asyncio.to_thread(process.wait, 60) == 0, lines_of(log)
    assert 0 < before < world.written
    times = Counter(rows())
    assert max(times.values()) == 1
    assert certain <= set(times) <= set(range(world.written))
    assert 0 < len(world.replaced) < world.written / 2
