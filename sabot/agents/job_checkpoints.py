"""Checkpoints of single jobs: names for places in the history of a job, from which another job can continue.

   create   a signal that nobody waits for, into the inbox of the journal ─▶ an entry of the job's history
   restore  the history up to that entry ─▶ the beginning of another job (`jobs.fork_history`), which then goes on with real calls

A checkpoint is one entry of the journal, so checkpoints need no store of their own. They are in SQLite, PostgreSQL, Kafka or
memory, as the journal is, and exist for as long as the history of the job.
"""

import asyncio
import logging
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
from sabot.base.options import answers_wrong_options
from sabot.base.threads import run_in_thread
from sabot.engine.calls.effects import RULES
from sabot.errors import (
    UNREADABLE,
    CorruptJournal,
    LetterRefused,
    NonDeterminism,
    TransientError,
    UserError,
    short_repr,
)
from sabot.jobs.fork_history import CHECKPOINT, HistoryPart, open_calls, part_of, take_over
from sabot.jobs.open_jobs import whole_entries
from sabot.journal import JournalReader
from sabot.journal.entries import Begin, End, Entry, Intent, JobOrigin, Letter, Signal, encode_entry

_log = logging.getLogger(__name__)

CheckpointType = Literal["auto", "manual", "pre_suspend", "pre_drain"]

MOST_BYTES = "100MB"
"""The default limit of the size of a job's history up to a checkpoint."""

_OPEN = (JobStatus.QUEUED, JobStatus.RUNNING, JobStatus.WAITING_ACTION)


class JobCheckpointFailed(UserError):
    """The error if a checkpoint of a job cannot be made, because the job has ended or is unknown, or because it already
    has a checkpoint with this name.
    """

    code = "E2030"


class JobCheckpointTooLarge(JobCheckpointFailed):
    """The error if a checkpoint of a job cannot be made or used, because the history of the job up to it has more bytes
    than `max_size=` allows.
    """

    code = "E2031"


class RestoreFailed(UserError):
    """The error if no new job can continue from a checkpoint. Possible reasons:

    - The job is one of an app. Only jobs of a kernel can be restored.
    - The checkpoint is missing, or older than the `retention` of the checkpoints.
    - The old job has not ended.
    - The old job requested calls whose results the checkpoint does not have, and which must not be made a second time.
    - The present code of the agent requests other effects than the old job did.
    """

    code = "E2032"


class JobCheckpointDamaged(RestoreFailed):
    """The error if a checkpoint cannot be used, because it or the history of its job cannot be read, or because the
    digest of the history differs from the digest in the checkpoint.
    """

    code = "E2033"


@dataclass(frozen=True, slots=True, kw_only=True)
class JobCheckpoint:
    """A checkpoint of a job: a name for a place in the history of the job, from which a new job can continue.

    - `created_at`: the time at which it was made, in seconds since 1970.
    - `entries`, `size_bytes`: the number of journal entries that the job had then, and the number of their bytes.
    - `effects`: the number of effects and questions that the job had requested.
    - `by`: the person who made the checkpoint, or "".
    - `digest`: the digest of these entries.
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
    """The body of the journal entry that stores a checkpoint of a job. That entry is a SIGNAL entry of the job, with the
    name CHECKPOINT. `at_ms` is the time of the checkpoint in milliseconds since 1970.
    """

    type: CheckpointType
    name: str
    at_ms: int
    entries: int
    effects: int
    size_bytes: int
    digest: str


def _size(entries: Iterable[Entry]) -> tuple[int, str]:
    """Returns the number of bytes of these entries in their encoded form, and the digest of these bytes in hexadecimal
    digits.
    """
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
    """Returns a letter (a request for the inbox of the journal) that makes a checkpoint of an open job. The checkpoint
    exists as soon as the caller has put the letter into the inbox. Blocks the thread.

    - `name`: the name of the checkpoint. With "" it is made of `kind` and the number of the job's entries, as in
      "manual-12".
    - `kind`: the reason for which the checkpoint is made: "auto", "manual", "pre_suspend" or "pre_drain". It is only
      stored.
    - `most`: the most bytes that the history of the job may have.
    - `now_ms`: the time of the checkpoint in milliseconds since 1970.
    - `by`: the person who makes the checkpoint.

    Raises JobCheckpointFailed for an unknown job or kind, and JobCheckpointTooLarge.
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
    """Returns the error for a checkpoint that could not be made. `error` is the reason for which the inbox of the
    journal has refused the request.
    """
    if error.reason == "second":
        return JobCheckpointFailed(f"job {job_id} has a checkpoint {name}", hint="give this one another name")
    if error.reason == "closed":
        return JobCheckpointFailed(f"{error.message}: there is nothing to come back to", hint="restore an earlier one")
    return JobCheckpointFailed(error.message)


def checkpoints_of(reader: JournalReader, job_id: str) -> list[JobCheckpoint]:
    """Returns the checkpoints of a job, the oldest first. Checkpoints that are still in the inbox of the journal are
    included. Blocks the thread.
    """
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
    """The interface of an app or a kernel whose jobs a `StateManager` manages."""

    jobs: AppJobs


@answers_wrong_options
class StateManager:
    """A manager of the checkpoints of a kernel's or an app's jobs: `states = StateManager(kernel)`. The checkpoints are
    stored in the journal of the kernel or app, so several managers, also in other processes, can be used at the same
    time.

    `async with StateManager(kernel)` also makes automatic checkpoints: at a fixed interval, by default every minute, it
    makes one of each open job that has new entries. If the server of the journal does not answer, this is logged, and
    tried again after the interval.
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
        """Makes a manager.

        - `of`: the app or kernel.
        - `auto`: the interval of the automatic checkpoints in an `async with` block; None makes none.
        - `max_size`: the most bytes that the history of a job may have up to a checkpoint. A larger checkpoint is not
          made.
        - `retention`: the greatest age of a checkpoint. Older ones are not listed, and no job can be restored from
          them.
        - `hot`: the store for `manager.hot`, in which a program can save its own values by name. With
          `HotState("redis://localhost")` other processes can read them. None keeps them in the memory of this process.
        - `sleep`: the function that waits between automatic checkpoints; tests replace it.

        Raises UserError if `of` is neither an app nor a kernel, or if another argument is not valid.
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
        """Ends the automatic checkpoints. If they had stopped before because of an error, raises that error."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def _make(self, every_s: float) -> None:
        while True:
            await self._sleep(every_s)
            try:
                await self.create_all("auto")
            except TransientError as error:
                _log.warning("no checkpoints of jobs were made, and they are tried again in %g s: %s", every_s, error)

    # -- making checkpoints -------------------------------------------------------------------------------------------

    async def create(
        self, job_id: str, name: str = "", *, type: CheckpointType = "manual", by: str = ""
    ) -> JobCheckpoint:
        """Makes a checkpoint of an open job, and returns it. The checkpoint contains the effects that the job has
        requested so far, and their results. It is durable when this method returns.

        - `name`: the name, which no other checkpoint of the job may have. With "" it is made of `type` and the number
          of the job's entries, as in "manual-12".
        - `type`: the reason for which the checkpoint is made: "auto", "manual", "pre_suspend" or "pre_drain". It is
          only stored.
        - `by`: the person who makes the checkpoint.

        Raises JobCheckpointFailed if the job is unknown, has ended or has a checkpoint of this name. Raises
        JobCheckpointTooLarge, and JobCheckpointDamaged if the history of the job cannot be read.
        """
        checked_word(job_id, "create: job_id")
        await self._flushed()
        return await run_in_thread(self._create, job_id, name, type, by)

    async def _flushed(self) -> None:
        """Waits until a reader of the journal can see all entries that this process has written. Returns at once if
        this process does not have the journal open.
        """
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
        """Makes a checkpoint of each open job of an agent that has new entries since its last checkpoint; for example,
        before an app stops. Returns the new checkpoints. Jobs that end meanwhile or whose history is too large are
        skipped. If the history of a job cannot be read, raises CorruptJournal or JobCheckpointDamaged; the checkpoints
        that were made before remain.
        """
        made = []
        for job in await self._store.find(statuses=_OPEN):
            if not job.agent or not await run_in_thread(self._is_new, job.job_id):
                continue
            with suppress(JobCheckpointFailed):
                made.append(await self.create(job.job_id, type=type))
        return made

    def _is_new(self, job_id: str) -> bool:
        """Returns True if the job has new entries since its last checkpoint, other than entries that record
        checkpoints.
        """
        with self._store.reader() as reader:
            known = [made.entries for made in checkpoints_of(reader, job_id)]
            since = [entry for _, entry in reader.read(job_id)][max(known, default=0) :]
            return not all(isinstance(entry, Signal) and entry.name == CHECKPOINT for entry in since)

    # -- reading checkpoints ------------------------------------------------------------------------------------------

    async def checkpoints(self, job_id: str) -> list[JobCheckpoint]:
        """Returns the checkpoints of a job, the oldest first. Those that are older than `retention` are left out."""
        return await run_in_thread(self._checkpoints, checked_word(job_id, "checkpoints: job_id"))

    def _checkpoints(self, job_id: str) -> list[JobCheckpoint]:
        with self._store.reader() as reader:
            return [each for each in checkpoints_of(reader, job_id) if not self._is_over(each)]

    def _is_over(self, checkpoint: JobCheckpoint) -> bool:
        return self._store.clock.time() - checkpoint.created_at > self._retention_s

    async def export(self, job_id: str, name: str, path: Path | str) -> Recording:
        """Writes the history of a job up to the checkpoint `name` to a file, and returns it as a recording. The file is
        compressed if its name ends in .gz. `sabot jobs replay` and `sabot jobs fork` can use the file, even after the
        journal has removed the job. Raises RestoreFailed, JobCheckpointDamaged or JobCheckpointTooLarge if the
        checkpoint cannot be used, and UserError if the file cannot be written.
        """
        checked_word(job_id, "export: job_id")
        return await run_in_thread(self._export, job_id, name, checked_path(path, "export: path"))

    def _export(self, job_id: str, name: str, path: Path | str) -> Recording:
        with self._store.reader() as reader:
            found = self._find(reader, job_id, name)
            recording = record_job(reader, job_id).take_until(found.checkpoint.entries)
        recording.save(path)
        return recording

    # -- restoring jobs -----------------------------------------------------------------------------------------------

    async def restore(
        self, job_id: str, name: str = "", *, again: Collection[str] = (), beside: bool = False
    ) -> ExecutionHandle:
        """Begins a new job of the kernel, which continues an old job from a checkpoint with the present code of the
        agent. Returns the handle of the new job. The journal keeps both jobs. Jobs of an app cannot be restored.

        - `job_id`: the id of the old job.
        - `name`: the name of the checkpoint; "" means the last one.
        - `again`: the names of tools and agents that the new job may call a second time. If the old job called a tool
          or agent and the checkpoint does not have the result, RestoreFailed is raised unless its name is in `again`.
          Models, and tools that only read, need not be named.
        - `beside`: True allows an old job that has not ended.

        The new job gets the recorded results of the effects before the checkpoint, and does not make these effects
        again. A question or a timer that was open at the checkpoint is open in the new job, with the time that it had
        left then.

        Raises RestoreFailed, JobCheckpointDamaged or JobCheckpointTooLarge; then no job was begun.
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
        """Returns a checkpoint of a job, together with the entries of the job. `name=""` means the last checkpoint.
        Raises RestoreFailed if there is no such checkpoint or it is older than the retention time, JobCheckpointDamaged
        if it does not match the job's entries or cannot be read, and JobCheckpointTooLarge if its history is over the
        limit.
        """
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
    """A checkpoint that was found in a journal, with the history of its job.

    - `checkpoint`: the checkpoint.
    - `entries`: all entries of the job.
    - `part`: the history of the job up to the checkpoint.
    - `key`: the secret key with which the digests in the journal are made.
    """

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
    if isinstance(again, str):  # `in` would look for parts of the text
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
    return call.kind == "child" or RULES[call.effect_class].settles
