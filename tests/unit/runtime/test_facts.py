"""A manifest that somebody else has written, with a checksum that fits: a corrupt checkpoint, or an app that goes on."""

import json
import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sabot import App
from sabot.errors import CorruptCheckpoint
from sabot.testing import BARRIER, END, ListSink, ScriptedSource, run


def build(directory: Path) -> App:
    app = App("facts", state="memory", checkpoint_dir=directory)
    rows = app.stream(ScriptedSource([{"user": "a", "ts": 1}, BARRIER, {"user": "b", "ts": 2}, END]))
    rows.key_by("user").deduplicate().to(ListSink())

    @app.agent(ScriptedSource([1, 2, END]), sink=ListSink())
    async def double(ctx: Any) -> int:
        await ctx.state().put("last", ctx.message)
        return ctx.message * 2

    return app


def rewritten(directory: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """The newest manifest with another body, and the checksum of that."""
    path = max((directory / "checkpoints").glob("*.json"))
    manifest = json.loads(path.read_bytes())
    change(manifest["body"])
    body = json.dumps(manifest["body"])
    path.write_text(f'{{"format_version": 2, "crc32": {zlib.crc32(body.encode())}, "body": {body}}}')
    return path


def put(*way: Any) -> Callable[[dict[str, Any]], None]:
    def change(body: dict[str, Any]) -> None:
        place: Any = body["tasks"]
        place["read-1/0"]["meta"]["ended"] = False  # else nothing is restored
        for step in way[:-2]:
            place = place[step]
        place[way[-2]] = way[-1]

    return change


READER = ("read-1/0", "meta", "input")
SOURCE = ("agents", "meta", "sources", "facts.double/script")


@pytest.mark.one_in(3, "a tenth of a second of a core each")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put(*READER, "positions", [["script", 0]]), r"task read-1/0 .*\$\.positions\[0\]"),
        (put(*READER, "positions", [["script", 0, 2**70]]), r"task read-1/0 .*\$\.positions\[0\]\[2\]"),
        (put(*READER, "watermark_ms", None), r"task read-1/0 .*\$\.watermark_ms"),
        (put(*READER, "schema", "zz"), r"task read-1/0 .*non-hexadecimal"),
        (put("read-1/0", "meta", "operators", "deduplicate-1", 7), r"task read-1/0 .*\$\.operators"),
        (put("read-1/0", "meta", "texts", []), r"task read-1/0 .*\$\.texts"),
        (put(*SOURCE, "log", 5), r"task agents .*\$\.sources\[\.\.\.\]\.log"),
        (put("agents", "meta", "agents", "facts.double", {}), r"task agents .*missing required field"),
        (put("read-1/0", "meta", "operators", "deduplicate-1", "panes", 7), r"deduplicate-1 .*cannot be restored"),
        (put("read-1/0", "meta", "operators", "deduplicate-1", "schema", 7), r"the streams cannot be restored"),
    ],
)
def test_what_a_manifest_says_of_its_tasks_is_checked_before_anything_relies_on_it(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    run(build, tmp_path)
    path = rewritten(tmp_path, lambda body: None)
    run(build, tmp_path)  # it can be rewritten, and is still one
    rewritten(tmp_path, change)
    with pytest.raises(CorruptCheckpoint, match=message) as refused:
        run(build, tmp_path)
    assert re.search(re.escape(str(path.parent.parent)), str(refused.value))
