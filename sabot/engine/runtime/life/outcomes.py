"""The outcomes of a start from a checkpoint, before the start: which stored state continues, and which would be lost."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from sabot.api.agent import AgentSpec
from sabot.api.nodes.read import StreamEnd
from sabot.connectors.base import Sink
from sabot.connectors.places import Place
from sabot.engine.checkpoint import Manifest, StoredTask
from sabot.engine.delivery import undelivered
from sabot.engine.operators.agents.timers import state_name
from sabot.engine.operators.base import without_marks
from sabot.engine.plan import Edge, Plan, Verdict, described, kept_tables, planned
from sabot.engine.runtime.life.restore import Asked, Decided, decide, readers_in, sinks_in, sinks_of
from sabot.engine.runtime.tasks.manifest_facts import left_columns
from sabot.engine.runtime.tasks.source_codec import changed_format
from sabot.errors import SabotError

_STAYS = "rows that are written from now on have NULL there, the others keep their values"


@dataclass(frozen=True)
class StateOutcome:
    """The outcome, after a start, for the stored state of one operator or agent, or for output that is not delivered yet.

    `outcome`: one of keep, migrate, refill, new, drop, refuse; for an aggregate one of keep, add, drop, refuse. `lost`:
    True if the start is refused because of it. `ways`: the options with which the user gives the state up. `refills`: the
    steps whose refill keeps the state, if that is possible.
    """

    id: str
    outcome: str
    before: str
    now: str
    why: str
    lost: bool = False
    ways: list[str] = field(default_factory=list)
    refills: list[str] = field(default_factory=list)


def outcomes_of(
    made: Plan,
    manifest: Manifest,
    asked: Asked,
    *,
    ends: Sequence[StreamEnd],
    agents: Mapping[str, AgentSpec | None],
    open_topic: Callable[[str], Sink],
    start_at: Place = "earliest",
    is_savepoint: bool = False,
) -> list[StateOutcome]:
    """Returns the outcomes of a start from a checkpoint for all stored state: of operators, sources, agents, and output
    that is not delivered yet. Raises UserError for a program that cannot start from it at all.

    `made`: the plan of the program. `ends`: the ends of the streams of the plan. `agents`: the agents by id.
    `open_topic`: opens the sink of a topic. `asked`, `start_at`, `is_savepoint`: as for `restore.decide`.
    """
    specs = [spec for spec in agents.values() if spec is not None]
    decided = decide(made, manifest, asked, start_at=start_at, is_savepoint=is_savepoint)
    outcomes = [one for each in decided.verdicts for one in _stream_outcomes(each)]
    return [
        *outcomes,
        *_format_outcomes(specs, made, manifest),
        *_agent_outcomes(agents, manifest),
        *_output_outcomes(made, manifest, ends, open_topic),
        *_receiver_outcomes(made, manifest, decided),
        *_reemit_outcomes(made, decided),
        *_table_outcomes(decided),
    ]


def _table_outcomes(decided: Decided) -> Iterator[StateOutcome]:
    """Yields an outcome for each table that is not complete after the start."""
    for stage, way in decided.ways.items():
        name = f"table {decided.tables[stage].sink}"
        yield StateOutcome(name, "migrate", name, name, described(decided.tables[stage], way))


def _reemit_outcomes(made: Plan, decided: Decided) -> Iterator[StateOutcome]:
    """Yields an outcome for each sink into which tables are written again."""
    stages = {stage.id: stage.sink[0] for stage in made.stages if stage.sink is not None}
    for id, ways in decided.reemits.items():
        sink = stages[id]
        name = f"sink {sink if isinstance(sink, str) else sink.name}"
        makers = " and ".join(sorted({way.maker.id for way in ways}))
        yield StateOutcome(name, "migrate", name, name, f"all rows of {makers} are written again")


def _receiver_outcomes(made: Plan, manifest: Manifest, decided: Decided) -> Iterator[StateOutcome]:
    """Yields an outcome for each sink whose receiver lacks columns of the program: a start adds them, or is refused; and for
    each sink whose receiver keeps columns that the program does not write any more.
    """
    coming: list[tuple[Sink, pa.Schema]] = []

    def look(edge: Edge, schema: pa.Schema) -> None:
        if edge.target.sink is not None and isinstance(sink := edge.target.sink[0], Sink):
            coming.append((sink, without_marks(schema)))

    made.schemas(along=look)
    partly = {decided.tables[stage].sink for stage, way in decided.ways.items() if not way.startswith("--reemit ")}
    again = set(kept_tables(made, planned(made))) - partly if coming else set()
    written = {stage.sink[0] for stage in made.stages if stage.id in decided.reemits and stage.sink is not None}
    for sink, schema in coming:
        name = f"sink {sink.name}"
        try:
            missing, misfit = sink.missing_columns(schema), sink.misfit(schema)
            _, left = left_columns(manifest, sink, sinks_in(made), schema.names)
            gone = sink.missing_columns(pa.schema([(name, pa.string()) for name in left])) if left else ()
        except SabotError as error:
            yield StateOutcome(name, "keep", "", name, f"not compared: {error.message}")
            continue
        if misfit:
            yield StateOutcome(name, "refuse", name, name, misfit, True)
            continue
        stay = [] if gone is None else [name for name in left if name not in gone]
        whys = [f"column {', '.join(stay)} stays: {_STAYS}"] if stay else []
        if missing:
            said = ", ".join(f"{each} ({schema.field(each).type})" for each in missing)
            why = f"it has no column {said}, which evolve=True adds"
            if sink.evolve and sink in written:
                why = f"column {said} is added"
            elif sink.evolve:
                way = f"; --reemit {sink.name} writes its table again" if sink.name in again else ""
                why = f"column {said} is added, and is null so far{way}"
            whys = [why, *whys]
        if whys:
            refused = bool(missing) and not sink.evolve
            yield StateOutcome(name, "refuse" if refused else "migrate", name, name, "; ".join(whys), refused)


def _format_outcomes(specs: Sequence[AgentSpec], made: Plan, manifest: Manifest) -> Iterator[StateOutcome]:
    """Yields an outcome for each topic whose records are now read in another format than at the checkpoint."""
    sources = {name: facts for task in _agent_tasks(manifest) for name, facts in task.meta["sources"].items()}
    reads = [(stage.id, stage.reading.node) for stage in made.stages if stage.reading is not None]
    read = [(id, node.name, node.format, readers_in(manifest, node.name)) for id, node in reads]
    for spec in specs:
        for topic in spec.topics:
            name = f"{spec.agent_id}/{topic}"
            read.append((name, topic, spec.format, [sources[name]] if name in sources else []))
    for id, topic, format, readers in read:
        if before := next(filter(None, (changed_format(format, facts) for facts in readers)), ""):
            why = "the records after its positions are read in the new format"
            yield StateOutcome(id, "migrate", f"{topic} as {before}", f"{topic} as {format.description}", why)


def _stream_outcomes(verdict: Verdict) -> Iterator[StateOutcome]:
    """Yields the outcome for an operator and, if one of its aggregates changes, the outcomes for all its aggregates."""
    ways = verdict.ways if verdict.loses else []
    texts = verdict.before or "", verdict.now or ""
    yield StateOutcome(verdict.id, verdict.outcome, *texts, verdict.reason, verdict.loses, ways, list(verdict.refills))
    if any(part.outcome != "keep" or part.why for part in verdict.parts):
        for part in verdict.parts:
            yield StateOutcome(f"{verdict.id}.{part.name}", part.outcome, part.before or "", part.now or "", part.why)


def _output_outcomes(
    made: Plan, manifest: Manifest, ends: Sequence[StreamEnd], open_topic: Callable[[str], Sink]
) -> list[StateOutcome]:
    """Returns an outcome for each output that waits for a sink which the program no longer has: a start is refused."""
    return [
        StateOutcome(
            track_id,
            "refuse",
            f"sink {track.sink}",
            "",
            f"{sum(part.rows for part in track.pending)} rows are not delivered into it, {why}",
            True,
        )
        for track_id, track, why in undelivered(manifest, sinks_of(made, ends, open_topic))
    ]


def _agent_tasks(manifest: Manifest) -> list[StoredTask]:
    return [task for task in manifest.tasks.values() if "agents" in task.meta]


def _agent_outcomes(agents: Mapping[str, AgentSpec | None], manifest: Manifest) -> list[StateOutcome]:
    """Returns the outcomes for agents, their positions and their timers.

    Agents are matched by their id, and positions by agent and topic. The keyed state of an agent that the program no longer has stays in
    the checkpoints.
    """
    stored = _agent_tasks(manifest)
    kept = {agent: facts for task in stored for agent, facts in task.meta["agents"].items()}
    positions = {name for task in stored for name in task.meta["sources"]}
    outcomes = []
    timed = {spec.agent_id for spec in agents.values() if spec is not None and spec.on_timer is not None}
    for agent in agents:
        known = agent in kept
        outcomes.append(
            StateOutcome(
                agent,
                "keep" if known else "new",
                "",
                f"agent {agent}",
                "" if known else "it begins at its start=",
                False,
            )
        )
    for agent, facts in kept.items():
        if any(state_name(agent) in task.states for task in stored) and agent not in timed:
            why = "no agent of this name has on_timer= now; the timers that it had set are dropped"
            outcomes.append(StateOutcome(f"{agent}:timers", "drop", f"timers of agent {agent}", "", why, True))
        if agent not in agents:
            sources = sorted(name.removeprefix(f"{agent}/") for name in positions if name.startswith(f"{agent}/"))
            why = f"this program has no such agent; its position in {', '.join(sources)} is dropped"
            if facts["unfinished"]:
                why += ", and so are the records that it had not finished"
            outcomes.append(StateOutcome(agent, "drop", f"agent {agent}", "", why, True))
    return outcomes
