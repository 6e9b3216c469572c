"""The files that a source has begun to read, as a checkpoint knows them. A position is a place in a file with these bytes:
under the same name there may be another file now, such as a log that was rotated.

A record is written when a file is begun, and once more when it is ended. Records are saved in blocks, and a checkpoint stores a
block only if its bytes are new, so a file that was read costs later checkpoints nothing.
"""

from collections.abc import Iterable, Mapping
from hashlib import blake2b

import msgspec

from sabot.connectors.files.paths import DataFile, open_raw
from sabot.connectors.files.remote import RemotePath

_HEAD_BYTES = 4096
_BLOCK = 1024  # records


class Begun(msgspec.Struct, array_like=True):
    """A file that was begun. `mark`, `head`: as in `FileMark`. `size`, `stamp`: as of `DataFile`, when it was begun. `end`: the
    offset up to which it was read, or -1 while it is read. `start`: the offset at which the last run began to read what had been
    added to it, or -1 if nothing had been.
    """

    path: str
    size: int
    stamp: int
    mark: str
    head: int
    end: int = -1
    start: int = -1


class FileMark(msgspec.Struct):
    """The mark that tells two files of the same name apart: the ETag of an object (`head` is 0), or a hash of the first `head` bytes. Of a
    file that does not grow, the hash is of as many bytes at its end too. "" is unknown.
    """

    mark: str = ""
    head: int = 0


def mark_of(file: DataFile, *, both_ends: bool, head: int = _HEAD_BYTES) -> FileMark:
    """Returns the mark of a file as it is now. `head`: how many of its first bytes are looked at. Raises OSError."""
    with open_raw(file.path) as raw:
        if isinstance(file.path, RemotePath) and file.path.tag:
            return FileMark(file.path.tag, 0)
        found = blake2b(first := raw.read(min(head, file.size)), digest_size=16)
        if both_ends:
            raw.seek(max(0, file.size - head))
            found.update(raw.read(head))
    return FileMark(found.hexdigest(), len(first))


class BegunFiles:
    """The records of the files that a reader has begun, by their numbers. None for a file of which nothing is known. One thread
    changes them, and any thread may ask for `remember`.
    """

    def __init__(self, records: Iterable[Begun | None] = ()) -> None:
        self._records = list(records)
        self._blocks: dict[int, bytes] = {}  # encoded

    def begin(self, number: int, record: Begun) -> None:
        """Notes that the file with this number was begun."""
        while len(self._records) <= number:
            self._records.append(None)
        self._records[number] = record
        self._blocks.pop(number // _BLOCK, None)

    def end(self, number: int, offset: int) -> None:
        """Notes that the file was read up to this offset, which is its end."""
        record = self._records[number] if number < len(self._records) else None
        if record is not None:
            self._records[number] = msgspec.structs.replace(record, end=offset)
            self._blocks.pop(number // _BLOCK, None)

    def get(self, number: int) -> Begun | None:
        """Returns the record of the file with this number."""
        return self._records[number] if number < len(self._records) else None

    def remember(self) -> dict[str, bytes]:
        """Returns the records for a checkpoint, as blocks by their names."""
        blocks = range(-(-len(self._records) // _BLOCK))
        for block in blocks:
            if block not in self._blocks:
                self._blocks[block] = msgspec.msgpack.encode(self._records[block * _BLOCK : (block + 1) * _BLOCK])
        return {f"{block:06d}": self._blocks[block] for block in blocks}


def recalled(memory: Mapping[str, bytes]) -> list[Begun | None]:
    """Returns the records that `remember` has given. Raises `msgspec.DecodeError`."""
    return [each for name in sorted(memory) for each in msgspec.msgpack.decode(memory[name], type=list[Begun | None])]


def difference(record: Begun, file: DataFile, *, grows: bool) -> str:
    """Returns how a file differs from the one that was begun, or "" if it is the same one, which may have grown. `grows`: False
    for a format whose files never do. Raises OSError.
    """
    if not record.mark:
        return ""
    if file.size < record.size:
        return f"has {file.size:,} bytes now, and had {record.size:,}"
    if not grows and file.size != record.size:
        return f"was written again, with {file.size:,} bytes in place of {record.size:,}"
    found = mark_of(file, both_ends=not grows, head=record.head or _HEAD_BYTES)
    if found.mark == record.mark:
        return ""
    return "begins with other bytes now" if record.head else "has another ETag now"
