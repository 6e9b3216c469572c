"""The formats that need only their settings, and the lookup of formats by name. Formats with schemas of their own are
in `schemas`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import pyarrow as pa

from sabot._cython.text.json import encode_rows
from sabot.base.checks import FLAG, OneOf, Whole, check, is_whole
from sabot.codecs.arrow import ArrowCodec, ArrowEncoder
from sabot.codecs.base import Codec, Encoder, Format, LostFloats
from sabot.codecs.csv import CsvCodec, CsvEncoder
from sabot.codecs.csv_text import checked_delimiter, convert_options, refuse_csv_types
from sabot.codecs.json import INFERENCE_ROWS, InferredColumns, JsonCodec, JsonEncoder, TimesInJson, schema_of_text
from sabot.codecs.raw import VALUE, RawCodec, RawEncoder
from sabot.codecs.records import RECORD_SCHEMA, refuse_types
from sabot.errors import UserError


@dataclass(frozen=True)
class Json(Format):
    """The format of payloads that are one JSON object each. Without `schema=` the columns are inferred from the first
    `sample_rows` records.

    `times`: how dates and timestamps are written: "ms" since 1970, or texts, "iso" (2024-05-17T12:30:00.25, with a Z behind
    it if the type has a time zone) or "sql" (the same with a space for the T). All of them are read.
    """

    name: ClassVar[str] = "json"
    sample_rows: int = INFERENCE_ROWS
    times: TimesInJson = "ms"

    def __post_init__(self) -> None:
        check("Json: sample_rows", self.sample_rows, Whole(1))
        check("Json: times", self.times, OneOf(get_args(TimesInJson)))

    @property
    def description(self) -> str:
        return self.name if self.times == "ms" else f"{self.name} with times as {self.times}"

    def codec(
        self, topic: str, schema: pa.Schema | None, columns: Sequence[str] | None = None, text: str | None = None
    ) -> Codec:
        found = _selected(schema, columns, text)
        inferred = InferredColumns(topic, found) if schema is None and found is not None else None
        return JsonCodec(found, self.sample_rows, name=topic, inferred=inferred)

    def encoder(self, topic: str) -> Encoder:
        return JsonEncoder(self.times, f"topic {topic!r}")

    def check_types(self, schema: pa.Schema, where: str) -> None:
        refuse_types(schema, encode_rows, where, "JSON")

    def floats_lost(self, kind: pa.DataType) -> LostFloats:
        return "not_finite"


@dataclass(frozen=True)
class Csv(Format):
    """The format of payloads that are one CSV record each, whose fields are the columns of `schema=`, in order.
    `delimiter`: one ASCII character.
    """

    name: ClassVar[str] = "csv"
    needs_schema: ClassVar[bool] = True
    delimiter: str = ","

    def __post_init__(self) -> None:
        checked_delimiter(self.delimiter, "Csv")

    @property
    def description(self) -> str:
        return self.name if self.delimiter == "," else f"{self.name} with {self.delimiter!r} between fields"

    def check_input(self, schema: pa.Schema | None, where: str) -> None:
        super().check_input(schema, where)
        try:
            convert_options(schema)
        except UserError as error:
            raise UserError(f"{where}: {error.message}", hint=error.hint) from error

    def codec(
        self, topic: str, schema: pa.Schema | None, columns: Sequence[str] | None = None, text: str | None = None
    ) -> Codec:
        if schema is None:
            raise UserError(f"{topic}: format csv, and no schema=", hint='schema={"id": "int64", …} names the fields')
        return CsvCodec(schema, self.delimiter, columns)

    def encoder(self, topic: str) -> Encoder:
        return CsvEncoder(self.delimiter)

    def check_types(self, schema: pa.Schema, where: str) -> None:
        if not schema.equals(RECORD_SCHEMA):
            refuse_csv_types(schema, where)


@dataclass(frozen=True)
class Raw(Format):
    """The format of payloads that are read unchanged into the column `value`: as bytes, or with text=True as UTF-8
    text.
    """

    name: ClassVar[str] = "raw"
    own_columns: ClassVar[bool] = True
    text: bool = False

    def __post_init__(self) -> None:
        check("Raw: text", self.text, FLAG)

    @property
    def description(self) -> str:
        return "raw text" if self.text else self.name

    @property
    def known_columns(self) -> pa.Schema:
        return pa.schema([(VALUE, pa.string() if self.text else pa.binary())])

    def codec(
        self, topic: str, schema: pa.Schema | None, columns: Sequence[str] | None = None, text: str | None = None
    ) -> Codec:
        return RawCodec(self.known_columns)

    def encoder(self, topic: str) -> Encoder:
        return RawEncoder()

    def check_types(self, schema: pa.Schema, where: str) -> None:
        if schema.equals(RECORD_SCHEMA):
            return
        if len(schema) != 1 or schema.field(0).type not in (
            *(pa.string(), pa.large_string(), pa.string_view()),
            *(pa.binary(), pa.large_binary(), pa.binary_view()),
        ):
            columns = ", ".join(f"{field.name} {field.type}" for field in schema) or "none"
            raise UserError(
                f"{where}: format raw takes one column of text or bytes, and not {columns}",
                hint='keep only one before the sink: .select("payload")',
            )


@dataclass(frozen=True)
class ArrowIpc(Format):
    """The format of payloads that are Arrow IPC streams, or files, of many rows. Without `schema=` the first record
    gives the columns.

    `rows`: the most rows of a written payload. `compression`: None, "lz4" or "zstd".
    """

    name: ClassVar[str] = "arrow"
    one_row: ClassVar[bool] = False
    rows: int = 1024
    compression: Literal["lz4", "zstd"] | None = None

    def __post_init__(self) -> None:
        if not is_whole(self.rows, 1):
            raise UserError(f"ArrowIpc(rows={self.rows!r})", hint="the most rows of a payload, at least 1")
        if self.compression not in (None, "lz4", "zstd"):
            raise UserError(f"ArrowIpc(compression={self.compression!r})", hint='"lz4" or "zstd"')

    @property
    def sample_rows(self) -> int:
        return 1

    def codec(
        self, topic: str, schema: pa.Schema | None, columns: Sequence[str] | None = None, text: str | None = None
    ) -> Codec:
        return ArrowCodec(_selected(schema, columns, text))

    def encoder(self, topic: str) -> Encoder:
        return ArrowEncoder(self.rows, self.compression)

    def check_types(self, schema: pa.Schema, where: str) -> None:
        """Accepts all columns: Arrow represents every type."""


JSON = Json()

_BY_NAME: dict[str, Format] = {each.name: each for each in (JSON, Csv(), Raw(), ArrowIpc())}


def format_of(given: object, where: str, more: Sequence[str] = ()) -> Format:
    """Returns the given Format, or the format of this name; None is JSON. Raises UserError, whose text begins with `where`,
    for another value; its hint names the formats and `more`.
    """
    if given is None:
        return JSON
    if isinstance(given, Format):
        return given
    if isinstance(given, str) and given in _BY_NAME:
        return _BY_NAME[given]
    names = ", ".join(map(repr, [*_BY_NAME, *more]))
    raise UserError(
        f"{where}: format={given!r}", hint=f"one of {names}, or a format with settings, such as Avro(…) or Csv(…)"
    )


def agreed_format(name: str, one: Format | None, other: Format | None) -> Format | None:
    """Returns the format of a topic with two writers, or None if neither has chosen one. `one`, `other`: the format
    of each writer, or None if it has chosen none. Raises UserError if they have chosen two different formats.
    """
    if None not in (one, other) and one != other:
        assert one is not None
        assert other is not None
        raise UserError(
            f"topic {name} has two writers with different formats: {one.description} and {other.description}",
            hint="give both the same format=",
        )
    return one or other


def _selected(schema: pa.Schema | None, columns: Sequence[str] | None, text: str | None) -> pa.Schema | None:
    """Returns the columns to decode: those of `schema` or, if it is None, of a codec's `text`; None if neither is known."""
    if schema is None:
        return schema_of_text(text)
    if columns is None:
        return schema
    return pa.schema([schema.field(name) for name in columns])
