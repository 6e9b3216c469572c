"""Writes and reads the file of a manifest. Damaged files, other formats, and entries that no app writes are refused."""

import re
import zlib
from pathlib import Path

import msgspec

from sabot.engine.checkpoint.manifest import Manifest
from sabot.engine.checkpoint.manifest_checks import check_manifest, check_unique_keys
from sabot.errors import UNREADABLE, CorruptCheckpoint, InternalError

FORMAT_VERSION = 2
_FORMAT_1 = re.compile(r"chk-\d{10,}(\.tmp)?|kept-.+\.tmp")  # the folders of format 1


class _Envelope(msgspec.Struct):
    """The file of a manifest. The body is kept as the written bytes, so that its checksum can be compared."""

    format_version: int
    crc32: int
    body: msgspec.Raw


def encode_manifest(manifest: Manifest) -> bytes:
    fields = msgspec.structs.asdict(manifest)
    body = {name: value for name, value in fields.items() if name not in ("path", "place")}
    try:
        encoded = msgspec.json.encode(body)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise InternalError(
            f"its manifest cannot be written as JSON: {error}",
            hint="`describe` and the `meta` of each task take JSON values with string keys",
        ) from error
    return msgspec.json.encode(_Envelope(FORMAT_VERSION, zlib.crc32(encoded), msgspec.Raw(encoded)))


def decode_manifest(data: bytes, where: str) -> Manifest:
    try:
        envelope = msgspec.json.decode(data, type=_Envelope)
        if envelope.format_version > FORMAT_VERSION:
            raise CorruptCheckpoint(
                f"{where} was written by a newer Sabot: it has format {envelope.format_version}, not {FORMAT_VERSION}",
                hint="install that version again; or ",
            )
        if envelope.format_version < FORMAT_VERSION:
            raise _too_old(where, envelope.format_version)
        if zlib.crc32(bytes(envelope.body)) != envelope.crc32:
            raise CorruptCheckpoint(f"{where} is damaged: its checksum differs")
        manifest = msgspec.json.decode(envelope.body, type=Manifest)
        check_unique_keys(bytes(envelope.body), where)
    except UNREADABLE as error:
        raise CorruptCheckpoint(f"{where} is damaged: {error}") from error
    check_manifest(manifest, where)
    return manifest


def _too_old(where: object, version: int) -> CorruptCheckpoint:
    return CorruptCheckpoint(
        f"{where} was written by an older Sabot: it has format {version}, not {FORMAT_VERSION}",
        hint="install that version again and let the app end there; or ",
    )


def folders_of_format_1(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if _FORMAT_1.fullmatch(path.name)) if root.exists() else []


def refuse_format_1(root: Path) -> None:
    complete = [path for path in folders_of_format_1(root) if path.suffix != ".tmp"]
    if complete:
        error = _too_old(complete[-1], 1)
        error.hint += "start with --fresh, which forgets all state"
        raise error
