"""The description of an agent that `@app.agent(...)` makes: checked and immutable."""

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import pyarrow as pa

from sabot.api.expr import as_type
from sabot.api.formats import payload_format, sink_format
from sabot.calls import CallOptions, Retry
from sabot.codecs.base import Format
from sabot.codecs.formats import JSON
from sabot.config import NAME_BYTES, Duration, checked_name, is_whole
from sabot.connectors.base import (
    Delivery,
    OnNan,
    Sink,
    Source,
    check_delivery,
    check_ends,
    check_input,
    check_nan,
    check_sink,
    sink_of,
)
from sabot.connectors.places import Place, Start, Until, checked_start, checked_until
from sabot.errors import UserError
from sabot.jobs.tree import DEFAULT_LIMITS, ChildLimits, checked_limits

OnError = Literal["fail", "retry", "skip"]

MailboxFull = Literal["hold", "dead_letter"]

_POLICIES = ("fail", "retry", "skip")
_MAILBOX_ROWS = 10_000
_PROCESSES_MAX = 64


@dataclass(frozen=True, slots=True)
class AgentSpec:
    """An agent as the user described it. `sink` is a topic, a Sink, another agent's function, or None; more_sinks: those that results may
    name beside it. check: raises DataError for the
    value of a record that the agent cannot take, which is a dead letter then. format: of the records of its topics; sink_format: of the
    results in topics, None: JSON. tombstones: records without a payload are its own too.
    start, until: from where a topic is read without a checkpoint, and up to where; None: without an end.

    Of a durable agent: mailbox: how many rows may wait behind a key that is busy; mailbox_full: what happens to more of them. job_id: the
    field that says which request a record is; scope, principal: the fields that say on whose behalf its job runs; labels: of each record;
    children: that a job may begin.
    buried: errors that are dead letters whatever on_error= says: those of a model's answers to one record.
    process: how many processes of its own it has; 0: it runs with the app's other agents.
    """

    agent_id: str
    func: Callable[..., Any]
    inputs: tuple[str | Source, ...]
    key: str | None = None
    sink: Any = None
    more_sinks: tuple[str | Sink, ...] = ()
    batch: bool = False
    schema: pa.Schema | None = None
    calls: CallOptions = field(default_factory=CallOptions)
    dead_letter: str | Sink = "{topic}.dlq"
    delivery: Delivery = None
    nan: OnNan = None
    format: Format = JSON
    sink_format: Format | None = None
    start: Place = "earliest"
    until: Place | None = None
    on_timer: Callable[..., Any] | None = None
    durable: bool = False
    mailbox: int = _MAILBOX_ROWS
    mailbox_full: MailboxFull = "hold"
    job_id: str | None = None
    scope: str | None = None
    principal: str | None = None
    labels: tuple[str, ...] = ()
    buried: tuple[type[Exception], ...] = ()
    children: ChildLimits = DEFAULT_LIMITS
    tombstones: bool = False
    process: int = 0
    topic_by_name: bool = False  # no topic was given: its name is the topic, unless another agent writes into it
    check: Callable[[Any], object] | None = None

    @classmethod
    def of(
        cls,
        agent_id: str,
        func: Callable[..., Any],
        topic: str | Source | list[str | Source] | None = None,
        *,
        name: str = "",
        key: str | None = None,
        sink: Any = None,
        batch: bool = False,
        schema: pa.Schema | dict[str, str] | None = None,
        concurrency: int = 1,
        timeout: Duration | None = None,
        on_error: OnError = "fail",
        retries: int = 3,
        backoff: Duration = "100ms",
        rate: str | float | None = None,
        dead_letter: str | Sink = "{topic}.dlq",
        delivery: Delivery = None,
        nan: OnNan = None,
        format: str | Format | None = None,
        sink_format: str | Format | None = None,
        start: Start = "earliest",
        until: Until | None = None,
        on_timer: Callable[..., Any] | None = None,
        durable: bool = False,
        mailbox: int | None = None,
        mailbox_full: MailboxFull | None = None,
        job_id: str | None = None,
        scope: str | None = None,
        principal: str | None = None,
        labels: Collection[str] | None = None,
        children: ChildLimits | None = None,
        tombstones: bool = False,
        process: bool | int = False,
    ) -> "AgentSpec":
        """Makes the description of the arguments that the user wrote. Raises UserError, which names the agent."""

        def refuse(what: str, hint: str = "") -> UserError:
            return UserError(f"agent {agent_id}: {what}", hint=hint)

        checked_name(agent_id, "agent id", longest=2 * NAME_BYTES + 1)
        if not callable(func):
            raise refuse(f"{func!r} is not callable", "put @app.agent(...) above a function")
        topics = topic if isinstance(topic, list | tuple) else [topic or name or getattr(func, "__name__", "")]
        if not topics or any(not isinstance(t, str | Source) or t == "" for t in topics):
            raise refuse(f"topic {topic!r}", "give a topic name, a Source, or a list of them")
        for each in topics:
            check_input(each, f"agent {agent_id}: topic", "")
        if len({t if isinstance(t, str) else t.name for t in topics}) != len(topics):
            raise refuse(f"topic {topic!r} names one topic twice")
        calls = CallOptions.of(
            f"agent {agent_id}",
            concurrency=concurrency,
            timeout=timeout,
            retries=retries,
            backoff=backoff,
            on_error=on_error,
            policies=_POLICIES,
            rate=rate,
        )
        if on_error != "retry":
            calls = replace(calls, retry=Retry(0, calls.retry.backoff_s))
        check_delivery(delivery, f"agent {agent_id}")
        check_nan(nan, f"agent {agent_id}")
        if batch and concurrency != 1 and not durable:
            raise refuse(f"concurrency={concurrency}", "a batch agent takes one batch at a time")
        if batch and (inspect.isgeneratorfunction(func) or inspect.isasyncgenfunction(func)):
            raise refuse("a batch agent cannot yield", "return one RecordBatch, or None")
        if on_timer is not None and not callable(on_timer):
            raise refuse(f"on_timer={on_timer!r} is no function")
        if on_timer is not None and (batch or key is None):
            raise refuse("on_timer=, and no key that timers belong to", "a record agent with key= has timers")
        known = None if schema is None else as_schema(schema, where=f"agent {agent_id}")
        if not isinstance(tombstones, bool):
            raise refuse(f"tombstones={tombstones!r}", "True or False")
        if tombstones and batch:
            raise refuse("tombstones=True with batch=True", "a batch has columns, and a tombstone none: leave it out")
        if tombstones and key is not None and (known is None or key not in known.names):
            raise refuse(
                f"tombstones=True with key={key!r}, which a tombstone says in the record's key alone",
                f'schema={{"{key}": "string"}} says how that is read: text as it is, other types as JSON',
            )
        _check_durable(
            refuse,
            durable=durable,
            batch=batch,
            keyed=key is not None,
            on_timer=on_timer,
            only={
                "mailbox": mailbox,
                "mailbox_full": mailbox_full,
                "job_id": job_id,
                "scope": scope,
                "principal": principal,
                "labels": labels,
                "children": children,
            },
        )
        if not isinstance(process, bool) and not is_whole(process, 1, _PROCESSES_MAX):
            raise refuse(f"process={process!r}", f"True, or a number of processes, 1 to {_PROCESSES_MAX}")
        if process and durable:
            raise refuse("process= with durable=True", "the jobs of an app have one journal, and so one process")
        if process and callable(sink):
            raise refuse("process=, and its results go to an agent of another process", "put a topic between the two")
        sinks = [
            sink_of(each, f"agent {agent_id}: sink") for each in (sink if isinstance(sink, list | tuple) else [sink])
        ]
        if isinstance(sink, list | tuple) and (batch or not all(isinstance(each, str | Sink) for each in sinks)):
            raise refuse(
                f"sink={sink!r}", "several sinks are topics and Sinks, of a record agent: Message(…, topic=) says which"
            )
        if not sinks or (not isinstance(sinks[0], str | Sink | None) and not callable(sinks[0])):
            raise refuse(
                f"sink {sink!r}", "a topic name, a Sink, or another agent's function; or a list of topics and Sinks"
            )
        if nan is not None and not isinstance(sinks[0], str | Sink):
            raise refuse(f"nan={nan!r}, and no sink", "what another agent or a stream gets keeps its NaN; .to(…, nan=)")
        for each in sinks:
            if isinstance(each, str | Sink):
                check_sink(each, f"agent {agent_id}: sink")
        if len({each if isinstance(each, str) else getattr(each, "name", "") for each in sinks}) != len(sinks):
            raise refuse(f"sink={sink!r} has one name twice", "Message(…, topic=) could not say which")
        check_sink(dead_letter, f"agent {agent_id}: dead_letter")
        for word, place in (("start", start), ("until", until)):
            if isinstance(place, Mapping) and len(topics) > 1:
                raise refuse(
                    f"{word}={place!r}, and several topics", "offsets are of one topic: make an agent for each"
                )
        for each in topics if until is not None else ():
            check_ends(each, f"agent {agent_id}")
        spec = cls(
            agent_id=agent_id,
            func=func,
            inputs=tuple(topics),
            key=key,
            sink=sinks[0],
            more_sinks=tuple(sinks[1:]),
            batch=batch,
            schema=known,
            calls=calls,
            dead_letter=dead_letter,
            delivery=delivery,
            nan=nan,
            format=_input_format(refuse, format, topics, known, f"agent {agent_id}", batch=batch, durable=durable),
            sink_format=_output_format(
                refuse, sink_format, sinks, f"agent {agent_id}", batch=batch, keyed=key is not None
            ),
            start=checked_start(start, f"agent {agent_id}"),
            until=checked_until(until, f"agent {agent_id}"),
            on_timer=on_timer,
            durable=durable,
            mailbox=_MAILBOX_ROWS if mailbox is None else mailbox,
            mailbox_full=mailbox_full or "hold",
            job_id=job_id,
            scope=scope,
            principal=principal,
            labels=tuple(sorted(set(labels or ()))),
            children=checked_limits(f"agent {agent_id}", children),
            tombstones=tombstones,
            process=int(process),
            topic_by_name=topic is None,
        )
        _check_called(refuse, func, ("batch", "ctx") if batch else ("ctx",))
        return spec

    @property
    def writes_json(self) -> bool:
        """Whether its results in topics are JSON."""
        return self.sink_format in (None, JSON)

    @property
    def job_key(self) -> str | None:
        """The field by which the jobs of a durable agent have an order: `key=`, which says of a batch agent what key its output has."""
        return None if self.batch else self.key

    @property
    def sinks(self) -> dict[str, str | Sink]:
        """Its topics and Sinks, by their names, the first one first."""
        given = [each for each in (self.sink, *self.more_sinks) if isinstance(each, str | Sink)]
        return {each if isinstance(each, str) else each.name: each for each in given}

    @property
    def text_keys(self) -> bool:
        """With `key=` and a schema: the field is text, which stands in the key of a record as it is."""
        kind = None if self.schema is None or self.key is None else self.schema.field(self.key).type
        return kind is not None and bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))

    @property
    def group_id(self) -> str:
        """The consumer group to which positions are committed, for tools that show the lag."""
        return f"{self.agent_id}-group"

    @property
    def topics(self) -> tuple[str, ...]:
        """The names of the inputs."""
        return tuple(t if isinstance(t, str) else t.name for t in self.inputs)


def _check_called(refuse: Callable[[str, str], UserError], func: Callable[..., Any], given: tuple[str, ...]) -> None:
    """The function can be called with these."""
    try:
        signature = inspect.signature(func)
    except (TypeError, ValueError):  # of C, which does not say
        return
    try:
        signature.bind(*given)
    except TypeError as error:
        called = f"{getattr(func, '__name__', 'function')}({', '.join(given)})"
        raise refuse(f"it is called as {called}, and its function is …{signature}: {error}", f"def {called}") from error


def _input_format(
    refuse: Callable[[str, str], UserError],
    given: Any,
    inputs: Sequence[str | Source],
    schema: pa.Schema | None,
    where: str,
    *,
    batch: bool,
    durable: bool,
) -> Format:
    for each in inputs:
        found = payload_format(given, each, schema, where)
    if durable and not found.one_row:
        raise refuse(
            f"format {found.name} with durable=True: its records have many rows each, and a job is about one record",
            'a topic of rows before it: app.stream(topic, format=…).to("rows")',
        )
    if not found.one_row and not batch:
        raise refuse(f"format {found.name}, whose records have many rows each", "batch=True gives them as columns")
    return found


def _output_format(
    refuse: Callable[[str, str], UserError], given: Any, sinks: Sequence[Any], where: str, *, batch: bool, keyed: bool
) -> Format | None:
    if given is None:
        return None
    for sink in sinks:
        found = sink_format(given, sink, f"{where}: sink_format", keyed=keyed or not batch)
    if found is not None and found.needs_schema and not batch:
        raise refuse(
            f"sink_format={found.name!r}, and nothing says which columns results have",
            "batch=True, whose results are columns; or an Avro schema",
        )
    return found


def _check_durable(
    refuse: Callable[[str, str], UserError],
    *,
    durable: bool,
    batch: bool,
    keyed: bool,
    on_timer: object,
    only: Mapping[str, Any],
) -> None:
    """only: the options that durable agents alone have, None where they are not given."""
    if not isinstance(durable, bool):
        raise refuse(f"durable={durable!r}", "True or False")
    if not durable:
        for name, value in only.items():
            if value is not None:
                raise refuse(f"{name}= is of durable agents", "durable=True, or leave it out")
        return
    if on_timer is not None:
        raise refuse("durable=True with on_timer=", "a durable agent waits: await ctx.sleep('1h')")
    mailbox, full, job_id = (only[name] for name in ("mailbox", "mailbox_full", "job_id"))
    labels = only["labels"]
    if labels is not None and (isinstance(labels, str) or not all(isinstance(each, str) and each for each in labels)):
        raise refuse(f"labels={labels!r}", 'texts in a list: labels=["untrusted"]')
    if labels and any("," in each for each in labels):
        raise refuse(f"labels={labels!r}", "without commas, which stand between them in the header of a record")
    for name in ("scope", "principal"):
        field = only[name]
        if field is not None and (not isinstance(field, str) or not field):
            raise refuse(f"{name}={field!r}", "the name of the field that says it")
        if field is not None and batch:
            raise refuse(f"{name}={field!r} with batch=True", "the rows of a batch are one job: leave it out")
    if mailbox is not None and not is_whole(mailbox, 1):
        raise refuse(f"mailbox={mailbox!r}", "how many records may wait behind a key that is busy: 1 or more")
    if full not in (None, *get_args(MailboxFull)):
        raise refuse(f"mailbox_full={full!r}", f"one of {', '.join(map(repr, get_args(MailboxFull)))}")
    if (batch or not keyed) and (mailbox is not None or full is not None):
        none = "batches" if batch else "no key"
        raise refuse(f"a mailbox, and {none}", "without keys jobs are independent, and none waits for another")
    if batch and job_id is not None:
        raise refuse(
            f"job_id={job_id!r} with batch=True", "a batch is named by the places of its rows: leave job_id= out"
        )
    if job_id is not None and (not isinstance(job_id, str) or not job_id):
        raise refuse(f"job_id={job_id!r}", "the name of the field whose value is the same only for the same request")


AGENT_OPTIONS = sorted((AgentSpec.of.__kwdefaults__ or {}).keys() - {"name"})
"""The arguments of `@app.agent` beside topic and name."""


def as_schema(schema: pa.Schema | dict[str, str], *, where: str) -> pa.Schema:
    """A pa.Schema as it is, or {"name": type}, as in `arguments.schema_of`; the error names the column."""
    if isinstance(schema, pa.Schema):
        return schema
    fields = []
    for name, kind in schema.items():
        try:
            fields.append(pa.field(name, as_type(kind)))
        except (UserError, TypeError) as error:
            hint = error.hint if isinstance(error, UserError) else ""
            raise UserError(f"{where}: schema: column {name!r} has unknown type {kind!r}", hint=hint) from error
    return pa.schema(fields)
