"""`sabot jobs`: lists the jobs of a journal, and cancels, signals and retries them, also while no process owns the journal."""

import asyncio
import uuid
from collections import Counter
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict
from datetime import datetime
from json import loads
from pathlib import Path
from typing import Annotated, Any

import typer

from sabot.agents.app_jobs import AppJobs, AppJobStore, JobsAsked, JournalAddress, retry_letter
from sabot.agents.entry_values import as_plain
from sabot.agents.job_checks import CheckedJob, check_jobs
from sabot.agents.job_effects import folded_job
from sabot.agents.job_reads import find_jobs, shown_status
from sabot.agents.jobs import JobRecord, OpenEffect
from sabot.agents.kernel.client import JobClient
from sabot.agents.kernel.kernel import RuntimeKernel, check_kernel
from sabot.agents.store import as_json, cancel_letter, shown_json
from sabot.app import App
from sabot.base.quantities import plain
from sabot.cli.app_checkpoints import find_checkpoints
from sabot.cli.journal import By, Json, Place, job_of, json_of, post, quietly, reading, this_user, value_text
from sabot.cli.letters import Broker, Table, redrive_job
from sabot.cli.loading import WrongUse, load_program
from sabot.cli.options import Kafka, Target, kafka_settings
from sabot.cli.printing import columns, json_line, moment, shortened
from sabot.clock import SYSTEM_CLOCK
from sabot.engine.runtime.life.restore import check_app
from sabot.errors import UserError
from sabot.jobs.tree import child_id
from sabot.jobs.url_ids import stored_id
from sabot.journal.base import JournalReader
from sabot.journal.ended_jobs import STATUSES, JobQuery
from sabot.journal.entries import Letter
from sabot.journal.postgres_workers import workers_of
from sabot.journal.sqlite import DATABASE

jobs = typer.Typer(help="Run, list and steer jobs of a journal.", no_args_is_help=True, rich_markup_mode=None)

_SHOWN = 2  # the number of open effects that a list shows of a job

JobId = Annotated[str, typer.Argument(metavar="JOB", help="The id of a job, or its form for URLs.")]
SomeJob = Annotated[str | None, typer.Argument(metavar="[JOB]", help="The id of a job, or its form for URLs.")]
Every = Annotated[bool, typer.Option("--all", help="All jobs that the options select, in place of one.")]
Scope = Annotated[str | None, typer.Option("--scope", metavar="NAME", help="Only jobs of this scope.")]
OfSession = Annotated[
    str | None,
    typer.Option(
        "--session", metavar="NAME", help="Only jobs of this session: the session of a start, or AGENT/KEY in an app."
    ),
]
OfAgent = Annotated[
    str | None,
    typer.Option("--agent", metavar="AGENT", help="Only jobs of this agent: APP.NAME, or NAME alone."),
]
OneStatus = Annotated[
    str | None,
    typer.Option("--status", metavar="STATUS", help=f"Only jobs in this status: {', '.join(STATUSES)}."),
]


def _moment(seconds: float | None) -> str:
    return "" if seconds is None else moment(round(seconds * 1000))


@jobs.command("list")
def list_jobs(
    place: Place,
    kafka: Kafka = None,
    scope: Scope = None,
    agent: OfAgent = None,
    session: OfSession = None,
    status: Annotated[
        list[str] | None,
        typer.Option(metavar="STATUS", help=f"Only jobs in this status: {', '.join(STATUSES)}."),
    ] = None,
    json: Json = False,
) -> None:
    """List the jobs of a journal, the oldest first: the progress of each, and its open effects or its outcome.

    Behind them are the workers of a journal that several share, with the number of open jobs that each holds.
    """

    def work() -> None:
        if wrong := set(status or ()).difference(STATUSES):
            raise WrongUse(f"--status {min(wrong)}: no status of a job", hint=f"one of {', '.join(STATUSES)}")
        with reading(place, kafka) as reader:
            found, known = find_jobs(reader, agent=agent, scope=scope, session=session, statuses=status or ())
            workers = workers_of(reader)
        if json:
            for job in found:
                json_line(_facts(job))
            return
        titles = ["job", "of", "status", "attempt", "effects", "created", "updated", "waits for, or its outcome"]
        rows = [_row(job, known) for job in found]
        if workers:
            titles.insert(3, "worker")
            rows = [[*row[:3], job.worker or "", *row[3:]] for row, job in zip(rows, found, strict=True)]
        columns(titles, rows)
        if workers:
            typer.echo()
            columns(["worker", "process", "state", "open jobs"], [list(each) for each in workers])

    quietly(work)


def _row(job: JobRecord, known: Mapping[str, JobRecord]) -> list[object]:
    more = len(job.open) - _SHOWN
    said = [_open_effect(each) + _child_progress(job, each, known) for each in job.open[:_SHOWN]]
    said += [f"{more} more"] if more > 0 else []
    idle = "nothing is open" if job.agent and not job.ended else ""
    what = job.blocked or job.waits or "; ".join(said) or job.result_ref or job.error or idle
    times = [_moment(job.created_at), _moment(job.updated_at)]
    return [
        job.job_id,
        job.agent or job.scope_id,
        shown_status(job),
        job.attempt,
        job.effects,
        *times,
        shortened(what, 90),
    ]


def _child_progress(job: JobRecord, effect: OpenEffect, known: Mapping[str, JobRecord]) -> str:
    """Returns the status of the child job that this effect waits for, as text with a colon; "" for other effects."""
    if effect.kind != "child":
        return ""
    child = known.get(child_id(job.job_id, effect.ordinal))
    return (
        ": not begun"
        if child is None
        else f": {shown_status(child)}"
        if child.open or child.ended or child.blocked
        else ": nothing is open"
    )


def _open_effect(effect: OpenEffect) -> str:
    words = {"call": "call", "ask": "question", "sleep": "timer", "wait": "signal", "child": "child"}
    due = f"until {_moment(effect.due_at)}" if effect.due_at is not None else ""
    asked = "in doubt:" if effect.in_doubt else "to approve:" if effect.needs_approval else ""
    return " ".join(filter(None, [asked, words.get(effect.kind, effect.kind), effect.name, due]))


def _facts(job: JobRecord) -> dict[str, Any]:
    facts: dict[str, Any] = loads(shown_json(job, "the job"))
    return facts | {
        "status": shown_status(job),
        "dollars": plain(job.dollars),
        "doubt_dollars": plain(job.doubt_dollars),
    }


@jobs.command("show")
def show_job(job: JobId, place: Place, kafka: Kafka = None, json: Json = False) -> None:
    """Show one job: its input, progress, actions and result."""

    def work() -> None:
        with reading(place, kafka) as reader:
            folded = folded_job(reader, job_of(place, kafka, job))
            facts = _facts(folded.record)
            facts["actions"] = [each.action_id for each in folded.actions]
            facts |= folded.values(reader)
        if json:
            json_line({name: as_plain(value) for name, value in facts.items()})
            return
        for name in ("created_at", "updated_at", "started_at", "completed_at", "deadline"):
            facts[name] = _moment(facts[name])
        facts["open"] = "; ".join(map(_open_effect, folded.record.open))
        rows = [[name, value] for name, value in facts.items() if value not in ("", [], {}, None)][1:]
        columns(
            ["job", folded.record.job_id],
            [[name, value if isinstance(value, str) else value_text(value)] for name, value in rows],
        )

    quietly(work)


@jobs.command("cancel")
def cancel_job(
    place: Place,
    job: SomeJob = None,
    every: Every = False,
    scope: Scope = None,
    agent: OfAgent = None,
    session: OfSession = None,
    status: OneStatus = None,
    kafka: Kafka = None,
    reason: Annotated[str, typer.Option(metavar="TEXT", help="The reason, which the job's record keeps.")] = "",
    by: By = "",
) -> None:
    """Ask a job to end. The process that owns the journal cancels it, soon or at its next start.

    The agent's function may clean up before it ends. With --all instead of JOB, all open jobs end, or those that --scope, --agent,
    --session and --status select.
    """

    def work() -> None:
        query = _query(job, every, scope=scope, agent=agent, session=session, status=status)
        if job is None:
            asked = _all_jobs(place, kafka).cancel_all(query, reason=reason, by=by or this_user())
            _print_asked(asyncio.run(asked), "will be cancelled by")
            return
        post(place, kafka, cancel_letter(job_of(place, kafka, job), reason, by or this_user()))
        typer.echo(f"job {job} will be cancelled by the owner of the journal")

    quietly(work)


def _query(job: str | None, every: bool, **conditions: str | None) -> dict[str, str]:
    """Returns the query of --all. Raises WrongUse unless either a job or --all is given."""
    query = {name: value for name, value in conditions.items() if value is not None}
    if (job is not None) == every or (query and not every):
        raise WrongUse(
            "JOB or --all is wanted, and not both",
            hint="--scope, --agent, --session and --status select some of --all jobs",
        )
    JobQuery.of(query)
    return query


def _all_jobs(place: str, kafka: list[str] | None) -> AppJobs:
    address = JournalAddress(place, "", {**kafka_settings(kafka)})
    return AppJobs(AppJobStore(lambda: address, SYSTEM_CLOCK))


def _print_asked(asked: JobsAsked, words: str) -> None:
    for job_id, why in asked.refused:
        typer.echo(f"{job_id}: {why}", err=True)
    typer.echo(f"{asked.done:,} of {asked.found:,} jobs {words} the owner of the journal")


@jobs.command("signal")
def signal_job(
    job: JobId,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The name of the signal, as in ctx.wait(NAME).")],
    place: Place,
    kafka: Kafka = None,
    with_: Annotated[
        str | None,
        typer.Option(
            "--with", metavar="JSON", help="The value that ctx.wait returns; default: None.", show_default=False
        ),
    ] = None,
    token: Annotated[
        str | None,
        typer.Option(
            metavar="WORD", help="The signal's own id: a second signal with it is refused.", show_default=False
        ),
    ] = None,
    by: By = "",
) -> None:
    """Send a signal that a job waits for, or will wait for.

    The signal is stored durably when the command ends, whether the journal's owner runs or not.
    """

    def work() -> None:
        if not name or token == "":
            empty = "--token" if name else "NAME"
            raise WrongUse(
                f"{empty} is empty", hint="NAME is the name that ctx.wait(NAME) has; leave --token out for a new id"
            )
        body = b"" if with_ is None else as_json(json_of(with_, "--with"), "the signal")
        known = job_of(place, kafka, job)
        letter = Letter("signal", token or uuid.uuid4().hex, job=known, name=name, body=body, by=by or this_user())
        post(place, kafka, letter)
        typer.echo(f"job {job} has signal {name}")

    quietly(work)


@jobs.command("start")
def start_job(
    agent: Annotated[
        str,
        typer.Argument(
            metavar="AGENT", help="The agent: KERNEL.NAME as in a list, or NAME of a kernel without a name."
        ),
    ],
    place: Place,
    with_: Annotated[
        str | None, typer.Option("--with", metavar="JSON", help="The prompt, or what the function gets as its message.")
    ] = None,
    scope: Annotated[str, typer.Option(metavar="NAME", help="The scope (tenant) of the job.")] = "default",
    by: By = "",
    session: Annotated[
        str | None, typer.Option(metavar="NAME", help="The conversation to which the job belongs.")
    ] = None,
    key: Annotated[
        str | None, typer.Option(metavar="KEY", help="The idempotency key: the same one begins no second job.")
    ] = None,
    of: Annotated[
        str | None,
        typer.Option("--of", metavar="KEY", help="The key of the job, such as a customer, for limits by key."),
    ] = None,
    after: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="The job does not begin before: 10min, or 2026-11-28T09:00+01:00."),
    ] = None,
    priority: Annotated[
        int, typer.Option(metavar="N", help="Of jobs that wait to begin, smaller numbers are first.")
    ] = 0,
    json: Json = False,
) -> None:
    """Begin a job of a kernel, and print its id. The kernel takes it soon, or at its next start."""

    def work() -> None:
        name, dot, short = agent.rpartition(".")
        client = JobClient(place, name=name if dot else "kernel")
        message = None if with_ is None else json_of(with_, "--with")
        who: dict[str, Any] = {"scope": scope, "principal": by or this_user(), "session": session, "key": of}
        asked = client.start(short, message, **who, idempotency_key=key, start_after=_time(after), priority=priority)
        handle = asyncio.run(asked)
        if json:
            json_line({"job_id": handle.job_id, "url_id": handle.url_id})
        else:
            typer.echo(handle.job_id)

    quietly(work)


def _time(text: str | None) -> datetime | str | None:
    """Returns the time of --after: a datetime, or the text of a duration."""
    try:
        return None if text is None else datetime.fromisoformat(text)
    except ValueError:
        return text


@jobs.command("retry")
def retry_job(
    context: typer.Context,
    job: SomeJob = None,
    every: Every = False,
    scope: Scope = None,
    agent: OfAgent = None,
    session: OfSession = None,
    status: OneStatus = None,
    letters: Annotated[
        str | None,
        typer.Option(
            metavar="PLACE", help="The place of its dead letter, as in sabot dlq; default: that of its agent in -A."
        ),
    ] = None,
    table: Table = None,
    broker: Broker = None,
    kafka: Kafka = None,
    place: Annotated[
        str | None,
        typer.Option("--journal", metavar="JOURNAL", help="For a job of a kernel: its journal, as in sabot jobs list."),
    ] = None,
    budget: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LIMIT=VALUE",
            help="A limit of a kernel's job, as in max_cost=2; the other limits stay. Repeatable.",
        ),
    ] = None,
    max_turns: Annotated[
        int | None, typer.Option(metavar="N", help="The most turns of the Agent in all runs of a kernel's job.")
    ] = None,
    json: Json = False,
) -> None:
    """Run a failed job again as the same job, from where it stopped. Effects that were made are not repeated.

    For a job of a kernel, give --journal: the process that owns the journal runs the job again, soon or at its next start, with the
    limits of --budget and --max-turns. A cancelled job may be retried too.

    With --all instead of JOB, all failed jobs of the kernel run again, or those that --scope, --agent, --session and --status
    select. Cancelled jobs run again only with --status cancelled.

    For a job of an app, the dead letter is sent back, as sabot dlq redrive PLACE --job JOB does: a dead letter is sent back once, and a
    job that fails again has a new one.
    """

    def work() -> None:
        query = _query(job, every, scope=scope, agent=agent, session=session, status=status)
        if job is None:
            if place is None:
                raise WrongUse("--all is for jobs of a kernel", hint="name its journal: --journal JOURNAL")
            limits = _limits(budget or []) or None
            asked = _all_jobs(place, kafka).retry_all(query, budgets=limits, max_turns=max_turns)
            _print_asked(asyncio.run(asked), "will run again in")
            return
        if place is None:
            if budget or max_turns is not None:
                raise WrongUse(
                    "--budget and --max-turns are for jobs of a kernel", hint="name its journal: --journal JOURNAL"
                )
            redrive_job(context, stored_id(job), letters, table, broker, kafka, json)
            return
        with reading(place, kafka) as reader:
            letter = retry_letter(reader, job_of(place, kafka, job), _limits(budget or []) or None, max_turns)
        post(place, kafka, letter)
        typer.echo(f"job {job} will run again in the owner of the journal")

    quietly(work)


def _limits(given: list[str]) -> dict[str, int | str]:
    """Returns the values of the option --budget by the name of the limit. Raises WrongUse if one is not LIMIT=VALUE."""
    limits: dict[str, Any] = {}
    for each in given:
        name, mark, value = each.partition("=")
        if not mark or not name or not value:
            raise WrongUse(f"--budget {each}: LIMIT=VALUE is wanted", hint="write --budget max_cost=2")
        limits[name] = int(value) if value.isdecimal() else value
    return limits


@jobs.command("check")
def check(
    target: Target,
    against: Annotated[
        str | None,
        typer.Option(metavar="APP", help="The checkpoint or state directory, or a savepoint; DIR@ID for an older one."),
    ] = None,
    place: Annotated[
        str | None,
        typer.Option(
            "--journal",
            metavar="JOURNAL",
            help="The journal; default: the app's, or with --against DIR the one in DIR.",
        ),
    ] = None,
    kafka: Kafka = None,
    json: Json = False,
) -> None:
    """Check whether a start with today's code would continue the open jobs of an app or a kernel, by replaying their journal.

    No effect is made and nothing is written, so a running app or kernel, or a copy of its directory, can be checked. A job's verdict is
    one of: ok, it continues; fails, its function raises after all recorded steps; blocked, its function does something else than the
    journal has; held, it waits behind a blocked job of the same key; gone, the program has no agent for it. Exit code 1 if a job is
    blocked, held or gone.
    """

    def work() -> None:
        program = load_program(target)
        if isinstance(program, RuntimeKernel):
            checked, of = _checked_of_kernel(program, against, place, kafka), f"of kernel {program.name}"
        else:
            checked, of = _checked_of_app(program, target, against, place, kafka)
        _print_checked(checked, json)
        amiss = Counter(job.verdict for job in checked if not job.stands)
        if not json:
            typer.echo(f"{len(checked):,} open jobs {of}; {amiss.total():,} would not continue", err=True)
        if amiss:
            words = ", ".join(f"{count:,} {verdict}" for verdict, count in sorted(amiss.items()))
            raise UserError(
                f"this program would not continue all open jobs: {words}",
                hint="restore the old code, and put each change of it under if ctx.patched('…')",
            )

    quietly(work)


def _checked_of_app(
    app: App, target: str, against: str | None, place: str | None, kafka: list[str] | None
) -> tuple[list[CheckedJob], str]:
    found = find_checkpoints(target if against is None else against)
    manifest = found.manifest() if found.storage.ids() else None
    if manifest is not None:
        check_app(manifest, app.id)
    agents = {name: agent.spec for name, agent in app.spec.agents.items() if agent.spec is not None}
    try:
        with _journal_of(app, against, place, kafka) as reader:
            how: dict[str, Any] = {"version": app.settings.version, "declared": app.declared}
            found_jobs = check_jobs(reader, manifest, agents, **how, clock=app.clock, backend=app.state_backend)
            checked = list(found_jobs)
    finally:
        found.storage.release_restored()
    return checked, "after no checkpoint" if manifest is None else f"after checkpoint {manifest.checkpoint_id}"


def _checked_of_kernel(
    kernel: RuntimeKernel, against: str | None, place: str | None, kafka: list[str] | None
) -> list[CheckedJob]:
    if against is not None:
        raise WrongUse("--against names a checkpoint, and a kernel has none", hint="--journal names another journal")
    with kernel.jobs.store.reader() if place is None else reading(place, kafka) as reader:
        return list(check_kernel(kernel, reader))


def _journal_of(
    app: App, against: str | None, place: str | None, kafka: list[str] | None
) -> AbstractContextManager[JournalReader]:
    if place is not None:
        return reading(place, kafka)
    if against is not None and (Path(against) / "journal" / DATABASE).is_file():
        return reading(against, kafka)
    return app.jobs.store.reader()


def _print_checked(checked: list[CheckedJob], json: bool) -> None:
    if json:
        for job in checked:
            json_line(asdict(job))
        return
    rows = [[job.job_id, job.agent, job.verdict, job.effects, " ".join(job.then.split())] for job in checked]
    columns(["job", "agent", "verdict", "effects", "then"], rows)
