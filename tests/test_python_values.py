"""Python values become columns in `base/arrays`, which refuses what pyarrow would cut: elsewhere nothing makes columns of lists of values,
lets pyarrow guess their type, or casts without its checks.
"""

import ast
from collections import Counter
from collections.abc import Iterator

import pytest

from tools.source_tree import nodes_of, sources

PLACE = "base/arrays.py"
HINT = (
    "make columns of Python values by column_of or batch_of_rows of base/arrays; if the values are the engine's own (row numbers, "
    "texts of errors), or a cast cannot lose anything, raise the number here and say why in the commit"
)
# By file: how often rows (R: from_pylist, from_pydict), lists (L: pa.array) and unchecked casts (C) of the engine's own are there.
KNOWN = {
    "agents/durable/batch_operator.py": "L",
    "agents/durable/context.py": "LLL",
    "api/describe.py": "CR",
    "api/group_functions.py": "L",
    "engine/calls/batches.py": "L",
    "cli/reading.py": "L",
    "cli/sql_program.py": "LLL",
    "codecs/arrow.py": "L",
    "codecs/connect.py": "CLL",
    "codecs/csv.py": "L",
    "codecs/json.py": "R",
    "codecs/records.py": "LLL",
    "codecs/table.py": "CC",
    "connectors/files/formats/lines.py": "LL",
    "connectors/files/formats/ndjson.py": "L",
    "connectors/generated.py": "L",
    "jobs/masking.py": "L",
    "engine/letters/form.py": "R",
    "engine/letters/refused.py": "L",
    "connectors/postgres/changes.py": "L",
    "connectors/redis/source.py": "LLL",
    "connectors/rows.py": "L",
    "connectors/sql/duckdb_values.py": "L",
    "connectors/sql/postgres.py": "C",
    "demos/fraud/app.py": "LL",
    "demos/fraud/watched.py": "R",
    "llm/asked_batches.py": "L",
    "mcp/saved_state.py": "L",
    "engine/operators/agents/batches.py": "LLL",
    "engine/operators/agents/rows.py": "L",
    "engine/operators/agents/timers.py": "LLL",
    "engine/operators/aggregates/aggregator.py": "L",
    "engine/operators/aggregates/migration.py": "L",
    "engine/operators/aggregates/packed.py": "L",
    "engine/operators/aggregates/sketches.py": "C",
    "engine/operators/aggregates/values.py": "CC",
    "engine/operators/calls/saved.py": "LLLL",
    "engine/operators/changes/steps.py": "L",
    "engine/operators/columns.py": "L",
    "engine/operators/expressions/casts.py": "C",
    "engine/operators/expressions/json_paths.py": "L",
    "engine/operators/expressions/lists.py": "C",
    "engine/operators/expressions/node.py": "C",
    "engine/operators/expressions/numbers.py": "CCC",
    "engine/operators/expressions/rounding.py": "C",
    "engine/operators/expressions/single_values.py": "L",
    "engine/operators/expressions/text.py": "CLL",
    "engine/operators/functions/rows.py": "LL",
    "engine/operators/functions/state.py": "LLR",
    "engine/operators/joins/sides.py": "L",
    "engine/operators/keyed/over_state.py": "L",
    "engine/operators/keyed/reduced.py": "R",
    "engine/operators/keyed/running.py": "R",
    "engine/operators/patterns/match.py": "L",
    "engine/operators/patterns/plan.py": "CC",
    "engine/operators/reading.py": "LL",
    "engine/operators/rows/bad.py": "L",
    "engine/operators/rows/mapped.py": "LL",
    "engine/operators/rows/subset.py": "L",
    "engine/runtime/tasks/reading.py": "L",
    "engine/runtime/tasks/taps.py": "L",
    "sql/bind/relations.py": "L",
    "sql/showing.py": "LLL",
    "engine/state/reading.py": "LL",
    "engine/state/segments.py": "R",
    "testing/connectors/sink.py": "L",
}


def found_in(nodes: list[ast.Call]) -> Iterator[str]:
    """R, L or C for each call of pyarrow that makes columns of Python values or casts without checks."""
    for node in nodes:
        match node:
            case ast.Call(func=ast.Attribute(attr="from_pylist" | "from_pydict"), args=[first, *_]) if not is_empty(
                first
            ):
                yield "R"
            case ast.Call(
                func=ast.Attribute(value=ast.Name(id="pa"), attr="array" | "chunked_array"), args=[first, *_]
            ):
                yield from "L" * is_list(first)
            case ast.Call(func=ast.Attribute(attr="cast"), keywords=keywords):
                yield from "C" * any(each.arg == "safe" for each in keywords)


def is_empty(node: ast.expr) -> bool:
    return isinstance(node, ast.List | ast.Dict) and not (node.elts if isinstance(node, ast.List) else node.keys)


def is_list(node: ast.expr) -> bool:
    """True if an expression is a list, or another row of Python objects, by its form."""
    match node:
        case ast.List():
            return not is_empty(node)
        case ast.ListComp() | ast.GeneratorExp():
            return True
        case ast.Call(func=ast.Name(id="list" | "sorted" | "map" | "tuple")):
            return True
        case ast.Call(func=ast.Attribute(attr="to_pylist" | "tolist" | "values" | "keys")):
            return True
    return False


def test_columns_of_python_values_are_made_in_one_module() -> None:
    found = {
        name: Counter(found_in(nodes_of(path, ast.Call))) for name, path in sources(".py").items() if name != PLACE
    }
    counts = {name: "".join(sorted(each.elements())) for name, each in found.items() if each}
    assert {name: kinds for name, kinds in counts.items() if Counter(kinds) - Counter(KNOWN.get(name, ""))} == {}, HINT
    gone = {name: counts.get(name, "") for name, kinds in KNOWN.items() if counts.get(name, "") != kinds}
    assert gone == {}, "there are fewer now: lower these in KNOWN to the letters shown"


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("pa.RecordBatch.from_pylist(rows)", "R"),
        ("pa.Table.from_pydict({name: values}, schema=schema)", "R"),
        ("pa.array([row[name] for row in rows], type)", "L"),
        ("pa.array([value])", "L"),
        ("pa.array(map(f, rows))", "L"),
        ("column.cast(type, safe=False)", "C"),
        ("pc.cast(column, type, safe=checked)", "C"),
        ("pa.RecordBatch.from_pylist([], schema=schema)", ""),
        ("pa.array(values)", ""),
        ("column.cast(type)", ""),
    ],
)
def test_the_walk_finds_a_planted_fault(text: str, kind: str) -> None:
    tree = ast.parse(text)
    assert "".join(found_in([node for node in ast.walk(tree) if isinstance(node, ast.Call)])) == kind
