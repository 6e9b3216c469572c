"""The answers of EXPLAIN: the plan of an app's streams, which results change, and what a checkpoint keeps of it."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from sabot.api.agent import AgentSpec
from sabot.api.nodes.agents import AgentRead, Feed
from sabot.api.nodes.node import walk
from sabot.api.nodes.read import StreamEnd, Write
from sabot.connectors.base import Sink
from sabot.engine.checkpoint import CheckpointStorage, Manifest
from sabot.engine.plan import Plan
from sabot.engine.runtime.life.outcomes import outcomes_of
from sabot.engine.runtime.life.restore import Asked, check_app, known_columns, plan_of
from sabot.errors import UserError


def explain_ends(ends: Sequence[StreamEnd], agents: Mapping[str, AgentSpec | None], parallelism: int, form: str) -> str:
    """Returns the answer of EXPLAIN for these ends of the streams of an app. Nothing runs.

    `agents`: the agents of the app by id. `form`: "PLAN"; "CHANGELOG", which adds a line for each result; or "JSON", one
    object per stage. Raises UserError for a program that cannot run.
    """
    given = any(isinstance(node, Feed | AgentRead) for node in walk(ends))
    made = _plan(ends, agents if given else {}, parallelism, None)
    made.check()
    if form == "JSON":
        return "\n".join(_stages(made))
    return "\n".join([made.text(), *(_changes(ends) if form == "CHANGELOG" else [])])


def explain_against(
    app: str,
    ends: Sequence[StreamEnd],
    agents: Mapping[str, AgentSpec | None],
    parallelism: int,
    open_topic: Callable[[str], Sink],
    checkpoint: str,
) -> str:
    """Returns the answer of EXPLAIN AGAINST: a line for each stored state of `checkpoint`, the place of checkpoints,
    which says whether a start with these ends and agents continues it. Nothing runs. `open_topic`: opens the sink of a topic.
    """
    manifest = _manifest(checkpoint)
    check_app(manifest, app)
    made = _plan(ends, agents, parallelism, manifest)
    outcomes = outcomes_of(made, manifest, Asked(), ends=ends, agents=agents, open_topic=open_topic)
    lines = [f"checkpoint {manifest.checkpoint_id}"]
    width = max((len(each.id) for each in outcomes), default=0)
    for each in outcomes:
        why = f" ({each.why})" if each.why else ""
        lines.append(f"{each.id:{width}}  {each.outcome:7}  {each.now or each.before}{why}")
    return "\n".join(lines)


def _plan(
    ends: Sequence[StreamEnd], agents: Mapping[str, AgentSpec | None], parallelism: int, manifest: Manifest | None
) -> Plan:
    return plan_of(
        ends,
        manifest,
        agents=[spec for spec in agents.values() if spec is not None],
        parallelism=parallelism,
        infer=known_columns,
    )


def _stages(made: Plan) -> Iterable[str]:
    for stage in made.stages:
        steps = [{"operator": step.id, "text": step.text} for step in stage.steps()]
        yield json.dumps({"stage": stage.id, "parallelism": stage.parallelism, "steps": steps}, ensure_ascii=False)


def _changes(ends: Sequence[StreamEnd]) -> Iterable[str]:
    for end in ends:
        if isinstance(end, Write):
            name = end.sink if isinstance(end.sink, str) else end.sink.name
            if not end.input.changes:
                yield f"{name}: rows are appended, and never change"
            else:
                key = end.input.unique
                yield f"{name}: rows are updated" + (f", by the key {', '.join(key)}" if key else ", without a key")


def _manifest(place: str) -> Manifest:
    """Returns the newest checkpoint of a directory, or of the `checkpoints` in a state directory."""
    for each in (place, f"{place.rstrip('/')}/checkpoints"):
        if "://" in place or Path(each).is_dir():
            found = CheckpointStorage(each).latest()
            if found is not None:
                return found
    raise UserError(f"{place} holds no checkpoint", hint="name the state directory, or the directory of checkpoints")
