"""Records as jobs: their ids, their headers, and their form in the journal and in mailboxes."""

import sys
from collections.abc import Callable, Iterable
from hashlib import blake2b
from types import CodeType
from typing import Any, NamedTuple

import msgspec

from sabot._cython.arrow.batch import Batch
from sabot.agents.admission import Place
from sabot.agents.durable.context import DurableContext
from sabot.agents.durable.job_batches import to_ipc
from sabot.api.agent import AgentSpec
from sabot.calls.functions import unwrap
from sabot.codecs.base import Format
from sabot.codecs.formats import JSON
from sabot.codecs.records import Headers, encode_json
from sabot.errors import DataError
from sabot.jobs.guard import NOBODY, Behalf
from sabot.jobs.owner import OpenJob
from sabot.jobs.run import PYTHON_MARK
from sabot.journal.effects import digest
from sabot.operators.agents.rows import JOB_HEADER, JSON_HEADER, Row, place_of, rows_of, with_headers

RUN_HEADER = "sabot.run"
"""The header with the number of the run that has failed (`Begin.run`), beside JOB_HEADER or FROM_HEADER. 0 means that
no run has failed, but that the job may have begun already.
"""

LAST_RUN = 1 << 62
"""A number greater than that of any run. It means the last run of a job if the number of that run is not known."""

INPUT_HEADER = "sabot.input"
"""The header of a dead letter whose job went on with another input than its record (`ctx.continue_as`). It has the
digest of the first input, which identifies the job, and a digest of both inputs. So a record with another payload is
not taken for that of the job.
"""

CONVERSATION_HEADER = "sabot.conversation"
"""The header of a dead letter with the conversation between agent and model, as JSON."""

FROM_HEADER = "sabot.from"
"""The header of a row that one durable agent passes to another: the job that made it, and the number of the result."""


LABELS_HEADER = "sabot.labels"
"""The header with the labels of a record, separated by commas: those of the data that the job saw which made it."""


class JobInput(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A record in the BEGIN entry of a job. New fields are only added at the end.

    `columns`: the decoded payload as an Arrow IPC stream of one row, so that a replay reads the same even if the
    schema or its registry has changed. Empty if the payload is JSON or null.
    """

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    headers: Headers
    payload: bytes | None
    columns: bytes = b""


class WaitingInput(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A record in a mailbox. New fields are only added at the end."""

    job: str
    digest: bytes
    named: bool
    failed_run: int
    record: JobInput
    behalf: Behalf = NOBODY


_OURS = (JOB_HEADER, RUN_HEADER, INPUT_HEADER, CONVERSATION_HEADER, FROM_HEADER, JSON_HEADER)

encode = msgspec.msgpack.Encoder().encode
decode_record = msgspec.msgpack.Decoder(JobInput).decode
decode_waiting = msgspec.msgpack.Decoder(WaitingInput).decode


class FailedRun(NamedTuple):
    """The failed run of a job, for the headers of a dead letter. `job_id` is "" if the record has no known job.
    `digest` is the digest of the job's first input. `conversation` is the conversation of the agent that has failed, as
    JSON, or empty.
    """

    job_id: str
    run: int
    digest: bytes = b""
    conversation: bytes = b""

    @property
    def headers(self) -> Headers:
        """The headers of the dead letter: those that identify the job, and the conversation."""
        said = ((CONVERSATION_HEADER, self.conversation),) if self.conversation else ()
        return (*job_headers(self.job_id, self.run), *said) if self.job_id else ()


class JobCall(
    msgspec.Struct, eq=False, gc=False
):  # gc=False: it is in no cycle, and each of 100,000 parked jobs has one
    """A row that waits for its job or has one, or a job that was open in the journal at the start. It exists until
    the job ends.

    - `digest`: the digest of the record.
    - `named`: True if the journal must be asked whether it has the job, because the job's id does not come from the record's
      position, or because jobs of later rows have begun.
    - `failed_run`: for a dead letter that was sent back, the number of the run that has failed, else 0.
    - `row`: the row in the agent's queue, or None.
    - `mailed`: True if the row is the first of its key's mailbox.
    - `before`: the job as it was open in the journal, or None; set to None when the job is parked or blocked.
    - `reopened`: True if the job was open at the start.
    - `place`: the place of the job at the agent's `JobAdmission`, which allows `concurrency=` jobs to run.
    - `renewed`: True if the job was tried again since the start.
    - `run`: the number of the run in its BEGIN; above 1 the job gets its recorded results.
    - `begun`: True if its BEGIN is in the journal.
    - `behalf`: the scope, principal and labels of the job.
    """

    job_id: str
    scope: bytes
    digest: bytes
    record: JobInput | None = None
    named: bool = False
    failed_run: int = 0
    row: Row | None = None
    mailed: bool = False
    before: OpenJob | None = None
    reopened: bool = False
    place: Place = ""
    blocked: bool = False
    renewed: bool = False
    run: int = 1
    begun: bool = False
    ctx: DurableContext | None = None
    behalf: Behalf = NOBODY

    @property
    def parked(self) -> bool:
        """True if the job is parked, or woken and not running yet."""
        return self.place in ("parked", "woken")

    @property
    def is_failed_child(self) -> bool:
        """True if the job is a child that has failed, and its parent has begun it again."""
        return self.failed_run > 0 and self.record is not None and self.record.offset < 0


def input_of(row: Row) -> JobInput:
    """Returns the record of a row for BEGIN."""
    columns = b"" if row.columns is None else to_ipc(row.columns)
    headers = user_headers(row.headers)
    return JobInput(row.topic, row.partition, row.offset, row.timestamp, row.key, headers, row.raw(), columns)


def inputs_of(call: JobCall) -> dict[str, Any]:
    """Returns the arguments of BEGIN that describe the record."""
    return {"record": encode(call.record), "key": call.scope, "digest": call.digest}


def rows_of_begun(calls: Iterable[JobCall]) -> dict[int, list[int]]:
    """Returns the rows whose jobs have begun: their numbers in a `QueuedRows`, by the Python `id` of that object."""
    begun: dict[int, list[int]] = {}
    for call in calls:
        if call.begun and call.row is not None:
            begun.setdefault(id(call.row.held), []).append(call.row.place)
    return begun


class JobNames:
    """Gives the rows of an agent their job ids, and finds the scope, principal and labels of each job.

    `logs` has the identity of each topic's log. `parents` are the durable agents that write into this one. `again` is
    how often `--reprocess` has made new jobs of the agent's records; if the agent has `job_id=`, the ids contain this
    number.
    """

    def __init__(self, spec: AgentSpec) -> None:
        self._agent_id = spec.agent_id
        self._field = spec.job_id
        self._scope, self._principal, self._labels = spec.scope, spec.principal, spec.labels
        self.logs: dict[str, str] = {}
        self.parents: frozenset[str] = frozenset()
        self.again = 0

    def name(self, call: JobCall, row: Row) -> None:
        """Sets the job id of the call, and the scope, principal and labels of its job. Raises DataError if nothing
        gives the row an id, or if an option names a field whose value is neither a text nor a whole number.
        """
        labels = self._labels if not row.headers else labels_of(row.headers, self._labels)
        if labels or self._scope is not None or self._principal is not None:
            call.behalf = Behalf(
                _text_field(row, self._scope, "scope"), _text_field(row, self._principal, "principal"), labels
            )
        for name, value in reversed(row.headers):
            if name == JOB_HEADER and value is not None and value.startswith(f"{self._agent_id}/".encode()):
                call.job_id, call.named = value.decode(errors="replace"), True
                call.failed_run = failed_run(row.headers)
                return
            if name == FROM_HEADER and row.topic in self.parents:
                call.job_id = f"{self._agent_id}/{value.decode(errors='replace')}"
                call.named = failed_run(row.headers) == 0
                return
        if self._field is not None:
            wanted = _text_field(row, self._field, "job_id")
            round_ = f"#{self.again}" if self.again else ""
            call.job_id, call.named = f"{self._agent_id}/{self._field}{round_}={wanted}", True
        elif row.topic in self.logs:
            call.job_id = self._place(self.logs[row.topic], row)
        else:
            raise DataError(
                f"{place_of(row)}: it cannot be matched with a job, because its topic is not read any more",
                hint="name a field with job_id=",
            )

    def stamped(self, batch: Batch, log: str) -> Batch:
        """Returns rows of a checkpoint with the ids of their jobs added as headers, if their positions will no longer
        identify them. That is so if they came from another log (`log`) than the one that the topic has now. Otherwise
        returns the batch unchanged. Rows that a field or a header identifies are not changed either.
        """
        if self._field is not None or log == self.logs.get(batch.topic):
            return batch
        headers = []
        for row in rows_of(batch.data, batch.topic):
            known = any(name in (JOB_HEADER, FROM_HEADER) for name, _ in row.headers)
            headers.append(row.headers if known else (*row.headers, *job_headers(self._place(log, row), 0)))
        return Batch(with_headers(batch.data, headers), None, batch.topic)

    def _place(self, log: str, row: Row) -> str:
        return f"{self._agent_id}/{log}/{row.partition}/{row.offset}"


def _text_field(row: Row, field: str | None, option: str) -> str:
    """Returns the text or whole number in a field that an option names. Raises DataError for anything else."""
    if field is None:
        return ""
    found = row.value.get(field) if isinstance(row.value, dict) else None
    if not isinstance(found, str | int) or isinstance(found, bool) or found == "" or "\0" in str(found):
        what = option.replace("_id", "")
        raise DataError(
            f"{place_of(row)}: field {field!r} has no {what} ({option}=): it is {found!r}, and must be text without NUL or a whole number"
        )
    return str(found)


def labels_of(headers: Headers, labels: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Returns these labels and those of the headers, sorted."""
    said = [value.decode(errors="replace") for name, value in headers if name == LABELS_HEADER and value]
    return tuple(sorted({*labels, *filter(None, ",".join(said).split(","))})) if said else labels


def row_of(record: JobInput) -> Row:
    """Returns the record as a Row that is not decoded yet."""
    return Row(
        record.payload, record.key, record.timestamp, record.partition, record.offset, record.headers, record.topic
    )


def user_headers(headers: Headers) -> Headers:
    """Returns the headers without those that Sabot has added. The user's function gets these as `ctx.headers`."""
    return headers and tuple(pair for pair in headers if pair[0] not in _OURS)


def job_headers(job_id: str, run: int) -> Headers:
    """Returns the headers of a record that is sent back: the id of its job, and the run that has failed."""
    return ((JOB_HEADER, job_id.encode()), (RUN_HEADER, b"%d" % run))


def json_headers(record: JobInput, format: Format) -> Headers:
    """Returns the headers to add to a record that is sent back into a topic: JSON_HEADER if the payload is JSON and the
    topic has another format; otherwise none.
    """
    return ((JSON_HEADER, b"1"),) if format != JSON and not record.columns and record.payload is not None else ()


def input_headers(key: bytes, own: bytes, first: bytes) -> Headers:
    """Returns the headers to add to a record that is sent back: INPUT_HEADER if its job began with another input;
    otherwise none.

    `key` is the key of the journal's digests, `own` the digest of the record, and `first` the digest of the job's first
    input.
    """
    return (
        ()
        if own == first
        else ((INPUT_HEADER, f"{first.hex()}{digest(key, 'continued', own.hex(), first.hex()).hex()}".encode()),)
    )


def first_digest(key: bytes, own: bytes, headers: Headers) -> bytes:
    """Returns the digest of the first input of a record's job, from INPUT_HEADER. If that header is missing or not
    valid, returns `own`, the digest of the record itself. `key` is the key of the journal's digests.
    """
    said = next((value for name, value in reversed(headers) if name == INPUT_HEADER), None)
    try:
        first = bytes.fromhex((said or b"").decode()[: 2 * len(own)])
    except ValueError:
        return own
    return first if input_headers(key, own, first) == ((INPUT_HEADER, said),) else own


def result_headers(job_id: str, number: int, *, replayed: bool) -> Headers:
    """Returns the headers of a result that one durable agent passes to another.

    `replayed`: True if the job was run over its history, so that the result may have been passed on before.
    """
    again = ((RUN_HEADER, b"0"),) if replayed else ()
    return ((FROM_HEADER, f"{job_id}>{number}".encode()), *again)


def failed_run(headers: Headers) -> int:
    """Returns the number of the failed run from the headers of a dead letter that was sent again, or LAST_RUN if the
    header is missing.
    """
    found = next((value for name, value in reversed(headers) if name == RUN_HEADER and value), b"")
    return int(found) if found.isdigit() else LAST_RUN


def payload_from(message: Any) -> bytes:
    """Encodes a message as the payload of a record. Raises UserError for a value that JSON cannot encode."""
    return message if isinstance(message, bytes) else encode_json(message)


def version_of(function: Callable[..., Any], version: str = "") -> str:
    """Returns the version of the code for BEGIN. It consists of `version`, or by default of a short hash of the
    function's code, and of the version of Python, because another Python may run tasks in another order (`jobs.run`).
    It is the same in all processes with the same source and Python.
    """
    code = getattr(unwrap(function), "__code__", None)
    if not version and code is not None:
        version = blake2b(repr(_shape(code)).encode(), digest_size=6).hexdigest()
    return f"{version}{PYTHON_MARK}{sys.version_info.major}.{sys.version_info.minor}"


def _shape(code: CodeType) -> list[Any]:
    constants = [_shape(each) if isinstance(each, CodeType) else repr(each) for each in code.co_consts]
    return [code.co_code, code.co_names, constants]
