"""kill -9 of a worker while programs of its agents run: they end with it, and which of them are run again."""

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from sabot import App
from sabot.agents import ActionRecord, ActionStatus
from sabot.connectors.files import NdjsonSink, NdjsonSource
from sabot.process import Supervisor
from tools.agent_tools import environment, started, until

PATIENCE_SECONDS = 60
PATH = os.pathsep.join(map(str, Path(__file__).parents[1:3]))  # where `tools.agent_tools` and the engine are
AGENTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "unsafe": {"durable": True},
    "idempotent": {"durable": True, "effect": "idempotent"},
}
SCRIPT = 'echo "$1 $$" >> runs; [ -e go ] || exec sleep 1000; echo "did $1"'


def app_in(folder: Path) -> App:
    """Programs that hang until there is a file "go"."""
    app = App("works", state=str(folder / "state"), checkpoint_interval=0.1)
    for name, options in AGENTS.items():
        tasks = folder / f"{name}.ndjson"
        if not tasks.exists():
            tasks.write_text(f'{{"task": "{name}"}}\n')
        app.process_agent(
            NdjsonSource(tasks),
            command=["sh", "-c", SCRIPT, "sh", "{task}"],
            sink=NdjsonSink(str(folder / f"{name}.out")),
            working_dir=folder,
            name=name,
            **options,
        )
    return app


def runs(folder: Path) -> list[tuple[str, int]]:
    """What was run, and as which process."""
    path = folder / "runs"
    words = path.read_text().split() if path.exists() else []
    return list(zip(words[::2], map(int, words[1::2]), strict=True))


async def question(app: App) -> ActionRecord:
    while True:
        for each in await app.actions.find(statuses=[ActionStatus.PENDING]):
            return each
        await asyncio.sleep(0.01)


@pytest.mark.skipif(sys.platform != "linux", reason="children are owned on Linux only")
@pytest.mark.slow  # it starts an interpreter; `tests/pipelines/test_process_agents.py` crashes apps in this one
async def test_programs_die_with_their_worker_and_an_unsafe_one_is_in_doubt(tmp_path: Path) -> None:
    worker = await asyncio.create_subprocess_exec(
        sys.executable, __file__, str(tmp_path), env={**environment(), "PYTHONPATH": PATH}
    )
    try:
        await until(lambda: worker.returncode or len(runs(tmp_path)) == len(AGENTS), patience=PATIENCE_SECONDS)
    finally:
        if worker.returncode is None:
            worker.kill()
        await worker.wait()
    first = runs(tmp_path)
    assert sorted(name for name, _ in first) == sorted(AGENTS)
    await until(lambda: not any(Path(f"/proc/{pid}").exists() for _, pid in first), "the programs to end")
    (tmp_path / "go").touch()
    try:
        async with asyncio.timeout(PATIENCE_SECONDS), started(app := app_in(tmp_path)):
            asked = await question(app)
            await until(lambda: all((tmp_path / f"{name}.out").exists() for name in ("plain", "idempotent")))
            await until(lambda: sorted(name for name, _ in runs(tmp_path)[3:]) == ["idempotent", "plain"])
            assert asked.type == "in_doubt"
            await app.actions.resolve(asked.resume_token, {"outcome": "not_done"})
            await until(lambda: runs(tmp_path)[5:] and (tmp_path / "unsafe.out").exists())
    finally:
        if Supervisor._current is not None:
            Supervisor._current.close()
    for name in AGENTS:
        assert (tmp_path / f"{name}.out").read_text() == f'"did {name}"\n'


if __name__ == "__main__":
    os.chdir(sys.argv[1])
    asyncio.run(app_in(Path(sys.argv[1])).run())
