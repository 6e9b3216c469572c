"""A commit in the log of a table of Delta Lake: which files it adds and removes, and whether this source can read what it says.

deltalake gives the files of a version, but not those of one commit, so the entries of the log are read here.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from sabot.base.arrays import scalar_of_text
from sabot.base.dataclass import dataclass
from sabot.connectors.delta.table import DeltaPlace
from sabot.errors import UserError

__all__ = ["LogCommit", "binary_partition", "check_features", "partition_value", "read_commit"]

_FEATURES = frozenset(
    ("columnMapping", "deletionVectors", "timestampNtz", "v2Checkpoint", "vacuumProtocolCheck", "variantType")
)
"""The features of readers that the source of Delta has, or that change no row of a table whose columns it reads."""
_SCAN = "app.stream(deltalake.DeltaTable(…).scan()) reads it by deltalake, with all rows in memory"

_ESCAPED = re.compile(r"(\\u00[0-9A-Fa-f]{2})+")

Action = Mapping[str, Any]
"""An action of a commit, as the log has it."""


@dataclass(frozen=True, slots=True)
class LogCommit:
    """The actions of a commit that change rows, in the order of the log. `changed`: files of the change feed. `schema`: the text of the
    columns, if the commit sets them. `features`: those that readers need, if the commit sets them. `operation`: what made it.
    """

    added: Sequence[Action]
    removed: Sequence[Action]
    changed: Sequence[Action]
    schema: str | None
    features: Sequence[str]
    operation: str


def read_commit(place: DeltaPlace, version: int) -> LogCommit:
    """Returns the commit that made a version. Raises FileNotFoundError if the log does not have it."""
    found: dict[str, list[Action]] = {}
    try:
        for line in place.log_entry(version).splitlines():
            for kind, action in json.loads(line).items() if line.strip() else ():
                found.setdefault(kind, []).append(action)
    except ValueError as error:
        raise UserError(
            f"{place.where}: the entry of its log for version {version} is damaged: {error}",
            hint="restore it, or start afresh (--fresh), which reads the table as it is now",
        ) from error
    metadata, protocol, about = (found.get(kind, [{}])[0] for kind in ("metaData", "protocol", "commitInfo"))
    return LogCommit(
        _of_rows(found.get("add", ())),
        _of_rows(found.get("remove", ())),
        found.get("cdc", ()),
        metadata.get("schemaString"),
        protocol.get("readerFeatures") or (),
        str(about.get("operation", "a commit")),
    )


def _of_rows(actions: Sequence[Action]) -> list[Action]:
    """Returns the actions that change rows. Those of a compaction do not."""
    return [action for action in actions if action.get("dataChange", True)]


def check_features(where: str, features: Sequence[str], columns: pa.Schema) -> None:
    """Raises UserError for features of a table that change what its rows are, in a way that the source does not know."""
    if unknown := sorted(set(features) - _FEATURES):
        raise UserError(f"{where} has the feature {unknown[0]}, which this source does not read", hint=_SCAN)
    for field in columns:
        if "variant" in str(field.type) or "arrow.parquet.variant" in str(field.metadata):
            raise UserError(f"{where}: column {field.name} is a variant, which this source does not read", hint=_SCAN)


def partition_value(text: str | None, kind: pa.DataType) -> pa.Scalar:
    """Returns the value of a partition, as the log of a commit writes it, as a value of the type of its column."""
    if not text:
        return pa.scalar(None, kind)
    if pa.types.is_binary(kind):
        return pa.scalar(binary_partition(text), kind)
    if pa.types.is_timestamp(kind):
        plain = pa.scalar(text.replace(" ", "T").rstrip("Z"), pa.string()).cast(pa.timestamp(kind.unit))
        return pa.scalar(plain.value, kind)
    return scalar_of_text(text, kind)


def binary_partition(text: str) -> bytes:
    r"""Returns the bytes that name a partition: deltalake escapes each of them (\u0061\u00FF), Spark writes them as a text."""
    if _ESCAPED.fullmatch(text):
        return bytes(int(each, 16) for each in text.split("\\u00")[1:])
    return text.encode()
