"""Prices of tokens. Prices have a version, which is kept with each cost. A cost is an exact Decimal in US dollars.

- `PriceTable({"gpt-4o-mini": Price("0.15", "0.60", cached="0.075")}, version="2026-11")`: your own prices, in dollars per
  million tokens.
- `GenaiPrices()`: the prices of the package genai-prices, the default if it is installed (extra `llm`).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Context, Decimal, DecimalException
from functools import cache
from typing import Protocol, runtime_checkable

from sabot.base.options import answers_wrong_options
from sabot.engine.calls.usage import Usage
from sabot.errors import MissingExtra, UserError, short_repr

PRICES_HINT = (
    'give its price: ExecutionEngine(…, prices=PriceTable({"the model": Price("0.15", "0.60")}, version="2026-11")); the extra sabot[llm] '
    "knows those of many vendors; one that runs on your own machine may cost 0"
)
"""The hint of errors where a budget limits money and the price of a model is unknown."""

_EXACT = Context(prec=200)
_DATED = re.compile(r"-(\d{4}-\d{2}-\d{2}|\d{8}|latest)$")


@runtime_checkable
class Prices(Protocol):
    """An interface: a list of prices, which computes the cost of a model's tokens."""

    @property
    def version(self) -> str:
        """The version of the prices. Each Completion stores it in `prices_version`, beside its cost."""

    def cost(self, provider: str, model: str, usage: Usage) -> Decimal | None:
        """Returns the cost in US dollars, or None if the price of this model is unknown."""


@answers_wrong_options
@dataclass(frozen=True, init=False)
class Price:
    """The price of a model in US dollars per million tokens.

    - `input`: tokens that the model reads. `output`: tokens that it writes.
    - `cached`: input tokens that were read from the vendor's cache; by default the same as `input`.
    - `cache_write`: input tokens that were written to this cache; by default the same as `input`.

    Each price is a text, a Decimal or an int, because a float is not exact. Raises UserError for other values.
    """

    input: Decimal
    output: Decimal
    cached: Decimal
    cache_write: Decimal

    def __init__(
        self,
        input: str | Decimal | int,
        output: str | Decimal | int,
        *,
        cached: str | Decimal | int | None = None,
        cache_write: str | Decimal | int | None = None,
    ) -> None:
        given = {
            "input": input,
            "output": output,
            "cached": input if cached is None else cached,
            "cache_write": input if cache_write is None else cache_write,
        }
        vars(self).update({name: _exact(name, value) for name, value in given.items()})

    def of(self, usage: Usage) -> Decimal:
        """Returns the cost of these tokens in US dollars."""
        new = usage.input_tokens - usage.cached_tokens - usage.cache_write_tokens
        parts = [
            (new, self.input),
            (usage.cached_tokens, self.cached),
            (usage.cache_write_tokens, self.cache_write),
            (usage.output_tokens, self.output),
        ]
        total = Decimal(0)
        for tokens, price in parts:
            total = _EXACT.add(total, _EXACT.multiply(Decimal(tokens), price))
        return _EXACT.scaleb(total, -6)


def _exact(name: str, value: object) -> Decimal:
    if isinstance(value, str | Decimal | int) and not isinstance(value, bool):
        try:
            price = Decimal(value)
        except DecimalException:
            price = Decimal("NaN")
        if price.is_finite() and price >= 0:
            return price
    raise UserError(
        f"Price: {name}={short_repr(value)} is no price", hint='dollars for a million tokens, as text: "0.15"'
    )


@answers_wrong_options
class PriceTable:
    """A table of prices that you give yourself.

    - `prices`: the price of each model, by "vendor/model" or by the name of the model alone. If a model has both, the
      price by "vendor/model" is used. If a name has no price, a date or "-latest" at its end ("gpt-4o-mini-2024-07-18")
      is removed, and the rest is looked up.
    - `version`: any text that is not empty; each cost is stored together with it.

    Raises UserError if the version is empty, or if a value in `prices` is not a Price.
    """

    def __init__(self, prices: Mapping[str, Price], *, version: str) -> None:
        if not version:
            raise UserError("PriceTable: the version of the prices is missing", hint='version="2026-11"')
        for model, price in prices.items():
            if not isinstance(price, Price):
                raise UserError(f"PriceTable: {short_repr(price)} is no price of {model}", hint='Price("0.15", "0.60")')
        self._prices = dict(prices)
        self._version = version

    @property
    def version(self) -> str:
        return self._version

    def cost(self, provider: str, model: str, usage: Usage) -> Decimal | None:
        """Returns the cost in US dollars, or None if the model is not in the table."""
        for name in (model, _DATED.sub("", model)):
            price = self._prices.get(f"{provider}/{name}") or self._prices.get(name)
            if price is not None:
                return price.of(usage)
        return None


class GenaiPrices:
    """The prices of the package genai-prices (extra `llm`), which has the models of many vendors. Raises MissingExtra
    if the package is not installed.
    """

    def __init__(self) -> None:
        try:
            import genai_prices
        except ImportError as error:
            raise MissingExtra("GenaiPrices", "llm") from error
        self._package = genai_prices
        # Loaded here, where a program usually has no event loop yet: the first call would block the loop by it.
        genai_prices.data_snapshot.get_snapshot()

    @property
    def version(self) -> str:
        """The version of the package, such as "genai-prices 0.2.3". If the program lets the package update its prices,
        the time of the last update follows.
        """
        data = self._package.data_snapshot.get_snapshot()
        updated = f" of {data.timestamp:%Y-%m-%dT%H:%M:%S}" if data.from_auto_update else ""
        return f"genai-prices {self._package.__version__}{updated}"

    def cost(self, provider: str, model: str, usage: Usage) -> Decimal | None:
        """Returns the cost in US dollars, or None if the package does not know the model or the vendor."""
        counted = self._package.Usage(
            input_tokens=usage.input_tokens,
            output_tokens=usage.output_tokens,
            cache_read_tokens=usage.cached_tokens,
            cache_write_tokens=usage.cache_write_tokens,
        )
        try:
            price: Decimal = self._package.calc_price(counted, model_ref=model, provider_id=provider).total_price
        except LookupError:
            return None
        return price


@cache
def known_prices() -> Prices | None:
    """Returns the default prices of an engine: those of genai-prices, or None if it is not installed."""
    try:
        return GenaiPrices()
    except MissingExtra:
        return None
