"""The answers of EXPLAIN: the plan of an app's streams, which results change, and what a checkpoint keeps of it."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from sabot.api.nodes.read import StreamEnd, Write
from sabot.checkpoint import CheckpointStorage, Manifest
from sabot.connectors.base import Source
from sabot.connectors.defaults import columns_of
from sabot.errors import UserError
from sabot.plan import Plan
from sabot.runtime.restore import check_app, plan_of, verdicts_of


def explain_ends(app: str, ends: Sequence[StreamEnd], parallelism: int, form: str, checkpoint: str | None) -> str:
    """Returns the answer of EXPLAIN for these ends of the streams of an app. Nothing runs.

    `form`: "PLAN"; "CHANGELOG", which adds a line for each result; "JSON", one object per stage; or "AGAINST", the verdict
    on each state of `checkpoint`, the place of checkpoints. Raises UserError for a program that cannot run.
    """
    if form == "AGAINST":
        manifest = _manifest(checkpoint or "")
        check_app(manifest, app)
        return _against(_plan(ends, parallelism, manifest), manifest)
    made = _plan(ends, parallelism, None)
    made.check()
    if form == "JSON":
        return "\n".join(_stages(made))
    return "\n".join([made.text(), *(_changes(ends) if form == "CHANGELOG" else [])])


def _plan(ends: Sequence[StreamEnd], parallelism: int, manifest: Manifest | None) -> Plan:
    return plan_of(
        ends,
        manifest,
        agents=(),
        parallelism=parallelism,
        infer=lambda node, readers: (
            columns_of(node.source) if isinstance(node.source, Source) else node.format.columns(node.name)
        ),
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


def _against(made: Plan, manifest: Manifest) -> str:
    verdicts = verdicts_of(made, manifest)
    lines = [f"checkpoint {manifest.checkpoint_id}"]
    width = max((len(each.id) for each in verdicts), default=0)
    for each in verdicts:
        why = f" ({each.why})" if each.why else ""
        lines.append(f"{each.id:{width}}  {each.outcome:7}  {each.now or each.before or ''}{why}")
    return "\n".join(lines)


def _manifest(place: str) -> Manifest:
    """Returns the newest checkpoint of a directory, or of the `checkpoints` in a state directory."""
    for each in (place, f"{place.rstrip('/')}/checkpoints"):
        if "://" in place or Path(each).is_dir():
            found = CheckpointStorage(each).latest()
            if found is not None:
                return found
    raise UserError(f"{place} holds no checkpoint", hint="name the state directory, or the directory of checkpoints")
