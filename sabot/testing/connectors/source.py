"""`SourceSuite` and `ChangesSuite`: what `connectors/base.py` promises of every source that can be read again from a position."""

import threading
from collections.abc import Mapping, Sequence

from sabot._cython.arrow.batch import Batch
from sabot.base.dataclass import dataclass
from sabot.clock import SYSTEM_CLOCK
from sabot.codecs.engine_columns import DELETE, INSERT, OP_COLUMN
from sabot.codecs.records import RECORD_SCHEMA
from sabot.connectors.base import Positions, Source, ends
from sabot.engine.runtime.tasks.facts import read_memory, stored_memory, stored_positions
from sabot.errors import UserError
from sabot.testing.connectors.place import ConnectorPlace, NewPlace, raises

GUARD_SECONDS = 60.0  # only a test that fails waits so long
_ROWS = 10
_FAR = 1 << 62  # a position that no log has reached


@dataclass(frozen=True)
class _Checkpoint:
    """The positions and the memory of a source, as a checkpoint stores them and reads them back."""

    positions: Positions
    memory: Mapping[tuple[str, int], bytes]

    @classmethod
    def of(cls, source: Source) -> "_Checkpoint":
        positions, memory = source.positions(), source.remember()
        stored_positions(source.name, positions)
        return cls(dict(positions), read_memory(stored_memory(source.name, memory)))


class SourceSuite:
    """The tests of a source. A class of tests derives from it, and has a fixture `new_place` that returns a function, which
    makes an empty `ConnectorPlace` at each call.

    `starts`: the places without a checkpoint at which the source can begin.
    """

    starts: Sequence[str] = ("earliest", "latest")

    def opened(self, place: ConnectorPlace, checkpoint: "_Checkpoint | None" = None, start: str = "earliest") -> Source:
        """Returns an open source, at a checkpoint or at the start."""
        source = place.source()
        source.app = source.app or "suite"
        if checkpoint is not None:
            source.recall(checkpoint.memory)
        source.open(checkpoint.positions if checkpoint is not None else None, start)
        return source

    def batch(self, source: Source, max_rows: int) -> Batch:
        """Returns the next batch with rows, and checks what every batch must be."""
        until = SYSTEM_CLOCK.monotonic() + GUARD_SECONDS
        while SYSTEM_CLOCK.monotonic() < until:
            batch = source.read_batch(max_rows, 0.2)
            if batch is None:
                continue
            assert batch.num_rows <= max_rows, f"{batch.num_rows} rows came where {max_rows} were asked for"
            there = source.positions()
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
        raise AssertionError("no rows came")

    def read(self, place: ConnectorPlace, source: Source, count: int, max_rows: int = 1000) -> list[int]:
        """Returns the numbers of the next `count` rows."""
        found: list[int] = []
        while len(found) < count:
            found += place.numbers(self.batch(source, min(max_rows, count - len(found))).data)
        return found

    def test_rows_come_in_order_in_batches_of_any_size(self, new_place: NewPlace) -> None:
        place = new_place()
        place.put(range(_ROWS))
        for max_rows in (1, 3, 100):
            source = self.opened(place)
            found = self.read(place, source, _ROWS, max_rows)
            assert found == list(range(_ROWS)), f"in batches of {max_rows}: {found}"
            source.close()

    def test_a_source_goes_on_behind_each_row_of_an_older_one(self, new_place: NewPlace) -> None:
        """Positions and memory of one moment belong together, also if later rows were read, and no checkpoint was complete since."""
        place = new_place()
        place.put(range(_ROWS))
        source = self.opened(place)
        checkpoints = [_Checkpoint.of(source)]
        for _ in range(_ROWS):
            self.read(place, source, 1, 1)
            checkpoints.append(_Checkpoint.of(source))
        source.close()
        for taken, checkpoint in enumerate(checkpoints):
            later = self.opened(place, checkpoint, self.starts[-1])
            assert later.positions() == checkpoint.positions, f"open moved the position behind {taken} rows"
            found = self.read(place, later, _ROWS - taken, 4)
            assert found == list(range(taken, _ROWS)), f"behind {taken} rows: {found}"
            more = later.read_batch(10, 0)
            assert more is None or not more.num_rows, f"behind {taken} rows: more came than there are"
            later.close()

    def test_the_log_forgets_nothing_that_the_last_complete_checkpoint_does_not_cover(
        self, new_place: NewPlace
    ) -> None:
        place = new_place()
        place.put(range(_ROWS))
        source = self.opened(place)
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
        place = new_place()
        place.put(range(_ROWS))
        source = self.opened(place)
        checkpoints = []
        for _ in range(3):
            self.read(place, source, 2, 2)
            checkpoints.append(_Checkpoint.of(source))
        for number in (0, 0, 1, 0, 1):
            source.commit(checkpoints[number].positions)
        assert self.read(place, source, _ROWS - 6) == list(range(6, _ROWS))
        source.close()
        later = self.opened(place, checkpoints[1])
        assert self.read(place, later, _ROWS - 4) == list(range(4, _ROWS))
        later.close()

    def test_latest_begins_behind_what_is_there(self, new_place: NewPlace) -> None:
        if "latest" not in self.starts:
            return
        place = new_place()
        place.put(range(_ROWS))
        source = self.opened(place, start="latest")
        before = source.read_batch(10, 0.05)
        assert before is None or not before.num_rows, "a row came that was there before"
        if not ends(source):
            place.put([_ROWS])
            assert self.read(place, source, 1) == [_ROWS]
        source.close()

    def test_rows_that_are_put_while_a_source_waits_reach_it(self, new_place: NewPlace) -> None:
        place = new_place()
        place.put([0])
        source = self.opened(place)
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
        place = new_place()
        place.put(range(_ROWS))
        source = self.opened(place)
        self.read(place, source, _ROWS)
        before = source.positions()
        while (batch := source.read_batch(10, 0.05)) is not None:  # such as one that only moves the position
            assert not batch.num_rows, "more rows came than there are"
            before = source.positions()
        assert source.positions() == before, "the position moved without a batch"
        source.close()

    def test_a_position_that_does_not_exist_is_refused(self, new_place: NewPlace) -> None:
        place = new_place()
        place.put(range(_ROWS))
        source = self.opened(place)
        self.read(place, source, 1)
        checkpoint = _Checkpoint.of(source)
        source.close()
        far = _Checkpoint(dict.fromkeys(checkpoint.positions, _FAR), checkpoint.memory)
        raises(UserError, lambda: self.opened(place, far), f"position {_FAR}, which the log has not reached")

    def test_an_unknown_start_is_refused(self, new_place: NewPlace) -> None:
        place = new_place()
        place.put([0])
        raises(UserError, lambda: self.opened(place, start="yesterday"), 'start="yesterday"')

    def test_close_may_come_twice_and_first_and_a_closed_source_reads_nothing(self, new_place: NewPlace) -> None:
        place = new_place()
        place.put([0])
        place.source().close()
        source = self.opened(place)
        source.close()
        source.close()
        raises(UserError, lambda: source.read_batch(1, 0), "read_batch of a closed source")
        source.open(None)
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
