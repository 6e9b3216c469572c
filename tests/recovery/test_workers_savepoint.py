"""A job starts with workers from a savepoint in an object store."""

import asyncio
import sys
from pathlib import Path

import pytest
from pyarrow import fs

from tools.agent_tools import read_lines, until
from tools.command_line import lines

sys.path.append(str(Path(__file__).parents[1] / "integration"))
from fault_tools import lines_of, running, sabot_run

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


@pytest.mark.slow  # an object store, and five processes
async def test_workers_go_on_from_a_savepoint_in_an_object_store(tmp_path: Path) -> None:
    from moto.server import ThreadedMotoServer

    (tmp_path / "counted.py").write_text(PROGRAM)
    out, log, more = tmp_path / "out.ndjson", tmp_path / "log", tmp_path / "more.ndjson"
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        options = f"region=us-east-1&scheme=http&endpoint_override={host}:{port}&allow_bucket_creation=true"
        fs.FileSystem.from_uri(f"s3://any:any@kept/x?{options}")[0].create_dir("kept")
        with running(log, "counted:app", "--state", "state", folder=tmp_path, OUT=str(out)) as process:
            await until(lambda: process.poll() is not None or (out.exists() and read_lines(out)), "rows", patience=60)
            process.terminate()
            assert await asyncio.to_thread(process.wait, 60) == 0, lines_of(log)
        assert max(row["n"] for row in read_lines(out)) == 3
        place = f"s3://any:any@kept/savepoint?{options}"
        await asyncio.to_thread(lines, "savepoint", "create", tmp_path / "state", "--to", place, "--json")
        words = ["counted:app", "--state", "other", "--from", place, "--workers", "2"]
        done = await asyncio.to_thread(lambda: sabot_run(*words, folder=tmp_path, seconds=150, OUT=str(more), MORE="1"))
        assert done.returncode == 0, done.stderr
        assert [row["n"] for row in read_lines(more)] == [4]
    finally:
        server.stop()
