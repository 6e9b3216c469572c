"""Random programs over tables that change, which are themselves changed between the lives of their app, beside DuckDB.

A `Shape` is a program, as values: so it can be drawn, changed at random, built as streams (`build`) and asked of DuckDB (`answer`).
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import duckdb
import pyarrow as pa

import sabot
from sabot import App, Stream, col

CARS = pa.schema([("id", "int64"), ("g", "string"), ("h", "int64"), ("x", "int64"), ("y", "float64"), ("ts", "int64")])
SHOPS = pa.schema([("g", "string"), ("land", "string"), ("size", "int64"), ("ts", "int64")])

Row = dict[str, Any]
Made = tuple[Callable[[str], Any], str]
"""An aggregate of a column, as ours and as DuckDB's."""

AGGREGATES: dict[str, Made] = {
    "rows": (lambda c: sabot.count(), "count(*)"),
    "many": (lambda c: sabot.count(c), "count({c})"),
    "sum": (lambda c: sabot.sum(c), "sum({c})::bigint"),
    "some": (lambda c: sabot.sum(c).filter(col(c) > 3), "(sum({c}) filter ({c} > 3))::bigint"),
    "twice": (lambda c: sabot.sum(col(c) * 2), "sum({c} * 2)::bigint"),
    "low": (lambda c: sabot.min(c), "min({c})"),
    "high": (lambda c: sabot.max(c), "max({c})"),
    "mean": (lambda c: sabot.mean(c), "avg({c})"),
    "spread": (lambda c: sabot.variance(c), "var_samp({c})"),
    "kinds": (lambda c: sabot.count_distinct(c), "count(distinct {c})"),
    "all": (lambda c: sabot.top_k(c, 3), "coalesce(list({c} order by {c} desc) filter ({c} is not null)[:3], [])"),
}
OF_ROWS: dict[str, Made] = {  # by the times of whole rows
    "first": (lambda c: sabot.first(c), "first({c} order by ts)"),
    "last": (lambda c: sabot.last(c), "last({c} order by ts)"),
    "best": (lambda c: sabot.arg_max("id", c), "list(id order by {c} desc, id) filter ({c} is not null)[1]"),
}

Aggregates = tuple[tuple[str, str, str], ...]
"""(name, kind, column) of each."""


@dataclass(frozen=True)
class Shape:
    """A program over the table `cars`, and where it joins, `shops`.

    above: rows must be greater in x; None: all. z: what `z` is made of. middle: a step that keeps state between the table and the end:
    "", "group", "top", "join", "left", "semi", "anti", "first" (deduplicate) or "again" (upsert by g). middle_by: aggregates of the group.
    below: a filter behind the middle. end: "group" or "top". named: whether the steps have names.
    """

    end: str = "group"
    keys: tuple[str, ...] = ("g",)
    aggregates: Aggregates = (("n", "rows", "x"),)
    above: int | None = None
    z: str = "x + 1"
    middle: str = ""
    middle_by: Aggregates = (("m", "sum", "x"),)
    below: int | None = None
    n: int = 2
    named: bool = True

    @property
    def values(self) -> list[str]:
        """The columns of numbers that come to the end."""
        if self.middle == "group":
            return [name for name, _, _ in self.middle_by]
        return ["x", "z", *(["size"] if self.middle in ("join", "left") else [])]


def build(app: App, shape: Shape) -> None:
    """The program, whose last step is called `end`. It writes its log of changes into `out`, and the changes into `table`."""

    def named(stream: Stream, name: str) -> Stream:
        return stream.named(name) if shape.named else stream

    cars = app.table("cars", key="id", schema=CARS, time="ts")
    shops = app.table("shops", key="g", schema=SHOPS, time="ts").drop("ts")
    shops.changelog().to("seen")
    rows = cars.with_columns(z=col("x") + 1 if shape.z == "x + 1" else col("x") * 3)
    if shape.above is not None:
        rows = rows.filter(col("x") > shape.above)
    if shape.middle == "group":
        rows = named(rows.group_by("g", "h").aggregate(**_made(shape.middle_by)), "middle")
    elif shape.middle == "top":
        rows = named(rows.key_by("g").top_n(3, by=["x", "id"], descending=[True, False]), "middle")
    elif shape.middle in ("join", "left", "semi", "anti"):
        how: Any = {"join": "inner"}.get(shape.middle, shape.middle)
        rows = named(rows.join(shops, on="g", how=how), "middle")
    elif shape.middle == "again":
        rows = named(rows.upsert("id", "g"), "middle")
    if shape.below is not None:
        rows = rows.filter(col(shape.values[0]) > shape.below)
    if shape.end == "group":
        rows = named(rows.group_by(*shape.keys).aggregate(**_made(shape.aggregates)), "end")
    else:
        value = shape.values[0]
        by = [value, "h" if shape.middle == "group" else "id"]
        rows = rows.key_by("g").top_n(shape.n, by=by, descending=[True, False], rank="place")
        rows = named(rows, "end")
        rows = rows.select("g", value, "place")
    rows.changelog().to("out")
    if shape.keys or shape.end == "top":
        rows.upsert(*(shape.keys if shape.end == "group" else ("g", "place"))).to("table")


def _made(aggregates: Aggregates) -> dict[str, Any]:
    return {name: ({**AGGREGATES, **OF_ROWS}[kind][0])(column) for name, kind, column in aggregates}


def answer(shape: Shape, cars: Sequence[Row], shops: Sequence[Row]) -> dict[tuple[Any, ...], Row]:
    """What DuckDB says of the rows that the tables have at last: by key, the row."""
    with duckdb.connect(config={"threads": 1}) as database:
        database.register("cars", pa.Table.from_pylist(list(cars), schema=CARS))
        database.register("shops", pa.Table.from_pylist(list(shops), schema=SHOPS))
        at = f"where x > {shape.above}" if shape.above is not None else ""
        base = f"select *, {shape.z} as z from cars {at}"
        if shape.middle == "group":
            base = f"select g, h, {_asked(shape.middle_by)} from ({base}) group by all"
        elif shape.middle == "top":
            order = "row_number() over (partition by g order by x desc nulls last, id)"
            base = f"select * from ({base}) qualify {order} <= 3"
        elif shape.middle in ("join", "left"):
            how = "left join" if shape.middle == "left" else "join"
            base = f"select a.*, b.land, b.size from ({base}) a {how} shops b on a.g = b.g"
        elif shape.middle in ("semi", "anti"):
            said = "" if shape.middle == "semi" else "not"
            base = f"select * from ({base}) a where {said} exists (select 1 from shops b where a.g = b.g)"
        if shape.below is not None:
            base = f"select * from ({base}) where {shape.values[0]} > {shape.below}"
        if shape.end == "group":
            text = f"select {''.join(f'{key}, ' for key in shape.keys)}{_asked(shape.aggregates)} from ({base})"
            text += " group by all" if shape.keys else " having count(*) > 0"
            names = shape.keys
        else:
            value = shape.values[0]
            second = "h" if shape.middle == "group" else "id"
            order = f"row_number() over (partition by g order by {value} desc nulls last, {second})"
            text = f"select g, {value}, {order} as place from ({base}) qualify place <= {shape.n}"
            names = ("g", "place")
        found = database.sql(text).to_arrow_table().to_pylist()
    return {tuple(row[name] for name in names): row for row in found}


def _asked(aggregates: Aggregates) -> str:
    return ", ".join(
        f"{({**AGGREGATES, **OF_ROWS}[kind][1]).replace('{c}', column)} as {name}" for name, kind, column in aggregates
    )


# -- drawn, and changed ------------------------------------------------------------------------------------------------


def drawn(rng: random.Random) -> Shape:
    """A program at random."""
    shape = Shape(
        middle=rng.choice(["", "", "", "group", "group", "top", "join", "left", "semi", "anti", "again"]),
        above=rng.choice([None, None, -2, 1]),
        below=rng.choice([None, None, None, 1]),
        keys=rng.choice([("g",), ("g",), ("g", "h"), ()]),
        end=rng.choice(["group", "group", "group", "top"]),
        named=rng.random() < 0.8,
    )
    shape = replace(shape, middle_by=_some(rng, ["x", "z"], names="mopq", plain=True))
    return _with_aggregates(shape, rng)


def changed(shape: Shape, rng: random.Random) -> Shape:
    """The program of the next life: mostly other aggregates, now and then something else."""
    what = rng.choice(["aggregates"] * 6 + ["same", "names", "names", "middle_by", "middle_by"] + _OTHERS)
    if what == "aggregates":
        return _with_aggregates(shape, rng, keep=shape.aggregates)
    if what == "names" and len(shape.aggregates) > 1:  # they take each other's names
        names = [name for name, _, _ in shape.aggregates]
        moved = zip(names[1:] + names[:1], shape.aggregates, strict=True)
        return replace(shape, aggregates=tuple((name, kind, column) for name, (_, kind, column) in moved))
    if what == "middle_by" and shape.middle == "group":
        kept = {name for name in (column for _, _, column in shape.aggregates)} if shape.end == "group" else set()
        kept |= {shape.values[0]}
        more = [each for each in _some(rng, ["x", "z"], names="mopqrs", plain=True) if each[0] not in kept]
        stay = [each for each in shape.middle_by if each[0] in kept or rng.random() < 0.5]
        news = [each for each in more if each[0] not in {name for name, _, _ in stay}]
        return _with_aggregates(replace(shape, middle_by=(*stay, *news)), rng, keep=shape.aggregates)
    if what in ("above", "below"):
        return replace(shape, **{what: rng.choice([None, 0, 2])})
    if what == "z":
        return replace(shape, z=rng.choice(["x + 1", "x * 3"]))
    if what == "n":
        return replace(shape, n=rng.choice([1, 2, 3]))
    if what == "middle":
        kinds = ["", "top", "semi", "again", "join"]
        return _with_aggregates(replace(shape, middle=rng.choice(kinds)), rng)
    if what == "keys":
        return _with_aggregates(replace(shape, keys=rng.choice([("g",), ("g", "h")])), rng)
    if what == "end":
        return replace(shape, end=rng.choice(["group", "top"]))
    return shape


_OTHERS = ["above", "below", "z", "n", "middle", "keys", "end"]


def _with_aggregates(shape: Shape, rng: random.Random, keep: Aggregates = ()) -> Shape:
    columns = shape.values
    whole = shape.middle in ("", "top", "again")  # the others have event times of their own
    some = _some(rng, columns, names="abcdef", plain=not whole)
    stay = [each for each in keep if rng.random() < 0.6 and each[2] in columns and (whole or each[1] in AGGREGATES)]
    stay = stay or [each for each in keep if each[2] in columns and (whole or each[1] in AGGREGATES)][:1]
    news = [each for each in some if each[0] not in {name for name, _, _ in keep}]
    found = [*stay, *news] or list(some)
    rng.shuffle(found)
    return replace(shape, aggregates=tuple(found))


def _some(rng: random.Random, columns: Sequence[str], *, names: str, plain: bool) -> Aggregates:
    kinds = [*AGGREGATES] if plain else [*AGGREGATES, *OF_ROWS]
    if names.startswith("m"):
        kinds = ["rows", "many", "sum", "twice", "low", "high", "kinds"]  # integers, for the steps behind
    count = rng.randint(1, 3)
    return tuple((name, rng.choice(kinds), rng.choice(columns)) for name in rng.sample(names, count))


class History:
    """What has come to the tables: inserts, updates and deletes of keys, old ones for the most part."""

    def __init__(self, rng: random.Random) -> None:
        self._rng, self._clock = rng, 0
        self.cars: dict[Any, Row] = {}
        self.shops: dict[Any, Row] = {}

    def more(self, count: int) -> list[tuple[str, Any, Row | None]]:
        """(table, key, row; None: it is deleted), which have happened now."""
        return [self._one() for _ in range(count)]

    def _one(self) -> tuple[str, Any, Row | None]:
        rng = self._rng
        self._clock += 1
        if rng.random() < 0.12:
            return self._put(
                "shops", self.shops, rng.choice("abc"), {"land": rng.choice("uv"), "size": rng.randint(0, 9)}
            )
        figures = {
            "g": rng.choice("abc"),
            "h": rng.randint(0, 1),
            "x": None if rng.random() < 0.1 else rng.randint(-5, 9),
            "y": rng.randint(-8, 8) / 4,
        }
        id = rng.randint(0, 12)
        if (
            id in self.cars and self.cars[id]["x"] == figures["x"]
        ):  # a row that is equal but for its time changes nothing
            figures["x"] = (figures["x"] or 0) + 1
        return self._put("cars", self.cars, id, figures)

    def _put(self, name: str, table: dict[Any, Row], key: Any, figures: Row) -> tuple[str, Any, Row | None]:
        row = None
        if key not in table or self._rng.random() < 0.7:
            row = {"id" if name == "cars" else "g": key, **figures, "ts": self._clock}
        table.pop(key, None)
        if row is not None:
            table[key] = row
        return name, key, row


def plainly(row: Mapping[str, Any]) -> Row:
    """Floats as they are the same in both: a mean of integers is rounded once here, and twice there."""
    return {name: float(f"{value:.10g}") if isinstance(value, float) else value for name, value in row.items()}
