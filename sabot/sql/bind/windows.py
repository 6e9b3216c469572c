"""Windows of SQL: the table functions TUMBLE, HOP, CUMULATE and SESSION, and the group windows of the same names."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sabot.api.expr import col, instant, lit
from sabot.api.nodes.joins import Join
from sabot.api.nodes.node import walk
from sabot.api.stream import Stream
from sabot.api.windows import (
    CalendarWindow,
    ClockWindow,
    CumulativeWindow,
    HoppingWindow,
    SessionWindow,
    TumblingWindow,
    cumulative,
    hopping,
    offset_of_windows,
    session,
    tumbling,
)
from sabot.sql.scope import Relation, TableColumn, TimeWindow, TypedExpr, WindowEdge, at, is_clock, names_of, node_of
from sabot.sql.syntax.text import Span, SqlFault
from sabot.sql.syntax.tree import Argument, Call, Column, Descriptor, Expression, Interval, TableArgument
from sabot.sql.types import DAY_MS, interval_ms, sql_type
from sabot.sql.zones import UTC, on_the_clock

import pyarrow as pa  # isort: skip

_INSTANT = pa.timestamp("ms", tz=UTC)
TABLE_WINDOWS = ("TUMBLE", "HOP", "CUMULATE", "SESSION")
GROUP_WINDOWS = ("TUMBLE", "HOP", "SESSION")

_BOUNDS = {"START": "window_start", "END": "window_end", "ROWTIME": "window_time", "PROCTIME": "window_time"}

EDGES = {f"{kind}_{name}": (kind, column) for kind in GROUP_WINDOWS for name, column in _BOUNDS.items()}
"""The functions that give a bound of a group window: the window's name, and the column that has it."""

_FORMS = {
    "TUMBLE": "TUMBLE(TABLE t, DESCRIPTOR(ts), INTERVAL '10' MINUTE)",
    "HOP": "HOP(TABLE t, DESCRIPTOR(ts), INTERVAL '5' MINUTE, INTERVAL '10' MINUTE): the slide first, then the size",
    "CUMULATE": "CUMULATE(TABLE t, DESCRIPTOR(ts), INTERVAL '1' HOUR, INTERVAL '1' DAY): the step first",
    "SESSION": "SESSION(TABLE t PARTITION BY key, DESCRIPTOR(ts), INTERVAL '10' MINUTE)",
}


def form_of(kind: str, table: str) -> str:
    """Returns how a window table is written, with the name of its table."""
    return _FORMS[kind].replace("TABLE t", f"TABLE {table}", 1)


def table_window(call: Call, relation: Relation, zone: str) -> Relation:
    """Returns the table of TABLE(TUMBLE(TABLE t, …)), with window_start, window_end and window_time.

    `zone`: the session's time zone, in which windows of a TIMESTAMP_LTZ begin.
    """
    kind = call.name.text.upper()
    call = positional(call)
    descriptor = call.arguments[1] if len(call.arguments) > 1 else None
    if not isinstance(descriptor, Descriptor) or len(descriptor.columns) != 1:
        span = call.span if descriptor is None else descriptor.span
        raise SqlFault(span, f"{kind} needs DESCRIPTOR(column)", _FORMS[kind])
    time = _time_of(Column(descriptor.columns, descriptor.span), relation)
    window = _window(kind, call.arguments[2:], call, time, _zone_of_windows(relation, time, zone))
    type, shown = bounds_type(relation, time, zone), shown_bounds(relation, time, zone)
    keys = _partition_of(call.arguments[0], relation)
    edges = {f"window_{edge}": WindowEdge(edge, window, tuple(keys)) for edge in ("start", "end", "time")}
    added = tuple(
        TableColumn("", name, name, type, None, edge, never_null=True, shown=shown) for name, edge in edges.items()
    )
    for name in ("window_start", "window_end", "window_time"):
        if any(each.name == name for each in relation.fields):
            raise SqlFault(call.span, f"the table has a column {name} already", "select it under another name first")
    fields = (replace(each, session_key=each.name if each.name in keys else "") for each in relation.fields)
    return Relation(relation.stream, (*fields, *added), window, relation.ranking)


def _partition_of(table: Expression, relation: Relation) -> list[str]:
    """Returns the columns of PARTITION BY of TABLE t PARTITION BY …, by their names in the table."""
    keys = []
    for node in table.partition if isinstance(table, TableArgument) else ():
        field, further = relation.find(node.parts) if isinstance(node, Column) else (None, ())
        if field is None or further:
            raise SqlFault(node.span, "PARTITION BY of SESSION takes columns", "compute it in TABLE (SELECT …)")
        keys.append(field.name)
    return keys


def check_sessions(group: Sequence[Expression], relation: Relation, span: Span) -> None:
    """Raises SqlFault if rows of a table of sessions are not grouped by its PARTITION BY and the bounds of the sessions, as
    Flink wants it: by any other columns, a group would have a part of a session.
    """
    partition = next(each.window.partition for each in relation.fields if each.window is not None)
    found: dict[str, Expression] = {}
    for node in group:
        field = relation.find(node.parts)[0] if isinstance(node, Column) else None
        if field is not None and field.window is not None:
            continue
        if field is None or not field.session_key:
            name = field.name if field is not None else "key"
            hint = f"SESSION(TABLE t PARTITION BY {', '.join([*partition, name])}, DESCRIPTOR(ts), …): sessions of each of them"
            raise SqlFault(
                node.span, "sessions are grouped by the columns of their PARTITION BY, and by no others", hint
            )
        found[field.session_key] = node
    if missing := [name for name in partition if name not in found]:
        message = f"these sessions are those of each {missing[0]}, which is not in GROUP BY"
        raise SqlFault(group[0].span if group else span, message, f"GROUP BY {missing[0]}, window_start, window_end")


def bounds_type(relation: Relation, time: str, zone: str) -> pa.DataType:
    """Returns the type of a window's bounds in the engine: without a zone if the event time is a TIMESTAMP and the session has
    a zone, so that they are on the same clock; otherwise in UTC.
    """
    return pa.timestamp("ms", tz=None if zone != UTC and _is_clock(relation, time) else UTC)


def shown_bounds(relation: Relation, time: str, zone: str) -> pa.DataType | None:
    """Returns the type of a window's bounds in SQL if it is not `bounds_type`: TIMESTAMP for windows of a TIMESTAMP."""
    return pa.timestamp("ms") if zone == UTC and _is_clock(relation, time) else None


def _is_clock(relation: Relation, time: str) -> bool:
    """Returns True if windows go by a TIMESTAMP, whose clock is no zone's."""
    found = next((each.sql_type for each in relation.fields if each.shift_ms is not None), None)
    return time == "event" and found is not None and pa.types.is_timestamp(found) and found.tz is None


def _zone_of_windows(relation: Relation, time: str, zone: str) -> str:
    return UTC if _is_clock(relation, time) else zone


def opened(relation: Relation, span: Span, zone: str) -> Relation:
    """Returns the rows of a window table, each once for each of its windows, with the bounds of that window.

        ts 12:07, HOP of 10 minutes every 5     ->     12:00 to 12:10; 12:05 to 12:15

    Raises SqlFault for sessions, whose bounds depend on other rows, and for windows of the time of processing.
    """
    window = relation.window
    if isinstance(window, SessionWindow | ClockWindow) or window is None or window.time != "event":
        raise SqlFault(
            span,
            "the rows of this window need GROUP BY window_start, window_end",
            "SELECT window_start, window_end, COUNT(*) FROM TABLE(…) GROUP BY window_start, window_end",
        )
    time = next(each for each in relation.fields if each.shift_ms is not None)
    whole = pa.types.is_integer(time.type)  # ms since 1970
    if not whole and not pa.types.is_timestamp(time.type):
        raise SqlFault(span, f"the event time {time.name} is {sql_type(time.type)}", "declare it as TIMESTAMP(3)")
    names = names_of(relation)
    start, end, at_ms, place = (
        names.free(name) for name in ("window_start", "window_end", "window_ms", "window_place")
    )
    ms = (col(time.column) if whole else col(time.column).dt.epoch("ms")) - lit(time.shift_ms or 0)
    stream = relation.stream.with_columns(**{at_ms: ms})
    type_ = bounds_type(relation, "event", zone)
    if isinstance(window, CalendarWindow):
        if window.count != 1:
            raise SqlFault(
                span,
                f"rows of windows of {window.count} days need GROUP BY window_start, window_end",
                "INTERVAL '1' DAY",
            )
        time_of_row = TypedExpr(col(at_ms).cast(_INSTANT), _INSTANT)
        day = on_the_clock(time_of_row, window.time_zone).expr.dt.date_trunc("1d")
        bounds = {start: day, end: day.dt.offset_by("1d")}
        stream = stream.with_columns(
            **{name: instant(clock, window.time_zone).dt.epoch("ms") for name, clock in bounds.items()}
        )
        return _with_bounds(relation, stream, (start, end, names.free("window_time")), type_)
    slide = {HoppingWindow: "slide_ms", CumulativeWindow: "size_ms", TumblingWindow: "size_ms"}[type(window)]
    every = getattr(window, slide)
    last = col(at_ms) - (col(at_ms) - lit(window.offset_ms)) % lit(every)  # the start of the last window of the row
    if isinstance(window, TumblingWindow):
        stream = stream.with_columns(**{start: last, end: last + lit(window.size_ms)})
    elif isinstance(window, HoppingWindow):
        steps = window.size_ms // every
        stream = stream.with_columns(**{place: lit(list(range(steps)))}).explode(place)
        begin = last - col(place) * lit(every)
        stream = stream.with_columns(**{start: begin, end: begin + lit(window.size_ms)})
    else:
        steps = window.size_ms // window.step_ms
        stream = stream.with_columns(**{place: lit(list(range(1, steps + 1)))}).explode(place)
        stream = stream.with_columns(**{start: last, end: last + col(place) * lit(window.step_ms)})
        stream = stream.filter(col(end) > col(at_ms))
    return _with_bounds(relation, stream, (start, end, names.free("window_time")), type_)


def _with_bounds(relation: Relation, stream: Stream, names: tuple[str, str, str], type: pa.DataType) -> Relation:
    """Returns the rows with the bounds of their windows as times. `stream`: the rows, with start and end in ms. `names`: the
    columns of the start, the end, and the event time of a result.
    """
    window, (start, end, last) = relation.window, names
    stream = stream.with_columns(
        **{start: col(start).cast(type), end: col(end).cast(type), last: (col(end) - lit(1)).cast(type)}
    )
    columns = {"start": start, "end": end, "time": last}
    # rows of tumbling windows may be grouped by the bounds again, in windows of the same time
    keeps = isinstance(window, TumblingWindow | CalendarWindow)
    fields = tuple(
        each
        if each.window is None or each.window.window is not window
        else replace(each, column=columns[each.window.edge], window=each.window if keeps else None)
        for each in relation.fields
    )
    return replace(relation, stream=stream, fields=fields, window=None)


def windows_again(window: TimeWindow, span: Span) -> TumblingWindow | CalendarWindow | ClockWindow:
    """Returns the windows in which rows that a window has made are together again: those of one end."""
    if isinstance(window, CalendarWindow):
        return replace(window, time="event")
    if isinstance(window, ClockWindow):
        step = window.step_ms
        return ClockWindow(step, step, False, window.time_zone, window.offset_ms % step)
    if isinstance(window, SessionWindow):
        hint = "write the key of the session into its query, and GROUP BY it"
        raise SqlFault(span, "sessions cannot be grouped by their bounds again", hint)
    every = {HoppingWindow: "slide_ms", CumulativeWindow: "step_ms", TumblingWindow: "size_ms"}[type(window)]
    return TumblingWindow(getattr(window, every), window.offset_ms % getattr(window, every))


_ARGUMENTS = {
    "TUMBLE": ("DATA", "TIMECOL", "SIZE", "OFFSET"),
    "HOP": ("DATA", "TIMECOL", "SLIDE", "SIZE", "OFFSET"),
    "CUMULATE": ("DATA", "TIMECOL", "STEP", "SIZE", "OFFSET"),
    "SESSION": ("DATA", "TIMECOL", "GAP"),
    "ML_PREDICT": ("INPUT", "MODEL", "ARGS", "CONFIG"),
}


def positional(call: Call) -> Call:
    """Returns a call of a table function whose named arguments (SIZE => …) stand at their positions.

    Raises SqlFault for a name that the function lacks, one that stands twice, and one that is left out before others.
    """
    names = _ARGUMENTS.get(call.name.text.upper(), ())
    if not any(isinstance(each, Argument) for each in call.arguments):
        return call
    found: dict[str, Expression] = {}
    for each in call.arguments:
        if not isinstance(each, Argument) or each.name.text.upper() not in names:
            raise SqlFault(each.span, f"{call.name.text} has no such argument", f"there are {', '.join(names)}")
        if each.name.text.upper() in found:
            raise SqlFault(each.span, f"{each.name.text.upper()} is given twice")
        found[each.name.text.upper()] = each.value
    missing = next((name for name in names if name not in found), None)
    if missing is not None and missing not in ("OFFSET", "CONFIG"):
        raise SqlFault(call.span, f"{call.name.text} needs {missing} => …", f"there are {', '.join(names)}")
    return replace(call, arguments=tuple(found[name] for name in names if name in found))


def group_window(call: Call, relation: Relation, zone: str) -> TimeWindow:
    """Returns the window of GROUP BY TUMBLE(ts, INTERVAL …). `zone`: the session's time zone."""
    kind = call.name.text.upper()
    if not call.arguments:
        raise SqlFault(call.span, f"{kind} needs a column of event time and an interval")
    time = _time_of(call.arguments[0], relation)
    return _window(kind, call.arguments[1:], call, time, _zone_of_windows(relation, time, zone))


def _time_of(node: Expression, relation: Relation) -> str:
    """Returns "event" or "processing" for the column of time of a window."""
    if is_clock(node):
        return "processing"
    if not isinstance(node, Column):
        raise SqlFault(node.span, "a window goes by a column of event time")
    field, further = relation.find(node.parts)
    if field.clock:
        return "processing"
    if further or field.shift_ms is None:
        known = [each.name for each in relation.fields if each.shift_ms is not None]
        hint = f"the event time is {known[0]}" if known else "declare it: WATERMARK FOR ts AS ts - INTERVAL '5' SECOND"
        if not known and any(isinstance(each, Join) for each in walk([node_of(relation.stream)])):
            hint = "the rows of this join have no event time: write them into a table with WATERMARK FOR ts AS …, and read that"
        raise SqlFault(node.span, f"{node.parts[-1].text} is not the event time of the table", hint)
    return "event"


def _window(kind: str, sizes: Sequence[Expression], call: Call, time: str, zone: str) -> TimeWindow:
    lengths: list[int] = []
    wanted = {"TUMBLE": (1, 2), "HOP": (2, 3), "CUMULATE": (2, 3), "SESSION": (1, 1)}[kind]
    for size in sizes:
        if not isinstance(size, Interval):
            raise SqlFault(size.span, f"{kind} takes intervals here", _FORMS[kind])
        lengths.append(interval_ms(size))
        if lengths[-1] <= 0 and len(lengths) <= wanted[0]:
            raise SqlFault(size.span, f"a window of {kind} is longer than 0", _FORMS[kind])
    if not wanted[0] <= len(lengths) <= wanted[1]:
        raise SqlFault(call.span, f"{kind} takes {wanted[0]} intervals", _FORMS[kind])
    if kind in ("HOP", "CUMULATE"):
        step, whole = lengths[:2]
        if whole % step:
            word = "slide" if kind == "HOP" else "step"
            fitting = [f"{ms / 60_000:g} minutes" for ms in (whole // step * step, whole // step * step + step) if ms]
            hint = f"a size of {' or '.join(fitting)} for this {word}; the {word} stands first, then the size"
            raise SqlFault(sizes[1].span, f"the size of {kind} is no multiple of its {word}", hint)
    options: dict[str, Any] = {"time": time}
    every = lengths[1] if kind == "CUMULATE" else lengths[0]  # how often a window begins
    given = lengths[-1] % every if len(lengths) == wanted[1] and kind != "SESSION" else 0
    with at(call.span):
        if kind == "SESSION":
            return session(f"{every}ms", **options)
        if zone != UTC:
            days = every // DAY_MS if kind == "TUMBLE" and every % DAY_MS == 0 and not given else 0
            if days and offset_of_windows(zone, every) is None:
                return tumbling(f"{days}d", time_zone=zone, **options)
            options["time_zone"] = zone
        if given:
            options["offset"] = f"{given}ms"
        if kind == "TUMBLE":
            return tumbling(f"{every}ms", **options)
        if kind == "HOP":
            return hopping(f"{lengths[1]}ms", f"{every}ms", **options)
        return cumulative(f"{every}ms", f"{lengths[0]}ms", **options)
