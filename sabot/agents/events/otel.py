"""Makes spans and metrics of OpenTelemetry from events (`pip install sabot[otel]`).

   agent.job                 from job.started to the end of the job
   ├── agent.run             a request to a model
   ├── agent.tool            an attempt of a call
   ├── agent.action          a question to a person, until its answer
   └── agent.job             a child

The ids of a trace and its spans are computed from the job and the events. So a job with all its children is one trace,
even across an approval of two days or a crash, and an event that is published again gives the same span. The trace of a
child is found from its job id, which contains the ids of the jobs above it.

A span is made when the activity that it describes has ended. Names and attributes follow the semantic conventions for
generative AI. Prompts, answers and arguments are left out unless the configuration asks for them.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from sabot.agents.events.bus import EventBus, RuntimeEvent, RuntimeEventType, Subscription
from sabot.base.options import answers_wrong_options
from sabot.base.present_job import stable_number, trace_number
from sabot.errors import MissingExtra, UserError, short_repr
from sabot.jobs.tree import first_of, parent_of

_TYPE = RuntimeEventType
_WANTED = (
    _TYPE.JOB_STARTED,
    _TYPE.MODEL_DONE,
    _TYPE.TOOL_START,
    _TYPE.TOOL_END,
    _TYPE.TOOL_ERROR,
    _TYPE.ACTION_REQUIRED,
    _TYPE.ACTION_RESOLVED,
    _TYPE.ACTION_EXPIRED,
    _TYPE.ACTION_CANCELLED,
    _TYPE.FINAL_RESULT,
    _TYPE.FINAL_ERROR,
)


@answers_wrong_options
@dataclass(frozen=True, slots=True, kw_only=True)
class OTelConfig:
    """The settings of an OpenTelemetryAdapter.

    - `tracer_name`: the name of the tracer and the meter.
    - `service_name`: the attribute "service.name" of each span. With "" the spans do not have it, and the resource of
      the tracer provider names the service.
    - `capture_input`: True adds the inputs of jobs and the data of questions to the spans.
    - `capture_output`: True adds answers, results and error messages to the spans.
    - `capture_tool_args`: True adds the arguments of tools to the spans.
    - `record_exceptions`: True adds an event with the class of the error to each span that has failed.
    - `sampling_rate`: the fraction of jobs that are traced, from 0.0 to 1.0. A job is traced if and only if its parent
      is.
    """

    tracer_name: str = "agent_runtime"
    service_name: str = ""
    capture_input: bool = False
    capture_output: bool = False
    capture_tool_args: bool = False
    record_exceptions: bool = True
    sampling_rate: float = 1.0

    def __post_init__(self) -> None:
        rate = self.sampling_rate
        if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 <= rate <= 1:
            raise UserError(f"OTelConfig: sampling_rate={short_repr(rate)}", hint="from 0.0, none, to 1.0, all")


@dataclass(slots=True)
class _Trace:
    """The data that is needed for the later spans of a job that has not ended.

    - `began`: the time at which the job began, in seconds since 1970.
    - `agent`, `input`: the id of the job's agent, and the input of the job.
    - `asked`: the event with which each open question was asked, by the id of the action.
    - `started`: the event with which each running call began, by the ordinal of the effect.
    """

    began: float
    agent: str = ""
    input: Any = None
    asked: dict[str, RuntimeEvent] = field(default_factory=dict)
    started: dict[int, RuntimeEvent] = field(default_factory=dict)


@answers_wrong_options
class OpenTelemetryAdapter:
    """An adapter that makes OpenTelemetry spans and metrics from the events of a bus. `await
    OpenTelemetryAdapter(bus).start()` begins this.
    """

    def __init__(
        self,
        event_bus: EventBus,
        config: OTelConfig | None = None,
        *,
        tracer_provider: Any = None,
        meter_provider: Any = None,
    ) -> None:
        """Makes an adapter; `start` subscribes it to the bus. For a provider that is None, the adapter uses the global
        provider of the process (`trace.set_tracer_provider`, `metrics.set_meter_provider`). Raises MissingExtra if
        OpenTelemetry is not installed.
        """
        try:
            from opentelemetry import context, metrics, trace
        except ImportError as error:
            raise MissingExtra("OpenTelemetryAdapter", "otel") from error
        self.config = config if config is not None else OTelConfig()
        self._bus = event_bus
        self._provider = tracer_provider
        self._trace = trace
        self._nothing = context.Context()
        self._meters = meter_provider if meter_provider is not None else metrics
        self._tracer: Any = None
        self._ids = _Ids()
        self._jobs: dict[str, _Trace] = {}
        self._subscription: Subscription | None = None

    async def start(self) -> None:
        """Subscribes the adapter to the bus. While its queue is full, calls of `publish` wait, so that no span is lost.
        Repeated calls do nothing.
        """
        if self._subscription is not None:
            return
        provider = self._provider if self._provider is not None else self._trace.get_tracer_provider()
        self._tracer = provider.get_tracer(self.config.tracer_name)
        if hasattr(self._tracer, "id_generator"):  # a tracer of the SDK; the API alone makes no spans
            self._tracer.id_generator = self._ids
        meter = self._meters.get_meter(self.config.tracer_name)
        self._tokens = meter.create_histogram("gen_ai.client.token.usage", "{token}", "Tokens of a request")
        self._seconds = meter.create_histogram("gen_ai.client.operation.duration", "s", "How long a request took")
        self._subscription = await self._bus.subscribe(self.take, _WANTED, slow="hold")

    async def stop(self) -> None:
        """Makes the spans for the events that still wait in the queue, and unsubscribes from the bus. Repeated calls do
        nothing. Raises TransientError if that takes longer than 60 seconds; the adapter is unsubscribed all the same.
        """
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            try:
                await subscription.flush()
            finally:
                await subscription.unsubscribe()

    def take(self, event: RuntimeEvent) -> None:
        """Handles an event of the bus. An event that begins an activity (a job, a call or a question) is stored. For an
        event that ends an activity, makes the span of that activity.
        """
        if not self._samples(event.job_id):
            return
        job = self._jobs.get(event.job_id)
        if job is None:
            job = self._jobs[event.job_id] = _Trace(event.at)
        data = event.data
        match event.type:
            case _TYPE.JOB_STARTED:
                job.began, job.agent, job.input = min(job.began, event.at), data.get("agent", ""), data.get("input")
            case _TYPE.TOOL_START:
                job.started[data["ordinal"]] = event
            case _TYPE.ACTION_REQUIRED:
                job.asked[data["action_id"]] = event
            case _TYPE.MODEL_DONE:
                self._run(event)
            case _TYPE.TOOL_END | _TYPE.TOOL_ERROR:
                self._tool(event, job.started.pop(data["ordinal"], None))
            case _TYPE.ACTION_RESOLVED | _TYPE.ACTION_EXPIRED | _TYPE.ACTION_CANCELLED:
                self._action(event, job.asked.pop(data.get("action_id", ""), None))
            case _TYPE.FINAL_RESULT | _TYPE.FINAL_ERROR:
                del self._jobs[event.job_id]
                self._job(event, job)

    def _samples(self, job_id: str) -> bool:
        rate = self.config.sampling_rate
        return rate >= 1 or stable_number(f"sample {first_of(job_id)}", 8) < rate * 2**64

    # -- spans --------------------------------------------------------------------------------------------------------

    def _run(self, event: RuntimeEvent) -> None:
        data = event.data
        model = data.get("model", "")
        about = {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": data.get("provider", ""),
            "gen_ai.response.model": model,
            "gen_ai.response.id": data.get("request_id", ""),
        }
        usage = data.get("usage") or {}
        for kind in ("input", "output"):
            tokens = usage.get(f"{kind}_tokens")
            if tokens is not None:
                about[f"gen_ai.usage.{kind}_tokens"] = tokens
                self._tokens.record(tokens, {"gen_ai.token.type": kind, "gen_ai.response.model": model})
        self._seconds.record(event.at - data["began_at"], {"gen_ai.response.model": model})
        if "finish_reason" in data:
            about["gen_ai.response.finish_reasons"] = (data["finish_reason"],)
        if "cost" in data:
            about["sabot.cost"] = str(data["cost"])
        if self.config.capture_output and "content" in data:
            about["gen_ai.output.messages"] = _text(data["content"])
        self._span("agent.run", event, data["began_at"], about)

    def _tool(self, event: RuntimeEvent, started: RuntimeEvent | None) -> None:
        data = event.data
        about = {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": data["tool"]}
        about["gen_ai.tool.call.id"] = f"{event.job_id}/{data['ordinal']}"
        if self.config.capture_tool_args and started is not None:
            about["gen_ai.tool.call.arguments"] = _text(started.data["arguments"])
        if self.config.capture_output and "result" in data:
            about["gen_ai.tool.call.result"] = _text(data["result"])
        self._span("agent.tool", event, data["began_at"] if started is None else started.at, about)

    def _action(self, event: RuntimeEvent, asked: RuntimeEvent | None) -> None:
        about = {"sabot.action.id": event.data.get("action_id", ""), "sabot.action.type": event.data.get("type", "")}
        about["sabot.action.outcome"] = event.type.partition(".")[2]
        if self.config.capture_input and asked is not None:
            about["sabot.action.payload"] = _text(asked.data["payload"])
        if self.config.capture_output:
            about["sabot.action.resolution"] = _text(event.data["resolution"])
        self._span("agent.action", event, event.at if asked is None else asked.at, about)

    def _job(self, event: RuntimeEvent, job: _Trace) -> None:
        about = {"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": job.agent}
        about["sabot.job.outcome"] = event.data.get("outcome", "")
        if self.config.capture_input and job.input is not None:
            about["gen_ai.input.messages"] = _text(job.input)
        if self.config.capture_output and "result" in event.data:
            about["gen_ai.output.messages"] = _text(event.data["result"])
        self._span("agent.job", event, job.began, about, is_job=True)

    def _span(
        self, name: str, event: RuntimeEvent, began: float, about: Mapping[str, Any], *, is_job: bool = False
    ) -> None:
        """Makes a span that ends at the time of `event`.

        - `began`: the time at which the span begins, in seconds since 1970.
        - `about`: the attributes of the span. Attributes with the value "" are left out.
        - `is_job`: True for the span of a whole job. Its parent is the span of the parent job. The parent of any other
          span is the span of its job.
        """
        trace, job_id, data = self._trace, event.job_id, event.data
        trace_id, job_span = trace_number(first_of(job_id)), stable_number(f"span {job_id}", 8)
        context, above = self._nothing, parent_of(job_id)[0] if is_job else job_id
        if above:
            parent_id = stable_number(f"span {above}", 8)
            parent = trace.SpanContext(trace_id, parent_id, is_remote=False, trace_flags=trace.TraceFlags(1))
            context = trace.set_span_in_context(trace.NonRecordingSpan(parent))
        attributes = {"sabot.job.id": job_id, "sabot.scope": event.scope_id, "sabot.principal": event.principal_id}
        attributes |= {"sabot.session": event.session_id, "service.name": self.config.service_name, **about}
        kept = {key: value for key, value in attributes.items() if value != ""}
        with self._ids.next(trace_id, job_span if is_job else stable_number(f"span {event.event_id}", 8)):
            span = self._tracer.start_span(name, context=context, attributes=kept, start_time=_ns(began))
        if "error" in data:
            self._fails(span, data, event.at)
        span.end(_ns(event.at))

    def _fails(self, span: Any, data: Mapping[str, Any], at: float) -> None:
        """Marks a span as failed. `data` has the class of the error ("error") and its message ("message"). The message
        may quote a prompt or the arguments of a tool, so it is added to the span only if `capture_output` is True. `at`
        is the time of the error in seconds since 1970.
        """
        span.set_attribute("error.type", data["error"])
        said = str(data.get("message", "")) if self.config.capture_output else ""
        span.set_status(self._trace.Status(self._trace.StatusCode.ERROR, said or None))
        if self.config.record_exceptions:
            about = {"exception.type": data["error"], **({"exception.message": said} if said else {})}
            span.add_event("exception", about, timestamp=_ns(at))


class _Ids:
    """An id generator for the OpenTelemetry SDK. It returns the ids that the last call of `next` has set, instead of
    random ids.
    """

    def __init__(self) -> None:
        self._trace_id = self._span_id = 0

    @contextmanager
    def next(self, trace_id: int, span_id: int) -> Iterator[None]:
        """Sets the ids that the generator returns for the span that is made in the `with` block."""
        self._trace_id, self._span_id = trace_id, span_id
        yield

    def generate_trace_id(self) -> int:
        """Returns the trace id that `next` has set. OpenTelemetry calls this for each new span."""
        return self._trace_id

    def generate_span_id(self) -> int:
        """Returns the span id that `next` has set. OpenTelemetry calls this for each new span."""
        return self._span_id

    def is_trace_id_random(self) -> bool:
        """Returns False, because the trace ids are computed from the ids of the jobs."""
        return False


def _ns(seconds: float) -> int:
    return round(seconds * 1_000_000) * 1000


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)
