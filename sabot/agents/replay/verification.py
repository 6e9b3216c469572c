"""Verification: runs the code of today over a recording, and compares the two. They are the same if the code asks for
the same effects and ends in the same way.
"""

from collections.abc import Awaitable, Callable, Coroutine, Iterable
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import msgspec

from sabot.agents.accounts.ledger import Ledger
from sabot.agents.durable.job_function import job_function
from sabot.agents.entry_values import as_plain, readable, value_of
from sabot.agents.replay.recording import Recording
from sabot.api.agent import AgentSpec
from sabot.base.checks import Of, check
from sabot.base.stored_names import stored_name
from sabot.clock import SYSTEM_CLOCK
from sabot.engine.operators.agents.rows import plain_value
from sabot.errors import NoStateBackend, SabotError, UserError, message_of, short_repr
from sabot.jobs.guard import EffectGuard
from sabot.jobs.history import ContinueAs, History
from sabot.jobs.run import Ask, JobRun, effect_words
from sabot.jobs.values import as_before, pack
from sabot.journal.entries import Answer, EffectResult, End, Intent

_OTHER_RESULT = "its result is another one now"


def _packed(run: JobRun, value: Any) -> bytes:
    return pack(plain_value(value), f"the result of job {run.job_id}")


def _continued(run: JobRun, message: Any) -> bytes:
    return pack(message, f"the input of job {run.job_id}")


@dataclass(frozen=True, slots=True)
class JobCode:
    """The code of a job, which `verified` and `fork` can run over a recording.

    - `call`: a function that gets the execution of the job (a JobRun) and returns the coroutine of the job's function.
    - `packed`: a function that gets the JobRun and the return value of the coroutine, and encodes that value for the
      END entry.
    - `continued`: a function that gets the JobRun and the argument of `ctx.continue_as`, and encodes that argument for
      the next BEGIN entry.
    - `policy`: the policy of the app or kernel to which the code belongs, or None. A fork is judged by it.
    - `accounts`: a coroutine function that returns the ledger with the budgets of that app or kernel, or None.
    """

    call: Callable[[JobRun], Coroutine[Any, Any, Any]]
    packed: Callable[[JobRun, Any], bytes] = _packed
    continued: Callable[[JobRun, Any], bytes] = _continued
    policy: EffectGuard | None = None
    accounts: Callable[[], Awaitable[Ledger | None]] | None = None


class ReplayDifference(SabotError):
    """The error if code that runs over a recording behaves differently from the recorded job. For example, it requests
    another effect.
    """


@dataclass(frozen=True, slots=True)
class Verified:
    """The result of running code over the recording of a job.

    - `job_id`: the id of the recorded job.
    - `steps`: the number of effects that the code has requested.
    - `difference`: a description of the first difference from the recording, or "". It has no values of the job.
    - `gives`: the beginning of the result that the code gives now, if that is the difference; else "".
    - `events_hash`: a hash of the effects that the code has requested. It can be compared with
      `hash_of_steps(recording)`.
    """

    job_id: str
    steps: int
    difference: str
    events_hash: str
    gives: str = ""

    @property
    def words(self) -> str:
        """The difference with the result, for who may see values."""
        return f"{self.difference}: {self.gives}" if self.gives else self.difference

    @property
    def same(self) -> bool:
        """True if the code behaved as the recorded job did."""
        return not self.difference


def code_of(spec: AgentSpec) -> JobCode:
    """Returns the code of a durable agent, which `verified` and `fork` can run over a recording. A fork is judged by the
    policy and the budgets of the agent's app. The code cannot read the state of the agent, because a recording does not
    contain it.
    """
    check("code_of: spec", spec, Of(AgentSpec, "the spec of a durable agent: agent.spec"))
    function = job_function(spec, None, SYSTEM_CLOCK)
    policy, accounts = (None, None) if spec.rules is None else spec.rules
    return JobCode(
        lambda run: function.call(function.context(run)[0]), function.packed, function.continued, policy, accounts
    )


def verified(recording: Recording, code: JobCode) -> Verified:
    """Runs the code over a recording that was made from a journal, and returns the result of the comparison. The code
    gets the recorded results, and nothing is called. Raises UserError for a recording without entries.
    """
    if not recording.entries:
        raise UserError(
            "the recording has events only", hint="record_job(reader, job_id) records what code can run over"
        )
    run = JobRun(recording.job_id, _history(recording), key=recording.key, code="of today", seed=recording.seeds[-1])
    asked: list[Ask] = []
    gives = ""
    try:
        run.start(code.call)
        asked = list(run.new)
        difference = _other_arguments(run, asked) or _difference(run, asked, code)
        if difference == _OTHER_RESULT:
            gives = short_repr(as_plain(run.outcome()[0]))
    except NoStateBackend:
        difference = "it reads its state, and how that was then is not recorded"
    except (Exception, SystemExit) as error:  # the user's code
        difference = f"it cannot be run: {type(error).__name__}: {message_of(error)}"
    finally:
        run.discard()
    return Verified(recording.job_id, len(asked), difference, _hash(asked), gives)


def hash_of_steps(recording: Recording) -> str:
    """Returns a hash of the effects that the recorded job has requested: their ordinals, kinds, names and arguments."""
    return _hash(_history(recording).intents.values())


def _history(recording: Recording) -> History:
    return History.of(recording.job_id, recording.entries)


def _hash(asked: Iterable[Ask | Intent]) -> str:
    found = blake2b(digest_size=16)
    for each in sorted(asked, key=lambda ask: ask.ordinal):
        said = b"" if each.kind == "sleep" else each.digest
        found.update(msgspec.msgpack.encode([each.ordinal, each.kind, each.name, said]))
    return found.hexdigest()


def _other_arguments(run: JobRun, asked: Iterable[Ask]) -> str:
    """Returns a description of the first effect that the code has requested with other arguments than recorded, or ""
    if there is none. This check is needed because a JobRun itself does not compare the arguments of effects of the
    classes "read" and "metered".
    """
    for ask in sorted(asked, key=lambda ask: ask.ordinal):
        recorded = run.history.intents.get(ask.ordinal)
        if recorded is not None and ask.kind != "sleep" and ask.digest != recorded.digest:
            return f"at step {ask.ordinal}, it asks for {effect_words(ask.kind, ask.name)} with other arguments"
    return ""


def _difference(run: JobRun, asked: Iterable[Ask], code: JobCode) -> str:
    new = [effect_words(ask.kind, ask.name) for ask in asked if not ask.recorded]
    if run.blocked is not None:
        error = run.outcome()[1] if run.finished else None
        if isinstance(error, NoStateBackend):
            raise error
        raised = f"it raises {type(error).__name__}: {message_of(error)}; " if isinstance(error, Exception) else ""
        return raised + run.blocked.message
    end = run.history.end
    if end is None:
        return ""  # the recording stops here
    if new:
        return f"it goes on and asks for {', '.join(new)}, where the recording has its end"
    if not run.finished:
        return "it does not end where the recording ends"
    value, error = run.outcome()
    if isinstance(error, NoStateBackend):
        raise error
    return _other_end(run, end, value, error, code)


def _other_end(run: JobRun, end: End, value: Any, error: BaseException | None, code: JobCode) -> str:
    if error is not None and not isinstance(error, ContinueAs):
        if end.outcome == "cancelled" and run.cancels:
            return ""
        told = f"{type(error).__name__}: {message_of(error)}"
        return (
            "" if end.outcome == "failed" and end.result in ("", stored_name(type(error))) else f"it fails now: {told}"
        )
    if end.outcome != "succeeded":
        return f"it ends well now, and the recording ends as {end.outcome}"
    packed = code.packed(run, value)
    if end.body and end.body not in (packed, as_before(packed)):
        return _OTHER_RESULT
    return ""


def steps_of(recording: Recording) -> list[dict[str, Any]]:
    """Returns the effects of a recorded job, in the order in which the job requested them. Each is a dict with these
    keys: "ordinal", "kind", "name", "asked" (the arguments), "outcome" and "value" (the result). Without a result,
    "outcome" is "" and "value" is None.
    """
    steps: dict[int, dict[str, Any]] = {}
    for entry in recording.entries:
        if isinstance(entry, Intent) and entry.ordinal not in steps:
            said = {"ordinal": entry.ordinal, "kind": entry.kind, "name": entry.name, "asked": _said(entry)}
            steps[entry.ordinal] = {**said, "outcome": "", "value": None}
        elif isinstance(entry, EffectResult | Answer) and entry.ordinal in steps:
            steps[entry.ordinal] |= {"outcome": entry.outcome, "value": _said(entry)}
    return list(steps.values())


def first_difference(recording: Recording, made: Recording) -> int | None:
    """Returns the ordinal of the first step that differs between two recordings, or None."""
    before = {step["ordinal"]: step for step in steps_of(recording)}
    after = {step["ordinal"]: step for step in steps_of(made)}
    return next((at for at in sorted(before | after) if before.get(at) != after.get(at)), None)


def _said(entry: Intent | EffectResult | Answer) -> Any:
    return as_plain(readable(value_of(entry, entry.body)))  # type: ignore[arg-type]
