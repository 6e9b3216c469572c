"""Checks of connectors and their options, as users give them to streams and agents."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import pyarrow as pa

from sabot.base.checks import Of
from sabot.base.config import checked_no_password, checked_text, checked_topic
from sabot.connectors.base import (
    Bounded,
    Delivers,
    Delivery,
    KeepsToken,
    Scans,
    Sink,
    Source,
    TakesBound,
    TakesChanges,
    start_of,
)
from sabot.connectors.places import Bound, Place
from sabot.errors import UserError, short_repr

__all__ = [
    "SCHEMA",
    "agreed_delivery",
    "check_delivery",
    "check_ends",
    "check_input",
    "check_nan",
    "check_sink",
    "check_start",
    "sink_of",
    "up_to",
]


SCHEMA = Of(pa.Schema | None, 'pa.schema([("id", pa.int64())])')
"""The columns that a sink is given where the plan does not know them, or None."""


def check_nan(nan: object, where: str) -> None:
    """Raises a UserError, whose text begins with `where`, for anything but an OnNan."""
    if nan not in (None, "null", "fail"):
        raise UserError(f"{where}: nan={nan!r}", hint='"null" or "fail"; left out: null, with a warning')


def check_delivery(delivery: object, where: str) -> None:
    """Raises a UserError, whose text begins with `where`, for anything but a Delivery."""
    if delivery not in (None, "exactly_once", "at_least_once"):
        raise UserError(f"{where}: delivery={delivery!r}", hint='"exactly_once" or "at_least_once"')


def agreed_delivery(sink: "str | Sink", one: Delivery, other: Delivery) -> Delivery:
    """Returns the delivery of a sink that two streams or agents write; None on one side leaves it to the other.
    Raises UserError if they differ.
    """
    if None not in (one, other) and one != other:
        name = sink if isinstance(sink, str) else sink.name
        raise UserError(
            f"sink {name}: two streams or agents write it with different delivery=", hint="give both the same"
        )
    return one or other


def check_input(source: object, where: str, hint: str) -> None:
    """Raises UserError, whose text begins with `where`, unless `source` is a topic or a Source with a name that a
    checkpoint can hold.
    """
    _check_connector(source, Source, where, hint)


def check_sink(sink: object, where: str, hint: str = '"{topic}.dlq"') -> None:
    """Raises UserError, whose text begins with `where`, unless `sink` is a topic or a Sink with a name that a
    checkpoint can hold.
    """
    _check_connector(sink, Sink, where, hint)


def check_ends(source: "str | Source", where: str) -> None:
    """Raises UserError, whose text begins with `where`, for a source without the ability TakesBound, to which
    `until=` does not apply.
    """
    if isinstance(source, Source) and not isinstance(source, TakesBound):
        raise UserError(
            f"{where}: until= needs a topic, and {source.name} is none", hint="leave it out, and filter by a column"
        )


def check_start(source: "str | Source", start: Place, where: str) -> None:
    """Raises UserError, whose text begins with `where`, for a source that is always read from its beginning, if
    `start=` names another place.
    """
    if isinstance(source, Source) and start_of(source, start) != start:
        raise UserError(
            f"{where}: start= needs a topic, and {source.name} is none",
            hint="leave start= out: it is read from its beginning; filter by a column for a part of its rows",
        )


def up_to(source: Source, until: Place | None) -> Source:
    """Makes the source end at `until`, and returns it. None leaves the source as it is. Raises UserError as
    `check_ends`.
    """
    if until is not None:
        check_ends(source, "end_at")
        assert isinstance(source, TakesBound)
        source.end_at(Bound(until))
    return source


def sink_of(given: object, where: str) -> Any:
    """Returns the sink that `to(given)` writes to: for a Source the one that writes to its place, else `given`. Raises UserError, whose
    text begins with `where`, for a Source that has none.
    """
    if not isinstance(given, Source):
        return given
    if (sink := given.as_sink()) is not None:
        return sink
    raise UserError(
        f"{where}: {given!r} is neither a topic nor a Sink", hint='"topic", or a Sink: ParquetSink("out.parquet")'
    )


def _check_connector(given: object, kind: "type[Source] | type[Sink]", where: str, hint: str) -> None:
    if isinstance(given, str):
        _check_no_file(checked_topic(given, where), where, kind)
    elif isinstance(given, kind):
        what = f"{where}: the name of its {type(given).__name__}"
        checked_no_password(checked_text(given.name, what), what)
        _check_abilities(given, kind, where)
    else:
        if isinstance(given, os.PathLike):
            hint = _place_of(os.fspath(given), kind)
        elif kind is Source and hasattr(given, "collect") and hasattr(given, "collect_schema"):
            hint = "a LazyFrame has no rows yet: stream(frame.collect())"
        elif kind is Source and hasattr(given, "from_arrow"):
            hint = 'a connection has many tables: stream(connection.table("orders")), or stream(connection.sql("SELECT …"))'
        elif kind is Source and isinstance(given, dict):
            hint = "a dict of columns: stream(pa.table(columns)); one row: stream([row])"
        elif kind is Source and isinstance(given, Iterator):
            hint = "stream(list(rows)) for rows that end; @app.source(schema={…}) above a function that yields them"
        elif kind is Sink and hasattr(given, "__arrow_c_stream__"):
            hint = "to_polars() and to_pandas() return a data frame; to(a_list) collects rows while the app runs"
        said = " ".join(short_repr(given).split())
        raise UserError(f"{where}: {said} is neither a topic nor a {kind.__name__}", hint=hint)


_ABILITIES: "Mapping[type, Sequence[type]]" = {
    Source: (Bounded, TakesBound, Scans),
    Sink: (Delivers, KeepsToken, TakesChanges),
}


def _check_abilities(given: "Source | Sink", kind: "type[Source] | type[Sink]", where: str) -> None:
    """Raises UserError for a connector with a member that the engine would never call, and nobody would notice: a member
    of an ability that its class does not name (a sink that has `deliver` would be written at least once), or of a base
    class that stands behind Source or Sink, whose default hides it.
    """
    name = type(given).__name__
    for member in (each for each in vars(kind) if not each.startswith("_")):
        owners = [cls for cls in type(given).__mro__ if member in vars(cls)]
        if owners[0] is kind and len(owners) > 1:
            raise UserError(
                f"{where}: its {name} has {member} of {owners[1].__name__}, but the default of {kind.__name__} comes before it",
                hint=f"class {name}({owners[1].__name__}, {kind.__name__})",
            )
    for ability in _ABILITIES[kind]:
        if isinstance(given, ability):
            continue
        for member in _members(ability):
            if hasattr(type(given), member) or member in vars(given):
                raise UserError(
                    f"{where}: its {name} has {member}, which the engine uses only of a {kind.__name__} that names the "
                    f"ability {ability.__name__}",
                    hint=f"class {name}({kind.__name__}, {ability.__name__}), from sabot.connectors import {ability.__name__}; "
                    f"or another name, if {member} is a helper of your own",
                )


@cache
def _members(ability: type) -> list[str]:
    inherited = {name for base in ability.__bases__ for name in dir(base)}
    return [name for name in vars(ability) if not name.startswith("_") and name not in inherited]


_FILE = re.compile(r".+\.(ndjson|jsonl?|[ct]sv|parquet|pq|arrows?|ipc|feather)(\.(gz|zstd?))?", re.IGNORECASE)
_ADDRESS = re.compile(r"([a-z][a-z0-9+.-]*)://.*", re.DOTALL)
_PATH = re.compile(r".*[/\\*?].*", re.DOTALL)
_FILE_SINKS = {"n": "NdjsonSink", "j": "NdjsonSink", "c": "CsvSink", "t": "CsvSink", "p": "ParquetSink"}


def _check_no_file(topic: str, where: str, kind: "type[Source] | type[Sink]") -> None:
    """Raises UserError for the name of a file or an address: it would be read or made as a topic of that name, which
    nobody expects.
    """
    if (address := _ADDRESS.fullmatch(topic)) is not None:
        of_database = address[1] in ("sqlite", "duckdb", "postgres", "postgresql") and kind is Sink
        of_broker = address[1] in ("memory", "kafka")
        place = f"files({topic!r})" if kind is Source else f'files({topic!r}, "parquet")'
        hint = f'SqlSink({topic!r}, table="…")' if of_database else "App(broker=…) takes it" if of_broker else place
        raise UserError(f"{where}: {topic!r} is an address, but a text must be the name of a topic", hint=hint)
    if _FILE.fullmatch(topic) is not None:
        raise UserError(
            f"{where}: {topic!r} is the name of a file, but a text must be the name of a topic",
            hint=f"{_place_of(topic, kind)}; for a topic of this name: sabot.kafka.Kafka{kind.__name__}({topic!r}, broker)",
        )
    if _PATH.fullmatch(topic) is not None:  # no topic of Kafka has such a name
        raise UserError(
            f"{where}: {topic!r} is a path, but a text must be the name of a topic", hint=_place_of(topic, kind)
        )


def _place_of(path: str | bytes, kind: "type[Source] | type[Sink]") -> str:
    """Returns the call that makes the source or sink of a file or folder."""
    file = _FILE.fullmatch(os.fsdecode(path))
    made = "files" if kind is Source else _FILE_SINKS.get(file[1][0].lower(), "ArrowSink") if file else "ParquetSink"
    return f"{made}({os.fsdecode(path)!r})"
