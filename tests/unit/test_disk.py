"""What the engine makes on a disk: for its user alone, and never in the place of what is somebody else's."""

import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pytest
from pyarrow import fs as arrow_fs

import sabot
from sabot import App, NdjsonSink
from sabot.base.claims import FileClaim
from sabot.base.disk import (
    TemporaryFolder,
    is_held,
    make_folder,
    open_lock,
    own_folder,
    remove_abandoned,
    warn_of_open_folder,
)
from sabot.connectors.base import Batch, Track
from sabot.connectors.files import ParquetSink
from sabot.engine.checkpoint import CheckpointStorage, Manifest
from sabot.engine.checkpoint.manifest import StoredTask
from sabot.engine.checkpoint.places import RemotePlace
from sabot.engine.checkpoint.requests import Requests
from sabot.engine.state import BackendConfig, RocksDBBackend
from sabot.errors import AppLocked, CorruptCheckpoint, SabotError, UserError

AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
NOBODY = 65534


def mode(path: Path) -> int:
    return stat.S_IMODE(os.lstat(path).st_mode)


@pytest.fixture
def no_umask() -> Iterator[None]:
    """Nothing is taken from the modes that the engine asks for."""
    before = os.umask(0)
    yield
    os.umask(before)


def open_to_others(root: Path) -> list[str]:
    """What another user can reach below `root`, which he may enter."""
    found = []
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if mode(Path(folder, name)) & 0o077 or found.append(name)]
        found += [str(Path(folder, name)) for name in [*folders, *files] if mode(Path(folder, name)) & 0o077]
    return [path for path in found if "/" in path]


# -- modes ------------------------------------------------------------------------------------------------------------


@pytest.mark.one_in(2, "a tenth of a second of a core each")
@pytest.mark.parametrize("given", ["made by the user", "missing"])
async def test_what_an_app_keeps_is_for_its_user_alone(tmp_path: Path, no_umask: None, given: str) -> None:
    """Seen before: folders 0755 and files 0644. The output is the user's, and has the mode that his umask leaves."""
    state, out, savepoint = tmp_path / "state", tmp_path / "out", tmp_path / "savepoint"
    if given == "made by the user":
        state.mkdir(0o755)
    app = App("shop", state=str(state), checkpoint_interval="1h", broker=f"memory://disk-{given.split()[0]}")

    @app.agent("in", sink=NdjsonSink(out / "out.ndjson"), key="k", schema={"k": "string"})
    async def count(ctx):
        n = (await ctx.state().get("n") or 0) + 1
        await ctx.state().put("n", n)
        return {"n": n}

    app.stream("rows", schema={"k": "string"}).key_by("k").aggregate(n=sabot.count()).to(ParquetSink(out / "totals"))
    await app.start()
    for topic in ("in", "rows"):
        await app.send(topic, {"k": "a"})
    await app.agent_runtime.trigger_checkpoint()
    storage = app.agent_runtime.runner._run._storage
    storage.copy_to(storage.latest(), savepoint)
    while_it_runs = open_to_others(tmp_path)
    await app.stop()
    for left in (while_it_runs, open_to_others(tmp_path)):
        ours = [path for path in left if not path.startswith(str(out))]
        assert ours == ([str(state)] if given == "made by the user" else [])
        theirs = {Path(path).name for path in left if path.startswith(f"{out}/")}
        assert not any(name.startswith(".") and name.endswith((".token", ".journal", ".copy")) for name in theirs)
    assert mode(out / "out.ndjson") == 0o666
    for kept in (state / "checkpoints", savepoint):  # also inside of folders that nobody else can enter
        assert {mode(path) for path in kept.rglob("*") if path.is_file()} == {0o600}
        assert {mode(path) for path in kept.rglob("*") if path.is_dir()} <= {0o700}


async def test_what_rocksdb_makes_is_behind_a_folder_of_ours(tmp_path: Path, no_umask: None) -> None:
    """It makes its files itself, under the umask of the process, which is no business of a library's."""
    backend = RocksDBBackend(BackendConfig("rocksdb", tmp_path / "db"))
    backend.write("n", b"k", b"v")
    await (await backend.snapshot()).save(tmp_path / "saved")
    assert any(mode(path) & 0o077 for path in (tmp_path / "db").rglob("*.sst"))
    assert mode(tmp_path / "db") == mode(tmp_path / "saved") == 0o700
    await backend.close()


def test_folders_of_an_earlier_version_are_closed(tmp_path: Path) -> None:
    for name in ("db", "db/db", "checkpoints/claims", "checkpoints/files", "checkpoints/checkpoints"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name).chmod(0o755)
    (tmp_path / "db/lock").write_text("1")
    (tmp_path / "checkpoints/LOCK").write_text("process 1 on host h\n")
    storage = CheckpointStorage(tmp_path / "checkpoints")
    storage.lock()
    RocksDBBackend(BackendConfig("rocksdb", tmp_path / "db"))._claim.release()
    storage.unlock()
    assert {mode(tmp_path / name) for name in ("db", "db/db", "checkpoints/claims", "checkpoints/files")} == {0o700}
    assert mode(tmp_path / "db/lock") == mode(tmp_path / "checkpoints/LOCK") == 0o600
    assert mode(tmp_path / "checkpoints") == 0o755  # the user may have made it, for others too


def test_missing_folders_are_made_for_us_alone(tmp_path: Path, no_umask: None) -> None:
    (tmp_path / "there").mkdir(0o755)
    make_folder(tmp_path / "there/a/b")
    assert [mode(tmp_path / name) for name in ("there", "there/a", "there/a/b")] == [0o755, 0o700, 0o700]
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        make_folder(tmp_path / "file/a")


def test_a_folder_that_anyone_may_change_is_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for given in (0o700, 0o755, 0o775, 0o1777):
        tmp_path.chmod(given)
        warn_of_open_folder(tmp_path)
    assert not caplog.records
    tmp_path.chmod(0o777)
    warn_of_open_folder(tmp_path)
    assert f"{tmp_path}: every user of this machine may rename and remove what is in it" in caplog.text


# -- what somebody has planted ----------------------------------------------------------------------------------------


def link(path: Path, victim: Path) -> None:
    path.symlink_to(victim)


def link_to_nothing(path: Path, victim: Path) -> None:
    path.symlink_to(victim.with_name("not there"))


def pipe(path: Path, victim: Path) -> None:
    os.mkfifo(path)


def second_name(path: Path, victim: Path) -> None:
    os.link(victim, path)


def folder(path: Path, victim: Path) -> None:
    path.mkdir()


def folder_of_another(path: Path, victim: Path) -> None:
    path.mkdir()
    os.chown(path, NOBODY, NOBODY)


def file_of_another(path: Path, victim: Path) -> None:
    path.touch()
    os.chown(path, NOBODY, NOBODY)


def a_file(path: Path, victim: Path) -> None:
    path.touch()


IN_PLACE_OF_A_FILE = [link, link_to_nothing, pipe, second_name, folder, pytest.param(file_of_another, marks=AS_ROOT)]
IN_PLACE_OF_A_FOLDER = [link, link_to_nothing, pipe, a_file, pytest.param(folder_of_another, marks=AS_ROOT)]
Plant = Callable[[Path, Path], None]


@pytest.fixture
def victim(tmp_path: Path) -> Iterator[Path]:
    """Somebody's file, and folder: nothing of it may change."""
    file = tmp_path / "somebody's"
    file.write_bytes(b"precious")
    yield file
    assert file.read_bytes() == b"precious"
    assert not file.with_name("not there").exists()


def refused(at: Path, use: Callable[[], object]) -> None:
    with pytest.raises(UserError) as error:
        use()
    assert str(at) in str(error.value)
    assert not isinstance(error.value, AppLocked)


@pytest.mark.parametrize("plant", IN_PLACE_OF_A_FILE)
def test_the_lock_of_checkpoints_is_no_file_of_another(tmp_path: Path, victim: Path, plant: Plant) -> None:
    """Seen before: a symbolic link to a file of another emptied that file, and wrote the name of this process into it."""
    (tmp_path / "apps").mkdir()
    plant(tmp_path / "apps/LOCK", victim)
    refused(tmp_path / "apps/LOCK", CheckpointStorage(tmp_path / "apps").lock)


@pytest.mark.parametrize("plant", IN_PLACE_OF_A_FILE)
def test_the_lock_of_state_is_no_file_of_another(tmp_path: Path, victim: Path, plant: Plant) -> None:
    (tmp_path / "db").mkdir()
    plant(tmp_path / "db/lock", victim)
    refused(tmp_path / "db/lock", lambda: RocksDBBackend(BackendConfig("rocksdb", tmp_path / "db")))


@pytest.mark.parametrize("name", ["scratch", "claims", "checkpoints", "files", "requests"])
@pytest.mark.parametrize("plant", IN_PLACE_OF_A_FOLDER)
def test_a_folder_of_checkpoints_is_no_folder_of_another(tmp_path: Path, victim: Path, plant: Plant, name: str) -> None:
    (tmp_path / "apps").mkdir()
    plant(tmp_path / "apps" / name, victim)
    refused(tmp_path / "apps" / name, CheckpointStorage(tmp_path / "apps").lock)


@pytest.mark.parametrize("name", ["db", "db/db", "db/snapshots"])
@pytest.mark.parametrize("plant", IN_PLACE_OF_A_FOLDER)
def test_a_folder_of_state_is_no_folder_of_another(tmp_path: Path, victim: Path, plant: Plant, name: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    plant(tmp_path / name, victim)
    refused(tmp_path / name, lambda: RocksDBBackend(BackendConfig("rocksdb", tmp_path / "db")))


@pytest.mark.parametrize("plant", IN_PLACE_OF_A_FOLDER)
def test_the_scratch_of_a_place_elsewhere_is_no_folder_of_another(tmp_path: Path, victim: Path, plant: Plant) -> None:
    plant(tmp_path / "scratch", victim)
    place = arrow_fs.SubTreeFileSystem(str(tmp_path), arrow_fs.LocalFileSystem())
    refused(tmp_path / "scratch", CheckpointStorage((place, "apps"), scratch=tmp_path / "scratch").lock)


@pytest.mark.parametrize("plant", IN_PLACE_OF_A_FOLDER)
async def test_the_tables_of_streams_are_in_no_folder_of_another(tmp_path: Path, victim: Path, plant: Plant) -> None:
    plant(tmp_path / "streams", victim)
    app = App("shop", state=str(tmp_path), broker="memory://planted")
    app.stream("rows", schema={"k": "string"}).key_by("k").aggregate(n=sabot.count()).to("totals")
    with pytest.raises(UserError, match="streams"):
        await app.start()
    await app.stop()


@AS_ROOT
def test_files_of_a_network_disk_that_gives_all_of_them_to_one_user_are_ours(tmp_path: Path, monkeypatch) -> None:
    """Where what we make does not belong to us, what belongs to the same user may be ours."""
    own_folder(tmp_path / "f")
    os.chown(tmp_path / "f", NOBODY, NOBODY)
    with pytest.raises(UserError, match=f"belongs to user {NOBODY}, and this process runs as user 0"):
        own_folder(tmp_path / "f")
    monkeypatch.setattr("sabot.base.disk._uid_of_new_files", lambda folder: NOBODY)
    own_folder(tmp_path / "f")


def test_a_lock_that_is_there_is_taken_again(tmp_path: Path) -> None:
    os.close(open_lock(tmp_path / "LOCK"))
    os.close(open_lock(tmp_path / "LOCK"))
    assert mode(tmp_path / "LOCK") == 0o600


def test_a_lock_whose_file_is_removed_while_another_one_opens_it_is_taken_in_the_new_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its holder removed it between the two steps of a lock: the file that was locked then had no name, and a third one got another."""
    path, opened = tmp_path / "LOCK", []

    def open_before_it_goes(path: Path) -> int:
        opened.append(open_lock(path))
        if len(opened) == 1:
            path.unlink()
        return opened[-1]

    monkeypatch.setattr("sabot.base.claims.open_lock", open_before_it_goes)
    claim = FileClaim(path, "us", AppLocked)
    claim.take()
    assert path.read_text() == "us"
    with pytest.raises(AppLocked, match="us"):
        FileClaim(path, "them", AppLocked).take()
    claim.release()
    assert len(opened) == 4, "who finds it locked tries once more"


# -- what is read -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("plant", [link, pipe, folder])
@pytest.mark.parametrize("what", ["manifest", "contents"])
def test_what_a_checkpoint_is_read_from_are_files(tmp_path: Path, victim: Path, plant: Plant, what: str) -> None:
    storage = CheckpointStorage(tmp_path / "apps")
    (storage.begin(1) / "blob").write_bytes(b"precious")
    manifest = storage.commit(1, Manifest(1, 0))
    storage.unlock()
    file = manifest.path if what == "manifest" else tmp_path / "apps" / manifest.contents["blob"].name
    file.unlink()
    plant(file, victim)
    if what == "manifest" and plant is not link:
        assert storage.latest() is None  # as where it is missing
        return
    with pytest.raises(CorruptCheckpoint, match=file.name):
        storage.latest()


@pytest.mark.parametrize("plant", [link, pipe, folder])
def test_a_request_is_a_file(tmp_path: Path, victim: Path, plant: Plant) -> None:
    """Seen before: a pipe among the requests stopped the thread that answers them, and with it the stop of the app."""
    (tmp_path / "requests").mkdir()
    plant(tmp_path / "requests" / f"{'a' * 32}.json", victim)
    (tmp_path / "requests" / f"{'b' * 32}.json").write_text('{"checkpoint": true}')
    (tmp_path / "requests" / f"{'c' * 32}.json").write_text("[" * 60_000)
    requests = Requests(tmp_path)
    assert requests.pending() == [("b" * 32, {"checkpoint": True})]
    assert "cannot be read" in (tmp_path / "requests" / f"{'a' * 32}.done.json").read_text()
    assert "not JSON" in (tmp_path / "requests" / f"{'c' * 32}.done.json").read_text()


@pytest.mark.parametrize("plant", [link, pipe])
def test_what_stands_beside_the_output_of_a_sink_is_no_link(tmp_path: Path, victim: Path, plant: Plant) -> None:
    sink = NdjsonSink(tmp_path / "out.ndjson")
    plant(tmp_path / ".out.ndjson.token", victim)
    with pytest.raises(SabotError, match=r"out\.ndjson"):
        sink.claim(Track("app", "track", "1"))


def test_a_file_that_is_being_written_takes_the_place_of_a_link(tmp_path: Path, victim: Path, no_umask: None) -> None:
    """Seen before: the rows went into the file that the link led to."""
    rows = pa.record_batch({"a": [1, 2]})
    sink = ParquetSink(tmp_path / "out.parquet")
    (tmp_path / ".out.parquet.tmp").symlink_to(victim)
    sink.open()
    sink.write(Batch(rows))
    sink.finish()
    sink.close()
    assert not (tmp_path / "out.parquet").is_symlink()
    assert mode(tmp_path / "out.parquet") == 0o666


# -- what a process leaves that is killed -----------------------------------------------------------------------------

KILLED = """
import os, signal, sys
from pathlib import Path
from pyarrow import fs
from sabot.engine.checkpoint import CheckpointStorage
from sabot.engine.state.backends.database import read_database
place = sys.argv[1]
reader = CheckpointStorage(place)
print(reader.latest().state_directory("task", "default"), flush=True)
elsewhere = CheckpointStorage((fs.SubTreeFileSystem(place, fs.LocalFileSystem()), "elsewhere"))
elsewhere.lock()
print(elsewhere._place.scratch, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow  # half a second of a core
def test_what_a_killed_process_left_goes_with_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen before: `reading-…` stayed in a savepoint for ever, and in the folder for temporary files what an app wrote whose
    checkpoints are elsewhere."""
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr("tempfile.tempdir", None)
    storage = CheckpointStorage(tmp_path / "savepoint")
    (storage.begin(1) / "t/state").mkdir(parents=True)
    (storage._place.scratch / "0000000001/t/state/f").write_bytes(b"f")
    task = StoredTask(states={"default": "t/state"})
    storage.commit(1, Manifest(1, 0, {}, {"task": task}))
    storage.unlock()
    child = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path / "savepoint")], stdout=subprocess.PIPE, text=True
    )
    assert child.returncode == -signal.SIGKILL
    left = [Path(line) for line in child.stdout.splitlines()]
    assert [folder.exists() for folder in left] == [True, True]
    (temporary / "sabot-app-of-a-user").mkdir()
    reader = CheckpointStorage(tmp_path / "savepoint")
    mine = reader.latest().state_directory("task", "default")
    place = RemotePlace(arrow_fs.LocalFileSystem(), str(tmp_path / "elsewhere"), "elsewhere")
    place.own()
    assert not any(folder.exists() for folder in left)
    assert all(folder.exists() for folder in (mine, place.scratch))
    place.disown()
    del reader
    assert [path.name for path in temporary.iterdir()] == ["sabot-app-of-a-user"]  # no mark of ours is in it


def test_a_temporary_folder_of_a_living_process_stays(tmp_path: Path) -> None:
    with TemporaryFolder("sabot-x-", tmp_path) as one:
        with TemporaryFolder("sabot-x-", tmp_path) as other:
            assert all(folder.exists() for folder in (one, other))
        (tmp_path / "sabot-x-link").symlink_to(one)
        (tmp_path / "sabot-x-pipe").mkdir()
        os.mkfifo(tmp_path / "sabot-x-pipe/temporary.lock")
        remove_abandoned(tmp_path, "sabot-x-")
        assert one.exists()
    assert not one.exists()


def test_our_folders_are_ours_to_use_under_any_umask(tmp_path: Path) -> None:
    """Under umask 0777 they were 0000: useless for anybody but root, also at the next start."""
    before = os.umask(0o777)
    try:
        own_folder(tmp_path / "state" / "db")
    finally:
        os.umask(before)
    assert mode(tmp_path / "state") == mode(tmp_path / "state" / "db") == 0o700


def test_who_looks_whether_a_lock_is_held_keeps_nobody_from_taking_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Looking takes it for a moment."""
    path = tmp_path / "lock"
    looking = os.open(path, os.O_RDWR | os.O_CREAT)
    assert not is_held(looking)
    monkeypatch.setattr("sabot.base.claims.time", SimpleNamespace(sleep=lambda seconds: os.close(looking)))
    claim = FileClaim(path, "us", AppLocked)
    claim.take()
    assert path.read_text() == "us"
    claim.release()
