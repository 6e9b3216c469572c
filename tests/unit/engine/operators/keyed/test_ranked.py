"""The first n rows of each key: as changes over all rows so far, and by window."""

import math
import random
from collections import Counter
from datetime import UTC, datetime
from decimal import Decimal

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sabot._cython.arrow.batch import Batch
from sabot._cython.rows.ranked import RankTable
from sabot.api.windows import cumulative, hopping, tumbling
from sabot.engine.operators.base import (
    DELETE,
    END_OF_TIME,
    INSERT,
    OP_COLUMN,
    TIME_COLUMN,
    UPDATE_AFTER,
    UPDATE_BEFORE,
    Operator,
    OperatorContext,
)
from sabot.engine.operators.keyed.top import TopN
from sabot.engine.operators.windows import top
from sabot.engine.operators.windows.top import WindowTopN
from sabot.errors import InternalError, UserError
from tools.operator_run import OperatorRun

ROWS = pa.schema([("k", pa.int64()), ("v", pa.float64()), ("s", pa.string())])
CHANGES = ROWS.append(pa.field(OP_COLUMN, pa.int8())).append(pa.field(TIME_COLUMN, pa.int64()))
TIMED = ROWS.append(pa.field(TIME_COLUMN, pa.int64()))
VALUES = [None, float("nan"), -1.5, 0.0, -0.0, 1.0, 2.0, 7.0, float("inf"), -float("inf")]


def place(value, descending):
    """What Python sorts by as the operator does: numbers, NaN, null; -0.0 is 0.0."""
    if value is None:
        return (2, 0)
    if isinstance(value, float) and math.isnan(value):
        return (1, 0)
    if isinstance(value, str):
        value = int.from_bytes(value.encode().ljust(32, b"\0"), "big") * 64 + len(value.encode())
    return (0, -value if descending else value)


def same(row):
    """A row as something that is equal where rows are."""
    return tuple("NaN" if isinstance(value, float) and math.isnan(value) else value for value in row)


def first_of(rows, by, n, ties):
    """Naive: [(row, rank)] of one key's rows, which are in the order of arrival; by: [(index, descending)]."""
    ordered = sorted(rows, key=lambda row: [place(row[i], descending) for i, descending in by])
    given, distinct, best = [], 0, None
    for number, row in enumerate(ordered, 1):
        key = [place(row[i], descending) for i, descending in by]
        if key != best:
            best, distinct, rank = key, distinct + 1, number
        found = {"row_number": number, "rank": rank, "dense_rank": distinct}[ties]
        if found <= n:
            given.append((row, found))
    return given


class Table:
    """Changes applied one by one: each prefix must be valid, update pairs adjacent."""

    def __init__(self, ranked):
        self.rows: Counter = Counter()
        self.ranked = ranked
        self.changes = 0

    def apply(self, batch: Batch) -> None:
        rows = [tuple(row.values()) for row in batch.taken().to_pylist()]
        width = batch.schema.get_field_index(OP_COLUMN)
        half = None
        for row in rows:
            op, row = row[width], same(row[:width])
            self.changes += 1
            assert (op == UPDATE_AFTER) == (half is not None)
            if half is not None:
                assert (half[0], half[-1]) == (row[0], row[-1]), "a pair is of one key and rank"
                half = None
            if op in (DELETE, UPDATE_BEFORE):
                assert self.rows[row] > 0, f"{row} is not there"
                self.rows[row] -= 1
                half = row if op == UPDATE_BEFORE else None
            else:
                assert op in (INSERT, UPDATE_AFTER)
                self.rows[row] += 1
        assert half is None
        self.rows = +self.rows


class Model:
    """What TopN should say: rows by key, in the order of arrival."""

    def __init__(self, by, n, ties, ranked):
        self.by, self.n, self.ties, self.ranked = by, n, ties, ranked
        self.rows: dict[object, list] = {}

    def add(self, row):
        self.rows.setdefault(same(row)[0], []).append(row)

    def take(self, row):
        mine = self.rows[same(row)[0]]
        newest = max(i for i, other in enumerate(mine) if same(other) == same(row))
        del mine[newest]

    def result(self):
        found = Counter()
        for rows in self.rows.values():
            for row, rank in first_of(rows, self.by, self.n, self.ties):
                found[(*same(row), rank) if self.ranked else same(row)] += 1
        return found


def batch_of(rows, ops=None, schema=TIMED):
    columns = [[row[i] for row in rows] for i in range(len(ROWS))]
    if ops is not None:
        columns.append(ops)
    columns.append(list(range(len(rows))))
    return pa.RecordBatch.from_arrays(
        [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)], schema=schema
    )


def random_row(rng, keys=4):
    return (rng.choice([None, *range(keys)]), rng.choice(VALUES), rng.choice([None, "", "a", "a\0", "ab", "zeta"]))


BY = [[("v", True)], [("v", False)], [("s", False), ("v", True)], [("s", True)], []]


@pytest.mark.one_in(15, "a quarter of a second of a core each")
@pytest.mark.parametrize("ties", ["row_number", "rank", "dense_rank"])
@pytest.mark.parametrize("rank", [None, "place"])
@pytest.mark.parametrize("changes", [False, True])
@pytest.mark.parametrize("parallelism", [1, 3])
def test_after_each_batch_the_changes_make_the_first_n(ties, rank, changes, parallelism, tmp_path):
    rng = random.Random(f"{ties} {rank} {changes} {parallelism}")
    for number, by in enumerate(BY):
        n = rng.choice([1, 2, 5])
        indices = [(ROWS.names.index(name), descending) for name, descending in by]
        model, table = Model(indices, n, ties, rank is not None), Table(rank is not None)

        def make(n=n, by=by) -> Operator:
            return TopN(["k"], n, by, ties=ties, rank=rank, changes=changes)

        run = OperatorRun(make, CHANGES if changes else TIMED, ["k"], tmp_path / str(number), parallelism)
        there: list = []
        for _ in range(40):
            rows, ops = [], []
            for _ in range(rng.choice([1, 3, 20])):
                if changes and there and rng.random() < 0.45:
                    row = there.pop(rng.randrange(len(there)))
                    model.take(row)
                    ops.append(rng.choice([DELETE, UPDATE_BEFORE]))
                else:
                    row = random_row(rng)
                    there.append(row)
                    model.add(row)
                    ops.append(rng.choice([INSERT, UPDATE_AFTER]))
                rows.append(row)
            before, changed = Counter(table.rows), table.changes
            run.feed(batch_of(rows, ops, CHANGES) if changes else batch_of(rows))
            for batch in run.batches:
                table.apply(batch)
            run.batches.clear()
            assert table.rows == model.result()
            kept = Table(rank is not None)
            for operator in run.parts:
                for batch in operator.table():
                    assert batch.schema.names == [*ROWS.names, *filter(None, [rank]), OP_COLUMN, TIME_COLUMN]
                    kept.apply(batch)
            assert kept.rows == table.rows, "its table has the same rows"
            least = sum(((table.rows - before) + (before - table.rows)).values())
            assert table.changes - changed == least, "no change that is not needed"
            if rng.random() < 0.1:
                run.restart(rng.choice([1, 2, 4]) if parallelism > 1 else 1)


def test_takes_come_before_adds_and_a_batch_without_a_change_emits_nothing(tmp_path):
    run = OperatorRun(lambda: TopN(["k"], 2, [("v", True)]), TIMED, ["k"], tmp_path)
    run.feed(batch_of([(1, 1.0, "a"), (1, 2.0, "b"), (1, 0.0, "c")]))
    assert [(row["s"], row[OP_COLUMN]) for row in run.results] == [("a", INSERT), ("b", INSERT)]
    run.batches.clear()
    run.feed(batch_of([(1, 0.5, "d"), (1, 1.0, "tie")]))
    assert run.results == []
    run.feed(batch_of([(1, 9.0, "e"), (1, 8.0, "f")]))
    assert [(row["s"], row[OP_COLUMN]) for row in run.results] == [
        ("a", DELETE),
        ("b", DELETE),
        ("e", INSERT),
        ("f", INSERT),
    ]
    assert run.statistic("rows") == 2


def test_a_rank_whose_row_changes_is_an_update_pair(tmp_path):
    run = OperatorRun(lambda: TopN(["k"], 2, [("v", True)], rank="place"), TIMED, ["k"], tmp_path)
    run.feed(batch_of([(1, 1.0, "a")]))
    run.batches.clear()
    run.feed(batch_of([(1, 5.0, "b")]))
    assert [(row["s"], row["place"], row[OP_COLUMN]) for row in run.results] == [
        ("a", 1, UPDATE_BEFORE),
        ("b", 1, UPDATE_AFTER),
        ("a", 2, INSERT),
    ]


def test_pieces_of_a_result_never_part_a_pair():
    schema = pa.schema([("v", pa.int64())])
    for size in (2, 3, 4, 5):
        table = RankTable(schema, [(0, False)], 9, ranked=True)
        for values in ([10, 20, 30, 40], [5, 15]):
            rows = pa.record_batch([pa.array(values)], schema=schema)
            table.add(pa.array([0] * len(values), pa.int32()), rows)
            table.settle()
        ops = [ops.to_pylist() for _, _, ops, _ in table.pieces(size)]
        assert [op for piece in ops for op in piece] == [UPDATE_BEFORE, UPDATE_AFTER] * 4 + [INSERT] * 2
        assert all(len(piece) <= size and piece[-1] != UPDATE_BEFORE for piece in ops)


def test_a_row_that_is_taken_lets_the_next_one_in(tmp_path):
    run = OperatorRun(lambda: TopN([], 1, [("v", True)], changes=True), CHANGES, [], tmp_path)
    run.feed(batch_of([(1, 3.0, "a"), (2, 2.0, "b")], [INSERT, INSERT], CHANGES))
    run.feed(batch_of([(1, 3.0, "a")], [DELETE], CHANGES))
    assert [(row["s"], row[OP_COLUMN]) for row in run.results] == [("a", INSERT), ("a", DELETE), ("b", INSERT)]
    run.feed(batch_of([(2, 2.0, "b")], [DELETE], CHANGES))
    assert run.statistic("rows") == run.statistic("keys") == 0


def test_a_row_that_is_not_there_cannot_be_taken(tmp_path):
    run = OperatorRun(lambda: TopN(["k"], 1, [("v", True)], changes=True), CHANGES, ["k"], tmp_path)
    with pytest.raises(InternalError, match="'s': 'gone'"):
        run.feed(batch_of([(1, 3.0, "gone")], [DELETE], CHANGES))


def test_what_is_wrong_is_said_when_it_is_opened():
    def opened(operator):
        operator.emit = lambda batch: None
        operator.open(OperatorContext(TIMED))

    with pytest.raises(UserError, match=r"'nothing'.*there are k, v, s"):
        opened(TopN(["k"], 1, [("nothing", True)]))
    with pytest.raises(UserError, match="rank another name"):
        opened(TopN(["k"], 1, [("v", True)], rank="s"))
    with pytest.raises(UserError, match="1 or more"):
        TopN(["k"], 0, [("v", True)])
    with pytest.raises(UserError, match="row_number, rank, dense_rank"):
        TopN(["k"], 1, [("v", True)], ties="some")
    with pytest.raises(UserError, match="window_start"):
        opened(WindowTopN(tumbling("1s"), ["k"], 1, [("v", True)], rank="window_start"))


NESTED = pa.struct([("x", pa.list_(pa.string())), ("y", pa.float32())])
TIMES = [datetime(1969, 1, 2, tzinfo=UTC), datetime(2026, 1, 1, tzinfo=UTC)]
DIGITS = st.integers(0, 9)
LISTS = st.none() | st.lists(st.none() | st.text(max_size=2), max_size=2)
MANY = {
    "bool": (pa.bool_(), st.booleans()),
    "int8": (pa.int8(), st.integers(-128, 127)),
    "uint64": (pa.uint64(), st.sampled_from([0, 1, 2**63, 2**64 - 1])),
    "int64": (pa.int64(), st.sampled_from([0, -1, 5, 2**63 - 1, -(2**63)])),
    "float32": (pa.float32(), st.sampled_from([0.0, 1.5, -2.0, float("inf")])),
    "string": (pa.string(), st.text(max_size=4)),
    "binary": (pa.binary(), st.binary(max_size=4)),
    "fixed": (pa.binary(3), st.binary(min_size=3, max_size=3)),
    "decimal": (pa.decimal128(20, 2), st.sampled_from([Decimal("-3.50"), Decimal("0.00"), Decimal("12.25")])),
    "time": (pa.timestamp("us", "UTC"), st.sampled_from(TIMES)),
    "date": (pa.date32(), st.dates()),
    "null": (pa.null(), st.none()),
    "list": (pa.list_(pa.int32()), st.lists(st.none() | DIGITS, max_size=3)),
    "pair": (pa.list_(pa.int16(), 2), st.lists(DIGITS, min_size=2, max_size=2)),
    "map": (pa.map_(pa.string(), pa.int64()), st.lists(st.tuples(st.text(max_size=2), st.none() | DIGITS), max_size=2)),
    "struct": (NESTED, st.fixed_dictionaries({"x": LISTS, "y": st.none() | st.just(1.5)})),
}
ORDERED = [name for name in MANY if name not in ("list", "pair", "map", "struct", "null")]


@pytest.mark.slow  # a second of a core
@settings(max_examples=25, deadline=None)
@given(st.data())
def test_rows_of_any_type_come_out_as_they_came_in_whatever_their_slices(data):
    schema = pa.schema([(name, kind) for name, (kind, _) in MANY.items()])
    rows = data.draw(
        st.lists(st.fixed_dictionaries({name: st.none() | values for name, (_, values) in MANY.items()}), max_size=20)
    )
    whole = pa.RecordBatch.from_pylist(rows, schema=schema)
    start = data.draw(st.integers(0, len(rows)))
    batch = whole.slice(start)
    struct = pa.StructArray.from_arrays(batch.columns, fields=list(schema)).slice(min(1, batch.num_rows))
    for piece in (batch, pa.RecordBatch.from_struct_array(struct)):
        table = RankTable(schema, [], 100)
        table.add(pa.array([0] * piece.num_rows, pa.int32()), piece)
        table.settle()
        found = [pa.RecordBatch.from_arrays(columns, schema=schema) for columns, *_ in table.pieces(7)]
        for each in found:
            each.validate(full=True)
        assert [row for each in found for row in each.to_pylist()] == piece.to_pylist()
        kept = table.export(pa.array([0], pa.int32()))
        assert kept.select(schema.names).to_pylist() == piece.to_pylist()


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_sort_keys_of_any_type_order_as_pyarrow_does(data):
    names = data.draw(st.lists(st.sampled_from(ORDERED), min_size=1, max_size=2, unique=True))
    by = [(index, data.draw(st.booleans())) for index in range(len(names))]
    schema = pa.schema([*((name, MANY[name][0]) for name in names), ("number", pa.int64())])
    values = st.fixed_dictionaries({name: st.none() | MANY[name][1] for name in names})
    rows = [{**row, "number": i} for i, row in enumerate(data.draw(st.lists(values, max_size=30)))]
    batch = pa.RecordBatch.from_pylist(rows, schema=schema)
    orders = [
        (name, "descending" if descending else "ascending") for name, (_, descending) in zip(names, by, strict=True)
    ]
    keys = [(name, order) for name, order in orders] + [("number", "ascending")]
    comparable = batch
    for index, name in enumerate(names):  # pyarrow sorts no bools
        if name == "bool":
            comparable = comparable.set_column(index, name, comparable.column(index).cast(pa.int8()))
    expected = comparable.column(len(names)).take(pc.sort_indices(comparable, sort_keys=keys)).to_pylist()
    table = RankTable(schema, by, 100)
    table.add(pa.array([0] * len(rows), pa.int32()), batch)
    table.settle()
    table.members()
    assert [number for columns, *_ in table.pieces(100) for number in columns[-1].to_pylist()] == expected


def test_a_hot_key_with_many_rows_is_taken_apart_again_in_any_order():
    rng = random.Random(5)
    schema = pa.schema([("v", pa.int64())])
    table = RankTable(schema, [(0, False)], 3, ranked=True, changes=True)
    values = [rng.randrange(5000) for _ in range(20_000)]
    for op in (INSERT, DELETE):
        for start in range(0, len(values), 1000):
            part = values[start : start + 1000]
            ops = pa.array([op] * len(part), pa.int8())
            table.add(pa.array([0] * len(part), pa.int32()), pa.record_batch([pa.array(part)], schema=schema), ops=ops)
            table.settle()
            left = sorted(values[: start + 1000] if op == INSERT else values[start + 1000 :])
            table.members()
            assert [v for columns, *_ in table.pieces(10) for v in columns[0].to_pylist()] == left[:3]
            assert len(table) == len(left)
        rng.shuffle(values)
        if op == INSERT:
            assert sorted(table.export(pa.array([0], pa.int32())).column(0).to_pylist()) == left


@pytest.mark.parametrize("changes", [False, True])
def test_rows_of_slots_leave_and_come_back_and_nothing_is_to_be_seen(changes):
    """Equal rows, of which the newest is taken away, and whose order is that of their arrival."""
    rng = random.Random(9)
    schema = pa.schema([("slot", pa.int32()), ("v", pa.int64()), ("s", pa.string())])
    still, moved = (RankTable(schema, [(1, True)], 3, ranked=True, changes=changes) for _ in range(2))
    there = []
    for _ in range(120):
        rows = [(slot, rng.randrange(6), f"text {rng.randrange(2)}") for slot in rng.choices(range(8), k=9)]
        there += rows
        gone = [there.pop(rng.randrange(len(there))) for _ in range(7)] if changes else []
        batch = pa.RecordBatch.from_pylist(
            [dict(zip(schema.names, r, strict=True)) for r in rows + gone], schema=schema
        )
        ops = pa.array([INSERT] * len(rows) + [DELETE] * len(gone), pa.int8()) if changes else None
        told = []
        for table in (still, moved):
            table.add(batch.column(0), batch, ops=ops)
            table.settle()
            told.append([[each.to_pylist() for each in [*rows, *marks]] for rows, *marks in table.pieces(100)])
        assert told[0] == told[1]
        some = pa.array(rng.sample(range(8), 4), pa.int32())
        kept = moved.export(some)
        assert kept.equals(still.export(some))
        moved.remove(some)
        assert moved.export(some).num_rows == 0
        moved.load(kept.column(0), kept, kept.column("__number"), kept.column("__time"))
        moved.settle()
        assert len(moved) == len(still)


def test_columns_and_slots_that_do_not_fit_are_refused():
    table = RankTable(pa.schema([("v", pa.int64())]), [(0, True)], 2)
    rows = pa.record_batch([pa.array([1, 2])], names=["v"])
    with pytest.raises(TypeError, match="int32"):
        table.add(pa.array([0, 0], pa.int32()), rows.cast(pa.schema([("v", pa.int32())])))
    with pytest.raises(ValueError, match="1 slots for 2 rows"):
        table.add(pa.array([0], pa.int32()), rows)
    with pytest.raises(IndexError, match="negative"):
        table.add(pa.array([0, -1], pa.int32()), rows)
    with pytest.raises(IndexError, match="outside"):
        table.add(pa.array([0], pa.int32()), rows, selection=pa.array([2], pa.int32()))
    with pytest.raises(TypeError, match="cannot be ordered"):
        RankTable(pa.schema([("l", pa.list_(pa.int64()))]), [(0, True)], 2)


# Windows


def window_rows(seed, rows=1500):
    rng = random.Random(seed)
    times = [max(0, number * 3 + rng.randrange(-40, 40)) for number in range(rows)]
    values = [rng.choice([None, *range(30)]) for _ in range(rows)]
    columns = [[rng.randrange(8) for _ in range(rows)], values, [f"r{i}" for i in range(rows)], times]
    schema = pa.schema([("k", pa.int64()), ("v", pa.int64()), ("s", pa.string()), (TIME_COLUMN, pa.int64())])
    return pa.RecordBatch.from_arrays(
        [pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)], schema=schema
    )


WINDOWS = {
    "tumbling": (tumbling("500ms"), lambda t: [(t // 500 * 500, t // 500 * 500 + 500)]),
    "hopping": (
        hopping("600ms", "200ms"),
        lambda t: [(s, s + 600) for s in range(t // 200 * 200 - 400, t // 200 * 200 + 1, 200)],
    ),
    "cumulative": (
        cumulative("900ms", "300ms"),
        lambda t: [(t // 900 * 900, e) for e in range(t // 300 * 300 + 300, t // 900 * 900 + 901, 300)],
    ),
    "tumbling with some rows each": (tumbling("10ms"), lambda t: [(t // 10 * 10, t // 10 * 10 + 10)]),
    "hopping with some rows each": (
        hopping("30ms", "10ms"),
        lambda t: [(s, s + 30) for s in range(t // 10 * 10 - 20, t // 10 * 10 + 1, 10)],
    ),
    "cumulative with some rows each": (
        cumulative("40ms", "10ms"),
        lambda t: [(t // 40 * 40, e) for e in range(t // 10 * 10 + 10, t // 40 * 40 + 41, 10)],
    ),
}


@pytest.mark.one_in(12, "some hundredths of a second of a core each")
@pytest.mark.parametrize("ties", ["row_number", "rank", "dense_rank"])
@pytest.mark.parametrize("window", list(WINDOWS))
@pytest.mark.parametrize("parallelism", [1, 3])
def test_windows_hold_what_duckdb_says_whatever_the_batches_and_restarts(ties, window, parallelism, tmp_path):
    rng = random.Random(f"{ties}{window}")
    described, windows_of = WINDOWS[window]
    rows = window_rows(3)
    run = OperatorRun(
        lambda: WindowTopN(described, ["k"], 3, [("v", True)], ties=ties, rank="place"), rows.schema, ["k"], tmp_path, parallelism
    )  # fmt: skip
    start = 0
    while start < rows.num_rows:
        size = rng.choice([1, 50, 400])
        run.feed(rows.slice(start, size))
        start += size
        run.advance(start * 3 - 120)
        if rng.random() < 0.15:
            run.restart(rng.choice([1, 2, 3]) if parallelism > 1 else 1)
    run.end()
    numbers = ["k", "v", "i", "ws", "we"]
    exploded = pa.Table.from_pylist(
        [
            {"k": row["k"], "v": row["v"], "s": row["s"], "i": i, "ws": s, "we": e}
            for i, row in enumerate(rows.to_pylist())
            for s, e in windows_of(row[TIME_COLUMN])
        ],
        schema=pa.schema([("s", pa.string()), *((name, pa.int64()) for name in numbers)]),
    )
    order = "order by v desc nulls last" + (", i" if ties == "row_number" else "")
    expected = (
        duckdb.from_arrow(exploded)
        .query(
            "exploded",
            f"select k, v, s, ws, we, place from (select *, {ties}() over (partition by k, ws, we {order}) as place "
            "from exploded) where place <= 3",
        )
        .fetchall()
    )
    got = [
        (
            row["k"],
            row["v"],
            row["s"],
            round(row["window_start"].timestamp() * 1000),
            round(row["window_end"].timestamp() * 1000),
            row["place"],
        )
        for row in run.results
    ]
    assert Counter(got) == Counter(expected)
    assert all(row[TIME_COLUMN] == round(row["window_end"].timestamp() * 1000) - 1 for row in run.results)
    assert run.late == []
    assert run.statistic("rows") == 0


@pytest.mark.parametrize("ties", ["row_number", "rank", "dense_rank"])
def test_panes_together_are_as_if_all_rows_had_come_to_one_table(ties):
    rng = random.Random(ties)
    schema = pa.schema([("v", pa.int64()), ("s", pa.string()), ("k", pa.int64())])
    for by in ([(0, True)], [(1, False), (0, False)]):
        panes = [RankTable(schema, by, 3, ties=ties) for _ in range(5)]
        one, merged = RankTable(schema, by, 3, ties=ties), RankTable(schema, by, 3, ties=ties)
        for start in range(0, 400, 20):
            slots = [rng.randrange(4) for _ in range(20)]
            rows = [{"v": rng.choice([None, *range(6)]), "s": rng.choice(["x", "y", None]), "k": k} for k in slots]
            data = pa.RecordBatch.from_pylist(rows, schema=schema)
            one.add(pa.array(slots, pa.int32()), data)
            pane_of = [rng.randrange(5) for _ in rows]
            for number, pane in enumerate(panes):
                chosen = [i for i in range(20) if pane_of[i] == number]
                mine = pa.array([3 - slots[i] for i in chosen], pa.int32())  # a pane has slots of its own
                pane.add(mine, data, selection=pa.array(chosen, pa.int32()), arrival=start)
        for pane in panes:
            merged.absorb(pane, pa.array([3, 2, 1, 0], pa.int32()))
        said = []
        for table in (one, merged):
            table.members()
            ((columns, ranks, _, _),) = table.pieces(1000)
            said.append([column.to_pylist() for column in (*columns, ranks)])
        assert said[0] == said[1]
        assert len(said[0][0]) >= 12
    with pytest.raises(ValueError, match="another table"):
        merged.absorb(merged, pa.array([0], pa.int32()))
    with pytest.raises(ValueError, match="rows of its own"):
        one.absorb(merged, pa.array([0], pa.int32()))
    with pytest.raises(ValueError, match="rows cannot be added"):
        merged.add(pa.array([0] * 20, pa.int32()), data)
    with pytest.raises(IndexError, match="1 slots for a table that has 4"):
        merged.absorb(panes[0], pa.array([0], pa.int32()))


def test_windows_without_keys_have_one_group(tmp_path):
    rows = window_rows(4, rows=200)
    run = OperatorRun(lambda: WindowTopN(hopping("200ms", "100ms"), [], 2, [("v", True)]), rows.schema, [], tmp_path)
    run.feed(rows, 50)
    run.restart(1)
    run.end()
    windows = Counter(row["window_end"] for row in run.results)
    assert set(windows.values()) == {2}
    every = rows.to_pylist()
    for end in windows:
        ms = round(end.timestamp() * 1000)
        there = [row["v"] for row in every if ms - 200 <= row[TIME_COLUMN] < ms and row["v"] is not None]
        assert [row["v"] for row in run.results if row["window_end"] == end] == sorted(there, reverse=True)[:2]


def test_a_late_row_goes_to_the_side_and_one_within_the_lateness_emits_its_key_again(tmp_path):
    def rows(*values):
        schema = pa.schema([("k", pa.int64()), ("v", pa.int64()), (TIME_COLUMN, pa.int64())])
        return pa.RecordBatch.from_pylist([dict(zip(schema.names, v, strict=True)) for v in values], schema=schema)

    run = OperatorRun(
        lambda: WindowTopN(tumbling("100ms"), ["k"], 1, [("v", True)], allowed_lateness_ms=50),
        rows().schema,
        ["k"],
        tmp_path,
    )
    run.feed(rows((1, 5, 10), (2, 7, 20)))
    run.advance(110)
    assert [(row["k"], row["v"]) for row in run.results] == [(1, 5), (2, 7)]
    run.batches.clear()
    run.feed(rows((1, 6, 30)))
    run.restart(1)
    run.advance(120)
    assert [(row["k"], row["v"]) for row in run.results] == [(1, 6)]
    run.batches.clear()
    run.advance(150)
    run.feed(rows((1, 9, 40)))
    run.restart(2)
    run.end()
    assert run.results == []
    assert run.late == [{"k": 1, "v": 9}]
    assert run.statistic("late_rows") == 1


@pytest.mark.one_in(6, "half a second of a core each")
@pytest.mark.parametrize("keys", [[], ["k"]], ids=["no keys", "keys"])
@pytest.mark.parametrize("window", [name for name in WINDOWS if "some rows" in name])
def test_rows_that_share_a_table_are_those_of_a_table_for_each_pane(window, keys, tmp_path, monkeypatch):
    def results(few):
        rng, found = random.Random(5), []
        with monkeypatch.context() as patched:
            if not few:
                patched.setattr(top, "few_rows", lambda shape: 0)
            run = OperatorRun(
                lambda: WindowTopN(WINDOWS[window][0], keys, 2, [("v", True)], rank="place", allowed_lateness_ms=60),
                window_rows(6).schema, keys, tmp_path / str(few),
            )  # fmt: skip
            rows = window_rows(6)
            for start in range(0, rows.num_rows, 60):
                run.feed(rows.slice(start, 60))
                run.advance(start * 3 + 100)  # later than some of the rows that come next
                if start % 300 == 240:
                    run.restart(rng.choice([1, 2]) if keys else 1)
                found.append(([row["window_end"] for row in run.results], sorted(map(str, run.results))))
                run.batches.clear()
            run.end()
        return found, sorted(map(str, run.results)), run.late, run.statistic("late_rows")

    assert results(True) == results(False)


def test_what_is_kept_and_what_it_consists_of_is_told(tmp_path):
    run = OperatorRun(lambda: TopN(["k"], 1, [("v", True)], rank="place"), TIMED, ["k"], tmp_path)
    run.feed(batch_of([(1, 1.0, "a"), (2, 2.0, "b"), (2, 1.0, "c")]))
    kept = [row for batch in run.parts[0].contents() for row in batch.to_pylist()]
    assert kept == [{"k": 1, "v": 1.0, "s": "a"}, {"k": 2, "v": 2.0, "s": "b"}]
    told = run.parts[0].state_schema()
    assert told["kind"] == "top_n"
    assert told["by"] == [["v", "descending"]]
    assert told["keys"] == [["k", "int64"]]
    assert run.checkpoint()[0].facts["groups"] == 2
    assert run.parts[0].state_reader()["n"] == 1
    windows = OperatorRun(
        lambda: WindowTopN(tumbling("1s"), ["k"], 1, [("v", True)]), TIMED, ["k"], tmp_path / "windows"
    )
    windows.feed(batch_of([(1, 1.0, "a"), (1, 2.0, "b")]))
    assert [row["s"] for batch in windows.parts[0].contents() for row in batch.to_pylist()] == ["b"]
    assert windows.parts[0].state_schema()["window"]
    assert windows.parts[0].state_reader()["allowed_lateness"] == 0
    windows.advance(END_OF_TIME)
