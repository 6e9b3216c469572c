"""The beginnings of an app's streams: rows of a topic, of a Source or of an agent (`stream`), and tables (`table`)."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sabot.api.arguments import RowPolicy, Schema, TimeUnit, schema_of
from sabot.api.expr import Expr
from sabot.api.nodes.agents import agent_read
from sabot.api.nodes.changes import table_node
from sabot.api.nodes.read import Read, read_node
from sabot.api.stream import Stream
from sabot.api.stream.owner import Owner
from sabot.base.checks import FLAG, check
from sabot.base.config import Duration
from sabot.codecs.base import Format
from sabot.connectors.base import Sink, Source
from sabot.connectors.generated import generator_source
from sabot.connectors.places import Start, Until
from sabot.connectors.rows import Rows, RowsSource, is_rows


class HasStreams(Owner):
    """The methods of an App that create streams."""

    def stream(
        self,
        source: str | Source | Rows | Callable[..., Any],
        *,
        schema: Schema | None = None,
        format: str | Format | None = None,
        time: str | Expr | None = None,
        time_unit: TimeUnit | None = None,
        time_format: str | None = None,
        time_zone: str | None = None,
        lateness: Duration = 0,
        idle: Duration = "30s",
        idle_closes: bool = False,
        dead_letter: str | Sink = "{topic}.dlq",
        on_error: RowPolicy = "dead_letter",
        fields: Sequence[str] | Mapping[str, str] = (),
        max_drift: Duration | None = None,
        start: Start | None = None,
        until: Until | None = None,
        schema_overrides: Schema | None = None,
        infer: int | None = None,
    ) -> Stream:
        """Returns the rows of a topic, of a Source such as `files("data/*.ndjson")`, of an agent, or of a table in
        memory, as a stream.

        Nothing runs until the stream is written with `.to(…)` and the app is started.

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

        A table in memory is a list of dicts, or Arrow data, such as a pa.Table, a data frame of polars or pandas, or a relation of
        DuckDB. Its rows are read during this call, and the stream ends after the last one.

        An agent is given by its function, declared with `@app.agent()` without `sink=`. The rows are its results, with the columns of
        `schema=`.

        - `schema`: the columns, as a pa.Schema or {"name": "type"}; by default inferred from the first records (1,000, or
          the first MiB of CSV).
        - `format`: the format of the payloads: "json" (the default), "csv", "raw", "arrow", Avro(…), Protobuf(…); see docs/formats.md.
        - `time`: the column of event time, a field of a struct ("bid.at"), or an expression. The values are timestamps, numbers of ms
          since 1970 UTC (or of `time_unit=`), or texts in ISO 8601 (or in `time_format=`). By default they are the timestamps of
          the records.
        - `time_zone`: the time zone of texts, dates and timestamps without one, such as "Europe/Berlin"; by default UTC. If a clock
          time occurs twice, in autumn, the earlier instant is used.
        - `lateness`: how far rows may be out of order, as a duration of event time. A row that arrives later than that is late.
        - `idle`: if a partition has no rows for so much wall time, event time no longer waits for this partition.
        - `idle_closes`: True closes the windows that have rows when all partitions are idle.
        - `dead_letter`: the topic or Sink for records that cannot be decoded, and for rows for which a step fails.
        - `on_error`: what happens to rows for which a step fails: "dead_letter", "null" or "fail"; see `Stream.on_error`.
        - `fields`: other parts of the record that become columns, as a list or as {column: field}: "key" (text), "key_bytes",
          "headers", "headers.NAME" (text), "partition", "offset", "timestamp". Rows of files have "file.path", "file.name",
          "file.size" and "file.modification-time".
        - `max_drift`: a partition that is ahead of another one by more event time waits for it, unless that one is idle; by default
          there is no limit.
        - `start`: the place from which a topic is read if there is no checkpoint: "earliest", "latest", "committed" (the offsets of
          the consumer group), a time (ms UTC, or a datetime), or {partition: offset}. The default is the `start=` of the app.
        - `until`: the place where the stream ends, for backfills: "now" (after the records that exist when the app starts), a time
          (only records before it are read), or {partition: offset}. A restart keeps this end. The default is the `until=` of the app.
        - `infer`: the number of records from which columns are inferred, up to 1,000,000.
        - `schema_overrides`: types of some columns, as in `schema`, which replace the inferred ones: {"price": "float64"}.

        Raises UserError for a topic or column with an impossible name, and for options that the source does not have.
        """
        options: Any = {"schema": schema, "time": time, "lateness": lateness, "idle": idle, "dead_letter": dead_letter}
        options |= {"on_error": on_error, "fields": fields, "time_unit": time_unit, "time_format": time_format}
        options |= {"time_zone": time_zone, "idle_closes": idle_closes, "max_drift": max_drift, "format": format}
        options |= {"start": start, "until": until, "schema_overrides": schema_overrides, "infer": infer}
        given = self._taken(source, schema)
        if callable(given):
            node: Read = agent_read(self.agent_of(given), **options)
        else:
            node = read_node(given, **options)
        self.begun_streams.append(node)
        return Stream(self, node)

    def table(
        self,
        source: str | Source | Rows,
        *,
        key: str | Sequence[str] | None = None,
        schema: Schema | None = None,
        format: str | Format = "json",
        key_format: str | Format | None = None,
        time: str | Expr | None = None,
        time_unit: TimeUnit | None = None,
        time_format: str | None = None,
        time_zone: str | None = None,
        lateness: Duration = 0,
        idle: Duration = "30s",
        dead_letter: str | Sink = "{topic}.dlq",
        on_error: RowPolicy = "dead_letter",
        fields: Sequence[str] | Mapping[str, str] = (),
        first: bool | None = None,
        until: Until | None = None,
    ) -> Stream:
        """Returns the table in a compacted topic, as a stream of changes.

        The last record of a key is its row, and a tombstone (a record with a null payload) deletes the row.

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

        - `source`: a topic, a Source with columns (files), or a table in memory. A later row replaces the earlier row of its key.
        - `key`: the columns of the key. Key columns that a payload lacks are read from the key of the record. A Source of changes, such
          as `PostgresChanges`, has a key of its own.
        - `schema`: the columns of the table.
        - `format`: the format of the payloads, as in `stream`, if each payload is a row; or "debezium", if each payload is an envelope
          with the row before and after a change (docs/changes.md describes the setup of the connector).
        - `key_format`: the format of the keys of records, if it is not the usual one (text as it is, all else JSON): any format of
          payloads, such as `Avro(registry=…)`. Keys beside payloads in Avro with a registry may have an id of it without this.
        - `fields`: other parts of the record that become columns of its row, as in `stream`.
        - `first`: True makes joins with this table wait until the rows that exist at the start are read. By default `lookup` and
          `join_asof` wait, and other joins do not.
        - `until`: the place where reading ends, as in `stream`. Joins then use the rows that the table has at that point.

        The other arguments are those of `stream`. Raises UserError in the same cases as `stream`, for a format whose records contain
        several rows, and for "debezium" without `schema=` or with `fields=`.
        """
        options: Any = {"schema": schema, "time": time, "lateness": lateness, "idle": idle, "dead_letter": dead_letter}
        options |= {"time_unit": time_unit, "time_format": time_format, "on_error": on_error, "fields": fields}
        options |= {"first": first, "until": until, "time_zone": time_zone}
        read, table = table_node(self._taken(source, schema), key, format, key_format, **options)
        self.begun_streams.append(read)
        return Stream(self, table)

    def source(
        self, *, schema: Schema, bounded: bool = False, name: str | None = None
    ) -> Callable[[Callable[[Any], Any]], Source]:
        """Makes a Source of the generator function below this decorator, for `stream`, `table` and `agent`.

        ```python
        from sabot import App

        app = App("numbers")


        @app.source(schema={"n": "int64"}, bounded=True)
        def numbers(position):
            for n in range(position, 3):
                yield {"n": n}


        print(app.stream(numbers).collect().to_pylist())
        ```

        ```text
        [{'n': 0}, {'n': 1}, {'n': 2}]
        ```

        The function, `def` or `async def`, yields rows: a dict, or a list of dicts. Its argument is the position at which it must
        begin: 0 at the first start; after a restart, the number of rows that it had yielded before the checkpoint. It can use another
        place, such as an offset, a page, or the cursor of a service. For this it yields `row, cursor` or `rows, cursor`, with the cursor
        at which to continue after these rows: any JSON value but null. It runs in a thread of its own; an async function runs in the
        event loop of that thread. If it raises an error, the app stops.

        - `schema`: the columns of the rows. A row that does not fit becomes a dead letter.
        - `bounded`: True if the function always ends, so that `collect()` needs no limit.
        - `name`: the name in checkpoints, by default that of the function.

        Raises UserError for a function that is no generator, or has no parameter for the position.
        """
        columns, ends = schema_of(schema), check("source: bounded", bounded, FLAG)
        return lambda function: generator_source(function, name, columns, ends)

    def _taken(self, source: Any, schema: Schema | None) -> Any:
        """Returns a Source for rows that are in memory, with a name by its number in the program, such as "rows-1".
        Returns any other source unchanged.
        """
        if not is_rows(source):
            return source
        number = 1 + sum(isinstance(read.source, RowsSource) for read in self.begun_streams)
        return RowsSource(source, f"rows-{number}", None if schema is None else schema_of(schema))
