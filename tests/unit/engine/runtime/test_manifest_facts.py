"""A manifest that somebody else has written, with a checksum that fits: a corrupt checkpoint, or an app that goes on."""

import hashlib
import json
import re
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from sabot import App
from sabot.errors import CorruptCheckpoint
from sabot.testing import BARRIER, END, ListSink, ScriptedSource, run


class Remembering(ScriptedSource):
    """A script that keeps a text beside its positions."""

    def remember(self) -> dict[tuple[str, int], bytes]:
        return {("script", 0): b"a cursor"}

    def recall(self, memory: Mapping[tuple[str, int], bytes]) -> None:
        assert memory == {("script", 0): b"a cursor"}


def build(directory: Path) -> App:
    app = App("facts", state="memory", checkpoint_dir=directory)
    rows = app.stream(Remembering([{"user": "a", "ts": 1}, BARRIER, {"user": "b", "ts": 2}, END]))
    rows.key_by("user").deduplicate().to(ListSink())

    @app.agent(Remembering([1, 2, END]), sink=ListSink())
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


@pytest.mark.one_in(9, "a tenth of a second of a core each")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put(*READER, "positions", [["script", 0]]), r"task read-1/0 .*\$\.positions\[0\]"),
        (put(*READER, "positions", [["script", 0, 2**70]]), r"task read-1/0 .*\$\.positions\[0\]\[2\]"),
        (put(*READER, "memory", None), r"task read-1/0 .*\$\.memory"),
        (put(*READER, "memory", "gone"), r"task read-1/0 cannot be restored.*KeyError"),
        (put(*SOURCE, "memory", "gone"), r"task agents cannot be restored.*KeyError"),
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


@pytest.mark.one_in(3, "a tenth of a second of a core each")
@pytest.mark.parametrize(
    "memory",
    [
        b"",
        b"no msgpack",
        msgspec.msgpack.encode([["script", 2**63, b"a"]]),
        msgspec.msgpack.encode([["script", 0, "a"]]),
    ],
)
def test_a_memory_that_no_source_has_given_is_a_corrupt_checkpoint(tmp_path: Path, memory: bytes) -> None:
    run(build, tmp_path)

    def change(body: dict[str, Any]) -> None:
        put("read-1/0", "meta", "ended", False)(body)
        path = body["tasks"]["read-1/0"]["files"]["script#memory"]
        digest = hashlib.sha256(memory).hexdigest()
        entry = body["contents"][path]
        entry["sha256"], entry["size"] = digest, len(memory)
        (tmp_path / "files" / digest[:2]).mkdir(exist_ok=True)
        (tmp_path / "files" / digest[:2] / f"{digest}-{entry['generation']}").write_bytes(memory)

    rewritten(tmp_path, change)
    with pytest.raises(CorruptCheckpoint, match="task read-1/0 cannot be restored"):
        run(build, tmp_path)
