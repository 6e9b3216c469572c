"""`sabot jobs record`, `replay`, `fork` and `diff`: write a job to a file, run today's code over it, and compare two jobs."""

import asyncio
import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer

from sabot.agents.accounts.rows import InMemoryLedgerWriter
from sabot.agents.entry_values import as_plain
from sabot.agents.job_checkpoints import checkpoints_of
from sabot.agents.kernel import RuntimeKernel
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

_WIDTH = 60  # the longest request or value of a step in a list, in characters
_NO_TERMINAL = 1000  # the width of a line that goes into a file or a pipe, in characters
_LEAST = 12  # the least width of a request, and of its value, in one of the two columns of `diff`, in characters
_BESIDE = 20  # the width of a line of `diff` that its two columns do not take, in characters

Program = Annotated[
    str, typer.Option("-A", "--app", metavar="MODULE:APP", help="The App or RuntimeKernel with today's code.")
]
Journal = Annotated[
    str | None,
    typer.Option(
        "--journal", metavar="JOURNAL", help="The journal of the job, as in sabot jobs list; not needed for a file."
    ),
]


def _recording(job: str, place: str | None, kafka: list[str] | None) -> Recording:
    """Loads the recording of a job from the journal at `place` or, if `place` is None, from the file `job`."""
    if place is None:
        if not Path(job).is_file():
            raise UserError(f"there is no file {job}", hint="for a job of a journal, give --journal JOURNAL")
        return Recording.load(job)
    with ExitStack() as open_ones:
        return record_job(open_ones.enter_context(reading(place, kafka)), job)


def _code(recording: Recording, target: str, program: App | RuntimeKernel) -> JobCode:
    """Returns the code of the agent whose job is recorded. Raises UserError if the program has no such durable agent."""
    agent = next(each.agent for each in recording.entries if isinstance(each, Begin))
    if isinstance(program, RuntimeKernel):
        return program.code(agent.removeprefix(f"{program.name}."))
    agents = {name: each.spec for name, each in program.spec.agents.items() if each.spec is not None}
    spec = agents.get(agent)
    if spec is None or not spec.durable:
        raise UserError(
            f"{target} has no durable agent {agent}, whose job this is",
            hint=f"its agents: {', '.join(agents)}" if agents else "it has no agents",
        )
    return code_of(spec)


@jobs.command()
def record(
    job: JobId,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The file to write, like job.replay.json.")],
    place: Journal = None,
    kafka: Kafka = None,
) -> None:
    """Write what a job did into a file, from which it can be replayed anywhere. The file has the job's input and all results."""

    def work() -> None:
        recording = _recording(job, place, kafka)
        recording.save(file)
        typer.echo(f"{file}: {len(recording.entries):,} entries of job {recording.job_id}", err=True)

    quietly(work)


@jobs.command()
def replay(
    job: Annotated[
        str, typer.Argument(metavar="JOB", help="The id of a job, with --journal; or a file that `record` has written.")
    ],
    target: Program,
    place: Journal = None,
    kafka: Kafka = None,
    json: Json = False,
) -> None:
    """Replay a job with today's code: run the code over the recorded steps. No effect is made, and nothing is written.

    The command ends with exit code 1 at the first step that the code does otherwise. Keyed state is not recorded, so a job that reads it
    cannot be replayed.
    """

    def work() -> None:
        recording = _recording(job, place, kafka)
        found = verified(recording, _code(recording, target, load_program(target)))
        if json:
            told = {"job": found.job_id, "steps": found.steps, "same": found.same, "difference": found.difference}
            json_line(told | ({"gives": found.gives} if found.gives else {}))
        else:
            columns(["step", "what", "asked", "outcome", "value"], [_row(each) for each in steps_of(recording)])
        if not found.same:
            raise UserError(f"job {found.job_id}: {found.words}")
        typer.echo(f"job {found.job_id}: {found.steps:,} steps, all as recorded; no effect was made", err=True)

    quietly(work)


@jobs.command("fork")
def fork_job(
    job: Annotated[
        str, typer.Argument(metavar="JOB", help="The id of a job, with --journal; or a file that `record` has written.")
    ],
    target: Program,
    begin: Annotated[
        str,
        typer.Option(
            "--from",
            metavar="STEP",
            help="The last step to replay (0 for none), or the name of a checkpoint of the job.",
        ),
    ],
    place: Journal = None,
    kafka: Kafka = None,
    model: Annotated[str, typer.Option(metavar="NAME", help="The model to ask in place of the one in the code.")] = "",
    prompt: Annotated[
        str | None, typer.Option(metavar="TEXT", help="The instructions of requests to models.", show_default=False)
    ] = None,
    answer: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=JSON",
            help="The answer of a tool, a model (llm for all), a question, a signal or a child, which is then not called; repeatable.",
        ),
    ] = None,
    allow: Annotated[
        list[str] | None,
        typer.Option(metavar="TOOL", help="The tool to call although it changes something; repeatable."),
    ] = None,
    no_wait: Annotated[
        bool, typer.Option("--no-wait", help="End where the fork only waits for a timer or a deadline.")
    ] = False,
    file: Annotated[
        Path | None,
        typer.Option("--record", metavar="FILE", help="The file for the recording of the fork.", show_default=False),
    ] = None,
    json: Json = False,
) -> None:
    """Replay a job with today's code up to a step, and let a copy of it (the fork) continue from there with live calls.

    Nothing outside changes by default: the fork calls models, and tools that only read, and these calls cost. It denies other tools and
    children, unless --answer gives their answer or --allow names them. The program's policy applies: --answer confirm='{"approved": true}'
    approves an effect that policy wants a person to approve. The program's budgets apply too, and the usage is booked in its ledger under
    a job of its own. The job and its journal are not changed. The fork waits for its timers and deadlines, unless --no-wait ends it there.
    The command prints what the fork waits for. Exit code 1 if the fork fails.
    """

    def work() -> None:
        recording, at = _load_part(job, begin, place, kafka)
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
                "as the job did"
                if found.first_difference is None
                else f"different from step {found.first_difference} on"
            )
            typer.echo(f"the fork of job {recording.job_id} {found.outcome}, {differs}", err=True)
            if found.outcome == "succeeded":
                typer.echo(value_text(as_plain(found.result)), err=True)
        if found.booked_as:
            words = (
                f"is booked as job {found.booked_as}"
                if is_kept
                else "is not booked, because the program has no ledger outside of its journal"
            )
            typer.echo(f"the usage of the fork {words}", err=True)
        for word in found.waits_for:
            typer.echo(f"the fork waits for {word}", err=True)
        for word in found.unused:
            typer.echo(f"{word}, in --allow or --answer, names nothing that the fork has called or asked", err=True)
        if found.outcome == "failed":
            raise UserError(f"the fork of job {recording.job_id} has failed: {found.error}")

    quietly(work)


def _load_part(job: str, begin: str, place: str | None, kafka: list[str] | None) -> tuple[Recording, int | None]:
    """Returns the recording and the step after which the fork continues. The step is None if `begin` names a checkpoint: the recording then
    ends there.

    Raises WrongUse for the name of a checkpoint without a journal, and UserError if the job has no checkpoint of this name.
    """
    if begin.isdecimal():
        return _recording(job, place, kafka), int(begin)
    if place is None:
        raise WrongUse(
            f"--from {begin} names a checkpoint, and a file has no checkpoints",
            hint="give the number of a step, from sabot jobs diff",
        )
    with reading(place, kafka) as reader:
        known = {each.name: each for each in checkpoints_of(reader, job)}
        recording = record_job(reader, job)
    if begin not in known:
        raise UserError(
            f"job {job} has no checkpoint {begin}",
            hint=f"it has {', '.join(known)}" if known else "the job has no checkpoints: give the number of a step",
        )
    return recording.take_until(known[begin].entries), None


def _answer(word: str) -> tuple[str, Any]:
    name, said, value = word.partition("=")
    if not name or not said:
        raise WrongUse(f"--answer {word} is not NAME=JSON", hint="write NAME=JSON, as in --answer 'look=\"gold\"'")
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
    other: Annotated[str, typer.Argument(metavar="OTHER", help="The job, or the file, to compare it with.")],
    place: Journal = None,
    kafka: Kafka = None,
    json: Json = False,
) -> None:
    """Compare two jobs step by step. A step is marked = if request and result are equal. Exit code 1 if a step differs.

    Other marks: `asked`, the requests differ; `told`, only the results differ; `missing`, one job has no such step.
    """

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
    """Returns the request and the result of a step as text of at most `width` characters; "" for None, a step that is missing."""
    if step is None:
        return ""
    what, asked, value = effect_words(step["kind"], step["name"]), _text(step["asked"]), _text(step["value"])
    left = max(_LEAST, width - len(f"{what}  -> {step['outcome']} "))  # for the request and its value
    asked, value = (
        shortened(asked, max(left - len(value), left // 2)),
        shortened(value, max(left - len(asked), left // 2)),
    )
    return shortened(f"{what} {asked} -> {step['outcome']} {value}".strip(), width)
