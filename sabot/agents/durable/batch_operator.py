"""A durable batch agent: each batch is a job, and the job's BEGIN entry has the rows (`job_batches`).

    put ─▶ drop the rows that jobs have ─▶ divide the others into pieces, each a job ─▶ as in `operator`

The jobs are independent, and at most `concurrency=` of them run at once. When the job of a piece has begun, the piece is
never divided again or joined with another one.

A checkpoint saves the rows of jobs that have not begun, and of jobs that run. It also saves the ids of the latter
(`own_facts`). After a restart the journal has the rows of all jobs that have begun, including those that began after the
checkpoint. So such rows are dropped when they come again from the checkpoint or the source.

If a job fails, each of its rows becomes a dead letter with the id of the job. When the first of these dead letters is
sent again, the job begins again, over all rows of its BEGIN. So no recorded effect of the job is repeated.
"""

from collections.abc import Coroutine, Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sabot._cython.arrow.batch import Batch
from sabot._cython.text.json import BadRow
from sabot.agents.durable.context import BatchJobContext
from sabot.agents.durable.job_batches import (
    BatchInput,
    Pins,
    batch_job_id,
    from_ipc,
    is_batch,
    payload_hashes,
    place_of_rows,
    read_batch,
    to_ipc,
)
from sabot.agents.durable.job_rows import (
    FailedRun,
    JobCall,
    encode,
    failed_run,
    job_headers,
    labels_of,
    result_headers,
    user_headers,
    with_labels,
)
from sabot.agents.durable.operator import DurableAgentOperator
from sabot.api.agent import AgentSpec
from sabot.codecs.records import RECORD_SCHEMA, header_rows
from sabot.engine.calls.effects import digest
from sabot.engine.operators.agents.batches import BatchOutput, good_rows, returned, with_columns
from sabot.engine.operators.agents.rows import JOB_HEADER, rows_of, with_headers
from sabot.engine.operators.row_queue import QueuedRows
from sabot.engine.operators.state_facts import AgentFacts
from sabot.errors import DataError, InputChanged, SabotError, UserError
from sabot.jobs.guard import NOBODY, Behalf
from sabot.jobs.journal_calls import call_journal
from sabot.jobs.open_jobs import last_begin
from sabot.jobs.owner import OpenJob
from sabot.jobs.run import JobRun
from sabot.jobs.tree import parent_of

_PIECE_BYTES = 8 << 20  # the most bytes of the rows of one job, since the journal stores them
_PIECE_ROWS = 4096  # the most rows of one job: each may have effects, and a history has at most 10,000

_NO_JOB = FailedRun("", 0)
_HEADERS = RECORD_SCHEMA.get_field_index("headers")


class _BatchCall(JobCall, eq=False, gc=False):
    """A job of a batch agent, or rows that wait to become one job.

    If the job was open in the journal when the app started, the object is made without the rows, and all fields below
    keep their defaults.

    - `held`: the batch in the agent's queue that contains the rows, while they wait and while their job runs. None
      after they have left the queue, because the job was parked or has ended, or because the rows were dropped or
      refused.
    - `rows`: the indexes of the rows in `held`, as a numpy array. It remains when `held` becomes None.
    - `topic`: the topic of the rows.
    - `log`: the identity of the topic's log, which changes if the topic is deleted and created again.
    - `records`: the rows as records that are not decoded, with position, key and headers (RECORD_SCHEMA). None after
      the job has begun, and after the rows have left the queue.
    - `columns`: the same rows, decoded to the columns that the agent's function gets. None when `records` is None.
    - `body`: the input of the job's last run, if dead letters of that run were sent again and the journal has been
      read. The new run then begins with `body` instead of `records`, and `body` becomes b"". In all other cases b"".
    - `hashes`: the hashes of the payloads of all rows of the job, if rows with its id were sent again and the journal
      has been read. Otherwise None.
    """

    held: QueuedRows | None = None
    rows: Any = None
    topic: str = ""
    log: str = ""
    records: pa.RecordBatch | None = None
    columns: pa.RecordBatch | None = None
    body: bytes = b""
    hashes: Any = None


class DurableBatchOperator(DurableAgentOperator):
    """The operator that runs a durable agent whose function gets batches.

    The constructor raises UserError if rows wait in the mailboxes of the agent. Such rows come from an earlier
    version of the agent, whose function got single records.
    """

    def __init__(self, spec: AgentSpec, **wiring: Any) -> None:
        super().__init__(spec, **wiring)
        self._output = BatchOutput(spec, self.port, self.now_ms)
        self._pins = Pins()
        if self.order.boxes.rows:
            raise UserError(
                f"agent {spec.agent_id} takes batches, and {self.order.boxes.rows:,} records wait in its mailboxes",
                hint="leave batch=True out until its jobs have ended",
            )

    # -- start and end ---------------------------------------------------------------------------------------------------------

    def open_call(self, job: OpenJob) -> JobCall:
        if not is_batch(job.job_id, self.spec.agent_id):
            raise UserError(
                f"agent {self.spec.agent_id} takes batches, and its open job {job.job_id} has a record",
                hint="leave batch=True out until its jobs have ended",
            )
        if job.fresh:
            self._pin(job)
        return _BatchCall(job.job_id, b"", job.digest, before=job, reopened=True)

    def _pin(self, job: OpenJob) -> None:
        batch = self.read_input(self.host.journal.load(job.body), job.job_id)
        self._pins.add(batch.log, from_ipc(batch.records))

    def own_facts(self) -> AgentFacts:
        """Returns the data that a checkpoint stores for this operator: the data of the base class, and two items about
        rows that already belong to jobs. After a restart such rows may arrive again, and must then be dropped.

        - `running`: the ids of the jobs that have begun and whose rows are stored in the same checkpoint.
        - `pinned`: the positions of rows that the source may read again, and whose jobs the journal may no longer
          contain.
        """
        calls = [call for call in self.calls.values() if isinstance(call, _BatchCall) and call.begun and call.held]
        return {**super().own_facts(), "running": [call.job_id for call in calls], "pinned": self._pins.facts()}

    def take_facts(self, facts: Mapping[str, Any]) -> None:
        super().take_facts(facts)
        for job_id in facts.get("running", ()):
            call = self.calls.get(job_id)
            if call is not None and call.before is not None and not call.before.fresh:
                self._pin(call.before)
        self._pins.take(facts.get("pinned", ()))

    # -- input --------------------------------------------------------------------------------------------------------

    def put(self, batch: Batch) -> None:
        self._take(batch, self.names.logs.get(batch.topic))

    def put_restored(self, batch: Batch, log: str | None) -> None:
        self._take(batch, log or self.names.logs.get(batch.topic))

    def _take(self, batch: Batch, log: str | None) -> None:
        batch = with_columns(self, batch)
        records = batch.records
        if records is None:
            self._keep_unprocessed(batch)
            return
        if log is None:
            gone = f"{place_of_rows(batch.topic, records)}: they cannot be matched with jobs, because their topic is not read any more"
            self.counters.errors_count += 1
            self._give_up(records, batch.topic, _NO_JOB, DataError(gone), 0)
            return
        if records.num_rows and (come := self._pins.check(log, records)) is not None:
            pinned, changed = come
            if changed.any() and not self._changed(records.filter(pa.array(changed)), batch):
                return
            self._duplicates += int(pinned.sum())
            batch = _without(batch, pinned | changed)
        batch = good_rows(self, batch)
        assert batch.records is not None
        records = batch.records
        if log != self.names.logs.get(batch.topic):
            records = self._stamped(records, batch.topic, log)
        held = QueuedRows(records.num_rows, records, topic=batch.topic)
        held.nbytes = batch.nbytes
        self.hold_rows(held)
        for call in self._calls_of(held, batch.data, batch.nbytes, log):
            if not self.is_known(call):
                self.order.add(call)
        self.go_on()

    def _keep_unprocessed(self, batch: Batch) -> None:
        """Puts a batch that cannot be processed into the agent's queue, so that the next checkpoint stores its rows.
        There are two cases:

        - The records could not be decoded, and the agent has failed for this reason.
        - The rows are not records. They have no positions, so no job ids can be made for them. In this case the method
          makes the agent fail.
        """
        if not batch.data.schema.equals(RECORD_SCHEMA):
            nameless = UserError(
                f"agent {self.spec.agent_id} is durable, and the rows of {batch.topic} are not records, so that nothing identifies them",
                hint="read from a topic or an NDJSON file",
            )
            self.fail(nameless, batch.topic)
        self.hold_rows(QueuedRows(batch.num_rows, batch.data, topic=batch.topic))

    def _changed(self, records: pa.RecordBatch, batch: Batch) -> bool:
        """Handles rows that differ from the rows with which an earlier job began at the same positions. With
        on_error="fail" the agent fails, and the rows remain in its queue. Otherwise the rows become dead letters.

        Returns True if the agent continues, and False if it has failed.
        """
        error = InputChanged(
            f"{place_of_rows(batch.topic, records)}: a job began with other records at these places",
            hint="was a topic or file replaced under its name?",
        )
        self.counters.errors_count += 1
        if self.spec.calls.on_error != "fail":
            self._give_up(records, batch.topic, _NO_JOB, error, 0)
            return True
        self.fail(error, place_of_rows(batch.topic, records))
        assert batch.records is not None
        self.hold_rows(QueuedRows(batch.records.num_rows, batch.records, topic=batch.topic))
        return False

    def _stamped(self, records: pa.RecordBatch, topic: str, log: str) -> pa.RecordBatch:
        """Returns a copy of the records in which each has a job id in its headers (JOB_HEADER). A record without one
        gets an id that is made from its position and `log`.

        Called for records from a checkpoint whose positions are no longer valid, because their topic was deleted and
        created again, or because the agent no longer reads it. `log` is the identity that the topic's log had at the
        checkpoint.
        """
        headers = []
        for place, row in enumerate(rows_of(records, topic)):
            known = any(name == JOB_HEADER for name, _ in row.headers)
            job_id = batch_job_id(self.spec.agent_id, log, records.slice(place, 1))
            headers.append(row.headers if known else (*row.headers, *job_headers(job_id, 0)))
        return with_headers(records, headers)

    def _calls_of(self, held: QueuedRows, columns: pa.RecordBatch, nbytes: int, log: str) -> Iterator[_BatchCall]:
        """Divides rows that arrived together into jobs. Rows with a job id in their headers become one job for each
        id. The other rows are divided into pieces, at most 4096 rows or about 8 MiB each, and each piece becomes a
        job.

        - `held`: the rows in the queue of the agent.
        - `columns`: the same rows as the agent's function gets them. `nbytes` is their size in bytes.
        - `log`: the identity of the topic's log, which changes if the topic is deleted and created again.
        """
        if not held.rows:
            return
        records = held.data
        assert records is not None
        plain = np.ones(held.rows, bool)
        for job_id, places in self._sent_back(records).items():
            plain[places] = False
            headers = records.column(_HEADERS).take(pa.array(places))
            run = max(map(failed_run, header_rows(headers)))
            yield self._call(job_id, held, np.array(places), columns, log, run)
        rows = np.flatnonzero(plain)
        pieces = max(1, min(len(rows), -(-nbytes // _PIECE_BYTES)), -(-len(rows) // _PIECE_ROWS))
        for piece in np.array_split(rows, pieces):
            if len(piece):
                yield self._call("", held, piece, columns, log)

    def _call(
        self, job_id: str, held: QueuedRows, rows: Any, columns: pa.RecordBatch, log: str, failed_run: int = 0
    ) -> _BatchCall:
        assert held.data is not None
        records = held.data
        if len(rows) < held.rows:
            whole = rows[-1] - rows[0] + 1 == len(rows)  # consecutive rows are not copied
            records, columns = (
                each.slice(int(rows[0]), len(rows)) if whole else each.take(pa.array(rows))
                for each in (records, columns)
            )
        name = digest(self.host.journal.key, "input", self.spec.agent_id, payload_hashes(records).tobytes())
        named, job_id = bool(job_id), job_id or batch_job_id(self.spec.agent_id, log, records)
        labels = self._labels(records)
        return _BatchCall(
            job_id,
            b"",
            name,
            named=named,
            failed_run=failed_run,
            held=held,
            rows=rows,
            topic=held.topic,
            log=log,
            records=records,
            columns=columns,
            behalf=Behalf(labels=labels) if labels else NOBODY,
        )

    def _labels(self, records: pa.RecordBatch) -> tuple[str, ...]:
        """Returns the labels of a job with these rows: the agent's own labels and those of all rows."""
        headers = records.column(_HEADERS)
        if headers.null_count == len(headers):
            return self.spec.labels
        return labels_of(tuple(pair for row in header_rows(headers) for pair in row), self.spec.labels)

    def _sent_back(self, records: pa.RecordBatch) -> dict[str, list[int]]:
        """Returns the row indexes, by job id, of the rows that have an id of a job of this agent in their headers.
        Such rows were dead letters, and somebody has sent them to the topic again.
        """
        headers = records.column(_HEADERS)
        if headers.null_count == records.num_rows:
            return {}
        names, values = pc.list_flatten(headers).flatten()
        mine = pc.and_(pc.equal(names, JOB_HEADER), pc.starts_with(values, f"{self.spec.agent_id}/"))
        of_rows = pc.list_parent_indices(headers).filter(mine).to_pylist()
        # if a row has several, the last one is used
        found = dict(zip(of_rows, values.filter(mine).to_pylist(), strict=True))
        jobs: dict[str, list[int]] = {}
        for row, name in found.items():
            job_id = name.decode(errors="replace")
            # No batch is a child: whoever wrote such a name would settle an effect of another job.
            if not parent_of(job_id)[0]:
                jobs.setdefault(job_id, []).append(row)
        return jobs

    def is_known(self, call: JobCall) -> bool:
        """Returns True if the job of this call is already waiting or running, and otherwise False. If it returns True:

        - If the journal must first be asked about that job, the rows of the call are kept until it has answered,
          because the job may then be refused.
        - If rows of that job were sent again, and the rows of this call are not among its rows, they are refused as an
          error.
        - Otherwise the rows are dropped, because that job processes them.
        """
        other = self.calls.get(call.job_id)
        if other is None:
            return False
        assert isinstance(other, _BatchCall)
        assert isinstance(call, _BatchCall)
        assert call.records is not None
        other.failed_run = max(other.failed_run, call.failed_run)
        if other.named:
            self.undecided.setdefault(call.job_id, []).append(call)
        elif other.hashes is not None and not np.isin(payload_hashes(call.records), other.hashes).all():
            self.drop_known(call, other.digest)  # the digests differ too, so the rows are refused
        else:
            self._duplicates += 1
            self.end_row(call)
        return True

    def refuse(self, call: JobCall, error: SabotError) -> None:
        assert isinstance(call, _BatchCall)
        assert call.records is not None
        self.counters.errors_count += 1
        if isinstance(error, InputChanged) and self.spec.calls.on_error == "fail":
            self.fail(error, place_of_rows(call.topic, call.records))
            return
        self.error_log.add(error, place_of_rows(call.topic, call.records), "its rows are dead letters")
        self._give_up(call.records, call.topic, FailedRun(call.job_id, call.failed_run), error, 0)
        self.end_row(call)

    # -- begin of jobs ---------------------------------------------------------------------------------------------------

    def begin(self, call: JobCall) -> None:
        assert isinstance(call, _BatchCall)
        assert call.records is not None
        assert call.columns is not None
        body = call.body or encode(BatchInput(call.topic, call.log, to_ipc(call.records), to_ipc(call.columns)))
        self.host.begin(
            self.spec.agent_id, call.job_id, record=body, key=b"", digest=call.digest, run=call.run, behalf=call.behalf
        )
        call.records = call.columns = None
        call.body = b""

    async def ask_journal(self, call: JobCall) -> None:
        """Finds out from the journal whether the job of this call exists. Then begins the job, or drops or refuses the
        rows, by the same rules as for an agent that gets single records.

        If only some rows of a failed run were sent again, the new run nevertheless processes all rows of the failed
        run.
        """
        assert isinstance(call, _BatchCall)
        assert call.records is not None
        call.hashes = payload_hashes(call.records)
        begin = await call_journal(last_begin, self.host.journal, call.job_id)
        if begin is not None:
            body = await call_journal(self.host.journal.load, begin.body)
            of_before = payload_hashes(from_ipc(self.read_input(body, call.job_id).records))
            if np.isin(call.hashes, of_before).all():
                call.digest, call.body, call.hashes = begin.digest, body, of_before
        await super().ask_journal(call)

    def drop_undecided(self, call: JobCall, begins: JobCall) -> None:
        """Drops the rows of a call, which were kept until the journal had answered, or refuses them (`is_known`). A job
        with the same id now begins.
        """
        self.is_known(call)

    # -- runs of jobs -----------------------------------------------------------------------------------------------------

    def call(self, job: JobRun) -> Coroutine[Any, Any, Any]:
        call = self.calls[job.job_id]
        assert isinstance(call, _BatchCall)
        call.begun = True
        call.ctx, _ = self.function.context(job)
        return self.function.call(call.ctx)

    def ended(self, job: JobRun, value: Any) -> bytes:
        ctx = self.calls[job.job_id].ctx
        assert isinstance(ctx, BatchJobContext)
        output = None if value is None else returned(value)
        packed = self.function.packed(job, output)
        rows = None if output is None else self._output.written(output)
        if ctx.given_up:
            batch = self.read_input(job.history.begin.body, job.job_id)  # type: ignore[arg-type]
            self.counters.errors_count += len(ctx.given_up)
            bad = from_ipc(batch.records).take(pa.array(list(ctx.given_up)))
            for row, reason in zip(rows_of(bad, batch.topic), ctx.given_up.values(), strict=True):
                row.headers = with_labels(row.headers, job.labels)
                self.dead_letter(row, reason, 1)
        if rows is not None and rows.num_rows and self.results is not None:
            if self.hands_on:
                replayed = self.calls[job.job_id].reopened
                origins = [result_headers(job.job_id, number, replayed=replayed) for number in range(rows.num_rows)]
                rows = with_headers(rows, origins)
            self.results.put(Batch(rows, None, self.spec.agent_id))
        self.counters.messages_processed += ctx.message.num_rows
        self.counters.last_message_time = self.clock.time()
        return packed

    def begin_child(self, job_id: str, message: Any, *, failed: bool, behalf: Behalf) -> None:
        raise UserError(
            f"ctx.child: agent {self.spec.agent_id} takes batches", hint="a child must be a job of a record agent"
        )

    def end_row(self, call: JobCall) -> None:
        assert isinstance(call, _BatchCall)
        held, call.held = call.held, None
        call.records = call.columns = None
        if held is not None:
            self.rows_ended(held, last=self.held.end_rows(held, call.rows))

    def read_input(self, body: bytes, job_id: str) -> BatchInput:
        return read_batch(body, job_id)

    def place(self, record: BatchInput) -> str:
        return place_of_rows(record.topic, from_ipc(record.records))

    def send_to_dead_letters(
        self, record: BatchInput, failed: FailedRun, error: BaseException | tuple[str, str], attempts: int | None
    ) -> None:
        self._give_up(from_ipc(record.records), record.topic, failed, error, attempts)

    def _give_up(
        self,
        records: pa.RecordBatch,
        topic: str,
        failed: FailedRun,
        error: BaseException | tuple[str, str],
        attempts: int | None,
    ) -> None:
        """Writes rows to the dead letter topic.

        - `failed`: the job of the rows and the number of its failed run. They are written into the headers.
        - `error`: the error, or its (type, message).
        - `attempts`: the number of attempts that failed, or None if it is not known.
        """
        for row in rows_of(records, topic):
            row.headers = failed.headers(user_headers(row.headers))
            self.dead_letter(row, error, attempts)


def _without(batch: Batch, dropped: Any) -> Batch:
    """Returns a copy of the batch without some of its records. `dropped` is a numpy array of bool with an item for
    each record. True means that the record is left out.
    """
    records = batch.records
    assert records is not None
    kept = ~dropped
    good = np.ones(records.num_rows, bool)
    good[[bad.row for bad in batch.rejected]] = False
    places = np.cumsum(kept) - 1
    rejected = [BadRow(int(places[bad.row]), bad.reason) for bad in batch.rejected if kept[bad.row]]
    data = batch.data.filter(pa.array(kept[good]))
    return Batch(data, batch.offsets, batch.topic, records.filter(pa.array(kept)), rejected, bad=batch.bad)
