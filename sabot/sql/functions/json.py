"""The functions of JSON: JSON_VALUE, JSON_QUERY, JSON_EXISTS, JSON_OBJECT, JSON_ARRAY, JSON_STRING,
JSON_QUOTE, JSON_UNQUOTE.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from operator import add

import pyarrow as pa

from sabot.api.expr import Expr, coalesce, lit, when
from sabot.sql.functions.arguments import ArgumentOf, CallArguments, balanced
from sabot.sql.functions.conversions import as_text, cast
from sabot.sql.scope import TypedExpr
from sabot.sql.syntax.text import SqlFault
from sabot.sql.syntax.tree import Argument, Call, Expression, Word
from sabot.sql.types import sql_type

_OF_SEVERAL = re.compile(r"""(lax\s+)?\$(\.\w+|\.\*|\[\s*(\d+|\*|'[^']*'|"[^"]*")\s*\])*""")


def _json_path(arguments: CallArguments) -> str:
    return arguments.constant(1, "string", "the path")


@dataclass(frozen=True, slots=True)
class _JsonMatch:
    """The value at a path of a JSON text, and the conditions under which it has none.

    `only`: the kind of values that the function takes, see `StringExpr.json_path_match`. `empty`: nothing is there, or JSON's
    null, or a value of another kind. `error`: the text is no JSON; for a path that begins with `strict`, also if nothing is
    there, or a value of another kind.
    """

    made: Expr
    only: str
    empty: Expr
    error: Expr


def _json_match(arguments: CallArguments, only: str) -> _JsonMatch:
    text, path = arguments.expr(0).str, _json_path(arguments)
    if only != "scalar" and "*" in path and _OF_SEVERAL.fullmatch(path.strip()):
        return _JsonMatch(Expr("value.json_all", (arguments.expr(0), lit(path))), only, lit(False), ~text.is_json())
    made, is_json = text.json_path_match(path, only), text.is_json()
    absent = is_json & made.is_null()
    if not _is_strict(path):
        return _JsonMatch(made, only, absent, ~is_json)
    null = text.json_exists(path) & text.json_path_match(path).is_null()
    return _JsonMatch(made, only, absent & null, ~is_json | (absent & ~null))


def _is_strict(path: str) -> bool:
    return path.split()[:1] == ["strict"]


def _json_options(arguments: CallArguments) -> dict[str, ArgumentOf]:
    """Returns the arguments RETURNING, EMPTY and ERROR."""
    return {each.tree.name.text: each for each in arguments.items[2:] if isinstance(each.tree, Argument)}


def _on_events(arguments: CallArguments, match: _JsonMatch, made: Expr) -> Expr:
    """Returns `made` with the values of ON EMPTY and ON ERROR in their places."""
    options = _json_options(arguments)
    for event, found in (("EMPTY", match.empty), ("ERROR", match.error)):
        option = options.get(event)
        if option is None:
            continue
        if option.bound is None:  # ERROR ON …: a strict search, which fails, over the texts of these rows alone
            texts = when(found).then(arguments.expr(0)).otherwise(lit(None))
            failing = texts.str.json_path_match(_json_path(arguments), match.only, strict=True)
            made = when(found & failing.is_null()).then(lit(None)).otherwise(made)
        elif not pa.types.is_null(option.bound.type):
            default = option.bound.expr if "RETURNING" in options else _default(option.bound, arguments.zone)
            made = when(found).then(default).otherwise(made)
    return made


def value(arguments: CallArguments) -> Expr:
    match, options = _json_match(arguments, "scalar"), _json_options(arguments)
    returned = options.get("RETURNING")
    if returned is None:
        made = _with_defaults(arguments, match)
        return _on_events(arguments, match, match.made) if made is None else made
    assert returned.bound is not None
    fails = "ERROR" in options and options["ERROR"].bound is None
    made = cast(TypedExpr(match.made, pa.string()), returned.bound.type, arguments.zone, strict=fails)
    other = match.made.is_not_null() & made.is_null()  # a text that is no value of this type
    return _on_events(arguments, match if fails else replace(match, error=match.error | other), made)


def _with_defaults(arguments: CallArguments, match: _JsonMatch) -> Expr | None:
    """Returns the value at a path with constants in the place of nulls, or None for a strict path and other options.

    A text that is no JSON has no value, so a null is the error of such a text, and the empty value of any other. Each
    text is read twice, and not once more for each condition.
    """
    texts = arguments.expr(0)
    defaults: dict[str, Expr] = {}
    for event, option in _json_options(arguments).items():
        if option.bound is None or option.bound.expr.kind != "lit":
            return None
        defaults[event] = _default(option.bound, arguments.zone)
    if not defaults or _is_strict(_json_path(arguments)):
        return None
    nothing = lit(None, pa.string())
    error = when(texts.is_not_null()).then(defaults["ERROR"]).otherwise(nothing) if "ERROR" in defaults else nothing
    empty = defaults.get("EMPTY", nothing)
    return coalesce(match.made, when(texts.str.is_json()).then(empty).otherwise(error))


def _default(bound: TypedExpr, zone: str) -> Expr:
    """Returns a default of JSON_VALUE as a text; true and false as JSON has them."""
    return bound.expr.cast("string") if pa.types.is_boolean(bound.type) else as_text(bound, zone)


def query(arguments: CallArguments) -> Expr:
    wrapper = arguments.word(2)
    match = _json_match(arguments, "nested" if wrapper == "WITHOUT" else "json")
    made = match.made
    if wrapper != "WITHOUT":
        wrapped = lit("[") + made + lit("]")
        made = wrapped if wrapper == "UNCONDITIONAL" else when(made.str.startswith("[")).then(made).otherwise(wrapped)
    return _on_events(arguments, match, made)


def exists(arguments: CallArguments) -> Expr:
    text, path = arguments.expr(0), _json_path(arguments)
    exists = text.str.json_exists(path)
    error = ~exists if _is_strict(path) else ~text.str.is_json()
    behaviour = arguments.word(2) if len(arguments) > 2 else "FALSE"
    if behaviour == "FALSE":  # `exists` says so already
        return exists
    if behaviour == "ERROR":
        whole = when(error).then(text).otherwise(lit(None)).str.json_path_match(path, strict=True)
        return when(error & whole.is_null()).then(lit(False)).otherwise(exists)
    return when(error).then(lit({"TRUE": True, "UNKNOWN": None}[behaviour])).otherwise(exists)


def object_of(arguments: CallArguments) -> Expr:
    items, absent = _without_on_null(arguments, absent=False)
    members = []
    for i in range(0, len(items), 2):
        key = arguments.constant(i, "string", "a key")
        members.append(_member(json.dumps(key, ensure_ascii=False) + ":", items[i + 1], absent))
    return _enclosed("{", members, "}")


def array(arguments: CallArguments) -> Expr:
    items, absent = _without_on_null(arguments, absent=True)
    return _enclosed("[", [_member("", item, absent) for item in items], "]")


def string(arguments: CallArguments) -> Expr:
    """Returns any value as JSON."""
    bound = arguments.bound(0)
    return when(bound.expr.is_not_null()).then(_encoded(bound)).otherwise(lit(None))


def quoted(arguments: CallArguments) -> Expr:
    """Returns a text as a text of JSON: in double quotes, with \\ before those within."""
    arguments.plain_text(0, "JSON_STRING(x)")
    return string(arguments)


def unquoted(arguments: CallArguments) -> Expr:
    """Returns the value of a text of JSON; any other text unchanged."""
    text = arguments.plain_text(0)
    made = text.str.json_path_match("$")
    return when(text.str.startswith('"') & made.is_not_null()).then(made).otherwise(text)


def _encoded(value: TypedExpr) -> Expr:
    """Returns a value as JSON; null as `null`."""
    return Expr("map.json" if pa.types.is_map(value.type) else "value.json", (value.expr,))


def listed_member(call: Call, values: Sequence[TypedExpr]) -> Expr:
    """Returns what a row adds to JSON_ARRAYAGG or JSON_OBJECTAGG: a value, or a key and a value; NULL if it is absent."""
    last = call.arguments[-1]
    keyed = len(values) == 2
    absent = last.text == "ABSENT" if isinstance(last, Word) else not keyed
    key = lit("")
    if keyed:
        if not (pa.types.is_string(values[0].type) or pa.types.is_null(values[0].type)):
            message = f"a key of JSON_OBJECTAGG is a text, and this is {sql_type(values[0].type)}"
            raise SqlFault(call.arguments[0].span, message, "CAST(… AS STRING)")
        key = _encoded(values[0]) + lit(":")
    expr = values[-1].expr
    value = expr.fill_null("null") if _is_json(call.arguments[len(values) - 1]) else _encoded(values[-1])
    made = key + value if keyed else value
    return when(expr.is_not_null()).then(made).otherwise(lit(None)) if absent else made


def arrayed(members: Expr) -> Expr:
    return lit("[") + members.list.join(",") + lit("]")


def members_joined(members: Expr) -> Expr:
    """Returns members as an object of JSON. Fails for a row whose keys are NULL or not all different, as Flink does."""
    return Expr("value.json_object", (members,))


def _without_on_null(arguments: CallArguments, absent: bool) -> tuple[list[ArgumentOf], bool]:
    last = arguments.items[-1].tree if arguments.items else None
    return (arguments.items[:-1], last.text == "ABSENT") if isinstance(last, Word) else (arguments.items, absent)


_MADE_JSON = ("JSON_OBJECT", "JSON_ARRAY", "JSON_QUERY", "JSON_OBJECTAGG", "JSON_ARRAYAGG")


def _is_json(tree: Expression) -> bool:
    return isinstance(tree, Call) and tree.name.text.upper() in _MADE_JSON


def _member(key: str, item: ArgumentOf, absent: bool) -> Expr:
    """Returns a comma, the key and the value as JSON; "" for NULL if it is `absent`."""
    assert item.bound is not None
    expr = item.bound.expr
    value = expr.fill_null("null") if _is_json(item.tree) else _encoded(item.bound)
    made = lit(f",{key}") + value
    return when(expr.is_null()).then(lit("")).otherwise(made) if absent else made


def _enclosed(first: str, members: Sequence[Expr], last: str) -> Expr:
    return lit(first) + balanced([lit(""), *members], add).str.slice(1) + lit(last)
