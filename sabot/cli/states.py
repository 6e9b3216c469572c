"""`sabot jobs checkpoint`, `checkpoints`, `restore`: names for places in the histories of jobs, and jobs that go on from there."""

import asyncio
from dataclasses import asdict
from typing import Annotated

import typer

from sabot.agents.job_checkpoints import (
    MOST_BYTES,
    CheckpointType,
    StateManager,
    checkpoint_letter,
    checkpoints_of,
    refused,
)
from sabot.agents.kernel import ExecutionResult, RuntimeKernel
from sabot.agents.progress import as_plain
from sabot.cli.agent_jobs import JobId, jobs
from sabot.cli.journal import By, Json, Place, post, quietly, reading, this_user
from sabot.cli.loading import WrongUse, load_program
from sabot.cli.options import Kafka
from sabot.cli.printing import columns, json_line, moment, size
from sabot.clock import SYSTEM_CLOCK
from sabot.config import checked_name, parse_bytes
from sabot.errors import LetterRefused


@jobs.command()
def checkpoint(
    job: JobId,
    place: Place,
    name: Annotated[
        str | None,
        typer.Argument(metavar="[NAME]", help="Its own in the job; default: made of the type.", show_default=False),
    ] = None,
    kafka: Kafka = None,
    kind: Annotated[CheckpointType, typer.Option("--type", help="Why it is made.")] = "manual",
    most: Annotated[str, typer.Option("--max-size", metavar="SIZE", help="Of the history of the job.")] = MOST_BYTES,
    by: By = "",
) -> None:
    """Give what an open job has done so far a name, from which another job can go on. It is on the disk when the command ends."""

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
    """The checkpoints of a job, the oldest first."""

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
            [each.name, each.type, at, each.by, each.effects, each.entries, size(each.size_bytes)]
            for each, at in zip(found, made, strict=True)
        ]
        columns(titles, rows)

    quietly(work)


@jobs.command()
def restore(
    job: JobId,
    target: Annotated[str, typer.Option("-A", "--app", metavar="MODULE:KERNEL", help="The RuntimeKernel of today.")],
    name: Annotated[str, typer.Argument(metavar="[NAME]", help="Of the checkpoint; default: the last one.")] = "",
    again: Annotated[
        list[str] | None,
        typer.Option(metavar="TOOL", help="That may do again what it has done behind the checkpoint; may be repeated."),
    ] = None,
    beside: Annotated[bool, typer.Option("--beside", help="Although the job itself has not ended.")] = False,
    json: Json = False,
) -> None:
    """Let another job go on from a checkpoint of a job, with the code of today, until it ends. The kernel is the owner of its journal
    meanwhile; what it has open besides goes on too.
    """

    async def restored(kernel: RuntimeKernel) -> ExecutionResult:
        async with kernel:
            await kernel.resume()
            handle = await StateManager(kernel).restore(job, name, again=again or (), beside=beside)
            typer.echo(f"job {handle.job_id} goes on from there", err=True)
            return await handle.result()

    def work() -> None:
        kernel = load_program(target)
        if not isinstance(kernel, RuntimeKernel):
            raise WrongUse(
                f"{target} is an App, and a RuntimeKernel is wanted", hint="sabot jobs fork is for jobs of apps"
            )
        result = asyncio.run(restored(kernel))
        if json:
            json_line({"job": result.job_id, "content": result.content, "output": as_plain(result.output)})
        else:
            typer.echo(result.content)

    quietly(work)
