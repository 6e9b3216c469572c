"""Values of JSON texts, by their paths, and structs as JSON."""

import datetime

import pyarrow as pa
import pytest

from sabot.api.expr import Expr, col, struct
from sabot.engine.operators.expressions.compiled import compile_expr
from sabot.errors import UserError

TEXT = '{"a": {"b": [10, "x", {"c": 1.50}]}, "n": null, "a name": true, "t": "é\\n", "e": {}}'
TEXTS = [TEXT, "7", '"s"', "[1, 2]", "", "{", '{"a" 1}', None, "null", '{"a": 1} x']


def evaluated(expr: Expr, texts: list[str | None]) -> list[object]:
    batch = pa.record_batch({"j": pa.array(texts, pa.string())})
    return compile_expr(expr, batch.schema)(batch).to_pylist()


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("$", TEXT.replace(": ", ":").replace(", ", ",")),
        ("$.a.b[0]", "10"),
        ("$.a.b[1]", "x"),
        ("$.a.b[2].c", "1.50"),
        ("lax $.a['b'][2]", '{"c":1.50}'),
        ("$.a.b", '[10,"x",{"c":1.50}]'),
        ('$["a name"]', "true"),
        ("$.t", "é\n"),
        ("$.e", "{}"),
        ("$.n", None),
        ("$.a.b[9]", None),
        ("$.a.x", None),
        ("$.t.x", None),
        ("$[0]", None),
    ],
)
def test_a_path_finds_one_value(path, expected):
    assert evaluated(col("j").str.json_path_match(path), [TEXT]) == [expected]


def test_only_gives_values_of_one_kind():
    nested, scalar = (col("j").str.json_path_match("$.a", only) for only in ("nested", "scalar"))
    texts = ['{"a": {"x": 1}}', '{"a": [1]}', '{"a": 1}', '{"a": "{}"}']
    assert evaluated(nested, texts) == ['{"x":1}', "[1]", None, None]
    assert evaluated(scalar, texts) == [None, None, "1", "{}"]


def test_a_value_exists_also_if_it_is_null():
    texts = ['{"a": null}', '{"a": 1}', "{}", "no", None]
    assert evaluated(col("j").str.json_exists("$.a"), texts) == [True, True, False, False, None]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("value", [True, True, True, True, False, False, False, None, True, False]),
        ("object", [True, False, False, False, False, False, False, None, False, False]),
        ("array", [False, False, False, True, False, False, False, None, False, False]),
        ("scalar", [False, True, True, False, False, False, False, None, True, False]),
    ],
)
def test_a_text_is_json_of_a_kind(kind, expected):
    assert evaluated(col("j").str.is_json(kind), TEXTS) == expected


@pytest.mark.parametrize("path", ["a.b", "$.a[*]", "$..a", "$.a[?(@.b)]", "", "$a", "$.a.", "$[-1]"])
def test_a_path_to_several_values_is_refused(path):
    with pytest.raises(UserError, match="is not a path to one value"):
        evaluated(col("j").str.json_path_match(path), [TEXT])


def test_a_deep_text_is_no_json_and_no_crash():
    deep = "[" * 100_000 + "]" * 100_000
    assert evaluated(col("j").str.json_path_match("$[0]"), [deep]) in ([None], [deep[1:-1]])
    assert evaluated(col("j").str.is_json(), [deep]) in ([False], [True])


def test_a_struct_becomes_a_json_object():
    batch = pa.record_batch({"a": [1, None], "t": [datetime.datetime(2024, 1, 1), None], "s": ['q"', "é"]})
    made = compile_expr(struct(a="a", s="s", when=col("t").cast("timestamp[ms]")).struct.json_encode(), batch.schema)
    assert made(batch).to_pylist() == [
        '{"a":1,"s":"q\\"","when":1704067200000}',
        '{"a":null,"s":"é","when":null}',
    ]
