"""`sabot plan`: shows the plan of a program, and whether the program could continue from a checkpoint."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

import typer

from sabot.api.agent import AgentSpec
from sabot.app import App
from sabot.checkpoint import Manifest, StoredTask
from sabot.cli.app_checkpoints import find_checkpoints
from sabot.cli.loading import WrongUse, load_app, use_functions
from sabot.cli.options import Functions, Target
from sabot.cli.printing import columns, json_line, moment
from sabot.cli.running import guarded
from sabot.connectors.base import Source
from sabot.connectors.defaults import columns_of
from sabot.delivery import undelivered
from sabot.errors import UserError
from sabot.kafka import open_sink
from sabot.logs import set_up_logging
from sabot.operators.agents.timers import state_name
from sabot.plan import Plan, Verdict, once_more, svg
from sabot.runtime.decoding import changed_format
from sabot.runtime.facts import check_facts
from sabot.runtime.restore import check_app, plan_of, readers_in, sinks_of, verdicts_of


@dataclass(frozen=True)
class _Outcome:
    """The outcome, after a start, for the stored state of one operator or agent, or for output that is not delivered yet."""

    id: str
    outcome: str  # one of keep, migrate, new, drop, refuse; for an aggregate one of keep, add, drop, refuse
    before: str
    now: str
    why: str
    lost: bool = False
    ways: list[str] = field(default_factory=list)  # the options with which the user gives the state up


def plan(
    target: Target,
    functions: Functions = None,
    against: Annotated[
        str | None,
        typer.Option(metavar="APP", help="The checkpoint or state directory, or a savepoint; DIR@ID for an older one."),
    ] = None,
    drop: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="The state to give up, as in `sabot run`.")
    ] = None,
    parallelism: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="The number of tasks, as in `sabot run`.")
    ] = None,
    drawing: Annotated[
        str | None,
        typer.Option("--svg", metavar="FILE", help="Write the plan as a drawing into this file; - prints the drawing."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON, one object per line.")] = False,
) -> None:
    """Print the plan of an app. With --against: check which stored state a start of it would continue.

    The outcome for each operator is one of: keep, the state continues as it is; migrate, it continues with the change that is named; new,
    it begins empty; drop, the program does not have the operator any more; refuse, the program keeps other state under this id. The
    aggregates of a step that changes are listed below it, each with keep, add (it begins empty), drop or refuse. Exit code 1 if a start
    would be refused; --drop names the state to give up.
    """

    def work() -> None:
        if drawing is not None and (against is not None or json):
            raise WrongUse("--svg draws the plan alone", hint="leave out --against and --json, or --svg")
        use_functions(functions)
        app = load_app(target)
        if not app.ends() and not app.agents():
            raise UserError(
                f"app {app.id} has no agents, and no stream with a sink",
                hint="give a stream a sink: app.stream(...).to(...)",
            )
        try:
            if parallelism is not None:
                app.configure(parallelism=parallelism)
        except UserError as error:
            raise WrongUse(error.message, hint=error.hint) from error
        if drawing is not None:
            _write_drawing(svg(_plan(app, None), title=app.id), drawing)
            return
        if against is None:
            _print_plan(_plan(app, None), json)
            return
        saved = find_checkpoints(against)
        manifest = saved.manifest()
        check_app(manifest, app.id)
        check_facts(manifest)
        spent = frozenset(manifest.describe.get("dropped", ()))  # a start does not drop this state again
        outcomes = _outcomes(app, manifest, frozenset(drop or ()) - spent)
        if json:
            for one in outcomes:
                json_line(asdict(one))
        else:
            typer.echo(f"checkpoint {manifest.checkpoint_id}, {moment(manifest.created_ms)}, in {saved.place}")
            rows = [[each.id, each.outcome, each.now or each.before, each.why] for each in outcomes]
            columns(["operator", "state", "description", "why"], rows)
        lost = [each for each in outcomes if each.lost]
        if lost:
            ways = " ".join(way for each in lost for way in each.ways)
            again = once_more([way for each in lost for way in each.ways], spent)
            raise UserError(
                "this program would not continue all state of the checkpoint: "
                f"{'; '.join(f'{each.id}: {each.why}' for each in lost)}",
                hint=f"to give the state up, start with {ways}{again}" if ways else "run the program that wrote it",
            )

    set_up_logging("warning")
    raise typer.Exit(guarded(work, debug=False))


def _write_drawing(text: str, place: str) -> None:
    if place == "-":
        typer.echo(text, nl=False)
        return
    try:
        Path(place).write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"the drawing cannot be written into {place}: {error.strerror or error}", hint="give another --svg FILE"
        ) from error


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
    """Returns the plan that a start would make, except that it does not wait for rows to infer the columns of a topic."""
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


def _outcomes(app: App, manifest: Manifest, drop: Iterable[str]) -> list[_Outcome]:
    made = _plan(app, manifest)
    outcomes = [one for each in verdicts_of(made, manifest, drop) for one in _stream_outcomes(each)]
    return [
        *outcomes,
        *_format_outcomes(app, made, manifest),
        *_agent_outcomes(app, manifest),
        *_output_outcomes(app, made, manifest),
    ]


def _format_outcomes(app: App, made: Plan, manifest: Manifest) -> Iterator[_Outcome]:
    """Yields an outcome for each topic whose records are now read in another format than at the checkpoint."""
    sources = {name: facts for task in _agent_tasks(manifest) for name, facts in task.meta["sources"].items()}
    reads = [(stage.id, stage.reading.node) for stage in made.stages if stage.reading is not None]
    read = [(id, node.name, node.format, readers_in(manifest, node.name)) for id, node in reads]
    for spec in _specs(app):
        for topic in spec.topics:
            name = f"{spec.agent_id}/{topic}"
            read.append((name, topic, spec.format, [sources[name]] if name in sources else []))
    for id, topic, format, readers in read:
        if before := next(filter(None, (changed_format(format, facts) for facts in readers)), ""):
            why = "the records after its positions are read in the new format"
            yield _Outcome(id, "migrate", f"{topic} as {before}", f"{topic} as {format.description}", why)


def _stream_outcomes(verdict: Verdict) -> Iterator[_Outcome]:
    """Yields the outcome for an operator and, if one of its aggregates changes, the outcomes for all its aggregates."""
    ways = verdict.ways if verdict.loses else []
    yield _Outcome(
        verdict.id, verdict.outcome, verdict.before or "", verdict.now or "", verdict.why, verdict.loses, ways
    )
    if any(part.outcome != "keep" or part.why for part in verdict.parts):
        for part in verdict.parts:
            yield _Outcome(f"{verdict.id}.{part.name}", part.outcome, part.before or "", part.now or "", part.why)


def _output_outcomes(app: App, made: Plan, manifest: Manifest) -> list[_Outcome]:
    """Returns an outcome for each output that waits for a sink which the program no longer has: a start is refused."""
    sinks = sinks_of(made, app.agent_runtime.writes, lambda topic: open_sink(topic, app.broker, app.settings.kafka))
    return [
        _Outcome(
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


def _agent_outcomes(app: App, manifest: Manifest) -> list[_Outcome]:
    """Returns the outcomes for agents, their positions and their timers.

    Agents are matched by their id, and positions by agent and topic. The keyed state of an agent that the program no longer has stays in
    the checkpoints.
    """
    stored = _agent_tasks(manifest)
    kept = {agent: facts for task in stored for agent, facts in task.meta["agents"].items()}
    positions = {name for task in stored for name in task.meta["sources"]}
    outcomes = []
    timed = {spec.agent_id for spec in _specs(app) if spec.on_timer is not None}
    for agent in app.agent_runtime.agents:
        known = agent in kept
        outcomes.append(
            _Outcome(
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
            outcomes.append(_Outcome(f"{agent}:timers", "drop", f"timers of agent {agent}", "", why, True))
        if agent not in app.agent_runtime.agents:
            sources = sorted(name.removeprefix(f"{agent}/") for name in positions if name.startswith(f"{agent}/"))
            why = f"this program has no such agent; its position in {', '.join(sources)} is dropped"
            if facts["unfinished"]:
                why += ", and so are the records that it had not finished"
            outcomes.append(_Outcome(agent, "drop", f"agent {agent}", "", why, True))
    return outcomes
