"""Writes a laid out plan as SVG.

The drawing has its own colours, for light and dark, on a ground of its own, so it can be read wherever it is shown. It
has no ids, scripts or addresses: several drawings can stand in one page. Names and texts are escaped; whatever had to
be shortened stands whole in a `<title>`, which browsers show as a tooltip.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from html import escape
from math import log10
from typing import Literal

from sabot.engine.plan.drawing.figures import SHARE_WORDS, SHARES, BoxFigures, LinkFigures, PlanFigures
from sabot.engine.plan.drawing.graph import TaskFrame, frames_of
from sabot.engine.plan.drawing.layout import (
    FIGURES_WIDTH,
    FRAME_HEAD,
    FRAME_PAD,
    NAME_LINE,
    NAME_SIZE,
    PAD,
    SMALL_LINE,
    SMALL_SIZE,
    TEXT_LINE,
    TEXT_SIZE,
    PlacedBox,
    PlacedFrame,
    PlacedLink,
    Point,
    lay_out,
)
from sabot.engine.plan.drawing.texts import clean, shortened, width
from sabot.engine.plan.stages import Plan

_MARGIN = 16
_HALF_FROM, _FULL_FROM = 0.4, 0.8  # the parts of a channel from which it is called half full, and full
_CHANNELS = {"half": "half full", "full": "full"}
_WIDEST_LINE = 8.0
_COLOURS = {  # by the selector: the property, in light, in dark
    ".paper": ("fill", "#ffffff", "#0d1117"),
    "text": ("fill", "#1f2328", "#e6edf3"),
    ".muted": ("fill", "#59636e", "#9da7b3"),
    ".box": ("fill", "#f6f8fa", "#161b22"),
    ".step .box, .gate .box": ("stroke", "#818b98", "#7d8590"),
    ".source .box": ("stroke", "#0969da", "#4493f8"),
    ".sink .box": ("stroke", "#1a7f37", "#3fb950"),
    ".agent .box": ("stroke", "#8250df", "#ab7df8"),
    ".dead .box": ("stroke", "#cf222e", "#f85149"),
    ".source .kind": ("fill", "#0969da", "#4493f8"),
    ".sink .kind": ("fill", "#1a7f37", "#3fb950"),
    ".agent .kind": ("fill", "#8250df", "#ab7df8"),
    ".dead .kind": ("fill", "#cf222e", "#f85149"),
    ".frame": ("stroke", "#d1d9e0", "#3d444d"),
    ".line": ("stroke", "#818b98", "#7d8590"),
    ".tip": ("fill", "#818b98", "#7d8590"),
}
_FIGURE_COLOURS = {
    ".half .line": ("stroke", "#bf8700", "#d29922"),
    ".half .tip": ("fill", "#bf8700", "#d29922"),
    ".full .line": ("stroke", "#cf222e", "#f85149"),
    ".full .tip": ("fill", "#cf222e", "#f85149"),
    ".busy": ("fill", "#1a7f37", "#3fb950"),
    ".contended": ("fill", "#bf8700", "#d29922"),
    ".backpressured": ("fill", "#cf222e", "#f85149"),
    ".waiting": ("fill", "#8250df", "#ab7df8"),
    ".aligning": ("fill", "#0969da", "#4493f8"),
    ".idle": ("fill", "#d1d9e0", "#3d444d"),
    ".own": ("fill", "#59636e", "#9da7b3"),
}
_OWN = "own"
_OWN_WORDS = "the part of the task's time in which it is in this step"


def svg(plan: Plan, figures: PlanFigures | None = None, *, title: str = "", styled: bool = True) -> str:
    """Returns the plan as an SVG element. `figures`: those of a running app; None draws the plan alone. `title`: the name
    of the app, for screen readers. `styled`: False leaves out the colours, for a page that has `style_rules` in its style sheet.
    """
    return render(frames_of(plan), figures, title=title, styled=styled)


def render(
    tasks: Sequence[TaskFrame],
    figures: PlanFigures | None = None,
    *,
    title: str = "",
    styled: bool = True,
    address: Callable[[str, str], str] | None = None,
) -> str:
    """Draws tasks (`frames_of` of a plan) as an SVG element. `figures`, `title`: as for `svg`. `address`: returns the address to which a
    link, a source or a step leads, by the origin and branch in its `LinkKey`, or "" for none. Boxes and links are then no stops of the
    tab key, because they are many.
    """
    layout = lay_out(tasks, figures)
    shown = figures or PlanFigures()
    parts: list[str] = []
    for frame in layout.frames:
        parts += _frame(frame, shown)
    for link in layout.all_links():
        key = link.link.key
        parts += _leading(_link(link, shown.links.get(key)), address and address(key.origin, key.branch))
    for frame in layout.frames:
        for box in frame.boxes:
            to = address and box.box.kind in ("source", "step") and address(box.box.id, "")
            parts += _leading(_box(box, _figures_of(box, frame, shown)), to)
    legend, below = ([], 0.0) if figures is None else _legend(shown, layout.width, layout.height)
    wide, high = _number(max(layout.width, 80) + 2 * _MARGIN), _number(layout.height + below + 2 * _MARGIN)
    name = f"Plan of app {clean(title)}" if title else "Plan"
    size = ' style="max-width:100%;height:auto"' if styled else ""
    role = "group" if address else "img"  # links in an image would not be reached
    style = [_STYLE if figures is None else _FIGURE_STYLE] if styled else []
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" class="sabot-plan" role="{role}" width="{wide}" height="{high}" '
            f'viewBox="{-_MARGIN} {-_MARGIN} {wide} {high}"{size}>',
            f"<title>{_text(name)}</title>",
            *style,
            f'<rect class="paper" x="{-_MARGIN}" y="{-_MARGIN}" width="{wide}" height="{high}" rx="6"/>',
            *parts,
            *legend,
            "</svg>\n",
        ]
    )


def _leading(parts: Iterator[str], address: str | Literal[False] | None) -> Iterator[str]:
    """Yields the parts, within a link if there is an address."""
    if not address:
        yield from parts
        return
    yield f'<a href="{escape(address)}" tabindex="-1">'
    yield from parts
    yield "</a>"


def _style(colours: Mapping[str, tuple[str, str, str]]) -> str:
    def rules(which: int) -> str:
        return "\n".join(
            f"{', '.join(f'.sabot-plan {each.strip()}' for each in selector.split(','))} {{ {rule[0]}: {rule[which]} }}"
            for selector, rule in colours.items()
        )

    fonts = 'system-ui, -apple-system, "Segoe UI", "Helvetica Neue", Arial, sans-serif'
    fixed = (
        f".sabot-plan text {{ font: {TEXT_SIZE}px {fonts} }}",
        f".sabot-plan .name {{ font-size: {NAME_SIZE}px; font-weight: 600 }}",
        f".sabot-plan .small {{ font-size: {SMALL_SIZE}px; font-weight: 400 }}",
        ".sabot-plan .box, .sabot-plan .frame { stroke-width: 1.2 }",
        ".sabot-plan .frame, .sabot-plan .line { fill: none }",
        ".sabot-plan .dead .box, .sabot-plan .aside .line { stroke-dasharray: 4 3 }",
    )
    return "\n".join([*fixed, rules(1), "@media (prefers-color-scheme: dark) {", rules(2), "}"])


def style_rules() -> str:
    """Returns the rules of all drawings, with those of figures, for the style sheet of a page."""
    return _style(_COLOURS | _FIGURE_COLOURS)


_STYLE = f"<style>\n{_style(_COLOURS)}\n</style>"
_FIGURE_STYLE = f"<style>\n{style_rules()}\n</style>"


def _frame(placed: PlacedFrame, figures: PlanFigures) -> Iterator[str]:
    if not placed.visible:
        return
    task = placed.task
    own = figures.tasks.get(task.id)
    count = figures.subtasks(task)
    subtasks = f" with {count} subtasks" if count > 1 else ""
    words = [f"task {task.id}{subtasks}: its steps run in one thread", task.note, *_all_words(own)]
    yield f'<g class="task" data-task="{_text(task.id)}">{_title(words)}'
    yield f'<rect class="frame" {_place(placed.x, placed.y, placed.width, placed.height)} rx="8"/>'
    x, y = placed.x + FRAME_PAD, placed.y
    yield f'<text class="small muted" {_at(x, y + 15)}>{_text(placed.title)}</text>'
    if own is not None:
        yield from _figures(own, x, y + FRAME_HEAD, FIGURES_WIDTH)
    yield "</g>"


def _box(placed: PlacedBox, figures: BoxFigures | None) -> Iterator[str]:
    box, x, y = placed.box, placed.x, placed.y
    kind = "dead" if box.kind == "dead letters" else box.kind
    of = "step" if box.kind == "step" else "task"
    whole = [f"{box.kind} {box.name}" if box.kind != "step" else box.name, box.text, *_all_words(figures)]
    yield f'<g class="{kind}" data-{of}="{_text(box.id)}">{_title(whole)}'
    round = {"step": 4, "agent": 4, "gate": 10}.get(box.kind, 12)
    yield f'<rect class="box" {_place(x, y, placed.width, placed.height)} rx="{round}"/>'
    left, line = x + PAD, y + PAD - 2
    if box.kind == "gate":
        yield f'<text class="small" {_at(left, y + 17)}>{_text(placed.name)}</text></g>'
        return
    if box.kind == "agent":
        yield f'<path class="line" d="M{_point((x + 4, y + 1))} V{_number(y + placed.height - 1)}"/>'
    if box.kind != "step":
        line += SMALL_LINE
        yield f'<text class="small kind" {_at(left, line - 3)}>{box.kind}</text>'
    line += NAME_LINE
    subtasks = f'<tspan class="small muted">{placed.subtasks}</tspan>' if placed.subtasks else ""
    yield f'<text class="name" {_at(left, line - 4)}>{_text(placed.name)}{subtasks}</text>'
    for text in placed.lines:
        line += TEXT_LINE
        yield f'<text class="muted" {_at(left, line - 4)}>{_text(text)}</text>'
    if figures is not None:
        yield from _figures(figures, left, line + 4, placed.width - 2 * PAD)
    yield "</g>"


def _figures_of(placed: PlacedBox, frame: PlacedFrame, figures: PlanFigures) -> BoxFigures | None:
    """Returns the figures that a box shows: those of its step, and those of its task if it is the only box of it."""
    step = figures.steps.get(placed.box.id) if placed.box.kind == "step" else None
    task = None if frame.visible else figures.tasks.get(frame.task.id)
    if step is None or task is None:
        return step or task
    lags = [lag for lag in (step.watermark_lag_s, task.watermark_lag_s) if lag is not None]
    # without its own time: the box has the bar of its task
    return BoxFigures(
        shares=task.shares or step.shares,
        watermark_lag_s=max(lags, default=None),
        late=max(step.late, task.late),
        dead_letters=max(step.dead_letters, task.dead_letters),
        restarts=max(step.restarts, task.restarts),
    )


def _figures(figures: BoxFigures, x: float, y: float, wide: float) -> Iterator[str]:
    """Yields the shares of time, or the own time of a step, as a bar, and a line of text."""
    at = x
    shares = figures.shares if figures.own_time is None else {_OWN: figures.own_time}
    for name in (*SHARES, _OWN):
        share = min(max(shares.get(name, 0.0), 0.0), (x + wide - at) / wide)
        if share > 0:
            yield f'<rect class="{name}" {_place(at, y, share * wide, 4)}/>'
            at += share * wide
    words = " · ".join(_few_words(figures))
    if words:
        yield f'<text class="small" {_at(x, y + 15)}>{_text(shortened(words, wide, SMALL_SIZE))}</text>'


def _few_words(figures: BoxFigures) -> Iterator[str]:
    """Yields texts of the counts that are not 0 and of the largest share of time, the most important first."""
    if figures.dead_letters:
        yield f"{_count(figures.dead_letters)} dead"
    if figures.late:
        yield f"{_count(figures.late)} late"
    if figures.restarts:
        yield f"{_count(figures.restarts)} restarts"
    if figures.shares:
        name = max(SHARES, key=lambda each: figures.shares.get(each, 0.0))
        yield f"{name} {figures.shares.get(name, 0.0):.0%}"
    if figures.own_time is not None:
        yield f"own time {figures.own_time:.0%}"
    if figures.watermark_lag_s is not None:
        yield f"lag {_span(figures.watermark_lag_s)}"


def _all_words(figures: BoxFigures | None) -> list[str]:
    if figures is None:
        return []
    shares = ", ".join(f"{name} {figures.shares[name]:.0%}" for name in SHARES if name in figures.shares)
    lag = figures.watermark_lag_s
    counts = {"late rows": figures.late, "dead letters": figures.dead_letters, "restarts": figures.restarts}
    return [
        *([shares] if shares else []),
        *([] if figures.own_time is None else [f"own time {figures.own_time:.0%}: {_OWN_WORDS}"]),
        *([] if lag is None else [f"event time is {_span(lag)} behind the clock"]),
        *(f"{count:,} {name}" for name, count in counts.items() if count),
    ]


def _link(placed: PlacedLink, figures: LinkFigures | None) -> Iterator[str]:
    link = placed.link
    rate, fill = (None, None) if figures is None else (figures.rate, figures.fill)
    thick = 1.4 if rate is None else min(_WIDEST_LINE, 1.2 + log10(1 + max(rate, 0.0)))
    classes = " ".join(filter(None, ["link", "aside" if link.aside else "", _fill_class(fill)]))
    words = [f"{link.key.origin} → {link.key.target}", link.label, "second input" if link.right else ""]
    words += [] if rate is None else [f"{rate:,.1f} rows/s"]
    words += [] if fill is None else [f"its channel is {fill:.0%} full"]
    key = link.key
    data = f'data-origin="{_text(key.origin)}" data-target="{_text(key.target)}" data-branch="{_text(key.branch)}"'
    yield f'<g class="{classes}" {data}>{_title(words)}'
    x, y = placed.points[-1]
    tip = 3.2 + thick * 0.6
    d = _curve([*placed.points[:-1], (x, y - tip)])
    yield f'<path class="line" stroke-width="{_number(thick)}" d="{d}"/>'
    yield f'<path class="tip" d="M{_point((x - tip, y - 2 * tip))} H{_number(x + tip)} L{_point((x, y))} z"/>'
    shown = " · ".join(filter(None, [placed.words, "" if rate is None else f"{_count(rate)}/s"]))
    if placed.label is not None and shown:
        yield f'<text class="small muted" {_at(*placed.label)}>{_text(shown)}</text>'
    yield "</g>"


def _curve(points: Iterable[Point]) -> str:
    parts: list[str] = []
    before: Point | None = None
    for x, y in points:
        if before is None:
            parts.append(f"M{_point((x, y))}")
        elif abs(x - before[0]) < 0.05:
            parts.append(f"V{_number(y)}")
        else:
            middle = (before[1] + y) / 2
            parts.append(f"C{_point((before[0], middle))} {_point((x, middle))} {_point((x, y))}")
        before = x, y
    return " ".join(parts)


def _legend(figures: PlanFigures, wide: float, top: float) -> tuple[list[str], float]:
    """Returns the legend of the colours that occur, with a tooltip for each state, and its height."""
    of_boxes = [*figures.tasks.values(), *figures.steps.values()]
    shares = [(name, name) for name in SHARES if any(each.shares.get(name) for each in of_boxes)]
    fills = {_fill_class(each.fill) for each in figures.links.values()}
    channels = [(name, f"its channel is {words}") for name, words in _CHANNELS.items() if name in fills]
    parts, x, y = [], 0.0, top + 20
    for name, words in [*shares, *channels]:
        long = width(words, SMALL_SIZE) + 30
        if x and x + long > wide:
            x, y = 0.0, y + SMALL_LINE + 4
        if name in SHARES:
            parts.append(
                f'<g>{_title([f"{name}: {SHARE_WORDS[name]}"])}<rect class="{name}" {_place(x, y - 8, 10, 8)}/>'
            )
        else:
            line = f"M{_point((x, y - 4))} H{_number(x + 10)}"
            parts.append(f'<g><g class="{name}"><path class="line" stroke-width="3" d="{line}"/></g>')
        parts.append(f'<text class="small muted" {_at(x + 14, y)}>{_text(words)}</text></g>')
        x += long
    return (['<g class="legend">', *parts, "</g>"], y + 6 - top) if parts else ([], 0.0)


def _fill_class(fill: float | None) -> str:
    """Returns the name of the colour of a link, or "" for that of a plain one."""
    if fill is None or fill < _HALF_FROM:
        return ""
    return "full" if fill >= _FULL_FROM else "half"


def _count(value: float) -> str:
    """Returns a number in at most five characters: 0.5, 12, 1.2k, 345k, 1.2M."""
    if value < 9.95 and value != int(value):
        return f"{value:.1f}"
    for unit in ("", "k", "M", "G", "T"):
        if value < 999.5 or unit == "T":
            return f"{value:.1f}{unit}" if unit and value < 9.95 else f"{value:.0f}{unit}"
        value /= 1000
    raise AssertionError


def _span(seconds: float) -> str:
    """Returns a duration as text. Rows with times in the future bring a watermark ahead of the clock: that is 0."""
    seconds = max(seconds, 0.0)
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"


def _title(words: Iterable[str]) -> str:
    return f"<title>{_text(clean('; '.join(filter(None, words))))}</title>"


def _text(text: str) -> str:
    return escape(clean(text))


def _number(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _point(point: Point) -> str:
    return f"{_number(point[0])} {_number(point[1])}"


def _at(x: float, y: float) -> str:
    return f'x="{_number(x)}" y="{_number(y)}"'


def _place(x: float, y: float, wide: float, high: float) -> str:
    return f'{_at(x, y)} width="{_number(wide)}" height="{_number(high)}"'
