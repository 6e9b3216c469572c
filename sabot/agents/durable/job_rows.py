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
"""The header with the number of a job's failed run (`Begin.run`). A record with this header also has JOB_HEADER or
FROM_HEADER. 0 means that no run has failed, but that the job may have begun already.
"""

LAST_RUN = 1 << 62
"""A number that is greater than the number of any run. It stands for the last run of a job if the number of that run is
not known.
"""

INPUT_HEADER = "sabot.input"
"""The header of a dead letter whose job continued with another input than its record (`ctx.continue_as`). It has two
digests. The first is that of the job's first input, which identifies the job. The second is made of the record and the
first input. It shows if a record was given this header but has another payload, and so does not belong to the job.
"""

CONVERSATION_HEADER = "sabot.conversation"
"""The header of a dead letter that has the conversation of the failed agent with its model, as JSON."""

FROM_HEADER = "sabot.from"
"""The header of a row that one durable agent passes to another. It has the id of the job that made the row, and the
number of the row among the results of that job.
"""


LABELS_HEADER = "sabot.labels"
"""The header with the labels of a record, separated by commas. They are the labels of all data that the job which made
the record has seen.
"""


class JobInput(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A record in the BEGIN entry of a job. New fields are only added at the end.

    `columns` is the decoded payload as an Arrow IPC stream of one row. So a replay reads the same values even if the
    schema or its registry has changed. It is empty if the payload is JSON or null.
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
    """A job's failed run, for the headers of a dead letter.

    - `job_id`: the id of the job, or "" if the record has no known job.
    - `digest`: the digest of the job's first input.
    - `conversation`: the conversation of the failed agent with its model, as JSON, or empty.
    """

    job_id: str
    run: int
    digest: bytes = b""
    conversation: bytes = b""

    @property
    def headers(self) -> Headers:
        """Returns the headers of the dead letter. They identify the job, and have the conversation if there is one."""
        said = ((CONVERSATION_HEADER, self.conversation),) if self.conversation else ()
        return (*job_headers(self.job_id, self.run), *said) if self.job_id else ()


class JobCall(
    msgspec.Struct, eq=False, gc=False
):  # gc=False: it is in no cycle, and each of 100,000 parked jobs has one
    """A row that waits for its job or has a job, or a job that was open in the journal when the app started. The call
    is dropped when the job ends.

    - `digest`: the digest of the record.
    - `named`: True if the journal must be asked whether it has the job. That is so if the job's id does not come from
      the position of the record, or if jobs of later rows have begun.
    - `failed_run`: for a dead letter that was sent again, the number of the run that has failed; otherwise 0.
    - `row`: the row in the agent's queue, or None.
    - `mailed`: True if the row is the first of its key's mailbox.
    - `before`: the job as it was open in the journal, or None. It is set to None when the job is parked or blocked.
    - `reopened`: True if the job was open when the app started.
    - `place`: the place that `JobAdmission` gives to the job. It allows `concurrency=` jobs of the agent to run.
    - `renewed`: True if the job was tried again since the start of the app.
    - `run`: the number of the run in the job's BEGIN. In a run above 1 the job gets the results that earlier runs
      recorded.
    - `begun`: True if the job's BEGIN is in the journal.
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
        """True if the job is parked. It still is when it was woken but does not run yet."""
        return self.place in ("parked", "woken")

    @property
    def is_failed_child(self) -> bool:
        """True if the job is a child that has failed, and whose parent has begun it again."""
        return self.failed_run > 0 and self.record is not None and self.record.offset < 0


def input_of(row: Row) -> JobInput:
    """Returns the record in a row, in the form in which BEGIN has it."""
    columns = b"" if row.columns is None else to_ipc(row.columns)
    headers = user_headers(row.headers)
    return JobInput(row.topic, row.partition, row.offset, row.timestamp, row.key, headers, row.raw(), columns)


def inputs_of(call: JobCall) -> dict[str, Any]:
    """Returns the arguments for BEGIN that describe the record of the call."""
    return {"record": encode(call.record), "key": call.scope, "digest": call.digest}


def rows_of_begun(calls: Iterable[JobCall]) -> dict[int, list[int]]:
    """Returns the numbers of the rows whose jobs have begun. The key is the Python `id` of the `QueuedRows` object that
    has the rows.
    """
    begun: dict[int, list[int]] = {}
    for call in calls:
        if call.begun and call.row is not None:
            begun.setdefault(id(call.row.held), []).append(call.row.place)
    return begun


class JobNames:
    """A maker of job ids: it gives each row of an agent a job id, and finds the scope, principal and labels of its job.

    - `logs`: the identity of each topic's log.
    - `parents`: the durable agents that write into this one.
    - `again`: the number of times that `--reprocess` has made new jobs of the agent's records. If the agent has
      `job_id=`, each id contains this number.
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
        gives the row an id. Also raises DataError if an option of the agent names a field whose value is neither a text
        nor a whole number.
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
        """Returns the rows of a checkpoint, with the ids of their jobs added as headers if the topic has another log
        now than `log`. Then the positions of the rows no longer identify them. If the log is the same, or if a field or
        a header identifies the rows, the batch is returned unchanged.
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
    """Returns the value of a field as a text. `option` is the option of the agent that names the field. Raises
    DataError if the value is neither a text nor a whole number.
    """
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
    """Returns `labels` and the labels in the headers, sorted."""
    said = [value.decode(errors="replace") for name, value in headers if name == LABELS_HEADER and value]
    return tuple(sorted({*labels, *filter(None, ",".join(said).split(","))})) if said else labels


def row_of(record: JobInput) -> Row:
    """Returns the record as a Row that is not decoded yet."""
    return Row(
        record.payload, record.key, record.timestamp, record.partition, record.offset, record.headers, record.topic
    )


def user_headers(headers: Headers) -> Headers:
    """Returns the headers without those that Sabot has added. The user's function gets them as `ctx.headers`."""
    return headers and tuple(pair for pair in headers if pair[0] not in _OURS)


def job_headers(job_id: str, run: int) -> Headers:
    """Returns the headers of a record that is sent again: the id of its job, and the number of the run that has failed."""
    return ((JOB_HEADER, job_id.encode()), (RUN_HEADER, b"%d" % run))


def json_headers(record: JobInput, format: Format) -> Headers:
    """Returns the headers to add to a record that is sent again into a topic: JSON_HEADER if the payload is JSON and
    the topic has another format, otherwise none.
    """
    return ((JSON_HEADER, b"1"),) if format != JSON and not record.columns and record.payload is not None else ()


def input_headers(key: bytes, own: bytes, first: bytes) -> Headers:
    """Returns the headers to add to a record that is sent again: INPUT_HEADER if its job began with another input,
    otherwise none.

    - `key`: the key of the journal's digests.
    - `own`: the digest of the record.
    - `first`: the digest of the job's first input.
    """
    return (
        ()
        if own == first
        else ((INPUT_HEADER, f"{first.hex()}{digest(key, 'continued', own.hex(), first.hex()).hex()}".encode()),)
    )


def first_digest(key: bytes, own: bytes, headers: Headers) -> bytes:
    """Returns the digest of the first input of a record's job, which INPUT_HEADER has. If the header is missing or not
    valid, returns `own`, the digest of the record. `key` is the key of the journal's digests.
    """
    said = next((value for name, value in reversed(headers) if name == INPUT_HEADER), None)
    try:
        first = bytes.fromhex((said or b"").decode()[: 2 * len(own)])
    except ValueError:
        return own
    return first if input_headers(key, own, first) == ((INPUT_HEADER, said),) else own


def result_headers(job_id: str, number: int, *, replayed: bool) -> Headers:
    """Returns the headers of a result that one durable agent passes to another. `number` is the number of the result
    among those of the job. `replayed` is True if the job ran over its history, so that the result may have been passed
    on before.
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
    """Returns the version of the code, for BEGIN. It is made of two parts, and is the same in all processes with the
    same source and Python.

    - `version`, or by default a short hash of the function's code;
    - the version of Python, because another Python may run tasks in another order (`jobs.run`).
    """
    code = getattr(unwrap(function), "__code__", None)
    if not version and code is not None:
        version = blake2b(repr(_shape(code)).encode(), digest_size=6).hexdigest()
    return f"{version}{PYTHON_MARK}{sys.version_info.major}.{sys.version_info.minor}"


def _shape(code: CodeType) -> list[Any]:
    constants = [_shape(each) if isinstance(each, CodeType) else repr(each) for each in code.co_consts]
    return [code.co_code, code.co_names, constants]
