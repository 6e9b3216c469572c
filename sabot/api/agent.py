"""The checked and immutable description of an agent, which `@app.agent(...)` makes."""

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import field, replace
from typing import Annotated, Any, Literal, TypedDict, Unpack, get_args

import pyarrow as pa

from sabot.api.arguments import check_called
from sabot.api.child_limits import ChildLimits, checked_limits
from sabot.api.expr import as_type
from sabot.api.formats import payload_format, sink_format
from sabot.base.checks import FLAG, check, is_whole
from sabot.base.config import NAME_BYTES, Duration, checked_name
from sabot.base.dataclass import dataclass
from sabot.base.options import declare, with_defaults
from sabot.codecs.base import Format
from sabot.codecs.formats import JSON
from sabot.connectors.base import Delivery, OnNan, Sink, Source
from sabot.connectors.checks import check_delivery, check_ends, check_input, check_nan, check_sink, sink_of
from sabot.connectors.places import Place, Start, Until, checked_start, checked_until
from sabot.engine.calls import CallOptions, Retry
from sabot.engine.calls.options import CALL_WORDS
from sabot.errors import UserError

OnError = Literal["fail", "retry", "skip"]

MailboxFull = Literal["hold", "dead_letter"]

Topics = str | Source | Sequence[str | Source] | None
"""The inputs of an agent: a topic, a Source, or a list of them; None for the topic with the name of the function."""

_POLICIES = ("fail", "retry", "skip")
_DURABLE_ONLY = ("mailbox", "mailbox_full", "job_id", "scope", "principal", "labels", "children")
_MAILBOX_ROWS = 10_000
_PROCESSES_MAX = 64


class BatchAgentOptions(TypedDict, total=False):
    """The options of `@app.agent` that batch agents (`batch=True`) and record agents have in common."""

    key: Annotated[str | None, declare(None, "the field of a record whose value owns the state")]
    sink: Annotated[
        "str | Sink | Source | Callable[..., Any] | Sequence[str | Sink | Source] | None",
        declare(None, "a topic, a Sink or another agent's function; or a list of topics and Sinks, see `Message`"),
    ]
    schema: Annotated[
        pa.Schema | Mapping[str, Any] | None,
        declare(None, "the columns of a record; without it a batch agent's are inferred from the first records"),
    ]
    concurrency: Annotated[int, declare(1, "the number of calls that run at a time, in order per key")]
    timeout: Annotated[Duration | None, declare(None, "the longest time that one call may take")]
    on_error: Annotated[
        OnError, declare("fail", 'the reaction to a call that raised: "fail", "retry" or "skip" the record')
    ]
    retries: Annotated[int, declare(3, 'the number of further attempts with on_error="retry"')]
    backoff: Annotated[Duration, declare("100ms", "the wait before the first further attempt; it doubles each time")]
    rate: Annotated[str | float | None, declare(None, 'the number of attempts that may begin: "50/s", "300/m"')]
    dead_letter: Annotated[str | Sink, declare("{topic}.dlq", "the topic or Sink for records that cannot be processed")]
    delivery: Annotated[
        Delivery, declare(None, '"exactly_once" or "at_least_once"; by default exactly once where the sink can')
    ]
    nan: Annotated[
        OnNan, declare(None, 'the JSON of NaN and infinities: "null"; "fail" is an error; None is null with a warning')
    ]
    format: Annotated[str | Format | None, declare(None, 'the format of the records of its topics, by default "json"')]
    sink_format: Annotated[str | Format | None, declare(None, 'the format of its results in topics, by default "json"')]
    start: Annotated[
        Start | None,
        declare(None, "the place where a topic is read from without a checkpoint, by default the app's"),
    ]
    until: Annotated[Until | None, declare(None, "the place where its topics end; None: nowhere")]
    durable: Annotated[bool, declare(False, "True makes each record a job, whose effects are in the journal")]
    labels: Annotated[
        Collection[str] | None, declare(None, 'the labels of its records: ["untrusted"] if anybody may write them')
    ]
    children: Annotated[ChildLimits | None, declare(None, "the number and depth of the children that a job may begin")]
    process: Annotated[
        bool | int, declare(False, "True or the number of processes of its own that it has under `sabot run`")
    ]


class RecordAgentOptions(BatchAgentOptions, total=False):
    """The options of `@app.agent` without `batch=True`: those of batch agents, and some that only record agents have."""

    on_timer: Annotated[
        Callable[..., Any] | None, declare(None, "the function f(timer, ctx) for timers; it needs `key=`")
    ]
    tombstones: Annotated[
        bool, declare(False, "True if the function is also called for records without a payload; else dead letters")
    ]
    mailbox: Annotated[int | None, declare(None, "the number of records that may wait behind a busy key: 10,000")]
    mailbox_full: Annotated[
        MailboxFull | None, declare(None, '"hold" (the source) or "dead_letter", when the mailbox is full')
    ]
    job_id: Annotated[str | None, declare(None, "the field whose value is the same for the same request only")]
    scope: Annotated[str | None, declare(None, "the field with the tenant for whom a job runs; else it is the app")]
    principal: Annotated[str | None, declare(None, "the field with the person on whose behalf a job runs")]


class AgentOptions(RecordAgentOptions, total=False):
    """All options of `@app.agent`, for record agents and for batch agents."""

    batch: Annotated[bool, declare(False, "True if the function takes (pa.RecordBatch, ctx)")]


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentSpec:
    """The checked description of an agent: its id, its function, its inputs, and the values of `AgentOptions`."""

    agent_id: str
    func: Callable[..., Any]
    inputs: tuple[str | Source, ...]
    topic_by_name: bool
    """True if no topic was given. The agent then reads the topic with its name, unless another agent or a stream
    writes into it.
    """
    key: str | None
    sink: Any
    """The first sink: a topic, a Sink, the function of another agent, or None."""
    more_sinks: tuple[str | Sink, ...]
    """Further topics and Sinks, which `Message(…, topic=)` may name."""
    batch: bool
    schema: pa.Schema | None
    calls: CallOptions
    dead_letter: str | Sink
    delivery: Delivery
    nan: OnNan
    format: Format
    sink_format: Format | None
    start: Place | None
    until: Place | None
    on_timer: Callable[..., Any] | None
    durable: bool
    mailbox: int
    mailbox_full: MailboxFull
    job_id: str | None
    scope: str | None
    principal: str | None
    labels: tuple[str, ...]
    children: ChildLimits
    tombstones: bool
    process: int
    """The number of processes of its own; 0 if the agent shares the process of the app."""
    buried: tuple[type[Exception], ...] = ()
    """The classes of errors that make a record a dead letter whatever `on_error=` says, such as errors of a model's
    answer.
    """
    sample: tuple[Any, str] | None = None
    """A value like those that the agent emits, and the name of its type, if they are known before the first record:
    the start checks that the sinks can write such values.
    """
    check: Callable[[Any], object] | None = None
    """A function that raises DataError for a record's value that the agent cannot process, or None if the agent can
    process all values.
    """
    rules: tuple[Any, Any] | None = field(default=None, repr=False, compare=False)
    """The policy of the agent's app, and a coroutine function that returns its ledger; None for an agent without app."""

    @classmethod
    def of(
        cls,
        agent_id: str,
        func: Callable[..., Any],
        topic: Topics = None,
        *,
        name: str = "",
        **options: Unpack[AgentOptions],
    ) -> "AgentSpec":
        """Returns the checked description of an agent from the user's arguments. Raises UserError if an argument is
        not valid; the message contains the agent's name. `name`: the topic if `topic` is None; with "" it is the name
        of the function.
        """
        where = f"agent {agent_id}"

        def refuse(what: str, hint: str = "") -> UserError:
            return UserError(f"{where}: {what}", hint=hint)

        checked_name(agent_id, "agent id", longest=2 * NAME_BYTES + 1)
        given = with_defaults("@app.agent", AgentOptions, options)
        if not callable(func):
            raise refuse(f"{func!r} is not callable", "put @app.agent(...) above a function")
        own = (name or getattr(func, "__name__", "")) if topic is None else topic
        topics: Any = own if isinstance(own, list | tuple) else [own]
        if not topics or any(not isinstance(t, str | Source) or t == "" for t in topics):
            raise refuse(
                f"topic {topic!r} is neither a topic nor a list of topics",
                "a topic's name, a Source, or a list of them",
            )
        for each in topics:
            check_input(each, f"{where}: topic", "")
        if len({t if isinstance(t, str) else t.name for t in topics}) != len(topics):
            raise refuse(f"topic {topic!r} names one topic twice")
        calls = CallOptions.of(where, policies=_POLICIES, **{word: given.pop(word) for word in CALL_WORDS})
        if calls.on_error != "retry":
            if "retries" in options and calls.retry.retries:
                raise refuse(
                    f"retries= with on_error={calls.on_error!r}, which makes no further attempt",
                    'on_error="retry" makes them, and then the record is a dead letter',
                )
            calls = replace(calls, retry=Retry(0, calls.retry.backoff_s))
        key, batch, durable, process = (given[word] for word in ("key", "batch", "durable", "process"))
        check_delivery(given["delivery"], where)
        check_nan(given["nan"], where)
        if key is not None and (not isinstance(key, str) or not key):
            raise refuse(f"key={key!r} is not the name of a field", 'key="account"')
        if batch and calls.concurrency != 1 and not durable:
            raise refuse(f"concurrency={calls.concurrency}", "a batch agent takes one batch at a time")
        if batch and (inspect.isgeneratorfunction(func) or inspect.isasyncgenfunction(func)):
            raise refuse("a batch agent cannot yield", "return one RecordBatch, or None")
        on_timer = given["on_timer"]
        if on_timer is not None and not callable(on_timer):
            raise refuse(f"on_timer={on_timer!r} is not a function")
        if on_timer is not None and (batch or key is None):
            raise refuse("on_timer= without key=, or with batch=True", "timers belong to the keys of a record agent")
        if on_timer is not None:
            check_called(lambda what, hint: refuse(f"on_timer: {what}", hint), on_timer, ("timer", "ctx"))
        schema = None if given["schema"] is None else as_schema(given["schema"], where=where)
        check(f"{where}: tombstones", given["tombstones"], FLAG)
        if given["tombstones"] and batch:
            raise refuse("tombstones=True with batch=True", "a tombstone has no columns: leave one of them out")
        if given["tombstones"] and key is not None and (schema is None or key not in schema.names):
            raise refuse(
                f"tombstones=True with key={key!r}, but schema= does not have the type of this field",
                f'schema={{"{key}": "string"}} declares it; a tombstone has its key in the key of the record only, as text or as JSON',
            )
        _check_durable(refuse, given)
        if not isinstance(process, bool) and not is_whole(process, 1, _PROCESSES_MAX):
            raise refuse(f"process={process!r}", f"True, or a number of processes, 1 to {_PROCESSES_MAX}")
        if process and durable:
            raise refuse(
                "process= with durable=True", "the jobs of an app share one journal, so they run in one process"
            )
        sinks = _sinks_of(refuse, given["sink"], where, batch=batch)
        if process and callable(sinks[0]):
            raise refuse("process= with a sink that is an agent of another process", "put a topic between the two")
        if given["nan"] is not None and not isinstance(sinks[0], str | Sink):
            raise refuse(
                f"nan={given['nan']!r} without a topic or Sink",
                "other agents and streams get NaN unchanged; leave nan= out",
            )
        check_sink(given["dead_letter"], f"{where}: dead_letter")
        for word in ("start", "until"):
            if isinstance(given[word], Mapping) and len(topics) > 1:
                raise refuse(
                    f"{word}={given[word]!r} with several topics", "offsets belong to one topic: make an agent for each"
                )
        for each in topics if given["until"] is not None else ():
            check_ends(each, where)
        given |= {
            "sink": sinks[0],
            "more_sinks": tuple(sinks[1:]),
            "schema": schema,
            "calls": calls,
            "format": _input_format(refuse, given["format"], topics, schema, where, batch=batch, durable=durable),
            "sink_format": _output_format(
                refuse, given["sink_format"], sinks, where, batch=batch, keyed=key is not None
            ),
            "start": None if given["start"] is None else checked_start(given["start"], where),
            "until": checked_until(given["until"], where),
            "mailbox": _MAILBOX_ROWS if given["mailbox"] is None else given["mailbox"],
            "mailbox_full": given["mailbox_full"] or "hold",
            "labels": tuple(sorted(set(given["labels"] or ()))),
            "children": checked_limits(where, given["children"]),
            "process": int(process),
        }
        spec = cls(agent_id=agent_id, func=func, inputs=tuple(topics), topic_by_name=topic is None, **given)
        check_called(refuse, func, ("batch", "ctx") if batch else ("ctx",))
        return spec

    @property
    def writes_json(self) -> bool:
        """True if the results are written as JSON."""
        return all(each == JSON for each in self.sink_formats.values())

    @property
    def sink_formats(self) -> dict[str, Format]:
        """The formats of the records that the agent's sinks get, by the name of the sink. It is JSON for a Sink that
        stores columns, because such a Sink gets records too.
        """
        topics = self.sink_format or JSON
        return {name: topics if isinstance(each, str) else _own_format(each) for name, each in self.sinks.items()}

    @property
    def job_key(self) -> str | None:
        """The field that orders the jobs of a durable agent: jobs with the same value in this field run one after the
        other. It is the option `key=` of a record agent. It is None for a batch agent, whose `key=` only sets the key
        of its results.
        """
        return None if self.batch else self.key

    @property
    def sinks(self) -> dict[str, str | Sink]:
        """A dict from names to the topics and Sinks into which the agent writes its results, in the order of `sink=`.
        It is empty if the results go to another agent or nowhere.
        """
        given = [each for each in (self.sink, *self.more_sinks) if isinstance(each, str | Sink)]
        return {each if isinstance(each, str) else each.name: each for each in given}

    @property
    def text_keys(self) -> bool:
        """True if `schema` declares the key field (`key=`) as text. The key of a record is then this text in UTF-8;
        otherwise it is JSON.
        """
        kind = None if self.schema is None or self.key is None else self.schema.field(self.key).type
        return kind is not None and bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))

    @property
    def group_id(self) -> str:
        """The consumer group in which the agent's offsets are committed, so that tools can show its lag."""
        return f"{self.agent_id}-group"

    @property
    def topics(self) -> tuple[str, ...]:
        """The names of the agent's inputs: topics, and names of Sources."""
        return tuple(t if isinstance(t, str) else t.name for t in self.inputs)


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
            f"format {found.name} with durable=True: its records have many rows each, and a job has one record",
            'a topic of rows before it: app.stream(topic, format=…).to("rows")',
        )
    if not found.one_row and not batch:
        raise refuse(f"format {found.name}, whose records have many rows each", "batch=True gives them as columns")
    return found


def _output_format(
    refuse: Callable[[str, str], UserError], given: Any, sinks: Sequence[Any], where: str, *, batch: bool, keyed: bool
) -> Format | None:
    found = None
    for sink in sinks:
        own = _own_format(sink) if isinstance(sink, Sink) else JSON
        if given is not None or own != JSON:
            found = sink_format(given, sink, f"{where}: sink_format", keyed=keyed or not batch)
        said = own if found is None else found
        if said.needs_schema and not batch:
            raise refuse(
                f"sink_format={said.name!r} needs columns, and results of this agent have none declared",
                "use batch=True, or give an Avro schema",
            )
    return found


def _own_format(sink: Sink) -> Format:
    return sink.format if isinstance(sink.format, Format) else JSON


def _sinks_of(refuse: Callable[[str, str], UserError], given: Any, where: str, *, batch: bool) -> list[Any]:
    """Returns the sinks of an agent as a list, in the order of `sink=`; [None] if it has no sink. Raises UserError
    for a value that is no sink, and for a list of sinks with `batch`.

    `given`: the value of `sink=`. `where`: the beginning of error messages. `refuse`: makes an error from a message
    and a hint.
    """
    several = isinstance(given, list | tuple)
    sinks = [sink_of(each, f"{where}: sink") for each in (given if several else [given])]
    if several and batch:
        raise refuse(
            f"sink={given!r} with batch=True", "give one sink: a list is for a record agent, see Message(…, topic=)"
        )
    if several and not all(isinstance(each, str | Sink) for each in sinks):
        raise refuse(f"sink={given!r}: a list has topics and Sinks only", "an agent's function is given without a list")
    if not sinks or (not isinstance(sinks[0], str | Sink | None) and not callable(sinks[0])):
        raise refuse(
            f"sink {given!r} is no place for results",
            "a topic name, a Sink, or another agent's function; or a list of topics and Sinks",
        )
    for each in sinks:
        if isinstance(each, str | Sink):
            check_sink(each, f"{where}: sink")
    if len({each if isinstance(each, str) else getattr(each, "name", "") for each in sinks}) != len(sinks):
        raise refuse(
            f"sink={given!r} has one name twice", "name each sink once: Message(…, topic=) chooses by the name"
        )
    return sinks


def _check_durable(refuse: Callable[[str, str], UserError], given: Mapping[str, Any]) -> None:
    """Checks the options that only durable agents have. Raises an error if one of them is given without
    `durable=True`, or if its value is not valid. `refuse`: makes the error from a message and a hint. `given`: all
    options by name.
    """
    durable, batch = given["durable"], given["batch"]
    if not isinstance(durable, bool):
        raise refuse(f"durable={durable!r}", "True or False")
    if not durable:
        for name in _DURABLE_ONLY:
            if given[name] is not None:
                raise refuse(f"{name}= is for durable agents", "durable=True, or leave it out")
        return
    if given["on_timer"] is not None:
        raise refuse("durable=True with on_timer=", "a durable agent waits: await ctx.sleep('1h')")
    mailbox, full, job_id, labels = (given[name] for name in ("mailbox", "mailbox_full", "job_id", "labels"))
    if labels is not None and (isinstance(labels, str) or not all(isinstance(each, str) and each for each in labels)):
        raise refuse(f"labels={labels!r}", 'texts in a list: labels=["untrusted"]')
    if labels and any("," in each for each in labels):
        raise refuse(f"labels={labels!r}", "without commas, which stand between them in the header of a record")
    for name in ("scope", "principal"):
        field = given[name]
        if field is not None and (not isinstance(field, str) or not field):
            raise refuse(f"{name}={field!r}", "give the name of a field")
        if field is not None and batch:
            raise refuse(f"{name}={field!r} with batch=True", "the rows of a batch are one job: leave it out")
    if mailbox is not None and not is_whole(mailbox, 1):
        raise refuse(f"mailbox={mailbox!r}", "the number of records that may wait for a busy key: 1 or more")
    if full not in (None, *get_args(MailboxFull)):
        raise refuse(f"mailbox_full={full!r}", f"one of {', '.join(map(repr, get_args(MailboxFull)))}")
    if (batch or given["key"] is None) and (mailbox is not None or full is not None):
        with_what = "with batch=True" if batch else "without key="
        raise refuse(
            f"mailbox= or mailbox_full= {with_what}",
            "without keys jobs are independent, and do not wait for each other",
        )
    if batch and job_id is not None:
        raise refuse(
            f"job_id={job_id!r} with batch=True", "a batch is named by the places of its rows: leave job_id= out"
        )
    if job_id is not None and (not isinstance(job_id, str) or not job_id):
        raise refuse(
            f"job_id={job_id!r} is not the name of a field",
            "the name of the field whose value is the same only for the same request",
        )


def as_schema(schema: pa.Schema | Mapping[str, Any], *, where: str) -> pa.Schema:
    """Returns the pa.Schema of a dict {"name": type}; returns a pa.Schema unchanged. Raises UserError for an unknown
    type; the message begins with `where`, and contains the name of the column.
    """
    if isinstance(schema, pa.Schema):
        return schema
    if not isinstance(schema, Mapping):
        raise UserError(f"{where}: schema={schema!r} is not a schema", hint='{"name": "type"}, or a pa.Schema')
    fields = []
    for name, kind in schema.items():
        try:
            fields.append(pa.field(name, as_type(kind)))
        except (UserError, TypeError) as error:
            hint = error.hint if isinstance(error, UserError) else ""
            raise UserError(f"{where}: schema: column {name!r} has unknown type {kind!r}", hint=hint) from error
    return pa.schema(fields)
