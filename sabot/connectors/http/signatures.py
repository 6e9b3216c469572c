"""The signatures of senders: whether a request is from one who knows the secret."""

import hmac
from base64 import b64decode, b64encode
from binascii import Error as NoBase64
from collections.abc import Mapping, Sequence
from hashlib import sha256

from sabot.base.config import Secret
from sabot.base.dataclass import dataclass
from sabot.base.redaction import keep_secret
from sabot.errors import UserError

TOLERANCE_SECONDS = 300.0
_STANDARD_SECRET = "whsec_"


@dataclass(frozen=True)
class Scheme:
    """The signatures of a kind of sender. `header`: the one that has them. `key`: what names a delivery: a header, or "$." and a path in
    the body; "" if nothing does.
    """

    header: str
    key: str = ""


SCHEMES = {
    "standard": Scheme("webhook-signature", "webhook-id"),
    "stripe": Scheme("stripe-signature", "$.id"),
    "github": Scheme("x-hub-signature-256", "x-github-delivery"),
}


class Signatures:
    """The check of the signatures of one sender. `verify`: a name in SCHEMES, or that of a header with the HMAC-SHA256 of the body, in
    hex or base64, with or without "sha256=". `secrets`: any of which may have signed, as they are changed one by one.
    """

    def __init__(self, verify: str, secrets: Sequence[str | Secret]) -> None:
        self._verify = verify
        self.header = SCHEMES[verify].header if verify in SCHEMES else verify.lower()
        self._secrets = secrets
        self._keys: list[bytes] = []

    def open(self) -> None:
        """Reads the secrets. Raises UserError."""
        self._keys = [self._key_of(each.read() if isinstance(each, Secret) else each) for each in self._secrets]

    def _key_of(self, secret: str) -> bytes:
        keep_secret(secret)
        if self._verify != "standard":
            return secret.encode()
        try:
            return b64decode(secret.removeprefix(_STANDARD_SECRET), validate=True)
        except (NoBase64, ValueError):
            raise UserError(
                "WebhookSource: the secret is no base64, as those of Standard Webhooks are", hint='"whsec_…"'
            ) from None

    def refusal(self, headers: Mapping[str, str], body: bytes, now_s: float) -> str:
        """Returns why a request is refused, or "" if it is signed by one of the secrets. `headers`: by names in small letters."""
        given = headers.get(self.header, "")
        if not given:
            return f"it has no {self.header}"
        signed, found, at = body, [given.strip()], ""
        if self._verify == "stripe":
            parts = [part.strip().partition("=") for part in given.split(",")]
            at = next((value for name, _, value in parts if name == "t"), "")
            found = [value for name, _, value in parts if name == "v1"]
            signed = at.encode() + b"." + body
        elif self._verify == "standard":
            at = headers.get("webhook-timestamp", "")
            found = [part.removeprefix("v1,") for part in given.split() if part.startswith("v1,")]
            signed = f"{headers.get('webhook-id', '')}.{at}.".encode() + body
        else:
            found = [given.strip().removeprefix("sha256=")]
        if self._verify in ("stripe", "standard"):
            if not (at.isascii() and at.isdigit() and len(at) < 15):
                return "its signature has no time"
            if abs(now_s - int(at)) > TOLERANCE_SECONDS:
                return f"it was signed {now_s - int(at):.0f} s ago, by the clock of this machine"
        right = [digest for key in self._keys for digest in _forms(hmac.new(key, signed, sha256).digest())]
        # Each is compared with each, and in constant time, so that the time tells nothing.
        same = [hmac.compare_digest(each.encode(), form) for each in found for form in right]
        return "" if any(same) else "its signature is of another secret or another body"


def _forms(digest: bytes) -> tuple[bytes, bytes]:
    return digest.hex().encode(), b64encode(digest)
