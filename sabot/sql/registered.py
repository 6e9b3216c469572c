"""Functions, agents and models that a program has registered for its SQL texts (`app.register`).

A call of a registered function has its own step before the SELECT that uses it:

    SELECT distance(a, b) + 1 FROM t     ->     t, with a column distance(a, b); then the SELECT of that column + 1
"""

import inspect
import typing
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import wraps
from typing import Any

import msgspec
import pyarrow as pa

from sabot.api.expr import Expr, col, lit
from sabot.api.stream import Stream
from sabot.base.arrays import as_type, column_of, exact_cast
from sabot.base.column_types import arrow_type
from sabot.errors import UserError
from sabot.sql import functions
from sabot.sql.scope import Relation, TableColumn, TypedExpr, at, names_of, node_of
from sabot.sql.syntax.text import SqlFault
from sabot.sql.syntax.tree import Call, Expression, Name
from sabot.sql.values import Binder, Context, key_of, walk


@dataclass(frozen=True, slots=True)
class RegisteredFunction:
    """A function of Python that SQL may call.

    - `type`: the type of its results.
    - `kind`: "row" is called with the values of one row, "batch" with pa.Arrays, "async" is awaited for each row.
    - `options`: the options of a coroutine function: retries, timeout, concurrency, …
    """

    name: str
    function: Callable[..., Any]
    type: pa.DataType
    kind: str
    options: Mapping[str, Any]

    def applied(self, stream: Stream, arguments: Sequence[str], column: str) -> Stream:
        """Returns the rows with a column of results. `arguments`: the columns of the arguments."""
        if self.kind == "async":
            return stream.lookup(
                _one_argument_each(self.function, column, len(arguments)),
                on=list(arguments),
                schema=pa.schema([(column, self.type)]),
                **({"cache": 0} | dict(self.options)),
            )
        schema = stream.schema.append(pa.field(column, self.type))
        return stream.map_batches(_columns_added(self, list(arguments), schema), schema=schema)


@dataclass(frozen=True, slots=True)
class RegisteredModel:
    """An engine that ML_PREDICT asks. `options`: the arguments of `Stream.map_llm`, without the prompt."""

    name: str
    engine: Any
    options: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class RegisteredAgent:
    """An agent into which INSERT INTO writes."""

    name: str
    function: Callable[..., Any]


Registered = RegisteredFunction | RegisteredModel | RegisteredAgent


def registered_function(name: str, function: Callable[..., Any], options: Mapping[str, Any]) -> RegisteredFunction:
    """Returns the description of a function. Raises UserError if the type of its results is not known."""
    if functions.is_known(name.upper()):
        raise UserError(f"register({name!r}): SQL has a function of this name", hint="choose another name")
    given = dict(options)
    batch, returns = given.pop("batch", False), given.pop("returns", None)
    target = inspect.unwrap(function)
    is_async = inspect.iscoroutinefunction(target)
    if given and not is_async:
        raise UserError(f"register({name!r}): {next(iter(given))}= is for async functions", hint="leave it out")
    if batch and is_async:
        raise UserError(f"register({name!r}): an async function is called for each row", hint="leave batch= out")
    if returns is None and not batch:
        returns = _annotated(target, f"register({name!r})")
    if returns is None:
        raise UserError(
            f"register({name!r}): the type of the results is not known",
            hint='returns="int64", or an annotation: def f(x: str) -> int',
        )
    kind = "async" if is_async else "batch" if batch else "row"
    if kind == "row" and pa.types.is_nested(as_type(returns)):
        function = _plain_results(function)
    return RegisteredFunction(name, function, as_type(returns), kind, given)


def predicted(relation: Relation, model: RegisteredModel, columns: Sequence[tuple[Name, TableColumn]]) -> Relation:
    """Returns the rows with the columns of a model's answers. `columns`: those that the model reads."""
    wrong = [name for name, field in columns if not pa.types.is_string(field.type)]
    if wrong:
        raise SqlFault(wrong[0].span, "a model reads texts", f"select CAST({wrong[0].text} AS STRING) first")
    options = dict(model.options)
    prompt = options.pop("prompt", None)
    if prompt is None:
        texts = [
            col(field.column) if len(columns) == 1 else lit(f"{field.name}: ") + col(field.column)
            for _, field in columns
        ]
        prompt = texts[0]
        for text in texts[1:]:
            prompt = prompt + lit("\n") + text
    before = set(node_of(relation.stream).column_names or ())
    stream = relation.stream.map_llm(prompt, model.engine, **options)
    added = [TableColumn("", each.name, each.name, each.type) for each in stream.schema if each.name not in before]
    fields = tuple(replace(each, qualifier="") for each in relation.fields)
    return Relation(stream, (*fields, *added))


def _annotated(function: Callable[..., Any], where: str) -> pa.DataType | None:
    """Returns the type of the results that the annotation says, or None without one. An iterator, as of a function with
    `yield`, is an array of its values. Raises UserError for a type that no column has.
    """
    try:
        found = typing.get_type_hints(function, include_extras=True).get("return")
    except (NameError, TypeError):
        return None
    if found is None or isinstance(found, pa.DataType):
        return found
    many = typing.get_origin(found) in _ITERATORS
    try:
        type = arrow_type(typing.get_args(found)[0] if many else found, where)
    except UserError as error:
        raise UserError(error.message, hint=f"{error.hint}; or returns= with a type of Arrow") from error
    return pa.list_(type) if many else type


def _plain_results(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns the function with results that Arrow takes as arrays and rows: lists for iterators and sets, and dicts for
    objects with fields.
    """

    @wraps(function)
    def call(*values: Any) -> Any:
        return _plain(function(*values))

    return call


def _plain(value: Any) -> Any:
    if isinstance(value, Iterator | list | tuple | set | frozenset):
        return [_plain(each) for each in value]
    if isinstance(value, msgspec.Struct):
        value = msgspec.structs.asdict(value)
    elif is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in fields(value)}
    elif hasattr(type(value), "model_fields"):
        value = {name: getattr(value, name) for name in type(value).model_fields}
    return {name: _plain(each) for name, each in value.items()} if isinstance(value, dict) else value


_ITERATORS = (Iterator, Iterable, Generator)


def _columns_added(
    registered: RegisteredFunction, arguments: Sequence[str], schema: pa.Schema
) -> Callable[[pa.RecordBatch], pa.RecordBatch]:
    function, by_row, type = registered.function, registered.kind == "row", registered.type

    def call(batch: pa.RecordBatch) -> pa.RecordBatch:
        columns = [batch.column(name) for name in arguments]
        if by_row:
            rows = zip(*[column.to_pylist() for column in columns], strict=True) if columns else [()] * batch.num_rows
            results = column_of([function(*row) for row in rows], type)
        else:
            results = function(*columns)
            results = results.combine_chunks() if isinstance(results, pa.ChunkedArray) else results
            results = exact_cast(results, type) if isinstance(results, pa.Array) else column_of(results, type)
        return pa.RecordBatch.from_arrays([*batch.columns, results], schema=schema)

    call.__name__ = call.__qualname__ = registered.name
    return call


def _one_argument_each(function: Callable[..., Any], column: str, count: int) -> Callable[[Any], Any]:
    """Returns a function of a lookup, which gets one value, or a tuple of several, and returns a dict."""

    async def call(values: Any) -> dict[str, Any]:
        return {column: await function(*(values if count > 1 else (values,)))}

    call.__name__ = getattr(function, "__name__", "function")
    return call


def with_calls(context: Context, relation: Relation, trees: Iterable[Any], beside: Relation | None = None) -> Relation:
    """Returns the table with a column for each call of a registered function in these expressions whose arguments are
    of this table. `beside`: another table, whose columns have other names.
    """
    if not context.registered:
        return relation
    for tree in trees:
        for call in reversed(list(walk(tree))):  # inner calls first
            if isinstance(call, Call) and isinstance(_found(context, call), RegisteredFunction):
                relation = _with_call(context, relation, call, beside)
    return relation


def has_calls(context: Context, tree: Expression) -> bool:
    """Returns True if an expression calls a registered function."""
    return any(isinstance(node, Call) and _found(context, node) is not None for node in walk(tree))


def _found(context: Context, call: Call) -> Any:
    return context.registered.get(call.name.text.lower())


def _with_call(context: Context, relation: Relation, call: Call, beside: Relation | None) -> Relation:
    registered: RegisteredFunction = _found(context, call)
    try:
        key = key_of(call, relation)
        if key in relation.calls:
            return relation
        bound = [Binder(context, relation).bind(argument) for argument in call.arguments]
    except SqlFault:
        return relation  # a column of another table, or an aggregate: the error is raised where the call is bound
    _check_arguments(registered, call)
    names = names_of(relation)
    names.taken |= names_of(beside).taken if beside is not None else set()
    made: dict[str, Expr] = {}
    arguments = []
    for i, each in enumerate(bound):
        column = each.expr.column
        if column is None or column in arguments:
            column = names.free(f"{registered.name}_{i + 1}")
            made[column] = each.expr
        arguments.append(column)
    result = names.free(registered.name)
    with at(call.span):
        if relation.stream.changes:
            raise SqlFault(
                call.span,
                f"{registered.name} cannot be called with rows that are updated",
                "call it in a query before GROUP BY, or before the join",
            )
        stream = relation.stream.with_columns(**made) if made else relation.stream
        stream = registered.applied(stream, arguments, result)
    calls = {**relation.calls, key: TypedExpr(col(result), registered.type)}
    return replace(relation, stream=stream, calls=calls)


def _check_arguments(registered: RegisteredFunction, call: Call) -> None:
    if call.star or call.distinct or call.filter is not None or call.over is not None:
        raise SqlFault(call.span, f"{registered.name} is no aggregate: no *, DISTINCT, FILTER or OVER")
    try:
        inspect.signature(registered.function).bind(*call.arguments)
    except TypeError as error:
        raise SqlFault(
            call.span, f"{registered.name}: {error}", f"it is {registered.name}{_signature(registered)}"
        ) from None
    except ValueError:
        return  # a function in C, without a signature


def _signature(registered: RegisteredFunction) -> str:
    return f"({', '.join(inspect.signature(registered.function).parameters)})"
