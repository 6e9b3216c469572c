"""CREATE MODEL: a model of a vendor, which ML_PREDICT asks."""

from collections.abc import Callable
from typing import Any

import pyarrow as pa

from sabot.api.model_engine import ModelEngine
from sabot.sql.registered import RegisteredModel
from sabot.sql.scope import at
from sabot.sql.syntax.text import SqlFault
from sabot.sql.syntax.tree import CreateModel
from sabot.sql.table_options import Options
from sabot.sql.types import arrow_type

_VENDORS = {"openai": "openai", "anthropic": "anthropic"}
_WHOLE = {"max-tokens": "max_tokens", "concurrency": "concurrency", "cache": "cache"}


def model_of(statement: CreateModel, engine_of: Callable[..., ModelEngine[Any]]) -> RegisteredModel:
    """Returns the model of a statement. `engine_of`: makes an engine, as `llm.vendors.engine_of` does. Raises SqlFault
    for options and columns that cannot be.
    """
    name = statement.name[-1]
    for column in statement.inputs:
        if column.type is None or not pa.types.is_string(arrow_type(column.type)):
            raise SqlFault(column.span, "a model reads texts", f"{column.name.text} STRING")
    output = {}
    for column in statement.outputs:
        if column.type is None or column.metadata is not None:
            raise SqlFault(column.span, "a column of an answer has a name and a type")
        output[column.name.text] = arrow_type(column.type)
    if not output:
        raise SqlFault(statement.span, f"model {name.text} has no OUTPUT", "OUTPUT (answer STRING)")
    options = Options(name.text, statement.options, name.span, "model")
    engine = _engine(options, engine_of)
    given: dict[str, Any] = {"instructions": options.take("system-prompt") or ""}
    for option, field in _WHOLE.items():
        if (number := options.number(option)) is not None:
            given[field] = int(number)
    if (temperature := options.number("temperature")) is not None:
        given["temperature"] = float(temperature)
    options.take("task")
    options.check_known()
    options.finish()
    texts = [column for column, type in output.items() if pa.types.is_string(type)]
    given["output"] = texts[0] if len(output) == len(texts) == 1 else output
    return RegisteredModel(name.text, engine, given)


def _engine(options: Options, engine_of: Callable[..., ModelEngine[Any]]) -> ModelEngine[Any]:
    vendor = options.choose("provider", _VENDORS)
    if vendor is None:
        raise SqlFault(options.span, f"model {options.table} needs the option 'provider'", "'provider' = 'openai'")
    made = {"base_url": options.take("endpoint"), "api_key": options.take("api-key")}
    tokens, cost = options.number("budget.tokens"), options.number("budget.dollars")
    with at(options.span):
        most = None if tokens is None else int(tokens)
        return engine_of(vendor, options.need("model"), max_tokens=most, max_cost=cost, **made)
