"""What a worker tells its coordinator: in which order, and what is on the disk when it is told."""

import threading
from pathlib import Path

import pyarrow as pa
import pytest

from sabot._cython.arrow.batch import Batch
from sabot.checkpoint import TaskSnapshot
from sabot.connectors.base import Sink
from sabot.delivery import StagedSink
from sabot.delivery.parts import read_part
from sabot.errors import InternalError, UserError
from sabot.workers.messages import Complete, Declined, PartSealed, TaskCut, TaskEnded, TrackEnded, WorkerFailed
from sabot.workers.remote import RemoteCheckpoints, RemoteTracks, snapshot_of


class Table:
    """A cut that writes one file, once it is let."""

    def __init__(self, text="", *, let=None, error=None):
        self.text, self.let, self.error, self.discarded = text, let, error, 0

    def save(self, directory):
        if self.let is not None:
            assert self.let.wait(10)
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
    checkpoints = RemoteCheckpoints(sent.append, tmp_path / "0")
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
    checkpoints = RemoteCheckpoints(sent.append, tmp_path)
    checkpoints.acknowledge(1, "keyed/0", TaskSnapshot(states={"table": Table(let=let)}))
    checkpoints.detach("keyed/0", TaskSnapshot(states={"table": Table()}))
    let.set()
    checkpoints.close()
    assert [type(each) for each in sent] == [TaskCut, TaskEnded]
    assert len({*sent[0].states.values(), *sent[1].states.values()}) == 2


def test_a_cut_that_cannot_be_saved_is_declined_and_a_last_state_fails_the_worker(tmp_path):
    sent, tables = [], [Table(error=OSError(28, "no space")), Table(error=UserError("no"))]
    checkpoints = RemoteCheckpoints(sent.append, tmp_path)
    checkpoints.acknowledge(1, "keyed/0", TaskSnapshot(states={"table": tables[0]}))
    checkpoints.detach("keyed/1", TaskSnapshot(states={"table": tables[1]}))
    checkpoints.close()
    assert isinstance(sent[0], Declined)
    assert "no space" in sent[0].why
    assert isinstance(sent[1], WorkerFailed)
    assert [table.discarded for table in tables] == [1, 1]


def test_small_files_of_a_cut_have_a_folder_that_goes_with_it(tmp_path):
    sent, table = [], Table("all rows")
    checkpoints = RemoteCheckpoints(sent.append, tmp_path)
    rows = {"app.f.0.arrow": b"first", "app.f.1.arrow": b"second"}
    checkpoints.acknowledge(3, "agents", TaskSnapshot({"ended": False}, rows, {"state": table}))
    checkpoints.close()
    [cut] = sent
    assert {name: Path(path).read_bytes() for name, path in cut.files.items()} == rows
    snapshot = snapshot_of(cut)
    assert {name: path.read_bytes() for name, path in snapshot.files.items()} == rows
    snapshot.discard()
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
    checkpoints = RemoteCheckpoints(lambda message: None, tmp_path)
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


class Receiver(Sink):
    """Can deliver, and is never asked to here."""

    name = "receiver"

    def open(self):
        raise AssertionError("a worker opened the sink")

    def write(self, batch):
        raise AssertionError("a worker wrote into the sink")

    def flush(self):
        raise AssertionError("a worker flushed the sink")

    def deliver(self, seq, batches):
        raise AssertionError("a worker delivered")

    def close(self):
        pass


def rows(*numbers):
    return Batch(pa.record_batch({"n": pa.array(numbers, pa.int64())}))


def test_parts_are_numbered_on_and_told_before_the_cut_to_which_they_belong(tmp_path):
    sent = []
    tracks = RemoteTracks({"streams.receiver": str(tmp_path)}, kept=True, send=sent.append)
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


def test_a_sink_that_is_written_at_least_once_is_the_workers_own():
    tracks = RemoteTracks({}, kept=True, send=lambda message: None)
    sink = Receiver()
    assert tracks.staged("streams", sink, "at_least_once") is sink


def test_a_track_that_the_coordinator_does_not_have_is_refused():
    with pytest.raises(InternalError, match="not at the coordinator"):
        RemoteTracks({}, kept=True, send=lambda message: None).staged("streams", Receiver(), "exactly_once")
