"""The path of a step: a digest of all steps that its rows have gone through. A start uses it to tell apart two steps
in a checkpoint that keep the same state.

The digest must be the same in every version of Sabot. So it is made of the names, order and values of the nodes'
fields, with the stored names of classes and fields. A function is represented by its name, which two lambdas share. A
second digest, behind a "+", is made of the code of the functions. It may differ between versions of Python, so it is
used only to choose among steps whose first digests are equal.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import Field, fields, is_dataclass
from functools import partial
from hashlib import sha256
from types import CodeType, FunctionType
from typing import Any

from sabot.api.aggregates import Aggregate
from sabot.api.calls import AsyncCall
from sabot.api.expr import Expr
from sabot.api.nodes.node import Node
from sabot.api.nodes.rows import OnError
from sabot.api.words import name_of
from sabot.base.stored_names import stored_field, stored_name
from sabot.connectors.base import Sink, Source

_GRAPH = ("input", "streams", "left", "right")
_NO_MATTER = (
    *("schema", "format", "inferred", "fields", "id", "late", "late_right", "dead_letter", "on_error", "first"),
    *(
        "max_drift_ms",
        "emit_every_ms",
        "lateness_ms",
        "wait_ms",
        "idle_ms",
        "idle_closes",
        "start",
        "until",
        "origin",
        "overrides",
        "kept",
        "most_rows",
        "left_time",
    ),
)
# Fields that are newer than checkpoints: their defaults are what a program without them says.
_LATER = ("time_unit", "time_format", "time_zone", "time", "overlap", "is_reluctant", "order", "ttl_ms", "peers")


def path_of(node: Node, before: Iterable[str]) -> str:
    """Returns the path of a node: a digest of its step and of all steps before it, and, behind a "+", a digest of the
    code of their functions if they have any. The same steps have the same path in another program. An OnError has the
    path of its input. `before`: the paths of the inputs.
    """
    inputs = sorted(before)
    if isinstance(node, OnError):
        return inputs[0]
    words = [stored_name(type(node)), *sorted(map(steps_of, inputs))]
    code = [each.partition("+")[2] for each in inputs]
    for field in fields(node):
        if field.name not in _GRAPH and field.name not in _NO_MATTER:
            value = getattr(node, field.name)
            if _is_unsaid(field, value):
                continue
            words.append(f"{stored_field(type(node), field.name)}={_said(value)}")
            code += _computed(value)
    steps = sha256("\n".join(words).encode()).hexdigest()[:16]
    return f"{steps}+{sha256(repr(code).encode()).hexdigest()[:8]}" if any(code) else steps


def steps_of(path: str) -> str:
    """Returns the part of a path that is the same in every version."""
    return path.partition("+")[0]


def _is_unsaid(field: Field[Any], value: Any) -> bool:
    return field.name in _LATER and (value is None or isinstance(value, str | bool)) and value == field.default


def _said(value: Any) -> str:
    if isinstance(value, Expr | Aggregate):
        return value.text()
    if isinstance(value, Source | Sink):
        return value.name
    if isinstance(value, tuple):
        return ", ".join(map(_said, value))
    if isinstance(value, Mapping):
        return ", ".join(f"{name}={_said(each)}" for name, each in value.items())
    if isinstance(value, AsyncCall):
        return f"AsyncCall({', '.join(map(_said, value.facts))})"
    if is_dataclass(value) and not isinstance(value, type):
        in_order = sorted(fields(value), key=lambda each: bool(each.kw_only))  # as its constructor takes them
        given = [(each, getattr(value, each.name)) for each in in_order]
        return (
            f"{stored_name(type(value))}({', '.join(_said(one) for each, one in given if not _is_unsaid(each, one))})"
        )
    return name_of(value) if callable(value) else repr(value)


def _computed(value: Any) -> Iterator[str]:
    """Yields a text for the code of each function in the value of a field, with the values that are bound to it."""
    if isinstance(value, FunctionType):
        bound = [cell.cell_contents for cell in value.__closure__ or () if _is_filled(cell)]
        yield _code(value.__code__) + repr([each for each in (*bound, *(value.__defaults__ or ())) if _is_plain(each)])
    elif isinstance(value, partial):
        yield from _computed(value.func)
        yield repr([each for each in (*value.args, *value.keywords.values()) if _is_plain(each)])
    elif isinstance(value, tuple):
        for each in value:
            yield from _computed(each)
    elif isinstance(value, Mapping):
        yield from _computed(tuple(value.values()))
    elif is_dataclass(value) and not isinstance(value, type | Expr | Aggregate | Source | Sink):
        yield from _computed(tuple(getattr(value, each.name) for each in fields(value)))


def _code(code: CodeType) -> str:
    """Returns the instructions and constants of a function as text, the same in every process: sets are sorted, and
    nested code objects, whose repr has an address, are replaced by their own text.
    """
    constants = (
        _code(each) if isinstance(each, CodeType) else sorted(map(repr, each)) if isinstance(each, frozenset) else each
        for each in code.co_consts
    )
    return f"{code.co_code.hex()} {code.co_names} {list(map(str, constants))}"


def _is_filled(cell: Any) -> bool:
    """Returns False if the cell is still empty, because the function that it refers to is being defined."""
    try:
        return cell.cell_contents is not cell
    except ValueError:
        return False


def _is_plain(value: Any) -> bool:
    """Returns True if the repr of the value is the same in every process."""
    return isinstance(value, str | bytes | int | float | bool | None)
