"""What random programs are made of: a `Flow` is some steps of a stream together with the query that says what they come to."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

import sabot
from sabot import Expr, Stream, col, cumulative, hopping, session, tumbling

Dice = random.Random
Row = dict[str, Any]

SCHEMA = pa.schema(
    [
        ("n", pa.int64()),  # the number of the row: those of a source count up as they arrive
        ("ts", pa.int64()),  # event time, ms; no two rows of a program have the same
        ("k", pa.string()),
        ("i", pa.int64()),
        ("amount", pa.float64()),  # multiples of 1/64, so sums are exact
        ("s", pa.string()),
    ]
)


@dataclass(frozen=True)
class Computed:
    """A table of the answer that SQL does not say: function(rows of the query) -> rows of the schema."""

    name: str
    query: str
    function: Callable[[list[Row]], list[Row]]
    schema: pa.Schema


@dataclass(frozen=True)
class Flow:
    """Rows as a stream, made for each life anew, and as a query.

    keys, ints, floats: the columns of use for that. time: the event time as SQL says it of a row; None: it is no matter of the rows
    alone, or there is none. apart: no two rows have the same, and it is column "ts". ordered: rows come in the order of "n".
    changes: they are. unique: columns of which no two rows have the same values. many: a key may have many rows; another join
    of such makes too many.
    """

    make: Callable[[list[Stream]], Stream]
    sql: str
    columns: tuple[str, ...]
    keys: tuple[str, ...] = ("k", "i")
    ints: tuple[str, ...] = ("n", "i")
    floats: tuple[str, ...] = ("amount",)
    time: str | None = "ts"
    apart: bool = False
    ordered: bool = False
    changes: bool = False
    unique: tuple[str, ...] | None = None
    many: bool = False
    depth: int = 0
    computed: tuple[Computed, ...] = ()

    def then(
        self,
        step: Callable[[Stream], Stream],
        sql: str,
        *more: str,
        only: Sequence[str] | None = None,
        **facts: Any,
    ) -> "Flow":
        """sql: with {rows} where the rows of before stand; only: all columns, in place of more ones. facts: what else is different."""
        columns = (*self.columns, *more) if only is None else tuple(only)
        made = replace(
            self,
            make=lambda given: step(self.make(given)),
            sql=sql.format(rows=f"({self.sql})"),
            columns=columns,
            depth=self.depth + 1,
            **facts,
        )
        kept = set(columns)
        unique = made.unique if made.unique is not None and kept >= set(made.unique) else None
        narrowed = {
            name: tuple(each for each in getattr(made, name) if each in kept) for name in ("keys", "ints", "floats")
        }
        return replace(made, unique=unique, **narrowed)

    def new(self, name: str) -> str:
        """A name that no column has."""
        return f"{name}{self.depth}"


@dataclass(frozen=True)
class Output:
    """An end of the program. running: a row for each change, of which the last one of each key is the answer; changelog: changes as
    rows with their op; upsert: changes by key. place: what kind of sink it has: a list, or in the directory of the run a file or
    a database. reference: it counts on data that is read to its end before all others.
    """

    flow: Flow
    keys: tuple[str, ...] = ()
    kind: str = "rows"  # running, changelog, upsert
    exactly_once: bool = True
    place: str = "list"
    reference: bool = False


# -- steps without state --------------------------------------------------------------------------------------------------


def stateless(flow: Flow, dice: Dice) -> Flow:
    """None to three steps."""
    for _ in range(dice.randrange(4)):
        flow = filtered(flow, dice) if dice.random() < 0.6 else computed(flow, dice)
    return flow


def filtered(flow: Flow, dice: Dice) -> Flow:
    least, rest, number = dice.randrange(-50, 500), dice.randrange(3), dice.randrange(4)
    choices = [
        (col("amount") > least, f"amount > {least}"),
        (col("n") % 3 != rest, f"n % 3 <> {rest}"),
        (col("k").is_in(["a", "k1", "k2"]), "k in ('a', 'k1', 'k2')"),
        (col("i").is_null() | (col("i") >= number), f"i is null or i >= {number}"),
        (~(col("k") == "b"), "not (k = 'b')"),
        ((col("n") >= 0) & col("s").is_not_null(), "n >= 0 and s is not null"),
    ]
    choices += [(col(name) != number, f"{name} <> {number}") for name in flow.ints if name not in ("n", "i")]
    possible = [each for each in choices if each[0].columns <= set(flow.columns)]
    if not possible:
        return flow
    predicate, sql = dice.choice(possible)
    return flow.then(lambda stream: stream.filter(predicate), f"select * from {{rows}} where {sql}")


def computed(flow: Flow, dice: Dice) -> Flow:
    choices: list[tuple[Expr, str, str]] = [
        (col("i").fill_null(7) + 1, "coalesce(i, 7) + 1", "int"),
        (col("n") * 3 + 1, "n * 3 + 1", "int"),
        (col("amount") * 2, "amount * 2", "float"),
        (col("s").str.upper(), "upper(s)", "string"),
    ]
    possible = [each for each in choices if each[0].columns <= set(flow.columns)]
    if not possible:
        return flow
    expression, sql, kind = dice.choice(possible)
    name = f"{kind}{len(flow.columns)}"
    return flow.then(
        lambda stream: stream.with_columns(expression.alias(name)), f"select *, {sql} as {name} from {{rows}}", name
    )


def narrow(flow: Flow, names: Sequence[str]) -> Flow:
    """These columns alone."""
    return flow.then(
        lambda stream: stream.select(*names), f"select {', '.join(names)} from {{rows}}", only=tuple(names)
    )


def unified(flows: Sequence[Flow]) -> Flow:
    """The union of flows of the same columns."""
    first, *others = flows
    if not others:
        return first

    def make(given: list[Stream]) -> Stream:
        return first.make(given).union(*(other.make(given) for other in others))

    names = ", ".join(first.columns)
    sql = " union all ".join(f"select {names} from ({flow.sql})" for flow in flows)
    unique = ("ts",) if first.unique is not None and "ts" in first.columns else None
    return replace(first, make=make, sql=sql, ordered=False, unique=unique)


# -- windows and aggregates -----------------------------------------------------------------------------------------------


def aggregates(flow: Flow) -> tuple[dict[str, Any], str]:
    """Aggregates, and as SQL says them."""
    made: dict[str, Any] = {flow.new("rows"): sabot.count()}
    words = [f"count(*) as {flow.new('rows')}"]
    for kind, name, argument in (
        ("sum", "total", flow.floats[-1:]),
        ("min", "first", flow.ints[:1]),
        ("max", "last", flow.ints[:1]),
        ("count_distinct", "kinds", flow.ints[1:2]),
    ):
        if argument:
            made[flow.new(name)] = getattr(sabot, kind)(argument[0])
            call = f"count(distinct {argument[0]})" if kind == "count_distinct" else f"{kind}({argument[0]})"
            words.append(f"{call} as {flow.new(name)}")
    return made, ", ".join(words)


def aggregated(flow: Flow, keys: Sequence[str], made: Sequence[str]) -> dict[str, Any]:
    """What then is known of the columns."""
    return {
        "keys": tuple(keys),
        "ints": tuple(name for name in made if not name.startswith("total")),
        "floats": tuple(name for name in made if name.startswith("total")),
        "apart": False,
        "ordered": False,
        "many": False,
    }


def windowed(flow: Flow, keys: tuple[str, ...], dice: Dice) -> Flow:
    size = dice.choice([300, 1000, 5000, 60_000])
    named, (made, words) = ", ".join(keys), aggregates(flow)
    rows = f"(select *, {flow.time} as at_ from {{rows}})"
    kind = dice.choice(["tumbling", "hopping", "cumulative", "session"])
    window: Any
    if kind == "tumbling":
        window, start = tumbling(size / 1000), f"(at_ // {size} * {size})"
        sql = (
            f"select {named}, {start} as window_start, {start} + {size} as window_end, {words} from {rows} group by all"
        )
    elif kind == "hopping":
        slide = size // dice.choice([1, 2, 5])
        window, start = hopping(size / 1000, slide / 1000), f"(at_ // {slide} * {slide} - hop * {slide})"
        sql = f"select {named}, {start} as window_start, {start} + {size} as window_end, {words}"
        sql += f" from {rows}, (select unnest(range({size // slide})) as hop) group by all"
    elif kind == "cumulative":
        step = size // dice.choice([1, 2, 4])
        window, start = cumulative(size / 1000, step / 1000), f"(at_ // {size} * {size})"
        sql = f"select {named}, {start} as window_start, {start} + hop * {step} as window_end, {words}"
        sql += f" from {rows}, (select unnest(range(1, {size // step} + 1)) as hop)"
        sql += f" where at_ < {start} + hop * {step} group by all"
    else:
        window = session(size / 1000)
        sql = f"select {named}, min(at_) as window_start, max(at_) + {size} as window_end, {words} from ("
        sql += f"select *, sum(fresh) over (partition by {named} order by at_) as part_ from ("
        sql += f"select *, case when at_ - lag(at_) over (partition by {named} order by at_) < {size} then 0 else 1 end as fresh"
        sql += f" from {rows})) group by {named}, part_"
    return flow.then(
        lambda stream: stream.key_by(*keys).window(window).aggregate(**made),
        sql,
        only=(*keys, "window_start", "window_end", *made),
        time="window_end - 1",
        unique=(*keys, "window_start", "window_end"),
        **aggregated(flow, keys, list(made)),
    )


def distinct(flow: Flow, keys: tuple[str, ...]) -> Flow:
    return flow.then(
        lambda stream: stream.deduplicate(*keys).select(*keys),
        f"select distinct {', '.join(keys)} from {{rows}}",
        only=keys,
        time=None,
        ordered=False,
    )


def running(flow: Flow, keys: tuple[str, ...]) -> Flow:
    named, number = ", ".join(keys), flow.floats[-1]
    return flow.then(
        lambda stream: stream.key_by(*keys).aggregate(
            changes=sabot.count(), most=sabot.max(number), sum=sabot.sum(number)
        ),
        f"select {named}, count(*) as changes, max({number}) as most, sum({number}) as sum from {{rows}} group by {named}",
        only=(*keys, "changes", "most", "sum"),
    )


def grouped(flow: Flow, keys: tuple[str, ...]) -> Flow:
    """A row for each key, as changes."""
    made, words = aggregates(flow)
    return flow.then(
        lambda stream: stream.group_by(*keys).aggregate(**made),
        f"select {', '.join([*keys, words])} from {{rows}} group by {', '.join(keys)}",
        only=(*keys, *made),
        time=None,
        changes=True,
        unique=keys,
        **aggregated(flow, keys, list(made)),
    )
