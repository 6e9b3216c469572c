"""Records as jobs: their ids, their headers, and their form in the journal and in mailboxes."""

import sys
from collections.abc import Callable, Collection, Iterable
from hashlib import blake2b
from types import CodeType
from typing import Any, NamedTuple

import msgspec

from sabot._cython.arrow.batch import Batch
from sabot.agents.admission import Place
from sabot.agents.durable.context import DurableContext
from sabot.agents.durable.job_batches import to_ipc
from sabot.api.agent import AgentSpec
from sabot.codecs.base import Format
from sabot.codecs.formats import JSON
from sabot.codecs.records import Headers, decode_json, encode_json
from sabot.engine.calls.effects import digest
from sabot.engine.calls.functions import unwrap
from sabot.engine.operators.agents.rows import JOB_HEADER, JSON_HEADER, Row, place_of, rows_of, with_headers
from sabot.engine.operators.agents.timers import key_of
from sabot.errors import DataError, UserError
from sabot.jobs.guard import NOBODY, Behalf
from sabot.jobs.owner import OpenJob
from sabot.jobs.run import PYTHON_MARK
from sabot.jobs.tree import parent_of
from sabot.jobs.values import in_order, pack, unpack

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

BEGUN_HEADER = "sabot.begun"
"""The header beside INPUT_HEADER with what the job began with: its key, tenant, person, labels and session, as JSON. A
digest of the job, the record and this text stands before it, so that nobody can give a job those of another one.
"""

CONVERSATION_HEADER = "sabot.conversation"
"""The header of a dead letter that has the conversation of the failed agent with its model, as JSON."""

FROM_HEADER = "sabot.from"
"""The header of a row that one durable agent passes to another. It has the id of the job that made the row, and the
number of the row among the results of that job.
"""


VALUE_HEADER = "sabot.value"
"""The header of the input of a child or of a continued job, with the message as a journal packs it. The input has this
header only if JSON changes the message: if it has dates, Decimals or bytes, for example.
"""


LABELS_HEADER = "sabot.labels"
"""The header with the labels of a record, separated by commas. They are the labels of all data that the job which made
the record has seen.
"""


class JobInput(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The record of a job, as it is stored in the job's BEGIN entry. New fields may only be added at the end.

    `payload` is the value as it was read. `columns` is the decoded value, as an Arrow IPC stream with one row. It is
    stored so that a replay gets the same value even if the schema in the schema registry has changed. It is b"" if
    the payload is JSON or None, because then it is decoded again without a schema.
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
    """A record in a mailbox, where it waits until the current job of its key has ended. New fields may only be added
    at the end.

    The fields `job` (the id of its future job), `digest`, `named`, `failed_run` and `behalf` are those of JobCall.
    """

    job: str
    digest: bytes
    named: bool
    failed_run: int
    record: JobInput
    behalf: Behalf = NOBODY


_OURS = (
    JOB_HEADER,
    RUN_HEADER,
    INPUT_HEADER,
    BEGUN_HEADER,
    CONVERSATION_HEADER,
    FROM_HEADER,
    JSON_HEADER,
    VALUE_HEADER,
)

encode = msgspec.msgpack.Encoder().encode
decode_record = msgspec.msgpack.Decoder(JobInput).decode
decode_waiting = msgspec.msgpack.Decoder(WaitingInput).decode
_decode_begun = msgspec.json.Decoder(tuple[str, Behalf]).decode


class FailedRun(NamedTuple):
    """The failed run of a job. It is written into the headers of the dead letter.

    - `job_id`: the id of the job, or "" if no job is known for the record.
    - `run`: the number of the run (`Begin.run`).
    - `digest`: the hash of the input with which the job began first.
    - `conversation`: the messages that the failed LLM agent exchanged with its model, as JSON, or b"".
    - `key`, `behalf`: the key, tenant, person, labels and session with which the job began.
    - `labels`: the labels of all data that the run has seen. Its error, and its input after `ctx.continue_as`, may
      contain such data.
    """

    job_id: str
    run: int
    digest: bytes = b""
    conversation: bytes = b""
    key: bytes = b""
    behalf: Behalf = NOBODY
    labels: tuple[str, ...] = ()

    def headers(self, before: Headers) -> Headers:
        """Returns the headers of the dead letter: those of its record (`before`), the id of the job, the number of its
        failed run, its labels, and the conversation if there is one. Those of its record alone if the job is not known.
        """
        if not self.job_id:
            return before
        said = ((CONVERSATION_HEADER, self.conversation),) if self.conversation else ()
        return (*with_labels(before, self.labels), *job_headers(self.job_id, self.run), *said)


# gc=False: it is in no cycle, and each of 100,000 parked jobs has one
class JobCall(msgspec.Struct, eq=False, gc=False):
    """A job of a durable agent, from the arrival of its record until its end. If the job was open in the journal when
    the app started, the object is made without the record.

    - `scope`: the key of the record, encoded. Jobs with the same key run one after another.
    - `digest`: the hash of the record, to recognise the same record when it comes again.
    - `record`: the record as it is stored in the BEGIN entry. None if it has not been read from the journal.
    - `named`: True if the journal must be asked whether the job exists already. That is necessary if its id is not
      made from the position of the record, or if jobs of later rows have begun already.
    - `failed_run`: the number of the run that failed, if the record is a dead letter that was sent again. Otherwise
      0.
    - `row`: the row in the agent's queue, or None.
    - `mailed`: True if the record is the first one in the mailbox of its key.
    - `before`: the data about the job from the journal. A job has them if the journal contained it when the app
      started. A child job that may outlive its parent gets them when the parent asks for it. Otherwise None. Also set
      to None when the job is parked or blocked, to free memory.
    - `reopened`: True if the journal contained the open job when the app started.
    - `place`: the place of the job in JobAdmission, which limits the running jobs to `concurrency=`: for example
      "waiting", "running" or "parked".
    - `blocked`: True if the function no longer matches the journal of the job, so that the job cannot continue.
    - `renewed`: True if the job failed in this run of the app, and was tried again.
    - `run`: the number of the run in the BEGIN entry. In run 2 and later, the job reuses the results recorded before.
    - `begun`: True if the job's BEGIN entry has been written.
    - `ctx`: the context of the running function, or None.
    - `behalf`: the tenant, the person and the labels of the job.
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
        """True if the job is parked: it waits for something, and its function is not in memory. This remains True
        after the event for which it waited, until the function runs again.
        """
        return self.place in ("parked", "woken")

    @property
    def is_failed_child(self) -> bool:
        """True if this is a child job that has failed before, and that its parent job has asked for again."""
        return self.failed_run > 0 and self.record is not None and self.record.offset < 0


def input_of(row: Row) -> JobInput:
    """Converts a row to the form in which it is stored in the BEGIN entry of its job."""
    columns = b"" if row.columns is None else to_ipc(row.columns)
    headers = user_headers(row.headers)
    return JobInput(row.topic, row.partition, row.offset, row.timestamp, row.key, headers, row.raw(), columns)


def inputs_of(call: JobCall) -> dict[str, Any]:
    """Returns the arguments for `JobHost.begin` that describe the record of the call: "record" (encoded), "key" and
    "digest".
    """
    return {"record": encode(call.record), "key": call.scope, "digest": call.digest}


def in_session(call: JobCall, agent_id: str) -> Behalf:
    """Returns the `behalf` of a call with the session of its job, "AGENT/KEY" with the key of the record; a job of an
    agent without `key=` has none. A child has that of its parent, or none: only its parent knows the conversation.
    """
    if not call.scope or call.behalf.session or parent_of(call.job_id)[0]:
        return call.behalf
    return Behalf(*call.behalf[:3], f"{agent_id}/{key_of(call.scope)}")


def rows_of_begun(calls: Iterable[JobCall]) -> dict[int, list[int]]:
    """Returns, for each batch in the agent's queue, the indexes of its rows whose jobs have begun. The key of the
    dict is Python's `id()` of the batch's QueuedRows object. Batches without such rows are left out.
    """
    begun: dict[int, list[int]] = {}
    for call in calls:
        if call.begun and call.row is not None:
            begun.setdefault(id(call.row.held), []).append(call.row.place)
    return begun


class JobNames:
    """The maker of an agent's job ids. The method `name` sets the job id of a row, and the tenant, person and labels
    of its job.

    - `logs`: the identity of each topic's log, by topic. It changes if the topic is deleted and created again.
    - `parents`: the ids of the durable agents that write their results into this agent.
    - `again`: the number of times that the user has restarted the app with `--reprocess` to process all records anew.
      If the agent has `job_id=`, this number is part of each job id.
    """

    def __init__(self, spec: AgentSpec) -> None:
        self._agent_id = spec.agent_id
        self._field = spec.job_id
        self._scope, self._principal, self._labels = spec.scope, spec.principal, spec.labels
        self.logs: dict[str, str] = {}
        self.parents: frozenset[str] = frozenset()
        self.again = 0

    def name(self, call: JobCall, row: Row, begun: Behalf | None = None) -> None:
        """Sets `job_id`, `named`, `failed_run` and `behalf` of the call. `begun`: that of the job in BEGUN_HEADER, or
        None.

        The id comes from a header if the record is a dead letter or a result of another durable agent. Otherwise it
        is made of the record's field `job_id=`, or of the record's position. Raises DataError if the agent no longer
        reads the topic of the record, so that the position identifies nothing. Raises DataError if a field that an
        option of the agent names is neither a text nor a whole number, for the dead letter of a child, and for an id
        that only `ctx.child` gives.
        """
        labels = self._labels if not row.headers else labels_of(row.headers, self._labels)
        if begun is not None:
            call.behalf = begun
        elif labels or self._scope is not None or self._principal is not None:
            call.behalf = Behalf(
                _text_field(row, self._scope, "scope"), _text_field(row, self._principal, "principal"), labels
            )
        for name, value in reversed(row.headers):
            if name == JOB_HEADER and value is not None and parent_of(job_id := value.decode(errors="replace"))[0]:
                call.job_id, call.failed_run = job_id, failed_run(row.headers)
                raise DataError(
                    f"{place_of(row)}: it is the dead letter of {job_id}, a child, whose parent knows that it has failed: its "
                    "effects would be made again by another job",
                    hint="send the dead letter of its parent again; or, to make them again, a record without the header sabot.job",
                )
            if name == JOB_HEADER and value is not None and value.startswith(f"{self._agent_id}/".encode()):
                call.job_id, call.named = value.decode(errors="replace"), True
                call.failed_run = failed_run(row.headers)
                return
            if name == FROM_HEADER and row.topic in self.parents:
                call.job_id = _of_no_child(row, f"{self._agent_id}/{value.decode(errors='replace')}", FROM_HEADER)
                call.named = failed_run(row.headers) == 0
                return
        if self._field is not None:
            wanted = _text_field(row, self._field, "job_id")
            round_ = f"#{self.again}" if self.again else ""
            job_id = f"{self._agent_id}/{self._field}{round_}={wanted}"
            call.job_id, call.named = _of_no_child(row, job_id, f"field {self._field!r}"), True
        elif row.topic in self.logs:
            call.job_id = self._place(self.logs[row.topic], row)
        else:
            raise DataError(
                f"{place_of(row)}: it cannot be matched with a job, because its topic is not read any more",
                hint="name a field with job_id=",
            )

    def stamped(self, batch: Batch, log: str) -> Batch:
        """Returns a batch of rows from a checkpoint, prepared for a topic that may have been deleted and created again
        since then. `log` is the identity that the topic's log had at the checkpoint.

        If the topic has another log now, or is no longer read, each row without a job id in its headers gets one that
        is made from its position and `log`. At these positions the topic may now have other records. If the log is the
        same, or if the agent has `job_id=`, returns the batch unchanged.
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


def _of_no_child(row: Row, job_id: str, said_by: str) -> str:
    """Returns the id of a job that a record names. Raises DataError if it is the id of a child (`job~1`): whoever writes the
    record would settle an effect of the job above, such as a call that waits for its approval. `said_by`: what names it.
    """
    if parent := parent_of(job_id)[0]:
        raise DataError(
            f"{place_of(row)}: {said_by} names job {job_id}, which is the id of a child of {parent}",
            hint="the last part of an id may not be ~ and a number: ctx.child makes such ids",
        )
    return job_id


def _text_field(row: Row, field: str | None, option: str) -> str:
    """Returns the value of a record's field as a text, or "" if `field` is None. `option` is the option of the agent
    that names the field, for the error message. Raises DataError unless the value is a whole number, or a text that is
    not empty and contains no NUL character.
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
    """Returns the labels in `labels` and in the header LABELS_HEADER, sorted and each once."""
    said = [value.decode(errors="replace") for name, value in headers if name == LABELS_HEADER and value]
    return tuple(sorted({*labels, *filter(None, ",".join(said).split(","))})) if said else labels


def label_headers(labels: Iterable[str]) -> Headers:
    """Returns LABELS_HEADER with these labels, or no headers without labels."""
    return ((LABELS_HEADER, ",".join(sorted(labels)).encode()),) if labels else ()


def with_labels(headers: Headers, labels: Collection[str]) -> Headers:
    """Returns the headers with these labels in place of those that they have. Without labels returns them unchanged."""
    if not labels:
        return headers
    return (*(pair for pair in headers if pair[0] != LABELS_HEADER), *label_headers(labels))


def row_of(record: JobInput) -> Row:
    """Converts the record in a BEGIN entry to a Row. Its value is not decoded."""
    return Row(
        record.payload, record.key, record.timestamp, record.partition, record.offset, record.headers, record.topic
    )


def user_headers(headers: Headers) -> Headers:
    """Returns the headers without those that Sabot has added. The user's function gets them as `ctx.headers`."""
    return headers and tuple(pair for pair in headers if pair[0] not in _OURS)


def job_headers(job_id: str, run: int) -> Headers:
    """Returns the headers for a record that is sent to a topic again: the id of its job, and `run`, the number of the
    job's run that failed.
    """
    return ((JOB_HEADER, job_id.encode()), (RUN_HEADER, b"%d" % run))


def json_headers(record: JobInput, format: Format) -> Headers:
    """Returns the headers for a record that is sent to a topic again. They contain JSON_HEADER if the payload is JSON
    but `format`, the format of the topic, is another one. Otherwise they are empty.
    """
    return ((JSON_HEADER, b"1"),) if format != JSON and not record.columns and record.payload is not None else ()


def input_headers(key: bytes, own: bytes, failed: FailedRun) -> Headers:
    """Returns the headers for a dead letter, which may be sent to its topic again. They contain INPUT_HEADER and
    BEGUN_HEADER if the job of this record began with another input, because it used `ctx.continue_as`. Otherwise they
    are empty.

    - `key`: the secret key of the journal's hashes.
    - `own`: the hash of the record in the dead letter.
    - `failed`: the job. Its `digest` is the hash of the input with which it began first.
    """
    if own == failed.digest:
        return ()
    begun = msgspec.json.encode((failed.key.hex(), failed.behalf))
    said = _begun_digest(key, own, failed.job_id, begun) + begun
    return (INPUT_HEADER, _input_value(key, own, failed.digest)), (BEGUN_HEADER, said)


def _input_value(key: bytes, own: bytes, first: bytes) -> bytes:
    return f"{first.hex()}{digest(key, 'continued', own.hex(), first.hex()).hex()}".encode()


def _begun_digest(key: bytes, own: bytes, job_id: str, begun: bytes) -> bytes:
    return digest(key, "begun", own.hex(), [job_id, begun]).hex().encode()


def first_digest(key: bytes, own: bytes, headers: Headers) -> bytes:
    """Returns the hash of the input with which the job of a record began first.

    It is read from INPUT_HEADER. If that header is missing or not valid, returns `own`, the hash of the record: then
    the record is the first input itself. `key` is the secret key of the journal's hashes.
    """
    said = _last_header(headers, INPUT_HEADER)
    try:
        first = bytes.fromhex(said.decode()[: 2 * len(own)])
    except ValueError:
        return own
    return first if _input_value(key, own, first) == said else own


def begun_with(key: bytes, own: bytes, headers: Headers) -> tuple[bytes, Behalf] | None:
    """Returns what the job of a record began with, its key and its `Behalf`, from BEGUN_HEADER. Returns None if that
    header is missing or not valid. The arguments are those of `first_digest`.
    """
    said, size = _last_header(headers, BEGUN_HEADER), 2 * len(own)
    job_id = _last_header(headers, JOB_HEADER).decode(errors="replace")
    if not said or said[:size] != _begun_digest(key, own, job_id, said[size:]):
        return None
    scope, behalf = _decode_begun(said[size:])
    return bytes.fromhex(scope), behalf


def _last_header(headers: Headers, name: str) -> bytes:
    return next((value for each, value in reversed(headers) if each == name and value), b"")


def result_headers(job_id: str, number: int, *, replayed: bool) -> Headers:
    """Returns the headers for a result that is written from one durable agent into another.

    - `job_id`: the id of the job that made the result.
    - `number`: the index of the result among the results of that job, from 0.
    - `replayed`: True if the job was continued from the journal after a restart. Then the same result may have been
      written before the restart. For this case a header tells the receiver to ask the journal whether the result
      already has a job.
    """
    again = ((RUN_HEADER, b"0"),) if replayed else ()
    return ((FROM_HEADER, f"{job_id}>{number}".encode()), *again)


def failed_run(headers: Headers) -> int:
    """Returns the number of the failed run (RUN_HEADER) from the headers of a dead letter that was sent again.
    Returns LAST_RUN, which stands for "the last run", if the header is missing or not a number.
    """
    found = _last_header(headers, RUN_HEADER)
    return int(found) if found.isdigit() else LAST_RUN


def payload_from(message: Any) -> bytes:
    """Encodes a message as JSON for the payload of a record. Bytes are returned unchanged. Raises UserError if the
    message cannot be encoded.
    """
    return message if isinstance(message, bytes) else encode_json(message)


def value_headers(message: Any, payload: bytes) -> Headers:
    """Returns VALUE_HEADER if `payload`, the message as JSON, is read as another value; else no headers."""
    if isinstance(message, bytes):
        return ()
    try:
        packed = pack(in_order(message), "the message")
    except UserError:  # it is longer than a journal's values may be
        return ()
    same = decode_json(payload, where="the message") == unpack(packed)
    return () if same else ((VALUE_HEADER, packed),)


def value_of_header(headers: Headers) -> bytes | None:
    """Returns the packed message in VALUE_HEADER, or None without this header."""
    return next((value for name, value in headers if name == VALUE_HEADER), None) if headers else None


def version_of(function: Callable[..., Any], version: str = "") -> str:
    """Returns a text that identifies the code of an agent's function, for the job's BEGIN entry. It contains
    `version`, or if that is "" a hash of the function's compiled code, and the version of Python. Another Python
    version may run asyncio tasks in another order, so it counts as other code.
    """
    code = getattr(unwrap(function), "__code__", None)
    if not version and code is not None:
        version = blake2b(repr(_shape(code)).encode(), digest_size=6).hexdigest()
    return f"{version}{PYTHON_MARK}{sys.version_info.major}.{sys.version_info.minor}"


def _shape(code: CodeType) -> list[Any]:
    constants = [_shape(each) if isinstance(each, CodeType) else repr(each) for each in code.co_consts]
    return [code.co_code, code.co_names, constants]
