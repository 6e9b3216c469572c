"""What tools return, in the one form in which models, clients of MCP and journals get it."""

import datetime
import decimal
import uuid
from collections import UserString
from collections.abc import Callable, ItemsView, KeysView, Mapping, Sequence, ValuesView
from typing import Any

import msgspec
import numpy as np

from sabot.base.arrays import TEXTS, dumped_model, python_value, table_of
from sabot.base.config import Secret
from sabot.base.surrogates import whole_texts
from sabot.engine.calls.errors import ToolError
from sabot.errors import UserError, message_of


def plain_form(value: Any) -> Any:
    """Converts a value of a type that msgspec does not know into one that it can encode. It is the `enc_hook` for what
    tools return: an agent shows it to its model, a job records it, and a server of MCP sends it, all in the same form.

    A model of pydantic becomes the JSON that pydantic makes of it; a scalar or array of numpy, pyarrow, polars or pandas
    its Python values; a table a list of its rows; a path or an address a text; a subclass of a plain type that type; a
    key of a dict that JSON does not have a text. Raises TypeError for other objects.
    """
    if value is None or isinstance(value, bool | tuple | frozenset):  # msgspec asks only if it is a key in JSON
        return _json(sorted(value, key=_json) if isinstance(value, frozenset) else value)
    made = python_value(value) if isinstance(value, np.generic) else dumped_model(value, "json")
    if made is not value:
        return made
    if isinstance(value, np.generic):  # a time in a unit that Python does not have
        return np.datetime_as_string(value) if isinstance(value, np.datetime64) else str(value)
    if isinstance(value, np.ndarray) and value.dtype.kind in "mM":  # `tolist` makes integers of nanoseconds
        return list(value)
    if not isinstance(value, type):
        # numpy and pandas; polars; arrays and scalars of pyarrow
        for method in ("tolist", "to_list", "to_pylist", "as_py"):
            if callable(convert := getattr(value, method, None)):
                return convert()
        if hasattr(value, "__arrow_c_stream__"):  # a frame of polars or pandas
            return table_of(value).to_pylist()
        if isinstance(value, Mapping):
            return dict(value)
        for kind, plain in _BASES:
            if isinstance(value, kind):
                return plain(value)
        if type(value).__module__.partition(".")[0] == "pandas":  # its NA, a period, an interval
            return None if type(value).__name__ == "NAType" else str(value)
        if isinstance(value, (*TEXTS, Secret)) or type(value).__module__.startswith("pydantic"):
            return str(value)  # also a secret that pydantic masks
    kind = type(value)
    raise TypeError(f"it has a value of type {kind.__module__}.{kind.__qualname__} in it".replace("builtins.", ""))


def _time_of(value: datetime.datetime) -> Any:
    if value != value:  # NaT of pandas
        return None
    fine = getattr(value, "nanosecond", 0)
    return value.isoformat() if fine else datetime.datetime.combine(value.date(), value.timetz())


_BASES: tuple[tuple[Any, Callable[[Any], Any]], ...] = (
    (str, str.__str__),
    (UserString, str),
    (int, int.__int__),
    (float, float.__float__),
    (bytes, bytes),
    (datetime.datetime, _time_of),
    (datetime.date, lambda value: datetime.date(value.year, value.month, value.day)),
    (datetime.timedelta, lambda value: datetime.timedelta(value.days, value.seconds, value.microseconds)),
    (decimal.Decimal, decimal.Decimal),
    (uuid.UUID, lambda value: uuid.UUID(int=value.int)),
    ((Sequence, KeysView, ValuesView, ItemsView), list),
)
"""Types, and the functions that make plain values of their subclasses, which msgspec refuses."""


def json_of_result(name: str, value: Any) -> str:
    """Returns what a tool has returned as JSON, in the one form that models, clients of MCP and journals get
    (`plain_form`). `name`: the name of the tool. Raises ToolError for a value that has no such form.
    """
    try:
        return json_text(value)
    except Exception as error:  # a serializer is code of the user
        raise ToolError(
            f"the result of {name} cannot be written as JSON: {message_of(error)}; the tool was called",
            hint="return numbers, text, lists, dicts, dates, dataclasses, models of pydantic",
        ) from error


def json_text(value: Any) -> str:
    """Returns a value as JSON, in the form of `plain_form`: a number that JSON does not have is null, and half of a
    surrogate pair is U+FFFD. Raises TypeError, ValueError or an error of the user's code for a value that JSON cannot
    express.
    """
    try:
        return _json(value)
    except UnicodeEncodeError:
        return _json(whole_texts(msgspec.to_builtins(value, enc_hook=plain_form, str_keys=True)))


def _json(value: Any) -> str:
    return _encoder.encode(value).decode()


_encoder = msgspec.json.Encoder(enc_hook=plain_form)


def model_or_text(value: Any) -> Any:
    """Returns the `plain_form` of a value, and any other object as text. It is for texts that people and models read,
    and that are no results of tools: msgspec calls it for what it cannot encode itself.
    """
    try:
        return plain_form(value)
    except (TypeError, ValueError, UserError):  # a frame whose rows Arrow does not take
        return str(value)
