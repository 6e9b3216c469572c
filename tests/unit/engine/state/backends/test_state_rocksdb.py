"""What is special about the RocksDB backend: its directory, its lock, its cache."""

import asyncio
import errno
import os
import signal
import subprocess
import sys

import pytest

from sabot.engine.state import BackendConfig, RocksDBBackend, load_snapshot
from sabot.engine.state.backends.database import StateDatabase, database_options
from sabot.errors import AppLocked, CheckpointFailed, SabotError, UserError
from tools.command_line import child


def opened(path, **config) -> RocksDBBackend:
    return RocksDBBackend(BackendConfig("rocksdb", path, **config))


HOLDER = """
import sys
from sabot.engine.state import BackendConfig, RocksDBBackend
backend = RocksDBBackend(BackendConfig("rocksdb", sys.argv[1]))
backend.write("n", b"k", b"theirs")
print("open", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that has `tmp_path / "state"` open."""
    command = [sys.executable, "-c", HOLDER, tmp_path / "state"]
    with child(*command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == "open\n"
        yield other


async def test_a_directory_in_use_by_another_process_is_refused_by_name(holder, tmp_path):
    path = tmp_path / "state"
    with pytest.raises(AppLocked) as error:
        opened(path)
    assert str(path) in str(error.value)
    assert str(holder.pid) in str(error.value)
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    backend = opened(path)  # a killed process holds nothing
    assert backend.namespaces() == []  # and what it left is no authority
    await backend.close()


async def test_a_directory_in_use_by_this_process_is_refused_until_it_is_closed(tmp_path):
    first = opened(tmp_path)
    with pytest.raises(AppLocked, match=str(os.getpid())):
        opened(tmp_path)
    first.write("n", b"k", b"1")
    assert first.read("n", b"k") == b"1"
    await first.close()
    second = opened(tmp_path)
    assert second.read("n", b"k") is None
    await second.close()


def test_a_directory_that_is_not_ours_is_left_alone(tmp_path):
    precious = tmp_path / "db" / "customers.db"
    precious.parent.mkdir()
    precious.write_text("data")
    for _ in range(2):
        with pytest.raises(UserError, match="customers"):
            opened(tmp_path)
    assert precious.read_text() == "data"


def test_a_path_that_cannot_be_a_directory_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=str(tmp_path / "file")):
        opened(tmp_path / "file" / "below")


async def test_options_are_passed_on_and_checked(tmp_path):
    backend = opened(tmp_path / "a", options={"max_open_files": 64, "set_max_background_jobs": 1})
    backend.write("n", b"k", b"1")
    snapshot = await backend.snapshot()
    text = "".join(file.read_text() for file in snapshot.path.glob("OPTIONS-*"))
    assert "max_open_files=64" in text
    assert "max_background_jobs=1" in text
    await backend.close()
    for options in ({"no_such_thing": 1}, {"max_open_files": "many"}):
        with pytest.raises(UserError, match=next(iter(options))):
            opened(tmp_path / "b", options=options)


async def test_a_snapshot_is_saved_as_links_and_its_own_directory_goes(tmp_path):
    backend = opened(tmp_path / "state")
    backend.write_many("n", [b"%d" % n for n in range(100)], [b"x" * 100] * 100)
    snapshot = await backend.snapshot()
    own = snapshot.path
    assert own.is_relative_to(tmp_path / "state" / "snapshots")
    await snapshot.save(tmp_path / "saved")
    assert not own.exists()
    assert [file.stat().st_nlink for file in (tmp_path / "saved").glob("*.sst")] == [2]
    dropped = await backend.snapshot()
    dropped.discard()
    dropped.discard()
    assert list((tmp_path / "state" / "snapshots").iterdir()) == []
    await backend.close()


async def test_where_links_cannot_be_made_files_are_copied(tmp_path, monkeypatch):
    def no_links(source, target):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", no_links)
    backend = opened(tmp_path / "state")
    backend.write("n", b"k", b"1")
    await (await backend.snapshot()).save(tmp_path / "saved")
    backend.write("n", b"k", b"2")
    await backend.restore(load_snapshot(tmp_path / "saved"))
    assert backend.read("n", b"k") == b"1"
    await backend.close()


async def test_a_snapshot_stays_as_it_was_whatever_the_backend_does_later(tmp_path):
    backend = opened(tmp_path / "state")
    for n in range(10):  # enough for RocksDB to merge and drop files
        backend.write_many("n", [b"%d" % k for k in range(100)], [b"%d" % n] * 100)
        await (await backend.snapshot()).save(tmp_path / str(n))
    for n in (3, 9, 0):
        await backend.restore(load_snapshot(tmp_path / str(n)))
        assert {value for _, value in backend.items("n")} == {b"%d" % n}
        backend.write("n", b"0", b"touched")
        (await backend.snapshot()).discard()
    assert {value for _, _, value in load_snapshot(tmp_path / "3").entries()} == {b"3"}
    assert len(list((tmp_path / "state" / "db").iterdir())) == 1
    await backend.close()


async def test_closing_while_a_snapshot_is_under_way_waits_for_it(tmp_path):
    backend = opened(tmp_path / "state")
    backend.write_many("n", [b"%d" % n for n in range(10_000)], [b"x"] * 10_000)
    task = asyncio.ensure_future(backend.snapshot())
    await asyncio.sleep(0)
    await backend.close()
    snapshot = await task
    assert sum(1 for _ in snapshot.entries()) == 10_000


async def test_a_write_out_that_fails_loses_nothing_and_is_reported(tmp_path, monkeypatch):
    backend = opened(tmp_path / "state", memory_budget="1MB")
    good, failing = StateDatabase._ingest, [True]

    def ingest(self, *args):
        if failing[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        good(self, *args)

    monkeypatch.setattr(StateDatabase, "_ingest", ingest)
    written = {}

    def fill():
        for n in range(100_000):
            written[b"%d" % n] = b"x"
            backend.write("n", b"%d" % n, b"x")

    with pytest.raises(SabotError, match="No space left") as error:
        fill()
    assert str(tmp_path) in str(error.value)
    with pytest.raises(CheckpointFailed, match="No space left"):
        await backend.snapshot()
    # two cuts at once: the second must not count as complete without the first
    first = asyncio.ensure_future(backend.snapshot())
    await asyncio.sleep(0)
    backend.write("n", b"between", b"1")
    written[b"between"] = b"1"
    second = asyncio.ensure_future(backend.snapshot())
    results = await asyncio.gather(first, second, return_exceptions=True)
    assert [type(result) for result in results] == [CheckpointFailed, CheckpointFailed]
    failing[0] = False
    assert dict(backend.items("n")) == written
    snapshot = await backend.snapshot()
    assert {key: value for _, key, value in snapshot.entries()} == written
    await backend.close()


async def test_absent_keys_are_asked_for_once(tmp_path, monkeypatch):
    backend = opened(tmp_path / "state")
    asked = []
    get, get_many = StateDatabase.get, StateDatabase.get_many
    monkeypatch.setattr(StateDatabase, "get", lambda self, n, key: asked.append(key) or get(self, n, key))
    monkeypatch.setattr(StateDatabase, "get_many", lambda self, n, keys: asked.extend(keys) or get_many(self, n, keys))
    for _ in range(3):
        assert backend.read("n", b"1") is None
        assert backend.read_many("n", [b"1", b"2"]) == [None, None]
    assert asked == [b"1", b"2"]
    backend.write("n", b"1", b"x")
    await backend.snapshot()
    assert backend.read("n", b"1") == b"x"
    assert asked == [b"1", b"2"]
    await backend.close()


def test_a_database_that_is_closed_says_so_in_our_words_and_closes_again_in_silence(tmp_path):
    """After a full disk had ended a run, its last words were those of RocksDB's client: DbClosedError."""
    database = StateDatabase(tmp_path / "1", database_options(1 << 20, {}), sealed=False)
    database.write("n", {b"k": b"v"})
    database.close()
    database.close()
    assert database.statistics() == {"keys": 0, "bytes": 0}
    for use in (lambda: database.write("n", {b"k": b"w"}), lambda: database.checkpoint(tmp_path / "2")):
        with pytest.raises(SabotError, match="is closed, because the run of the app that wrote it has ended or failed"):
            use()


def test_an_error_of_one_handle_leaves_none_open(tmp_path):
    database = StateDatabase(tmp_path / "1", database_options(1 << 20, {}), sealed=False)
    database.write("n", {b"k": b"v"})

    class Full:
        def close(self):
            raise OSError(errno.ENOSPC, "No space left on device")

    database._families["full"] = Full()
    with pytest.raises(OSError, match="No space left"):
        database.close()
    again = StateDatabase(tmp_path / "1", database_options(1 << 20, {}), sealed=False)  # no lock is left
    assert again.get("n", b"k") == b"v"
    again.close()
