"""Topics that a program declares: the start of the app creates those that are missing."""

import logging
from collections.abc import Mapping
from functools import partial

from sabot.api.lifespan import HasLifespan
from sabot.api.settings import Settings
from sabot.base.arrays import python_value
from sabot.base.checks import is_whole
from sabot.base.config import checked_topic
from sabot.base.threads import run_in_thread
from sabot.errors import UserError
from sabot.kafka.topics import make_topic

_log = logging.getLogger(__name__)


class HasTopics(HasLifespan):
    """The methods of an App that declare topics."""

    settings: Settings

    def topic(self, name: str, *, partitions: int, config: Mapping[str, str] | None = None) -> str:
        """Declares a topic with this number of partitions, and returns its name: `orders = app.topic("orders",
        partitions=6)`.

        When the app starts, it creates the topic if it is missing, before `on_start` and the first record. An
        existing topic is not changed; if it has fewer partitions, a warning is logged. For topics that are not
        declared, the broker decides the number of partitions.

        `config`: settings of a new topic, with the names that the broker uses ("cleanup.policy": "compact");
        memory:// ignores them. Raises UserError for a wrong name or number, and for a topic that is declared twice
        with different arguments.
        """
        checked_topic(name, "topic")
        partitions = python_value(partitions)
        if not is_whole(partitions, 1):
            raise UserError(
                f"topic {name}: partitions={partitions!r} is not a number of partitions",
                hint="a whole number, 1 or more",
            )
        if config is not None and not isinstance(config, Mapping):
            raise UserError(
                f"topic {name}: config={config!r} is not a dict of texts", hint='config={"cleanup.policy": "compact"}'
            )
        asked = partitions, {str(key): str(value) for key, value in (config or {}).items()}
        if self.lifespan.topics.setdefault(name, asked) != asked:
            raise UserError(
                f"topic {name} is declared twice with different arguments", hint="declare it once, and use the name"
            )
        if self._make_topics not in self.lifespan.starts:
            self.lifespan.starts.insert(0, self._make_topics)
        return name

    async def _make_topics(self) -> None:
        settings = self.settings
        for name, (partitions, config) in self.lifespan.topics.items():
            there = await run_in_thread(partial(make_topic, name, partitions, settings.broker, config, settings.kafka))
            if there < partitions:
                _log.warning(
                    "topic %s has %d partitions, and the program asks for %d: it stays as it is, as its keys would move; `sabot topics "
                    "create %s --partitions %d` grows it",
                    *(name, there, partitions, name, partitions),
                )
