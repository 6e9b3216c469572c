"""Topics that a program asks for: its start makes those that are missing."""

import logging
from collections.abc import Mapping
from functools import partial

from sabot.api.lifespan import HasLifespan
from sabot.api.settings import Settings
from sabot.arrays import python_value
from sabot.checks import is_whole
from sabot.config import checked_topic
from sabot.errors import UserError
from sabot.kafka.topics import make_topic
from sabot.threads import run_in_thread

_log = logging.getLogger(__name__)


class HasTopics(HasLifespan):
    """The part of an App that says which topics its start makes."""

    settings: Settings

    def topic(self, name: str, *, partitions: int, config: Mapping[str, str] | None = None) -> str:
        """Asks for a topic with so many partitions: `orders = app.topic("orders", partitions=6)`. Returns its name.

        The start makes it if it is missing, before `on_start` and the first record. One that is there stays as it is; a warning says so
        where it has fewer partitions. config: settings of a new topic, as the broker has them ("cleanup.policy": "compact"); memory://
        has none. Topics that nobody asks for so have as many partitions as the broker gives them.
        """
        checked_topic(name, "topic")
        partitions = python_value(partitions)
        if not is_whole(partitions, 1):
            raise UserError(f"topic {name}: partitions={partitions!r}", hint="a whole number, 1 or more")
        if config is not None and not isinstance(config, Mapping):
            raise UserError(f"topic {name}: config={config!r}", hint='config={"cleanup.policy": "compact"}')
        asked = partitions, {str(key): str(value) for key, value in (config or {}).items()}
        if self.lifespan.topics.setdefault(name, asked) != asked:
            raise UserError(f"topic {name} is asked for twice, in two ways", hint="ask once, and use the name")
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
