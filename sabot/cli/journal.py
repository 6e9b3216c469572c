"""`sabot journal`, `sabot jobs`, `sabot actions`: what a journal of effects holds, and letters into its inbox, also without its owner."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from json import JSONDecodeError, loads
from typing import Annotated, Any

import typer

from sabot.agents.actions import ActionRecord, ActionStatus
from sabot.agents.jobs import JobRecord, JobStatus
from sabot.agents.store import JobsOfJournal, as_json, cancel_letter
from sabot.cli.loading import WrongUse
from sabot.cli.options import Kafka, kafka_settings
from sabot.cli.printing import columns, json_line, moment, shortened, size, text_or_hex
from sabot.cli.running import guarded, set_up_logging
from sabot.errors import UserError
from sabot.journal.base import JournalReader
from sabot.journal.effects import EffectId
from sabot.journal.entries import (
    Answer,
    Attempt,
    Begin,
    Body,
    Cancel,
    EffectResult,
    End,
    Entry,
    Intent,
    Letter,
    Signal,
    StoredBody,
    kind_of,
)
from sabot.journal.opening import open_inbox, open_reader

__all__ = ["actions", "jobs", "journal"]

journal = typer.Typer(help="The journal of effects.", no_args_is_help=True, rich_markup_mode=None)
jobs = typer.Typer(help="Jobs in a journal.", no_args_is_help=True, rich_markup_mode=None)
actions = typer.Typer(help="Questions to people, and their answers.", no_args_is_help=True, rich_markup_mode=None)

Place = Annotated[
    str,
    typer.Option(
        "--journal",
        metavar="JOURNAL",
        help="Where it is: its folder, the database in it, a state directory; kafka://host:port/topic; or "
        "postgresql://user@host/database?app=NAME.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="JSON, an object on a line.")]
By = Annotated[str, typer.Option(metavar="NAME", help="Who says so; default: the user of this shell.")]


def _run(work: Callable[[], None]) -> None:
    set_up_logging("warning")
    raise typer.Exit(guarded(work, debug=False))


@contextmanager
def _reading(place: str, kafka: list[str] | None) -> Iterator[JournalReader]:
    reader = open_reader(place, kafka=kafka_settings(kafka))
    try:
        yield reader
    finally:
        reader.close()


def _post(place: str, kafka: list[str] | None, letter: Letter) -> None:
    inbox = open_inbox(place, kafka=kafka_settings(kafka))
    try:
        inbox.post(letter)
    finally:
        inbox.close()


def _moment(seconds: float | None) -> str:
    return "" if seconds is None else moment(round(seconds * 1000))


# -- journal ------------------------------------------------------------------------------------------------------------


@journal.command("show")
def show_journal(
    job: Annotated[str, typer.Argument(metavar="JOB", help="The id of a job.")],
    place: Place,
    kafka: Kafka = None,
    json: Json = False,
) -> None:
    """What a job did, entry by entry."""

    def work() -> None:
        with _reading(place, kafka) as reader:
            found = list(reader.read(job))
            if not found:
                raise UserError(f"{reader.where} has no entry of job {job}", hint="sabot jobs list shows the jobs")
            if json:
                for position, entry in found:
                    json_line({"place": position.offset, "entry": kind_of(entry), **_fields(entry)})
                return
            rows = [
                [position.offset, moment(entry.at_ms), kind_of(entry), _effect(entry), _told(entry)]
                for position, entry in found
            ]
            columns(["place", "written", "entry", "effect", "what"], rows)

    _run(work)


def _fields(entry: Entry) -> dict[str, Any]:
    """Without the token: who has it may answer."""
    values = {name: getattr(entry, name) for name in entry.__struct_fields__ if name != "token"}
    return {name: _shown(value) for name, value in values.items()}


def _shown(value: Any) -> Any:
    if isinstance(value, StoredBody):
        return {"hash": value.hash.hex(), "size": value.size}
    return text_or_hex(value) if isinstance(value, bytes) else value


def _effect(entry: Entry) -> str:
    match entry:
        case Attempt(ordinal=0):
            return ""
        case Attempt() | EffectResult():
            return str(EffectId("", entry.ordinal, entry.attempt)).removeprefix("/")
        case Intent() | Answer():
            return str(entry.ordinal)
    return ""


def _told(entry: Entry) -> str:
    match entry:
        case Begin():
            return " ".join(filter(None, [entry.agent, entry.code, _body(entry.body)]))
        case Attempt():
            return f"attempt {entry.attempt}"
        case Intent():
            due = f"until {moment(entry.due_ms)}" if entry.due_ms else ""
            words = [entry.kind, entry.name, entry.effect_class and f"({entry.effect_class})", due, _body(entry.body)]
            return " ".join(filter(None, words))
        case EffectResult() | Answer():
            by = f"by {entry.by}" if isinstance(entry, Answer) and entry.by else ""
            return " ".join(filter(None, [entry.outcome, by, _body(entry.body)]))
        case Signal():
            return " ".join(filter(None, [entry.name, _body(entry.body)]))
        case Cancel():
            return entry.reason
        case End():
            return " ".join(filter(None, [entry.outcome, entry.result, _body(entry.body)]))


def _body(body: Body) -> str:
    if isinstance(body, StoredBody):
        return f"[{size(body.size)}]"
    return shortened(text_or_hex(body), 60)


# -- jobs ---------------------------------------------------------------------------------------------------------------


@jobs.command("list")
def list_jobs(
    place: Place,
    kafka: Kafka = None,
    scope: Annotated[str | None, typer.Option(metavar="NAME", help="Only jobs of this scope.")] = None,
    status: Annotated[list[JobStatus] | None, typer.Option(help="Only jobs in this status.")] = None,
    json: Json = False,
) -> None:
    """The jobs that the journal has, the oldest first."""

    def work() -> None:
        with _reading(place, kafka) as reader:
            found = [
                job
                for job in JobsOfJournal(reader).jobs.values()
                if scope in (None, job.scope_id) and (not status or job.status in status)
            ]
        if json:
            for job in found:
                json_line(_job_facts(job))
            return
        rows = [
            [job.job_id, job.scope_id, job.status, _moment(job.created_at), _moment(job.updated_at), _outcome(job)]
            for job in found
        ]
        columns(["job", "scope", "status", "created", "updated", "outcome"], rows)

    _run(work)


def _outcome(job: JobRecord) -> str:
    return shortened(job.result_ref or job.error, 60)


def _job_facts(job: JobRecord) -> dict[str, Any]:
    facts: dict[str, Any] = loads(as_json(job, "the job"))
    return facts


@jobs.command("show")
def show_job(
    job: Annotated[str, typer.Argument(metavar="JOB", help="The id of a job.")],
    place: Place,
    kafka: Kafka = None,
    json: Json = False,
) -> None:
    """One job: what was asked for, how far it is, which actions it has."""

    def work() -> None:
        with _reading(place, kafka) as reader:
            known = JobsOfJournal(reader)
        record = known.jobs.get(job)
        if record is None:
            raise UserError(f"job {job}: there is none of this name", hint="sabot jobs list shows the jobs")
        facts = _job_facts(record)
        facts["actions"] = [each.action_id for each in known.actions.values() if each.job_id == job]
        if json:
            json_line(facts)
            return
        for name in ("created_at", "updated_at", "started_at", "completed_at", "deadline"):
            facts[name] = _moment(facts[name])
        columns(["job", job], [[name, value] for name, value in facts.items() if value not in ("", [], {}, None)][1:])

    _run(work)


@jobs.command("cancel")
def cancel_job(
    job: Annotated[str, typer.Argument(metavar="JOB", help="The id of a job.")],
    place: Place,
    kafka: Kafka = None,
    reason: Annotated[str, typer.Option(metavar="TEXT", help="Why.")] = "",
    by: By = "",
) -> None:
    """Ask a job to end. Its owner does it when it looks, or at its next start."""

    def work() -> None:
        _post(place, kafka, cancel_letter(job, reason, by or _user()))
        typer.echo(f"job {job} will be cancelled by its owner")

    _run(work)


# -- actions ------------------------------------------------------------------------------------------------------------


@actions.command("list")
def list_actions(
    place: Place,
    kafka: Kafka = None,
    everything: Annotated[bool, typer.Option("--all", help="Those that are closed too.")] = False,
    json: Json = False,
) -> None:
    """The questions that wait for an answer, with the tokens by which they are answered."""

    def work() -> None:
        with _reading(place, kafka) as reader:
            known, waiting = JobsOfJournal(reader), _answers(reader)
        found = [each for each in known.actions.values() if everything or each.status is ActionStatus.PENDING]
        if json:
            for action in found:
                json_line(_action_facts(action, waiting))
            return
        rows = [
            [
                each.action_id,
                each.type,
                _status(each, waiting),
                _moment(each.expires_at),
                each.resume_token,
                shortened(as_json(each.payload, "payload").decode(), 60),
            ]
            for each in found
        ]
        columns(["action", "type", "status", "until", "token", "payload"], rows)

    _run(work)


def _answers(reader: JournalReader) -> dict[str, Letter]:
    """By token, the answers that the owner has not taken."""
    return {letter.token: letter for letter in reader.letters() if letter.kind == "answer"}


def _status(action: ActionRecord, waiting: dict[str, Letter]) -> str:
    if action.status is ActionStatus.PENDING and action.resume_token in waiting:
        return "answered, not taken yet"
    return action.status


def _action_facts(action: ActionRecord, waiting: dict[str, Letter]) -> dict[str, Any]:
    facts: dict[str, Any] = loads(as_json(action, "the action"))
    return {**facts, "answered": action.resume_token in waiting or action.status is ActionStatus.RESOLVED}


@actions.command("show")
def show_action(
    action: Annotated[str, typer.Argument(metavar="ACTION", help="The id of an action.")],
    place: Place,
    kafka: Kafka = None,
) -> None:
    """One question, as JSON."""

    def work() -> None:
        with _reading(place, kafka) as reader:
            known, waiting = JobsOfJournal(reader), _answers(reader)
        record = known.actions.get(action)
        if record is None:
            raise UserError(f"action {action}: there is none of this name", hint="sabot actions list --all shows them")
        json_line(_action_facts(record, waiting))

    _run(work)


@actions.command("resolve")
def resolve_action(
    token: Annotated[str, typer.Argument(metavar="TOKEN", help="Of the action, as `sabot actions list` shows it.")],
    place: Place,
    kafka: Kafka = None,
    approve: Annotated[bool, typer.Option("--approve", help='Answer {"approved": true}.')] = False,
    reject: Annotated[bool, typer.Option("--reject", help='Answer {"approved": false}.')] = False,
    with_: Annotated[
        str | None, typer.Option("--with", metavar="JSON", help="Answer this object.", show_default=False)
    ] = None,
    by: By = "",
) -> None:
    """Answer a question, once. It is on the disk when the command ends, whether its owner runs or not."""

    def work() -> None:
        _post(place, kafka, Letter("answer", token, body=_resolution(approve, reject, with_), by=by or _user()))
        typer.echo("answered")

    _run(work)


def _resolution(approve: bool, reject: bool, text: str | None) -> bytes:
    if approve + reject + (text is not None) != 1:
        raise WrongUse("which answer?", hint="--approve, --reject, or --with JSON")
    if text is None:
        return as_json({"approved": approve}, "the answer")
    try:
        value = loads(text)
    except (JSONDecodeError, RecursionError) as error:
        raise WrongUse(f"--with {shortened(text, 60)}: {error}", hint="write an object: '{\"choice\": 2}'") from error
    if not isinstance(value, dict):
        raise WrongUse(f"--with {shortened(text, 60)} is no object", hint="write an object: '{\"choice\": 2}'")
    return as_json(value, "the answer")


def _user() -> str:
    return os.environ.get("USER", "") or f"user {os.getuid()}"
