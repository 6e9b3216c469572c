"""Checkpoints on the disk: complete or not at all, and clear words for what is damaged."""

import contextlib
import errno
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sabot import steps
from sabot.engine.checkpoint import CheckpointStorage, Manifest
from sabot.engine.checkpoint.inspection import AppCheckpoints, checkpoint_records
from sabot.engine.checkpoint.manifest import StoredPart, StoredTask, StoredTrack
from sabot.engine.checkpoint.places import Place
from sabot.engine.state import BackendConfig, RocksDBBackend, ValueState, load_snapshot
from sabot.errors import AppLocked, CheckpointFailed, CorruptCheckpoint, UserError
from tools.checkpoint_tools import files_of, in_memory


def write(storage: CheckpointStorage, checkpoint_id: int, data: bytes = b"positions") -> Manifest:
    """One task with a blob and a state directory of two files."""
    directory = storage.begin(checkpoint_id)
    (directory / "t/state/deep").mkdir(parents=True)
    (directory / "t/blob").write_bytes(data)
    (directory / "t/state/000001.sst").write_bytes(data * 1000)
    (directory / "t/state/deep/CURRENT").write_bytes(b"")
    task = StoredTask(meta={"offsets": [["in", 0, 7]]}, files={"window": "t/blob"}, states={"default": "t/state"})
    return storage.commit(checkpoint_id, Manifest(checkpoint_id, 1_700_000_000_000, {"app": "a"}, {"task": task}))


def names(directory: Path) -> list[str]:
    """Ids of complete checkpoints, and whatever else of one is there."""
    complete = [path.name[:10] for path in directory.glob("checkpoints/*")]
    return sorted(complete) + sorted(path.name for path in directory.glob("scratch/[!r]*"))  # not what was restored


def file_of(manifest: Manifest, path: str) -> Path:
    """Where these contents are."""
    return manifest.path.parents[1] / manifest.contents[path].name


def stored(directory: Path) -> set[str]:
    return {path.relative_to(directory).as_posix() for path in directory.glob("files/*/*")}


def test_a_checkpoint_reads_back_as_it_was_written(tmp_path: Path) -> None:
    written = write(CheckpointStorage(tmp_path), 1, b"abc")
    manifest = CheckpointStorage(tmp_path).latest()
    assert manifest == written
    assert manifest.path == tmp_path / "checkpoints" / "0000000001-0000000001.json"
    assert (manifest.generation, manifest.mark) == (1, (1, 1))
    assert manifest.describe == {"app": "a"}
    assert manifest.tasks["task"].meta == {"offsets": [["in", 0, 7]]}
    assert manifest.read_file("task", "window") == b"abc"
    assert (manifest.state_directory("task", "default") / "000001.sst").read_bytes() == b"abc" * 1000
    assert {name: file.size for name, file in manifest.contents.items()} == {
        "t/blob": 3,
        "t/state/000001.sst": 3000,
        "t/state/deep/CURRENT": 0,
    }
    assert manifest.nbytes == 3003


def test_a_directory_that_is_not_there_has_no_checkpoints(tmp_path: Path) -> None:
    storage = CheckpointStorage(tmp_path / "none")
    assert (storage.latest(), storage.manifests(), storage.ids(), storage.last_id()) == (None, [], [], 0)
    assert not (tmp_path / "none").exists()


def test_the_newest_checkpoints_are_kept_and_the_newest_of_all_always(tmp_path: Path) -> None:
    storage = CheckpointStorage(tmp_path, retain=2)
    for checkpoint_id in (1, 2, 3, 10):
        write(storage, checkpoint_id)
        storage.drop_old()
    assert storage.ids() == [3, 10]
    assert [manifest.checkpoint_id for manifest in storage.manifests()] == [3, 10]
    assert storage.last_id() == 10
    assert names(tmp_path) == ["0000000003", "0000000010"]
    with pytest.raises(UserError, match="retain=0"):
        CheckpointStorage(tmp_path, retain=0)


class Beside(CheckpointStorage):
    """The checkpoints of a running app for another process: at one of its looks the app makes the next, and drops the oldest."""

    def __init__(self, directory: Path, owner: CheckpointStorage, at: int) -> None:
        super().__init__(directory)
        self.owner, self.at, self.looks = owner, at, 0

    def look(self) -> None:
        self.looks += 1
        if self.looks == self.at:
            write(self.owner, self.owner.last_id() + 1)
            self.owner.drop_old()

    def ids(self) -> list[int]:
        found = super().ids()
        self.look()
        return found

    def read(self, checkpoint_id: int) -> Manifest:
        self.look()
        return super().read(checkpoint_id)


@pytest.mark.parametrize("retain", [1, 2])
def test_a_checkpoint_that_its_app_removes_between_the_list_and_the_read_is_not_called_damaged(
    tmp_path: Path, retain: int
) -> None:
    """The console warned of it, and `sabot checkpoints list` named it as damaged."""
    for at in range(1, 9):
        owner = CheckpointStorage(tmp_path / str(at), retain=retain)
        for checkpoint_id in (1, 2):
            write(owner, checkpoint_id)
            owner.drop_old()
        app = AppCheckpoints(owner.directory)
        app.storage = Beside(owner.directory, owner, at)
        records, damaged = checkpoint_records(app)
        assert damaged == ""
        assert {each.checkpoint for each in records} <= {1, 2}
        assert 2 <= app.manifest().checkpoint_id <= owner.last_id()


def test_ids_of_more_than_ten_digits_still_sort(tmp_path: Path) -> None:
    storage = CheckpointStorage(tmp_path)
    write(storage, 9_999_999_999)
    write(storage, 10_000_000_000)
    assert storage.last_id() == storage.latest().checkpoint_id == 10_000_000_000


def test_an_existing_checkpoint_is_never_written_over(tmp_path: Path) -> None:
    storage = CheckpointStorage(tmp_path)
    write(storage, 1, b"first")
    with pytest.raises(CheckpointFailed, match="exists already"):
        write(storage, 1, b"second")
    storage.abort(1)
    assert storage.latest().read_file("task", "window") == b"first"
    assert names(tmp_path) == ["0000000001"]


def test_clear_forgets_everything(tmp_path: Path) -> None:
    storage = CheckpointStorage(tmp_path)
    write(storage, 1)
    write(storage, 2)
    storage.clear()
    assert storage.latest() is None
    assert names(tmp_path) == []
    assert write(storage, 1).checkpoint_id == 1


def test_what_workers_store_after_a_fresh_start_is_not_swept_with_a_damaged_checkpoint(tmp_path: Path) -> None:
    """Their names have the generation that the start had before it gave the earlier checkpoints up."""
    first = CheckpointStorage(tmp_path / "store")
    damage_bit(write(first, 1).path)
    first.unlock()
    storage = CheckpointStorage(tmp_path / "store")
    storage.lock()
    workers = storage.writer(storage.generation, "worker-1")
    storage.clear()
    (tmp_path / "rows").write_bytes(b"rows of a checkpoint that is not complete yet")
    file = workers.store_file(tmp_path / "rows")
    write(storage, 1)
    storage.drop_old()
    assert (tmp_path / "store" / file.name).exists()


# One owner


def test_after_unlock_only_lock_takes_the_app_again(tmp_path: Path) -> None:
    """A thread of a start that was cancelled locked the app again, and no later start of the process could have it."""
    first, second = CheckpointStorage(tmp_path), CheckpointStorage(tmp_path)
    manifest = write(first, 1)
    first.unlock()
    for late in (
        lambda: first.begin(2),
        first.keep,
        first.drop_old,
        lambda: first.claim_above(7),
        lambda: first.withdraw(manifest),
    ):
        with pytest.raises(CheckpointFailed, match="the run that owned it has ended"):
            late()
    second.lock()
    second.unlock()
    first.lock()
    assert write(first, 2).checkpoint_id == 2


HOLD = """
import os, sys
from sabot.engine.checkpoint import CheckpointStorage
CheckpointStorage(sys.argv[1]).lock()
print("locked", flush=True)
sys.stdin.read()
"""


def hold(directory: Path) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(directory)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout.readline() == b"locked\n"
    return process


@pytest.mark.slow  # half a second of a core
def test_a_second_process_is_refused_until_the_first_is_killed(tmp_path: Path) -> None:
    (tmp_path / "scratch" / "0000000005").mkdir(parents=True)
    first = hold(tmp_path)
    try:
        assert names(tmp_path) == []  # what a crash left behind went with the lock
        (tmp_path / "scratch" / "0000000006").mkdir()
        with pytest.raises(AppLocked) as refused:
            CheckpointStorage(tmp_path).lock()
        assert str(tmp_path) in refused.value.message
        assert f"process {first.pid} on host {os.uname().nodename}" in refused.value.message
        assert "stop that process" in refused.value.hint
        assert names(tmp_path) == ["0000000006"]  # the owner's work is left alone
        with pytest.raises(AppLocked):
            CheckpointStorage(tmp_path).begin(7)
    finally:
        first.send_signal(signal.SIGKILL)
        first.communicate()
    storage = CheckpointStorage(tmp_path)
    storage.lock()
    storage.lock()
    assert names(tmp_path) == []


def test_two_storages_of_one_process_exclude_each_other_too(tmp_path: Path) -> None:
    first, second = CheckpointStorage(tmp_path), CheckpointStorage(tmp_path)
    first.lock()
    with pytest.raises(AppLocked, match=str(os.getpid())):
        second.lock()
    first.unlock()
    first.unlock()
    second.lock()


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file/checkpoints cannot be used"):
        CheckpointStorage(tmp_path / "file" / "checkpoints").lock()


# Damage


def test_a_damaged_checkpoint_stops_with_the_choice_spelled_out(tmp_path: Path) -> None:
    storage = CheckpointStorage(tmp_path)
    first, second, third = (write(storage, checkpoint_id, b"%d" % checkpoint_id) for checkpoint_id in (1, 2, 3))
    file_of(third, "t/state/000001.sst").write_bytes(b"short")
    with pytest.raises(CorruptCheckpoint) as stopped:
        storage.latest()
    assert f"{file_of(third, 't/state/000001.sst')} (t/state/000001.sst)" in stopped.value.message
    assert "5 bytes, not 1000" in stopped.value.message
    assert f"remove {third.path} to go back to checkpoint 2" in stopped.value.hint
    assert "--fresh" not in stopped.value.hint  # which loses all state, while another way exists

    second.path.write_bytes(b"{}")
    with pytest.raises(CorruptCheckpoint, match=f"{third.path} and {second.path} to go back to checkpoint 1"):
        storage.latest()
    file_of(first, "t/blob").unlink()
    with pytest.raises(
        CorruptCheckpoint, match=r"no older checkpoint can be read either: start from a savepoint .* start with --fresh"
    ):
        storage.latest()


def damage_missing(path: Path) -> None:
    path.unlink()


def damage_cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def damage_longer(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b" ")


def damage_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("file", ["manifest.json", "t/blob", "t/state/000001.sst"])
@pytest.mark.parametrize("damage", [damage_missing, damage_cut, damage_longer, damage_bit])
def test_every_kind_of_damage_is_found_and_the_file_named(tmp_path: Path, file: str, damage) -> None:
    written = write(CheckpointStorage(tmp_path), 4)
    path = written.path if file == "manifest.json" else file_of(written, file)
    damage(path)
    if file == "manifest.json" and damage is damage_missing:
        assert CheckpointStorage(tmp_path).latest() is None  # it is the manifest that makes a checkpoint
        return
    if file == "manifest.json" and damage is damage_longer:
        assert CheckpointStorage(tmp_path).latest().checkpoint_id == 4  # white space after it is harmless
        return
    with pytest.raises(CorruptCheckpoint, match=re.escape(str(path))):
        CheckpointStorage(tmp_path).latest()


@given(at=st.integers(0, 10_000), bit=st.integers(0, 7))
@settings(max_examples=60, deadline=None)
def test_no_flipped_bit_of_a_manifest_changes_what_is_read(tmp_path_factory, at: int, bit: int) -> None:
    directory = tmp_path_factory.mktemp("flip")
    written = write(CheckpointStorage(directory), 1)
    path = written.path
    data = bytearray(path.read_bytes())
    data[at % len(data)] ^= 1 << bit
    path.write_bytes(data)
    read, damage = written, str(path)
    try:
        read = CheckpointStorage(directory).latest()  # a flipped bit may leave white space white space
    except CorruptCheckpoint as error:
        damage = error.message
    assert read == written
    assert str(path) in damage


def test_a_state_that_wrote_nothing_is_an_empty_directory(tmp_path: Path) -> None:
    storage = CheckpointStorage(tmp_path)
    (storage.begin(1) / "empty").mkdir()
    storage.commit(1, Manifest(1, 0, {}, {"task": StoredTask(states={"default": "empty"})}))
    assert list(storage.latest().state_directory("task", "default").iterdir()) == []


def test_a_newer_format_is_not_guessed_at(tmp_path: Path) -> None:
    storage = CheckpointStorage(tmp_path)
    path = write(storage, 1).path
    path.write_text('{"format_version": 3, "crc32": 0, "body": {"something": "else"}}')
    with pytest.raises(CorruptCheckpoint, match="newer Sabot: it has format 3, not 2") as stopped:
        storage.latest()
    assert str(path) in stopped.value.message
    assert "install that version again" in stopped.value.hint


def test_checkpoints_of_an_older_format_are_named_and_go_with_a_fresh_start(tmp_path: Path) -> None:
    (tmp_path / "chk-0000000007").mkdir()
    storage = CheckpointStorage(tmp_path)
    with pytest.raises(
        CorruptCheckpoint, match="chk-0000000007 was written by an older Sabot: it has format 1"
    ) as stopped:
        storage.latest()
    assert "--fresh" in stopped.value.hint
    storage.clear()
    assert storage.latest() is None
    assert not (tmp_path / "chk-0000000007").exists()


def test_an_unfinished_checkpoint_is_ignored(tmp_path: Path) -> None:
    storage = CheckpointStorage(tmp_path)
    write(storage, 1)
    (storage.begin(2) / "half").write_bytes(b"written")
    assert storage.latest().checkpoint_id == 1
    assert storage.last_id() == 1


def test_files_that_a_checkpoint_before_held_are_not_read_nor_written_again(tmp_path: Path, monkeypatch) -> None:
    storage = CheckpointStorage(tmp_path / "checkpoints")
    table = tmp_path / "000007.sst"
    table.write_bytes(b"x" * 100)
    synced, hashed = watch_files(monkeypatch)
    for checkpoint_id in (1, 2, 3):
        os.link(table, storage.begin(checkpoint_id) / "000007.sst")
        storage.commit(checkpoint_id, Manifest(checkpoint_id, 0))
        storage.drop_old()
    assert [Path(path).name for path in hashed] == ["000007.sst"]
    assert len([path for path in synced if path.endswith("000007.sst")]) == 1
    first, second, third = storage.manifests()
    assert first.contents == second.contents == third.contents
    assert len(stored(storage.directory)) == 1

    file_of(third, "000007.sst").unlink()
    file_of(third, "000007.sst").write_bytes(b"y" * 100)
    with pytest.raises(CorruptCheckpoint, match="its checksum differs"):
        storage.latest()


def test_what_was_restored_by_links_is_not_read_again_by_the_next_run(tmp_path: Path, monkeypatch) -> None:
    first = CheckpointStorage(tmp_path)
    write(first, 1)
    first.unlock()
    storage = CheckpointStorage(tmp_path)
    storage.lock()
    restored = storage.latest().state_directory("task", "default")
    _, hashed = watch_files(monkeypatch)
    directory = storage.begin(2)
    os.link(restored / "000001.sst", directory / "000001.sst")
    (directory / "new").write_bytes(b"new")
    second = storage.commit(2, Manifest(2, 0))
    assert [Path(path).name for path in hashed] == ["new"]
    assert second.contents["000001.sst"].generation == 1  # it lies where the run before put it
    assert (second.contents["new"].generation, second.generation) == (2, 2)
    storage.release_restored()
    assert not restored.exists()
    storage.verify(second)


def watch_files(monkeypatch: pytest.MonkeyPatch) -> tuple[list[str], list[str]]:
    """Paths of files that are synced, and of files that are hashed."""
    synced: list[str] = []
    hashed: list[str] = []
    sync, digest = os.fdatasync, hashlib.file_digest
    monkeypatch.setattr(os, "fdatasync", lambda fd: (synced.append(os.readlink(f"/proc/self/fd/{fd}")), sync(fd)))
    monkeypatch.setattr(
        hashlib, "file_digest", lambda file, name: (hashed.append(str(file.name)), digest(file, name))[1]
    )
    return synced, hashed


def test_a_file_goes_with_the_last_manifest_that_lists_it(tmp_path: Path) -> None:
    storage = CheckpointStorage(tmp_path, retain=2)

    def save(checkpoint_id: int, **files: bytes) -> set[str]:
        directory = storage.begin(checkpoint_id)
        for name, data in files.items():
            (directory / name).write_bytes(data)
        storage.commit(checkpoint_id, Manifest(checkpoint_id, 0))
        storage.drop_old()
        return {data.decode() for data in map(Path.read_bytes, tmp_path.glob("files/*/*"))}

    assert save(1, a=b"one", b=b"both", twice=b"one") == {"one", "both"}
    assert save(2, b=b"both", c=b"two") == {"one", "both", "two"}
    assert save(3, c=b"two") == {"both", "two"}
    storage.unlock()
    (tmp_path / "files/ab").mkdir(exist_ok=True)
    (tmp_path / f"files/ab/ab{'0' * 62}-1").write_bytes(b"left by a crash")
    (tmp_path / f"files/ab/ab{'0' * 62}-9").write_bytes(b"of a later generation")
    (tmp_path / "files/ab/stranger").write_bytes(b"not ours")
    strangers = {"of a later generation", "not ours"}
    storage.lock()
    assert save(4, d=b"four") == {"two", "four"} | strangers
    assert save(5, e=b"five") == {"four", "five"} | strangers


def test_as_long_as_a_manifest_cannot_be_read_no_file_goes(tmp_path: Path) -> None:
    storage = CheckpointStorage(tmp_path, retain=2)
    first = write(storage, 1, b"first")
    write(storage, 2, b"second")
    storage.unlock()
    damage_bit(first.path)
    before = stored(tmp_path)
    storage.lock()
    storage.clear()
    assert storage.ids() == []
    storage = CheckpointStorage(tmp_path / "other", retain=2)
    bad = write(storage, 1, b"first")
    storage.unlock()
    damage_bit(bad.path)
    storage.lock()
    write(storage, 2, b"second")
    storage.drop_old()
    assert file_of(bad, "t/blob").exists()
    write(storage, 3, b"third")
    storage.drop_old()
    storage.drop_old()
    assert storage.ids() == [2, 3]
    assert not file_of(bad, "t/blob").exists()
    assert before


def test_a_pinned_checkpoint_stays(tmp_path: Path) -> None:
    storage = CheckpointStorage(tmp_path, retain=1)
    first = write(storage, 1, b"first")
    with storage.pinned(first):
        write(storage, 2, b"second")
        storage.drop_old()
        storage.verify(first)
    storage.drop_old()
    assert storage.ids() == [2]
    assert not file_of(first, "t/blob").exists()


def test_what_is_near_of_a_pinned_checkpoint_in_an_object_store_stays_near_while_newer_ones_come(
    tmp_path: Path,
) -> None:
    """A savepoint is copied from there: a file that the next checkpoint no longer needed was gone when it was to be read."""
    storage = CheckpointStorage((in_memory()[0], "apps"), scratch=tmp_path)
    first = write(storage, 1, b"first")
    file = first.contents["t/blob"]
    with storage.pinned(first):
        write(storage, 2, b"second")
        assert storage.fetched(file).is_relative_to(tmp_path)
        near = storage.fetched(file)
        write(storage, 3, b"third")
        assert near.read_bytes() == b"first"
    write(storage, 4, b"fourth")
    assert not near.exists()
    storage.unlock()


def test_files_that_several_threads_fetch_for_a_reader_come_into_one_folder(tmp_path: Path) -> None:
    """Each thread made a folder; those that lost were removed, with what was in them."""
    location = in_memory()[0], "apps"
    writer = CheckpointStorage(location)
    files = list(write(writer, 1).contents.values())
    writer.unlock()
    for _ in range(20):
        place, ready = files_of(CheckpointStorage(location, scratch=tmp_path)), threading.Barrier(8)

        def fetched(number: int, place: Place = place, ready: threading.Barrier = ready) -> Path:
            ready.wait(60)
            return place.fetch(files[number % len(files)])

        with ThreadPoolExecutor(8) as readers:
            paths = list(readers.map(fetched, range(8)))
        assert len(set(paths)) == len(files)
        assert all(path.exists() for path in paths)


def test_generations_grow_and_a_fresh_start_counts_only_its_own(tmp_path: Path) -> None:
    first = CheckpointStorage(tmp_path)
    assert first.generation == 0
    write(first, 1)
    assert first.generation == 1
    first.unlock()
    second = CheckpointStorage(tmp_path)
    write(second, 2)
    assert second.generation == 2
    second.claim_above(1)
    assert second.generation == 2
    second.claim_above(40)
    assert second.generation == 41
    second.clear()
    assert (second.generation, second.ids(), second.last_id()) == (42, [], 0)
    assert stored(tmp_path) == set()
    write(second, 1)
    second.unlock()
    for generation in range(43, 70):
        second.lock()
        assert second.generation == generation
        second.unlock()
    assert len(list(tmp_path.glob("claims/*"))) == 10  # this one, eight before it, and the one that began afresh
    assert second.ids() == [1]


# Savepoints


def test_a_savepoint_is_the_checkpoint_by_itself_in_another_place(tmp_path: Path) -> None:
    storage = CheckpointStorage(tmp_path / "checkpoints", retain=1)
    manifest = write(storage, 7, b"abc")
    assert storage.copy_to(manifest, tmp_path / "deep/savepoint") == tmp_path / "deep/savepoint"
    shutil.rmtree(tmp_path / "checkpoints")
    savepoint = CheckpointStorage(tmp_path / "deep/savepoint")
    found = savepoint.latest()
    assert (found.checkpoint_id, found.generation, found.contents) == (7, 1, manifest.contents)
    assert found.read_file("task", "window") == b"abc"
    assert (found.state_directory("task", "default") / "000001.sst").read_bytes() == b"abc" * 1000
    assert not (savepoint.directory / "LOCK").exists()  # read without owning it


def test_a_savepoint_on_the_same_disk_is_linked(tmp_path: Path) -> None:
    storage = CheckpointStorage(tmp_path / "checkpoints")
    manifest = write(storage, 1)
    storage.copy_to(manifest, tmp_path / "savepoint")
    copy = CheckpointStorage(tmp_path / "savepoint").latest()
    assert file_of(copy, "t/blob").samefile(file_of(manifest, "t/blob"))


def test_a_savepoint_is_never_put_over_another(tmp_path: Path) -> None:
    storage = CheckpointStorage(tmp_path / "checkpoints")
    first, second = write(storage, 1), write(storage, 2)
    storage.copy_to(first, tmp_path / "savepoint")
    with pytest.raises(UserError, match="savepoint holds a checkpoint already"):
        storage.copy_to(second, tmp_path / "savepoint")
    assert CheckpointStorage(tmp_path / "savepoint").ids() == [1]


def test_a_checkpoint_that_went_meanwhile_cannot_be_copied(tmp_path: Path) -> None:
    storage = CheckpointStorage(tmp_path / "checkpoints", retain=1)
    first = write(storage, 1, b"first")
    write(storage, 2, b"second")
    storage.drop_old()
    with pytest.raises(CheckpointFailed, match="checkpoint 1 could not be copied"):
        CheckpointStorage(tmp_path / "checkpoints").copy_to(first, tmp_path / "savepoint")
    assert CheckpointStorage(tmp_path / "savepoint").latest() is None
    CheckpointStorage(tmp_path / "checkpoints").copy_to(
        storage.latest(), tmp_path / "savepoint"
    )  # the place is still free


def test_what_a_reader_restored_is_linked_and_goes_with_him_or_with_the_next_lock(tmp_path: Path) -> None:
    storage = CheckpointStorage(tmp_path)
    manifest = write(storage, 1)
    storage.unlock()
    reader = CheckpointStorage(tmp_path)
    folder = reader.latest().state_directory("task", "default")
    assert (folder / "000001.sst").samefile(file_of(manifest, "t/state/000001.sst"))
    left = tmp_path / "reading-left"
    left.mkdir()
    (left / "temporary.lock").touch()
    storage.lock()
    assert not left.exists()
    assert folder.exists()  # its reader lives
    reader.release_restored()
    assert not folder.exists()


async def test_a_database_that_goes_on_from_a_checkpoint_never_changes_its_files(tmp_path: Path) -> None:
    storage = CheckpointStorage(tmp_path / "checkpoints")
    backend = RocksDBBackend(BackendConfig("rocksdb", tmp_path / "first"))
    await ValueState(backend, "n").put("k", "v" * 1000)
    directory = storage.begin(1)
    await (await backend.snapshot()).save(directory / "state")
    storage.commit(1, Manifest(1, 0, {}, {"task": StoredTask(states={"db": "state"})}))
    await backend.close()
    manifest = storage.latest()
    again = RocksDBBackend(BackendConfig("rocksdb", tmp_path / "second"))
    await again.restore(load_snapshot(manifest.state_directory("task", "db")))
    [table] = [path for path in manifest.contents if path.endswith(".sst")]
    mine = [path for path in (tmp_path / "second").rglob("*.sst") if path.samefile(file_of(manifest, table))]
    assert len(mine) == 1  # linked, not copied
    for n in range(50):
        await ValueState(again, "n").put(str(n), "w" * 10_000)
        if n % 20 == 0:
            (await again.snapshot()).discard()
    assert await ValueState(again, "n").get("k") == "v" * 1000
    await again.close()
    storage.verify(manifest)


# Undelivered output


def test_parts_of_output_are_read_from_a_file_on_this_machine(tmp_path: Path) -> None:
    storage = CheckpointStorage(tmp_path)
    directory = storage.begin(1)
    (directory / "stages/track").mkdir(parents=True)
    (directory / "stages/track/7.arrow").write_bytes(b"rows")
    part = StoredPart(7, "stages/track/7.arrow", 1)
    storage.commit(1, Manifest(1, 0, lanes={"track": StoredTrack("out", 7, 6, [part])}))
    manifest = CheckpointStorage(tmp_path).latest()
    assert manifest.part_path(manifest.lanes["track"].pending[0]).read_bytes() == b"rows"
    with pytest.raises(CorruptCheckpoint, match="has no file stages/track/8"):
        manifest.part_path(StoredPart(8, "stages/track/8.arrow", 1))


# Crashes: the process ends before the n-th change or sync that it asks the system for


class Crash(BaseException):
    pass


def crashing(monkeypatch: pytest.MonkeyPatch, before_step: int) -> list[str]:
    """From here on the n-th file operation does not happen any more; -> the log of those that did."""
    done: list[str] = []

    def guard(module: object, name: str) -> None:
        real = getattr(module, name)

        def step(*args, **kwargs):
            if len(done) == before_step:
                raise Crash
            done.append(name)
            return real(*args, **kwargs)

        monkeypatch.setattr(module, name, step)

    for name in ("fsync", "fdatasync", "rename", "link", "mkdir", "unlink", "rmdir"):
        guard(os, name)
    guard(Path, "write_bytes")
    guard(Path, "mkdir")
    guard(Path, "open")
    return done


def crash_before_each(tmp_path: Path, arm) -> list[bytes]:
    """A second checkpoint is written over and over, each time with a crash one step later; -> what was found afterwards."""
    seen: list[bytes] = []
    for before_step in range(1000):
        directory = tmp_path / str(before_step)
        storage = CheckpointStorage(directory, retain=1)
        write(storage, 1, b"old")
        finished = False
        with pytest.MonkeyPatch.context() as patch, contextlib.suppress(Crash):
            arm(patch, before_step)
            write(storage, 2, b"new")
            storage.drop_old()
            finished = True
        steps.watch(None)
        storage.unlock()  # as the kernel does for a process that is gone
        again = CheckpointStorage(directory, retain=1)
        before_lock = again.latest()
        again.lock()
        manifest = again.latest()
        assert manifest == before_lock
        value = manifest.read_file("task", "window")
        assert (manifest.checkpoint_id, value) in {(1, b"old"), (2, b"new")}
        again.drop_old()
        assert names(directory) == [f"{manifest.checkpoint_id:010d}"]
        assert stored(directory) == {file.name for file in manifest.contents.values()}
        write(again, manifest.checkpoint_id + 1, b"next")
        assert again.latest().read_file("task", "window") == b"next"
        again.unlock()
        seen.append(value)
        if finished:
            break
    switch = seen.index(b"new")
    assert seen == [b"old"] * switch + [b"new"] * (len(seen) - switch)
    return seen


@pytest.mark.slow  # half a second of a core
def test_a_crash_before_any_system_call_leaves_the_old_checkpoint_or_the_new(tmp_path: Path) -> None:
    done: list[list[str]] = []
    seen = crash_before_each(tmp_path, lambda patch, before_step: done.append(crashing(patch, before_step)))
    switch = done[-1].index("link") + 1  # the manifest gets its name
    assert switch > 8
    assert seen.index(b"new") == switch


class CrashAt:
    """Ends the process before the n-th step, or in the middle of it, or after it."""

    def __init__(self, at: int, moment: str) -> None:
        self.at = at
        self.moment = moment
        self.names: list[str] = []

    def before(self, name: str, what: str) -> None:
        self.names.append(name)
        if self.moment == "before" and len(self.names) == self.at + 1:
            raise Crash

    def after(self, name: str, what: str) -> None:
        if self.moment != "before" and len(self.names) == self.at + 1:
            raise Crash

    def torn(self, name: str, what: str, size: int) -> int:
        return size // 2 if self.moment == "torn" and len(self.names) == self.at + 1 else size


@pytest.mark.one_in(3, "a tenth of a second of a core each")
@pytest.mark.parametrize("moment", ["before", "torn", "after"])
def test_a_crash_at_any_step_leaves_the_old_checkpoint_or_the_new(tmp_path: Path, moment: str) -> None:
    watchers: list[CrashAt] = []

    def arm(patch: pytest.MonkeyPatch, at: int) -> None:
        watchers.append(CrashAt(at, moment))
        steps.watch(watchers[-1])

    seen = crash_before_each(tmp_path, arm)
    manifest = watchers[-1].names.index("manifest")
    assert watchers[-1].names[:manifest] == ["rename"] * 2  # the empty file is there already
    assert seen.index(b"new") == manifest + {"before": 1, "torn": 1, "after": 0}[moment]


def test_a_crash_in_a_copy_leaves_no_savepoint_or_a_whole_one(tmp_path: Path) -> None:
    storage = CheckpointStorage(tmp_path / "checkpoints")
    manifest = write(storage, 1)
    found = []
    for at in range(100):
        steps.watch(CrashAt(at, "torn"))
        place = tmp_path / f"savepoint-{at}"
        try:
            storage.copy_to(manifest, place)
            break
        except Crash:
            pass
        finally:
            steps.watch(None)
        copy = CheckpointStorage(place).latest()
        found.append(copy)
        assert copy is None or copy.contents == manifest.contents
        if copy is None:
            storage.copy_to(manifest, place)  # it may be made again
        assert CheckpointStorage(place).latest().read_file("task", "window") == b"positions"
    assert at > 3
    assert found[0] is None


# A full disk


@pytest.mark.parametrize("name", ["fsync", "fdatasync", "rename", "mkdir", "link"])
def test_an_error_of_the_disk_fails_this_checkpoint_only(tmp_path: Path, monkeypatch, name: str) -> None:
    storage = CheckpointStorage(tmp_path)
    write(storage, 1)
    real = getattr(os, name)
    for after in range(20):
        calls, failure = 0, None

        def full(*args, after=after, **kwargs):
            nonlocal calls
            calls += 1
            if calls == after + 1:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(*args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(os, name, full)
            try:
                write(storage, 2, b"%d" % after)
            except (CheckpointFailed, OSError) as error:
                failure = error
        if failure is None:
            assert calls <= after
            break
        if isinstance(failure, CheckpointFailed):
            assert f"could not be written to {tmp_path}: No space left" in failure.message
            assert "make room" in failure.hint
        else:
            assert name == "mkdir"  # of this test's own directories
        storage.abort(2)
        assert names(tmp_path) == ["0000000001"]
        assert storage.latest().checkpoint_id == 1
    else:
        pytest.fail("it never came to an end")
    assert after > 0
    assert storage.latest().checkpoint_id == 2


LIMITED = """
import resource, sys
from sabot.engine.checkpoint import CheckpointStorage, Manifest
from sabot.errors import CheckpointFailed
storage = CheckpointStorage(sys.argv[1])
def write(checkpoint_id):
    directory = storage.begin(checkpoint_id)
    (directory / "blob").write_bytes(b"x" * 1000)
    return storage.commit(checkpoint_id, Manifest(checkpoint_id, 0, {"long": "y" * 100_000}))
write(1)
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))
try:
    write(2)
except CheckpointFailed as error:
    print(error)
storage.abort(2)
assert storage.latest().checkpoint_id == 1
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
write(3)
assert storage.ids() == [1, 3], storage.ids()
"""


@pytest.mark.slow  # half a second of a core
def test_a_manifest_that_does_not_fit_leaves_the_one_before(tmp_path: Path) -> None:
    result = subprocess.run([sys.executable, "-c", LIMITED, str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    assert f"could not be written to {tmp_path}: File too large" in result.stdout
    assert names(tmp_path) == ["0000000001", "0000000003"]
