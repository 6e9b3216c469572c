"""`sabot plan`: what a program will do, and what becomes of the state that a checkpoint has."""

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import pyarrow as pa
import typer

from sabot._cython.partition import HASH_VERSION
from sabot.api.nodes import Read
from sabot.app import App
from sabot.checkpoint import Manifest
from sabot.cli.jobs import find_job
from sabot.cli.loading import WrongUse, load_app
from sabot.cli.printing import columns, json_line, moment
from sabot.cli.running import guarded, set_up_logging
from sabot.codecs.json import schema_of_text
from sabot.config import dead_letter_topic
from sabot.connectors.base import Sink, Source
from sabot.errors import UserError
from sabot.plan import Plan, compare, make_plan, planned, walk, with_schemas

__all__ = ["plan"]


@dataclass(frozen=True)
class _Fate:
    """What becomes of one that keeps state, or of what an agent had taken and not finished."""

    id: str
    outcome: str  # keep, migrate, new, drop, refuse
    before: str
    now: str
    why: str
    lost: bool


def plan(
    target: Annotated[str, typer.Argument(metavar="MODULE:APP", help="The module and the App in it.")],
    against: Annotated[
        str | None,
        typer.Option(metavar="JOB", help="A checkpoint or state directory, a savepoint; DIR@ID for an older one."),
    ] = None,
    parallelism: Annotated[int | None, typer.Option(min=1, metavar="N", help="As in `sabot run`.")] = None,
    json: Annotated[bool, typer.Option("--json", help="JSON, an object on a line.")] = False,
) -> None:
    """Print the plan of an app. With --against: before it runs, whose state would go on.

    keep: as it is. migrate: with the change that is named. new: it begins empty. drop: the program has it no more. refuse: it
    keeps something else now. Exit code 1 when a start would be refused, or state dropped.
    """

    def work() -> None:
        app = load_app(target)
        try:
            app.configure(parallelism=parallelism)
        except UserError as error:
            raise WrongUse(error.message, hint=error.hint) from error
        if against is None:
            _print_plan(app, _plan(app, None), json)
            return
        job = find_job(against)
        manifest = job.manifest()
        _check_ours(app, manifest, job.place)
        fates = _fates(app, manifest)
        if json:
            for fate in fates:
                json_line(asdict(fate))
        else:
            typer.echo(f"checkpoint {manifest.checkpoint_id}, {moment(manifest.created_ms)}, in {job.place}")
            rows = [[each.id, each.outcome, each.now or each.before, each.why] for each in fates]
            columns(["operator", "state", "what it is", "why"], rows)
        lost = [f"{each.id}: {each.why}" for each in fates if each.lost]
        if lost:
            raise UserError(f"this program would not go on with all of it: {'; '.join(lost)}")

    set_up_logging("warning")
    raise typer.Exit(guarded(work, debug=False))


def _print_plan(app: App, made: Plan, json: bool) -> None:
    agents = list(app.agent_runtime.agents)
    if json:
        for stage in made.stages:
            steps = [{"operator": step.id, "text": step.text} for step in stage.steps()]
            json_line({"stage": stage.id, "parallelism": stage.parallelism, "steps": steps})
        for agent in agents:
            json_line({"agent": agent})
        return
    typer.echo("\n".join(filter(None, [made.text(), *(f"agent {agent}" for agent in agents)])))


def _plan(app: App, manifest: Manifest | None) -> Plan:
    writes = app.agent_runtime.writes
    schemas = {id(node): _schema(node, manifest) for node in walk(writes) if isinstance(node, Read)}
    readers: Counter[str] = Counter()
    if manifest is not None:
        reading = (name for name, stored in manifest.tasks.items() if "source" in stored.meta.get("input", {}))
        readers.update(name.split("/")[0] for name in reading)
    made = make_plan(with_schemas(writes, schemas), parallelism=app.parallelism, readers=readers)
    made.check()
    return made


def _schema(node: Read, manifest: Manifest | None) -> pa.Schema | None:
    """As the start finds it: what the program says, what the checkpoint knows, what the data shows."""
    if node.schema is not None:
        return node.schema
    for stored in () if manifest is None else manifest.tasks.values():
        facts = stored.meta.get("input", {})
        if facts.get("source") == node.name and facts.get("schema") is not None:
            return schema_of_text(facts["schema"])
    return node.source.infer_schema() if isinstance(node.source, Source) else None


def _check_ours(app: App, manifest: Manifest, place: str) -> None:
    for name, mine in (("app", app.id), ("hash", HASH_VERSION)):
        if manifest.describe.get(name) != mine:
            raise UserError(f"{place}: this checkpoint is of {name} {manifest.describe.get(name)!r}, not {mine!r}")


def _check_sources(made: Plan, manifest: Manifest) -> None:
    """Positions belong to what is read: a start refuses another source in the same place."""
    was = {
        name.split("/")[0]: stored.meta["input"]["source"]
        for name, stored in sorted(manifest.tasks.items())
        if "source" in stored.meta.get("input", {})
    }
    reads = {stage.id: stage.reading.node.name for stage in made.stages if stage.reading is not None}
    if was and was != reads:
        before, now = (", ".join(each.values()) or "nothing" for each in (was, reads))
        raise UserError(f"the checkpoint is of a program that reads {before}, this one reads {now}: a start is refused")


def _fates(app: App, manifest: Manifest) -> list[_Fate]:
    made = _plan(app, manifest)
    _check_sources(made, manifest)
    verdicts = compare(planned(made), manifest)
    fates = [
        _Fate(
            each.id,
            each.outcome,
            each.before or "",
            each.now or "",
            each.why,
            each.outcome == "refuse" or (each.outcome == "drop" and each.groups > 0),
        )
        for each in verdicts
    ]
    return [*fates, *_agent_fates(app, manifest), *_output_fates(app, made, manifest)]


def _output_fates(app: App, made: Plan, manifest: Manifest) -> list[_Fate]:
    """Output that waits for a sink which the program has no more: a start refuses to lose it."""
    sinks = [stage.sink[0] for stage in made.stages if stage.sink is not None]
    for agent in app.agent_runtime.agents.values():
        if agent.spec is not None:
            letters = agent.spec.dead_letter
            sinks += [agent.spec.sink]
            sinks += (
                [dead_letter_topic(letters, topic) for topic in agent.spec.topics]
                if isinstance(letters, str)
                else [letters]
            )
    names = {sink.name if isinstance(sink, Sink) else sink for sink in sinks}
    return [
        _Fate(
            lane_id,
            "refuse",
            f"sink {lane.sink}",
            "",
            f"{sum(part.rows for part in lane.pending)} rows are not delivered into it",
            True,
        )
        for lane_id, lane in manifest.lanes.items()
        if lane.pending and lane.sink not in names
    ]


def _agent_fates(app: App, manifest: Manifest) -> list[_Fate]:
    """Agents are found again by their id, what they read by agent and topic; state of one that is gone stays where it is."""
    stored = manifest.tasks.get("agents")
    meta: dict[str, Any] = {"agents": {}, "sources": {}} if stored is None else stored.meta
    fates = []
    for agent in app.agent_runtime.agents:
        known = agent in meta["agents"]
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
    for agent, facts in meta["agents"].items():
        if agent not in app.agent_runtime.agents:
            sources = [name.removeprefix(f"{agent}/") for name in meta["sources"] if name.startswith(f"{agent}/")]
            why = f"this program has no such agent; its position in {', '.join(sources)} is dropped"
            if facts["unfinished"]:
                why += ", and so are the records that it had not finished"
            fates.append(_Fate(agent, "drop", f"agent {agent}", "", why, True))
    return fates
