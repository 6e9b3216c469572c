"""Effects: their ids, their digests, and how each class of them may be repeated.

`RULES` is the one table of classes. `in_doubt` decides what happens to an effect with an intent and without a certain
outcome (after a crash, a time-out, a cancel, a lost connection). It is a pure function.
"""

from dataclasses import dataclass
from enum import StrEnum
from hashlib import blake2b
from typing import Any, Literal, NamedTuple

import msgspec

from sabot.errors import UserError, short_repr


class EffectClass(StrEnum):
    """The classes of effects by how they may be repeated. A tool that declares no class is `unsafe`."""

    LOCAL = "local"
    READ = "read"
    METERED = "metered"
    IDEMPOTENT = "idempotent"
    RECONCILABLE = "reconcilable"
    UNSAFE = "unsafe"


class Doubt(StrEnum):
    """The decision on an effect in doubt.

    `again`: make it again. `again_with_key`: make it again, with the same idempotency key. `reconcile`: call the tool's
    own function, which finds out whether it was done. `take`: take the result that this function has found. `ask`: a
    person decides: done, not done, or abandon (an action of type `in_doubt`). `fail`: raise an error in the job.
    `assume_done`: treat it as done, without a result.
    """

    AGAIN = "again"
    AGAIN_WITH_KEY = "again_with_key"
    RECONCILE = "reconcile"
    TAKE = "take"
    ASK = "ask"
    FAIL = "fail"
    ASSUME_DONE = "assume_done"


class Reconciled(StrEnum):
    """The findings of a reconciling function."""

    DONE = "done"
    NOT_DONE = "not_done"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class ClassRule:
    """The rule for the effects of one class.

    `intent` says when the intent must be durable: "next" (together with the next entry that must be durable), "later"
    (it is written, and nobody waits for it) or "first" (before the call). `in_doubt` is the decision on an effect in
    doubt. If `reserves` is True, the intent has an upper bound of the cost. If `checked` is True, a job is blocked
    whose function asks for the effect with other arguments in a replay. If `marks` is True, a call that is made again
    counts as a duplicate in the ledger.
    """

    intent: Literal["next", "later", "first"]
    in_doubt: Doubt
    reserves: bool = False
    checked: bool = True
    marks: bool = False

    @property
    def repeatable(self) -> bool:
        """True if the effect may be made again whatever its outcome was."""
        return self.in_doubt in (Doubt.AGAIN, Doubt.AGAIN_WITH_KEY)

    @property
    def settles(self) -> bool:
        """True if the effect changes something outside. A job does not end while such an effect is under way."""
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
    """Decides on an effect whose outcome is not certain.

    `configured` is the tool's option `in_doubt=`: "ask" asks a person. `sent` is False if the call certainly failed
    before anything was sent, so that nothing is in doubt; None means that nobody knows. `found` is the finding of the
    tool's `reconcile=` function, or None if the function was not called yet.
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
    """The id of one attempt of an effect. The ledger counts by it; all attempts of an effect have the same `key`."""

    job: str
    ordinal: int
    attempt: int = 1

    @property
    def key(self) -> str:
        """The idempotency key for the called service: the same for every attempt, valid in an HTTP header, and without
        the job's name.
        """
        name = blake2b(f"{self.job}\0{self.ordinal}".encode(), digest_size=16)
        return f"sabot-{name.hexdigest()}"

    def __str__(self) -> str:
        return f"{self.job}/{self.ordinal}.{self.attempt}"


def digest(key: bytes, kind: str, name: str, arguments: Any) -> bytes:
    """Returns a digest of 16 bytes of an effect's kind, name and arguments. It is the same in every process, and tells
    nothing to those who do not have `key`, the journal's key.

    `arguments` must be values that msgpack can encode. The order of the keys of a mapping does not change the digest;
    the type of a number does. Raises UserError for other values.
    """
    try:
        asked = msgspec.msgpack.encode([kind, name, arguments], order="deterministic")
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise UserError(
            f"{kind} {name}: its arguments cannot be written down: {error}",
            hint="give it numbers, text, bytes, lists, dicts, dates, dataclasses",
        ) from error
    return blake2b(asked, key=key, digest_size=16).digest()
