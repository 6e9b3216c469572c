"""The tree of errors.

SabotError(message, *, hint=)
├── UserError              the program or the call asks for something impossible; the hint says what to do
│   ├── NoStateBackend     `ctx.state()` without a state backend (also a RuntimeError)
│   ├── MissingExtra       an optional package is not installed (also an ImportError)
│   ├── AppLocked          another worker runs this app, or holds this directory
│   ├── StorageLost        the directory of a running app's checkpoints was removed
│   ├── ServerRefusal      a database or a broker refuses a login or a request
│   ├── CorruptCheckpoint  a checkpoint cannot be read; names the file
│   ├── DeliveryConflict   checkpoint and receiver disagree on what was delivered; the hint spells out the choice
│   ├── CorruptJournal     a journal cannot be read; names the place in it
│   ├── OtherJournal       the journal is not the one that the checkpoint was made with, or has fewer entries
│   ├── IdempotencyConflict  an idempotency key was used before, with other content
│   ├── IllegalTransition  a job or an action cannot change from its status to the wanted one
│   ├── LetterRefused      a journal refuses an answer, signal or cancel; `reason` says why in a word
│   ├── NonDeterminism     a repeated job asks for another effect than its journal has recorded; names the step
│   └── InputChanged       the source has another record at the position where a job began
├── DataError              a record that cannot be processed; goes to the dead letters
│   ├── RowErrors          raised by a batch agent with its bad rows: {row: reason}
│   └── UnknownSchema      the registry has no schema with this id
├── TransientError         a fault that may pass; retried, bounded
│   ├── BrokerUnavailable  the broker does not answer; names the address
│   ├── RegistryUnavailable  the schema registry does not answer; names the address
│   ├── JournalFull        too many entries of a journal wait to be written to disk
│   ├── MailboxFull        too many records of a key wait for the end of the key's job
│   ├── NotSent            raised by a tool: nothing was sent, so the call may be repeated
│   ├── WorkerLost         a process that runs tasks of the app has ended, or is silent
│   └── Overloaded         raised by the user's function: the service behind it gets too many requests
├── CheckpointFailed       a checkpoint that did not complete; the app goes on
├── JournalFailed          an entry could not be made durable; the run ends
├── JobCancelled           an agent's job was cancelled; raised by `ExecutionHandle.result()`
├── EffectError            a failed effect as its job sees it: the type and the message of the original error
│   └── PolicyDenied       a rule, or a person whom the rule has asked, denied the effect: nothing was done
├── AgentFailed            agents stopped by their own errors; raised by `App.run()`
├── ModelError, ToolError  errors of models and their tools: the tree in `sabot.engine.calls.errors`
└── InternalError          a bug in Sabot; it is not handled, and ends the run
"""

from collections.abc import Mapping
from operator import index

import msgspec

from sabot.base.redaction import scrubbed, visible

UNREADABLE = (msgspec.MsgspecError, ValueError, RecursionError)
"""The errors that decoders of JSON and msgpack raise for bytes that they cannot read; RecursionError is for values
that are nested too deep.
"""


def short_repr(value: object) -> str:
    """Returns the first 200 characters of a value's `repr`, for messages."""
    text = repr(value)
    return text if len(text) <= 200 else text[:199] + "…"


def message_of(error: BaseException) -> str:
    """Returns the message of any error, with invisible characters escaped. It also works for an error of the user
    whose `__str__` raises.
    """
    try:
        return visible(str(error))
    except Exception as worse:
        return f"(its message cannot be read: {type(worse).__name__})"


class SabotError(Exception):
    """The base of all errors that Sabot raises on purpose. `message` says what happened, and `hint` what to do.

    Known secrets are hidden in the message. Characters that control a terminal or turn the direction of text are
    escaped.
    """

    def __init__(self, message: str, *, hint: str = "") -> None:
        message = visible(scrubbed(message))
        super().__init__(message)
        self.message = message
        self.hint = visible(hint)

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class UserError(SabotError):
    """The program or the call asks for something that is not possible."""


class NoStateBackend(UserError, RuntimeError):
    """`ctx.state()` was called in an app without a state backend."""

    def __init__(self) -> None:
        super().__init__(
            "No state backend configured",
            hint="give the app one: App(..., state='memory') or state='rocksdb:///path'",
        )


class MissingExtra(UserError, ImportError):
    """A feature needs an optional package that is not installed."""

    def __init__(self, feature: str, extra: str) -> None:
        super().__init__(f"{feature} needs an optional package", hint=f"pip install 'sabot[{extra}]'")


class AppLocked(UserError):
    """Another live process owns the directory or the app."""


class StorageLost(UserError):
    """The directory of the checkpoints was removed or emptied while its app ran, so nothing of the run can be saved
    any more.
    """


class ServerRefusal(UserError):
    """A server refuses a login or a request. `state`: the SQLSTATE of a database's answer, or ""."""

    def __init__(self, message: str, state: str = "", *, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.state = state


class CorruptCheckpoint(UserError):
    """A complete checkpoint cannot be read. The message names the file."""


class DeliveryConflict(UserError):
    """Checkpoint and receiver disagree on which output was delivered. To go on could repeat some output or lose some,
    so the user has to choose.
    """


class CorruptJournal(UserError):
    """A journal, or an entry of it, cannot be read. The message names the place."""


class NoJournal(UserError):
    """There is no journal at this address: nobody has made it yet, or it is the wrong address."""


class OtherJournal(UserError):
    """The journal is not the one with which the checkpoint was made, or it has lost entries that the checkpoint
    needs.
    """


class IdempotencyConflict(UserError):
    """An idempotency key of a scope was used before, with other content."""


class IllegalTransition(UserError):
    """A job or an action cannot change from its status to the wanted one. The message names both."""


class LetterRefused(UserError):
    """A journal refuses an answer, a signal, a cancel or a retry. `reason`: "unknown", "second", "expired" or "closed"."""

    def __init__(self, message: str, *, reason: str, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.reason = reason


class NonDeterminism(UserError):
    """A job that runs again over its journal asks for another effect than the journal has recorded at that step. The
    message names the step, both calls, and the versions of both programs.
    """


class InputChanged(UserError):
    """The record that a source now has at some position differs from the record with which a job began at that
    position.
    """


class DataError(SabotError):
    """A record cannot be decoded or processed; it becomes a dead letter. `script`: the place in a script of SQL of the step
    that has failed, "" for a step of Python.
    """

    script = ""


class RowErrors(DataError):
    """Raised by a batch agent to name its bad rows: `raise RowErrors({3: "negative amount"})`.

    The named rows go to the dead letters; the agent is called again with the rest of the batch.
    """

    def __init__(self, rows: Mapping[int, str]) -> None:
        self.rows = {index(row): str(reason) for row, reason in rows.items()}
        super().__init__(f"{len(rows)} bad rows: {dict(list(self.rows.items())[:5])}")


class UnknownSchema(DataError):
    """A record names a schema that the registry does not have; each record with this id becomes a dead letter."""

    def __init__(self, id: int, why: str) -> None:
        super().__init__(f"schema id {id}: {why}")
        self.id = id


class TransientError(SabotError):
    """A failure that may pass by itself; it is retried a bounded number of times."""


class BrokerUnavailable(TransientError):
    """The broker does not answer. The message names its address. `unresolved`: True if no host of this name is known."""

    unresolved = False


class RegistryUnavailable(TransientError):
    """The schema registry does not answer. The message names its address. Readers wait until it answers."""


class JournalFull(TransientError):
    """A journal holds the most entries in memory that it may, because the disk has not stored them yet. Await
    `journal.room()` before the next append.
    """


class MailboxFull(TransientError):
    """A key's mailbox is full: too many records wait for the end of the key's job. The error is written into their
    dead letters.
    """


class NotSent(TransientError):
    """Raised by a tool if nothing was sent, so the call may be repeated even if the tool is declared as unsafe to
    repeat.
    """


class WorkerLost(TransientError):
    """A process that runs tasks of the app has ended, or is silent. The message names it and says how it ended."""


class Overloaded(TransientError):
    """Raised by the function of an agent, of `map_async` or `lookup` when the service behind it gets too many
    requests.

    The step then makes fewer calls at once, and retries this call after `retry_after` seconds (a number, or its text)
    or after its own back-off, whichever is longer. No other call of the step begins during `retry_after`. Of a tool it
    says that nothing was done, unless it is raised from a doubt, such as an answer of 503.
    """

    def __init__(self, message: str = "too many requests", *, retry_after: float | str = 0.0) -> None:
        super().__init__(message)
        self.retry_after = max(0.0, float(retry_after))


class CheckpointFailed(SabotError):
    """A checkpoint did not complete; the app goes on and the previous checkpoint stays valid."""


class JournalFailed(SabotError):
    """An entry of a journal could not be made durable. The run ends, and the next start goes on from what the journal
    has.
    """


class JobCancelled(SabotError):
    """The awaited job was cancelled. Raised by `ExecutionHandle.result()`."""


class EffectError(SabotError):
    """An effect of a job has failed. A job gets the same error when the effect fails and in every replay.

    `type`: the name of the class of the original error. `message`: that error's message, shortened and without known
    secrets. `effect`: the effect and its job, or "".
    """

    def __init__(self, type: str, message: str, *, effect: str = "") -> None:
        super().__init__(message)
        self.type = type
        self.effect = effect

    def __str__(self) -> str:
        return ": ".join(filter(None, (self.effect, self.type, self.message)))


class PolicyDenied(EffectError):
    """A policy rule, or a person whom a rule has asked, did not allow an effect. Nothing was done."""

    def __init__(self, message: str, *, effect: str = "") -> None:
        super().__init__("PolicyDenied", message, effect=effect)


class AgentFailed(SabotError):
    """One or more agents stopped at a record under the policy `fail`. The message names agent and offset."""


class InternalError(SabotError):
    """An invariant of Sabot is broken: this is a bug in Sabot."""
