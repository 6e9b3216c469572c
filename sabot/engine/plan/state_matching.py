"""Compares a program with a checkpoint before the program runs, and decides which operators continue with their
state. Pure functions.

An operator finds its state by the id that the user gave it (`.named("totals")`). An operator without such an id finds
it by the contents of the state (`state_schema`), if no other state in the checkpoint has the same schema; otherwise
by the statement of a script that made it, then by the steps that its rows have passed, and by the functions in these
steps. The steps before and after an operator may change. So may its aggregates; a changed program finds the state of
each aggregate by what the aggregate computes (`operators.aggregates.migration`).
"""

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from sabot.api.nodes.joins import MADE_KEY
from sabot.codecs.json import schema_of_text
from sabot.engine.operators.aggregates.aggregator import state_arguments
from sabot.engine.operators.aggregates.migration import ROWS_OF_A_KEY, AggregateVerdict, aggregate_verdicts
from sabot.engine.operators.base import TIME_COLUMN, FilledFromTable, GivesTable, Operator, OperatorContext, Stateful
from sabot.engine.operators.keyed.over_columns import columns_read, hidden_over, keeps_over, over_arguments
from sabot.engine.operators.layout.stages import Stage, Step
from sabot.engine.operators.readers import described
from sabot.engine.operators.reading import parts_of
from sabot.engine.operators.state_parts import columns_schema
from sabot.engine.plan.changes_continuity import over_changes
from sabot.engine.plan.fills import ways
from sabot.engine.plan.paths import steps_of
from sabot.engine.plan.stages import Plan
from sabot.engine.plan.verdicts import Outcome, Planned, SavedStep, Verdict, refill_options
from sabot.engine.state.reading import SavedApp
from sabot.errors import UserError

__all__ = ["Planned", "Verdict", "changed_steps", "check", "compare", "planned"]

# Entries of a schema by which no state is found: where they differ, the step is found, and refused by its name. Earlier
# versions of Sabot did not write them.
_NO_SIGNS = ("arguments", "right_keys")
_UNITS = {"ttl": " ms", "within": " ms", "allowed_lateness": " ms"}


def planned(plan: Plan) -> list[Planned]:
    """Returns the operators of the plan that keep state. Opens and closes every operator.

    Raises UserError if the columns of a source are not known yet, or if names or types do not fit.
    """
    found: list[Planned] = []

    def look(stage: Stage, step: Step, operator: Operator, context: OperatorContext) -> None:
        if isinstance(operator, Stateful):
            unfit = operator.unfit_to_fill if isinstance(operator, FilledFromTable) and operator.needs_table else None
            found.append(
                Planned(
                    *(step.id, step.text, operator.state_schema(), stage.parallelism),
                    *(step.named, step.path, step.event_time, operator.taken_over),
                    *(TIME_COLUMN in context.input.names and step.by_time, step.lineage),
                    *(isinstance(operator, GivesTable), unfit),
                    origin=step.origin,
                    conditions=step.conditions,
                    computed=step.computed,
                    table=step.table,
                )
            )

    known = plan.schemas(look)
    for stage in plan.stages:
        if (
            stage.sink is None
            and stage.agent is None
            and (stage.id not in known if stage.reading is None else stage.reading.rows is None)
        ):
            source = stage.id if stage.reading is None else stage.reading.node.name
            raise UserError(f"the columns of {source} are not known", hint='give the stream schema={"name": "type", …}')
    leading = ways(plan, {each.id for each in found})
    return [replace(each, ways=leading.get(each.id, [])) for each in found]


def compare(
    operators: Sequence[Planned],
    manifest: SavedApp,
    drop: Iterable[str] = (),
    replayed: Mapping[str, str] = MappingProxyType({}),
    again: Collection[str] = (),
) -> list[Verdict]:
    """Returns a verdict for each operator of the program that keeps state, in order, and then one for each operator
    that is only in the checkpoint. Raises UserError if an entry of `drop` names no state.

    `drop`: the state that the user gives up. Each entry is the id of an operator, in the program or in the
    checkpoint, or OPERATOR.NAME: one aggregate of an operator, or the values that a process function keeps under that
    name. `replayed`: the ids of operators whose state is computed again, with a text that says from where.
    `again`: the ids in `drop` of operators that begin anew to be filled.
    """
    saved = {each.id: each for each in _saved(manifest)}
    whole, parts = _given_up(drop, operators, saved)
    owned: dict[str, SavedStep] = {}
    if whole:
        matched = _matched(operators, saved)[0]
        owned = {**_same_place(operators, saved, matched), **matched}
    begun, gone = _begun(owned, {new.id for new in operators}, saved.keys(), whole, replayed)
    verdicts = []
    left = {id: old for id, old in saved.items() if id not in gone}
    going = [new for new in operators if new.id not in begun]
    matched, unclear = _matched(going, left)
    taken = {old.id for old in matched.values()}
    same = _same_place(going, left, matched)
    for new in operators:
        old = matched.get(new.id)
        same_id = same.get(new.id)
        if new.id in begun and old is None:
            before = begun[new.id]
            taken.update([] if before is None else [before.id])
            text = None if before is None else before.text
            why = f"{'it is filled again' if new.id in again else 'its state is dropped'}, as asked: it begins empty"
            verdicts.append(Verdict(new.id, text, new.text, "new", why, given_up=True))
        elif new.id in replayed:
            old = old or (same_id if same_id is not None and same_id.id not in taken else None)
            taken.update([] if old is None else [old.id])
            verdicts.append(_replayed(new, old, saved, replayed[new.id]))
        elif old is not None:
            verdicts.append(_verdict(old, new, parts))
        elif new.id in unclear:
            verdicts.append(_unclear(new, unclear[new.id]))
            taken.update(each.id for each in unclear[new.id])
        elif same_id is not None and same_id.id not in taken:
            taken.add(same_id.id)
            verdicts.append(_verdict(same_id, new, parts))
        else:
            verdicts.append(Verdict(new.id, None, new.text, "new", "it begins empty"))
    verdicts = over_changes(operators, saved, verdicts, spent=_spent(manifest))
    places = {new.id: new.origin.place for new in operators}
    verdicts = [replace(each, place=places.get(each.id, "")) for each in verdicts]
    for old in saved.values():
        if old.id not in taken:
            given_up = old.id in gone
            why = "as asked" if given_up else "this program has no such operator"
            why += f" in {old.origin}" if old.origin and not given_up else ""
            why += "" if old.groups else "; it holds nothing"
            verdicts.append(Verdict(old.id, old.text, None, "drop", why, groups=old.groups, given_up=given_up))
    return verdicts


def _begun(
    owned: Mapping[str, SavedStep],
    mine: Set[str],
    saved: Collection[str],
    whole: Set[str],
    replayed: Collection[str],
) -> tuple[dict[str, SavedStep | None], set[str]]:
    """Returns the operators that begin anew because the user gives their state up (`whole`), each with this state, and the
    ids of all state that is given up. `owned`: the state that each operator would continue. `mine`: the ids of the
    program's operators. `saved`: those of the checkpoint.

    An id may be that of an operator, and of other state in the checkpoint. This state is given up too, except if it is
    that of another operator which continues, or of one whose state is computed again.
    """
    going = {old.id for id, old in owned.items() if id not in whole or id in replayed}
    lost = {id for id in whole if id in saved and not (id in mine and id in going)}
    begun = {id: owned.get(id) for id in mine & whole if id not in replayed}
    return begun, lost | {old.id for old in begun.values() if old is not None}


def changed_steps(operators: Sequence[Planned], manifest: SavedApp) -> frozenset[str]:
    """Returns the ids of those operators whose state in the checkpoint, if there is any of the same id, was made of other rows
    or in another way.
    """
    saved = {each.id: each for each in _saved(manifest)}
    return frozenset(
        new.id
        for new in operators
        if (old := saved.get(new.id)) is None
        or _what(old.schema) != _what(new.schema)
        or steps_of(old.path) != steps_of(new.path)
    )


def _replayed(new: Planned, old: SavedStep | None, saved: Mapping[str, SavedStep], why: str) -> Verdict:
    """Returns the verdict on an operator whose state is computed again. In the new checkpoint the state has the id that it had,
    by which the state of later steps refers to it. If it had none, and the checkpoint has state of another step under the
    operator's id, it has a free one, by which `_matched` finds it (`SavedStep.made_for`).
    """
    id = new.id if new.named or old is None else old.id
    while old is None and id in saved:
        id += "-again"
    before, groups = (None, 1) if old is None else (old.text, max(1, old.groups))
    return Verdict(new.id, before, new.text, "refill", why, id, groups)


def check(verdicts: Iterable[Verdict], checkpoint: int) -> dict[str, str]:
    """Returns, for each operator that continues, the id under which the checkpoint has its state. Raises UserError if
    state would be lost; the error says what differs.
    """
    found: dict[str, str] = {}
    lost: list[str] = []
    ways: list[str] = []
    losing: list[Verdict] = []
    beside = False
    for each in verdicts:
        if each.loses:
            lost.append(f"{each.id} ({each.before}): {each.reason}")
            losing.append(each)
            ways += [way for way in each.ways if way not in ways]
            beside = beside or bool(each.place)
        elif each.saved_as is not None:
            found[each.id] = each.saved_as
    if lost:
        keep = "; or leave the old statement, and write the changed one beside it, into another table" if beside else ""
        refills = refill_options((each.refills, each.ways) for each in losing)
        refill = f"; or compute this state again: {' '.join(refills)}" if refills else ""
        raise UserError(
            f"checkpoint {checkpoint} has state that would be lost with this program: {'; '.join(lost)}",
            hint=f"run the program that wrote it{refill}; or give up only this state: {' '.join(ways)}{keep}",
        )
    return found


def _given_up(
    drop: Iterable[str], operators: Iterable[Planned], saved: Mapping[str, SavedStep]
) -> tuple[set[str], dict[str, set[str]]]:
    """Returns the ids of operators whose whole state is given up, and the names that are given up by operator id."""
    names: dict[str, set[str]] = {id: {*_names(old.schema), *old.names} for id, old in saved.items()}
    for new in operators:
        names[new.id] = names.get(new.id, set()) | set(_names(new.schema))
    columns = {
        new.id: {name for name, _ in new.schema["columns"]} for new in operators if new.schema["kind"] == "upsert"
    }
    whole: set[str] = set()
    parts: dict[str, set[str]] = defaultdict(set)
    for each in drop:
        owner = each if each in names else max((id for id in names if each.startswith(f"{id}.")), key=len, default="")
        name = each[len(owner) + 1 :]
        if each in names:
            whole.add(each)
        elif owner and name in names[owner] | columns.get(owner, set()):
            parts[owner].add(name)
        else:
            there = [*names, *(f"{id}.{name}" for id, known in names.items() for name in sorted(known))]
            raise UserError(
                f"--drop {each}: neither the program nor the checkpoint has state of that name",
                hint=f"there are {', '.join(there)}" if there else "nothing in them keeps state",
            )
    return whole, parts


def _names(schema: Mapping[str, Any]) -> Iterator[str]:
    listed = _listed(schema)
    return (name for name, *_ in schema[listed]) if listed else iter(())


def _saved(manifest: SavedApp) -> Iterator[SavedStep]:
    texts: dict[str, str] = {}
    for task in manifest.tasks.values():
        for operator, facts in task.meta.get("operators", {}).items():
            if facts or operator in task.states:
                texts[operator] = task.meta["texts"].get(operator, operator)
    for operator, text in texts.items():
        parts = [part.facts for part in parts_of(manifest, operator).values()]
        first = parts[0]
        schema = _completed(first)
        groups = sum(facts.get("groups", 0) for facts in parts)
        named, path = first.get("named", False), first.get("path", "")
        names = frozenset(name for facts in parts for name in facts.get("names", ()))
        event_time, lineage = first.get("event_time", ""), first.get("lineage", ())
        input = schema_of_text((first.get("reader") or {}).get("input"))
        timed = input is not None and TIME_COLUMN in input.names and not any(facts.get("untimed") for facts in parts)
        origin, conditions = first.get("origin", ""), first.get("conditions")
        facts = (operator, text, schema, len(parts), groups, named, path, names, event_time, timed, lineage)
        yield SavedStep(*facts, origin, conditions, first.get("computed") or (), first.get("made_for", ""))


def _completed(facts: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns the schema of a state in a checkpoint, with the entries that follow from its `state_reader` where an earlier
    version of Sabot did not write them.
    """
    schema, reader = facts.get("schema"), facts.get("reader") or {}
    if schema is None:
        return {"kind": "state of another version of Sabot"}
    more: dict[str, Any] = {}
    if "arguments" not in schema and "calls" in reader:
        if schema["kind"] == "over":
            input = schema_of_text(reader["input"])
            assert input is not None
            more["arguments"] = over_arguments(columns_read(reader), input, schema["frame"])
        else:
            aggregates, input = described(reader)
            known = [each for each in aggregates if each.kind != "user"]  # what a user's function needs is unknown
            more["arguments"] = state_arguments(known, input)
    right = schema_of_text(reader.get("right"))
    if "right_keys" not in schema and right is not None:
        more["right_keys"] = columns_schema(right.field(name) for name in reader["sides"]["right_keys"])
    return {**schema, **{name: value for name, value in more.items() if value}}


def _matched(
    operators: Sequence[Planned], saved: Mapping[str, SavedStep]
) -> tuple[dict[str, SavedStep], dict[str, list[SavedStep]]]:
    """Returns, by operator id, the saved state that each operator continues, and for each unclear operator the saved
    states that it may continue. These rules are applied in turn to the operators and states that are not matched yet:

    0. The state was computed again for this operator, and it has not changed since.
    1. The operator has an id of the user's, and a state has the same id.
    2. Both keep the same state (equal schemas), and are of the same statement of a script. Of several such operators,
       those through whose steps the same rows come belong together.
    3. Both keep the same state, and rows reach them through the same steps. Of several such operators there are as many
       as saved states, and no operator among them has an id of the user's. `_pairs` says which two belong together.
    4. Both keep the same state, and one operator and one saved state are left.
    5. The schemas differ only in aggregates, some of which are equal (`_share`), and no other operator or state fits, or
       none of the same statement.
    """
    matched = {new.id: saved[new.id] for new in operators if new.named and new.id in saved}
    made = {old.made_for: old for old in saved.values() if old.made_for}
    for new in operators:
        old = made.get(new.id)
        if old is not None and _what(old.schema) == _what(new.schema) and steps_of(old.path) == steps_of(new.path):
            matched[new.id] = old
    taken = {old.id for old in matched.values()}
    unclear: dict[str, list[SavedStep]] = {}
    alike: dict[str, tuple[list[Planned], list[SavedStep]]] = defaultdict(lambda: ([], []))
    for new in operators:
        if new.id not in matched:
            alike[_what(new.schema)][0].append(new)
    for old in saved.values():
        if old.id not in taken and not old.named:
            alike[_what(old.schema)][1].append(old)
    for every, saved_alike in alike.values():
        matched.update((new.id, old) for new, old in _of_one_statement(every, saved_alike))
    # An operator of another statement does not continue state while an operator of its own statement has none.
    waiting = {(new.origin.name, new.schema["kind"]) for new in operators if not new.named and new.id not in matched}

    def is_free(old: SavedStep, news: Sequence[Planned]) -> bool:
        belongs = old.origin and (old.origin, old.schema.get("kind")) in waiting
        return not belongs or any(new.origin.name == old.origin for new in news)

    for every, saved_alike in alike.values():
        news = [new for new in every if new.id not in matched]
        olds = [old for old in saved_alike if old not in matched.values() and is_free(old, news)]
        for path in {steps_of(new.path) for new in news}:
            here = [new for new in news if steps_of(new.path) == path]
            there = [old for old in olds if steps_of(old.path) == path]
            if len(here) == len(there) and (len(here) == 1 or not any(new.named for new in here)):
                # Equal operators after equal steps: pair them, because the numbers in their ids may have shifted, and those of stages too.
                matched.update((new.id, old) for new, old in _pairs(here, there))
        left = [new for new in news if new.id not in matched]
        gone = [old for old in olds if old not in matched.values()]
        if len(left) == len(gone) == 1:
            matched[left[0].id] = gone[0]
        elif gone:
            unclear.update((new.id, gone) for new in left)
    news = [new for new in operators if new.id not in matched and new.id not in unclear]
    free = [old for old in saved.values() if not old.named and old not in matched.values()]
    candidates = {
        new.id: [old for old in free if _share(old.schema, new.schema) and is_free(old, [new])] for new in news
    }
    for new in news:
        olds = [old for old in candidates[new.id] if new.origin.name and old.origin == new.origin.name]
        rivals = [
            each for each in news if each.origin.name == new.origin.name and olds and olds[0] in candidates[each.id]
        ]
        if len(olds) == len(rivals) == 1:
            matched[new.id] = olds[0]
            candidates = {id: [old for old in others if old != olds[0]] for id, others in candidates.items()}
    for new in news:
        if new.id in matched:
            continue
        olds = candidates[new.id]
        if len(olds) == 1 and sum(olds[0] in others for others in candidates.values()) == 1:
            matched[new.id] = olds[0]
        elif olds:
            unclear[new.id] = olds
    return matched, unclear


def _same_place(
    operators: Sequence[Planned], left: Mapping[str, SavedStep], matched: Mapping[str, SavedStep]
) -> dict[str, SavedStep]:
    """Returns, for operators that match no saved state, the saved state with which the user should compare them: that of
    the same statement of a script, if there is one of this kind, otherwise that of the same steps, or of the same id.
    """
    free = {id: old for id, old in left.items() if old not in matched.values()}
    news = [new for new in operators if new.id not in matched]
    found: dict[str, SavedStep] = {}
    kinds = Counter((steps_of(new.path), new.schema["kind"]) for new in news if not new.named)
    for new in news if left else ():
        alike = [
            old for old in free.values() if not old.named and steps_of(old.path) == steps_of(new.path) and not new.named
        ]
        alike = [old for old in alike if old.schema.get("kind") == new.schema["kind"]]
        if len(alike) == kinds[steps_of(new.path), new.schema["kind"]] == 1 and not new.origin.name:
            found[new.id] = alike[0]
            del free[alike[0].id]
    for new in (each for each in news if each.id not in found):
        same_id = free.get(new.id)
        if not new.origin.name or new.named:
            if same_id is not None:
                found[new.id] = same_id
            continue
        sign = (new.origin.name, new.schema["kind"])
        mine = [each for each in news if (each.origin.name, each.schema["kind"]) == sign and not each.named]
        its = [old for old in free.values() if (old.origin, old.schema.get("kind")) == sign and not old.named]
        if len(mine) == len(its):
            found[new.id] = its[mine.index(new)]
        elif same_id is not None and same_id.origin in ("", new.origin.name):
            found[new.id] = same_id
    return found


def _of_one_statement(news: Sequence[Planned], olds: Sequence[SavedStep]) -> Iterator[tuple[Planned, SavedStep]]:
    """Yields pairs of an operator and a saved state that the same statement of a script has made. The operators and
    states all keep the same state. Operators with an id of the user's are left out.
    """
    for name in dict.fromkeys(new.origin.name for new in news if new.origin.name and not new.named):
        mine = [new for new in news if new.origin.name == name and not new.named]
        its = [old for old in olds if old.origin == name]
        if len(mine) == len(its):
            yield from _pairs(mine, its)
            continue
        for path in dict.fromkeys(steps_of(new.path) for new in mine):
            here = [new for new in mine if steps_of(new.path) == path]
            there = [old for old in its if steps_of(old.path) == path]
            if len(here) == len(there):
                yield from _pairs(here, there)


def _share(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Returns True if the two schemas have some aggregates in common, and otherwise differ at most in the other
    aggregates, in `_NO_SIGNS`, in `order` and in `rows`.
    """
    listed = _listed(new)
    if any(old.get(name) != new.get(name) for name in {*old, *new}.difference([listed, *_NO_SIGNS, "order", "rows"])):
        return False
    computed = [{what for _, what, _ in schema[listed]} for schema in (old, new)] if listed else [set(), set()]
    return bool(computed[0] & computed[1])


def _pairs(news: list[Planned], olds: list[SavedStep]) -> Iterator[tuple[Planned, SavedStep]]:
    """Yields pairs of an operator of the program and a saved state; there are as many of one as of the other.

    Four rounds pair first what is most alike: the same text and path, the same path, the same text, any. A round
    pairs a group only if it has as many operators as states, in the order of their numbers.
    """
    for known in (lambda step: (step.text, step.path), lambda step: step.path, lambda step: step.text, lambda step: ""):
        for sign in {known(new) for new in news}:
            here = [new for new in news if known(new) == sign]
            there = [old for old in olds if known(old) == sign]
            if len(here) == len(there):
                yield from zip(sorted(here, key=_by_number), sorted(there, key=_by_number), strict=True)
                news = [new for new in news if new not in here]
                olds = [old for old in olds if old not in there]


def _by_number(step: Planned | SavedStep) -> tuple[str, int]:
    """Returns a sort key for steps without an id of the user's: "over-2" comes before "over-10"."""
    kind, _, number = step.id.rpartition("-")
    return kind, int(number) if number.isdigit() else 0


def _what(schema: Mapping[str, Any]) -> str:
    return repr(sorted((name, value) for name, value in schema.items() if name not in _NO_SIGNS))


def _unclear(new: Planned, olds: list[SavedStep]) -> Verdict:
    names = " or ".join(old.id for old in olds)
    why = f"it may go on with the state of {names}, and nothing says which: name them before the checkpoint, .named(…)"
    before = " or ".join(sorted({old.text for old in olds}))
    instead = (new.id, *(old.id for old in olds))
    return Verdict(new.id, before, new.text, "refuse", why, groups=sum(old.groups for old in olds), instead=instead)


def _verdict(old: SavedStep, new: Planned, given_up: Mapping[str, set[str]]) -> Verdict:
    forgets = frozenset().union(*(given_up.get(each, ()) for each in (old.id, new.id)))
    changes: list[str] = []
    differences: list[str] = []
    refused: list[str] = []  # differences of single aggregates
    parts: list[AggregateVerdict] = []
    added = _added_columns(old, new)
    if old.schema.get("kind") != new.schema["kind"]:
        differences.append(f"it was a {old.schema.get('kind')}, is a {new.schema['kind']}")
    else:
        listed = _listed(old.schema)
        if old.names:
            parts = [_fate_of(name, forgets) for name in sorted(old.names)]
            changes += _said_of(parts)
        if listed:
            parts = _parts(listed, old, new, forgets)
            refused = [
                f"aggregate {each.name} was {each.before}, is {each.now}" for each in parts if each.outcome == "refuse"
            ]
            changes += _said_of(parts)
            left = forgets or not old.schema[listed] or any(each.outcome == "keep" for each in parts)
            if listed == "columns" and _leads(old.schema) and not _leads(new.schema):
                differences.append("rows wait for lead, of which no column is left")
            elif not refused and not left:
                differences.append(f"none of its {listed} is left")
        for name in dict.fromkeys([*old.schema, *new.schema]):
            before, now = old.schema.get(name), new.schema.get(name)
            unsaid = name in ("order", "right_keys") and None in (before, now)
            if before != now and not (name in (listed, "arguments") or unsaid):
                change = _taken_over(name, before, now, old, new)
                if change is None and added and added <= forgets:
                    change = f"{', '.join(sorted(added))}: null in the rows so far, as asked"
                differences.append(_difference(name, before, now)) if change is None else changes.append(change)
    for one, two in _both(old, new):
        for name in sorted(one.keys() & two.keys()):
            if name.startswith(MADE_KEY) and one[name] != two[name]:
                differences.append(f"key was {_of_script(one[name])}, is {_of_script(two[name])}")
    if old.event_time and new.event_time and old.event_time != new.event_time:
        differences.append(f"event time was {old.event_time}, is {new.event_time}")
    if new.schema["kind"] == "upsert" and new.timed and not old.timed:
        differences.append("its rows were kept without their event time, which is asked for now")
    if (differences or refused) and not old.groups:
        why = f"{'; '.join([*differences, *refused])}; the checkpoint holds nothing of it, it begins empty"
        return Verdict(new.id, old.text, new.text, "new", why)
    told = () if differences else tuple(parts)
    if differences or refused:
        why = "; ".join([*differences, *refused, *changes])
        instead = tuple(f"{new.id}.{name}" for name in sorted(added)) if len(differences) == 1 and added else ()
        lacks = len(differences) == _added_facts(old, new) and not refused
        facts: Any = {"groups": old.groups, "parts": told, "instead": instead, "lacks_columns": lacks}
        return Verdict(new.id, old.text, new.text, "refuse", why, **facts)
    if old.id != new.id:
        changes.insert(0, f"the checkpoint calls it {old.id}")
    if old.subtasks != new.parallelism:
        changes.append(f"{old.subtasks} subtasks before, {new.parallelism} now: key groups are dealt out anew")
    outcome: Outcome = "migrate" if changes else "keep"
    conditions = list(_changed_conditions(old, new))
    others = old.conditions is not None and (
        # state with no key lacks rows too, if a filter took all of them; behind more filters it lacks none
        not set(old.conditions) <= set(new.conditions)
        or (old.groups > 0 and set(old.conditions) != set(new.conditions))
        or any(one[name] != two[name] for one, two in _both(old, new) for name in one.keys() & two.keys())
    )
    verdict = Verdict(
        *(new.id, old.text, new.text, outcome, "; ".join([*changes, *conditions]), old.id, old.groups, told, forgets)
    )
    return replace(verdict, other_rows=others and not new.lineage)


def _changed_conditions(old: SavedStep, new: Planned) -> Iterator[str]:
    """Yields texts that say which conditions before a step of a script have changed, and which expressions of columns that it
    needs, and what of its state they leave.
    """
    if old.conditions is None or not new.origin.name:
        return
    before = " AND ".join(_of_script(each) for each in old.conditions if each not in new.conditions)
    now = [(_of_script(each), place) for each, place in new.conditions.items() if each not in old.conditions]
    after = " AND ".join(f"{each} (at {place})" if place else each for each, place in now)
    if before or after:
        said = f"was {before}, is {after}" if before and after else f"{after} is new" if after else f"{before} is gone"
        yield f"WHERE {said}: {_from_here_on(new)}"
    for one, two in _both(old, new):
        for name in sorted(one.keys() & two.keys()):
            if one[name] != two[name]:
                yield f"{name} was {_of_script(one[name])}, is {_of_script(two[name])}: {_from_here_on(new)}"


def _both(old: SavedStep, new: Planned) -> Iterator[tuple[Mapping[str, str], Mapping[str, str]]]:
    """Yields the expressions of the columns that a step needs, in the checkpoint and now, for each of its inputs."""
    return zip(old.computed, new.computed, strict=False)


def _from_here_on(new: Planned) -> str:
    return f"for rows from here on; --refill {new.id} applies it to those before"


def _of_script(text: str) -> str:
    """Returns a condition in the words of SQL: amount > 3 for col("amount") > 3."""
    text = re.sub(r'col\("((?:[^"\\]|\\.)*)"\)', r"\1", text)
    for ours, theirs in (("==", "="), ("!=", "<>"), (" & ", " AND "), (" | ", " OR "), ("(~", "(NOT "), ('"', "'")):
        text = text.replace(ours, theirs)
    return text


def _added_columns(old: SavedStep, new: Planned) -> frozenset[str]:
    """Returns the columns that a program adds to the rows which an `upsert` keeps, if nothing else differs and the user may let
    them be null in the rows so far. Returns none if the step keeps more than the last row of each key.
    """
    before, now = old.schema, new.schema
    if not before.get("kind") == now["kind"] == "upsert" or now["changes"] or before.get("changes"):
        return frozenset()
    kinds = dict(before["columns"])
    fits = all(kinds.get(name, kind) == kind for name, kind in now["columns"]) and before["keys"] == now["keys"]
    return frozenset(name for name, _ in now["columns"] if name not in kinds) if fits else frozenset()


def _added_facts(old: SavedStep, new: Planned) -> int:
    """Returns of how many inputs the program keeps more columns, all others with the types that they have in the checkpoint."""
    names = {"left", "right", "columns"} - {_listed(new.schema)}
    sides = ((old.schema.get(name), new.schema.get(name)) for name in names)
    rows = [
        (dict(before or ()), dict(now or ())) for before, now in sides if before != now and _rows(before) and _rows(now)
    ]
    return sum(now.keys() >= before.keys() and {**now, **before} == now for before, now in rows)


def _spent(manifest: SavedApp) -> frozenset[str] | None:
    """Returns the ids of the steps whose state the checkpoint leaves out because all inputs of the app had ended
    (decision 031), or None if some had not.
    """
    metas = [task.meta for task in manifest.tasks.values()]
    if not any((meta.get("input") or {}).get("over") for meta in metas):
        return None
    return frozenset(id for meta in metas for id in meta.get("operators", ()) if id not in meta.get("texts", ()))


def _listed(schema: Mapping[str, Any]) -> str | None:
    """Returns the key in a schema under which an operator lists its aggregates: "columns" for `over`, otherwise
    "aggregates", or None if there are none. An entry is (name, what it computes, type of the result).
    """
    return "columns" if schema.get("kind") == "over" else "aggregates" if "aggregates" in schema else None


def _leads(schema: Mapping[str, Any]) -> bool:
    return any(words.startswith("lead(") for _, words, _ in schema["columns"])


def _parts(listed: str, old: SavedStep, new: Planned, forgets: frozenset[str]) -> list[AggregateVerdict]:
    """Returns a verdict on each aggregate."""
    before = old.schema[listed]
    arguments = (_arguments(old.schema), _arguments(new.schema))
    if listed == "columns":
        keeps, hidden_columns = keeps_over(new.schema["frame"], before), hidden_over(before)
        return aggregate_verdicts(
            *(before, new.schema[listed], forgets), keeps=keeps, hidden=hidden_columns, arguments=arguments
        )
    hidden = [ROWS_OF_A_KEY] if new.schema["kind"] == "groups" else []
    if not new.schema.get("changes"):
        return aggregate_verdicts(before, new.schema[listed], forgets, hidden=hidden, arguments=arguments)
    begins = f"it begins with the rows of {' and '.join(new.makers)}"
    return aggregate_verdicts(
        *(before, new.schema[listed], forgets), keeps=str, hidden=hidden, begins=begins, arguments=arguments
    )


def _arguments(schema: Mapping[str, Any]) -> Mapping[str, str]:
    """Returns the types of the aggregates' arguments. A checkpoint of before Sabot kept them there lacks them."""
    return schema.get("arguments") or {}


def _fate_of(name: str, forgets: frozenset[str]) -> AggregateVerdict:
    """Returns a verdict on the values that a process function keeps under a name."""
    if name in forgets:
        return AggregateVerdict(name, "drop", "values", None, "its state is dropped, as asked")
    return AggregateVerdict(name, "keep", "values", "values")


def _said_of(parts: Sequence[AggregateVerdict]) -> Iterator[str]:
    """Yields texts that say what changes for the aggregates."""
    renamed = [f"{part.called} is {part.name} now" for part in parts if part.called]
    if renamed:
        yield ", ".join(renamed)
    for part in parts:
        if part.outcome == "add":
            yield f"{part.name} is new ({part.now}): {part.why}"
        elif part.outcome == "drop":
            called = part.before if part.name.startswith("EXPR$") else f"{part.name} ({part.before})"
            yield f"{called} is gone: {part.why}"


def _taken_over(name: str, before: Any, now: Any, old: SavedStep, new: Planned) -> str | None:
    """Returns in words how state continues although the fact `name` of its schema differs, or None if it cannot. A
    "ttl" or "within" may change from one duration to another for every operator; about all other changes the operator
    decides.
    """
    if name in ("ttl", "within") and before is not None and now is not None:
        return f"{name} was {before} ms, is {now} ms: for what the checkpoint still has, and from here on"
    return new.taken_over(name, before, now, old.groups)


def _difference(name: str, before: Any, now: Any) -> str:
    """Returns a text that says how a fact of the schema differs."""
    if name in ("columns", "keys", "right_keys", "left", "right", "rows") and _rows(before) and _rows(now):
        return "; ".join(_differences_in(name, before, now))
    unit = _UNITS.get(name, "")
    one, two = (f"{value}{unit}" if value is not None else "none" for value in (before, now))
    return f"{name.replace('_', ' ')} was {one}, is {two}"


def _rows(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, list) for each in value)


def _differences_in(name: str, before: list[list[str]], now: list[list[str]]) -> Iterator[str]:
    """Yields texts that say how two lists of columns differ: changed columns with both types, added and missing
    columns, or the order.
    """
    old, new = ({each[0]: " ".join(each[1:]) for each in rows} for rows in (before, now))
    # else those of one side
    one = {"columns": "column", "keys": "key", "right_keys": "key of the right"}.get(name, f"{name} column")
    for each in dict.fromkeys([*old, *new]):
        if each not in new:
            yield f"{one} {each} is gone ({old[each]})"
        elif each not in old:
            yield f"{one} {each} is new ({new[each]})"
        elif old[each] != new[each]:
            yield f"{one} {each} was {old[each]}, is {new[each]}"
    if old == new:
        yield f"{name} were in the order {', '.join(old)}, are in the order {', '.join(new)}"
