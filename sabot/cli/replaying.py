"""`sabot jobs record`, `replay`, `diff`: jobs as files, today's code run over them, and two of them beside each other."""

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer

from sabot.agents.replay.player import code_of, steps_of, verified
from sabot.agents.replay.recording import Recording, record_job
from sabot.cli.agent_jobs import JobId
from sabot.cli.journal import Json, quietly, reading, value_text
from sabot.cli.loading import load_app
from sabot.cli.options import Kafka
from sabot.cli.printing import columns, json_line, shortened
from sabot.errors import UserError
from sabot.jobs.run import effect_words
from sabot.journal.entries import Begin

__all__ = ["diff_jobs", "record", "replay"]

_WIDTH = 60  # characters of what a step says

Journal = Annotated[
    str | None,
    typer.Option(
        "--journal", metavar="JOURNAL", help="Where the job is, as in sabot jobs list; for a file not needed."
    ),
]


def _recording(job: str, place: str | None, kafka: list[str] | None) -> Recording:
    """Of a job of a journal, or of a file."""
    if place is None:
        if not Path(job).is_file():
            raise UserError(f"{job} is no file of a recording", hint="for a job say --journal PLACE")
        return Recording.load(job)
    with ExitStack() as open_ones:
        return record_job(open_ones.enter_context(reading(place, kafka)), job)


def record(
    job: JobId,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Where to, like job.replay.json.")],
    place: Journal = None,
    kafka: Kafka = None,
) -> None:
    """Write what a job did into a file, with which it can be replayed anywhere. It has what the job was given and told."""

    def work() -> None:
        recording = _recording(job, place, kafka)
        recording.save(file)
        typer.echo(f"{file}: {len(recording.entries):,} entries of job {recording.job_id}", err=True)

    quietly(work)


def replay(
    job: Annotated[
        str, typer.Argument(metavar="JOB", help="The id of a job, with --journal; or the file of a recording.")
    ],
    target: Annotated[str, typer.Option("-A", "--app", metavar="MODULE:APP", help="The program of today.")],
    place: Journal = None,
    kafka: Kafka = None,
    json: Json = False,
) -> None:
    """Run the code of today over what a job did, strictly. Nothing is called, and nothing written.

    It ends at the first thing that the code does otherwise, with exit code 1. Keyed state is not recorded, so a job that reads it cannot be
    replayed.
    """

    def work() -> None:
        recording = _recording(job, place, kafka)
        app = load_app(target)
        agents = {name: agent.spec for name, agent in app.agent_runtime.agents.items() if agent.spec is not None}
        agent = next(each.agent for each in recording.entries if isinstance(each, Begin))
        spec = agents.get(agent)
        if spec is None or not spec.durable:
            raise UserError(
                f"{target} has no durable agent {agent}, whose job this is",
                hint=f"it has {', '.join(agents) or 'none'}",
            )
        found = verified(recording, code_of(spec))
        if json:
            json_line({"job": found.job_id, "steps": found.steps, "same": found.same, "difference": found.difference})
        else:
            columns(["step", "what", "asked", "outcome", "value"], [_row(each) for each in steps_of(recording)])
        if not found.same:
            raise UserError(f"job {found.job_id}: {found.difference}")
        typer.echo(f"job {found.job_id}: {found.steps:,} steps, as they are recorded; nothing was called", err=True)

    quietly(work)


def _row(step: dict[str, Any]) -> list[object]:
    return [
        step["ordinal"],
        effect_words(step["kind"], step["name"]),
        _text(step["asked"]),
        step["outcome"],
        _text(step["value"]),
    ]


def _text(value: Any) -> str:
    return "" if value is None else shortened(value_text(value), _WIDTH)


def diff_jobs(
    job: JobId,
    other: Annotated[str, typer.Argument(metavar="OTHER", help="The job, or the file, that it is compared with.")],
    place: Journal = None,
    kafka: Kafka = None,
    json: Json = False,
) -> None:
    """What two jobs did, step by step: = where they asked the same and were told the same. Exit code 1 where they differ."""

    def work() -> None:
        one, two = (steps_of(_recording(each, place, kafka)) for each in (job, other))
        rows, differ = [], 0
        for number in range(max(len(one), len(two))):
            pair = [steps[number] if number < len(steps) else None for steps in (one, two)]
            mark = _compared(*pair)
            differ += mark != "="
            if json:
                json_line(
                    {"step": number + 1, "differs": "" if mark == "=" else mark, "one": pair[0], "other": pair[1]}
                )
            rows.append([number + 1, mark, *(_side(each) for each in pair)])
        if not json:
            columns(["step", "differs", job, other], rows)
        if differ:
            raise UserError(f"{differ:,} of {len(rows):,} steps differ")

    quietly(work)


def _compared(one: dict[str, Any] | None, other: dict[str, Any] | None) -> str:
    if one is None or other is None:
        return "missing"
    for what, names in {"asked": ("kind", "name", "asked"), "told": ("outcome", "value")}.items():
        if any(one[name] != other[name] for name in names):
            return what
    return "="


def _side(step: dict[str, Any] | None) -> str:
    if step is None:
        return ""
    said = f"{effect_words(step['kind'], step['name'])} {_text(step['asked'])}"
    return f"{said} -> {step['outcome']} {_text(step['value'])}".strip()
