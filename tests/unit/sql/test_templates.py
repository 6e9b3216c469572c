"""Template strings of Python 3.14 as texts of SQL: their values are parameters and tables, never a part of the text."""

from dataclasses import dataclass
from typing import Any

import pytest

from sabot import App, UserError


@dataclass
class Value:
    """A value of a template string, with the fields that PEP 750 gives it."""

    value: Any
    expression: str
    conversion: str | None = None
    format_spec: str = ""


class Template:
    """A template string of `texts`, between which the values stand."""

    def __init__(self, *parts: Any) -> None:
        self.strings = tuple(part for part in parts if isinstance(part, str))
        self.interpolations = tuple(part for part in parts if not isinstance(part, str))


@pytest.fixture
def rows():
    app = App("templates")
    return app, app.stream(
        [{"carrier": "UA", "delay": 20}, {"carrier": "O'X", "delay": 5}], schema={"carrier": "string", "delay": "int64"}
    )


def test_the_values_of_a_template_are_parameters_and_its_streams_tables(rows):
    app, flights = rows
    wanted = "O'X"
    text = Template(
        "SELECT delay FROM ",
        Value(flights, "flights"),
        " WHERE carrier = ",
        Value(wanted, "wanted"),
        " AND delay < ",
        Value(7, "2 + 5"),
        "",
    )
    assert app.sql(text).collect().to_pylist() == [{"delay": 5}]


def test_two_expressions_of_one_name_keep_their_own_values(rows):
    app, flights = rows
    text = Template(
        "SELECT delay + ", Value(100, "a.b"), " + ", Value(1000, "a.c"), " + :value AS d FROM flights WHERE delay = 5"
    )
    assert app.sql(text, flights=flights, value=1).collect().to_pylist() == [{"d": 1106}]


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (("SELECT '", Value("x", "name"), "'"), "{name} stands inside of quotes, a comment or another word"),
        (("SELECT 1 -- ", Value("x", "name"), ""), "{name} stands inside of quotes, a comment or another word"),
        (("SELECT ", Value(1.5, "x", format_spec=".2f"), ""), "{x}: a value in SQL has no format"),
        (("SELECT ", Value("x", "x", conversion="r"), ""), "{x}: a value in SQL has no format"),
    ],
)  # fmt: skip
def test_a_value_is_never_pasted_into_the_text(rows, parts, message):
    with pytest.raises(UserError) as caught:
        rows[0].sql(Template(*parts))
    assert message in str(caught.value)
    assert caught.value.hint
