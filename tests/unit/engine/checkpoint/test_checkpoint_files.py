"""Places of checkpoints that are remote: crashes, lost answers, several workers; and how places are named.

What every place must do is in `tests/contracts/test_checkpoint_place_contract.py`.
"""

import os
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sabot import steps
from sabot.engine.checkpoint import CheckpointStorage, Manifest
from sabot.engine.checkpoint.manifest import StoredTask
from sabot.engine.checkpoint.places import place_of
from sabot.errors import AppLocked, CheckpointFailed, UserError
from tools.checkpoint_tools import assert_whole, files_of, in_memory, write


def test_what_a_checkpoint_before_held_is_neither_read_nor_sent_again(tmp_path: Path) -> None:
    sent: list[str] = []
    filesystem, _ = in_memory(lambda verb, path: sent.append(path) if verb == "write" else None)
    storage = CheckpointStorage((filesystem, "apps"), scratch=tmp_path / "scratch")
    table = tmp_path / "000007.sst"
    table.write_bytes(b"x" * 100)
    for checkpoint_id in (1, 2, 3):
        os.link(table, storage.begin(checkpoint_id) / "000007.sst")
        manifest = storage.commit(checkpoint_id, Manifest(checkpoint_id, 0))
    assert len([path for path in sent if path.startswith("apps/files/")]) == 1
    assert manifest.contents["000007.sst"].size == 100
    storage.unlock()


def test_scratch_on_this_machine_belongs_to_one_worker(tmp_path: Path) -> None:
    filesystem, _ = in_memory()
    first = CheckpointStorage((filesystem, "apps"), scratch=tmp_path)
    first.lock()
    with pytest.raises(AppLocked, match="is in use by process"):
        CheckpointStorage((filesystem, "apps"), scratch=tmp_path).lock()
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
        storage = CheckpointStorage((filesystem, "apps"), retain=1)
        files_of(storage).parallel = 1  # steps in one order
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
        again = CheckpointStorage((filesystem, "apps"), retain=1)
        manifest = again.latest()
        data = {1: b"old", 2: b"new"}[manifest.checkpoint_id]
        assert_whole(manifest, data)
        write(again, 3, b"next")
        again.drop_old()
        assert sorted(files_of(again).all_files()) == sorted({file.name for file in again.latest().contents.values()})
        assert files_of(again).names("checkpoints") == [f"{3:010d}-{2:010d}.json"]
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
    storage = CheckpointStorage((filesystem, "apps"), retain=2)
    write(storage, 1, b"first")

    def lose(verb: str, path: str) -> None:
        if verb == "move" and path.startswith("apps/checkpoints"):
            if arrived:
                handler.files[path] = next(data for name, data in handler.files.items() if name.startswith(path))
            raise OSError("connection reset")

    handler.turn = lose
    with pytest.raises(CheckpointFailed, match="connection reset"):
        write(storage, 2, b"second")
    storage.abort(2)
    handler.turn = lambda verb, path: None
    newest = CheckpointStorage((filesystem, "apps")).latest()
    assert newest.checkpoint_id == (2 if arrived else 1)
    assert_whole(newest, b"second" if arrived else b"first")
    write(storage, 3, b"third")
    storage.drop_old()
    for manifest in storage.manifests():
        storage.verify(manifest)
    storage.unlock()


def test_errors_name_the_place_and_the_reason() -> None:
    filesystem, handler = in_memory()
    storage = CheckpointStorage((filesystem, "bucket/apps"))
    storage.lock()

    def fail(verb: str, path: str) -> None:
        raise OSError("access denied")

    handler.turn = fail
    with pytest.raises(CheckpointFailed, match=r"could not be written to .*bucket/apps: access denied"):
        write(storage, 1)
    with pytest.raises(CheckpointFailed, match="access denied"):
        storage.check_owner()
    storage.unlock()
    with pytest.raises(UserError, match="bucket/apps cannot be used: access denied"):
        storage.lock()


@pytest.mark.parametrize(
    ("location", "where"),
    [("dir", "dir"), ("file:///var/x", "/var/x"), ("mock:///apps/x", "mock:///apps/x"), (Path("a/b"), "a/b")],
)
def test_a_place_is_named_by_a_path_or_a_uri(location, where: str) -> None:
    assert str(place_of(location).where).endswith(where)


def test_a_place_that_is_none_is_refused_and_secrets_are_not_told() -> None:
    with pytest.raises(UserError, match="nowhere://x is not a place for checkpoints") as refused:
        place_of("nowhere://key:secret@x?password=secret")
    assert "secret" not in str(refused.value)
    assert place_of("s3://key:secret@bucket/apps?region=us-east-1").where == "s3://bucket/apps"


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
    """A worker: owns the app, goes on from its newest checkpoint, makes more."""

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
        except AppLocked:
            self.ended = "overtaken"
        except BaseException as error:
            self.ended = repr(error)
        else:
            self.ended = "done"
        del self.baton.turns[threading.get_ident()]
        self.baton.back.release()

    def work(self) -> None:
        storage = CheckpointStorage(self.location, retain=1)
        files_of(storage).parallel = 1
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
def test_workers_of_one_app_never_count_checkpoints_past_each_other(
    workers: int, schedule: list[tuple[int, int]]
) -> None:
    baton = Baton()
    filesystem, _ = in_memory(baton.wait)
    location = (filesystem, "apps")
    runs = [Run(baton, location, number) for number in range(workers)]
    for run in runs:
        run.start()
    for number, count in [*schedule, *((number, 10_000) for number in range(workers))]:
        for _ in range(count):
            if number >= workers or runs[number].ended:
                break
            runs[number].turn.release()
            assert baton.back.acquire(timeout=60)
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
