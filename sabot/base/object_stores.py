"""Addresses of object stores (s3://, gs://, az:// and abfs://, hdfs://) and the file systems of pyarrow for them."""

import os
import re
from pathlib import Path
from urllib.parse import urlsplit

import pyarrow as pa
from pyarrow import fs as arrow_fs

from sabot.base.redaction import has_password, keep_url, redacted_url
from sabot.errors import UserError

OBJECT_STORES = frozenset(["s3", "gcs", "abfs"])
"""The file systems of pyarrow in which an object appears only when it was sent completely. They need a bucket, and no
folders.
"""

_ADDRESSES = (
    "s3://bucket/path, gs://…, az://container/path (account: AZURE_STORAGE_ACCOUNT), abfs://…, hdfs://…;"
    " behind a ? stand options, such as region"
)
_KEYS = "in a name or a key / is written %2F, + %2B, @ %40, : %3A; or leave them out, and set them in the environment"
_WHO_CALLS = {
    "s3": "credentials come from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or the role of the machine; for public data:"
    ' files((S3FileSystem(anonymous=True), "bucket/path"))',
    "gcs": "credentials come from GOOGLE_APPLICATION_CREDENTIALS=key.json, `gcloud auth application-default login`, or the account of the"
    " machine; for public data: gs://anonymous@bucket/…",
    "abfs": "credentials come from AZURE_TENANT_ID, AZURE_CLIENT_ID and AZURE_CLIENT_SECRET, `az login`, or the identity of the machine;"
    " AZURE_STORAGE_ACCOUNT names the account",
}
_NOBODY = re.compile(
    r"ACCESS_DENIED|INVALID_ACCESS_KEY_ID|SIGNATURE_DOES_NOT_MATCH|HTTP status 40[13]"
    r"|UNAUTHENTICATED|PERMISSION_DENIED|OAuth2|AuthenticationException"
)
_AWAY = re.compile(r"NETWORK_CONNECTION|could(n.t| not) connect|connection refused|resolve host", re.IGNORECASE)
_NOT_REACHED = (
    "it does not answer: check that it runs and that this machine can reach it; endpoint_override=HOST:PORT behind the ? of the address"
    " gives another server than the vendor's"
)
_PATIENCE_S = 60  # without this limit, Google's client retries for a quarter of an hour, and logs nothing
_ANSWER_S = 3.0  # the longest wait for the metadata server of a Google machine
_LOGIN = "application_default_credentials.json"


def found_by(address: str, what: str = "") -> tuple[arrow_fs.FileSystem, str, str]:
    """Returns the file system for an address, the path in it, and the address without keys and options, as messages
    may show it. Sends nothing, except a request for the region of an S3 bucket if the address names none.

    `what`: words that are put behind the address in messages. Raises UserError for an address that cannot be read,
    and for a Google address without credentials, because Google's client would search for them for minutes.
    """
    keep_url(address)
    shown = redacted_url(address).partition("?")[0]
    try:
        filesystem, inside = arrow_fs.FileSystem.from_uri(_known_to_arrow(address))
    except (pa.ArrowException, OSError, ValueError) as error:
        # The error quotes the part of the address that it cannot read, which may be part of a key that has a / in it.
        secret = "@" in address or has_password(address)
        why = "its address cannot be read" if secret else str(error).replace(address, shown)
        raise UserError(f"{shown}{what}: {why}", hint=_KEYS if secret else _ADDRESSES) from (None if secret else error)
    if filesystem.type_name in OBJECT_STORES and not inside.strip("/"):
        raise UserError(f"{shown}{what}: it names no bucket", hint=_ADDRESSES)
    if filesystem.type_name == "gcs" and _nobody_calls(address):
        raise UserError(f"{shown}{what}: there are no credentials", hint=_WHO_CALLS["gcs"])
    return filesystem, inside, shown


def check_bucket(filesystem: arrow_fs.FileSystem, inside: str, where: str) -> None:
    """Raises UserError if an object store reports that the bucket (or container) does not exist. The store's errors
    for objects in a missing bucket do not mention the bucket, so it is looked up here.

    `inside`: the path in the file system, which begins with the bucket. `where`: the address, for the message.
    Blocks. Returns normally if the store does not allow the lookup.
    """
    bucket = inside.partition("/")[0]
    if filesystem.type_name not in OBJECT_STORES or not bucket:
        return
    try:
        (info,) = filesystem.get_file_info([bucket])
    except OSError:  # a user of the objects may lack the permission to look up the bucket
        return
    if info.type == arrow_fs.FileType.NotFound:
        raise UserError(
            f"{where}: the store has no bucket {bucket!r}",
            hint="make it, or correct its name; endpoint_override= behind the ? of the address names another store",
        )


def hint_of_store(filesystem: arrow_fs.FileSystem, words: str) -> str:
    """Returns a hint for an error of a store. `words`: the text of that error."""
    if _NOBODY.search(words):
        return _WHO_CALLS.get(filesystem.type_name, _ADDRESSES)
    return _NOT_REACHED if _AWAY.search(words) else _ADDRESSES


def _nobody_calls(address: str) -> bool:
    """Returns True if no credentials for Google are found: none in the address, no key file, no login, and this is no
    machine of Google with an account. Google's client itself needs two minutes to find that out. Blocks for at most 3
    s.
    """
    url, environ = urlsplit(address), os.environ
    if url.username is not None or "endpoint_override=" in url.query or environ.get("GOOGLE_APPLICATION_CREDENTIALS"):
        return False
    login = Path(environ.get("APPDATA") or Path(environ.get("HOME", "/"), ".config"), "gcloud", _LOGIN)
    return not login.exists() and not _is_googles(environ.get("GCE_METADATA_HOST") or "metadata.google.internal")


def _is_googles(host: str) -> bool:
    """Returns True if the host is the metadata server of a machine of Google. Blocks for at most 3 s."""
    from http.client import HTTPConnection, HTTPException

    server = HTTPConnection(host, timeout=_ANSWER_S)
    try:
        server.request("GET", "/", headers={"Metadata-Flavor": "Google"})
        return server.getresponse().getheader("Metadata-Flavor") == "Google"
    except (OSError, HTTPException):
        return False
    finally:
        server.close()


def _known_to_arrow(address: str) -> str:
    scheme, _, rest = address.partition("://")
    if scheme in ("gs", "gcs") and "retry_limit_seconds=" not in rest:
        return f"{address}{'&' if '?' in rest else '?'}retry_limit_seconds={_PATIENCE_S}"
    if scheme != "az":
        return address
    # az://container/path is abfs://account@container/path there.
    account = os.environ.get("AZURE_STORAGE_ACCOUNT") or os.environ.get("AZURE_STORAGE_ACCOUNT_NAME")
    return f"abfs://{rest}" if "@" in rest.partition("/")[0] or not account else f"abfs://{account}@{rest}"
