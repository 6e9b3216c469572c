"""The order of an app's agents, by which agents and streams write into which; and checks that agents which write to
the same sink agree on its settings.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from sabot.api.agent import AgentSpec
from sabot.api.nodes.agents import AgentRead, Feed
from sabot.api.nodes.node import walk
from sabot.api.nodes.read import Read, StreamEnd, Write
from sabot.base.config import dead_letter_topic
from sabot.codecs.base import Format
from sabot.codecs.formats import JSON, agreed_format
from sabot.connectors.base import Delivery, OnNan, Sink
from sabot.connectors.checks import agreed_delivery
from sabot.errors import UserError


def fed_by_streams(ends: Iterable[StreamEnd]) -> frozenset[str]:
    """Returns the ids of the agents into which streams write."""
    return frozenset(end.agent.agent_id for end in ends if isinstance(end, Feed))


def arranged(specs: Sequence[AgentSpec], ends: Iterable[StreamEnd]) -> list[AgentSpec]:
    """Returns the agents in an order in which each agent comes after all agents into which it writes. If an agent or
    a stream writes into an agent, the agent no longer reads the topic of its own name; a topic that the user has
    named stays.

    Raises UserError if agents and streams write into each other in a ring, if a stream writes into an agent that does
    not exist, if two streams read one agent, and for agents that `_check_durable` refuses.
    """
    ends = list(ends)
    fed = fed_by_streams(ends)
    if gone := fed - {spec.agent_id for spec in specs}:
        raise UserError(
            f"a stream goes into agent {min(gone)}, which is not an agent of this app",
            hint="use an agent of the same App object",
        )
    read = [node.agent.agent_id for node in walk(ends) if isinstance(node, AgentRead)]
    if twice := sorted({agent_id for agent_id in read if read.count(agent_id) > 1}):
        raise UserError(f"two streams read agent {twice[0]}", hint="make one stream, and use it twice")
    by_streams = _through_streams(ends)
    _check_durable(specs, fed)
    targets = {id(spec.sink) for spec in specs}
    specs = [
        replace(spec, inputs=()) if spec.topic_by_name and (id(spec.func) in targets or spec.agent_id in fed) else spec
        for spec in specs
    ]
    ordered: list[AgentSpec] = []
    by_func = {id(spec.func): spec for spec in specs}
    by_id = {spec.agent_id: spec for spec in specs}

    def place(spec: AgentSpec, above: tuple[AgentSpec, ...]) -> None:
        if spec in above:
            ring = [each.agent_id for each in (*above[above.index(spec) :], spec)]
            names = " -> ".join(ring)
            what = f"agents write into each other in a ring: {names}"
            if by_streams.keys() & set(ring):
                what = f"agents and streams write into each other in a ring: {names}"
            raise UserError(what, hint="put a topic between two of them")
        if spec in ordered:
            return
        target = by_func.get(id(spec.sink))
        for each in [target] if target is not None else [by_id[name] for name in sorted(by_streams[spec.agent_id])]:
            place(each, (*above, spec))
        ordered.append(spec)

    for spec in specs:
        place(spec, ())
    return ordered


def _check_durable(specs: Sequence[AgentSpec], fed: frozenset[str]) -> None:
    """Raises UserError for a durable agent without `job_id=` whose rows come from a stream, or from an agent that is
    not durable: after a crash, these may make other rows, so a row would not identify its job. Raises UserError, too,
    for a durable agent that takes batches from a stream or another agent.
    """
    for spec in specs:
        if not spec.durable or spec.job_id is not None:
            continue
        writers = [each.agent_id for each in specs if each.sink is spec.func]
        if spec.batch and (writers or spec.agent_id in fed):
            by = f"agent {writers[0]}" if writers else "a stream"
            raise UserError(
                f"agent {spec.agent_id} is durable and takes batches, but its rows come from {by}, and have no offsets to identify them",
                hint="put a topic between the two, in which each row has an offset",
            )
        plain = [each.agent_id for each in specs if each.sink is spec.func and not each.durable]
        if plain or spec.agent_id in fed:
            by = f"agent {plain[0]}" if plain else "a stream"
            raise UserError(
                f"agent {spec.agent_id} is durable, but its rows come from {by}, which may make other rows after a crash",
                hint="job_id='field' names the field that identifies the request of a row"
                + ("; or make that agent durable too" if plain else ""),
            )


def _through_streams(ends: Iterable[StreamEnd]) -> defaultdict[str, set[str]]:
    """Returns, by the id of each agent that streams read, the ids of the agents into which these streams write."""
    found: defaultdict[str, set[str]] = defaultdict(set)
    for end in ends:
        if isinstance(end, Feed):
            for node in walk([end]):
                if isinstance(node, AgentRead):
                    found[node.agent.agent_id].add(end.agent.agent_id)
    return found


def ways_of_labels(specs: Sequence[AgentSpec], ends: Iterable[StreamEnd]) -> dict[tuple[str, str], str]:
    """Returns for each pair of durable agents, of which results of the first reach the second, what drops the labels on
    the way: "a stream", "agent x", "batches", or "" if they arrive. Only the records of durable agents have labels, in a header;
    streams, other agents, and agents that get batches write none.
    """
    readers: defaultdict[object, list[tuple[AgentSpec | None, list[object]]]] = defaultdict(list)
    to_agents = {id(spec.func): spec.agent_id for spec in specs}
    outputs: dict[str, list[object]] = {
        spec.agent_id: [*spec.sinks, ("from", spec.agent_id), ("to", to_agents.get(id(spec.sink), ""))]
        for spec in specs
    }
    for spec in specs:
        for source in (*spec.topics, ("to", spec.agent_id)):
            readers[source].append((spec, outputs[spec.agent_id]))
    for end in ends:
        sink = ("to", end.agent.agent_id) if isinstance(end, Feed) else getattr(end, "sink", "")
        target: list[object] = [sink.name if isinstance(sink, Sink) else sink]
        for node in walk([end]):
            if isinstance(node, Read):
                read = ("from", node.agent.agent_id) if isinstance(node, AgentRead) else node.name
                readers[read].append((None, target))
    found: dict[tuple[str, str], str] = {}
    for spec in specs:
        todo = [(place, "batches" if spec.batch else "") for place in outputs[spec.agent_id] if spec.durable]
        seen: set[object] = set()
        while todo:
            place, by = todo.pop(0)
            for reader, to in readers[place]:
                if reader is not None and reader.durable:
                    pair = (spec.agent_id, reader.agent_id)
                    found[pair] = found.get(pair, "") or by
                elif (place, id(to)) not in seen:
                    seen.add((place, id(to)))
                    dropped = by or ("a stream" if reader is None else f"agent {reader.agent_id}")
                    todo += [(each, dropped) for each in to]
    return found


def leading_to(
    end: StreamEnd, specs: Sequence[AgentSpec], ends: Iterable[StreamEnd]
) -> tuple[list[StreamEnd], list[AgentSpec]]:
    """Returns the stream ends and the agents of an app from which rows reach the end `end`. `end` itself is the last
    of these stream ends.
    """
    feeds = [each for each in ends if isinstance(each, Feed)]
    used: list[StreamEnd] = [end]
    wanted: set[str] = set()
    while True:
        found = {node.agent.agent_id for node in walk(used) if isinstance(node, AgentRead)} | wanted
        sinks = [spec.func for spec in specs if spec.agent_id in found]
        found |= {spec.agent_id for spec in specs if any(spec.sink is func for func in sinks)}
        if found == wanted:
            return used, [spec for spec in specs if spec.agent_id in wanted]
        wanted = found
        used = [*(feed for feed in feeds if feed.agent.agent_id in wanted), end]


def inputs_of(spec: AgentSpec, specs: Iterable[AgentSpec], fed: frozenset[str]) -> list[str]:
    """Returns the inputs of an agent: topics, Sources, the ids of agents that write into it, and its own id if
    streams write into it.
    """
    return [
        *spec.topics,
        *(each.agent_id for each in specs if each.sink is spec.func),
        *([spec.agent_id] if spec.agent_id in fed else []),
    ]


def dead_letter_topics(spec: AgentSpec, specs: Iterable[AgentSpec], fed: frozenset[str]) -> dict[str, str]:
    """Returns the topic of the dead letters for each input (`inputs_of`) of an agent whose dead letters go to topics.
    `fed`: the ids of the agents into which streams write.
    """
    assert isinstance(spec.dead_letter, str)
    return {name: dead_letter_topic(spec.dead_letter, name) for name in inputs_of(spec, specs, fed)}


def letter_sinks(specs: Sequence[AgentSpec], ends: Sequence[StreamEnd]) -> Iterator[str | Sink]:
    """Yields the topics and Sinks into which the streams and agents write dead letters, in the order of the program."""
    for node in walk(ends):
        letters = getattr(node, "dead_letter", None)
        if isinstance(node, Read) and isinstance(letters, str):
            yield dead_letter_topic(letters, node.name)
        elif letters is not None:
            yield letters
    fed = fed_by_streams(ends)
    for spec in specs:
        topics = dead_letter_topics(spec, specs, fed).values() if isinstance(spec.dead_letter, str) else ()
        yield from topics or [spec.dead_letter]


def only_letters(specs: Sequence[AgentSpec], ends: Sequence[StreamEnd]) -> set[str | int]:
    """Returns the places (`place_of_sink`) to which the program writes dead letters and nothing else, and which it
    does not read.
    """
    others = {place_of_sink(end.sink) for end in ends if isinstance(end, Write)}
    others.update(place_of_sink(sink) for spec in specs for sink in spec.sinks.values())
    read = {node.name for node in walk(ends) if isinstance(node, Read)}.union(*(spec.topics for spec in specs))
    letters = {place_of_sink(sink): sink for sink in letter_sinks(specs, ends)}
    return {
        place
        for place, sink in letters.items()
        if place not in others and (sink if isinstance(sink, str) else sink.name) not in read
    }


def agreed_deliveries(specs: Sequence[AgentSpec], fed: frozenset[str]) -> dict[str | int, Delivery]:
    """Returns the `delivery=` of each sink that agents write, by topic or by id of the Sink.

    If no agent sets it, the sink has the default of its first writer, which may be an agent that writes dead letters
    to it. Raises UserError if agents set different values. `fed`: the ids of the agents into which streams write.
    """
    agreed: dict[str | int, Delivery] = {}
    first: dict[str | int, Delivery] = {}
    for spec in specs:
        for sink in spec.sinks.values():
            place = place_of_sink(sink)
            agreed[place] = agreed_delivery(sink, agreed.get(place), spec.delivery)
            first.setdefault(place, spec.delivery)
        own_letters = isinstance(spec.dead_letter, Sink)
        letters = [spec.dead_letter] if own_letters else dead_letter_topics(spec, specs, fed).values()
        for letter in letters:
            first.setdefault(place_of_sink(letter), "at_least_once" if spec.delivery == "at_least_once" else None)
    return {place: agreed.get(place) or delivery for place, delivery in first.items()}


def agreed_nans(specs: Sequence[AgentSpec], *others: tuple[str | Sink, OnNan]) -> dict[str | int, OnNan]:
    """Returns the `nan=` of each sink that agents and `others` write, by topic or by id of the Sink. Raises UserError
    if they differ.
    """
    agreed = {place_of_sink(sink): nan for sink, nan in others}
    for spec in specs:
        for name, sink in spec.sinks.items():
            if agreed.setdefault(place_of_sink(sink), spec.nan) != spec.nan:
                raise UserError(
                    f"sink {name}: agent {spec.agent_id} and another writer have different nan=",
                    hint="give both the same",
                )
    return agreed


def agreed_formats(specs: Sequence[AgentSpec]) -> dict[str | int, Format | None]:
    """Returns the format in which agents write results, by topic. Raises UserError if the formats differ."""
    agreed: dict[str | int, Format | None] = {}
    for spec in specs:
        for name, sink in spec.sinks.items():
            if isinstance(sink, str):
                agreed[name] = agreed_format(name, agreed.get(name), spec.sink_format or JSON)
    return agreed


def place_of_sink(sink: str | Sink) -> str | int:
    """Returns the value that identifies a sink among the sinks of an app: the topic, or the `id()` of the Sink
    object.
    """
    return sink if isinstance(sink, str) else id(sink)
