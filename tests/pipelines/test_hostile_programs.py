"""Programs that do all that they can: each costs the record that it was given for, and nothing of it is left."""

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from sabot import App
from sabot.process import ResourceLimits, Supervisor
from tools.agent_tools import publish, records, started, until

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="children are owned on Linux only"),
    pytest.mark.usefixtures("no_supervisor_afterwards"),
]

# What each does with a bad record, the limits that it has, and a word of the error; "": how it ends depends on who is quicker.
HOSTILE: dict[str, tuple[str, dict[str, Any], str]] = {
    "never answers": ("exec sleep 1000", {"timeout": "3s"}, "in 3 s, and was ended"),
    "floods stdout": ("exec yes", {}, "wrote more than"),
    "writes a line without end": ("exec tr '\\0' x < /dev/zero", {}, "wrote more than"),
    "floods stderr and fails": ("head -c 3000000 /dev/zero >&2; echo last >&2; exit 3", {}, "ended with 3"),
    "ignores SIGTERM": ("trap '' TERM; while :; do sleep 1000; done", {"timeout": "3s"}, "in 3 s, and was ended"),
    "leaves its session": ("setsid env -i sh -c 'sleep 1000' & exit 4", {}, "ended with 4"),
    "closes its streams": ("exec <&- >&- 2>&-; exec sleep 1000", {"timeout": "3s"}, "was ended"),
    "stops itself": ("kill -STOP $$; exec sleep 1000", {"timeout": "3s"}, "in 3 s, and was ended"),
    "allocates without end": ("exec tail /dev/zero", {"limits": ResourceLimits(max_memory_mb=48)}, ""),
    "forks and forks": (
        "for each in $(seq 60); do sleep 1000 & done; wait",
        {"limits": ResourceLimits(max_processes=20), "timeout": "10s"},
        "",
    ),
    "writes a file without end": (
        "exec dd if=/dev/zero of=big bs=65536",
        {"limits": ResourceLimits(max_file_bytes=1 << 20, max_memory_bytes=None)},
        "max_file_bytes",
    ),
    "fills the disk": ("head -c 10 /dev/zero > /dev/full || exit 5", {}, "o space left on device"),
}


def left_in(folder: Path) -> list[str]:
    """The processes whose working directory this is."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if os.readlink(entry / "cwd") == str(folder):
                found.append((entry / "cmdline").read_text())
        except OSError:
            continue
    return found


@pytest.mark.slow  # a second of a core
@pytest.mark.parametrize("pool", [None, 2])
async def test_each_costs_its_own_record_and_nothing_of_it_is_left(
    memory_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pool: int | None
) -> None:
    for module in ("runs", "pool"):
        monkeypatch.setattr(f"sabot.agents.programs.{module}.GRACE_SECONDS", 0.05)
    folder = tmp_path.resolve()
    app = App("works", memory_url, state=str(folder / "state"), checkpoint_interval=3600)
    hostile = {
        name: each for name, each in HOSTILE.items() if not (pool and name == "floods stdout")
    }  # its answer is "y"
    for number, (script, options, _) in enumerate(hostile.values()):
        body = f'case $task in *bad*) {script};; *) echo "{number} good";; esac'
        body = f"while read -r task; do {body}; done" if pool else f"task=$1; {body}"
        command = ["sh", "-c", body.replace("{", "{{").replace("}", "}}"), "sh", *([] if pool else ["{task}"])]
        given: dict[str, Any] = {"sink": "lines", "on_error": "skip", "dead_letter": "bad", "pool": pool, **options}
        app.process_agent(f"tasks{number}", command=command, name=f"agent{number}", working_dir=folder, **given)
        publish(app, f"tasks{number}", [{"task": "one"}, {"task": "bad"}, {"task": "two"}])
    async with started(app):
        await until(lambda: len(records(app, "lines")) == 2 * len(hostile) and len(records(app, "bad")) == len(hostile))
        assert len((await Supervisor.running()).children) <= 2 * len(hostile)
    assert (await Supervisor.running()).children == []
    assert left_in(folder) == []
    said = {
        dict(each.headers)["sabot.topic"].decode(): dict(each.headers)["sabot.message"].decode()
        for each in records(app, "bad")
    }
    wrong = {
        name: said[f"tasks{number}"]
        for number, (name, (_, _, why)) in enumerate(hostile.items())
        if why not in said[f"tasks{number}"]
    }
    assert wrong == {}
