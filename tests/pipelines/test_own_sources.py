"""A Source of the user's own, in the forms that docs/connectors.md shows, as a stream."""

import errno
import os

import pyarrow as pa
import pytest

import sabot
from sabot import App, Batch, SabotError, Source, UserError, col, tumbling
from sabot.codecs.records import build_records
from sabot.connectors.base import Bounded


class Numbers(Source, Bounded):
    """The source of docs/connectors.md: its batches come decoded, as its `schema` says."""

    name = "numbers"
    schema = pa.schema([("n", pa.int64()), ("half", pa.float64())])

    def __init__(self, count):
        self.count, self.next = count, 0

    def open(self, positions, start="earliest"):
        self.next = (positions or {}).get((self.name, 0), 0)

    def read_batch(self, max_rows, timeout):
        end = min(self.next + min(max_rows, 3), self.count)
        if end == self.next:
            return None
        data, self.next = self.rows(range(self.next, end)), end
        return Batch(data, {(self.name, 0): end}, self.name)

    def rows(self, numbers):
        return pa.record_batch({"n": pa.array(numbers, pa.int64()), "half": [n / 2 for n in numbers]})

    @property
    def exhausted(self):
        return self.next == self.count

    def positions(self):
        return {(self.name, 0): self.next}

    def close(self):
        """Nothing to let go of."""


class Records(Numbers):
    """The same without a schema: its batches have RECORD_SCHEMA."""

    schema = None

    def rows(self, numbers):
        texts = [b'{"n": %d, "half": %f}' % (n, n / 2) for n in numbers]
        return build_records(texts, None, [0] * len(texts), 0, list(numbers))


class Unsaid(Numbers):
    """Gives columns, and says none."""

    schema = None


class Full(Numbers):
    """Keeps what it has fetched on a disk that is full."""

    def read_batch(self, max_rows, timeout):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_is_named_with_what_to_do_wherever_it_ends_a_task():
    with pytest.raises(SabotError, match="No space left on device") as failed:
        App("own").stream(Full(4)).collect()
    assert "the disk is full (df -h)" in failed.value.hint


@pytest.mark.parametrize("source", [Numbers, Records])
@pytest.mark.parametrize("parallelism", [1, 2])
def test_a_source_of_ones_own_is_a_stream(source, parallelism):
    app = App("own", parallelism=parallelism)
    rows = app.stream(source(10)).filter(col("n") > 6).select("n", twice=col("half") * 4)
    assert sorted(rows.collect().to_pylist(), key=str) == [{"n": n, "twice": 2.0 * n} for n in (7, 8, 9)]
    minutes = App("own").stream(source(10), time="n").window(tumbling("5ms")).aggregate(n=sabot.count())
    assert minutes.collect()["n"].to_pylist() == [5, 5]
    assert App("own").stream(source(10)).aggregate(n=sabot.count()).collect()["n"].to_pylist() == [*range(1, 11)]


def test_a_stream_may_say_the_columns_that_its_source_has_and_no_others():
    assert App("own").stream(Numbers(4), schema={"n": "int64"}).collect()["n"].to_pylist() == [0, 1, 2, 3]
    with pytest.raises(UserError, match="source numbers has no column m"):
        App("own").stream(Numbers(4), schema={"m": "int64"}).collect()
    with pytest.raises(UserError, match="n is int64, and schema= of the stream says string"):
        App("own").stream(Numbers(4), schema={"n": "string"}).collect()


def test_a_source_that_gives_columns_and_says_no_schema_is_told_what_to_say():
    with pytest.raises(UserError, match=r"its source returns columns \(n, half\), but declares no schema") as refused:
        App("own").stream(Unsaid(4)).collect()
    assert "schema = pa.schema(" in refused.value.hint
