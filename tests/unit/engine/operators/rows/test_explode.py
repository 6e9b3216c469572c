"""A row for each value of a list, compared with polars."""

import json
import random
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

import sabot
from sabot import App, DataError, NdjsonSink, Stream, UserError, col, files
from sabot.engine.operators.rows import exploded

KINDS: list[pa.DataType] = [
    pa.list_(pa.int64()),
    pa.list_(pa.string()),
    pa.large_list(pa.list_(pa.bool_())),
    pa.list_(pa.float64(), 2),
]
VALUES: dict[pa.DataType, list[Any]] = {
    KINDS[0]: [1, -2, None],
    KINDS[1]: ["a", "", None],
    KINDS[2]: [[True, None], [], None],
    KINDS[3]: [0.5, None],
}


def drawn(kind: pa.DataType, rows: int, seed: int) -> pa.Table:
    seeded = random.Random(seed)

    def a_list() -> Any:
        size = 2 if pa.types.is_fixed_size_list(kind) else seeded.choice([0, 1, 2, 5])
        return None if seeded.random() < 0.2 else [seeded.choice(VALUES[kind]) for _ in range(size)]

    lists = pa.array([a_list() for _ in range(rows)], kind)
    twice = pa.array([None if v is None else [str(x) for x in v] for v in lists.to_pylist()], pa.list_(pa.string()))
    return pa.table({"id": range(rows), "v": lists, "s": [f"row {i}" for i in range(rows)], "w": twice})


def read(tmp_path: Path, data: pa.Table, **options: Any) -> Stream:
    parquet.write_table(data, tmp_path / "lists.parquet", row_group_size=37)
    return App("lists", **options).stream(
        files(tmp_path / "lists.parquet"), dead_letter=NdjsonSink(tmp_path / "bad.ndjson")
    )


def same(stream: Stream, expected: pl.DataFrame) -> None:
    made = pl.from_arrow(stream.collect())
    assert isinstance(made, pl.DataFrame)
    assert made.sort("id", maintain_order=True).rows() == expected.sort("id", maintain_order=True).rows()


@pytest.mark.parametrize("parallelism", [1, 2])
def test_rows_of_updated_lists_are_those_of_the_last_lists(tmp_path: Path, parallelism: int) -> None:
    data = pa.table({"k": [n % 5 for n in range(200)], "x": [n % 7 if n % 3 else None for n in range(200)]})
    parquet.write_table(data, tmp_path / "rows.parquet", row_group_size=11)
    rows = App("lists", parallelism=parallelism).stream(files(tmp_path / "rows.parquet"))
    lists = rows.group_by("k").aggregate(n=sabot.count(), x=sabot.collect_list("x"))
    changes = lists.filter(col("n") % 4 != 0).explode("x")  # the list of a key comes and goes
    assert changes.changes
    made = sorted(map(repr, changes.materialize().collect().to_pylist()))
    assert made == sorted(map(repr, lists.filter(col("n") % 4 != 0).materialize().explode("x").collect().to_pylist()))
    assert not made, "each key has 40 rows in the end"
    made = sorted(map(repr, lists.explode("x").materialize().collect().to_pylist()))
    assert made == sorted(repr({"k": k, "n": 40, "x": x}) for k, x in zip(*data.to_pydict().values(), strict=True))


@pytest.mark.one_in(3, "a tenth of a second of a core each")
@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("parallelism", [1, 2])
def test_rows_are_those_of_polars(tmp_path: Path, kind: pa.DataType, parallelism: int) -> None:
    data = drawn(kind, 200, 15)
    frame = pl.from_arrow(data)
    assert isinstance(frame, pl.DataFrame)
    if pa.types.is_fixed_size_list(kind):
        frame = frame.with_columns(pl.col("v").arr.to_list())
    rows = read(tmp_path, data, parallelism=parallelism)
    same(rows.select("id", "v").explode("v"), frame.select("id", "v").explode("v"))
    same(rows.filter(col("id") % 3 == 1).explode("w"), frame.filter(pl.col("id") % 3 == 1).explode("w"))
    same(rows.explode("v", "w"), frame.explode("v", "w"))
    for empty, nulls in [(True, True), (True, False), (False, False)]:
        how = {"empty_as_null": empty, "keep_nulls": nulls}
        same(rows.explode("v", "w", **how), frame.explode("v", "w", **how))
    same(rows.explode(["w"]).filter(col("id") > 150).drop("w"), frame.explode("w").filter(pl.col("id") > 150).drop("w"))


def test_many_rows_of_one_come_in_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exploded, "CHUNK_ROWS", 7)
    data = drawn(KINDS[1], 100, 3)
    frame = pl.from_arrow(data)
    assert isinstance(frame, pl.DataFrame)
    same(read(tmp_path, data).explode("v", "w"), frame.explode("v", "w"))


def test_a_slice_of_lists_has_its_own_values(tmp_path: Path) -> None:
    lists = pa.array([[1, 2], [3], None, [], [4, 5, 6]], pa.list_(pa.int64()))
    table = pa.table({"id": range(3), "v": lists.slice(1, 3)})
    assert read(tmp_path, table).explode("v").collect().to_pylist() == [
        {"id": 0, "v": 3},
        {"id": 1, "v": None},
    ]


def test_rows_keep_their_event_time_and_windows_count_them(tmp_path: Path) -> None:
    lines = [{"ts": 0, "tags": ["a", "b"]}, {"ts": 61_000, "tags": ["a", "a"]}, {"ts": 62_000, "tags": []}]
    (tmp_path / "a.ndjson").write_text("".join(json.dumps(line) + "\n" for line in lines))
    tags = App("tags").stream(files(tmp_path / "a.ndjson"), time="ts").explode("tags")
    counts = tags.key_by("tags").window(sabot.tumbling("1m")).aggregate(n=sabot.count()).select("tags", "n").collect()
    assert sorted(map(repr, counts.to_pylist())) == [
        repr(row) for row in [{"tags": "a", "n": 1}, {"tags": "a", "n": 2}, {"tags": "b", "n": 1}]
    ]


async def test_a_row_whose_lists_differ_in_length_is_a_dead_letter(tmp_path: Path) -> None:
    data = pa.table({"id": [0, 1, 2], "v": [[1, 2], [1, 2], [3]], "w": [["a", "b"], ["a"], ["c"]]})
    rows = read(tmp_path, data)
    with pytest.raises(DataError, match=r"explode: the lists of a row differ in length: 'v' 2, 'w' 1"):
        rows.explode("v", "w").collect()
    nulls = rows.on_error("null").explode("v", "w").collect()
    assert nulls.to_pylist()[2] == {"id": 1, "v": None, "w": None}
    assert nulls.num_rows == 4


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (lambda s: s.explode(), "explode needs columns of lists"),
        (lambda s: s.explode("v", "v"), "explode needs columns of lists, each once"),
        (lambda s: s.explode("x"), "explode: there is no column 'x'"),
        (lambda s: s.explode("s").collect(), r"explode: column 's' is string, not a list .*str\.split"),
    ],
)
def test_what_cannot_be_exploded_is_refused(tmp_path: Path, write: Any, said: str) -> None:
    rows = read(tmp_path, drawn(KINDS[0], 3, 1)).select("id", "v", "s")
    with pytest.raises(UserError, match=said):
        write(rows)
