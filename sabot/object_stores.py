"""Object stores as pyarrow has them, and the addresses by which users name them: s3://, gs://, az:// and abfs://, hdfs://."""

import os

import pyarrow as pa
from pyarrow import fs as arrow_fs

from sabot.errors import UserError
from sabot.redaction import has_password, keep_url, redacted_url

__all__ = ["ADDRESSES", "OBJECT_STORES", "check_bucket", "found_by"]

OBJECT_STORES = frozenset(["s3", "gcs", "abfs"])
"""The file systems of pyarrow's in which an object exists only when it was sent completely, and needs no folder, but a bucket."""

ADDRESSES = (
    "s3://bucket/path, gs://…, az://container/path (account: AZURE_STORAGE_ACCOUNT), abfs://…, hdfs://…;"
    " behind a ? stand options, such as region"
)
_KEYS = (
    "in a name or a key / is written %2F, + %2B, @ %40, : %3A; or leave them out, and let the environment say who calls"
)
_PATIENCE_S = 60  # Google's client goes on for a quarter of an hour, without a word, where its store does not answer


def found_by(address: str, what: str = "") -> tuple[arrow_fs.FileSystem, str, str]:
    """(the file system, the path in it, the address as it may be shown: without keys and options). Nothing is asked yet.

    Raises UserError for an address that cannot be read. what: that it is no such thing, for the message.
    """
    keep_url(address)
    shown = redacted_url(address).partition("?")[0]
    try:
        filesystem, inside = arrow_fs.FileSystem.from_uri(_known_to_arrow(address))
    except (pa.ArrowException, OSError, ValueError) as error:
        # The error quotes the part of the address that it cannot read, which may be part of a key that has a / in it.
        secret = "@" in address or has_password(address)
        why = "its address cannot be read" if secret else str(error).replace(address, shown)
        raise UserError(f"{shown}{what}: {why}", hint=_KEYS if secret else ADDRESSES) from (None if secret else error)
    if filesystem.type_name in OBJECT_STORES and not inside.strip("/"):
        raise UserError(f"{shown}{what}: it names no bucket", hint=ADDRESSES)
    return filesystem, inside, shown


def check_bucket(filesystem: arrow_fs.FileSystem, inside: str, where: str) -> None:
    """Raises UserError where an object store says that it has no such bucket (or container): what it says of an object in there is the same
    as of one that is missing, or a text of its own. inside: the path in the file system; where: as it is shown.
    """
    bucket = inside.partition("/")[0]
    if filesystem.type_name not in OBJECT_STORES or not bucket:
        return
    try:
        (info,) = filesystem.get_file_info([bucket])
    except OSError:  # who may use the objects need not be allowed to ask for the bucket
        return
    if info.type == arrow_fs.FileType.NotFound:
        raise UserError(
            f"{where}: the store has no bucket {bucket!r}",
            hint="make it, or correct its name; endpoint_override= behind the ? of the address names another store",
        )


def _known_to_arrow(address: str) -> str:
    scheme, _, rest = address.partition("://")
    if scheme in ("gs", "gcs") and "retry_limit_seconds=" not in rest:
        return f"{address}{'&' if '?' in rest else '?'}retry_limit_seconds={_PATIENCE_S}"
    if scheme != "az":
        return address
    # az://container/path is abfs://account@container/path there.
    account = os.environ.get("AZURE_STORAGE_ACCOUNT") or os.environ.get("AZURE_STORAGE_ACCOUNT_NAME")
    return f"abfs://{rest}" if "@" in rest.partition("/")[0] or not account else f"abfs://{account}@{rest}"
