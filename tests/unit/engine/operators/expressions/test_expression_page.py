"""docs/expressions.md names every expression that is public, with an example that gives what stands beside it."""

import math
import re
from pathlib import Path
from typing import Any

import pyarrow as pa

import sabot
from sabot.api import expr as sabot_expr
from sabot.api.expr import DateExpr, Expr, ListExpr, StringExpr, StructExpr
from sabot.engine.operators.expressions.compiled import compile_expr

PAGE = (Path(__file__).parents[5] / "docs/expressions.md").read_text()
EXAMPLES = [
    (expression.replace("\\|", "|"), gives)
    for expression, gives in re.findall(r"^\| `(.+?)` \| `(.+?)` \|", PAGE, re.MULTILINE)
]
NOT_WRITTEN = {"column", "columns", "name", "option", "same", "substitute", "renamed", "conjuncts", "text", "make"}
"""What the planner asks of an expression."""


def alike(given: Any, wanted: Any) -> bool:
    """Whether two values are equal, NaN with NaN, floats but for the last digits."""
    if isinstance(given, list) and isinstance(wanted, list):
        return len(given) == len(wanted) and all(map(alike, given, wanted))
    if isinstance(given, float) and isinstance(wanted, float):
        return (math.isnan(given) and math.isnan(wanted)) or math.isclose(given, wanted, rel_tol=1e-14)
    return type(given) is type(wanted) and bool(given == wanted)


def test_each_example_gives_what_stands_beside_it() -> None:
    names: dict[str, Any] = {"nan": math.nan}
    exec(PAGE.split("```python\n")[1].split("```")[0], names)
    batch = pa.record_batch(names["rows"])
    wrong = []
    for expression, gives in EXAMPLES:
        made = compile_expr(eval(expression, names), batch.schema)(batch).to_pylist()
        if not alike(made, eval(gives, names)):
            wrong.append((expression, made, gives))
    assert wrong == []


def test_each_public_expression_has_an_example() -> None:
    written = " ".join(expression for expression, _ in EXAMPLES)
    made = {name for name in sabot.__all__ if isinstance(getattr(sabot_expr, name, None), type(sabot.col))}
    assert {"col", "lit", "when", "coalesce", "struct"} <= made
    missing = [name for name in sorted(made) if f"{name}(" not in written]
    for prefix, kind in {
        "": Expr,
        "str.": StringExpr,
        "dt.": DateExpr,
        "list.": ListExpr,
        "struct.": StructExpr,
    }.items():
        for name in dir(kind):
            known = name.startswith("_") or name in NOT_WRITTEN
            if not known and callable(getattr(kind, name)) and f".{prefix}{name}(" not in written:
                missing.append(f"{prefix}{name}")
    assert missing == []
