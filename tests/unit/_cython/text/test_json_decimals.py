"""Decimals from JSON and into it: no digit is lost, and what does not fit is a bad row."""

import json
import random
from decimal import Context, Decimal

import pyarrow as pa
import pytest

from sabot._cython.text.json import JsonDecoder, encode_rows

EXACT = Context(prec=200)
KINDS = [pa.decimal128(5, 2), pa.decimal128(38, 0), pa.decimal128(23, 3), pa.decimal128(4, -2), pa.decimal256(76, 30)]


def decoded(payloads: list[bytes], kind: pa.DataType) -> tuple[list[Decimal | None], list[str]]:
    batch, bad = JsonDecoder(pa.schema([("x", kind)])).decode(payloads)
    batch.validate(full=True)
    return batch.column(0).to_pylist(), [row.reason for row in bad]


def number(seeded: random.Random) -> str:
    text = seeded.choice(["", "-"]) + str(seeded.choice([0, 7, 10**9, seeded.randrange(10 ** seeded.randrange(1, 80))]))
    if seeded.random() < 0.6:
        text += "." + seeded.choice(
            ["0" * seeded.randrange(1, 30), str(seeded.randrange(10 ** seeded.randrange(1, 60)))]
        )
    return text + (f"e{seeded.randrange(-45, 45)}" if seeded.random() < 0.3 else "")


@pytest.mark.one_in(3, "a fifth of a second of a core each")
@pytest.mark.parametrize("kind", KINDS)
def test_numbers_and_texts_of_numbers_are_exact_or_bad_rows(kind: pa.DataType) -> None:
    seeded = random.Random(15)
    for _ in range(2_000):
        text = number(seeded)
        value = EXACT.create_decimal(text)
        scaled = value.scaleb(kind.scale, EXACT)
        fits = scaled == scaled.to_integral_value(context=EXACT) and abs(scaled) < Decimal(10) ** kind.precision
        payload = seeded.choice(['{"x":%s}', '{"x": "%s" }']) % text
        values, bad = decoded([payload.encode()], kind)
        assert values == ([value] if fits else []), text
        place = payload.index(":") + (2 if " " in payload else 1)
        reason = f"field x: the number has more digits, before or behind the point, than {kind} at byte {place}"
        assert fits or bad == [reason]
        if fits:
            batch = pa.record_batch({"x": pa.array(values, kind)})
            (written,) = encode_rows(batch).to_pylist()
            assert decoded([written], kind) == (values, [])
            assert EXACT.create_decimal(json.loads(written, parse_float=str, parse_int=str)["x"]) == value


@pytest.mark.parametrize("kind", [pa.decimal128(20, 3), pa.decimal256(50, 3)])
def test_all_digits_are_written(kind: pa.DataType) -> None:
    values = [Decimal(text) for text in ("0", "1.5", "-0.001", "12345678901234567", "-99999999999999999.999")]
    batch = pa.record_batch({"x": pa.array([None, *values, None], kind)})
    texts = [row.decode()[5:-1] for row in encode_rows(batch.slice(1, 5)).to_pylist()]
    assert texts == ["0.000", "1.500", "-0.001", "12345678901234567.000", "-99999999999999999.999"]
    assert encode_rows(batch.slice(6)).to_pylist() == [b'{"x":null}']


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b'{"x":"n/a"}', "the string is not a number for decimal128(5, 2) at byte 5"),
        (b'{"x":""}', "the string is not a number"),
        (b'{"x":" 1"}', "the string is not a number"),
        (b'{"x":"+1"}', "the string is not a number"),
        (b'{"x":"1,5"}', "the string is not a number"),
        (b'{"x":"NaN"}', "the string is not a number"),
        (b'{"x":true}', "expected decimal128(5, 2), found a boolean"),
        (b'{"x":1e99999999999999999999}', "more digits"),
        (b'{"x":[1]}', "found a list"),
    ],
)
def test_what_is_no_decimal_is_a_bad_row(payload: bytes, reason: str) -> None:
    (said,) = decoded([b'{"x":1.25}', payload, b'{"x":null}', b'{"x":"2"}'], pa.decimal128(5, 2))[1]
    assert reason in said


def test_zero_is_zero_with_any_exponent() -> None:
    values, bad = decoded(
        [b'{"x":0e999999999}', b'{"x":-0.000e-99}', b'{"x":"0.0000000000000000000000"}'], pa.decimal128(3, 1)
    )
    assert (values, bad) == ([Decimal(0)] * 3, [])


def test_decimals_in_lists_and_structs() -> None:
    kind = pa.struct([("prices", pa.list_(pa.decimal128(9, 2)))])
    values, bad = decoded([b'{"x":{"prices":[1, "2.50", null]}}', b'{"x":{"prices":[1, 2.505]}}', b'{"x":null}'], kind)
    assert values == [{"prices": [Decimal(1), Decimal("2.50"), None]}, None]
    assert "field x.prices[]: the number has more digits" in bad[0]
    assert encode_rows(pa.record_batch({"x": pa.array(values[:1], kind)})).to_pylist() == [
        b'{"x":{"prices":[1.00,2.50,null]}}'
    ]
