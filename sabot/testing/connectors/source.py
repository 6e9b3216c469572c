"""`SourceSuite` and `ChangesSuite`: what `connectors/base.py` promises of every source, by the guarantee that it declares."""

import threading
from collections.abc import Mapping, Sequence

from sabot._cython.arrow.batch import Batch
from sabot.base.dataclass import dataclass
from sabot.clock import SYSTEM_CLOCK
from sabot.codecs.engine_columns import DELETE, INSERT, OP_COLUMN
from sabot.codecs.records import RECORD_SCHEMA
from sabot.connectors.base import Positions, Source, TakesBound, ends, exhausted_of
from sabot.connectors.places import Bound
from sabot.engine.runtime.tasks.manifest_facts import read_memory, stored_memory, stored_positions
from sabot.errors import TransientError, UserError
from sabot.testing.connectors import place as places
from sabot.testing.connectors.place import ConnectorPlace, NewPlace, check_close, in_time, raises

_ROWS = 10
_FAR = 1 << 62  # a position that no log has reached
_LATE_SECONDS = 2.0  # how much longer than its timeout a read may take, at its best of three


@dataclass(frozen=True)
class _Checkpoint:
    """The positions and the memory of a source, as a checkpoint stores them and reads them back."""

    positions: Positions
    memory: Mapping[tuple[str, int], bytes]

    @classmethod
    def of(cls, *readers: Source) -> "_Checkpoint":
        positions: Positions = {}
        memory: dict[tuple[str, int], bytes] = {}
        for source in readers:
            own, kept = source.positions(), source.remember()
            stored_positions(source.name, own)
            assert not positions.keys() & own.keys(), f"two readers have a position of {positions.keys() & own.keys()}"
            positions |= own
            memory |= read_memory(stored_memory(source.name, kept))
        return cls(positions, memory)


class SourceSuite:
    """The tests of a source. A class of tests derives from it, and has a fixture `new_place` that returns a function, which
    makes an empty `ConnectorPlace` at each call.

    `starts`: the places without a checkpoint at which the source can begin.

    The log of a source with the guarantee "at most once" keeps no rows, so the suite puts them when the source is open. The tests of a log
    that can be read again fall away, and behind a checkpoint no row may come again that it covers.
    """

    starts: Sequence[str] = ("earliest", "latest")

    def keeps(self, source: Source) -> bool:
        """Returns True if the log can be read again."""
        return source.guarantee != "at most once"

    def filled(self, new_place: NewPlace, rows: Sequence[int] = range(_ROWS)) -> ConnectorPlace:
        """Returns a place with these rows, or with none if its log keeps none."""
        place = new_place()
        source = place.source()
        if self.keeps(source):
            place.put(rows)
        source.close()
        return place

    def opened(
        self,
        place: ConnectorPlace,
        checkpoint: "_Checkpoint | None" = None,
        start: str = "earliest",
        rows: Sequence[int] = range(_ROWS),
    ) -> Source:
        """Returns an open source, at a checkpoint or at the start. A log that keeps no rows sends `rows` to it."""
        source = self.open(place.source(), checkpoint, start)
        self.send(place, source, rows)
        return source

    def send(self, place: ConnectorPlace, source: Source, rows: Sequence[int]) -> None:
        """Lets a log that keeps no rows send some to the open source."""
        if not self.keeps(source):
            place.put(rows)

    def open(self, source: Source, checkpoint: "_Checkpoint | None" = None, start: str = "earliest") -> Source:
        """Opens a source, or one of its readers, in another thread than that which reads it, as an app does."""
        source.app = source.app or "suite"

        def work() -> None:
            if checkpoint is not None:
                source.recall(checkpoint.memory)
            source.open(checkpoint.positions if checkpoint is not None else None, start)

        in_time(work, "open")
        return source

    def batch(self, source: Source, max_rows: int) -> Batch:
        """Returns the next batch with rows, and checks what every batch must be."""
        until = SYSTEM_CLOCK.monotonic() + places.GUARD_SECONDS
        while SYSTEM_CLOCK.monotonic() < until:
            batch = source.read_batch(max_rows, 0.2)
            if batch is None:
                continue
            assert batch.num_rows <= max_rows, f"{batch.num_rows} rows came where {max_rows} were asked for"
            there = source.positions()
            assert batch.offsets or not batch.num_rows, (
                "a batch has rows and no offsets: Batch(rows, self.positions(), self.name)"
            )
            assert batch.offsets.items() <= there.items(), (
                f"the batch ends at {batch.offsets}, and the source is at {there}"
            )
            expected = source.schema
            if source.keys:
                assert batch.schema.names[-1] == OP_COLUMN, f"changes end with {OP_COLUMN}"
            else:
                assert batch.schema.equals(RECORD_SCHEMA if expected is None else expected), (
                    f"other columns: {batch.schema}"
                )
            batch.data.validate(full=True)
            if batch.num_rows:
                return batch
        raise AssertionError(f"read_batch gave no row in {places.GUARD_SECONDS:g} s, and the log has more of them")

    def read(self, place: ConnectorPlace, source: Source, count: int, max_rows: int = 1000) -> list[int]:
        """Returns the numbers of the next `count` rows."""
        found: list[int] = []
        while len(found) < count:
            found += place.numbers(self.batch(source, min(max_rows, count - len(found))).data)
        return found

    def test_read_batch_comes_back_with_the_first_row_or_when_its_time_is_over(self, new_place: NewPlace) -> None:
        place = self.filled(new_place)
        seconds: list[float] = []

        def work() -> None:
            source = self.opened(place)
            found: list[int] = []
            while len(found) < _ROWS:
                if (batch := source.read_batch(1000, 3600)) is not None:
                    found += place.numbers(batch.data)
            for _ in range(3):
                before = SYSTEM_CLOCK.monotonic()
                source.read_batch(1000, 0.05)
                seconds.append(SYSTEM_CLOCK.monotonic() - before)
            source.close()

        in_time(work, "a read_batch of rows that are there, or with a timeout of 0.05 s,")
        assert min(seconds) < _LATE_SECONDS, f"read_batch(1000, timeout=0.05) took {min(seconds):.1f} s and more"

    def test_rows_come_in_order_in_batches_of_any_size(self, new_place: NewPlace) -> None:
        place = self.filled(new_place)
        for max_rows in (1, 3, 100):
            source = self.opened(place)
            found = self.read(place, source, _ROWS, max_rows)
            assert found == list(range(_ROWS)), f"in batches of {max_rows}: {found}"
            source.close()

    def test_a_source_goes_on_behind_each_row_of_an_older_one(self, new_place: NewPlace) -> None:
        """Positions and memory of one moment belong together, also if later rows were read, and no checkpoint was complete since."""
        place = self.filled(new_place)
        source = self.opened(place)
        checkpoints = [_Checkpoint.of(source)]
        for _ in range(_ROWS):
            self.read(place, source, 1, 1)
            checkpoints.append(_Checkpoint.of(source))
        source.close()
        for taken, checkpoint in enumerate(checkpoints):
            sent = range(_ROWS * (taken + 1), _ROWS * (taken + 2))
            later = self.opened(place, checkpoint, self.starts[-1], sent)
            assert later.positions() == checkpoint.positions, f"open moved the position behind {taken} rows"
            if self.keeps(later):
                found = self.read(place, later, _ROWS - taken, 4)
                assert found == list(range(taken, _ROWS)), f"behind {taken} rows: {found}"
            else:
                self.check_sent(place, later, sent, range(taken, _ROWS))
            more = later.read_batch(10, 0)
            assert more is None or not more.num_rows, f"behind {taken} rows: more came than there are"
            later.close()

    def check_sent(self, place: ConnectorPlace, source: Source, sent: range, before: range) -> None:
        """Reads the rows that the log has sent to the source. In front of them may be some of those that an older source had received, if
        its checkpoint does not cover them.
        """
        found: list[int] = []
        while sent[-1] not in found:
            found += place.numbers(self.batch(source, 4).data)
        again = found[: -len(sent)]
        assert found == [*(n for n in before if n in again), *sent], f"of the rows {sent} and {before} came {found}"

    def test_the_log_forgets_nothing_that_the_last_complete_checkpoint_does_not_cover(
        self, new_place: NewPlace
    ) -> None:
        place = self.filled(new_place)
        source = self.opened(place)
        if not self.keeps(source):
            source.close()
            return
        self.read(place, source, 3)
        first = _Checkpoint.of(source)
        self.read(place, source, 2)
        second = _Checkpoint.of(source)
        source.commit(first.positions)
        self.read(place, source, _ROWS - 5)  # of which no checkpoint is complete
        source.close()
        for taken, checkpoint in ((3, first), (5, second)):
            later = self.opened(place, checkpoint)
            found = self.read(place, later, _ROWS - taken)
            assert found == list(range(taken, _ROWS)), f"behind {taken} rows: {found}"
            later.close()

    def test_a_commit_that_comes_late_or_twice_changes_nothing(self, new_place: NewPlace) -> None:
        place = self.filled(new_place)
        source = self.opened(place)
        checkpoints = []
        for _ in range(3):
            self.read(place, source, 2, 2)
            checkpoints.append(_Checkpoint.of(source))
        for number in (0, 0, 1, 0, 1):
            source.commit(checkpoints[number].positions)
        found = self.read(place, source, _ROWS - 6)
        assert found == list(range(6, _ROWS)), f"behind 6 rows and commits: {found}"
        source.close()
        if not self.keeps(source):
            return
        later = self.opened(place, checkpoints[1])
        found = self.read(place, later, _ROWS - 4)
        assert found == list(range(4, _ROWS)), f"behind 4 rows and later commits: {found}"
        later.close()

    def test_latest_begins_behind_what_is_there(self, new_place: NewPlace) -> None:
        place = self.filled(new_place)
        if "latest" not in self.starts:
            return
        source = self.opened(place, start="latest", rows=())
        before = source.read_batch(10, 0.05)
        assert before is None or not before.num_rows, "a row came that was there before"
        if not ends(source):
            place.put([_ROWS])
            assert self.read(place, source, 1) == [_ROWS]
        source.close()

    def test_rows_that_are_put_while_a_source_waits_reach_it(self, new_place: NewPlace) -> None:
        place = self.filled(new_place, [0])
        source = self.opened(place, rows=[0])
        assert self.read(place, source, 1) == [0]
        if ends(source):
            source.close()
            return

        def write() -> None:
            for n in range(1, _ROWS):
                place.put([n])

        writer = threading.Thread(target=write)
        writer.start()
        assert self.read(place, source, _ROWS - 1) == list(range(1, _ROWS))
        writer.join()
        source.close()

    def test_reading_nothing_gives_none_and_moves_nothing(self, new_place: NewPlace) -> None:
        place = self.filled(new_place)
        source = self.opened(place)
        self.read(place, source, _ROWS)
        before = source.positions()
        while (batch := source.read_batch(10, 0.05)) is not None:  # such as one that only moves the position
            assert not batch.num_rows, "more rows came than there are"
            before = source.positions()
        assert source.positions() == before, "the position moved without a batch"
        source.close()

    def test_a_position_that_does_not_exist_is_refused(self, new_place: NewPlace) -> None:
        place = self.filled(new_place)
        source = self.opened(place)
        self.read(place, source, 1)
        checkpoint = _Checkpoint.of(source)
        source.close()
        far = _Checkpoint(dict.fromkeys(checkpoint.positions, _FAR), checkpoint.memory)
        raises(UserError, lambda: self.opened(place, far), f"position {_FAR}, which the log has not reached")

    def test_positions_of_other_sources_are_not_its_own(self, new_place: NewPlace) -> None:
        """One dict may have the positions of all sources of an app."""
        place = self.filled(new_place)
        source = self.opened(place, _Checkpoint({("another source", 0): 7}, {}))
        assert 7 not in source.positions().values(), "it begins at the position of another source"
        found = self.read(place, source, _ROWS)
        assert found == list(range(_ROWS)), f"with a position of another source: {found}"
        source.close()

    def test_a_position_whose_rows_were_removed_is_refused(self, new_place: NewPlace) -> None:
        place = self.filled(new_place)
        source = self.opened(place)
        if source.keys or not place.has("remove") or not self.keeps(source):
            source.close()
            return
        self.read(place, source, 1)
        checkpoint = _Checkpoint.of(source)
        source.close()
        place.remove(range(4))
        raises(UserError, lambda: self.opened(place, checkpoint), "a position whose next 3 rows are gone")
        source = self.opened(place)
        found = self.read(place, source, _ROWS - 4)
        assert found == list(range(4, _ROWS)), f"afresh, behind rows that were removed: {found}"
        source.close()

    def test_a_log_that_is_gone_is_an_error_and_no_end(self, new_place: NewPlace) -> None:
        place = new_place()
        if not place.has("drop"):
            return
        place.put(range(_ROWS))
        source = self.opened(place)
        found = self.read(place, source, 1)
        checkpoint = _Checkpoint.of(source)
        place.drop()
        raises((UserError, TransientError), lambda: self.opened(place), "a log that does not exist")
        raises((UserError, TransientError), lambda: self.opened(place, checkpoint), "a position in a log that is gone")
        until = SYSTEM_CLOCK.monotonic() + places.GUARD_SECONDS
        try:
            while len(found) < _ROWS:  # it may have read them before
                if (batch := source.read_batch(1, 0.2)) is not None:
                    found += place.numbers(batch.data)
                elif exhausted_of(source)() or SYSTEM_CLOCK.monotonic() > until:
                    break
        except Exception:  # any error ends the app, and the rows are not passed over
            source.close()
            return
        source.close()
        assert found == list(range(_ROWS)), f"the log is gone behind the rows {found}, and read_batch raises no error"

    def test_a_source_that_ends_says_so_behind_its_last_row_and_not_before(self, new_place: NewPlace) -> None:
        place = self.filled(new_place)
        source = self.opened(place)
        exhausted = exhausted_of(source)
        if not ends(source):
            assert not exhausted(), "exhausted is True, and bounded is False"
            source.close()
            return
        for taken in range(_ROWS):
            assert not exhausted(), f"exhausted is True behind {taken} of {_ROWS} rows"
            self.read(place, source, 1, 1)
        checkpoint = _Checkpoint.of(source)
        self.check_end(source)
        source.close()
        for later in [self.opened(place, checkpoint), *(self.opened(place, start=each) for each in self.starts[1:])]:
            self.check_end(later)
            later.close()

    def check_end(self, source: Source) -> None:
        """Reads on behind the last row."""
        until = SYSTEM_CLOCK.monotonic() + places.GUARD_SECONDS
        while (batch := source.read_batch(10, 0.05)) is not None or not exhausted_of(source)():
            assert batch is None or not batch.num_rows, "more rows came than there are"
            assert SYSTEM_CLOCK.monotonic() < until, "exhausted stays False behind the last row: the stream never ends"

    def test_a_bound_is_where_the_log_was_at_the_first_start(self, new_place: NewPlace) -> None:
        """`until="now"`: what comes later is not read, by a restart neither."""
        place = self.filled(new_place)
        source = place.source()
        if not isinstance(source, TakesBound):
            return
        source.end_at(Bound("now"))
        assert ends(source), "end_at was called, and bounded is False"
        assert source.bound is not None, "end_at was called, and bound is None"
        self.open(source)
        place.put([_ROWS, _ROWS + 1])
        checkpoints = []
        for taken in range(_ROWS):
            assert not source.exhausted, f"exhausted is True behind {taken} of {_ROWS} rows"
            found = self.read(place, source, 1, 1)
            assert found == [taken], f"in front of the bound: {found} in place of {taken}"
            checkpoints.append((_Checkpoint.of(source), source.bound.facts()))
        self.check_end(source)
        source.close()
        for taken, (checkpoint, facts) in enumerate(checkpoints, 1):
            later = place.source()
            assert isinstance(later, TakesBound)
            bound = Bound("now")
            bound.keep(facts)
            later.end_at(bound)
            self.open(later, checkpoint)
            found = self.read(place, later, _ROWS - taken, 4)
            assert found == list(range(taken, _ROWS)), f"behind {taken} rows: {found}"
            self.check_end(later)
            later.close()

    def test_readers_share_the_rows_and_go_on_at_the_positions_of_all(self, new_place: NewPlace) -> None:
        place = self.filled(new_place)
        found: list[int] = []
        checkpoint: _Checkpoint | None = None
        for count in (_ROWS // 2, _ROWS):
            readers = [self.open(each, checkpoint) for each in place.source().readers(3)]
            self.send(place, readers[0], range(len(found), count))
            until = SYSTEM_CLOCK.monotonic() + places.GUARD_SECONDS
            while len(found) < count and SYSTEM_CLOCK.monotonic() < until:
                for reader in readers:
                    if (batch := reader.read_batch(1, 0.01)) is not None:
                        found += place.numbers(batch.data)
            checkpoint = _Checkpoint.of(*readers)
            more = [
                batch for reader in readers if count == _ROWS and (batch := reader.read_batch(10, 0.01)) is not None
            ]
            for reader in readers:
                reader.close()
        found += [n for batch in more for n in place.numbers(batch.data)]
        assert sorted(found) == list(range(_ROWS)), f"{len(readers)} readers gave the rows {sorted(found)}"

    def test_figures_are_told_at_any_time_and_in_any_thread(self, new_place: NewPlace) -> None:
        place = self.filled(new_place)
        source = place.source()

        def tell() -> None:
            for partition, unread in source.lag().items():
                assert unread >= 0, f"the lag of {partition} is {unread}"
            source.backlog(), source.progress(), source.figures()

        tell()
        self.open(source)
        self.send(place, source, range(_ROWS))
        in_time(tell, "lag, backlog, progress or figures, in another thread,")
        self.read(place, source, _ROWS)
        source.read_batch(1, 0)  # behind the last row
        assert not any(source.lag().values()), f"behind the last row the lag is {source.lag()}"
        assert not source.backlog(), f"behind the last row the backlog is {source.backlog()}"
        source.close()
        in_time(tell, "lag, backlog, progress or figures of a closed source")

    def test_close_releases_threads_and_files(self, new_place: NewPlace) -> None:
        place = self.filled(new_place)

        def use() -> Source:
            source = self.opened(place)
            self.read(place, source, 1)
            source.close()
            return source

        check_close(use)

    def test_an_unknown_start_is_refused(self, new_place: NewPlace) -> None:
        place = self.filled(new_place, [0])
        raises(UserError, lambda: self.opened(place, start="yesterday"), 'start="yesterday"')

    def test_close_may_come_twice_and_first_and_a_closed_source_reads_nothing(self, new_place: NewPlace) -> None:
        place = self.filled(new_place, [0])
        place.source().close()
        source = self.opened(place, rows=[0])
        source.close()
        source.close()
        raises(UserError, lambda: source.read_batch(1, 0), "read_batch of a closed source")
        source.open(None)
        self.send(place, source, [0])
        assert self.read(place, source, 1) == [0]
        source.close()


class ChangesSuite(SourceSuite):
    """The tests of a source of changes of a table (`Source.keys`), with those of `SourceSuite`. The rows of the place have the key `n`."""

    def applied(self, source: Source, rows: set[int]) -> set[int]:
        """Reads one change. Returns the rows behind it. Fails for a row that comes twice, or is changed before it came."""
        batch = self.batch(source, 1)
        (op,), (n,) = batch.data.column(OP_COLUMN).to_pylist(), batch.data.column("n").to_pylist()
        assert (n in rows) == (op != INSERT), f"op {op} of {n}, with the rows {sorted(rows)}"
        return rows - {n} if op == DELETE else rows | {n}

    def test_changes_are_those_of_the_table_from_any_place_on(self, new_place: NewPlace) -> None:
        place = new_place()
        place.put(range(6))
        source = self.opened(place)
        assert list(source.keys) == ["n"]
        rows: set[int] = set()
        while len(rows) < 6:
            rows = self.applied(source, rows)
        checkpoints = [(_Checkpoint.of(source), rows)]
        place.change([1, 2])
        place.remove([2, 3])
        place.put([3, 9])
        for _ in range(6):
            rows = self.applied(source, rows)
            checkpoints.append((_Checkpoint.of(source), rows))
        source.close()
        assert rows == {0, 1, 3, 4, 5, 9}, f"the rows are {sorted(rows)}"
        for taken, (checkpoint, before) in enumerate(checkpoints):
            later, rows = self.opened(place, checkpoint), before
            for _ in range(6 - taken):
                rows = self.applied(later, rows)
            assert rows == {0, 1, 3, 4, 5, 9}, f"behind {taken} changes the rows are {sorted(rows)}"
            later.close()
