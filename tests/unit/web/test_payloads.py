"""The values of data that pages may show: fields that were named, without known secrets."""

import pytest

from sabot.base.redaction import keep_secret
from sabot.web.payloads import Payloads

ORDER = {
    "order": "o-1",
    "customer": {"name": "Ann", "city": "Ghent"},
    "items": [{"sku": "a", "price": 5}, {"sku": "b"}],
}


def test_without_names_no_value_is_shown_and_the_hidden_ones_are_counted() -> None:
    shown = Payloads().shown(ORDER)
    assert (list(shown.fields), shown.hidden) == ([], 6)


def test_a_named_field_is_shown_at_any_depth_with_all_that_is_in_it() -> None:
    shown = Payloads(names=frozenset({"city", "sku"})).shown(ORDER)
    assert dict(shown.fields) == {"customer": '{"city": "Ghent"}', "items": '[{"sku": "a"}, {"sku": "b"}]'}
    assert shown.hidden == 3
    whole = Payloads(names=frozenset({"customer"})).shown(ORDER)
    assert dict(whole.fields) == {"customer": '{"name": "Ann", "city": "Ghent"}'}


def test_a_named_tool_shows_its_positional_arguments() -> None:
    arguments = [["o-1", 50], {"reason": "broken"}]
    assert Payloads().shown(arguments, "refund").hidden == 3
    assert Payloads(names=frozenset({"refund"})).shown(arguments, "refund").fields == [
        ("", '[["o-1", 50], {"reason": "broken"}]')
    ]


@pytest.mark.parametrize("mode", ["scrubbed", "all"])
def test_known_secrets_and_fields_of_secrets_are_hidden_in_every_mode(mode: str) -> None:
    owner = Payloads()
    keep_secret("hunter-two-word", owner=owner)
    payloads = Payloads(mode, frozenset({"note", "login"}))  # type: ignore[arg-type]
    shown = payloads.shown({"note": "it is hunter-two-word", "login": {"api_key": "abcdef"}})
    assert "hunter" not in str(shown.fields)
    assert "abcdef" not in str(shown.fields)
    assert payloads.cell("hunter-two-word", "note") == "***"


def test_with_none_a_named_field_is_hidden_too() -> None:
    payloads = Payloads("none", frozenset({"order"}))
    assert not payloads.shown(ORDER).fields
    assert payloads.cell("o-1", "order") == ""


def test_long_values_are_cut_and_many_fields_are_counted() -> None:
    shown = Payloads("all").shown({f"f{n}": "x" * 5_000 for n in range(60)})
    assert (len(shown.fields), shown.more) == (50, 10)
    assert shown.cut
    assert {text for _, text in shown.fields} == {f"{'x' * 2_000}… (3,000 more characters)"}
    assert not Payloads("all").shown({"f": "x" * 2_000}).cut


def test_signs_that_turn_text_around_are_written_out() -> None:
    assert Payloads("all").shown("a\u202eb").fields == [("", "a\\u202eb")]
