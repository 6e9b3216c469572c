"""Recordings: the history of a job as a file that can be played again, also on another machine.

RuntimeEvents ─▶ ReplayRecorder ─▶ Recording ─▶ save, load
journal       ─▶ record_job     ─▶

A recording that is made from a journal has the journal's entries, so that the code of today can be run over them. The
digests and tokens in these entries are computed anew, with a key of the recording. So a reader of the file can neither
answer the questions of the job nor find its arguments in the journal by their digests.
"""

import gzip
import os
import platform
import secrets
import uuid
import zlib
from base64 import b64decode, b64encode
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import msgspec

from sabot.agents.entry_values import as_plain, value_of
from sabot.agents.events.bus import EventBus, RuntimeEvent, Subscription
from sabot.agents.job_view import JobView
from sabot.base.checks import Of, check, is_whole
from sabot.base.config import checked_path, checked_text
from sabot.base.disk import private, sync
from sabot.base.options import answers_wrong_options
from sabot.clock import SYSTEM_CLOCK, Clock
from sabot.engine.calls.effects import digest
from sabot.errors import UNREADABLE, DataError, UserError, short_repr
from sabot.jobs.core import CALLS
from sabot.jobs.fork_history import part_of, seeds_of
from sabot.jobs.open_jobs import whole_entry
from sabot.journal import JournalReader
from sabot.journal.entries import Answer, Begin, End, Entry, Intent, decode_entry, encode_entry

FORMAT = 2
_GZIP = b"\x1f\x8b"


class RunMetadata(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The versions of the software with which a job was run, for its recording; "" means unknown. `run_id` identifies
    the recording, `created_at` is the time in seconds since 1970, and `tags` are any texts by name.
    """

    run_id: str
    created_at: float
    runtime_version: str = ""
    model_version: str = ""
    prompt_version: str = ""
    tools_version: str = ""
    policy_version: str = ""
    code_version: str = ""
    python_version: str = ""
    tags: dict[str, str] = {}

    @classmethod
    def create(cls, *, clock: Clock = SYSTEM_CLOCK, **fields: Any) -> "RunMetadata":
        """Returns metadata with the given fields. For fields that are not given, uses a random id, the present time,
        and the installed versions of Sabot and Python. Raises UserError for a field of a wrong type or an unknown
        field.
        """
        given = {
            "run_id": uuid.uuid4().hex,
            "created_at": clock.time(),
            "runtime_version": _installed(),
            "python_version": platform.python_version(),
            **fields,
        }
        try:
            return msgspec.convert(given, cls)
        except msgspec.ValidationError as error:
            raise UserError(f"RunMetadata: {error}") from error


def _installed() -> str:
    try:
        return version("sabot")
    except PackageNotFoundError:
        return ""


@dataclass(frozen=True, slots=True)
class Recording:
    """The recorded history of a job, or the recorded events of a bus.

    - `metadata`: the versions of the software that was used.
    - `initial_input`: the input of the job, or the value that was passed to `ReplayRecorder.start`.
    - `events`: the events, in the order in which they were published.
    - `arrivals`: for each event, the seconds from the beginning of the recording to its arrival. It is () if the
      arrivals were not recorded.

    Only a recording that is made from a journal has these:

    - `job_id`: the id of the job.
    - `entries`: the journal entries of the job, with their bodies.
    - `key`: the key with which the digests in these entries are made. It is not the key of the journal.
    - `seeds`: the seeds of the job's random values. There is one for the beginning of the job, and one for each call of
      `ctx.continue_as`.
    """

    metadata: RunMetadata
    initial_input: Any = None
    events: tuple[RuntimeEvent, ...] = ()
    arrivals: tuple[float, ...] = ()
    job_id: str = ""
    entries: tuple[Entry, ...] = ()
    key: bytes = b""
    seeds: tuple[bytes, ...] = ()

    def take_until(self, count: int) -> "Recording":
        """Returns a copy of this recording that has only the first `count` entries."""
        if not is_whole(count, 0):
            raise UserError(f"up_to: count={short_repr(count)}", hint="a number of entries")
        entries = self.entries[:count]
        return replace(self, entries=entries, seeds=self.seeds[: len(seeds_of(self.job_id, entries, self.key))])

    def save(self, path: Path | str) -> None:
        """Writes the recording as a JSON file with mode 0600, compressed if its name ends in .gz. The file is written
        completely or not at all. Raises UserError if the recording has a value that JSON cannot represent, or if the
        file cannot be written.
        """
        content = {
            "metadata": msgspec.to_builtins(self.metadata),
            "initial_input": self.initial_input,
            "events": [msgspec.to_builtins(each) for each in self.events],
            "arrivals": list(self.arrivals),
            "job_id": self.job_id,
            "entries": [b64encode(encode_entry(entry)).decode() for entry in self.entries],
            "key": self.key.hex(),
            "seeds": [seed.hex() for seed in self.seeds],
        }
        try:
            data = msgspec.json.encode(content, order="deterministic")
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise UserError(f"the recording cannot be written as JSON: {error}") from error
        path = Path(checked_path(path, "save: path"))
        written = path.with_name(f"{path.name}.{os.getpid()}.new")
        head = f'{{"sabot_recording":{FORMAT},"digest":"{_digest(data)}",\n"content":'
        whole = head.encode() + data + b"}\n"
        try:
            with open(written, "wb", opener=private) as file:
                file.write(gzip.compress(whole, mtime=0) if path.suffix == ".gz" else whole)
            sync(written)
            written.rename(path)
        except OSError as error:
            with suppress(OSError):
                written.unlink(missing_ok=True)
            raise UserError(
                f"{path} cannot be written: {error.strerror}", hint="its folder must be there, and take files"
            ) from error

    @classmethod
    def load(cls, path: Path | str) -> "Recording":
        """Loads a recording from a file that `save` has written. Raises UserError if the file cannot be read, is not a
        recording, has another format version, is incomplete, or was changed.
        """
        path = checked_path(path, "load: path")
        try:
            data = Path(path).read_bytes()
            whole = msgspec.json.decode(gzip.decompress(data) if data.startswith(_GZIP) else data)
        except (OSError, EOFError, zlib.error, *UNREADABLE) as error:
            raise UserError(f"{path} cannot be read as a recording: {error}", hint="it may be cut short") from error
        if not isinstance(whole, dict) or "sabot_recording" not in whole:
            raise UserError(f"{path} is no recording")
        if whole["sabot_recording"] != FORMAT:
            raise UserError(
                f"{path} is a recording of version {whole['sabot_recording']}, and this Sabot knows {FORMAT}",
                hint="load it with the Sabot that has made it",
            )
        content: Any = whole.get("content")
        if _digest(msgspec.json.encode(content, order="deterministic")) != whole.get("digest"):
            raise UserError(f"{path} was changed since it was recorded", hint="bring the file back, or record anew")
        return cls(
            metadata=msgspec.convert(content["metadata"], RunMetadata),
            initial_input=content["initial_input"],
            events=tuple(msgspec.convert(each, RuntimeEvent) for each in content["events"]),
            arrivals=tuple(content.get("arrivals", ())),
            job_id=content["job_id"],
            entries=tuple(decode_entry(b64decode(each), path) for each in content["entries"]),
            key=bytes.fromhex(content["key"]),
            seeds=tuple(bytes.fromhex(seed) for seed in content["seeds"]),
        )


def _digest(data: bytes) -> str:
    return blake2b(data, digest_size=16).hexdigest()


@answers_wrong_options
@dataclass(slots=True)
class ReplayRecorder:
    """A recorder of the events that are published to a bus between `start` and `stop`.

    - `job_id`: only the events of this job are recorded; None records those of all jobs.
    - `most`: the most events that are recorded. If more are published, `stop` raises an error, so that nobody takes the
      recording for a complete one.
    """

    event_bus: EventBus
    metadata: RunMetadata
    job_id: str | None = None
    most: int = 1_000_000
    clock: Clock = SYSTEM_CLOCK
    _began: float = 0.0
    _arrived: list[float] = field(default_factory=list)
    _input: Any = None
    _events: list[RuntimeEvent] = field(default_factory=list)
    _subscription: Subscription | None = None
    _over: int = 0

    async def start(self, initial_input: Any = None) -> None:
        """Begins to record. `initial_input` is stored in the recording. Raises UserError if the recorder is recording
        already.
        """
        if self._subscription is not None:
            raise UserError("the recorder has been started", hint="await recorder.stop() first")
        self._input, self._events, self._arrived, self._over = initial_input, [], [], 0
        self._began = self.clock.monotonic()
        self._subscription = await self.event_bus.subscribe(self._keep, job_id=self.job_id, slow="hold")

    def _keep(self, event: RuntimeEvent) -> None:
        if len(self._events) < self.most:
            self._events.append(event)
            self._arrived.append(self.clock.monotonic() - self._began)
        else:
            self._over += 1

    async def stop(self) -> Recording:
        """Stops recording, and returns the recording. If an event was published several times, the recording has it
        only once. Raises UserError if the recorder is not recording, and DataError if more than `most` events were
        published; the recorder is then stopped, and its events are lost.
        """
        if self._subscription is None:
            raise UserError("the recorder was not started", hint="await recorder.start(initial_input=…)")
        await self._subscription.flush()
        await self._subscription.unsubscribe()
        self._subscription = None
        if self._over:
            raise DataError(f"the recorder keeps {self.most} events, and there were {self._over} more")
        first: dict[str, tuple[RuntimeEvent, float]] = {}
        for event, arrival in zip(self._events, self._arrived, strict=True):
            first.setdefault(event.event_id, (event, arrival))
        events, arrivals = zip(*first.values(), strict=True) if first else ((), ())
        return Recording(self.metadata, self._input, events, arrivals)


def record_job(reader: JournalReader, job_id: str, metadata: RunMetadata | None = None) -> Recording:
    """Returns a recording of a job, made from the entries that a journal has of it. With `metadata=None`, its metadata
    has the present versions of Sabot and Python, and the version of the code that the journal has. Blocks the thread.
    Raises UserError if the journal does not have the job.
    """
    check("record_job: reader", reader, Of(JournalReader, "a Journal, or what open_reader gives"))
    checked_text(job_id, "record_job: job_id")
    entries = [whole_entry(reader, entry) for _, entry in reader.history.entries(job_id)]
    begins = [entry for entry in entries if isinstance(entry, Begin)]
    if not begins:
        raise UserError(f"{reader.where} has no job {job_id}", hint="sabot jobs list shows those that it has")
    key = secrets.token_bytes(32)
    given = as_plain(value_of(begins[0], begins[0].body))  # type: ignore[arg-type]
    return Recording(
        metadata or RunMetadata.create(code_version=begins[-1].code),
        given["message"] if isinstance(given, Mapping) and "message" in given else given,
        job_id=job_id,
        entries=tuple(_with_key(entries, key)),
        key=key,
        seeds=seeds_of(job_id, entries, reader.key),
    )


def entries_until(recording: Recording, at: int | None) -> list[Entry]:
    """Returns the recorded entries up to the result of the step with the ordinal `at`, or all entries before the END if
    `at` is None. Leaves out the entries of effects that had no result yet when that result came. Raises UserError if
    the recording has no entries, or no result of the step.
    """
    entries = recording.entries
    if not entries:
        raise UserError(
            "the recording has events only", hint="record_job(reader, job_id) records what code can run over"
        )
    places = _places(entries)
    if at is None:
        end = isinstance(entries[-1], End)
        return part_of(entries[: len(entries) - end]).settled
    if at not in places:
        steps = [entry.ordinal for entry in entries if isinstance(entry, Intent)]
        had = f"its steps are 1 to {max(steps)}" if steps else "it has no step"
        raise UserError(f"the recording of job {recording.job_id} has no result of step {at}: {had}")
    return part_of(entries[: places[at]]).settled


def _places(entries: Sequence[Entry]) -> dict[int, int]:
    """Returns the number of entries from the beginning of the recording up to the result of a step, by the ordinal of
    the step. Steps without a result are left out. The ordinal 0 stands for the beginning of the job, which is one
    entry.
    """
    view, places = JobView(), {0: 1}
    for count, entry in enumerate(entries, 1):
        over = [each for each in view.apply(entry).effects if each.ended_at is not None and each.state != "closed"]
        places |= {each.intent.ordinal: count for each in over}
    return places


def _with_key(entries: Iterable[Entry], key: bytes) -> Iterable[Entry]:
    """Yields the entries with new digests and new tokens, which are made with the key `key`. So a reader of the
    recording cannot use the tokens of the original journal.
    """

    def token(of: str) -> str:
        return of and blake2b(of.encode(), key=key, digest_size=20).hexdigest()

    for entry in entries:
        match entry:
            case Intent():
                asked = entry.body if entry.kind in (*CALLS, "ask", "child") else b""
                assert isinstance(asked, bytes)
                made = entry.digest if entry.kind == "sleep" else digest(key, entry.kind, entry.name, asked)
                yield msgspec.structs.replace(entry, digest=made, token=token(entry.token))
            case Answer():
                yield msgspec.structs.replace(entry, token=token(entry.token))
            case _:
                yield entry
