"""`sabot jobs record`, `replay`, `fork`, `diff`: jobs as files, today's code run over them, to their ends or from a step on otherwise, and
two of them beside each other.
"""

import asyncio
import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer

from sabot.agents.accounts.rows import InMemoryLedgerWriter
from sabot.agents.job_checkpoints import checkpoints_of
from sabot.agents.kernel import RuntimeKernel
from sabot.agents.progress import as_plain
from sabot.agents.replay.fork import FORK_ALLOWS, Forked, fork
from sabot.agents.replay.recording import Recording, record_job
from sabot.agents.replay.verification import JobCode, code_of, steps_of, verified
from sabot.app import App
from sabot.cli.agent_jobs import JobId, jobs
from sabot.cli.journal import Json, json_of, quietly, reading, value_text
from sabot.cli.ledger import accounts_of
from sabot.cli.loading import WrongUse, load_program
from sabot.cli.options import Kafka
from sabot.cli.printing import columns, json_line, shortened
from sabot.errors import UserError
from sabot.jobs.run import effect_words
from sabot.journal.entries import Begin

_WIDTH = 60  # characters of what a step says
_NO_TERMINAL = 1000  # characters of a line that goes into a file or a pipe
_LEAST = 12  # characters of what was asked and its value in a side of `diff`, and of a side twice that
_BESIDE = 20  # characters of a line of `diff` beside its two sides

Program = Annotated[str, typer.Option("-A", "--app", metavar="MODULE:APP", help="The App, or RuntimeKernel, of today.")]
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


def _code(recording: Recording, target: str, program: App | RuntimeKernel) -> JobCode:
    """Of the agent whose job this is. Raises UserError where the program has none."""
    agent = next(each.agent for each in recording.entries if isinstance(each, Begin))
    if isinstance(program, RuntimeKernel):
        return program.code(agent.removeprefix(f"{program.name}."))
    agents = {name: each.spec for name, each in program.agent_runtime.agents.items() if each.spec is not None}
    spec = agents.get(agent)
    if spec is None or not spec.durable:
        raise UserError(
            f"{target} has no durable agent {agent}, whose job this is", hint=f"it has {', '.join(agents) or 'none'}"
        )
    return code_of(spec)


@jobs.command()
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


@jobs.command()
def replay(
    job: Annotated[
        str, typer.Argument(metavar="JOB", help="The id of a job, with --journal; or the file of a recording.")
    ],
    target: Program,
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
        found = verified(recording, _code(recording, target, load_program(target)))
        if json:
            json_line({"job": found.job_id, "steps": found.steps, "same": found.same, "difference": found.difference})
        else:
            columns(["step", "what", "asked", "outcome", "value"], [_row(each) for each in steps_of(recording)])
        if not found.same:
            raise UserError(f"job {found.job_id}: {found.difference}")
        typer.echo(f"job {found.job_id}: {found.steps:,} steps, as they are recorded; nothing was called", err=True)

    quietly(work)


@jobs.command("fork")
def fork_job(
    job: Annotated[
        str, typer.Argument(metavar="JOB", help="The id of a job, with --journal; or the file of a recording.")
    ],
    target: Program,
    begin: Annotated[
        str,
        typer.Option("--from", metavar="STEP", help="Behind which it goes on; 0: anew. Or the name of a checkpoint."),
    ],
    place: Journal = None,
    kafka: Kafka = None,
    model: Annotated[str, typer.Option(metavar="NAME", help="Is asked in place of the one that the code names.")] = "",
    prompt: Annotated[
        str | None, typer.Option(metavar="TEXT", help="The instructions of requests to models.", show_default=False)
    ] = None,
    answer: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=JSON",
            help="What a tool, a model (llm: each), a question, a signal or a child says, in place of itself. May be repeated.",
        ),
    ] = None,
    allow: Annotated[
        list[str] | None, typer.Option(metavar="TOOL", help="That is called, although it changes something.")
    ] = None,
    no_wait: Annotated[
        bool, typer.Option("--no-wait", help="End where only time would let it go on: a timer, a question's deadline.")
    ] = False,
    file: Annotated[
        Path | None, typer.Option("--record", metavar="FILE", help="Where its recording goes.", show_default=False)
    ] = None,
    json: Json = False,
) -> None:
    """Run the code of today over what a job did up to a step, and let it go on from there, otherwise than it did.

    Nothing outside changes: models and tools that only read are asked, and cost; others, and children, are denied, unless --answer stands
    in for them or --allow names them. The program's policy holds, too: --answer confirm='{"approved": true}' allows what it wants a person
    to allow. Its budgets hold too, and what the fork uses is booked in its ledger, under a job of its own. Neither the job nor its journal
    is touched. Timers and deadlines take their time, and what it waits
    for is said, unless --no-wait. Exit code 1 where it fails.
    """

    def work() -> None:
        recording, at = _part(job, begin, place, kafka)
        allowed = (*FORK_ALLOWS, *(allow or ()))
        answers = dict(map(_answer, answer or ()))
        program = load_program(target)
        code = _code(recording, target, program)
        how: dict[str, Any] = {"answers": answers, "model": model, "prompt": prompt, "allow": allowed}
        how["guard"] = program.policy

        async def booked() -> tuple[Forked, bool]:
            accounts = await accounts_of(program)
            try:
                forked = await fork(recording, code, at=at, no_wait=no_wait, ledger=accounts, **how)
            finally:
                if accounts is not None:
                    await accounts.close()
            return forked, accounts is not None and not isinstance(accounts.writer, InMemoryLedgerWriter)

        found, is_kept = asyncio.run(booked())
        if file is not None:
            found.recording.save(file)
        if json:
            steps = steps_of(found.recording)
            said = {
                "outcome": found.outcome,
                "result": as_plain(found.result),
                "first_difference": found.first_difference,
                "waits_for": list(found.waits_for),
                "booked_as": found.booked_as if is_kept else "",
            }
            json_line({**said, "error": "" if found.error is None else str(found.error), "steps": steps})
        else:
            columns(["step", "what", "asked", "outcome", "value"], [_row(each) for each in steps_of(found.recording)])
            differs = (
                "as it did" if found.first_difference is None else f"otherwise from step {found.first_difference} on"
            )
            typer.echo(f"the fork of job {recording.job_id} {found.outcome}, {differs}", err=True)
            if found.outcome == "succeeded":
                typer.echo(value_text(as_plain(found.result)), err=True)
        if found.booked_as:
            words = (
                f"is booked as job {found.booked_as}"
                if is_kept
                else "is booked nowhere: the program keeps no rows outside of its journal"
            )
            typer.echo(f"what the fork has used {words}", err=True)
        for word in found.waits_for:
            typer.echo(f"it waits for {word}", err=True)
        for word in found.unused:
            typer.echo(f"{word}, of --allow or --answer, is the name of nothing that the fork has asked for", err=True)
        if found.outcome == "failed":
            raise UserError(f"the fork of job {recording.job_id} has failed: {found.error}")

    quietly(work)


def _part(job: str, begin: str, place: str | None, kafka: list[str] | None) -> tuple[Recording, int | None]:
    """What is recorded, and the step behind which it goes on; None: behind all of it, which is up to a checkpoint."""
    if begin.isdecimal():
        return _recording(job, place, kafka), int(begin)
    if place is None:
        raise WrongUse(
            f"--from {begin}: a file has no checkpoints", hint="give the number of a step, as in sabot jobs diff"
        )
    with reading(place, kafka) as reader:
        known = {each.name: each for each in checkpoints_of(reader, job)}
        recording = record_job(reader, job)
    if begin not in known:
        raise UserError(
            f"job {job} has no checkpoint {begin}",
            hint=f"it has {', '.join(known)}" if known else "it has none: give the number of a step",
        )
    return recording.take_until(known[begin].entries), None


def _answer(word: str) -> tuple[str, Any]:
    name, said, value = word.partition("=")
    if not name or not said:
        raise WrongUse(f"--answer {word}", hint="write NAME=JSON, as in --answer 'look=\"gold\"'")
    return name, json_of(value, "--answer")


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


@jobs.command("diff")
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
        width = max(2 * _LEAST, (shutil.get_terminal_size((_NO_TERMINAL, 0)).columns - _BESIDE) // 2)
        for number in range(max(len(one), len(two))):
            pair = [steps[number] if number < len(steps) else None for steps in (one, two)]
            mark = _compared(*pair)
            differ += mark != "="
            if json:
                json_line(
                    {"step": number + 1, "differs": "" if mark == "=" else mark, "one": pair[0], "other": pair[1]}
                )
            rows.append([number + 1, mark, *(_side(each, width) for each in pair)])
        if not json:
            columns(["step", "differs", shortened(job, width), shortened(other, width)], rows)
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


def _side(step: dict[str, Any] | None, width: int) -> str:
    """What was asked, and what came of it, in `width` characters."""
    if step is None:
        return ""
    what, asked, value = effect_words(step["kind"], step["name"]), _text(step["asked"]), _text(step["value"])
    left = max(_LEAST, width - len(f"{what}  -> {step['outcome']} "))  # for what was asked and its value
    asked, value = (
        shortened(asked, max(left - len(value), left // 2)),
        shortened(value, max(left - len(asked), left // 2)),
    )
    return shortened(f"{what} {asked} -> {step['outcome']} {value}".strip(), width)
