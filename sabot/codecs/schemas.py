"""The formats with a schema language of their own, and their use of a schema registry."""

import json
import os
import re
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, Protocol

import pyarrow as pa

from sabot.base.arrays import empty_batch
from sabot.base.checks import FLAG, check
from sabot.base.config import checked_text
from sabot.base.redaction import redacted_url
from sabot.codecs.avro import AvroCodec, AvroEncoder, arrow_schema, avro_schema
from sabot.codecs.base import Codec, Encoder, Format
from sabot.codecs.protobuf import ProtobufCodec, ProtobufEncoder
from sabot.codecs.protobuf import arrow_schema as columns_of
from sabot.codecs.protobuf.fields import message_type
from sabot.codecs.records import RECORD_SCHEMA
from sabot.errors import UserError

_SUBJECT = "{topic}-value"
_PLACES = ("topic", "record")


@dataclass(frozen=True)
class Reference:
    """A schema that another one refers to: a version of a subject, under the name in the referring schema."""

    name: str
    subject: str
    version: int


class SchemaRegistry(Protocol):
    """The functions of a schema registry that formats call; `sabot.Registry` has them. `kind`: "AVRO" or "PROTOBUF".
    All of them may block, may be called from any thread, and raise RegistryUnavailable. The text of an Avro schema
    includes the types that it refers to; a Protobuf file does not.
    """

    def schema_of(self, id: int, kind: str) -> str:
        """Returns the text of the schema with this id. Raises UnknownSchema."""

    def latest(self, subject: str, kind: str) -> tuple[int, str]:
        """Returns the id and the text of the newest schema of a subject. Raises UserError if there is none."""

    def register(self, subject: str, text: str, kind: str, references: Sequence[Reference] = ()) -> int:
        """Returns the id of this schema. If the subject does not have it, registers it as its newest. Raises
        UserError.
        """

    def refer(self, name: str, text: str, kind: str, references: Sequence[Reference] = ()) -> Reference:
        """Registers a schema under the subject of this name, for other schemas to refer to. Raises UserError."""

    def lookup(self, subject: str, text: str, kind: str) -> int:
        """Returns the id of this schema of a subject. Raises UserError if the subject does not have it."""


class _BySchema:
    """An encoder whose payloads depend on the columns: it calls `make` for each schema of the rows."""

    def __init__(self, make: Any) -> None:
        self._make = make
        self._schema: pa.Schema | None = None
        self._encoder: Encoder | None = None

    def another(self) -> "_BySchema":
        return _BySchema(self._make)

    def encode(self, batch: pa.RecordBatch) -> pa.BinaryArray:
        if self._encoder is None or not batch.schema.equals(self._schema):
            self._encoder, self._schema = self._make(batch.schema), batch.schema
        return self._encoder.encode(batch)


def _checked_subject(subject: Any, what: str) -> None:
    checked_text(subject, f"{what}: subject")
    unknown = [name for name in re.findall(r"\{(.*?)\}", subject) if name not in _PLACES]
    if not subject or unknown:
        raise UserError(
            f"{what}(subject={subject!r})",
            hint='"{topic}-value" (the default), "{record}", "{topic}-{record}", or a name',
        )


def _check_registry(registry: Any, what: str) -> None:
    if registry is not None and (isinstance(registry, type) or not callable(getattr(registry, "schema_of", None))):
        given = registry if isinstance(registry, str) else "http://localhost:8081"
        raise UserError(
            f"{what}(registry=…) is a {type(registry).__name__}, and no registry",
            hint=f'from sabot import Registry; {what}(…, registry=Registry("{redacted_url(given)}"))',
        )


class _RegistryAvro(AvroCodec):
    """An Avro codec whose reader's schema may have come from a registry when the app began; a checkpoint keeps that
    schema.
    """

    def __init__(self, reader: str, schema_of: Callable[[int], str], columns: list[str] | None) -> None:
        super().__init__(reader, schema_of=schema_of, columns=columns)
        self._settings = (reader, schema_of, columns)

    @property
    def text(self) -> str:  # type: ignore[override]
        """The reader's schema."""
        return self._settings[0]

    def another(self) -> "_RegistryAvro":
        return _RegistryAvro(*self._settings)


@dataclass(frozen=True)
class Avro(Format):
    """The format of payloads that are one Avro record each. With a registry a payload begins with the id of its
    writer's schema (Confluent's wire format), which is resolved against `schema`. Without a registry payloads are
    written with `schema` itself.

    `schema`: a dict, its JSON text, or the path of a file. Without it, a reader takes the newest schema of the
    subject; a writer makes one from the columns or, with auto_register=False, takes the newest of the subject.
    `subject`: its name in the registry, with {topic} and {record} (the full name of the record). `auto_register`:
    True to register a writer's schema that the registry does not have, False to refuse it.
    """

    name: ClassVar[str] = "avro"
    own_columns: ClassVar[bool] = True
    schema: Any = None
    registry: SchemaRegistry | None = field(default=None, kw_only=True)
    subject: str = field(default=_SUBJECT, kw_only=True)
    auto_register: bool = field(default=True, kw_only=True)

    def __post_init__(self) -> None:
        if self.schema is not None:
            object.__setattr__(self, "schema", _schema_text(self.schema))
            arrow_schema(self.schema)  # raises UserError for a wrong schema
        _check_registry(self.registry, "Avro")
        _checked_subject(self.subject, "Avro")
        check("Avro: auto_register", self.auto_register, FLAG)

    @property
    def known_columns(self) -> pa.Schema | None:
        return None if self.schema is None else arrow_schema(self.schema)

    def check_input(self, schema: pa.Schema | None, where: str) -> None:
        super().check_input(schema, where)
        if self.schema is None and self.registry is None:
            raise UserError(f"{where}: Avro() has no schema", hint="Avro(schema), or Avro(registry=Registry(url))")
        if self.schema is None and "{record}" in self.subject:
            raise UserError(
                f"{where}: subject {self.subject!r} needs the name of the record, which Avro() does not know",
                hint="Avro(schema, …)",
            )

    def columns(self, topic: str) -> pa.Schema:
        return arrow_schema(self._reader(topic))

    def codec(
        self, topic: str, schema: pa.Schema | None, columns: Sequence[str] | None = None, text: str | None = None
    ) -> Codec:
        registry, names = self.registry, None if columns is None else list(columns)
        if registry is None:
            return AvroCodec(self._reader(topic), columns=names)
        reader = self.schema or text or self._reader(topic)
        return _RegistryAvro(reader, partial(registry.schema_of, kind="AVRO"), names)

    def encoder(self, topic: str) -> Encoder:
        return _BySchema(partial(self._encoder, topic))

    def check_types(self, schema: pa.Schema, where: str) -> None:
        if schema.equals(RECORD_SCHEMA) or (self.schema is None and not self.auto_register):
            return
        try:
            AvroEncoder(self.schema or avro_schema(schema, "row")).encode(empty_batch(schema))
        except UserError as error:
            raise UserError(f"{where}: {error.message}", hint=error.hint) from error

    def _reader(self, topic: str) -> str:
        """Returns the text of the schema with which rows are read."""
        if self.schema is not None:
            text: str = self.schema
            return text
        if self.registry is None:
            raise UserError(f"{topic}: Avro() has no schema", hint="Avro(schema), or Avro(registry=Registry(url))")
        return self.registry.latest(self._subject(topic, None), "AVRO")[1]

    def _encoder(self, topic: str, columns: pa.Schema) -> Encoder:
        """Returns an encoder for rows with these columns, and registers their schema."""
        if self.registry is None:
            return AvroEncoder(self.schema or avro_schema(columns, _name_of(topic)))
        if self.schema is None and not self.auto_register:
            id, text = self.registry.latest(self._subject(topic, None), "AVRO")
            return AvroEncoder(text, schema_id=id)
        text = self.schema or json.dumps(avro_schema(columns, _name_of(topic)))
        make = AvroEncoder(text)
        make.encode(empty_batch(columns))  # a schema that the columns do not fit must not be registered
        register = self.registry.register if self.auto_register else self.registry.lookup
        return AvroEncoder(text, schema_id=register(self._subject(topic, text), text, "AVRO"))

    def _subject(self, topic: str, text: str | None) -> str:
        record = "" if text is None and self.schema is None else _full_name(json.loads(self.schema or text or "{}"))
        return self.subject.replace("{topic}", topic).replace("{record}", record)


@dataclass(frozen=True)
class Protobuf(Format):
    """The format of payloads that are one Protobuf message each. With a registry a payload begins with the id of its
    schema and the position of the message in it (Confluent's wire format); a payload with another message is a bad
    row. Fields are identified by their numbers.

    `message`: a generated class, its descriptor, or `descriptor_of(files, "package.Message")`. `subject`: as for
    `Avro`; {record} is the full name of the message. `auto_register`: True if a writer registers the file of the
    message, False if it takes the newest schema of the subject.
    """

    name: ClassVar[str] = "protobuf"
    own_columns: ClassVar[bool] = True
    message: Any
    registry: SchemaRegistry | None = field(default=None, kw_only=True)
    subject: str = field(default=_SUBJECT, kw_only=True)
    auto_register: bool = field(default=True, kw_only=True)

    def __post_init__(self) -> None:
        object.__setattr__(self, "message", message_type(self.message))
        columns_of(self.message)  # raises UserError for a wrong message
        _check_registry(self.registry, "Protobuf")
        _checked_subject(self.subject, "Protobuf")
        check("Protobuf: auto_register", self.auto_register, FLAG)

    @property
    def known_columns(self) -> pa.Schema:
        return columns_of(self.message)

    def codec(
        self, topic: str, schema: pa.Schema | None, columns: Sequence[str] | None = None, text: str | None = None
    ) -> Codec:
        files = None if self.registry is None else partial(self.registry.schema_of, kind="PROTOBUF")
        return ProtobufCodec(self.message, framed=files is not None, columns=columns, schema_of=files)

    def encoder(self, topic: str) -> Encoder:
        return _BySchema(partial(self._encoder, topic))

    def check_types(self, schema: pa.Schema, where: str) -> None:
        if schema.equals(RECORD_SCHEMA):
            return
        try:
            ProtobufEncoder(self.message).check(schema)
        except UserError as error:
            raise UserError(f"{where}: {error.message}", hint=error.hint) from error

    def _encoder(self, topic: str, columns: pa.Schema) -> Encoder:
        """Returns an encoder for rows with these columns, and registers the schema of the message."""
        ProtobufEncoder(self.message).check(columns)
        return ProtobufEncoder(
            self.message, schema_id=None if self.registry is None else self._id(self.registry, topic)
        )

    def _id(self, registry: SchemaRegistry, topic: str) -> int:
        subject = self.subject.replace("{topic}", topic).replace("{record}", self.message.full_name)
        if not self.auto_register:
            return registry.latest(subject, "PROTOBUF")[0]
        made: dict[str, Reference] = {}

        def imports(file: Any) -> list[Reference]:
            """Registers the files that this file imports, and returns references to them. Google's own files are left
            out, because registries have them.
            """
            used = [each for each in file.dependencies if not each.name.startswith("google/protobuf/")]
            for each in used:
                if each.name not in made:
                    made[each.name] = registry.refer(each.name, _text(each), "PROTOBUF", imports(each))
            return [made[each.name] for each in used]

        file = self.message.file
        return registry.register(subject, _text(file), "PROTOBUF", imports(file))


def _text(file: Any) -> str:
    """Returns a file of Protobuf in the form that registries take."""
    return b64encode(file.serialized_pb).decode()


def _schema_text(schema: Any) -> str:
    """Returns a schema as JSON text, in the form that is compared and registered. Raises UserError."""
    if isinstance(schema, os.PathLike):
        with open(schema, encoding="utf-8") as file:
            schema = file.read()
    if isinstance(schema, str):
        try:
            schema = json.loads(schema)
        except ValueError as error:
            raise UserError(
                f"Avro: the schema is not JSON: {error}", hint="a dict, its JSON text, or Path(…) of a file"
            ) from error
    if not isinstance(schema, Mapping):
        raise UserError(f"Avro: {schema!r:.60} is not the schema of a record", hint='{"type": "record", "name": …}')
    return json.dumps(schema)


def _full_name(schema: Any) -> str:
    """Returns the full name of a record, for subjects."""
    name = str(schema.get("name", "")) if isinstance(schema, Mapping) else ""
    space = schema.get("namespace") if isinstance(schema, Mapping) else None
    return name if not space or "." in name else f"{space}.{name}"


def _name_of(topic: str) -> str:
    """Returns a name that Avro allows for the record of a topic."""
    name = re.sub(r"\W", "_", topic, flags=re.ASCII)
    return name if name[:1].isalpha() or name.startswith("_") else f"_{name}"
