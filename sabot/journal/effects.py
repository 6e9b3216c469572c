"""Effects: their ids, their digests, and how each class of them may be repeated.

`RULES` is the one table of classes. What happens to an effect that has an intent and no certain outcome (after a crash, a time-out, a
cancellation, a lost connection) is decided by `in_doubt`, which asks nobody and changes nothing.
"""

from dataclasses import dataclass
from enum import StrEnum
from hashlib import blake2b
from typing import Any, Literal, NamedTuple

import msgspec

from sabot.errors import UserError, short_repr


class EffectClass(StrEnum):
    """How an effect may be repeated. `unsafe` is what a tool is that says nothing."""

    LOCAL = "local"
    READ = "read"
    METERED = "metered"
    IDEMPOTENT = "idempotent"
    RECONCILABLE = "reconcilable"
    UNSAFE = "unsafe"


class Doubt(StrEnum):
    """What to do with an effect in doubt.

    again: make it again. again_with_key: make it again, with the same idempotency key. reconcile: ask the tool's own function whether it
    was done. take: take the result that this function has found. ask: a person says done, not done, or abandon (an action of type
    `in_doubt`). fail: the job sees an error. assume_done: the job sees that it was done, without a result.
    """

    AGAIN = "again"
    AGAIN_WITH_KEY = "again_with_key"
    RECONCILE = "reconcile"
    TAKE = "take"
    ASK = "ask"
    FAIL = "fail"
    ASSUME_DONE = "assume_done"


class Reconciled(StrEnum):
    """What a reconciling function has found out."""

    DONE = "done"
    NOT_DONE = "not_done"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class ClassRule:
    """What holds for the effects of one class.

    intent: when it must be durable: "next" (with the next entry that is), "later" (written, not waited for), "first" (before the call).
    in_doubt: what follows. reserves: the intent holds an upper bound of the cost. checked: other arguments in replay block the job.
    marks: a call made again is a `duplicate` in the ledger.
    """

    intent: Literal["next", "later", "first"]
    in_doubt: Doubt
    reserves: bool = False
    checked: bool = True
    marks: bool = False

    @property
    def repeatable(self) -> bool:
        """It may be made again, whatever came of it."""
        return self.in_doubt in (Doubt.AGAIN, Doubt.AGAIN_WITH_KEY)

    @property
    def settles(self) -> bool:
        """It changes something outside: no job is over while one is under way."""
        return self.intent == "first" and not self.reserves


RULES: dict[EffectClass, ClassRule] = {
    EffectClass.LOCAL: ClassRule("next", Doubt.AGAIN),  # no value of it has left the job before an entry is durable
    EffectClass.READ: ClassRule("later", Doubt.AGAIN, checked=False),
    EffectClass.METERED: ClassRule("first", Doubt.AGAIN, reserves=True, checked=False, marks=True),
    EffectClass.IDEMPOTENT: ClassRule("first", Doubt.AGAIN_WITH_KEY),
    EffectClass.RECONCILABLE: ClassRule("first", Doubt.RECONCILE),
    EffectClass.UNSAFE: ClassRule("first", Doubt.ASK),
}


def effect_class(word: str) -> EffectClass:
    """The class of this name. Raises UserError."""
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
    """What to do with an effect whose outcome is not certain.

    configured: what the tool says (`in_doubt=`) in place of asking a person. sent: False where it failed before anything was sent, so that
    nothing is in doubt; None: nobody knows. found: what `reconcile=` of a reconcilable effect has found; None: it was not asked yet.
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
    """One try of one effect. The ledger counts by it; an effect that is tried again keeps its `key`."""

    job: str
    ordinal: int
    attempt: int = 1

    @property
    def key(self) -> str:
        """The idempotency key for the service that is called: the same for every attempt, fit for an HTTP header, and it tells nothing of
        the job's name.
        """
        name = blake2b(f"{self.job}\0{self.ordinal}".encode(), digest_size=16)
        return f"sabot-{name.hexdigest()}"

    def __str__(self) -> str:
        return f"{self.job}/{self.ordinal}.{self.attempt}"


def digest(key: bytes, kind: str, name: str, arguments: Any) -> bytes:
    """16 bytes that are the same for the same question, in every process, and tell nothing to who has not the key of the journal.

    arguments: what msgpack can say. The order of a mapping's keys does not count, the type of a number does. Raises UserError.
    """
    try:
        asked = msgspec.msgpack.encode([kind, name, arguments], order="deterministic")
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise UserError(
            f"{kind} {name}: its arguments cannot be written down: {error}",
            hint="give it numbers, text, bytes, lists, dicts, dates, dataclasses",
        ) from error
    return blake2b(asked, key=key, digest_size=16).digest()
