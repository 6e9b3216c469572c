"""Figures for Prometheus: what `App.statistics()` says, as text on a port. The only importer of prometheus_client.

The names and labels are those that dashboards are built on: a name is added freely, and never changed. Nothing is counted
here; a scrape reads the counts that the parts keep anyway.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sabot.errors import MissingExtra, UserError

__all__ = ["MetricsServer", "Sample", "samples", "serve"]

_log = logging.getLogger(__name__)

_HELP = {
    "sabot_records_in_total": "Records read.",
    "sabot_dead_letters_total": "Records set apart because they could not be processed.",
    "sabot_agent_errors_total": "Calls of an agent that raised.",
    "sabot_channel_rows": "Rows that wait in a channel.",
    "sabot_checkpoint_seconds": "What the last complete checkpoint took.",
    "sabot_checkpoint_bytes": "Size of the last complete checkpoint.",
    "sabot_checkpoint_failed_total": "Checkpoints that did not complete.",
    "sabot_state_bytes": "Size of the keyed state, estimated.",
    "sabot_state_keys": "Keys in the keyed state, estimated.",
}


@dataclass(frozen=True, slots=True)
class Sample:
    """One figure: a name of `_HELP` (`_total`: a count that only grows) and its labels."""

    name: str
    value: float
    labels: tuple[tuple[str, str], ...]


def samples(statistics: Mapping[str, Any]) -> Iterator[Sample]:
    """`App.statistics()` -> figures under Prometheus names; labels `app operator topic`."""
    app = ("app", statistics["app"])
    for channel, figures in statistics["channels"].items():
        operator, _, topic = channel.partition("/")
        labels = (app, ("operator", operator), ("topic", topic))
        yield Sample("sabot_records_in_total", figures["rows_total"], labels)
        yield Sample("sabot_channel_rows", figures["rows"], labels)
    for agent, figures in statistics["agents"].items():
        labels = (app, ("operator", agent))
        yield Sample("sabot_agent_errors_total", figures["errors"], labels)
        yield Sample("sabot_dead_letters_total", figures["dead_letters"], labels)
    checkpoints = statistics["checkpoints"]
    yield Sample("sabot_checkpoint_seconds", checkpoints["last_seconds"], (app,))
    yield Sample("sabot_checkpoint_bytes", checkpoints["last_bytes"], (app,))
    yield Sample("sabot_checkpoint_failed_total", checkpoints["failed"], (app,))
    for figure in ("bytes", "keys"):
        if figure in statistics["state"]:  # an app without state has none
            yield Sample(f"sabot_state_{figure}", statistics["state"][figure], (app,))


class MetricsServer:
    """Answers scrapes in a thread of its own until `close()`. `port`: the one that it really has."""

    def __init__(self, server: Any, thread: Any) -> None:
        self._server = server
        self._thread = thread
        self.port: int = server.server_port

    def close(self) -> None:
        """The port is free when this returns. Idempotent."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def serve(read: Callable[[], Mapping[str, Any]], port: int, address: str = "0.0.0.0") -> MetricsServer:
    """Serves `samples(read())` at http://<host>:<port>/metrics; port 0: any free one.

    Raises MissingExtra without prometheus_client, UserError when the port is taken.
    """
    try:
        from prometheus_client import CollectorRegistry, start_http_server
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
    except ImportError as error:
        raise MissingExtra("serving metrics", "metrics") from error

    class _Collector:
        def collect(self) -> Iterator[Any]:
            families: dict[tuple[str, tuple[str, ...]], Any] = {}
            for sample in samples(read()):
                names = tuple(name for name, _ in sample.labels)
                family = families.get((sample.name, names))
                if family is None:
                    kind = CounterMetricFamily if sample.name.endswith("_total") else GaugeMetricFamily
                    family = families[sample.name, names] = kind(sample.name, _HELP[sample.name], labels=names)
                family.add_metric([value for _, value in sample.labels], sample.value)
            yield from families.values()

        def describe(self) -> list[Any]:
            return []  # so that registering asks nothing of an app that has not started

    registry = CollectorRegistry()
    registry.register(_Collector())
    try:
        server, thread = start_http_server(port, address, registry)
    except OSError as error:
        raise UserError(f"metrics port {port}: {error.strerror}", hint="give another --metrics-port") from error
    metrics = MetricsServer(server, thread)
    _log.info("metrics on port %d", metrics.port)
    return metrics
