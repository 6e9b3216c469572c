"""What a BEGIN entry says of its job in lists and lanes: agent, scope, principal, session, key and time."""

from contextlib import suppress

import msgspec

from sabot.errors import UNREADABLE
from sabot.journal.ended_jobs import cut
from sabot.journal.entries import Begin

_GROUP_BYTES = 2  # of a key group, before the key


class _Requested(msgspec.Struct):
    """The facts in the body of a BEGIN entry that the job store of an earlier version has written: they are nowhere else."""

    scope_id: str = ""
    principal_id: str = ""
    session_id: str = ""


_requested = msgspec.json.Decoder(_Requested)
_key = msgspec.msgpack.Decoder()


def key_text(key: bytes) -> str:
    """Returns the key of a job's record as a text. `key` is the encoded key in the BEGIN entry of the job. Returns ""
    if it is empty, because the job's agent has no `key=`, or if it cannot be decoded.
    """
    with suppress(*UNREADABLE):
        found = _key.decode(key[_GROUP_BYTES:]) if key else ""
        return found if isinstance(found, str) else str(found)
    return ""


def stored_key(text: str) -> bytes:
    """Returns the key of a job as a BEGIN entry has it. `text`: the key as a text; "" for none."""
    return bytes(_GROUP_BYTES) + msgspec.msgpack.encode(text) if text else b""


def facts_of(begin: Begin) -> tuple[str, str, str, str, str]:
    """Returns what lists show of a BEGIN entry: agent, scope, principal, session and key, as in a JobMark."""
    said = begin.scope, begin.principal, begin.session
    if not begin.agent and not begin.scope and isinstance(begin.body, bytes):
        with suppress(*UNREADABLE):
            spec = _requested.decode(begin.body)
            said = spec.scope_id, spec.principal_id, spec.session_id
    scope, principal, session = map(cut, said)
    return cut(begin.agent), scope, principal, session, cut(key_text(begin.key))


def created_of(begin: Begin) -> int:
    """Returns the time at which a job was created, in milliseconds since 1970: that of its BEGIN entry, or that at which
    it continued another job.
    """
    return begin.at_ms if begin.origin is None else begin.origin.at_ms
