"""Which worker runs which task: a function of the plan and of the number of workers alone, so that every start comes to the same."""

from collections import Counter
from collections.abc import Sequence
from hashlib import sha256

from sabot.codecs.json import schema_text
from sabot.plan import Plan, Stage

__all__ = ["fingerprint", "place"]


def place(stages: Sequence[Stage], workers: int) -> dict[str, int]:
    """The number of the worker of each task, from 0.

    Subtasks of a stage are dealt out in turn: equal numbers of several stages come to one worker, and an edge between them stays in the
    process. A stage of one task, as a sink, goes to the worker that has the fewest.
    """
    placed = {
        f"{stage.id}/{number}": number % workers
        for stage in stages
        if stage.parallelism > 1
        for number in range(stage.parallelism)
    }
    load = Counter(placed.values())
    for stage in stages:
        if stage.parallelism == 1:
            least = min(range(workers), key=lambda worker: (load[worker], worker))
            load[least] += 1
            placed[f"{stage.id}/0"] = least
    return {
        f"{stage.id}/{number}": placed[f"{stage.id}/{number}"]
        for stage in stages
        for number in range(stage.parallelism)
    }


def fingerprint(app: str, plan: Plan) -> str:
    """A digest of what a plan does and of how many tasks it has. Two processes with the same one may share its tasks."""
    words = [app, plan.text()]
    for stage in plan.stages:
        words.append(f"{stage.id} {stage.parallelism}")
        words += [f"{step.id} {step.path}" for step in stage.steps()]
        if stage.reading is not None:
            words.append(f"{schema_text(stage.reading.rows)}")
    return sha256("\n".join(words).encode()).hexdigest()
