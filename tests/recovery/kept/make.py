"""Writes the kept checkpoints: `python tests/recovery/kept/make.py [PROGRAM …]`, by the code as it is now.

For each app of `kept_apps` an archive beside this file: `checkpoints/` holds a checkpoint of the first half of the input; `outside/` the
files outside the app as they were then; `expected.json` what is to come of it: `state`, the contents of each operator and agent in the
checkpoint, and `outcome`, all that the app has put out in the end.

A checkpoint that is kept already is written again only when its format is meant to change: it stands for those that users have.
"""

import asyncio
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE.parents[1]), str(HERE.parents[2])]  # as pytest would

from kept_apps import (  # noqa: E402
    FIRST,
    HALF,
    PROGRAMS,
    RESTORED_S,
    WRITTEN_S,
    Program,
    Scene,
    contents,
    finish,
    publish,
    rows_read,
    until,
)

from sabot import App  # noqa: E402
from sabot.engine.checkpoint import CheckpointStorage  # noqa: E402
from sabot.steps import watch  # noqa: E402


class Outside:
    """Nothing that is delivered to a ListSink arrives; once it is frozen nothing that is delivered does."""

    frozen = False

    def before(self, name: str, what: str) -> None:
        if name == "deliver" or (self.frozen and threading.current_thread().name.startswith("delivery")):
            threading.Event().wait()

    def after(self, name: str, what: str) -> None:
        """Done."""

    def torn(self, name: str, what: str, size: int) -> int:
        return size


async def write(program: Program, folder: Path) -> None:
    """The first life: half of the input, two checkpoints. The process ends in the middle of it."""
    outside = Outside()
    watch(outside)
    scene = Scene(limit=FIRST, hold=True)
    app = program.app(scene, folder, WRITTEN_S)
    await app.start()
    await _stand(program, app, scene, 0, FIRST)
    while any(lane.pending for lane in (await _checkpoint(app)).lanes.values() if lane.sink not in scene.sinks):
        pass  # it is delivered meanwhile
    outside.frozen = True
    scene.limit = HALF
    await _stand(program, app, scene, FIRST, HALF)
    await until(lambda: scene.waiting >= program.waiting, "the calls that are held")
    await asyncio.sleep(0.3)
    manifest = await _checkpoint(app)
    CheckpointStorage(folder / "checkpoints").copy_to(manifest, folder / "image" / "checkpoints")
    for name in ("in", "out"):
        if Path(name).exists():
            shutil.copytree(name, folder / "image" / "outside" / name)
    os._exit(0)


async def _stand(program: Program, app: App, scene: Scene, first: int, end: int) -> None:
    """So many rows of each source are read."""
    if program.endless:
        publish(scene, first, end)
        await until(lambda: rows_read(app) >= 2 * end, "the records")
        return
    await until(lambda: all(source.stands for source in scene.sources), "the sources to stand")


async def _checkpoint(app: App) -> Any:
    checkpoint_id = await app.agent_runtime.trigger_checkpoint()
    await app.agent_runtime.checkpoint_coordinator.wait(checkpoint_id)
    return CheckpointStorage(app.settings.checkpoint_dir).read(checkpoint_id)


def pack(folder: Path, target: Path) -> None:
    """Without times and owners: the same contents are the same bytes."""
    with tarfile.open(target, "w:xz") as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                entry = tarfile.TarInfo(path.relative_to(folder).as_posix())
                entry.size = path.stat().st_size
                with path.open("rb") as file:
                    archive.addfile(entry, file)


def make(program: Program) -> None:
    """One archive and what is to come of it."""
    with tempfile.TemporaryDirectory() as folder:
        life, whole = Path(folder, "life"), Path(folder, "whole")
        for each in (life, whole):
            each.mkdir()
            os.chdir(each)
            program.prepare()
        os.chdir(life)
        subprocess.run([sys.executable, __file__, "--write", program.name], check=True, timeout=120)
        image = life / "image"
        shutil.copytree(image, Path(folder, "read"))
        state = contents(Path(folder, "read", "checkpoints"))
        os.chdir(whole)
        scene = Scene(broker="memory://whole")
        expected = asyncio.run(finish(program, program.app(scene, whole, RESTORED_S), scene, restored=False))
        os.chdir(HERE)
        text = json.dumps({"state": state, "outcome": expected}, indent=1, ensure_ascii=False)
        (image / "expected.json").write_text(text + "\n")
        pack(image, HERE / f"{program.name}.tar.xz")
    print(f"{program.name}: {(HERE / f'{program.name}.tar.xz').stat().st_size} bytes; state of {', '.join(state)}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--write"]:
        asyncio.run(write(PROGRAMS[sys.argv[2]], Path.cwd()))
    for name in sys.argv[1:] or PROGRAMS:
        make(PROGRAMS[name])
