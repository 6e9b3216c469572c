"""What PostgreSQL sends of a table, written from the documentation of its formats: messages of pgoutput, and rows of COPY."""

import struct
import uuid
from collections.abc import Sequence
from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import Any

COPY_BEGINS = b"PGCOPY\n\xff\r\n\0" + struct.pack(">ii", 0, 0)
COPY_ENDS = struct.pack(">h", -1)
_EPOCH = date(2000, 1, 1)


class Unchanged:
    """The value of a column that an update does not send."""


UNCHANGED = Unchanged()


def value(kind: str, given: Any) -> bytes | None:
    """A value in the binary format; a value of bytes as it is. None is a null."""
    if given is None or isinstance(given, bytes):
        return given
    outer, _, inner = kind.partition(" ")
    packed = {"int2": ">h", "int4": ">i", "int8": ">q", "oid": ">I", "float4": ">f", "float8": ">d", "bool": ">?"}
    if outer in packed:
        return struct.pack(packed[outer], given)
    if outer in ("numeric", "decimal"):
        return _numeric(Decimal(given))
    if outer == "text":
        return str(given).encode()
    if outer == "jsonb":
        return b"\1" + str(given).encode()
    if outer == "uuid":
        return uuid.UUID(given).bytes
    if outer == "date":
        return struct.pack(">i", given if isinstance(given, int) else (given - _EPOCH).days)
    if outer == "time":
        return struct.pack(">q", _micros(given))
    if outer in ("timestamp", "timestamptz"):
        return struct.pack(">q", given if isinstance(given, int) else _since_2000(given))
    if outer == "list":
        items = b"".join(sized(value(inner, each)) for each in given)
        return (
            struct.pack(">iii", 1, any(each is None for each in given), 0) + struct.pack(">ii", len(given), 1) + items
        )
    if outer == "vector":
        return struct.pack(f">hh{len(given)}f", len(given), 0, *given)
    if outer == "range":
        lower, upper = given
        flags = (8 if lower is None else 2) | (16 if upper is None else 0)
        bounds = [sized(value(inner, each)) for each in (lower, upper) if each is not None]
        return bytes([flags]) + b"".join(bounds)
    raise AssertionError(kind)


def sized(data: bytes | None) -> bytes:
    """A value behind its length, as in arrays and rows of COPY."""
    return struct.pack(">i", -1) if data is None else struct.pack(">i", len(data)) + data


def row(kinds: Sequence[str], values: Sequence[Any]) -> bytes:
    """A row of COPY."""
    data = [sized(value(kind, each)) for kind, each in zip(kinds, values, strict=True)]
    return struct.pack(">h", len(values)) + b"".join(data)


class Wal:
    """The messages of a table with columns of `kinds`. `sent`: all of them so far, in order."""

    def __init__(self, kinds: Sequence[str], names: Sequence[str], keys: Sequence[str], relation: int = 16384) -> None:
        self.kinds, self.names, self.keys, self.relation = kinds, names, keys, relation
        self.sent: list[bytes] = []
        self.lsn = 100

    def send(self, message: bytes) -> None:
        self.sent.append(b"w" + struct.pack(">QQq", self.lsn, self.lsn, 0) + message)

    def describe(self, identity: bytes = b"d") -> None:
        columns = [
            bytes([name in self.keys]) + name.encode() + b"\0" + struct.pack(">Ii", 25, -1) for name in self.names
        ]
        head = struct.pack(">I", self.relation) + b"public\0orders\0" + identity + struct.pack(">h", len(columns))
        self.send(b"R" + head + b"".join(columns))

    def begin(self, lsn: int | None = None) -> None:
        self.lsn = self.lsn + 10 if lsn is None else lsn
        self.send(b"B" + struct.pack(">Qqi", self.lsn, 1_000_000, self.lsn))

    def commit(self) -> None:
        self.send(b"C\0" + struct.pack(">QQq", self.lsn, self.lsn + 5, 1_000_000))

    def insert(self, *values: Any) -> None:
        self.send(b"I" + struct.pack(">I", self.relation) + b"N" + self._tuple(values))

    def update(self, *values: Any, old: Sequence[Any] = (), mark: bytes = b"K") -> None:
        before = mark + self._tuple(old) if old else b""
        self.send(b"U" + struct.pack(">I", self.relation) + before + b"N" + self._tuple(values))

    def delete(self, *values: Any, mark: bytes = b"K") -> None:
        self.send(b"D" + struct.pack(">I", self.relation) + mark + self._tuple(values))

    def truncate(self, *relations: int, options: int = 0) -> None:
        self.send(b"T" + struct.pack(f">iB{len(relations)}I", len(relations), options, *relations))

    def _tuple(self, values: Sequence[Any]) -> bytes:
        return struct.pack(">h", len(values)) + b"".join(map(self._column, self.kinds, values))

    @staticmethod
    def _column(kind: str, given: Any) -> bytes:
        if given is UNCHANGED:
            return b"u"
        data = value(kind, given)
        return b"n" if data is None else b"b" + sized(data)


def _numeric(given: Decimal) -> bytes:
    if not given.is_finite():
        sign = 0xC000 if given.is_nan() else 0xD000 if given > 0 else 0xF000
        return struct.pack(">HhHH", 0, 0, sign, 0)
    exponent = int(given.as_tuple().exponent)
    scale = max(-exponent, 0)
    digits = "".join(map(str, given.as_tuple().digits)) + "0" * max(exponent, 0)
    digits = digits.rjust(scale + 1, "0")
    whole, fraction = (digits[:-scale], digits[-scale:]) if scale else (digits, "")
    whole = whole.rjust(-(-len(whole) // 4) * 4, "0")
    fraction = fraction.ljust(-(-len(fraction) // 4) * 4, "0")
    groups = [int((whole + fraction)[at : at + 4]) for at in range(0, len(whole + fraction), 4)]
    weight = len(whole) // 4 - 1
    while groups and groups[0] == 0:
        groups, weight = groups[1:], weight - 1
    while groups and groups[-1] == 0:
        groups.pop()
    sign = 0x4000 if given.is_signed() and groups else 0
    return struct.pack(f">HhHH{len(groups)}H", len(groups), weight if groups else 0, sign, scale, *groups)


def _micros(given: time) -> int:
    return ((given.hour * 60 + given.minute) * 60 + given.second) * 1_000_000 + given.microsecond


def _since_2000(given: datetime) -> int:
    if given.tzinfo is not None:
        given = given.astimezone(UTC).replace(tzinfo=None)
    since = given - datetime(2000, 1, 1)
    return (since.days * 86400 + since.seconds) * 1_000_000 + since.microseconds
