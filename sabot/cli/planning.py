"""`sabot plan`: shows the plan of a program, and whether the program could continue from a checkpoint."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from sabot.app import App
from sabot.base.logs import set_up_logging
from sabot.cli.app_checkpoints import find_checkpoints
from sabot.cli.loading import WrongUse, load_app, use_functions
from sabot.cli.options import Functions, Target
from sabot.cli.printing import columns, json_line, moment
from sabot.cli.running import guarded
from sabot.engine.checkpoint import Manifest
from sabot.engine.checkpoint.savepoints import is_savepoint
from sabot.engine.plan import Plan, refill_options
from sabot.engine.plan.drawing.render import svg
from sabot.engine.runtime.life.outcomes import StateOutcome, outcomes_of
from sabot.engine.runtime.life.restore import Asked, check_app, known_columns, plan_of
from sabot.engine.runtime.tasks.manifest_facts import check_facts
from sabot.engine.runtime.watch.guarantees import EdgeGuarantee, guarantee_lines, guarantees_of
from sabot.errors import UserError
from sabot.kafka import open_sink


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
    refill: Annotated[
        list[str] | None, typer.Option(metavar="STEP", help="The steps to compute again, as in `sabot run`.")
    ] = None,
    reemit: Annotated[
        list[str] | None, typer.Option(metavar="SINK", help="The sinks to write again, as in `sabot run`.")
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

    The outcome for each operator is one of: keep, the state continues as it is; migrate, it continues with the change that is named;
    refill, it is computed again; new, it begins empty; drop, the program does not have the operator any more; refuse, the program keeps
    other state under this id. The aggregates of a step that changes are listed below it, each with keep, add (it begins empty), drop or
    refuse. Exit code 1 if a start would be refused; --refill names steps to compute again, --drop the state to give up.
    """

    def work() -> None:
        if drawing is not None and (against is not None or json):
            raise WrongUse("--svg draws the plan alone", hint="leave out --against and --json, or --svg")
        use_functions(functions)
        app = load_app(target)
        if not app.spec.ends and not app.spec.agents:
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
            made = _plan(app, None)
            _print_plan(made, guarantees_of(made, app.spec.ends, app.settings), json)
            return
        saved = find_checkpoints(against)
        manifest = saved.manifest()
        check_app(manifest, app.id)
        check_facts(manifest)
        asked = Asked(frozenset(drop or ()), frozenset(refill or ()), frozenset(reemit or ()))
        outcomes = outcomes_of(
            *(_plan(app, manifest), manifest, asked),
            ends=app.spec.ends,
            agents={id: agent.spec for id, agent in app.spec.agents.items()},
            open_topic=lambda topic: open_sink(topic, app.broker, app.settings.kafka),
            start_at=app.settings.start_at,
            is_savepoint=is_savepoint(saved.place),
        )
        if json:
            for one in outcomes:
                json_line(asdict(one))
        else:
            typer.echo(f"checkpoint {manifest.checkpoint_id}, {moment(manifest.created_ms)}, in {saved.place}")
            rows = [[each.id, each.outcome, each.now or each.before, each.why] for each in outcomes]
            columns(["operator", "state", "description", "why"], rows)
        lost = [each for each in outcomes if each.lost]
        if lost:
            ways = " ".join(dict.fromkeys(way for each in lost for way in each.ways))
            raise UserError(
                "this program would not continue all state of the checkpoint: "
                f"{'; '.join(f'{each.id}: {each.why}' for each in lost)}",
                hint=_way_out(lost, ways),
            )

    set_up_logging("warning")
    raise typer.Exit(guarded(work, debug=False))


def _way_out(lost: list[StateOutcome], ways: str) -> str:
    """Returns the hint for outcomes by which a start would be refused. `ways`: the options that give state up, or ""."""
    refills = refill_options((each.refills, each.ways) for each in lost if each.ways)
    hints = [f"to compute the state again, start with {' '.join(refills)}"] if refills else []
    hints += [f"to give the state up, start with {ways}"] if ways else []
    if any(each.id.startswith("sink ") and not each.ways for each in lost):
        hints.append("give the sink its columns (evolve=True), or another place")
    return "; ".join(hints) or "run the program that wrote it"


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


def _print_plan(made: Plan, edges: list[EdgeGuarantee], json: bool) -> None:
    if json:
        for stage in made.stages:
            if stage.agent is not None:
                json_line({"agent": stage.id})
                continue
            steps = [{"operator": step.id, "text": step.text} for step in stage.steps()]
            json_line({"stage": stage.id, "parallelism": stage.parallelism, "steps": steps})
        for edge in edges:
            json_line({"edge": edge.way, "name": edge.name, "guarantee": edge.guarantee})
        return
    typer.echo("\n".join([made.text(), "", *guarantee_lines(edges)]))


def _plan(app: App, manifest: Manifest | None) -> Plan:
    """Returns the plan that a start would make, except that it does not wait for rows to infer the columns of a topic."""
    made = plan_of(
        app.spec.ends,
        manifest,
        agents=app.spec.agent_specs,
        parallelism=app.settings.parallelism,
        infer=known_columns,
    )
    made.check()
    return made
