"""Steps that pass some of the rows: the first ones, or a random sample. Their counters are part of the checkpoint, so
they continue after a restart.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from sabot._cython.arrow.batch import Batch
from sabot.api.nodes import rows as nodes
from sabot.codecs.json import schema_text
from sabot.engine.operators.base import OperatorContext, Saved
from sabot.engine.operators.layout.plan_points import Planners, PlanPoint
from sabot.engine.operators.readers import StateReaders
from sabot.engine.operators.rows.origin import reselected
from sabot.engine.operators.state_facts import OwnFacts, StateReader, StateSchema
from sabot.engine.operators.state_parts import StatefulOperator, StateParts


class Head(StatefulOperator):
    """Passes the first `n` rows, and drops all others. The count continues over restarts of the app. No row is
    copied: rows after the n-th are left out of the batch's selection.

    Its only state is the number of rows that it has passed. The plan sends all rows to one subtask.
    """

    def __init__(self, n: int) -> None:
        self._n = n
        self._passed = 0

    def open(self, context: OperatorContext) -> pa.Schema:
        self._schema = context.input
        self._counts = context.subtask == 0
        self.state_parts = StateParts(context, keyed=False)
        return context.input

    def process(self, batch: Batch) -> None:
        rows = min(batch.num_rows, self._n - self._passed)
        if rows <= 0:
            return
        self._passed += rows
        if rows == batch.num_rows:
            self.emit(batch)
            return
        selection = pa.array(np.arange(rows, dtype=np.int32)) if batch.selection is None else batch.selection[:rows]
        self.emit(reselected(batch, selection, batch.hashes))

    def own_facts(self) -> OwnFacts:
        return {"passed": self._passed}

    def after_restore(self, saved: Sequence[Saved]) -> None:
        self._passed = self.state_parts.once(saved, "passed")

    def group_count(self) -> int:
        """Returns 1 if it has passed rows, else 0. A start with a program that would lose this count, and pass n rows
        again, is therefore refused.
        """
        return int(self._passed > 0)

    def state_schema(self) -> StateSchema:
        return {"kind": "head", "n": self._n}

    def taken_over(self, fact: str, before: Any, now: Any, groups: int) -> str | None:
        return f"n was {before}, is {now}: the rows that have passed count" if fact == "n" else None

    def state_reader(self) -> StateReader:
        return {"keys": [], "input": schema_text(self._schema)}

    def contents(self) -> Iterator[pa.RecordBatch]:
        """Yields one row: the number of rows that it has passed."""
        if self._counts:
            yield pa.record_batch({"rows": pa.array([self._passed], pa.int64())})


class Sample(StatefulOperator):
    """Passes each row with the probability `fraction`. After a restart, the random generator of the subtask continues
    from the checkpoint.

    A subtask that the checkpoint does not have begins with a new generator.
    """

    def __init__(self, fraction: float, seed: int) -> None:
        self._fraction, self._seed = fraction, seed

    def open(self, context: OperatorContext) -> pa.Schema:
        self._random = np.random.Generator(np.random.PCG64([self._seed, context.subtask]))
        self.state_parts = StateParts(context)
        return context.input

    def process(self, batch: Batch) -> None:
        kept = pa.array(np.flatnonzero(self._random.random(batch.num_rows) < self._fraction).astype(np.int32))
        if len(kept):
            selection = kept if batch.selection is None else batch.selection.take(kept)
            self.emit(reselected(batch, selection, batch.hashes))

    def own_facts(self) -> OwnFacts:
        state = self._random.bit_generator.state["state"]
        return {"state": str(state["state"]), "inc": str(state["inc"])}

    def state_schema(self) -> StateSchema:
        return {"kind": "sample", "fraction": self._fraction, "seed": self._seed}

    def after_restore(self, saved: Sequence[Saved]) -> None:
        given = self._random.bit_generator.state
        for part in saved:
            if part.facts["inc"] == str(given["state"]["inc"]):  # each subtask's generator has its own increment
                own = {"state": int(part.facts["state"]), "inc": given["state"]["inc"]}
                self._random.bit_generator.state = {**given, "state": own}


# -- their place in a plan ----------------------------------------------------------------------------------------------


def plan_head(node: nodes.Head, point: PlanPoint) -> PlanPoint:
    return point.partition_by((), "first").step(node.text(), partial(Head, node.n), id=node.id)


def plan_sample(node: nodes.Sample, point: PlanPoint) -> PlanPoint:
    return point.step(node.text(), partial(Sample, node.fraction, node.seed), id=node.id)


PLANNERS: Planners = {nodes.Head: plan_head, nodes.Sample: plan_sample}


STATE_READERS: StateReaders = {"head": lambda reader: Head(0), "sample": "where its random numbers stand"}
