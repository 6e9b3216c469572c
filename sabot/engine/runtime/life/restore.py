"""The checks of a program against the checkpoint from which it starts: the plan, the state that is restored, and the
refusals.

`LocalStreams` calls these functions before it opens anything, and `sabot plan` before anything runs. Both use the
same checks, so the command never promises a start that is then refused. Nothing here starts a thread or writes.
"""

import logging
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from shlex import quote
from typing import Any

import msgspec
import pyarrow as pa

from sabot._cython.arrow.batch import normalise
from sabot._cython.groups.partition import HASH_VERSION
from sabot.api.agent import AgentSpec
from sabot.api.nodes.read import Read, StreamEnd, Write
from sabot.base.arrays import empty_batch
from sabot.base.dataclass import dataclass
from sabot.base.os_errors import restoring
from sabot.codecs.engine_columns import RESERVED
from sabot.codecs.json import schema_of_text
from sabot.connectors.base import Delivery, Positions, Sink, Source, TakesBound, columns_of, ends
from sabot.connectors.files.paths import HasPath
from sabot.connectors.files.sink import FileSink
from sabot.connectors.places import Place
from sabot.engine.checkpoint import Manifest, StoredTask
from sabot.engine.operators.event_time import ComputedTime
from sabot.engine.plan import (
    COMPLETE,
    Plan,
    Planned,
    Refill,
    SavedSource,
    SinkTable,
    Verdict,
    Way,
    changed_steps,
    compare,
    dead_letter_topics,
    described,
    fed_by,
    fed_by_streams,
    kept_tables,
    make_plan,
    planned,
    reemit_of,
    refill_of,
    standings,
    steps_of_tables,
    tables_in,
    walk,
    with_schemas,
)
from sabot.engine.runtime.agents.groups import TASK, agent_groups
from sabot.engine.runtime.tasks.source_codec import changed_format
from sabot.engine.state import StateBackend, load_snapshot
from sabot.errors import UserError


def check_app(restored: Manifest, app: str) -> None:
    """Raises UserError if the checkpoint belongs to another app, or if its keys were hashed by another function."""
    for name, mine in (("app", app), ("hash", HASH_VERSION)):
        if restored.describe.get(name) != mine:
            raise UserError(
                f"{restored.path}: this checkpoint was made by {name} {restored.describe.get(name)!r}, not {mine!r}",
                hint="give the app a checkpoint_dir of its own, or start with --fresh",
            )


_log = logging.getLogger(__name__)

DUE = "due"
"""The entry of a checkpoint that a refill has made which names the sinks into which the next start writes tables again."""

# -- the plan ---------------------------------------------------------------------------------------------------------


def plan_of(
    ends: Sequence[StreamEnd],
    restored: Manifest | None,
    *,
    agents: Sequence[AgentSpec],
    parallelism: int,
    infer: Callable[[Read, Sequence[Mapping[str, Any]]], pa.Schema | None],
    refresh: bool = False,
) -> Plan:
    """Builds the plan of an app's streams and agents. Raises UserError for a program that cannot run.

    `infer`: called for a stream whose columns neither the program nor the checkpoint has; returns them, or None if
    they depend on records that have not come yet. Its arguments are the node of the stream and the checkpoint's facts
    about its readers. It may block. `refresh`: True to infer columns again that the checkpoint has.
    """
    reads = [node for node in walk(ends) if isinstance(node, Read)]
    if restored is not None:
        _take_stored_paths(reads, restored)
    _refuse_shared_sources(reads)
    _refuse_shared_files(ends)
    sinks = [
        *(end.sink for end in ends if isinstance(end, Write)),
        *(s for spec in agents for s in spec.sinks.values()),
    ]
    own = {sink for sink in sinks if isinstance(sink, str)}
    kept = {} if restored is None else {node.name: found for node in reads if (found := _kept_columns(node, restored))}
    tasks: Mapping[str, StoredTask] = {} if restored is None else restored.tasks
    counts = Counter(
        (_stage_of(name), stored.meta["input"]["source"]) for name, stored in tasks.items() if _reads(stored)
    )
    saved = [SavedSource(stage, name, number) for (stage, name), number in sorted(counts.items(), key=_by_number)]
    for name, schema in () if refresh else kept.items():
        _log.info(
            "stream %s: its columns are those in the checkpoint: %s (--schema refresh infers them again)",
            name,
            ", ".join(schema.names),
        )
    with _saying_what_is_kept({} if refresh else kept):
        schemas = {}
        for node in reads:
            facts = [] if restored is None else readers_in(restored, node.name)
            found = kept.get(node.name) if node.schema is None else None
            if found is None or (refresh and node.source not in own):
                now = _columns(node, own, partial(infer, node, facts))
                found = now if found is None or now is None else _refreshed(node, found, now)
            if found is not None:
                found = node.overridden(found)
                _check_columns(replace(node, schema=found))
            schemas[id(node)] = found
        plan = make_plan(with_schemas(ends, schemas), agents=agents, parallelism=parallelism, saved=saved)
        if kept:
            plan.check()
    return plan


def known_columns(node: Read, readers: Sequence[Mapping[str, Any]]) -> pa.Schema | None:
    """Returns the columns of a stream that are known without waiting for its records, as `infer` of `plan_of`."""
    return columns_of(node.source) if isinstance(node.source, Source) else node.format.columns(node.name)


def columns_at(node: Read, restored: Manifest) -> pa.Schema | None:
    """Returns the columns with which a stream of the app reads records after this checkpoint, or None if it has not
    read any. May block, to ask a schema registry.
    """
    if node.schema is not None:
        return node.schema
    found = _kept_columns(node, restored)
    found = known_columns(node, readers_in(restored, node.name)) if found is None else found
    return None if found is None else node.overridden(found)


def _refuse_shared_sources(reads: Iterable[Read]) -> None:
    """Raises UserError for a Source object that two streams read, because it has only one position."""
    seen: set[int] = set()
    for node in reads:
        if isinstance(node.source, Source):
            if id(node.source) in seen:
                raise UserError(
                    f"two streams read the same Source object, {node.source.name}",
                    hint="make a Source for each stream, or make one stream and use it twice",
                )
            seen.add(id(node.source))


def _take_stored_paths(reads: Iterable[Read], restored: Manifest) -> None:
    """Gives a source of files the path that the checkpoint has, if this is the same file or folder under another path
    ("a.csv", "./a.csv", "/data/a.csv"). The checkpoint knows the source and its position by that path.
    """
    known = {stored.meta["input"]["source"] for stored in restored.tasks.values() if _reads(stored)}
    sources = [node.source for node in reads if isinstance(node.source, Source) and isinstance(node.source, HasPath)]
    gone = known - {source.name for source in sources}
    for source in sources:
        stored_path = next((name for name in gone if source.has_path(name)), None) if source.name not in known else None
        if stored_path is not None:
            _log.info("%s goes on as %s, the path of the same file in the checkpoint", source.name, stored_path)
            source.use_path(stored_path)


def _refuse_shared_files(ends: Iterable[StreamEnd]) -> None:
    """Raises UserError for two sinks that write the same file, because each would make the rows of the other
    unreadable.
    """
    files: list[tuple[str, Sink]] = []
    for end in ends:
        if isinstance(end, Write) and isinstance(end.sink, FileSink):
            path = os.path.abspath(end.sink.name)
            if any(path == other and end.sink is not sink for other, sink in files):
                raise UserError(
                    f"two sinks write the same file, {end.sink.name}",
                    hint="make one FileSink and give it to both streams",
                )
            files.append((path, end.sink))


def _columns(node: Read, written: Collection[str], infer: Callable[[], pa.Schema | None]) -> pa.Schema | None:
    """Returns the columns of a stream: as the program declares them, else as the data shows them."""
    if node.schema is not None:
        return node.schema
    if node.source in written:
        raise UserError(
            f"stream {node.name}: its columns cannot be inferred, because this app itself writes it later",
            hint='give it schema={"name": "type", …}',
        )
    return infer()


def _kept_columns(node: Read, restored: Manifest) -> pa.Schema | None:
    """Returns the columns of a stream in the checkpoint, if they were inferred and the program still declares none;
    else None.
    """
    for facts in readers_in(restored, node.name) if node.schema is None else ():
        if facts.get("schema") is not None and not changed_format(node.format, facts):
            return schema_of_text(facts["schema"])
    return None


def _refreshed(node: Read, kept: pa.Schema, now: pa.Schema) -> pa.Schema:
    """Returns the columns that the data has now (`now`), and those of the checkpoint (`kept`) that the data no longer
    has. If a column of numbers has different types in both, it gets the wider type.
    """
    fields: dict[str, pa.Field] = {field.name: field for field in kept}
    for field in now:
        try:
            (widest,) = pa.unify_schemas(
                [pa.schema([fields.get(field.name, field)]), pa.schema([field])], promote_options="permissive"
            )
        except pa.ArrowException:
            widest = field
        fields[field.name] = widest
    found = pa.schema(list(fields.values()))
    changed = [
        f"{each.name} {each.type}"
        for each in found
        if each.name not in kept.names or kept.field(each.name).type != each.type
    ]
    _log.info("stream %s: columns that the checkpoint did not have: %s", node.name, ", ".join(changed) or "none")
    return found


@contextmanager
def _saying_what_is_kept(kept: Mapping[str, pa.Schema]) -> Iterator[None]:
    """Extends the hint of a UserError that mentions a column: it names the streams whose columns come from the
    checkpoint, and says how to infer them anew. `kept`: these columns, by stream.
    """
    try:
        yield
    except UserError as error:
        if not kept or "column" not in f"{error.message} {error.hint}":
            raise
        names = "; ".join(f"{name}: {', '.join(schema.names)}" for name, schema in kept.items())
        told = f"the checkpoint keeps the columns that were inferred when the app began ({names}); --schema refresh infers them anew"
        raise UserError(error.message, hint=f"{error.hint}; {told}" if error.hint else told) from error


def _check_columns(node: Read) -> None:
    schema = node.columns
    assert schema is not None
    if isinstance(node.time, str) and not {node.time, node.time.split(".")[0]} & set(schema.names):
        raise UserError(
            f"stream {node.name}: there is no column {node.time!r} for event time",
            hint=f"the columns are {', '.join(schema.names)}",
        )
    assert node.schema is not None
    read = replace(node, schema=normalise(empty_batch(node.schema)).schema)
    if read.time_expr is not None:
        assert read.columns is not None
        options = (read.time_unit, read.time_format, read.columns, read.time_zone)
        ComputedTime(f"stream {node.name}", read.time_expr, *options)
    for ours in sorted(RESERVED.intersection(schema.names)):
        raise UserError(f"stream {node.name}: {ours!r} is a reserved name", hint="call the column another name")


# -- what is restored -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Asked:
    """The options of the user for the state of the checkpoint at this start. `drop`: the state to give up. `refill`: the steps to
    compute again. `reemit`: the sinks into which tables are written again.
    """

    drop: frozenset[str] = frozenset()
    refill: frozenset[str] = frozenset()
    reemit: frozenset[str] = frozenset()

    def by_step(self, operators: Sequence[Planned]) -> "Asked":
        """Returns the same, in which a table of a topic has the id of its step: `--refill cars` for `app.table("cars")`."""
        drop, refill = self.drop, self.refill
        for topic, step in steps_of_tables(operators).items():
            drop = frozenset(
                step + each.removeprefix(topic) if each == topic or each.startswith(f"{topic}.") else each
                for each in drop
            )
            refill = frozenset(step if each == topic else each for each in refill)
        return replace(self, drop=drop, refill=refill)

    def without(self, done: "Asked") -> "Asked":
        """Returns what is asked and is not in `done`."""
        return Asked(self.drop - done.drop, self.refill - done.refill, self.reemit - done.reemit)


@dataclass(frozen=True)
class Decided:
    """The result of `decide`: the verdicts on the state of a checkpoint, how steps are refilled, and, by the id of the stage of
    a sink, the paths from the tables that are written into it again. `asked`: what the user asks and no earlier start has done
    for this program, by the ids of steps. `done`: what an earlier start has done for this program. `tables`: what the sinks have
    after the start, by the ids of their stages. `ways`: for each of these tables that is not complete, the options of a start
    with which it is, or "".
    """

    verdicts: list[Verdict]
    refill: Refill
    reemits: Mapping[str, Sequence[Way]]
    asked: Asked
    done: Asked
    tables: Mapping[str, SinkTable]
    ways: Mapping[str, str]

    def tell_of_tables(self) -> None:
        """Logs which tables lack rows of their results, and how they become complete."""
        for stage, way in self.ways.items():
            _log.warning("sink %s: its table is %s", self.tables[stage].sink, described(self.tables[stage], way))

    def tell_what_is_done(self) -> None:
        """Logs which options have no effect at this start."""
        for names, said in (
            (self.done.drop, "the last start has already dropped %s, as asked: state that was made since then is kept"),
            (self.done.refill, "an earlier start has already refilled %s, as asked"),
            (self.done.reemit, "an earlier start has already written %s again, as asked"),
        ):
            if names:
                _log.info(said, ", ".join(sorted(names)))


def decide(
    plan: Plan, restored: Manifest, asked: Asked, *, start_at: Place = "earliest", is_savepoint: bool = False
) -> Decided:
    """Decides what a start does with the state of the checkpoint. A start and `sabot plan` both ask this function, and
    nothing else knows the rules. Raises UserError for what cannot be done as asked; `plan.check` refuses the verdicts that
    would lose state.

    `start_at`: the place at which the app begins streams that do not say another. `is_savepoint`: True if the checkpoint
    is a savepoint, which is not changed.
    """
    operators = planned(plan)
    asked = asked.by_step(operators)
    done = _done(plan, operators, restored, asked)
    while True:
        left = asked.without(done)
        decided = _decided(plan, operators, restored, left, start_at, is_savepoint)
        # What was done for the last program has to be done for this one too where it would be refused otherwise.
        losing = [each for each in decided.verdicts if each.loses]
        needed = {name for each in losing for name in (*each.names_to_drop, *each.refills)}
        if not needed & (done.drop | done.refill):
            incomplete = [
                stage.id
                for stage in plan.stages
                if stage.id in decided.tables and stage.changes and decided.tables[stage.id].has != COMPLETE
            ]
            again = partial(_decided, plan, operators, restored, start_at=start_at, is_savepoint=is_savepoint)
            ways = {} if losing else {id: _way_to(plan, operators, id, decided, again) for id in incomplete}
            return replace(decided, done=done, ways=ways)
        done = done.without(Asked(frozenset(needed), frozenset(needed)))


def _decided(
    plan: Plan,
    operators: Sequence[Planned],
    restored: Manifest,
    asked: Asked,
    start_at: Place,
    is_savepoint: bool,
) -> Decided:
    way = partial(_refill_of, plan, operators, start_at=start_at, is_savepoint=is_savepoint)
    refill = way(asked.refill)
    verdicts = _verdicts(plan, operators, restored, asked, refill, way)
    reads = (task.meta["input"]["source"] for task in restored.tasks.values() if _reads(task))
    tables = partial(standings, plan, operators, verdicts, _tables_in(restored), frozenset(reads))
    names = set(asked.reemit)
    kept = set(kept_tables(plan, operators)) if refill.topics or restored.describe.get(DUE) else set()
    names |= kept.intersection(restored.describe.get(DUE, ()))
    if refill.topics and not asked.reemit:  # what is refilled is written again
        steps = [each.id for each in operators]
        for id, table in tables(()).items():
            complete = table.has == COMPLETE
            if fed_by(plan, steps, id, last=complete) & (refill.topics if complete else refill.replayed):
                names |= kept & {table.sink}
    reemits = reemit_of(plan, operators, names)
    return Decided(verdicts, refill, reemits, asked, Asked(), tables(reemits), {})


def _way_to(
    plan: Plan,
    operators: Sequence[Planned],
    stage: str,
    decided: Decided,
    again: Callable[[Asked], Decided],
) -> str:
    """Returns the options of a start with which a table is complete, or "" if there are none. `stage`: the id of that of its
    sink. `decided`: the start, after which it is not complete. `again`: decides with other options.
    """
    asked, table = decided.asked, decided.tables[stage]
    keeping = {each.id: each for each in operators}
    last = fed_by(plan, keeping, stage, last=True)
    partial_ones = [id for id in keeping if id in table.partial]
    tries = [
        ("reemit", [table.sink]),
        ("refill", [id for id in partial_ones if id in last]),
        ("refill", partial_ones),
        ("drop", [id for id in keeping if id in last and not keeping[id].gives_table]),
    ]
    for option, names in tries:
        if not names:
            continue
        wanted = replace(asked, **{option: getattr(asked, option) | set(names)})
        try:
            found = again(wanted)
        except UserError:
            continue
        if not any(each.loses for each in found.verdicts) and found.tables[stage].has == COMPLETE:
            return " ".join(f"--{option} {quote(name)}" for name in names)
    return ""


def _tables_in(restored: Manifest) -> list[SinkTable]:
    """Returns the tables of a checkpoint; none if it is of an earlier version of Sabot."""
    return [msgspec.convert(task.meta["table"], SinkTable) for task in restored.tasks.values() if "table" in task.meta]


def _done(plan: Plan, operators: Sequence[Planned], restored: Manifest, asked: Asked) -> Asked:
    """Returns what is asked and an earlier start has done, for steps and tables that are the same since then: each is done
    once.
    """
    names = [frozenset(restored.describe.get(name, ())) for name in ("dropped", "refilled", "reemitted")]
    before = Asked(*names).by_step(operators)
    refilled = asked.refill & before.refill
    stored = {(table.sink, table.path) for table in _tables_in(restored) if table.has == COMPLETE}
    others = {table.sink for table in tables_in(plan).values() if stored and (table.sink, table.path) not in stored}
    return Asked(
        asked.drop & before.drop,
        refilled - changed_steps(operators, restored) if refilled else refilled,
        (asked.reemit & before.reemit) - others,
    )


def _refill_of(
    plan: Plan, operators: Sequence[Planned], names: Collection[str], start_at: Place, is_savepoint: bool
) -> Refill:
    """Returns how steps are refilled, as `plan.refill_of`. Raises UserError also for a savepoint, and for a source that has
    no end, or began elsewhere than at its first row.
    """
    refill = refill_of(plan, operators, names)
    options = " ".join(f"--refill {name}" for name in sorted(refill.topics))
    if options and is_savepoint:
        raise UserError(
            f"{options}: the start is from a savepoint, which is not changed",
            hint="start the program that wrote it from the savepoint, stop that, and start this one from its checkpoints "
            f"with {options}",
        )
    for stage in plan.stages if options else ():
        node = None if stage.reading is None else stage.reading.node
        if node is None or node.name not in refill.sources:
            continue
        start = node.begins(start_at)
        why = f"{node.name} began at start={start!r}, which may be elsewhere now" if start != "earliest" else ""
        if isinstance(node.source, Source) and not isinstance(node.source, TakesBound) and not ends(node.source):
            why = f"{node.name} goes on without an end, so that its rows before the checkpoint cannot be read alone"
        if why:
            raise UserError(
                f"{options}: {why}",
                hint="give the state up (--drop), or run the program that wrote the checkpoint",
            )
    return refill


def stored_streams(restored: Manifest) -> dict[str, StoredTask]:
    """Returns the stream tasks in a checkpoint, by name."""
    return {name: task for name, task in sorted(restored.tasks.items()) if "operators" in task.meta}


def _verdicts(
    plan: Plan,
    operators: Sequence[Planned],
    restored: Manifest,
    asked: Asked,
    refill: Refill,
    way: Callable[[Collection[str]], Refill],
) -> list[Verdict]:
    """Returns the verdict on the state of each operator, and on the position of each source that the program does not
    read any more; `plan.check` refuses verdicts that would lose state. A further source begins at its start.

    Raises UserError if two streams of the program or of the checkpoint read one source, and their number differs,
    because it is not known which of the positions is whose.

    `asked.drop`: the state that the user gives up, as for `plan.compare`; the position of a source has the id of its stage.
    `refill`: how the steps that the user names are refilled. `way`: returns the same for other steps.
    """
    stored = stored_streams(restored)
    before = {_stage_of(name): task.meta["input"]["source"] for name, task in stored.items() if _reads(task)}
    now = {stage.id: stage.reading.node.name for stage in plan.stages if stage.reading is not None}
    one, two = Counter(before.values()), Counter(now.values())
    if any(one[name] != two[name] and max(one[name], two[name]) > 1 for name in one.keys() & two.keys()):
        raise UserError(
            f"the checkpoint is of a program that reads {_named(before)}, but this program reads {_named(now)}",
            hint="run the program that wrote it; or start afresh (--fresh)",
        )
    gone = {stage: name for stage, name in before.items() if stage not in now}
    others = sorted(set(two) - set(one))
    drop = asked.drop - gone.keys()
    verdicts = _compared(operators, restored, drop, refill)
    verdicts = _with_refills(way, operators, restored, drop, asked.refill, verdicts)
    verdicts = _with_drops(way, operators, restored, drop, asked.refill, verdicts)
    return [
        *verdicts,
        *(
            Verdict(
                id,
                f"read {name}",
                None,
                "drop",
                "as asked" if id in asked.drop else _not_read(name, others),
                groups=1,
                given_up=id in asked.drop,
            )
            for id, name in gone.items()
        ),
    ]


def _not_read(name: str, others: Sequence[str]) -> str:
    """Returns why the position of a source is lost. `others`: the sources that the checkpoint does not have."""
    same = next((other for other in others if os.path.abspath(other) == os.path.abspath(name)), None)
    if same is not None:
        return (
            f"this program reads the file under another path, {same}; its position goes on if the path is the old one"
        )
    return "this program does not read it" + (f", but {', '.join(others)}" if others else "")


def _compared(operators: Sequence[Planned], restored: Manifest, drop: Set[str], refill: Refill) -> list[Verdict]:
    why = f"it is computed again from {' and '.join(refill.sources)}, up to the positions of the checkpoint"
    verdicts = compare(operators, restored, drop | refill.tables, dict.fromkeys(refill.replayed, why), refill.tables)
    # A step of `refill.tables` begins anew only to be filled from the tables above it.
    again = {each.id for each in verdicts if each.id in refill.tables and each.fills}
    return [replace(each, outcome="refill", given_up=False) if each.id in again else each for each in verdicts]


def _with_refills(
    way: Callable[[Collection[str]], Refill],
    operators: Sequence[Planned],
    restored: Manifest,
    drop: Set[str],
    refill: Collection[str],
    verdicts: list[Verdict],
) -> list[Verdict]:
    """Returns the verdicts, where refusals say which steps have to be refilled for them to go away, if that is possible. State that
    could have been that of a refilled step, and is nobody's then, has a verdict of its own.
    """
    names: dict[str, None] = {}
    now = verdicts
    while refused := [each.id for each in now if each.loses and each.outcome == "refuse" and each.id not in names]:
        names[refused[0]] = None  # the first in the order of the plan: those behind it may be refused because of it
        try:
            now = _compared(operators, restored, drop, way({*refill, *names}))
        except UserError:
            del names[refused[0]]
            break
    lost = {each.id for each in verdicts if each.loses}
    helped = lost - {each.id for each in now if each.loses}
    ways = tuple(dict.fromkeys([*sorted(refill), *names]))
    left = [each for each in now if each.loses and each.outcome == "drop" and each.id not in lost] if helped else []
    return [*(replace(each, refills=ways) if each.id in helped else each for each in verdicts), *left]


def _with_drops(
    way: Callable[[Collection[str]], Refill],
    operators: Sequence[Planned],
    restored: Manifest,
    drop: Set[str],
    refill: Set[str],
    verdicts: list[Verdict],
) -> list[Verdict]:
    """Returns the verdicts, where refusals name all state that has to be given up with theirs, so that a start with the options
    that they offer is not refused for other state.
    """
    helped = {name for each in verdicts if each.loses for name in each.refills}
    for again in ({*refill, *helped}, refill) if helped else (refill,):
        offered = [each for each in verdicts if each.loses and not (helped and each.refills and again is not refill)]
        names = {name for each in offered for name in each.names_to_drop}
        more: dict[str, None] = {}
        while True:
            now = _compared(operators, restored, frozenset({*drop, *names, *more}), way(again))
            further = [name for each in now if each.loses for name in each.names_to_drop]
            further = [name for name in further if name not in names and name not in more]
            if not further:
                break
            more.update(dict.fromkeys(further))
        if more and offered:
            last = offered[-1]
            wider = replace(last, instead=(*last.names_to_drop, *more))
            verdicts = [wider if each is last else each for each in verdicts]
    return verdicts


def readers_in(restored: Manifest, source: str) -> list[Mapping[str, Any]]:
    """Returns the checkpoint's facts about each reader of this source of a stream."""
    inputs = (task.meta["input"] for task in restored.tasks.values() if _reads(task))
    return [facts for facts in inputs if facts["source"] == source]


def positions_in(facts: Mapping[str, Any]) -> Positions:
    """Returns the positions at which a reader of the checkpoint resumes."""
    return {(topic, number): offset for topic, number, offset in facts["positions"]}


def sinks_in(plan: Plan) -> list[Sink]:
    """Returns the Sinks that the program names, of streams and of agents, without topics."""
    found = [stage.sink[0] for stage in plan.stages if stage.sink is not None]
    found += [sink for stage in plan.stages if stage.agent is not None for sink in stage.agent.sinks.values()]
    return [sink for sink in found if isinstance(sink, Sink)]


def sinks_of(
    plan: Plan, ends: Iterable[StreamEnd], open_sink: Callable[[str], Sink]
) -> Iterator[tuple[str, Sink, Delivery]]:
    """Yields the writer, the sink and `delivery=` of each sink of the program, dead letters included. `open_sink`:
    opens the sink of a topic.
    """

    def opened(sink: str | Sink) -> Sink:
        return open_sink(sink) if isinstance(sink, str) else sink

    for stage in plan.stages:
        if stage.sink is not None:
            yield "streams", opened(stage.sink[0]), stage.delivery
    agents = [stage.agent for stage in plan.stages if stage.agent is not None]
    ends = list(ends)
    fed, groups = fed_by_streams(ends), agent_groups(agents, ends)
    for spec, room in [(spec, group.room) for spec in agents for group in groups if spec.agent_id in group.agents]:
        for own in spec.sinks.values():
            yield room, opened(own), spec.delivery
        letters: list[str | Sink] = [spec.dead_letter]
        if isinstance(spec.dead_letter, str):
            letters = list(dead_letter_topics(spec, agents, fed).values())
        for sink in letters:
            yield room, opened(sink), "at_least_once" if spec.delivery == "at_least_once" else None


def _by_number(counted: tuple[tuple[str, str], int]) -> tuple[str, int]:
    kind, _, number = counted[0][0].rpartition("-")
    return kind, int(number) if number.isdigit() else 0


def _stage_of(task: str) -> str:
    return task.split("/")[0]


def _reads(stored: StoredTask) -> bool:
    return "source" in stored.meta.get("input", {})


def _named(sources: Mapping[str, str]) -> str:
    return ", ".join(f"{source} ({stage})" for stage, source in sorted(sources.items())) or "nothing"


async def restore_state(backend: StateBackend | None, restored: Manifest | None, task: str = TASK) -> None:
    """Restores the state of the agents of a task, before they are opened."""
    stored = None if restored is None else restored.tasks.get(task)
    if restored is not None and stored is not None and backend is not None and "state" in stored.states:
        with restoring("agents' state", restored.path):
            await backend.restore(load_snapshot(restored.state_directory(task, "state")))
