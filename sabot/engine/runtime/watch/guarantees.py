"""The edges of an app to the world, each with its guarantee across a crash, for the plan, the log and the console."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, NamedTuple

from sabot.api.nodes.read import StreamEnd
from sabot.api.settings import Settings
from sabot.connectors.base import Delivery, Sink, Source
from sabot.connectors.checks import agreed_delivery
from sabot.engine.delivery.guarantees import sink_guarantee, source_guarantee
from sabot.engine.plan import Plan, agreed_deliveries, dead_letter_topics, fed_by_streams, place_of_sink
from sabot.kafka import open_sink, open_source


class EdgeGuarantee(NamedTuple):
    """A source ("in") or sink ("out") of an app. `name`: its kind and name. `guarantee`: what a crash does, for people."""

    way: Literal["in", "out"]
    name: str
    guarantee: str


def guarantees_of(plan: Plan, ends: Iterable[StreamEnd], settings: Settings) -> list[EdgeGuarantee]:
    """Returns the guarantees of all sources and sinks of a program, the sources first. Opens none of them. Raises UserError for a sink
    that cannot deliver as wanted.
    """
    kept = settings.checkpoint_place is not None
    found: dict[EdgeGuarantee, None] = {}  # in order, each once
    for given in _sources(plan):
        source = given if isinstance(given, Source) else open_source(given, settings.broker, "", settings.kafka)
        found[EdgeGuarantee("in", _shown(given), source_guarantee(source, kept=kept))] = None
    for target, delivery in _sinks(plan, list(ends)):
        sink = target if isinstance(target, Sink) else open_sink(target, settings.broker, settings.kafka)
        found[EdgeGuarantee("out", _shown(target), sink_guarantee(sink, delivery, kept=kept))] = None
    return list(found)


def guarantee_lines(edges: Sequence[EdgeGuarantee]) -> list[str]:
    """Returns one line for each edge, in columns."""
    width = max((len(each.name) for each in edges), default=0)
    return [f"{each.way:3}  {each.name:{width}}  {each.guarantee}" for each in edges]


def _shown(given: "str | Source | Sink") -> str:
    return f"topic {given}" if isinstance(given, str) else f"{type(given).__name__} {given.name}"


def _sources(plan: Plan) -> Iterator[str | Source]:
    for stage in plan.stages:
        if stage.reading is not None:
            yield stage.reading.node.source
        if stage.agent is not None:
            yield from stage.agent.inputs


def _sinks(plan: Plan, ends: Sequence[StreamEnd]) -> Iterator[tuple[str | Sink, Delivery]]:
    """Yields each sink with the `delivery=` on which its writers agree."""
    specs = [stage.agent for stage in plan.stages if stage.agent is not None]
    fed = fed_by_streams(ends)
    wanted = agreed_deliveries(specs, fed)
    for stage in plan.stages:
        if stage.sink is not None:
            sink = stage.sink[0]
            # agents write topics themselves
            of_agents = wanted.get(place_of_sink(sink)) if isinstance(sink, Sink) else None
            yield sink, agreed_delivery(sink, stage.delivery, of_agents)
    for spec in specs:
        own = spec.dead_letter
        letters = [own] if isinstance(own, Sink) else dead_letter_topics(spec, specs, fed).values()
        for sink in (*spec.sinks.values(), *letters):
            yield sink, wanted[place_of_sink(sink)]
