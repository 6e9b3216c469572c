"""Kafka topics as sources and sinks. The same classes read and write topics of memory:// (`topics` chooses the connector).

Importing this room does not load the Kafka client; the first kafka:// address does.
"""

from sabot.kafka.sink import KafkaSink
from sabot.kafka.source import KafkaSource
from sabot.kafka.topics import RecordSender, lost_brokers, open_sink, open_source

__all__ = ["KafkaSink", "KafkaSource", "RecordSender", "lost_brokers", "open_sink", "open_source"]
