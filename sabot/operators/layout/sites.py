"""How steps are put into a plan.

The planner walks over the nodes of the graph. For each it looks up a function in the `PLACES` of the operators' modules, and calls it
with the node and the `Site` of each input: where the rows of that input come out. The function adds what the node needs, its own
operator and what must stand before it, and returns the site behind:

    def place_top_n(node, site):
        site = site.together(node.keys, "ranked")
        return site.step(node.text(), partial(TopN, node.keys, …), id=node.id)

A `Layout` is the plan while it is made. Ids of stages and operators are counted in it by kind, and name state in checkpoints: what adds
an operator more, or adds them in another order, gives state to others.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from sabot.api.nodes.joins import Lookup, TwoInputs
from sabot.api.nodes.node import Columns, Node, walk
from sabot.api.nodes.read import Read
from sabot.api.nodes.rows import Broadcast
from sabot.connectors.base import Delivery, Sink, Source, agreed_delivery
from sabot.errors import UserError
from sabot.operators.base import Operator
from sabot.operators.layout.stages import Edge, Stage, Step
from sabot.operators.rows.marked import WithoutPairs, WithoutTime

__all__ = ["Layout", "Places", "Site"]

Keys: TypeAlias = tuple[str, ...]


@dataclass(frozen=True)
class Site:
    """Where the rows of a node come out: the end of a chain, to which the next operator, or an edge into another stage, is added.

    keys: rows are in the subtask that owns the key group of these columns; None: in any. timed: they carry their event time. changes,
    unique: as the node says. path: a digest of what they have gone through. last: the operator whose rows they are; None: it is in
    another stage.
    """

    layout: "Layout"
    stage: Stage
    targets: list[Step | Edge]
    keys: Keys | None = None
    timed: bool = False
    path: str = ""
    changes: bool = False
    unique: Keys | None = None
    last: Step | None = None

    def step(self, text: str, make: Callable[[], Operator], *, id: str = "", **facts: Any) -> "Site":
        """The site behind a new operator at the end of the chain.

        text: what it does; its first word is its kind. make: gives an operator for each subtask. id: given by the user; else it is
        counted by kind. facts: what is otherwise behind it (`keys=None`: its rows are in any subtask).
        """
        step = self.layout.new_step(text, make, id, self.path)
        self.targets.append(step)
        return replace(self, targets=step.targets, last=step, **facts)

    def beside(self, name: str, sink: str | Sink | None) -> "Site":
        """Rows that leave the last operator by its output branch `name` go into this sink; None: they are dropped."""
        if sink is not None:
            assert self.last is not None
            self.last.branches[name] = [Edge(self.layout.sink(sink))]
        return self

    def branch(self, name: str) -> "Site":
        """Where the rows come out that leave the last operator by its output branch `name`."""
        assert self.last is not None
        return replace(self, targets=self.last.branches.setdefault(name, []), keys=None, last=None)

    def together(self, keys: Keys, name: str) -> "Site":
        """All rows of a key in one subtask: where they are, if they are there already, else in a new stage called `name`."""
        alone = self.stage.parallelism == 1 and (self.stage.reading is None or self.layout.parallelism == 1)
        if alone:
            return replace(self, keys=keys or None)  # the columns that were the keys before may be gone behind the step
        if keys and self.keys == keys:  # not if by some of them: a restore finds its rows by the key groups of all
            return self
        stage = self.layout.stage(name, self.layout.parallelism if keys else 1)
        site = self.parted(keys)
        site.targets.append(Edge(stage, keys or None, changes=site.changes))
        return replace(site, stage=stage, targets=stage.targets, keys=keys or None, last=None)

    def parted(self, keys: Keys) -> "Site":
        """Before changes are dealt out by these keys: an update whose two rows may go to two subtasks becomes a delete and an insert."""
        if not self.changes or not keys or (self.unique is not None and set(keys) <= set(self.unique)):
            return self
        return self.step("part updates", WithoutPairs)

    def untimed(self) -> "Site":
        """The rows without their event time."""
        return self.step("without event time", WithoutTime, timed=False) if self.timed else self


Places: TypeAlias = Mapping[type[Node], Callable[..., Site]]
"""Node -> what puts it into the plan: called with the node, and the site of each of its inputs."""


class Layout:
    """The stages of a plan while it is made. used: by the id of a node, the columns of its rows that anything behind it uses."""

    def __init__(self, parallelism: int, used: Mapping[int, Columns]) -> None:
        self.parallelism = parallelism
        self.used = used
        self.stages: list[Stage] = []
        self._sinks: dict[int | str, Stage] = {}
        self._ids: set[str] = set()
        self._counts: Counter[str] = Counter()
        self._waits: dict[int, set[int]] = {}  # ids of Read nodes -> of those that are read to their end before

    def _id(self, kind: str) -> str:
        """Counted by kind, so that a filter more does not give a window's state to another window."""
        self._counts[kind] += 1
        return f"{kind}-{self._counts[kind]}"

    def stage(self, name: str, parallelism: int, **what: Any) -> Stage:
        """A new stage; what: its other fields."""
        stage = Stage(self._id(name), parallelism, **what)
        self.stages.append(stage)
        return stage

    def new_step(self, text: str, make: Callable[[], Operator], id: str, path: str) -> Step:
        """For `Site.step`."""
        given, id = bool(id), id or self._id(text.split(" ", 1)[0])
        if id in self._ids:
            raise UserError(
                f"two steps are called {id!r}", hint="name each once, and not as others are called by themselves"
            )
        self._ids.add(id)
        return Step(id, text, make, named=given, path=path)

    def sink(
        self, sink: str | Sink, key: str | None = None, delivery: Delivery = None, changes: Keys | None = None
    ) -> Stage:
        """The stage that writes into a sink; one for all who do. changes: the key of the changes that come; None: rows are only added."""
        name = sink if isinstance(sink, str) else id(sink)
        stage = self._sinks.get(name)
        if stage is None:
            stage = self._sinks[name] = self.stage("write", 1, sink=(sink, key), changes=changes)
        elif stage.sink is not None and stage.sink[1] != key:
            raise UserError(f"to({sink!r}): two streams write it with different keys", hint="give both the same key=")
        elif stage.changes != changes:
            raise UserError(
                f"to({sink!r}): two streams write it, and they are not both changes of the same key",
                hint="union them before .upsert(key)",
            )
        stage.delivery = agreed_delivery(sink, stage.delivery, delivery)
        return stage

    def meet(self, node: TwoInputs, name: str, left: Site, right: Site, keys: tuple[Keys, Keys]) -> Site:
        """The head of a stage into which two streams go, by the keys of each; all of a broadcast one into every subtask.

        Rows of the left stay in their subtasks where the right is broadcast and one row of the left does not hang on others: in a join.
        """
        timeless = left.timed and not right.timed and node.time_of_left
        if left.timed != right.timed and not timeless:
            left, right = left.untimed(), right.untimed()
        whole = isinstance(node.right, Broadcast)
        stays = whole and node.left_may_stay
        by_left, by_right = keys
        stage = self.stage(name, self.parallelism if by_left else 1)
        left = left if stays else left.parted(by_left)
        right = right if whole else right.parted(by_right)
        left.targets.append(Edge(stage, None if stays else by_left or None, straight=stays, changes=left.changes))
        edge = Edge(stage, None if whole else by_right or None, right=True, everywhere=whole, changes=right.changes)
        edge.timeless = timeless
        edge.first = (timeless or isinstance(node, Lookup)) and self._ends_apart(node)
        right.targets.append(edge)
        keys_behind = None if stays else by_left or None  # with another parallelism they would be dealt out anew
        return replace(left, stage=stage, targets=stage.targets, keys=keys_behind, last=None)

    def _ends_apart(self, node: TwoInputs) -> bool:
        """The right side ends, and may be read to its end first: nothing that it reads waits, by others, for the left."""
        left, right = ({id(each): each for each in walk([side]) if isinstance(each, Read)} for side in node.inputs)
        if not all(isinstance(each.source, Source) and each.source.bounded for each in right.values()):
            return False
        awaited, more = set(right), list(right)
        while more:
            for each in self._waits.get(more.pop(), set()) - awaited:
                awaited.add(each)
                more.append(each)
        if awaited & left.keys():
            return False
        for each in left:
            self._waits.setdefault(each, set()).update(right)
        return True
