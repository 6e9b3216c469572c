"""`sabot jobs`: the jobs of a journal, and words to them, also without its owner."""

import uuid
from collections import Counter
from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict
from json import loads
from pathlib import Path
from typing import Annotated, Any

import typer

from sabot.agents.job_checks import CheckedJob, check_jobs
from sabot.agents.jobs import JobRecord, JobStatus, OpenEffect
from sabot.agents.progress import as_plain, value_of
from sabot.agents.store import JobsOfJournal, as_json, cancel_letter
from sabot.app import App
from sabot.cli.app_checkpoints import find_checkpoints
from sabot.cli.journal import By, Json, Place, json_of, post, quietly, reading, this_user, value_text
from sabot.cli.letters import Broker, Table, redrive_job
from sabot.cli.loading import WrongUse, load_app
from sabot.cli.options import Kafka, Target
from sabot.cli.printing import columns, json_line, moment, shortened
from sabot.errors import UserError
from sabot.jobs.tree import child_id
from sabot.journal.base import JournalReader
from sabot.journal.entries import Begin, End, Letter
from sabot.journal.sqlite import DATABASE
from sabot.runtime.restore import check_app

jobs = typer.Typer(help="Jobs in a journal.", no_args_is_help=True, rich_markup_mode=None)

_SHOWN = 2  # open effects of a job in a list

JobId = Annotated[str, typer.Argument(metavar="JOB", help="The id of a job.")]


def _moment(seconds: float | None) -> str:
    return "" if seconds is None else moment(round(seconds * 1000))


@jobs.command("list")
def list_jobs(
    place: Place,
    kafka: Kafka = None,
    scope: Annotated[str | None, typer.Option(metavar="NAME", help="Only jobs of this scope.")] = None,
    agent: Annotated[
        str | None, typer.Option(metavar="AGENT", help="Only jobs of this agent: app.name, or its name alone.")
    ] = None,
    status: Annotated[list[JobStatus] | None, typer.Option(help="Only jobs in this status.")] = None,
    json: Json = False,
) -> None:
    """The jobs that the journal has, the oldest first: how far each is, and what it waits for, or how it has ended."""

    def work() -> None:
        with reading(place, kafka) as reader:
            seen = list(JobsOfJournal(reader).seen())
            of = None if agent is None else _agents_named(agent, {job.agent for job in seen if job.agent}, reader.where)
        found = [
            job
            for job in seen
            if scope in (None, job.scope_id)
            and (of is None or job.agent in of)
            and (not status or job.status in status)
        ]
        if json:
            for job in found:
                json_line(_facts(job))
            return
        titles = ["job", "of", "status", "attempt", "effects", "created", "updated", "open, or its outcome"]
        known = {job.job_id: job for job in seen}
        columns(titles, [_row(job, known) for job in found])

    quietly(work)


def _agents_named(word: str, known: Collection[str], where: str) -> set[str]:
    """The ids of the agents that a word means, which is one of them, or the name in it. Raises UserError where it means none."""
    found = {word} & set(known) or {each for each in known if each.rpartition(".")[2] == word}
    if not found:
        raise UserError(
            f"{where} has no job of an agent {word}",
            hint=f"it has jobs of {', '.join(sorted(known))}" if known else "no agent has had a job there so far",
        )
    return found


def _row(job: JobRecord, known: Mapping[str, JobRecord]) -> list[object]:
    more = len(job.open) - _SHOWN
    said = [_open_effect(each) + _far(job, each, known) for each in job.open[:_SHOWN]]
    said += [f"{more} more"] if more > 0 else []
    idle = "nothing is open" if job.agent and not job.ended else ""
    what = "; ".join(said) or job.result_ref or job.error or idle
    times = [_moment(job.created_at), _moment(job.updated_at)]
    return [job.job_id, job.agent or job.scope_id, job.status, job.attempt, job.effects, *times, shortened(what, 90)]


def _far(job: JobRecord, effect: OpenEffect, known: Mapping[str, JobRecord]) -> str:
    """How far the child is that a job waits for."""
    if effect.kind != "child":
        return ""
    child = known.get(child_id(job.job_id, effect.ordinal))
    return ": not begun" if child is None else f": {child.status}" if child.open or child.ended else ": nothing is open"


def _open_effect(effect: OpenEffect) -> str:
    words = {"call": "call", "ask": "question", "sleep": "timer", "wait": "signal", "child": "child"}
    due = f"until {_moment(effect.due_at)}" if effect.due_at is not None else ""
    asked = "in doubt:" if effect.in_doubt else "to approve:" if effect.needs_approval else ""
    return " ".join(filter(None, [asked, words.get(effect.kind, effect.kind), effect.name, due]))


def _facts(job: JobRecord) -> dict[str, Any]:
    facts: dict[str, Any] = loads(as_json(job, "the job"))
    return facts


@jobs.command("show")
def show_job(job: JobId, place: Place, kafka: Kafka = None, json: Json = False) -> None:
    """One job: what was asked for, how far it is, which actions it has, what came of it."""

    def work() -> None:
        with reading(place, kafka) as reader:
            known = JobsOfJournal(reader, job)
            record = known.job(job)
            if record is None:
                raise UserError(f"job {job}: there is none of this name", hint="sabot jobs list shows the jobs")
            facts = _facts(record)
            facts["actions"] = [each.action_id for each in known.actions.values()]
            if record.agent:
                facts |= _ends(reader, job)
        if json:
            json_line({name: as_plain(value) for name, value in facts.items()})
            return
        for name in ("created_at", "updated_at", "started_at", "completed_at", "deadline"):
            facts[name] = _moment(facts[name])
        facts["open"] = "; ".join(map(_open_effect, record.open))
        rows = [[name, value] for name, value in facts.items() if value not in ("", [], {}, None)][1:]
        columns(["job", job], [[name, value if isinstance(value, str) else value_text(value)] for name, value in rows])

    quietly(work)


def _ends(reader: JournalReader, job: str) -> dict[str, Any]:
    """What went into a job of an agent, and what came out of it."""
    found: dict[str, Any] = {}
    for _, entry in reader.read(job):
        if isinstance(entry, Begin):
            found = {"input": value_of(entry, reader.load(entry.body))}
        elif isinstance(entry, End) and entry.outcome == JobStatus.SUCCEEDED:
            found["output"] = value_of(entry, reader.load(entry.body))
    return found


@jobs.command("cancel")
def cancel_job(
    job: JobId,
    place: Place,
    kafka: Kafka = None,
    reason: Annotated[str, typer.Option(metavar="TEXT", help="Why.")] = "",
    by: By = "",
) -> None:
    """Ask a job to end. Its owner does it when it looks, or at its next start. A function of an agent may tidy up first."""

    def work() -> None:
        post(place, kafka, cancel_letter(job, reason, by or this_user()))
        typer.echo(f"job {job} will be cancelled by its owner")

    quietly(work)


@jobs.command("signal")
def signal_job(
    job: JobId,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The one that ctx.wait(NAME) waits for.")],
    place: Place,
    kafka: Kafka = None,
    with_: Annotated[
        str | None,
        typer.Option("--with", metavar="JSON", help="What ctx.wait returns; default: None.", show_default=False),
    ] = None,
    token: Annotated[
        str | None,
        typer.Option(metavar="WORD", help="Its own name: the same signal sent again is refused.", show_default=False),
    ] = None,
    by: By = "",
) -> None:
    """Tell a job something that it waits for, or will wait for. It is on the disk when the command ends, whether its owner runs or not."""

    def work() -> None:
        if not name or token == "":
            raise WrongUse("a signal without a name", hint="write the word that ctx.wait has, and no empty --token")
        body = b"" if with_ is None else as_json(json_of(with_, "--with"), "the signal")
        letter = Letter("signal", token or uuid.uuid4().hex, job=job, name=name, body=body, by=by or this_user())
        post(place, kafka, letter)
        typer.echo(f"job {job} has signal {name}")

    quietly(work)


@jobs.command("retry")
def retry_job(
    context: typer.Context,
    job: JobId,
    letters: Annotated[
        str | None,
        typer.Option(metavar="PLACE", help="Where its dead letter is, as in sabot dlq; default: of its agent in -A"),
    ] = None,
    table: Table = None,
    broker: Broker = None,
    kafka: Kafka = None,
    json: Json = False,
) -> None:
    """Run a job that has failed again, as the same job: its dead letter is sent back. What it had done stays done.

    It is sabot dlq redrive PLACE --job JOB: a letter is sent back once, and a job that fails again has another one.
    """
    quietly(lambda: redrive_job(context, job, letters, table, broker, kafka, json))


@jobs.command("check")
def check(
    target: Target,
    against: Annotated[
        str | None,
        typer.Option(metavar="JOB", help="A checkpoint or state directory, a savepoint; DIR@ID for an older one."),
    ] = None,
    place: Annotated[
        str | None,
        typer.Option(
            "--journal", metavar="JOURNAL", help="Default: that of the app; with --against DIR, the one there."
        ),
    ] = None,
    kafka: Kafka = None,
    json: Json = False,
) -> None:
    """Run the open jobs over their journal with the code of today: would a start go on with them?

    Nothing is called, and nothing written, so a running app, or a copy of its directory, may be looked at. ok: it goes on. fails: the
    function raises behind all that is recorded. blocked: it does not do what the journal has. held: it stands behind a blocked job of its
    key. gone: it has no agent. Exit code 1 for the last three.
    """

    def work() -> None:
        app = load_app(target)
        found = find_checkpoints(target if against is None else against)
        manifest = found.manifest() if found.storage.ids() else None
        if manifest is not None:
            check_app(manifest, app.id)
        agents = {name: agent.spec for name, agent in app.agent_runtime.agents.items() if agent.spec is not None}
        try:
            with _journal_of(app, against, place, kafka) as reader:
                found_jobs = check_jobs(
                    reader, manifest, agents, version=app.settings.version, clock=app.clock, backend=app.state_backend
                )
                checked = list(found_jobs)
        finally:
            found.storage.release_restored()
        _print_checked(checked, json)
        amiss = Counter(job.verdict for job in checked if not job.stands)
        if not json:
            of = "no checkpoint" if manifest is None else f"checkpoint {manifest.checkpoint_id}"
            typer.echo(f"{len(checked):,} open jobs behind {of}; {amiss.total():,} would not go on", err=True)
        if amiss:
            words = ", ".join(f"{count:,} {verdict}" for verdict, count in sorted(amiss.items()))
            raise UserError(
                f"this program would not go on with all open jobs: {words}",
                hint="bring the old code back; guard what is new with ctx.patched('…')",
            )

    quietly(work)


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
