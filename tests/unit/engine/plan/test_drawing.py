"""The drawing of a plan: what is on it, and that nothing overlaps or is cut off.

Digests of drawings are in expected/drawings.txt: `python tests/unit/engine/plan/test_drawing.py` writes them anew, when a drawing is meant
to change. Look at some before that: `sabot plan APP --svg FILE`.
"""

import hashlib
import random
import re
import sys
from collections.abc import Iterator
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[3]))

import sabot
from sabot import App, NdjsonSink, col, tumbling
from sabot.engine.plan import make_plan
from sabot.engine.plan.drawing import BoxFigures, LinkFigures, LinkKey, PlanFigures, frames_of
from sabot.engine.plan.drawing.graph import Box, BoxLink, Kind, TaskFrame
from sabot.engine.plan.drawing.layout import (
    FRAME_HEAD,
    NAME_SIZE,
    PAD,
    SMALL_SIZE,
    TEXT_SIZE,
    DrawingLayout,
    PlacedBox,
    PlacedLink,
    lay_out,
)
from sabot.engine.plan.drawing.render import render, svg
from sabot.engine.plan.drawing.texts import clean, shortened, width, wrapped
from sabot.engine.plan.optimise import walk, with_schemas
from sabot.engine.plan.stages import Plan
from tools.counted import calls_of
from tools.drawing import commit

EXPECTED = Path(__file__).with_name("expected") / "drawings.txt"
SVG = "{http://www.w3.org/2000/svg}"
Rect = tuple[float, float, float, float]  # left, top, right, bottom


def planned(app: App, parallelism: int = 1) -> Plan:
    writes = app.spec.ends
    reads = {id(node): getattr(node, "schema", None) for node in walk(writes) if not node.inputs}
    return make_plan(with_schemas(writes, reads), agents=app.spec.agent_specs, parallelism=parallelism)


def shop(parallelism: int = 2) -> Plan:
    """A plan with a source and a table, a split, a window with late rows, a lookup, a union and two agents."""
    app = App("shop")
    schema = {"id": "int64", "account": "string", "amount": "float64", "ts": "int64"}
    orders = app.stream("orders", schema=schema, time="ts")
    accounts = app.table("accounts", key="account", schema={"account": "string", "name": "string"})
    large, small = orders.filter(col("amount") > 10).split(col("amount") > 100)
    minutes = large.key_by("account").window(tumbling("1m"), late="late").aggregate(n=sabot.count())
    minutes.lookup(accounts, on="account").to("minutes")
    small.union(large).select("id").to("alerts")

    @app.agent("requests", sink="alerts", key="account", batch=True, schema=schema)
    def alert(batch: Any, ctx: Any) -> Any: ...

    @app.agent(sink=alert, durable=True, job_id="id")
    async def check(ctx: Any) -> Any: ...

    small.to(check)
    return planned(app, parallelism)


# -- what is on it ----------------------------------------------------------------------------------------------------------


def test_the_drawing_has_the_sources_steps_sinks_and_agents_with_their_links() -> None:
    frames = frames_of(shop())
    boxes = {box.id: (box.kind, box.name) for frame in frames for box in frame.boxes()}
    assert boxes["read-1"] == ("source", "orders")
    assert boxes["read-2"] == ("source", "accounts")
    assert boxes["tumbling-1"] == ("step", "tumbling-1")
    assert boxes["lookup-1"] == ("step", "lookup-1")
    assert boxes["shop.check"] == ("agent", "shop.check")
    assert boxes["shop.alert/requests"] == ("source", "requests")
    kinds = {kind: {name for each, name in boxes.values() if each == kind} for kind, _ in boxes.values()}
    assert kinds["sink"] == {"late", "minutes", "alerts"}  # a stream and an agent write to the same topic
    assert kinds["dead letters"] == {"orders.dlq", "accounts.dlq"}
    links = {link.key: link for frame in frames for box in frame.boxes() for link in box.links}
    said = {(key.origin, key.target): (link.label, link.aside) for key, link in links.items()}
    assert said["filter-1", "filter-2"] == ("", False)
    assert said["filter-2", "window-1"] == ("by account", False)
    assert said["tumbling-1", "write-2"] == ("late", True)
    assert said["upsert-1", "join-1"] == ("by account, changes, read first", False)
    assert said["read-1", "write-1"] == ("dead letters", True)
    assert said["feed-1", "shop.check"] == ("", False)
    assert said["shop.check", "shop.alert"] == ("", False)
    assert links[LinkKey("upsert-1", "join-1")].right


def test_the_dead_letters_of_an_agent_have_a_line_to_the_place_that_a_stream_has_too() -> None:
    app = App("shop")
    app.stream("orders", schema={"id": "int64"}, dead_letter="{topic}.dlq").to("large")
    app.agent("orders", name="check")(lambda ctx: None)
    app.agent("other", name="lone")(lambda ctx: None)
    frames = frames_of(planned(app, 1))
    links = {(box.id, link.label, to.root.name, to.root.kind) for frame in frames for box, link, to in frame.exits()}
    letters = {each for each in links if each[1] == "dead letters"}
    assert letters == {
        ("read-1", "dead letters", "orders.dlq", "dead letters"),
        ("shop.check", "dead letters", "orders.dlq", "dead letters"),
    }


def test_subtasks_are_folded_and_named() -> None:
    assert svg(shop(1)).count("×") == 0
    two = svg(shop(2))
    assert two.count(">tumbling-1<") == 1
    assert "read-1 ×2" in two
    assert "task read-1 with 2 subtasks: its steps run in one thread" in two


def test_a_drawing_of_a_running_app_has_the_numbers_of_subtasks_that_run() -> None:
    running = {"read-1": BoxFigures(subtasks=1), "window-1": BoxFigures(subtasks=3)}
    text = "".join(ElementTree.fromstring(svg(shop(2), PlanFigures(running))).itertext())
    assert "tumbling-1 ×3" in text  # the only step of task window-1
    assert "accounts ×2" in text  # it has no figures yet
    assert "read-1 ×" not in text
    assert "read-1 with" not in text


def test_a_step_with_two_inputs_has_them_side_by_side() -> None:
    layout = lay_out(frames_of(shop()))
    left, right = sorted(
        (link for link in layout.links if link.target is not None and link.target.box.id == "lookup-1"),
        key=lambda link: link.points[-1][0],
    )
    assert (left.link.right, right.link.right) == (False, True)


def test_the_text_of_a_step_does_not_repeat_its_name() -> None:
    app = App("shop")
    orders = app.stream("orders", schema={"k": "string", "x": "float64"})
    orders.filter(col("x") > 3).deduplicate("k").named("once").to("out")
    texts = {box.name: box.text for frame in frames_of(planned(app)) for box in frame.boxes()}
    assert texts["filter-1"] == 'col("x") > 3'
    assert texts["once"] == "deduplicate by k"


def test_an_app_without_streams_is_an_empty_drawing() -> None:
    root = ElementTree.fromstring(svg(Plan([]), title="empty"))
    assert [child.tag for child in root] == [f"{SVG}title", f"{SVG}style", f"{SVG}rect"]
    assert root[0].text == "Plan of app empty"


def test_a_long_text_is_shortened_and_whole_in_its_title() -> None:
    app = App("shop")
    rows = app.stream("rows", schema={f"a_rather_long_column_name_{n}": "int64" for n in range(30)})
    rows.select(*[f"a_rather_long_column_name_{n}" for n in range(30)]).to("out")
    drawing = svg(planned(app))
    assert "…</text>" in drawing
    titles = re.findall("<title>(.*?)</title>", drawing)
    assert any(title.endswith("a_rather_long_column_name_29") for title in titles)


def test_names_are_text_whatever_is_in_them() -> None:
    evil = '<script>alert("1")</script>\x00\x1b[2J\u202e&amp;\'"]]>\ud800\n'
    box, other = Box(evil, "source", evil, evil), TaskFrame(evil, 2, Box("b", "sink", evil, evil))
    box.links.append(BoxLink(LinkKey(evil, evil, evil), other, evil))
    figures = PlanFigures({evil: BoxFigures(dead_letters=1)}, {}, {LinkKey(evil, evil, evil): LinkFigures(1.0, 1.0)})
    drawing = render([TaskFrame(evil, 1, box), other], figures)
    root = ElementTree.fromstring(drawing.encode())
    tags = {element.tag.removeprefix(SVG) for element in root.iter()}
    assert tags <= {"svg", "title", "style", "rect", "g", "path", "text", "tspan"}
    assert not {name for element in root.iter() for name in element.attrib if name.startswith("on") or "href" in name}
    names = {element.text for element in root.iter(f"{SVG}text") if element.get("class") == "name"}
    assert names == {shortened(clean(evil), 230, NAME_SIZE, bold=True)}
    (link,) = [element for element in root.iter(f"{SVG}g") if element.get("data-origin")]
    assert link.get("data-origin") == clean(evil)
    assert "\x00" not in drawing
    assert "\u202e" not in drawing


def test_a_drawing_has_colours_for_light_and_dark_and_stands_alone() -> None:
    drawing = svg(shop())
    assert drawing.count("@media (prefers-color-scheme: dark)") == 1
    light, dark = drawing.partition("@media")[0], drawing.partition("@media")[2]
    assert set(re.findall(r"\.sabot-plan [^{]+(?= \{ (?:fill|stroke): #)", light)) == set(
        re.findall(r"\.sabot-plan [^{]+(?= \{ (?:fill|stroke): #)", dark)
    )
    assert "id=" not in drawing.replace("data-", "")
    assert "url(" not in drawing
    assert drawing.count("http") == 1  # the name space


# -- figures ----------------------------------------------------------------------------------------------------------------


def figures(rate: float, fill: float, busy: float) -> PlanFigures:
    """Figures of all tasks, of one step, and of all links."""
    frames = frames_of(shop())
    links = {link.key: LinkFigures(rate, fill) for frame in frames for box in frame.boxes() for link in box.links}
    some = BoxFigures({"busy": busy, "idle": 1 - busy}, 12.0, late=3, dead_letters=1_234)
    return PlanFigures({frame.id: some for frame in frames}, {"filter-2": some}, links)


def test_the_width_of_a_link_follows_the_logarithm_of_its_rate() -> None:
    widths = []
    for rate in (0.0, 10.0, 1_000.0, 100_000.0, 1e12):
        found = re.findall(r'stroke-width="([\d.]+)"', svg(shop(), figures(rate, 0.0, 0.5)))
        assert len(set(found)) == 1
        widths.append(float(found[0]))
    assert widths == [1.2, 2.2, 4.2, 6.2, 8.0]


def test_a_link_is_coloured_by_how_full_its_channel_is_and_the_legend_says_so() -> None:
    for fill, classes, said in (
        (0.1, "", []),
        (0.5, " half", ["its channel is half full"]),
        (0.9, " full", ["its channel is full"]),
    ):
        drawing = svg(shop(), figures(5.0, fill, 0.5))
        assert f'<g class="link{classes}" ' in drawing
        legend = re.findall(">([^<]+)</text>", drawing.partition('<g class="legend">')[2])
        assert legend == ["busy", "idle", *said]
        assert "<title>idle: waits for rows</title>" in drawing
    assert "legend" not in svg(shop())


def test_figures_of_a_task_stand_in_its_frame_or_in_its_only_box() -> None:
    root = ElementTree.fromstring(svg(shop(), figures(1_234.0, 0.0, 0.75)))
    groups = {(group.get("data-task"), group.get("data-step")): group for group in root.iter(f"{SVG}g")}
    bars = {key: [rect.get("class") for rect in group.iter(f"{SVG}rect")] for key, group in groups.items()}
    assert bars["read-1", None][-2:] == ["busy", "idle"] or bars["read-1", None] == ["box"]
    assert bars[None, "filter-2"] == ["box", "busy", "idle"]
    assert bars[None, "filter-1"] == ["box"]
    assert bars[None, "tumbling-1"] == ["box", "busy", "idle"]
    texts = [element.text for element in root.iter(f"{SVG}text")]
    assert "1.2k dead · 3 late · busy 75%…" in texts or "1.2k dead · 3 late · busy 75% · lag 12 s" in texts
    assert "by account · 1.2k/s" in texts
    (title,) = [title.text for title in groups[None, "filter-2"].iter(f"{SVG}title")]
    assert title is not None
    assert title.endswith("busy 75%, idle 25%; event time is 12 s behind the clock; 3 late rows; 1,234 dead letters")


def test_the_own_time_of_a_step_is_no_state_of_its_task() -> None:
    drawing = svg(shop(), PlanFigures({}, {"filter-1": BoxFigures(own_time=0.25)}), styled=False)
    group = next(
        each for each in ElementTree.fromstring(drawing).iter(f"{SVG}g") if each.get("data-step") == "filter-1"
    )
    assert [rect.get("class") for rect in group.iter(f"{SVG}rect")] == ["box", "own"]
    assert "own time 25%" in [text.text for text in group.iter(f"{SVG}text")]
    assert not any(word in drawing for word in ("busy", "legend"))


def test_boxes_stand_still_while_figures_change() -> None:
    def places(drawing: str) -> list[str]:
        return re.findall(r'class="(?:box|frame)" (x="\S+ y="\S+ width="\S+ height="\S+)"', drawing)

    assert places(svg(shop(), figures(0.0, 0.0, 0.0))) == places(svg(shop(), figures(9e9, 1.0, 1.0)))


# -- places -------------------------------------------------------------------------------------------------------------------


def rect(box: Any) -> Rect:
    return box.x, box.y, box.x + box.width, box.y + box.height


def overlap(one: Rect, other: Rect, apart: float = 0.0) -> bool:
    return (
        one[0] < other[2] + apart
        and other[0] < one[2] + apart
        and one[1] < other[3] + apart
        and other[1] < one[3] + apart
    )


def runs(link: PlacedLink) -> Iterator[Rect]:
    """The rectangles in which the parts of a link run."""
    for (x, y), (right, bottom) in pairwise(link.points):
        yield min(x, right), y, max(x, right), bottom


def label(link: PlacedLink, room: PlanFigures) -> list[Rect]:
    if link.label is None:
        return []
    x, y = link.label
    words = " · ".join(filter(None, [link.words, "99.9k/s" if link.link.key in room.links else ""]))
    return [(x, y - SMALL_SIZE, x + width(words, SMALL_SIZE), y + 3)]


def check_places(layout: DrawingLayout, room: PlanFigures = PlanFigures()) -> None:  # noqa: B008
    """Nothing overlaps or is cut off, and each link leads from its box to its box."""
    boxes = [box for frame in layout.frames for box in frame.boxes]
    for one, other in combinations(boxes, 2):
        assert not overlap(rect(one), rect(other), apart=8), (one.box.id, other.box.id)
    for one_frame, other_frame in combinations(layout.frames, 2):
        assert not overlap(rect(one_frame), rect(other_frame), apart=8)
    for frame in layout.frames:
        left, top, right, bottom = rect(frame)
        assert min(left, top) >= -0.01
        assert right <= layout.width + 0.2
        assert bottom <= layout.height + 0.2
        for box in frame.boxes:
            assert left - 0.1 <= box.x
            assert box.x + box.width <= right + 0.1
            assert top <= box.y
            assert box.bottom <= bottom + 0.1
    for box in boxes:
        check_text(box)
    links = layout.all_links()
    labels = [(link, each) for link in links for each in label(link, room)]
    for link in links:
        check_link(link, boxes)
        for other_link, each in labels:
            hit = [run for run in runs(link) if other_link is not link and overlap(run, each)]
            assert not [run for run in hit if run[0] == run[2]], (link.link.key, other_link.link.key)
    for (_, one), (_, other) in combinations(labels, 2):
        assert not overlap(one, other)
    for link, each in labels:
        assert not [box.box.id for box in boxes if overlap(each, rect(box))], link.link.key
    heads = [
        (frame, (frame.x, frame.y, frame.x + width(frame.title, SMALL_SIZE) + 12, frame.y + FRAME_HEAD - 4))
        for frame in layout.frames
        if frame.visible
    ]
    for frame, head in heads:
        assert not [link for link in links for run in runs(link) if overlap(run, head)], frame.task.id


def check_text(box: PlacedBox) -> None:
    room = box.width - 2 * PAD
    if box.box.kind == "gate":
        assert width(box.name, SMALL_SIZE) <= room + 0.1
        return
    assert width(box.name, NAME_SIZE, bold=True) + width(box.subtasks, SMALL_SIZE) <= room + 0.1
    assert all(width(line, TEXT_SIZE) <= room + 0.1 for line in box.lines)


def check_link(link: PlacedLink, boxes: list[PlacedBox]) -> None:
    origin, target = link.origin, link.target
    assert target is not None
    assert target.box is (link.link.target.root if isinstance(link.link.target, TaskFrame) else link.link.target)
    assert link.link in origin.box.links
    (x, y), (end, bottom) = link.points[0], link.points[-1]
    assert abs(y - origin.bottom) < 0.2
    assert origin.x < x < origin.x + origin.width
    assert abs(bottom - target.y) < 0.2
    assert target.x < end < target.x + target.width
    for run in runs(link):
        assert run[1] <= run[3] + 0.2  # it never turns back up
        hit = [box.box.id for box in boxes if box not in (origin, target) and overlap(run, rect(box))]
        assert not hit, (link.link.key, hit)


def drawn(seed: int) -> list[TaskFrame]:
    """Tasks that are drawn by lot: trees of boxes, whose links lead to later tasks."""
    lot = random.Random(seed)
    kinds: list[Kind] = ["source", "step", "step", "step", "sink", "agent", "gate"]

    def words() -> str:
        return " ".join("Wi(m)x_"[: lot.randint(1, 7)] * lot.randint(1, 9) for _ in range(lot.randint(0, 12)))

    def box(task: int) -> Box:
        return Box(f"{task}.{lot.random()}", lot.choice(kinds), words() or "n", words())

    frames = [TaskFrame(f"task-{n}" * lot.randint(1, 8), lot.randint(1, 3), box(n)) for n in range(lot.randint(1, 25))]
    for number, frame in enumerate(frames):
        boxes = [frame.root]
        for _ in range(lot.choice([0, 0, 1, 3, 6])):
            parent, child = lot.choice(boxes), box(number)
            parent.links.append(BoxLink(LinkKey(parent.id, child.id), child, lot.choice(["", "", "a branch"])))
            boxes.append(child)
        for target in lot.sample(frames[number + 1 :], min(len(frames) - number - 1, lot.choice([0, 1, 1, 2, 4]))):
            origin = lot.choice(boxes)
            link = BoxLink(LinkKey(origin.id, target.id), target, lot.choice(["", words()]), right=lot.random() < 0.2)
            origin.links.append(link)
    return frames


@pytest.mark.slow
def test_nothing_overlaps_in_graphs_drawn_by_lot() -> None:
    for seed in [*range(20), *range(first := commit(), first + 10)]:  # each commit tries other graphs
        frames = drawn(seed)
        check_places(lay_out(frames))
        links = [link.key for frame in frames for box in frame.boxes() for link in box.links]
        some = BoxFigures({"busy": 1.0})
        room = PlanFigures({frame.id: some for frame in frames[::2]}, {}, dict.fromkeys(links[::2], LinkFigures(1.0)))
        check_places(lay_out(frames, room), room)
        ElementTree.fromstring(render(frames, room))


def test_links_of_a_ladder_do_not_cross() -> None:
    """Ten sources, each with a sink, whose tasks are listed in other orders: the drawing has ten straight links."""
    sinks = [TaskFrame(f"sink-{n}", 1, Box(f"sink-{n}", "sink", "same")) for n in range(10)]
    sources = [TaskFrame(f"source-{n}", 1, Box(f"source-{n}", "source", "same")) for n in range(10)]
    for number, source in enumerate(sources):
        key = LinkKey(source.id, sinks[number * 7 % 10].id)
        source.root.links.append(BoxLink(key, sinks[number * 7 % 10]))
    layout = lay_out([*sinks, *sources])
    assert all(len({round(x) for x, _ in link.points}) == 1 for link in layout.links)


def test_graphs_without_a_link_between_them_stand_in_rows() -> None:
    """Forty small pipelines side by side were eight thousand pixels wide, and their text too small to be read."""
    frames = []
    for number in range(40):
        source = TaskFrame(f"s{number}", 1, Box(f"s{number}", "source", "orders"))
        sink = TaskFrame(f"t{number}", 1, Box(f"t{number}", "sink", "minutes"))
        source.root.links.append(BoxLink(LinkKey(source.id, sink.id), sink))
        frames += [source, sink]
    layout = lay_out(frames)
    check_places(layout)
    assert layout.width <= 1200
    assert len({box.y for frame in layout.frames for box in frame.boxes if box.box.kind == "source"}) == 5


def programs() -> dict[str, Plan]:
    """The plans of the programs of test_plan_texts, and those of the shop above."""
    from unit.engine.plan.test_plan_texts import PROGRAMS, Streams

    found = {f"shop, parallelism {parallelism}": shop(parallelism) for parallelism in (1, 2)}
    for name, program in PROGRAMS.items():
        for parallelism in (1, 2):
            app = App("shop", parallelism=parallelism)
            program(Streams(app)).to("result")
            found[f"{name}, parallelism {parallelism}"] = planned(app, parallelism)
    return found


def digests() -> dict[str, str]:
    return {name: hashlib.sha256(svg(plan).encode()).hexdigest()[:16] for name, plan in programs().items()}


@pytest.mark.slow  # a second of a core
def test_nothing_overlaps_in_the_plan_of_any_step() -> None:
    for plan in programs().values():
        check_places(lay_out(frames_of(plan)))


@pytest.mark.slow  # half a second of a core
def test_the_same_plan_gives_the_same_drawing() -> None:
    kept = dict(line.split(": ") for line in EXPECTED.read_text().splitlines())
    assert digests() == kept


def test_a_plan_of_sixty_boxes_is_drawn_in_a_thousand_calls_for_each() -> None:
    app = App("many", parallelism=2)
    schema = {"k": "string", "x": "float64", "ts": "int64"}
    for number in range(8):
        rows = app.stream(f"rows{number}", schema=schema, time="ts").filter(col("x") > number)
        joined = rows.key_by("k").window(tumbling("1m")).aggregate(n=sabot.count())
        joined.group_by("n").aggregate(m=sabot.count()).upsert("n").to(f"counts{number}")
        rows.with_columns(y=col("x") * 2).to(NdjsonSink(f"out{number % 2}.ndjson"))
    plan = planned(app, 2)
    boxes = sum(len(frame.boxes()) for frame in frames_of(plan))
    assert boxes >= 60
    assert calls_of(lambda: svg(plan)) < 1_000 * boxes  # 460 for each, and 10 ms for all; quadratic would be thousands


# -- texts ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["", "word", "two words", "x" * 200, "ä ö ü ñ " * 30, "日本語テキスト" * 20, "a\u0301" * 90]
)
def test_a_text_is_wrapped_into_lines_that_fit(text: str) -> None:
    for lines in (1, 3):
        made = wrapped(text, 100, 11, lines)
        assert len(made) <= lines
        assert all(width(line, 11) <= 100 for line in made)
        whole = "".join(made).replace(" ", "").removesuffix("…")
        assert text.replace(" ", "").startswith(whole)
        assert len(whole) == len(text.replace(" ", "")) or made[-1].endswith("…")


if __name__ == "__main__":
    EXPECTED.write_text("".join(f"{name}: {digest}\n" for name, digest in digests().items()))
