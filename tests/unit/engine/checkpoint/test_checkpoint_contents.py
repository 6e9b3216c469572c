"""Files that workers store themselves, and the manifests that list them: what is stored again, what goes, and when."""

import hashlib
import os
from pathlib import Path

import pytest

from sabot.engine.checkpoint import CheckpointStorage, Coordinator, Manifest, TaskSnapshot
from sabot.engine.checkpoint.contents import ContentsWriter, sha256_of_each
from sabot.engine.checkpoint.task_states import StoredState
from sabot.engine.workers.messages import TaskCut
from sabot.engine.workers.remote import snapshot_of
from sabot.errors import CorruptCheckpoint, TransientError
from tools.checkpoint_tools import InMemory, files_of, in_memory


class Store:
    """An app in an object store, and a worker of it. `sent`: the files that were written, in order."""

    def __init__(self, tmp_path: Path, name: str = "e-0") -> None:
        self.sent: list[str] = []
        self.refuse = ""
        self.location = (in_memory(self._turn)[0], "apps")
        self.storage = CheckpointStorage(self.location, retain=1)
        self.storage.lock()
        self.worker = CheckpointStorage(self.location, scratch=tmp_path / "scratch")
        self.writer: ContentsWriter = self.worker.writer(self.storage.generation, name)

    def _turn(self, verb: str, path: str) -> None:
        if verb == "write" and path.startswith("apps/files/"):
            if self.refuse and len(self.sent) >= int(self.refuse):
                raise OSError(5, "not today")
            self.sent.append(path)

    def save(self, checkpoint_id: int | None, **files: bytes | Path):
        """What a worker stores for this checkpoint."""
        folder = self.writer.new_folder()
        for name, data in files.items():
            if isinstance(data, Path):
                os.link(data, folder / name)
            else:
                (folder / name).write_bytes(data)
        return self.writer.store(folder, checkpoint_id)

    def commit(self, checkpoint_id: int, stored) -> Manifest:
        """The coordinator's part of it."""
        self.storage.begin(checkpoint_id)
        manifest = self.storage.commit(checkpoint_id, Manifest(checkpoint_id, 0), stored)
        self.storage.unneeded(stored.values())
        self.storage.drop_old()
        self.writer.completed(checkpoint_id)
        return manifest

    def there(self) -> set[str]:
        """The files that the store has."""
        return set(files_of(self.storage).all_files())


@pytest.fixture
def store(tmp_path: Path):
    store = Store(tmp_path)
    yield store
    store.storage.unlock()


def test_what_the_newest_checkpoint_has_is_not_stored_again(store: Store, tmp_path: Path) -> None:
    table = tmp_path / "000007.sst"
    table.write_bytes(b"x" * 100)
    for checkpoint_id in (1, 2, 3):
        stored = store.save(checkpoint_id, table=table, current=b"the same")
        manifest = store.commit(checkpoint_id, stored)
    assert len(store.sent) == 2
    assert {path: file.size for path, file in manifest.contents.items()} == {"current": 8, "table": 100}
    reader = CheckpointStorage(store.location)
    reader.verify(reader.read(3))
    assert store.there() == {file.name for file in manifest.contents.values()}


def test_what_a_failed_checkpoint_had_stored_is_not_relied_on_and_goes(store: Store) -> None:
    store.commit(1, store.save(1, a=b"one"))
    failed = store.save(2, a=b"two")
    store.storage.unneeded(failed.values())
    again = store.save(3, a=b"two")
    assert again["a"].name != failed["a"].name
    store.commit(3, again)
    assert store.there() == {again["a"].name}


def test_files_that_only_an_earlier_checkpoint_has_are_stored_anew(store: Store) -> None:
    first = store.save(1, a=b"one")
    store.commit(1, first)
    store.commit(2, store.save(2, a=b"two"))
    last = store.save(3, a=b"one")
    assert last["a"].name != first["a"].name
    assert store.there() >= {last["a"].name}
    store.commit(3, last)
    assert store.there() == {last["a"].name}


def test_a_checkpoint_without_anything_of_this_worker_is_not_built_upon(store: Store) -> None:
    store.commit(1, store.save(1, a=b"one"))
    store.commit(2, {})
    assert store.there() == set()
    last = store.save(3, a=b"one")
    store.commit(3, last)
    assert store.there() == {last["a"].name}


def test_the_last_state_of_a_task_waits_for_whichever_checkpoint_comes(store: Store) -> None:
    final = store.save(None, a=b"last")
    store.commit(1, {"other": store.save(1, b=b"x")["b"]})
    assert final["a"].name in store.there(), "the sweep of the first drop has spared it"
    store.commit(2, {"final": final["a"]})
    assert store.there() == {final["a"].name}


def test_what_a_run_has_left_goes_with_the_next_one(store: Store) -> None:
    left = store.save(1, a=b"never listed")
    store.storage.unlock()
    store.storage.lock()
    store.storage.drop_old()
    assert left["a"].name not in store.there()


def test_an_upload_that_fails_leaves_nothing_and_is_tried_again(store: Store) -> None:
    store.refuse = "1"
    with pytest.raises(OSError, match="not today"):
        store.save(1, a=b"one", b=b"two", c=b"three")
    assert store.there() == set()
    store.refuse = ""
    manifest = store.commit(2, store.save(2, a=b"one", b=b"two", c=b"three"))
    assert store.there() == {file.name for file in manifest.contents.values()}


def test_what_was_stored_for_a_cut_that_failed_is_taken_back_without_what_the_newest_checkpoint_has(
    store: Store,
) -> None:
    first = store.save(1, a=b"one")
    store.commit(1, first)
    again = store.save(2, a=b"one", b=b"two")
    store.writer.take_back(again.values())
    assert store.there() == {first["a"].name}


def test_small_files_of_a_checkpoint_that_failed_go_too(store: Store) -> None:
    files, small = store.save(1, rows=b"all"), store.save(1, f=b"small")
    snapshot = snapshot_of(TaskCut(1, "keyed/0", {}, {"table": files}, {}, {"f": small["f"]}), store.storage)
    snapshot.discard()
    store.commit(2, store.save(2, a=b"next"))
    assert not {files["rows"].name, small["f"].name} & store.there()


def test_a_part_is_fetched_and_its_damage_is_told(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "1.arrow"
    path.write_bytes(b"rows")
    stored = store.writer.store_file(path)
    assert store.storage.fetched(stored).read_bytes() == b"rows"
    handler: InMemory = store.location[0].handler
    other = store.writer.store_file(path)
    assert other.name != stored.name
    handler.files[f"apps/{other.name}"] = b"Rows"
    with pytest.raises(CorruptCheckpoint, match="its checksum differs"):
        store.storage.fetched(other)
    del handler.files[f"apps/{other.name}"]
    with pytest.raises(TransientError, match=other.sha256):
        store.storage.fetched(other)


async def test_a_checkpoint_lists_the_files_of_workers_and_another_run_reads_them(store: Store) -> None:
    coordinator = Coordinator(store.storage)
    coordinator.attach("keyed/0", lambda checkpoint_id: None, lambda checkpoint_id: None)
    coordinator.detach(
        "ended", TaskSnapshot({}, {}, {"table": StoredState(store.save(None, rows=b"l"), store.storage)})
    )
    for checkpoint_id in (1, 2):
        files = store.save(checkpoint_id, rows=b"all %d" % checkpoint_id)
        small = store.save(checkpoint_id, f=b"small")
        snapshot = TaskSnapshot({}, {"f": small["f"]}, {"table": StoredState(files, store.storage)})
        assert coordinator.trigger() == checkpoint_id
        coordinator.acknowledge(checkpoint_id, "keyed/0", snapshot)
        manifest = await coordinator.wait(checkpoint_id)
        store.writer.completed(checkpoint_id)
    await coordinator.close()
    assert store.there() == {file.name for file in manifest.contents.values()}
    restored = CheckpointStorage(store.location).latest()
    assert restored is not None
    assert (restored.state_directory("keyed/0", "table") / "rows").read_bytes() == b"all 2"
    assert (restored.state_directory("ended", "table") / "rows").read_bytes() == b"l"
    assert restored.read_file("keyed/0", "f") == b"small"


@pytest.mark.parametrize("size", [0, 10, 300_000])
def test_hashes_of_many_files_are_those_of_each(tmp_path: Path, size: int) -> None:
    paths = [tmp_path / str(number) for number in range(7)]
    for number, path in enumerate(paths):
        path.write_bytes(bytes([number]) * size)
    hashes = sha256_of_each(paths)
    assert list(hashes) == paths
    assert hashes == {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def test_a_file_that_cannot_be_hashed_is_an_error(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a", "b", "folder")]
    for path in paths[:2]:
        path.write_bytes(b"x" * 1_000_000)
    paths[2].mkdir()
    with pytest.raises(IsADirectoryError):
        sha256_of_each(paths)
