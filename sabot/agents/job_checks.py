"""Runs the open jobs of a journal over their histories with the code of today. So it finds the jobs that would be blocked if
the app were started now. It calls no tool, and writes nothing.

checkpoint ─▶ state of their keys ┐
journal ─▶ open jobs ─────────────┴─▶ replayed in the order in which they began ─▶ ok, blocked, held, fails, gone
"""

from collections.abc import Callable, Collection, Coroutine, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sabot.agents.durable.context import DurableContext, apply_job_writes
from sabot.agents.durable.job_function import JobFunction, job_function
from sabot.agents.durable.job_rows import version_of
from sabot.agents.durable.run import check_journal
from sabot.api.agent import AgentSpec
from sabot.clock import Clock
from sabot.engine.calls.effects import digest
from sabot.engine.checkpoint import Manifest
from sabot.engine.runtime.agents.groups import TASK
from sabot.engine.runtime.tasks.manifest_facts import stored_journal
from sabot.engine.state import StateBackend, load_snapshot
from sabot.engine.state.backends.memory import MemoryBackend
from sabot.engine.state.base import Entry, LocalBackend
from sabot.errors import message_of
from sabot.jobs.history import ContinueAs, History
from sabot.jobs.open_jobs import open_jobs, unapplied_jobs, whole_entries
from sabot.jobs.owner import OpenJob
from sabot.jobs.run import Ask, JobRun, effect_words
from sabot.jobs.values import as_before
from sabot.journal import JournalReader

_STATE = "state"


@dataclass(frozen=True, slots=True)
class CheckedJob:
    """The result of a check whether an app could continue one of its jobs now. `verdict` is one of these words:

    - "ok": the recorded history fits the code, and the job would continue.
    - "fails": the recorded history fits the code, but behind the recorded results the function raises an error, or
      waits for something that can never come.
    - "blocked": the recorded history does not fit the code, so the job would not continue. For example, the function
      requests other effects than the journal has.
    - "held": the job would wait, because another job with the same key is blocked.
    - "gone": the program has no durable agent of this name.

    `effects` is the number of effects that the job has requested. `then` describes the next step of the job, or the
    problem.
    """

    job_id: str
    agent: str
    verdict: str
    effects: int
    then: str

    @property
    def stands(self) -> bool:
        """True if the recorded history of the job still fits the code. The verdict is then "ok", or "fails" if the
        function raises an error, or waits for something that can never come, after the recorded results.
        """
        return self.verdict in ("ok", "fails")


def check_jobs(
    reader: JournalReader,
    manifest: Manifest | None,
    agents: Mapping[str, AgentSpec],
    *,
    version: str,
    clock: Clock,
    backend: StateBackend | None = None,
    declared: Collection[str] = (),
) -> Iterator[CheckedJob]:
    """Checks each job that an app would continue if it were started from its checkpoint `manifest`. Runs the jobs over
    their recorded results in memory, without calling anything. Yields one result for each job, in the order in which
    the jobs began. Blocks the thread.

    - `reader`: the journal of the app.
    - `manifest`: the last checkpoint of the app, or None if it has none.
    - `agents`: the agents of the program, by id.
    - `version`: the version of the program.
    - `clock`: the clock that the functions of the agents see.
    - `backend`: the state backend of the program, from which the expiry times of state values are taken; None means no
      expiry.
    - `declared`: those of the options "policy" and "budgets" that the app has: a job that had others is blocked at its next call.

    Raises OtherJournal if the checkpoint belongs to another journal, CorruptJournal or CorruptCheckpoint for damaged
    data, and UserError if the journal has jobs, but there is no checkpoint that records a position in this journal.
    """
    facts = stored_journal(manifest, TASK)
    check_journal(reader, facts)
    jobs = open_jobs(reader, *(({}, {}) if facts is None else (dict(facts["positions"]), unapplied_jobs(facts))))
    jobs = [job for job in jobs if job.ended is None or job.ended.outcome == "succeeded"]
    durable = {agent_id: spec for agent_id, spec in agents.items() if spec.durable}
    state = MemoryBackend(expiry=backend.expiry if isinstance(backend, LocalBackend) else None)
    _load_state(state, manifest, jobs)
    holders: dict[tuple[str, bytes], str] = {}  # blocked jobs, by agent and key
    functions = {agent_id: job_function(spec, state, clock) for agent_id, spec in durable.items()}
    for job in jobs:
        entries = [entry for _, entry in whole_entries(reader, job.job_id)]
        history = History.of(job.job_id, entries, parked=len(entries))  # so that its function logs nothing again
        function, scope = functions.get(job.agent), (job.agent, job.key)
        if function is None:
            verdict, then = "gone", "the program has no durable agent of this name"
        elif function.keyed and scope in holders:
            verdict, then = "held", f"its key is held by job {holders[scope]}"
        else:
            code = version_of(durable[job.agent].func, version)
            run = JobRun(job.job_id, history, key=reader.key, code=code)
            run.lost_policy = history.lost(declared)
            verdict, then = _checked(run, function, reader.key)
            if verdict == "blocked":
                holders[scope] = job.job_id
        yield CheckedJob(job.job_id, job.agent, verdict, history.last_ordinal, then)


def verdict_of(run: JobRun, call: Callable[[JobRun], Coroutine[Any, Any, Any]]) -> tuple[str, str]:
    """Runs a job over its recorded results, without calling anything. Returns the verdict (`CheckedJob.verdict`), and a
    description of the job's next step or of the problem. `call`: returns the coroutine that runs the job.
    """
    try:
        run.start(call)
        return _verdict(run)
    except (Exception, SystemExit) as error:  # the user's code
        return "fails", f"{type(error).__name__}: {message_of(error)}"
    finally:
        run.discard()


def _load_state(state: MemoryBackend, manifest: Manifest | None, jobs: list[OpenJob]) -> None:
    """Loads into `state` the values that the checkpoint `manifest` has for the keys of these jobs. Loads nothing if
    there is no checkpoint.
    """
    task = None if manifest is None else manifest.tasks.get(TASK)
    if manifest is None or task is None or _STATE not in task.states or not jobs:
        return
    keys: dict[str, set[bytes]] = {}
    for job in jobs:
        keys.setdefault(f"{job.agent}/", set()).add(job.key)

    def of_jobs(entries: Iterator[Entry]) -> Iterator[Entry]:
        for entry in entries:
            namespace, key, _ = entry
            for prefix, scopes in keys.items():
                if namespace.startswith(prefix) and key.startswith(tuple(scopes)):
                    yield entry
                    break

    state.load([load_snapshot(manifest.state_directory(TASK, _STATE))], of_jobs)


def _checked(run: JobRun, function: JobFunction, key: bytes) -> tuple[str, str]:
    """Runs a job over its recorded results. Returns the verdict (`CheckedJob.verdict`), and a description of the job's
    next step or of the problem. If the job had ended and ends with the same output again, its writes of state are kept,
    so that later jobs with the same key read them.
    """
    contexts: list[DurableContext] = []

    def call(run: JobRun) -> Coroutine[Any, Any, Any]:
        ctx, _ = function.context(run)
        contexts.append(ctx)
        return function.call(ctx)

    try:
        run.start(call)
        verdict, then = _verdict(run)
        if run.history.end is not None and verdict == "ok":
            output, recorded = function.packed(run, run.outcome()[0]), run.history.end.digest
            if recorded not in (digest(key, "output", "", output), digest(key, "output", "", as_before(output))):
                return "blocked", "it had ended behind the checkpoint, and gives other output now"
            if function.keyed:
                apply_job_writes(contexts[0])
            then = "had ended, and gives the same output"
    except (Exception, SystemExit) as error:  # the user's code
        return "fails", f"{type(error).__name__}: {message_of(error)}"
    finally:
        run.discard()
    return verdict, then


def _verdict(run: JobRun) -> tuple[str, str]:
    if run.blocked is not None:
        return "blocked", str(run.blocked)
    if run.finished:
        _, error = run.outcome()
        if isinstance(error, ContinueAs):
            return "ok", "goes on with a new history"
        if error is not None and not run.cancels:
            return "fails", f"{type(error).__name__}: {message_of(error)}"
        return "ok", "ends"
    if not run.open:
        return "fails", "waits for something that nobody will give it"
    asked = [ask for ask in run.new if not ask.recorded]
    if asked:
        return "ok", f"asks for {', '.join(map(_words, asked))}"
    return "ok", f"waits for {', '.join(map(_words, run.open.values()))}"


def _words(ask: Ask) -> str:
    return effect_words(ask.kind, ask.name)
