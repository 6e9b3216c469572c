"""`TypesSuite`: what becomes of the values of each type of a sink: they arrive as they were, or are refused, and are never others."""

import datetime
import decimal
import math
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from sabot.testing.connectors.delivery import REFUSALS, TRACK, delivering
from sabot.testing.connectors.place import NewPlace

_BERLIN, _NOON = "Europe/Berlin", datetime.datetime(2026, 11, 28, 12, 0, 0, 123_456)

_GIVEN: Sequence[tuple[Sequence[Any], Any]] = (
    ([True, False, None], pa.bool_()),
    *(([-(1 << bits - 1), (1 << bits - 1) - 1, 0, None], f"int{bits}") for bits in (8, 16, 32, 64)),
    *(([(1 << bits) - 1, 0, None], f"uint{bits}") for bits in (8, 16, 32, 64)),
    *(([0.5, -0.0, math.inf, -math.inf, math.nan, None], kind) for kind in ("float32", "float64")),
    ([1.7976931348623157e308, 5e-324, 0.1], "float64"),
    (["", "ü\n\\.\"'", "0123", "\0", None, "x" * 100_000], pa.string()),
    ([b"", b"\xff\0", None], pa.binary()),
    ([decimal.Decimal("1.50"), decimal.Decimal("-0.01"), None], pa.decimal128(10, 2)),
    ([decimal.Decimal("9" * 38), None], pa.decimal128(38, 0)),
    ([datetime.date(1, 1, 1), datetime.date(9999, 12, 31), None], pa.date32()),
    ([datetime.time(23, 59, 59, 999_999), datetime.time(0), None], pa.time64("us")),
    ([_NOON, datetime.datetime(1969, 12, 31, 23, 59, 59, 999_999), None], pa.timestamp("us")),
    ([_NOON, None], pa.timestamp("us", _BERLIN)),
    ([[1, None], [], None], pa.list_(pa.int64())),
    ([{"a": 1, "b": "x"}, None], pa.struct([("a", pa.int64()), ("b", pa.string())])),
)
VALUES: Sequence[pa.Array] = tuple(pa.array(values, kind) for values, kind in _GIVEN)
"""For each type its least and greatest values, and null."""


class TypesSuite:
    """The tests of the types of a sink that delivers. A class of tests derives from it, and has a fixture `new_place`, as for
    `DeliverySuite`. The places have `sink` and `values`; their sinks take rows of the columns `n` (int64) and `v`.

    `given`: the values that are tried, an array for each type.
    """

    given: Sequence[pa.Array] = VALUES

    def stored(self, value: Any, kind: pa.DataType) -> Any:
        """Returns the value that the receiver has for one of this type, as `ConnectorPlace.values` reads it. By default it is the same."""
        return value

    def test_each_value_is_at_the_receiver_as_it_was_or_is_refused(self, new_place: NewPlace) -> None:
        for array in self.given:
            self.check(new_place, array)

    def check(self, new_place: NewPlace, array: pa.Array) -> None:
        """Tries the values of one type, in a place of their own."""
        place, kind = new_place(), array.type
        schema = pa.schema([("n", pa.int64()), ("v", kind)])
        sink: Any = delivering(place)
        try:
            sink.check_types(schema)
        except REFUSALS as error:
            if "v" not in str(error):
                raise AssertionError(f"check_types refuses {kind}, and does not name the column: {error}") from error
            return
        sink.expect(schema)
        sink.claim(TRACK)
        rows = [pa.record_batch([pa.array(range(n, n + 1)), array.slice(n, 1)], schema) for n in range(len(array))]
        fitting: list[tuple[int, pa.RecordBatch]] = []
        for n, each in enumerate(rows):
            try:
                fitting.append((n, sink.fitting(each)))
            except REFUSALS:
                continue
        try:
            sink.deliver(1, [each for _, each in fitting])
        except REFUSALS as error:
            sink.claim(TRACK)
            refused = sink.refused_rows([each for _, each in fitting])
            if not refused:
                raise AssertionError(
                    f"deliver refuses values of {kind}, and refused_rows names none: {error}"
                ) from error
            fitting = [each for number, each in enumerate(fitting) if number not in refused]
            sink.claim(TRACK)
            sink.deliver(1, [each for _, each in fitting])
        found = list(place.values()) if fitting else []
        expected = [self.stored(array[n].as_py(), kind) for n, _ in fitting]
        assert len(found) == len(expected), f"{kind}: {len(expected)} rows were taken, and {len(found)} are there"
        for value, wanted in zip(found, expected, strict=True):
            assert _is_same(value, wanted), f"{kind}: {wanted!r} became {value!r}"
        sink.close()


def _is_same(value: Any, wanted: Any) -> bool:
    if isinstance(wanted, float) and isinstance(value, float) and math.isnan(wanted):
        return math.isnan(value)
    return type(value) is type(wanted) and bool(value == wanted)
