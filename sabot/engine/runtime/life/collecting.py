"""The execution of `collect`: a stream runs by itself, and its rows become a table."""

import pyarrow as pa

from sabot.api.nodes.changes import Materialize
from sabot.api.nodes.node import Node, walk
from sabot.api.nodes.read import endless_read
from sabot.connectors.files.formats import format_of
from sabot.connectors.memory import TableSink
from sabot.engine.runtime.life.app_runner import AppRunner
from sabot.engine.runtime.life.host import run_here
from sabot.errors import UserError


def collect_rows(runner: AppRunner, node: Node, limit: int | None, seconds: float | None) -> pa.Table:
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
    run_here(lambda: runner.run_alone(node, sink, seconds))
    return sink.table()
