"""Effects: their classes, their ids, their digests, and the decision on effects in doubt.

`RULES` is the table of the classes, which say how an effect may be repeated. `in_doubt` decides what follows for an
effect whose INTENT is recorded and whose outcome is not certain: after a crash, a time-out, a cancel or a lost
connection.
"""

from dataclasses import dataclass
from enum import StrEnum
from hashlib import blake2b
from typing import Any, Literal, NamedTuple

import msgspec

from sabot.errors import UserError, short_repr


class EffectClass(StrEnum):
    """The class of an effect, which says how the effect may be repeated. A tool that declares no class is `unsafe`."""

    LOCAL = "local"
    READ = "read"
    METERED = "metered"
    IDEMPOTENT = "idempotent"
    RECONCILABLE = "reconcilable"
    UNSAFE = "unsafe"


class Doubt(StrEnum):
    """The decision on an effect in doubt.

    - `again`: make the effect again. `again_with_key`: make it again with the same idempotency key.
    - `reconcile`: call the tool's `reconcile=` function, which finds out whether the effect was done.
    - `take`: take the result that this function has returned.
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

    - `intent`: when the INTENT entry must be durable. "first": before the call is sent. "next": together with the next
      entry that must be durable. "later": nobody waits for it.
    - `in_doubt`: the decision on an effect in doubt.
    - `reserves`: True if a budget reserves an upper bound of the cost, which the INTENT records.
    - `checked`: True if the arguments must be the same in a replay. If they differ, the job is blocked.
    - `marks`: True if the ledger marks a repeated call as a duplicate.
    """

    intent: Literal["next", "later", "first"]
    in_doubt: Doubt
    reserves: bool = False
    checked: bool = True
    marks: bool = False

    @property
    def repeatable(self) -> bool:
        """True if an effect in doubt may simply be made again."""
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
    """Decides what follows for an effect whose outcome is not certain.

    - `kind`: the class of the effect.
    - `configured`: the option `in_doubt=` of the tool. It holds if the rule of the class is to ask a person.
    - `sent`: False if the call certainly failed before anything was sent, so that it can be made again; None if nobody
      knows.
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
    """The id of one attempt of an effect. The rows of the ledger have this id. All attempts of an effect have the same
    `key`.
    """

    job: str
    ordinal: int
    attempt: int = 1

    @property
    def key(self) -> str:
        """The idempotency key that the called service gets. It is the same for every attempt, can stand in an HTTP
        header, and does not reveal the job's id.
        """
        name = blake2b(f"{self.job}\0{self.ordinal}".encode(), digest_size=16)
        return f"sabot-{name.hexdigest()}"

    def __str__(self) -> str:
        return f"{self.job}/{self.ordinal}.{self.attempt}"


def digest(key: bytes, kind: str, name: str, arguments: Any) -> bytes:
    """Returns a digest of 16 bytes of an effect's kind, name and arguments. It is the same in every process. Without
    `key`, the journal's key, nobody can guess the arguments from it.

    `arguments` must consist of values that msgpack can encode; raises UserError for others. The order of the keys of a
    mapping does not change the digest. The type of a number does.
    """
    try:
        asked = msgspec.msgpack.encode([kind, name, arguments], order="deterministic")
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise UserError(
            f"{kind} {name}: its arguments cannot be written down: {error}",
            hint="give it numbers, text, bytes, lists, dicts, dates, dataclasses",
        ) from error
    return blake2b(asked, key=key, digest_size=16).digest()
