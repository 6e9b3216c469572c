"""Payloads that are one JSON object each: decoded with a given or inferred schema, and encoded."""

import json
import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from itertools import islice
from typing import Any, Literal, TypeAlias, get_args

import pyarrow as pa

from sabot._cython.text.json import BadRow, JsonDecoder, encode_rows
from sabot.base.arrays import finer_than_ms, finer_unit
from sabot.base.checks import OneOf, check
from sabot.base.config import FIELDS
from sabot.errors import UserError

_log = logging.getLogger(__name__)

INFERENCE_ROWS = 1000
_FIRST_ROWS = 1000  # of so many rows the times are looked at, for digits that JSON cuts
_NAMED = 100  # from so many records of a batch the names of fields are taken
TimesInJson = Literal["ms", "iso", "sql"]
_NO_COLUMNS = pa.schema([])
_Shape: TypeAlias = Any
"""The type of a value: None, "bool", one of _INTEGERS, "float64", "string", [shape of the items], {name: shape}."""
# integers of more than 64 bits; floats keep the digits of "int64" and "round", not of the others
_WIDE = ("round", "decimal")
_LONG = ("long", "decimal")
_INTEGERS = ("int64", *_WIDE, *_LONG)
_TYPES = {"bool": pa.bool_(), "int64": pa.int64(), "float64": pa.float64(), "string": pa.string()}
_TYPES |= {"long": pa.int64(), **dict.fromkeys(_WIDE, pa.decimal128(38, 0))}
_MOST_DIGITS = 40  # more than a decimal has; Python refuses to read the longest
_TOO_LONG = 10**_MOST_DIGITS + 1
_TOLD = 10  # so many new fields are named


class JsonCodec:
    """A codec for payloads of one JSON object each. A missing schema is inferred once, from the first batch with a
    readable payload.

    Later rows that do not fit this schema are bad rows. So a checkpoint stores `text`, and the next start continues
    with the same schema.
    """

    def __init__(
        self,
        schema: pa.Schema | None = None,
        sample_rows: int = INFERENCE_ROWS,
        *,
        name: str = "",
        inferred: "InferredColumns | None" = None,
    ) -> None:
        """`sample_rows`: the number of records from which a missing schema is inferred. `name`: the topic, for the log. `inferred`: the
        columns if `schema` was inferred before.
        """
        self._sample_rows = sample_rows
        self._name = name
        self._inferred = inferred
        self._decoder = None if schema is None else decoder_of(schema, inferred)
        self._others = 0

    @property
    def schema(self) -> pa.Schema | None:
        """The columns of decoded batches, or None before the first readable payload of a codec without a given
        schema.
        """
        return None if self._decoder is None else self._decoder.schema

    @property
    def text(self) -> str | None:
        """The schema as text for a checkpoint; `Format.codec` takes it."""
        return schema_text(self.schema)

    def another(self) -> "JsonCodec":
        return JsonCodec(self.schema, self._sample_rows, name=self._name, inferred=self._inferred)

    def take_inferred(self, inferred: "InferredColumns") -> None:
        """Notes that the schema, which this codec was given, was inferred before. Called before `decode`."""
        assert self.schema is not None
        self._inferred, self._decoder = inferred, decoder_of(self.schema, inferred)

    def decode(self, batch: pa.RecordBatch) -> tuple[pa.RecordBatch, list[BadRow]]:
        """Decodes the column `payload`. Returns the good rows, in order, and the bad rows, which never stop a batch.

        Raises UserError if the schema must be inferred and the first `sample_rows` payloads do not agree on a field's type.
        """
        payloads = batch.column("payload")
        if self._decoder is None:
            readable, bad = JsonDecoder(_NO_COLUMNS).decode(payloads)
            if readable.num_rows == 0:
                return readable, bad
            unreadable = {row.row for row in bad}
            rows = [row for row in range(len(payloads)) if row not in unreadable][: self._sample_rows]
            found = infer_schema(payloads.take(pa.array(rows, pa.int64())).to_pylist())
            self._inferred = InferredColumns(self._name, found)
            self._decoder = decoder_of(found, self._inferred)
        decoded = self._decoder.decode(payloads)
        if self._inferred is not None and self._decoder.others > self._others:
            self._others = self._decoder.others
            self._inferred.tell_others("the records have", self._decoder.other_names())
        return decoded


class InferredColumns:
    """Columns that were inferred from the first records, and the fields of later ones that no column has: they are left out, and each is
    logged once.

    `name`: the name of the stream, for the log. `guessed`: the columns whose types were inferred too; None: all.
    """

    def __init__(self, name: str, schema: pa.Schema, guessed: Collection[str] | None = None) -> None:
        self._name = name
        self._known = set(paths_of(schema))
        self._told: set[str] = set()
        self.guessed = frozenset(schema.names if guessed is None else guessed)

    def tell_others(self, where: str, names: Iterable[str], what: str = "field") -> None:
        """Logs those of the names that no column has. `where`: what has them, with its verb."""
        for name in names:
            if name in self._known or name in self._told or len(self._told) > _TOLD:
                continue
            if any(name.startswith((f"{above}.", f"{above}[")) for above in self._told):
                continue
            self._told.add(name)
            if len(self._told) > _TOLD:
                _log.warning("stream %s: %s more such %ss, which are left out too", self._name, where, what)
                return
            _log.warning(
                "stream %s: %s a %s %r that its columns lack, as they were inferred from earlier rows: it is left out (schema= takes it)",
                *(self._name, where, what, name),
            )


def paths_of(fields: Iterable[Any], above: str = "") -> Iterator[str]:
    """Yields the paths of fields and of those below them, as `JsonDecoder.other_names` has them. `above`: the path before them."""
    for field in fields:
        kind, path = field.type, f"{above}{field.name}"
        yield path
        while pa.types.is_list(kind):
            kind, path = kind.value_type, f"{path}[]"
        if pa.types.is_struct(kind):
            yield from paths_of(kind, f"{path}.")


def decoder_of(schema: pa.Schema, inferred: InferredColumns | None) -> JsonDecoder:
    """Returns the decoder of these columns, of which some may have been inferred."""
    return JsonDecoder(schema, () if inferred is None else inferred.guessed)


_Path: TypeAlias = tuple[str, ...]


class AbsentColumns:
    """The columns of a `schema=`, and the fields of structs in it, that none of the first 1,000 records has: a misspelt one
    would be null for ever, in silence. They are logged once. A path is the names of a field from the column on.

    `where`: the name of the stream or file, for the log. `alike`: True if only columns are logged for which the records
    have a field with a similar name.
    """

    def __init__(self, where: str, *, alike: bool = False) -> None:
        self._where, self._alike = where, alike
        self._absent: set[_Path] | None = None  # what has no value so far; None before the first rows
        self._wanted: set[_Path] = set()  # all columns and fields of the schema
        self._met: set[_Path] = set()  # of fields of structs: those whose struct some record has
        # The names in some of the records, and in structs of theirs, in order of their first appearance.
        self._names: dict[_Path, dict[str, None]] = {}
        self._rows = 0
        self.is_done = False

    def look(
        self, data: pa.RecordBatch, columns: Sequence[str], payloads: Callable[[], Iterable[bytes | None]]
    ) -> None:
        """Looks at decoded rows. `columns`: the columns of the schema. `payloads`: returns their records, if they are needed."""
        absent = {path for name in columns for path in self._empty(data.column(name), (name,))}
        absent = absent if self._absent is None else absent & self._absent
        if absent:
            some = [payload for payload in islice(payloads(), INFERENCE_ROWS) if payload is not None]
            keys = {path: json.dumps(path[-1], ensure_ascii=False).encode() for path in absent}
            absent = {path for path in absent if not any(keys[path] in payload for payload in some)}
            for payload in some[:_NAMED]:
                record = json.loads(payload)
                for above in {path[:-1] for path in absent}:
                    self._names.setdefault(above, {}).update(dict.fromkeys(_names_at(record, above)))
        self._note(absent, data.num_rows)

    def _empty(self, values: pa.Array, path: _Path) -> Iterator[_Path]:
        """Yields what has no value in these: the column itself, and fields of structs, also of those in lists."""
        self._wanted.add(path)
        if values.null_count == len(values):
            yield path
        while pa.types.is_list(values.type):
            values = values.flatten()
        if pa.types.is_struct(values.type):
            there = values.drop_null()
            for field, inner in zip(values.type, there.flatten(), strict=True):
                if len(inner):
                    self._met.add((*path, field.name))
                yield from self._empty(inner, (*path, field.name))

    def look_at(self, rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
        """Looks at rows of Python values. `columns`: the columns of the schema."""
        self._wanted |= {(name,) for name in columns}
        absent = self._wanted if self._absent is None else self._absent
        names = [str(name) for row in rows[:_NAMED] for name in row]
        self._names.setdefault((), {}).update(dict.fromkeys(names))
        found = set(names).union(*rows[_NAMED:INFERENCE_ROWS])
        self._note({path for path in absent if path[0] not in found}, len(rows))

    def look_at_types(self, given: pa.Schema, wanted: pa.Schema, rows: int) -> None:
        """Looks at rows whose types say which fields they have. `given`: their columns. `wanted`: the columns of the schema."""
        absent = set(self._lacking(given, wanted, ()))
        self._note(absent if self._absent is None else absent & self._absent, rows)

    def _lacking(self, given: Iterable[pa.Field], wanted: Iterable[pa.Field], above: _Path) -> Iterator[_Path]:
        """Yields the paths of the wanted fields that are not among the given ones."""
        types = {field.name: field.type for field in given}
        self._names.setdefault(above, {}).update(dict.fromkeys(types))
        for field in wanted:
            path = (*above, field.name)
            kind: Any = types.get(field.name)
            inner: Any = field.type
            self._wanted.add(path)
            self._met.add(path)
            while hasattr(inner, "value_type") and hasattr(kind, "value_type"):
                kind, inner = kind.value_type, inner.value_type
            if kind is None:
                yield path
            elif pa.types.is_struct(kind) and pa.types.is_struct(inner):
                yield from self._lacking(kind, inner, path)

    def _note(self, absent: set[_Path], rows: int) -> None:
        self._absent, self._rows = absent, self._rows + rows
        self.is_done = not absent or self._rows >= INFERENCE_ROWS
        if self.is_done:
            self.tell()

    def tell(self) -> None:
        """Logs the columns that are absent so far. Called at the end of the input, if it comes before the end of the first records."""
        self.is_done = True
        for path in sorted(self._absent or ()) if self._rows else ():
            if len(path) > 1 and path not in self._met:
                continue  # no record has the struct of this field
            others = [name for name in self._names.get(path[:-1], {}) if (*path[:-1], name) not in self._wanted]
            near = get_close_matches(path[-1], others, 1)
            if self._alike and not near:
                continue
            guess = f"did you mean {near[0]!r}?" if near else f"other fields: {', '.join(others) or 'none'}"
            first = f"the first {self._rows:,} records have" if self._rows > 1 else "the first record has"
            what = "column" if len(path) == 1 else "field"
            _log.warning("%s: %s no field %r, so this %s is null: %s", self._where, first, ".".join(path), what, guess)


def _names_at(record: Any, path: _Path) -> Iterator[str]:
    """Yields the names of the fields of the structs at a path, also of those in lists."""
    if isinstance(record, list):
        for each in record:
            yield from _names_at(each, path)
    elif isinstance(record, dict):
        yield from _names_at(record.get(path[0]), path[1:]) if path else record


class JsonEncoder:
    """An encoder that writes rows as JSON objects, by the rules of `encode_rows`. `name`: the place that it writes for, in a
    warning of times that numbers of milliseconds cut, or "" for none.
    """

    def __init__(self, times: TimesInJson = "ms", name: str = "") -> None:
        self._times, self._name = check("times", times, OneOf(get_args(TimesInJson))), name
        self._unseen = _FIRST_ROWS if name and times == "ms" else 0  # rows whose times are still looked at

    def another(self) -> "JsonEncoder":
        return JsonEncoder(self._times)

    def encode(self, batch: pa.RecordBatch) -> pa.BinaryArray:
        if self._unseen > 0:
            self._look(batch)
        return encode_rows(batch, self._times)

    def _look(self, batch: pa.RecordBatch) -> None:
        """Warns once if a time among the first rows has digits that are cut. Later rows take no time for it."""
        self._unseen -= batch.num_rows
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            if pa.types.is_timestamp(column.type) and finer_unit(column.type) and finer_than_ms(column).any():
                self._unseen = 0
                _log.warning(
                    '%s: times of column %r have digits below a millisecond, and JSON has whole ones: they are cut off (times="iso" of'
                    " Json or NdjsonSink writes all digits, as a text)",
                    self._name,
                    name,
                )
                return


def lossy_json(rows: pa.RecordBatch) -> pa.BinaryArray:
    """Returns the rows as JSON, whatever their types: columns that JSON cannot represent, such as lists of binary,
    become text or are left out.
    """
    columns = {}
    for name, column in zip(rows.schema.names, rows.columns, strict=True):
        try:
            encode_rows(rows.select([name]))
            columns[name] = column
        except (UserError, TypeError):
            if not pa.types.is_nested(column.type) and not pa.types.is_fixed_size_binary(column.type):
                columns[name] = column.cast(pa.string())
    return encode_rows(pa.RecordBatch.from_pydict(columns) if columns else rows.select([]))


def schema_text(schema: pa.Schema | None) -> str | None:
    """Returns a schema of any types as text for a checkpoint; `schema_of_text` reads it."""
    return None if schema is None else schema.serialize().to_pybytes().hex()


def schema_of_text(text: str | None) -> pa.Schema | None:
    """Returns the schema that `schema_text` has written as this text."""
    return None if text is None else pa.ipc.read_schema(pa.py_buffer(bytes.fromhex(text)))


def infer_schema(payloads: Iterable[bytes | None]) -> pa.Schema:
    """Returns the narrowest schema that all valid payloads fit, of bool, int64, decimal128(38, 0), float64, string, list, struct and
    null.

    Integers of which one needs more than 64 bits are decimals, because as floats two ids would be one. Integers and floats together are
    floats; if floats would lose digits of one of the integers, UserError is raised, which names the field and the integer. Other types that
    disagree raise UserError naming the field and both types. Fields are in the order of their first appearance. Payloads that are bad
    for every schema do not count; without a valid one the schema has no columns.
    """
    payloads = list(payloads)
    _, bad = JsonDecoder(_NO_COLUMNS).decode(payloads)
    skipped = {row.row for row in bad}
    fields: _Shape = {}
    for number, payload in enumerate(payloads):
        if payload is not None and number not in skipped:
            try:
                fields = _merged(fields, _shape(json.loads(payload, parse_int=whole_number), ""), "")
            except _LosesDigits as error:
                read = [
                    each for at, each in enumerate(payloads[: number + 1]) if each is not None and at not in skipped
                ]
                raise _loses_digits(error.path, (json.loads(each, parse_int=str) for each in read)) from error
            if _count(fields) > FIELDS:
                raise UserError(
                    f"columns cannot be inferred: the first {number + 1} records have more than {FIELDS} fields",
                    hint='give a schema={"name": "type"} of the fields that are wanted',
                )
    return pa.schema([(name, _arrow_type(shape)) for name, shape in fields.items()])


def _count(shape: _Shape) -> int:
    """Returns the number of fields in a shape, at all levels."""
    if isinstance(shape, dict):
        return sum([1 + _count(item) for item in shape.values()])
    return _count(shape[0]) if isinstance(shape, list) else 0


def whole_number(text: str) -> int:
    """Returns the whole number that a text is, or one that is as unfit for a decimal if it has more than 40 digits."""
    return int(text) if len(text) <= _MOST_DIGITS else _TOO_LONG


def loses_digits(value: int) -> bool:
    """Returns True if the nearest float is not the number, and does not show its digits either, as 1.2345678901234567e+19 shows those of
    12345678901234567000.
    """
    if -(2**53) <= value <= 2**53:
        return False
    digits = str(abs(value)).rstrip("0")
    nearest = float(value)
    return int(nearest) != value and repr(abs(nearest)).partition("e")[0].replace(".", "") != digits


class _LosesDigits(Exception):
    """Raised for a field with floats, and with an integer that loses digits as a float."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.path = path


def _loses_digits(path: str, records: Iterable[Any]) -> UserError:
    """Returns the error for a field, which names the first integer of its that loses digits as a float."""
    texts = (text for record in records for at, text in _integers(record, "") if at == path)
    text = next(each for each in texts if loses_digits(whole_number(each)))
    decimal = f"decimal128(38, {max(0, min(18, 38 - len(text.lstrip('-'))))})"
    number = text if len(text) <= _MOST_DIGITS else f"{text[:_MOST_DIGITS]}…"
    return UserError(
        f"field {path!r}: {number} in one row, and a number with a fraction or an exponent in another: floats, which hold both, would"
        " lose digits of it, and make two such ids one",
        hint=f'give a schema=, in which {path!r} is "{decimal}", or "float64" if the digits do not matter',
    )


def _integers(value: Any, path: str) -> Iterator[tuple[str, str]]:
    """Yields the path and the text of each integer in a record that was read with integers as texts."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _integers(item, _below(path, name))
    elif isinstance(value, list):
        for item in value:
            yield from _integers(item, f"{path}[]")
    elif isinstance(value, str) and value.removeprefix("-").isdecimal():
        yield path, value


def _shape(value: object, path: str) -> _Shape:
    if value is None:
        return None
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        wide = not -(2**63) <= value < 2**63
        return ("decimal" if wide else "long") if loses_digits(value) else "round" if wide else "int64"
    if isinstance(value, float):
        return "float64"
    if isinstance(value, str):
        return "string"
    if isinstance(value, list):
        items = None
        for item in value:
            items = _merged(items, _shape(item, f"{path}[]"), f"{path}[]")
        return [items]
    assert isinstance(value, dict)
    return {name: _shape(item, _below(path, name)) for name, item in value.items() if _is_text(name)}


def _below(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _is_text(name: str) -> bool:
    """Returns True if a column can have this name; False for a name with half of a surrogate pair."""
    return not any(0xD800 <= ord(c) < 0xE000 for c in name)


def _merged(a: _Shape, b: _Shape, path: str) -> _Shape:
    """Returns the narrowest shape that both fit. Raises UserError if there is none."""
    if a is None or a == b:
        return b
    if b is None:
        return a
    if isinstance(a, dict) and isinstance(b, dict):
        merged = dict(a)
        for name, shape in b.items():
            merged[name] = _merged(a.get(name), shape, _below(path, name))
        return merged
    if isinstance(a, list) and isinstance(b, list):
        return [_merged(a[0], b[0], f"{path}[]")]
    if a in _INTEGERS and b in _INTEGERS:
        long = a in _LONG or b in _LONG
        return ("decimal" if long else "round") if a in _WIDE or b in _WIDE else "long"
    if "float64" in (a, b) and (a in _INTEGERS or b in _INTEGERS):
        if a in _LONG or b in _LONG:
            raise _LosesDigits(path)
        return "float64"
    raise UserError(
        f"field {path!r}: its type is {_arrow_type(a)} in one row and {_arrow_type(b)} in another",
        hint="give a schema",
    )


def _arrow_type(shape: _Shape) -> pa.DataType:
    if shape is None:
        return pa.null()
    if isinstance(shape, list):
        return pa.list_(_arrow_type(shape[0]))
    if isinstance(shape, dict):
        return pa.struct([(name, _arrow_type(item)) for name, item in shape.items()])
    return _TYPES[shape]
