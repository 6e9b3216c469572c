"""Effects: their classes, their ids, their digests, and the decision on effects in doubt.

`RULES` is the table of the classes, which say how an effect may be repeated. `in_doubt` decides what follows for an
effect whose INTENT is recorded and whose outcome is not certain: after a crash, a time-out, a cancel or a lost
connection.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from hashlib import blake2b
from typing import Any, Literal, NamedTuple

import msgspec

from sabot.errors import UserError, short_repr


class EffectClass(StrEnum):
    """The class of an effect. It decides whether and how the effect may be repeated (see `RULES`). A tool that
    declares no class is `unsafe`.
    """

    LOCAL = "local"
    READ = "read"
    METERED = "metered"
    IDEMPOTENT = "idempotent"
    RECONCILABLE = "reconcilable"
    UNSAFE = "unsafe"


EffectName = Literal["local", "read", "metered", "idempotent", "reconcilable", "unsafe"]
"""The names of the classes, as users write them: type checkers see a misspelt one."""


class Doubt(StrEnum):
    """The decision on an effect in doubt, that is, one of which nobody knows whether it was made.

    - `again`: make the effect again. `again_with_key`: make it again with the same idempotency key.
    - `reconcile`: call the tool's `reconcile=` function, which finds out whether the effect was done.
    - `take`: use the result that this function has returned.
    - `ask`: ask a person, who answers done, not done, or abandon. The type of the question is `in_doubt`.
    - `fail`: raise an error in the job.
    - `assume_done`: treat the effect as done, without a result.
    """

    AGAIN = "again"
    AGAIN_WITH_KEY = "again_with_key"
    RECONCILE = "reconcile"
    TAKE = "take"
    ASK = "ask"
    FAIL = "fail"
    ASSUME_DONE = "assume_done"


class Reconciled(StrEnum):
    """The answer of a tool's `reconcile=` function: whether the effect was done."""

    DONE = "done"
    NOT_DONE = "not_done"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class ClassRule:
    """The rule for the effects of one class.

    - `intent`: when the INTENT entry has to be durable. "first": before the call is sent. "next": no later than the
      next entry that has to be durable. "later": at any time.
    - `in_doubt`: the decision on an effect of which nobody knows whether it was made.
    - `reserves`: True if a budget reserves the maximum cost before the call, and the INTENT records it.
    - `checked`: True if a replay has to request the effect with the same arguments. If they differ, the job is
      blocked.
    - `marks`: True if the ledger, which lists the costs of calls, marks a repeated call as a duplicate.
    """

    intent: Literal["next", "later", "first"]
    in_doubt: Doubt
    reserves: bool = False
    checked: bool = True
    marks: bool = False

    @property
    def repeatable(self) -> bool:
        """True if an effect of this class may be made again when nobody knows whether it was made."""
        return self.in_doubt in (Doubt.AGAIN, Doubt.AGAIN_WITH_KEY)

    @property
    def settles(self) -> bool:
        """True if effects of this class change something outside of Sabot. A job then does not end before such an
        effect has a result.
        """
        return self.intent == "first" and not self.reserves


RULES: dict[str, ClassRule] = {
    # its value does not leave the job before a later entry is durable
    EffectClass.LOCAL: ClassRule("next", Doubt.AGAIN),
    EffectClass.READ: ClassRule("later", Doubt.AGAIN, checked=False),
    EffectClass.METERED: ClassRule("first", Doubt.AGAIN, reserves=True, checked=False, marks=True),
    EffectClass.IDEMPOTENT: ClassRule("first", Doubt.AGAIN_WITH_KEY),
    EffectClass.RECONCILABLE: ClassRule("first", Doubt.RECONCILE),
    EffectClass.UNSAFE: ClassRule("first", Doubt.ASK),
}


def may_call(outer: str, inner: str) -> bool:
    """Returns True if a tool of the class `outer` may call one of the class `inner`. A call of a class that may be repeated
    makes no call that must not be. One that changes nothing outside is also repeated with another idempotency key, by a job
    that is restored, so it makes none that changes something.
    """
    around, within = RULES[outer], RULES[inner]
    return not around.repeatable or (within.repeatable and (around.settles or not within.settles))


def effect_class(word: str) -> EffectClass:
    """Returns the class of this name. Raises UserError for an unknown name."""
    try:
        return EffectClass(word)
    except ValueError:
        raise UserError(
            f"effect={short_repr(word)} is no class of effects", hint=f"one of {', '.join(EffectClass)}"
        ) from None


def in_doubt(
    kind: EffectClass,
    *,
    configured: Literal["ask", "fail", "assume_done"] = "ask",
    sent: bool | None = None,
    found: Reconciled | None = None,
) -> Doubt:
    """Decides what to do about an effect of which it is not certain whether it was made.

    - `kind`: the class of the effect.
    - `configured`: the option `in_doubt=` of the tool. It is used only if a person would be asked otherwise.
    - `sent`: False if certainly nothing was sent; the effect is then made again. None or True otherwise.
    - `found`: the answer of the tool's `reconcile=` function; None if the function was not called yet.
    """
    if sent is False:
        return Doubt.AGAIN
    decision = RULES[kind].in_doubt
    if decision is Doubt.RECONCILE and found is not None:
        if found is Reconciled.DONE:
            return Doubt.TAKE
        decision = Doubt.AGAIN_WITH_KEY if found is Reconciled.NOT_DONE else Doubt.ASK
    return Doubt(configured) if decision is Doubt.ASK else decision


class EffectId(NamedTuple):
    """The id of one attempt of an effect: the id of the job, the number of the effect in the job, and the number of
    the attempt, from 1. The property `key` is the same for all attempts of an effect.
    """

    job: str
    ordinal: int
    attempt: int = 1

    @property
    def key(self) -> str:
        """The idempotency key that the called service receives. It is the same for every attempt of the effect. It
        consists of characters that are allowed in an HTTP header, and does not reveal the job's id.
        """
        return _key_of(self, b"")

    def of_attempt(self, number: int) -> "EffectId":
        """Returns the id of another attempt of the same effect, which has the same key."""
        return EffectId(self.job, self.ordinal, number)

    def __str__(self) -> str:
        return f"{self.job}/{self.ordinal}.{self.attempt}"


class SaltedEffectId(EffectId):
    """An EffectId that is equal to the one without a salt, and has another `key`: that of an effect in one journal.

    - `salt`: keeps the keys of journals apart whose jobs have the same ids (`Begin.salt`).
    """

    salt: bytes = b""

    @classmethod
    def of(cls, job: str, ordinal: int, attempt: int, salt: bytes) -> EffectId:
        """Returns the id of an attempt of an effect. With b"" as the salt it is a plain EffectId."""
        if not salt:
            return EffectId(job, ordinal, attempt)
        made = cls(job, ordinal, attempt)
        made.salt = salt
        return made

    @property
    def key(self) -> str:
        return _key_of(self, self.salt)

    def of_attempt(self, number: int) -> EffectId:
        return self.of(self.job, self.ordinal, number, self.salt)


def key_in_doubt(job_id: str, payload: Mapping[str, Any]) -> str:
    """Returns the idempotency key of the call about which a question asks whether it was made. `payload`: that of the
    question, which names the key, unless it is of an earlier version or of a journal in memory.
    """
    return str(payload.get("key") or EffectId(job_id, int(payload["ordinal"])).key)


def _key_of(effect: EffectId, salt: bytes) -> str:
    name = blake2b(f"{effect.job}\0{effect.ordinal}".encode(), digest_size=16, salt=salt)
    return f"sabot-{name.hexdigest()}"


def digest(key: bytes, kind: str, name: str, arguments: Any) -> bytes:
    """Returns a digest of 16 bytes of an effect's kind, name and arguments. It is the same in every process. `key`:
    the key of the journal; without it, nobody can find out the arguments by trying.

    `arguments` must consist of values that msgpack can encode; raises UserError for others. The order of the keys of
    a mapping does not change the digest. The type of a number does change it.
    """
    try:
        asked = msgspec.msgpack.encode([kind, name, arguments], order="deterministic")
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise UserError(
            f"{kind} {name}: its arguments cannot be written down: {error}",
            hint="give it numbers, text, bytes, lists, dicts, dates, dataclasses",
        ) from error
    return blake2b(asked, key=key, digest_size=16).digest()
