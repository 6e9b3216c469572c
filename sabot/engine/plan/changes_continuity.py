"""Checks whether the state of steps over changes is still right in another program.

A change takes a row away that came before. So the step must have had that row: from the same table, past the same
filters, with the same values in its columns. A new step or aggregate has not seen the rows so far, so a start fills
it from the table before it. The start is refused if that table does not have the rows, or if a step between the table
and the new step does not handle each row by itself.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

from sabot.api.expr import col
from sabot.engine.plan.paths import steps_of
from sabot.engine.plan.verdicts import Planned, SavedStep, Verdict

_ALL: frozenset[str] = frozenset()


def over_changes(
    operators: Sequence[Planned],
    saved: Mapping[str, SavedStep],
    verdicts: Sequence[Verdict],
    *,
    spent: frozenset[str] | None = None,
) -> list[Verdict]:
    """Returns the verdicts, changed for steps over changes: they also say what is filled, and refuse state that would
    be wrong.

    `operators`: upstream first, each with its verdict. `saved`: the state in the checkpoint, by its ids. `spent`:
    if all inputs of the app had ended, the ids of the steps whose state the checkpoint leaves out for that reason
    (joins, decision 031), else None. No change will come to these any more, and they have emitted all their rows.
    """
    decided = partial(_over_changes, operators, saved, verdicts, spent)
    found, refilled, asked = decided()
    if asked:
        further, filled, _ = decided(asked=asked)
        if _refused(further) < _refused(found) and _is_closed(operators, filled):
            return further
    return found if _is_closed(operators, refilled) else decided(refills=False)[0]


def _refused(verdicts: Sequence[Verdict]) -> int:
    return sum(each.outcome == "refuse" for each in verdicts)


def _is_closed(operators: Sequence[Planned], refilled: Mapping[str, str]) -> bool:
    """Returns False if a step that goes on gets all results of a step that is filled again. For example, a changelog would
    have the rows so far once more.
    """
    return all(new.id in refilled or not refilled.keys() & set(new.makers) for new in operators)


def _over_changes(
    operators: Sequence[Planned],
    saved: Mapping[str, SavedStep],
    verdicts: Sequence[Verdict],
    spent: frozenset[str] | None,
    *,
    refills: bool = True,
    asked: frozenset[str] = _ALL,
) -> tuple[list[Verdict], dict[str, str], frozenset[str]]:
    """Returns the verdicts of `over_changes`. Returns also, by the ids of the steps that are filled again by themselves and emit
    all of their results, the ids of their state in the checkpoint; and the ids of the joins that would have to be such
    steps for aggregates which were added behind them.

    `refills`: True if there may be such steps. `asked`: the joins among them of which only a later step needs the rows.
    """
    known = {each.id: each for each in operators}
    found: dict[str, Verdict] = {}
    refilled: dict[str, str] = {}
    wanted: set[str] = set()
    for new, verdict in zip(operators, verdicts, strict=True):
        found[new.id] = verdict
        if new.unfit is None or verdict.outcome == "refill":
            continue
        before = verdict.saved_as or (new.id if verdict.outcome == "refuse" and new.id in saved else None)
        old = None if before is None else saved[before]
        broken = [] if old is None else list(_broken(old, new, known, found, saved, spent is not None, refilled))
        begun = Verdict(new.id, verdict.before, new.text, "new", "it begins empty", given_up=verdict.given_up)
        behind = sorted(refilled.keys() & set(new.makers))
        if old is not None and old.groups and (broken or behind or verdict.outcome == "refuse" or new.id in asked):
            again = _filled(new, begun, known, found, _ALL)
            lacks = refills and not broken and (verdict.outcome != "refuse" or verdict.lacks_columns)
            lacks = lacks and has_all_rows(new, again, found, refilled)
            broken += [f"its rows are of {maker}, which is filled again" for maker in behind]
            if (new.keeps_copy and again.fills and again.outcome != "refuse") or lacks:
                broken += ["a step behind it needs the rows so far"] if new.id in asked else []
                why = "; ".join([*([verdict.why] if verdict.outcome == "refuse" else []), *broken])
                why = f"{why}: it is filled again with the rows of {' and '.join(new.makers)}"
                verdict = replace(again, outcome="refill", before=old.text, why=why)
                refilled |= {} if new.keeps_copy else {new.id: old.id}
            elif broken or not verdict.parts:  # all of it would have to go, and what then cannot be filled
                why = "; ".join([*([verdict.why] if verdict.outcome == "refuse" else []), *broken])
                ways = [new.id, *again.instead]
                verdict = Verdict(new.id, old.text, new.text, "refuse", why, groups=old.groups, instead=tuple(ways))
        elif old is None and spent is not None and new.id in spent:
            why = "it begins empty, because all inputs had ended and its rows wait for nothing any more"
            verdict = replace(verdict, why=why)
        elif old is None or broken:
            verdict = _filled(new, begun if broken else verdict, known, found, _ALL)
        elif added := frozenset(part.name for part in verdict.parts if part.now and part.source is None):
            verdict = _filled(new, verdict, known, found, added)
            if verdict.outcome == "refuse" and not new.unfit(_ALL):
                wanted.update(id for id in new.makers if not known[id].gives_table and found[id].saved_as is not None)
        found[new.id] = verdict
    return list(found.values()), refilled, frozenset(wanted)


def has_all_rows(new: Planned, again: Verdict, verdicts: Mapping[str, Verdict], refilled: Mapping[str, str]) -> bool:
    """Returns True if a step that begins anew gets all rows so far: from the tables above it, which are in the checkpoint, or
    from steps that are filled again themselves. `again`: the verdict on the step that begins anew.
    """
    if not new.lineage or again.outcome == "refuse" or new.unfit is None or new.unfit(_ALL):
        return False
    return all(
        lineages and (number in again.fills or all(each["from"] in refilled for each in lineages))
        for number, lineages in enumerate(new.lineage)
    )


def _same_rows(old: SavedStep | None, new: Planned) -> bool:
    """Returns True if the rows that come to the step have passed the same steps as those that came before."""
    return old is not None and steps_of(old.path) == steps_of(new.path)


def _broken(
    old: SavedStep,
    new: Planned,
    known: Mapping[str, Planned],
    verdicts: Mapping[str, Verdict],
    saved: Mapping[str, SavedStep],
    ended: bool,
    refilled: Mapping[str, str],
) -> Iterator[str]:
    """Yields the reasons why the changes to come do not continue those from which the state was made. `refilled`: the steps
    that are filled again by themselves, with the ids of their state in the checkpoint.
    """
    ids = {maker: refilled.get(maker) or verdicts[maker].saved_as for maker in new.makers}
    for maker in new.makers:
        verdict = verdicts[maker]
        if ids[maker] is None and not ended:
            yield f"its rows are of {maker}, whose state would not go on"
        if verdict.outcome == "refill" and not _same_rows(saved.get(ids[maker] or ""), known[maker]):
            yield f"its rows are of {maker}, which is refilled with other rows than it had"
        for name, words, _ in known[maker].schema.get("aggregates", ()):
            if name in verdict.forgets and not verdict.fills and col(words).text() in str(_texts(new)):
                yield f"its rows have {name} of {maker}, which would begin empty"
    if len(old.lineage) != len(new.lineage):  # an earlier version does not say; another kind of step is refused anyway
        return
    for one, two in zip(old.lineage, new.lineage, strict=True):
        was = {each["from"]: each for each in one}
        now = {ids[each["from"]] or "": each for each in two}
        for maker in was.keys() - now.keys() if "" not in now else ():
            yield f"its rows were changes of {maker}, and are not now"
        for maker in now.keys() - was.keys() - {""}:
            yield f"its rows were no changes of {maker}, and are now"
        for maker in sorted(was.keys() & now.keys() - {""}):
            before, after = was[maker], now[maker]
            gone, come = _only(before["where"], after["where"]), _only(after["where"], before["where"])
            if gone or come:
                yield f"{_filtered(known[after['from']].table or maker, ' and '.join(gone), ' and '.join(come))} (another filter)"
            for name in sorted(before["columns"].keys() & after["columns"].keys()):
                if before["columns"][name] != after["columns"][name]:
                    yield f"its {name} was {before['columns'][name]} of {maker}, is {after['columns'][name]}"


def _filtered(table: str, before: str, now: str) -> str:
    """Returns which rows a step has in the checkpoint, and which come now. `before`, `now`: the filters that are only there
    and only here.
    """
    if before and now:
        return f"its state has the rows of {table} with {before}, and now those with {now} come"
    if before:
        return f"its state has only the rows of {table} with {before}, and now the others come too"
    return f"its state has more rows of {table}: now only those with {now} come"


def _only(here: Sequence[str], there: Sequence[str]) -> list[str]:
    return [each for each in here if each not in there]


def _texts(new: Planned) -> list[str]:
    return [
        text for lineages in new.lineage for each in lineages for text in (*each["where"], *each["columns"].values())
    ]


def _filled(
    new: Planned,
    verdict: Verdict,
    known: Mapping[str, Planned],
    verdicts: Mapping[str, Verdict],
    names: frozenset[str],
) -> Verdict:
    """Returns the verdict with the inputs from which the step is filled, or a refusal if it cannot be filled.
    `names`: the aggregates to fill; empty to fill all state of the step.
    """
    fills: list[int] = []
    assert new.unfit is not None
    for number, lineages in enumerate(new.lineage):
        makers = {each["from"]: verdicts[each["from"]] for each in lineages}
        going = [id for id, each in makers.items() if each.saved_as is not None and each.groups]
        if not going:
            continue  # there are no rows, or they come as changes
        way = new.ways[number] if number < len(new.ways) else None
        why = new.unfit(names)
        if way is None or not known[way.maker.id].gives_table:
            why = f"its rows cannot be had from {' and '.join(going)}, whose changes may take them away"
        if why:
            what = ", ".join(sorted(names)) or "the step"
            why = f"{what} would begin without the rows that came before: {why}"
            instead = tuple(dict.fromkeys([*going, *([new.id] if verdict.saved_as else [])]))
            return Verdict(new.id, verdict.before, new.text, "refuse", why, groups=verdict.groups, instead=instead)
        fills.append(number)
    why = verdict.why
    if fills and not names:
        why = why.replace("it begins empty", f"it begins with the rows of {' and '.join(new.makers)}")
    return replace(verdict, fills=tuple(fills), why=why)
