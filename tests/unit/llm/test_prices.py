"""Costs are exact, and none where the price is not known."""

from decimal import Decimal

import pytest

from sabot.errors import UserError
from sabot.llm import GenaiPrices, Price, Prices, PriceTable, Usage

MINI = Price("0.15", "0.60", cached="0.075")


def test_a_cost_is_exact():
    table = PriceTable({"mini": MINI}, version="2026-11")
    assert isinstance(table, Prices)
    assert table.version == "2026-11"
    assert table.cost("openai", "mini", Usage(1000, 500, cached_tokens=200)) == Decimal("0.000435")
    third = Price("0.1", "0.2", cache_write="0.125")
    assert third.of(Usage(3, 1, cache_write_tokens=1)) == Decimal("0.000000525")
    assert sum((third.of(Usage(1)) for _ in range(10)), Decimal(0)) == Decimal("0.000001")
    assert third.of(Usage(10**30)) == Decimal(10) ** 23


def test_a_name_with_a_date_has_the_price_of_the_name_and_no_other_has():
    table = PriceTable({"gpt-4o": Price(5, 15), "azure/gpt-4o": Price(6, 15)}, version="1")
    million = Usage(1_000_000)
    assert table.cost("openai", "gpt-4o-2024-07-18", million) == 5
    assert table.cost("openai", "gpt-4o-20240718", million) == 5
    assert table.cost("azure", "gpt-4o", million) == 6
    assert table.cost("openai", "gpt-4o-mini", million) is None


@pytest.mark.parametrize("wrong", [0.15, "-1", "NaN", "cheap", True, "Infinity"])
def test_what_is_no_exact_price_is_refused(wrong):
    with pytest.raises(UserError, match="is no price"):
        Price(wrong, "1")


def test_prices_have_a_version():
    with pytest.raises(UserError, match="version"):
        PriceTable({}, version="")
    with pytest.raises(UserError, match="is no price of mini"):
        PriceTable({"mini": "0.15"}, version="1")


@pytest.mark.slow  # a second of a core
def test_the_package_knows_the_vendors():
    prices = GenaiPrices()
    assert prices.version.startswith("genai-prices ")
    assert isinstance(prices, Prices)
    cost = prices.cost("openai", "gpt-4o-mini-2024-07-18", Usage(1000, 500, cached_tokens=200))
    assert cost == Decimal("0.000435")
    assert prices.cost("openai", "no-such-model", Usage(1)) is None
    assert prices.cost("my-own-server", "llama3", Usage(1)) is None
