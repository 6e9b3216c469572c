"""Windows of SQL: the table functions TUMBLE, HOP, CUMULATE and SESSION, and the group windows of the same names."""

from collections.abc import Sequence
from dataclasses import replace

from sabot.api.windows import cumulative, hopping, session, tumbling
from sabot.sql.scope import Relation, TableColumn, TimeWindow, WindowEdge, at
from sabot.sql.syntax.text import SqlFault
from sabot.sql.syntax.tree import Argument, Call, Column, Descriptor, Expression, Interval
from sabot.sql.types import interval_ms

import pyarrow as pa  # isort: skip

TABLE_WINDOWS = ("TUMBLE", "HOP", "CUMULATE", "SESSION")
GROUP_WINDOWS = ("TUMBLE", "HOP", "SESSION")

EDGES = {f"{kind}_{edge.upper()}": (kind, f"window_{edge}") for kind in GROUP_WINDOWS for edge in ("start", "end")}
"""The functions that give a bound of a group window: the window's name, and the column of the engine."""

_FORMS = {
    "TUMBLE": "TUMBLE(TABLE t, DESCRIPTOR(ts), INTERVAL '10' MINUTE)",
    "HOP": "HOP(TABLE t, DESCRIPTOR(ts), INTERVAL '5' MINUTE, INTERVAL '10' MINUTE): the slide first, then the size",
    "CUMULATE": "CUMULATE(TABLE t, DESCRIPTOR(ts), INTERVAL '1' HOUR, INTERVAL '1' DAY): the step first",
    "SESSION": "SESSION(TABLE t, DESCRIPTOR(ts), INTERVAL '10' MINUTE)",
}


def table_window(call: Call, relation: Relation) -> Relation:
    """Returns the table of TABLE(TUMBLE(TABLE t, …)), with window_start, window_end and window_time."""
    kind = call.name.text.upper()
    call = positional(call)
    descriptor = call.arguments[1] if len(call.arguments) > 1 else None
    if not isinstance(descriptor, Descriptor) or len(descriptor.columns) != 1:
        raise SqlFault(call.span, f"{kind} needs DESCRIPTOR(column)", _FORMS[kind])
    time = _time_of(Column(descriptor.columns, descriptor.span), relation)
    window = _window(kind, call.arguments[2:], call, time)
    type = pa.timestamp("ms", tz="UTC")
    added = (
        TableColumn("", "window_start", "window_start", type, None, WindowEdge("start", window)),
        TableColumn("", "window_end", "window_end", type, None, WindowEdge("end", window)),
    )
    for name in ("window_start", "window_end"):
        if any(each.name == name for each in relation.fields):
            raise SqlFault(call.span, f"the table has a column {name} already", "select it under another name first")
    return Relation(relation.stream, (*relation.fields, *added), window, relation.ranking)


_ARGUMENTS = {
    "TUMBLE": ("DATA", "TIMECOL", "SIZE", "OFFSET"),
    "HOP": ("DATA", "TIMECOL", "SLIDE", "SIZE", "OFFSET"),
    "CUMULATE": ("DATA", "TIMECOL", "STEP", "SIZE", "OFFSET"),
    "SESSION": ("DATA", "TIMECOL", "GAP"),
    "ML_PREDICT": ("INPUT", "MODEL", "ARGS", "CONFIG"),
}


def positional(call: Call) -> Call:
    """Returns a call of a table function whose named arguments (SIZE => …) stand at their positions."""
    names = _ARGUMENTS.get(call.name.text.upper(), ())
    if not any(isinstance(each, Argument) for each in call.arguments):
        return call
    found: dict[str, Expression] = {}
    for each in call.arguments:
        if not isinstance(each, Argument) or each.name.text.upper() not in names:
            raise SqlFault(each.span, f"{call.name.text} has no such argument", f"there are {', '.join(names)}")
        found[each.name.text.upper()] = each.value
    return replace(call, arguments=tuple(found[name] for name in names if name in found))


def group_window(call: Call, relation: Relation) -> TimeWindow:
    """Returns the window of GROUP BY TUMBLE(ts, INTERVAL …)."""
    kind = call.name.text.upper()
    if not call.arguments:
        raise SqlFault(call.span, f"{kind} needs a column of event time and an interval")
    return _window(kind, call.arguments[1:], call, _time_of(call.arguments[0], relation))


def _time_of(node: Expression, relation: Relation) -> str:
    """Returns "event" or "processing" for the column of time of a window."""
    if isinstance(node, Call) and node.name.text.upper() == "PROCTIME":
        return "processing"
    if not isinstance(node, Column):
        raise SqlFault(node.span, "a window goes by a column of event time")
    field, further = relation.find(node.parts)
    if field.clock:
        return "processing"
    if further or field.shift_ms is None:
        known = [each.name for each in relation.fields if each.shift_ms is not None]
        hint = f"the event time is {known[0]}" if known else "declare it: WATERMARK FOR ts AS ts - INTERVAL '5' SECOND"
        raise SqlFault(node.span, f"{node.parts[-1].text} is not the event time of the table", hint)
    return "event"


def _window(kind: str, sizes: Sequence[Expression], call: Call, time: str) -> TimeWindow:
    lengths = []
    for size in sizes:
        if not isinstance(size, Interval):
            raise SqlFault(size.span, f"{kind} takes intervals here", _FORMS[kind])
        lengths.append(f"{interval_ms(size)}ms")
    wanted = {"TUMBLE": (1, 2), "HOP": (2, 3), "CUMULATE": (2, 3), "SESSION": (1, 1)}[kind]
    if not wanted[0] <= len(lengths) <= wanted[1]:
        raise SqlFault(call.span, f"{kind} takes {wanted[0]} intervals", _FORMS[kind])
    options = {"time": time}
    with at(call.span):
        if kind == "SESSION":
            return session(lengths[0], **options)  # type: ignore[arg-type]
        if len(lengths) == wanted[1]:
            options["offset"] = lengths[-1]
        if kind == "TUMBLE":
            return tumbling(lengths[0], **options)  # type: ignore[arg-type]
        if kind == "HOP":
            return hopping(lengths[1], lengths[0], **options)  # type: ignore[arg-type]
        return cumulative(lengths[1], lengths[0], **options)  # type: ignore[arg-type]
