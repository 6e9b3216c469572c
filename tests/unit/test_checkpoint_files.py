"""The places for bytes, all under one contract: a directory, file systems of pyarrow's in this process, and an S3 API on loopback."""

import hashlib
import os
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import fs as arrow_fs

from sabot import steps
from sabot.checkpoint import CheckpointStorage, Manifest
from sabot.checkpoint.files import LocalPlace, Place, RemotePlace, StoredFile, place_of
from sabot.checkpoint.storage import StoredLane, StoredPart, StoredTask
from sabot.errors import CheckpointFailed, CorruptCheckpoint, JobLocked, UserError


class _Writing:
    """A file being written: it is there when it is closed, as with an object store."""

    def __init__(self, store: "InMemory", path: str) -> None:
        self.store, self.path, self.parts, self.closed = store, path, [], False

    def write(self, data: object) -> int:
        self.parts.append(bytes(data))
        return len(self.parts[-1])

    def flush(self) -> None: ...

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self.store.turn("write", self.path)
            self.store.files[self.path] = b"".join(self.parts)


class InMemory(arrow_fs.FileSystemHandler):
    """An object store in a dict. `turn(verb, path)` is called before each thing it does."""

    def __init__(self, turn=lambda verb, path: None) -> None:
        self.files: dict[str, bytes] = {}
        self.turn = turn

    def get_type_name(self) -> str:
        return "in memory"

    def normalize_path(self, path: str) -> str:
        return path

    def get_file_info(self, paths):
        self.turn("info", paths[0] if paths else "")
        return [self._info(path) for path in paths]

    def _info(self, path: str) -> arrow_fs.FileInfo:
        data = self.files.get(path)
        kind = arrow_fs.FileType.NotFound if data is None else arrow_fs.FileType.File
        return arrow_fs.FileInfo(path, kind, size=None if data is None else len(data))

    def get_file_info_selector(self, selector):
        self.turn("list", selector.base_dir)
        start = f"{selector.base_dir}/"
        below = [path for path in self.files if path.startswith(start)]
        return [self._info(path) for path in below if selector.recursive or "/" not in path[len(start) :]]

    def create_dir(self, path, recursive): ...

    def delete_file(self, path):
        self.turn("delete", path)
        if self.files.pop(path, None) is None:
            raise FileNotFoundError(path)

    def move(self, src, dest):
        self.turn("move", dest)
        if src not in self.files:
            raise FileNotFoundError(src)
        self.files[dest] = self.files.pop(src)

    def open_input_stream(self, path):
        self.turn("read", path)
        if path not in self.files:
            raise FileNotFoundError(path)
        return pa.BufferReader(self.files[path])

    def open_input_file(self, path):
        return self.open_input_stream(path)

    def open_output_stream(self, path, metadata):
        return pa.PythonFile(_Writing(self, path), mode="w")

    def _no(self, *args):
        raise NotImplementedError

    copy_file = delete_dir = delete_dir_contents = delete_root_dir_contents = open_append_stream = _no


def in_memory(turn=lambda verb, path: None) -> tuple[arrow_fs.FileSystem, InMemory]:
    handler = InMemory(turn)
    return arrow_fs.PyFileSystem(handler), handler


@pytest.fixture(scope="module")
def s3() -> Iterator[arrow_fs.FileSystem]:
    server = pytest.importorskip(
        "moto.server", reason="an S3 API on loopback needs pip install 'moto[s3]' flask flask-cors"
    )
    running = server.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    try:
        yield arrow_fs.S3FileSystem(
            access_key="any",
            secret_key="any",
            region="us-east-1",
            scheme="http",
            endpoint_override=f"{host}:{port}",
            allow_bucket_creation=True,
        )
    finally:
        running.stop()


KINDS = ["directory", "in memory", "subtree", "s3"]


@pytest.fixture(params=KINDS)
def location(request, tmp_path: Path):
    """Where checkpoints go: what users give to CheckpointStorage."""
    if request.param == "directory":
        return tmp_path / "place"
    if request.param == "in memory":
        return in_memory()[0], "bucket/jobs"
    if request.param == "subtree":
        (tmp_path / "tree").mkdir()
        return arrow_fs.SubTreeFileSystem(str(tmp_path / "tree"), arrow_fs.LocalFileSystem()), "jobs"
    filesystem = request.getfixturevalue("s3")
    bucket = f"sabot-{uuid.uuid4().hex}"
    filesystem.create_dir(bucket)
    return filesystem, f"{bucket}/jobs"


@pytest.fixture
def place(location) -> Iterator[Place]:
    place = place_of(location)
    place.own()
    yield place
    place.disown()


def keep(place: Place, data: bytes, generation: int = 1) -> StoredFile:
    stored = StoredFile(len(data), hashlib.sha256(data).hexdigest(), generation)
    path = place.scratch / uuid.uuid4().hex
    path.write_bytes(data)
    place.put(path, stored.name)
    place.sync()
    return stored


# The contract of a place


def test_a_new_place_is_empty(place: Place) -> None:
    assert place.names("claims") == place.names("checkpoints") == place.all_files() == []
    assert list(place.scratch.iterdir()) == []
    place.remove(["claims/none", "files/ab/none-1"])


def test_what_is_created_is_there_under_its_name_and_never_twice(place: Place) -> None:
    place.create("claims/one", b"first", "claim")
    place.create("claims/two", b"", "claim")
    assert sorted(place.names("claims")) == ["one", "two"]
    assert place.read("claims/one") == b"first"
    with pytest.raises(FileExistsError):
        place.create("claims/one", b"second", "claim")
    assert place.read("claims/one") == b"first"
    place.remove(["claims/one"])
    assert place.names("claims") == ["two"]
    with pytest.raises(OSError, match="one"):
        place.read("claims/one")


def test_contents_are_moved_in_and_fetched_as_they_were(place: Place) -> None:
    data = os.urandom(3 << 20)
    large, empty = keep(place, data), keep(place, b"")
    assert list(place.scratch.glob("?" * 32)) == []
    assert sorted(place.all_files()) == sorted([large.name, empty.name])
    assert place.sizes([large.name, empty.name, "files/ab/none-1"]) == {large.name: len(data), empty.name: 0}
    assert b"".join(place.chunks(large.name)) == data
    for _ in range(2):
        assert place.fetch(large).read_bytes() == place.contents(large) == data
        place.let_go(set())  # of what is kept on this machine nothing is needed: it comes from the place again
    place.check({"a": large, "b": empty}, fully=True)
    place.remove([large.name])
    assert place.all_files() == [empty.name]
    with pytest.raises(CorruptCheckpoint, match=rf"{large.name} \(a\) is missing"):
        place.check({"a": large, "b": empty})


def test_a_file_that_is_added_stays_where_it_is(place: Place, tmp_path: Path) -> None:
    (tmp_path / "mine").write_bytes(b"mine")
    for _ in range(2):  # over what a crash left
        place.add(tmp_path / "mine", "files/ab/mine-1", safe=False)
        place.sync()
    assert (tmp_path / "mine").read_bytes() == place.read("files/ab/mine-1") == b"mine"


def test_a_folder_holds_the_files_under_their_own_names(place: Place) -> None:
    one, two = keep(place, b"one"), keep(place, b"two")
    folder = place.folder("7/state", {"000001.sst": one, "deep/000001.sst": one, "CURRENT": two})
    assert {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()} == {
        "000001.sst": b"one",
        "deep/000001.sst": b"one",
        "CURRENT": b"two",
    }
    assert place.folder("7/state", {}) == folder
    assert (folder / "CURRENT").samefile(place.fetch(two)), "linked, not copied"
    place.release("8")
    assert folder.exists()
    place.release("7")
    assert not folder.exists()
    assert place.fetch(two).read_bytes() == b"two"


def test_what_cannot_be_fetched_leaves_no_folder(place: Place) -> None:
    one, gone = keep(place, b"one"), StoredFile(3, "0" * 64, 1)
    for _ in range(2):
        with pytest.raises(OSError, match="0000"):
            place.folder("7/state", {"a": one, "b": gone})
    assert list(place.folder("7/state", {"a": one}).iterdir()) != []


def test_every_change_is_a_step(place: Place) -> None:
    seen: list[str] = []

    class Watcher:
        def before(self, name: str, what: str) -> None:
            seen.append(name)

        def after(self, name: str, what: str) -> None: ...

        def torn(self, name: str, what: str, size: int) -> int:
            return size

    steps.watch(Watcher())
    try:
        place.create("claims/one", b"", "claim")
        stored = keep(place, b"data")
        place.remove([stored.name, "claims/one"])
    finally:
        steps.watch(None)
    assert seen == ["claim", "upload" if isinstance(place, RemotePlace) else "rename", "remove", "remove"]


# The same for checkpoints as users have them


def write(storage: CheckpointStorage, checkpoint_id: int, data: bytes = b"positions") -> Manifest:
    directory = storage.begin(checkpoint_id)
    (directory / "t/state").mkdir(parents=True)
    (directory / "t/blob").write_bytes(data)
    (directory / "t/state/000001.sst").write_bytes(data * 1000)
    (directory / "t/part").write_bytes(data)
    task = StoredTask(files={"window": "t/blob"}, states={"default": "t/state"})
    lane = StoredLane("out", 1, 0, [StoredPart(1, "t/part", 1)])
    return storage.commit(checkpoint_id, Manifest(checkpoint_id, 0, {}, {"task": task}, {"lane": lane}))


def assert_whole(manifest: Manifest, data: bytes) -> None:
    assert manifest.read_file("task", "window") == data
    assert (manifest.state_directory("task", "default") / "000001.sst").read_bytes() == data * 1000
    assert manifest.part_path(manifest.lanes["lane"].pending[0]).read_bytes() == data


def test_checkpoints_are_written_read_and_dropped(location) -> None:
    storage = CheckpointStorage(location, retain=2)
    for checkpoint_id in (1, 2, 3):
        written = write(storage, checkpoint_id, b"%d" % checkpoint_id)
        storage.drop_old()
    assert_whole(written, b"3")
    storage.unlock()
    again = CheckpointStorage(location, retain=2)
    found = again.latest()
    assert found == written
    assert again.ids() == [2, 3]
    assert_whole(found, b"3")
    assert_whole(again.read(2), b"2")
    again.verify(found)
    assert len(place_of(location).all_files()) == 4
    again.lock()
    assert again.generation == 2
    assert_whole(again.latest(), b"3")
    write(again, 4, b"3")
    assert again.latest().contents == found.contents  # nothing was stored again
    again.clear()
    assert (again.ids(), place_of(location).all_files()) == ([], [])
    again.unlock()


def test_a_savepoint_goes_into_any_other_place_and_comes_back(location, tmp_path: Path) -> None:
    storage = CheckpointStorage(location)
    manifest = write(storage, 7, b"abc")
    other = (in_memory()[0], "savepoints/one")
    storage.copy_to(manifest, other)
    assert CheckpointStorage(tmp_path / "home").copy_to(CheckpointStorage(other).latest(), tmp_path / "back")
    storage.unlock()
    assert_whole(CheckpointStorage(tmp_path / "back").latest(), b"abc")
    assert CheckpointStorage(tmp_path / "back").latest().contents == manifest.contents


def test_damage_is_found_at_the_latest_when_it_is_fetched(location) -> None:
    storage = CheckpointStorage(location)
    manifest = write(storage, 1)
    storage.unlock()
    place = place_of(location)
    name = manifest.contents["t/state/000001.sst"].name
    if isinstance(place, LocalPlace):
        (place.where / name).write_bytes(b"x" * 9000)
    else:
        with location[0].open_output_stream(f"{location[1]}/{name}") as stream:
            stream.write(b"x" * 9000)
    with pytest.raises(CorruptCheckpoint, match=f"{name}.* is damaged: its checksum differs"):
        CheckpointStorage(location).latest().state_directory("task", "default")
    with pytest.raises(CorruptCheckpoint, match=f"{name}.* is damaged: its checksum differs"):
        CheckpointStorage(location).verify(CheckpointStorage(location).read(1))
    place.remove([name])
    with pytest.raises(CorruptCheckpoint, match=f"{name}.* is missing"):
        CheckpointStorage(location).latest()


def test_a_worker_that_was_overtaken_stops_at_its_next_checkpoint(location) -> None:
    if isinstance(location, Path):
        pytest.skip("a directory refuses the second worker at once: test_checkpoint_storage.py")
    first, second = CheckpointStorage(location), CheckpointStorage(location)
    write(first, 1)
    first.check_owner()
    second.lock()
    assert (first.generation, second.generation) == (1, 2)
    with pytest.raises(
        JobLocked, match=rf"another worker has taken this job over in .*: process {os.getpid()} on host"
    ):
        first.check_owner()
    with pytest.raises(JobLocked):
        write(first, 2)
    assert second.ids() == [1]
    write(second, 2)
    second.drop_old()
    assert second.latest().generation == 2
    with pytest.raises(JobLocked):
        first.drop_old()
    second.unlock()
    first.unlock()


# Remote places only


def test_what_a_checkpoint_before_held_is_neither_read_nor_sent_again(tmp_path: Path) -> None:
    sent: list[str] = []
    filesystem, _ = in_memory(lambda verb, path: sent.append(path) if verb == "write" else None)
    storage = CheckpointStorage((filesystem, "jobs"), scratch=tmp_path / "scratch")
    table = tmp_path / "000007.sst"
    table.write_bytes(b"x" * 100)
    for checkpoint_id in (1, 2, 3):
        os.link(table, storage.begin(checkpoint_id) / "000007.sst")
        manifest = storage.commit(checkpoint_id, Manifest(checkpoint_id, 0))
    assert len([path for path in sent if path.startswith("jobs/files/")]) == 1
    assert manifest.contents["000007.sst"].size == 100
    storage.unlock()


def test_scratch_on_this_machine_belongs_to_one_worker(tmp_path: Path) -> None:
    filesystem, _ = in_memory()
    first = CheckpointStorage((filesystem, "jobs"), scratch=tmp_path)
    first.lock()
    with pytest.raises(JobLocked, match="is in use by process"):
        CheckpointStorage((filesystem, "jobs"), scratch=tmp_path).lock()
    first.check_owner()
    first.unlock()


class Crash(BaseException):
    pass


class CrashAt:
    """Ends the process before the n-th step, or in the middle of it, or after it."""

    def __init__(self, at: int, moment: str) -> None:
        self.at, self.moment, self.count = at, moment, 0

    def before(self, name: str, what: str) -> None:
        self.count += 1
        if self.moment == "before" and self.count == self.at + 1:
            raise Crash

    def after(self, name: str, what: str) -> None:
        if self.moment != "before" and self.count == self.at + 1:
            raise Crash

    def torn(self, name: str, what: str, size: int) -> int:
        return size // 2 if self.moment == "torn" and self.count == self.at + 1 else size


@pytest.mark.parametrize("moment", ["before", "torn", "after"])
def test_a_crash_at_any_step_leaves_the_old_checkpoint_or_the_new(moment: str) -> None:
    seen: list[bytes] = []
    for at in range(100):
        filesystem, _ = in_memory()
        storage = CheckpointStorage((filesystem, "jobs"), retain=1)
        storage._place.parallel = 1  # steps in one order
        write(storage, 1, b"old")
        steps.watch(CrashAt(at, moment))
        try:
            write(storage, 2, b"new")
            storage.drop_old()
            finished = True
        except Crash:
            finished = False
        finally:
            steps.watch(None)
        storage.unlock()
        again = CheckpointStorage((filesystem, "jobs"), retain=1)
        manifest = again.latest()
        data = {1: b"old", 2: b"new"}[manifest.checkpoint_id]
        assert_whole(manifest, data)
        write(again, 3, b"next")
        again.drop_old()
        assert sorted(again._place.all_files()) == sorted({file.name for file in again.latest().contents.values()})
        assert again._place.names("checkpoints") == [f"{3:010d}-{2:010d}.json"]
        again.unlock()
        seen.append(data)
        if finished:
            break
    switch = seen.index(b"new")
    assert 1 < switch < len(seen) - 1
    assert seen == [b"old"] * switch + [b"new"] * (len(seen) - switch)


@pytest.mark.parametrize("arrived", [False, True])
def test_after_a_lost_answer_the_manifest_may_be_there_and_its_files_stay(arrived: bool) -> None:
    filesystem, handler = in_memory()
    storage = CheckpointStorage((filesystem, "jobs"), retain=2)
    write(storage, 1, b"first")

    def lose(verb: str, path: str) -> None:
        if verb == "move" and path.startswith("jobs/checkpoints"):
            if arrived:
                handler.files[path] = next(data for name, data in handler.files.items() if name.startswith(path))
            raise OSError("connection reset")

    handler.turn = lose
    with pytest.raises(CheckpointFailed, match="connection reset"):
        write(storage, 2, b"second")
    storage.abort(2)
    handler.turn = lambda verb, path: None
    newest = CheckpointStorage((filesystem, "jobs")).latest()
    assert newest.checkpoint_id == (2 if arrived else 1)
    assert_whole(newest, b"second" if arrived else b"first")
    write(storage, 3, b"third")
    storage.drop_old()
    for manifest in storage.manifests():
        storage.verify(manifest)
    storage.unlock()


def test_errors_name_the_place_and_the_reason() -> None:
    filesystem, handler = in_memory()
    storage = CheckpointStorage((filesystem, "bucket/jobs"))
    storage.lock()

    def fail(verb: str, path: str) -> None:
        raise OSError("access denied")

    handler.turn = fail
    with pytest.raises(CheckpointFailed, match=r"could not be written to .*bucket/jobs: access denied"):
        write(storage, 1)
    with pytest.raises(CheckpointFailed, match="access denied"):
        storage.check_owner()
    storage.unlock()
    with pytest.raises(UserError, match="bucket/jobs cannot be used: access denied"):
        storage.lock()


@pytest.mark.parametrize(
    ("location", "where"),
    [("dir", "dir"), ("file:///var/x", "/var/x"), ("mock:///jobs/x", "mock:///jobs/x"), (Path("a/b"), "a/b")],
)
def test_a_place_is_named_by_a_path_or_a_uri(location, where: str) -> None:
    assert str(place_of(location).where).endswith(where)


def test_a_place_that_is_none_is_refused_and_secrets_are_not_told() -> None:
    with pytest.raises(UserError, match="nowhere://x is no place for checkpoints") as refused:
        place_of("nowhere://key:secret@x?password=secret")
    assert "secret" not in str(refused.value)
    assert place_of("s3://key:secret@bucket/jobs?region=us-east-1").where == "s3://bucket/jobs"


# Workers over one store, in every order of what they do to it


class Baton:
    """Lets one thread go on at a time, until it does the next thing to the store."""

    def __init__(self) -> None:
        self.turns: dict[int, threading.Semaphore] = {}
        self.back = threading.Semaphore(0)
        self.running: set[int] = set()

    def wait(self, verb: str, path: str) -> None:
        turn = self.turns.get(threading.get_ident())
        if turn is not None:
            self.back.release()
            turn.acquire()


class Run(threading.Thread):
    """A worker: owns the job, goes on from its newest checkpoint, makes more."""

    def __init__(self, baton: Baton, location, number: int) -> None:
        super().__init__(daemon=True)
        self.baton, self.location, self.number = baton, location, number
        self.turn = threading.Semaphore(0)
        self.base: int | None = None
        self.generation = 0
        self.counted: list[int] = []
        self.ended = ""

    def run(self) -> None:
        self.baton.turns[threading.get_ident()] = self.turn
        self.turn.acquire()
        try:
            self.work()
        except JobLocked:
            self.ended = "overtaken"
        except BaseException as error:
            self.ended = repr(error)
        else:
            self.ended = "done"
        del self.baton.turns[threading.get_ident()]
        self.baton.back.release()

    def work(self) -> None:
        storage = CheckpointStorage(self.location, retain=1)
        storage._place.parallel = 1
        storage.lock()
        self.generation = storage.generation
        manifest = storage.latest()
        total = 0 if manifest is None else int(manifest.read_file("task", "window"))
        self.base = 0 if manifest is None else manifest.checkpoint_id
        last = storage.last_id()
        for n in range(1, 4):
            write_small(storage, last + n, b"%d" % (total + n))
            self.counted.append(last + n)
            storage.drop_old()


def write_small(storage: CheckpointStorage, checkpoint_id: int, data: bytes) -> Manifest:
    directory = storage.begin(checkpoint_id)
    (directory / "blob").write_bytes(data)
    (directory / "same").write_bytes(b"same")
    task = StoredTask(files={"window": "blob"})
    return storage.commit(checkpoint_id, Manifest(checkpoint_id, 0, {}, {"task": task}))


@given(
    workers=st.integers(2, 3),
    schedule=st.lists(st.tuples(st.integers(0, 2), st.integers(1, 25)), min_size=4, max_size=30),
)
@settings(max_examples=25, deadline=None)
def test_workers_of_one_job_never_count_checkpoints_past_each_other(
    workers: int, schedule: list[tuple[int, int]]
) -> None:
    baton = Baton()
    filesystem, _ = in_memory(baton.wait)
    location = (filesystem, "jobs")
    runs = [Run(baton, location, number) for number in range(workers)]
    for run in runs:
        run.start()
    for number, count in [*schedule, *((number, 10_000) for number in range(workers))]:
        for _ in range(count):
            if number >= workers or runs[number].ended:
                break
            runs[number].turn.release()
            assert baton.back.acquire(timeout=20)
    assert {run.ended for run in runs} <= {"done", "overtaken"}, [run.ended for run in runs]
    owners = sorted((run for run in runs if run.generation), key=lambda run: run.generation)
    assert len({run.generation for run in owners}) == len(owners)
    for earlier in owners:
        for later in owners:
            if earlier.generation < later.generation and later.base is not None and earlier.counted:
                assert later.base >= earlier.counted[-1]
    storage = CheckpointStorage(location)
    manifest = storage.latest()
    assert manifest is not None
    storage.verify(manifest)
    if any(run.counted for run in runs):
        assert manifest.generation >= max(run.generation for run in runs if run.counted)
