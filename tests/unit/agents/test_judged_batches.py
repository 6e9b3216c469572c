"""Bounds and redaction of Arrow batches, tables and data frames: they judge each row, by its columns."""

import datetime
import math
from decimal import Decimal
from typing import Any

import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from sabot.agents import ConstraintPolicy, PolicyEngine, RedactionPolicy
from sabot.engine.calls.errors import ToolError
from sabot.engine.calls.fields import MISSING_VALUE, values_at
from sabot.engine.calls.tool_results import json_of_result, model_or_text
from sabot.engine.calls.tools import tool
from sabot.errors import UserError
from sabot.jobs.masking import mask

FORMS: dict[str, Any] = {
    "a batch": pa.RecordBatch.from_pydict,
    "a table": pa.table,
    "polars": lambda columns: pl.DataFrame(columns, strict=False),
    "pandas": pd.DataFrame,
}


@tool
def payout(rows: Any) -> None: ...


@tool
def typed(rows: pa.RecordBatch | pa.Table) -> None: ...


async def judged(rows: Any, field: str = "rows.*.amount", **bounds: Any) -> str:
    result = await PolicyEngine([ConstraintPolicy(["payout"], field, **bounds)]).check_tool(
        payout, arguments={"rows": rows}
    )
    return result.reason if result.decision == "deny" else ""


@pytest.mark.one_in(4, "hundredths of a second of a core each")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("amounts", "bounds", "reason"),
    [
        ([5, 50], {"max": 50}, ""),
        ([], {"max": 50}, ""),
        ([5, 500, 5], {"max": 50}, "rows.*.amount is 500"),
        ([5, -1], {"min": 0}, "rows.*.amount is -1"),
        ([5, None], {"max": 50}, "rows.*.amount is None"),
        ([5.5, math.nan], {"max": 50}, "rows.*.amount is "),
        ([Decimal("5"), Decimal("50.01")], {"max": 50}, "rows.*.amount is Decimal('50.01')"),
        (["5", "500"], {"max": 50}, "rows.*.amount is '5', which cannot be compared"),
        ([5, 7], {"denied": [7]}, "rows.*.amount is 7"),
        (["ann", "eve"], {"allowed": ["ann", "bob"]}, "rows.*.amount is 'eve'"),
        (["ann", "ann"], {"allowed": ["ann", "bob"]}, ""),
        (["a-1", "b"], {"pattern": "a-[0-9]"}, "rows.*.amount is 'b'"),
        (["a", "bcd"], {"max_length": 2}, "rows.*.amount is 'bcd'"),
    ],
)
async def test_a_bound_judges_each_row(form: str, amounts: list[Any], bounds: dict[str, Any], reason: str) -> None:
    """A batch was taken for a value that cannot be looked into, so that each call was denied, also of good rows."""
    rows = FORMS[form]({"id": list(range(len(amounts))), "amount": amounts})
    said = await judged(rows, **bounds)
    assert said.startswith(f"{reason}") if reason else not said


async def test_a_bound_reaches_into_nested_columns_rows_by_number_and_arrays() -> None:
    rows = pa.table({"box": [{"price": 5, "tags": ["a"]}, {"price": 500, "tags": ["a", "b"]}]})
    assert "rows.*.box.price is 500" in await judged(rows, "rows.*.box.price", max=50)
    assert "rows.*.box.tags.* is 'b'" in await judged(rows, "rows.*.box.tags.*", denied=["b"])
    assert not await judged(rows, "rows.0.box.price", max=50)
    assert "rows.1.box.price is 500" in await judged(rows, "rows.1.box.price", max=50)
    assert "rows.* is 500" in await judged(pa.chunked_array([[5], [500]]), "rows.*", max=50)
    assert "rows.* is 500" in await judged(pa.array([5, 500]), "rows.*", max=50)
    twice = pa.table([pa.array([5]), pa.array([500])], ["amount", "amount"])
    assert "rows.*.amount is 500" in await judged(twice, max=50), "each of two columns with one name"
    reader = rows.to_reader()
    assert "is missing" in await judged(reader, max=50), "a reader is read once"
    assert reader.read_all() == rows


async def test_a_column_that_is_missing_is_no_value_of_it() -> None:
    rows = pa.table({"id": [1]})
    assert values_at(rows, ["*", "amount"]) == [MISSING_VALUE]
    assert not await judged(rows, max=50)
    assert "rows.*.amount is missing" in await judged(rows, max=50, required=True)


def test_a_column_of_a_bound_without_the_rows_is_refused_at_the_start() -> None:
    with pytest.raises(UserError) as refused:
        PolicyEngine([ConstraintPolicy(["typed"], "rows.amount", max=50)]).check_names([], [], "app desk")
    assert refused.value.hint == "field='rows.*.amount' is about each item"
    PolicyEngine([ConstraintPolicy(["typed"], "rows.*.amount", max=50)]).check_names([], [], "app desk")


def test_texts_are_hidden_in_the_columns_of_batches() -> None:
    columns: dict[str, Any] = {
        "card": ["is 4711", None, "is 4711"],
        "id": [1, 2, 3],
        "kind": pa.array(["4711", "b", "b"]).dictionary_encode(),
        "box": [{"a": ["4711"]}, {"a": []}, None],
    }
    hidden = {"card": ["is ***", None, "is ***"], "id": [1, 2, 3], "kind": ["***", "b", "b"]}
    for given in (pa.table(columns), pa.RecordBatch.from_pydict(columns)):
        shown = mask((given,), ["4711"], numbers=True)[0]
        assert type(shown) is type(given)
        assert shown.to_pydict() == {**hidden, "box": [{"a": ["***"]}, {"a": []}, None]}
        same = (given,)
        assert mask(same, ["0815"], numbers=True) is same
    assert mask(pa.table({"4711": [1]}), ["4711"]).column_names == ["***"]
    assert mask(pa.chunked_array([["4711"], ["b"]]), ["4711"]).to_pylist() == ["***", "b"]
    assert mask(pa.array(["4711"]), ["4711"]) == pa.array(["***"])


@pytest.mark.parametrize("form", FORMS)
async def test_redaction_denies_a_number_of_a_column_that_matches_and_takes_the_others(form: str) -> None:
    policy = PolicyEngine([RedactionPolicy(["[0-9]{16}"])])
    for number, decision in ((4111, "allow"), (4111_1111_1111_1111, "deny")):
        rows = FORMS[form]({"card": [1, number]})
        assert (await policy.check_tool(payout, arguments={"rows": rows})).decision == decision


class Money:
    """A type that Arrow does not know."""


DAY, NIGHT = datetime.date(2026, 1, 1), datetime.datetime(2026, 1, 1, 23)
OTHER_IN_ARROW: dict[str, tuple[Any, str]] = {
    "dates and times": (pd.DataFrame({"amount": [DAY, NIGHT]}), "would lose its hour"),
    "zones": (
        pd.DataFrame({"amount": pd.Series([NIGHT, NIGHT.replace(tzinfo=datetime.UTC)], dtype=object)}),
        "some times of 'amount' have a time zone",
    ),
    "periods": (pd.DataFrame({"amount": pd.period_range("2026-01", periods=2, freq="M")}), "has periods"),
    "objects of polars": (pl.DataFrame({"amount": [Money()]}, schema={"amount": pl.Object}), "has Python objects"),
    "other objects": (pd.DataFrame({"amount": [Money()]}), "cannot be read"),
    "numbers and texts": (pd.DataFrame({"amount": [1, "500"]}), "cannot be read"),
    "two columns of one name": (pd.DataFrame([[1, 500]], columns=["amount", "amount"]), "cannot be read"),
}
"""Data frames of which Arrow sees other values than a tool, or none."""


@pytest.mark.parametrize("kind", OTHER_IN_ARROW)
async def test_a_frame_of_which_arrow_sees_other_values_than_the_tool_is_denied(kind: str) -> None:
    """A bound on a date allowed a time of that day, and a bound on rows judged the names of the columns."""
    frame, reason = OTHER_IN_ARROW[kind]
    assert reason in await judged(frame, max=DAY)
    assert reason in await judged(frame, "rows.*", denied=["a row"])
    assert reason in await judged(frame, "rows.0.amount", max=DAY)
    hidden = await PolicyEngine([RedactionPolicy(["4711"])]).check_tool(payout, arguments={"rows": frame})
    assert (hidden.decision, reason in hidden.reason) == ("deny", True)
    with pytest.raises(ToolError, match="the result of payout cannot be written as JSON"):
        json_of_result("payout", frame)
    assert model_or_text(frame) == str(frame)


async def test_an_item_of_what_can_be_read_only_once_is_denied() -> None:
    for given in (pl.DataFrame({"amount": [500]}).lazy(), pa.table({"amount": [500]}).to_reader()):
        for field in ("rows.*.amount", "rows.0.amount"):
            assert "is in the place of what has it" in await judged(given, field, max=50)


@pytest.mark.parametrize("form", ["polars", "pandas"])
def test_a_data_frame_with_a_text_to_hide_is_refused(form: str) -> None:
    rows = FORMS[form]({"card": ["4711"]})
    assert mask(rows, ["0815"]) is rows
    with pytest.raises(UserError, match="an Arrow table or a list of dicts"):
        mask(rows, ["4711"])
