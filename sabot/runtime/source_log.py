"""The log that a source reads, such as a topic: opens it at a checkpoint's positions if it is still the same log, and
commits offsets for tools outside of Sabot.
"""

import logging
from collections.abc import Mapping
from typing import Any

from sabot.checkpoint import Manifest
from sabot.connectors.base import Positions, Source
from sabot.connectors.defaults import bound_of, commit_of, log_id_of, topic_id_of
from sabot.connectors.files.sorted import SortedFiles
from sabot.connectors.files.source import FileSource
from sabot.connectors.places import Place, made_again
from sabot.errors import TransientError
from sabot.steps import step

_log = logging.getLogger(__name__)


def open_log(source: Source, positions: Positions | None, start: Place, facts: Mapping[str, Any] | None) -> str:
    """Opens the source at these positions, or, without positions, at `start`. Returns the id of its topic, or "" if
    it has none. Blocks. Raises the errors of `Source.open`, and UserError if the topic was created anew since the
    checkpoint.

    `facts`: the result of `facts_of` in the checkpoint, or None.
    """
    topic_id = "" if facts is None else facts.get("topic_id", "")
    found = topic_id_of(source) if positions and topic_id else ""
    if found not in ("", topic_id):
        raise made_again(source.name, topic_id, found, "since the checkpoint")
    if (bound := bound_of(source)) is not None:
        bound.keep(facts.get("until") if positions and facts is not None else None)
    if isinstance(start, Mapping):
        positions = positions or {(source.name, partition): offset for partition, offset in start.items()}
        start = "earliest"
    source.open(positions, start)
    return topic_id_of(source) or topic_id


def memory_of(source: Source, name: str) -> dict[str, bytes]:
    """Returns the small files that a checkpoint has of this source: the records of the files that were begun. `name`: that of
    the source in its task.
    """
    if not isinstance(source, FileSource | SortedFiles):
        return {}
    return {f"{name}#{block}": data for block, data in source.remember().items()}


def recall(source: Source, name: str, restored: Manifest, task: str) -> None:
    """Gives the source the files that `memory_of` had returned at the checkpoint. Called before it is opened. Raises CorruptCheckpoint."""
    start, stored = f"{name}#", restored.tasks.get(task)
    if stored is not None and isinstance(source, FileSource | SortedFiles):
        blocks = [file for file in stored.files if file.startswith(start)]
        source.recall({file.removeprefix(start): restored.read_file(task, file) for file in blocks})


def facts_of(source: Source, topic_id: str) -> dict[str, Any]:
    """Returns the facts about the source's log that a checkpoint stores beside the positions."""
    bound = bound_of(source)
    return {"log": log_id_of(source), "topic_id": topic_id, "until": None if bound is None else bound.facts()}


def commit_offsets(source: Source, positions: Positions) -> None:
    """Commits positions that a complete checkpoint covers. An error that may pass is only logged. Called in the
    source's thread.
    """
    if (commit := commit_of(source)) is None:
        return
    try:
        with step("offset commit", source.name):
            commit(positions)
    except TransientError as error:
        _log.warning(
            "source %s: offsets could not be committed, the next checkpoint tries again: %s", source.name, error
        )
