"""Expressions of text. Patterns have the syntax of RE2, replacements that of polars ($1)."""

import functools
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sabot._cython.arrow.compare import contains, starts_with
from sabot._cython.text.split import split_part
from sabot.api.expr import Expr
from sabot.base.arrays import is_ascii
from sabot.engine.operators.expressions import json_paths
from sabot.engine.operators.expressions.casts import RefusedValues, caster
from sabot.engine.operators.expressions.lists import no_value_at_index
from sabot.engine.operators.expressions.node import Compiled, Function, Steps, apply, to_type
from sabot.errors import InternalError, UserError

_KINDS = [
    "lower",
    "upper",
    "to_titlecase",
    "strip",
    "strip_start",
    "strip_end",
    "pad_start",
    "pad_end",
    "split",
    "contains",
    "count_matches",
    "startswith",
    "endswith",
    "regexp_extract",
    "extract_all",
    "length",
    "len_bytes",
    "slice",
    "replace",
    "replace_all",
    "reverse",
    "json_path_match",
    "json_exists",
    "is_json",
]
_LONGEST = 2**31
_WHITE_SPACE = "\t\n\v\f\r \x85\xa0\u1680" + "".join(map(chr, range(0x2000, 0x200B))) + "\u2028\u2029\u202f\u205f\u3000"


def _string_step(expr: Expr, nodes: list[Compiled]) -> Compiled:
    (node,) = nodes
    node = _as_text(expr, node)
    function = _string_function(expr)
    fails = dict(expr.options).get("strict", False)
    try:
        function(pa.array([None] if fails else [""], pa.string()))  # pyarrow parses the pattern only if there is a row
    except pa.ArrowInvalid as error:
        raise UserError(f"{expr.text()}: {error}") from error
    return apply(expr, function, node, can_fail=fails)


def _as_text(expr: Expr, node: Compiled) -> Compiled:
    if pa.types.is_null(node.type):
        node = to_type(node, pa.string())
    if not pa.types.is_string(node.type):
        raise UserError(f"{expr.text()} cannot be computed: {expr.kind} of {node.type}", hint='.cast("string") first')
    return node


def part_of_split(expr: Expr, nodes: list[Compiled]) -> Compiled:
    """Makes the node of `list.get` over `str.split`. The node finds the wanted part in the text, without making
    lists. `nodes`: the nodes of the inputs of the split.
    """
    split, strict = expr.inputs[0], not expr.option("null_on_oob")
    index = max(min(expr.option("index"), _LONGEST), -_LONGEST)
    (node,) = nodes
    by = split.option("by")

    def run(texts: pa.Array) -> pa.Array:
        parts = split_part(texts, by.encode(), index)
        if strict and parts.null_count > texts.null_count:
            beyond = pc.and_(pc.is_null(parts), pc.is_valid(texts))
            raise no_value_at_index(expr.text(), texts[pc.index(beyond, True).as_py()].as_py().split(by))
        return parts

    return apply(expr, run, _as_text(split, node), can_fail=strict)


def _string_function(expr: Expr) -> Function:
    options = dict(expr.options)
    match expr.kind.removeprefix("str."):
        case "lower":
            return _lower
        case "upper":
            return _upper
        case "to_titlecase":
            return _titlecase
        case "strip" | "strip_start" | "strip_end" as kind:
            trim: Function = {"strip": pc.utf8_trim, "strip_start": pc.utf8_ltrim, "strip_end": pc.utf8_rtrim}[kind]
            given = options["characters"]
            return functools.partial(trim, characters=_WHITE_SPACE if given is None else given)
        case "pad_start" | "pad_end" as kind:
            pad: Function = pc.utf8_lpad if kind == "pad_start" else pc.utf8_rpad
            if len(options["fill_char"]) > 1:  # of SQL
                return functools.partial(_filled, options["length"], options["fill_char"], kind == "pad_start")
            return functools.partial(pad, width=options["length"], padding=options["fill_char"])
        case "split":
            return functools.partial(pc.split_pattern, pattern=options["by"])
        case "contains":
            if not options["literal"]:
                return functools.partial(pc.match_substring_regex, pattern=options["pattern"])
            wanted = options["pattern"].encode()
            return lambda x: contains(x, wanted)
        case "count_matches":
            count: Function = pc.count_substring if options["literal"] else pc.count_substring_regex
            return functools.partial(count, pattern=options["pattern"])
        case "startswith":
            prefix = options["prefix"].encode()
            return lambda x: starts_with(x, prefix)
        case "endswith":
            return functools.partial(pc.ends_with, pattern=options["suffix"])
        case "regexp_extract":
            pattern = _one_group(options["pattern"], options["group"], expr)
            return lambda x: pc.struct_field(pc.extract_regex(x, pattern=pattern), [0])
        case "extract_all":  # of SQL
            return functools.partial(_all_groups, _one_group(options["pattern"], options["group"], expr))
        case "length":
            return lambda x: pc.binary_length(x) if is_ascii(x) else pc.utf8_length(x)
        case "len_bytes":
            return lambda x: pc.binary_length(x)
        case "slice":
            # No text is longer, and pyarrow adds the two, which must not overflow.
            offset = max(min(options["offset"], _LONGEST), -_LONGEST)
            length = None if options["length"] is None else min(options["length"], 2 * _LONGEST)
            stop = None if length is None or (offset < 0 <= offset + length) else offset + length
            return functools.partial(pc.utf8_slice_codeunits, start=offset, stop=stop)
        case "replace" | "replace_all":
            once = 1 if expr.kind == "str.replace" else None
            value = options["value"]
            search = pc.replace_substring if options["literal"] else pc.replace_substring_regex
            replacement = value if options["literal"] else _replacement(value, expr)
            return functools.partial(search, pattern=options["pattern"], replacement=replacement, max_replacements=once)
        case "reverse":
            return lambda x: pc.ascii_reverse(x) if is_ascii(x) else pc.utf8_reverse(x)
        case "json_path_match":
            return json_paths.matching(options["json_path"], options["only"], strict=options.get("strict", False))
        case "json_exists":
            return json_paths.existing(options["json_path"])
        case "is_json":
            return json_paths.being(options["of"])
    raise InternalError(f"no step for {expr.kind}")


def _filled(length: int, fill: str, at_start: bool, x: pa.Array) -> pa.Array:
    """Fills texts to a length with characters that repeat, from the first one on: 'x' to 4 with 'ab' is abax."""
    wanted = pc.subtract(length, pc.utf8_length(x))
    counts = pc.unique(pc.max_element_wise(wanted, 0, skip_nulls=False)).drop_null()
    fills = [(fill * (count // len(fill) + 1))[:count] for count in counts.to_pylist()]
    some = pa.array(fills, pa.string()).take(pc.index_in(pc.max_element_wise(wanted, 0, skip_nulls=False), counts))
    return pc.binary_join_element_wise(*((some, x) if at_start else (x, some)), "")


_MARKS = [chr(code) for code in range(0xFDD0, 0xFDF0)]  # they are no characters, and stand in no text of a language


def _all_groups(pattern: str, x: pa.Array) -> pa.Array:
    """Returns the only group of each match as a list: each is put between two marks, where the text is then split."""
    wanted = [mark for mark in _MARKS if not pc.any(pc.match_substring(x, mark)).as_py()]
    if len(wanted) < 2:
        raise pa.ArrowInvalid("the texts have all characters from U+FDD0 to U+FDEF, which are none")
    start, end = wanted[:2]
    marked = pc.replace_substring_regex(x, pattern=pattern, replacement=f"{start}\\1{end}")
    parts = pc.split_pattern(marked, pattern=start)
    values = pc.list_element(pc.split_pattern(parts.flatten(), pattern=end, max_splits=1), 0)
    sizes = pc.list_value_length(parts).fill_null(0).to_numpy()
    within = np.arange(len(values)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    bounds = np.concatenate([[0], np.cumsum(np.maximum(sizes - 1, 0))]).astype(np.int32)
    mask = x.is_null() if x.null_count else None
    return pa.ListArray.from_arrays(pa.array(bounds), values.filter(pa.array(within > 0)), mask=mask)


def _lower(x: pa.Array) -> pa.Array:
    """Converts to lower case. Texts with İ or Σ are converted by Python, because pyarrow converts each character
    alone: İ becomes two characters, and Σ depends on those around it.
    """
    return pc.ascii_lower(x) if is_ascii(x) else _with_python(pc.utf8_lower(x), x, "[İΣ]", str.lower)


def _upper(x: pa.Array) -> pa.Array:
    """Converts to upper case. Texts with a character that becomes several, such as ß, are converted by Python."""
    return pc.ascii_upper(x) if is_ascii(x) else _with_python(pc.utf8_upper(x), x, _become_several(), str.upper)


def _titlecase(x: pa.Array) -> pa.Array:
    """Converts the first letter of each word to upper case. For pyarrow a digit ends a word: those texts, and those with
    letters beyond ASCII, are converted by Python.
    """
    return _with_python(pc.utf8_title(x), x, r"[^\x00-\x7f]|[0-9][A-Za-z]", _with_capitals)


def _with_capitals(text: str) -> str:
    # Whether a sigma ends its word depends on what follows, so the whole text becomes lower case at once. Only one letter becomes longer.
    lower = text.replace("\u0130", "i").lower()
    assert len(lower) == len(text)

    def capital(word: re.Match[str]) -> str:
        begin, end = word.start() + 1, word.end()
        rest = zip(text[begin:end], lower[begin:end], strict=True)
        return text[begin - 1].title() + "".join("i\u0307" if was == "\u0130" else now for was, now in rest)

    return re.sub(r"[^\W_]+", capital, text)


def _with_python(made: pa.Array, x: pa.Array, special: str, function: Callable[[str], str]) -> pa.Array:
    rare = pc.match_substring_regex(x, special).fill_null(False)
    if not pc.any(rare).as_py():
        return made
    return pc.replace_with_mask(
        made, rare, pa.array([function(text) for text in x.filter(rare).to_pylist()], pa.string())
    )


@functools.cache
def _become_several() -> str:
    return "[" + "".join(chr(code) for code in range(0x80, 0xFB20) if len(chr(code).upper()) > 1) + "]"


_GROUP = re.compile(
    r"\\Q.*?(?:\\E|$)|\\.|\[\^?\]?(?:\\.|\[:\w+:\]|[^\]\\])*\]|\((?:\?P?<[A-Za-z_]\w*>|(?!\?))", re.DOTALL
)


def _one_group(pattern: str, group: int, expr: Expr) -> str:
    """Returns the pattern with the wanted group as its only capturing group, and with a name, which pyarrow requires.
    Raises UserError if the pattern has no such group.
    """
    seen = 0

    def rewritten(match: re.Match[str]) -> str:
        nonlocal seen
        if not match[0].startswith("("):
            return match[0]
        seen += 1
        return "(?P<wanted>" if seen == group else "(?:"

    made = _GROUP.sub(rewritten, pattern)
    if not 0 <= group <= seen:
        raise UserError(f"{expr.text()}: the pattern has {seen} groups, not {group}", hint="group 0 is the whole match")
    return f"(?P<wanted>{made})" if group == 0 else made


def _replacement(value: str, expr: Expr) -> str:
    r"""Converts a replacement to the syntax of RE2: $1 and ${1} become \\1. Raises UserError for a group that is not 0
    to 9.
    """

    def group(match: re.Match[str]) -> str:
        if match[0] == "\\":
            return r"\\"
        if match[0] == "$$":
            return "$"
        name = match[1] or match[2]
        if name is None:
            return "$"
        if not re.fullmatch("[0-9]", name):
            raise UserError(f"{expr.text()}: ${name} is no group", hint="groups are ${0} to ${9}; a dollar sign is $$")
        return f"\\{name}"

    return re.sub(r"\\|\$\$|\$(\w+)|\$\{(\w+)\}|\$", group, value)


# -- times ----------------------------------------------------------------------------------------------------------------

_MONTHS = [
    "january",
    "february",
    "march",
    "april",
    "may",
    "june",
    "july",
    "august",
    "september",
    "october",
    "november",
    "december",
]
_MONTH = rf"(?i:(?P<b>{'|'.join(_MONTHS)}|{'|'.join(name[:3] for name in _MONTHS)}))"
_CODES = {
    "Y": r"(?P<Y>\d{4})",
    "m": r"(?P<m>\d{1,2})",
    "d": r"(?P<d>\d{1,2})",
    "b": _MONTH,
    "B": _MONTH,
    "H": r"(?P<H>\d{1,2})",
    "I": r"(?P<I>0?[1-9]|1[0-2])",
    "p": r"(?i:(?P<p>[AP]M))",
    "M": r"(?P<M>\d{1,2})",
    "S": r"(?P<S>\d{1,2})",
    "f": r"(?P<f>\d{1,9})",
    "z": r"(?P<z>[+-]\d{2}:?\d{2}|Z)",
    "%": "%",
}
_SHORT_CODES = {"F": "%Y-%m-%d", "T": "%H:%M:%S", "R": "%H:%M"}


def _time_of_text(expr: Expr, nodes: list[Compiled]) -> Compiled:
    (node,), format, strict = nodes, expr.option("format"), expr.option("strict")
    if pa.types.is_null(node.type):
        node = to_type(node, pa.string())
    if not pa.types.is_string(node.type):
        raise UserError(f"{expr.text()} cannot be computed: {expr.kind} of {node.type}", hint="it parses text only")
    zoned = format is not None and "%z" in format.replace("%%", "")
    target = pa.date32() if expr.kind == "str.to_date" else pa.timestamp("us", "UTC" if zoned else None)
    if format is None:
        function, can_fail = caster(pa.string(), target, strict=strict, what=expr.text())
        return apply(expr, function, node, can_fail=can_fail)
    pattern, found = _pattern_of(format, expr)
    moment = pa.timestamp("us")  # the format of a date may have a time of day
    parse, _ = caster(pa.string(), moment, strict=False, what=expr.text())

    def read(texts: pa.Array) -> pa.Array:
        made = parse(_iso(pc.extract_regex(texts, pattern=pattern), found))
        made = pc.cast(made, target, safe=False) if pa.types.is_date(target) else made.view(target)
        if strict and made.null_count > texts.null_count:
            raise RefusedValues(expr.text(), texts, target, pc.and_(pc.is_null(made), pc.is_valid(texts)))
        return made

    return apply(expr, read, node, can_fail=strict)


def _pattern_of(format: str, expr: Expr) -> tuple[str, list[str]]:
    """Returns (the regular expression of a format, the codes of the parts that it finds, as "Y"). Raises UserError
    for unknown codes, for a part that occurs twice, and for a format without year, month or day.
    """
    long = re.sub("%([FTR])", lambda match: _SHORT_CODES[match[1]], format)
    pattern, hint = "", "%Y %m %d %H %I %p %M %S %b %B %F %T %R %z %f %3f %6f %9f %.f"
    for point, digits, code, other in re.findall(r"%(\.?)([1-9]?)([A-Za-z%]|$)|([^%]+)", long):
        if other:
            pattern += re.escape(other)
        elif (digits or point) and code != "f":
            raise UserError(f"{expr.text()}: %{point}{digits}{code} is not a code for times", hint=hint)
        elif code not in _CODES:
            raise UserError(f"{expr.text()}: %{code} is not a code for reading times", hint=hint)
        else:
            part = rf"(?P<f>\d{{{digits}}})" if digits else _CODES[code]
            pattern += rf"(?:\.{part})?" if point else part
    found = re.findall(r"\?P<(\w)>", pattern)
    if len(set(found)) < len(found):
        raise UserError(f"{expr.text()}: the format has a part of the time twice")
    if "Y" not in found or "d" not in found or not {"m", "b"} & set(found):
        raise UserError(f"{expr.text()}: there is no year, month and day in {format!r}", hint='"%Y-%m-%d %H:%M:%S"')
    if ("I" in found) != ("p" in found) or {"I", "H"} <= set(found):
        raise UserError(f"{expr.text()}: an hour of half a day is %I with %p, and without %H", hint='"%I:%M %p"')
    return f"^{pattern}$", found


def _iso(parts: pa.Array, found: list[str]) -> pa.Array:
    """Joins the parts of times to ISO 8601 texts. Parsing these also finds days that do not exist."""

    def part(name: str, width: int = 2) -> Any:
        if name not in found:
            return "0" * width
        return pc.utf8_lpad(pc.struct_field(parts, [found.index(name)]), width=width, padding="0")

    month = part("m")
    if "b" in found:
        names = pc.utf8_slice_codeunits(pc.utf8_lower(part("b", 0)), 0, 3)
        place = pc.index_in(names, value_set=pa.array([name[:3] for name in _MONTHS]))
        month = pc.utf8_lpad(pc.cast(pc.add(place, pa.scalar(1, pa.int32())), pa.string()), width=2, padding="0")
    fraction: Any = "000000"
    if "f" in found:
        digits = pc.struct_field(parts, [found.index("f")])
        fraction = pc.utf8_slice_codeunits(pc.utf8_rpad(digits, width=6, padding="0"), 0, 6)
    day = pc.binary_join_element_wise(part("Y", 4), month, part("d"), "-")
    hour = part("H")
    if "I" in found:
        number = pc.cast(part("I"), pa.int32())
        noon = pc.if_else(pc.equal(pc.utf8_upper(part("p")), "PM"), 12, 0)
        hour = pc.cast(pc.add(pc.if_else(pc.equal(number, 12), 0, number), pc.cast(noon, pa.int32())), pa.string())
        hour = pc.utf8_lpad(hour, width=2, padding="0")
    clock = pc.binary_join_element_wise(hour, part("M"), part("S"), ":")
    moment = pc.binary_join_element_wise(day, clock, "T")
    zone: Any = pc.struct_field(parts, [found.index("z")]) if "z" in found else ""
    return pc.binary_join_element_wise(pc.binary_join_element_wise(moment, fraction, "."), zone, "")


STEPS: Steps = {
    **{f"str.{name}": _string_step for name in _KINDS},
    **dict.fromkeys(["str.to_datetime", "str.to_date"], _time_of_text),
}
