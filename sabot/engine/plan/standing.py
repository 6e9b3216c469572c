"""Says what each table that a program writes has after a start from a checkpoint: all rows of its result, none from before the
start, or rows of several versions of the program.

    join (kept) ──▶ group by (refilled) ──▶ upsert ──▶ sink: its state has all rows, but none of them is emitted: "empty"

A step emits the rows from before the start only if it is new and gets all of them: from the table that fills it, from new steps
before it, or from a source that is read from its start. For all other steps the sink has them only from earlier starts, or if the
table is written again (`--reemit`).
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from hashlib import sha256
from typing import NamedTuple

import msgspec

from sabot.engine.operators.layout.stages import Edge, Stage, Step
from sabot.engine.plan.stages import Plan
from sabot.engine.plan.verdicts import Planned, Verdict

COMPLETE, EMPTY, MIXED = "complete", "empty", "mixed"


class SinkTable(msgspec.Struct, frozen=True):
    """A table that a sink gets, as a checkpoint stores it. `sink`: the name of the sink. `path`: a digest of the steps before
    it. `made`: a digest of its columns and of the filters before it. `has`: one of the three words above. `partial`: the ids of
    the steps before it whose state lacks rows, or has rows that passed other steps.
    """

    sink: str
    path: str
    made: str = ""
    has: str = COMPLETE
    partial: list[str] = []


class _Feed(NamedTuple):
    """The origins of the rows that come to a step or a sink: `last`, the steps with state that emit them; `direct`, the sources
    from which rows come without such a step; `steps`, all steps with state before it.
    """

    last: frozenset[str] = frozenset()
    direct: frozenset[str] = frozenset()
    steps: frozenset[str] = frozenset()


def name_of_sink(stage: Stage) -> str:
    """Returns the name of the topic or the Sink of a stage that writes."""
    assert stage.sink is not None
    return stage.sink[0] if isinstance(stage.sink[0], str) else stage.sink[0].name


def tables_in(plan: Plan) -> dict[str, SinkTable]:
    """Returns what a program writes, by the id of the stage of the sink, as it is without a checkpoint: tables, and rows that
    are only added. Sinks of which several have a name are left out.
    """
    sinks = [stage for stage in plan.stages if stage.sink is not None and stage.fed]
    names = Counter(map(name_of_sink, sinks))
    return {
        stage.id: SinkTable(
            name_of_sink(stage), _digest(path for path, _ in stage.fed), _digest(made for _, made in stage.fed)
        )
        for stage in sinks
        if names[name_of_sink(stage)] == 1
    }


def _digest(texts: Iterable[str]) -> str:
    return sha256("\n".join(sorted(texts)).encode()).hexdigest()[:16]


def fed_by(plan: Plan, keeping: Collection[str], stage: str, *, last: bool = False) -> frozenset[str]:
    """Returns the ids of the steps with state through which the rows of a sink come. `keeping`: those of all such steps.
    `last`: True for only those behind which there is none.
    """
    feed = _feeds(plan, keeping)[0][stage]
    return feed.last if last else feed.steps


def standings(
    plan: Plan,
    operators: Sequence[Planned],
    verdicts: Iterable[Verdict],
    before: Sequence[SinkTable],
    known: Collection[str],
    written: Collection[str],
) -> dict[str, SinkTable]:
    """Returns the tables that the program writes, as they are after the start, by the ids of the stages of their sinks.

    `before`: those of the checkpoint; none if it is of an earlier version of Sabot, whose tables are taken to be complete.
    `known`: the sources of which the checkpoint has positions. `written`: the ids of the stages whose tables are written again.
    """
    steps = {each.id: each for each in operators}
    into, at = _feeds(plan, steps)
    found = {each.id: each for each in verdicts if each.id in steps}
    partial = {id for table in before for id in table.partial}
    whole: dict[str, bool] = {}
    emits: dict[str, bool] = {}
    for id in (each.id for each in operators):  # upstream first
        verdict, feed = found[id], at.get(id, _Feed())
        if verdict.outcome == "refill" and verdict.saved_as is not None:
            whole[id], emits[id] = True, False
        elif verdict.saved_as is not None:
            added = not verdict.fills and any(part.now and part.source is None for part in verdict.parts)
            kept = not (added or verdict.other_rows or verdict.saved_as in partial)
            whole[id], emits[id] = kept and all(map(whole.__getitem__, feed.last)), False
        else:
            lineage = steps[id].lineage or [[]]
            makers = [[each["from"] for each in lineages] for lineages in lineage]
            comes = not feed.direct & set(known) and all(map(emits.__getitem__, feed.last))
            whole[id] = emits[id] = all(
                all(whole[maker] if number in verdict.fills else emits[maker] for maker in ids) if ids else comes
                for number, ids in enumerate(makers)
            )
    stored = {table.sink: table for table in before}
    tables = {}
    for stage, table in tables_in(plan).items():
        feed = into[stage]
        was = stored.get(table.sink) if before else table
        lacks = sorted(id for id in feed.steps if not whole[id])
        came = not feed.direct & set(known) and all(emits[id] for id in feed.last)
        begun = any(found[id].saved_as is None and not emits[id] for id in feed.steps)
        if all(whole[id] for id in feed.last) and (stage in written or came):
            has = COMPLETE
        elif was is None:
            has = EMPTY
        elif begun or any(found[id].other_rows or _has_other_parts(found[id]) for id in feed.steps):
            has = MIXED
        elif was.path == table.path or (was.made == table.made and all(_continues(found[id]) for id in feed.steps)):
            has = was.has
        else:
            has = MIXED
        tables[stage] = msgspec.structs.replace(table, has=has, partial=lacks)
    return tables


def _continues(verdict: Verdict) -> bool:
    return verdict.outcome in ("keep", "migrate")


def _has_other_parts(verdict: Verdict) -> bool:
    return any(part.outcome != "keep" or part.called for part in verdict.parts)


def _feeds(plan: Plan, keeping: Collection[str]) -> tuple[dict[str, _Feed], dict[str, _Feed]]:
    """Returns what comes to each stage, and what to each step with state."""
    into: dict[str, _Feed] = defaultdict(_Feed)
    at: dict[str, _Feed] = {}

    def visit(targets: Iterable[Step | Edge], feed: _Feed) -> None:
        for target in targets:
            if isinstance(target, Edge):
                one = into[target.target.id]
                into[target.target.id] = _Feed(*(a | b for a, b in zip(one, feed, strict=True)))
                continue
            behind = feed
            if target.id in keeping:
                at[target.id] = feed
                behind = _Feed(frozenset([target.id]), frozenset(), feed.steps | {target.id})
            for each in (target.targets, *target.branches.values()):
                visit(each, behind)

    for stage in plan.stages:
        feed = into[stage.id]
        if stage.reading is not None:
            feed = _Feed(feed.last, feed.direct | {stage.reading.node.name}, feed.steps)
        visit(stage.targets, feed)
    return into, at


def described(table: SinkTable, option: str) -> str:
    """Returns what a table has and how it becomes complete, for people. `option`: the options of a start, or ""."""
    said = {
        COMPLETE: "complete: it has all rows of its result",
        EMPTY: "empty: it has no row of its result from before this start",
        MIXED: "mixed: rows from before this start are those of an earlier program, or are missing",
    }[table.has]
    if table.has == COMPLETE:
        return said
    return f"{said}; {option} makes it complete" if option else f"{said}; its earlier rows cannot be had from this app"
