"""The results that people give for effects in doubt. A person who says that a call was made may have to give its result
too, because the function of the job continues with it.

The question says which result is needed (`wanted_result`), so that a process which has not loaded the tool can refuse
a wrong answer (`check_result`). `given_result` converts the result for the job.
"""

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, get_args, get_type_hints

import msgspec
import pyarrow as pa

from sabot.base.arrays import column_of
from sabot.engine.calls.functions import unwrap
from sabot.engine.calls.json_schema import mismatch
from sabot.engine.calls.tools import Tool, ToolAnswer
from sabot.errors import UserError

_MOST_SCHEMA_BYTES = 20_000  # a longer schema is not put into the question


@dataclass
class _Held:
    """A holder of any value, so that `asdict` finds the dataclasses in it."""

    value: Any


def gives_rows(function: Any) -> bool:
    """Returns True if the return annotation of a function is an Arrow RecordBatch or Table, or a type that contains one
    as an argument, such as `RecordBatch | None`. In a module with `from __future__ import annotations` the annotation
    is a string; then True if the string contains one of these names as a word.
    """
    said = getattr(unwrap(function), "__annotations__", {}).get("return")
    if isinstance(said, str):
        return re.search(r"\b(RecordBatch|Table)\b", said) is not None
    return not {pa.RecordBatch, pa.Table}.isdisjoint((said, *get_args(said)))


def rows_of_answer(value: Any) -> pa.RecordBatch:
    """Converts the rows that a person has entered as the result of an effect to a record batch. `value`: a list of
    dicts that all have the same keys. Raises UserError for any other value.
    """
    try:
        if isinstance(value, list) and all(isinstance(row, dict) and row.keys() == value[0].keys() for row in value):
            names = list(value[0]) if value else []
            return pa.RecordBatch.from_arrays([column_of([row[name] for row in value], None) for name in names], names)
        why = "no list of objects with the same fields"
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        why = f"no columns: {error}"
    raise UserError(f"the rows that it gave are {why}", hint='[{"id": 1, "paid": 10}]; [] where there were none')


def wanted_result(tool: Tool) -> dict[str, Any]:
    """Returns the fields of the question whether a call was made that say which result the answer "done" needs:

    - {}: any result, or none.
    - "gives": "rows" if the tool returns Arrow rows; "answer" if the result is a ToolAnswer, which may be left out.
    - "result": the JSON schema of the result.
    """
    if gives_rows(tool.func):
        return {"gives": "rows"}
    kind = _returned(tool)
    if _is_answer(kind):
        schema, found = None if tool.parameters is None else tool.parameters.output, {"gives": "answer"}
    else:
        schema, found = _schema_of(kind), {}
    try:
        is_short = len(msgspec.json.encode(schema)) <= _MOST_SCHEMA_BYTES
    except (TypeError, ValueError, RecursionError):  # a class of the user adds what is no JSON
        is_short = False
    return found | ({"result": schema} if schema and is_short else {})


def check_result(payload: Mapping[str, Any], result: Any) -> None:
    """Checks the result that a person gives with the answer "done". `payload`: the fields of the question, of which
    `wanted_result` has made some; questions of older versions of Sabot lack them, and take any result. `result`: the
    result, or None if the answer has none. Raises UserError if the job could not continue with this result.
    """
    if payload.get("gives") == "rows":
        rows_of_answer(result)  # without the rows, the job would have no output for them
        return
    schema = payload.get("result")
    if schema is None or (result is None and payload.get("gives") == "answer"):
        return
    try:
        wrong = mismatch(result, schema)
    except (UserError, AttributeError, TypeError, ValueError, KeyError):  # a malformed schema of an MCP server
        return
    if wrong:
        said = "has no result" if result is None else f"has another result: {wrong}"
        raise UserError(
            f"{payload.get('effect')} gives its caller a result, and the answer {said}",
            hint=f"a result of this JSON schema: {msgspec.json.encode(schema).decode()}",
        )


def given_result(tool: Tool, result: Any) -> Any:
    """Returns the result of a call in the form in which the tool would have returned it. `result`: the JSON value that
    a person has given, or None. A value that is not of the tool's type is returned unchanged; only an answer that
    nobody has checked has one. Raises UserError if the tool returns rows, and the value has none.
    """
    if gives_rows(tool.func):
        return rows_of_answer(result)
    kind = _returned(tool)
    if result is None or kind is Any:
        return result
    if _is_answer(kind):
        return kind.from_person(result)
    from sabot.engine.calls.schema import converted

    with suppress(Exception):  # a type that msgspec does not read, or the user's code in it
        # `asdict`, because msgspec would not pack the fields of a dataclass that have their default here
        return asdict(_Held(converted(result, kind)))["value"]
    return result


def _returned(tool: Tool) -> Any:
    """Returns the type that the tool's function returns by its annotation; Any if it has none that can be found."""
    try:
        return get_type_hints(unwrap(tool.func), include_extras=True).get("return", Any)
    except Exception:  # a name that is imported for type checkers only, or an annotation that is no type
        return Any


def _is_answer(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, ToolAnswer)


def _schema_of(kind: Any) -> dict[str, Any] | None:
    """Returns the JSON schema of a type. Returns None if it has none, or if a function of this type returns nothing."""
    from sabot.engine.calls.schema import schema_of

    try:
        return None if kind is type(None) else schema_of(kind, "result")
    except Exception:  # a class of the user without a schema, or the code of a model
        return None
