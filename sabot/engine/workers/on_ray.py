"""Workers on the nodes of a Ray cluster. A Ray actor starts the process of each worker, and has one bundle of
resources of a common placement group.

Ray chooses the nodes, starts the actors, and ends them with their node. The rest is as without Ray: the process joins
the coordinator over TCP, and rows go from worker to worker. The actor's process imports this module, so Sabot must be
installed on every node, as Ray is. The program is imported from the folder in which the coordinator was started,
which every node must have at the same path.
"""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any

from sabot.base.threads import call_on_loop, run_in_thread
from sabot.clock import SYSTEM_CLOCK
from sabot.engine.workers.joining import Ticket, parse_address
from sabot.engine.workers.launching import LaunchedProcess, Launcher, ProcessEnd, how_it_ended
from sabot.errors import MissingExtra, TransientError, UserError, message_of

_ROOM_SECONDS = 120.0  # the wait for room in the cluster, which an autoscaler may have to make
_MORE_ROOM_SECONDS = 60.0  # the same wait for a rescale; it is shorter, because the user waits for the answer
_MORE_ROOM = "fewer workers, less for each (--ray-resources), or more nodes"
_CONNECT_SECONDS = 10.0  # the wait for an answer of the cluster's head
_KILLED_SECONDS = 10.0  # the wait until Ray reports the end of a killed actor
_ADDRESS_WORDS = "auto, or the address of the cluster's head node, host:port"


def _ray() -> Any:
    """Returns the library. It is imported at its first use, because the import takes a second. Raises MissingExtra."""
    try:
        import ray
    except ImportError as error:
        raise MissingExtra("--ray", "ray") from error
    return ray


def parse_resources(text: str) -> dict[str, float]:
    """Parses "CPU=2,GPU=1" into {"CPU": 2.0, "GPU": 1.0}. Raises UserError."""
    found: dict[str, float] = {}
    for part in text.split(","):
        name, equals, number = part.strip().partition("=")
        try:
            value = float(number)
        except ValueError:
            value = -1.0
        if not name or not equals or not 0 < value < float("inf") or name in found:
            raise UserError(
                f"--ray-resources {text}: {part!r} is not a resource",
                hint="write resources by Ray's names: CPU=2,GPU=0.5,memory=4e9",
            )
        found[name] = value
    return found


class RayLauncher(Launcher):
    """A launcher of the workers of one attempt. All methods run on one event loop."""

    def __init__(self, address: str, words: Sequence[str], resources: Mapping[str, float]) -> None:
        """`words`: the arguments of `python -m sabot` that start a worker. `resources`: those of each worker, by
        Ray's names. Raises MissingExtra.
        """
        self._ray = _ray()
        self._address = address
        self._words = list(words)
        self._resources = dict(resources)
        self._folder = os.getcwd()
        self._group: Any = None
        self._bundle = 0

    async def open(self, workers: int) -> str:
        """Returns the address of this machine in the cluster. Raises TransientError if the cluster has no room for
        all workers.
        """
        self._group = await run_in_thread(self._asked, workers)
        _keep_sigterm()
        if not await _placed(self._group, _ROOM_SECONDS):
            raise TransientError(
                await run_in_thread(self._no_room, f"{workers} workers", _ROOM_SECONDS), hint=_MORE_ROOM
            )
        address: str = self._ray.util.get_node_ip_address()
        return address

    async def make_room(self, more: int) -> None:
        """Raises UserError if the cluster has no room for `more` additional workers. It reserves the room, so that
        the cluster grows if it can, and releases it again.
        """
        group = await run_in_thread(self._asked, more)
        try:
            if not await _placed(group, _MORE_ROOM_SECONDS):
                raise UserError(
                    await run_in_thread(self._no_room, f"{more} more workers", _MORE_ROOM_SECONDS), hint=_MORE_ROOM
                )
        finally:
            await run_in_thread(self._ray.util.remove_placement_group, group)

    def _asked(self, workers: int) -> Any:
        """Requests the placement group, and returns it; the cluster may not have room for it yet. Raises UserError
        without a cluster.
        """
        ray = self._ray
        if not ray.is_initialized():
            try:
                if self._address != "auto":  # Ray itself would retry for minutes
                    socket.create_connection(parse_address(self._address, "--ray"), _CONNECT_SECONDS).close()
                ray.init(address=self._address, namespace="sabot", configure_logging=False)
            except (ray.exceptions.RayError, OSError, RuntimeError, ValueError) as error:
                raise UserError(
                    f"there is no Ray cluster at {self._address}: {message_of(error)[:500]}",
                    hint=f"--ray {_ADDRESS_WORDS}; this machine has to be one of its nodes (ray start --address=…)",
                ) from error
        return ray.util.placement_group([self._resources] * workers, strategy="SPREAD")

    def _no_room(self, workers: str, seconds: float) -> str:
        has = {name: value for name, value in sorted(self._ray.cluster_resources().items()) if "node:" not in name}
        return (
            f"the Ray cluster has had no room for {workers} of {_text(self._resources)} each for {seconds:g} s; "
            f"all that it has: {_text(has)}"
        )

    async def launch(self, ticket: Ticket) -> LaunchedProcess:
        """Starts one worker in an actor."""
        return await run_in_thread(self._launch, ticket, asyncio.get_running_loop())

    def _launch(self, ticket: Ticket, loop: asyncio.AbstractEventLoop) -> "_RayProcess":
        ray = self._ray
        where = ray.util.scheduling_strategies.PlacementGroupSchedulingStrategy(
            self._group, placement_group_bundle_index=self._bundle
        )
        self._bundle += 1
        actor = ray.remote(_Holder).options(**_options(self._resources), scheduling_strategy=where).remote()
        running = actor.run.remote(self._words, self._folder, ticket.encoded(0))
        return _RayProcess(partial(ray.kill, actor), running.future(), loop)

    async def close(self) -> None:
        """Returns the reserved resources to the cluster."""
        group, self._group = self._group, None
        if group is not None:
            await run_in_thread(self._ray.util.remove_placement_group, group)


def _keep_sigterm() -> None:
    """Restores this process's handler of SIGTERM. Ray's handler prints a trace and sets an alarm, which three seconds
    later aborts a process that stops in good order.
    """
    handler = signal.getsignal(signal.SIGTERM)
    if handler is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)
        signal.siginterrupt(signal.SIGTERM, False)  # as the event loop has it


async def _placed(group: Any, seconds: float) -> bool:
    """Returns True if the cluster has room for the placement group within `seconds`."""
    ends_s = SYSTEM_CLOCK.monotonic() + seconds
    while not await run_in_thread(group.wait, 1.0):
        if SYSTEM_CLOCK.monotonic() > ends_s:
            return False
    return True


def _text(resources: Mapping[str, float]) -> str:
    return ",".join(f"{name}={value:g}" for name, value in resources.items())


def _options(resources: Mapping[str, float]) -> dict[str, Any]:
    """Returns an actor's options for these resources; Ray has parameters of its own for three of them."""
    own = {"CPU": "num_cpus", "GPU": "num_gpus", "memory": "memory"}
    others = {name: value for name, value in resources.items() if name not in own}
    return {
        "num_cpus": 0,
        **{own[name]: value for name, value in resources.items() if name in own},
        "resources": others,
        "max_restarts": 0,
        "max_task_retries": 0,
    }


class _Holder:
    """An actor that starts the process of one worker. If the actor ends, the process ends."""

    def run(self, words: list[str], folder: str, ticket: bytes) -> int | str:
        """Runs the process, and returns its exit code, or the reason why it could not be started."""
        if not os.path.isdir(folder):
            return f"cannot be started: the node has no folder {folder}"
        given = Ticket.read(ticket)
        process = subprocess.Popen([sys.executable, "-P", "-m", "sabot", *words], stdin=subprocess.PIPE, cwd=folder)
        assert process.stdin is not None
        with process.stdin as told:
            told.write(given.encoded(os.getpid()))
        return process.wait()


class _RayProcess(LaunchedProcess):
    """The process of a worker on some node."""

    pid: int | None = None  # the worker's `Join` has it

    def __init__(self, kill: Callable[[], None], running: "Future[int | str]", loop: asyncio.AbstractEventLoop) -> None:
        self._kill = kill
        self._loop = loop
        self._ended: asyncio.Future[ProcessEnd] = loop.create_future()
        running.add_done_callback(lambda result: call_on_loop(loop, self._end, _ended(result)))

    async def wait(self) -> ProcessEnd:
        return await asyncio.shield(self._ended)

    def kill(self) -> None:
        """Ends the actor, and with it the process. `wait` then returns after a bounded time, because Ray may report
        the end of an actor on a lost node late.
        """
        self._kill()
        self._loop.call_later(_KILLED_SECONDS, self._end, ProcessEnd("was killed", "Ray has not reported its end"))

    def _end(self, how: ProcessEnd) -> None:
        if not self._ended.done():
            self._ended.set_result(how)


def _ended(result: "Future[int | str]") -> ProcessEnd:
    error = result.exception()
    if error is not None:
        lines = message_of(error).strip().splitlines()
        return ProcessEnd("was lost with its Ray actor", lines[0][:300] if lines else type(error).__name__)
    found = result.result()
    if isinstance(found, str):
        return ProcessEnd(
            found,
            "put the program on every node, at the same path as the coordinator's: in its image, or in a shared folder",
        )
    return how_it_ended(found)
