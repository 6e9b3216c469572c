"""Values as text for people: the filters of the templates."""

from datetime import UTC, datetime

from markupsafe import Markup

NOTHING = "–"


def number(value: float | None) -> str:
    """Returns a count or a rate with separators: 12,345; 0.25; "–" for None."""
    if value is None:
        return NOTHING
    return f"{value:,.0f}" if value == int(value) or abs(value) >= 10 else f"{value:.2g}"


def share(value: float | None) -> str:
    """Returns a part of a whole as a percentage; "–" for None."""
    return NOTHING if value is None else f"{value:.0%}"


def nbytes(value: float | None) -> str:
    """Returns a number of bytes in a readable unit; "–" for None."""
    if value is None:
        return NOTHING
    power = 0
    while value >= 1000 and power < 4:
        value, power = value / 1000, power + 1
    return f"{value:.1f} {'kMGT'[power - 1]}B" if power else f"{value:.0f} B"


def duration(seconds: float | None) -> str:
    """Returns seconds as text of two units at most: 0.2 s, 48 s, 4 min 3 s, 2 h 5 min, 3 d; "–" for None."""
    if seconds is None:
        return NOTHING
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    return f"{hours // 24:,} d"


def moment(at: float | None) -> Markup:
    """Returns a time, in seconds since 1970, as an element that the page's script shows in the reader's zone; without the script
    it is in UTC.
    """
    if at is None:
        return Markup(NOTHING)
    try:
        time = datetime.fromtimestamp(at, UTC).replace(tzinfo=None)
    except (OverflowError, ValueError, OSError):
        return Markup("{} s").format(at)
    return Markup('<time datetime="{}Z">{} UTC</time>').format(
        time.isoformat("T", "milliseconds"), time.isoformat(" ", "seconds")
    )
