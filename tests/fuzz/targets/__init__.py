"""The readers that are fuzzed, by name."""

from targets.avro import Avro
from targets.base import Target
from targets.checkpoints import Checkpoints
from targets.columns import Arrow, Parquet
from targets.postgres import PostgresChanges
from targets.protobuf import Protobuf
from targets.records import DeadLetterRows, Packed, Payloads, Tables, Values
from targets.saved import State
from targets.text import Compressed, Csv, Json, Ndjson, Words

__all__ = ["TARGETS", "Target"]

_ALL = (
    Avro,
    Json,
    Csv,
    Ndjson,
    Compressed,
    Words,
    Parquet,
    Arrow,
    Payloads,
    PostgresChanges,
    Protobuf,
    Tables,
    Values,
    Packed,
    DeadLetterRows,
    State,
    Checkpoints,
)
TARGETS: dict[str, type[Target]] = {target.name: target for target in _ALL}
