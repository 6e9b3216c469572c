"""The syntax tree of SQL. Each node has its `span`: the characters of the text that it was read from."""

from dataclasses import dataclass
from typing import Literal

from sabot.sql.syntax.text import Span


@dataclass(frozen=True, slots=True)
class Name:
    """A name as it was written. `quoted`: in backticks or double quotes."""

    text: str
    span: Span
    quoted: bool = False


# -- types ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TypeField:
    """A field of a ROW type."""

    name: Name
    type: "Type"


@dataclass(frozen=True, slots=True)
class Type:
    """A type: its words in capitals ("TIMESTAMP WITH LOCAL TIME ZONE"), its numbers (DECIMAL(23, 3)), the types inside
    (ARRAY<x>, MAP<k, v>) and the fields of a ROW.
    """

    name: str
    span: Span
    numbers: tuple[int, ...] = ()
    inner: tuple["Type", ...] = ()
    fields: tuple[TypeField, ...] = ()
    nullable: bool = True


# -- expressions ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Constant:
    """A literal. `kind`: "integer", "decimal", "float", "string", "boolean" or "null"; `text`: as it was written."""

    kind: str
    text: str
    span: Span


@dataclass(frozen=True, slots=True)
class TypedLiteral:
    """DATE, TIME or TIMESTAMP with a text, or X with the hexadecimal digits of bytes."""

    type: Literal["DATE", "TIME", "TIMESTAMP", "TIMESTAMP_LTZ", "X"]
    text: str
    span: Span


@dataclass(frozen=True, slots=True)
class Interval:
    """INTERVAL '10' SECOND, or INTERVAL '1:30' MINUTE TO SECOND. `text`: inside the quotes, with its sign."""

    text: str
    unit: str
    to_unit: str | None
    span: Span


@dataclass(frozen=True, slots=True)
class Parameter:
    """:name"""

    name: str
    span: Span


@dataclass(frozen=True, slots=True)
class Column:
    """A column, or a field of one: `a`, `t.a`, `t.a.b`."""

    parts: tuple[Name, ...]
    span: Span


@dataclass(frozen=True, slots=True)
class Star:
    """`*`, or `t.*` with the qualifier t."""

    qualifier: tuple[Name, ...]
    span: Span


@dataclass(frozen=True, slots=True)
class Word:
    """A word that a function has among its arguments: the unit of EXTRACT, BOTH of TRIM."""

    text: str
    span: Span


@dataclass(frozen=True, slots=True)
class Unary:
    """`operator` is "-", "+" or "NOT"."""

    operator: str
    operand: "Expression"
    span: Span


@dataclass(frozen=True, slots=True)
class Binary:
    """`operator` is a symbol (with "<>" for !=), "AND", "OR", "IS DISTINCT FROM" or "IS NOT DISTINCT FROM"."""

    operator: str
    left: "Expression"
    right: "Expression"
    span: Span


@dataclass(frozen=True, slots=True)
class Between:
    """x [NOT] BETWEEN [SYMMETRIC] lower AND upper."""

    operand: "Expression"
    lower: "Expression"
    upper: "Expression"
    negated: bool
    symmetric: bool
    span: Span


@dataclass(frozen=True, slots=True)
class In:
    """x [NOT] IN (values) or (query)."""

    operand: "Expression"
    values: "tuple[Expression, ...] | Query"
    negated: bool
    span: Span


@dataclass(frozen=True, slots=True)
class Like:
    """x [NOT] LIKE pattern [ESCAPE escape], or SIMILAR TO."""

    operator: Literal["LIKE", "SIMILAR TO"]
    operand: "Expression"
    pattern: "Expression"
    escape: "Expression | None"
    negated: bool
    span: Span


@dataclass(frozen=True, slots=True)
class Is:
    """x IS [NOT] NULL, TRUE, FALSE, UNKNOWN, JSON, JSON VALUE, JSON OBJECT, JSON ARRAY or JSON SCALAR."""

    operand: "Expression"
    what: str
    negated: bool
    span: Span


@dataclass(frozen=True, slots=True)
class Case:
    """CASE [operand] WHEN … THEN … [ELSE …] END."""

    operand: "Expression | None"
    branches: "tuple[tuple[Expression, Expression], ...]"
    otherwise: "Expression | None"
    span: Span


@dataclass(frozen=True, slots=True)
class Cast:
    """CAST(x AS type), TRY_CAST(x AS type) or x::type."""

    operand: "Expression"
    type: Type
    lenient: bool
    span: Span


@dataclass(frozen=True, slots=True)
class Exists:
    """EXISTS (query)."""

    query: "Query"
    span: Span


@dataclass(frozen=True, slots=True)
class Subquery:
    """A query in the place of a value."""

    query: "Query"
    span: Span


@dataclass(frozen=True, slots=True)
class Index:
    """x[index]: an element of an array or a map."""

    operand: "Expression"
    index: "Expression"
    span: Span


@dataclass(frozen=True, slots=True)
class FieldAccess:
    """A field of a value that is no column: f(x).name."""

    operand: "Expression"
    name: Name
    span: Span


@dataclass(frozen=True, slots=True)
class Sort:
    """An entry of ORDER BY. `nulls_first` is None if the text does not say."""

    expression: "Expression"
    descending: bool
    nulls_first: bool | None
    span: Span


@dataclass(frozen=True, slots=True)
class FrameBound:
    """An end of the frame of OVER. `amount` is None for UNBOUNDED and for CURRENT ROW."""

    kind: Literal["PRECEDING", "CURRENT ROW", "FOLLOWING"]
    amount: "Expression | None"
    span: Span


@dataclass(frozen=True, slots=True)
class WindowFrame:
    """ROWS or RANGE BETWEEN start AND end."""

    unit: Literal["ROWS", "RANGE"]
    start: FrameBound
    end: FrameBound
    span: Span


@dataclass(frozen=True, slots=True)
class Window:
    """OVER (…), or OVER name with `base`."""

    base: Name | None
    partition: "tuple[Expression, ...]"
    order: tuple[Sort, ...]
    frame: WindowFrame | None
    span: Span


@dataclass(frozen=True, slots=True)
class Argument:
    """A named argument: name => value."""

    name: Name
    value: "Expression"
    span: Span


@dataclass(frozen=True, slots=True)
class TableArgument:
    """TABLE name, or TABLE (query), as an argument."""

    table: "tuple[Name, ...] | Query"
    partition: "tuple[Expression, ...]"
    span: Span


@dataclass(frozen=True, slots=True)
class ModelArgument:
    """MODEL name, as an argument."""

    name: Name
    span: Span


@dataclass(frozen=True, slots=True)
class Descriptor:
    """DESCRIPTOR(column, …)."""

    columns: tuple[Name, ...]
    span: Span


@dataclass(frozen=True, slots=True)
class Call:
    """A call of a function. `name` as it was written; `star`: count(*). Without parentheses: CURRENT_TIMESTAMP."""

    name: Name
    arguments: "tuple[Expression, ...]"
    span: Span
    distinct: bool = False
    star: bool = False
    order: tuple[Sort, ...] = ()  # of WITHIN GROUP
    filter: "Expression | None" = None
    over: Window | None = None
    parentheses: bool = True


@dataclass(frozen=True, slots=True)
class Items:
    """ARRAY[…], MAP[k, v, …] or a row of values in parentheses (kind "ROW")."""

    kind: Literal["ARRAY", "MAP", "ROW"]
    items: "tuple[Expression, ...]"
    span: Span


Expression = (
    Constant
    | TypedLiteral
    | Interval
    | Parameter
    | Column
    | Star
    | Word
    | Unary
    | Binary
    | Between
    | In
    | Like
    | Is
    | Case
    | Cast
    | Exists
    | Subquery
    | Index
    | FieldAccess
    | Argument
    | TableArgument
    | ModelArgument
    | Descriptor
    | Call
    | Items
)


# -- queries ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Item:
    """An entry of a select list."""

    expression: Expression
    alias: Name | None
    span: Span


@dataclass(frozen=True, slots=True)
class Hint:
    """A hint: STATE_TTL('a' = '1d') has the name STATE_TTL and the options (("a", "1d"),)."""

    name: Name
    options: tuple[tuple[str, str], ...]
    span: Span


@dataclass(frozen=True, slots=True)
class Alias:
    """AS name (column, …)."""

    name: Name
    columns: tuple[Name, ...] = ()


@dataclass(frozen=True, slots=True)
class TableName:
    """A table or view in FROM. `as_of`: the time of FOR SYSTEM_TIME AS OF."""

    parts: tuple[Name, ...]
    alias: Alias | None
    as_of: Expression | None
    hints: tuple[Hint, ...]
    span: Span


@dataclass(frozen=True, slots=True)
class Derived:
    """A query in FROM."""

    query: "Query"
    alias: Alias | None
    lateral: bool
    span: Span


@dataclass(frozen=True, slots=True)
class TableFunction:
    """TABLE(f(…)), LATERAL TABLE(f(…)), f(…) or UNNEST(…) in FROM."""

    call: Call
    alias: Alias | None
    lateral: bool
    ordinality: bool
    span: Span


@dataclass(frozen=True, slots=True)
class JoinSource:
    """A join. `kind`: "INNER", "LEFT", "RIGHT", "FULL", "CROSS" or "COMMA" (a, b). `natural`: True for NATURAL, the USING of all
    names that both tables have.
    """

    kind: str
    left: "Source"
    right: "Source"
    on: Expression | None
    using: tuple[Name, ...]
    span: Span
    natural: bool = False


@dataclass(frozen=True, slots=True)
class Variable:
    """A variable of a pattern."""

    name: Name
    span: Span


@dataclass(frozen=True, slots=True)
class Repeat:
    """A part of a pattern that is repeated. `most` is None without an upper bound."""

    pattern: "Pattern"
    least: int
    most: int | None
    greedy: bool
    span: Span


@dataclass(frozen=True, slots=True)
class Succession:
    """Parts of a pattern, one after the other."""

    patterns: "tuple[Pattern, ...]"
    span: Span


@dataclass(frozen=True, slots=True)
class Alternatives:
    """Parts of a pattern of which one matches: A | B."""

    patterns: "tuple[Pattern, ...]"
    span: Span


Pattern = Variable | Repeat | Succession | Alternatives


@dataclass(frozen=True, slots=True)
class MatchRecognize:
    """MATCH_RECOGNIZE (…). `skip`: "PAST LAST ROW", "TO NEXT ROW", "TO FIRST", "TO LAST" or "TO", the last three
    with `skip_to`, a variable.
    """

    input: "Source"
    partition: tuple[Expression, ...]
    order: tuple[Sort, ...]
    measures: tuple[Item, ...]
    skip: str
    skip_to: Name | None
    pattern: Pattern
    within: Expression | None
    define: tuple[tuple[Name, Expression], ...]
    alias: Alias | None
    span: Span


Source = TableName | Derived | TableFunction | JoinSource | MatchRecognize


@dataclass(frozen=True, slots=True)
class SelectBody:
    """SELECT … FROM … WHERE … GROUP BY … HAVING … QUALIFY …. `group`: all expressions of GROUP BY. `sets`: those of each
    set of GROUPING SETS, ROLLUP and CUBE; () without them.
    """

    distinct: bool
    items: tuple[Item, ...]
    source: Source | None
    where: Expression | None
    group: tuple[Expression, ...]
    having: Expression | None
    windows: tuple[tuple[Name, Window], ...]
    qualify: Expression | None
    hints: tuple[Hint, ...]
    emit_on_close: Span | None
    span: Span
    sets: tuple[tuple[Expression, ...], ...] = ()


@dataclass(frozen=True, slots=True)
class SetOperation:
    """`operator` is "UNION", "INTERSECT" or "EXCEPT"."""

    operator: str
    all: bool
    left: "Body"
    right: "Body"
    span: Span


@dataclass(frozen=True, slots=True)
class ValuesBody:
    """VALUES (…), (…)."""

    rows: tuple[tuple[Expression, ...], ...]
    span: Span


@dataclass(frozen=True, slots=True)
class Query:
    """A query. `tables`: those of WITH, as (alias, query)."""

    tables: "tuple[tuple[Alias, Query], ...]"
    body: "Body"
    order: tuple[Sort, ...]
    limit: Expression | None
    offset: Expression | None
    span: Span


Body = SelectBody | SetOperation | ValuesBody | Query


# -- statements -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ColumnDefinition:
    """A column of CREATE TABLE: one of a type, a computed one (`computed`), or one of METADATA (`metadata`: the name of
    the key, which is the column's own name if the text does not say; `virtual`: True if it is not written).
    """

    name: Name
    type: Type | None
    computed: Expression | None
    metadata: str | None
    primary: bool
    comment: str | None
    span: Span
    virtual: bool = False


@dataclass(frozen=True, slots=True)
class WatermarkDefinition:
    """WATERMARK FOR column AS expression."""

    column: tuple[Name, ...]
    expression: Expression
    span: Span


@dataclass(frozen=True, slots=True)
class TableOption:
    """An option of WITH: 'key' = 'value'."""

    key: str
    value: str
    key_span: Span
    value_span: Span


@dataclass(frozen=True, slots=True)
class CreateTable:
    """CREATE TABLE. `key`: the columns of PRIMARY KEY; `like`: the table of LIKE; `without`: the parts of that table that
    EXCLUDING leaves out; `query`: of AS.
    """

    name: tuple[Name, ...]
    columns: tuple[ColumnDefinition, ...]
    watermark: WatermarkDefinition | None
    key: tuple[Name, ...]
    partition: tuple[Name, ...]
    options: tuple[TableOption, ...]
    comment: str | None
    if_not_exists: bool
    like: tuple[Name, ...]
    without: tuple[str, ...]
    query: Query | None
    span: Span


@dataclass(frozen=True, slots=True)
class CreateView:
    """CREATE VIEW name (columns) AS query."""

    name: tuple[Name, ...]
    columns: tuple[Name, ...]
    query: Query
    if_not_exists: bool
    span: Span


@dataclass(frozen=True, slots=True)
class CreateFunction:
    """CREATE FUNCTION name AS 'class'."""

    name: tuple[Name, ...]
    implementation: str
    if_not_exists: bool
    span: Span


@dataclass(frozen=True, slots=True)
class CreateModel:
    """CREATE MODEL name INPUT (…) OUTPUT (…) WITH (…)."""

    name: tuple[Name, ...]
    inputs: tuple[ColumnDefinition, ...]
    outputs: tuple[ColumnDefinition, ...]
    options: tuple[TableOption, ...]
    if_not_exists: bool
    span: Span


@dataclass(frozen=True, slots=True)
class Insert:
    """INSERT INTO table PARTITION (name = value) (columns) query."""

    table: tuple[Name, ...]
    partition: tuple[tuple[Name, Expression], ...]
    columns: tuple[Name, ...]
    query: Query
    span: Span


@dataclass(frozen=True, slots=True)
class StatementSet:
    """EXECUTE STATEMENT SET BEGIN … END."""

    inserts: tuple[Insert, ...]
    span: Span


@dataclass(frozen=True, slots=True)
class SetOption:
    """SET 'key' = 'value'; `value` is None for RESET 'key'; `key` is None for SET or RESET alone."""

    key: TableOption | None
    reset: bool
    span: Span


@dataclass(frozen=True, slots=True)
class Show:
    """SHOW TABLES, SHOW CREATE TABLE name, …; `what` in capitals. `like`: the pattern of names, and whether these are the others."""

    what: str
    name: tuple[Name, ...]
    span: Span
    like: tuple[str, bool] | None = None


@dataclass(frozen=True, slots=True)
class Describe:
    """DESCRIBE name."""

    name: tuple[Name, ...]
    span: Span


@dataclass(frozen=True, slots=True)
class Explain:
    """EXPLAIN [CHANGELOG | JSON | AGAINST 'checkpoint'] statement."""

    kind: Literal["PLAN", "CHANGELOG", "JSON", "AGAINST"]
    checkpoint: str | None
    statement: "Statement"
    span: Span


@dataclass(frozen=True, slots=True)
class DropStatement:
    """DROP TABLE, VIEW, FUNCTION or MODEL."""

    what: str
    name: tuple[Name, ...]
    if_exists: bool
    span: Span


@dataclass(frozen=True, slots=True)
class Use:
    """USE CATALOG name, or USE database, USE catalog.database."""

    name: tuple[Name, ...]
    catalog: bool
    span: Span


Statement = (
    Query
    | CreateTable
    | CreateView
    | CreateFunction
    | CreateModel
    | Insert
    | StatementSet
    | SetOption
    | Show
    | Describe
    | Explain
    | DropStatement
    | Use
)
