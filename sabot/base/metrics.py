"""Figures for Prometheus and OpenTelemetry. The only importer of prometheus_client.

Objects count in plain numbers while they work. When a scrape asks, their owners yield the numbers as samples
(`Metrics`), so processing a record costs nothing extra. `KINDS` lists all metrics with their labels.

All values of labels are strings. Most metrics have some of these three labels: `operator`, which is an agent's id,
"sink", or the task of a stream ("stage/subtask"); `topic`, where rows come from or go to, which may be another
agent's id or a file; and `partition`. A Sample of other metrics has the values of their own labels in these three
fields, such as `provider`, `model` and `kind`. The label `app` is always there. If the app has several processes,
figures of one process have its number in the label `worker`.

Durations are kept as a histogram (`Durations`), to which one duration is added per batch. Rows are counted per batch
too, so there are no counts by partition.
"""

import logging
import threading
from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

from sabot.base.dataclass import dataclass
from sabot.base.figures import STEP_COUNTS
from sabot.base.probes import Page, PageServer
from sabot.errors import MissingExtra, UserError

_log = logging.getLogger(__name__)

Value = float | tuple[float, ...]  # a tuple is the result of Durations.read
_Key = tuple[str, str, str, str, str]  # name, operator, topic, partition, worker


@dataclass(frozen=True, slots=True)
class _Kind:
    """A metric without its values."""

    type: Literal["counter", "gauge", "histogram"]
    labels: tuple[str, ...]
    text: str


_ROWS = ("operator", "topic")
_MODEL = ("provider", "model")
KINDS = {each.metric: _Kind("counter", _ROWS, each.help) for each in STEP_COUNTS} | {
    "sabot_build_info": _Kind(
        "gauge", ("version", "python", "program"), "1; the labels are the versions of Sabot, Python and the program."
    ),
    "sabot_records_in_total": _Kind(
        "counter", _ROWS, "Records read for an agent or a stream, or handed from one to another."
    ),
    "sabot_records_out_total": _Kind(
        "counter", _ROWS, "Results that an agent handed to its sink, or to another agent."
    ),
    "sabot_sink_nulled_total": _Kind(
        "counter", _ROWS, "Floats that a sink's format cannot represent (NaN, infinities), written as null."
    ),
    "sabot_agent_errors_total": _Kind(
        "counter", ("operator",), "Calls that raised, and records that could not be decoded or had no key."
    ),
    "sabot_batch_seconds": _Kind(
        "histogram", ("operator",), "Time from a batch's arrival at an agent to the end of its last call."
    ),
    "sabot_channel_rows": _Kind("gauge", _ROWS, "Rows that wait between a source and its agent, or before a sink."),
    "sabot_backlog_records": _Kind(
        "gauge", _ROWS, "Records of this source to read before the streams that wait for it begin."
    ),
    "sabot_consumer_lag": _Kind("gauge", (*_ROWS, "partition"), "Records not read yet; of a file, bytes."),
    "sabot_watermark_lag_seconds": _Kind("gauge", _ROWS, "Seconds by which the watermark is behind the clock."),
    "sabot_checkpoint_seconds": _Kind("gauge", (), "How long the last complete checkpoint took."),
    "sabot_checkpoint_bytes": _Kind("gauge", (), "The size of the last complete checkpoint."),
    "sabot_checkpoint_failed_total": _Kind("counter", (), "Checkpoints that did not complete."),
    "sabot_checkpoint_sync_seconds": _Kind(
        "gauge", ("operator",), "How long the last snapshot of a task held up its rows."
    ),
    "sabot_checkpoint_alignment_seconds": _Kind(
        "gauge", ("operator",), "How long the last barrier waited for a task's slowest input."
    ),
    "sabot_delivered_records_total": _Kind("counter", _ROWS, "Results that an exactly-once sink delivered."),
    "sabot_undelivered_records": _Kind("gauge", _ROWS, "Results of an exactly-once sink that wait in checkpoints."),
    "sabot_delivery_failures_total": _Kind(
        "counter", _ROWS, "Deliveries that a sink refused and that are tried again."
    ),
    "sabot_restarts_total": _Kind("counter", (), "Restarts from the last checkpoint after a failure."),
    "sabot_worker_memory_bytes": _Kind("gauge", ("worker",), "Resident memory of a worker's process."),
    "sabot_worker_cpu_seconds_total": _Kind("counter", ("worker",), "CPU time of a worker's process."),
    "sabot_state_bytes": _Kind(
        "gauge", ("operator",), "The size of the state of agents or of a step, in memory and on disk; an estimate."
    ),
    "sabot_state_keys": _Kind("gauge", ("operator",), "Keys with state, or rows that a step keeps; an estimate."),
    "sabot_task_seconds_total": _Kind(
        "counter", ("operator", "state"), "Seconds of a task by state: busy, contended, backpressured, …, idle."
    ),
    "sabot_step_seconds_total": _Kind("counter", ("operator",), "Seconds in which a task worked in one of its steps."),
    "sabot_edge_rows_total": _Kind("counter", ("operator", "from", "to"), "Rows on an edge of the running plan."),
    "sabot_channel_fill": _Kind(
        "gauge", ("operator", "to"), "How full the fullest channel of an edge is, from 0 to 1."
    ),
    "sabot_watermark_seconds": _Kind("gauge", ("operator",), "The watermark of a task, in seconds since 1970."),
    "sabot_checkpoint_timestamp_seconds": _Kind(
        "gauge", (), "When the last checkpoint was complete, in seconds since 1970."
    ),
    "sabot_checkpoint_failure_timestamp_seconds": _Kind(
        "gauge", (), "When a checkpoint last failed, in seconds since 1970."
    ),
    "sabot_late_seconds": _Kind(
        "gauge", ("operator", "quantile"), "How late the late rows of a step were in this run."
    ),
    "sabot_dead_letter_reasons_total": _Kind(
        "counter", (*_ROWS, "reason"), "Dead letters by the class of their error."
    ),
    "sabot_calls_total": _Kind("counter", ("operator",), "Calls of a user's function that have ended; each attempt."),
    "sabot_call_seconds_total": _Kind("counter", ("operator",), "The seconds that these calls took together."),
    "sabot_calls_in_flight": _Kind("gauge", ("operator",), "Calls of a user's function that run."),
    "sabot_calls_limit": _Kind("gauge", ("operator",), "Calls of a user's function that may run now."),
    "sabot_model_calls_total": _Kind("counter", _MODEL, "Calls of a model that needed a provider."),
    "sabot_model_failures_total": _Kind("counter", _MODEL, "Of these, calls that failed after all attempts."),
    "sabot_model_unasked_total": _Kind(
        "counter",
        _MODEL,
        "Calls answered without a provider: by a cache, an idempotency key or an equal call in flight.",
    ),
    "sabot_model_retries_total": _Kind("counter", _MODEL, "Attempts of calls after the first."),
    "sabot_model_overloads_total": _Kind("counter", _MODEL, "Attempts that the provider refused as too many (429)."),
    "sabot_model_fallbacks_total": _Kind(
        "counter", _MODEL, "Calls that were made to another provider after a failure."
    ),
    "sabot_model_cost_dollars_total": _Kind("counter", _MODEL, "Cost in US dollars, as far as prices are known."),
    "sabot_model_tokens_total": _Kind("counter", (*_MODEL, "kind"), "Tokens: input (cached among them), output."),
    "sabot_model_attempt_seconds": _Kind("histogram", _MODEL, "How long attempts took."),
    "sabot_model_in_flight": _Kind("gauge", _MODEL, "Calls in flight."),
    "sabot_model_waiting": _Kind("gauge", _MODEL, "Calls that wait for the limits."),
    "sabot_model_limit": _Kind("gauge", _MODEL, "Requests that the provider may have in flight now."),
    "sabot_fleet_replicas": _Kind("gauge", ("fleet", "state"), "Replicas: idle, busy, draining."),
    "sabot_fleet_waiting": _Kind("gauge", ("fleet",), "Pieces of work that wait for a replica."),
    "sabot_fleet_lag": _Kind("gauge", ("fleet",), "Further work that the function in lag= reports."),
    "sabot_fleet_cpu_percent": _Kind("gauge", ("fleet",), "Average CPU of a replica, in percent of its limit."),
    "sabot_fleet_memory_bytes": _Kind("gauge", ("fleet",), "Resident memory of all replicas."),
    "sabot_fleet_events_total": _Kind(
        "counter", ("fleet", "event"), "Scalings up and down, replicas that died, work returned to the queue."
    ),
    "sabot_process_live": _Kind("gauge", ("agent",), "1 if the processes of the agent are alive."),
    "sabot_process_ready": _Kind("gauge", ("agent",), "1 if the agent accepts work."),
    "sabot_process_stuck": _Kind(
        "gauge", ("agent",), "1 if work of the agent makes no progress, or a process is stopped."
    ),
    "sabot_process_in_progress": _Kind("gauge", ("agent",), "Pieces of work that the agent works on now."),
    "sabot_process_requests_total": _Kind("counter", ("agent",), "Pieces of work that have ended."),
    "sabot_process_errors_total": _Kind("counter", ("agent",), "Of these, those that have failed."),
    "sabot_process_request_seconds": _Kind("histogram", ("agent",), "How long pieces of work took."),
    "sabot_process_memory_bytes": _Kind("gauge", ("agent",), "Resident memory of the agent's processes."),
    "sabot_warm_pool_children": _Kind("gauge", ("pool", "state"), "Children: warm, starting, given_out."),
    "sabot_warm_pool_events_total": _Kind(
        "counter", ("pool", "event"), "Children allocated, refused, died while warm, refreshed."
    ),
}


@dataclass(frozen=True, slots=True)
class Sample:
    """One figure at the time of a scrape. Samples that differ only in their value are added up."""

    name: str
    value: Value
    operator: str = ""
    topic: str = ""
    partition: str = ""
    worker: str = ""


def call_samples(operator: str, figures: Mapping[str, Any]) -> Iterator[Sample]:
    """Yields the samples of the calls of a user's function, if `figures` has them. `figures`: those of an operator."""
    names = {
        "attempts": "calls_total",
        "attempt_seconds": "call_seconds_total",
        "in_flight": "calls_in_flight",
        "limit": "calls_limit",
    }
    for figure, name in names.items():
        if figure in figures:
            yield Sample(f"sabot_{name}", figures[figure], operator)


class Durations:
    """A histogram of durations. One thread adds; any thread may read."""

    __slots__ = ("_figures",)

    BOUNDS = (
        *(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
        *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, float("inf")),
    )
    """The upper bounds of the buckets in seconds, inclusive."""

    def __init__(self) -> None:
        self._figures = [0.0] * (len(self.BOUNDS) + 1)  # a count for each bound, then the sum of seconds

    def add(self, seconds: float) -> None:
        """Counts one duration."""
        self._figures[bisect_left(self.BOUNDS, seconds)] += 1
        self._figures[-1] += seconds

    def read(self) -> tuple[float, ...]:
        """Returns a count for each bound (not cumulative), and then the sum of all durations in seconds."""
        return tuple(self._figures)

    @classmethod
    def quantile(cls, figures: Sequence[float], part: float) -> float | None:
        """Returns the seconds that this part of the durations does not exceed, about: buckets are taken as even, and 120 stands for all
        longer durations. None without durations. `figures`: what `read` returns, or the difference of two of its results.
        """
        rank, below, lower = part * sum(figures[:-1]), 0.0, 0.0
        for bound, count in zip(cls.BOUNDS, figures[:-1], strict=True):
            if count > 0 and below + count >= rank:
                return lower if bound == float("inf") else lower + (bound - lower) * (rank - below) / count
            below, lower = below + count, bound
        return None

    def statistics(self) -> dict[str, float]:
        """Returns `count` and `seconds_total`."""
        figures = self.read()
        return {"count": sum(figures[:-1]), "seconds_total": figures[-1]}


class Health(ABC):
    """A part of an app that answers the health probes too, beside the app itself. All methods may be called from any
    thread.
    """

    @abstractmethod
    def liveness(self) -> tuple[str, dict[str, str]]:
        """Returns a reason to end the process, or ""; and the current problem of each component by its name."""

    @abstractmethod
    def readiness(self) -> tuple[str, dict[str, str]]:
        """Returns the reason why the process is not ready, or ""; and the current problem of each component by its
        name.
        """

    @abstractmethod
    def samples(self) -> Iterable[Sample]:
        """Yields figures for a scrape. The values of counters never decrease."""


class Metrics:
    """The figures of one app over all its runs, and the HTTP port where they are served. All methods may be called
    from any thread.

    `lasting`: a function that yields the samples of objects that exist as long as the app; `follow` adds a function
    for the objects of one run. The thread of a scrape calls these functions, one scrape at a time. When a run is over
    (`settle`), its counters are kept, so no counter decreases within a process, even after a restore. `probes`:
    further paths of the port, with the functions that make their pages.
    """

    def __init__(
        self,
        app: str,
        lasting: Callable[[], Iterable[Sample]],
        probes: Mapping[str, Callable[[], Page]] | None = None,
    ) -> None:
        self.port: int | None = None  # the port of the server, or None while it does not run
        self._app = app
        self._lasting = lasting
        self._probes = dict(probes or {})
        self._running: Callable[[], Iterable[Sample]] | None = None
        self._past: dict[_Key, Value] = {}
        self._scrapes = 0
        self._lock = threading.Lock()
        self._server: PageServer | None = None

    def follow(self, samples: Callable[[], Iterable[Sample]]) -> None:
        """Includes the samples of this run in each scrape from now on."""
        with self._lock:
            self._running = samples

    def settle(self) -> None:
        """Ends a run: keeps its counters, and drops its gauges. Waits for a scrape that is under way. Idempotent."""
        with self._lock:
            running, self._running = self._running, None
            if running is not None:
                _add(self._past, (sample for sample in running() if KINDS[sample.name].type != "gauge"))

    def text(self) -> str:
        """Returns all figures in Prometheus' text format. Raises MissingExtra."""
        client = _client()
        return str(client.generate_latest(self._registry(client)).decode())

    def serve(self, port: int, host: str = "127.0.0.1") -> int:
        """Serves `/metrics` and the probes on host:port, in threads, until `close`. Returns the port; 0 takes a free
        one.

        Raises MissingExtra, and UserError if the address cannot be bound.
        """
        client = _client()
        registry = self._registry(client)

        def figures(accept: str) -> Page:
            encoded, content_type = client.exposition.choose_encoder(accept)
            return Page(200, content_type, encoded(registry))

        pages = {path: lambda accept, make=make: make() for path, make in self._probes.items()}
        try:
            self._server = PageServer(host, port, {"/metrics": figures, **pages})
        except OSError as error:
            raise UserError(
                f"metrics cannot be served on {host}:{port}: {error.strerror or error}",
                hint="give another --metrics-port (0 takes a free one), or --metrics-host",
            ) from error
        self.port = self._server.port
        _log.info("metrics of app %s: http://%s:%d/metrics", self._app, host, self.port)
        return self.port

    def observe(self, meter_provider: Any = None) -> None:
        """Passes the same figures to OpenTelemetry as observable counters and gauges of the meter "sabot", whenever
        its reader collects.

        Names and labels are those of `text`; a histogram becomes `_bucket`, `_count` and `_sum`. `meter_provider`: by
        default that of the process. Raises MissingExtra.
        """
        try:
            from opentelemetry import metrics
        except ImportError as error:
            raise MissingExtra("figures for OpenTelemetry", "otel") from error
        meter = (meter_provider if meter_provider is not None else metrics).get_meter("sabot")

        def observations(name: str) -> Callable[[Any], list[Any]]:
            return lambda options: [metrics.Observation(value, labels) for value, labels in self._series(name)]

        for name, kind in KINDS.items():
            gauge = kind.type == "gauge"
            make = meter.create_observable_gauge if gauge else meter.create_observable_counter
            for part in ("_bucket", "_count", "_sum") if kind.type == "histogram" else ("",):
                make(name + part, [observations(name + part)], description=kind.text)

    def _series(self, name: str) -> Iterator[tuple[float, dict[str, str]]]:
        """Yields the values of one name of `text`, with their labels."""
        base, part = name, ""
        if name not in KINDS:
            base, _, part = name.rpartition("_")
        for key, value in sorted(self._now().items()):
            if key[0] != base:
                continue
            said = self._labels(key)
            if not isinstance(value, tuple):
                yield value, said
            elif part == "sum":
                yield value[-1], said
            elif part == "count":
                yield sum(value[:-1]), said
            else:
                yield from ((count, {**said, "le": bound}) for bound, count in _cumulative(value))

    def close(self) -> None:
        """Stops the server and frees the port. Blocks up to half a second. Idempotent."""
        server, self._server, self.port = self._server, None, None
        if server is not None:
            server.close()

    def statistics(self) -> dict[str, int]:
        """Returns the number of `scrapes` so far, and the `port` of the server, or 0 without a server."""
        return {"scrapes": self._scrapes, "port": self.port or 0}

    # -- what prometheus_client asks for ------------------------------------------------------------------------------

    def collect(self) -> list[Any]:
        """Returns a metric family for each name, with all its samples. The registry of prometheus_client calls it."""
        core = _client().core
        makers = {
            "counter": core.CounterMetricFamily,
            "gauge": core.GaugeMetricFamily,
            "histogram": core.HistogramMetricFamily,
        }
        families: dict[tuple[str, tuple[str, ...]], Any] = {}  # by name and labels
        for key, value in sorted(self._now().items()):
            kind, labels = KINDS[key[0]], self._labels(key)
            place = key[0], tuple(labels)
            family = families.get(place)
            if family is None:
                family = families[place] = makers[kind.type](key[0], kind.text, labels=place[1])
            if isinstance(value, tuple):
                family.add_metric(list(labels.values()), _cumulative(value), value[-1])
            else:
                family.add_metric(list(labels.values()), value)
        named: dict[str, Any] = {}
        for (name, _), family in families.items():  # each name once, whatever labels its samples have
            first = named.setdefault(name, family)
            if first is not family:
                first.samples += family.samples
        return list(named.values())

    def _labels(self, key: _Key) -> dict[str, str]:
        name, *places, worker = key
        said = {"app": self._app, **dict(zip(KINDS[name].labels, places, strict=False))}
        return said | {"worker": worker} if worker else said

    def describe(self) -> list[Any]:
        """Returns nothing, so that registering does not collect samples of an app that has not started."""
        return []

    def _now(self) -> dict[_Key, Value]:
        with self._lock:
            self._scrapes += 1
            totals = dict(self._past)
            _add(totals, self._lasting())
            if self._running is not None:
                _add(totals, self._running())
            return totals

    def _registry(self, client: Any) -> Any:
        registry = client.CollectorRegistry()
        registry.register(self)
        return registry


def _client() -> Any:
    try:
        import prometheus_client
        import prometheus_client.core
        import prometheus_client.exposition
    except ImportError as error:
        raise MissingExtra("--metrics-port", "metrics") from error
    return prometheus_client


def _add(totals: dict[_Key, Value], samples: Iterable[Sample]) -> None:
    for sample in samples:
        key = (sample.name, sample.operator, sample.topic, sample.partition, sample.worker)
        before = totals.get(key)
        totals[key] = sample.value if before is None else plus(before, sample.value)


def plus(one: Value, other: Value) -> Value:
    """Returns the sum of two numbers, or of two results of `Durations.read`."""
    if isinstance(one, tuple) and isinstance(other, tuple):
        return tuple(a + b for a, b in zip(one, other, strict=True))
    if isinstance(one, tuple) or isinstance(other, tuple):
        raise TypeError("a number and durations under one name")
    return one + other


def minus(one: Value, other: Value) -> Value:
    """Returns the difference of two numbers, or of two results of `Durations.read`."""
    return plus(one, tuple(-each for each in other) if isinstance(other, tuple) else -other)


def _cumulative(figures: tuple[float, ...]) -> list[tuple[str, float]]:
    """Returns the result of `Durations.read` as Prometheus' buckets: pairs of an upper bound and the count of
    durations up to it.
    """
    buckets, count = [], 0.0
    for bound, some in zip(Durations.BOUNDS, figures[:-1], strict=True):
        count += some
        buckets.append(("+Inf" if bound == float("inf") else str(bound), count))
    return buckets
