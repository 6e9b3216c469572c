"""`KafkaSink`: writes batches to a topic, at least once through an idempotent producer, exactly once in transactions."""

from functools import cache
from typing import Any

from sabot.codecs.base import Format
from sabot.codecs.formats import format_of
from sabot.connectors.base import ChecksTypes, KeepsToken, Sink, TakesChanges
from sabot.connectors.memory import MemorySink
from sabot.kafka.topics import sink_of


class KafkaSink(Sink, TakesChanges, ChecksTypes, KeepsToken):
    """A sink that writes to a topic of a kafka:// or memory:// broker. The topic is made if it is missing. Changes
    become records with keys, and tombstones. A topic that is made for changes is compacted. An existing topic should
    be compacted too (`cleanup.policy=compact`): otherwise its retention deletes keys that rarely change.

    `format`: the format in which rows become records, JSON by default (docs/formats.md).

    Defaults of the producer: idempotent, `linger.ms` 5, `compression.type` lz4, keys placed as the Java clients place
    them, and with exactly once `transaction.timeout.ms` 60000. Other keyword arguments are settings of the Kafka
    client, with dots: `**{"linger.ms": 50}`.

    Exactly once: a part is one transaction, which readers with `isolation.level=read_committed` see whole. The number
    of the last part is kept as the offset of consumer group `sabot.<app>.<sink>.0` at partition 0 of the topic. No
    other consumer may use that group; the metadata of the offset is the app's incarnation.
    """

    broker: str

    def __new__(cls, *_: Any, **__: Any) -> "KafkaSink":
        made: KafkaSink = super().__new__(_over(cls, MemorySink))
        return made

    def __init__(
        self, topic: str, broker: str = "memory://", *, format: str | Format | None = None, **kafka: Any
    ) -> None:
        """Changes the class of this object to one that also derives from the sink for the address (Kafka or memory),
        so that the methods of that sink are called directly.

        `__new__` cannot choose the class, because a class that derives from KafkaSink may have a constructor with
        other arguments.
        """
        kind, arguments = sink_of(topic, broker, kafka, format_of(format, f"KafkaSink({topic!r})"))
        self.__class__ = _over(type(self).__bases__[0], kind)
        kind.__init__(self, *arguments)
        self.broker = broker

    @property
    def address(self) -> str:
        return f"{self.name}@{self.broker}"


@cache
def _over(face: type[Sink], kind: type[Sink]) -> Any:
    """Returns a class that is a `face` (KafkaSink, or a user's class that derives from it) and works as `kind` does."""
    return type(face.__name__, (face, kind), {"__module__": face.__module__, "__doc__": face.__doc__})
