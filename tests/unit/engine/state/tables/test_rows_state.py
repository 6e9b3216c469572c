"""RowStore: what it saves comes back, and a checkpoint writes what is new."""

import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sabot._cython.groups.partition import hash_columns
from sabot.engine.state.base import Saved
from sabot.engine.state.tables import rows as rows_module
from sabot.engine.state.tables.rows import RowStore
from sabot.errors import CorruptCheckpoint

ROWS = pa.schema([("k", pa.string()), ("n", pa.int64()), ("x", pa.list_(pa.float64()))])


def some_rows(count: int, start: int = 0, keys: int = 97) -> tuple[pa.RecordBatch, pa.Array]:
    numbers = np.arange(start, start + count)
    names = pa.array([f"key {n}" for n in range(keys)])
    key = pc.if_else(pa.array(numbers % 31 == 0), None, names.take(pa.array(numbers * 7919 % keys)))
    lists = pa.array([[], [0.5], [1.0, 2.0]], ROWS.field("x").type).take(pa.array(numbers % 3))
    return pa.record_batch([key, pa.array(numbers), lists], ROWS), pa.array(numbers * 31 % 1000)


def save(store: RowStore, directory: Path) -> Saved:
    facts, state = store.cut()
    directory.mkdir()
    if state is not None:
        assert state.save(directory) == sum(file.stat().st_size for file in directory.iterdir())
    return Saved(directory, facts)


def image(store: RowStore) -> list[tuple[Any, ...]]:
    """What a store holds, without ids: rows with their order and count, each key's in their order."""
    table = store.table
    ids = table.below(2**63 - 1)
    counts = table.counts(ids).to_pylist() if table.counted else [0] * len(ids)
    columns = [map(str, column.to_pylist()) for column in table.take(ids).columns]
    return sorted(zip(*columns, table.orders(ids).to_pylist(), counts, strict=True))


def new_bytes(directory: Path) -> int:
    """Of files that no other checkpoint, and no store, has."""
    return sum(file.stat().st_size for file in directory.iterdir() if file.stat().st_nlink <= 2)


@pytest.mark.one_in(2, "a third of a second of a core each")
@pytest.mark.parametrize("local", [True, False])
def test_rows_come_back_with_their_order_and_counts(tmp_path: Path, local: bool):
    store = RowStore(ROWS, ["k"], counted=True, directory=tmp_path / "local" if local else None)
    ids = store.table.insert(*some_rows(70_000))
    store.table.add_counts(ids.slice(5, 10), 3)
    store.table.add_counts(ids.slice(66_000, 10), 300)
    store.table.remove(ids.slice(8, 40_000))
    saved = save(store, tmp_path / "1")
    before = image(store)
    assert before[0] != before[1]
    store.table.remove(ids.slice(50_000))
    assert save(store, tmp_path / "2").facts["rows"] == 8 + 50_000 - 40_008
    back = RowStore(ROWS, ["k"], counted=True)
    back.restore([saved])
    assert image(back) == before
    again = RowStore(ROWS, ["k"], counted=True)
    again.restore([Saved(tmp_path / "2", {"format": 1, "rows": 10_000})])
    assert image(again) == image(store)


@pytest.mark.slow  # a second of a core, or more
def test_a_checkpoint_after_few_new_rows_writes_about_these(tmp_path: Path):
    data, order = some_rows(100_000)
    store = RowStore(ROWS, ["k"], directory=tmp_path / "local")
    store.table.insert(data, order)
    save(store, tmp_path / "0")
    whole = sum(file.stat().st_size for file in (tmp_path / "0").iterdir())
    written = []
    for i in range(1, 21):
        store.table.insert(*some_rows(1000, start=i * 1_000_000))
        store.table.remove(store.table.below(i * 5))
        save(store, tmp_path / str(i))
        written.append(new_bytes(tmp_path / str(i)))
        assert len(os.listdir(tmp_path / str(i))) < 12
    assert min(written) < 0.02 * whole
    assert sum(written) / 20 < 0.05 * whole  # what is put together is written again, a logarithm of times
    back = RowStore(ROWS, ["k"])
    back.restore([Saved(tmp_path / "20", {"format": 1, "rows": len(store.table)})])
    assert image(back) == image(store)
    for i in range(21):  # checkpoints that are dropped take nothing from the others, or from the store
        for file in (tmp_path / str(i)).iterdir():
            file.unlink()
    save(store, tmp_path / "last")
    third = RowStore(ROWS, ["k"])
    third.restore([Saved(tmp_path / "last", {"format": 1, "rows": len(store.table)})])
    assert image(third) == image(store)


def test_files_of_rows_that_have_gone_go_too(tmp_path: Path):
    store = RowStore(ROWS, ["k"], directory=tmp_path / "local")
    for i in range(30):
        ids = store.table.insert(*some_rows(1000, start=i * 1000))
        saved = save(store, tmp_path / str(i))
        store.table.remove(ids.slice(0, 990))
    assert len(os.listdir(tmp_path / "local" / "rows")) <= 12
    store.table.remove(store.table.below(10**9))
    assert store.cut() == ({"format": 1, "rows": 0}, None)
    assert os.listdir(tmp_path / "local" / "rows") == []
    back = RowStore(ROWS, ["k"])
    back.restore([saved])  # a checkpoint has its own names for them
    assert len(back.table) == saved.facts["rows"] == 1000 + 29 * 10


def test_a_snapshot_that_was_never_saved_leaves_nothing_out_of_the_next(tmp_path: Path):
    store = RowStore(ROWS, ["k"], directory=tmp_path / "local")
    for i in range(5):
        store.table.insert(*some_rows(100, start=i * 100))
        _, state = store.cut()
        assert state is not None
        if i % 2:
            state.discard()
            state.discard()
    saved = save(store, tmp_path / "1")
    back = RowStore(ROWS, ["k"])
    back.restore([saved])
    assert image(back) == image(store)


@pytest.mark.slow  # a second of a core, or more
def test_a_snapshot_is_saved_while_the_owner_goes_on(tmp_path: Path):
    store = RowStore(ROWS, ["k"], counted=True, directory=tmp_path / "local", memory_bytes=0)
    ids = store.table.insert(*some_rows(80_000))
    before = image(store)
    facts, state = store.cut()
    store.table.add_counts(ids, 7)
    store.table.remove(ids.slice(10))
    store.table.insert(*some_rows(5000, start=10**6))
    (tmp_path / "1").mkdir()
    assert state is not None
    state.save(tmp_path / "1")
    back = RowStore(ROWS, ["k"], counted=True)
    back.restore([Saved(tmp_path / "1", facts)])
    assert image(back) == before


@pytest.mark.parametrize("keys", [["k"], ["n", "k"], []], ids=str)
def test_a_rescale_gives_each_subtask_the_rows_of_its_keys(tmp_path: Path, keys: list[str]):
    def owner(part: int, of: int) -> Any:
        return lambda hashes: pa.array(hashes.to_numpy() % np.uint64(1024) * np.uint64(of) // np.uint64(1024) == part)

    data, order = some_rows(4000)
    columns = [data.column(name) for name in keys]
    hashes = hash_columns(columns) if keys else pa.array(np.zeros(4000, np.uint64))
    saved = []
    for part in range(3):
        store = RowStore(ROWS, keys, counted=True)
        mine = pc.indices_nonzero(owner(part, 3)(hashes)).cast(pa.int32())
        ids = store.table.insert(data, order, selection=mine)
        store.table.add_counts(ids, pa.array(data.column("n").take(mine).to_pylist(), pa.int32()))
        saved.append(save(store, tmp_path / str(part)))
    whole: list[Any] = []
    for part in range(2):
        store = RowStore(ROWS, keys, counted=True)
        store.restore(saved, owner(part, 2))
        ids = store.table.below(2**62)
        wanted = owner(part, 2)(hashes)
        assert sorted(store.table.take(ids).column("n").to_pylist()) == data.filter(wanted).column("n").to_pylist()
        assert store.table.counts(ids).to_pylist() == store.table.take(ids).column("n").to_pylist()
        whole += image(store)
    assert len(whole) == 4000


def test_a_program_that_keeps_fewer_columns_reads_what_it_needs(tmp_path: Path):
    store = RowStore(ROWS, ["k"])
    store.table.insert(*some_rows(10))
    saved = save(store, tmp_path / "1")
    fewer = RowStore(pa.schema([ROWS.field("n"), ROWS.field("k")]), ["k"])
    fewer.restore([saved])
    assert fewer.table.take(fewer.table.below(10**9)).num_columns == 2
    with pytest.raises(CorruptCheckpoint, match="n int64"):
        RowStore(pa.schema([("k", pa.string()), ("n", pa.int32())]), ["k"]).restore([saved])
    with pytest.raises(CorruptCheckpoint, match="has 10 rows, the manifest says 11"):
        RowStore(ROWS, ["k"]).restore([Saved(saved.directory, {"format": 1, "rows": 11})])
    with pytest.raises(CorruptCheckpoint, match="version"):
        RowStore(ROWS, ["k"]).restore([Saved(saved.directory, {})])
    next(saved.directory.glob("0*.arrow")).write_bytes(b"nothing")
    with pytest.raises(CorruptCheckpoint, match="cannot be read"):
        RowStore(ROWS, ["k"]).restore([saved])


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_any_history_comes_back(seed: int, tmp_path_factory: pytest.TempPathFactory):
    """Inserts, removals, snapshots that are saved, dropped or kept for long, and restores, with segments of few rows."""
    chance = random.Random(seed)
    path = tmp_path_factory.mktemp("rows")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows_module, "_SEGMENT_ROWS", 40)
        local = path / "local" if chance.random() < 0.8 else None
        store = RowStore(ROWS, ["k"], counted=True, directory=local)
        kept: list[tuple[Any, Any, Any]] = []
        saves = 0
        for _ in range(30):
            what = chance.random()
            ids = store.table.below(2**62)
            if what < 0.4:
                store.table.insert(*some_rows(chance.randrange(1, 60), start=chance.randrange(1000), keys=9))
            elif what < 0.6 and len(ids):
                gone = chance.sample(ids.to_pylist(), chance.randrange(len(ids) + 1))
                store.table.remove(pa.array(gone, pa.int64()))
            elif what < 0.7 and len(ids):
                store.table.add_counts(ids, chance.choice([1, -1, 1000, 100_000]))
            elif what < 0.8:
                kept.append((*store.cut(), image(store)))
            elif kept:
                facts, state, then = kept.pop(chance.randrange(len(kept)))
                if state is not None and chance.random() < 0.3:
                    state.discard()
                    continue
                saves += 1
                (path / str(saves)).mkdir()
                if state is not None:
                    state.save(path / str(saves))
                    state.discard()
                back = RowStore(ROWS, ["k"], counted=True, directory=path / f"back {saves}")
                back.restore([Saved(path / str(saves), facts)])
                assert image(back) == then
                if not kept and chance.random() < 0.2:
                    store.close()
                    store = back
        for _, state, _ in kept:
            if state is not None:
                state.discard()
        store.close()
        store.close()
        assert local is None or os.listdir(local / "rows") == []
