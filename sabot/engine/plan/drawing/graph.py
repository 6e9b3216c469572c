"""The boxes and links of a drawing, made of a plan.

A box is a source, a step, a sink or an agent. The steps of a task are a tree of boxes, because a chain forks and never
joins; the tasks are a graph. The subtasks of a task are folded into one.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import field
from typing import Any, Literal, NamedTuple, TypeAlias

from sabot.api.agent import AgentSpec
from sabot.base.dataclass import dataclass
from sabot.base.quantities import span_words
from sabot.connectors.base import Sink, Source
from sabot.engine.operators.base import LETTERS
from sabot.engine.operators.layout.stages import Edge, Stage, Step
from sabot.engine.plan.agents import dead_letter_topics, place_of_sink
from sabot.engine.plan.stages import Plan, reading_text

Kind: TypeAlias = Literal["source", "step", "sink", "dead letters", "agent", "gate"]

AGENT_SINK = "sinks/"
"""The beginning of the id of a sink that only agents write, before its name. The id of a topic that an agent reads is
"AGENT/TOPIC"."""

_DEAD_LETTERS = "dead letters"


class LinkKey(NamedTuple):
    """The name of a link in `PlanFigures`.

    `origin` and `target`: the id of a step, or the id of a stage for its source, sink or agent, and for the input of a
    stage that begins with a step. `branch`: the output branch of the step; "" for its result.
    """

    origin: str
    target: str
    branch: str = ""


@dataclass(eq=False)
class Box:
    """A box of the drawing. `kind`: "gate" for the input of a task that more than one step reads."""

    id: str
    kind: Kind
    name: str
    text: str = ""
    links: list["BoxLink"] = field(default_factory=list)


@dataclass(eq=False)
class BoxLink:
    """The way of rows from a box to another box of its task, or to another task.

    `label`: the words beside it. `aside`: True for an output branch, and for dead letters. `right`: True for the
    second input of a step.
    """

    key: LinkKey
    target: "Box | TaskFrame"
    label: str = ""
    aside: bool = False
    right: bool = False


@dataclass(eq=False)
class TaskFrame:
    """A task with its tree of boxes. `note`: a text about the task as a whole, or ""."""

    id: str
    parallelism: int
    root: Box
    note: str = ""

    def boxes(self) -> list[Box]:
        """Returns the boxes of the task, upstream before downstream."""
        found = [self.root]
        for box in found:
            found += [link.target for link in box.links if isinstance(link.target, Box)]
        return found

    def exits(self) -> list[tuple[Box, BoxLink, "TaskFrame"]]:
        """Returns the links to other tasks, each with its box and its target."""
        return [
            (box, link, link.target) for box in self.boxes() for link in box.links if isinstance(link.target, TaskFrame)
        ]


def frames_of(plan: Plan) -> list[TaskFrame]:
    """Returns the tasks of a plan, with boxes of their own for the topics and sinks of agents."""
    frames = {id(stage): TaskFrame(stage.id, stage.parallelism, _root(stage)) for stage in plan.stages}
    found: list[TaskFrame] = []
    for stage in plan.stages:
        frame = frames[id(stage)]
        root = frame.root
        if stage.aligned is not None and (read := plan.aligned(stage)):
            frame.note = (
                f"sources {', '.join(each.id for each in read)} are read at most "
                f"{span_words(stage.aligned.max_drift_ms)} apart"
            )
        (first,) = stage.targets if root.kind == "step" else (None,)
        if isinstance(first, Step):
            _add_outputs(first, root, frames)
        else:
            _add_links(root, stage.targets, frames)
        if stage.dead_letters is not None:
            target = frames[id(stage.dead_letters.target)]
            key = LinkKey(root.id, target.id, _DEAD_LETTERS)
            root.links.append(BoxLink(key, target, _DEAD_LETTERS, aside=True))
        found.append(frame)
    sinks = {place_of_sink(stage.sink[0]): frames[id(stage)] for stage in plan.stages if stage.sink is not None}
    specs = [stage.agent for stage in plan.stages if stage.agent is not None]
    for stage in plan.stages:
        if stage.agent is not None:
            found = [*_topics(stage.agent, frames[id(stage)]), *found]
            found += _agent_sinks(stage.agent, frames[id(stage)], sinks)
    for stage in plan.stages:
        if stage.agent is not None:
            _link_letters(stage.agent, specs, frames[id(stage)], sinks)
    _mark_dead_letters(found)
    return found


def flat_frames(frames: Sequence[TaskFrame]) -> list[dict[str, Any]]:
    """Returns the frames as values of JSON, in which a link names its target by the number of the frame."""
    numbers = {id(frame): number for number, frame in enumerate(frames)}

    def flat(box: Box) -> dict[str, Any]:
        links = [
            {
                "key": [*link.key],
                "label": link.label,
                "aside": link.aside,
                "right": link.right,
                "target": flat(link.target) if isinstance(link.target, Box) else numbers[id(link.target)],
            }
            for link in box.links
        ]
        return {"id": box.id, "kind": box.kind, "name": box.name, "text": box.text, "links": links}

    return [
        {"id": each.id, "parallelism": each.parallelism, "note": each.note, "root": flat(each.root)} for each in frames
    ]


def frames_from(flat: Iterable[Mapping[str, Any]]) -> list[TaskFrame]:
    """Returns the frames that `flat_frames` has written. Raises KeyError, IndexError, TypeError or ValueError for other values."""
    known = list(flat)
    frames = [
        TaskFrame(str(each["id"]), int(each["parallelism"]), Box("", "gate", ""), str(each["note"])) for each in known
    ]

    def box_of(given: Mapping[str, Any]) -> Box:
        box = Box(str(given["id"]), given["kind"], str(given["name"]), str(given["text"]))
        for link in given["links"]:
            target, key = link["target"], LinkKey(*map(str, link["key"]))
            to = frames[target] if isinstance(target, int) else box_of(target)
            box.links.append(BoxLink(key, to, str(link["label"]), bool(link["aside"]), bool(link["right"])))
        return box

    for frame, each in zip(frames, known, strict=True):
        frame.root = box_of(each["root"])
    return frames


def _root(stage: Stage) -> Box:
    if stage.agent is not None:
        return Box(stage.id, "agent", stage.agent.agent_id, _agent_text(stage.agent))
    if stage.reading is not None:
        node = stage.reading.node
        return Box(stage.id, "source", node.name, f"{_connector(node.source)}: {reading_text(stage.reading)}")
    if stage.sink is not None:
        sink, key = stage.sink
        return _sink_box(stage.id, sink, "" if key is None else f", key {key}")
    match stage.targets:
        case [Step() as step]:
            return _step_box(step)
    return Box(stage.id, "gate", stage.id)


def _step_box(step: Step) -> Box:
    word, _, rest = step.text.partition(" ")
    return Box(step.id, "step", step.id, rest if step.id.rpartition("-")[0] == word else step.text)


def _sink_box(id: str, sink: str | Sink, more: str = "") -> Box:
    return Box(id, "sink", sink if isinstance(sink, str) else sink.name, _connector(sink) + more)


def _connector(place: str | Source | Sink) -> str:
    return "topic" if isinstance(place, str) else type(place).__name__


def _agent_text(spec: AgentSpec) -> str:
    words = ["durable"] if spec.durable else []
    words += ["called with batches" if spec.batch else "called for each record"]
    words += [f"by {spec.key}"] if spec.key is not None else []
    words += [f"in {spec.process} processes" if spec.process > 1 else "in a process"] if spec.process else []
    return ", ".join(words)


def _add_outputs(step: Step, box: Box, frames: dict[int, TaskFrame]) -> None:
    _add_links(box, step.targets, frames)
    for name, branch in step.branches.items():
        _add_links(box, branch, frames, name)


def _add_links(box: Box, targets: Iterable[Step | Edge], frames: dict[int, TaskFrame], branch: str = "") -> None:
    label = _DEAD_LETTERS if branch.endswith(LETTERS) else branch
    for target in targets:
        if isinstance(target, Edge):
            frame = frames[id(target.target)]
            words = ", ".join([*filter(None, [label]), *_edge_words(target)])
            key = LinkKey(box.id, frame.id, branch)
            box.links.append(BoxLink(key, frame, words, aside=bool(branch), right=target.right))
        else:
            made = _step_box(target)
            box.links.append(BoxLink(LinkKey(box.id, made.id, branch), made, label, aside=bool(branch)))
            _add_outputs(target, made, frames)


def _edge_words(edge: Edge) -> list[str]:
    words = ["all rows to each"] if edge.everywhere else [f"by {', '.join(edge.keys)}"] if edge.keys else []
    words += ["changes"] if edge.changes else []
    return words + (["read first"] if edge.first else [])


def _topics(spec: AgentSpec, agent: TaskFrame) -> list[TaskFrame]:
    """Returns a frame for each topic that the agent reads."""
    found = []
    for topic, source in zip(spec.topics, spec.inputs, strict=True):
        box = Box(f"{spec.agent_id}/{topic}", "source", topic, _connector(source))
        box.links.append(BoxLink(LinkKey(box.id, agent.id), agent))
        found.append(TaskFrame(box.id, 1, box))
    return found


def _agent_sinks(spec: AgentSpec, agent: TaskFrame, sinks: dict[str | int, TaskFrame]) -> list[TaskFrame]:
    """Links the agent to its sinks, and returns frames for those that no other task writes. `sinks`: the frames so
    far, by their places; the new ones are added.
    """
    made = []
    for name, sink in spec.sinks.items():
        place = place_of_sink(sink)
        if place not in sinks:
            sinks[place] = TaskFrame(AGENT_SINK + name, 1, _sink_box(AGENT_SINK + name, sink))
            made.append(sinks[place])
        agent.root.links.append(BoxLink(LinkKey(agent.id, sinks[place].id), sinks[place]))
    return made


def _link_letters(
    spec: AgentSpec, specs: Sequence[AgentSpec], agent: TaskFrame, sinks: Mapping[str | int, TaskFrame]
) -> None:
    """Links the agent to the places of its dead letters that the drawing has, because streams or agents write there too. Places of their
    own would double the drawing: each agent has one.
    """
    own = spec.dead_letter
    letters = dead_letter_topics(spec, specs, frozenset()).values() if isinstance(own, str) else [own]
    for place in dict.fromkeys(map(place_of_sink, letters)):
        if place in sinks:
            key = LinkKey(agent.id, sinks[place].id, _DEAD_LETTERS)
            agent.root.links.append(BoxLink(key, sinks[place], _DEAD_LETTERS, aside=True))


def _mark_dead_letters(frames: Iterable[TaskFrame]) -> None:
    """Sets the kind of the sinks that get nothing but dead letters."""
    labels: dict[int, set[str]] = {}
    for frame in frames:
        for _, link, target in frame.exits():
            labels.setdefault(id(target), set()).add(link.label)
    for frame in frames:
        if labels.get(id(frame)) == {_DEAD_LETTERS}:
            frame.root.kind = "dead letters"
