"""How steps are put into a plan.

The planner walks over the nodes of the graph. For each node it looks up a function in the `PLANNERS` of the operators' modules, and calls
the function with the node and the `PlanPoint` of each input: the place in the plan where the rows of that input come out. The function
adds the node's operator, with the operators that must stand before it, and returns the point behind the operator:

    def plan_top_n(node, point):
        point = point.partition_by(node.keys, "ranked")
        return point.step(node.text(), partial(TopN, node.keys, …), id=node.id)

A `Layout` is the plan while it is made. It numbers stages and operators by kind, operators of a script within their statement, and these
ids name state in checkpoints: a function that adds an operator more, or adds them in another order, gives the state of one operator to
another.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any, TypeAlias

from sabot.api.arguments import RowPolicy
from sabot.api.nodes.agents import AgentRead
from sabot.api.nodes.joins import AsofJoin, Join, Lookup, TwoInputs
from sabot.api.nodes.node import Columns, Node, walk
from sabot.api.nodes.origin import NO_ORIGIN
from sabot.api.nodes.read import Read
from sabot.api.nodes.rows import Broadcast
from sabot.api.nodes.times import WithTime
from sabot.base.config import dead_letter_topic
from sabot.base.dataclass import dataclass
from sabot.codecs.base import Format
from sabot.codecs.formats import agreed_format
from sabot.connectors.base import Delivery, OnNan, Sink, Source, ends, overrides
from sabot.connectors.checks import agreed_delivery
from sabot.engine.operators.base import LETTERS, Operator
from sabot.engine.operators.layout.stages import Aligned, Edge, Stage, Step
from sabot.engine.operators.rows.marked import WithoutPairs, WithoutTime
from sabot.errors import UserError

Keys: TypeAlias = tuple[str, ...]


@dataclass(frozen=True)
class PlanPoint:
    """A point in a plan where the rows of a node come out: the end of a chain, to which the next operator or an edge
    into another stage is added.

    `layout`: the plan. `stage`: the stage of the chain. `targets`: the list to which the next step or edge is added.
    `keys`: the columns whose key group decides in which subtask a row is, or None if it may be in any. `timed`: True
    if rows carry their event time. `changes`, `unique`: as in `Node`. `path`: a digest of the steps that the rows
    have gone through. `times`: the expressions of their event times, as texts, as far as the next step keeps any.
    `last`: the operator that emits the rows, or None if it is in another stage. `on_error`: the policy for rows for
    which a later step fails. `dead_letter`: the sink of such rows. `topic`: the name of the source, for the name of
    its topic of dead letters.
    """

    layout: "Layout"
    stage: Stage
    targets: list[Step | Edge]
    keys: Keys | None = None
    timed: bool = False
    path: str = ""
    times: frozenset[str] = frozenset()
    changes: bool = False
    unique: Keys | None = None
    last: Step | None = None
    on_error: RowPolicy = "dead_letter"
    dead_letter: str | Sink | None = None
    topic: str = ""

    def policy(self, of_step: RowPolicy | None = None) -> RowPolicy:
        """Returns the policy of the next step for rows for which it fails. If these rows are dead letters, the stage
        gets an edge for them.

        `of_step`: the policy that the user gave to this step alone, or None.
        """
        policy = of_step or self.on_error
        if policy == "dead_letter" and self.dead_letter is not None and self.stage.dead_letters is None:
            self.stage.dead_letters = Edge(self.layout.sink(self.dead_letter), timeless=True)
        return policy

    def step(self, text: str, make: Callable[[], Operator], *, id: str = "", **facts: Any) -> "PlanPoint":
        """Adds an operator to the end of the chain, and returns the point behind it.

        `text`: what the operator does, for people. Its first word is the kind of the step, by which steps without an
        id are numbered. `make`: returns a new operator; called for each subtask. `id`: the id that the user gave, or
        "". `facts`: fields in which the new point differs from this one; `keys=None` says that rows are in any
        subtask from here on.
        """
        step = self.layout.new_step(text, make, id, self.path)
        step.event_time = " and ".join(sorted(self.times))
        self.targets.append(step)
        return replace(self, targets=step.targets, last=step, **facts)

    def branch_to(self, name: str, sink: str | Sink | None) -> "PlanPoint":
        """Sends the rows of the last operator's output branch `name` to this sink. If `sink` is None, they are
        dropped.
        """
        if sink is not None:
            assert self.last is not None
            self.last.branches[name] = [Edge(self.refusing(self.layout.sink(sink)))]
        return self

    def refusing(self, sink: Stage) -> Stage:
        """Returns the stage of a sink to which the rows of this point go. Those that its receiver refuses go to the dead
        letters, unless such rows end the app, or the sink is that of the dead letters.
        """
        assert sink.sink is not None
        if self.on_error == "dead_letter" and sink.refused is None and sink.sink[0] != self.dead_letter:
            sink.refused = self.dead_letter
        return sink

    def late_to(self, name: str, sink: str | Sink | None, *letters: str | Sink | None) -> "PlanPoint":
        """Sends the late rows in the last operator's output branch `name` to this sink. If `sink` is None, they are
        dropped.

        If the sink is that of the stream's dead letters, or one of `letters`, each late row is written to it as a
        dead letter.
        """
        if sink is None:
            return self
        assert self.last is not None
        if isinstance(sink, str):
            sink = dead_letter_topic(sink, self.topic)
        if sink in (self.dead_letter, *letters):
            self.last.branches[name + LETTERS] = [Edge(self.layout.sink(sink), timeless=True)]
            return self
        return self.branch_to(name, sink)

    def branch(self, name: str) -> "PlanPoint":
        """Returns the point of the last operator's output branch `name`."""
        assert self.last is not None
        return replace(self, targets=self.last.branches.setdefault(name, []), keys=None, last=None)

    def partition_by_some(self, keys: Keys, name: str) -> "tuple[PlanPoint, Keys]":
        """Returns a point where all rows of a key are in one subtask, and the columns that decide in which, or () if
        these are all keys.

        If rows are partitioned by some of the keys already, no stage is added: rows that have equal values in some of
        the keys are in one subtask, so rows that have equal values in all keys are too. The step must then be given
        these columns as `parted_by`. Otherwise this method does the same as `partition_by`.
        """
        if self.keys and set(self.keys) <= set(keys):
            return self, () if self.keys == keys else self.keys
        return self.partition_by(keys, name), ()

    def partition_by(self, keys: Keys, name: str) -> "PlanPoint":
        """Returns a point where all rows of a key are in one subtask: this point if that is so already, otherwise the
        head of a new stage.

        `name`: the kind of the new stage, for its id.
        """
        if keys and self.keys == keys:
            return self
        alone = self.stage.parallelism == 1 and (self.stage.reading is None or self.layout.parallelism == 1)
        if alone:
            return replace(self, keys=keys or None)  # the former key columns may be gone behind the step
        stage = self.layout.stage(name, self.layout.parallelism if keys else 1)
        point = self.without_pairs(keys)
        point.targets.append(Edge(stage, keys or None, changes=point.changes))
        return replace(point, stage=stage, targets=stage.targets, keys=keys or None, last=None)

    def without_pairs(self, keys: Keys) -> "PlanPoint":
        """Prepares changes for being partitioned by `keys`. If `keys` are not all part of the changes' unique key,
        the two rows of an update pair could be sent to two subtasks. The method then adds a step that turns each pair
        into a delete and an insert, and returns the point behind this step. Otherwise it returns this point.
        """
        if not self.changes or not keys or (self.unique is not None and set(keys) <= set(self.unique)):
            return self
        return self.step("part updates", WithoutPairs)

    def without_time(self) -> "PlanPoint":
        """Returns this point if its rows have no event time, else the point behind a step that removes it."""
        return self.step("without event time", WithoutTime, timed=False) if self.timed else self


Planners: TypeAlias = Mapping[type[Node], Callable[..., PlanPoint]]
"""The functions that put nodes into a plan, by the class of the node. Each is called with the node and the point of
each of its inputs.
"""


class Layout:
    """The stages of a plan while it is made.

    `used`: by the id of a node, the columns of its rows that later steps use. `matters`: the ids of the nodes before
    a result that depends on event time. `origin`: the origin of the node whose steps are added now.
    `reserved`: ids of stages that are given to a stage only by name.
    """

    def __init__(
        self,
        parallelism: int,
        used: Mapping[int, Columns],
        matters: frozenset[int] = frozenset(),
        reserved: Collection[str] = (),
    ) -> None:
        self.parallelism = parallelism
        self.used = used
        self.matters = matters
        self.origin = NO_ORIGIN
        self._reserved = reserved
        self.stages: list[Stage] = []
        self._sinks: dict[int | str, Stage] = {}
        self._ids: set[str] = set()
        self._counts: Counter[str] = Counter()
        # The id of a Read node -> ids of the Read nodes that are read before it (`_waiting`).
        self._waits: dict[int, set[int]] = {}

    def _id(self, kind: str) -> str:
        """Returns the next id of this kind. Ids name state, and each kind is counted by itself: an added filter does
        not change the ids of windows. The kind of a step of a script begins with its statement, so that no other
        statement changes its number.
        """
        while True:
            self._counts[kind] += 1
            id = f"{kind}-{self._counts[kind]}"
            if id not in self._reserved:
                return id

    def stage(self, name: str, parallelism: int, *, id: str | None = None, **what: Any) -> Stage:
        """Adds a stage. `id`: a reserved id, or None for the next one of this kind. `what`: its other fields."""
        stage = Stage(id or self._id(name), parallelism, **what)
        self.stages.append(stage)
        return stage

    def new_step(self, text: str, make: Callable[[], Operator], id: str, path: str) -> Step:
        """Returns a new step for `PlanPoint.step`. Raises UserError if the id is taken."""
        given, id = bool(id), id or self._id(self.origin.prefix + text.split(" ", 1)[0])
        if id in self._ids:
            raise UserError(
                f"two steps are called {id!r}", hint="name each once, and not as others are called by themselves"
            )
        self._ids.add(id)
        return Step(id, text, given, path, origin=self.origin, make=make)

    def sink(
        self,
        sink: str | Sink,
        key: str | None = None,
        delivery: Delivery = None,
        changes: Keys | None = None,
        nan: OnNan = None,
        format: Format | None = None,
    ) -> Stage:
        """Returns the stage that writes to a sink; all streams that write to it share one. Raises UserError if they
        do not agree on its options.

        `key`: the column whose values are the keys of records, or None. `changes`: the key of the changes, or None if
        rows are only added. `format`: the format of the records, or None if rows are records already.
        """
        name = sink if isinstance(sink, str) else id(sink)
        stage = self._sinks.get(name)
        if stage is None:
            stage = self._sinks[name] = self.stage("write", 1, sink=(sink, key), changes=changes, nan=nan)
        elif stage.sink is not None and stage.sink[1] != key:
            raise UserError(f"to({sink!r}): two streams write it with different keys", hint="give both the same key=")
        elif stage.changes != changes:
            raise UserError(
                f"to({sink!r}): two streams write it, and they are not both changes of the same key",
                hint="union them before .upsert(key)",
            )
        elif stage.nan != nan:
            raise UserError(f"to({sink!r}): two streams write it, with different nan=", hint="give both the same")
        stage.delivery = agreed_delivery(sink, stage.delivery, delivery)
        stage.format = agreed_format(str(name), stage.format, format)
        return stage

    def connect(
        self, node: TwoInputs, name: str, left: PlanPoint, right: PlanPoint, keys: tuple[Keys, Keys]
    ) -> PlanPoint:
        """Returns the head of a new stage that gets the rows of two streams by their keys. Each subtask gets all rows
        of a broadcast right side.

        With a broadcast right side, rows of the left stay in their subtasks if they do not depend on each other, as
        in a join.
        """
        timeless = left.timed and node.time_of_left and (not right.timed or _is_aside(node))
        if left.timed != right.timed and not timeless:
            left, right = left.without_time(), right.without_time()
        whole = isinstance(node.right, Broadcast)
        stays = whole and node.left_may_stay
        by_left, by_right = keys
        stage = self.stage(name, self.parallelism if by_left else 1, aligned=_aligned(node))
        left = left if stays else left.without_pairs(by_left)
        right = right if whole else right.without_pairs(by_right)
        edge = Edge(stage, None if stays else by_left or None, straight=stays, changes=left.changes)
        edge.first = self._waiting(node.left, node.right, False)
        left.targets.append(edge)
        edge = Edge(stage, None if whole else by_right or None, right=True, everywhere=whole, changes=right.changes)
        edge.timeless = timeless
        edge.first = self._waiting(node.right, node.left, _usually_first(node, timeless))
        right.targets.append(edge)
        # Rows that stay are in other subtasks with another parallelism.
        keys_behind = None if stays else by_left or None
        return replace(left, stage=stage, targets=stage.targets, keys=keys_behind, last=None)

    def _waiting(self, side: Node, other: Node, usual: bool) -> frozenset[Read]:
        """Returns the sources of `other` that must wait until `side` has been read up to the end that it has at the
        start.

        The result is empty if the step does not wait: the user has not asked for it and it is not usual for the step
        (`usual`), or it is impossible. It is impossible if a source of `side` cannot tell where its end is, or itself
        waits for a source of `other`. Raises UserError if the user has asked for it and it is impossible.
        """
        awaited = {id(each): each for each in walk([side]) if isinstance(each, Read)}
        asked = [each for each in awaited.values() if each.first]
        if not asked and (not usual or any(each.first is False for each in awaited.values())):
            return frozenset()
        waiting = _drivers(other)
        why = _endless(awaited.values()) or _unheld(waiting) or self._crossed(awaited, waiting)
        if why and asked:
            raise UserError(f"table {asked[0].name} cannot be read first: {why}", hint="leave first=True out")
        if why:
            return frozenset()
        for each in waiting:
            self._waits.setdefault(id(each), set()).update(awaited)
        return waiting

    def _crossed(self, awaited: Iterable[int], waiting: Iterable[Read]) -> str:
        """Returns a text that names a source in `waiting` for which one of the sources `awaited` waits already, even
        indirectly, or "" if there is none. The two would wait for each other.
        """
        before, more = set(awaited), list(awaited)
        while more:
            further = self._waits.get(more.pop(), set()) - before
            before |= further
            more += further
        return next(
            (f"{each.name} would wait for it, and it for {each.name}" for each in waiting if id(each) in before), ""
        )


def _usually_first(node: TwoInputs, timeless: bool) -> bool:
    """Returns True if the right side is read first unless the user says otherwise. `timeless`: True if the event time
    of the right is not used.
    """
    reads = [each for each in walk([node.right]) if isinstance(each, Read)]
    if isinstance(node, AsofJoin):
        return any(each.table is not None for each in reads)
    return isinstance(node, Lookup) or (timeless and all(each.bounded for each in reads))


def _is_aside(node: TwoInputs) -> bool:
    """Returns True if the step does not use the event time of its right input although the rows have it. If the left
    input ends first, the watermark follows the right.
    """
    return isinstance(node, Lookup) and not all(each.bounded for each in _drivers(node.left))


def _aligned(node: TwoInputs) -> Aligned | None:
    """Returns the sources of both sides if the step limits how far one may be read ahead of another (`max_drift_ms`),
    else None. Returns None too if a side has no source that can be held back.
    """
    if not isinstance(node, Join) or node.max_drift_ms is None:
        return None
    sides = [_clocks(each) for each in node.inputs]
    return Aligned(frozenset().union(*sides), node.max_drift_ms) if all(sides) else None


def _clocks(node: Node) -> frozenset[Read]:
    """Returns the sources from which the node's rows get their event time, without those that cannot be held back."""

    def inputs(each: Node) -> Iterable[Node]:
        return () if isinstance(each, WithTime) else each.inputs[:1] if isinstance(each, Lookup) else each.inputs

    return frozenset(each for each in _behind(node, inputs) if not isinstance(each, AgentRead))


def _drivers(node: Node) -> frozenset[Read]:
    """Returns the sources whose rows make the node emit rows. The source of a table in which rows are looked up is
    not among them.
    """
    return _behind(node, lambda each: each.inputs[:1] if isinstance(each, Lookup | AsofJoin) else each.inputs)


def _behind(node: Node, inputs: Callable[[Node], Iterable[Node]]) -> frozenset[Read]:
    """Returns the sources from which rows come to the node. `inputs`: returns the inputs of a step that are followed.
    Each step is visited once, since streams part and meet again.
    """
    seen, more = {id(node): node}, [node]
    while more:
        new = {id(each): each for each in inputs(more.pop()) if id(each) not in seen}
        seen |= new
        more += new.values()
    return frozenset(each for each in seen.values() if isinstance(each, Read))


def _endless(reads: Iterable[Read]) -> str:
    """Returns a text that names a source which cannot be read to an end, or ""."""
    for each in reads:
        source = each.source
        if isinstance(each, AgentRead) or (
            isinstance(source, Source) and not ends(source) and not overrides(source, "backlog")
        ):
            return f"{each.name} cannot tell where its end is"
    return ""


def _unheld(reads: Iterable[Read]) -> str:
    """Returns a text that names a source which cannot wait, or ""."""
    agents = [each.name for each in reads if isinstance(each, AgentRead)]
    return f"agent {agents[0]} emits results when it has them, and cannot wait" if agents else ""
