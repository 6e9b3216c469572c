"""The columns of the connector faker: texts with expressions of Java's faker, such as `#{Name.firstName}`."""

import datetime
import logging
import random
import re
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sabot.base.arrays import column_of
from sabot.connectors.datagen import words
from sabot.connectors.datagen.kinds import time_column
from sabot.connectors.datagen.source import Field, Numbers

_log = logging.getLogger(__name__)

_ARGUMENT = re.compile(r"\s*(?:'((?:[^']|'')*)'|([^\s,']+))\s*,?")
_MS = {"NANOSECONDS": 1e-6, "MICROSECONDS": 1e-3, "MILLISECONDS": 1, "SECONDS": 1000, "MINUTES": 60_000}
_MS |= {"HOURS": 3_600_000, "DAYS": 86_400_000}
_POOL = 256  # different texts of a pattern, at most
_YEAR_MS = 31_556_952_000


def expression_field(type: pa.DataType, text: str, seed: int) -> Field:
    """Returns the column whose values are a text with expressions, cast to the type.

    Raises ValueError, with words for the user, for an expression that cannot be.
    """
    parts = [part if isinstance(part, str) else _directive(*part, seed) for part in _split(text)]
    if len(parts) == 1 and not isinstance(parts[0], str):
        return partial(_cast, type, parts[0])
    return partial(_cast, type, partial(_joined, parts))


def _cast(type: pa.DataType, field: Field, dice: np.random.Generator, rows: Numbers, times: Numbers) -> pa.Array:
    values = field(dice, rows, times)
    if pa.types.is_timestamp(values.type) and pa.types.is_timestamp(type):
        return time_column(values.cast(pa.int64()).to_numpy(zero_copy_only=False), type)
    if pa.types.is_floating(values.type) and pa.types.is_integer(type):
        values = pc.round(values)
    return values.cast(type)


def _joined(parts: Sequence["str | Field"], dice: np.random.Generator, rows: Numbers, times: Numbers) -> pa.Array:
    made = [part if isinstance(part, str) else part(dice, rows, times).cast(pa.string()) for part in parts]
    if all(isinstance(each, str) for each in made):
        return pa.repeat("".join(map(str, made)), len(rows))
    return pc.binary_join_element_wise(*made, "")


def _split(text: str) -> Iterator[str | tuple[str, list[str]]]:
    """Yields the parts of a text: texts, and (name, arguments) of expressions."""
    at = 0
    while at < len(text):
        begin = text.find("#{", at)
        if begin < 0:
            yield text[at:]
            return
        if begin > at:
            yield text[at:begin]
        end, quoted = begin + 2, False
        while end < len(text) and (quoted or text[end] != "}"):
            quoted ^= text[end] == "'"
            end += 1
        if end == len(text):
            raise ValueError(f"{text[begin:]!r} has no closing brace")
        name, _, rest = text[begin + 2 : end].strip().partition(" ")
        yield name, [plain or quotes.replace("''", "'") for quotes, plain in _ARGUMENT.findall(rest)]
        at = end + 1


def _directive(name: str, given: list[str], seed: int) -> Field:
    """Returns the values of one expression."""
    plain = name.lower().replace("_", "")
    make = _WITH_ARGUMENTS.get(plain)
    if make is not None:
        try:
            return make(*given)
        except TypeError:
            raise ValueError(f"#{{{name} …}} does not take {len(given)} arguments") from None
        except KeyError as error:
            raise ValueError(
                f"#{{{name} …}}: there is no unit {error.args[0]!r}; it is one of {', '.join(_MS)}"
            ) from None
    if plain == "regexify":
        dice = random.Random(f"{seed} {given}")
        pattern = _Pattern(given[0] if given else "", dice)
        return _one_of([pattern.text() for _ in range(_POOL)])
    return _one_of(words.POOLS.get(plain) or _numbered(name))


@cache
def _numbered(name: str) -> tuple[str, ...]:
    """Returns words for what has none here, so that a script with it can be tried. Warns once."""
    _log.warning("there are no words of #{%s}: its values are %s 1 to %s 50", name, name, name)
    return tuple(f"{name} {number}" for number in range(1, 51))


def _one_of(pool: Sequence[str]) -> Field:
    values = column_of(list(pool), pa.string())
    return lambda dice, rows, times: values.take(pa.array(dice.integers(0, len(values), len(rows))))


def _between(low: str, high: str) -> Field:
    """Returns whole numbers from `low` to below `high`, as Java's faker does."""
    least, most = int(low), int(high)
    if most < least:
        raise ValueError(f"numberBetween: {low} is more than {high}")
    return lambda dice, rows, times: pa.array(dice.integers(least, max(most, least + 1), len(rows)))


def _double(digits: str, low: str, high: str) -> Field:
    least, most, places = float(low), float(high), int(digits)
    return lambda dice, rows, times: pa.array(np.round(dice.uniform(least, most, len(rows)), places))


def _digits(number: str = "9", *_: str) -> Field:
    return _shaped("#" * int(number))


def _shaped(shape: str, letters: bool = True, digits: bool = True) -> Field:
    """Returns texts with a digit for each `#` of the shape, and a letter for each `?`."""
    fixed = np.frombuffer(shape.encode(), np.uint8)
    kinds = [(c, base, n) for c, base, n, wanted in (("#", "0", 10, digits), ("?", "a", 26, letters)) if wanted]

    def made(dice: np.random.Generator, rows: Numbers, times: Numbers) -> pa.Array:
        texts = np.tile(fixed, (len(rows), 1))
        for character, base, number in kinds:
            places = np.flatnonzero(fixed == ord(character))
            texts[:, places] = dice.integers(0, number, (len(rows), len(places))) + ord(base)
        offsets = np.arange(len(rows) + 1, dtype=np.int32) * len(fixed)
        buffers = [None, pa.py_buffer(offsets.tobytes()), pa.py_buffer(texts.astype(np.uint8).tobytes())]
        return pa.Array.from_buffers(pa.string(), len(rows), buffers)

    return made


def _aged(sign: int, *given: str) -> Field:
    """Returns times: `given` is the greatest distance from the row's time, the least one if there are three, and the unit."""
    *numbers, unit = given
    if len(numbers) not in (1, 2):
        raise TypeError
    step = _MS[unit.upper()]
    most, least = int(float(numbers[0]) * step), int(float(numbers[-1]) * step) if len(numbers) == 2 else 0

    def made(dice: np.random.Generator, rows: Numbers, times: Numbers) -> pa.Array:
        ages = dice.integers(min(least, most), max(least, most), len(rows), endpoint=True)
        return pa.array(times + sign * ages, pa.timestamp("ms"))

    return made


def _within(first: str, last: str) -> Field:
    low, high = (
        int(datetime.datetime.fromisoformat(each).replace(tzinfo=datetime.UTC).timestamp() * 1000)
        for each in (first, last)
    )
    return lambda dice, rows, times: pa.array(dice.integers(low, high, len(rows), endpoint=True), pa.timestamp("ms"))


def _birthday(youngest: str = "18", oldest: str = "65") -> Field:
    low, high = (int(float(each) * _YEAR_MS) for each in (youngest, oldest))
    return lambda dice, rows, times: pa.array(
        times - dice.integers(low, high, len(rows), endpoint=True), pa.timestamp("ms")
    )


_WITH_ARGUMENTS: dict[str, Callable[..., Field]] = {
    "number.numberbetween": _between,
    "number.randomdouble": _double,
    "number.randomdigit": partial(_between, "0", "10"),
    "number.randomdigitnotzero": partial(_between, "1", "10"),
    "number.randomnumber": lambda digits="9", *_: _between(f"{10 ** (int(digits) - 1)}", f"{10 ** int(digits)}"),
    "number.digits": _digits,
    "number.digit": partial(_digits, "1"),
    "options.option": lambda *given: _one_of(given),
    "bool.bool": partial(_one_of, ("true", "false")),
    "numerify": partial(_shaped, letters=False),
    "letterify": lambda shape, *_: _shaped(shape, digits=False),
    "bothify": lambda shape, *_: _shaped(shape),
    "date.past": partial(_aged, -1),
    "date.future": partial(_aged, 1),
    "date.between": _within,
    "date.birthday": _birthday,
    "internet.uuid": partial(_shaped, "########-####-4###-8###-############"),
    "internet.ipv4address": lambda: _joined_field(
        _between("1", "256"), ".", _between("0", "256"), ".", _between("0", "256"), ".", _between("1", "255")
    ),
    "finance.creditcard": lambda *_: _shaped("####-####-####-####"),
    "business.creditcardnumber": partial(_shaped, "####-####-####-####"),
    "phonenumber.phonenumber": partial(_shaped, "(###) ###-####"),
    "phonenumber.cellphone": partial(_shaped, "###-###-####"),
    "idnumber.valid": partial(_shaped, "###-##-####"),
    "idnumber.ssnvalid": partial(_shaped, "###-##-####"),
    "code.isbn13": partial(_shaped, "978##########"),
    "code.ean13": partial(_shaped, "#############"),
    "address.zipcode": partial(_shaped, "#####"),
    "address.buildingnumber": partial(_between, "1", "999"),
    "address.latitude": partial(_double, "6", "-90", "90"),
    "address.longitude": partial(_double, "6", "-180", "180"),
    "address.streetaddress": lambda *_: _joined_field(
        _between("1", "999"), " ", _one_of(words.POOLS["address.streetname"])
    ),
    "commerce.price": lambda low="0", high="1000": _double("2", low, high),
    "internet.emailaddress": lambda *_: _joined_field(
        _one_of(words.POOLS["name.username"]), "@", _one_of(words.POOLS["internet.domainname"])
    ),
    "internet.url": lambda *_: _joined_field("www.", _one_of(words.POOLS["internet.domainname"])),
    "lorem.characters": lambda number="255", *_: _shaped("?" * int(number)),
    "lorem.words": lambda number="3": _joined_field(*_spaced(int(number))),
    "lorem.sentence": lambda *_: _joined_field(*_spaced(6), "."),
    "lorem.paragraph": lambda *_: _joined_field(*_spaced(20), "."),
}
_WITH_ARGUMENTS["internet.publicipv4address"] = _WITH_ARGUMENTS["internet.ipv4address"]
_WITH_ARGUMENTS["internet.ipaddress"] = _WITH_ARGUMENTS["internet.ipv4address"]
_WITH_ARGUMENTS["internet.safeemailaddress"] = _WITH_ARGUMENTS["internet.emailaddress"]


def _joined_field(*parts: str | Field) -> Field:
    return partial(_joined, parts)


def _spaced(number: int) -> list[str | Field]:
    word = _one_of(words.POOLS["lorem.word"])
    made: list[str | Field] = [word]
    for _ in range(number - 1):
        made += [" ", word]
    return made


class _Pattern:
    """A pattern of `regexify`, and texts that match it: literals, `(a|b)`, `[a-z0-9]`, `\\d`, `\\w`, `{2}`, `{2,5}`, `?`, `*`, `+`, `.`"""

    def __init__(self, pattern: str, dice: random.Random) -> None:
        self._pattern = pattern
        self._dice = dice
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"#{{regexify '{pattern}'}}: {error.msg}") from None

    def text(self) -> str:
        """Returns a text that matches."""
        made, at = self._alternatives(0)
        if at < len(self._pattern):
            raise ValueError(f"#{{regexify '{self._pattern}'}}: {self._pattern[at]} has no meaning at {at}")
        return made

    def _alternatives(self, at: int) -> tuple[str, int]:
        """Reads a|b|… up to a closing parenthesis; returns a text of one of them, and the place behind."""
        choices, made = [], ""
        while at < len(self._pattern) and self._pattern[at] != ")":
            if self._pattern[at] == "|":
                choices.append(made)
                made, at = "", at + 1
                continue
            begin = at
            one, at = self._one(at)
            least, most, behind = self._repeated(at)
            for _ in range(self._dice.randint(least, most)):
                made += one
                one, _ = self._one(begin)
            at = behind
        return self._dice.choice([*choices, made]), at

    def _one(self, at: int) -> tuple[str, int]:
        character = self._pattern[at]
        if character == "(":
            made, end = self._alternatives(at + (3 if self._pattern.startswith("(?:", at) else 1))
            return made, end + 1
        if character == "[":
            end = self._pattern.index("]", at + 2)
            inside = self._pattern[at + 1 : end].replace("\\d", "0-9").replace("\\w", "a-z0-9")
            known = set(
                re.sub(
                    r"(.)-(.)", lambda m: "".join(map(chr, range(ord(m[1]), ord(m[2]) + 1))), inside.removeprefix("^")
                )
            )
            printed = {chr(each) for each in range(33, 127)}
            return self._dice.choice(sorted(printed - known if inside.startswith("^") else known)), end + 1
        if character == "\\":
            kinds = {"d": "0123456789", "w": "abcdefghijklmnopqrstuvwxyz0123456789_", "s": " "}
            following = self._pattern[at + 1]
            return self._dice.choice(kinds.get(following, following)), at + 2
        if character == ".":
            return self._dice.choice("abcdefghijklmnopqrstuvwxyz"), at + 1
        return ("" if character in "^$" else character), at + 1

    def _repeated(self, at: int) -> tuple[int, int, int]:
        match = re.compile(r"\{(\d+)(,(\d*))?\}|[?*+]").match(self._pattern, at)
        if match is None:
            return 1, 1, at
        if match[1] is None:
            return {"?": (0, 1), "*": (0, 5), "+": (1, 5)}[match[0]] + (match.end(),)
        least = int(match[1])
        most = least if match[2] is None else int(match[3] or least + 5)
        return least, most, match.end()
