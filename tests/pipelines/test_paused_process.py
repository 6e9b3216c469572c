"""A process that was paused, as by SIGSTOP or with its machine: what came meanwhile is not late."""

import pyarrow as pa
import pytest

import sabot
from sabot import App, tumbling
from sabot._cython.arrow.batch import Batch
from sabot.connectors.base import Bounded, Source
from sabot.testing import ManualClock

SCHEMA = {"n": "int64", "ts": "int64"}


class TwoPartitions(Source, Bounded):
    """Each poll returns rows of one partition, in turn. The process is paused for a minute in the poll with this number."""

    name = "two"
    schema = pa.schema([("n", pa.int64()), ("ts", pa.int64())])

    def __init__(self, clock: ManualClock, paused_at: int) -> None:
        self._clock, self._paused_at = clock, paused_at
        self._polls = 0
        self._at = {("two", 0): 0, ("two", 1): 0}

    def open(self, positions, start="earliest"):
        self._at.update(positions or {})

    def read_batch(self, max_rows, timeout):
        if self.exhausted:
            return None
        self._clock.advance(60.0 if self._polls == self._paused_at else 0.01)
        partition, self._polls = self._polls % 2, self._polls + 1
        place, second = ("two", partition), self._polls // 2
        rows = [{"n": self._polls, "ts": 1000 * second + ms} for ms in range(0, 1000, 100)]
        if self._polls > self._paused_at:
            rows = [{**row, "ts": row["ts"] + 60_000 * (partition == 0)} for row in rows]
        self._at[place] += len(rows)
        return Batch(pa.RecordBatch.from_pylist(rows, self.schema), {place: self._at[place]}, "two")

    @property
    def exhausted(self):
        return self._polls == 12

    def positions(self):
        return dict(self._at)

    def close(self):
        "There is nothing to release."


def test_a_partition_that_is_read_second_after_a_pause_is_not_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pause counted as silence of both partitions, so the first rows of one closed the windows of the other."""
    clock = ManualClock()
    monkeypatch.setattr("sabot.engine.runtime.tasks.reading.SYSTEM_CLOCK", clock)
    app = App("paused", clock=clock)
    stream = app.stream(TwoPartitions(clock, paused_at=4), schema=SCHEMA, time="ts", lateness="1s", idle="30s")
    counted = stream.window(tumbling("1s")).aggregate(rows=sabot.count()).collect()
    assert sum(counted.column("rows").to_pylist()) == 120
