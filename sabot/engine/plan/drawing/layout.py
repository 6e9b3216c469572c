"""Places the boxes and links of a drawing. Rows flow downwards.

Within a task, each branch of the tree of its boxes has a strip of its own, so nothing there overlaps. The tasks are
placed as in Sugiyama's method: in layers, a task below all that write to it; a link that passes a layer has a slot of
its own there; the slots of a layer are ordered by the barycentres of their neighbours, which leaves few crossings; and
moved, in this order and without overlapping, to where their links are as straight as possible. Labels have slots in
layers between those of the tasks. Graphs that no link joins are placed one by one, and stand in rows.
"""

from bisect import bisect_right, insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from sabot.engine.plan.drawing.figures import PlanFigures
from sabot.engine.plan.drawing.graph import Box, BoxLink, TaskFrame
from sabot.engine.plan.drawing.texts import clean, shortened, width, wrapped

NAME_SIZE, TEXT_SIZE, SMALL_SIZE = 13, 11, 10  # of fonts, in px
NAME_LINE, TEXT_LINE, SMALL_LINE = 17, 14, 13  # heights of lines
PAD = 10  # between the border of a box and its text
FRAME_PAD = 12
FRAME_HEAD = 22  # height of the title of a frame
FIGURES_HEIGHT = 22  # of the shares of time and the line of text of a box
FIGURES_WIDTH = 200
_WIDEST_TEXT = 230
_MOST_LINES = 3
_WIDEST_LABEL = 190
_RATE_WIDTH = 66  # of the rate of a link, whatever it is, so that a drawing stands still while rates change
_LABEL_HEIGHT = 16
_LABEL_APART = 9  # between a link and its label
_APART = 24  # between boxes, or frames, beside each other
_LINK_APART = 12  # between links, and from a link to a frame
_BELOW = 26  # from a box to the next one of its task
_HALF_BELOW = 15  # from a task to the labels below it, and from the labels to the next task
_WIDEST_ROW = 1200  # of graphs beside each other
_GRAPHS_APART = 36
_SWEEPS = 12
_PATIENCE = 4  # the sweeps in a row that find no better order, after which the best one is taken

Point: TypeAlias = tuple[float, float]


@dataclass(eq=False)
class PlacedBox:
    """A box with its place and size. `name`, `lines`: its texts, shortened to its width. `subtasks`: the text behind
    the name that gives the number of subtasks, or "".
    """

    box: Box
    task: TaskFrame
    width: float
    height: float
    name: str
    lines: list[str]
    subtasks: str
    x: float = 0
    y: float = 0

    @property
    def bottom(self) -> float:
        """The lower end."""
        return self.y + self.height


@dataclass(eq=False)
class PlacedLink:
    """A link as a line: straight between points of one x, and else curved.

    `target`: None until the line is complete. `label`: the left end of the base line of its label, or None. `words`:
    the label as it fits.
    """

    link: BoxLink
    origin: PlacedBox
    target: PlacedBox | None
    points: list[Point]
    label: Point | None = None
    words: str = ""


@dataclass(eq=False)
class PlacedFrame:
    """A task with its place. `visible`: True if a frame is drawn around its boxes, because there are several.

    `boxes`: the first one of the chain first. `links`: those within the task. `exits`: the links to other tasks,
    drawn down to the lower end of the frame.
    """

    task: TaskFrame
    visible: bool
    title: str
    width: float
    height: float
    boxes: list[PlacedBox]
    links: list[PlacedLink] = field(default_factory=list)
    exits: list[tuple[PlacedLink, TaskFrame]] = field(default_factory=list)
    x: float = 0
    y: float = 0

    def move(self, x: float, y: float) -> None:
        """Moves the frame, with all that is in it."""
        self.x += x
        self.y += y
        for box in self.boxes:
            box.x += x
            box.y += y
        for link in [*self.links, *(link for link, _ in self.exits)]:
            link.points = [(a + x, b + y) for a, b in link.points]
            link.label = None if link.label is None else (link.label[0] + x, link.label[1] + y)


@dataclass
class DrawingLayout:
    """The places of all tasks, and of the links between them, in px."""

    frames: list[PlacedFrame]
    links: list[PlacedLink]
    width: float
    height: float

    def all_links(self) -> list[PlacedLink]:
        """Returns the links within tasks and between them."""
        return [*(link for frame in self.frames for link in frame.links), *self.links]


def lay_out(tasks: Sequence[TaskFrame], figures: PlanFigures | None = None) -> DrawingLayout:
    """Returns the places of the tasks. There is room for figures of the tasks, steps and links that `figures` names,
    whatever their values.
    """
    room = figures or PlanFigures()
    return _packed([_of_graph(part, room) for part in _graphs(tasks)])


def _graphs(tasks: Sequence[TaskFrame]) -> list[list[TaskFrame]]:
    """Returns the tasks in groups that no link joins, in the order of the first task of each."""
    groups = {id(task): [task] for task in tasks}
    for task in tasks:
        for _, _, target in task.exits():
            one, other = groups[id(task)], groups[id(target)]
            if one is not other:
                one += other
                groups |= dict.fromkeys(map(id, other), one)
    parts = {id(group): group for group in (groups[id(task)] for task in tasks)}
    place = {id(task): number for number, task in enumerate(tasks)}
    return [sorted(group, key=lambda task: place[id(task)]) for group in parts.values()]


def _of_graph(tasks: Sequence[TaskFrame], room: PlanFigures) -> DrawingLayout:
    """Returns the places of tasks that links join."""
    first = _TaskLayers([_BoxTree(task, room, {}).frame() for task in tasks], room)
    if not first.crossings:
        return first.layout()
    # Once more, where the links leave each task in the order of their targets.
    aims = {id(route.link.link): route.slots[-1].x + route.end for route in first.routes}
    second = _TaskLayers([_BoxTree(task, room, aims).frame() for task in tasks], room)
    return min(first, second, key=lambda each: each.crossings).layout()


def _packed(parts: Sequence[DrawingLayout]) -> DrawingLayout:
    """Returns drawings beside each other, in rows, so that many small ones do not make one that is too wide to be read."""
    whole = DrawingLayout([], [], 0.0, 0.0)
    widest = max([_WIDEST_ROW, *(part.width for part in parts)])
    x = y = below = 0.0
    for part in parts:
        if x and x + part.width > widest:
            x, y = 0.0, below
        for frame in part.frames:
            frame.move(x, y)
        whole.frames += part.frames
        whole.links += part.links
        whole.width, whole.height = max(whole.width, x + part.width), max(whole.height, y + part.height)
        x, below = round(x + part.width + _GRAPHS_APART, 1), round(max(below, whole.height + _GRAPHS_APART), 1)
    return whole


def _words(link: BoxLink) -> str:
    return shortened(clean(link.label), _WIDEST_LABEL, SMALL_SIZE)


def _label_width(link: BoxLink, room: PlanFigures) -> float:
    """Returns the room to the right of a link that its label needs; 0 if it has none."""
    words = width(_words(link), SMALL_SIZE)
    rate = _RATE_WIDTH if link.key in room.links else 0
    return words + rate + _LABEL_APART if words or rate else 0.0


# -- within a task --------------------------------------------------------------------------------------------------------


@dataclass
class _BoxStrip:
    """The part of the drawing of a task that contains a box and all boxes behind it: the distances of its left and
    right ends from the middle of the box.

    `middles`: for each link of the box, the distance of the link from the middle of the box.
    """

    left: float
    right: float
    middles: list[float]


class _BoxTree:
    """Places the boxes of one task in its frame. `aims`: the places that its links to other tasks lead to, by the id of
    the link, or {} if they are not known.
    """

    def __init__(self, task: TaskFrame, room: PlanFigures, aims: dict[int, float]) -> None:
        self._task = task
        self._room = room
        boxes = task.boxes()
        self._visible = len(boxes) > 1
        self._boxes = {id(box): _placed(box, task, room, self._visible) for box in boxes}
        self._strips: dict[int, _BoxStrip] = {}
        self._aims: dict[int, list[float]] = {}  # of the links behind each box
        for box in reversed(boxes):
            places: list[float] = []
            for link in box.links:
                places += self._aims[id(link.target)] if isinstance(link.target, Box) else [aims.get(id(link), 0.0)]
            self._aims[id(box)] = places
            self._strips[id(box)] = self._strip_of(box, aims)

    def _strip_of(self, box: Box, aims: dict[int, float]) -> _BoxStrip:
        half = self._boxes[id(box)].width / 2
        if not self._visible:
            return _BoxStrip(half, half, [0.0] * len(box.links))
        parts = [self._extent(link) for link in box.links]
        within = [number for number, link in enumerate(box.links) if isinstance(link.target, Box)]
        order = sorted(range(len(parts)), key=lambda number: self._side(box.links[number], aims))
        middles, end = [0.0] * len(parts), 0.0
        for place, number in enumerate(order):
            left, right = parts[number]
            middles[number] = end + _APART + left if place else 0.0
            end = middles[number] + right
        if parts:  # a single box stands straight below, and links to other tasks beside it
            centre = (end - parts[order[0]][0]) / 2 if len(within) != 1 else middles[within[0]]
            middles = [middle - centre for middle in middles]
        left = max([half, *(part[0] - middle for part, middle in zip(parts, middles, strict=True))])
        right = max([half, *(part[1] + middle for part, middle in zip(parts, middles, strict=True))])
        return _BoxStrip(left, right, middles)

    def _side(self, link: BoxLink, aims: dict[int, float]) -> float:
        """Returns a sort key for the links of a box, from left to right. If `aims` is known, it is the horizontal
        place to which the link leads, on average; else links within the task come before links to other tasks.
        """
        if not aims:
            return float(not isinstance(link.target, Box))
        places = self._aims[id(link.target)] if isinstance(link.target, Box) else [aims[id(link)]]
        return sum(places) / len(places) if places else 0.0

    def _extent(self, link: BoxLink) -> tuple[float, float]:
        """Returns the distances from the middle of a link to both ends of the strip behind it."""
        if not isinstance(link.target, Box):
            return 0.0, 0.0
        strip = self._strips[id(link.target)]
        return strip.left, max(strip.right, _label_width(link, self._room))

    def frame(self) -> PlacedFrame:
        """Returns the frame, at (0, 0)."""
        boxes, strip = list(self._boxes.values()), self._strips[id(self._task.root)]
        title, head, left, right = "", 0.0, strip.left, strip.right
        if self._visible:
            title = clean(self._task.id) + _times(self._room.subtasks(self._task))
            title = shortened(title, _WIDEST_TEXT, SMALL_SIZE)
            figures = self._task.id in self._room.tasks
            head = FRAME_HEAD + (FIGURES_HEIGHT if figures else 0)
            # Rows come in at the top of the first box, at a third of its width or further right: the head is left of them.
            room = max(width(title, SMALL_SIZE), FIGURES_WIDTH if figures else 0) + 2 * FRAME_PAD
            left = max(left + FRAME_PAD, room + boxes[0].width / 6)
            right = max(right + FRAME_PAD, room - left)
        links, exits = self._links(left, head)
        height = max(box.bottom for box in boxes) + (FRAME_PAD if self._visible else 0)
        for link, _ in exits:
            if link.points[-1][1] < height:
                link.points.append((link.points[-1][0], height))
        return PlacedFrame(self._task, self._visible, title, left + right, height, boxes, links, exits)

    def _links(self, middle: float, top: float) -> tuple[list[PlacedLink], list[tuple[PlacedLink, TaskFrame]]]:
        """Places all boxes, and returns the links within the task, and those that leave it."""
        links: list[PlacedLink] = []
        exits: list[tuple[PlacedLink, TaskFrame]] = []
        waiting = [(self._task.root, middle, top)]
        for box, at, y in waiting:
            placed = self._boxes[id(box)]
            placed.x, placed.y = at - placed.width / 2, y
            for link, distance in zip(box.links, self._strips[id(box)].middles, strict=True):
                to, words = at + distance, _words(link)
                start = min(max(to, placed.x + 12), placed.x + placed.width - 12)
                points = [(start, placed.bottom)]
                if not isinstance(link.target, Box):
                    points += [(to, placed.bottom + _BELOW)] if self._visible else []
                    exits.append((PlacedLink(link, placed, None, points, words=words), link.target))
                    continue
                target = self._boxes[id(link.target)]
                points.append((to, placed.bottom + _BELOW))
                label = None
                if _label_width(link, self._room):
                    points.append((to, points[-1][1] + _LABEL_HEIGHT))
                    label = (to + _LABEL_APART, points[-1][1] - 7)
                links.append(PlacedLink(link, placed, target, points, label, words))
                waiting.append((link.target, to, points[-1][1]))
        return links, exits


def _placed(box: Box, task: TaskFrame, room: PlanFigures, framed: bool) -> PlacedBox:
    """Returns a box with its size and its text. `framed`: True if its task has more boxes."""
    name = shortened(clean(box.name), _WIDEST_TEXT, NAME_SIZE, bold=True)
    if box.kind == "gate":
        return PlacedBox(box, task, width(name, SMALL_SIZE) + 2 * PAD, 2 * SMALL_LINE, name, [], "")
    lines = wrapped(clean(box.text), _WIDEST_TEXT, TEXT_SIZE, _MOST_LINES)
    subtasks = "" if framed else _times(room.subtasks(task))
    beside = width(subtasks, SMALL_SIZE)
    widths = [width(name, NAME_SIZE, bold=True) + beside, *(width(line, TEXT_SIZE) for line in lines)]
    height = NAME_LINE + len(lines) * TEXT_LINE + (0 if box.kind == "step" else SMALL_LINE) + 2 * PAD - 4
    if (not framed and task.id in room.tasks) or (box.kind == "step" and box.id in room.steps):
        widths.append(FIGURES_WIDTH)
        height += FIGURES_HEIGHT
    return PlacedBox(box, task, max(80.0, *widths) + 2 * PAD, height, name, lines, subtasks)


def _times(subtasks: int) -> str:
    return f" ×{subtasks}" if subtasks > 1 else ""


# -- between tasks --------------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class _LayerSlot:
    """A place in a layer: of a frame, or of a link that passes. `order`: its number in the layer."""

    width: float
    frame: PlacedFrame | None = None
    x: float = 0.0
    order: int = 0
    above: list["_LinkSegment"] = field(default_factory=list)
    below: list["_LinkSegment"] = field(default_factory=list)


@dataclass(eq=False)
class _LinkSegment:
    """A link between two layers that follow each other. `start` and `end`: its distances from the left of the slots."""

    upper: _LayerSlot
    lower: _LayerSlot
    start: float
    end: float
    weight: float


@dataclass(eq=False)
class _LinkRoute:
    """A link between two tasks, with its slots in all layers from its origin to its target."""

    link: PlacedLink
    slots: list[_LayerSlot]
    labelled: int  # the number of the slot with the label
    end: float  # the distance from the left of the target's slot


class _TaskLayers:
    """Places frames in layers: those of the tasks have even numbers, those of labels odd ones."""

    def __init__(self, frames: list[PlacedFrame], room: PlanFigures) -> None:
        self._frames = frames
        self._room = room
        by_task = {id(frame.task): frame for frame in frames}
        self._exits = [(frame, link, by_task[id(target)]) for frame in frames for link, target in frame.exits]
        levels = self._levels()
        self._layers: list[list[_LayerSlot]] = [[] for _ in range(2 * max(levels.values(), default=0) + 1)]
        slots: dict[int, _LayerSlot] = {}
        for frame in frames:
            slots[id(frame)] = self._add(2 * levels[id(frame)], _LayerSlot(frame.width, frame))
        self.routes = [self._route(*exit, slots, levels) for exit in self._exits]
        self.crossings = self._order()
        self._spread()
        self._straighten()

    def _levels(self) -> dict[int, int]:
        """Returns the layer of each frame, by its `id()`. A task is in a layer below all tasks that write to it; a
        source is in the layer directly above the highest task to which it writes.
        """
        levels = {id(frame): 0 for frame in self._frames}
        order = self._in_order()
        for frame in order:
            for origin, _, target in self._exits:
                if origin is frame:
                    levels[id(target)] = max(levels[id(target)], levels[id(frame)] + 1)
        fed = {id(target) for _, _, target in self._exits}
        for frame in order:
            if id(frame) not in fed:
                below = [levels[id(target)] for origin, link, target in self._exits if origin is frame]
                levels[id(frame)] = min(below, default=1) - 1
        return levels

    def _in_order(self) -> list[PlacedFrame]:
        """Returns the frames, upstream before downstream."""
        missing = {id(frame): 0 for frame in self._frames}
        for _, _, target in self._exits:
            missing[id(target)] += 1
        ready = [frame for frame in self._frames if not missing[id(frame)]]
        for frame in ready:
            for origin, _, target in self._exits:
                if origin is frame:
                    missing[id(target)] -= 1
                    if not missing[id(target)]:
                        ready.append(target)
        assert len(ready) == len(self._frames), "the tasks of a plan write to each other in a ring"
        return ready

    def _add(self, layer: int, slot: _LayerSlot) -> _LayerSlot:
        slot.order = len(self._layers[layer])
        self._layers[layer].append(slot)
        return slot

    def _route(
        self,
        origin: PlacedFrame,
        link: PlacedLink,
        target: PlacedFrame,
        slots: dict[int, _LayerSlot],
        levels: dict[int, int],
    ) -> _LinkRoute:
        first, last = 2 * levels[id(origin)], 2 * levels[id(target)]
        two = any(each.link.right for _, each, into in self._exits if into is target)
        root = target.boxes[0]
        end = root.x + root.width * ((2 / 3 if link.link.right else 1 / 3) if two else 1 / 2)
        labelled = last - first - 1  # the slot before the target
        room = _label_width(link.link, self._room)
        route = _LinkRoute(link, [slots[id(origin)]], labelled, end)
        for layer in range(first + 1, last):
            wide = room if layer - first == labelled else 0.0
            route.slots.append(self._add(layer, _LayerSlot(wide)))
        route.slots.append(slots[id(target)])
        starts = [link.points[-1][0], *([0.0] * (last - first - 1))]
        ends = [*([0.0] * (last - first - 1)), end]
        for upper, lower, start, into in zip(route.slots, route.slots[1:], starts, ends, strict=False):
            frames = (upper.frame is not None) + (lower.frame is not None)
            segment = _LinkSegment(upper, lower, start, into, (8.0, 2.0, 1.0)[frames])
            upper.below.append(segment)
            lower.above.append(segment)
        return route

    def layout(self) -> DrawingLayout:
        """Returns the places of all frames and links."""
        height = self._stack()
        links = [self._drawn(route) for route in self.routes]
        right = max((slot.x + slot.width for layer in self._layers for slot in layer), default=0.0)
        return DrawingLayout(self._frames, links, right, height)

    # -- order

    def _order(self) -> int:
        """Orders the slots of each layer so that few links cross. Returns the number of crossings."""
        best, fewest, since = self._orders(), self._crossings(), 0
        for sweep in range(_SWEEPS):
            if not fewest or since == _PATIENCE:
                break
            down = sweep % 2 == 0
            for layer in self._layers if down else reversed(self._layers):
                self._sort(layer, down)
            self._transpose()
            since += 1
            if (crossings := self._crossings()) < fewest:
                best, fewest, since = self._orders(), crossings, 0
        for layer, order in zip(self._layers, best, strict=True):
            layer[:] = order
            _number(layer)
        return fewest

    def _spread(self) -> None:
        """Gives each link of a single box a place of its own at the lower end of the box, in the order of the links."""
        for layer in self._layers:
            for slot in layer:
                if slot.frame is None or slot.frame.visible:
                    continue
                links = sorted(slot.below, key=_lower_place)
                for number, each in enumerate(links, 1):
                    each.start = slot.frame.boxes[0].x + slot.width * number / (len(links) + 1)

    def _orders(self) -> list[list[_LayerSlot]]:
        return [list(layer) for layer in self._layers]

    @staticmethod
    def _sort(layer: list[_LayerSlot], down: bool) -> None:
        """Sorts a layer by the barycentres of the neighbours above (`down`) or below."""

        def barycentre(slot: _LayerSlot) -> float:
            places = (
                [_upper_place(each) for each in slot.above] if down else [_lower_place(each) for each in slot.below]
            )
            return sum(places) / len(places) if places else float(slot.order)

        layer.sort(key=barycentre)
        _number(layer)

    def _transpose(self) -> None:
        """Swaps neighbours while this leaves fewer crossings."""
        for _ in range(4):
            swapped = False
            for layer in self._layers:
                for place in range(len(layer) - 1):
                    left, right = layer[place], layer[place + 1]
                    if _crossed(left, right) > _crossed(right, left):
                        layer[place], layer[place + 1] = right, left
                        left.order, right.order = right.order, left.order
                        swapped = True
            if not swapped:
                return

    def _crossings(self) -> int:
        found = 0
        for layer in self._layers:
            pairs = sorted((_upper_place(each), _lower_place(each)) for slot in layer for each in slot.below)
            seen: list[float] = []
            for _, place in pairs:
                found += len(seen) - bisect_right(seen, place)
                insort(seen, place)
        return found

    # -- places

    def _straighten(self) -> None:
        """Moves the slots of each layer to where their links are straight, as far as their order and widths allow."""
        for layer in self._layers:
            _settle(layer, [(0.0, 1.0)] * len(layer))
        for sweep in range(_SWEEPS):
            down = sweep % 2 == 1
            for layer in self._layers if down else reversed(self._layers):
                _settle(layer, [_wanted(slot, above=down, below=not down) for slot in layer])
        for layer in self._layers:
            _settle(layer, [_wanted(slot, above=True, below=False) for slot in layer])
        left = min((slot.x for layer in self._layers for slot in layer), default=0.0)
        for layer in self._layers:
            for slot in layer:
                slot.x = round(slot.x - left, 1)

    def _stack(self) -> float:
        """Sets the heights of the layers. Returns the height of the whole."""
        top, labelled = 0.0, {id(route.slots[route.labelled]) for route in self.routes if self._labelled(route)}
        self._tops: list[float] = []
        self._bottoms: list[float] = []
        for number, layer in enumerate(self._layers):
            height = max((slot.frame.height for slot in layer if slot.frame is not None), default=0.0)
            if any(id(slot) in labelled for slot in layer):
                height = max(height, _LABEL_HEIGHT)
            for slot in layer:
                if slot.frame is not None:
                    slot.frame.move(slot.x, top)
            self._tops.append(top)
            self._bottoms.append(top + height)
            aside = [abs(each.upper.x + each.start - each.lower.x - each.end) for slot in layer for each in slot.below]
            below = _HALF_BELOW + min(40.0, max(aside, default=0.0) * 0.08)
            top = round(top + height + (below if number < len(self._layers) - 1 else 0), 1)
        return self._bottoms[-1] if self._bottoms else 0.0

    def _labelled(self, route: _LinkRoute) -> bool:
        return _label_width(route.link.link, self._room) > 0

    def _drawn(self, route: _LinkRoute) -> PlacedLink:
        """Completes the line of a link, through all layers to its target."""
        link = route.link
        (start,) = [each for each in route.slots[0].below if each.lower is route.slots[1]]
        link.points[-1] = (route.slots[0].x + start.start, link.points[-1][1])
        first = next(number for number, layer in enumerate(self._layers) if route.slots[0] in layer)
        points = link.points
        if points[-1][1] < self._bottoms[first]:
            points.append((points[-1][0], self._bottoms[first]))
        for number, slot in enumerate(route.slots[1:-1], 1):
            points += [(slot.x, self._tops[first + number]), (slot.x, self._bottoms[first + number])]
            if number == route.labelled and self._labelled(route):
                link.label = (slot.x + _LABEL_APART, self._tops[first + number] + 11)
        target = route.slots[-1].frame
        assert target is not None
        link.target = target.boxes[0]
        points.append((target.x + route.end, self._tops[first + len(route.slots) - 1]))
        if points[-1][1] < link.target.y:
            points.append((target.x + route.end, link.target.y))
        return link


def _number(layer: Iterable[_LayerSlot]) -> None:
    for order, slot in enumerate(layer):
        slot.order = order


def _upper_place(segment: _LinkSegment) -> float:
    """Returns the place of the upper end in its layer: the number of the slot, and the way into it."""
    return segment.upper.order + segment.start / (segment.upper.width + 1)


def _lower_place(segment: _LinkSegment) -> float:
    return segment.lower.order + segment.end / (segment.lower.width + 1)


def _crossed(left: _LayerSlot, right: _LayerSlot) -> int:
    """Returns the number of crossings between the links of two slots, if these stand in this order."""
    above = [(_upper_place(a), _upper_place(b)) for a in left.above for b in right.above]
    below = [(_lower_place(a), _lower_place(b)) for a in left.below for b in right.below]
    return sum(a > b for a, b in above + below)


def _wanted(slot: _LayerSlot, *, above: bool, below: bool) -> tuple[float, float]:
    """Returns the place at which the links of a slot would be straight on average, and the weight of this place.
    `above`, `below`: which links are considered.
    """
    wishes = [(each.upper.x + each.start - each.end, each.weight) for each in slot.above] if above else []
    wishes += [(each.lower.x + each.end - each.start, each.weight) for each in slot.below] if below else []
    weight = sum(weight for _, weight in wishes)
    if not weight:
        return slot.x, 0.01
    return sum(place * weight for place, weight in wishes) / weight, weight


def _settle(layer: Sequence[_LayerSlot], wanted: Sequence[tuple[float, float]]) -> None:
    """Moves a layer's slots as near as possible to their wanted places, without overlaps and in their order: with the
    least sum of weighted squares of the distances.

    Slots whose wanted places collide become a block, which gets the mean of these places (pool adjacent violators).
    """
    blocks: list[tuple[float, float, int]] = []  # the mean, the weight, and the number of the slots
    offsets, end = [], 0.0
    before: _LayerSlot | None = None
    for slot, (place, weight) in zip(layer, wanted, strict=True):
        if before is not None:
            both = before.frame is not None and slot.frame is not None
            end += before.width + (_APART if both else _LINK_APART)
        before = slot
        offsets.append(end)
        mean, count = place - end, 1
        while blocks and blocks[-1][0] >= mean:
            other, heavy, more = blocks.pop()
            mean = (mean * weight + other * heavy) / (weight + heavy)
            weight, count = weight + heavy, count + more
        blocks.append((mean, weight, count))
    slots = iter(zip(layer, offsets, strict=True))
    for mean, _, count in blocks:
        for _ in range(count):
            slot, offset = next(slots)
            slot.x = mean + offset
