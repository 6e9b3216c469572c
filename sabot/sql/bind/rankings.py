"""Rankings: ROW_NUMBER, RANK and DENSE_RANK of a query inside, bounded by WHERE of the query outside."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import reduce
from typing import Any, cast

from sabot.api.expr import col, lit
from sabot.api.over import OverFunction, dense_rank, rank, row_number
from sabot.api.stream import KeyedStream, Stream
from sabot.base.checks import is_whole
from sabot.sql.bind.windows import windows_again
from sabot.sql.scope import Names, Ranking, Relation, WindowEdge, at, names_of, node_of, ttl_of
from sabot.sql.syntax.text import SqlFault
from sabot.sql.syntax.tree import (
    Between,
    Binary,
    Column,
    Constant,
    Expression,
    Item,
    JoinSource,
    Parameter,
    SelectBody,
    Source,
    Star,
)
from sabot.sql.values import Context, conjuncts, mirrored, walk

_log = logging.getLogger(__name__)

PLACES: dict[str, Callable[[], OverFunction]] = {"row_number": row_number, "rank": rank, "dense_rank": dense_rank}
_SIDES = ("=", "<", "<=", ">", ">=", "<>")


class RankingBinder:
    """The binder of a ranking that a query inside has computed: a condition of WHERE bounds it. `ttl`: the time of the hint
    STATE_TTL, or None.
    """

    def __init__(
        self,
        context: Context,
        select: SelectBody,
        relation: Relation,
        where: Sequence[Expression],
        ttl: str | None = None,
    ) -> None:
        """`where`: the conditions of WHERE, one of which may bound the ranking."""
        self._context = context
        self._select = select
        self._relation = relation
        self._where = where
        self._ttl = ttl

    def bind(self) -> tuple[Relation, Expression | None]:
        """Returns the rows of FROM with their ranking, and the condition of WHERE that bounds it, such as `n <= 3`; None for
        the condition if there is no ranking.
        """
        relation = self._relation
        ranking = relation.ranking
        if ranking is None:
            return relation, None
        found = [(each, self._bound_of(each, relation, ranking)) for each in self._where]
        bounds = [(*bound, each) for each, bound in found if bound is not None]
        if not bounds:
            return unbounded(relation, ranking), None
        bound, is_whole, condition = next((each for each in bounds if each[1]), bounds[0])
        bounding = condition if is_whole else None
        rank = ranking.column if self._uses(relation, ranking.column, bounding) else None
        by, descending = [name for name, _ in ranking.by], [down for _, down in ranking.by]
        windowed = None if ranking.time in ("first", "last") else self._rank_in_window(relation, ranking, bound, rank)
        if windowed is not None:
            return windowed, bounding
        ttl = self._ttl_of_first_rows(relation.stream, ranking, bound)
        with at(ranking.span):
            stream = relation.stream
            by_key = keyed(stream, ranking.partition)
            if ttl is not None or ranking.time in ("first", "last"):
                first = by_key.deduplicate(within=ttl) if ttl else self._one_by_arrival(stream, by_key, ranking, bound)
                stream = first.with_columns(**{rank: lit(1)}) if rank else first
            elif ranking.time == "event" and not stream.changes:
                place = rank or names_of(relation).free("place")
                numbered = _numbered(relation, replace(ranking, column=place)).stream
                stream = numbered.filter(col(place) <= lit(bound))
                stream = stream if rank else stream.drop(place)
            else:
                stream = by_key.top_n(bound, by=by, descending=descending, ties=ranking.ties, rank=rank)
        fields = tuple(each for each in relation.fields if rank or each.column != ranking.column)
        return replace(relation, stream=stream, fields=fields, ranking=None), bounding

    def _ttl_of_first_rows(self, stream: Stream, ranking: Ranking, bound: int) -> str | None:
        """Returns the event time after which a key has a first row again, or None for never. Raises and warns as `ttl_of`
        does.
        """
        hinted = ranking.ttl or self._ttl
        one = bound == 1 and ranking.ties == "row_number" and ranking.time in ("event", "first") and not stream.changes
        if one:
            session = self._context.state_ttl()
            return ttl_of(self._relation, stream, hinted, session, ranking.span, "ROW_NUMBER", "each key")
        if hinted is not None:
            _log.warning("STATE_TTL has no effect on a ranking, except on the first row of each key by event time")
        return None

    def _one_by_arrival(self, stream: Stream, by_key: KeyedStream, ranking: Ranking, bound: int) -> Stream:
        """Returns the first row of each key that arrives, which no later one changes, or the last one, kept up to date."""
        if bound != 1:
            hint = "WHERE n = 1; or ORDER BY the event time, or any column"
            raise SqlFault(ranking.span, "one row of each key is kept in the order of arrival", hint)
        if ranking.time == "first":
            return by_key.deduplicate()
        if not ranking.partition:
            raise SqlFault(ranking.span, "the last row to arrive needs PARTITION BY", "PARTITION BY the key")
        return stream.upsert(*ranking.partition)

    def _rank_in_window(self, relation: Relation, ranking: Ranking, bound: int, rank: str | None) -> Relation | None:
        """Returns the first rows of each window, if the ranking is partitioned by both bounds of a window.

        They come when the window closes, and no row is updated. Returns None for any other ranking.
        """
        edges = {
            each.window.edge: each
            for each in relation.fields
            if each.window is not None and each.window.edge != "time" and each.column in ranking.partition
        }
        if set(edges) != {"start", "end"} or relation.stream.changes:
            return None
        window = windows_again(cast(WindowEdge, edges["end"].window).window, ranking.span)
        columns = [each.column for each in edges.values()]
        taken = names_of(relation)
        renamed = {name: taken.free(f"row_{name}") for name in columns if name in ("window_start", "window_end")}
        keys = [name for name in ranking.partition if name not in columns]
        by, descending = [name for name, _ in ranking.by], [down for _, down in ranking.by]
        with at(ranking.span):
            stream = relation.stream.rename(renamed) if renamed else relation.stream
            stream = (
                keyed(stream, keys)
                .window(window)
                .top_n(
                    bound,
                    by=[renamed.get(name, name) for name in by],
                    descending=descending,
                    ties=ranking.ties,
                    rank=rank,
                )
            )
        fields = tuple(
            replace(each, column=renamed.get(each.column, each.column), shift_ms=None)
            for each in relation.fields
            if rank or each.column != ranking.column
        )
        return replace(relation, stream=stream, fields=fields, ranking=None)

    def _bound_of(self, condition: Expression, relation: Relation, ranking: Ranking) -> tuple[int, bool] | None:
        """Returns the greatest rank that a condition allows, and True if it allows all ranks up to it, so that nothing of it
        is left to check; None for a condition that does not bound the rank.
        """
        is_whole = True
        if isinstance(condition, Between) and not condition.negated and not condition.symmetric:
            lower = condition.lower
            is_whole = isinstance(lower, Constant) and lower.kind == "integer" and int(lower.text) == 1
            condition = Binary("<=", condition.operand, condition.upper, condition.span)
        if not isinstance(condition, Binary):
            return None
        for side, other, operator in (
            (condition.left, condition.right, condition.operator),
            (condition.right, condition.left, mirrored(condition.operator) if condition.operator in _SIDES else ""),
        ):
            is_rank = isinstance(side, Column) and relation.find(side.parts)[0].column == ranking.column
            number = self._whole_number(other)
            if is_rank and number is not None:
                bound = {"<=": number, "<": number - 1, "=": number}.get(operator)
                if bound is not None and bound < 1:
                    raise SqlFault(condition.span, "ranks begin at 1, so no row has this one", "WHERE n <= 3, or n = 1")
                return None if bound is None else (bound, is_whole and (operator != "=" or number == 1))
        return None

    def _whole_number(self, node: Expression) -> int | None:
        """Returns the value of a constant or a parameter that is a whole number, or None for any other expression."""
        if isinstance(node, Constant) and node.kind == "integer":
            return int(node.text)
        value = self._context.parameters.get(node.name) if isinstance(node, Parameter) else None
        return value if is_whole(value, 0) else None

    def _uses(self, relation: Relation, column: str, bounding: Expression | None) -> bool:
        others = [each for each in self._where if each is not bounding]
        trees: list[Any] = [*self._select.items, *others, *self._select.group]
        trees += [self._select.having] if self._select.having is not None else []
        for tree in trees:
            for node in walk(tree):
                if isinstance(node, Star):
                    return True
                if isinstance(node, Column):
                    try:
                        if relation.find(node.parts)[0].column == column:
                            return True
                    except SqlFault:
                        continue
        return False


def unbounded(relation: Relation, ranking: Ranking) -> Relation:
    """Returns the rows with their places, where no condition bounds these. Raises SqlFault if later rows change them."""
    if ranking.time != "event" or relation.stream.changes:
        raise SqlFault(
            ranking.span,
            "a ranking needs a bound, unless it is by the event time, ascending",
            "SELECT * FROM (SELECT …, ROW_NUMBER() OVER (…) AS n FROM t) WHERE n <= 3",
        )
    with at(ranking.span):
        return _numbered(relation, ranking)


def _numbered(relation: Relation, ranking: Ranking) -> Relation:
    """Returns the rows with their places by event time. No later row changes the place of a row that event time has passed."""
    rows = keyed(relation.stream, ranking.partition)
    numbered = rows.over(preceding=None, **{ranking.column: PLACES[ranking.ties]()})
    return replace(relation, stream=numbered, ranking=None)


def keyed(stream: Stream, keys: Sequence[str] = ()) -> KeyedStream:
    """Returns the stream by these keys; without keys, all rows have one, in a column of a free name."""
    if keys:
        return stream.key_by(*keys)
    return stream.key_by(**{Names(set(node_of(stream).column_names or ())).free("every"): lit(0)})


def ranked(context: Context, relation: Relation, conditions: list[Expression]) -> Relation:
    """Returns the rows with their ranking, and takes the condition that bounds it out of `conditions`."""
    assert relation.ranking is not None
    span = relation.ranking.span
    every = (Item(Star((), span), None, span),)
    select = SelectBody(False, every, None, None, (), None, (), None, (), None, span)
    found, bounding = RankingBinder(context, select, relation, conditions).bind()
    conditions[:] = [each for each in conditions if each is not bounding]
    return found


def ranked_side(
    context: Context, join: JoinSource, side: Relation, tree: Source, where: list[Expression], on: tuple[str, ...]
) -> tuple[Relation, JoinSource]:
    """Returns a table of a join with its ranking, by a condition of WHERE, or of ON for these kinds of joins (`on`). The
    condition has the name of the table: `r.n = 1`. Takes the condition out of `where`, or of the join.
    """

    assert side.ranking is not None
    rank = next(each for each in side.fields if each.column == side.ranking.column)

    def is_bound(node: Expression) -> bool:
        columns = [each for each in walk(node) if isinstance(each, Column)]
        names = {tuple(part.text.lower() for part in each.parts) for each in columns}
        return names == {(rank.qualifier.lower(), rank.name.lower())}

    conditions = conjuncts(join.on) if join.kind in on else []
    for given in (where, conditions):
        bounds = [each for each in given if is_bound(each)]
        if not bounds:
            continue
        kept = list(bounds)
        side = ranked(context, side, kept)
        given[:] = [each for each in given if each in kept or each not in bounds]
        if given is conditions:
            join = replace(join, on=reduce(lambda a, b: Binary("AND", a, b, join.span), given) if given else None)
        return side, join
    hint = f"WHERE {rank.qualifier}.{rank.name} <= 3"
    if join.kind not in ("INNER", "COMMA", "CROSS") or not rank.qualifier:
        hint = "JOIN (SELECT … FROM (SELECT …, ROW_NUMBER() OVER (…) AS n FROM t) WHERE n <= 3) AS r"
    raise SqlFault(tree.span, "the ranking of this table needs a bound before it is joined", hint)
