"""Sums that their types do not hold: an error wherever sums are made, never another number."""

from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import sabot
from sabot import App, DataError, count_window, cumulative, hopping, session, tumbling

MOST = 2**63 - 1
D38 = Decimal("9" * 38)


def stream(tmp_path, values, kind=None):
    """Rows of one key, a second apart."""
    values = pa.array(values, kind)
    rows = pa.table({"k": ["a"] * len(values), "x": values, "ts": [1000 * i for i in range(len(values))]})
    pq.write_table(rows, tmp_path / "x.parquet")
    return App("sums").stream(sabot.files(tmp_path / "x.parquet"), time="ts")


WAYS = {
    "group_by": lambda s: s.group_by("k").aggregate(s=sabot.sum("x")),
    "group_by of changes": lambda s: s.upsert("ts").group_by("k").aggregate(s=sabot.sum("x")),
    "tumbling": lambda s: s.key_by("k").window(tumbling("1m")).aggregate(s=sabot.sum("x")),
    "tumbling without keys": lambda s: s.window(tumbling("1m")).aggregate(s=sabot.sum("x")),
    "hopping": lambda s: s.key_by("k").window(hopping("3s", "1s")).aggregate(s=sabot.sum("x")),
    "cumulative": lambda s: s.key_by("k").window(cumulative("3s", "1s")).aggregate(s=sabot.sum("x")),
    "session": lambda s: s.key_by("k").window(session("5s")).aggregate(s=sabot.sum("x")),
    "count_window": lambda s: s.key_by("k").window(count_window(2)).aggregate(s=sabot.sum("x")),
    "running": lambda s: s.key_by("k").aggregate(s=sabot.sum("x")),
    "over": lambda s: s.key_by("k").over(s=sabot.sum("x")),
    "over a frame": lambda s: s.key_by("k").over(preceding=1, s=sabot.sum("x")),
}


@pytest.mark.one_in(4, "some hundredths of a second of a core each")
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("values", "kind"),
    [([MOST, 1], pa.int64()), ([-MOST, -2], pa.int64()), ([2**64 - 1, 1], pa.uint64())],
    ids=["above", "below", "unsigned"],
)
def test_a_sum_beyond_64_bits_is_an_error(tmp_path, way, values, kind):
    with pytest.raises(DataError, match=f"more than {kind} holds"):
        WAYS[way](stream(tmp_path, values, kind)).collect()


@pytest.mark.one_in(4, "hundredths of a second of a core each")
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("values", "kind"), [([MOST - 1, 1], pa.int64()), ([2**64 - 2, 1], pa.uint64())])
def test_the_greatest_sum_that_there_is_is_told(tmp_path, way, values, kind):
    assert max(WAYS[way](stream(tmp_path, values, kind)).collect()["s"].to_pylist()) == sum(values)


@pytest.mark.one_in(3, "hundredths of a second of a core each")
@pytest.mark.parametrize("way", WAYS)
def test_a_sum_of_decimals_that_has_too_many_digits_is_an_error(tmp_path, way):
    """It was -140282366920938463463374607431768211458."""
    with pytest.raises(DataError, match=r"more than decimal128\(38, 0\) holds"):
        WAYS[way](stream(tmp_path, [D38, D38])).collect()


@pytest.mark.one_in(3, "hundredths of a second of a core each")
@pytest.mark.parametrize("way", WAYS)
def test_decimals_that_are_many_digits_on_the_way_only_are_added(tmp_path, way):
    found = WAYS[way](stream(tmp_path, [D38, D38.copy_negate()])).collect()["s"].to_pylist()
    assert Decimal(0) in found


def test_a_sum_over_changes_is_of_the_rows_that_are_left(tmp_path):
    """What was added and taken away again may be more than 64 bits in all."""
    x = stream(tmp_path, [MOST, MOST - 1, 5])
    assert x.key_by("k").top_n(1, by="ts").group_by("k").aggregate(s=sabot.sum("x")).collect()["s"].to_pylist() == [5]


def test_a_frame_has_a_sum_though_its_parts_have_none(tmp_path):
    x = stream(tmp_path, [-9, MOST, 9, -9])
    found = x.key_by("k").over(preceding=2, s=sabot.sum("x")).collect()["s"].to_pylist()
    assert found == [-9, MOST - 9, MOST, MOST]


def test_the_error_of_a_frame_names_the_key(tmp_path):
    with pytest.raises(DataError, match="its key is k='a'"):
        stream(tmp_path, [MOST, 1]).key_by("k").over(preceding=1, s=sabot.sum("x")).collect()


def test_what_the_hint_says_helps(tmp_path):
    wide = stream(tmp_path, [MOST, 1]).key_by("k").window(tumbling("1m"))
    assert wide.aggregate(s=sabot.sum(sabot.col("x").cast(pa.decimal128(38, 0)))).collect()["s"].to_pylist() == [2**63]
    assert wide.aggregate(s=sabot.sum(sabot.col("x").cast("float64"))).collect()["s"].to_pylist() == [float(2**63)]


@pytest.mark.one_in(3, "hundredths of a second of a core each")
@pytest.mark.parametrize("way", ["group_by", "group_by of changes", "tumbling", "running", "over"])
def test_what_the_hint_for_decimals_says_helps(tmp_path, way):
    with pytest.raises(DataError) as raised:
        WAYS[way](stream(tmp_path, [D38, D38])).collect()
    assert '.cast("decimal(76, 0)")' in (raised.value.hint or "")
    wide = stream(tmp_path, [D38, D38]).with_columns(x=sabot.col("x").cast("decimal(76, 0)"))
    assert 2 * int(D38) in map(int, WAYS[way](wide).collect()["s"].to_pylist())


@pytest.mark.parametrize("kind", ["min", "max"])
def test_what_there_is_not_of_wide_decimals_says_what_there_is(tmp_path, kind):
    keyed = stream(tmp_path, [D38]).key_by("k")
    of_x = getattr(sabot, kind)("x")
    for made in (lambda: keyed.aggregate(s=of_x), lambda: keyed.over(s=of_x), lambda: keyed.over(preceding=1, s=of_x)):
        with pytest.raises(sabot.UserError) as raised:
            made().collect()
        assert '.cast("decimal(18, 0)")' in (raised.value.hint or "")
        assert "group_by" in (raised.value.hint or "")


@pytest.mark.parametrize("kind", ["first", "last"])
def test_the_first_and_last_of_wide_decimals_are_theirs(tmp_path, kind):
    keyed = stream(tmp_path, [D38, D38]).key_by("k")
    of_x = getattr(sabot, kind)("x")
    for made in (keyed.aggregate(s=of_x), keyed.over(s=of_x), keyed.over(preceding=1, s=of_x)):
        assert made.collect()["s"].to_pylist() == [D38, D38]
