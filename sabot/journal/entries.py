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
"""The most bytes of a body that is stored inside of its entry. A longer body is stored apart, once, under its hash; the
entry has the hash.
"""


class StoredBody(msgspec.Struct, frozen=True, array_like=True):
    """A reference to a long body, which is stored outside of its entry under its hash. `JournalReader.load` returns
    the bytes. `size`: their number.
    """

    hash: bytes
    size: int


Body = bytes | StoredBody


Number = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]


class _Base(msgspec.Struct, frozen=True, array_like=True, gc=False):
    job: str
    at_ms: Number


class JobOrigin(msgspec.Struct, frozen=True, array_like=True):
    """The origin of a job that continues from a checkpoint of another job.

    - `job`, `checkpoint`: the id of the other job, and the name of its checkpoint.
    - `at_ms`: the time at which this job began, in milliseconds since 1970.
    - `entries`: the number of entries after BEGIN that are copies of entries of the other job.
    - `waiting`: the number of entries that follow these copies: the INTENT entries of the timers and questions that
      were open at the checkpoint. Each has as much time left, from `at_ms` on, as it had at the checkpoint.
    """

    job: str
    checkpoint: str
    at_ms: int
    entries: int = 0
    waiting: int = 0


class Begin(_Base, frozen=True, array_like=True, gc=False, tag="begin"):
    """The entry that begins a job. A second BEGIN entry of the same job begins a new history (`ctx.continue_as`).
    After an END entry, it begins another run of the job, with a replay of its history.

    - `agent`: the id of the agent. `body`: the input. `key`: the key of the job's record.
    - `digest`: the digest of the input, by which the same job is recognized if it is requested a second time; empty
      if that cannot happen.
    - `code`: the version of the function.
    - `scope`, `principal`: the tenant and the person for whom the job runs, or "".
    - `run`: 1 for the first run of the job, and one more each time that it begins again because its dead letter was
      sent again.
    - `labels`: the labels of the input, such as "untrusted".
    - `origin`: set if the job continues from a checkpoint of another job; else None.
    - `seed`: the seed of random values. With b"" and b"\\x01" the seed is made from the id of the job. With b"" all values
      are drawn from one sequence, as of earlier versions; otherwise ids and numbers have a sequence each.
    - `session`: the session (the conversation) to which the job belongs, or "".
    - `form`: the form of `body`, if not only the agent reads it: REQUEST for the request of a kernel, else "".
    - `within`: if the tool of another job's effect has begun the job by an idempotency key, the key of that effect
      (`EffectId.key`), by which a later attempt of it knows this job again; else "".
    - `salt`: is in the idempotency keys of the job's effects (`EffectId.salt`), so that the same job of another journal
      has others; b"" for a job of an earlier version, and of a journal in memory.
    - `declared`: which of the options "policy" and "budgets" the app or kernel has that begins the job, or begins it again;
      of a child also those of its parent.
    - `keeps`: True if a child that an earlier run or attempt has cancelled runs again, over what it has made. With False, as
      of earlier versions, another child takes its place.
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
    session: str = ""
    form: str = ""
    within: str = ""
    salt: bytes = b""
    declared: tuple[str, ...] = ()
    keeps: bool = False


REQUEST = "request"
"""The form of the body of a BEGIN entry that has the request of a kernel: a dict in msgpack, whose "prompt" is the input.
"""

UNSENT = b"\xc0"
"""The note of an attempt that was certainly not sent and that another attempt follows. As msgpack these bytes are nil,
so they are not taken for the decision of a guard.
"""


class Attempt(_Base, frozen=True, array_like=True, gc=False, tag="attempt"):
    """The entry for an attempt of an effect, or of the job itself if `ordinal` is 0. `attempt`: the number of the
    attempt, from 1. `note` says what has happened:

    - b"": the attempt begins.
    - UNSENT: the attempt had begun, and the call was certainly not sent.
    - Any other bytes: from this attempt on, the call asks another model. The note contains the guard's decision on
      that model. For an attempt of the job itself: the attempt before could not use the answer of a model, which is
      asked again. The note contains the error.

    `keeps`: as in `Begin`, for an attempt of the job itself.
    """

    ordinal: Number
    attempt: Number
    note: bytes = b""
    keeps: bool = False


class Intent(_Base, frozen=True, array_like=True, gc=False, tag="intent"):
    """The entry by which an effect is recorded before it is made.

    - `kind`: the kind of the effect, such as "call", "ask" or "sleep". `name`: for a call, the name of the tool.
    - `digest`, `body`: the digest of the arguments, and the arguments.
    - `effect_class`: the class (`effects.EffectClass`); "" for an effect of Sabot itself, such as a question or a
      timer.
    - `token`: for a question, the token by which it can be answered.
    - `due_ms`: the deadline in milliseconds since 1970; 0 for none.
    - `note`: the decision of the guards, encoded, with the tokens and the cost that are reserved for the effect.
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
    """The entry with the result of an effect.

    - `outcome`: "ok", or the type of the error. `body`: the value or the error. `attempt`: 0 if a person or the end of the job
      came before the first one, and for a child that was given up before it had begun.
    - `usage`: the usage of the call, encoded as for the ledger (the table with the costs of calls).
    - `asked`: for a tool, the usage of the models that the tool itself has asked. It is counted in the limits of the
      job.
    - `labels`: for a child, the labels of all data that the child has received; for a tool, those of the results that
      it got from tools which it called itself.
    - `ran_ms`: for a child, the milliseconds that it has run. The time in which it waited for others is not included.
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
    """The entry that ends a question. `outcome`: "resolved" if somebody has answered, and otherwise "expired" or
    "cancelled". `body`: the answer. `by`: the person who answered, if known.
    """

    ordinal: Number
    token: str
    outcome: str = "resolved"
    body: Body = b""
    by: str = ""


class Signal(_Base, frozen=True, array_like=True, gc=False, tag="signal"):
    """The entry for a message that was sent to a job from outside. `name`: the name of the signal. `token`: a text
    that the sender has chosen; of several signals with the same token, only the first is accepted.
    """

    name: str
    token: str
    body: Body = b""
    by: str = ""


class Cancel(_Base, frozen=True, array_like=True, gc=False, tag="cancel"):
    """The entry by which somebody requests that the job ends. `reason`: the reason. `by`: the person who requests it,
    if known.
    """

    reason: str = ""
    by: str = ""


class End(_Base, frozen=True, array_like=True, gc=False, tag="end"):
    """The entry that ends a job.

    - `outcome`: "succeeded", "failed" or "cancelled". `result`: the type of the error, or the reason of the cancel.
    - `digest`: the digest of the output. `body`: the output or the error.
    - `labels`: the labels of all data that the job has received.
    - `usage`: the most that the calls without a result may have used, encoded as for the ledger (the table with the
      costs of calls).
    - `form`: what has made the output in `body`: ANSWER for an Agent, VALUE for a function; "" if nobody has said so, as
      earlier versions.
    """

    outcome: str
    result: str = ""
    digest: bytes = b""
    body: Body = b""
    labels: tuple[str, ...] = ()
    usage: bytes = b""
    form: str = ""


ANSWER = "answer"
"""The form of the body of an END entry that has the answer of an Agent: a dict in msgpack, whose "content" is the text."""

VALUE = "value"
"""The form of the body of an END entry that has what a function has returned, whatever that looks like."""


Entry = Begin | Attempt | Intent | EffectResult | Answer | Signal | Cancel | End
EntryT = TypeVar("EntryT", bound=_Base)


class Letter(msgspec.Struct, frozen=True):
    """A letter to a job: an answer to a question, the withdrawal of a question, a signal, a cancel, a retry of a job
    that has failed or was cancelled, or the beginning of a new job.

    - `token`: for an answer or a withdrawal, the token of the question. For a signal, a token that the sender has chosen,
      unique among those of the job. A cancel or a retry has none: after each BEGIN entry of a job, the inbox accepts one of each. Nor has a
      beginning: the inbox accepts one for a job that the journal does not know.
    - `job`: the id of the job, for a signal, a cancel, a retry or a beginning. For an answer or a withdrawal, the question
      determines the job.
    - `name`: the name of a signal, the outcome of a withdrawal ("expired" or "cancelled"), the reason of a cancel, the
      id of the agent of a beginning, or for a retry the offset of the job's last BEGIN entry, as its sender has read it.
    - `body`: for a retry, the encoded BEGIN entry of the next run; for a beginning, that of the first.
    - `after_ms`: the time in milliseconds since 1970 before which a beginning is not taken; 0 for none.
    - `priority`: of beginnings that wait, those with smaller numbers are taken first.
    """

    kind: Literal["answer", "withdraw", "signal", "cancel", "retry", "begin"]
    token: str = ""
    job: str = ""
    name: str = ""
    body: bytes = b""
    by: str = ""
    after_ms: int = 0
    priority: int = 0

    @property
    def once(self) -> str:
        """A name of this letter. The inbox accepts only one letter of each name. An answer to a question and the
        withdrawal of the question have the same name, so only the first of these two is accepted. For cancels and
        retries, the inbox extends the name (`base.once_of`), and accepts one after each BEGIN entry of the job. The token
        of a signal is one of its job: senders to other jobs, which may be those of other tenants, choose their own.
        """
        if self.kind == "signal":
            return f"signal:{len(self.job)}:{self.job}:{self.token}"
        prefix = "token" if self.kind in ("answer", "withdraw") else self.kind
        return f"{prefix}:{self.token or self.job}"


_encoder = msgspec.msgpack.Encoder()
_decoder: "msgspec.msgpack.Decoder[Entry]" = msgspec.msgpack.Decoder(Entry)
_letters = msgspec.msgpack.Decoder(Letter)
_FIRST = bytes([VERSION])


def kind_of(entry: Entry) -> str:
    """Returns the kind of the entry as a word: "begin", "intent", …"""
    return str(entry.__struct_config__.tag)


def body_of(entry: Entry) -> Body | None:
    """Returns the body of the entry; None if entries of this kind have no body."""
    return getattr(entry, "body", None)


def hash_of(body: bytes) -> bytes:
    """Returns the hash of a body, 32 bytes. A long body is stored under its hash."""
    return blake2b(body, digest_size=32).digest()


def with_stored_body(entry: Entry) -> tuple[Entry, bytes]:
    """Separates a long body from its entry. Returns the entry with a StoredBody instead of the body, and the body. If
    the body is short, returns the unchanged entry and b"".
    """
    body = body_of(entry)
    if not isinstance(body, bytes) or len(body) <= INLINE_BYTES:
        return entry, b""
    return msgspec.structs.replace(entry, body=StoredBody(hash_of(body), len(body))), body


def without_body(entry: Entry) -> Entry:
    """Returns the entry with an empty body."""
    return msgspec.structs.replace(entry, body=b"")


def encode_entry(entry: Entry) -> bytes:
    """Returns the entry as bytes. The first byte is the version of the format. Raises UserError for an entry that
    could not be decoded again, or whose values do not fit the columns of the journal's tables.
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
    """Returns the entry that these bytes encode. Raises UserError for a version of the format that this Sabot does
    not know, and CorruptJournal for bytes that cannot be decoded. `where`: the place of the entry, for these errors.
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
    """Returns the letter as bytes. The first byte is the version of the format. Raises UserError for a letter that
    could not be decoded again, such as one whose body is a str. In the inbox, such a letter would block all later
    letters.
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
    """Returns the letter that these bytes encode. Raises the same errors as `decode_entry`. `where`: the place of the
    letter, for these errors.
    """
    if data[:1] != _FIRST:
        _check_version(data[:1], where)
    try:
        return _letters.decode(data[1:])
    except UNREADABLE as error:
        raise CorruptJournal(f"{where}: a letter of the inbox cannot be read: {error}") from error
