"""`sabot dlq`: lists, shows and redrives dead letters, the records that could not be processed."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from typing import Annotated, Any

import typer

from sabot.base.config import dead_letter_topic, parse_broker
from sabot.base.logs import set_up_logging
from sabot.base.quantities import counted_words
from sabot.base.redaction import HIDDEN, holds_secret, redacted_url
from sabot.cli.app_checkpoints import find_checkpoints
from sabot.cli.loading import WrongUse, load_app
from sabot.cli.options import Kafka, kafka_settings
from sabot.cli.printing import columns, json_line, moment, plain, shortened
from sabot.cli.running import guarded
from sabot.codecs.records import text_or_hex
from sabot.connectors.base import Sink
from sabot.engine.checkpoint.manifest import Manifest
from sabot.engine.letters.form import DeadLetter
from sabot.engine.letters.late import LateAgain, late_again
from sabot.engine.letters.opening import LetterPlace, opened_letters, steps_dropping_late
from sabot.engine.letters.opening import redrive as send_back
from sabot.engine.letters.pages import (
    LetterFilter,
    LetterPage,
    job_of,
    letter_facts,
    letters_page,
    origin_of,
    record_facts,
)
from sabot.engine.letters.places import Letters
from sabot.engine.letters.redrive import Selection
from sabot.engine.operators.late_rows import span_text
from sabot.errors import UserError

_REMEDIES = {
    "to": "--to TOPIC sends them to a topic of that name",
    "create": "sabot topics create makes it; --to TOPIC sends them to another one",
    "now": "--now gives them the current time",
}
_WHICH = "give --broker kafka://host:port, set SABOT_BROKER, or write sabot -A module:app dlq …"

dlq = typer.Typer(help="List, show and redrive dead letters.", no_args_is_help=True, rich_markup_mode=None)

Topic = Annotated[
    str,
    typer.Argument(
        metavar="TOPIC",
        help="The place of the dead letters: a topic, as in orders.dlq; the path of an NDJSON file or folder, as in ./bad.ndjson; "
        "with --table the address of a database.",
    ),
]
Table = Annotated[
    str | None, typer.Option(metavar="NAME", help="The table of the dead letters, as in SqlSink(URL, table=NAME).")
]
Broker = Annotated[
    str | None, typer.Option(metavar="URL", help="The broker, kafka://host:port; default: that of the app in -A.")
]
Error = Annotated[
    str, typer.Option(metavar="TEXT", help="Only dead letters whose error or message contains this text.")
]
Job = Annotated[
    str | None, typer.Option("--job", metavar="JOB", help="Only dead letters of this job of a durable agent.")
]
Limit = Annotated[int | None, typer.Option(min=1, metavar="N", help="At most this many.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, one object per line.")]


def _place(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+):(\d+)", text, re.ASCII)
    if match is None:
        raise typer.BadParameter(f"{text!r} is not the place of a dead letter: write PARTITION:OFFSET, as in 0:17")
    return int(match[1]), int(match[2])


@dlq.command("list")
def list_(
    context: typer.Context,
    topic: Topic,
    table: Table = None,
    broker: Broker = None,
    kafka: Kafka = None,
    error: Error = "",
    job: Job = None,
    limit: Limit = None,
    everything: Annotated[bool, typer.Option("--all", help="List redriven dead letters too.")] = False,
    json: Json = False,
) -> None:
    """List the dead letters that are not redriven yet, the oldest first: the place, record, agent and error of each."""

    def work() -> None:
        with _opened(context, topic, table, broker, kafka) as dead:
            chosen = LetterFilter(error=error, job=job or "")
            if json:
                for letter in islice(filter(chosen.selects, dead.letters(redriven=everything)), limit or 20):
                    json_line(_facts(letter))
                return
            page = letters_page(dead, chosen, redriven=everything, most=limit or 20)
            titles = ["letter", "written", "record", "agent", "version", "error", "payload"]
            columns([*titles, "redriven"] if everything else titles, [_row(each, everything) for each in page.letters])
            if page.letters:
                typer.echo(_counts_of(page), err=True)

    _run(work)


@dlq.command()
def show(
    context: typer.Context,
    topic: Topic,
    place: Annotated[
        str, typer.Argument(metavar="PARTITION:OFFSET", help="The place of the dead letter, from `list`.")
    ],
    table: Table = None,
    broker: Broker = None,
    kafka: Kafka = None,
    json: Json = False,
) -> None:
    """Show one dead letter whole: the record with its key, headers, topic, partition and offset; and error, agent and code version."""
    partition, offset = _place(place)

    def work() -> None:
        with _opened(context, topic, table, broker, kafka) as dead:
            letter = dead.find(partition, offset)
        facts = _facts(letter)
        if json:
            json_line(facts)
            return
        for name, value in facts.items():
            if name not in ("payload", "headers"):
                typer.echo(f"{name:<10} {_value_shown(name, value)}")
        for name, data in letter.headers:
            typer.echo(f"header     {plain(name)}: {HIDDEN if holds_secret(name, data) else text_or_hex(data)}")
        typer.echo("payload    null" if letter.payload is None else f"payload\n{facts['payload']}")

    _run(work)


@dlq.command()
def redrive(
    context: typer.Context,
    topic: Topic,
    table: Table = None,
    broker: Broker = None,
    kafka: Kafka = None,
    to: Annotated[
        str | None, typer.Option(metavar="TOPIC", help="The topic to send to; default: the topic of each record.")
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(metavar="PARTITION:OFFSET", help="Only this dead letter; repeatable.")
    ] = None,
    skip: Annotated[
        list[str] | None, typer.Option(metavar="PARTITION:OFFSET", help="Not this dead letter; repeatable.")
    ] = None,
    error: Error = "",
    job: Job = None,
    limit: Limit = None,
    late: Annotated[
        str | None,
        typer.Option(metavar="TOPIC", help="The topic for records that the app in -A would find late."),
    ] = None,
    state: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="The state of the app in -A, where sabot run has --state DIR."),
    ] = None,
    now: Annotated[
        bool,
        typer.Option("--now", help="Give records older than the topic's retention the current time; else they stay."),
    ] = False,
    json: Json = False,
) -> None:
    """Redrive dead letters: send each record back, once, to the topic that it came from.

    If the command is killed and run again, it continues where it was; a redriven dead letter is never sent a second time. A dead letter of
    a durable agent runs the same job again: effects that were made are not repeated.

    Records keep their event time. A window, join or pattern whose watermark has passed that time treats the record as late. The record
    then goes to the place in the step's late= ("{topic}.dlq" makes a dead letter of it again), or is dropped and counted in
    sabot_records_late_total. With -A module:app the command says before it sends anything how many records would be late for which step,
    at the watermarks of the app's last checkpoint; --late TOPIC sends these records to a topic of their own.
    """
    places = None if not only else [_place(text) for text in only]
    skipped = {_place(text) for text in skip or []}

    def wanted(letter: DeadLetter) -> bool:
        return letter.says(error) and (letter.partition, letter.offset) not in skipped

    def work() -> None:
        whole = Selection(to or "", places, wanted, limit, now)
        found: LateAgain | None = None
        if (restored := _checkpoint_of(context, state, needed=late is not None)) is not None:
            with _opened(context, topic, table, broker, kafka) as dead:
                found = _late_again(context, restored, dead, whole, job)
        elif said := _late_note(context):
            typer.echo(said, err=True)
        with _opened(context, topic, table, broker, kafka, sends=True) as dead:
            whole = whole if job is None else replace(whole, only=_places_of(dead, job, places))
            if late is None or found is None:
                _send_back(dead, json, whole)
                return
            again = found
            apart = replace(whole, to=late, limit=again.late, wanted=lambda letter: wanted(letter) and letter in again)
            rest = again.read - again.late
            in_time = replace(whole, limit=rest, wanted=lambda letter: wanted(letter) and letter not in again)
            _send_back(dead, json, *([apart, in_time] if again.late and rest else [apart] if again.late else [in_time]))

    _run(work)


def redrive_job(
    context: typer.Context,
    job: str,
    place: str | None,
    table: str | None,
    broker: str | None,
    kafka: list[str] | None,
    json: bool,
) -> None:
    """Redrives the dead letters of a job and prints how many. `place`: their place, or None for that of its agent in the app of -A."""
    with _opened(context, place or _letters_of(context, job), table, broker, kafka, sends=True) as dead:
        _send_back(dead, json, Selection(only=_places_of(dead, job, None)))


def _letters_of(context: typer.Context, job: str) -> str:
    """Returns the dead-letter topic of a job's agent. Raises WrongUse if no app is named, or if the agent has no single such topic."""
    target = context.find_root().obj
    if target is None:
        raise WrongUse(
            f"the place of the dead letter of job {job} is not known",
            hint="give --letters orders.dlq, or write sabot -A module:app jobs retry …",
        )
    agent = load_app(target).spec.agents.get(job.partition("/")[0])
    if agent is None or agent.spec is None:
        raise WrongUse(
            f"{target} has no agent of job {job}", hint="give the place of its dead letter: --letters orders.dlq"
        )
    spec = agent.spec
    if isinstance(spec.dead_letter, Sink) or len(spec.topics) != 1:
        raise WrongUse(
            f"agent {spec.agent_id} has no single topic of dead letters",
            hint="give the place of the dead letter: --letters PLACE",
        )
    return dead_letter_topic(spec.dead_letter, spec.topics[0])


def _late_note(context: typer.Context) -> str:
    """Returns a note on records that a step drops as late, or "" if all steps of the app in -A have a place for late records."""
    fate = (
        "drops late records and counts them in sabot_records_late_total; "
        'late="{topic}.dlq" of the step makes dead letters of them again'
    )
    target = context.find_root().obj
    if target is None:
        return f"records keep their event time: a window, join or pattern that has passed it and has no late= {fate}"
    dropping = steps_dropping_late(load_app(target).spec.ends)
    return f"records keep their event time: {'; '.join(dropping)} {fate}" if dropping else ""


def _checkpoint_of(context: typer.Context, state: str | None, *, needed: bool) -> Manifest | None:
    """Returns the last checkpoint of the app in -A, or None if there is no app or checkpoint. Raises UserError if it is needed."""
    target = context.find_root().obj
    if target is None:
        if needed or state is not None:
            raise WrongUse("late records are those of an app", hint="write sabot -A module:app dlq redrive …")
        return None
    try:
        return find_checkpoints(target, state).manifest()
    except UserError:
        if needed or state is not None:
            raise
        return None


def _late_again(
    context: typer.Context, restored: Manifest, dead: Letters, selection: Selection, job: str | None
) -> LateAgain:
    """Returns which of the selected dead letters would be late, and prints for which steps, by how much, and what helps."""
    ends = load_app(context.find_root().obj).spec.ends
    found = late_again(ends, restored, islice(_selected(dead, selection, job), selection.limit), selection.to)
    at = f"at the watermarks of checkpoint {restored.checkpoint_id}"
    if not found.late:
        typer.echo(f"none of {counted_words(found.read, 'dead letter')} is late {at}", err=True)
    for step in found.steps:
        behind = span_text(step.late_ms)
        fate = (
            f"they go to {step.goes_to}"
            if step.goes_to
            else "it drops them; --late TOPIC sends them to a topic of their own"
        )
        window = f", and an allowed_lateness= greater by {behind} takes them" if step.is_window else ""
        late = f"{step.letters:,} of {counted_words(found.read, 'dead letter')} are too late for {step.step} {at}, by up to {behind}"
        typer.echo(f"{late}: {fate}{window}", err=True)
    return found


def _selected(dead: Letters, selection: Selection, job: str | None) -> Iterator[DeadLetter]:
    """Yields the dead letters that a redrive would send."""
    only = selection.only
    chosen = dead.letters() if only is None else (dead.find(*place) for place in sorted(set(only)))
    for letter in chosen:
        if not letter.redriven and selection.wanted(letter) and (job is None or job_of(letter) == job):
            yield letter


def _send_back(dead: Letters, json: bool, *selections: Selection) -> None:
    """Redrives dead letters and prints how many went to which topic. Raises UserError if some could not be redriven."""
    done = send_back(dead, selections[0])
    for selection in selections[1:]:
        done.add(send_back(dead, selection))
    left = {f"{why} ({_REMEDIES[done.remedies[why]]})": count for why, count in done.left.items()}
    if json:
        json_line({"redriven": done.letters, "already": done.already, "topics": done.topics, "left": left})
    else:
        went = ", ".join(f"{count} to {name}" for name, count in done.topics.items())
        before = f"; {done.already} were redriven before" if done.already else ""
        typer.echo(f"{_letters_are(done.letters)} redriven{': ' + went if went else ''}{before}")
    if left:
        raise UserError("; ".join(f"{_letters_are(count)} not redriven: {why}" for why, count in left.items()))


def _letters_are(count: int) -> str:
    return f"{counted_words(count, 'dead letter')} {'is' if count == 1 else 'are'}"


def _places_of(dead: Letters, job: str, places: list[tuple[int, int]] | None) -> list[tuple[int, int]]:
    """Returns the places of the dead letters of a job. Raises UserError if there are none.

    `places`: the places to choose from, or None for all.
    """
    found = [(each.partition, each.offset) for each in dead.letters(redriven=True) if job_of(each) == job]
    chosen = [place for place in found if places is None or place in places]
    if not chosen:
        raise UserError(
            f"no dead letter here is of job {job}", hint="sabot jobs list shows the jobs, and how they have ended"
        )
    return chosen


def _run(work: Any) -> None:
    set_up_logging("warning")
    raise typer.Exit(guarded(work, debug=False))


@contextmanager
def _opened(
    context: typer.Context,
    place: str,
    table: str | None,
    broker: str | None,
    kafka: list[str] | None,
    *,
    sends: bool = False,
) -> Iterator[Letters]:
    """Opens the dead letters of a place, as `opened_letters` does, with the broker of the command line or of the app in -A."""
    at = LetterPlace(place, table or "")
    address, settings = address_of(context, broker, kafka, needed=sends or not (at.is_file or at.table))
    with opened_letters(at, address, settings, sends=sends) as dead:
        yield dead


def address_of(
    context: typer.Context, broker: str | None, kafka: list[str] | None, *, needed: bool, hint: str = _WHICH
) -> tuple[str | None, dict[str, Any]]:
    """Returns the broker of the command line, of the app in -A or of SABOT_BROKER, and the settings of the Kafka client.

    The broker is None if it is not `needed` and there is none. Raises WrongUse if a needed broker is missing or is memory://. `hint`: the
    hint for a missing broker.
    """
    target = context.find_root().obj
    settings: dict[str, Any] = {}
    asked = broker is not None
    if target is not None:
        app = load_app(target)
        broker, settings = broker or app.broker, dict(app.settings.kafka)
    broker = broker or os.environ.get("SABOT_BROKER") or None
    if broker is None:
        if not needed:
            return None, {}
        raise WrongUse("no broker is given", hint=hint)
    settings |= kafka_settings(kafka)
    try:
        scheme, _ = parse_broker(broker)
    except UserError as error:
        raise WrongUse(error.message, hint=error.hint) from error
    if scheme == "memory":
        if not (needed or asked):
            return None, {}
        raise WrongUse(
            f"{redacted_url(broker)}: the topics of a memory broker end with their process",
            hint="only topics of a kafka:// broker can be read from outside of the app",
        )
    return broker, settings


def _row(letter: DeadLetter, everything: bool) -> list[str]:
    facts, where = letter.facts, origin_of(letter)
    error = shortened(f"{facts.get('error', '?')}: {facts.get('message', '')}", 60)
    payload = "null" if letter.payload is None else shortened(text_or_hex(letter.payload), 40)
    row = [
        letter.place,
        moment(letter.timestamp),
        where,
        facts.get("agent", ""),
        facts.get("version", ""),
        error,
        payload,
    ]
    return [*row, "yes" if letter.redriven else "no"] if everything else row


def _counts_of(page: LetterPage) -> str:
    """Returns how many dead letters are shown of how many, and for what reasons these were written."""
    first = page.messages.most_common(5)
    by_reason = [f"{count:,} × {plain(reason)} in {plain(step)}" for (reason, step), count in first]
    rest = page.found - sum(count for _, count in first)
    reasons = "; ".join([*by_reason, *([f"{rest:,} others"] if rest else [])])
    more = "" if page.complete else " or more"
    return f"{len(page.letters):,} of {page.found:,}{more} dead letters: {reasons}"


def _facts(letter: DeadLetter) -> dict[str, Any]:
    return {**letter_facts(letter), **record_facts(letter)}


def _value_shown(name: str, value: Any) -> str:
    if value is None:
        return "null"
    if name in ("written", "timestamp"):
        return moment(value)
    return ("no", "yes")[value] if isinstance(value, bool) else plain(str(value))
