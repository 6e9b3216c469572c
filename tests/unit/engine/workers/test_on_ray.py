"""What of the launcher on Ray can be seen without a cluster; `tests/recovery/test_workers_ray.py` has one."""

import asyncio
import sys
from concurrent.futures import Future
from types import SimpleNamespace

import pytest

from sabot.engine.workers.joining import Ticket
from sabot.engine.workers.on_ray import RayLauncher, _Holder, _options, _RayProcess, parse_resources
from sabot.errors import MissingExtra, UserError


def test_resources_are_read_by_rays_names():
    assert parse_resources("CPU=2, GPU=0.5,memory=4e9,fast_disk=1") == {
        "CPU": 2.0,
        "GPU": 0.5,
        "memory": 4e9,
        "fast_disk": 1.0,
    }


@pytest.mark.parametrize(
    "text", ["", "CPU", "CPU=", "=1", "CPU=x", "CPU=0", "CPU=-1", "CPU=inf", "CPU=nan", "CPU=1,CPU=1", "CPU=1,"]
)
def test_what_is_no_resource_is_refused(text):
    with pytest.raises(UserError, match="is not a resource"):
        parse_resources(text)


def test_an_actor_takes_what_its_bundle_has():
    found = _options({"GPU": 1.0, "fast_disk": 2.0})
    assert found == {
        "num_cpus": 0,
        "num_gpus": 1.0,
        "resources": {"fast_disk": 2.0},
        "max_restarts": 0,
        "max_task_retries": 0,
    }


def test_without_ray_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtra, match=r"sabot\[ray\]"):
        RayLauncher("auto", [], {"CPU": 1.0})


def test_a_node_without_the_programs_folder_says_so(tmp_path):
    ticket = Ticket("127.0.0.1:1", "a token of sixteen characters").encoded(0)
    assert "has no folder" in _Holder().run([], str(tmp_path / "nowhere"), ticket)


async def test_room_for_more_workers_is_asked_for_and_given_back(monkeypatch):
    has_room, held = True, []
    group = SimpleNamespace(wait=lambda seconds: has_room)
    groups = SimpleNamespace(
        placement_group=lambda bundles, strategy: held.append(bundles) or group,
        remove_placement_group=lambda given: held.pop(),
    )
    cluster = SimpleNamespace(
        is_initialized=lambda: True, util=groups, cluster_resources=lambda: {"CPU": 4.0, "node:1": 1.0}
    )
    monkeypatch.setitem(sys.modules, "ray", cluster)
    monkeypatch.setattr("sabot.engine.workers.on_ray._MORE_ROOM_SECONDS", 0.01)
    launcher = RayLauncher("auto", [], {"CPU": 2.0})
    await launcher.make_room(1)
    has_room = False
    with pytest.raises(UserError, match=r"no room for 3 more workers of CPU=2 each .*all that it has: CPU=4\b(?!,)"):
        await launcher.make_room(3)
    assert held == []


async def test_how_a_worker_on_ray_has_ended_is_told():
    for result, said in ((0, "exit code 0"), (-9, "SIGKILL"), ("cannot be started: why", "cannot be started: why")):
        running = Future()
        process = _RayProcess(lambda: None, running, asyncio.get_running_loop())
        running.set_result(result)
        assert said in (await process.wait()).how
    running = Future()
    process = _RayProcess(lambda: None, running, asyncio.get_running_loop())
    running.set_exception(RuntimeError("The actor died.\nmore"))
    assert (await process.wait())[:2] == ("was lost with its Ray actor", "The actor died.")


async def test_the_end_of_a_node_that_nobody_hears_of_is_not_waited_for_without_end(monkeypatch):
    monkeypatch.setattr("sabot.engine.workers.on_ray._KILLED_SECONDS", 0.01)
    killed = []
    process = _RayProcess(lambda: killed.append(1), Future(), asyncio.get_running_loop())
    process.kill()
    assert (await asyncio.wait_for(process.wait(), 60)).how == "was killed"
    assert killed == [1]
