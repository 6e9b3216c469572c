"""The contract of the places where checkpoints are: a directory, file systems of pyarrow's in this process, and an S3 API on loopback."""

import hashlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pyarrow import fs as arrow_fs

from sabot import steps
from sabot.engine.checkpoint import CheckpointStorage
from sabot.engine.checkpoint.places import LocalPlace, Place, RemotePlace, StoredFile, check_files, place_of
from sabot.errors import AppLocked, CorruptCheckpoint
from tools.checkpoint_tools import assert_whole, in_memory, write


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
        return in_memory()[0], "bucket/apps"
    if request.param == "subtree":
        (tmp_path / "tree").mkdir()
        return arrow_fs.SubTreeFileSystem(str(tmp_path / "tree"), arrow_fs.LocalFileSystem()), "apps"
    filesystem = request.getfixturevalue("s3")
    bucket = f"sabot-{uuid.uuid4().hex}"
    filesystem.create_dir(bucket)
    return filesystem, f"{bucket}/apps"


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


@pytest.mark.one_in(3, "a quarter of a second of a core each")
def test_a_new_place_is_empty(place: Place) -> None:
    assert place.names("claims") == place.names("checkpoints") == place.all_files() == []
    assert list(place.scratch.iterdir()) == []
    place.remove(["claims/none", "files/ab/none-1"])


@pytest.mark.one_in(4, "a quarter of a second of a core each")
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


@pytest.mark.one_in(3, "a tenth of a second of a core each")
def test_contents_are_moved_in_and_fetched_as_they_were(place: Place) -> None:
    data = os.urandom(3 << 20)
    large, empty = keep(place, data), keep(place, b"")
    assert list(place.scratch.glob("?" * 32)) == []
    assert sorted(place.all_files()) == sorted([large.name, empty.name])
    assert place.sizes([large.name, empty.name, "files/ab/none-1"]) == {large.name: len(data), empty.name: 0}
    assert b"".join(place.chunks(large.name)) == data
    for _ in range(2):
        assert place.fetch(large).read_bytes() == place.contents(large) == data
        place.drop_copies(set())  # of what is kept on this machine nothing is needed: it comes from the place again
    check_files(place, {"a": large, "b": empty}, fully=True)
    place.remove([large.name])
    assert place.all_files() == [empty.name]
    with pytest.raises(CorruptCheckpoint, match=rf"{large.name} \(a\) is missing"):
        check_files(place, {"a": large, "b": empty})


@pytest.mark.one_in(3, "a tenth of a second of a core each")
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


def test_a_name_is_one_file_directly_in_its_folder(place: Place) -> None:
    one = keep(place, b"one")
    place.create("claims/one", b"1", "claim")
    place.create("checkpoints/7-1.json", b"{}", "manifest")
    assert place.names("claims") == ["one"]
    assert place.names("checkpoints") == ["7-1.json"]
    assert place.names("nothing") == []
    assert place.names("files") == [], "these stand in folders of two digits each"
    assert place.all_files() == [one.name]
    assert "claims/one" in place.locate("claims/one")


def test_contents_that_are_put_again_take_the_place_of_what_is_there(place: Place) -> None:
    """What a crash has left under the name of a content may be anything."""
    stored = StoredFile(5, hashlib.sha256(b"whole").hexdigest(), 1)
    for data in (b"who", b"whole"):
        path = place.scratch / uuid.uuid4().hex
        path.write_bytes(data)
        place.put(path, stored.name)
        place.sync()
    assert place.sizes([stored.name]) == {stored.name: 5}
    assert place.contents(stored) == b"whole"
    check_files(place, {"a": stored}, fully=True)


def test_contents_that_differ_from_their_hash_are_named(place: Place) -> None:
    for data, what in ((b"shorter", "bytes"), (b"as long", "checksum")):
        stored = StoredFile(9 if what == "bytes" else 7, hashlib.sha256(b"another").hexdigest(), 1)
        path = place.scratch / uuid.uuid4().hex
        path.write_bytes(data)
        place.put(path, stored.name)
        place.sync()
        with pytest.raises(CorruptCheckpoint, match=stored.name):
            check_files(place, {"t/blob": stored}, fully=True)


def test_a_missing_file_is_an_error_of_the_system_that_names_it(place: Place) -> None:
    for read in (place.read, lambda name: list(place.chunks(name))):
        with pytest.raises(OSError, match="none-1"):
            read("files/ab/none-1")
    with pytest.raises(OSError, match="0000"):
        place.fetch(StoredFile(3, "0" * 64, 1))


def test_who_owns_it_has_an_empty_scratch_each_time(place: Place) -> None:
    (place.scratch / "left").write_bytes(b"of before")
    place.disown()
    place.disown()
    assert not place.owned
    place.own()
    assert place.owned
    assert list(place.scratch.iterdir()) == []


def test_only_a_directory_tells_whether_it_is_in_use(location: Any, place: Place) -> None:
    other = place_of(location)
    assert other.in_use() == isinstance(other, LocalPlace)
    place.disown()
    assert not other.in_use()


def test_a_place_that_is_only_read_needs_no_owner_and_is_not_written(location: Any, place: Place) -> None:
    one = keep(place, b"one")
    reader = place_of(location)
    before = sorted(place.all_files())
    folder = reader.folder("7/state", {"CURRENT": one})
    assert (folder / "CURRENT").read_bytes() == reader.fetch(one).read_bytes() == b"one"
    assert not reader.owned
    reader.release()
    assert not folder.exists()
    assert sorted(place.all_files()) == before


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


@pytest.mark.one_in(3, "a quarter of a second of a core each")
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


@pytest.mark.one_in(6, "a tenth of a second of a core each")
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


@pytest.mark.one_in(3, "a tenth of a second of a core each")
def test_a_worker_that_was_overtaken_stops_at_its_next_checkpoint(location) -> None:
    if isinstance(location, Path):
        pytest.skip("a directory refuses the second worker at once: test_checkpoint_storage.py")
    first, second = CheckpointStorage(location), CheckpointStorage(location)
    write(first, 1)
    first.check_owner()
    second.lock()
    assert (first.generation, second.generation) == (1, 2)
    with pytest.raises(
        AppLocked, match=rf"another worker has taken this app over in .*: process {os.getpid()} on host"
    ):
        first.check_owner()
    with pytest.raises(AppLocked):
        write(first, 2)
    assert second.ids() == [1]
    write(second, 2)
    second.drop_old()
    assert second.latest().generation == 2
    with pytest.raises(AppLocked):
        first.drop_old()
    second.unlock()
    first.unlock()
