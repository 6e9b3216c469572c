"""What a checkpoint costs does not grow with the number of checkpoints before it."""

import os
from itertools import pairwise
from pathlib import Path

import pytest

import sabot
from sabot import App, NdjsonSink
from sabot.engine.state import BackendConfig, RocksDBBackend
from sabot.engine.state.backends import database
from sabot.testing.lives import temporary_directory


async def test_the_same_state_takes_no_more_in_a_later_checkpoint() -> None:
    """Seen before: the MANIFEST of RocksDB grew by 131 bytes and four keys a checkpoint, and each checkpoint stored all of it:
    11 MB each after a day of one a second. Long keys let it grow faster."""
    saved = []
    with temporary_directory() as root:
        backend = RocksDBBackend(BackendConfig("rocksdb", root / "state"))
        for number in range(40):
            backend.write("n", b"k" * 8000, b"%d" % number)
            snapshot = await backend.snapshot()
            saved.append(await snapshot.save(root / f"saved-{number}"))
        await backend.close()
    assert max(saved) < database._MANIFEST_BYTES + 100_000
    begun_anew = [after for before, after in pairwise(saved) if after < before - 100_000]
    assert len(begun_anew) >= 2, saved  # RocksDB begins a new one again and again


def counted(root: Path) -> tuple[int, int]:
    """(files and folders, bytes) below, of what does not grow by design: not the output."""
    entries = [entry for entry in root.rglob("*") if entry.name != "out.ndjson"]
    return len(entries), sum(entry.stat().st_size for entry in entries if entry.is_file())


@pytest.mark.slow
async def test_files_bytes_and_descriptors_of_an_app_have_no_slope(monkeypatch: pytest.MonkeyPatch) -> None:
    """State of an agent, a table of a stream, output that is delivered exactly once; the sizes at which things are begun anew are
    small, so that some hundred checkpoints are a day."""
    monkeypatch.setattr(database, "_MANIFEST_BYTES", 8 << 10)
    with temporary_directory() as root:
        app = App("grow", state=str(root / "state"), checkpoint_interval="1h", broker="memory://growth")

        @app.agent("in", sink=NdjsonSink(root / "out.ndjson"), key="k", schema={"k": "string", "v": "int64"})
        async def count(ctx):
            n = (await ctx.state().get("n") or 0) + 1
            await ctx.state().put("n", n)
            return {"n": n}

        rows = app.stream("rows", schema={"k": "string", "v": "int64"})
        rows.key_by("k").aggregate(n=sabot.count()).to("totals")
        await app.start()
        peaks = []
        for _ in range(3):  # the first fills what is filled once: 256 folders by hash
            sizes = []
            for number in range(150):
                for topic in ("in", "rows"):
                    await app.send(topic, {"k": f"k{number % 7}", "v": number})
                await app.agent_runtime.trigger_checkpoint()
                if number % 5 == 0:
                    sizes.append((*counted(root), len(os.listdir("/proc/self/fd"))))
            peaks.append([max(figure) for figure in zip(*sizes, strict=True)])
        await app.stop()
    (_, second, third) = peaks
    for before, after, slack in zip(second, third, (20, 60_000, 3), strict=True):
        assert after <= before + slack, peaks
