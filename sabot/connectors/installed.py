"""The connectors that SQL and the command line know by name: those of Sabot, and those that other packages declare.

A package declares one by an entry point of the group "sabot.connectors", whose object is a `Connector`:

   [project.entry-points."sabot.connectors"]
   tape = "tapes:connector"
"""

import re
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from sabot.base.dataclass import dataclass
from sabot.connectors.base import Delivers, Sink, Source
from sabot.errors import UserError, message_of, short_repr

__all__ = ["Connector", "installed", "summary"]

GROUP = "sabot.connectors"
COLUMNS = ("connector", "reads", "writes", "install", "package")


@dataclass(frozen=True)
class Connector:
    """A source and a sink under one name, each as "module:Class" or "", so that nothing is imported before it is used.

    `options`: the names of the options that a table in SQL may have. They are arguments of one class or of both, with `_` in
    place of `.` and `-`, and texts; an argument without a default must be given. A source that takes a bound has the options of
    topics about start and end too. `extra`: the extra of Sabot that has the library.
    """

    name: str
    source: str = ""
    sink: str = ""
    options: Sequence[str] = ()
    extra: str = ""
    package: str = "sabot"

    def load(self, kind: "type[Source] | type[Sink]") -> Any:
        """Returns the class of the source or of the sink. Raises UserError."""
        place = self.source if kind is Source else self.sink
        module, _, name = place.partition(":")
        try:
            found = getattr(import_module(module), name)
        except (ImportError, AttributeError, ValueError) as error:
            raise UserError(
                f"connector {self.name} of package {self.package}: {place!r} cannot be imported: {message_of(error)}"
            ) from error
        if not (isinstance(found, type) and issubclass(found, kind)):
            raise UserError(f"connector {self.name} of package {self.package}: {place} is no {kind.__name__}")
        return found


_TABLE = "sabot.connectors.generated:GeneratorSource"  # read once, in the order of the key
_SQL = "sabot.connectors.sql:SqlSink"
_FILES = "sabot.connectors.files:FileSource", "sabot.connectors.files.sink:FileSink"
_KAFKA = "sabot.kafka.reader:KafkaReader", "sabot.kafka:KafkaSink"
_CONSOLE = "sabot.connectors.console:ConsoleSink"
OURS = (
    Connector("kafka", *_KAFKA),
    Connector("upsert-kafka", *_KAFKA),
    Connector("memory", "sabot.connectors.memory:MemorySource", "sabot.connectors.memory:MemorySink"),
    Connector("agent", "sabot.engine.runtime.agents.output:AgentOutput"),
    Connector("files", *_FILES),
    Connector("filesystem", *_FILES),
    Connector("sqlite", _TABLE, _SQL),
    Connector("duckdb", _TABLE, _SQL, extra="duckdb"),
    Connector("postgres", _TABLE, _SQL, extra="postgres"),
    Connector("jdbc", _TABLE, _SQL),
    Connector("postgres-cdc", "sabot.connectors.postgres:PostgresChanges", extra="postgres"),
    Connector(
        "redis-streams",
        "sabot.connectors.redis:RedisStreamSource",
        "sabot.connectors.redis:RedisStreamSink",
        options=("url", "stream", "group", "field", "maxlen"),
        extra="redis",
    ),
    Connector("delta", "sabot.connectors.delta:DeltaSource", "sabot.connectors.delta:DeltaSink", extra="delta"),
    Connector(
        "iceberg", "sabot.connectors.iceberg:IcebergSource", "sabot.connectors.iceberg:IcebergSink", extra="iceberg"
    ),
    Connector("http", sink="sabot.connectors.http:HttpSink", extra="http"),
    Connector("poll", "sabot.connectors.http:PollSource", extra="http"),
    Connector("sse", "sabot.connectors.http:SseSource", extra="http"),
    Connector("webhook", "sabot.connectors.http:WebhookSource"),
    Connector("websocket", "sabot.connectors.http:WebsocketSource", extra="http"),
    Connector("datagen", "sabot.connectors.datagen:GeneratedSource"),
    Connector("faker", "sabot.connectors.datagen:GeneratedSource"),
    Connector("print", sink=_CONSOLE),
    Connector("console", sink=_CONSOLE),
    Connector("blackhole", sink="sabot.sql.catalog:BlackholeSink"),
)


def installed() -> dict[str, Connector]:
    """Returns all connectors by name. Raises UserError for a package whose connector cannot be used, and for a name of two."""
    from importlib.metadata import entry_points  # here, since programs in Python do without it

    found = {each.name: each for each in OURS}
    for entry in entry_points(group=GROUP):
        package = entry.dist.name if entry.dist is not None else entry.value
        where = f"connector {entry.name} of package {package}"
        try:
            given = entry.load()
        except Exception as error:  # the package may raise anything
            raise UserError(
                f"{where} cannot be loaded: {type(error).__name__}: {message_of(error)}", hint="update or uninstall it"
            ) from error
        if not isinstance(given, Connector) or given.name != entry.name:
            raise UserError(f"{where} is {short_repr(given)}", hint=f"a sabot.connectors.Connector({entry.name!r}, …)")
        if given.name in found:
            raise UserError(
                f"{where} has the name of one of package {found[given.name].package}", hint="uninstall one of the two"
            )
        found[given.name] = Connector(given.name, given.source, given.sink, given.options, given.extra, package)
    return found


def summary() -> list[tuple[str, ...]]:
    """Returns a row of COLUMNS for each connector: what a crash does to its rows, and what has to be installed, if anything."""
    return [
        (
            each.name,
            _guarantee(each.load(Source)) if each.source else "",
            _guarantee(each.load(Sink)) if each.sink else "",
            f"pip install 'sabot[{each.extra}]'" if each.extra and _lacks(each.extra) else "",
            each.package,
        )
        for each in installed().values()
    ]


def _guarantee(kind: Any) -> str:
    """Returns the best guarantee of a class; that of one source or sink is in `delivery.guarantees`."""
    if issubclass(kind, Source):
        said: object = kind.guarantee
        if not isinstance(said, str):
            return "depends on its options"
        return said if kind.log_id is Source.log_id else f"{said} in one process"
    if not issubclass(kind, Delivers) or (isinstance(kind.repeats, str) and kind.repeats):  # a face has a property
        return "at least once"
    return "exactly once" if kind.lasting else "exactly once in one process"


def _lacks(extra: str) -> bool:
    """Returns True if a library of an extra of Sabot is not installed."""
    from importlib.metadata import PackageNotFoundError, distribution, requires

    marked = re.compile(rf"([\w.-]+).*;.*extra == ['\"]{re.escape(extra)}['\"]")
    try:
        for each in filter(None, map(marked.match, requires("sabot") or ())):
            distribution(each[1])
    except PackageNotFoundError:
        return True
    return False
