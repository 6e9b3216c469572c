"""LIKE, and the functions of texts."""

import re
from operator import add

import pyarrow as pa

from sabot.api.expr import Expr, concat_str, lit, when
from sabot.sql.functions.arguments import CallArguments, Make, balanced
from sabot.sql.functions.conversions import is_number
from sabot.sql.syntax.text import Span, SqlFault
from sabot.sql.types import sql_type


def like(operand: Expr, pattern: str, escape: str, span: Span) -> Expr:
    """Returns operand LIKE pattern."""
    if len(escape) > 1:
        raise SqlFault(span, "ESCAPE has one character")
    parts: list[str | None] = []  # a text, or None for %
    single = False
    i = 0
    while i < len(pattern):
        character = pattern[i]
        if character == escape:
            i += 1
            if i == len(pattern):
                raise SqlFault(span, "the pattern ends with its escape character")
            parts.append(re.escape(pattern[i]))
        elif character == "%":
            parts.append(None)
        elif character == "_":
            single = True
            parts.append(".")
        else:
            parts.append(re.escape(character))
        i += 1
    plain = re.sub(r"%", "", pattern)
    if not single and not escape:
        if "%" not in pattern:
            return operand == lit(pattern)
        if pattern == f"%{plain}%":
            return operand.str.contains(plain, literal=True)
        if pattern == f"{plain}%":
            return operand.str.startswith(plain)
        if pattern == f"%{plain}":
            return operand.str.endswith(plain)
    return operand.str.contains("(?s)^" + "".join(".*" if each is None else each for each in parts) + "$")


def similar(operand: Expr, pattern: str, escape: str, span: Span) -> Expr:
    """Returns operand SIMILAR TO pattern: a pattern of LIKE with `|`, `*`, `+`, `?`, `{2,3}`, parentheses and `[a-z]`."""
    if len(escape) > 1:
        raise SqlFault(span, "ESCAPE has one character")
    made: list[str] = []
    within = False  # [ ]
    characters = iter(pattern)
    for character in characters:
        if character == escape:
            following = next(characters, None)
            if following is None:
                raise SqlFault(span, "the pattern ends with its escape character")
            made.append(re.escape(following))
        elif within:
            within = character != "]"
            made.append("\\\\" if character == "\\" else character)
        elif character in "%_":
            made.append(".*" if character == "%" else ".")
        elif character in "|*+?{}()[":
            within = character == "["
            made.append(character)
        else:
            made.append(re.escape(character))
    text = "(?s)^(?:" + "".join(made) + ")$"
    try:
        re.compile(text)
    except re.error as error:
        raise SqlFault(span, f"the pattern of SIMILAR TO is not valid: {error.msg}", "'(a|b)%', '[a-z]+'") from None
    return operand.str.contains(text)


def trim(arguments: CallArguments) -> Expr:
    if len(arguments) == 1:
        return arguments.expr(0).str.strip(" ")
    side = arguments.word(0)
    characters = arguments.constant(1, "string", "the characters") if len(arguments) == 3 else " "
    text = arguments.expr(len(arguments) - 1).str
    return {"BOTH": text.strip, "LEADING": text.strip_start, "TRAILING": text.strip_end}[side](characters)


def substring(arguments: CallArguments) -> Expr:
    """Returns a part of a text from a position: 1, or 0 as in Flink, at its start, and -1 at its last character."""
    text, start = arguments.expr(0), arguments.whole(1, "the position")
    length = arguments.whole(2, "the length") if len(arguments) > 2 else None
    if length is not None and length < 0:
        raise SqlFault(arguments.items[2].tree.span, "a part of a text is not shorter than 0", "a length of 0 or more")
    made = text.str.slice(max(start - 1, 0) if start >= 0 else start, length)
    return made if start >= 0 else when(text.str.length() < -start).then(lit("")).otherwise(made)


def concat(arguments: CallArguments) -> Expr:
    return balanced([arguments.text(i) for i in range(len(arguments))], add)


def split_index(arguments: CallArguments) -> Expr:
    index = int(arguments.constant(2, "integer", "the index"))
    return arguments.expr(0).str.split(arguments.constant(1, "string", "the separator")).list.get(index)


def regexp_extract(arguments: CallArguments) -> Expr:
    pattern = arguments.constant(1, "string", "the pattern")
    group = int(arguments.constant(2, "integer", "the group")) if len(arguments) > 2 else 0
    if group == 0:
        pattern, group = f"({pattern})", 1
    return arguments.expr(0).str.regexp_extract(pattern, group)


def regexp_extract_all(arguments: CallArguments) -> Expr:
    """Returns a group of all matches as an array: the first group, if none is named."""
    pattern = arguments.constant(1, "string", "the pattern")
    group = int(arguments.constant(2, "integer", "the group")) if len(arguments) > 2 else 1
    return Expr("str.extract_all", (arguments.expr(0),), (("pattern", pattern), ("group", group)))


def regexp_count(arguments: CallArguments) -> Expr:
    return arguments.expr(0).str.count_matches(arguments.constant(1, "string", "the pattern"))


def regexp_instr(arguments: CallArguments) -> Expr:
    """Returns the place of the first match, from 1; 0 if there is none."""
    text, pattern = arguments.expr(0), arguments.constant(1, "string", "the pattern")
    before = text.str.regexp_extract(rf"(?s:\A(.*?))(?:{pattern})", 1)
    nowhere = when(text.is_not_null()).then(lit(0, "int32")).otherwise(lit(None))
    return when(before.is_not_null()).then(before.str.length() + lit(1, "int32")).otherwise(nowhere)


def regexp_replace(arguments: CallArguments) -> Expr:
    pattern = arguments.constant(1, "string", "the pattern")
    value = re.sub(r"\$(\d)", r"${\1}", arguments.constant(2, "string", "the replacement"))
    return arguments.expr(0).str.replace_all(pattern, value)


def replaced(arguments: CallArguments) -> Expr:
    old, new = (arguments.constant(i, "string", "the text") for i in (1, 2))
    return arguments.expr(0).str.replace_all(old, new, literal=True)


def pad(method: str, arguments: CallArguments) -> Expr:
    """Returns LPAD or RPAD, by `method`: the text cut or filled to a length; NULL if there is nothing to fill it with."""
    length = arguments.whole(1, "the length")
    fill = arguments.constant(2, "string", "the characters")
    # NULL, from a condition that is never true: each argument is checked, and part of the plan
    if length < 0 or not fill:
        return when(arguments.expr(0).str.length() < -abs(length) - 1).then(lit(fill)).otherwise(lit(None))
    text = arguments.expr(0).str.slice(0, length)
    return Expr(f"str.{method}", (text,), (("length", length), ("fill_char", fill)))


def ends(method: str, arguments: CallArguments) -> Expr:
    return getattr(arguments.expr(0).str, method)(arguments.constant(1, "string", "the text"))  # type: ignore[no-any-return]


def left(arguments: CallArguments) -> Expr:
    return arguments.expr(0).str.slice(0, _count(arguments))


def right(arguments: CallArguments) -> Expr:
    count = _count(arguments)
    return arguments.expr(0).str.slice(-count) if count else arguments.expr(0).str.slice(0, 0)


def _count(arguments: CallArguments) -> int:
    return int(arguments.constant(1, "integer", "the number of characters"))


def place(text: int, wanted: int, arguments: CallArguments) -> Expr:
    """Returns the place of a text in another one, from 1; 0 if it is nowhere. `text`, `wanted`: their arguments. A third
    argument is the place at which the search begins.
    """
    part = arguments.constant(wanted, "string", "the text to find")
    whole = arguments.expr(text)
    if len(arguments) > 2:
        start = arguments.whole(2, "the place at which the search begins")
        first = whole.str.slice(max(start, 1) - 1)
        found = _place(first, part)
        there = (found > 0) & (first.str.length() > 0) if start > 0 else lit(False)
        return (
            when(there).then(found + lit(max(start, 1) - 1)).when(whole.is_not_null()).then(lit(0)).otherwise(lit(None))
        )
    return _place(whole, part)


def _place(whole: Expr, part: str) -> Expr:
    if not part:  # before the first character, as everywhere
        return when(whole.is_not_null()).then(lit(1, "int32")).otherwise(lit(None))
    before = whole.str.split(part).list.get(0).str.length()
    return (
        when(whole.str.contains(part, literal=True))
        .then(before + lit(1))
        .when(whole.is_not_null())
        .then(lit(0))
        .otherwise(lit(None))
    )


def concat_ws(arguments: CallArguments) -> Expr:
    """Joins the texts that are not NULL."""
    by = arguments.constant(0, "string", "the separator")
    texts = [arguments.text(i) for i in range(1, len(arguments))]
    return concat_str(*texts, separator=by, ignore_nulls=True)


def with_columns(function: str, kinds: str, make: Make, arguments: CallArguments) -> Expr:
    """Returns `make` of a call whose arguments behind the text are constants, for which there are kernels, and else the function
    that the engine calls with the values of each row. `kinds`: of its arguments, "t" for a text, "n" for a whole number.
    """
    whole = 1 if function == "locate" else 0  # POSITION(part IN text)
    if all(arguments.expr(i).kind == "lit" for i in range(len(arguments)) if i != whole):
        return make(arguments)
    given = [
        arguments.plain_text(i) if kind == "t" else arguments.whole_number(i)
        for i, kind in zip(range(len(arguments)), kinds, strict=False)
    ]
    if len(given) < len(kinds):
        given.append(lit(1 if function == "locate" else _ANY_LENGTH))
    return _called(function, *given)


_ANY_LENGTH = 2**31 - 1


def in_text(arguments: CallArguments) -> Expr:
    """Returns INSTR(text, part)."""
    if arguments.expr(1).kind == "lit":
        return place(0, 1, arguments)
    return _called("locate", arguments.plain_text(1), arguments.plain_text(0), lit(1))


def of_values(function: str, arguments: CallArguments) -> Expr:
    """Returns a function of the engine that is called with the values of each row."""
    return _called(function, *arguments.exprs)


def _called(function: str, *inputs: Expr) -> Expr:
    return Expr(f"value.{function}", inputs)


_SPECIFIER = re.compile(r"%([-0+ ,]*)(\d*)(?:\.(\d+))?([a-zA-Z%])")


def printf(arguments: CallArguments) -> Expr:
    """Returns the texts of a format of Java's: `%d` of whole numbers, `%f` of others, `%s` of all values; `%%`, `%n`."""
    format, span = arguments.constant(0, "string", "the format"), arguments.items[0].tree.span
    hint = "%d, %05d, %.2f, %-10s, %%"
    made, place, used = lit(""), 0, 1
    for match in _SPECIFIER.finditer(format):
        made, place = made + lit(format[place : match.start()]), match.end()
        flags, width, digits, kind = match.groups()
        if kind in "%n":
            made = made + lit("%" if kind == "%" else "\n")
            continue
        if kind not in "dfs":
            raise SqlFault(span, f"{match[0]} of the format is not supported", hint)
        if used >= len(arguments):
            raise SqlFault(span, f"PRINTF has no value for {match[0]}", "a value for each of the format")
        made = made + _printed(arguments, used, kind, [lit(flags), lit(int(width or 0))], int(digits or 6), match[0])
        used += 1
    if "%" in _SPECIFIER.sub("", format):
        raise SqlFault(span, "a % of the format is no part of it", hint)
    if used < len(arguments):
        raise SqlFault(arguments.items[used].tree.span, "the format has no place for this value", hint)
    return made + lit(format[place:])


def _printed(arguments: CallArguments, i: int, kind: str, shape: list[Expr], digits: int, specifier: str) -> Expr:
    expr, type = arguments.bound(i)
    if kind == "s":
        return _called("print_text", *shape, arguments.text(i).fill_null("null"))
    fits = pa.types.is_integer(type) if kind == "d" else pa.types.is_floating(type) or pa.types.is_decimal(type)
    if not (fits or pa.types.is_null(type)):
        hint = "%d of whole numbers, %f of others, %s of any value"
        raise SqlFault(arguments.items[i].tree.span, f"{specifier} of {sql_type(type)}", hint)
    number = (
        _called("print_whole", *shape, expr)
        if kind == "d"
        else _called("print_float", *shape, lit(digits), expr.cast("float64"))
    )
    return number.fill_null("null")


def hexadecimal(arguments: CallArguments) -> Expr:
    expr, type = arguments.bound(0)
    kind = "hex_of_bytes" if pa.types.is_binary(type) else "hex" if pa.types.is_string(type) else "hex_of_number"
    return _called(kind, expr)


_LETTERS, _DIGITS = r"^\p{L}+$", r"^\p{Nd}+$"
_DECIMAL = r"^[\x00-\x20]*[+-]?(?:NaN|Infinity|(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?[fFdD]?)[\x00-\x20]*$"


def has_only(what: str, arguments: CallArguments) -> Expr:
    """Returns True for a text that has only letters or digits, or is a number. A number is no text of letters."""
    expr, type = arguments.bound(0)
    if is_number(type):
        return when(expr.is_not_null()).then(lit(what != "letters")).otherwise(lit(None))
    return arguments.plain_text(0).str.contains({"letters": _LETTERS, "digits": _DIGITS, "decimal": _DECIMAL}[what])


_SHA2 = {224: "sha224", 256: "sha256", 384: "sha384", 512: "sha512"}


def sha2(arguments: CallArguments) -> Expr:
    bits = arguments.whole(1, "the number of bits")
    if bits not in _SHA2:
        raise SqlFault(arguments.items[1].tree.span, f"there is no SHA2 of {bits} bits", "224, 256, 384 or 512")
    return _called(_SHA2[bits], arguments.expr(0))


_CHARACTERS = ("US-ASCII", "ISO-8859-1", "UTF-8", "UTF-16BE", "UTF-16LE", "UTF-16")


def in_characters(function: str, arguments: CallArguments) -> Expr:
    """Returns ENCODE or DECODE, by `function`."""
    name = arguments.constant(1, "string", "the set of characters").upper()
    if name not in _CHARACTERS:
        hint = ", ".join(_CHARACTERS)
        raise SqlFault(arguments.items[1].tree.span, f"there is no set of characters '{name}'", hint)
    return _called(function, arguments.expr(0), lit(name))


def overlay(arguments: CallArguments) -> Expr:
    text, part, start, *given = arguments.exprs
    return _called("overlay", text, part, start, *(given or [part.str.length()]))


_URL_PARTS = ("HOST", "PATH", "QUERY", "REF", "PROTOCOL", "AUTHORITY", "FILE", "USERINFO")


def url_part(arguments: CallArguments) -> Expr:
    part = arguments.constant(1, "string", "the part")
    if part not in _URL_PARTS:
        raise SqlFault(arguments.items[1].tree.span, f"a URL has no part '{part}'", ", ".join(_URL_PARTS))
    return _called("url_parameter" if len(arguments) > 2 else "url_part", *arguments.exprs)


def chosen(arguments: CallArguments) -> Expr:
    """Returns the text with this number, from 1; NULL if there is none."""
    number, *texts = [arguments.expr(0), *(arguments.text(i) for i in range(1, len(arguments)))]
    made = when(number == 1).then(texts[0])
    for i, each in enumerate(texts[1:], 2):
        made = made.when(number == i).then(each)
    return made.otherwise(lit(None))


def trimmed(method: str, characters: str | None, arguments: CallArguments) -> Expr:
    """Returns a text without these characters at its ends, or without those that a second argument names."""
    if len(arguments) > 1:
        characters = arguments.constant(1, "string", "the characters")
    return getattr(arguments.expr(0).str, method)(characters)  # type: ignore[no-any-return]
