"""The execution of `collect`: a stream runs by itself, and its rows become a table."""

import asyncio
import math
from dataclasses import replace
from typing import Any

import pyarrow as pa

from sabot.api.nodes.changes import Materialize
from sabot.api.nodes.node import Node, walk
from sabot.api.nodes.read import Write, endless_read
from sabot.base.process_exit import find_exit
from sabot.base.threads import call_on_loop
from sabot.connectors.files.formats.table import format_of
from sabot.connectors.memory import CountSink, TableSink
from sabot.engine.checkpoint import Coordinator
from sabot.engine.runtime.app_spec import AppSpec
from sabot.engine.runtime.life.host import run_here
from sabot.engine.runtime.life.local_streams import LocalStreams
from sabot.errors import SabotError, UserError


def collect_rows(app: AppSpec, node: Node, limit: int | None, seconds: float | None) -> pa.Table:
    """Runs the program up to a step, and returns the rows of this step: at most `limit`, and those that come within
    `seconds`, if these are given. Raises UserError for an input without end if neither limit would end it. Blocks.
    """
    endless = endless_read(node)
    waits = limit is None or any(isinstance(each, Materialize) for each in walk([node]))
    if endless is not None and seconds is None and waits:
        hint = "collect(limit=20) waits for the next 20 rows, collect(seconds=5) returns the rows that come in 5 s"
        if limit is not None:
            hint = "the rows are changes, which later changes may replace: collect(seconds=5) returns the rows that exist after 5 s"
        if isinstance(endless.source, str) and format_of(endless.name) is not None:
            hint = f'it is a topic; a file of this name is read by app.stream(files("{endless.name}"))'
        raise UserError(f"collect: stream {endless.name} has no end", hint=hint)
    sink = TableSink(limit=limit)
    run_here(lambda: _run_alone(app, node, sink, seconds))
    return sink.table()


async def _run_alone(app: AppSpec, node: Node, sink: TableSink, seconds: float | None) -> None:
    """Runs only the steps up to this one, without agents or checkpoints, with state in memory. Returns at the end
    of the input, when the sink is full, or after `seconds`, if given.

    After `seconds`, tables that wait for their end emit the rows that they have; an open window emits nothing.
    """
    settings = replace(
        app.settings_of_run(Coordinator(clock=app.clock)),
        app=replace(app.settings, until=None),
        open_sink=lambda topic, format: CountSink(topic),
        directory=None,
        has_dead_letters=False,
        first_record_s=math.inf if seconds is None else seconds,
    )
    streams, loop, full = (
        LocalStreams([Write(node, sink, None)], settings),
        asyncio.get_running_loop(),
        asyncio.Event(),
    )
    sink.on_full = lambda: call_on_loop(loop, full.set)
    try:
        await streams.start()
        streams.awaited = True
        filled = asyncio.ensure_future(full.wait())
        try:
            waits: list[asyncio.Future[Any]] = [streams.running, filled]
            done, _ = await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if not done and any(isinstance(each, Materialize) for each in walk([node])):
                await streams.stop(drain=True)
            if streams.running.done():
                await streams.running
        finally:
            filled.cancel()
            await streams.close()
    except SabotError as error:
        if (asked := find_exit(error)) is not None:
            raise asked from None
        raise
