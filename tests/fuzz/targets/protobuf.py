"""Protobuf payloads: as the library of Protobuf reads them, or a bad row."""

import random
from base64 import b64encode

import msgspec
from mutations import mutated

from sabot.codecs.protobuf import ProtobufCodec, ProtobufEncoder
from targets.base import Target, use
from tools.protobuf_types import encodings, library_row, payload_array, plain_rows, random_type

__all__ = ["Protobuf"]

_TOKENS = (b"\x80", b"\xff" * 10, b"\x0a", b"\x12\x05", b"\x0b", b"\x0c", b"\x08", b"\xff\xff\xff\xff\x07")
# Times are checked wherever they come, also in messages that do not count in the end, since another member of their oneof follows. In what
# it skips the library does not look for the number 0.
_STRICTER = (
    "the time is outside",
    "the duration is longer",
    "its nanoseconds",
    "its seconds and nanoseconds",
    "number 0",
)


class Protobuf(Target):
    """Messages of random types, whole and damaged, with and without the header of a registry."""

    name = "protobuf"

    def __init__(self) -> None:
        super().__init__()
        self.seeds = [self._input(seed, random.Random(seed), whole=True) for seed in range(5)]

    def _input(self, seed: int, rng: random.Random, whole: bool = False) -> bytes:
        kind = random_type(random.Random(seed), plain=seed % 2 == 0)
        payloads = [encodings(rng, kind) for _ in range(4)]
        if not whole:
            payloads += [mutated(rng, payloads, _TOKENS) for _ in range(8)]
        return msgspec.msgpack.encode([seed, payloads])

    def make(self, rng: random.Random) -> bytes:
        return self._input(rng.randrange(1 << 30), rng)

    def check(self, data: bytes) -> bool:
        seed, payloads = msgspec.msgpack.decode(data, type=tuple[int, list[bytes]])
        plain = seed % 2 == 0
        kind = random_type(random.Random(seed), plain)
        found, bad = ProtobufCodec(kind).decode(payload_array(payloads))
        use(found)
        rows = iter(plain_rows(found))
        refused = {each.row: each.reason for each in bad}
        for number, payload in enumerate(payloads):
            row = None if number in refused else next(rows)
            if row is None and any(text in refused[number] for text in _STRICTER):
                continue
            if plain and row != library_row(kind, payload):
                raise AssertionError(f"type {seed}: {payload!r} was read as {row}")
        frames = payload_array([b"\0\0\0\0\7" + each for each in payloads])
        skipped, _ = ProtobufCodec(kind, framed=True).decode(frames)
        use(skipped)
        file = b64encode(kind.DESCRIPTOR.file.serialized_pb).decode()
        compared, _ = ProtobufCodec(kind, framed=True, schema_of=lambda id: file).decode(frames)
        use(compared)
        if compared.num_rows > skipped.num_rows:
            raise AssertionError(f"type {seed}: {compared.num_rows} payloads name the message, of {skipped.num_rows}")
        written = ProtobufEncoder(kind).encode(found)
        again, none = ProtobufCodec(kind).decode(payload_array(written.to_pylist()))
        if none or plain_rows(again) != plain_rows(found):
            raise AssertionError(f"type {seed}: {found.to_pylist()} were written as {written.to_pylist()}")
        return found.num_rows > 0
