"""Quantities as text for people: counts, bytes and durations."""


def count_words(value: float) -> str:
    """Returns a count or a rate with separators: 12,345; 0.25."""
    return f"{value:,.0f}" if value == int(value) or abs(value) >= 10 else f"{value:.2g}"


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
