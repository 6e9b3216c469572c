"""Compares a program with a checkpoint before it runs: which operators go on with their state, and which do not. Pure functions.

An operator finds its state by the id that the user gave it (`.named("totals")`); else by what it consists of (`state_schema`), if that
is unlike all others; else by the steps that its rows have gone through, and by the functions in these. The steps before and after an
operator may change.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from sabot.errors import UserError
from sabot.operators.base import Operator
from sabot.operators.layout.stages import Stage, Step
from sabot.operators.reading import parts_of
from sabot.plan.paths import steps_of
from sabot.plan.stages import Plan
from sabot.state.reading import SavedJob

__all__ = ["Planned", "Verdict", "check", "compare", "planned"]

Outcome = Literal["keep", "migrate", "drop", "new", "refuse"]
_UNITS = {"ttl": " ms", "within": " ms", "allowed_lateness": " ms"}


@dataclass(frozen=True)
class Planned:
    """An operator of a plan that keeps state, opened on the columns that it gets."""

    id: str
    text: str
    schema: Mapping[str, Any]
    parallelism: int
    named: bool  # whether the user gave the id
    path: str
    taken_over: Callable[[str, Any, Any, int], str | None]  # of the operator


class Verdict(NamedTuple):
    """What becomes of an operator's state.

    keep: it goes on as it is. migrate: it goes on, and `why` says what changes. new: the checkpoint has none, so it begins empty. drop: the
    program has no such operator. refuse: the program's operator of that id keeps other state; `why` says what differs.
    saved_as: the operator's id in the checkpoint; None: no state is taken over. groups: about how many groups the checkpoint has of it.
    """

    id: str
    before: str | None
    now: str | None
    outcome: Outcome
    why: str = ""
    saved_as: str | None = None
    groups: int = 0


class _Saved(NamedTuple):
    """An operator with state, as the checkpoint describes it."""

    id: str
    text: str
    schema: Mapping[str, Any]
    subtasks: int
    groups: int
    named: bool
    path: str


def planned(plan: Plan) -> list[Planned]:
    """The operators of the plan that keep state. Opens and closes every operator. UserError where columns are not known yet."""
    found: list[Planned] = []

    def look(stage: Stage, step: Step, operator: Operator) -> None:
        state = operator.state_schema()
        if state is not None:
            found.append(
                Planned(step.id, step.text, state, stage.parallelism, step.named, step.path, operator.taken_over)
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
    return found


def compare(operators: Sequence[Planned], manifest: SavedJob) -> list[Verdict]:
    """A verdict for each operator of the program that keeps state, in order; then for those that only the checkpoint has."""
    saved = {each.id: each for each in _saved(manifest)}
    matched, unclear = _matched(operators, saved)
    taken = {old.id for old in matched.values()}
    verdicts = []
    for new in operators:
        old = matched.get(new.id)
        same_id = saved.get(new.id)
        if old is not None:
            verdicts.append(_verdict(old, new))
        elif new.id in unclear:
            verdicts.append(_unclear(new, unclear[new.id]))
            taken.update(each.id for each in unclear[new.id])
        elif same_id is not None and same_id.id not in taken:
            taken.add(same_id.id)
            verdicts.append(_verdict(same_id, new))
        else:
            verdicts.append(Verdict(new.id, None, new.text, "new", "it begins empty"))
    for old in saved.values():
        if old.id not in taken:
            why = "this program has no such operator" + ("" if old.groups else "; it holds nothing")
            verdicts.append(Verdict(old.id, old.text, None, "drop", why, groups=old.groups))
    return verdicts


def check(verdicts: Iterable[Verdict], checkpoint: int) -> dict[str, str]:
    """Operator -> the id under which the checkpoint has its state. Raises UserError, which says what differs, where state would be lost."""
    found: dict[str, str] = {}
    lost = []
    for each in verdicts:
        if each.outcome == "refuse" or (each.outcome == "drop" and each.groups):
            lost.append(f"{each.id} ({each.before}): {each.why}")
        elif each.saved_as is not None:
            found[each.id] = each.saved_as
    if lost:
        raise UserError(
            f"checkpoint {checkpoint} has state that this program would not go on with: {'; '.join(lost)}",
            hint="run the program that wrote it; or start afresh (--fresh)",
        )
    return found


def _saved(manifest: SavedJob) -> Iterator[_Saved]:
    texts: dict[str, str] = {}
    for task in manifest.tasks.values():
        for operator, facts in task.meta.get("operators", {}).items():
            if facts or operator in task.states:
                texts[operator] = task.meta["texts"].get(operator, operator)
    for operator, text in texts.items():
        parts = [part.facts for part in parts_of(manifest, operator).values()]
        first = parts[0]
        schema = first.get("schema") or {"kind": "state of another version of Sabot"}
        groups = sum(facts.get("groups", 0) for facts in parts)
        named, path = first.get("named", False), first.get("path", "")
        yield _Saved(operator, text, schema, len(parts), groups, named, path)


def _matched(
    operators: Sequence[Planned], saved: Mapping[str, _Saved]
) -> tuple[dict[str, _Saved], dict[str, list[_Saved]]]:
    """(operator -> the saved one whose state is its own; operator -> the saved ones whose state it may be, where that is unclear).

    Operators are matched by the user's ids first. Those that keep the same state are then matched by their paths; those of one path, as
    many as before, in the order of their numbers; and where one is left on each side, these two.
    """
    matched = {new.id: saved[new.id] for new in operators if new.named and new.id in saved}
    taken = {old.id for old in matched.values()}
    unclear: dict[str, list[_Saved]] = {}
    alike: dict[str, tuple[list[Planned], list[_Saved]]] = defaultdict(lambda: ([], []))
    for new in operators:
        if new.id not in matched:
            alike[_what(new.schema)][0].append(new)
    for old in saved.values():
        if old.id not in taken and not old.named:
            alike[_what(old.schema)][1].append(old)
    for news, olds in alike.values():
        for path in {steps_of(new.path) for new in news}:
            here = [new for new in news if steps_of(new.path) == path]
            there = [old for old in olds if steps_of(old.path) == path]
            if len(here) == len(there) and (len(here) == 1 or not any(new.named for new in here)):
                # they do the same behind the same steps, and ids may have shifted: a stage is numbered too where its name is the kind
                matched.update((new.id, old) for new, old in _pairs(here, there))
        left = [new for new in news if new.id not in matched]
        gone = [old for old in olds if old not in matched.values()]
        if len(left) == len(gone) == 1:
            matched[left[0].id] = gone[0]
        elif gone:
            unclear.update((new.id, gone) for new in left)
    return matched, unclear


def _pairs(news: list[Planned], olds: list[_Saved]) -> Iterator[tuple[Planned, _Saved]]:
    """Steps of one path, as many as there were: those whose functions are the same as before, the others in the order of their numbers."""
    for known in (lambda step: (step.text, step.path), lambda step: step.path, lambda step: step.text, lambda step: ""):
        for sign in {known(new) for new in news}:
            here = [new for new in news if known(new) == sign]
            there = [old for old in olds if known(old) == sign]
            if len(here) == len(there):
                yield from zip(sorted(here, key=_by_number), sorted(there, key=_by_number), strict=True)
                news = [new for new in news if new not in here]
                olds = [old for old in olds if old not in there]


def _by_number(step: Planned | _Saved) -> tuple[str, int]:
    """The order of steps without a name of the user's: "over-2" comes before "over-10"."""
    kind, _, number = step.id.rpartition("-")
    return kind, int(number) if number.isdigit() else 0


def _what(schema: Mapping[str, Any]) -> str:
    return repr(sorted((name, value) for name, value in schema.items()))


def _unclear(new: Planned, olds: list[_Saved]) -> Verdict:
    names = " or ".join(old.id for old in olds)
    why = f"it may go on with the state of {names}, and nothing says which: name them before the checkpoint, .named(…)"
    before = " or ".join(sorted({old.text for old in olds}))
    return Verdict(new.id, before, new.text, "refuse", why, groups=sum(old.groups for old in olds))


def _verdict(old: _Saved, new: Planned) -> Verdict:
    changes, differences = [], []
    if old.schema.get("kind") != new.schema["kind"]:
        differences.append(f"it was a {old.schema.get('kind')}, is a {new.schema['kind']}")
    else:
        for name in dict.fromkeys([*old.schema, *new.schema]):
            before, now = old.schema.get(name), new.schema.get(name)
            if before != now:
                change = _taken_over(name, before, now, old, new)
                differences.append(_difference(name, before, now)) if change is None else changes.append(change)
    if differences and not old.groups:
        why = f"{'; '.join(differences)}; the checkpoint holds nothing of it, it begins empty"
        return Verdict(new.id, old.text, new.text, "new", why)
    if differences:
        why = "; ".join([*differences, *changes])
        return Verdict(new.id, old.text, new.text, "refuse", why, groups=old.groups)
    if old.id != new.id:
        changes.insert(0, f"the checkpoint calls it {old.id}")
    if old.subtasks != new.parallelism:
        changes.append(f"{old.subtasks} subtasks before, {new.parallelism} now: key groups are dealt out anew")
    return Verdict(new.id, old.text, new.text, "migrate" if changes else "keep", "; ".join(changes), old.id, old.groups)


def _taken_over(name: str, before: Any, now: Any, old: _Saved, new: Planned) -> str | None:
    """How state goes on though it differs in `name`; None: it cannot. Here for all operators, the rest they say themselves."""
    if name == "aggregates" and [each[1:] for each in before] == [each[1:] for each in now]:
        renamed = [f"{one[0]} is {two[0]} now" for one, two in zip(before, now, strict=True) if one != two]
        return ", ".join(renamed)
    if name in ("ttl", "within") and before is not None and now is not None:
        return f"{name} was {before} ms, is {now} ms: for what the checkpoint still has, and from here on"
    return new.taken_over(name, before, now, old.groups)


def _difference(name: str, before: Any, now: Any) -> str:
    """What differs, for people."""
    if name in ("aggregates", "columns", "keys") and _rows(before) and _rows(now):
        return "; ".join(_differences_in(name, before, now))
    unit = _UNITS.get(name, "")
    one, two = (f"{value}{unit}" if value is not None else "none" for value in (before, now))
    return f"{name.replace('_', ' ')} was {one}, is {two}"


def _rows(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, list) for each in value)


def _differences_in(name: str, before: list[list[str]], now: list[list[str]]) -> Iterator[str]:
    """How two lists of named things differ: what each thing was and is, which came and went, or their order."""
    old, new = ({each[0]: " ".join(each[1:]) for each in rows} for rows in (before, now))
    one = {"aggregates": "aggregate", "columns": "column", "keys": "key"}[name]
    for each in dict.fromkeys([*old, *new]):
        if each not in new:
            yield f"{one} {each} is gone ({old[each]})"
        elif each not in old:
            yield f"{one} {each} is new ({new[each]})"
        elif old[each] != new[each]:
            yield f"{one} {each} was {old[each]}, is {new[each]}"
    if old == new:
        yield f"{name} were in the order {', '.join(old)}, are in the order {', '.join(new)}"
