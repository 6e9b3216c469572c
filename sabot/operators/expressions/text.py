"""Expressions of texts. Patterns are those of RE2; replacements are written as in polars ($1)."""

import functools
import re
from collections.abc import Callable

import pyarrow as pa
import pyarrow.compute as pc

from sabot._cython.arrow.compare import contains, starts_with
from sabot.api.expr import Expr
from sabot.arrays import is_ascii
from sabot.errors import InternalError, UserError
from sabot.operators.expressions.node import Compiled, Function, Steps, apply, to_type

__all__ = ["STEPS"]

_KINDS = [
    "lower",
    "upper",
    "strip",
    "split",
    "contains",
    "startswith",
    "endswith",
    "regexp_extract",
    "length",
    "slice",
    "replace",
    "replace_all",
]
_WHITE_SPACE = "\t\n\v\f\r \x85\xa0\u1680" + "".join(map(chr, range(0x2000, 0x200B))) + "\u2028\u2029\u202f\u205f\u3000"


def _string_step(expr: Expr, nodes: list[Compiled]) -> Compiled:
    (node,) = nodes
    if pa.types.is_null(node.type):
        node = to_type(node, pa.string())
    if not pa.types.is_string(node.type):
        raise UserError(f"{expr.text()} cannot be: {expr.kind} of {node.type}", hint='.cast("string") first')
    function = _string_function(expr)
    try:
        function(pa.array([""]))  # pyarrow reads a pattern only if there is a row
    except pa.ArrowInvalid as error:
        raise UserError(f"{expr.text()}: {error}") from error
    return apply(expr, function, node)


def _string_function(expr: Expr) -> Function:
    options = dict(expr.options)
    match expr.kind.removeprefix("str."):
        case "lower":
            return _lower
        case "upper":
            return _upper
        case "strip":
            given = options["characters"]
            return functools.partial(pc.utf8_trim, characters=_WHITE_SPACE if given is None else given)
        case "split":
            return functools.partial(pc.split_pattern, pattern=options["by"])
        case "contains":
            if not options["literal"]:
                return functools.partial(pc.match_substring_regex, pattern=options["pattern"])
            wanted = options["pattern"].encode()
            return lambda x: contains(x, wanted)
        case "startswith":
            prefix = options["prefix"].encode()
            return lambda x: starts_with(x, prefix)
        case "endswith":
            return functools.partial(pc.ends_with, pattern=options["suffix"])
        case "regexp_extract":
            pattern = _one_group(options["pattern"], options["group"], expr)
            return lambda x: pc.struct_field(pc.extract_regex(x, pattern=pattern), [0])
        case "length":
            return lambda x: pc.binary_length(x) if is_ascii(x) else pc.utf8_length(x)
        case "slice":
            offset, length = options["offset"], options["length"]
            stop = None if length is None or (offset < 0 <= offset + length) else offset + length
            return functools.partial(pc.utf8_slice_codeunits, start=offset, stop=stop)
        case "replace" | "replace_all":
            once = 1 if expr.kind == "str.replace" else None
            value = options["value"]
            search = pc.replace_substring if options["literal"] else pc.replace_substring_regex
            replacement = value if options["literal"] else _replacement(value, expr)
            return functools.partial(search, pattern=options["pattern"], replacement=replacement, max_replacements=once)
    raise InternalError(f"no step for {expr.kind}")


def _lower(x: pa.Array) -> pa.Array:
    """Lower case, character by character. Python does İ and the Σ at a word's end, since it looks at the characters around."""
    return pc.ascii_lower(x) if is_ascii(x) else _with_python(pc.utf8_lower(x), x, "[İΣ]", str.lower)


def _upper(x: pa.Array) -> pa.Array:
    """Upper case, character by character. Python does characters that become several, such as ß."""
    return pc.ascii_upper(x) if is_ascii(x) else _with_python(pc.utf8_upper(x), x, _become_several(), str.upper)


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
    """The pattern with one capturing group, the wanted one, under a name, as pyarrow needs it."""
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
    """The replacement in the syntax of RE2: \\1 for $1 and ${1}."""

    def group(match: re.Match[str]) -> str:
        if match[0] == "\\":
            return r"\\"
        if match[0] == "$$":
            return "$"
        name = match[1] or match[2]
        if name is None:
            return "$"
        if not re.fullmatch("[0-9]", name):
            raise UserError(f"{expr.text()}: ${name} is no group", hint="${0} to ${9}; a dollar sign is $$")
        return f"\\{name}"

    return re.sub(r"\\|\$\$|\$(\w+)|\$\{(\w+)\}|\$", group, value)


STEPS: Steps = {f"str.{name}": _string_step for name in _KINDS}
