"""Means of decimals: the exact sum, divided once, wherever means are made but in `over`."""

import random
from decimal import Decimal
from fractions import Fraction

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import sabot
from sabot import App, col, count_window, cumulative, hopping, session, tumbling
from sabot.engine.operators.aggregates.aggregator import (
    AggregateColumn,
    Aggregator,
    aggregates_reader,
    aggregates_schema,
)
from sabot.engine.operators.aggregates.decimals import decimal_means, part_count, part_of
from sabot.engine.operators.aggregates.migration import aggregate_verdicts
from sabot.engine.operators.readers import described

KINDS = [pa.decimal128(10, 2), pa.decimal128(18, 18), pa.decimal128(19, 2), pa.decimal128(38, 20), pa.decimal256(76, 9)]
MEAN = {"m": sabot.mean("x")}
WAYS = {
    "group_by": lambda s: s.group_by("k").aggregate(**MEAN),
    "group_by of changes": lambda s: s.upsert("ts").group_by("k").aggregate(**MEAN),
    "tumbling": lambda s: s.key_by("k").window(tumbling("1m")).aggregate(**MEAN),
    "tumbling without keys": lambda s: s.window(tumbling("1m")).aggregate(**MEAN),
    "hopping": lambda s: s.key_by("k").window(hopping("1m", "30s")).aggregate(**MEAN),
    "cumulative": lambda s: s.key_by("k").window(cumulative("1m", "20s")).aggregate(**MEAN),
    "session": lambda s: s.key_by("k").window(session("5s")).aggregate(**MEAN),
    "count_window": lambda s: s.key_by("k").window(count_window(3)).aggregate(**MEAN),
    "running": lambda s: s.key_by("k").aggregate(**MEAN),
    "running with ttl": lambda s: s.key_by("k").aggregate(ttl="1m", **MEAN),
}


@pytest.mark.one_in(3, "hundredths of a second of a core each")
@pytest.mark.parametrize("way", WAYS)
def test_a_mean_of_decimals_is_exact(tmp_path, way):
    values = pa.array(map(Decimal, ["12345678901234567.11", "0", "-12345678901234567.00"]), pa.decimal128(19, 2))
    rows = pa.table({"k": ["a"] * 3, "x": values, "ts": [0, 1000, 2000]})
    pq.write_table(rows, tmp_path / "x.parquet")
    made = WAYS[way](App("means").stream(sabot.files(tmp_path / "x.parquet"), time="ts")).collect()["m"].to_pylist()
    assert 0.11 / 3 in made


def test_a_mean_forgets_rows_and_passes_over_others(tmp_path):
    values = pa.array(map(Decimal, ["99999999999999999.99", "1.10", "2.20", "9.00"]), pa.decimal128(19, 2))
    pq.write_table(pa.table({"id": [1, 1, 2, 3], "x": values}), tmp_path / "x.parquet")
    rows = App("means").stream(sabot.files(tmp_path / "x.parquet")).upsert("id")
    made = rows.group_by().aggregate(
        m=sabot.mean("x"), few=sabot.mean("x").filter(col("id") < 3), none=sabot.mean("x").filter(col("id") > 3)
    )
    assert made.collect().to_pylist()[-1] == {"m": 4.1, "few": 1.65, "none": None}


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_means_are_the_floats_nearest_to_the_exact_ones(kind):
    dice = random.Random(8)
    most = 10**kind.precision - 1
    for span in (1, 1000, 2**31, 2**52, 2**63, most):
        span = min(span, most)
        given = [dice.randint(-span, span) for _ in range(dice.randint(1, 40))]
        given += [most, -most] if span == most else []
        values = pa.array([_scaled(each, kind) for each in given], kind)
        parts = [part_of(values, place, part_count(kind)) for place in range(part_count(kind))]
        sums = [pa.array([sum(part.to_pylist()), None]) for part in parts]
        made = decimal_means(pa.array([len(given), 0]), sums, kind.scale).to_pylist()
        assert made == [float(Fraction(sum(given), len(given) * 10**kind.scale)), None]


def _scaled(number, kind):
    digits = f"{abs(number):0{kind.scale + 1}d}"
    point = len(digits) - kind.scale
    return Decimal(f"{'-' * (number < 0)}{digits[:point]}.{digits[point:]}")


def test_the_means_of_older_checkpoints_are_refused_and_can_be_read():
    input, calls = pa.schema([("k", pa.string()), ("x", pa.decimal128(10, 2))]), [AggregateColumn("m", "mean", "x")]
    now = aggregates_schema(calls, [pa.field("m", pa.float64())], input)["aggregates"]
    assert now == [["m", "exact mean(x)", "double"]]
    assert [fate.outcome for fate in aggregate_verdicts([["m", "mean(x)", "double"]], now)] == ["refuse"]
    reader = aggregates_reader(["k"], calls, input)
    assert described(reader)[0] == calls
    del reader["rounds"]  # as older ones are
    older = Aggregator(["k"], *described(reader))
    assert older.states.types[1:] == [pa.int64(), pa.float64()]  # a count, and a sum of floats
