"""Answers of models as columns. The columns of an `output=` are known before a model is asked."""

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from sabot.base.arrays import as_type, column_of, typed_fields
from sabot.base.checks import FLAG, check
from sabot.base.column_types import arrow_type, fields_of_class
from sabot.engine.calls.errors import ContentFiltered, MalformedAnswer
from sabot.engine.calls.schema import Schema
from sabot.errors import UserError, short_repr
from sabot.llm.requests import WHOLE_OUTPUT, error_of_end
from sabot.llm.results import Completion

FINISH_REASON = "finish_reason"
"""The name of the column, and of the field of an agent's output, that marks answers with `allow_cut=True`."""

_HINT = (
    '{"label": "string", "score": "float64"}; a Struct, dataclass, TypedDict or pydantic model; or a name for the text'
)
_ALWAYS_FIT = (pa.string(), pa.large_string(), pa.bool_(), pa.float64(), pa.int32(), pa.int16(), pa.int8())
_NOT_CONVERTED = (pa.ArrowException, TypeError, ValueError, OverflowError)


class AnswerColumns:
    """The columns into which the answers of models are converted. The argument `of` defines them:

        None                                       one column "content" with the text of the answer
        "summary"                                  one column "summary" with the text of the answer
        {"label": "string", "score": "float64"}    a column for each name, with the Arrow type of this name
        Verdict                                    a Struct, dataclass, TypedDict or pydantic model: a column for each field

    - `output`: the schema that is sent to the model, or None for text.
    - `schema`: the Arrow schema of the columns.
    - `where`: the text with which messages of errors begin.
    - `allow_cut`: True to take answers that were cut off, filtered or empty too. Then there is a further column
      "finish_reason".

    Raises UserError if `of` cannot be converted into columns, and for `allow_cut` with columns of a type.
    """

    def __init__(self, of: Any = None, where: str = "map_llm", *, allow_cut: bool = False) -> None:
        self._marks = check(f"{where}: allow_cut", allow_cut, FLAG)
        self.output: Schema | None = None
        if of is None or isinstance(of, str):
            name = "content" if of is None else of
            if not name:
                raise UserError(f"{where}: output='' is no name of a column", hint='output="summary"')
            if self._marks and name == FINISH_REASON:
                raise UserError(f"{where}: allow_cut=True adds a column {name!r}", hint="another name in output=")
            marks = [(FINISH_REASON, pa.string())] if self._marks else []
            self.schema = pa.schema([(name, pa.string()), *marks])
        elif self._marks:
            raise UserError(f"{where}: allow_cut=True with output=", hint=WHOLE_OUTPUT)
        else:
            self.output, self.schema = _schemas(of, where)
        self._typed = not isinstance(of, Mapping)
        self._names = self.schema.names
        self._unsure = [field for field in self.schema if field.type not in _ALWAYS_FIT]

    def values(self, answer: Completion, *, looks_at_end: bool = True) -> tuple[Any, ...]:
        """Returns the values of an answer in the order of the columns, one for each. If the columns have a schema
        `output`, the field `answer.output` must be decoded already. Raises ContentFiltered if the provider's content
        filter stopped the answer; MalformedAnswer if the answer was cut off, is empty or calls a tool, or if a value
        does not match the type of its column. `looks_at_end`: False to take answers that were cut off or are empty.
        """
        if not self._marks:
            if answer.finish_reason == "content_filter":  # its text is a beginning, which may be what was filtered
                raise ContentFiltered("a filter of the provider held the answer back", **_who(answer))
            if looks_at_end and (wrong := error_of_end(answer)) is not None:
                raise wrong
        if answer.tool_calls:
            raise MalformedAnswer(
                f"the answer calls the tool {answer.tool_calls[0].name}, and the request has no tools", **_who(answer)
            )
        if self.output is None:
            return (answer.content, answer.finish_reason) if self._marks else (answer.content,)
        said = answer.output
        if self._typed:
            said = typed_fields(said)
        values = tuple(map(said.get, self._names))
        for field in self._unsure:
            try:
                column_of([values[self._names.index(field.name)]], field.type)
            except _NOT_CONVERTED as error:
                raise MalformedAnswer(
                    f"the answer does not fit: column {field.name!r} is to be {field.type}: {error}",
                    text=answer.content[:2000],
                    **_who(answer),
                ) from error
        return values


def _who(answer: Completion) -> dict[str, Any]:
    return {"provider": answer.provider, "model": answer.model, "request_id": answer.request_id}


def _schemas(of: Any, where: str) -> tuple[Schema, pa.Schema]:
    if isinstance(of, Mapping):
        if of.get("type") == "object":
            raise UserError(f"{where}: output= is a JSON schema, from which no columns can be made", hint=_HINT)
        _check_types(of, where)
        output = Schema(dict(of))
        return output, pa.schema([(name, as_type(kind)) for name, kind in of.items()])
    fields = fields_of_class(of)
    if fields is None:
        raise UserError(f"{where}: output={short_repr(of)} makes no columns", hint=_HINT)
    if not fields:
        raise UserError(f"{where}: output={short_repr(of)} has no fields", hint=_HINT)
    output = Schema(of)
    if output.json.get("properties", {}).keys() != fields.keys():
        raise UserError(f"{where}: the JSON of output={output.name} is not an object with its fields", hint=_HINT)
    name = getattr(of, "__name__", "output")
    return output, pa.schema([(each, arrow_type(kind, f"{where}: {name}.{each}")) for each, kind in fields.items()])


def _check_types(columns: Mapping[Any, Any], where: str) -> None:
    for name, kind in columns.items():
        if not isinstance(name, str) or not name or not isinstance(kind, str | type | pa.DataType):
            raise UserError(f"{where}: output: {short_repr(name)}: {short_repr(kind)} is no column", hint=_HINT)
        try:
            as_type(kind)
        except UserError as error:
            raise UserError(f"{where}: output: column {name!r} has unknown type {kind!r}", hint=error.hint) from error
