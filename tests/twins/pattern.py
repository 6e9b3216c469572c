"""The naive twin of `sabot._cython.rows.pattern.PatternTable`: it tries all ways to give rows to steps, by the words of the contract."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from sabot._cython.rows.pattern import PatternTable

OPS = {
    "==": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
}


@dataclass
class Row:
    key: int
    time: int
    mask: list[bool | None]
    value: Any


@dataclass
class Spec:
    """What a PatternTable is made of. A test is (bit, conditions), a condition (op, slot, own)."""

    steps: list[Any]
    gaps: list[list[Any]]
    slots: list[tuple[int, bool]]
    kind: str
    within: int | None
    skip: str
    extra: dict[str, Any] = field(default_factory=dict)
    keeps: list[str] | None = None

    @property
    def keep(self) -> list[str]:
        return self.keeps or ["each"] * len(self.steps)

    def table(self) -> PatternTable:
        def test(given: Any) -> Any:
            bit, conditions = given
            return bit, [condition(*each) for each in conditions]

        def condition(op: str, slot: int, own: bool) -> Any:
            program = [("operand", self.kind, 0), ("slot", self.kind, slot), (op, self.kind, None)]
            return [("fresh", "signed", self.slots[slot][0]), *program, ("|", "signed", None)] if own else program

        n = len(self.steps)
        gaps = [[test(each) for each in gap] for gap in self.gaps]
        passed = [[test(its)] if optional and greedy else [] for *_, optional, greedy, its in self.steps]

        def gap_of(start: int, to: int) -> list[Any]:
            return [each for given in (gaps[start : to + 1], passed[start:to]) for part in given for each in part]

        def edges(start: int) -> list[Any]:
            found: list[Any] = []
            for to in range(start, n):
                found.append((to, self.steps[to][2], gap_of(start, to)))
                if not self.steps[to][4]:
                    return found
            if start == 0:
                return found
            return [
                *found,
                ("end", "then", gap_of(start, n)) if gaps[n] else ("accept", "then", []),
            ]

        return PatternTable(
            [
                (least, most, between, greedy, False, keep, i, test(its), gaps[i + 1])
                for i, ((least, most, _, between, _, greedy, its), keep) in enumerate(
                    zip(self.steps, self.keep, strict=True)
                )
            ],
            [edges(i) for i in range(len(self.gaps))],
            [(step, "first" if first else "last", self.kind, 0, -1, 0) for step, first in self.slots],
            [self.kind],
            within_ms=self.within,
            skip=self.skip,
            **self.extra,
        )


def passes(spec: Spec, rows: list[Row], r: int, test: Any, taken: list[tuple[int, int]], looping: bool) -> bool:
    bit, conditions = test
    if bit >= 0 and rows[r].mask[bit] is not True:
        return False
    for op, slot, own in conditions:
        if own and not looping:
            continue
        step, first = spec.slots[slot]
        of_step = [row for row, its in taken if its == step]
        if not of_step:
            return False
        remembered = rows[of_step[0 if first else -1]].value
        if remembered is None or rows[r].value is None or not OPS[op](rows[r].value, remembered):
            return False
    return True


def ways(spec: Spec, rows: list[Row]) -> Iterator[list[tuple[int, int]]]:
    """All matches of one key's rows: [(row, step), …]."""
    n = len(spec.steps)
    optional = [step[4] for step in spec.steps]

    def any_in(between: range, tests: list[Any], taken: list[tuple[int, int]], looping: bool = False) -> bool:
        return any(passes(spec, rows, r, test, taken, looping) for r in between for test in tests)

    def forbidden(i: int, j: int) -> list[Any]:
        """The tests of rows that may not come between the last row of step i and the first one of step j: those of gaps, and
        of the optional greedy steps between the two, which would take them."""
        passed = [its for *_, optional, greedy, its in spec.steps[i + 1 : j] if optional and greedy]
        return [test for gap in range(i + 1, j + 1) for test in spec.gaps[gap]] + passed

    def left_out(i: int, count: int, p: int, up_to: int, taken: list[tuple[int, int]]) -> bool:
        """A greedy step has left out a row that it would have taken."""
        _, most, _, between, _, greedy, test = spec.steps[i]
        if not greedy or (most is not None and count >= most):
            return False
        rest = range(p + 1, up_to + 1)
        return any_in(rest[:1] if between == "next" else rest, [test], taken, looping=True)

    def stands(kind: str, p: int, q: int, test: Any, taken: list[tuple[int, int]], looping: bool) -> bool:
        if kind == "next":
            return q == p + 1
        return kind == "then_any" or not any_in(range(p + 1, q), [test], taken, looping)

    def extend(taken: list[tuple[int, int]], count: int) -> Iterator[list[tuple[int, int]]]:
        p, i = taken[-1]
        least, most, _, between, _, _, test = spec.steps[i]
        start = rows[taken[0][0]].time
        if count >= least and all(optional[i + 1 :]):
            if not spec.gaps[n]:
                yield taken
            else:
                wait = range(p + 1, sum(row.time <= start + spec.within for row in rows))
                end = len(wait) + p
                if not any_in(wait, forbidden(i, n), taken) and not left_out(i, count, p, end, taken):
                    yield taken
        for q in range(p + 1, len(rows)):
            if spec.within is not None and rows[q].time - start > spec.within:
                break
            upto = range(p + 1, q + 1)
            if (
                (most is None or count < most)
                and passes(spec, rows, q, test, taken, True)
                and stands(between, p, q, test, taken, True)
                and not (count >= least and any_in(upto, spec.gaps[i + 1], taken))
            ):
                yield from extend([*taken, (q, i)], count + 1)
            if count < least:
                continue
            for j in range(i + 1, n):
                if (
                    passes(spec, rows, q, spec.steps[j][-1], taken, False)
                    and stands(spec.steps[j][2], p, q, spec.steps[j][-1], taken, False)
                    and not any_in(upto, forbidden(i, j), taken)
                    and not left_out(i, count, p, q, taken)
                ):
                    yield from extend([*taken, (q, j)], 1)
                if not optional[j]:
                    break

    for q in range(len(rows)):
        for j in range(n):
            if passes(spec, rows, q, spec.steps[j][-1], [], False) and not any_in(
                range(q, q + 1), forbidden(-1, j), []
            ):
                yield from extend([(q, j)], 1)
            if not optional[j]:
                break


def twin(spec: Spec, rows: list[Row]) -> list[list[tuple[int, int]]]:
    """The matches of one key's rows that are left when `skip` has been applied."""
    found = list(ways(spec, rows))
    assert len(set(map(tuple, found))) == len(found)
    if spec.skip == "none":
        return found

    def preference(match: list[tuple[int, int]]) -> Any:
        treated = dict(match)
        complete = match[-1][0] if not spec.gaps[-1] else rows[match[0][0]].time
        return complete, match[0][0], [treated.get(r, 99) for r in range(len(rows))]

    found.sort(key=preference)
    if spec.skip == "to_next":
        return [next(group) for _, group in itertools.groupby(sorted(found, key=lambda m: m[0][0]), lambda m: m[0][0])]
    kept: list[list[tuple[int, int]]] = []
    for match in found:
        if not kept or match[0][0] > kept[-1][-1][0]:
            kept.append(match)
    return kept
