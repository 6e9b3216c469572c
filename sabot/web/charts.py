"""Curves as SVG, drawn on the server."""

from collections.abc import Callable, Mapping, Sequence

from markupsafe import Markup

from sabot.engine.plan.drawing import SHARES

_WIDTH, _HEIGHT, _TOP = 300, 60, 4
_LEAST = 60  # of a run that has just begun the curve is short
_POINTS = 300  # at most; of longer curves the greatest of neighbours is drawn, so that no peak is lost


def curve(values: Sequence[float | None], title: str, text: Callable[[float | None], str], span: str) -> Markup:
    """Returns a figure with a title, the last value, the curve, and its greatest value. `text`: writes a value. `span`: the time
    from the first value to now.
    """
    shown = _thinned(values)
    known = [each for each in shown if each is not None]
    top = max(known, default=0.0)
    lines: list[list[str]] = [[]]
    for at, value in enumerate(shown):
        if value is None:
            lines.append([])
            continue
        x = _WIDTH * (1 - (len(shown) - 1 - at) / max(len(shown) - 1, _LEAST))
        y = _HEIGHT - (_HEIGHT - _TOP) * (value / top if top > 0 else 0.0)
        lines[-1].append(f"{x:.1f} {y:.1f}")
    d = " ".join(f"M{' L'.join(line)}" for line in lines if line)
    last = values[-1] if values else None
    label = f"{title}: {text(last)} now, at most {text(top)} in {span}" if known else f"{title}: not known"
    return Markup(
        '<figure class="curve"><figcaption>{}<strong>{}</strong></figcaption>'
        '<svg viewBox="0 0 {} {}" preserveAspectRatio="none" role="img" aria-label="{}"><path d="{}"/></svg>'
        '<p class="muted">most {} · last {}</p></figure>'
    ).format(title, text(last), _WIDTH, _HEIGHT + 1, label, d, text(top if known else None), span)


def bar(shares: Mapping[str, float]) -> Markup:
    """Returns parts of a whole as a bar, in the colours of the drawing of the plan, with their names as its tooltip."""
    words = ", ".join(f"{name} {part:.0%}" for name, part in shares.items() if part >= 0.005)
    parts, x = [], 0.0
    for name in SHARES:
        wide = min(max(shares.get(name, 0.0), 0.0) * 100, 100 - x)
        if wide > 0:
            parts.append(f'<rect class="{name}" x="{x:.1f}" y="0" width="{wide:.1f}" height="8"/>')
            x += wide
    return Markup(
        '<svg class="sabot-plan bar" viewBox="0 0 100 8" preserveAspectRatio="none" role="img" aria-label="{}"><title>{}</title>{}</svg>'
    ).format(words, words, Markup("").join(map(Markup, parts)))


def _thinned(values: Sequence[float | None]) -> list[float | None]:
    each = -(-len(values) // _POINTS)
    if each <= 1:
        return list(values)
    groups = [list(values)[at : at + each] for at in range(len(values) % each, len(values), each)]
    return [max((value for value in group if value is not None), default=None) for group in groups]
