"""Jobs with workers whose checkpoints are in an object store: a start from a savepoint there, and workers that share no folder."""

import asyncio
import os
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from pyarrow import fs

from sabot.engine.checkpoint import CheckpointStorage
from tools.agent_tools import read_lines, until, write_lines
from tools.broker import free_ports
from tools.checkpoint_tools import files_of
from tools.command_line import lines
from tools.stream_tools import answers, expected, payments

sys.path.append(str(Path(__file__).parents[1] / "integration"))
from test_stream_kill import HERE

from tools.fault_tools import HOLDING, lines_of, running, sabot_run

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("warm_children")]  # an object store, and five processes

PROGRAM = """
import os, sabot
from sabot.testing import END, ScriptedSource

rows = [{"k": "a"}] * 3 + ([{"k": "a"}, END] if "MORE" in os.environ else [])
app = sabot.App("counted")
(
    app.stream(ScriptedSource(rows), schema={"k": "string"})
    .key_by("k")
    .aggregate(n=sabot.count())
    .to(sabot.NdjsonSink(os.environ["OUT"]))
)
"""


@pytest.fixture
def store() -> Iterator[str]:
    """A bucket: `format` puts a path into it, and gives the URI."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        options = f"region=us-east-1&scheme=http&endpoint_override={host}:{port}&allow_bucket_creation=true"
        uri = f"s3://any:any@kept/{{}}?{options}"
        fs.FileSystem.from_uri(uri.format("x"))[0].create_dir("kept")
        yield uri
    finally:
        server.stop()


async def test_workers_go_on_from_a_savepoint_in_an_object_store(store: str, tmp_path: Path) -> None:
    (tmp_path / "counted.py").write_text(PROGRAM)
    out, log, more = tmp_path / "out.ndjson", tmp_path / "log", tmp_path / "more.ndjson"
    with running(log, "counted:app", "--state", "state", folder=tmp_path, OUT=str(out)) as process:
        await until(lambda: process.poll() is not None or (out.exists() and read_lines(out)), "rows")
        process.terminate()
        assert await asyncio.to_thread(process.wait, 60) == 0, lines_of(log)
    assert max(row["n"] for row in read_lines(out)) == 3
    place = store.format("savepoint")
    await asyncio.to_thread(lines, "savepoint", "create", tmp_path / "state", "--to", place, "--json")
    words = ["counted:app", "--state", "other", "--from", place, "--workers", "2"]
    done = await asyncio.to_thread(lambda: sabot_run(*words, folder=tmp_path, seconds=150, OUT=str(more), MORE="1"))
    assert done.returncode == 0, done.stderr
    assert [row["n"] for row in read_lines(more)] == [4]


async def test_workers_that_share_no_folder_make_every_window_once_though_one_is_killed(
    store: str, tmp_path: Path
) -> None:
    """Each process has a folder of its own for its state, as on a machine of its own; what they share is the object store."""
    rows, out = payments(6000), tmp_path / "out.ndjson"
    write_lines(tmp_path / "in.ndjson", rows)
    env = {"MINUTES_ID": "files", "MINUTES_IN": str(tmp_path / "in.ndjson"), "MINUTES_OUT": str(out)}
    hurry = tmp_path / "hurry"
    env |= {"MINUTES_SLOW": "0.2", "MINUTES_HURRY": str(hurry)}  # the first checkpoint is in the midst of the rows
    env |= {"PYTHONPATH": os.pathsep.join([str(HERE), *sys.path])}
    homes = [tmp_path / f"machine-{number}" for number in range(4)]
    log = homes[3] / "log"
    secrets, [port] = tmp_path / "secrets", free_ports(1)
    for folder in (secrets, *homes):
        folder.mkdir()
    (secrets / "token").write_text("a token of sixteen characters")
    address, place = f"127.0.0.1:{port}", store.format("app")
    words = ["minutes_app:app", "--state", "state", "--checkpoint-dir", place, "--checkpoint-interval", "0.2"]
    words += ["--workers", "2", "--listen", address, "--secrets", str(secrets), "--restart", "fixed(5, 100ms)"]

    def join(number: int):
        log, words = tmp_path / f"join{number}", [address, "minutes_app:app", "--secrets", str(secrets)]
        return running(log, *words, folder=homes[number], verb="join", **env)

    def lives() -> list[tuple[str, str]]:
        return re.findall(r"tasks on 2 workers: pids (\d+), (\d+)", lines_of(log))

    storage = CheckpointStorage(place)
    app = running(log, *words, folder=homes[3], program=HOLDING, **env)
    with join(0), join(1), join(2), app as process:
        await until(lambda: process.poll() is not None or lives(), "workers")
        await until(lambda: process.poll() is not None or storage.ids(), "a checkpoint")
        assert process.poll() is None, lines_of(log)
        told = await asyncio.to_thread(lines, "workers", homes[3] / "state", "--json")
        assert [each["pid"] for each in told] == [int(pid) for pid in lives()[-1]]
        os.kill(int(lives()[0][0]), signal.SIGKILL)
        hurry.touch()
        for number in (1, 2, 3):  # of the attempts: it is held before the kill only, so that it is not over then
            (homes[3] / f"killed-{number}").touch()
        assert await asyncio.to_thread(process.wait, 150) == 0, lines_of(log)
    assert len(lives()) >= 2, lines_of(log)
    found = read_lines(out)
    assert answers(found) == expected(rows)
    assert len(found) == len(expected(rows)), "a window came twice"
    kept = [file for manifest in storage.manifests() for file in manifest.contents.values()]
    assert any(file.writer for file in kept), "the workers have stored nothing themselves"
    storage.lock()
    storage.drop_old()
    assert set(files_of(storage).all_files()) == {file.name for file in kept}
    storage.unlock()
