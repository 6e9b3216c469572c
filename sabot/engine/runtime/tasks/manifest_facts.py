"""Checks the facts about tasks in a manifest before anything uses them, because the manifest may come from anybody.

The checksum of a manifest shows damage, but whoever can write a manifest can write its checksum too. Of operators
only the names are checked here; each operator checks its own facts when it restores its state.
"""

import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any

import msgspec

from sabot.base.os_errors import restoring
from sabot.codecs.formats import JSON, ArrowIpc
from sabot.codecs.json import schema_of_text
from sabot.connectors.base import MEMORY_BYTES, Positions, Sink, address_of
from sabot.engine.checkpoint import Manifest
from sabot.engine.plan import SinkTable
from sabot.errors import UserError, short_repr

_Int64 = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
_Place = tuple[str, _Int64, _Int64]
_Places = list[_Place]
_Memory = list[tuple[str, _Int64, bytes]]
_Count = Annotated[int, msgspec.Meta(ge=0)]


class _Bound(msgspec.Struct):
    asked: str
    ends: list[tuple[_Count, _Count]]


class _Reader(msgspec.Struct):
    source: str
    exhausted: bool
    log: str
    schema: str | None
    positions: _Places
    rows_in: _Count
    watermark_ms: _Int64
    greatest_ms: _Places
    silent_ms: _Places = []
    topic_id: str = ""
    until: _Bound | None = None
    over: bool = False
    memory: str = ""  # the file with the memory of the source, or "" if it keeps none


class Wrote(msgspec.Struct, frozen=True):
    """The columns that an app has written into a sink. `place`: the address of the sink. `columns`: those of the program
    that made the checkpoint. `left`: those of earlier programs, which it did not write any more.
    """

    place: str
    columns: list[str]
    left: list[str] = []


class _StreamTask(msgspec.Struct):
    ended: bool
    input: dict[str, Any]
    operators: dict[str, dict[str, Any]]
    texts: dict[str, str]
    wrote: Wrote | None = None
    table: SinkTable | None = None


class _AgentSource(msgspec.Struct):
    log: str
    schema: str | None
    positions: _Places
    commit: _Places
    identity: str | None = None
    again: _Count = 0
    topic_id: str = ""
    until: _Bound | None = None
    format: str = JSON.description
    memory: str = ""


class _Unfinished(msgspec.Struct):
    file: str
    topic: str


class _Agent(msgspec.Struct):
    unfinished: list[_Unfinished]
    messages_processed: _Count
    errors: _Count
    dead_letters: _Count
    schemas: dict[str, str | None]
    begun: _Places = []
    format: str = JSON.description


class _Journal(msgspec.Struct):
    identity: str
    positions: list[tuple[_Count, _Int64]]
    unapplied: list[tuple[str, _Count, _Int64]] = []


class _AgentTask(msgspec.Struct):
    sources: dict[str, _AgentSource]
    agents: dict[str, _Agent]
    ended: bool
    journal: _Journal | None = None


def check_facts(manifest: Manifest) -> None:
    """Raises CorruptCheckpoint, which names the manifest, the task and the entry, if a fact is missing or has a wrong
    type, or if a schema or a file of unfinished records cannot be read. Raises UserError for an error of the machine.
    """
    where = manifest.path or f"checkpoint {manifest.checkpoint_id}"
    for name, task in manifest.tasks.items():
        with restoring(f"task {name}", where):
            schemas: list[str | None] = []
            memories: list[str] = []
            if "operators" in task.meta:
                stream = msgspec.convert(task.meta, _StreamTask)
                if stream.input:
                    reader = msgspec.convert(stream.input, _Reader)
                    schemas.append(reader.schema)
                    memories.append(reader.memory)
            elif "agents" in task.meta:
                agents = msgspec.convert(task.meta, _AgentTask)
                schemas += [source.schema for source in agents.sources.values() if _keeps_arrow(source.format)]
                memories += [source.memory for source in agents.sources.values()]
                for agent in agents.agents.values():
                    schemas += agent.schemas.values() if _keeps_arrow(agent.format) else ()
                for agent in agents.agents.values():
                    for entry in agent.unfinished:
                        manifest.read_file(name, entry.file)
            for text in schemas:
                schema_of_text(text)
            for file in filter(None, memories):
                read_memory(manifest.read_file(name, file))


def _keeps_arrow(format: str) -> bool:
    """Returns True if the text that a codec of this format keeps is an Arrow schema. Texts of other codecs are read
    by the codecs.
    """
    return format.split(maxsplit=1)[0] in (JSON.name, ArrowIpc.name)


def stored_positions(source: str, positions: Positions) -> list[list[Any]]:
    """Returns the positions of a source as a checkpoint stores them. Raises UserError, which names the source, for one that
    `check_facts` would refuse.
    """
    kept = []
    for place, offset in positions.items():
        try:
            # A whole number of numpy is one; a bool is a mistake.
            kept.append([*place, offset if isinstance(offset, bool) else operator.index(offset)])
            msgspec.json.decode(msgspec.json.encode(kept[-1]), type=_Place)
        except (msgspec.MsgspecError, TypeError, ValueError, OverflowError):
            raise UserError(
                f"source {source}: its position {short_repr(offset)} of {short_repr(place)} cannot be kept in a checkpoint",
                hint="a position is a whole number of 64 bits, by (name, partition); remember() keeps what else a restart needs",
            ) from None
    return kept


def stored_memory(source: str, memory: Mapping[tuple[str, int], bytes]) -> bytes:
    """Returns the memory of a source as a checkpoint stores it. Raises UserError, which names the source, for one that `check_facts`
    would refuse, or that is too large.
    """
    try:
        kept = [(*place, data) for place, data in memory.items()]
        packed = msgspec.msgpack.encode(kept)
        good = msgspec.msgpack.decode(packed, type=_Memory) == kept
    except (msgspec.MsgspecError, AttributeError, TypeError, ValueError, OverflowError):
        good = False
    if not good:
        raise UserError(
            f"source {source}: remember() returned {short_repr(memory)}, which cannot be kept in a checkpoint",
            hint="return bytes by (name, partition), such as {(self.name, 0): json.dumps(cursor).encode()}",
        )
    if (size := sum(len(data) for *_, data in kept)) > MEMORY_BYTES:
        raise UserError(
            f"source {source}: remember() returned {size:,} bytes, and a checkpoint keeps at most {MEMORY_BYTES:,} of a reader",
            hint="keep only what a restart needs; rows that wait belong to the service from which they come",
        )
    return packed


def read_memory(packed: bytes) -> dict[tuple[str, int], bytes]:
    """Returns what `stored_memory` was given. Raises `msgspec.MsgspecError` for other bytes."""
    return {(name, number): data for name, number, data in msgspec.msgpack.decode(packed, type=_Memory)}


def read_to_end(meta: Mapping[str, Any]) -> bool:
    """Returns True if a stream task had ended because its own source was at its end. A drained task has ended too,
    but reads on at the next start.
    """
    return bool(meta["ended"] and meta["input"].get("exhausted", True))


def left_columns(
    restored: Manifest | None, sink: Sink, sinks: Iterable[Sink], columns: Sequence[str]
) -> tuple[Wrote, list[str]]:
    """Returns the columns that the app has written into a sink with this start, and those of them that the program of the
    checkpoint wrote, and this one does not. `sinks`: all Sinks of the program. `columns`: those that the program writes.

    If several sinks of the program or of the checkpoint write to the place, no column counts as left, because one sink may
    write the columns of another.
    """
    place = address_of(sink)
    stored = (
        [] if restored is None else [task.meta["wrote"] for task in restored.tasks.values() if "wrote" in task.meta]
    )
    before = [found for each in stored if (found := msgspec.convert(each, Wrote)).place == place]
    if len(before) != 1 or len({id(each) for each in sinks if address_of(each) == place}) != 1:
        return Wrote(place, list(columns)), []
    newly, earlier = ([name for name in names if name not in columns] for names in (before[0].columns, before[0].left))
    return Wrote(place, list(columns), [*newly, *(name for name in earlier if name not in newly)]), newly


def stored_journal(manifest: Manifest | None, task: str) -> Mapping[str, Any] | None:
    """Returns the checkpoint's facts about the journal: its identity, and its positions at the snapshot. Returns None
    if there are none.
    """
    stored = None if manifest is None else manifest.tasks.get(task)
    found: Mapping[str, Any] | None = None if stored is None else stored.meta.get("journal")
    return found
