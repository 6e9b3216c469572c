"""Decimals through a stream, from JSON to sinks: as keys, in aggregates and joins, against DuckDB over all rows at once."""

import json
import random
import sqlite3
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from harness import database, until

import sabot
from sabot import App, CsvSink, NdjsonSink, ParquetSink, SqlSink, Stream, col, files, tumbling
from sabot._cython.text.json import encode_rows
from sabot.codecs.records import encode_json
from sabot.testing import ListSink, MemoryBroker

PRICES = ["1.50", "1.5", "15e-1", "-0.00", "0", "99999999.99", "-7.25", None]
SCHEMA = {"id": "int64", "price": "decimal(10, 2)", "paid": "decimal(23,3)", "ts": "int64"}


def drawn(seed: int, rows: int = 120) -> list[dict[str, Any]]:
    seeded = random.Random(seed)
    return [
        {
            "id": i,
            "price": seeded.choice(PRICES),
            "paid": f"{seeded.randrange(-(10**9), 10**9)}.{seeded.randrange(1000):03}",
            "ts": i * 1000,
        }
        for i in range(rows)
    ]


class Case:
    def __init__(self, tmp_path: Path, seed: int, parallelism: int) -> None:
        path = tmp_path / "paid.ndjson"
        path.write_text("".join(json.dumps(row) + "\n" for row in drawn(seed)))
        self.app = App("paid", parallelism=parallelism)
        self.paid = self.app.stream(files(path), schema=SCHEMA, time="ts", lateness="1h")
        self.database = database().cursor()
        columns = "{id: 'bigint', price: 'varchar', paid: 'varchar', ts: 'bigint'}"
        self.database.execute(
            "create temp table paid as select id, price::decimal(10, 2) as price, paid::decimal(23, 3) as paid, ts "
            f"from read_json('{path}', format='newline_delimited', columns={columns})"
        )

    def agrees(self, stream: Stream, query: str) -> None:
        made = stream.collect()
        found = self.database.sql(f"select {', '.join(made.column_names)} from ({query})").fetchall()
        assert sorted(map(repr, zip(*made.to_pydict().values(), strict=True))) == sorted(map(repr, found))


@pytest.fixture(params=[(1, 1), (2, 2)], ids=["one", "two"])
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Case:
    return Case(tmp_path, *request.param)


AGGREGATES: dict[str, Any] = {
    "n": sabot.count(),
    "total": sabot.sum("paid"),
    "least": sabot.min("paid"),
    "most": sabot.max("price"),
    "kinds": sabot.count_distinct("paid"),
}
IN_SQL = "count(*) as n, sum(paid) as total, min(paid) as least, max(price) as most, count(distinct paid) as kinds"


@pytest.mark.one_in(2, "a tenth of a second of a core each")
def test_groups_and_windows_by_decimals(case: Case) -> None:
    case.agrees(case.paid.group_by("price").aggregate(**AGGREGATES), f"select price, {IN_SQL} from paid group by price")
    windows = (
        case.paid.key_by("price").window(tumbling("30s")).aggregate(**AGGREGATES).drop("window_start", "window_end")
    )
    case.agrees(windows, f"select price, {IN_SQL} from paid group by price, ts // 30000")
    both = case.paid.group_by("price", even=col("id") % 2).aggregate(n=sabot.count())
    case.agrees(both, "select price, id % 2 as even, count(*) as n from paid group by all")


SUMS: dict[str, Any] = {
    "total": sabot.sum("paid"),
    "of_prices": sabot.sum("price"),
    "of_some": sabot.sum("paid").filter(col("price") > 0),
    "doubled": sabot.sum(col("price") * 2),
}
SUMS_IN_SQL = (
    "sum(paid) over w as total, sum(price) over w as of_prices, sum(paid) filter (price > 0) over w as of_some, "
    "sum(price * 2) over w as doubled"
)
FRAMES: dict[int | str | None, str] = {
    None: "rows unbounded preceding",
    0: "rows between 0 preceding and current row",
    5: "rows between 5 preceding and current row",
    "20s": "range between 20000 preceding and current row",
}


@pytest.mark.one_in(3, "some hundredths of a second of a core each")
@pytest.mark.parametrize("preceding", FRAMES)
def test_sums_of_the_rows_around_a_row(case: Case, preceding: Any) -> None:
    rows = case.paid.with_columns(even=col("id") % 2).key_by("even").over(preceding=preceding, **SUMS)
    window = f"(partition by id % 2 order by ts {FRAMES[preceding]})"
    case.agrees(rows.select("id", *SUMS), f"select id, {SUMS_IN_SQL} from paid window w as {window}")


@pytest.mark.parametrize("ttl", [None, "1h"])
def test_running_sums(tmp_path: Path, ttl: Any) -> None:
    case = Case(tmp_path, 3, 1)
    rows = case.paid.with_columns(even=col("id") % 2).key_by("even").aggregate(ttl=ttl, id=sabot.max("id"), **SUMS)
    window = "(partition by id % 2 order by id)"
    case.agrees(rows.drop("even"), f"select id, {SUMS_IN_SQL} from paid window w as {window}")


PICKED: dict[str, Any] = {
    "least": sabot.min("price"),
    "most": sabot.max("price"),
    "least_of_some": sabot.min("price").filter(col("price") > 0),
    "opened": sabot.first("price"),
    "closed": sabot.last("price"),
    "began": sabot.first("paid"),
    "ended": sabot.last("paid"),
}
PICKED_IN_SQL = (
    "min(price) over w as least, max(price) over w as most, min(price) filter (price > 0) over w as least_of_some, "
    "first_value(price) over w as opened, last_value(price) over w as closed, first_value(paid) over w as began, "
    "last_value(paid) over w as ended"
)


@pytest.mark.one_in(3, "some hundredths of a second of a core each")
@pytest.mark.parametrize("preceding", FRAMES)
def test_values_picked_of_the_rows_around_a_row(case: Case, preceding: Any) -> None:
    rows = case.paid.with_columns(even=col("id") % 2).key_by("even").over(preceding=preceding, **PICKED)
    window = f"(partition by id % 2 order by ts {FRAMES[preceding]})"
    case.agrees(rows.select("id", *PICKED), f"select id, {PICKED_IN_SQL} from paid window w as {window}")


@pytest.mark.parametrize("ttl", [None, "1h"])
def test_running_values_that_are_picked(tmp_path: Path, ttl: Any) -> None:
    """They were refused: decimals have no accumulator of fixed width, but their words do."""
    case = Case(tmp_path, 3, 1)
    rows = case.paid.with_columns(even=col("id") % 2).key_by("even").aggregate(ttl=ttl, id=sabot.max("id"), **PICKED)
    case.agrees(
        rows.drop("even"), f"select id, {PICKED_IN_SQL} from paid window w as (partition by id % 2 order by id)"
    )


@pytest.mark.one_in(3, "a tenth of a second of a core each")
@pytest.mark.parametrize("kind", ["decimal(18, 4)", "decimal(19, 4)", "decimal(38, 2)", "decimal(76, 10)"])
def test_values_are_picked_to_the_last_digit(tmp_path: Path, kind: str) -> None:
    digits, scale = (int(each) for each in kind[8:-1].split(","))
    values = [Decimal(sign * 10 ** (digits - 1) + n).scaleb(-scale) for n, sign in enumerate([1, -1, 1, -1])]
    table = pa.table(
        {
            "k": [1] * 4,
            "x": pa.array(values, pa.decimal256(digits, scale) if digits > 38 else pa.decimal128(digits, scale)),
            "ts": range(4),
        }
    )
    parquet.write_table(table, tmp_path / "x.parquet")
    rows = App("digits").stream(files(tmp_path / "x.parquet"), time="ts").key_by("k")
    picked: dict[str, Any] = {"opened": sabot.first("x"), "closed": sabot.last("x")}
    for made in (rows.aggregate(**picked), rows.over(**picked), rows.over(preceding=1, **picked)):
        assert made.collect()["closed"].to_pylist() == values
    bounds: dict[str, Any] = {"least": sabot.min("x"), "most": sabot.max("x")}
    if digits <= 18:
        for made in (rows.aggregate(**bounds), rows.over(**bounds)):
            found = made.collect()
            assert found["least"].to_pylist() == [min(values[: n + 1]) for n in range(4)]
            assert found["most"].to_pylist() == [max(values[: n + 1]) for n in range(4)]
        return
    for refused in (lambda: rows.aggregate(**bounds).collect(), lambda: rows.over(**bounds).collect()):
        with pytest.raises(sabot.UserError) as error:
            refused()
        assert "of up to 18 digits" in error.value.hint


@pytest.mark.one_in(3, "some hundredths of a second of a core each")
@pytest.mark.parametrize("preceding", FRAMES)
def test_the_mean_of_the_rows_around_a_row_is_rounded_once(case: Case, preceding: Any) -> None:
    """It added the nearest floats of the decimals, and so was off in the last digits."""
    asked: dict[str, Any] = {"n": sabot.count("paid"), "total": sabot.sum("paid"), "mean": sabot.mean("paid")}
    rows = case.paid.with_columns(even=col("id") % 2).key_by("even").over(preceding=preceding, **asked)
    found = rows.select(*asked).collect().to_pylist()
    assert len(found) == 120
    for row in found:
        assert row["mean"] == float(Fraction(row["total"]) / row["n"])


@pytest.mark.one_in(3, "a tenth of a second of a core each")
@pytest.mark.parametrize("way", ["running", "ttl", "over", "frame"])
async def test_running_sums_go_on_behind_a_restart_beside_those_that_are_new(
    memory_url: str, tmp_path: Path, way: str
) -> None:
    """A column of more digits goes on too; a mean that was there keeps its own state."""
    paid = ["99999999.99", "-0.01", None, "12345678.90", "5.00"]

    def life(kind: str, rows: list[int], **more: Any) -> tuple[App, ListSink]:
        app, out = App("lives", memory_url, checkpoint_dir=tmp_path), ListSink()
        app.configure(checkpoint_interval="20ms")
        schema = {"n": "int64", "x": kind, "ts": "int64"}
        stream = app.stream("paid", schema=schema, time="ts", idle="50ms", idle_closes=True)
        stream, said = stream.with_columns(k=sabot.lit(0)), {"id": sabot.max("n"), **more}
        over = stream.key_by("k").over
        {
            "running": lambda: stream.key_by("k").aggregate(**said),
            "ttl": lambda: stream.key_by("k").aggregate(ttl="1h", **said),
            "over": lambda: over(**said),
            "frame": lambda: over(preceding=10, **said),
        }[way]().to(out)
        MemoryBroker.get(memory_url).publish("paid", [{"n": n, "x": paid[n], "ts": n} for n in rows])
        return app, out

    async def lived(made: tuple[App, ListSink], rows: int) -> dict[int, Any]:
        app, out = made
        await app.start()
        await until(lambda: len(out.rows) == rows, "the rows")
        await app.stop()
        return {row["id"]: row for row in out.rows}

    mean = {"mean": sabot.mean("x")}
    await lived(life("decimal(10, 2)", [0], **mean), 1)
    second = await lived(life("decimal(10, 2)", [1, 2], **mean, total=sabot.sum("x")), 2)
    assert [second[n]["total"] for n in (1, 2)] == [Decimal("-0.01")] * 2, "it begins empty"
    assert second[2]["mean"] == pytest.approx(49999999.99, rel=1e-15)  # over adds floats for it
    third = await lived(
        life("decimal(20, 2)", [3, 4], total=sabot.sum("x"), few=sabot.sum("x").filter(col("n") > 3)), 2
    )
    assert [third[n]["total"] for n in (3, 4)] == [Decimal("12345678.89"), Decimal("12345683.89")]
    assert [third[n]["few"] for n in (3, 4)] == [None, Decimal("5.00")]


async def test_a_mean_of_a_column_of_more_digits_is_refused_by_name_of_what_to_do(
    memory_url: str, tmp_path: Path
) -> None:
    out = ListSink()

    def life(kind: str, **more: Any) -> App:
        app = App("lives", memory_url, checkpoint_dir=tmp_path)
        stream = app.stream("paid", schema={"k": "int64", "x": kind})
        stream.key_by("k").aggregate(mean=sabot.mean("x"), **more).to(out)
        return app

    app = life("decimal(10, 2)")
    MemoryBroker.get(memory_url).publish("paid", [{"k": 1, "x": "1.00"}])
    await app.start()
    await until(lambda: out.rows, "a mean, whose state is lost")
    await app.stop()
    with pytest.raises(sabot.UserError, match=r"decimals of scale 2 in 64 bits, is exact .* in 128 bits") as refused:
        await life("decimal(20, 2)", total=sabot.sum("x")).start()
    assert "--drop aggregate-1.mean" in refused.value.hint


@pytest.mark.parametrize("kind", ["decimal(38, 2)", "decimal(76, 2)"])
def test_a_running_sum_of_too_many_digits_is_an_error(tmp_path: Path, kind: str) -> None:
    digits = int(kind[8:10]) - 2
    path = tmp_path / "much.ndjson"
    path.write_text(f'{{"x": "{"9" * digits}.99"}}\n{{"x": "-0.01"}}\n{{"x": "0.02"}}\n')
    stream = App("much").stream(files(path), schema={"x": kind}).with_columns(k=sabot.lit(0))
    least = stream.filter(col("x") < 1).key_by("k").aggregate(total=sabot.sum("x")).collect()
    assert least["total"].to_pylist() == [Decimal("-0.01"), Decimal("0.01")]
    with pytest.raises(sabot.DataError, match="total: a sum of 'x' is more than decimal"):
        stream.key_by("k").aggregate(total=sabot.sum("x")).collect()


OVERFLOWING: dict[str, Any] = {
    "running": lambda rows: rows.key_by("k").aggregate(total=sabot.sum("x")),
    "with ttl": lambda rows: rows.key_by("k").aggregate(total=sabot.sum("x"), ttl="1h"),
    "over": lambda rows: rows.key_by("k").over(total=sabot.sum("x")),
    "over a frame": lambda rows: rows.key_by("k").over(total=sabot.sum("x"), preceding=5),
    "window": lambda rows: rows.key_by("k").window(tumbling("1h")).aggregate(total=sabot.sum("x")),
    "session": lambda rows: rows.key_by("k").window(sabot.session("1h")).aggregate(total=sabot.sum("x")),
    "group": lambda rows: rows.group_by("k").aggregate(total=sabot.sum("x")),
    "changes": lambda rows: rows.key_by("id").top_n(1, by="x").group_by("k").aggregate(total=sabot.sum("x")),
}


@pytest.mark.one_in(3, "hundredths of a second of a core each")
@pytest.mark.parametrize("how", OVERFLOWING)
def test_a_sum_of_too_many_digits_names_the_key_the_column_and_the_aggregate(tmp_path: Path, how: str) -> None:
    path, nines = tmp_path / "much.ndjson", "9" * 36
    lines = [
        f'{{"id": {n}, "k": "{k}", "x": "{x}.99", "ts": {n}}}'
        for n, (k, x) in enumerate([("a", "1"), ("full", nines), ("b", nines), ("full", nines), ("a", "2")])
    ]
    path.write_text("\n".join(lines) + "\n")
    schema = {"id": "int64", "k": "string", "x": "decimal(38, 2)", "ts": "int64"}
    rows = App("much").stream(files(path), schema=schema, time="ts")
    with pytest.raises(
        sabot.DataError, match=r"total: a sum of 'x' is more than decimal128\(38, 2\) holds: its key is k='full'"
    ):
        OVERFLOWING[how](rows).collect()


def test_the_first_rows_of_decimals(case: Case) -> None:
    case.agrees(case.paid.deduplicate("price").select("price"), "select distinct price from paid")
    best = case.paid.key_by("price").top_n(1, by="paid").select("price", "paid")
    case.agrees(best, "select price, max(paid) as paid from paid group by price")


@pytest.mark.one_in(3, "some hundredths of a second of a core each")
@pytest.mark.parametrize("how", ["inner", "left", "full", "anti"])
def test_joins_on_decimals(case: Case, how: Any) -> None:
    cheap = case.paid.filter(col("price") < 5).select("price", other="id")
    joined = case.paid.select("id", "price").join(cheap, on="price", how=how)
    names = "id, price" if how == "anti" else "id, price, other"
    case.agrees(
        joined,
        f"select {names} from paid {how} join (select price, id as other from paid where price < 5) using (price)",
    )


def test_lookups_by_decimals(case: Case) -> None:
    table = case.paid.key_by("price").top_n(1, by="id").select("price", last="id")
    found = case.paid.select("id", "price").join(table, on="price")
    case.agrees(found, "select id, price, max(id) over (partition by price) as last from paid where price is not null")
    near = case.paid.select("id", "price", "ts").join_asof(case.paid.select("price", "ts", same="id"), on="price")
    case.agrees(near.select("id", "same"), "select id, case when price is null then null else id end as same from paid")


def test_functions_and_rows_around_see_decimals(case: Case) -> None:
    doubled = case.paid.key_by("price").process(
        lambda row, ctx: {"price": ctx.key, "twice": 2 * row["paid"]},
        schema={"price": "decimal(10, 2)", "twice": "decimal(23, 3)"},
    )
    case.agrees(doubled, "select price, 2 * paid as twice from paid")
    around = (
        case.paid.key_by("price")
        .over(before=sabot.lag("paid"), place=sabot.row_number())
        .select("id", "before", "place")
    )
    case.agrees(
        around,
        "select id, lag(paid) over w as before, row_number() over w as place from paid window w as (partition by price order by ts)",
    )


async def test_sinks_have_every_digit(case: Case, tmp_path: Path) -> None:
    rows = case.paid.filter(col("id") < 20).select("id", "price")
    expected = case.database.sql("select id, price from paid where id < 20 order by id").fetchall()
    texts = [(number, None if price is None else str(price)) for number, price in expected]
    rows.to(NdjsonSink(tmp_path / "out.ndjson"))
    rows.to(ParquetSink(tmp_path / "out.parquet"))
    rows.to(CsvSink(tmp_path / "out.csv"))
    rows.to(SqlSink(f"sqlite:///{tmp_path}/out.db", "paid"))
    await case.app.run()
    lines = (tmp_path / "out.ndjson").read_text().splitlines()
    assert sorted(tuple(json.loads(line, parse_float=str).values()) for line in lines) == texts
    table = parquet.read_table(tmp_path / "out.parquet").sort_by("id")
    assert list(zip(*table.to_pydict().values(), strict=True)) == expected
    again = App("again").stream(files(tmp_path / "out.csv"), schema={"id": "int64", "price": "decimal(10, 2)"})
    assert sorted(map(repr, again.collect().to_pylist())) == sorted(repr({"id": i, "price": p}) for i, p in expected)
    with sqlite3.connect(tmp_path / "out.db") as database:
        assert database.execute("select id, price from paid order by id").fetchall() == texts
    database.close()


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.ndjson"
    path.write_text('{"price": 1.505}\n{"price": 2}\n{"price": "n/a"}\n')
    prices = App("prices").stream(
        files(path), schema={"price": "decimal(10, 2)"}, dead_letter=NdjsonSink(tmp_path / "bad.ndjson")
    )
    assert prices.collect()["price"].to_pylist() == [Decimal(2)]
    with pytest.raises(
        sabot.UserError,
        match=r"'price' is decimal128\(10, 2\) on the left, 'price' is decimal128\(12, 3\) on the right",
    ):
        prices.join(prices.select(price=col("price").cast("decimal(12, 3)")), on="price").collect()


def test_streams_read_decimals_as_agents_and_as_streams_write_them(tmp_path: Path) -> None:
    """An agent's are text, as in journals; a stream's are numbers."""
    of_agent = encode_json({"price": Decimal("1.10")})
    assert of_agent == b'{"price":"1.10"}'
    of_stream = encode_rows(pa.record_batch({"price": pa.array([Decimal("1.10")])}))[0].as_py()
    assert of_stream == b'{"price":1.10}'
    path = tmp_path / "both.ndjson"
    path.write_bytes(of_agent + b"\n" + of_stream + b"\n")
    read = App("both").stream(files(path), schema={"price": "decimal(10, 2)"}).collect()
    assert read["price"].to_pylist() == [Decimal("1.10")] * 2
