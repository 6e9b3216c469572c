"""Cells of a notebook that are interrupted and run again, without a notebook: a loop runs in the main thread, and SIGINT comes."""

import logging
import subprocess
import sys
import types
from pathlib import Path

import pytest

from sabot import App, UserError, count
from sabot.testing import MemoryBroker
from tools.agent_tools import bounded, until

INTERRUPTED = """
import asyncio, os, signal, threading, time
from sabot import App
from sabot.testing import MemoryBroker

MemoryBroker.get().publish("numbers", [{"n": n} for n in range(10)])
stream = App("looks", state="state").stream("numbers", schema={"n": "int64"})
called = threading.Event()

def slow(batch):
    called.set()
    time.sleep(0.5)
    return batch

def interrupt():
    called.wait()
    os.kill(os.getpid(), signal.SIGINT)

async def kernel():
    signal.signal(signal.SIGINT, signal.default_int_handler)  # as while a cell runs
    threading.Thread(target=interrupt).start()
    try:
        stream.map_batches(slow).collect(limit=100)
    except KeyboardInterrupt:
        left = [each.name for each in threading.enumerate() if each.name == "collect" or "/" in each.name]
        print("interrupted, and these still run:", left)
    print(stream.collect(limit=3).num_rows, "rows of the same cell")

asyncio.run(kernel())
"""


@pytest.mark.slow  # half a second of a core
def test_an_interrupted_look_has_ended_when_the_cell_has(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.splitlines() == ["interrupted, and these still run: []", "3 rows of the same cell"], done.stderr


def counting(broker: str, total: str) -> App:
    """Returns the app of a cell, which is run again with another name of its column."""
    app = App("cells", broker)
    clicks = app.stream("clicks", schema={"id": "int64"})
    clicks.key_by("id").aggregate(**{total: count()}).to("counts")
    return app


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    shell = types.ModuleType("IPython")
    shell.get_ipython = lambda: object()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", shell)


@pytest.mark.usefixtures("notebook")
async def test_an_app_that_is_made_again_in_a_notebook_takes_the_place_of_the_running_one(
    memory_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    MemoryBroker.get(memory_url).publish("clicks", [{"id": 1}])
    before = counting(memory_url, "n")
    await before.start()
    app = counting(memory_url, "clicks")  # the cell ran again, and nothing refers to the app of before
    await app.start()
    try:
        assert "the App of an earlier cell still runs" in caplog.text
        assert not before.agent_runtime.runner.started
        MemoryBroker.get(memory_url).publish("clicks", [{"id": 1}])
        rows = app.agent_runtime.runner
        await until(lambda: sum(each["rows"] for each in app.statistics()["streams"].values()) >= 4)
        assert rows.started
    finally:
        await bounded(app.stop())
    await app.start()  # again, in a further cell: nothing is to be stopped
    await bounded(app.stop())
    assert caplog.text.count("the App of an earlier cell still runs") == 1


@pytest.mark.usefixtures("notebook")
async def test_apps_of_two_names_or_of_two_brokers_run_beside_each_other_in_a_notebook(memory_url: str) -> None:
    apps = [counting(memory_url, "n"), counting(f"{memory_url}-other", "n"), App("another", memory_url)]
    apps[2].stream("clicks", schema={"id": "int64"}).to("copy")
    for app in apps:
        await app.start()
    assert all(app.agent_runtime.runner.started for app in apps)
    for app in apps:
        await bounded(app.stop())


async def test_outside_of_a_notebook_no_app_stops_another(memory_url: str) -> None:
    apps = [counting(memory_url, "n"), counting(memory_url, "n")]
    for app in apps:
        await app.start()
    assert all(app.agent_runtime.runner.started for app in apps)
    for app in apps:
        await bounded(app.stop())


async def test_main_says_what_a_notebook_takes(memory_url: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)
    with pytest.raises(
        UserError, match=r"app cells: main\(\) starts an event loop, but one runs here already"
    ) as refused:
        counting(memory_url, "n").main()
    assert refused.value.hint == "await app.run(), as in a notebook"
