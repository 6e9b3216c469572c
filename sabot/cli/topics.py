"""`sabot topics`: lists, makes and describes the topics of a Kafka broker, and prints their last records."""

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sabot.base.config import checked_topic
from sabot.base.logs import set_up_logging
from sabot.cli.letters import Broker, address_of
from sabot.cli.loading import WrongUse
from sabot.cli.options import Kafka, kafka_settings
from sabot.cli.printing import columns, json_line, moment, plain, shortened
from sabot.cli.running import guarded
from sabot.codecs.records import text_or_hex
from sabot.errors import UserError

if TYPE_CHECKING:
    from sabot.kafka.log import TopicLog

topics = typer.Typer(
    help="List, make and read the topics of a Kafka broker.", no_args_is_help=True, rich_markup_mode=None
)

Topic = Annotated[str, typer.Argument(metavar="TOPIC", help="The name of the topic.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, one object per line.")]


@topics.command("list")
def list_(context: typer.Context, broker: Broker = None, kafka: Kafka = None, json: Json = False) -> None:
    """List the topics and their numbers of partitions, without the internal topics of the broker."""

    def work() -> None:
        from sabot.kafka import admin  # here and below, because this loads the Kafka client

        url, settings = _broker(context, broker, kafka)
        found = sorted(admin.topics(url, kafka=settings).items())
        if json:
            for name, partitions in found:
                json_line({"topic": name, "partitions": partitions})
        else:
            columns(["topic", "partitions"], found)

    _run(work)


@topics.command()
def create(
    context: typer.Context,
    topic: Topic,
    broker: Broker = None,
    kafka: Kafka = None,
    partitions: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="The number of partitions; default: the broker's.")
    ] = None,
    config: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="A setting of a new topic, as in cleanup.policy=compact; repeatable."),
    ] = None,
) -> None:
    """Make a topic. A topic that exists gets more partitions if it has fewer, and keeps its settings."""

    def work() -> None:
        from sabot.kafka import admin

        url, settings = _broker(context, broker, kafka)
        checked_topic(topic, "topics create", kafka=True)
        before = admin.partitions(url, topic, kafka=settings)
        if before and config:
            raise UserError(
                f"topic {topic!r} exists already and keeps its settings",
                hint="leave --config out, or change the settings with the broker's own tools",
            )
        if partitions is not None and before > partitions:
            raise UserError(
                f"topic {topic!r} has {before} partitions already, and a topic cannot lose partitions",
                hint=f"give --partitions {before} or more",
            )
        admin.create_topic(url, topic, partitions or -1, config=kafka_settings(config, "--config"), kafka=settings)
        now = admin.partitions(url, topic, kafka=settings)
        what = "is made" if not before else "has grown" if now > before else "exists already"
        typer.echo(f"topic {topic} {what}: partitions {now}")

    _run(work)


@topics.command()
def describe(
    context: typer.Context, topic: Topic, broker: Broker = None, kafka: Kafka = None, json: Json = False
) -> None:
    """Show the partitions of a topic: the first offset, the offset after the last record, and the number of offsets between them.

    A partition can have fewer records than offsets.
    """

    def work() -> None:
        with _log_of(context, topic, broker, kafka) as log:
            bounds = [(index, *log.bounds(topic, index)) for index in log.partitions(topic)]
        if json:
            for index, first, end in bounds:
                json_line({"partition": index, "first": first, "end": end})
        else:
            rows = [(index, first, end, end - first) for index, first, end in bounds]
            columns(["partition", "first", "end", "offsets"], rows)

    _run(work)


@topics.command()
def tail(
    context: typer.Context,
    topic: Topic,
    broker: Broker = None,
    kafka: Kafka = None,
    count: Annotated[int, typer.Option("-n", min=0, metavar="N", help="The number of records of each partition.")] = 10,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Print new records too, until Ctrl-C.")] = False,
    json: Json = False,
) -> None:
    """Print the last records of each partition of a topic, in the order of their timestamps. No offset is committed."""

    def work() -> None:
        found: list[Any] = []
        with _log_of(context, topic, broker, kafka) as log:
            ends = {index: log.bounds(topic, index)[1] for index in log.partitions(topic)}
            for index, end in ends.items():
                found += _last(log, topic, index, count, end)
            # The sort is stable: records of a partition with equal timestamps keep their order.
            found.sort(key=lambda message: message.timestamp()[1])
            if json:
                for message in found:
                    json_line(_json_of(message))
            elif found or not follow:
                columns(["record", "written", "key", "payload"], [_row_of(message) for message in found])
            for message in log.follow(topic, ends) if follow else ():
                if message is not None and json:
                    json_line(_json_of(message))
                elif message is not None:
                    typer.echo("  ".join(map(plain, _row_of(message))))

    _run(work)


def _json_of(message: Any) -> dict[str, Any]:
    return {
        "partition": message.partition(),
        "offset": message.offset(),
        "timestamp": message.timestamp()[1],
        "key": _text(message.key()),
        "headers": [[name, _text(value)] for name, value in message.headers() or ()],
        "payload": _text(message.value()),
    }


def _text(data: bytes | None) -> str | None:
    return None if data is None else text_or_hex(data)


def _row_of(message: Any) -> list[str]:
    return [
        f"{message.partition()}:{message.offset()}",
        moment(message.timestamp()[1]),
        shortened(text_or_hex(message.key()), 24),
        "null" if message.value() is None else shortened(text_or_hex(message.value()), 100),
    ]


def _last(log: "TopicLog", topic: str, index: int, count: int, end: int) -> "deque[Any]":
    """Returns the last `count` records of a partition before the offset `end`, or all if there are fewer.

    Transaction markers, and records that compaction has removed, take offsets too: so this looks further back until it has enough.
    """
    first = log.bounds(topic, index)[0]
    span = count
    while True:
        begin = max(first, end - span)
        found = deque(log.messages(topic, index, begin, end), maxlen=count)
        if len(found) == count or begin == first:
            return found
        span *= 4


@contextmanager
def _log_of(context: typer.Context, topic: str, broker: str | None, kafka: list[str] | None) -> "Iterator[TopicLog]":
    from sabot.kafka.client import link_of
    from sabot.kafka.log import TopicLog

    url, settings = _broker(context, broker, kafka)
    log = TopicLog(f"sabot.topics.{topic}", link_of(url, f"topic {topic!r}", settings), settings)
    try:
        yield log
    finally:
        log.close()


def _broker(context: typer.Context, broker: str | None, kafka: list[str] | None) -> tuple[str, dict[str, Any]]:
    hint = "give --broker kafka://host:port, set SABOT_BROKER, or write sabot -A module:app topics …"
    url, settings = address_of(context, broker, kafka, needed=True, hint=hint)
    if url is None:
        raise WrongUse("no broker is given", hint=hint)
    return url, settings


def _run(work: Callable[[], None]) -> None:
    set_up_logging("warning")
    raise typer.Exit(guarded(work, debug=False))
