"""The results that people give for calls in doubt: which are taken, and what the job then gets."""

import datetime
import decimal
from dataclasses import dataclass
from typing import Any

import msgspec
import pyarrow as pa
import pydantic
import pytest

from sabot.errors import UserError
from sabot.jobs.given_results import check_result, given_result, wanted_result
from sabot.jobs.values import pack, unpack
from sabot.llm import Tool, tool
from sabot.mcp.results import McpResult


@dataclass
class Receipt:
    number: int
    note: str = ""


class Invoice(pydantic.BaseModel):
    number: int
    tags: list[str] = []


def returning(kind: Any) -> Tool:
    """A tool that returns this type."""

    async def charge(order: str) -> Any:
        raise TimeoutError

    charge.__annotations__["return"] = kind
    return tool(charge)


def question(made: Tool) -> dict[str, Any]:
    """The payload of the question whether it was done, as another process reads it."""
    asked: dict[str, Any] = msgspec.json.decode(msgspec.json.encode({"effect": "charge", **wanted_result(made)}))
    return asked


AT = datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.UTC)


@pytest.mark.parametrize(
    ("kind", "given", "got", "refused"),
    [
        (str, "re_7", "re_7", [None, 7, ["re_7"]]),
        (int, 7, 7, [None, "7", 7.5, True]),
        (float, 7, 7.0, [None, "7"]),
        (int | None, None, None, ["7"]),
        (list[int], [7], [7], [None, ["7"], {"a": 7}]),
        (Receipt, {"number": 7}, {"number": 7, "note": ""}, [None, {}, {"number": "7"}, 7]),
        (Invoice, {"number": 7}, {"number": 7, "tags": []}, [None, {"tags": []}]),
        ("Receipt", {"number": 7}, {"number": 7, "note": ""}, [None, {}]),
        (datetime.datetime, "2026-01-02T03:04:05Z", AT, [None, 7]),
        (decimal.Decimal, "7.50", decimal.Decimal("7.50"), [None, 7]),
        (bytes, "aGk=", b"hi", [None, 7]),
    ],
    ids=str,
)
def test_a_result_is_of_the_type_that_the_tool_returns(kind: Any, given: Any, got: Any, refused: list[Any]) -> None:
    made = returning(kind)
    asked = question(made)
    for wrong in refused:
        with pytest.raises(UserError, match="charge gives its caller a result, and the answer has"):
            check_result(asked, wrong)
    check_result(asked, given)
    assert unpack(pack(given_result(made, given), "result")) == got


class Strange:
    """A class of which nobody can write an object as JSON."""


@pytest.mark.parametrize("kind", [Any, object, None, type(None), Strange, "NobodyKnows", 7], ids=str)
def test_where_no_type_is_known_any_result_is_taken_and_none_is_needed(kind: Any) -> None:
    made = returning(kind)
    for given in (None, 7, {"a": [1]}):
        check_result(question(made), given)
        assert given_result(made, given) == given


def test_the_question_of_an_older_version_takes_what_it_took() -> None:
    asked = {"effect": "charge", "ordinal": 1, "attempt": 1, "answers": ["done", "not_done", "abandon"]}
    made = returning(int)
    for given in (None, "7", {"a": 1}):
        check_result(asked, given)
        assert given_result(made, given) == given


def test_an_answer_of_a_server_may_be_unknown_or_any_json() -> None:
    made = returning(McpResult)
    for given in (None, "paid", {"receipt": 7}):
        check_result(question(made), given)
    assert given_result(made, None) is None
    assert given_result(made, "paid").text == "paid"
    assert given_result(made, {"state": "CA"}) == McpResult(structured={"state": "CA"})


def test_rows_are_needed_where_a_tool_gives_rows() -> None:
    made = returning(pa.RecordBatch)
    with pytest.raises(UserError, match="no list of objects"):
        check_result(question(made), None)
    assert given_result(made, [{"id": 1}]).to_pylist() == [{"id": 1}]
