"""Tables of Delta Lake as other programs write them: commits that are written by hand, and deletion vectors, which deltalake reads only."""

import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_Z85 = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#"
_MAGIC = 1_681_511_377  # of a deletion vector
_ARRAYS = 12_346  # a bitmap of 32 bits whose parts are arrays


def entry(table: Path, version: int) -> Path:
    """The entry of the log for a version."""
    return table / "_delta_log" / f"{version:020}.json"


def actions(table: Path, version: int, kind: str) -> list[dict[str, Any]]:
    """The actions of this kind in a commit."""
    found = map(json.loads, entry(table, version).read_text().splitlines())
    return [action[kind] for action in found if kind in action]


def commit(table: Path, version: int, *given: Mapping[str, Any]) -> None:
    """Writes a commit."""
    entry(table, version).write_text("".join(json.dumps(action) + "\n" for action in given))


def deletion_vector(rows: Sequence[int]) -> dict[str, Any]:
    """A deletion vector of these rows (below 65,536), in the log itself."""
    header = struct.pack("<IIHH", _ARRAYS, 1, 0, len(rows) - 1) + struct.pack("<I", 16)
    data = struct.pack("<iqI", _MAGIC, 1, 0) + header + struct.pack(f"<{len(rows)}H", *sorted(rows))
    padded = data + bytes(-len(data) % 4)
    text = ""
    for at in range(0, len(padded), 4):
        number = int.from_bytes(padded[at : at + 4])
        text += "".join(_Z85[number // 85**power % 85] for power in range(4, -1, -1))
    return {"storageType": "i", "pathOrInlineDv": text, "sizeInBytes": len(data), "cardinality": len(rows)}


def delete_rows(table: Path, version: int, add: Mapping[str, Any], rows: Sequence[int]) -> dict[str, Any]:
    """Commits that these rows of a file are deleted, as Spark does it; `rows` also has those that were deleted before. Returns the file."""
    removed = {name: add[name] for name in ("path", "partitionValues", "size", "deletionVector") if name in add}
    marked = {**add, "deletionVector": deletion_vector(rows), "dataChange": True}
    commit(table, version, {"remove": {**removed, "deletionTimestamp": 1, "dataChange": True}}, {"add": marked})
    return marked
