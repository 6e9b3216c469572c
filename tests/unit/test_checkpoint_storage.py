"""Checkpoints on the disk: complete or not at all, and clear words for what is damaged."""

import errno
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sabot.checkpoint import CheckpointStorage, Manifest
from sabot.checkpoint.storage import StoredTask
from sabot.errors import CheckpointFailed, CorruptCheckpoint, JobLocked, UserError


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
    return sorted(entry.name for entry in directory.iterdir() if entry.name != "LOCK")


def test_a_checkpoint_reads_back_as_it_was_written(tmp_path: Path) -> None:
    written = write(CheckpointStorage(tmp_path), 1, b"abc")
    manifest = CheckpointStorage(tmp_path).latest()
    assert manifest == written
    assert manifest.path == tmp_path / "chk-0000000001"
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
    assert names(tmp_path) == ["chk-0000000003", "chk-0000000010"]
    with pytest.raises(UserError, match="retain=0"):
        CheckpointStorage(tmp_path, retain=0)


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
    assert names(tmp_path) == ["chk-0000000001"]


def test_clear_forgets_everything(tmp_path: Path) -> None:
    storage = CheckpointStorage(tmp_path)
    write(storage, 1)
    write(storage, 2)
    storage.clear()
    assert storage.latest() is None
    assert names(tmp_path) == []
    assert write(storage, 1).checkpoint_id == 1


# One owner


HOLD = """
import os, sys
from sabot.checkpoint import CheckpointStorage
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


def test_a_second_process_is_refused_until_the_first_is_killed(tmp_path: Path) -> None:
    (tmp_path / "chk-0000000005.tmp").mkdir()
    first = hold(tmp_path)
    try:
        assert names(tmp_path) == []  # what a crash left behind went with the lock
        (tmp_path / "chk-0000000006.tmp").mkdir()
        with pytest.raises(JobLocked) as refused:
            CheckpointStorage(tmp_path).lock()
        assert str(tmp_path) in refused.value.message
        assert f"process {first.pid} on host {os.uname().nodename}" in refused.value.message
        assert "stop that process" in refused.value.hint
        assert names(tmp_path) == ["chk-0000000006.tmp"]  # the owner's work is left alone
        with pytest.raises(JobLocked):
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
    with pytest.raises(JobLocked, match=str(os.getpid())):
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
    for checkpoint_id in (1, 2, 3):
        write(storage, checkpoint_id)
    (tmp_path / "chk-0000000003/t/state/000001.sst").write_bytes(b"short")
    with pytest.raises(CorruptCheckpoint) as stopped:
        storage.latest()
    assert "chk-0000000003/t/state/000001.sst" in stopped.value.message
    assert "5 bytes, not 9000" in stopped.value.message
    assert f"remove {tmp_path}/chk-0000000003 to go back to checkpoint 2" in stopped.value.hint
    assert "--fresh" in stopped.value.hint

    (tmp_path / "chk-0000000002/manifest.json").write_bytes(b"{}")
    with pytest.raises(CorruptCheckpoint, match=r"chk-0000000003 and \S*chk-0000000002 to go back to checkpoint 1"):
        storage.latest()
    (tmp_path / "chk-0000000001/t/blob").unlink()
    with pytest.raises(CorruptCheckpoint, match="no older checkpoint can be read either: start with --fresh"):
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
    write(CheckpointStorage(tmp_path), 4)
    path = tmp_path / "chk-0000000004" / file
    damage(path)
    if file == "manifest.json" and damage is damage_longer:
        assert CheckpointStorage(tmp_path).latest().checkpoint_id == 4  # white space after it is harmless
        return
    with pytest.raises(CorruptCheckpoint, match=re.escape(str(path))):
        CheckpointStorage(tmp_path).latest()


@given(at=st.integers(0, 10_000), bit=st.integers(0, 7))
@settings(max_examples=150, deadline=None)
def test_no_flipped_bit_of_a_manifest_changes_what_is_read(tmp_path_factory, at: int, bit: int) -> None:
    directory = tmp_path_factory.mktemp("flip")
    written = write(CheckpointStorage(directory), 1)
    path = written.path / "manifest.json"
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


def test_a_missing_state_directory_is_damage(tmp_path: Path) -> None:
    storage = CheckpointStorage(tmp_path)
    directory = storage.begin(1)
    (directory / "empty").mkdir()
    storage.commit(1, Manifest(1, 0, {}, {"task": StoredTask(states={"default": "empty"})}))
    assert storage.latest().state_directory("task", "default").is_dir()
    (tmp_path / "chk-0000000001/empty").rmdir()
    with pytest.raises(CorruptCheckpoint, match="chk-0000000001/empty is missing"):
        storage.latest()


def test_a_newer_format_is_not_guessed_at(tmp_path: Path) -> None:
    storage = CheckpointStorage(tmp_path)
    path = write(storage, 1).path / "manifest.json"
    path.write_text('{"format_version": 2, "crc32": 0, "body": {"something": "else"}}')
    with pytest.raises(CorruptCheckpoint, match="newer Sabot: it has format 2, not 1") as stopped:
        storage.latest()
    assert str(path) in stopped.value.message
    assert "install that version again" in stopped.value.hint


def test_an_unfinished_checkpoint_is_ignored(tmp_path: Path) -> None:
    storage = CheckpointStorage(tmp_path)
    write(storage, 1)
    (storage.begin(2) / "half").write_bytes(b"written")
    assert storage.latest().checkpoint_id == 1
    assert storage.last_id() == 1


def test_hard_linked_files_are_read_once_and_still_compared(tmp_path: Path, monkeypatch) -> None:
    storage = CheckpointStorage(tmp_path / "checkpoints")
    table = tmp_path / "000007.sst"
    table.write_bytes(b"x" * 100)
    synced: list[str] = []
    sync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (synced.append(os.readlink(f"/proc/self/fd/{fd}")), sync(fd)))
    for checkpoint_id in (1, 2):
        os.link(table, storage.begin(checkpoint_id) / "000007.sst")
        storage.commit(checkpoint_id, Manifest(checkpoint_id, 0))
    assert [Path(path).parent.name for path in synced if path.endswith(".sst")] == ["chk-0000000001.tmp"]
    first, second = storage.manifests()
    assert first.contents == second.contents

    table.unlink()
    (tmp_path / "checkpoints/chk-0000000002/000007.sst").unlink()
    (tmp_path / "checkpoints/chk-0000000002/000007.sst").write_bytes(b"y" * 100)
    with pytest.raises(CorruptCheckpoint, match="its checksum differs"):
        storage.latest()


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

    for name in ("fsync", "rename", "mkdir", "unlink", "rmdir"):
        guard(os, name)
    guard(Path, "write_bytes")
    guard(Path, "mkdir")
    guard(Path, "open")
    return done


def test_a_crash_before_any_step_leaves_the_old_checkpoint_or_the_new(tmp_path: Path) -> None:
    seen: list[bytes] = []
    for before_step in range(1000):
        directory = tmp_path / str(before_step)
        storage = CheckpointStorage(directory, retain=1)
        write(storage, 1, b"old")
        with pytest.MonkeyPatch.context() as patch:
            steps = crashing(patch, before_step)
            try:
                write(storage, 2, b"new")
                storage.drop_old()
                finished = True
            except Crash:
                finished = False
        storage.unlock()  # as the kernel does for a process that is gone
        again = CheckpointStorage(directory, retain=1)
        before_lock = again.latest()
        again.lock()
        manifest = again.latest()
        assert manifest == before_lock
        value = manifest.read_file("task", "window")
        assert (manifest.checkpoint_id, value) in {(1, b"old"), (2, b"new")}
        again.drop_old()
        assert len(names(directory)) == 1
        write(again, manifest.checkpoint_id + 1, b"next")
        assert again.latest().read_file("task", "window") == b"next"
        again.unlock()
        seen.append(value)
        if finished:
            break
    assert steps.count("rename") == 2
    assert steps.index("rename") > 8
    switch = steps.index("rename") + 1
    assert seen == [b"old"] * switch + [b"new"] * (len(seen) - switch)


# A full disk


@pytest.mark.parametrize("name", ["fsync", "rename", "mkdir"])
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
                write(storage, 2)
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
        assert names(tmp_path) == ["chk-0000000001"]
        assert storage.latest().checkpoint_id == 1
    else:
        pytest.fail("it never came to an end")
    assert after > 0
    assert storage.latest().checkpoint_id == 2


LIMITED = """
import resource, sys
from sabot.checkpoint import CheckpointStorage, Manifest
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


def test_a_manifest_that_does_not_fit_leaves_the_one_before(tmp_path: Path) -> None:
    result = subprocess.run([sys.executable, "-c", LIMITED, str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    assert f"could not be written to {tmp_path}: File too large" in result.stdout
    assert names(tmp_path) == ["chk-0000000001", "chk-0000000003"]
