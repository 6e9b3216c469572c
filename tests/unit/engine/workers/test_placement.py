"""Which worker runs which task."""

from collections import Counter

import pytest

from sabot import App, NdjsonSink, col, count
from sabot.engine.operators.layout.stages import Stage
from sabot.engine.plan import make_plan
from sabot.engine.runtime.agents.groups import agent_groups
from sabot.engine.workers.placement import fingerprint, place


def stages(**parallelism):
    return [Stage(name, threads) for name, threads in parallelism.items()]


@pytest.mark.parametrize("workers", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("threads", [1, 2, 7, 8])
def test_subtasks_of_a_stage_are_spread_evenly(threads, workers):
    placed = place(stages(read=threads), workers)
    counts = Counter(placed.values())
    assert len(placed) == threads
    assert max(counts.values()) - min(counts[worker] for worker in range(workers)) <= 1


def test_equal_subtasks_of_two_stages_are_in_one_worker():
    placed = place(stages(read=4, keyed=4), 3)
    assert all(placed[f"read/{number}"] == placed[f"keyed/{number}"] for number in range(4))


def test_stages_of_one_task_go_where_the_fewest_are():
    placed = place(stages(read=3, first=1, second=1, third=1), 2)
    assert placed["first/0"] == 1
    assert Counter(placed.values()) == {0: 3, 1: 3}


def test_the_order_is_that_of_the_plan():
    assert list(place(stages(sink=1, read=2), 2)) == ["sink/0", "read/0", "read/1"]


def app_of_agents():
    """A stream beside agents, and one that gives rows to an agent, whose results another one reads."""
    app = App("payments")

    @app.agent("orders")
    async def alone(ctx): ...

    @app.agent()
    async def fed(ctx): ...

    columns = {"account": "string", "amount": "float64"}
    app.stream("large", schema=columns).filter(col("amount") > 9).key_by("account").aggregate(n=count()).to(fed)
    app.stream(fed, schema=columns).to("checked")
    app.stream("payments", schema=columns).key_by("account").aggregate(n=count()).to(NdjsonSink("out.ndjson"))
    return app


def test_agents_are_one_task_with_the_streams_that_they_meet_and_the_others_are_spread():
    app = app_of_agents()
    specs = app.spec.agent_specs
    stages = make_plan(app.spec.ends, agents=specs, parallelism=3).stages
    placed = place(stages, 3, agent_groups(specs, app.spec.ends))
    assert placed["agents"] == 2

    def workers_of(stage):
        return [placed[f"{stage.id}/{number}"] for number in range(stage.parallelism)]

    readers = {stage.reading.node.name: workers_of(stage) for stage in stages if stage.reading is not None}
    assert readers == {"large": [2, 2, 2], "payments.fed": [2], "payments": [0, 1, 2]}
    assert [workers_of(stage) for stage in stages if stage.agent is not None] == [[2], [2]]
    assert [workers_of(stage) for stage in stages if stage.sink is not None and stage.sink[0] == "checked"] == [[2]]


def test_a_task_of_an_agent_with_process_has_a_worker_to_itself():
    app = App("payments")
    app.agent("a", name="shared")(lambda ctx: None)
    app.agent("b", name="own", process=True)(lambda ctx: None)
    app.agent("c", name="several", process=2)(lambda ctx: None)
    specs = app.spec.agent_specs
    groups = agent_groups(specs, [])
    placed = place(make_plan([], agents=specs, parallelism=2).stages, 2, groups)
    assert {group.task: placed[group.task] for group in groups} == {
        "agents": 1,
        "agents.payments.own/0": 2,
        "agents.payments.several/0": 3,
        "agents.payments.several/1": 4,
    }
    alone = agent_groups([spec for spec in specs if spec.process], [])
    assert sorted({place([], 0, alone)[group.task] for group in alone}) == [0, 1, 2], "nothing else asks for a worker"


def plan_of(amount, parallelism=2):
    app = App("payments")
    rows = app.stream("payments", schema={"account": "string", "amount": "float64"})
    rows.filter(col("amount") > amount).key_by("account").aggregate(n=count()).to(NdjsonSink("out.ndjson"))
    return make_plan(app.spec.ends, parallelism=parallelism)


def test_a_fingerprint_tells_programs_and_numbers_of_tasks_apart():
    same = fingerprint("payments", plan_of(10))
    assert same == fingerprint("payments", plan_of(10))
    others = [
        fingerprint("others", plan_of(10)),
        fingerprint("payments", plan_of(11)),
        fingerprint("payments", plan_of(10, parallelism=3)),
    ]
    assert len({same, *others}) == 4
