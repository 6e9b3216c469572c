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
from tools.agent_tools import environment, started, until
from tools.leftovers import end_supervisor

PATIENCE_SECONDS = 180
PATH = os.pathsep.join(map(str, Path(__file__).parents[1:3]))  # where `tools.agent_tools` and the engine are
AGENTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "unsafe": {"durable": True},
    "idempotent": {"durable": True, "effect": "idempotent"},
    "pool.plain": {"pool": 2},
    "pool.unsafe": {"pool": 2, "durable": True},
    "pool.idempotent": {"pool": 2, "durable": True, "effect": "idempotent"},
    "claude": {"durable": True, "resume": ["claude", "-p", "Go on", "--resume", "{session}"]},
}
UNSAFE = {"unsafe", "pool.unsafe"}
CLAUDE = """#!/bin/sh
echo "claude $$" >> runs
echo "$*" >> called
echo '{"type": "system", "session_id": "ses-1"}'
[ -e go ] || exec sleep 1000
echo "did claude"
"""
SCRIPT = 'echo "$1 $$" >> runs; [ -e go ] || exec sleep 1000; echo "did $1"'


def app_in(folder: Path) -> App:
    """Programs that hang until there is a file "go"."""
    app = App("works", state=str(folder / "state"), checkpoint_interval=0.1)
    for name, options in AGENTS.items():
        tasks = folder / f"{name}.ndjson"
        if not tasks.exists():
            tasks.write_text(f'{{"task": "{name}"}}\n')
        command = ["claude", "-p", "{task}"] if name == "claude" else ["sh", "-c", SCRIPT, "sh", "{task}"]
        if "pool" in options:
            command = ["sh", "-c", f"while read -r line; do {SCRIPT}; done", "sh", name]
        app.process_agent(
            NdjsonSource(tasks),
            command=command,
            sink=NdjsonSink(str(folder / f"{name}.out")),
            working_dir=folder,
            environment={"PATH": f"{folder}:{os.environ['PATH']}"},
            name=name.replace(".", "_"),
            **options,
        )
    return app


def runs(folder: Path) -> list[tuple[str, int]]:
    """What was run, and as which process."""
    path = folder / "runs"
    words = path.read_text().split() if path.exists() else []
    return list(zip(words[::2], map(int, words[1::2]), strict=True))


async def questions(app: App, count: int) -> list[ActionRecord]:
    while True:
        found = list(await app.actions.find(statuses=[ActionStatus.PENDING]))
        if len(found) == count:
            return found
        await asyncio.sleep(0.01)


async def session_known(folder: Path) -> None:
    """The journal has what the first effect of claude's job has given, and the second one."""
    while not any(job.agent == "works.claude" and job.effects > 1 for job in await app_in(folder).jobs.find()):  # noqa: ASYNC110
        await asyncio.sleep(0.01)


def written(folder: Path) -> dict[str, str]:
    """What is in the sinks that are there."""
    return {path.stem: path.read_text() for path in folder.glob("*.out")}


@pytest.mark.skipif(sys.platform != "linux", reason="children are owned on Linux only")
@pytest.mark.slow  # it starts an interpreter; `tests/pipelines/test_process_agents.py` crashes apps in this one
async def test_programs_die_with_their_worker_and_an_unsafe_one_is_in_doubt(tmp_path: Path) -> None:
    (tmp_path / "claude").write_text(CLAUDE)
    (tmp_path / "claude").chmod(0o755)
    worker = await asyncio.create_subprocess_exec(
        sys.executable, __file__, str(tmp_path), env={**environment(), "PYTHONPATH": PATH}
    )
    try:
        await until(lambda: worker.returncode or len(runs(tmp_path)) == len(AGENTS), patience=PATIENCE_SECONDS)
        await asyncio.wait_for(session_known(tmp_path), PATIENCE_SECONDS)
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
            asked = await questions(app, len(UNSAFE))
            others = sorted(AGENTS.keys() - UNSAFE)
            await until(lambda: sorted(name for name, said in written(tmp_path).items() if said) == others)
            await until(lambda: sorted(name for name, _ in runs(tmp_path)[len(AGENTS) :]) == others)
            assert {each.type for each in asked} == {"in_doubt"}
            for each in asked:
                await app.actions.resolve(each.resume_token, {"outcome": "not_done"})
            await until(lambda: all(written(tmp_path).values()))
    finally:
        end_supervisor()
    said = {name: f'"did {name}"\n' for name in AGENTS}
    event = r'"{\"type\": \"system\", \"session_id\": \"ses-1\"}"'
    assert written(tmp_path) == said | {"claude": f"{event}\n{said['claude']}"}
    assert (tmp_path / "called").read_text().splitlines() == ["-p claude", "-p Go on --resume ses-1"]


if __name__ == "__main__":
    os.chdir(sys.argv[1])
    asyncio.run(app_in(Path(sys.argv[1])).run())
