"""`SinkSuite`: what `connectors/base.py` promises of `write` and `flush`, with which a sink writes at least once."""

import json
from collections.abc import Sequence

import pyarrow as pa

from sabot import steps
from sabot._cython.arrow.batch import Batch
from sabot.codecs.records import build_records
from sabot.connectors.base import Sink
from sabot.errors import UserError
from sabot.testing.connectors.delivery import SCHEMA, CrashAt, StepCrash, columns, rows_of
from sabot.testing.connectors.place import ConnectorPlace, NewPlace, Row, check_close, in_time, raises

_ALL = rows_of(0, 13)


class SinkSuite:
    """The tests of a sink that writes at least once: rows are at the receiver when `flush` returns. A class of tests derives from it, and
    has a fixture `new_place` that returns a function, which makes an empty `ConnectorPlace` at each call.

    A sink that delivers exactly once has `DeliverySuite`, and this one too if it also writes with `delivery="at_least_once"`.
    """

    def opened(self, place: ConnectorPlace) -> Sink:
        """Returns an open sink that goes on after a restart. Another thread opens it than that which writes, as in an app."""
        sink = place.sink()

        def work() -> None:
            sink.check_types(SCHEMA)
            sink.expect(SCHEMA)
            sink.open()

        in_time(work, "open")
        return sink

    def check(self, place: ConnectorPlace, expected: Sequence[Row], when: str) -> None:
        """Compares the rows of the receiver."""
        found = list(place.rows())
        assert found == list(expected), f"{when}: {found}"

    def test_flushed_rows_are_there_in_order(self, new_place: NewPlace) -> None:
        place = new_place()
        sink = self.opened(place)
        sink.flush()  # of nothing
        sink.write(Batch(columns(_ALL[:3])))
        sink.write(Batch(columns([])))
        sink.write(Batch(columns(_ALL).slice(3, 4)))
        sink.flush()
        self.check(place, _ALL[:7], "behind the first flush")
        sink.write(Batch(columns(_ALL[7:])))
        sink.flush()
        sink.flush()
        self.check(place, _ALL, "behind the second flush")
        sink.close()

    def test_rows_that_a_filter_has_dropped_are_not_written(self, new_place: NewPlace) -> None:
        place = new_place()
        sink = self.opened(place)
        sink.write(Batch(columns(_ALL)).with_selection(pa.array([2, 5, 12], pa.int32())))
        sink.write(Batch(columns(_ALL)).with_selection(pa.array([], pa.int32())))
        sink.flush()
        self.check(place, [_ALL[2], _ALL[5], _ALL[12]], "of the selected rows (batch.taken() has them)")
        sink.close()

    def test_records_are_written_as_they_are(self, new_place: NewPlace) -> None:
        place = new_place()
        sink = self.opened(place)
        if sink.format is not None:
            payloads = [json.dumps({"n": n, "text": text}).encode() for n, text in _ALL]
            sink.write(Batch(build_records(payloads, None, [0] * len(_ALL), 0, range(len(_ALL)))))
            sink.flush()
            self.check(place, _ALL, "of the records of an agent")
        sink.close()

    def test_what_was_flushed_stays_when_the_sink_is_opened_again(self, new_place: NewPlace) -> None:
        place = new_place()
        for start in (0, 5, 10):
            sink = self.opened(place)
            self.check(place, _ALL[:start], "behind an open")
            sink.write(Batch(columns(_ALL[start : start + 5])))
            sink.flush()
            sink.close()
        afresh = place.sink()
        afresh.start_afresh()
        afresh.expect(SCHEMA)
        afresh.open()
        self.check(place, _ALL, "behind an open afresh, which only checks")
        afresh.close()

    def test_finish_may_come_twice(self, new_place: NewPlace) -> None:
        place = new_place()
        for _ in range(2):  # an app whose inputs had ended was started again
            sink = self.opened(place)
            if not place.rows():
                sink.write(Batch(columns(_ALL)))
            sink.finish()
            sink.finish()
            sink.close()
        self.check(place, _ALL, "behind finish")

    def test_close_may_come_twice_and_first_and_a_closed_sink_writes_nothing(self, new_place: NewPlace) -> None:
        place = new_place()
        place.sink().close()
        sink = self.opened(place)
        sink.close()
        sink.close()
        raises(UserError, lambda: sink.write(Batch(columns(_ALL))), "write of a closed sink")
        raises(UserError, sink.flush, "flush of a closed sink")
        self.check(place, [], "behind a write of a closed sink")

    def test_a_crash_at_any_step_loses_no_flushed_row(self, new_place: NewPlace) -> None:
        undisturbed = CrashAt()
        assert self.run(new_place(), 0, undisturbed) == len(_ALL)
        for moment, name in enumerate(undisturbed.moments):
            place = new_place()
            flushed = self.run(place, 0, CrashAt(moment))
            found = list(place.rows())
            assert set(found) >= set(_ALL[:flushed]), f"a crash {name} lost rows that were flushed: {found}"
            self.run(place, flushed)
            found = list(place.rows())
            assert set(found) == set(_ALL), f"after a crash {name}: {found}"

    def run(self, place: ConnectorPlace, start: int, watcher: CrashAt | None = None) -> int:
        """Does what an app does whose checkpoint is in front of row `start`. Returns how many rows were flushed."""
        flushed = start
        steps.watch(watcher)
        try:
            sink = self.opened(place)
            while flushed < len(_ALL):
                sink.write(Batch(columns(_ALL[flushed : flushed + 5])))
                sink.flush()
                flushed = min(flushed + 5, len(_ALL))
            sink.finish()
            sink.close()
        except StepCrash:
            return flushed
        finally:
            steps.watch(None)
        return flushed

    def test_a_receiver_that_is_gone_is_an_error(self, new_place: NewPlace) -> None:
        place = new_place()
        if not place.has("drop"):
            return
        sink = self.opened(place)
        sink.write(Batch(columns(_ALL[:5])))
        sink.flush()
        place.drop()

        def write() -> None:
            sink.write(Batch(columns(_ALL[5:])))
            sink.flush()

        raises(Exception, write, "write and flush to a receiver that is gone")
        sink.close()

    def test_close_releases_threads_and_files(self, new_place: NewPlace) -> None:
        place = new_place()

        def use() -> Sink:
            sink = self.opened(place)
            sink.write(Batch(columns(_ALL[:1])))
            sink.flush()
            sink.close()
            return sink

        check_close(use)
