"""What a worker tells its coordinator: in which order, and what is on the disk when it is told."""

import threading
from pathlib import Path

import pyarrow as pa
import pytest

from sabot._cython.arrow.batch import Batch
from sabot.connectors.base import Delivers, Sink
from sabot.engine.checkpoint import CheckpointStorage, TaskSnapshot
from sabot.engine.checkpoint.places import StoredFile
from sabot.engine.delivery import StagedSink
from sabot.engine.delivery.parts import read_part
from sabot.engine.workers.messages import (
    Complete,
    Declined,
    PartSealed,
    Start,
    TaskCut,
    TaskEnded,
    TrackEnded,
    WorkerFailed,
)
from sabot.engine.workers.process import saved_of
from sabot.engine.workers.remote import RemoteCheckpoints, RemoteTracks, part_of, snapshot_of
from sabot.engine.workers.saving import FolderSnapshotStore
from sabot.errors import InternalError, UserError
from tools.checkpoint_tools import in_memory


class Table:
    """A cut that writes one file, once it is let."""

    def __init__(self, text="", *, let=None, error=None):
        self.text, self.let, self.error, self.discarded = text, let, error, 0

    def save(self, directory):
        if self.let is not None:
            assert self.let.wait(60)
        if self.error is not None:
            raise self.error
        (directory / "rows").write_text(self.text)
        return len(self.text)

    def discard(self):
        self.discarded += 1


def folder_of(path):
    return {file.name: file.read_text() for file in path.iterdir()}


def test_a_cut_is_saved_when_the_coordinator_hears_of_it(tmp_path):
    sent, table = [], Table("all rows")
    checkpoints = RemoteCheckpoints(sent.append, FolderSnapshotStore(tmp_path / "0"))
    checkpoints.acknowledge(3, "keyed/0", TaskSnapshot({"ended": False}, {}, {"table": table}, {"streams.out": 2}))
    checkpoints.close()
    [cut] = sent
    assert isinstance(cut, TaskCut)
    assert (cut.checkpoint_id, cut.task, cut.meta, cut.sealed) == (3, "keyed/0", {"ended": False}, {"streams.out": 2})
    assert folder_of(tmp_path / "0" / "00000001") == {"rows": "all rows"}
    assert cut.states == {"table": str(tmp_path / "0" / "00000001")}
    assert table.discarded == 1


def test_the_end_of_a_task_is_told_behind_its_cut_however_long_that_takes_to_save(tmp_path):
    sent, let = [], threading.Event()
    checkpoints = RemoteCheckpoints(sent.append, FolderSnapshotStore(tmp_path))
    checkpoints.acknowledge(1, "keyed/0", TaskSnapshot(states={"table": Table(let=let)}))
    checkpoints.detach("keyed/0", TaskSnapshot(states={"table": Table()}))
    let.set()
    checkpoints.close()
    assert [type(each) for each in sent] == [TaskCut, TaskEnded]
    assert len({*sent[0].states.values(), *sent[1].states.values()}) == 2


def test_of_small_files_that_cannot_all_be_saved_none_stays(tmp_path):
    """On a full disk each checkpoint left the rows that it could write, until the worker ended."""
    sent, in_the_way = [], tmp_path / "0" / "00000002" / "1"
    in_the_way.mkdir(parents=True)
    checkpoints = RemoteCheckpoints(sent.append, FolderSnapshotStore(tmp_path / "0"))
    files = {"first": b"unfinished rows", "second": b"more of them"}
    checkpoints.acknowledge(1, "agents", TaskSnapshot(files=files, states={"table": Table("rows")}))
    checkpoints.close()
    assert isinstance(sent[0], Declined)
    assert list((tmp_path / "0").iterdir()) == []


def test_a_cut_that_cannot_be_saved_is_declined_and_a_last_state_fails_the_worker(tmp_path):
    sent, tables = [], [Table(error=OSError(28, "no space")), Table(error=UserError("no"))]
    checkpoints = RemoteCheckpoints(sent.append, FolderSnapshotStore(tmp_path))
    checkpoints.acknowledge(1, "keyed/0", TaskSnapshot(states={"table": tables[0]}))
    checkpoints.detach("keyed/1", TaskSnapshot(states={"table": tables[1]}))
    checkpoints.close()
    assert isinstance(sent[0], Declined)
    assert "no space" in sent[0].why
    assert isinstance(sent[1], WorkerFailed)
    assert [table.discarded for table in tables] == [1, 1]


def test_small_files_of_a_cut_have_a_folder_that_goes_with_it(tmp_path):
    sent, table = [], Table("all rows")
    checkpoints = RemoteCheckpoints(sent.append, FolderSnapshotStore(tmp_path))
    rows = {"app.f.0.arrow": b"first", "app.f.1.arrow": b"second"}
    checkpoints.acknowledge(3, "agents", TaskSnapshot({"ended": False}, rows, {"state": table}))
    checkpoints.close()
    [cut] = sent
    assert {name: Path(path).read_bytes() for name, path in cut.files.items()} == rows
    snapshot = snapshot_of(cut, None, tmp_path)
    assert {name: path.read_bytes() for name, path in snapshot.files.items()} == rows
    snapshot.discard()
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_a_worker_names_is_in_the_folder_that_it_was_given(tmp_path):
    """The coordinator would link it into the checkpoint, whatever it is."""
    given, secret = tmp_path / "given", tmp_path / "secret"
    (given / "1").mkdir(parents=True)
    secret.write_text("a key")
    (given / "link").symlink_to(secret)
    (given / "folder").symlink_to(tmp_path)
    good = str(given / "1" / "rows.arrow")
    assert snapshot_of(TaskCut(1, "t/0", {}, {"table": str(given / "1")}, {}, {"f": good}), None, given).files
    assert part_of(PartSealed("track", 1, good, 1, 1), given).file == Path(good)
    for path in (str(secret), str(given / "link"), str(given / "folder" / "secret"), f"{given}/../secret", str(given)):
        for cut in (
            TaskCut(1, "t/0", {}, {"table": path}, {}, {}),
            TaskCut(1, "t/0", {}, {}, {}, {"f": path}),
        ):
            with pytest.raises(InternalError, match="which is not in the folder that it was given"):
                snapshot_of(cut, None, given)
        with pytest.raises(InternalError, match="which is not in the folder that it was given"):
            part_of(PartSealed("track", 1, path, 1, 1), given)
    with pytest.raises(InternalError, match="which is not in the folder"):
        part_of(PartSealed("track", 1, good, 1, 1))  # the parts are in an object store


def test_a_cut_that_waits_for_the_disk_is_told_as_being_saved_until_its_checkpoint_is_given_up(tmp_path):
    sent, let, tables = [], threading.Event(), [Table("1"), Table("2"), Table("3")]
    tables[0].let = let
    checkpoints = RemoteCheckpoints(sent.append, FolderSnapshotStore(tmp_path))
    for task in ("keyed/0", "keyed/1"):
        checkpoints.attach(task, lambda _: None, lambda _: None, lambda: "busy")
    checkpoints.trigger(1)
    checkpoints.acknowledge(1, "keyed/0", TaskSnapshot(states={"table": tables[0]}))
    assert checkpoints.saving() == ["keyed/0"]
    assert checkpoints.hints() == {"keyed/0": "its state is being saved", "keyed/1": "busy"}
    checkpoints.acknowledge(1, "keyed/1", TaskSnapshot(states={"table": tables[1]}))
    assert checkpoints.saving() == ["keyed/0", "keyed/1"]
    checkpoints.abort(1)
    assert checkpoints.saving() == []
    checkpoints.trigger(2)
    checkpoints.acknowledge(2, "keyed/0", TaskSnapshot(states={"table": tables[2]}))
    assert checkpoints.saving() == ["keyed/0"]
    let.set()
    checkpoints.close()
    assert checkpoints.saving() == []
    # That of keyed/1 for checkpoint 1 was not begun: nobody waits for it, and the next one would.
    assert [(each.checkpoint_id, each.task) for each in sent] == [(1, "keyed/0"), (2, "keyed/0")]
    assert [table.discarded for table in tables] == [1, 1, 1]


def test_of_a_cut_that_cannot_be_saved_as_a_whole_nothing_stays(tmp_path):
    sent = []
    checkpoints = RemoteCheckpoints(sent.append, FolderSnapshotStore(tmp_path))
    states = {"first": Table("rows"), "second": Table(error=OSError(28, "no space"))}
    checkpoints.acknowledge(1, "keyed/0", TaskSnapshot(states=states))
    checkpoints.close()
    assert [type(each) for each in sent] == [Declined]
    assert list(tmp_path.iterdir()) == []


def test_without_checkpoints_on_a_disk_nothing_is_saved():
    sent, table = [], Table()
    checkpoints = RemoteCheckpoints(sent.append, None)
    checkpoints.acknowledge(1, "keyed/0", TaskSnapshot(states={"table": table}))
    checkpoints.close()
    assert sent[0].states == {}
    assert table.discarded == 1


def test_barriers_reach_the_tasks_that_have_not_ended(tmp_path):
    asked, gone = [], []
    checkpoints = RemoteCheckpoints(lambda message: None, FolderSnapshotStore(tmp_path))
    for task in ("read/0", "read/1"):
        checkpoints.attach(
            task, lambda id, task=task: asked.append((task, id)), gone.append, lambda task=task: f"{task} is busy"
        )
    checkpoints.trigger(1)
    assert checkpoints.hints() == {"read/0": "read/0 is busy", "read/1": "read/1 is busy"}
    checkpoints.acknowledge(1, "read/1", TaskSnapshot())
    assert checkpoints.hints() == {"read/0": "read/0 is busy"}
    checkpoints.abort(1)
    checkpoints.detach("read/0", TaskSnapshot())
    checkpoints.trigger(2)
    checkpoints.close()
    assert asked == [("read/0", 1), ("read/1", 1), ("read/1", 2)]
    assert gone == [1, 1]


def test_a_complete_checkpoint_says_what_may_be_committed():
    told = []
    checkpoints = RemoteCheckpoints(lambda message: None, None)
    checkpoints.on_complete.append(told.append)
    checkpoints.complete(Complete(4, {"read/0": {"positions": [["t", 0, 7]]}}))
    checkpoints.close()
    [manifest] = told
    assert manifest.checkpoint_id == 4
    assert manifest.tasks["read/0"].meta["input"]["positions"] == [["t", 0, 7]]


def test_agents_hear_of_their_part_of_a_complete_checkpoint_and_of_the_oldest_that_is_left():
    told, left = [], []
    checkpoints = RemoteCheckpoints(lambda message: None, None)
    checkpoints.on_complete.append(told.append)
    checkpoints.on_retained.append(left.append)
    checkpoints.complete(Complete(4, {}, {"agents": {"sources": {}, "journal": {"identity": "j"}}}))
    checkpoints.retained(2)
    checkpoints.close()
    assert told[0].tasks["agents"].meta["journal"] == {"identity": "j"}
    assert left == [2]


class Receiver(Sink, Delivers):
    """Can deliver, and is never asked to here."""

    name = "receiver"

    def open(self):
        raise AssertionError("a worker opened the sink")

    def write(self, batch):
        raise AssertionError("a worker wrote into the sink")

    def flush(self):
        raise AssertionError("a worker flushed the sink")

    def claim(self, track):
        raise AssertionError("a worker claimed the track")

    def deliver(self, seq, batches):
        raise AssertionError("a worker delivered")

    def close(self):
        pass


def rows(*numbers):
    return Batch(pa.record_batch({"n": pa.array(numbers, pa.int64())}))


def tracks_in(folder, folders, send=lambda message: None):
    saved = FolderSnapshotStore(folder)
    return RemoteTracks(folders, saved, RemoteCheckpoints(send, saved))


def test_parts_are_numbered_on_and_told_before_the_cut_to_which_they_belong(tmp_path):
    sent = []
    tracks = tracks_in(tmp_path, {"streams.receiver": str(tmp_path)}, sent.append)
    sink = tracks.staged("streams", Receiver(), None)
    assert isinstance(sink, StagedSink)
    sink.open()
    tracks.begin({"streams.receiver": 7})
    sink.write(rows(1, 2))
    sink.write(rows(3))
    sink.flush()
    assert sink.sealed == {"streams.receiver": 8}
    [part] = sent
    assert part == PartSealed(
        "streams.receiver", 8, str(tmp_path / "8.arrow"), 3, (tmp_path / "8.arrow").stat().st_size
    )
    assert [n for batch in read_part(tmp_path / "8.arrow") for n in batch["n"].to_pylist()] == [1, 2, 3]
    sink.flush()
    assert sink.sealed == {"streams.receiver": 8}, "no rows, no part"
    sink.write(rows(4))
    sink.finish()
    assert [type(each) for each in sent[1:]] == [PartSealed, TrackEnded]
    sink.write(rows(5))
    sink.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["8.arrow", "9.arrow"]


def test_a_sink_that_is_written_at_least_once_is_the_workers_own(tmp_path):
    tracks = tracks_in(tmp_path, {})
    sink = Receiver()
    assert tracks.staged("streams", sink, "at_least_once") is sink


def test_a_track_that_the_coordinator_does_not_have_is_refused(tmp_path):
    with pytest.raises(InternalError, match="not in the coordinator"):
        tracks_in(tmp_path, {}).staged("streams", Receiver(), "exactly_once")


class Storing:
    """A store that is asked in the order of `asked`, and refuses as often as it is told to."""

    at_store = True

    def __init__(self, folder, refuse=0):
        self.folder, self.refuse, self.asked = folder, refuse, []

    def new_folder(self):
        folder = self.folder / str(len(self.asked))
        folder.mkdir()
        return folder

    def give(self, folder, checkpoint_id):
        self.asked.append(("state", checkpoint_id))
        return {}

    def give_files(self, files, checkpoint_id):
        return {}

    def part_folder(self, told):
        return self.folder

    def give_part(self, track, part):
        if self.refuse:
            self.refuse -= 1
            raise OSError(5, "not today")
        self.asked.append(("part", part.seq))
        return PartSealed(
            track, part.seq, StoredFile(part.nbytes, "a" * 64, 1, f"e-0-{part.seq}"), part.rows, part.nbytes
        )

    def completed(self, checkpoint_id):
        self.asked.append(("complete", checkpoint_id))


def test_parts_are_in_the_store_before_the_cut_is_told_and_tried_again_until_they_are(tmp_path):
    sent = []
    saved = Storing(tmp_path, refuse=3)
    checkpoints = RemoteCheckpoints(sent.append, saved)
    tracks = RemoteTracks({"streams.receiver": ""}, saved, checkpoints)
    sink = tracks.staged("streams", Receiver(), None)
    tracks.begin({"streams.receiver": 0})
    for checkpoint_id in (1, 2):
        sink.write(rows(checkpoint_id))
        sink.flush()
        checkpoints.acknowledge(checkpoint_id, "t/0", TaskSnapshot({}, {}, {"s": Table()}, dict(sink.sealed)))
    checkpoints.complete(Complete(2, {}))
    sink.finish()
    checkpoints.detach("t/0", TaskSnapshot())
    checkpoints.close()
    # Refused: as the first part was sealed, at the first cut, and as the second part was sealed.
    assert [type(each) for each in sent] == [Declined, PartSealed, PartSealed, TaskCut, TrackEnded, TaskEnded]
    assert "not today" in sent[0].why
    assert saved.asked == [("part", 1), ("part", 2), ("state", 2), ("complete", 2)]
    part = part_of(sent[1])
    assert (part.seq, part.rows, part.file.writer) == (1, 1, "e-0-1")


def test_an_end_is_not_told_as_long_as_a_part_of_it_cannot_be_stored(tmp_path):
    sent = []
    saved = Storing(tmp_path, refuse=9)
    checkpoints = RemoteCheckpoints(sent.append, saved)
    sink = RemoteTracks({"streams.receiver": ""}, saved, checkpoints).staged("streams", Receiver(), None)
    sink.write(rows(1))
    sink.finish()
    checkpoints.detach("t/0", TaskSnapshot())
    checkpoints.close()
    assert [type(each) for each in sent] == [WorkerFailed, WorkerFailed]


def test_where_the_checkpoints_are_elsewhere_than_the_coordinators_a_worker_is_refused():
    start = Start("e", {}, [], {}, "", None, None, None, {}, [], store="s3://one/app", generation=3)
    elsewhere = CheckpointStorage((in_memory()[0], "apps"))
    with pytest.raises(UserError, match="the coordinator in s3://one/app"):
        saved_of(start, 0, elsewhere)
