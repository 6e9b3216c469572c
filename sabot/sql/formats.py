"""The formats of tables on topics: by their names, and Avro, whose columns are in a schema of its own.

'format' = 'avro-confluent'     a registry has the schema; with columns in CREATE TABLE, those of them that the table names
'format' = 'avro'               the schema is made from the columns of CREATE TABLE, as in Flink
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa

from sabot.api.expr import Expr, col
from sabot.api.stream import Stream
from sabot.codecs.avro import avro_schema
from sabot.codecs.base import Format
from sabot.codecs.formats import Csv, Json, Raw
from sabot.codecs.json import TimesInJson
from sabot.codecs.keyed import KeyAndValue, as_key
from sabot.codecs.keys import BIG_ENDIAN
from sabot.codecs.parts import WithParts
from sabot.codecs.raw import VALUE
from sabot.codecs.schemas import Avro
from sabot.sql.functions import cast
from sabot.sql.scope import TypedExpr, at
from sabot.sql.syntax.text import Span, SqlFault, list_names
from sabot.sql.syntax.tree import CreateTable
from sabot.sql.table_options import YES_OR_NO, Options
from sabot.sql.types import arrow_type, sql_type
from sabot.sql.zones import UTC

DEBEZIUM = "debezium"
"""The format whose records are changes of a table, and no rows."""

_AVRO, _CONFLUENT = "avro", "avro-confluent"
_FORMATS = {**{name: name for name in ("json", "csv", "raw", "arrow", _AVRO, _CONFLUENT)}, "debezium-json": DEBEZIUM}


_TIMES: dict[str, TimesInJson] = {"SQL": "sql", "ISO-8601": "iso", "EPOCH-MILLIS": "ms"}
"""The forms in which JSON has times; the last one is not Flink's."""


def format_of(options: Options, statement: CreateTable) -> str | Format | None:
    """Returns the format of the records of a topic, or None if the options do not say it."""
    name = options.choose("value.format", _FORMATS) or options.choose("format", _FORMATS)
    if name == _AVRO:
        return _plain(options, statement)
    if name in (None, "json"):
        times_of(options)
    if name == "raw":
        options.choose("raw.charset", {"UTF-8": None})
    if name == "csv" and (delimiter := delimiter_of(options)) != ",":
        with at(options.span):
            return Csv(delimiter)
    return _confluent(options) if name == _CONFLUENT else name


def delimiter_of(options: Options) -> str:
    """Returns the character between the fields of CSV."""
    found = options.take("value.csv.field-delimiter", "csv.field-delimiter") or ","
    return found.replace("\\t", "\t")


def written_format(options: Options, statement: CreateTable) -> str | Format | None:
    """Returns the format in which a topic is written: that of `format_of`, but JSON with times as Flink writes them."""
    times = times_of(options)
    format = format_of(options, statement)
    if format not in (None, "json") or times == "ms":
        return format
    types = [arrow_type(each.type) for each in statement.columns if each.type is not None and each.metadata is None]
    # A table without columns has those of its query; one without times is written as other JSON is.
    return Json(times=times) if not types or any(map(_has_time, types)) else format


_KEYS: dict[str, Format | None] = {"json": Json(), "raw": Raw(), "csv": Csv(), _AVRO: None, _CONFLUENT: None}
_IN_VALUE = {"ALL": True, "EXCEPT_KEY": False}
_TEXTS = (pa.string(), pa.binary())


def with_keys(
    options: Options, statement: CreateTable, format: str | Format | None, *, reads: bool
) -> tuple[str | Format | None, str | None]:
    """Returns the format of a topic together with that of its keys, if 'key.format' says one, and the first column of
    'key.fields', or None. `reads`: True for the direction in which rows are read.

    The columns of the key are those of 'key.fields', or else of the PRIMARY KEY.
    """
    names = ("key.format", "key.fields", "key.fields-prefix", "value.fields-include")
    place = {name: options.key_span(name) for name in names}
    form = options.choose("key.format", {name: name for name in _KEYS})
    times = options.choose("key.json.timestamp-format.standard", _TIMES, "sql")
    prefix = options.take("key.fields-prefix") or ""
    in_value = options.choose("value.fields-include", _IN_VALUE, True)
    given = tuple(each.strip() for each in (options.take("key.fields") or "").split(";") if each.strip())
    first = given[0] if given else None
    if form is None:
        wrong = [name for name, needed in zip(names[1:], (len(given) > 1, prefix, not in_value), strict=True) if needed]
        if wrong:
            raise SqlFault(place[wrong[0]], f"'{wrong[0]}' needs the option 'key.format'", "'key.format' = 'json'")
        return format, first
    fields = given or tuple(each.text for each in statement.key)
    types = {each.name.text: arrow_type(each.type) for each in statement.columns if each.type and not each.metadata}
    _check_key_columns(types, place, form, fields, prefix, in_value=in_value)
    alone = types[fields[0]] if len(fields) == 1 else None
    options.choose("key.raw.endianness", {"big-endian": None})
    plain = (alone in _TEXTS) == (form == "raw") and form in ("raw", "json")
    if reads and in_value and (plain or not statement.key):
        # The payloads have the columns of the key. A tombstone has its key alone, which the engine reads in these forms.
        return format, first
    value = format if isinstance(format, Format) else _KEYS.get(format or "json")
    if value is None and in_value:
        return format, first  # the engine says that a record of many rows has no key
    key = Json(times=times) if form == "json" else _KEYS[form]
    if form == _AVRO:
        key = _plain(options, statement, of=fields, prefix=prefix)
    elif form == _CONFLUENT:
        key = as_key(_confluent(options, "key."))
        if reads and in_value and isinstance(value, Avro) and value.registry is not None:
            return format, first  # keys that begin with the id of a schema are read by it
    if key is None or value is None:
        message = f"keys beside payloads in {format} cannot be {'read' if reads else 'written'} as these options say"
        raise SqlFault(options.span, message, "'key.format' = 'json' and 'value.format' = 'json'")
    others = [each.name.text for each in statement.columns if each.type is not None and each.metadata is None]
    others = [name for name in others if name not in fields]
    if isinstance(value, Avro) and value.registry is None and not in_value:
        value = _plain(options, statement, of=others)
    of_key = pa.schema([(name, types[name]) for name in fields]) if value.own_columns and not in_value else None
    return KeyAndValue(value, key, fields, prefix, in_value, of_key), first


def with_metadata(
    options: Options, format: str | Format | None, key: str | None, columns: Mapping[str, str], *, keyed: bool
) -> tuple[str | Format | None, str | None]:
    """Returns the format of a topic with METADATA columns that are parts of its records, and the column of their keys.

    `columns`: these columns, with the keys of METADATA. `keyed`: True if the table has a PRIMARY KEY.
    """
    if not columns:
        return format, key
    payload = format if isinstance(format, Format) else _KEYS.get(format or "json")
    if payload is None:
        message = f"a record of '{format}' has many rows, so it has no METADATA of one"
        raise SqlFault(options.span, message, "declare the columns as VIRTUAL, or 'format' = 'json'")
    own = next((name for name, part in columns.items() if part == "key"), None)
    if own is not None and (key is not None or keyed or isinstance(payload, KeyAndValue)):
        message = f"column {own} is the key of the records, which 'key.fields' or the PRIMARY KEY gives too"
        raise SqlFault(options.span, message, f"{own} … METADATA FROM 'key' VIRTUAL is read, and not written")
    time = next((name for name, part in columns.items() if part == "timestamp"), None)
    headers = [(name, part) for name, part in columns.items() if part.startswith("headers")]
    named = tuple((name, part.removeprefix("headers").removeprefix(".")) for name, part in headers)
    return WithParts(payload, time, named, own), own or key


def _check_key_columns(
    types: Mapping[str, pa.DataType],
    place: Mapping[str, Span],
    form: str,
    fields: tuple[str, ...],
    prefix: str,
    *,
    in_value: bool,
) -> None:
    """Raises SqlFault for columns that cannot be a key in this format. `types`: those of the columns of the table. `place`:
    the places of the options.
    """
    if not fields:
        raise SqlFault(
            place["key.format"], "'key.format' needs the option 'key.fields'", "'key.fields' = 'id', or 'a;b'"
        )
    for name in fields:
        if name not in types:
            raise SqlFault(place["key.fields"], f'there is no column "{name}" for the key', list_names(name, types))
        if not name.startswith(prefix):
            message = f"the column {name} of the key does not begin with '{prefix}'"
            raise SqlFault(place["key.fields-prefix"], message, f"call it {prefix}{name}, in 'key.fields' too")
    if prefix and in_value:
        message = "'key.fields-prefix' needs the option 'value.fields-include' = 'EXCEPT_KEY'"
        raise SqlFault(place["key.fields-prefix"], message, "without it, payloads have the columns of the key too")
    if form == "raw" and (len(fields) > 1 or types[fields[0]] not in (*_TEXTS, *BIG_ENDIAN)):
        message = "'key.format' = 'raw' is for one column: STRING, BYTES, BOOLEAN, or a number that is no DECIMAL"
        raise SqlFault(place["key.format"], message, "'key.format' = 'json'")


_NO_NULLS = "encode.ignore-null-fields"


def check_written(statement: CreateTable, span: Span) -> None:
    """Raises SqlFault, at `span`, for a table whose JSON should be written in a way that there is not."""
    for each in statement.options:
        if each.key in (f"json.{_NO_NULLS}", f"value.json.{_NO_NULLS}") and each.value == "true":
            message = f"'{each.key}' = 'true' is not there: a field that is NULL is written as null"
            raise SqlFault(span, message, "CREATE TABLE with 'false', or without the option")


def times_of(options: Options) -> TimesInJson:
    """Returns the form in which a table with JSON writes times. Texts and numbers are read in all forms."""
    found: TimesInJson | None = None
    for prefix in ("value.json.", "json."):
        found = options.choose(f"{prefix}timestamp-format.standard", _TIMES, found)
        options.choose(f"{prefix}encode.decimal-as-plain-number", YES_OR_NO)  # all digits are written either way
        options.choose(f"{prefix}{_NO_NULLS}", YES_OR_NO)
    return found or "sql"


def _has_time(type: pa.DataType) -> bool:
    if pa.types.is_nested(type):
        return any(_has_time(type.field(number).type) for number in range(type.num_fields))
    return bool(pa.types.is_timestamp(type) or pa.types.is_date(type))


def _plain(options: Options, statement: CreateTable, of: Sequence[str] | None = None, prefix: str = "") -> Avro:
    """Returns Avro without a registry, with the schema that Flink makes from the columns of the table. `of`: those of keys, whose
    names there lack `prefix`.
    """
    physical = [each for each in statement.columns if each.type is not None and each.metadata is None]
    if of is not None:
        by_name = {each.name.text: each for each in physical}
        physical = [by_name[name] for name in of]
    if not physical:
        hint = f"CREATE TABLE {options.table} (id BIGINT, …), or 'format' = 'avro-confluent' with a registry"
        raise SqlFault(options.span, f"table {options.table} needs columns: records of Avro do not name them", hint)
    keys = {each.text.lower() for each in statement.key}
    fields = []
    for each in physical:
        assert each.type is not None
        needed = not each.type.nullable or each.name.text.lower() in keys
        name = each.name.text.removeprefix(prefix)
        fields.append(pa.field(name, arrow_type(each.type), nullable=not needed))
    with at(options.span):
        return Avro(avro_schema(pa.schema(fields), "record"))


def _confluent(options: Options, prefix: str = "value.") -> Avro:
    """Returns Avro with a registry, from the options of Flink's format. `prefix`: that of the options for payloads or keys."""
    from sabot.kafka.registry import Registry

    def names(name: str) -> tuple[str, ...]:
        own = f"{prefix}avro-confluent.{name}"
        return (f"avro-confluent.{name}", own) if prefix == "value." else (own,)

    url = options.need(*names("url"), *names("schema-registry.url"))
    settings: dict[str, str] = {}
    for each in names("properties."):
        settings |= options.prefixed(each)
    user = options.take(*names("basic-auth.user-info"))
    token = options.take(*names("bearer-auth.token"))
    options.take(*names("basic-auth.credentials-source"))
    options.take(*names("bearer-auth.credentials-source"))
    if token is not None:
        settings |= {"bearer.auth.credentials.source": "STATIC_TOKEN", "bearer.auth.token": token}
    register = settings.pop("auto.register.schemas", "true")
    if register not in YES_OR_NO:
        raise SqlFault(options.span, f"'auto.register.schemas' cannot be '{register}'", "'true' or 'false'")
    given: dict[str, Any] = {"auto_register": YES_OR_NO[register]}
    if (subject := options.take(*names("subject"))) is not None:
        given["subject"] = subject
    login = None if user is None else (user.partition(":")[0], user.partition(":")[2])
    with at(options.span):
        registry = Registry(url, auth=login, settings=settings)
        return Avro(options.take(*names("schema")), registry=registry, **given)


def stream_of(
    read: Callable[..., Stream],
    source: Any,
    format: str | Format | None,
    given: dict[str, Any],
    statement: CreateTable,
) -> Stream:
    """Returns the rows of a topic. `read`: `app.stream`, or `app.table` with its key. `given`: further arguments of it.

    The columns of Avro are those of its schema; of them the stream has those that the table declares, with their types.
    """
    value = format.value if isinstance(format, KeyAndValue) else format
    if value == "raw" or isinstance(value, Raw):
        return _raw(read, source, format, given, statement)
    if format is None or not isinstance(value, Avro):
        return read(source, **given, **({} if format is None else {"format": format}))
    wanted: pa.Schema | None = given.pop("schema", None)
    if isinstance(format, str) or wanted is None or (value is format and value.registry is None):
        return read(source, **given, format=format)
    time, lateness = given.pop("time", None), given.pop("lateness", None)
    found = format.columns(source if isinstance(source, str) else source.name)
    assert found is not None  # those of Avro are in its schema
    for each in wanted:
        if each.name not in found.names:
            raise _unlike(
                statement, each.name, "the schema in the registry lacks it", list_names(each.name, found.names)
            )
    same = all(found.field(each.name).type == each.type for each in wanted)
    timed = {} if time is None else {"time": time, "lateness": lateness}
    stream = read(source, **given, **(timed if same else {}), format=format)
    columns = declared_columns(found, wanted, statement, "the schema in the registry")
    stream = stream.select(**columns, **{name: col(name) for name in given.get("fields", {})})
    return stream if same or time is None else stream.with_time(time, lateness=lateness)


def _raw(
    read: Callable[..., Stream], source: Any, format: str | Format | None, given: dict[str, Any], statement: CreateTable
) -> Stream:
    """Returns the payloads of a topic as the one column that the table declares, text or bytes, besides those of keys."""
    wanted: pa.Schema | None = given.pop("schema", None)
    if wanted is None:
        return read(source, **given, format="raw")
    keys = format.fields if isinstance(format, KeyAndValue) else ()
    payload = [each for each in wanted if each.name not in keys]
    if len(payload) != 1 or payload[0].type not in _TEXTS:
        message = "'format' = 'raw' is for one column of STRING or BYTES"
        raise SqlFault(statement.columns[0].span, message, "'format' = 'json', or 'csv', for several columns")
    own = Raw(text=payload[0].type == pa.string())
    stream = read(source, **given, format=replace(format, value=own) if isinstance(format, KeyAndValue) else own)
    columns = {each.name: col(each.name if each.name in keys else VALUE) for each in wanted}
    return stream.select(**columns, **{field: col(field) for field in given.get("fields", {})})


def declared_columns(found: pa.Schema, wanted: pa.Schema, statement: CreateTable, where: str) -> dict[str, Expr]:
    """Returns the columns of a table with the types that the statement declares. `found`: those that `where` has. A number that the
    declared type would cut or round is refused with its row. Raises SqlFault for a type that its values may not have.
    """
    columns = {}
    for each in wanted:
        bound = TypedExpr(col(each.name), found.field(each.name).type)
        if bound.type != each.type and not _may_be(bound.type, each.type):
            raise _unlike(statement, each.name, f"{where} says {sql_type(bound.type)}", "")
        if bound.type == each.type:
            columns[each.name] = bound.expr
        elif pa.types.is_timestamp(each.type):
            columns[each.name] = cast(bound, each.type, UTC, strict=True)
        else:
            columns[each.name] = Expr("cast", (bound.expr,), (("type", each.type), ("strict", True), ("exact", True)))
    return columns


def _may_be(found: pa.DataType, wanted: pa.DataType) -> bool:
    number = pa.types.is_integer(found) or pa.types.is_floating(found) or pa.types.is_decimal(found)
    if number:
        return bool(pa.types.is_integer(wanted) or pa.types.is_floating(wanted) or pa.types.is_decimal(wanted))
    return bool(pa.types.is_timestamp(found) and pa.types.is_timestamp(wanted))


def _unlike(statement: CreateTable, name: str, why: str, hint: str) -> SqlFault:
    column = next(each for each in statement.columns if each.name.text == name)
    type = "" if column.type is None else sql_type(arrow_type(column.type))
    return SqlFault(column.span, f"column {name} is {type}, and {why}", hint or "declare the type of that column")
