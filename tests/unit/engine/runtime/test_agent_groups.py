"""Which agents of an app are one task, and what an agent with a process of its own cannot do."""

import pytest

from sabot import App, NdjsonSink
from sabot.connectors.base import Source
from sabot.engine.checkpoint import Manifest, StoredTask
from sabot.engine.runtime.agents.groups import agent_groups
from sabot.errors import UserError


class Partitions(Source):
    """A source that can be read by so many."""

    def __init__(self, partitions):
        self.name = "orders"
        self.partitions = partitions

    def open(self, positions, start="earliest"): ...

    def read_batch(self, max_rows, timeout): ...

    def positions(self):
        return {}

    def close(self): ...

    def readers(self, count):
        return [f"reader {number}" for number in range(min(count, self.partitions))]


def groups_of(app):
    return agent_groups(app.spec.agent_specs, app.spec.ends)


def app_with(**options):
    app = App("shop")
    app.agent("orders", name="plain")(lambda ctx: None)
    app.agent("orders", name="own", **options)(lambda ctx: None)
    return app


def test_agents_are_one_task_but_for_those_with_processes_of_their_own():
    tasks = {group.task: group.agents for group in groups_of(app_with(process=2))}
    assert tasks == {
        "agents": ("shop.plain",),
        "agents.shop.own/0": ("shop.own",),
        "agents.shop.own/1": ("shop.own",),
    }
    assert [group.task for group in groups_of(app_with())] == ["agents"]
    assert [group.room for group in groups_of(app_with(process=True))] == ["agents", "agents.shop.own.0"]


def test_each_task_of_an_agent_reads_its_share_of_the_partitions():
    first, second = groups_of(app_with(process=2))[1:]
    assert [first.share_of(Partitions(4)), second.share_of(Partitions(4))] == ["reader 0", "reader 1"]
    whole = Partitions(1)
    assert groups_of(app_with(process=True))[1].share_of(whole) is whole
    with pytest.raises(UserError, match="has process=2, but orders allows only 1 readers"):
        second.share_of(Partitions(1))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"process": 0}, "process=0"),
        ({"process": 1.5}, "process=1.5"),
        ({"process": 65}, "process=65"),
        ({"process": True, "durable": True}, "process= with durable=True"),
        ({"process": True, "sink": print}, "a sink that is an agent of another process"),
    ],
)
def test_what_a_process_of_its_own_cannot_have_is_refused_where_it_is_written(options, words):
    with pytest.raises(UserError, match=words):
        app_with(**options)


def test_rows_do_not_come_to_it_through_the_memory_of_a_process():
    app = App("shop")

    @app.agent(process=True)
    async def own(ctx): ...

    @app.agent("orders", sink=own)
    async def before(ctx): ...

    with pytest.raises(UserError, match=r"agent shop.own has process=, and agent shop.before writes into it"):
        groups_of(app)
    app = App("shop")
    own = app.agent(process=True, name="own")(own)
    app.stream("orders", schema={"n": "int64"}).to(own)
    with pytest.raises(UserError, match="a stream writes into it"):
        groups_of(app)
    app = App("shop")
    own = app.agent("orders", process=True, name="own")(own)
    app.stream(own, schema={"n": "int64"}).to("out")
    with pytest.raises(UserError, match="a stream reads it"):
        groups_of(app)


def test_a_sink_object_has_one_process_that_writes_it():
    sink = NdjsonSink("out.ndjson")
    assert len(groups_of(app_with(process=True, sink=sink))) == 2
    with pytest.raises(UserError, match=r"sink out.ndjson would be written by several processes"):
        groups_of(app_with(process=2, sink=sink))
    app = app_with(process=True, sink=sink)
    app.agent("more", name="third", dead_letter=sink)(lambda ctx: None)
    with pytest.raises(UserError, match=r"sink out.ndjson would be written by several processes"):
        groups_of(app)


async def test_it_needs_sabot_run():
    with pytest.raises(UserError, match=r"agent shop.own has process=") as refused:
        await app_with(process=True).run()
    assert "sabot run module:app" in refused.value.hint


def checkpoint(*tasks):
    return Manifest(3, 0, tasks={name: StoredTask({"agents": {"shop.own": {}}, "sources": {}}) for name in tasks})


def test_a_checkpoint_in_which_it_ran_otherwise_is_refused():
    plain, several = groups_of(app_with())[0], groups_of(app_with(process=2))[1]
    plain.check(checkpoint("agents"))
    plain.check(checkpoint())
    several.check(checkpoint("agents.shop.own/0", "agents.shop.own/1"))
    for group, was in (
        (plain, ["agents.shop.own/0"]),
        (several, ["agents"]),
        (several, ["agents.shop.own/0"]),
        (several, ["agents.shop.own/0", "agents.shop.own/1", "agents.shop.own/2"]),
    ):
        with pytest.raises(UserError, match=r"agent shop.own had .* in checkpoint 3"):
            group.check(checkpoint(*was))
