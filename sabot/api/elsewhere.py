"""Names of polars, pandas, Spark, Flink, Kafka Streams, Faust, Bytewax and Quix that Sabot does not have: the error for such a name says
how the same is written here.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

from sabot.errors import UserError

_ADD = 'to("topic"), or to(SINK)'
_BY_HAND = "map_batches(function), or the agent of a topic, which calls any function"
_MAP = "with_columns(y=col(…)), map_batches(function), flat_map(function, schema=…)"
_KEYED_CODE = 'key_by("k").process(function, …), with state and timers'
_SORT = 'sort("x"), if the stream has an end; else sorted(within="5m"), or top_n(n, by="x") after key_by or window'
_TIME = 'with_time("ts", lateness="5s"), or app.stream("topic", time="ts", lateness="5s")'
_ROWS = "collect() or to_polars() where the stream has an end, to(a_list), or the agent of a topic"
_AGGREGATES = {
    "count": "count",
    "first": "first",
    "implode": "collect_list",
    "last": "last",
    "max": "max",
    "mean": "mean",
    "min": "min",
    "n_unique": "count_distinct",
    "nunique": "count_distinct",
    "avg": "mean",
    "std": "stddev",
    "sum": "sum",
    "var": "variance",
}

STREAMS = {
    **dict.fromkeys(["add_sink", "addSink", "sink", "sink_to", "sinkTo", "output", "through", "to_topic"], _ADD),
    **dict.fromkeys(
        ["to_csv", "to_json", "to_parquet", "to_sql", "writeStream", "write"], "to(SINK), such as to(CsvSink(PATH))"
    ),
    **dict.fromkeys(["foreach", "forEach", "foreachBatch", "inspect", "iter_rows", "iterrows", "peek"], _BY_HAND),
    **dict.fromkeys(["map", "mapValues", "map_value", "map_elements", "mapInPandas", "select_expr", "update"], _MAP),
    **dict.fromkeys(["transform", "transformValues", "processValues", "flat_map_groups", "stateful_map"], _KEYED_CODE),
    **dict.fromkeys(["orderBy", "order_by", "sortBy", "sort_by", "sort_values"], _SORT),
    **dict.fromkeys(
        ["assign_timestamps_and_watermarks", "assignTimestampsAndWatermarks", "withWatermark", "with_watermark"], _TIME
    ),
    **dict.fromkeys(
        ["events", "items", "rows", "to_dicts", "to_list", "execute_and_collect", "toLocalIterator"], _ROWS
    ),
    **dict.fromkeys(["groupBy", "groupByKey", "groupby"], 'group_by("column")'),
    **dict.fromkeys(["keyBy", "key_on", "partition_by", "repartition", "selectKey"], 'key_by("column")'),
    **dict.fromkeys(["limit", "slice", "take"], "head(n)"),
    **dict.fromkeys(["concat", "unionAll", "unionByName", "union_all", "vstack"], "union(other)"),
    **dict.fromkeys(["distinct", "dropDuplicates", "drop_duplicates", "unique"], 'deduplicate("column")'),
    **dict.fromkeys(["assign", "withColumn", "with_column"], "with_columns(name=expression)"),
    **dict.fromkeys(["dropna", "drop_nulls"], 'filter(col("x").is_not_null())'),
    **dict.fromkeys(["fillna", "fill_null"], 'with_columns(x=col("x").fill_null(0))'),
    **dict.fromkeys(["interval_join", "intervalJoin"], 'join(other, on="k", between=("-5m", "5m"))'),
    **dict.fromkeys(["leftJoin", "left_join"], 'join(other, on="k", how="left")'),
    **dict.fromkeys(["outerJoin", "outer_join"], 'join(other, on="k", how="full")'),
    **dict.fromkeys(
        [
            "group_by_dynamic",
            "resample",
            "timeWindow",
            "time_window",
            "tumbling_window",
            "windowAll",
            "window_all",
            "windowedBy",
        ],
        'window(tumbling("1m")), after key_by("k") for each key',
    ),
    **dict.fromkeys(["count_window", "countWindow"], "window(count_window(100))"),
    **dict.fromkeys(["hopping_window", "sliding_window"], 'window(hopping("10m", "1m"))'),
    **dict.fromkeys(["max_by", "maxBy"], 'aggregate(best=sabot.arg_max("name", by="x"))'),
    **dict.fromkeys(["min_by", "minBy"], 'aggregate(least=sabot.arg_min("name", by="x"))'),
    **dict.fromkeys(["name", "uid"], 'named("id"), after the step'),
    **dict.fromkeys(["sideOutputLateData", "side_output_late_data"], 'window(tumbling("1m"), late="topic")'),
    **dict.fromkeys(["allowedLateness", "allowed_lateness"], 'window(tumbling("1m"), allowed_lateness="5m")'),
    **dict.fromkeys(["trigger", "emit_early"], 'window(tumbling("1m"), emit_every="10s") for results before the end'),
    **dict.fromkeys(["reduceByKey", "fold", "scan"], 'key_by("k").reduce(function) or key_by("k").aggregate(…)'),
    **dict.fromkeys(["printSchema", "dtypes", "info"], "schema"),
    **dict.fromkeys(["getSideOutput", "get_side_output"], 'side("name"), after process(…, sides={"name": {…}})'),
    **dict.fromkeys(
        ["forward", "global_", "rebalance", "rescale", "shuffle"],
        "key_by(…): rows are divided among App(parallelism=N) by themselves, and with key_by by their key",
    ),
    **dict.fromkeys(["setParallelism", "set_parallelism"], 'app = App("name", parallelism=4)'),
    **dict.fromkeys(["execute", "execute_insert"], "collect() for the rows now, or app.main() for the sinks"),
    "coGroup": 'join(other, on="k", window=tumbling("1m"))',
    "co_group": 'join(other, on="k", window=tumbling("1m"))',
    "agg": 'aggregate(n=sabot.count(), total=sabot.sum("x"))',
    "apply": "flat_map(function, schema=…) for rows, map_batches(function) for batches, window(…).apply(function, schema=…) for windows",
    "avg": 'aggregate(mean=sabot.mean("x"))',
    "branch": 'split(col("x") > 3)',
    "cast": 'with_columns(x=col("x").cast("int64"))',
    "columns": "schema.names",
    "filter_map": "filter(…).with_columns(…), or flat_map(function, schema=…)",
    "flatMap": "flat_map(function, schema=…)",
    "merge": 'join(other, on="k") for columns of both, union(other) for rows of both',
    "plot": "to_polars().plot or to_pandas().plot",
    "query": 'filter(col("x") > 3), or app.sql("SELECT …")',
    "rolling": 'key_by("k").over(preceding=9, mean=sabot.mean("x")), or window(hopping("10m", "1m"))',
    "selectExpr": 'select("a", b=col("a") * 2), or app.sql("SELECT …")',
    "show": "print()",
    "sink_csv": 'to(CsvSink("orders.csv"))',
    "sink_parquet": 'to(ParquetSink("folder"))',
    "suppress": "window(…): its results are final when they come, unless emit_every= or allowed_lateness= is given",
    "tail": 'top_n(n, by="ts") after key_by or window: a stream has no end',
    "toPandas": "to_pandas()",
    "toStream": "changelog()",
    "toTable": 'upsert("k")',
    "unnest": 'with_columns(city=col("place").struct.field("city"))',
    "value_counts": 'group_by("x").aggregate(count=sabot.count())',
    "where": 'filter(col("x") > 3)',
    "withColumnRenamed": 'rename({"old": "new"})',
    "write_csv": 'to(CsvSink("orders.csv"))',
    "write_parquet": 'to(ParquetSink("folder"))',
    **{
        name: f'aggregate({name}=sabot.{here}("x"))'
        for name, here in _AGGREGATES.items()
        if name not in ("avg", "count", "first")
    },
    **dict.fromkeys(["count", "countByKey", "count_by_key"], "aggregate(n=sabot.count())"),
    "first": "head(1)",
}
"""For streams, also those with a key or a window: the name elsewhere, and the way to write the same here."""

TOTALS = {
    **{
        name: f'group_by().aggregate({name}=sabot.{here}("x")) for one row of all' for name, here in _AGGREGATES.items()
    },
    **dict.fromkeys(["count", "height", "len"], "group_by().aggregate(n=sabot.count()) for one row of all"),
    "first": "head(1)",
}
"""For streams that are not divided by a key or a window: what is one row there."""

WINDOWS = {
    "process": "apply(function, schema=…), which gets all rows of a window",
    "reduce": "aggregate(…), with a function of your own by @sabot.aggregate",
}
"""For streams with a window: names that streams without one have."""

APPS = {
    **dict.fromkeys(["execute", "execute_async", "start_stream", "awaitTermination"], "main(), or await app.run()"),
    **dict.fromkeys(
        ["add_source", "addSource", "dataframe", "from_source", "fromSource", "input", "readStream", "read_stream"],
        'stream("topic") or stream(SOURCE)',
    ),
    **dict.fromkeys(["from_collection", "fromCollection", "from_elements", "fromElements"], "stream([{…}, {…}])"),
    **dict.fromkeys(["crontab", "cron", "every", "schedule"], "timer(…)"),
    **dict.fromkeys(["execute_sql", "executeSql", "sql_query", "sqlQuery"], 'sql("SELECT …")'),
    **dict.fromkeys(["create_temporary_view", "createTemporaryView", "create_temporary_function"], "register(…)"),
    **dict.fromkeys(["Table", "GlobalTable", "global_table"], 'table("topic", key="k")'),
    "add_sink": 'stream("topic").to("other")',
    "command": "main(), in whose program options of your own have their place",
    "enable_checkpointing": 'configure(checkpoint_interval="5s")',
    "page": "run(), beside a web server of your own; `sabot run --web` has a console",
    "set_parallelism": "configure(parallelism=4)",
    "task": "on_start(function)",
}
"""For `App`."""

_OF_ROWS = "map_batches(function) or flat_map(function, schema=…) of the stream"
_OF_LISTS = 'explode("x") of the stream, then group_by(…) for one row again'
_JSON = 'str.json_path_match("$.a.b")'

EXPRESSIONS = {
    **dict.fromkeys(["ifnull", "if_null", "nvl", "ifNull"], "fill_null(0)"),
    **dict.fromkeys(["concat", "concat_ws"], 'sabot.concat_str("a", "b", separator="-")'),
    **dict.fromkeys(["json_value", "json_query", "getJsonObject", "get_json_object"], _JSON),
    **dict.fromkeys(["to_timestamp", "toTimestamp"], 'str.to_datetime("%Y-%m-%d %H:%M:%S"), or dt of a time'),
    **dict.fromkeys(["like", "ilike"], 'str.contains("a.*b"), str.startswith("a")'),
    **dict.fromkeys(["as_", "name_"], 'alias("name")'),
    **dict.fromkeys(["get", "getField", "get_field"], 'struct.field("a"), or list.get(0)'),
    **dict.fromkeys(["explode", "flatten"], 'explode("x") of the stream'),
    **dict.fromkeys(["in_", "isIn"], "is_in([1, 2])"),
    **dict.fromkeys(["lag", "lead"], 'sabot.lag("x") or sabot.lead("x"), in over(…) of the stream'),
    "arr": "list, for lists of a fixed size too",
    "lower": "str.lower()",
    "qcut": "cut([1, 10]), with bounds of your own, such as those of describe() of the stream",
    "substring": "str.slice(start, length)",
    "upper": "str.upper()",
    "apply": _OF_ROWS,
    "astype": 'cast("int64")',
    "cum_sum": 'key_by("k").over(total=sabot.sum("x")) of the stream',
    "diff": 'col("x") - col("before") after key_by("k").over(before=sabot.lag("x"))',
    "eq": "==",
    "fillna": "fill_null(0)",
    "isin": "is_in([1, 2])",
    "isna": "is_null()",
    "isnull": "is_null()",
    "isNull": "is_null()",
    "isNotNull": "is_not_null()",
    "floordiv": "//",
    "map_elements": _OF_ROWS,
    "filter": 'when(col("ok")).then("x"), or sabot.sum("x").filter(…) of an aggregate',
    "median": 'sabot.median("x"), in aggregate(…) of the stream',
    "mod": "%",
    "notna": "is_not_null()",
    "otherwise": 'when(col("ok")).then("x").otherwise("y")',
    "over": 'key_by("k").over(total=sabot.sum("x")) of the stream',
    "pow": "**",
    "rank": 'sabot.row_number(), in over(…) of the stream, or top_n(n, by="x", rank="place") after key_by or window',
    "rlike": "str.contains(pattern)",
    "rolling_mean": 'key_by("k").over(preceding=2, mean=sabot.mean("x")) of the stream',
    "sort": 'sort("x") of the stream',
    "substr": "str.slice(start, length)",
    "unique": 'deduplicate("x") of the stream',
    "quantile": 'sabot.quantile("x", 0.9), or sabot.approx_quantile("x", 0.9) for many values, in aggregate(…) of the stream',
    "shift": 'sabot.lag("x"), in over(…) of the stream',
    "value_counts": 'group_by("x").aggregate(count=sabot.count()) of the stream',
    "top_k": 'sabot.top_k("x", 3), in aggregate(…) of the stream',
    **{there: f'sabot.{here}("x"), in aggregate(…) or over(…) of the stream' for there, here in _AGGREGATES.items()},
}
"""For expressions."""

TEXTS = {
    **dict.fromkeys(["json_decode", "json_extract", "json_value"], 'json_path_match("$.a.b")'),
    **dict.fromkeys(["concat", "join"], 'col("a") + "-" + col("b"), or sabot.concat_str("a", "b")'),
    **dict.fromkeys(["substr", "substring", "head", "left"], "slice(start, length)"),
    **dict.fromkeys(["like", "match", "rlike"], 'contains("a.*b")'),
    **dict.fromkeys(["trim", "btrim"], "strip()"),
    "extract_all": 'split(","), or extract("(a)")',
    "find": 'contains("a")',
    "len": "length()",
    "ljust": "pad_end(8)",
    "lstrip": "strip_start()",
    "ltrim": "strip_start()",
    "rjust": "pad_start(8)",
    "rstrip": "strip_end()",
    "rtrim": "strip_end()",
    "to_integer": 'col("x").cast("int64")',
    "to_decimal": 'col("x").cast("decimal(10, 2)")',
    "to_time": 'to_datetime("%H:%M")',
    "to_timestamp": 'to_datetime("%Y-%m-%d %H:%M:%S")',
    "zfill": 'pad_start(8, "0")',
}
"""For `col("x").str`."""

TIMES = {
    **dict.fromkeys(["floor", "round", "trunc"], 'truncate("1h")'),
    **dict.fromkeys(["dayofweek", "dow"], "weekday()"),
    **dict.fromkeys(["dayofyear", "doy"], "ordinal_day()"),
    **dict.fromkeys(["timestamp", "to_epoch", "unix_timestamp"], 'epoch("ms")'),
    **dict.fromkeys(["tz_convert", "at_time_zone", "to_utc"], 'convert_time_zone("UTC")'),
    **dict.fromkeys(["format", "date_format"], 'strftime("%Y-%m-%d")'),
    "seconds": "total_seconds()",
    "tz_localize": 'replace_time_zone("Europe/Berlin")',
}
"""For `col("x").dt`."""

LISTS = {
    **dict.fromkeys(["eval", "explode", "filter", "mean", "min", "max", "unique", "n_unique"], _OF_LISTS),
    "length": "len()",
    "size": "len()",
}
"""For `col("x").list`."""

STRUCTS = {
    "get": 'field("a")',
    "unnest": 'field("a"), for each column that you want',
}
"""For `col("x").struct`."""

_SINKS_OF_SQL = ["DatabaseSink", "DuckDBSink", "DuckDbSink", "JDBCSink", "JdbcSink", "PostgreSQLSink", "PostgresSink"]
_SINKS_OF_SQL += ["SQLSink", "SQLiteSink", "SqliteSink"]
_TABLES = ["DatabaseSource", "DuckDBSource", "JDBCSource", "JdbcSource", "PostgreSQLSource", "PostgresSource"]
_TABLES += ["SQLSource", "SQLiteSource", "SqlSource", "SqliteSource"]
_CHANGES = ["PostgresCDC", "PostgresCDCSource", "PostgresCdc", "PostgresCdcSource", "PostgresChanges"]

FUNCTIONS = {
    **dict.fromkeys(
        ["EnvironmentSettings", "StreamTableEnvironment", "TableEnvironment"], 'App("name"), then app.sql("SELECT …")'
    ),
    **dict.fromkeys(
        ["CoProcessFunction", "KeyedCoProcessFunction", "KeyedProcessFunction", "ProcessFunction", "RuntimeContext"],
        'Process, or a function: stream.key_by("k").process(function, on_timer=function)',
    ),
    **dict.fromkeys(
        ["ListStateDescriptor", "MapStateDescriptor", "StateTtlConfig", "ValueStateDescriptor"],
        'ProcessContext: ctx.state("x") in the function of process(function, ttl="1h"), also a list or a map of a key',
    ),
    **dict.fromkeys(
        ["OutputTag", "SideOutput"],
        'Process, or a function: stream.key_by("k").process(function, sides={"x": {…}}).side("x")',
    ),
    **dict.fromkeys(["CEP", "MatchRecognize"], 'pattern("a", col("x") > 1).then("b", col("x") < 1)'),
    **dict.fromkeys(["Duration", "Time", "timedelta"], '"5m", a text, or a timedelta of datetime'),
    **dict.fromkeys(["Tumble", "window"], 'tumbling("1m"), in window(…) of a stream'),
    **dict.fromkeys(["Slide", "slide"], 'hopping("10m", "1m")'),
    **dict.fromkeys(_SINKS_OF_SQL, 'SqlSink("postgresql://host/db", table="t"), for sqlite:/// and duckdb:/// too'),
    **dict.fromkeys(
        _TABLES, "app.sql(\"CREATE TABLE t (…) WITH ('connector' = 'jdbc', 'url' = '…', 'table-name' = '…')\")"
    ),
    **dict.fromkeys(_CHANGES, "PostgresChanges, from sabot.connectors.postgres"),
    **dict.fromkeys(["JSONSink", "JsonLinesSink", "JsonSink", "JsonlSink"], 'NdjsonSink("rows.ndjson")'),
    **dict.fromkeys(
        ["JSONSource", "JsonLinesSource", "JsonSource", "JsonlSource"], "NdjsonSource(PATH), or files(PATH)"
    ),
    **dict.fromkeys(["CSVSink", "CsvFileSink"], 'CsvSink("rows.csv")'),
    **dict.fromkeys(["CSVSource", "CsvFileSource"], "CsvSource(PATH), or files(PATH)"),
    **dict.fromkeys(["DirSource", "DirectorySource", "FolderSource", "LocalFileSource", "S3Source"], "files(PATH)"),
    **dict.fromkeys(
        ["GCSSink", "GcsSink", "S3FileSink", "S3Sink"], 'ObjectSink("s3://bucket/folder/", "parquet"), also for gs://'
    ),
    **dict.fromkeys(
        ["LocalFileSink", "StreamingFileSink"], "CsvSink, NdjsonSink, ParquetSink or ArrowSink, with a path"
    ),
    **dict.fromkeys(["PrintSink", "StdOutSink", "StdoutSink"], "ConsoleSink(), or print() of the stream"),
    **dict.fromkeys(
        ["CollectSink", "ListSink", "MemorySink", "TestingSink"], 'App("name").stream("topic").to(a_list), or collect()'
    ),
    **dict.fromkeys(
        ["CollectionSource", "DataFrameSource", "ListSource", "PandasSource", "TestingSource"],
        'App("name").stream([{…}, {…}]), also of a data frame',
    ),
    **dict.fromkeys(
        [
            "DataGenSource",
            "DataGeneratorSource",
            "GeneratedSource",
            "GeneratorSource",
            "NumberSequenceSource",
            "SocketSource",
        ],
        "App(\"name\").source, before a function that yields rows; in SQL 'connector' = 'datagen'",
    ),
    **dict.fromkeys(["DeltaLakeSink", "DeltaTableSink"], 'DeltaSink("folder")'),
    **dict.fromkeys(["DeltaLakeSource", "DeltaTable", "DeltaTableSource"], 'DeltaSource("folder")'),
    **dict.fromkeys(["IcebergSink", "IcebergTableSink"], "IcebergSink, from sabot.connectors.iceberg"),
    **dict.fromkeys(["IcebergSource", "IcebergTableSource"], "IcebergSource, from sabot.connectors.iceberg"),
    **dict.fromkeys(["HTTPSink", "HttpSink", "WebhookSink"], "HttpSink, from sabot.connectors.http"),
    **dict.fromkeys(
        ["APISource", "HTTPSource", "HttpSource", "PollSource", "RestSource"], "PollSource, from sabot.connectors.http"
    ),
    **dict.fromkeys(
        ["RedisSink", "RedisStreamSink", "RedisStreamsSink"], "RedisStreamSink, from sabot.connectors.redis"
    ),
    **dict.fromkeys(
        ["RedisSource", "RedisStreamSource", "RedisStreamsSource"], "RedisStreamSource, from sabot.connectors.redis"
    ),
    **dict.fromkeys(["AsyncDataStream", "AsyncFunction"], 'app.stream("topic").map_async(function, schema=…)'),
    **dict.fromkeys(["json_extract", "json_value"], 'col("x").str.json_path_match("$.a.b")'),
    "ProcessWindowFunction": 'app.stream("topic").window(…).apply(function, schema=…)',
    "mean_horizontal": 'sum_horizontal("a", "b") / 2',
    **dict.fromkeys(
        ["Application", "Dataflow", "StreamExecutionEnvironment", "SparkSession", "StreamsBuilder"], 'App("name")'
    ),
    **dict.fromkeys(["avg", "Avg", "average"], 'mean("x")'),
    **dict.fromkeys(["sliding", "hop", "Sliding", "SlidingWindow"], 'hopping("10m", "1m")'),
    **dict.fromkeys(["tumble", "Tumbling", "TumblingEventTimeWindows", "TumblingWindows"], 'tumbling("1m")'),
    **dict.fromkeys(["session_window", "EventTimeSessionWindows", "SessionWindows"], 'session("10m")'),
    **dict.fromkeys(["std", "stdev", "stddev_samp"], 'stddev("x")'),
    **dict.fromkeys(["var", "var_samp"], 'variance("x")'),
    **dict.fromkeys(["n_unique", "nunique", "countDistinct"], 'count_distinct("x")'),
    **dict.fromkeys(["first_value", "FIRST_VALUE"], 'first("x")'),
    **dict.fromkeys(["last_value", "LAST_VALUE"], 'last("x")'),
    **dict.fromkeys(["element", "expr", "column"], 'col("x")'),
    **dict.fromkeys(["collect", "array_agg", "list_agg"], 'collect_list("x")'),
    **dict.fromkeys(["concat", "format"], 'concat_str("a", "b")'),
    **dict.fromkeys(
        ["read_csv", "scan_csv", "read_parquet", "scan_parquet", "read_json", "scan_ndjson"], "files(PATH)"
    ),
    **dict.fromkeys(
        ["KafkaSource", "FlinkKafkaConsumer"],
        'App("name", broker="kafka://…"), then app.stream("topic"); or KafkaSource, from sabot.kafka',
    ),
    **dict.fromkeys(
        ["KafkaSink", "FlinkKafkaProducer"],
        'App("name", broker="kafka://…"), then stream.to("topic"); or KafkaSink, from sabot.kafka',
    ),
    "WatermarkStrategy": 'App("name").stream("topic", time="ts", lateness="5s")',
    "cumulate": 'cumulative("1d", "1h")',
    "percentile": 'quantile("x", 0.9)',
}
"""For the package `sabot`."""


class NamedElsewhere:
    """A base class for better AttributeErrors and completions. If a missing method has the name of a method of another
    library (such as polars or Spark), the message says how Sabot writes the same.
    """

    __slots__ = ()
    _elsewhere: ClassVar[Mapping[str, str]] = {}
    _of_engine: ClassVar[str] = ""
    """The names of attributes that are for the engine: `dir` leaves them out, so notebooks and IPython complete none."""

    def __dir__(self) -> list[str]:
        hidden = set(self._of_engine.split())
        return [name for name in super().__dir__() if name not in hidden]

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> NoReturn:
            here = self._elsewhere.get(name) or self._of_another_kind(name)
            message = f"{type(self).__name__!r} object has no attribute {name!r}"
            raise AttributeError(f"{message} (here it is {here})" if here else message, name=name, obj=self)

    def _of_another_kind(self, name: str) -> str:
        """Returns a hint if another class has a method of this name, such as `key_by(…).process(…)`; "" if none has."""
        return ""


class StreamKind(NamedElsewhere):
    """A base class of all classes of streams (Stream, KeyedStream and so on). If another of these classes has a
    missing method, the AttributeError says how to get such a stream. For the name of a column, and for a stream used
    as a data frame, the error says how columns and rows are reached.
    """

    _elsewhere = STREAMS
    _made_by: ClassVar[str] = ""
    """The call that makes this kind of stream from a Stream; "" for a Stream."""
    _node: Any
    _ends_in: ClassVar[str] = ""
    """The methods of this kind that return a Stream."""

    if not TYPE_CHECKING:

        def __getitem__(self, key: Any) -> NoReturn:
            if isinstance(key, str):
                hint = f'select("{key}") for a stream of the column, col("{key}") in an expression'
            elif isinstance(key, list | tuple):
                hint = f"select({', '.join(map(repr, key))})"
            elif isinstance(key, int | slice):  # also of `for row in stream`, and of list(stream)
                hint = f"{_ROWS}; head(n) for the first rows"
            else:
                hint = "filter(condition)"
            raise UserError("a stream is no data frame: its rows come when it runs", hint=hint)

        def __len__(self) -> NoReturn:
            raise UserError(
                "a stream has no length: its rows come when it runs",
                hint=f"group_by().aggregate(n=sabot.count()) counts them; {_ROWS}",
            )

        def __bool__(self) -> bool:
            return True  # without this method, `if stream` would ask for the length

        def __setitem__(self, key: Any, value: Any) -> NoReturn:
            raise UserError(
                "a stream is no data frame: it does not change", hint=f"with_columns({key}=…) returns another"
            )

    def _of_another_kind(self, name: str) -> str:
        if name.startswith("_"):
            return ""
        if name in (self._node.column_names or ()):
            return f'col("{name}") in an expression, or select("{name}") for a stream of the column'
        kinds = StreamKind.__subclasses__()
        made = [kind._made_by for kind in kinds if any(name in vars(base) for base in kind.__mro__)]
        if not made:
            return ""
        if "" in made:
            return f"{name}(…) of a Stream: before {self._made_by}, or after {self._ends_in}"
        return f"{min(made)}.{name}(…)"
