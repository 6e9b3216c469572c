"""What an operator names is what a checkpoint keeps of it: stores in folders, columns in files, dealt out anew by key group."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from sabot._cython.groups.partition import hash_columns
from sabot.engine.operators.base import OperatorContext
from sabot.engine.operators.state_parts import Batches, PartsCut, RowsPart, StateParts, StorePart, owned_or_all
from sabot.engine.state.base import Owned, Saved
from sabot.engine.state.tables.rows import RowStore
from sabot.errors import CorruptCheckpoint

ROWS = pa.schema([("k", pa.string()), ("n", pa.int64())])


def some(numbers: range) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist([{"k": f"key {n % 5}", "n": n} for n in numbers], schema=ROWS)


class Both:
    """A store and columns, as an operator keeps them."""

    def __init__(self, subtask: int = 0, parallelism: int = 1, **given: Any) -> None:
        self.store = RowStore(ROWS, ["k"])
        self.held: list[pa.RecordBatch] = []
        held = RowsPart("held", lambda: list(self.held), self.held.append, schema=ROWS, keys=[0], **given)
        context = OperatorContext(ROWS, subtask, parallelism)
        self.keeper = StateParts(context, [StorePart("left", self.store), held])

    def saved(self, directory: Path) -> Saved:
        facts, cut = self.keeper.cut()
        if cut is not None:
            directory.mkdir()
            assert cut.save(directory) == sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())
            cut.discard()
            cut.discard()
        return Saved(directory, facts)

    def rows(self) -> list[int]:
        kept = [*self.store.contents(), *self.held]
        return [row["n"] for batch in kept for row in batch.to_pylist()]


def test_a_store_has_a_folder_and_columns_have_a_file(tmp_path: Path) -> None:
    both = Both()
    both.store.table.insert(some(range(10)), pa.array([0] * 10, pa.int64()))
    both.held.append(some(range(10, 15)))
    saved = both.saved(tmp_path / "saved")
    assert {path.name for path in saved.directory.iterdir()} == {"left", "held.arrow"}
    assert saved.facts["left"]["rows"] == 10
    back = Both()
    back.keeper.restore([saved])
    assert back.rows() == both.rows() == list(range(15))


def test_what_holds_nothing_saves_nothing(tmp_path: Path) -> None:
    facts, cut = Both().keeper.cut()
    assert cut is None
    back = Both()
    back.keeper.restore([Saved(tmp_path / "not there", facts)])
    assert back.rows() == []


def test_rows_go_to_the_subtask_of_their_key_group(tmp_path: Path) -> None:
    parts = []
    for number in range(2):
        both = Both()
        both.store.table.insert(some(range(number, 50, 2)), pa.array([0] * 25, pa.int64()))
        both.held.append(some(range(50 + number, 80, 2)))
        parts.append(both.saved(tmp_path / f"{number}"))
    found = []
    for subtask in range(3):
        back = Both(subtask, 3)
        back.keeper.restore(parts)
        owned = owned_or_all(OperatorContext(ROWS, subtask, 3))
        assert owned is not None
        for batch in back.held:
            assert owned(hash_columns([batch.column(0)])).false_count == 0
        found += back.rows()
    assert sorted(found) == list(range(80))


def test_other_columns_are_refused_and_fewer_are_taken_where_that_is_said(tmp_path: Path) -> None:
    wide = ROWS.append(pa.field("more", pa.int64()))
    rows = some(range(3)).append_column("more", pa.array([7, 8, 9]))
    (tmp_path / "left").mkdir()
    PartsCut({"held": Batches(wide, [rows])}).save(tmp_path)
    saved = Saved(tmp_path, {"left": {"format": 1, "rows": 0}})
    with pytest.raises(CorruptCheckpoint, match="other columns than the program now keeps"):
        Both().keeper.restore([saved])
    back = Both(others=True)
    back.keeper.restore([saved])
    assert back.rows() == [0, 1, 2]


def test_rows_that_are_made_when_they_are_saved_are_let_go_once(tmp_path: Path) -> None:
    over: list[str] = []
    cut = PartsCut({"rows": Batches(ROWS, lambda: iter([some(range(2))]), lambda: over.append("over"))})
    cut.save(tmp_path)
    cut.discard()
    cut.discard()
    assert over == ["over"]


def test_a_sum_of_the_app_goes_on_in_the_first_subtask(tmp_path: Path) -> None:
    saved = [Saved(tmp_path, {"late_rows": 3}), Saved(tmp_path, {"late_rows": 4})]
    assert Both(0, 2).keeper.once(saved, "late_rows") == 7
    assert Both(1, 2).keeper.once(saved, "late_rows") == 0


def test_a_count_goes_on_in_its_subtask_where_each_gets_its_own(tmp_path: Path) -> None:
    """With as many subtasks as before; subtask 0 alone went on with its count, and those of the others were lost."""
    for subtask, rows in ((0, 3), (1, 4)):
        saved = [Saved(tmp_path, {"late_rows": rows}, own=True)]
        assert Both(subtask, 2).keeper.once(saved, "late_rows") == rows


def test_what_a_subtask_had_itself_is_not_looked_through_for_its_key_groups(tmp_path: Path) -> None:
    """A store that is asked for key groups writes its database anew, row by row."""

    class Asked:
        def cut(self) -> tuple[dict[str, Any], None]:
            return {}, None

        def restore(self, saved: Sequence[Saved], owned: Owned | None = None) -> None:
            found.append((len(saved), owned is None))

    found: list[tuple[int, bool]] = []
    keeper = StateParts(OperatorContext(ROWS, 1, 2), [StorePart("left", Asked())])
    keeper.restore([Saved(tmp_path, {"left": {}}, own=True)])
    keeper.restore([Saved(tmp_path, {"left": {}})])
    keeper.restore([Saved(tmp_path, {"left": {}})] * 2)
    assert found == [(1, True), (1, False), (2, False)]
