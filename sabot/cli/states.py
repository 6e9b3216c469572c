"""`sabot jobs checkpoint`, `checkpoints` and `restore`: name a point in the history of a job, and run a new job from there."""

import asyncio
from dataclasses import asdict
from typing import Annotated

import typer

from sabot.agents.entry_values import as_plain
from sabot.agents.job_checkpoints import (
    MOST_BYTES,
    CheckpointType,
    StateManager,
    checkpoint_letter,
    checkpoints_of,
    refused,
)
from sabot.agents.kernel import ExecutionResult, RuntimeKernel
from sabot.base.config import checked_name, parse_bytes
from sabot.base.quantities import bytes_words
from sabot.cli.agent_jobs import JobId, jobs
from sabot.cli.journal import By, Json, Place, post, quietly, reading, this_user
from sabot.cli.loading import WrongUse, load_program
from sabot.cli.options import Kafka
from sabot.cli.printing import columns, json_line, moment
from sabot.clock import SYSTEM_CLOCK
from sabot.errors import LetterRefused


@jobs.command()
def checkpoint(
    job: JobId,
    place: Place,
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[NAME]", help="The name, unique in the job; default: made from the type.", show_default=False
        ),
    ] = None,
    kafka: Kafka = None,
    kind: Annotated[CheckpointType, typer.Option("--type", help="The reason for the checkpoint.")] = "manual",
    most: Annotated[
        str, typer.Option("--max-size", metavar="SIZE", help="The largest history of the job that is accepted.")
    ] = MOST_BYTES,
    by: By = "",
) -> None:
    """Make a checkpoint of an open job: a name for its history so far, from which another job can continue.

    The checkpoint is stored durably when the command ends.
    """

    def work() -> None:
        limit, now_ms = parse_bytes(most, name="--max-size"), round(SYSTEM_CLOCK.time() * 1000)
        given = "" if name is None else checked_name(name, "NAME")
        with reading(place, kafka) as reader:
            letter = checkpoint_letter(reader, job, given, kind, most=limit, now_ms=now_ms, by=by or this_user())
        try:
            post(place, kafka, letter)
        except LetterRefused as error:
            raise refused(job, given, error) from error
        typer.echo(f"job {job} has checkpoint {name or kind}", err=True)

    quietly(work)


@jobs.command("checkpoints")
def list_checkpoints(job: JobId, place: Place, kafka: Kafka = None, json: Json = False) -> None:
    """List the checkpoints of a job, the oldest first."""

    def work() -> None:
        with reading(place, kafka) as reader:
            found = checkpoints_of(reader, job)
        if json:
            for each in found:
                json_line(asdict(each))
            return
        titles = ["checkpoint", "type", "made", "by", "effects", "entries", "size"]
        made = [moment(round(each.created_at * 1000)) for each in found]
        rows = [
            [each.name, each.type, at, each.by, each.effects, each.entries, bytes_words(each.size_bytes)]
            for each, at in zip(found, made, strict=True)
        ]
        columns(titles, rows)

    quietly(work)


@jobs.command()
def restore(
    job: JobId,
    target: Annotated[
        str, typer.Option("-A", "--app", metavar="MODULE:KERNEL", help="The RuntimeKernel with today's code.")
    ],
    name: Annotated[
        str, typer.Argument(metavar="[NAME]", help="The name of the checkpoint; default: the last one.")
    ] = "",
    again: Annotated[
        list[str] | None,
        typer.Option(metavar="TOOL", help="The tool whose calls after the checkpoint may be made again; repeatable."),
    ] = None,
    beside: Annotated[
        bool, typer.Option("--beside", help="Start the new job although the old one has not ended.")
    ] = False,
    json: Json = False,
) -> None:
    """Run a new job from a checkpoint of a job, with today's code, until the new job ends.

    The command owns the kernel's journal meanwhile, and continues the other open jobs in it too.
    """

    async def restored(kernel: RuntimeKernel) -> ExecutionResult:
        async with kernel:
            await kernel.resume()
            handle = await StateManager(kernel).restore(job, name, again=again or (), beside=beside)
            typer.echo(f"job {handle.job_id} continues from the checkpoint", err=True)
            return await handle.result()

    def work() -> None:
        kernel = load_program(target)
        if not isinstance(kernel, RuntimeKernel):
            raise WrongUse(
                f"{target} is an App, and only jobs of a RuntimeKernel can be restored",
                hint="use sabot jobs fork for a job of an app",
            )
        result = asyncio.run(restored(kernel))
        if json:
            json_line({"job": result.job_id, "content": result.content, "output": as_plain(result.output)})
        else:
            typer.echo(result.content)

    quietly(work)
