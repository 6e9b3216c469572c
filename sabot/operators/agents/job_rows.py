"""Records as jobs: which job a record is, and the form in which the journal and the mailboxes have it."""

import sys
from collections.abc import Callable, Iterable
from hashlib import blake2b
from types import CodeType
from typing import Any, NamedTuple

import msgspec

from sabot._cython.arrow.batch import Batch
from sabot.api.agent import AgentSpec
from sabot.api.durable import DurableContext
from sabot.calls.functions import unwrap
from sabot.codecs.base import Format
from sabot.codecs.formats import JSON
from sabot.codecs.records import Headers, encode_json
from sabot.errors import DataError
from sabot.jobs.guard import NOBODY, Behalf
from sabot.jobs.owner import OpenJob
from sabot.jobs.run import PYTHON_MARK
from sabot.journal import digest
from sabot.operators.agents.job_batches import to_ipc
from sabot.operators.agents.rows import JSON_HEADER, Row, place_of, rows_of, with_headers

JOB_HEADER = "sabot.job"
"""The header of a record that says which job it is: of a dead letter, and of what is made of it."""

RUN_HEADER = "sabot.run"
"""The header beside either of them: the run of the job (`Begin.run`) that has failed. 0: none has, and the job may have begun."""

LAST_RUN = 1 << 62
"""Whichever run was the last one."""

INPUT_HEADER = "sabot.input"
"""Beside both, where the job went on with another input than that of its record (`ctx.continue_as`): the digest of the first input, by
which the job is known, and a digest of the two, so that a record with another payload is not taken for that of the job.
"""

CONVERSATION_HEADER = "sabot.conversation"
"""The header of a dead letter whose agent has asked a model: what was said, as JSON."""

FROM_HEADER = "sabot.from"
"""The header of a row that one durable agent hands to another: the job that made it, and which of its results it is."""


LABELS_HEADER = "sabot.labels"
"""The header of a record that says what was seen by the job that has made it: labels, with commas between them."""


class JobInput(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A record in BEGIN. Fields are only added, at the end.

    columns: what its payload says, as an Arrow IPC stream of one row, so that a replay reads what the job has read, whatever the schema and
    its registry say by then. Empty: the payload is JSON, or null.
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
    """A record in a mailbox. Fields are only added, at the end."""

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
    """A job's run that its dead letters are about. job_id: "" where no job is known. digest: of the input that the job began with.
    conversation: of the agent that has failed, as JSON.
    """

    job_id: str
    run: int
    digest: bytes = b""
    conversation: bytes = b""

    @property
    def headers(self) -> Headers:
        """Those by which a letter is known as the job's, and what was said."""
        said = ((CONVERSATION_HEADER, self.conversation),) if self.conversation else ()
        return (*of_job(self.job_id, self.run), *said) if self.job_id else ()


class JobCall(
    msgspec.Struct, eq=False, gc=False
):  # nothing that it holds refers to it; of 100,000 parked jobs each has one
    """A row, or an open job of the journal, from where it comes in to its end.

    digest: of the record. named: the journal is asked whether it has the job already, as its id does not say where the record stands,
    or jobs of rows behind it have begun. failed_run: the run of the job that has failed, where the record was sent back for another one;
    else 0. row: where it is held; None: nowhere. mailed: it is the first one of its key's mailbox. before: the open job of the journal that
    it is, until it rests. reopened: it is one. run: of its BEGIN; above 1 it goes on with what it has done. runs: it counts for
    `concurrency=`. renewed: it was tried again since then. begun: its BEGIN is in the journal. behalf: on whose it runs.
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
    runs: bool = False
    parked: bool = False
    blocked: bool = False
    renewed: bool = False
    run: int = 1
    begun: bool = False
    ctx: DurableContext | None = None
    behalf: Behalf = NOBODY

    @property
    def is_failed_child(self) -> bool:
        """Another job asks for it once more, as it has failed."""
        return self.failed_run > 0 and self.record is not None and self.record.offset < 0


def input_of(row: Row) -> JobInput:
    """The record of a row that has come."""
    columns = b"" if row.columns is None else to_ipc(row.columns)
    headers = without_ours(row.headers)
    return JobInput(row.topic, row.partition, row.offset, row.timestamp, row.key, headers, row.raw(), columns)


def inputs_of(call: JobCall) -> dict[str, Any]:
    """What the BEGIN of a job has of its record."""
    return {"record": encode(call.record), "key": call.scope, "digest": call.digest}


def rows_of_begun(calls: Iterable[JobCall]) -> dict[int, list[int]]:
    """The rows whose jobs have begun: their places, by the id of what they came with."""
    begun: dict[int, list[int]] = {}
    for call in calls:
        if call.begun and call.row is not None:
            begun.setdefault(id(call.row.held), []).append(call.row.place)
    return begun


class JobNames:
    """Says which job a row of an agent is, and on whose behalf it runs. logs: the identity of the log of each topic. parents: the durable
    agents that write into it. again: how often its records were begun anew as other jobs.
    """

    def __init__(self, spec: AgentSpec) -> None:
        self._agent_id = spec.agent_id
        self._field = spec.job_id
        self._scope, self._principal, self._labels = spec.scope, spec.principal, spec.labels
        self.logs: dict[str, str] = {}
        self.parents: frozenset[str] = frozenset()
        self.again = 0

    def name(self, call: JobCall, row: Row) -> None:
        """Gives the call the id of its job, and its behalf. Raises DataError."""
        labels = self._labels if not row.headers else labels_of(row.headers, self._labels)
        if labels or self._scope is not None or self._principal is not None:
            call.behalf = Behalf(_word(row, self._scope, "scope"), _word(row, self._principal, "principal"), labels)
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
            wanted = _word(row, self._field, "job_id")
            round_ = f"#{self.again}" if self.again else ""
            call.job_id, call.named = f"{self._agent_id}/{self._field}{round_}={wanted}", True
        elif row.topic in self.logs:
            call.job_id = self._place(self.logs[row.topic], row)
        else:
            raise DataError(
                f"{place_of(row)}: nothing says which job it is: its topic is read no more",
                hint="job_id= names a field",
            )

    def stamped(self, batch: Batch, log: str) -> Batch:
        """Rows of the log of this identity, with the ids of their jobs as headers, where nothing else will say which jobs they are."""
        if self._field is not None or log == self.logs.get(batch.topic):
            return batch
        headers = []
        for row in rows_of(batch.data, batch.topic):
            known = any(name in (JOB_HEADER, FROM_HEADER) for name, _ in row.headers)
            headers.append(row.headers if known else (*row.headers, *of_job(self._place(log, row), 0)))
        return Batch(with_headers(batch.data, headers), None, batch.topic)

    def _place(self, log: str, row: Row) -> str:
        return f"{self._agent_id}/{log}/{row.partition}/{row.offset}"


def _word(row: Row, field: str | None, option: str) -> str:
    """The text, or the whole number, in a field that an option names. Raises DataError where there is none: nothing is guessed."""
    if field is None:
        return ""
    found = row.value.get(field) if isinstance(row.value, dict) else None
    if not isinstance(found, str | int) or isinstance(found, bool) or found == "" or "\0" in str(found):
        what = option.replace("_id", "")
        raise DataError(
            f"{place_of(row)}: field {field!r} names no {what} ({option}=): it is {found!r}, no text (without NUL) and no whole number"
        )
    return str(found)


def labels_of(headers: Headers, labels: tuple[str, ...] = ()) -> tuple[str, ...]:
    """These labels, and those that the headers say, sorted."""
    said = [value.decode(errors="replace") for name, value in headers if name == LABELS_HEADER and value]
    return tuple(sorted({*labels, *filter(None, ",".join(said).split(","))})) if said else labels


def row_of(record: JobInput) -> Row:
    """The record as it came."""
    return Row(
        record.payload, record.key, record.timestamp, record.partition, record.offset, record.headers, record.topic
    )


def without_ours(headers: Headers) -> Headers:
    """Without what says which job it is: `ctx.headers` are the user's."""
    return headers and tuple(pair for pair in headers if pair[0] not in _OURS)


def of_job(job_id: str, run: int) -> Headers:
    """The headers of a record that is sent back, or will be: its job, and the run of it that has failed."""
    return ((JOB_HEADER, job_id.encode()), (RUN_HEADER, b"%d" % run))


def of_json(record: JobInput, format: Format) -> Headers:
    """The header of a record that is sent back into a topic of this format, where it is not of that format itself."""
    return ((JSON_HEADER, b"1"),) if format != JSON and not record.columns and record.payload is not None else ()


def of_input(key: bytes, own: bytes, first: bytes) -> Headers:
    """The header of a record that is sent back, where the job that it belongs to began with another input. key: the journal's. own: the
    digest of the record. first: that of the job's first input.
    """
    return (
        ()
        if own == first
        else ((INPUT_HEADER, f"{first.hex()}{digest(key, 'continued', own.hex(), first.hex()).hex()}".encode()),)
    )


def began_with(key: bytes, own: bytes, headers: Headers) -> bytes:
    """The digest of the input that the job of this record began with. own: the digest of the record itself."""
    said = next((value for name, value in reversed(headers) if name == INPUT_HEADER), None)
    try:
        first = bytes.fromhex((said or b"").decode()[: 2 * len(own)])
    except ValueError:
        return own
    return first if of_input(key, own, first) == ((INPUT_HEADER, said),) else own


def of_result(job_id: str, number: int, *, replayed: bool) -> Headers:
    """The headers of a result that a durable agent hands to another one. replayed: its job is run over its history, so it may have been
    handed over before.
    """
    again = ((RUN_HEADER, b"0"),) if replayed else ()
    return ((FROM_HEADER, f"{job_id}>{number}".encode()), *again)


def failed_run(headers: Headers) -> int:
    """What the headers of a record that was sent back say of the run of its job: without a word the last one."""
    found = next((value for name, value in reversed(headers) if name == RUN_HEADER and value), b"")
    return int(found) if found.isdigit() else LAST_RUN


def payload_from(message: Any) -> bytes:
    """The payload of a record that the user makes. Raises UserError for what JSON cannot say."""
    return message if isinstance(message, bytes) else encode_json(message)


def version_of(function: Callable[..., Any], version: str = "") -> str:
    """What BEGIN says of the code: its version, by default a short name of the function's code, and the Python that runs it, since another
    one may make tasks in another order (`jobs.run`). The same in every process that has the same source and Python.
    """
    code = getattr(unwrap(function), "__code__", None)
    if not version and code is not None:
        version = blake2b(repr(_shape(code)).encode(), digest_size=6).hexdigest()
    return f"{version}{PYTHON_MARK}{sys.version_info.major}.{sys.version_info.minor}"


def _shape(code: CodeType) -> list[Any]:
    constants = [_shape(each) if isinstance(each, CodeType) else repr(each) for each in code.co_consts]
    return [code.co_code, code.co_names, constants]
