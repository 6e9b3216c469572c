"""Keyed tables: in memory and with RocksDB behind, against a dict."""

import json
import math
import random
import struct
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sabot._cython.groups.partition import hash_columns
from sabot._cython.groups.tables import KeyFilter, places
from sabot._cython.rows.row_bytes import RowCodec
from sabot.engine.state.tables import saved as tables_saved
from sabot.engine.state.tables.cold import ColdGroups
from sabot.engine.state.tables.store import TableStore
from sabot.errors import CorruptCheckpoint, InternalError
from tools.command_line import child

KEYS = pa.schema([("name", pa.string()), ("number", pa.int64())])
AGGREGATES = [("count", None), ("sum", pa.int64()), ("max", pa.int64())]
COLUMNS = pa.schema([*KEYS, pa.field("amount", pa.int64()), pa.field("time", pa.int64())])
ARGUMENTS = [-1, 2, 3]


def rows_of(*rows: tuple[Any, ...]) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays(
        [pa.array(column, field.type) for column, field in zip(zip(*rows, strict=True), COLUMNS, strict=True)],
        schema=COLUMNS,
    )


def add(store: TableStore, pane: int, *rows: tuple[Any, ...]) -> None:
    store.table(pane).update(rows_of(*rows), [0, 1], ARGUMENTS)


def many(names: range, time: int = 0) -> list[tuple[Any, ...]]:
    return [(f"k{name}", name, 1, time) for name in names]


def content(store: TableStore) -> dict[Any, Any]:
    """(pane, name, number) -> (count, sum, latest), each group exactly once, by finish and by export."""
    found: dict[Any, Any] = {}
    exported = set()
    for pane in store.panes:
        for columns in store.finish(pane):
            assert 0 < len(columns[0]) <= 65_536
            for name, number, *results in zip(*(column.to_pylist() for column in columns), strict=True):
                assert (pane, name, number) not in found
                found[pane, name, number] = tuple(results)
        for batch in store.export(pane):
            keys = zip(batch.column(0).to_pylist(), batch.column(1).to_pylist(), strict=True)
            exported.update((pane, *key) for key in keys)
    assert exported == set(found)
    return found


def saved(snapshot: tuple[dict[str, Any], Any], directory: Path) -> SimpleNamespace:
    """What a checkpoint makes of a snapshot: facts go through JSON."""
    facts, state = snapshot
    if state is not None:
        directory.mkdir()
        size = state.save(directory)
        assert size == sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())
        state.discard()
    return SimpleNamespace(directory=directory, facts=json.loads(json.dumps(facts)))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[TableStore]:
    """One that evicts whenever it may."""
    store = TableStore(KEYS, AGGREGATES, directory=tmp_path / "state", memory_budget=1)
    yield store
    store.close()


# The bytes of groups

TYPES = [
    pa.int8(), pa.uint16(), pa.int64(), pa.uint64(), pa.float32(), pa.float64(), pa.bool_(), pa.string(), pa.binary(),
    pa.date32(), pa.timestamp("us", "UTC"), pa.time32("ms"), pa.duration("s"),
]  # fmt: skip


def naive_row(types: list[pa.DataType], row: list[Any]) -> bytes:
    bits = bytearray((len(types) + 7) // 8)
    out = b""
    for i, (kind, value) in enumerate(zip(types, row, strict=True)):
        if value is None:
            continue
        bits[i // 8] |= 1 << i % 8
        if pa.types.is_string(kind) or pa.types.is_binary(kind):
            data = value.encode() if isinstance(value, str) else value
            out += struct.pack("<I", len(data)) + data
        elif pa.types.is_floating(kind):
            out += struct.pack("<d" if kind == pa.float64() else "<f", value)
        else:
            out += (int(value) % 2**kind.bit_width).to_bytes((kind.bit_width + 7) // 8, "little")
    return bytes(bits) + out


def test_rows_are_packed_as_documented_and_come_back() -> None:
    rng = random.Random(1)
    samples: list[list[Any]] = [
        [-5, 127, 0], [1, 65535, 0], [-(2**63), 2**63 - 1, 0], [0, 7, 2**62], [0.5, -0.0, math.inf], [1.25, -2.5, 0.0],
        [True, False, True], ["", "ö" * 40, "x"], [b"", b"\x00\xff", b"y" * 300], [1, -1, 0], [5, -5, 0], [0, 1, 2], [9, -9, 0],
    ]  # fmt: skip
    ints = [pa.int32() if t.bit_width == 32 else pa.int64() for t in TYPES[9:]]
    columns = []
    for kind, values in zip([*TYPES[:9], *ints], samples, strict=True):
        columns.append(pa.array([rng.choice([*values, None]) for _ in range(103)], kind))
    expected = [
        naive_row([*TYPES[:9], *ints], list(row)) for row in zip(*(c.to_pylist() for c in columns), strict=True)
    ]
    columns = [
        column.view(kind) if kind != column.type else column for column, kind in zip(columns, TYPES, strict=True)
    ]
    codec = RowCodec(TYPES)
    packed = codec.pack(columns)
    assert packed == expected
    for back, column in zip(codec.unpack(packed), columns, strict=True):
        back.validate(full=True)
        assert back.equals(column)
        assert back.type == column.type
    slices = [column.slice(17, 50) for column in columns]
    assert codec.pack(slices) == expected[17:67]
    heads = pa.array(range(53), pa.uint64()).slice(3)
    with_heads = codec.pack(slices, pane=-2, heads=heads)
    assert with_heads == [struct.pack(">QQ", 2**63 - 2, 3 + i) + row for i, row in enumerate(expected[17:67])]
    assert codec.unpack(with_heads, skip=16)[7].equals(slices[7])


def test_equal_keys_are_equal_bytes() -> None:
    other_nan = struct.unpack("<d", struct.pack("<Q", 0xFFF8000000000001))[0]
    for kind in (pa.float64(), pa.float32()):
        keys = RowCodec([kind], as_keys=True).pack([pa.array([0.0, -0.0, math.nan, other_nan, None], kind)])
        assert keys[0] == keys[1] != keys[2] == keys[3] != keys[4]
        values = RowCodec([kind]).pack([pa.array([0.0, -0.0], kind)])
        assert values[0] != values[1]


@pytest.mark.parametrize("bad", [b"", b"\x03\x01", b"\x02\x09\x00\x00\x00ab", b"\x00\x00", b"\x02\xff\xff\xff\xff"])
def test_bytes_that_are_no_row_are_refused(bad: bytes) -> None:
    codec = RowCodec([pa.int64(), pa.string()])
    with pytest.raises(ValueError, match="row 1 of"):
        codec.unpack([b"\x00", bad])


def test_rows_of_other_types_are_refused() -> None:
    with pytest.raises(TypeError, match="halffloat"):
        RowCodec([pa.float16()])
    with pytest.raises(TypeError, match="int32"):
        RowCodec([pa.int64()]).pack([pa.array([1], pa.int32())])
    with pytest.raises(ValueError, match="2 heads for 1 rows"):
        RowCodec([pa.int64()]).pack([pa.array([1])], heads=pa.array([1, 2], pa.uint64()))
    with pytest.raises(ValueError, match="columns of"):
        RowCodec([pa.int64(), pa.int64()]).pack([pa.array([1]), pa.array([1, 2])])


def test_places_put_the_key_group_first() -> None:
    hashes = pa.array([0, 1, 1023, 1024, 2**64 - 1, 0x123456789ABCDEF0], pa.uint64()).slice(1)
    expected = [(h % 1024 << 54) | (h >> 10) for h in hashes.to_pylist()]
    assert places(hashes).to_pylist() == expected


def test_a_filter_forgets_nothing_and_lets_few_others_through() -> None:
    hashes = hash_columns([pa.array(range(300_000))])
    everything = pa.array(np.arange(300_000, dtype=np.int32))
    known, filter_ = hashes.slice(0, 150_000), KeyFilter()
    assert len(filter_.candidates(hashes, everything)) == 0
    for start in range(0, 150_000, 10_000):
        filter_.add(known.slice(start, 10_000))
    found = filter_.candidates(hashes, everything).to_numpy()
    assert (found[:150_000] == np.arange(150_000)).all()
    assert len(found) - 150_000 < 150_000 * 0.08
    assert filter_.nbytes < 1_000_000
    with pytest.raises(IndexError):
        filter_.candidates(known, pa.array([150_000], pa.int32()))


def test_different_keys_of_one_hash_are_kept_apart(tmp_path: Path) -> None:
    schema = pa.schema([("k", pa.string()), ("n", pa.int64())])
    groups = pa.record_batch([pa.array([f"k{i}" for i in range(100)]), pa.array(range(100))], schema=schema)
    hashes = pa.array([7, 8] * 50, pa.uint64())
    cold = ColdGroups(tmp_path, schema, 1, 8 << 20)
    cold.write(3, hashes, lambda rows: groups.take(rows).columns)
    rows = pa.array([41, 3, 98], pa.int32())
    found = cold.read(3, [groups.column(0).take(rows)], hashes.take(rows))
    assert sorted(found.column(1).to_pylist()) == [3, 41, 98]
    assert cold.read(2, [groups.column(0).take(rows)], hashes.take(rows)).num_rows == 0
    assert sorted(n for batch in cold.scan(3) for n in batch.column(1).to_pylist()) == list(range(100))
    cold.close()


# Against a dict

KEY = st.tuples(st.sampled_from(["a", "b", "", None]), st.sampled_from([0, 1, 2, None]))
ROW = st.tuples(KEY, st.integers(-5, 5), st.integers(0, 40))
PANE = st.sampled_from([-3, 0, 9])
STEP = st.one_of(
    st.tuples(st.just("update"), PANE, st.lists(ROW, min_size=1, max_size=12)),
    st.tuples(st.just("update"), PANE, st.lists(ROW, min_size=1, max_size=12)),
    st.tuples(st.just("running"), PANE, st.lists(ROW, min_size=1, max_size=6)),
    st.tuples(st.just("merge"), PANE, st.lists(ROW, min_size=1, max_size=6)),
    st.tuples(st.just("remove"), PANE, st.lists(KEY, min_size=1, max_size=4)),
    st.tuples(st.just("drop"), PANE),
    st.tuples(st.just("retire"), PANE, st.integers(0, 40)),
    st.tuples(st.just("settle")),
    st.tuples(st.just("settle")),
    st.tuples(st.just("snapshot")),
    st.tuples(st.just("save")),
    st.tuples(st.just("discard")),
    st.tuples(st.just("restore"), st.integers(1, 3), st.booleans()),
    st.tuples(st.just("check")),
)


class Model:
    """A store beside a dict, and its snapshots beside copies of the dict."""

    def __init__(self, directory: Path, *, on_disk: bool, budget: int) -> None:
        self.root, self.on_disk, self.budget = directory, on_disk, budget
        self.stores = [self.make()]
        self.groups: dict[Any, tuple[int, int, int]] = {}
        self.bounds: dict[int, int] = {}
        self.taken: list[Any] = []  # (snapshots, groups, bounds)
        self.names = iter(range(10_000))

    def make(self) -> TableStore:
        directory = self.root / f"state{len(list(self.root.iterdir()))}" if self.on_disk else None
        if directory is not None:
            directory.mkdir()
        return TableStore(KEYS, AGGREGATES, directory=directory, memory_budget=self.budget)

    def owned(self, part: int) -> Any:
        parts = len(self.stores)
        return lambda hashes: pa.array(hashes.to_numpy() % np.uint64(parts) == np.uint64(part))

    def mine(self, batch: pa.RecordBatch) -> Iterator[tuple[TableStore, pa.Int32Array | None]]:
        if len(self.stores) == 1:
            yield self.stores[0], None
        else:
            for part, store in enumerate(self.stores):
                mask = self.owned(part)(hash_columns(batch.columns[:2]))
                yield store, pa.array(np.flatnonzero(mask.to_numpy(zero_copy_only=False)).astype(np.int32))

    def step(self, action: str, *about: Any) -> None:
        getattr(self, f"do_{action}")(*about)

    def do_update(self, pane: int, rows: list[Any], how: str = "update") -> None:
        rows = [(key, amount, max(time, self.bounds.get(pane, 0))) for key, amount, time in rows]  # no late rows
        batch = rows_of(*[(*key, amount, time) for key, amount, time in rows])
        for store, selection in self.mine(batch):
            if selection is not None and not len(selection):
                continue
            table = store.table(pane)
            if how == "update":
                hashes = hash_columns(batch.columns[:2])
                table.update(batch, [0, 1], ARGUMENTS, hashes=hashes, selection=selection)
            elif how == "running":
                slots = table.resolve(batch, [0, 1], selection=selection)
                table.running(slots, batch, ARGUMENTS, selection=selection)
            else:
                other = TableStore(KEYS, AGGREGATES)
                other.table(0).update(batch, [0, 1], ARGUMENTS, selection=selection)
                table.merge(other.table(0).export())
        for key, amount, time in rows:
            count, total, latest = self.groups.get((pane, *key), (0, 0, time))
            self.groups[pane, *key] = count + 1, total + amount, max(latest, time)

    def do_running(self, pane: int, rows: list[Any]) -> None:
        self.do_update(pane, rows, "running")
        batch = rows_of(*[(*key, amount, time) for key, amount, time in rows])
        for store, selection in self.mine(batch):
            slots = store.table(pane).resolve(batch, [0, 1], selection=selection, insert=False)
            for name, number, *results in zip(*(c.to_pylist() for c in store.table(pane).finish(slots)), strict=True):
                assert tuple(results) == self.groups[pane, name, number]

    def do_merge(self, pane: int, rows: list[Any]) -> None:
        self.do_update(pane, rows, "merge")

    def do_remove(self, pane: int, keys: list[Any]) -> None:
        keys = list(dict.fromkeys(keys))
        batch = rows_of(*[(*key, 0, 0) for key in keys])
        for store, selection in self.mine(batch):
            if pane in store.panes:
                slots = store.table(pane).resolve(batch, [0, 1], selection=selection, insert=False)
                store.table(pane).remove(slots.filter(pc.greater_equal(slots, 0)))
        for key in keys:
            self.groups.pop((pane, *key), None)

    def do_drop(self, pane: int) -> None:
        for store in self.stores:
            store.drop(pane)
        self.groups = {key: group for key, group in self.groups.items() if key[0] != pane}
        self.bounds.pop(pane, None)

    def do_retire(self, pane: int, below: int) -> None:
        below = max(below, self.bounds.get(pane, 0))
        for store in self.stores:
            store.retire(2, below, pane)
        self.groups = {key: group for key, group in self.groups.items() if key[0] != pane or group[2] >= below}
        if any(pane in store.panes for store in self.stores):
            self.bounds[pane] = below

    def do_settle(self) -> None:
        for store in self.stores:
            store.settle()

    def do_snapshot(self) -> None:
        self.taken.append(([store.cut() for store in self.stores], dict(self.groups), dict(self.bounds), []))

    def do_save(self) -> None:
        if self.taken:
            snapshots, *_, directories = self.taken[-1]
            if not directories:
                directories += [saved(snapshot, self.root / f"saved{next(self.names)}") for snapshot in snapshots]

    def do_discard(self) -> None:
        if self.taken:
            for _, state in self.taken.pop()[0]:
                if state is not None:
                    state.discard()

    def do_restore(self, parts: int, on_disk: bool) -> None:
        self.do_save()
        if not self.taken:
            return
        _, groups, bounds, directories = self.taken[-1]
        self.close()
        self.on_disk = on_disk
        before = len(self.stores)
        self.stores = []
        for _ in range(parts):
            self.stores.append(self.make())
        for part, store in enumerate(self.stores):
            store.restore(directories, self.owned(part) if max(before, parts) > 1 else None)
        self.groups, self.bounds, self.taken = dict(groups), dict(bounds), []

    def do_check(self) -> None:
        found: dict[Any, Any] = {}
        for store in self.stores:
            for key, group in content(store).items():
                assert key not in found
                found[key] = group
            figures = store.statistics()
            assert figures["groups"] == figures["hot"] + figures["cold"]
        assert found == self.groups

    def close(self) -> None:
        for store in self.stores:
            store.close()


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    steps=st.lists(STEP, max_size=30),
    on_disk=st.booleans(),
    budget=st.sampled_from([1, 12_000, 10**8]),
    lookups_from=st.sampled_from([0, 0, 15, 30]),
)
def test_a_store_is_a_dict_wherever_its_groups_are(
    steps: list[Any], on_disk: bool, budget: int, lookups_from: int
) -> None:
    with TemporaryDirectory() as root:
        model = Model(Path(root), on_disk=on_disk, budget=budget)
        for number, step in enumerate(steps):
            if number >= lookups_from or step[0] not in ("running", "remove", "retire"):
                model.step(*step)
        model.do_check()
        model.do_snapshot()
        model.do_restore(1, True)
        model.do_check()
        model.close()


# Snapshots


def restored(
    directory: Path, *parts: SimpleNamespace, on_disk: bool = True, owned: Any = None, budget: int = 10**8
) -> TableStore:
    directory.mkdir(exist_ok=True)
    store = TableStore(KEYS, AGGREGATES, directory=directory if on_disk else None, memory_budget=budget)
    store.restore(parts, owned)
    return store


@pytest.mark.one_in(2, "half a second of a core each")
@pytest.mark.parametrize("lookups", [False, True])
def test_a_snapshot_is_the_cut_though_it_is_saved_while_the_owner_goes_on(
    store: TableStore, tmp_path: Path, lookups: bool
) -> None:
    expected = []
    snapshots = []
    directories = []
    with ThreadPoolExecutor(2) as pool:
        for turn in range(5):
            add(store, turn % 2, *many(range(turn * 20, turn * 20 + 100), time=turn))
            if lookups:
                store.table(turn % 2).resolve(rows_of(("k1", 1, 0, 0)), [0, 1])
            store.settle()  # evicts: the database must not run ahead of a cut that is not saved
            expected.append(content(store))
            snapshot = store.cut()
            if turn == 3:
                store.drop(1)
            directories.append(tmp_path / f"saved{turn}")
            snapshots.append(pool.submit(saved, snapshot, directories[-1]))
        parts = [snapshot.result() for snapshot in snapshots]
    for turn, part in enumerate(parts):
        back = restored(tmp_path / f"back{turn}", part)
        assert content(back) == expected[turn]
        back.close()
        memory = restored(tmp_path / f"back{turn}", part, on_disk=False)
        assert content(memory) == expected[turn]


def test_a_save_that_broke_off_does_not_matter_to_the_next(
    store: TableStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(store, 0, *many(range(500)))
    store.settle()
    for broken in (
        "sabot.engine.state.tables.saved._write",
        "sabot.engine.state.tables.saved.link_file",
        "sabot.engine.state.tables.saved.link_tree",
    ):
        add(store, 0, *many(range(100)))
        _, state = store.cut()
        assert state is not None
        with monkeypatch.context() as patch:
            patch.setattr(broken, _full_disk)
            (tmp_path / broken).mkdir()
            with pytest.raises(OSError, match="no space"):
                state.save(tmp_path / broken)
        state.discard()
    add(store, 0, *many(range(50, 150)))
    expected = content(store)
    back = restored(tmp_path / "back", saved(store.cut(), tmp_path / "saved"))
    assert content(back) == expected
    assert expected[0, "k70", 70] == (5, 5, 0)
    back.close()


def _full_disk(*_: Any) -> None:
    raise OSError("no space")


@pytest.mark.parametrize("on_disk", [True, False])
def test_a_delta_whose_write_broke_off_half_way_is_written_again_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_disk: bool
) -> None:
    """Groups that had been read from the table when the disk was full, and have changed since, are in the delta all the same."""
    store = TableStore(KEYS, AGGREGATES, directory=tmp_path / "state" if on_disk else None)
    add(store, 0, *many(range(3000)))
    saved(store.cut(), tmp_path / "first")
    add(store, 0, *many(range(0, 3000, 2)))
    slots = store.table().resolve(rows_of(*many(range(10))), [0, 1])
    store.table().remove(slots)
    expected = content(store)
    facts, state = store.cut()
    assert state is not None
    write = tables_saved._write

    def half(file: Path, changes: list[tables_saved.Change]) -> None:
        if changes[0].gone:
            write(file, changes)
        else:
            assert changes[0].groups.read(600) is not None
            _full_disk()

    with monkeypatch.context() as patch:
        patch.setattr(tables_saved, "_write", half)
        (tmp_path / "broken").mkdir()
        with pytest.raises(OSError, match="no space"):
            state.save(tmp_path / "broken")
    add(store, 0, *many(range(1000)))  # read before, and changed now
    back = restored(tmp_path / "back", saved((facts, state), tmp_path / "again"), on_disk=on_disk)
    assert content(back) == expected
    back.close()
    store.close()


def test_files_that_no_snapshot_needs_go_where_the_rows_do_not_wait(tmp_path: Path) -> None:
    store = TableStore(KEYS, AGGREGATES, directory=tmp_path / "state")
    deltas = tmp_path / "state" / "deltas"
    for turn in range(3):
        add(store, 0, *many(range(500)))
        _, state = store.cut()
        assert state is not None
        before = set(deltas.iterdir())
        (tmp_path / f"saved{turn}").mkdir()
        state.save(tmp_path / f"saved{turn}")
        after = set(deltas.iterdir())
        assert len(after - before) == 1
        assert bool(before - after) == (turn > 0)  # what changed is all there is: the delta before is not needed
    store.close()


def test_facts_that_do_not_say_how_many_groups_there_are_will_do(store: TableStore, tmp_path: Path) -> None:
    """Checkpoints of the version before have not the last one of a pane's facts."""
    add(store, 0, *many(range(500)))
    part = saved(store.cut(), tmp_path / "saved")
    assert all(len(pane) == 7 for pane in part.facts["panes"])
    part.facts["panes"] = [pane[:6] for pane in part.facts["panes"]]
    back = restored(tmp_path / "back", part)
    assert content(back) == content(store)
    back.close()


def test_what_a_killed_process_left_in_the_directory_is_not_read(tmp_path: Path) -> None:
    directory = tmp_path / "state"
    killed = TableStore(KEYS, AGGREGATES, directory=directory, memory_budget=1)
    add(killed, 0, *many(range(500)))
    killed.settle()
    part = saved(killed.cut(), tmp_path / "saved")
    add(killed, 0, *many(range(600)))
    killed.settle()
    killed.cut()
    killed.close()  # its files stay, as those of a killed one would
    (directory / "db" / "7.3.sst").write_bytes(b"half")
    store = restored(directory, part)
    assert content(store) == {(0, f"k{i}", i): (1, 1, 0) for i in range(500)}
    assert [file.name for file in (directory / "deltas").iterdir()] == []
    store.close()


@pytest.mark.slow  # a second of a core, or more
def test_a_snapshot_writes_what_changed_and_keeps_few_files(tmp_path: Path) -> None:
    store = TableStore(KEYS, AGGREGATES, directory=tmp_path / "state")
    add(store, 0, *many(range(6000)))
    add(store, 5, *many(range(100)))  # never changes again
    whole = _size(saved(store.cut(), tmp_path / "first").directory)
    for turn in range(140):
        add(store, 0, *many(range(turn, turn + 5), time=turn))
        written = _size(tmp_path / "state" / "deltas")
        _, state = store.cut()
        assert state is not None
        (tmp_path / f"saved{turn}").mkdir()
        state.save(tmp_path / f"saved{turn}")
        if turn < 60:  # later some are removed
            assert _size(tmp_path / "state" / "deltas") - written < whole / 20
        assert len(list((tmp_path / f"saved{turn}").iterdir())) < 135
        assert _size(tmp_path / f"saved{turn}") < 4 * whole
    back = restored(tmp_path / "back", saved(store.cut(), tmp_path / "last"))
    assert content(back) == content(store)
    store.drop(0)
    store.drop(5)
    assert store.cut()[1] is None
    assert list((tmp_path / "state" / "deltas").iterdir()) == []
    store.close()
    back.close()


def _size(directory: Path) -> int:
    return sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())


def test_snapshots_that_nobody_saves_do_not_pile_up(tmp_path: Path) -> None:
    store = TableStore(KEYS, AGGREGATES, directory=tmp_path / "state")
    rows = rows_of(*many(range(70_000)))
    for _ in range(6):
        store.table().update(rows, [0, 1], ARGUMENTS)
        _, state = store.cut()
        assert state is not None
        state.discard()
        assert sum(delta.rows for delta in store._deltas) <= 3 * 70_000
    part = saved(store.cut(), tmp_path / "saved")
    back = restored(tmp_path / "back", part)
    assert [pc.unique(columns[2]).to_pylist() for columns in back.finish()] == [[6], [6]]
    store.close()
    back.close()


@pytest.mark.slow  # half a second of a core
def test_groups_that_left_do_not_come_back_from_older_deltas(tmp_path: Path) -> None:
    store = TableStore(KEYS, AGGREGATES, directory=tmp_path / "state")
    add(store, 0, *many(range(600)))
    add(store, 1, *many(range(10)))
    saved(store.cut(), tmp_path / "first")
    slots = store.table(0).resolve(rows_of(*many(range(500))), [0, 1], insert=False)
    store.table(0).remove(slots)
    for turn in range(75):
        add(store, 0, *many(range(590, 591)))
        snapshot = store.cut()
        if turn % 12 == 0 or 60 < turn < 68:
            back = restored(tmp_path / "back", saved(snapshot, tmp_path / f"saved{turn}"), on_disk=False)
            assert content(back) == content(store)
    store.close()


@pytest.mark.slow  # a second of a core, or more
def test_more_groups_than_the_budget_holds(tmp_path: Path) -> None:
    budget = 4_000_000
    store = TableStore(KEYS, AGGREGATES, directory=tmp_path / "state", memory_budget=budget)
    for turn in range(2):
        for start in range(0, 60_000, 6_000):
            add(store, 0, *many(range(start, start + 6_000), time=turn))
            store.settle()
            assert sum(table.nbytes for table in store._tables.values()) < budget
    figures = store.statistics()
    assert figures["evicted_total"] > 60_000 > figures["hot"]
    count = 0
    for columns in store.finish():
        count += len(columns[0])
        assert pc.all(pc.equal(columns[2], 2)).as_py()
        assert pc.all(pc.equal(columns[4], 1)).as_py()
    assert count == 60_000
    store.close()


def test_panes_that_are_dropped_in_time_never_touch_the_disk(tmp_path: Path) -> None:
    store = TableStore(KEYS, AGGREGATES, directory=tmp_path / "state")
    for pane in range(50):
        add(store, pane, *many(range(100)))
        store.settle()
        store.drop(pane - 2)
    assert store.panes == [48, 49]
    assert [path for path in (tmp_path / "state").rglob("*") if path.is_file()] == []
    store.close()


def test_a_store_that_may_not_evict_keeps_all_in_memory(tmp_path: Path) -> None:
    store = TableStore(KEYS, AGGREGATES, directory=tmp_path / "state", memory_budget=1, evictable=False)
    add(store, 0, *many(range(1000)))
    slots = store.table(0).resolve(rows_of(*many(range(1000))), [0, 1], insert=False)
    store.settle()
    assert store.table(0).finish(slots)[1].to_pylist() == list(range(1000))
    assert store.statistics()["evicted_total"] == 0
    store.close()


def test_first_stays_first_across_evictions(tmp_path: Path) -> None:
    kinds = [("first", pa.int64()), ("last", pa.int64())]
    store = TableStore(KEYS, kinds, directory=tmp_path / "state", memory_budget=1)
    for amount in (1, 2, 3):
        batch = rows_of(*[(f"k{i}", i, amount, 0) for i in range(50)])
        store.table().update(batch, [0, 1], [2, 2], order=3)
        if amount < 3:
            store.settle()
    plain = TableStore(KEYS, kinds)
    for amount in (1, 2, 3):
        plain.table().update(rows_of(*[(f"k{i}", i, amount, 0) for i in range(50)]), [0, 1], [2, 2], order=3)
    expected = {(a, b): rest for a, b, *rest in zip(*(c.to_pylist() for c in next(plain.finish())), strict=True)}
    found = {}
    for columns in store.finish():
        found.update({(a, b): rest for a, b, *rest in zip(*(c.to_pylist() for c in columns), strict=True)})
    assert found == expected
    store.table().resolve(rows_of(("k1", 1, 0, 0)), [0, 1])  # now whole groups are kept
    found = {}
    for columns in store.finish():
        found.update({(a, b): rest for a, b, *rest in zip(*(c.to_pylist() for c in columns), strict=True)})
    assert found == expected
    store.close()


def test_cold_groups_that_expired_leave_the_disk(store: TableStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sabot.engine.state.tables.store._SWEEP_GROUPS", 100)
    store.table().resolve(rows_of(("k0", 0, 0, 0)), [0, 1])
    for hour in range(10):
        add(store, 0, *many(range(hour * 100, hour * 100 + 100), time=hour))
        for _ in range(3):
            store.settle()
        store.retire(2, hour - 2)
        assert store.statistics()["groups"] <= 700
    assert store.statistics()["evicted_total"] > 700
    assert len(content(store)) == 300


def test_slots_of_parts_are_refused(store: TableStore) -> None:
    add(store, 0, *many(range(100)))
    store.settle()
    assert store.statistics()["cold"] > 0
    with pytest.raises(InternalError, match="resolve"):
        store.table(0).finish(pa.array([0], pa.int32()))


def test_without_keys_there_is_one_group_and_one_owner(tmp_path: Path) -> None:
    parts = []
    for part in range(2):
        store = TableStore(pa.schema([]), [("count", None)], directory=tmp_path / f"state{part}", memory_budget=1)
        store.table(3).update(rows_of(*many(range(5))), [], [-1])
        store.settle()
        parts.append(saved(store.cut(), tmp_path / f"saved{part}"))
        store.close()
    counts = []
    for subtask in range(3):
        store = TableStore(pa.schema([]), [("count", None)])
        store.restore(parts, lambda hashes, me=subtask: pa.array(np.full(len(hashes), me == 0)))
        counts.append([columns[0].to_pylist() for columns in store.finish(3)])
    assert counts == [[[10]], [], []]


def test_state_that_is_damaged_or_of_another_program_is_refused(store: TableStore, tmp_path: Path) -> None:
    add(store, 0, *many(range(1000)))
    part = saved(store.cut(), tmp_path / "saved")
    with pytest.raises(CorruptCheckpoint, match="the program's state has"):
        TableStore(KEYS, [("count", None)]).restore([part])
    with pytest.raises(CorruptCheckpoint, match="version"):
        TableStore(KEYS, AGGREGATES).restore([SimpleNamespace(directory=part.directory, facts={})])
    file = next(part.directory.iterdir())
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(CorruptCheckpoint, match=file.name):
        TableStore(KEYS, AGGREGATES).restore([part])


@pytest.mark.parametrize("pattern", ["*.arrow", "cold/*.sst", "cold"])
def test_files_that_are_missing_are_missed(store: TableStore, tmp_path: Path, pattern: str) -> None:
    add(store, 0, *many(range(1000)))
    store.settle()
    part = saved(store.cut(), tmp_path / "saved")
    missing = next(part.directory.glob(pattern))
    missing.rename(tmp_path / "elsewhere")
    for on_disk in (True, False):
        with pytest.raises(CorruptCheckpoint, match=str(part.directory)):
            restored(tmp_path / f"back{on_disk}", part, on_disk=on_disk)


@pytest.mark.one_in(2, "a third of a second of a core each")
@pytest.mark.parametrize("lookups", [False, True])
def test_every_type_survives_the_way_to_disk_and_back(tmp_path: Path, lookups: bool) -> None:
    rng = np.random.default_rng(3)
    keys = pa.schema([("f", pa.float64()), ("t", pa.timestamp("us", "UTC")), ("b", pa.bool_()), ("x", pa.binary())])
    kinds = [
        ("mean", pa.int64()), ("mean", pa.float32()), ("variance", pa.float64()), ("min", pa.bool_()), ("max", pa.uint8()),
        ("first", pa.date32()), ("last", pa.float64()), ("sum", pa.uint64()), ("count", pa.int16()),
    ]  # fmt: skip

    def column(kind: pa.DataType, few: int) -> Any:
        values = pa.array(rng.integers(0, few, 2000), mask=rng.random(2000) < 0.1)
        if pa.types.is_binary(kind):
            return values.cast(pa.string()).cast(kind)
        if pa.types.is_floating(kind):
            return pc.if_else(pc.equal(values, 1), math.nan, pc.multiply(values, -0.0)).cast(kind)
        if pa.types.is_boolean(kind):
            return pc.equal(values, 1)
        return values.cast(pa.int32()).cast(kind) if kind == pa.date32() else values.cast(kind)

    stores = [
        TableStore(keys, kinds),
        TableStore(keys, kinds, directory=tmp_path / "state", memory_budget=1),
        TableStore(keys, kinds, directory=tmp_path / "other", memory_budget=20_000),
    ]
    for turn in range(5):
        columns = [column(field.type, 3) for field in keys] + [column(kind, 100) for _, kind in kinds]
        data = pa.record_batch(
            [*columns, pa.array(rng.integers(0, 10**6, 2000) + turn)], names=[str(i) for i in range(14)]
        )
        for store in stores:
            if lookups and turn == 2:
                store.table().resolve(data, range(4))
            store.table().update(data, range(4), range(4, 13), order=13)
            store.settle()
    results = [pa.concat_tables([pa.table(c, names=data.schema.names[:13]) for c in s.finish()]) for s in stores]
    by_key = [
        {tuple(map(repr, row[:4])): row[4:] for row in zip(*table.to_pydict().values(), strict=True)}
        for table in results
    ]
    assert stores[1].statistics()["evicted_total"] > 0
    assert len(by_key[0]) == results[0].num_rows > 50
    for other, table in zip(by_key[1:], results[1:], strict=True):
        assert len(other) == table.num_rows == len(by_key[0])
        for key, row in by_key[0].items():
            assert other[key] == pytest.approx(row, nan_ok=True)
    for store in stores:
        store.close()


_KILLED = """
import json, sys
from pathlib import Path
import pyarrow as pa
from sabot.engine.state.tables.store import TableStore
root = Path(sys.argv[1])
store = TableStore(pa.schema([("k", pa.int64())]), [("count", None)], directory=root / "state", memory_budget=200_000)
for turn in range(10_000):
    store.table().update(pa.record_batch([pa.array(range(3000))], names=["k"]), [0], [-1])
    store.settle()
    facts, state = store.cut()
    (root / f"saved{turn}").mkdir()
    state.save(root / f"saved{turn}")
    (root / "partial").write_text(json.dumps([turn, facts]))
    (root / "partial").rename(root / "manifest")
    print(turn, flush=True)
"""


@pytest.mark.slow  # half a second of a core
def test_a_killed_process_comes_back_with_its_last_checkpoint(tmp_path: Path) -> None:
    with child(sys.executable, "-c", _KILLED, tmp_path, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        for _ in range(4):
            assert process.stdout.readline()
        process.kill()
    turn, facts = json.loads((tmp_path / "manifest").read_text())
    store = TableStore(
        pa.schema([("k", pa.int64())]), [("count", None)], directory=tmp_path / "state", memory_budget=200_000
    )
    store.restore([SimpleNamespace(directory=tmp_path / f"saved{turn}", facts=facts)])
    for _ in range(3):
        store.table().update(pa.record_batch([pa.array(range(3000))], names=["k"]), [0], [-1])
        store.settle()
    counts = [count for columns in store.finish() for count in columns[1].to_pylist()]
    assert counts == [turn + 4] * 3000
    (tmp_path / "again").mkdir()
    _, state = store.cut()
    assert state is not None
    assert state.save(tmp_path / "again") > 0
    store.close()
