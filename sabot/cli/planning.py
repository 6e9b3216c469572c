"""`sabot plan`: shows what a program will do, and what would become of the state in a checkpoint."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Annotated

import typer

from sabot.api.agent import AgentSpec
from sabot.app import App
from sabot.checkpoint import Manifest, StoredTask
from sabot.cli.app_checkpoints import find_checkpoints
from sabot.cli.loading import WrongUse, load_app
from sabot.cli.options import Target
from sabot.cli.printing import columns, json_line, moment
from sabot.cli.running import guarded
from sabot.connectors.base import Source
from sabot.connectors.defaults import columns_of
from sabot.delivery import undelivered
from sabot.errors import UserError
from sabot.kafka import open_sink
from sabot.logs import set_up_logging
from sabot.operators.agents.timers import state_name
from sabot.plan import Plan, Verdict, once_more
from sabot.runtime.decoding import changed_format
from sabot.runtime.facts import check_facts
from sabot.runtime.restore import check_app, plan_of, readers_in, sinks_of, verdicts_of


@dataclass(frozen=True)
class _Fate:
    """What would become of the state of one operator or agent, or of an agent's unfinished rows."""

    id: str
    outcome: str  # one of keep, migrate, new, drop, refuse; of an aggregate keep, add, drop, refuse
    before: str
    now: str
    why: str
    lost: bool = False
    ways: list[str] = field(default_factory=list)  # the options by which it is given up


def plan(
    target: Target,
    against: Annotated[
        str | None,
        typer.Option(metavar="APP", help="A checkpoint or state directory, a savepoint; DIR@ID for an older one."),
    ] = None,
    drop: Annotated[list[str] | None, typer.Option(metavar="NAME", help="As in `sabot run`.")] = None,
    parallelism: Annotated[int | None, typer.Option(min=1, metavar="N", help="As in `sabot run`.")] = None,
    json: Annotated[bool, typer.Option("--json", help="JSON, an object on a line.")] = False,
) -> None:
    """Print the plan of an app. With --against: before it runs, whose state would go on.

    keep: as it is. migrate: with the change that is named. new: it begins empty. drop: the program has it no more. refuse: it
    keeps something else now. Below a step that changes, each of its aggregates: keep, add (it begins empty), drop, refuse. Exit code 1 when
    a start would be refused; --drop says what is given up.
    """

    def work() -> None:
        app = load_app(target)
        if not app.ends() and not app.agents():
            raise UserError(
                f"app {app.id} has no agents and no streams that go somewhere",
                hint="let a stream go: app.stream(...).to(...)",
            )
        try:
            if parallelism is not None:
                app.configure(parallelism=parallelism)
        except UserError as error:
            raise WrongUse(error.message, hint=error.hint) from error
        if against is None:
            _print_plan(_plan(app, None), json)
            return
        saved = find_checkpoints(against)
        manifest = saved.manifest()
        check_app(manifest, app.id)
        check_facts(manifest)
        spent = frozenset(manifest.describe.get("dropped", ()))  # a start does not drop it again
        fates = _fates(app, manifest, frozenset(drop or ()) - spent)
        if json:
            for fate in fates:
                json_line(asdict(fate))
        else:
            typer.echo(f"checkpoint {manifest.checkpoint_id}, {moment(manifest.created_ms)}, in {saved.place}")
            rows = [[each.id, each.outcome, each.now or each.before, each.why] for each in fates]
            columns(["operator", "state", "what it is", "why"], rows)
        lost = [each for each in fates if each.lost]
        if lost:
            ways = " ".join(way for each in lost for way in each.ways)
            again = once_more([way for each in lost for way in each.ways], spent)
            raise UserError(
                f"this program would not go on with all of it: {'; '.join(f'{each.id}: {each.why}' for each in lost)}",
                hint=f"what is given up is named: {ways}{again}" if ways else "run the program that wrote it",
            )

    set_up_logging("warning")
    raise typer.Exit(guarded(work, debug=False))


def _print_plan(made: Plan, json: bool) -> None:
    if json:
        for stage in made.stages:
            if stage.agent is not None:
                json_line({"agent": stage.id})
                continue
            steps = [{"operator": step.id, "text": step.text} for step in stage.steps()]
            json_line({"stage": stage.id, "parallelism": stage.parallelism, "steps": steps})
        return
    typer.echo(made.text())


def _plan(app: App, manifest: Manifest | None) -> Plan:
    """The plan that a start would make, except that it does not wait for rows to infer the columns of a topic."""
    made = plan_of(
        app.agent_runtime.writes,
        manifest,
        agents=_specs(app),
        parallelism=app.settings.parallelism,
        infer=lambda node, readers: (
            columns_of(node.source) if isinstance(node.source, Source) else node.format.columns(node.name)
        ),
    )
    made.check()
    return made


def _fates(app: App, manifest: Manifest, drop: Iterable[str]) -> list[_Fate]:
    made = _plan(app, manifest)
    fates = [fate for each in verdicts_of(made, manifest, drop) for fate in _stream_fates(each)]
    return [
        *fates,
        *_format_fates(app, made, manifest),
        *_agent_fates(app, manifest),
        *_output_fates(app, made, manifest),
    ]


def _format_fates(app: App, made: Plan, manifest: Manifest) -> Iterator[_Fate]:
    """The fates of positions in topics whose records are read in another format now."""
    sources = {name: facts for task in _agent_tasks(manifest) for name, facts in task.meta["sources"].items()}
    reads = [(stage.id, stage.reading.node) for stage in made.stages if stage.reading is not None]
    read = [(id, node.name, node.format, readers_in(manifest, node.name)) for id, node in reads]
    for spec in _specs(app):
        for topic in spec.topics:
            name = f"{spec.agent_id}/{topic}"
            read.append((name, topic, spec.format, [sources[name]] if name in sources else []))
    for id, topic, format, readers in read:
        if before := next(filter(None, (changed_format(format, facts) for facts in readers)), ""):
            why = "the records behind its positions are read in the new format"
            yield _Fate(id, "migrate", f"{topic} as {before}", f"{topic} as {format.description}", why)


def _stream_fates(verdict: Verdict) -> Iterator[_Fate]:
    """The fate of an operator, and those of its aggregates where something becomes of them."""
    ways = verdict.ways if verdict.loses else []
    yield _Fate(verdict.id, verdict.outcome, verdict.before or "", verdict.now or "", verdict.why, verdict.loses, ways)
    if any(part.outcome != "keep" or part.why for part in verdict.parts):
        for part in verdict.parts:
            yield _Fate(f"{verdict.id}.{part.name}", part.outcome, part.before or "", part.now or "", part.why)


def _output_fates(app: App, made: Plan, manifest: Manifest) -> list[_Fate]:
    """The fates of output that waits for a sink which the program no longer has: a start refuses to lose it."""
    sinks = sinks_of(made, app.agent_runtime.writes, lambda topic: open_sink(topic, app.broker, app.settings.kafka))
    return [
        _Fate(
            track_id,
            "refuse",
            f"sink {track.sink}",
            "",
            f"{sum(part.rows for part in track.pending)} rows are not delivered into it, {why}",
            True,
        )
        for track_id, track, why in undelivered(manifest, sinks)
    ]


def _specs(app: App) -> list[AgentSpec]:
    return [agent.spec for agent in app.agent_runtime.agents.values() if agent.spec is not None]


def _agent_tasks(manifest: Manifest) -> list[StoredTask]:
    return [task for task in manifest.tasks.values() if "agents" in task.meta]


def _agent_fates(app: App, manifest: Manifest) -> list[_Fate]:
    """The fates of agents, which are matched by their id, and of their positions, matched by agent and topic. The state of an agent that
    the program no longer has stays where it is.
    """
    stored = _agent_tasks(manifest)
    kept = {agent: facts for task in stored for agent, facts in task.meta["agents"].items()}
    positions = {name for task in stored for name in task.meta["sources"]}
    fates = []
    timed = {spec.agent_id for spec in _specs(app) if spec.on_timer is not None}
    for agent in app.agent_runtime.agents:
        known = agent in kept
        fates.append(
            _Fate(
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
            why = "no agent of this name has on_timer=; the timers that it had set are dropped"
            fates.append(_Fate(f"{agent}:timers", "drop", f"timers of agent {agent}", "", why, True))
        if agent not in app.agent_runtime.agents:
            sources = sorted(name.removeprefix(f"{agent}/") for name in positions if name.startswith(f"{agent}/"))
            why = f"this program has no such agent; its position in {', '.join(sources)} is dropped"
            if facts["unfinished"]:
                why += ", and so are the records that it had not finished"
            fates.append(_Fate(agent, "drop", f"agent {agent}", "", why, True))
    return fates
