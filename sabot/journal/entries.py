"""What a journal holds: the entries of jobs, the letters of its inbox, and their bytes.

    BEGIN     Begin         a job begins: its input, the digest of it, the version of the code
    ATTEMPT   Attempt       the job (ordinal 0), or one of its effects, is tried
    INTENT    Intent        an effect is asked for: what, of which class, until when, under which token it is answered
    RESULT    EffectResult  what came of it, with what it used
    ANSWER    Answer        a question was answered, has expired or was withdrawn
    SIGNAL    Signal        word from outside
    CANCEL    Cancel        somebody asks the job to end
    END       End           the job is over: outcome, digest of the output

A timer is an intent of kind "sleep" with a time (`due_ms`), and its result. Effects are counted from 1 in their job; ordinal 0 is the job.

On disk an entry is one byte, the version of the format, and a msgpack array whose first value is the kind. Fields are only ever added, at
the end, with a default, so an older entry of the same version can be read. What cannot be read so is a new version.
"""

from collections.abc import Iterable
from hashlib import blake2b
from typing import Annotated, Literal, TypeVar

import msgspec

from sabot.errors import UNREADABLE, CorruptJournal, UserError, short_repr

VERSION = 1

INLINE_BYTES = 64 * 1024
"""A longer body is stored once, by its hash, and the entry names it."""


class StoredBody(msgspec.Struct, frozen=True, array_like=True):
    """In place of a body that is stored by its hash: `JournalReader.load` gives it."""

    hash: bytes
    size: int


Body = bytes | StoredBody


Number = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]


class _Base(msgspec.Struct, frozen=True, array_like=True, gc=False):
    job: str
    at_ms: Number


class JobOrigin(msgspec.Struct, frozen=True, array_like=True):
    """Where the history of a job comes from: from another job, up to one of its checkpoints. entries: behind BEGIN that are those of the
    other job; waiting: behind them, timers and questions, with what was left of their time at at_ms.
    """

    job: str
    checkpoint: str
    at_ms: int
    entries: int = 0
    waiting: int = 0


class Begin(_Base, frozen=True, array_like=True, gc=False, tag="begin"):
    """A job begins. A second one of the same job begins its history anew (`ctx.continue_as`).

    digest: of what identifies the input, where the same job may be asked for twice. code: version of the function. scope, principal: on
    whose behalf it runs; "" where nobody says. run: how often it has begun, from 1: again where it had failed, and its dead letter was sent
    back. labels: of its input. origin: of a job that goes on from a checkpoint of another one. seed: of what is drawn by lot; b"": by the
    id of the job.
    """

    agent: str = ""
    body: Body = b""
    key: bytes = b""
    digest: bytes = b""
    code: str = ""
    scope: str = ""
    principal: str = ""
    run: int = 1
    labels: tuple[str, ...] = ()
    origin: JobOrigin | None = None
    seed: bytes = b""


class Attempt(_Base, frozen=True, array_like=True, gc=False, tag="attempt"):
    """Try number `attempt`, counted from 1, of the effect, or of the job where ordinal is 0.

    note: of an effect that is under way, what was decided of another model that is asked in place of the first one, from this try on.
    """

    ordinal: Number
    attempt: Number
    note: bytes = b""


class Intent(_Base, frozen=True, array_like=True, gc=False, tag="intent"):
    """An effect is about to be made. body: what it asks. token: who has it may answer. due_ms: its deadline; 0: none.

    effect_class: one of `effects.EffectClass`; "" where the effect is the engine's own (a question, a timer). note: decisions of policy,
    the reservation of a budget, as their makers encode them.
    """

    ordinal: Number
    kind: str
    name: str = ""
    digest: bytes = b""
    effect_class: str = ""
    body: Body = b""
    token: str = ""
    due_ms: Number = 0
    note: bytes = b""


class EffectResult(_Base, frozen=True, array_like=True, gc=False, tag="result"):
    """What came of an effect. outcome: "ok", or the type of the error. usage: what it used, as the ledger encodes it. labels: of a child,
    what it has seen; ran_ms: how long that has run, without its waits for others. asked: of a tool, what the models have used that it asked
    by itself, as the limits of the job count it.
    """

    ordinal: Number
    attempt: Number = 1
    outcome: str = "ok"
    body: Body = b""
    usage: bytes = b""
    labels: tuple[str, ...] = ()
    ran_ms: Number = 0
    asked: bytes = b""


class Answer(_Base, frozen=True, array_like=True, gc=False, tag="answer"):
    """A question is closed, once. outcome: resolved, expired or cancelled. by: who says so, if known."""

    ordinal: Number
    token: str
    outcome: str = "resolved"
    body: Body = b""
    by: str = ""


class Signal(_Base, frozen=True, array_like=True, gc=False, tag="signal"):
    """Word from outside. token: the sender's own name for it, by which it comes once."""

    name: str
    token: str
    body: Body = b""
    by: str = ""


class Cancel(_Base, frozen=True, array_like=True, gc=False, tag="cancel"):
    """Somebody asks the job to end."""

    reason: str = ""
    by: str = ""


class End(_Base, frozen=True, array_like=True, gc=False, tag="end"):
    """The job is over. result: a short reference to what came of it; body: the output, or the error; labels: of what it has seen. usage:
    what its calls that have no result may have used, as the ledger encodes it.
    """

    outcome: str
    result: str = ""
    digest: bytes = b""
    body: Body = b""
    labels: tuple[str, ...] = ()
    usage: bytes = b""


Entry = Begin | Attempt | Intent | EffectResult | Answer | Signal | Cancel | End
EntryT = TypeVar("EntryT", bound=_Base)


class Letter(msgspec.Struct, frozen=True):
    """What somebody outside tells a job: an answer, the withdrawal of a question, a signal, a cancel.

    token: of the question, for an answer and a withdrawal; of a signal the sender's own, unique; a cancel needs none, there is one a job.
    job: of a signal and a cancel; a question knows its own. name: of the signal; of a withdrawal the outcome ("expired", "cancelled"); of a
    cancel the reason.
    """

    kind: Literal["answer", "withdraw", "signal", "cancel"]
    token: str = ""
    job: str = ""
    name: str = ""
    body: bytes = b""
    by: str = ""

    @property
    def once(self) -> str:
        """The name under which the inbox takes it once: of an answer and the withdrawal of the same question it is the same."""
        prefix = "token" if self.kind in ("answer", "withdraw") else self.kind
        return f"{prefix}:{self.token or self.job}"


_encoder = msgspec.msgpack.Encoder()
_decoder: "msgspec.msgpack.Decoder[Entry]" = msgspec.msgpack.Decoder(Entry)
_letters = msgspec.msgpack.Decoder(Letter)
_FIRST = bytes([VERSION])


def kind_of(entry: Entry) -> str:
    """The word of its kind: "begin", "intent", …"""
    return str(entry.__struct_config__.tag)


def body_of(entry: Entry) -> Body | None:
    """Its body; None: entries of its kind have none."""
    return getattr(entry, "body", None)


def hash_of(body: bytes) -> bytes:
    """The name of a stored body: 32 bytes."""
    return blake2b(body, digest_size=32).digest()


def with_stored_body(entry: Entry) -> tuple[Entry, bytes]:
    """The entry that names its body by hash, and the body, where that is long; else the entry, and nothing."""
    body = body_of(entry)
    if not isinstance(body, bytes) or len(body) <= INLINE_BYTES:
        return entry, b""
    return msgspec.structs.replace(entry, body=StoredBody(hash_of(body), len(body))), body


def without_body(entry: Entry) -> Entry:
    """The entry, with an empty body."""
    return msgspec.structs.replace(entry, body=b"")


def encode_entry(entry: Entry) -> bytes:
    """Version and entry as bytes. Raises UserError for an entry that could not be read again, or that no column of a table holds."""
    try:
        data = _encoder.encode(entry)
        _decoder.decode(data)
    except (*UNREADABLE, TypeError, OverflowError) as error:
        raise UserError(
            f"an entry of job {short_repr(entry.job)} cannot be written down: {error}",
            hint="its body is bytes, its names are text, its numbers are whole and have 63 bits",
        ) from error
    return _FIRST + data


def decode_entry(data: bytes, where: object) -> Entry:
    """The entry. Raises UserError for a version that this Sabot does not know, CorruptJournal for bytes that are no entry; both name
    `where`.
    """
    if data[:1] != _FIRST:
        _check_version(data[:1], where)
    try:
        return _decoder.decode(data[1:])
    except UNREADABLE as error:
        raise CorruptJournal(f"{where}: an entry cannot be read: {error}") from error


def _check_version(first: Iterable[int], where: object) -> None:
    for version in first:
        raise UserError(
            f"{where}: an entry has version {version}, and this Sabot knows {VERSION}",
            hint="a newer Sabot has written it: start with that one",
        )
    raise CorruptJournal(f"{where}: an entry is empty")


def encode_letter(letter: Letter) -> bytes:
    """Version and letter as bytes. Raises UserError for a letter that could not be read again (a body that is text, and not bytes): in an
    inbox it would be in the way of all others.
    """
    try:
        data = _encoder.encode(letter)
        _letters.decode(data)
    except (*UNREADABLE, TypeError, OverflowError) as error:
        raise UserError(
            f"a letter cannot be written down: {error}", hint="its body is bytes, the rest is text"
        ) from error
    return _FIRST + data


def decode_letter(data: bytes, where: object) -> Letter:
    """The letter. Raises as `decode_entry`."""
    if data[:1] != _FIRST:
        _check_version(data[:1], where)
    try:
        return _letters.decode(data[1:])
    except UNREADABLE as error:
        raise CorruptJournal(f"{where}: a letter of the inbox cannot be read: {error}") from error
