"""Generates card transactions with known frauds from a seed. Any row can be generated without the rows before it.

The model is that of the public handbook "Reproducible Machine Learning for Credit Card Fraud Detection" (Le Borgne,
Siblini, Lebichot, Bontempi, 2022, chapter 3): customers and terminals on a 100 x 100 map, each customer paying at the
terminals within a radius, and three kinds of fraud. This generator differs where a stream needs it: days continue
without end, amounts are multiples of 1/64 (their sums are exact in float64, in any order), and a day depends on the
seed and its number only.

    seed -> World                          customers, terminals and their places
    seed, block of days -> rows per day    one Poisson draw a day, so that a row number finds its day
    seed, block of days -> customers and terminals that are compromised from that day on
    seed, day -> the day's rows            sorted by time
"""

from functools import cached_property

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sabot._cython.arrow.batch import Batch
from sabot.connectors.base import Bounded, Positions, Source
from sabot.errors import UserError

SCHEMA = pa.schema(
    [
        ("txn_id", pa.int64()),  # the row number, from 0
        ("ts", pa.int64()),  # ms since 1970, UTC; does not go back
        ("customer_id", pa.int64()),
        ("terminal_id", pa.int64()),
        ("amount", pa.float64()),  # a multiple of 1/64
        ("is_fraud", pa.bool_()),
        ("scenario", pa.int8()),  # the kind of fraud, 1 to 3, or 0
    ]
)
START_MS = 1_522_540_800_000  # 2018-04-01, the handbook's first day
DAY_MS = 86_400_000
AMOUNT_UNIT = 64  # amounts are multiples of 1 / AMOUNT_UNIT

_BLOCK_DAYS = 1024
_PROFILES, _COUNTS, _COMPROMISED, _DAY = range(4)  # purposes, each of which has random numbers of its own

_MAP_SIDE = 100.0
_RADIUS = 5.0
_NOON_SECONDS, _SPREAD_SECONDS, _DAY_SECONDS = 43_200.0, 20_000.0, 86_400.0
_SURE_FRAUD_AMOUNT = 220.0
_TERMINALS_A_DAY, _TERMINAL_DAYS = 2, 28
_CUSTOMERS_A_DAY, _CUSTOMER_DAYS = 3, 14
_STOLEN_SHARE, _STOLEN_FACTOR = 1 / 3, 5.0

_Floats = npt.NDArray[np.float64]
_Ints = npt.NDArray[np.int64]


class Generator:
    """A generator of the endless stream of one seed. `day(n)` and `day_of(row)` take the same time for all days.

    The mean number of rows a day is about twice the number of customers. What was drawn for each customer: `mean_amount`, `rate`
    (transactions a day) and `customer_at`, the place; for each terminal its place, `terminal_at`.
    """

    def __init__(self, seed: int = 0, *, customers: int = 5_000, terminals: int = 10_000) -> None:
        if seed < 0 or customers < 1 or terminals < 1:
            raise UserError("the generator needs seed >= 0 and at least one customer and one terminal")
        self.seed = seed
        self.customers = customers
        self.terminals = terminals
        self._first_rows = np.zeros(1, np.int64)  # by day: the number of its first row; grows by blocks
        self._compromised: dict[int, tuple[_Ints, _Ints]] = {}
        random = self._random(_PROFILES, 0)
        self.mean_amount = random.uniform(5.0, 100.0, customers)
        self.rate = random.uniform(0.0, 4.0, customers)
        self.customer_at = random.uniform(0.0, _MAP_SIDE, (customers, 2))
        self.terminal_at = random.uniform(0.0, _MAP_SIDE, (terminals, 2))
        self._cumulative_rate = np.cumsum(self.rate)

    def day_of(self, row: int) -> int:
        """Returns the day that contains this row."""
        while row >= self._first_rows[-1]:
            self._grow()
        return int(np.searchsorted(self._first_rows, row, side="right")) - 1

    def first_row(self, day: int) -> int:
        """Returns the number of the day's first row."""
        while day >= len(self._first_rows):
            self._grow()
        return int(self._first_rows[day])

    def day(self, day: int) -> pa.RecordBatch:
        """Returns all rows of a day with the columns of SCHEMA, sorted by time."""
        first = self.first_row(day)
        rows = self.first_row(day + 1) - first
        random = self._random(_DAY, day)
        # A Poisson process is split: the number of the day's rows is drawn once, and each row gets a customer at random by rate. So each
        # customer has a Poisson count, rows are exchangeable, and only the times need sorting.
        customer = np.searchsorted(self._cumulative_rate, random.random(rows) * self._cumulative_rate[-1], side="right")
        seconds = np.sort(_times_of_day(random, rows))
        amount = self._amounts(random, customer)
        starts, nearby = self._nearby
        choice = random.random(rows) * (starts[1:] - starts[:-1])[customer]
        terminal = nearby[starts[:-1][customer] + choice.astype(np.int64)]

        scenario = np.zeros(rows, np.int8)
        scenario[amount > _SURE_FRAUD_AMOUNT] = 1
        bad_terminals, bad_customers = self._compromised_on(day)
        scenario[bad_terminals[terminal]] = 2
        stolen = bad_customers[customer] & (random.random(rows) < _STOLEN_SHARE)
        amount[stolen] *= _STOLEN_FACTOR
        scenario[stolen] = 3
        columns = [
            np.arange(first, first + rows),
            START_MS + day * DAY_MS + (seconds * 1000).astype(np.int64),
            customer,
            terminal,
            amount,
            scenario > 0,
            scenario,
        ]
        return pa.RecordBatch.from_arrays([pa.array(column) for column in columns], schema=SCHEMA)

    def _amounts(self, random: np.random.Generator, customer: _Ints) -> _Floats:
        mean = self.mean_amount[customer]
        amount: _Floats = mean * (1 + 0.5 * random.standard_normal(len(mean)))
        negative = amount < 0
        amount[negative] = random.random(np.count_nonzero(negative)) * 2 * mean[negative]
        return np.maximum(np.rint(amount * AMOUNT_UNIT), 1) / AMOUNT_UNIT

    @cached_property
    def _nearby(self) -> tuple[_Ints, _Ints]:
        """Returns the terminals near each customer as two arrays: customer c has `terminals[starts[c]:starts[c +
        1]]`, at least the nearest terminal.
        """
        order = np.argsort(self.terminal_at[:, 0])
        at = self.terminal_at[order]
        low = np.searchsorted(at[:, 0], self.customer_at[:, 0] - _RADIUS)
        high = np.searchsorted(at[:, 0], self.customer_at[:, 0] + _RADIUS, side="right")
        found = []
        for place, first, end in zip(self.customer_at, low.tolist(), high.tolist(), strict=True):
            near = ((at[first:end] - place) ** 2).sum(axis=1) < _RADIUS**2
            mine = order[first:end][near]
            found.append(mine if len(mine) else order[[np.argmin(((at - place) ** 2).sum(axis=1))]])
        starts = np.zeros(self.customers + 1, np.int64)
        np.cumsum([len(mine) for mine in found], out=starts[1:])
        return starts, np.concatenate(found)

    def _compromised_on(self, day: int) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
        """Returns which terminals and which customers are compromised on this day, as two arrays of bools."""
        terminals = np.zeros(self.terminals, np.bool_)
        customers = np.zeros(self.customers, np.bool_)
        for drawn in range(max(0, day - _TERMINAL_DAYS + 1), day + 1):
            block, at = divmod(drawn, _BLOCK_DAYS)
            block_terminals, block_customers = self.draws(block)
            terminals[block_terminals[at]] = True
            if drawn > day - _CUSTOMER_DAYS:
                customers[block_customers[at]] = True
        return terminals, customers

    def draws(self, block: int) -> tuple[_Ints, _Ints]:
        """Returns the terminals and the customers that are compromised on each day of a block."""
        if block not in self._compromised:
            random = self._random(_COMPROMISED, block)
            draws = (
                random.integers(self.terminals, size=(_BLOCK_DAYS, _TERMINALS_A_DAY)),
                random.integers(self.customers, size=(_BLOCK_DAYS, _CUSTOMERS_A_DAY)),
            )
            self._compromised = {b: d for b, d in self._compromised.items() if b == block - 1} | {block: draws}
        return self._compromised[block]

    def _grow(self) -> None:
        block = (len(self._first_rows) - 1) // _BLOCK_DAYS
        rows = self._random(_COUNTS, block).poisson(self._cumulative_rate[-1], _BLOCK_DAYS)
        self._first_rows = np.concatenate([self._first_rows, self._first_rows[-1] + np.cumsum(rows)])

    def _random(self, purpose: int, number: int) -> np.random.Generator:
        return np.random.Generator(np.random.PCG64(np.random.SeedSequence([self.seed, purpose, number])))


def _times_of_day(random: np.random.Generator, rows: int) -> _Floats:
    """Returns seconds of the day, normally distributed around noon. Values outside of the day are drawn again."""
    seconds: _Floats = random.normal(_NOON_SECONDS, _SPREAD_SECONDS, rows)
    while True:
        outside = np.flatnonzero((seconds < 0) | (seconds >= _DAY_SECONDS))
        if not len(outside):
            return seconds
        seconds[outside] = random.normal(_NOON_SECONDS, _SPREAD_SECONDS, len(outside))


class FraudSource(Source, Bounded):
    """A bounded source of the first `rows` rows of a seed, with one partition. A position is a row number."""

    name = "transactions"

    def __init__(
        self, rows: int = 1_000_000, seed: int = 0, *, customers: int = 5_000, terminals: int = 10_000
    ) -> None:
        if rows < 0:
            raise UserError(f"rows: {rows} is negative")
        self.rows = rows
        self._generator = Generator(seed, customers=customers, terminals=terminals)
        self._row = 0
        self._day = -1
        self._day_rows = pa.RecordBatch.from_pylist([], SCHEMA)

    @property
    def schema(self) -> pa.Schema:
        return SCHEMA

    @property
    def exhausted(self) -> bool:
        return self._row >= self.rows

    def open(self, positions: Positions | None, start: str | int = "earliest") -> None:
        restored = (positions or {}).get((self.name, 0))
        if restored is None:
            self._row = self._starting_row(start)
        elif 0 <= restored <= self.rows:
            self._row = restored
        else:
            raise UserError(
                f"{self.name}: the checkpoint is at row {restored}, and there are only {self.rows} rows",
                hint="ask for at least as many rows as before, or start with --fresh",
            )

    def _starting_row(self, start: str | int) -> int:
        if start == "latest":
            return self.rows
        if isinstance(start, str):
            return 0
        day = max(0, (start - START_MS) // DAY_MS)
        if day > self._generator.day_of(self.rows):
            return self.rows
        before = np.count_nonzero(self._generator.day(day)["ts"].to_numpy() < start)
        return min(self.rows, self._generator.first_row(day) + int(before))

    def read_batch(self, max_rows: int, timeout: float) -> Batch | None:
        end = min(self._row + max_rows, self.rows)
        if end <= self._row:
            return None
        parts = []
        while self._row < end:
            part = self._rest_of_day().slice(0, end - self._row)
            self._row += part.num_rows
            parts.append(part)
        data = parts[0] if len(parts) == 1 else pa.Table.from_batches(parts).combine_chunks().to_batches()[0]
        return Batch(data, {(self.name, 0): self._row}, self.name)

    def _rest_of_day(self) -> pa.RecordBatch:
        day = self._generator.day_of(self._row)
        if day != self._day:
            self._day, self._day_rows = day, self._generator.day(day)
        return self._day_rows.slice(self._row - self._generator.first_row(day))

    def positions(self) -> Positions:
        return {(self.name, 0): self._row}

    def lag(self) -> dict[tuple[str, int], int]:
        return {(self.name, 0): self.rows - self._row}

    def close(self) -> None:
        self._day = -1
        self._day_rows = self._day_rows.slice(0, 0)
