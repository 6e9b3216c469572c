"""Checkpoints of single jobs: names for places in their histories, from which another job goes on.

    create   a signal that nobody waits for, into the inbox of the journal ─▶ an entry of the job's history
    restore  the history up to there ─▶ the beginning of another job (`jobs.fork_history`), which goes on live

The journal is what is true. There is no second store, so a checkpoint costs an entry, is where the journal is (SQLite, PostgreSQL, Kafka,
memory), and is there for as long as the history of its job.
"""

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, get_args

import msgspec

from sabot.agents.app_jobs import AppJobs
from sabot.agents.context import checked_word
from sabot.agents.jobs import JobStatus
from sabot.agents.kernel import ExecutionHandle, RuntimeKernel
from sabot.agents.replay import Recording, record_job
from sabot.agents.store import as_json
from sabot.agents.stores.hot import HotState
from sabot.base.config import Duration, checked_name, checked_path, parse_bytes, parse_seconds
from sabot.base.threads import run_in_thread
from sabot.errors import UNREADABLE, CorruptJournal, LetterRefused, NonDeterminism, UserError, short_repr
from sabot.jobs.fork_history import CHECKPOINT, HistoryPart, open_calls, part_of, take_over
from sabot.jobs.open_jobs import whole_entries
from sabot.journal import JournalReader
from sabot.journal.effects import RULES, EffectClass
from sabot.journal.entries import Begin, End, Entry, Intent, JobOrigin, Letter, Signal, encode_entry

CheckpointType = Literal["auto", "manual", "pre_suspend", "pre_drain"]

MOST_BYTES = "100MB"
"""Of the history of a job, up to a checkpoint."""

_OPEN = (JobStatus.QUEUED, JobStatus.RUNNING, JobStatus.WAITING_ACTION)


class JobCheckpointFailed(UserError):
    """A checkpoint cannot be made: its job has ended or is not there, or has one of this name."""

    code = "E2030"


class JobCheckpointTooLarge(JobCheckpointFailed):
    """The history of the job up to the checkpoint is longer than it may be."""

    code = "E2031"


class RestoreFailed(UserError):
    """No job goes on from this checkpoint: it is not there, is too old, or the code or what was done behind it stands against it."""

    code = "E2032"


class JobCheckpointDamaged(RestoreFailed):
    """What the journal has is not what the checkpoint was made of."""

    code = "E2033"


@dataclass(frozen=True, slots=True, kw_only=True)
class JobCheckpoint:
    """A name for a place in the history of a job. created_at: epoch seconds. entries, size_bytes: of the history up to there. effects: that
    the job had asked for. by: who has made it, if known. digest: of the entries.
    """

    job_id: str
    name: str
    type: CheckpointType
    created_at: float
    entries: int
    effects: int
    size_bytes: int
    by: str = ""
    digest: str = ""


class _CheckpointBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of the signal that records a checkpoint of a job in the journal."""

    type: CheckpointType
    name: str
    at_ms: int
    entries: int
    effects: int
    size_bytes: int
    digest: str


def _size(entries: Iterable[Entry]) -> tuple[int, str]:
    """Returns the number of bytes of entries, and their digest."""
    found, size = blake2b(digest_size=16), 0
    for entry in entries:
        data = encode_entry(entry)
        found.update(data)
        size += len(data)
    return size, found.hexdigest()


def _token(job_id: str, name: str) -> str:
    return f"checkpoint {name} of {job_id}"


def _history(reader: JournalReader, job_id: str) -> list[Entry]:
    try:
        return [entry for _, entry in whole_entries(reader, job_id)]
    except CorruptJournal as error:
        raise JobCheckpointDamaged(
            f"the history of job {job_id} cannot be read: {error.message}", hint="go back to a copy of the journal"
        ) from error


def checkpoint_letter(
    reader: JournalReader, job_id: str, name: str, kind: CheckpointType, *, most: int, now_ms: int, by: str = ""
) -> Letter:
    """What makes a checkpoint of an open job, once it is in the inbox of its journal. name: "": made of the type, and of how far the job
    is. most: bytes of its history. Blocks. Raises JobCheckpointFailed, JobCheckpointTooLarge.
    """
    if kind not in get_args(CheckpointType):
        raise JobCheckpointFailed(f"type={short_repr(kind)}", hint=f"one of {', '.join(get_args(CheckpointType))}")
    entries = _history(reader, job_id)
    if not entries:
        raise JobCheckpointFailed(f"{reader.where} has no job {job_id}", hint="sabot jobs list shows those that it has")
    size, digest = _size(entries)
    if size > most:
        raise JobCheckpointTooLarge(
            f"the history of job {job_id} has {size:,} bytes, and {most:,} are allowed",
            hint="max_size= allows more; ctx.continue_as(input) begins a new history, which does not shorten this one",
        )
    name = name or f"{kind}-{len(entries)}"
    effects = sum(isinstance(entry, Intent) for entry in entries)
    said = _CheckpointBody(
        type=kind,
        name=checked_name(name, "checkpoint"),
        at_ms=now_ms,
        entries=len(entries),
        effects=effects,
        size_bytes=size,
        digest=digest,
    )
    return Letter("signal", _token(job_id, name), job_id, CHECKPOINT, as_json(said, "the checkpoint"), by)


def refused(job_id: str, name: str, error: LetterRefused) -> JobCheckpointFailed:
    """What an inbox says to the letter of a checkpoint."""
    if error.reason == "second":
        return JobCheckpointFailed(f"job {job_id} has a checkpoint {name}", hint="give this one another name")
    if error.reason == "closed":
        return JobCheckpointFailed(f"{error.message}: there is nothing to come back to", hint="restore an earlier one")
    return JobCheckpointFailed(error.message)


def checkpoints_of(reader: JournalReader, job_id: str) -> list[JobCheckpoint]:
    """Those of a job, the oldest first, also those whose letters its owner has not taken. Blocks."""
    signals: list[Any] = [each for each in reader.letters() if (each.kind, each.job) == ("signal", job_id)]
    signals = [*(entry for _, entry in whole_entries(reader, job_id) if isinstance(entry, Signal)), *signals]
    found: dict[str, JobCheckpoint] = {}
    for signal in signals:
        with suppress(*UNREADABLE):
            said = _said(job_id, signal)
            if said is not None:
                found.setdefault(said.name, said)
    return list(found.values())


def _said(job_id: str, signal: Any) -> JobCheckpoint | None:
    if signal.name != CHECKPOINT:
        return None
    said = msgspec.json.decode(signal.body, type=_CheckpointBody)
    facts = {name: getattr(said, name) for name in said.__struct_fields__ if name != "at_ms"}
    return JobCheckpoint(job_id=job_id, created_at=said.at_ms / 1000, by=signal.by, **facts)


class _Jobs(Protocol):
    """An App, or a RuntimeKernel."""

    jobs: AppJobs


class StateManager:
    """Checkpoints of the jobs of a kernel, or of an app: `states = StateManager(kernel)`. It keeps nothing itself, so several may be about
    the same journal, in other processes too.

    As `async with StateManager(kernel)` it makes a checkpoint of each open job each minute, where something has come of it since.
    """

    def __init__(
        self,
        of: _Jobs,
        *,
        auto: Duration | None = "60s",
        max_size: str | int = MOST_BYTES,
        retention: Duration = "30d",
        hot: HotState | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """auto: how often, at most, inside of `async with`; None: only when it is asked for. max_size: of the history of a job, up to a
        checkpoint. retention: older ones are not there any more. hot: where `hot` states are kept, for other processes
        `HotState("redis://localhost")`; None: in memory. Raises UserError.
        """
        if not isinstance(getattr(of, "jobs", None), AppJobs):
            raise UserError(f"StateManager: of={short_repr(of)}", hint="a RuntimeKernel, or an App")
        self._of = of
        self._store = of.jobs.store
        self._auto_s = None if auto is None else parse_seconds(auto, name="auto", zero=False)
        self._most = parse_bytes(max_size, name="max_size")
        self._retention_s = parse_seconds(retention, name="retention", zero=False)
        self.hot = HotState() if hot is None else hot
        self._sleep = sleep
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> "StateManager":
        if self._auto_s is not None and self._task is None:
            self._task = asyncio.create_task(self._make(self._auto_s), name="checkpoints of jobs")
        return self

    async def __aexit__(self, *_: object) -> None:
        """Raises what has ended the making of checkpoints."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def _make(self, every_s: float) -> None:
        while True:
            await self._sleep(every_s)
            await self.create_all("auto")

    # -- making -------------------------------------------------------------------------------------------------------

    async def create(
        self, job_id: str, name: str = "", *, type: CheckpointType = "manual", by: str = ""
    ) -> JobCheckpoint:
        """A checkpoint of an open job as it is now: what it has asked for, and what has come of it. It is durable when this returns. name:
        its own in the job; by default made of the type. Raises JobCheckpointFailed, JobCheckpointTooLarge.
        """
        checked_word(job_id, "create: job_id")
        await self._flushed()
        return await run_in_thread(self._create, job_id, name, type, by)

    async def _flushed(self) -> None:
        """Returns when a reader sees all that was written here."""
        if self._store.running is not None:
            await self._store.running.flush()

    def _create(self, job_id: str, name: str, kind: CheckpointType, by: str) -> JobCheckpoint:
        now_ms = round(self._store.clock.time() * 1000)
        with self._store.reader() as reader:
            letter = checkpoint_letter(reader, job_id, name, kind, most=self._most, now_ms=now_ms, by=by)
        made = _said(job_id, letter)
        assert made is not None
        try:
            self._store.post(letter)
        except LetterRefused as error:
            raise refused(job_id, made.name, error) from error
        return made

    async def create_all(self, type: CheckpointType) -> list[JobCheckpoint]:
        """One of each open job of which something has come since its last one: before a drain, say. What ends meanwhile has none."""
        made = []
        for job in await self._store.find(statuses=_OPEN):
            if not job.agent or not await run_in_thread(self._is_new, job.job_id):
                continue
            with suppress(JobCheckpointFailed):
                made.append(await self.create(job.job_id, type=type))
        return made

    def _is_new(self, job_id: str) -> bool:
        """Whether anything but checkpoints has come since the last one."""
        with self._store.reader() as reader:
            known = [made.entries for made in checkpoints_of(reader, job_id)]
            since = [entry for _, entry in reader.read(job_id)][max(known, default=0) :]
            return not all(isinstance(entry, Signal) and entry.name == CHECKPOINT for entry in since)

    # -- looking ------------------------------------------------------------------------------------------------------

    async def checkpoints(self, job_id: str) -> list[JobCheckpoint]:
        """Those of a job that are not too old, the oldest first."""
        return await run_in_thread(self._checkpoints, checked_word(job_id, "checkpoints: job_id"))

    def _checkpoints(self, job_id: str) -> list[JobCheckpoint]:
        with self._store.reader() as reader:
            return [each for each in checkpoints_of(reader, job_id) if not self._is_over(each)]

    def _is_over(self, checkpoint: JobCheckpoint) -> bool:
        return self._store.clock.time() - checkpoint.created_at > self._retention_s

    async def export(self, job_id: str, name: str, path: Path | str) -> Recording:
        """Writes the history up to a checkpoint into a file, compressed where that is called .gz: for longer than the journal has it, for
        `sabot jobs replay` and `fork`. Raises RestoreFailed, and UserError where the file cannot be written.
        """
        checked_word(job_id, "export: job_id")
        return await run_in_thread(self._export, job_id, name, checked_path(path, "export: path"))

    def _export(self, job_id: str, name: str, path: Path | str) -> Recording:
        with self._store.reader() as reader:
            found = self._find(reader, job_id, name)
            recording = record_job(reader, job_id).take_until(found.checkpoint.entries)
        recording.save(path)
        return recording

    # -- going back ---------------------------------------------------------------------------------------------------

    async def restore(
        self, job_id: str, name: str = "", *, again: Collection[str] = (), beside: bool = False
    ) -> ExecutionHandle:
        """Another job of the kernel, which has done what this one had done at the checkpoint, by default at its last one, and goes on from
        there with the code of today. What it had been told is not asked again; a question or a timer that was open has what was left of its
        time. The journal keeps both jobs.

        again: names of tools, and of agents, that the job had asked for behind the checkpoint and that may do it a second time. Calls that
        only read, and models, need not be named. beside: although the job itself goes on.

        Raises RestoreFailed, JobCheckpointDamaged, JobCheckpointTooLarge; then nothing was done.
        """
        kernel = self._of
        checked_word(job_id, "restore: job_id")
        if not isinstance(kernel, RuntimeKernel):
            raise RestoreFailed(
                f"job {job_id} is of an app: its records and outputs are in step with the checkpoints of the app",
                hint="sabot jobs fork goes on from one of its steps, and changes nothing outside",
            )
        await kernel.start()
        await self._flushed()
        found = await run_in_thread(self._found, job_id, name)
        _check_over(found, beside)
        _check_again(found, again)
        made, now_ms = found.checkpoint, round(self._store.clock.time() * 1000)
        restored = f"{job_id}@{made.name}.{uuid.uuid4().hex[:8]}"
        origin = JobOrigin(job_id, made.name, now_ms)
        taken = take_over(found.entries[: made.entries], restored, origin, round(made.created_at * 1000), found.key)
        try:
            return await kernel.take_over(taken)
        except NonDeterminism as error:
            said = f"the code of today does not do what job {job_id} did: {error.message}"
            raise RestoreFailed(said, hint=error.hint) from error
        except UserError as error:
            raise RestoreFailed(error.message, hint=error.hint) from error

    def _found(self, job_id: str, name: str) -> "_Found":
        with self._store.reader() as reader:
            return self._find(reader, job_id, name)

    def _find(self, reader: JournalReader, job_id: str, name: str) -> "_Found":
        """Raises RestoreFailed."""
        made = checkpoints_of(reader, job_id)
        entries = _history(reader, job_id)
        known = [each for each in made if not self._is_over(each)]
        checkpoint = next((each for each in reversed(known) if name in ("", each.name)), None)
        if checkpoint is None:
            old = any(each.name == name for each in made)
            damaged = any(_is_of(each, job_id, name) for each in entries)
            if damaged and not old:
                raise JobCheckpointDamaged(f"checkpoint {name} of job {job_id} cannot be read")
            raise RestoreFailed(
                f"job {job_id} has no checkpoint{' ' * bool(name)}{name}" + (": it is too old" if old else ""),
                hint=f"it has {', '.join(each.name for each in known)}" if known else "it has none",
            )
        before = entries[: checkpoint.entries]
        size, digest = _size(before)
        if digest != checkpoint.digest:
            raise JobCheckpointDamaged(
                f"the history of job {job_id} is not what checkpoint {checkpoint.name} was made of",
                hint="go back to a copy of the journal",
            )
        if size > self._most:
            raise JobCheckpointTooLarge(
                f"checkpoint {checkpoint.name} of job {job_id} has {size:,} bytes, and {self._most:,} are allowed"
            )
        return _Found(checkpoint, entries, part_of(before), reader.key)


class _Found(NamedTuple):
    """entries: of the job. part: of those before the checkpoint. key: of the journal."""

    checkpoint: JobCheckpoint
    entries: list[Entry]
    part: HistoryPart
    key: bytes


def _is_of(entry: Entry, job_id: str, name: str) -> bool:
    return isinstance(entry, Signal) and (entry.name, entry.token) == (CHECKPOINT, _token(job_id, name))


def _check_over(found: _Found, beside: bool) -> None:
    last = next(each for each in reversed(found.entries) if isinstance(each, Begin | End))
    if not beside and isinstance(last, Begin):
        job_id = found.checkpoint.job_id
        raise RestoreFailed(
            f"job {job_id} has not ended, and the restored one would do its work beside it",
            hint="await handle.cancel() first; or beside=True",
        )


def _check_again(found: _Found, again: Collection[str]) -> None:
    if isinstance(again, str):  # a collection of its letters, and of its parts for `in`
        raise UserError(f"again={again!r}: names are wanted", hint=f"again=[{again!r}]")
    made = [
        each for each in open_calls(found.entries, found.part) if _changes_something(each) and each.name not in again
    ]
    if made:
        job_id, name = found.checkpoint.job_id, found.checkpoint.name
        words = ", ".join(f"{each.name} (step {each.ordinal})" for each in made)
        raise RestoreFailed(
            f"behind checkpoint {name}, job {job_id} has asked for {words}: the restored one may do it again",
            hint=f"again={sorted({each.name for each in made})!r} allows that; or restore a later checkpoint",
        )


def _changes_something(call: Intent) -> bool:
    return call.kind == "child" or RULES[EffectClass(call.effect_class)].settles
