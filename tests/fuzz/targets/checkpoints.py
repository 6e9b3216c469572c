"""A whole checkpoint: manifest, files, requests. It is looked at as `sabot checkpoints` and `sabot state` do, and an app resumes it."""

import hashlib
import json
import logging
import random
import tempfile
import threading
import zlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
from mutations import damaged_value, json_bytes, mutated, pack, unpack

import sabot
from sabot import App, Batch
from sabot.base.os_errors import restoring
from sabot.engine.checkpoint.places import StoredFile
from sabot.engine.checkpoint.requests import Requests
from sabot.engine.checkpoint.storage import CheckpointStorage
from sabot.engine.delivery.parts import read_part
from sabot.engine.operators.reading import operators_of, state_of
from sabot.errors import AgentFailed, InternalError, SabotError
from sabot.testing import BARRIER, CRASH, END, ListSink, ScriptedSource, run
from targets.base import Target, refused, use
from targets.saved import damaged_arrow

__all__ = ["Checkpoints"]

_ROWS = [{"user": f"u{n % 3}", "x": n / 4, "ts": n * 1000} for n in range(12)]
_SCHEMA = pa.schema([("user", pa.string()), ("x", pa.float64()), ("ts", pa.int64())])


class _Enough(Exception):
    """The first life is over, and there shall be no second one."""


class Checkpoints(Target):
    """Checkpoints of an app with a stream, an agent with state, and exactly-once output that waits for its delivery."""

    name = "checkpoints"
    a_moment = 5

    def __init__(self) -> None:
        super().__init__()
        logging.getLogger("sabot").setLevel(logging.CRITICAL + 1)
        self._parts = self._made()
        self.seeds = [pack(self._parts)]

    def _made(self) -> dict[str, bytes]:
        lives = 0

        def once(directory: Path) -> App:
            nonlocal lives
            lives += 1
            if lives == 2:
                raise _Enough
            return _app(directory, [_ROWS[:8], BARRIER, _ROWS[8:10], CRASH, END], behind_the_agent=True)

        with tempfile.TemporaryDirectory(dir=self.directory) as folder:
            with suppress(_Enough):
                run(once, Path(folder))
            (manifest,) = sorted((Path(folder) / "checkpoints").glob("*.json"))[-1:]
            body = json.loads(manifest.read_bytes())["body"]
            parts = {"name": manifest.name.encode(), "manifest": json_bytes(body), "request": b'{"savepoint": "x"}'}
            for path, entry in body["contents"].items():
                name = StoredFile(**entry).name
                parts[f"file {path}"] = (Path(folder) / "files" / name.removeprefix("files/")).read_bytes()
            return parts

    def make(self, rng: random.Random) -> bytes:
        parts = dict(self._parts)
        for _ in range(rng.choice((1, 1, 2))):
            which = rng.choice([*("manifest",) * 4, "request", *(name for name in parts if name.startswith("file"))])
            if which == "manifest":
                parts[which] = json_bytes(damaged_value(rng, json.loads(parts[which])))
            elif which != "request" and rng.random() < 0.6:
                parts[which] = damaged_arrow(rng, parts[which])
            else:
                parts[which] = mutated(rng, [parts[which]])
        return pack(parts)

    def check(self, data: bytes) -> bool:
        parts = unpack(data)
        with tempfile.TemporaryDirectory(dir=self.directory) as folder:
            directory = Path(folder)
            self._write(parts, directory)
            Requests(directory).pending()
            return bool(self._look(directory) | self._go_on(directory))

    def _write(self, parts: dict[str, bytes], directory: Path) -> None:
        """With hashes and a checksum that fit."""
        body = parts["manifest"].decode()
        for name, content in parts.items():
            if name.startswith("file "):
                before, now = (hashlib.sha256(each).hexdigest() for each in (self._parts[name], content))
                body = body.replace(before, now)
                size = f'"size": {len(self._parts[name])}, "sha256": "{now}"'
                body = body.replace(size, f'"size": {len(content)}, "sha256": "{now}"')
                path = directory / StoredFile(len(content), now, 1).name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
        (directory / "checkpoints").mkdir(parents=True, exist_ok=True)
        about = f'{{"format_version": 2, "crc32": {zlib.crc32(body.encode())}, "body": {body}}}'
        (directory / "checkpoints" / parts["name"].decode()).write_text(about)
        (directory / "requests").mkdir()
        (directory / "requests" / f"{'a' * 32}.json").write_bytes(parts["request"])

    def _look(self, directory: Path) -> bool:
        storage = CheckpointStorage(directory)
        try:
            manifest = storage.latest()
            assert manifest is not None
            storage.verify(manifest)
            names: Sequence[str] = [each.id for each in operators_of(manifest)]
            for lane in manifest.lanes.values():
                for part in lane.pending:
                    with restoring("part", part.file):
                        for batch in read_part(manifest.part_path(part)):
                            use(batch)
        except SabotError as error:
            return refused(error)
        for name in names:
            try:
                for batch in state_of(manifest, name).to_batches():
                    use(batch)
            except SabotError as error:
                refused(error)
        return True

    def _go_on(self, directory: Path) -> bool:
        try:
            run(lambda folder: _app(folder, [_ROWS[:8], BARRIER, _ROWS[8:10], _ROWS[10:], END]), directory)
        except (InternalError, AgentFailed):
            return False  # what no program has written may fail later, loudly
        except SabotError as error:
            return refused(error)
        return True


class _Behind(ScriptedSource):
    """Reads nothing until `given` is set."""

    given: threading.Event

    def read_batch(self, max_rows: int, timeout: float) -> Batch | None:
        return super().read_batch(max_rows, timeout) if self.given.wait(timeout) else None


def _app(directory: Path, script: list[Any], *, behind_the_agent: bool = False) -> App:
    """`behind_the_agent`: True if the stream waits until the agent has seen all of its rows, so that a checkpoint has its output."""
    app = App("fuzzed", state="memory", checkpoint_dir=directory)
    source = _Behind(script)
    source.given = threading.Event()
    if not behind_the_agent:
        source.given.set()
    rows = app.stream(source, schema=_SCHEMA, time="ts")
    rows.key_by("user").window(sabot.tumbling("5s")).aggregate(n=sabot.count(), most=sabot.max("x")).to(ListSink())
    rows.key_by("user").aggregate(n=sabot.count()).to(ListSink(), delivery="at_least_once")

    @app.agent(ScriptedSource([1, 2, 3, END]), sink=ListSink())
    async def add(ctx: Any) -> Any:
        total = (await ctx.state().get("total") or 0) + ctx.message
        await ctx.state().put("total", total)
        if ctx.message == 3:
            source.given.set()
        return total

    return app
