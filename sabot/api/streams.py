"""How an app is given its streams: the rows of a topic, of a Source or of an agent (`stream`), and tables (`table`)."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sabot.api.arguments import RowPolicy, Schema, TimeUnit
from sabot.api.expr import Expr
from sabot.api.nodes.agents import agent_read
from sabot.api.nodes.changes import table_node
from sabot.api.nodes.read import Read, read_node
from sabot.api.stream import Stream
from sabot.api.stream.owner import Owner
from sabot.codecs.base import Format
from sabot.config import Duration
from sabot.connectors.base import Sink, Source
from sabot.connectors.places import Start, Until


class HasStreams(Owner):
    """The part of an App that streams begin with."""

    begun_streams: list[Read]
    """Over the life of the app."""

    def stream(
        self,
        source: str | Source | Callable[..., Any],
        *,
        schema: Schema | None = None,
        format: str | Format | None = None,
        time: str | Expr | None = None,
        time_unit: TimeUnit | None = None,
        time_format: str | None = None,
        lateness: Duration = 0,
        idle: Duration = "30s",
        idle_closes: bool = False,
        dead_letter: str | Sink = "{topic}.dlq",
        on_error: RowPolicy = "dead_letter",
        fields: Sequence[str] | Mapping[str, str] = (),
        max_drift: Duration | None = None,
        start: Start | None = None,
        until: Until | None = None,
    ) -> Stream:
        """Returns the rows of a topic, of a Source such as `files("data/*.ndjson")`, or of an agent. Nothing runs before `.to(…)` and the
        start.

        ```python
        from sabot import App, col, console

        app = App("orders")
        orders = app.stream("orders", schema={"id": "int64", "amount": "int64"}, until="now")
        orders.filter(col("amount") > 100).to(console())

        await app.send("orders", {"id": 1, "amount": 5})
        await app.send("orders", {"id": 2, "amount": 500})
        await app.run()
        ```

        ```text
        {"id":2,"amount":500}
        ```

        An agent is given by its function, declared with `@app.agent()` without sink=. The rows are what it returns, with these columns.

        format: what a record's payload is: "json" (the default), "csv", "raw", "arrow", Avro(…), Protobuf(…); see docs/formats.md.
        schema: a pa.Schema or {"name": "type"}; by default inferred from the first 1,000 records. time: the column of event time (a
        timestamp; a number of ms UTC, or time_unit=; a text in ISO 8601, or time_format=), a field of its struct ("bid.at"), or an
        expression; None: the records' timestamps. lateness: how much out of order rows may come. idle: how long (of wall time) a partition
        may have no rows before it no longer holds event time back. idle_closes: when all partitions are idle, windows that rows have come
        for are closed. dead_letter: for records that cannot be decoded, and rows for which a step fails. on_error: what becomes of those
        ("dead_letter", "null", "fail"; see `Stream.on_error`). fields: what else of a record becomes a column: "key" (text), "key_bytes",
        "headers", "headers.NAME" (text), "partition", "offset", "timestamp"; as a list, or as {column: field}. max_drift: how far, in
        event time, a partition is read ahead of another one that is not idle; None: all are read as they come.
        start: where a topic is read from without a checkpoint: "earliest", "latest", "committed" (the group's offsets), the first record of
        a time (ms UTC, or a datetime), or {partition: offset}; by default as the app says. until: where the stream ends, for backfills:
        "now" (what is there at the start), before the first record of a time, or {partition: offset}. A restart keeps that end.
        """
        options: Any = {"schema": schema, "time": time, "lateness": lateness, "idle": idle, "dead_letter": dead_letter}
        options |= {"on_error": on_error, "fields": fields, "time_unit": time_unit, "time_format": time_format}
        options |= {"idle_closes": idle_closes, "max_drift": max_drift, "format": format}
        options |= {"start": start, "until": until}
        if callable(source) and not isinstance(source, str | Source):
            node: Read = agent_read(self.agent_of(source), **options)
        else:
            node = read_node(source, **options)
        self.begun_streams.append(node)
        return Stream(self, node)

    def table(
        self,
        source: str | Source,
        *,
        key: str | Sequence[str],
        schema: Schema | None = None,
        format: str | Format = "json",
        time: str | Expr | None = None,
        time_unit: TimeUnit | None = None,
        time_format: str | None = None,
        lateness: Duration = 0,
        idle: Duration = "30s",
        dead_letter: str | Sink = "{topic}.dlq",
        on_error: RowPolicy = "dead_letter",
        fields: Sequence[str] | Mapping[str, str] = (),
        first: bool | None = None,
        until: Until | None = None,
    ) -> Stream:
        """Returns the changes of the table that a compacted topic holds: the last record of each key is its row, and a tombstone (a record
        with a null payload) deletes the row.

        ```python
        from sabot import App, console

        app = App("customers")
        customers = app.table("customers", key="id", schema={"id": "int64", "name": "string"}, until="now")
        customers.materialize().to(console())

        await app.send("customers", {"id": 1, "name": "Ann"})
        await app.send("customers", {"id": 1, "name": "Anna"})
        await app.run()
        ```

        ```text
        {"id":1,"name":"Anna"}
        ```

        key: the columns of the key; those missing in a payload are read from the record's key. schema: of the table's columns.
        format: as of `stream`, where a payload is the row; "debezium": it is the envelope of a change (`docs/changes.md` has the setup of
        the connector). A Source with columns (files) may be read too: a later row replaces the earlier one of its key. fields: of the
        row's record. first: what it is joined with waits until the rows of the start are read (by default in `lookup`, `join_asof`).
        until: where the table ends, as of `stream`: what is joined with it keeps the rows that it has then.
        """
        options: Any = {"schema": schema, "time": time, "lateness": lateness, "idle": idle, "dead_letter": dead_letter}
        options |= {"time_unit": time_unit, "time_format": time_format, "on_error": on_error, "fields": fields}
        options |= {"first": first, "until": until}
        read, table = table_node(source, key, format, **options)
        self.begun_streams.append(read)
        return Stream(self, table)
