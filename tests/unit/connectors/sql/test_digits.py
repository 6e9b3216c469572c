"""Which decimals lose digits in a column of floats: computed for whole columns, compared with a loop over exact numbers."""

import random
from decimal import Decimal
from fractions import Fraction

import pyarrow as pa
import pytest

from sabot.connectors.sql.rows import loses_digits

TYPES = [
    pa.decimal128(38, 18),
    pa.decimal128(38, 0),
    pa.decimal128(18, 4),
    pa.decimal128(20, 20),
    pa.decimal128(30, -4),
    pa.decimal256(76, 0),
    pa.decimal256(76, 30),
]


def naive(value: Decimal | None, bits: int, most: int) -> bool:
    if value is None:
        return False
    exact = Fraction(value)
    if exact.denominator > 1:
        return len("".join(map(str, value.as_tuple().digits)).strip("0")) > 15
    whole = abs(int(exact))
    if -most - 1 <= int(exact) <= most or not whole:
        return False
    while whole % 2 == 0:
        whole //= 2
    return whole.bit_length() > bits


@pytest.mark.parametrize(("bits", "most"), [(53, 0), (53, 2**63 - 1), (24, 0)])
@pytest.mark.parametrize("type", TYPES, ids=str)
def test_a_column_of_decimals_loses_digits_where_a_loop_finds_it(type: pa.DataType, bits: int, most: int) -> None:
    rng = random.Random(f"{type} {bits} {most}")
    edges = [2**53, 2**63, 2**64, 2**24, 10**15, 10**16, 10**22, 10**23, 123456789012345, 5**24]
    numbers = [sign * (edge + more) for edge in edges for more in (-1, 0, 1) for sign in (1, -1)]
    numbers += [rng.randrange(10 ** rng.randrange(1, type.precision + 1)) * 10 ** rng.randrange(12) for _ in range(500)]
    unscaled = numbers + [number * 10**type.scale for number in numbers if type.scale > 0]
    values = [Decimal(f"{number}E{-type.scale}") for number in unscaled if abs(number) < 10**type.precision]
    column = pa.array([None, *values], type)
    found = loses_digits(column, bits, most).to_pylist()
    assert found == [naive(value, bits, most) for value in column.to_pylist()]
    assert loses_digits(column.slice(3, 40), bits, most).to_pylist() == found[3:43]
    assert loses_digits(column.slice(0, 0), bits, most).to_pylist() == []
