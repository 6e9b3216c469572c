"""The placement of tasks on workers: a function of the plan and of the number of workers alone, so that every start
has the same result.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from hashlib import sha256
from itertools import count

from sabot.codecs.json import schema_text
from sabot.engine.plan import Plan, Stage
from sabot.engine.runtime.agents.groups import AgentGroup


def place(
    stages: Sequence[Stage], workers: int, groups: Sequence[AgentGroup] = (), sinks: Collection[int] = ()
) -> dict[str, int]:
    """Returns, by task, the number of its worker, from 0.

    Subtasks of a stage are assigned to the workers in turn, so subtasks with the same number are on one worker, and
    an edge between them stays in one process. A stage with one task, such as a sink, is assigned to the worker with
    the fewest tasks.

    The agents that share a task are on the last worker, and so is every stage that exchanges rows with them. Then a
    Sink that agents and streams write (`sinks`: the ids of these Sinks) is written by one process. Each task of an
    agent with `process=` has an additional worker of its own.
    """
    last, own = workers - 1, count(workers)
    of_groups = {group.task: next(own) if group.own else last for group in groups}
    placed = {f"{agent}/0": of_groups[group.task] for group in groups for agent in group.agents}
    with_agents = _with_agents([stage for stage in stages if placed.get(f"{stage.id}/0", last) == last], sinks)
    placed |= {
        f"{stage.id}/{number}": last if stage.id in with_agents else number % workers
        for stage in stages
        if stage.parallelism > 1 or stage.id in with_agents
        for number in range(stage.parallelism)
    }
    load = Counter(placed.values())
    for stage in stages:
        if f"{stage.id}/0" not in placed:
            least = min(range(workers), key=lambda worker: (load[worker], worker))
            load[least] += 1
            placed[f"{stage.id}/0"] = least
    return {
        **{
            f"{stage.id}/{number}": placed[f"{stage.id}/{number}"]
            for stage in stages
            for number in range(stage.parallelism)
        },
        **of_groups,
    }


def _with_agents(stages: Sequence[Stage], sinks: Collection[int]) -> set[str]:
    """Returns the ids of the stages of agents, and of those that edges connect with them, in either direction."""
    beside: defaultdict[str, set[str]] = defaultdict(set)
    for stage in stages:
        letters = [] if stage.dead_letters is None else [stage.dead_letters]
        for edge in [*stage.edges(), *letters]:
            beside[stage.id].add(edge.target.id)
            beside[edge.target.id].add(stage.id)
    to_follow = [
        stage.id
        for stage in stages
        if stage.agent is not None or (stage.sink is not None and id(stage.sink[0]) in sinks)
    ]
    found = set(to_follow)
    while to_follow:
        news = beside[to_follow.pop()] - found
        found |= news
        to_follow += news
    return found


def fingerprint(app: str, plan: Plan) -> str:
    """Returns a digest of a plan's steps and numbers of tasks. Two processes with equal digests may share the plan's
    tasks.
    """
    words = [app, plan.text()]
    for stage in plan.stages:
        words.append(f"{stage.id} {stage.parallelism}")
        words += [f"{step.id} {step.path}" for step in stage.steps()]
        if stage.reading is not None:
            words.append(f"{schema_text(stage.reading.rows)}")
    return sha256("\n".join(words).encode()).hexdigest()
