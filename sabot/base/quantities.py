"""Quantities as text for people: counts, bytes, durations and money."""

from decimal import Decimal


def count_words(value: float) -> str:
    """Returns a count or a rate with separators: 12,345; 0.25."""
    return f"{value:,.0f}" if value == int(value) or abs(value) >= 10 else f"{value:.2g}"


def counted_words(value: float, noun: str) -> str:
    """Returns a count with its noun, whose last word is in the plural unless the count is 1: 1 row; 12,345 rows; 2 entries."""
    if value != 1:
        noun = f"{noun[:-1]}ies" if noun.endswith("y") and noun[-2:-1] not in "aeiou" else f"{noun}s"
    return f"{count_words(value)} {noun}"


def bytes_words(value: float) -> str:
    """Returns a number of bytes in a readable unit: 512 B; 12.3 MB."""
    power = 0
    while value >= 1000 and power < 4:
        value, power = value / 1000, power + 1
    return f"{value:.1f} {'kMGT'[power - 1]}B" if power else f"{value:.0f} B"


def duration_words(seconds: float) -> str:
    """Returns seconds as text of two units at most: 0.2 s, 48 s, 4 min 3 s, 2 h 5 min, 3 d."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    return f"{hours // 24:,} d"


def span_words(ms: int) -> str:
    """Returns a length of time as it is, in the greatest unit of which it has a whole number: 10 s, 90 s, 36 h, 1,500 ms, -5 min."""
    for unit, size in (("d", 86_400_000), ("h", 3_600_000), ("min", 60_000), ("s", 1000)):
        if ms and ms % size == 0:
            return f"{ms // size:,} {unit}"
    return f"{ms:,} ms"


def money(dollars: Decimal | float) -> str:
    """Returns US dollars in plain decimal notation: $0.0000001, $12.50, $3, -$3."""
    whole, _, fraction = plain(dollars).removeprefix("-").partition(".")
    fraction = fraction.rstrip("0")
    return f"{'-' if dollars < 0 else ''}${whole}" + (f".{fraction:0<2}" if fraction else "")


def plain(number: Decimal | float) -> str:
    """Returns a number in plain decimal notation, never as 1E-7."""
    return f"{Decimal(str(number)):f}"
