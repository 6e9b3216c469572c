"""`sabot dlq`: lists and shows dead letters, and sends them back."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Annotated, Any

import typer

from sabot.agents.progress import text_or_hex
from sabot.api.nodes.node import walk
from sabot.cli.loading import WrongUse, load_app
from sabot.cli.options import Kafka, kafka_settings
from sabot.cli.printing import columns, json_line, moment, plain, shortened
from sabot.cli.running import guarded
from sabot.config import dead_letter_topic, legal_topic, parse_broker
from sabot.connectors.base import Sink
from sabot.connectors.files.letters import FileHome
from sabot.connectors.files.paths import bare_suffix
from sabot.connectors.letters import DeadLetter, Home, Letters
from sabot.connectors.sql.letters import TableHome
from sabot.errors import UserError
from sabot.logs import set_up_logging
from sabot.operators.agents.job_rows import JOB_HEADER
from sabot.redaction import redacted_url

_WHICH = "--broker kafka://host:port, or sabot -A module:app dlq …"

dlq = typer.Typer(help="Dead letters in Kafka topics, files and tables.", no_args_is_help=True, rich_markup_mode=None)

Topic = Annotated[
    str,
    typer.Argument(
        metavar="TOPIC",
        help="Where they are: a topic, as in orders.dlq; the path of an NDJSON file or folder, as in ./bad.ndjson; "
        "with --table the address of a database.",
    ),
]
Table = Annotated[
    str | None, typer.Option(metavar="NAME", help="They are in this table, as in SqlSink(URL, table=NAME).")
]
Broker = Annotated[str | None, typer.Option(metavar="URL", help="kafka://host:port; default: that of the app in -A")]
Error = Annotated[str, typer.Option(metavar="TEXT", help="Only letters whose error or message has this text.")]
Job = Annotated[str | None, typer.Option("--job", metavar="JOB", help="Only letters of this job of a durable agent.")]
Limit = Annotated[int | None, typer.Option(min=1, metavar="N", help="At most so many.")]
Json = Annotated[bool, typer.Option("--json", help="JSON, an object on a line.")]


def _place(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+):(\d+)", text, re.ASCII)
    if match is None:
        raise typer.BadParameter(f"{text!r} is no place: write PARTITION:OFFSET, as in 0:17")
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
    everything: Annotated[bool, typer.Option("--all", help="Those that were redriven too.")] = False,
    json: Json = False,
) -> None:
    """The letters that wait: where each stands, what it was, and what happened to it. The oldest come first."""

    def work() -> None:
        with _opened(context, topic, table, broker, kafka) as dead:
            found = (
                each for each in dead.letters(redriven=everything) if each.says(error) and job in (None, _job_of(each))
            )
            chosen = islice(found, limit or 20)
            if json:
                for letter in chosen:
                    json_line(_facts(letter))
                return
            rows = [_row(letter, everything) for letter in chosen]
            titles = ["letter", "written", "record", "agent", "version", "error", "payload"]
            columns([*titles, "redriven"] if everything else titles, rows)

    _run(work)


@dlq.command()
def show(
    context: typer.Context,
    topic: Topic,
    place: Annotated[str, typer.Argument(metavar="PARTITION:OFFSET", help="Which letter.")],
    table: Table = None,
    broker: Broker = None,
    kafka: Kafka = None,
    json: Json = False,
) -> None:
    """One letter whole: payload, key and headers, topic, partition and offset of the record, error, agent and code version."""
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
                typer.echo(f"{name:<10} {_shown(name, value)}")
        for name, data in letter.headers:
            typer.echo(f"header     {plain(name)}: {text_or_hex(data)}")
        typer.echo("payload    null" if letter.payload is None else f"payload\n{facts['payload']}")

    _run(work)


@dlq.command()
def redrive(
    context: typer.Context,
    topic: Topic,
    table: Table = None,
    broker: Broker = None,
    kafka: Kafka = None,
    to: Annotated[str | None, typer.Option(metavar="TOPIC", help="Not where they came from, but there.")] = None,
    only: Annotated[list[str] | None, typer.Option(metavar="PARTITION:OFFSET", help="This letter; repeatable.")] = None,
    skip: Annotated[list[str] | None, typer.Option(metavar="PARTITION:OFFSET", help="Not this; repeatable.")] = None,
    error: Error = "",
    job: Job = None,
    limit: Limit = None,
    now: Annotated[
        bool, typer.Option("--now", help="The time of now for those older than what the topic keeps, which else stay.")
    ] = False,
    json: Json = False,
) -> None:
    """Send the letters that wait back to the topics that they came from, each once.

    Killed and started again it goes on where it was; a letter that was redriven is never sent a second time. A letter of a durable agent is
    the same job again: what it had done stays done.

    Records keep their event time. A window, a join or a pattern whose event time has gone beyond it takes the record for late: it goes
    where late= of that step says ("{topic}.dlq": to the letters again), else it is dropped, and counted in sabot_records_late_total.
    """
    places = None if not only else [_place(text) for text in only]
    skipped = {_place(text) for text in skip or []}

    def work() -> None:
        with _opened(context, topic, table, broker, kafka, sends=True) as dead:
            chosen = places if job is None else _places_of(dead, job, places)
            if said := _late_again(context):
                typer.echo(said, err=True)
            _send_back(dead, json, to=to, only=chosen, error=error, limit=limit, skip=skipped, now=now)

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
    """Sends the letters of a job back, and says so. place: where they are; None: where the app of -A says."""
    with _opened(context, place or _letters_of(context, job), table, broker, kafka, sends=True) as dead:
        _send_back(dead, json, only=_places_of(dead, job, None))


def _letters_of(context: typer.Context, job: str) -> str:
    """The topic of the dead letters of a job's agent. Raises WrongUse where the app does not say it."""
    target = context.find_root().obj
    if target is None:
        raise WrongUse("where is its dead letter?", hint="--letters orders.dlq, or sabot -A module:app jobs retry …")
    agent = load_app(target).agent_runtime.agents.get(job.partition("/")[0])
    if agent is None or agent.spec is None:
        raise WrongUse(f"job {job}: {target} has no agent of this job", hint="--letters orders.dlq")
    spec = agent.spec
    if isinstance(spec.dead_letter, Sink) or len(spec.topics) != 1:
        raise WrongUse(f"agent {spec.agent_id} has no one topic of dead letters", hint="--letters says where to look")
    return dead_letter_topic(spec.dead_letter, spec.topics[0])


def _late_again(context: typer.Context) -> str:
    """Says what becomes of records that are late for a step by event time; "" where all steps of the app have a place for them."""
    fate = 'drops them, counted in sabot_records_late_total; late="{topic}.dlq" of the step makes letters of them again'
    target = context.find_root().obj
    if target is None:
        return f"records keep their event time: a window, join or pattern that is beyond it, and has no late=, {fate}"
    dropping = [
        node.text() for node in walk(load_app(target).ends()) if node.needs_time and vars(node).get("late", "") is None
    ]
    return f"of records whose event time it has passed, {'; '.join(dropping)} {fate}" if dropping else ""


def _send_back(dead: Letters, json: bool, **chosen: Any) -> None:
    """Redrives letters, and says which went. Raises UserError for those that stay."""
    from sabot.kafka.letters import DeadLetters  # imported late, because this loads the Kafka client
    from sabot.kafka.redrive import redrive as send_back

    assert isinstance(dead, DeadLetters)
    done = send_back(dead, **chosen)
    if json:
        json_line({"redriven": done.letters, "already": done.already, "topics": done.topics, "left": done.left})
    else:
        went = ", ".join(f"{count} to {name}" for name, count in done.topics.items())
        before = f"; {done.already} were redriven before" if done.already else ""
        typer.echo(f"{done.letters} letters are redriven{': ' + went if went else ''}{before}")
    if done.left:
        raise UserError("; ".join(f"{count} letters stay: {why}" for why, count in done.left.items()))


def _job_of(letter: DeadLetter) -> str | None:
    """The job of a durable agent that the letter is about."""
    found = next((value for name, value in reversed(letter.headers) if name == JOB_HEADER), None)
    return None if found is None else found.decode(errors="replace")


def _places_of(dead: Letters, job: str, places: list[tuple[int, int]] | None) -> list[tuple[int, int]]:
    """Where the letters of this job are, among those of `places`. Raises UserError where there are none."""
    found = [(each.partition, each.offset) for each in dead.letters(redriven=True) if _job_of(each) == job]
    chosen = [place for place in found if places is None or place in places]
    if not chosen:
        raise UserError(
            f"no letter here is of job {job}", hint="sabot jobs list shows the jobs, and how they have ended"
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
    """The dead letters of a place. A topic is on a broker, and the notes on redriven letters are on a broker for every kind of place.

    Letters in a file or table can be read without a broker; then nothing is known about which were redriven.
    """
    home = _home(place, table)
    try:
        address, settings = address_of(context, broker, kafka, needed=sends or home is None)
        if address is None:
            assert home is not None
            yield Letters(home)
            return
        from sabot.kafka.letters import DeadLetters  # imported late, because this loads the Kafka client

        dead = DeadLetters(place if home is None else legal_topic(home.name), address, settings, home=home)
        try:
            if not sends:
                dead.read_notes()
            yield dead
        finally:
            dead.close()
    finally:
        if home is not None:
            home.close()


def _home(place: str, table: str | None) -> Home | None:
    """The place of the letters, or None for a topic. A name with a slash, or with the suffix of a file format, is taken for a path."""
    if table is not None:
        return TableHome(place, table)
    return FileHome(place) if "/" in place or bare_suffix(place) == ".ndjson" else None


def address_of(
    context: typer.Context, broker: str | None, kafka: list[str] | None, *, needed: bool, hint: str = _WHICH
) -> tuple[str | None, dict[str, Any]]:
    """The broker from the command line or the app (None where there is none and none is needed), and settings of the Kafka client."""
    target = context.find_root().obj
    settings: dict[str, Any] = {}
    asked = broker is not None
    if target is not None:
        app = load_app(target)
        broker, settings = broker or app.broker, dict(app.settings.kafka)
    if broker is None:
        if not needed:
            return None, {}
        raise WrongUse("which broker?", hint=hint)
    settings |= kafka_settings(kafka)
    try:
        scheme, _ = parse_broker(broker)
    except UserError as error:
        raise WrongUse(error.message, hint=error.hint) from error
    if scheme == "memory":
        if not (needed or asked):
            return None, {}
        raise WrongUse(
            f"{redacted_url(broker)}: what it held went with its process",
            hint="topics outlive the app on a kafka:// broker",
        )
    return broker, settings


def _row(letter: DeadLetter, everything: bool) -> list[str]:
    facts = letter.facts
    where = f"{facts.get('topic', '?')}[{facts.get('partition', '?')}]@{facts.get('offset', '?')}"
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


def _facts(letter: DeadLetter) -> dict[str, Any]:
    numbers = {"partition", "offset", "timestamp", "attempts"}
    record = {name: letter.number(name) if name in numbers else value for name, value in letter.facts.items()}
    return {
        "letter": letter.place,
        "written": letter.timestamp,
        "redriven": letter.redriven,
        **record,
        "key": None if letter.key is None else text_or_hex(letter.key),
        "headers": [[name, text_or_hex(value)] for name, value in letter.headers],
        "payload": None if letter.payload is None else text_or_hex(letter.payload),
    }


def _shown(name: str, value: Any) -> str:
    if value is None:
        return "null"
    if name in ("written", "timestamp"):
        return moment(value)
    return ("no", "yes")[value] if isinstance(value, bool) else plain(str(value))
