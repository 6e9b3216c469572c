"""The names that an app has at the server: of its slots and of its connections."""

import hashlib
import re

FRESH = "start afresh (--fresh), which reads the table again and drops the state"
"""The hint of errors behind which changes are missing."""


def slot_name(plain: str) -> str:
    """Returns the name of a slot for a text: the text itself, if it is one, else with a digest of it."""
    name = re.sub(r"[^a-z0-9_]", "_", plain.lower())
    return name if name == plain and plain.count("_") == 2 and len(name) < 60 else short(name, 59, plain)


def session_of(owner: str) -> str:
    """Returns the name of the connections of an app and a source."""
    return short(owner, 63)


def short(text: str, most: int, digested: str | None = None) -> str:
    """Returns the text, or, if it is too long or `digested` is given, its beginning with a digest."""
    if len(text.encode()) <= most and digested is None:
        return text
    digest = hashlib.sha256((digested or text).encode()).hexdigest()[:8]
    kept = text.encode()[: most - 9].decode(errors="ignore")
    return f"{kept}_{digest}"
