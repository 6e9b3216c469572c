"""The proofs between workers and their coordinator if they are not its children: a token, and certificates for TLS.

They are files of one folder, of which each machine has a copy, as Kubernetes mounts a secret:

    token                       16 characters or more
    tls.crt, tls.key, ca.crt    for TLS: the certificate, its key, and the authority that has signed those of all machines (PEM)

All certificates of an app bear the DNS name `sabot-workers`, so that one serves every machine, whatever its address.
TLS is mutual, and the same for control messages and for rows.
"""

import os
import secrets
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sabot.base.disk import regular
from sabot.base.redaction import keep_secret
from sabot.engine.exchange import Tls
from sabot.errors import UserError

CERTIFIED_NAME = "sabot-workers"
_TOKEN_LEAST = 16
_FILE_BYTES = 1 << 20
_TLS_FILES = ("tls.crt", "tls.key", "ca.crt")


def new_token() -> str:
    """Returns a random token."""
    return secrets.token_hex(32)


@dataclass(frozen=True)
class WorkerSecrets:
    """The contents of the folder. `token`: None if it has no file for it. `tls`: None if it has none of the files for
    it.
    """

    folder: str
    token: str | None
    tls: Tls | None

    @classmethod
    def read(cls, folder: str | Path) -> "WorkerSecrets":
        """Reads the folder. Blocks. Raises UserError for a file that is missing or cannot be used."""
        said = _text(Path(folder, "token"))
        token = None if said is None else said.decode("utf-8", "replace").strip()
        if token is not None:
            if len(token) < _TOKEN_LEAST:
                raise UserError(
                    f"the token in {Path(folder, 'token')} has only {len(token)} characters",
                    hint=f"make one of {_TOKEN_LEAST} or more: openssl rand -hex 32",
                )
            keep_secret(token)
        parts = {name: _text(Path(folder, name)) for name in _TLS_FILES}
        missing = [name for name, text in parts.items() if text is None]
        if missing == list(_TLS_FILES):
            return cls(os.path.abspath(folder), token, None)
        if missing:
            raise UserError(f"{folder} has no {' and no '.join(missing)}", hint=f"TLS needs {', '.join(_TLS_FILES)}")
        certificate, key, authority = (text or b"" for text in parts.values())
        found = cls(os.path.abspath(folder), token, Tls(certificate, key, authority, CERTIFIED_NAME))
        found.context(server=True)  # so that unusable files raise here
        return found

    def context(self, *, server: bool) -> ssl.SSLContext | None:
        """Returns the TLS context for one end of a control connection, or None without TLS. Blocks."""
        if self.tls is None:
            return None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
        try:
            context.load_cert_chain(Path(self.folder, "tls.crt"), Path(self.folder, "tls.key"), password=_no_password)
            context.load_verify_locations(cadata=self.tls.authority.decode("ascii", "replace"))
        except (OSError, ValueError) as error:  # an SSLError is an OSError
            raise UserError(
                f"the certificates in {self.folder} cannot be used: {getattr(error, 'reason', None) or error}",
                hint="they must be PEM files: tls.crt, its tls.key without a password, and ca.crt",
            ) from error
        context.verify_mode = ssl.CERT_REQUIRED
        return context


def check_certified(certificate: Mapping[str, Any], peer: str) -> None:
    """Raises UserError if the certificate of a worker is for another name than CERTIFIED_NAME. The client's end of a
    connection has this check in the TLS library; the library has none for a server, which knows no name of its client.
    The name has one label, so no wildcard matches it, and the rule of the library is that the names are equal: those in
    the extension for alternative names, or the common name if it has none of them.

    `certificate`: as `SSLObject.getpeercert` returns it, so that its signature was verified. `peer`: the address of the
    worker.
    """
    names = [name for kind, name in certificate.get("subjectAltName", ()) if kind == "DNS"]
    names = names or [text for part in certificate.get("subject", ()) for kind, text in part if kind == "commonName"]
    if CERTIFIED_NAME not in [each.lower() for each in names]:
        raise UserError(
            f"the worker at {peer} is refused, because its certificate is for {', '.join(names)[:200] or 'no name'}",
            hint=f"make it for the DNS name {CERTIFIED_NAME}",
        )


def _text(path: Path) -> bytes | None:
    """Returns the contents of a file, or None if there is no such file. Links are followed, because Kubernetes mounts
    secrets as links.
    """
    try:
        with open(path.resolve(), "rb", opener=regular) as file:
            return file.read(_FILE_BYTES)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error


def _no_password() -> bytes:
    raise ValueError("tls.key has a password")
