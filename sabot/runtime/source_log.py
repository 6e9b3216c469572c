"""The log behind a source, as a checkpoint knows it: opened where the checkpoint says, if it is still the same; what is kept of it; offsets
committed for tools that look at it from outside.
"""

import logging
from collections.abc import Mapping
from typing import Any

from sabot.connectors.base import Positions, Source
from sabot.connectors.places import Place, made_again
from sabot.errors import TransientError
from sabot.steps import step

_log = logging.getLogger(__name__)


def open_log(source: Source, positions: Positions | None, start: Place, facts: Mapping[str, Any] | None) -> str:
    """Opens the source, and returns the id of its topic ("": it has none). facts: what `facts_of` gave for the checkpoint of the positions.

    Blocking. Raises what `Source.open` raises, and UserError if the topic is another one now.
    """
    topic_id = "" if facts is None else facts.get("topic_id", "")
    found = source.topic_id() if positions and topic_id else ""
    if found not in ("", topic_id):
        raise made_again(source.name, topic_id, found, "since the checkpoint")
    if source.bound is not None:
        source.bound.keep(facts.get("until") if positions and facts is not None else None)
    if isinstance(start, Mapping):
        positions = positions or {(source.name, partition): offset for partition, offset in start.items()}
        start = "earliest"
    source.open(positions, start)
    return source.topic_id() or topic_id


def facts_of(source: Source, topic_id: str) -> dict[str, Any]:
    """What a checkpoint keeps of the log, beside the positions in it."""
    bound = source.bound
    return {"log": source.log_id, "topic_id": topic_id, "until": None if bound is None else bound.facts()}


def commit_offsets(source: Source, positions: Positions) -> None:
    """Tells the source that a complete checkpoint covers these positions. In the source's thread."""
    if type(source).commit is Source.commit:
        return  # this source has nothing to commit to
    try:
        with step("offset commit", source.name):
            source.commit(positions)
    except TransientError as error:
        _log.warning(
            "source %s: offsets could not be committed, the next checkpoint tries again: %s", source.name, error
        )
