"""The log that a source reads, such as a topic: opens it at a checkpoint's positions if it is still the same log, and
commits offsets for tools outside of Sabot.
"""

import logging
from collections.abc import Mapping
from typing import Any

from sabot.base.os_errors import restoring
from sabot.clock import Clock
from sabot.connectors.base import Positions, Source, bound_of, overrides
from sabot.connectors.files.followed import FollowedFiles
from sabot.connectors.files.sorted import SortedFiles
from sabot.connectors.files.source import FileSource
from sabot.connectors.places import Place, made_again
from sabot.engine.checkpoint import Manifest
from sabot.engine.runtime.tasks.manifest_facts import read_memory, stored_memory
from sabot.errors import TransientError, UserError, short_repr
from sabot.steps import step

_log = logging.getLogger(__name__)

_MEMORY = "#memory"  # behind the name of a source: the file of a checkpoint with its memory


def open_log(source: Source, positions: Positions | None, start: Place, facts: Mapping[str, Any] | None) -> str:
    """Opens the source at these positions, or, without positions, at `start`. Returns the id of its topic, or "" if
    it has none. Blocks. Raises the errors of `Source.open`, and UserError if the topic was created anew since the
    checkpoint.

    `facts`: the result of `facts_of` in the checkpoint, or None.
    """
    topic_id = "" if facts is None else facts.get("topic_id", "")
    found = source.topic_id() if positions and topic_id else ""
    if found not in ("", topic_id):
        raise made_again(source.name, topic_id, found, "since the checkpoint")
    if (bound := bound_of(source)) is not None:
        bound.keep(facts.get("until") if positions and facts is not None else None)
    if isinstance(start, Mapping):
        positions = positions or {(source.name, partition): offset for partition, offset in start.items()}
        start = "earliest"
    source.open(positions, start)
    return source.topic_id() or topic_id


def use_clock(source: Source, clock: Clock) -> None:
    """Gives the app's clock to a source that measures time itself. Called before it is opened."""
    if isinstance(source, FollowedFiles):
        source.clock = clock


def remembers(source: Source) -> bool:
    """Returns True if the source has a memory that is asked for after each batch.

    That of files is not: it has blocks of any number, which are stored one by one so that those without a change are not stored again,
    and it can be newer than the positions.
    """
    return overrides(source, "remember") and not _has_blocks(source)


def memory_of(source: Source, name: str, remembered: Mapping[tuple[str, int], bytes]) -> dict[str, bytes]:
    """Returns the small files that a checkpoint has of this source. `name`: that of the source in its task. `remembered`: its memory
    at the positions of the checkpoint. Raises UserError for a memory that could not be restored.
    """
    if _has_blocks(source):
        return {f"{name}#{block}": data for (block, _), data in source.remember().items()}
    if not remembers(source):
        return {}
    return {f"{name}{_MEMORY}": stored_memory(source.name, remembered)}


def recall(source: Source, name: str, restored: Manifest, task: str, *, again: bool = False) -> None:
    """Gives the source what it had remembered at the checkpoint, in all readers of the stage. Called before it is opened. Raises
    CorruptCheckpoint. `again`: True if the source is read from its start once more, for which only files need their memory.
    """
    start, stored = f"{name}#", restored.tasks.get(task)
    if _has_blocks(source):
        if stored is not None:
            blocks = [file for file in stored.files if file.startswith(start)]
            source.recall({(file.removeprefix(start), 0): restored.read_file(task, file) for file in blocks})
    elif overrides(source, "recall") and not again:
        stage = task.rpartition("/")[0]
        memory: dict[tuple[str, int], bytes] = {}
        for other, stored in restored.tasks.items():
            of_stage = other == task or (stage and other.rpartition("/")[0] == stage)
            if of_stage and (file := f"{name}{_MEMORY}") in stored.files:
                memory |= read_memory(restored.read_file(other, file))
        with restoring(f"the memory of source {source.name}", restored.path or f"checkpoint {restored.checkpoint_id}"):
            source.recall(memory)


def _has_blocks(source: Source) -> bool:
    return isinstance(source, FileSource | SortedFiles)


def facts_of(source: Source, name: str, topic_id: str) -> dict[str, Any]:
    """Returns the facts about the source's log that a checkpoint stores beside the positions. `name`: as for `memory_of`. Raises
    UserError for ids that could not be restored.
    """
    bound, log_id = bound_of(source), source.log_id
    for member, value in (("log_id", log_id), ("topic_id", topic_id)):
        if not isinstance(value, str):
            raise UserError(
                f"source {source.name}: its {member} is {short_repr(value)}, and a checkpoint keeps a text",
                hint='return "" if there is none',
            )
    facts = {"log": log_id, "topic_id": topic_id, "until": None if bound is None else bound.facts()}
    return facts | {"memory": f"{name}{_MEMORY}"} if remembers(source) else facts


def is_same_log(source: Source, facts: Mapping[str, Any]) -> bool:
    """Returns True if the source still has the log to which the offsets of a checkpoint belong. `facts`: the result of
    `facts_of` in that checkpoint.
    """
    return bool(facts["log"] == source.log_id)


def commit_offsets(source: Source, positions: Positions, *, failed: bool) -> bool:
    """Commits positions that a complete checkpoint covers. Returns True if the source could not, by an error that may pass. Called in
    the source's thread.

    `failed`: the result of the last call. The log has the first failure, and the first commit behind it.
    """
    if not overrides(source, "commit"):
        return False
    try:
        with step("offset commit", source.name):
            source.commit(positions)
    except TransientError as error:
        if not failed:
            _log.warning(
                "source %s: offsets could not be committed, each checkpoint tries again: %s", source.name, error
            )
        return True
    if failed:
        _log.info("source %s: offsets are committed again", source.name)
    return False
