"""`sabot journal`: shows the entries of a journal of effects; and helpers with which other commands read and write one."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from json import dumps
from typing import Annotated, Any

import typer

from sabot.agents.entry_values import as_plain, readable, value_of
from sabot.base.logs import set_up_logging
from sabot.base.quantities import bytes_words
from sabot.cli.loading import WrongUse
from sabot.cli.options import Kafka, kafka_settings
from sabot.cli.printing import columns, json_line, moment, shortened
from sabot.cli.running import guarded
from sabot.codecs.records import text_or_hex
from sabot.engine.calls.effects import EffectId
from sabot.errors import EffectError, UserError
from sabot.jobs.answers import json_value
from sabot.jobs.guard import decode_verdict
from sabot.jobs.history import IN_DOUBT
from sabot.jobs.open_jobs import last_begin
from sabot.jobs.run import effect_words
from sabot.jobs.url_ids import stored_id
from sabot.journal.base import JournalReader
from sabot.journal.entries import (
    UNSENT,
    Answer,
    Attempt,
    Begin,
    Cancel,
    EffectResult,
    End,
    Entry,
    Intent,
    Letter,
    Signal,
    StoredBody,
    body_of,
    kind_of,
)
from sabot.journal.opening import open_inbox, open_reader

journal = typer.Typer(help="Show the journal of a durable job.", no_args_is_help=True, rich_markup_mode=None)

_WIDTH = 120  # the longest text of an entry in a list, in characters

Place = Annotated[
    str,
    typer.Option(
        "--journal",
        metavar="JOURNAL",
        help="The journal: its folder, the database in it, or a state directory; kafka://host:port/topic; or "
        "postgresql://user@host/database?app=NAME.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, one object per line.")]
By = Annotated[str, typer.Option(metavar="NAME", help="The person who asks for this; default: the user of this shell.")]


def quietly(work: Callable[[], None]) -> None:
    """Does the work of a command, logs only warnings and errors, and exits with the command's code."""
    set_up_logging("warning")
    raise typer.Exit(guarded(work, debug=False))


@contextmanager
def reading(place: str, kafka: list[str] | None) -> Iterator[JournalReader]:
    """Opens a reader of the journal at `place`, and closes it after the block. `kafka`: settings of the Kafka client, NAME=VALUE each."""
    reader = open_reader(place, kafka=kafka_settings(kafka))
    try:
        yield reader
    finally:
        reader.close()


def job_of(place: str, kafka: list[str] | None, text: str) -> str:
    """Returns the id of the job that the text names: the text itself, or the id whose form for URLs it is
    (`JobRecord.url_id`). Opens the journal at `place` only if that is in doubt.
    """
    other = stored_id(text)
    if other == text:
        return text
    with reading(place, kafka) as reader:
        return text if last_begin(reader, text) is not None or reader.history.known([text]) else other


def post(place: str, kafka: list[str] | None, letter: Letter) -> None:
    """Puts a letter (an answer, a signal or a cancel for a job) into the inbox of the journal at `place`. `kafka`:
    settings of the Kafka client, as NAME=VALUE each.
    """
    inbox = open_inbox(place, kafka=kafka_settings(kafka))
    try:
        inbox.post(letter)
    finally:
        inbox.close()


def this_user() -> str:
    """Returns the name of the user who runs the command."""
    return os.environ.get("USER", "") or f"user {os.getuid()}"


def json_of(text: str, option: str) -> Any:
    """Returns the value of an option that is given as JSON. Raises WrongUse if `text` is not JSON."""
    try:
        return json_value(text)
    except UserError as error:
        raise WrongUse(
            f"{option} {shortened(text, 60)} is not JSON: {error.message}", hint="write JSON, as in '{\"choice\": 2}'"
        ) from error


@journal.command("show")
def show_journal(
    job: Annotated[str, typer.Argument(metavar="JOB", help="The id of a job.")],
    place: Place,
    kafka: Kafka = None,
    json: Json = False,
) -> None:
    """Show what a durable job did, entry by entry. --json prints long values whole."""

    def work() -> None:
        with reading(place, kafka) as reader:
            found = list(reader.history.entries(job))
            if not found:
                raise UserError(f"{reader.where} has no entry of job {job}", hint="sabot jobs list shows the jobs")
            if json:
                for position, entry in found:
                    json_line({"place": position.offset, "entry": kind_of(entry), **_fields(reader, entry)})
                return
            rows = [
                [
                    position.offset,
                    moment(entry.at_ms),
                    kind_of(entry),
                    _effect_text(entry),
                    shortened(_entry_text(entry), _WIDTH),
                ]
                for position, entry in found
            ]
            columns(["place", "written", "entry", "effect", "what"], rows)

    quietly(work)


def _fields(reader: JournalReader, entry: Entry) -> dict[str, Any]:
    """Returns the fields of an entry, with its value. Leaves out the token, because it lets its holder answer the question."""
    values = {name: getattr(entry, name) for name in entry.__struct_fields__ if name != "token"}
    if "body" in values:
        values["body"] = as_plain(value_of(entry, reader.load(values["body"])))
    return {name: text_or_hex(value) if isinstance(value, bytes) else value for name, value in values.items()}


def _effect_text(entry: Entry) -> str:
    match entry:
        case Attempt(ordinal=0) | EffectResult(ordinal=0):
            return ""  # the entry is about the job itself
        case Attempt() | EffectResult():
            return str(EffectId("", entry.ordinal, entry.attempt)).removeprefix("/")
        case Intent() | Answer():
            return str(entry.ordinal)
    return ""


def _entry_text(entry: Entry) -> str:
    said = _body_text(entry)
    match entry:
        case Begin():
            words = [entry.agent, entry.code, said]
        case Attempt():
            words = [f"attempt {entry.attempt}", "was not sent" if entry.note == UNSENT else ""]
            if (verdict := decode_verdict(entry.note)) is not None:
                words += [f"{verdict.model or verdict.about} in place: {verdict.decision}", verdict.reason]
        case Intent():
            words = _intent_words(entry, said)
        case EffectResult():
            words = [said or entry.outcome] if entry.outcome != "ok" else ["ok", said]
        case Answer():
            words = [entry.outcome, entry.by and f"by {entry.by}", said]
        case Signal():
            words = [entry.name, entry.by and f"by {entry.by}", said]
        case Cancel():
            words = [entry.by and f"by {entry.by}", entry.reason]
        case End():
            words = [entry.outcome, entry.result if not said or entry.outcome == "cancelled" else said]
    return " ".join(filter(None, words))


def _intent_words(intent: Intent, said: str) -> list[str]:
    due = f"until {moment(intent.due_ms)}" if intent.due_ms else ""
    if intent.kind == "call":
        return [f"call {intent.name}{said}", f"({intent.effect_class})"]
    if intent.name == IN_DOUBT:
        payload = value_of(intent, b"" if isinstance(intent.body, StoredBody) else intent.body)
        if isinstance(payload, dict) and "effect" in payload:
            return [f"ask {IN_DOUBT}: was attempt {payload.get('attempt', 1)} of {payload['effect']} done?"]
    return [effect_words(intent.kind, intent.name), intent.effect_class and f"({intent.effect_class})", due, said]


def _body_text(entry: Entry) -> str:
    body = body_of(entry)
    if isinstance(body, StoredBody):
        return f"[{bytes_words(body.size)}]"
    value = value_of(entry, body or b"")
    if isinstance(entry, Intent) and entry.kind == "call":
        return arguments_text(value)
    return value_text(value, as_json=isinstance(entry, Answer | Signal) or getattr(entry, "kind", "") == "ask")


def arguments_text(value: Any) -> str:
    """Returns the arguments of a call, [args, kwargs], as Python writes them."""
    value = readable(value)
    match value:
        case [list() as args, dict() as named]:
            return f"({', '.join([*map(repr, args), *(f'{name}={each!r}' for name, each in named.items())])})"
    return f" {value_text(value)}" if value is not None else ""


def value_text(value: Any, *, as_json: bool = False) -> str:
    """Returns a value from `value_of` as text: an error as `Type: message`, other values as Python writes them.

    `as_json`: True if other values are written as JSON.
    """
    match value:
        case None:
            return ""
        case EffectError():
            return f"{value.type}: {value.message}"
        case bytes():
            return text_or_hex(value)
    return dumps(as_plain(value), ensure_ascii=False) if as_json else repr(readable(value))
