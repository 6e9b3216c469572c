"""One record at a time, with its offset: what `App.send` uses."""

import threading
from collections.abc import Mapping
from typing import Any

from sabot.codecs.records import Headers
from sabot.config import parse_broker
from sabot.connectors.memory import MemoryBroker

__all__ = ["RecordSender"]


class RecordSender:
    """Sends records to topics of a kafka:// or memory:// broker, from any event loop and thread. `close` it
    at the end.
    """

    def __init__(self, broker: str, kafka: Mapping[str, Any] | None = None) -> None:
        self.broker = broker
        self._memory = parse_broker(broker)[0] == "memory"
        self._kafka_settings = dict(kafka or {})
        self._lock = threading.Lock()
        self._kafka: Any = None

    async def send(
        self,
        topic: str,
        payload: bytes | None,
        key: bytes | None = None,
        headers: Headers = (),
        timestamp: int | None = None,
        partition: int | None = None,
    ) -> int:
        """The offset of the record, once the broker has it. `timestamp` is ms, default now; the topic is made
        if missing.

        Raises BrokerUnavailable (naming the address), UserError (partition, rights), DataError (too large) or
        TransientError. A call that is cancelled may still send.
        """
        if self._memory:
            return await MemoryBroker.get(self.broker).send(topic, payload, key, headers, timestamp, partition)
        offset: int = await self._sender().send(topic, payload, key, headers, timestamp, partition)
        return offset

    def _sender(self) -> Any:
        with self._lock:
            if self._kafka is None:
                from sabot.kafka.writer import KafkaSender

                self._kafka = KafkaSender(self.broker, self._kafka_settings)
            return self._kafka

    def close(self) -> None:
        """Waits up to 5 s for what is on its way, then lets go. Idempotent."""
        with self._lock:
            sender, self._kafka = self._kafka, None
        if sender is not None:
            sender.close()
