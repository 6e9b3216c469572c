"""`sabot mcp serve`: offers the state of an app, and a memory of agents, to MCP clients."""

import asyncio
import signal
import sys
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, closing, contextmanager, redirect_stdout
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import pyarrow as pa
import typer

import sabot
from sabot.base.config import parse_bytes, parse_seconds
from sabot.base.logs import set_up_logging
from sabot.cli.app_checkpoints import KeepsNoCheckpoints, find_checkpoints
from sabot.cli.loading import WrongUse
from sabot.cli.options import http_address, token_of
from sabot.cli.running import guarded, leave_at_once
from sabot.clock import SYSTEM_CLOCK
from sabot.engine.checkpoint import Manifest, ask
from sabot.engine.checkpoint.inspection import AppCheckpoints
from sabot.engine.operators.reading import keys_of, operators_of, state_of
from sabot.errors import CorruptCheckpoint, UserError

if TYPE_CHECKING:
    from sabot.mcp.saved_state import StateInfo

_TOKEN = "SABOT_MCP_TOKEN"
_KEPT_MOST = 8  # the number of tables that stay in memory after they were read

_STATE_INSTRUCTIONS = (
    "state_list, state_schema and state_read read the state of a streaming app as of its newest checkpoint, which each answer names; "
    "they change nothing."
)
_MEMORY_INSTRUCTIONS = (
    "cortex_search, cortex_store, cortex_retrieve and cortex_consolidate are a memory that outlives this conversation."
)

mcp = typer.Typer(
    help="Serve an app's state and memory over the Model Context Protocol.", no_args_is_help=True, rich_markup_mode=None
)


@mcp.callback()
def _mcp() -> None:
    pass


@mcp.command()
def serve(
    app: Annotated[
        str | None,
        typer.Argument(
            metavar="[APP]",
            help="The app: module:app, a file app.py, or the place of its checkpoints; without it only --memory is served.",
        ),
    ] = None,
    memory: Annotated[
        str | None, typer.Option(metavar="DIR", help="The folder of the memory; offers the memory tools.")
    ] = None,
    scope: Annotated[
        str, typer.Option(metavar="NAME", help="The scope of the memory, which all clients of this server share.")
    ] = "default",
    only: Annotated[list[str] | None, typer.Option(metavar="NAME", help="The only state to offer; repeatable.")] = None,
    fresh: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="The age beyond which a running app is asked for a new checkpoint."),
    ] = None,
    largest: Annotated[
        str, typer.Option(metavar="SIZE", help="The size beyond which state is read by key only.")
    ] = "256MB",
    http: Annotated[
        str | None,
        typer.Option(
            metavar="[HOST:]PORT", help="The address to serve HTTP on, by default 127.0.0.1; port 0 is a free port."
        ),
    ] = None,
    token_file: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help=f"The file with the token that HTTP clients send; or set the variable {_TOKEN}."
        ),
    ] = None,
) -> None:
    """Serve the state of an app, running or not, and a memory of agents to MCP clients, on standard input and output or over HTTP."""

    def work() -> None:
        if app is None and memory is None:
            raise WrongUse("there is nothing to serve", hint="name an APP, or give --memory DIR")
        if http is None and token_file is not None:
            raise WrongUse("--token-file is only for HTTP", hint="give --http PORT too, or leave --token-file out")
        address = None if http is None else (*http_address(http), token_of(token_file, _TOKEN))
        # Ctrl-C exits at once: an import could swallow an exception, and the exception could wait for a thread that reads a client's line.
        with _on_interrupt(leave_at_once):
            source = None
            try:
                source = None if app is None else _checkpoints(app, fresh, largest)
            except KeepsNoCheckpoints as error:
                if memory is None or only or fresh is not None:
                    raise
                typer.echo(f"sabot: {error.message}; only the memory is served", err=True)
            _serve(source, only or (), memory, scope, address)

    set_up_logging("warning")
    raise typer.Exit(guarded(work, debug=False))


def _checkpoints(app: str, fresh: str | None, largest: str) -> "Checkpoints":
    age_s = None if fresh is None else parse_seconds(fresh, name="--fresh")
    most = parse_bytes(largest, name="--largest")
    with redirect_stdout(sys.stderr):  # the client reads standard output, and the user's module may print
        return Checkpoints(find_checkpoints(_module(app)), age_s, most)


def _serve(
    source: "Checkpoints | None",
    only: Collection[str],
    memory: str | None,
    scope: str,
    address: tuple[str, int, str | None] | None,
) -> None:
    from sabot.mcp import Memory, MemoryFile, ToolServer, state_tools  # only this command needs the SDK

    told, tools = [], []
    if source is not None:
        tools += state_tools(source.open, only=only)
        told.append(_STATE_INSTRUCTIONS)
    with ExitStack() as open_:
        if memory is not None:
            file = open_.enter_context(closing(MemoryFile(memory)))
            tools += Memory(file).tools(scope)
            told.append(_MEMORY_INSTRUCTIONS)
        server = ToolServer("sabot", tools, version=sabot.__version__, instructions=" ".join(told))
        if address is None:
            asyncio.run(server.serve_stdio())
            return
        host, port, token = address
        with _on_interrupt(signal.default_int_handler):
            asyncio.run(server.serve_http(host, port, token=token, on_start=_print_address))


@contextmanager
def _on_interrupt(handler: Callable[[int, FrameType | None], Any]) -> Iterator[None]:
    """Sets the handler of Ctrl-C inside the block, unless this process was started to ignore Ctrl-C."""
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


class Checkpoints:
    """The checkpoints of an app, each opened when a client asks for it.

    `fresh_s`: the age in seconds beyond which a running app is asked for a new checkpoint, or None for never. `largest`: the size in
    bytes beyond which state is read by key only. The last tables stay in memory up to that size, so a client can read the next page
    after the app has removed the checkpoint.
    """

    def __init__(self, app: AppCheckpoints, fresh_s: float | None, largest: int) -> None:
        self._app = app
        self._fresh_s = fresh_s
        self._largest = largest
        self._lock = threading.Lock()
        self._kept: dict[tuple[int, str, str | None], tuple[Manifest, pa.Table]] = {}  # the oldest first

    @contextmanager
    def open(self, checkpoint_id: int | None) -> Iterator["SavedCheckpoint"]:
        with self._lock:  # one at a time: each may be as large as memory allows
            try:
                yield SavedCheckpoint(self, self._manifest(checkpoint_id), checkpoint_id is not None)
            finally:
                self._app.storage.release_restored()

    def newest(self) -> Manifest:
        return self._app.manifest()

    def has(self, checkpoint_id: int) -> bool:
        return checkpoint_id in self._app.storage.ids()

    def read(self, manifest: Manifest, name: str, key: str | None) -> pa.Table:
        wanted = (manifest.checkpoint_id, name, key)
        if wanted in self._kept:
            return self._kept[wanted][1]
        size = _size_of(manifest, name)
        if key is None and size > self._largest:
            raise UserError(
                f"the state of {name} in {self._app.place} has {size:,} bytes at checkpoint {manifest.checkpoint_id}, more than the "
                f"{self._largest:,} that are read whole",
                hint="read it by key, or serve with a higher --largest",
            )
        table = state_of(manifest, name, key)
        self._kept[wanted] = (manifest, table)
        while len(self._kept) > 1 and sum(table.nbytes for _, table in self._kept.values()) > self._largest:
            del self._kept[next(iter(self._kept))]
        while len(self._kept) > _KEPT_MOST:
            del self._kept[next(iter(self._kept))]
        return table

    def _manifest(self, checkpoint_id: int | None) -> Manifest:
        if checkpoint_id is not None:
            for manifest, _ in self._kept.values():
                if manifest.checkpoint_id == checkpoint_id:
                    return manifest
            if not self.has(checkpoint_id):
                raise _gone(checkpoint_id)
            return self._app.manifest(checkpoint_id)
        if self._fresh_s is not None and self._app.runs() and not self._is_fresh(self._fresh_s):
            return self._app.manifest(ask(self._app.place, {"checkpoint": True})["checkpoint"])
        return self.newest()

    def _is_fresh(self, age_s: float) -> bool:
        has_one = bool(self._app.storage.ids())
        return has_one and SYSTEM_CLOCK.time() - self.newest().created_ms / 1000 <= age_s


class SavedCheckpoint:
    """An open checkpoint of an app.

    `pinned`: True if the client has named this checkpoint. Otherwise the newest takes its place if the app removes it meanwhile.
    """

    def __init__(self, source: Checkpoints, manifest: Manifest, pinned: bool) -> None:
        self._source = source
        self._manifest = manifest
        self._pinned = pinned

    @property
    def checkpoint_id(self) -> int:
        return self._manifest.checkpoint_id

    @property
    def created_ms(self) -> int:
        return self._manifest.created_ms

    def kept(self) -> "list[StateInfo]":
        return [{"name": e.id, "kind": e.kind, "rows": e.rows, "text": e.text} for e in operators_of(self._manifest)]

    def read(self, name: str, key: str | None) -> tuple[pa.Table, list[str]]:
        try:
            table = self._source.read(self._manifest, name, key)
        except CorruptCheckpoint:
            if self._source.has(self.checkpoint_id):
                raise
            if self._pinned:
                raise _gone(self.checkpoint_id) from None
            self._manifest = self._source.newest()
            table = self._source.read(self._manifest, name, key)
        return table, keys_of(self._manifest, name, table)


def _gone(checkpoint_id: int) -> UserError:
    return UserError(
        f"checkpoint {checkpoint_id} does not exist any more: the app has newer ones",
        hint="begin again, without cursor",
    )


def _size_of(manifest: Manifest, name: str) -> int:
    """Returns the size of the files of this state, in bytes."""
    folders = [task.states[name] for task in manifest.tasks.values() if name in task.states]
    folders = folders or [task.states["state"] for task in manifest.tasks.values() if "state" in task.states]
    return sum(
        file.size for path, file in manifest.contents.items() if path.startswith(tuple(f"{each}/" for each in folders))
    )


def _module(word: str) -> str:
    """Returns a file as module:app: `app.py` becomes `app:app`. Returns any other word unchanged.

    Raises WrongUse if the file is not in the current folder or below it.
    """
    path = Path(word)
    if path.suffix != ".py" or not path.is_file():
        return word
    try:
        inside = path.resolve().relative_to(Path.cwd())
    except ValueError:
        raise WrongUse(
            f"{word} is not below the current folder", hint="change into its folder, and name it from there"
        ) from None
    return ".".join(inside.with_suffix("").parts) + ":app"


def _print_address(address: str) -> None:
    typer.echo(f"sabot: MCP is served at {address}", err=True)
