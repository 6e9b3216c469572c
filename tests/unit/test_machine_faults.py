"""A fault of the machine (a full disk, too many open files) is told as what it is, with what to do about it."""

import errno
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
from confluent_kafka import KafkaError

from sabot import NdjsonSink, steps
from sabot.base.os_errors import checkpoint_error, errno_of, hint_of
from sabot.connectors.base import Batch
from sabot.connectors.files import ParquetSource
from sabot.connectors.sql import SqlSink
from sabot.engine.checkpoint import CheckpointStorage, Manifest
from sabot.engine.state import BackendConfig, RocksDBBackend
from sabot.engine.state.backends.database import StateDatabase
from sabot.errors import BrokerUnavailable, CheckpointFailed, CorruptCheckpoint, SabotError, TransientError, UserError
from sabot.kafka.client import BrokerLink, explain

HINTS = {
    errno.ENOSPC: "the disk is full (df -h), or has no room for more files (df -i): make room there",
    errno.EDQUOT: "quota of the disk is used up: make room there",
    errno.EFBIG: "a file would be larger than",
    errno.EROFS: "mounted read-only",
    errno.EACCES: f"runs as user {os.geteuid()}, who may not",
    errno.EPERM: f"runs as user {os.geteuid()}, who may not",
    errno.EMFILE: "ulimit -n",
    errno.ENFILE: "fs.file-max",
    errno.EIO: "dmesg",
    errno.ENAMETOOLONG: "shorter one",
    errno.ESTALE: "mount it anew",
}


@pytest.mark.parametrize(("number", "words"), HINTS.items(), ids=[errno.errorcode[number] for number in HINTS])
def test_each_fault_has_its_hint_however_it_is_told(number: int, words: str) -> None:
    text = os.strerror(number)
    for error in (
        OSError(number, text, "/f"),
        Exception(f"IO error: {text}: While appending to file: /state/db/1/000012.sst"),  # RocksDB
        pa.ArrowException(f"IOError: Error writing bytes to file. Detail: [errno {number}] {text}"),
        f"Failed to create socket: {text.lower()}",  # librdkafka
    ):
        assert errno_of(error) == number
        assert words in hint_of(error, "otherwise")


def test_what_is_no_fault_of_the_machine_is_not_said_to_be_one() -> None:
    """Seen before: "(is the disk full?)" behind every error of RocksDB."""
    for error in (
        OSError(errno.ENOENT, "No such file or directory"),
        Exception("Corruption: bad block"),
        ValueError("7"),
    ):
        assert errno_of(error) == 0
        assert hint_of(error) == ""
        assert hint_of(error, "look again") == "look again"


async def test_an_error_of_the_database_is_no_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = RocksDBBackend(BackendConfig("rocksdb", tmp_path / "state"))
    for words, hint in (("Corruption: bad block", ""), ("IO error: No space left on device", "make room")):
        monkeypatch.setattr(StateDatabase, "write", lambda *_, words=words: (_ for _ in ()).throw(Exception(words)))
        backend.write("n", b"k", b"v")
        with pytest.raises(CheckpointFailed) as failed:
            await backend.snapshot()
        assert hint in failed.value.hint
        assert bool(failed.value.hint) == bool(hint)
    await backend.close()


TOO_MANY = """
import asyncio, os, resource, sys
from pathlib import Path
import rocksdict  # the first backend loads it, which takes a file
from sabot.engine.checkpoint import CheckpointStorage, Manifest
from sabot.errors import SabotError
from sabot.connectors.files import NdjsonSink, NdjsonSource
from sabot.engine.state import BackendConfig, RocksDBBackend

folder = Path(sys.argv[1])
storage = CheckpointStorage(folder / "checkpoints")
(storage.begin(1) / "blob").write_bytes(b"blob")
storage.commit(1, Manifest(1, 0))
(folder / "in.ndjson").write_text("{}")
source, sink = NdjsonSource(folder / "in.ndjson"), NdjsonSink(folder / "out.ndjson")
(storage.begin(2) / "blob").write_bytes(b"another")
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
held = []
while len(held) < 64:
    try:
        held.append(os.dup(0))
    except OSError:
        break
for name, do in {
    "state": lambda: RocksDBBackend(BackendConfig("rocksdb", folder / "state")),
    "write": lambda: storage.commit(2, Manifest(2, 0)),
    "read": storage.latest,
    "source": lambda: source.open(None),
    "sink": sink.open,
}.items():
    try:
        do()
        print(name, "went well")
    except SabotError as error:
        print(name, type(error).__name__, error)
"""


@pytest.mark.slow  # half a second of a core
@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts its open files there")
def test_too_many_open_files_are_told_with_their_number_and_the_limit(tmp_path: Path) -> None:
    """Seen before: "is the disk full?"; and a checkpoint that could not be opened was corrupt, and to be removed."""
    child = subprocess.run([sys.executable, "-c", TOO_MANY, str(tmp_path)], capture_output=True, text=True, check=True)
    told = dict(line.split(" ", 1) for line in child.stdout.splitlines())
    kinds = {name: text.split()[0] for name, text in told.items()}
    assert kinds == {
        "state": "UserError",
        "write": "CheckpointFailed",
        "read": "UserError",
        "source": "UserError",
        "sink": "UserError",
    }
    for text in told.values():
        assert "this process has 64 files open (" in text
        assert "and may have 64: raise that (ulimit -n 65536" in text
        assert "Kafka" in text
        assert "remove" not in text


NO_DATABASE = """
import os, resource, sys
from pathlib import Path
from sabot.errors import SabotError
from sabot.journal.sqlite import SqliteJournal
SqliteJournal(Path(sys.argv[1])).close()
lowest = os.open(os.devnull, os.O_RDONLY)
os.close(lowest)
for more in range(1, 100):
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + more, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    try:
        SqliteJournal(Path(sys.argv[1])).close()
    except SabotError as error:
        print("ulimit -n" in error.hint, error)
    else:
        break
"""


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="the lowest free descriptor is known there")
def test_a_journal_that_has_no_descriptors_left_says_so(tmp_path: Path) -> None:
    """SQLite hides the error of the system: with `ulimit -n 48` a start ended with "unable to open database file"."""
    child = subprocess.run(
        [sys.executable, "-c", NO_DATABASE, str(tmp_path / "journal")], capture_output=True, text=True, check=True
    )
    told = child.stdout.splitlines()
    assert any("unable to open database file" in line for line in told)
    assert [line for line in told if not line.startswith("True")] == []


def test_a_database_that_is_not_there_is_no_want_of_descriptors(tmp_path: Path) -> None:
    with pytest.raises(sqlite3.OperationalError, match="unable to open") as error:
        sqlite3.connect(f"file:{tmp_path}/none.db?mode=rw", uri=True).execute("SELECT 1")
    assert hint_of(error.value) == ""


TOO_LARGE = """
import asyncio, resource, sys
from sabot.errors import SabotError
from sabot.engine.state import BackendConfig, RocksDBBackend
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
async def main():
    backend = RocksDBBackend(BackendConfig("rocksdb", sys.argv[1]))
    for number in range(2000):
        backend.write("n", b"%d" % number, number.to_bytes(300, "big") + bytes(range(200)))
    try:
        await backend.snapshot()
    except SabotError as error:
        print(type(error).__name__, error)
asyncio.run(main())
"""


@pytest.mark.slow  # half a second of a core
def test_a_limit_of_the_process_on_files_is_no_full_disk(tmp_path: Path) -> None:
    child = subprocess.run([sys.executable, "-c", TOO_LARGE, str(tmp_path)], capture_output=True, text=True, check=True)
    assert child.stdout.startswith(f"CheckpointFailed state directory {tmp_path}: ")
    assert "than this process may write, 100,000 bytes: raise that (ulimit -f)" in child.stdout


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EACCES, errno.ESTALE])
def test_a_checkpoint_that_the_machine_does_not_let_us_read_is_not_corrupt(
    tmp_path: Path, monkeypatch, number: int
) -> None:
    """Seen before: the hint was to remove it, and to have what came after it delivered again."""
    storage = CheckpointStorage(tmp_path)
    (storage.begin(1) / "blob").write_bytes(b"blob")
    storage.commit(1, Manifest(1, 0))

    def refuse(path: str, flags: int) -> int:
        raise OSError(number, os.strerror(number), path)

    with monkeypatch.context() as patch:
        patch.setattr("sabot.engine.checkpoint.places.local.regular", refuse)
        with pytest.raises(UserError) as told:
            storage.latest()
    assert not isinstance(told.value, CorruptCheckpoint)
    assert HINTS[number] in told.value.hint
    assert "remove" not in told.value.hint
    assert storage.latest().checkpoint_id == 1
    storage.unlock()


def test_what_is_damaged_is_corrupt() -> None:
    for number in (errno.ENOENT, errno.EIO, errno.ELOOP):
        assert isinstance(checkpoint_error("f cannot be read", OSError(number, os.strerror(number))), CorruptCheckpoint)
    assert isinstance(checkpoint_error("f: cannot be restored", Exception("Corruption: bad block")), CorruptCheckpoint)


class Full:
    """The disk is full at every step of this name."""

    def __init__(self, name: str) -> None:
        self._name = name

    def before(self, name: str, what: str) -> None:
        if name == self._name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def after(self, name: str, what: str) -> None:
        """Nothing."""

    def torn(self, name: str, what: str, size: int) -> int:
        return size


def test_a_sink_and_a_savepoint_say_it_too(tmp_path: Path) -> None:
    storage = CheckpointStorage(tmp_path / "checkpoints")
    (storage.begin(1) / "blob").write_bytes(b"blob")
    manifest = storage.commit(1, Manifest(1, 0))
    sink = NdjsonSink(tmp_path / "out.ndjson")
    sink.open()

    def write() -> None:
        sink.write(Batch(pa.record_batch({"a": [1]})))
        sink.flush()

    told = []
    for name, do in (("append", write), ("link", lambda: storage.copy_to(manifest, tmp_path / "savepoint"))):
        steps.watch(Full(name))
        try:
            with pytest.raises(SabotError) as error:
                do()
        finally:
            steps.watch(None)
        told.append(error.value.hint)
    assert told == [HINTS[errno.ENOSPC]] * 2
    sink.close()
    storage.unlock()


def test_a_full_sqlite_database_says_it(tmp_path: Path) -> None:
    sink = SqlSink(f"sqlite:///{tmp_path}/t.db", table="t")
    sink.open()
    sink._database.run("PRAGMA max_page_count = 4")
    with pytest.raises(TransientError, match="database or disk is full") as error:
        sink.write(Batch(pa.record_batch({"a": ["x" * 1000] * 100})))
    assert error.value.hint == HINTS[errno.ENOSPC]
    sink.close()


def test_a_source_whose_file_is_damaged_is_not_told_of_the_machine(tmp_path: Path) -> None:
    (tmp_path / "t.parquet").write_bytes(b"PAR1 no parquet PAR1")
    with pytest.raises(UserError, match="it is damaged"):
        ParquetSource(tmp_path / "t.parquet").infer_schema()


def test_a_broker_that_cannot_be_asked_for_want_of_descriptors_is_not_down() -> None:
    """Seen before: "is the broker running, and is the address right?"."""
    link = BrokerLink("127.0.0.1:9092", "source")
    link.reason = "127.0.0.1:9092/bootstrap: Failed to open socket: Too many open files"
    told = explain(KafkaError(KafkaError._TRANSPORT), link, "t")
    assert isinstance(told, BrokerUnavailable)
    assert "ulimit -n" in told.hint
    link.reason = "Connect to ipv4#127.0.0.1:9092 failed: Connection refused"
    assert (
        explain(KafkaError(KafkaError._TRANSPORT), link, "t").hint == "is the broker running, and is the address right?"
    )


def test_want_of_memory_and_of_threads_is_no_damage() -> None:
    """A process with too little memory was told that its file is damaged."""
    assert "ulimit -v" in hint_of(MemoryError("Unable to allocate 1.27 MiB"))
    assert "ulimit -v" in hint_of(pa.ArrowMemoryError("malloc of size 64 failed"))
    assert "ulimit -u" in hint_of(RuntimeError("can't start new thread"))
    assert hint_of(BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"), "otherwise") == "otherwise"
