"""The content of a journal: the entries of jobs, the letters of its inbox, and their encoding.

   BEGIN     Begin         a job begins: its input, the digest of it, the version of the code
   ATTEMPT   Attempt       the job (ordinal 0), or one of its effects, is tried
   INTENT    Intent        an effect is asked for: its arguments, its class, its deadline, the token for its answer
   RESULT    EffectResult  the outcome of an effect, with its usage
   ANSWER    Answer        a question was answered, has expired or was withdrawn
   SIGNAL    Signal        a message from outside
   CANCEL    Cancel        somebody asks the job to end
   END       End           the job is over: outcome, digest of the output

A timer is an intent of kind "sleep" with a time (`due_ms`), and its result. Effects are counted from 1 in their job;
ordinal 0 is the job.

On disk an entry is one byte, the version of the format, and a msgpack array whose first value is the kind. Fields are
only added, at the end, with a default, so that older entries of the same version can be read. Any other change needs a
new version.
"""

from collections.abc import Iterable
from hashlib import blake2b
from typing import Annotated, Literal, TypeVar

import msgspec

from sabot.errors import UNREADABLE, CorruptJournal, UserError, short_repr

VERSION = 1

INLINE_BYTES = 64 * 1024
"""The longest body in bytes that stands in its entry. A longer one is stored once, under its hash, which the entry names."""


class StoredBody(msgspec.Struct, frozen=True, array_like=True):
    """A reference to a body that is stored under its hash. `JournalReader.load` loads it."""

    hash: bytes
    size: int


Body = bytes | StoredBody


Number = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]


class _Base(msgspec.Struct, frozen=True, array_like=True, gc=False):
    job: str
    at_ms: Number


class JobOrigin(msgspec.Struct, frozen=True, array_like=True):
    """The origin of a job that continues another job from one of that job's checkpoints. `entries` is the number of
    entries after BEGIN that were copied from the other job. `waiting` is the number of entries that follow them: the
    intents of timers and questions that were open, with the time that they had left at `at_ms`.
    """

    job: str
    checkpoint: str
    at_ms: int
    entries: int = 0
    waiting: int = 0


class Begin(_Base, frozen=True, array_like=True, gc=False, tag="begin"):
    """The beginning of a job. A second BEGIN of the same job begins its history anew (`ctx.continue_as`).

    `digest` is the digest of the input; it is empty if the same job cannot be asked for twice. `code` is the version of
    the function. `scope` and `principal` name the tenant and the person for whom the job runs, or are "". `run` is 1 at
    first. It is one higher each time that the job begins again, after a failure whose dead letter was sent back.
    `labels` are the labels of the input. `origin` is set if the job continues another one. `seed` is the seed of random
    values; with b"" the id of the job is the seed.
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


UNSENT = b"\xc0"
"""The note of an attempt that was certainly not sent, and that another attempt follows. As msgpack it is nil: no decision."""


class Attempt(_Base, frozen=True, array_like=True, gc=False, tag="attempt"):
    """An attempt of an effect, or of the job if `ordinal` is 0. `attempt` counts from 1.

    An entry without a `note` says that this attempt begins. With the note `UNSENT` it says that this attempt, which had
    begun, was certainly not sent. With any other note it says that another model is asked from this attempt on; the
    note has the guard's decision on that model.
    """

    ordinal: Number
    attempt: Number
    note: bytes = b""


class Intent(_Base, frozen=True, array_like=True, gc=False, tag="intent"):
    """The intent to make an effect. `body` has the arguments. If it has a `token`, whoever knows the token may answer
    it. `due_ms` is the deadline in milliseconds since 1970, or 0 if there is none.

    `effect_class` is one of `effects.EffectClass`, or "" for an effect of the engine itself (a question, a timer).
    `note` has the decision of the guards: policy and reserved budget, in their own encoding.
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
    """The result of an effect. `outcome` is "ok", or the type of the error. `usage` is the usage of the call, in the
    encoding of the ledger. For a child, `labels` are the labels of all data that the child has seen, and `ran_ms` is
    the time that it has run, in milliseconds, without the time in which it waited. For a tool, `asked` is the usage of
    the models that the tool itself has asked, as the limits of the job count it.
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
    """The end of a question. `outcome` is resolved, expired or cancelled. `by` is the person who answered, if known."""

    ordinal: Number
    token: str
    outcome: str = "resolved"
    body: Body = b""
    by: str = ""


class Signal(_Base, frozen=True, array_like=True, gc=False, tag="signal"):
    """A message from outside. `token` is chosen by the sender; a signal with the same token is accepted once."""

    name: str
    token: str
    body: Body = b""
    by: str = ""


class Cancel(_Base, frozen=True, array_like=True, gc=False, tag="cancel"):
    """A request to end the job."""

    reason: str = ""
    by: str = ""


class End(_Base, frozen=True, array_like=True, gc=False, tag="end"):
    """The end of a job. `result` is a short reference to its result. `body` has the output, or the error. `labels` are
    the labels of all data that the job has seen. `usage` is an upper bound of the usage of its calls without a result,
    in the encoding of the ledger.
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
    """A letter to a job: an answer to a question, the withdrawal of a question, a signal, or a cancel.

    `token` is the token of the question. A signal has a unique token that the sender has chosen. A cancel has none,
    because each job takes one cancel. `job` is set for a signal and a cancel; for the others the question names the
    job. `name` is the name of the signal, the outcome of a withdrawal ("expired", "cancelled"), or the reason of a
    cancel.
    """

    kind: Literal["answer", "withdraw", "signal", "cancel"]
    token: str = ""
    job: str = ""
    name: str = ""
    body: bytes = b""
    by: str = ""

    @property
    def once(self) -> str:
        """The name of which the inbox accepts one letter only. An answer and the withdrawal of the same question have
        the same name, so only one of them is accepted.
        """
        prefix = "token" if self.kind in ("answer", "withdraw") else self.kind
        return f"{prefix}:{self.token or self.job}"


_encoder = msgspec.msgpack.Encoder()
_decoder: "msgspec.msgpack.Decoder[Entry]" = msgspec.msgpack.Decoder(Entry)
_letters = msgspec.msgpack.Decoder(Letter)
_FIRST = bytes([VERSION])


def kind_of(entry: Entry) -> str:
    """Returns the name of the entry's kind: "begin", "intent", …"""
    return str(entry.__struct_config__.tag)


def body_of(entry: Entry) -> Body | None:
    """Returns the entry's body, or None if entries of this kind have none."""
    return getattr(entry, "body", None)


def hash_of(body: bytes) -> bytes:
    """Returns the hash of a body, 32 bytes, under which it is stored."""
    return blake2b(body, digest_size=32).digest()


def with_stored_body(entry: Entry) -> tuple[Entry, bytes]:
    """Moves a long body out of an entry. Returns the entry with a reference in place of the body, and the body. If the
    body is short, returns the entry unchanged, and b"".
    """
    body = body_of(entry)
    if not isinstance(body, bytes) or len(body) <= INLINE_BYTES:
        return entry, b""
    return msgspec.structs.replace(entry, body=StoredBody(hash_of(body), len(body))), body


def without_body(entry: Entry) -> Entry:
    """Returns the entry with an empty body."""
    return msgspec.structs.replace(entry, body=b"")


def encode_entry(entry: Entry) -> bytes:
    """Encodes the version and an entry. Raises UserError for an entry that could not be read again, or that does not
    fit the columns of a table.
    """
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
    """Decodes an entry. Raises UserError for a version that this Sabot does not know, and CorruptJournal for other
    bytes; both errors name `where`.
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
    """Encodes the version and a letter. Raises UserError for a letter that could not be decoded again (for example, one
    whose body is a text and not bytes): it would block the inbox for all letters behind it.
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
    """Decodes a letter. Raises the errors of `decode_entry`."""
    if data[:1] != _FIRST:
        _check_version(data[:1], where)
    try:
        return _letters.decode(data[1:])
    except UNREADABLE as error:
        raise CorruptJournal(f"{where}: a letter of the inbox cannot be read: {error}") from error
