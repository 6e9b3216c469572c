"""Damage, decided by a seed: valid inputs in, inputs that are nearly valid out."""

import json
import random
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

__all__ = ["damaged_value", "mutated", "pack", "unpack"]

_BYTES = (0, 1, 0x7F, 0x80, 0xFF, 0x20, 0x22, 0x0A)
_NUMBERS = (
    0,
    1,
    -1,
    7,
    127,
    128,
    255,
    256,
    32767,
    65535,
    65536,
    2**31 - 1,
    -(2**31),
    2**32 - 1,
    2**40,
    2**62,
    2**63 - 1,
    -(2**63),
)
_VALUES: tuple[Any, ...] = (
    *(
        None,
        True,
        False,
        0,
        1,
        -1,
        3,
        2**31,
        -(2**31) - 1,
        2**63 - 1,
        2**63,
        -(2**63),
        2**64,
        0.5,
        1e308,
        -0.0,
        "",
        "0",
        "x",
        "é",
        "\0",
    ),
    *(
        "../x",
        "/etc/passwd",
        "x" * 300,
        "NaN",
        [],
        {},
        [[]],
        [0],
        {"": 0},
        [None],
        {"x": {"y": []}},
        [1, "x", None],
        "\ud800",
    ),
)


def mutated(rng: random.Random, seeds: Sequence[bytes], tokens: Sequence[bytes] = ()) -> bytes:
    """One of the seeds, changed in one to eight places."""
    data = bytearray(rng.choice(seeds))
    for _ in range(min(8, 1 + int(rng.expovariate(0.7)))):
        rng.choice(_WAYS)(rng, data, seeds, tokens)
    return bytes(data)


def _flip(rng: random.Random, data: bytearray, seeds: Sequence[bytes], tokens: Sequence[bytes]) -> None:
    if data:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _set(rng: random.Random, data: bytearray, seeds: Sequence[bytes], tokens: Sequence[bytes]) -> None:
    if data:
        data[rng.randrange(len(data))] = rng.choice(_BYTES)


def _number(rng: random.Random, data: bytearray, seeds: Sequence[bytes], tokens: Sequence[bytes]) -> None:
    """A number where one may stand: Arrow's and Parquet's lengths and offsets are little endian, of 4 or 8 bytes."""
    size = rng.choice((1, 2, 4, 4, 8, 8))
    if len(data) < size:
        return
    at = rng.randrange(len(data) - size + 1)
    at -= at % size if rng.random() < 0.7 else 0
    order = "little" if rng.random() < 0.9 else "big"
    number = rng.choice(_NUMBERS)
    if rng.random() < 0.4:
        number = int.from_bytes(data[at : at + size], order) + rng.choice((-16, -8, -1, 1, 2, 8, 64, 1000))
    data[at : at + size] = (number & ((1 << 8 * size) - 1)).to_bytes(size, order)


def _cut(rng: random.Random, data: bytearray, seeds: Sequence[bytes], tokens: Sequence[bytes]) -> None:
    if data and rng.random() < 0.5:
        del data[rng.randrange(len(data)) :]
    elif data:
        at = rng.randrange(len(data))
        del data[at : at + 1 + int(rng.expovariate(0.1))]


def _repeat(rng: random.Random, data: bytearray, seeds: Sequence[bytes], tokens: Sequence[bytes]) -> None:
    if data:
        at = rng.randrange(len(data))
        data[at:at] = data[at : at + 1 + int(rng.expovariate(0.05))] * rng.choice((1, 1, 2, 10))


def _splice(rng: random.Random, data: bytearray, seeds: Sequence[bytes], tokens: Sequence[bytes]) -> None:
    other = rng.choice(seeds)
    if data and other:
        at, start = rng.randrange(len(data)), rng.randrange(len(other))
        piece = other[start : start + 1 + int(rng.expovariate(0.03))]
        data[at : at + (len(piece) if rng.random() < 0.5 else 0)] = piece


def _token(rng: random.Random, data: bytearray, seeds: Sequence[bytes], tokens: Sequence[bytes]) -> None:
    if tokens:
        at = rng.randrange(len(data) + 1)
        token = rng.choice(tokens)
        data[at : at + (len(token) if rng.random() < 0.5 else 0)] = token


def _noise(rng: random.Random, data: bytearray, seeds: Sequence[bytes], tokens: Sequence[bytes]) -> None:
    at = rng.randrange(len(data) + 1)
    data[at:at] = rng.randbytes(1 + int(rng.expovariate(0.2)))


_WAYS: tuple[Callable[[random.Random, bytearray, Sequence[bytes], Sequence[bytes]], None], ...] = (
    *(_flip, _set, _number, _number, _number, _cut, _repeat, _splice, _token, _token, _noise),
)


def damaged_value(rng: random.Random, value: Any) -> Any:
    """A JSON value, changed at one place: another value, a field less or more, a number by a little."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key = rng.choice(list(value))
        if rng.random() < 0.1:
            return {name: kept for name, kept in value.items() if name != key}
        if rng.random() < 0.05:
            return {**value, "x": rng.choice(_VALUES)}
        return {**value, key: damaged_value(rng, value[key])}
    if isinstance(value, list) and value and rng.random() < 0.85:
        at = rng.randrange(len(value))
        if rng.random() < 0.1:
            return value[:at] + value[at + 1 :]
        if rng.random() < 0.1:
            return [*value[:at], value[at], *value[at:]]
        return [*value[:at], damaged_value(rng, value[at]), *value[at + 1 :]]
    if isinstance(value, int) and not isinstance(value, bool) and rng.random() < 0.4:
        return value + rng.choice((-1, 1, 2, -8, 1000))
    if isinstance(value, str) and value and rng.random() < 0.4:
        return mutated(rng, [value.encode(errors="surrogatepass")]).decode("latin-1")
    return rng.choice(_VALUES)


def pack(files: dict[str, bytes]) -> bytes:
    """Several files as one input."""
    return msgspec.msgpack.encode(files)


def unpack(data: bytes) -> dict[str, bytes]:
    """What `pack` made."""
    return msgspec.msgpack.decode(data, type=dict[str, bytes])


def json_bytes(value: Any) -> bytes:
    """As a program in any language might write it: also what is no UTF-8 text."""
    return json.dumps(value).encode()
