"""Prompts for the rows of a batch: a template over its columns, an expression, or a function of the batch.

    "Sentiment of: {text}"          the columns in braces; {place.city} is a field of a struct; {{ and }} are braces
    col("question")                 any expression that is text
    lambda batch: [...]             a text for each row, in their order; Arrow, or a list

If a value in the prompt of a row is null, the prompt is null, and the model is not asked.
"""

from collections.abc import Callable
from string import Formatter
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sabot.api.expr import Expr
from sabot.api.nodes.node import Columns
from sabot.api.words import name_of, no_column
from sabot.base.arrays import empty_batch
from sabot.base.dataclass import dataclass
from sabot.errors import UserError, short_repr


@dataclass(frozen=True, slots=True)
class Template:
    """A template, split into texts and fields: texts[0] fields[0] texts[1] fields[1] … texts[n].

    A field is a path: the name of a column, then names of fields in structs.
    """

    texts: tuple[str, ...]
    fields: tuple[tuple[str, ...], ...]

    @classmethod
    def of(cls, template: str, step: str) -> "Template":
        """Parses a template. Raises UserError for braces that are not closed, for a format such as {price:.2f}, and
        if it names no column. `step`: the name of the step, for the message.
        """
        where = f"{step}: the prompt {short_repr(template)}"
        texts, fields = [""], []
        try:
            for text, field, form, conversion in Formatter().parse(template):
                texts[-1] += text
                if field is None:
                    continue
                if form or conversion:
                    raise UserError(
                        f"{where}: {{{field}}} has a format, which columns have not",
                        hint="make a column of it before: with_columns(price=col('price').round(2))",
                    )
                names = tuple(field.split("."))
                if not all(names) or any("[" in name or name.isdigit() for name in names):
                    raise UserError(
                        f"{where}: {{{field}}} is not a column", hint="{text}, or {place.city}; {{ is a brace"
                    )
                fields.append(names)
                texts.append("")
        except ValueError as error:
            raise UserError(f"{where}: {error}", hint="{text} is a column; {{ and }} are braces") from error
        if not fields:
            raise UserError(
                f"{where} names no column, so all rows would have the same one",
                hint='"Sentiment of: {text}", without f before it',
            )
        return cls(tuple(texts), tuple(fields))

    def text(self) -> str:
        """Returns the template as it was written."""
        texts = [text.replace("{", "{{").replace("}", "}}") for text in self.texts]
        fields = [f"{{{'.'.join(names)}}}" for names in self.fields]
        return "".join(part for pair in zip(texts, [*fields, ""], strict=True) for part in pair)

    def check(self, schema: pa.Schema, where: str) -> None:
        """Raises UserError if a column is missing, or cannot become text."""
        self(empty_batch(schema), where)

    def __call__(self, data: pa.RecordBatch, where: str = "") -> pa.Array:
        """Returns the prompts of these rows, as an array of strings."""
        parts: list[Any] = [self.texts[0]]
        for names, text in zip(self.fields, self.texts[1:], strict=True):
            parts += [_as_text(data, names, where), text]
        return pc.binary_join_element_wise(*parts, "")


Prompt: TypeAlias = Template | Expr | Callable[[pa.RecordBatch], Any]


def prompt_of(prompt: Any, step: str) -> Prompt:
    """Returns the user's prompt in its checked form: a text as a Template; an expression or a function unchanged.
    Raises UserError for anything else. `step`: the name of the step, for the message.
    """
    if isinstance(prompt, str):
        return Template.of(prompt, step)
    if isinstance(prompt, Expr):
        return prompt
    if callable(prompt):
        function: Callable[[pa.RecordBatch], Any] = prompt
        return function
    raise UserError(
        f"{step}: {short_repr(prompt)} is not a prompt",
        hint='a template over columns ("Sentiment of: {text}"), an expression, or a function of a batch',
    )


def columns_of(prompt: Prompt) -> Columns:
    """Returns the columns that the prompt reads; None for all columns."""
    if isinstance(prompt, Template):
        return frozenset(names[0] for names in prompt.fields)
    return prompt.columns if isinstance(prompt, Expr) else None


def text_of(prompt: Prompt) -> str:
    """Returns the prompt as plans show it."""
    if isinstance(prompt, Template):
        return short_repr(prompt.text())
    return prompt.text() if isinstance(prompt, Expr) else name_of(prompt)


def given_prompts(given: Any, rows: int, where: str) -> pa.Array:
    """Returns the prompts as an array of strings. `given`: a list or Arrow array that a function or a caller has
    given. Raises UserError if it does not have exactly one text or null for each of the `rows` rows.
    """
    try:
        made = given if isinstance(given, pa.Array | pa.ChunkedArray) else pa.array(given)
        if isinstance(made, pa.ChunkedArray):
            made = made.combine_chunks()
        made.validate(full=True)
        if pa.types.is_dictionary(made.type):
            made = made.dictionary_decode()
        if not _is_text(made.type) and not pa.types.is_null(made.type):
            raise UserError(f"{where}: the prompts are {made.type}, not text", hint="a string for each row, or None")
        made = pc.cast(made, pa.string())
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise UserError(
            f"{where}: {type(given).__name__} is not a column of prompts: {error}", hint="a list of strings, or Arrow"
        ) from error
    if len(made) != rows:
        raise UserError(f"{where}: {len(made)} prompts for {rows} rows", hint="one for each row, in their order")
    return made


def distinct_prompts(prompts: pa.Array) -> tuple[pa.Array, Any]:
    """Returns the distinct prompts, sorted, and a numpy array with an index into them for each row.

    A row whose prompt is null has the index len(distinct prompts), to which no prompt belongs.
    """
    encoded = prompts.dictionary_encode()
    order = pc.sort_indices(encoded.dictionary).to_numpy()
    places = np.empty(len(order) + 1, np.int64)
    places[order], places[-1] = np.arange(len(order)), len(order)
    codes = places[encoded.indices.fill_null(len(order)).to_numpy()]
    return encoded.dictionary.take(pa.array(order)), codes


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _as_text(data: pa.RecordBatch, names: tuple[str, ...], where: str) -> pa.Array:
    first, *inner = names
    if data.schema.get_field_index(first) < 0:
        raise no_column(first, data.schema.names, where)
    column: Any = data.column(first)
    for name in inner:
        if not pa.types.is_struct(column.type) or column.type.get_field_index(name) < 0:
            raise UserError(f"{where}: {{{'.'.join(names)}}}: {column.type} has no field {name!r}")
        column = pc.struct_field(column, name)
    if column.type == pa.string():
        return column
    try:
        return pc.cast(column, pa.string())
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid) as error:
        raise UserError(
            f"{where}: {{{'.'.join(names)}}} is {column.type}, which makes no text", hint="name a field of it"
        ) from error
