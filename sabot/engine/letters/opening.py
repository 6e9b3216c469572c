"""The places into which an app writes dead letters, opened by their kind, and the way back through their broker."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sabot.api.agent import AgentSpec
from sabot.api.nodes.node import walk
from sabot.api.nodes.read import StreamEnd
from sabot.base.config import legal_topic, parse_broker
from sabot.connectors.base import Sink
from sabot.connectors.files import NdjsonSink
from sabot.connectors.files.paths import bare_suffix
from sabot.connectors.memory import MemoryBroker
from sabot.connectors.sql import SqlSink
from sabot.engine.letters.files import FileHome
from sabot.engine.letters.memory import MemoryLetters
from sabot.engine.letters.memory import redrive as redrive_in_memory
from sabot.engine.letters.places import Home, Letters
from sabot.engine.letters.redrive import Redriven, Selection
from sabot.engine.letters.tables import TableHome
from sabot.engine.plan import letter_sinks
from sabot.errors import UserError


@dataclass(frozen=True)
class LetterPlace:
    """A place of dead letters. `name`: a topic, the path of an NDJSON file or folder, or, with a `table`, the address of a
    database. `table`: its name, or "". `broker`: the address of the broker of a topic if it is not that of the app, or "".
    `unread`: the reason why no dead letters can be read there, or "".
    """

    name: str
    table: str = ""
    broker: str = ""
    unread: str = ""

    def opened_home(self) -> Home | None:
        """Returns the file or table, or None for a topic. A name with a slash or the suffix .ndjson is a path. Raises UserError."""
        if self.unread:
            raise UserError(self.unread)
        if self.table:
            return TableHome(self.name, self.table)
        return FileHome(self.name) if self.is_file else None

    @property
    def is_file(self) -> bool:
        """True if the place is a file or folder."""
        return not self.table and ("/" in self.name or bare_suffix(self.name) == ".ndjson")


@contextmanager
def opened_letters(
    place: LetterPlace, broker: str | None, kafka: Mapping[str, Any], *, sends: bool = False
) -> Iterator[Letters]:
    """Opens the dead letters of a place. `sends`: True if they are to be redriven.

    The notes on which dead letters were redriven are on the broker, for every kind of place. Dead letters in a file or table can be
    read without a broker (None); then all of them count as not redriven.
    """
    home = place.opened_home()
    try:
        if broker is None:
            if home is None:
                raise UserError(f"topic {place.name!r} cannot be read without a broker")
            yield Letters(home)
            return
        name = place.name if home is None else legal_topic(home.name)
        if parse_broker(broker)[0] == "memory":
            dead: Any = MemoryLetters(name, MemoryBroker.get(broker), home=home)
        else:
            from sabot.engine.letters.topics import DeadLetters  # here, because this loads the Kafka client

            dead = DeadLetters(name, broker, kafka, home=home)
        try:
            if not sends:
                dead.read_notes()
            yield dead
        finally:
            dead.close()
    finally:
        if home is not None:
            home.close()


def redrive(dead: Letters, selection: Selection) -> Redriven:
    """Sends the selected dead letters back through the broker with which they were opened, each once. Raises UserError if there is
    none.
    """
    if isinstance(dead, MemoryLetters):
        return redrive_in_memory(dead, selection)
    if type(dead) is Letters:
        raise UserError("dead letters are sent back to the topics of a broker, and none is given")
    from sabot.engine.letters.topics import DeadLetters  # here, because this loads the Kafka client
    from sabot.engine.letters.topics import redrive as redrive_in_kafka

    assert isinstance(dead, DeadLetters)
    return redrive_in_kafka(dead, selection)


def letter_places(ends: Sequence[StreamEnd], specs: Sequence[AgentSpec]) -> list[LetterPlace]:
    """Returns the places into which the streams and agents of an app write dead letters, each once, in the order of the program."""
    return list(dict.fromkeys(map(_place_of, letter_sinks(specs, ends))))


def _place_of(sink: str | Sink) -> LetterPlace:
    if isinstance(sink, str):
        return LetterPlace(sink)
    if isinstance(sink, SqlSink):
        return LetterPlace(sink.url, sink.name)
    if isinstance(sink, NdjsonSink):
        name = sink.name if "/" in sink.name else f"./{sink.name}"
        return LetterPlace(name)
    if isinstance(broker := getattr(sink, "broker", None), str):  # a KafkaSink, whose module loads the Kafka client
        return LetterPlace(sink.name, broker=broker)
    return LetterPlace(sink.name, unread=f"dead letters in {type(sink).__name__} cannot be read back")


def steps_dropping_late(ends: Iterable[StreamEnd]) -> list[str]:
    """Returns the texts of the steps that drop late rows, because they have no place for them. A record that is sent back keeps its
    event time, so these steps may drop it.
    """
    return [node.text() for node in walk(ends) if node.needs_time and vars(node).get("late", "") is None]
