"""The fraud demo's generator: pure in its seed, readable from any row, and the world that it claims to be."""

import numpy as np
import pyarrow as pa
import pytest

from sabot.demos.fraud.generator import DAY_MS, SCHEMA, START_MS, FraudSource, Generator
from sabot.errors import UserError

SMALL = {"customers": 200, "terminals": 300}


def read_all(source: FraudSource, max_rows: int = 10_000) -> pa.Table:
    batches = []
    while (batch := source.read_batch(max_rows, 0.0)) is not None:
        assert 0 < batch.num_rows <= max_rows
        batches.append(batch.data)
    return pa.Table.from_batches(batches, SCHEMA).combine_chunks()


def opened(rows: int, seed: int = 1, *, at: int | None = None, start: str | int = "earliest") -> FraudSource:
    source = FraudSource(rows, seed, **SMALL)
    source.open(None if at is None else {("transactions", 0): at}, start)
    return source


@pytest.fixture(scope="module")
def many_days() -> pa.Table:
    """Of the full world, about 60 days."""
    source = FraudSource(600_000, seed=5)
    source.open(None)
    return read_all(source, 65_536)


def test_the_same_seed_gives_the_same_rows_and_another_seed_others():
    table = read_all(opened(5_000))
    assert table.equals(read_all(opened(5_000)))
    assert not table.equals(read_all(opened(5_000, seed=2)))


@pytest.mark.parametrize("max_rows", [1, 7, 399, 400, 10_000])
def test_rows_do_not_depend_on_how_they_are_read(max_rows):
    assert read_all(opened(1_500), max_rows).equals(read_all(opened(1_500)))


@pytest.mark.parametrize("row", [0, 1, 398, 1_234, 2_999, 3_000])
def test_reading_goes_on_exactly_at_a_restored_position(row):
    whole = read_all(opened(3_000))
    source = opened(3_000, at=row)
    assert source.positions() == {("transactions", 0): row}
    assert read_all(source).equals(whole.slice(row).combine_chunks())
    assert source.positions() == {("transactions", 0): 3_000}


def test_a_longer_run_begins_with_the_shorter_one():
    assert read_all(opened(4_000)).slice(0, 2_500).combine_chunks().equals(read_all(opened(2_500)))


def test_the_first_row_asked_for_may_be_years_away():
    source = opened(10**12, at=10**8)
    batch = source.read_batch(100, 0.0)
    assert batch is not None
    assert batch.data["txn_id"].to_pylist() == list(range(10**8, 10**8 + 100))
    assert batch.data["ts"][0].as_py() > START_MS + 365 * 600 * DAY_MS


def test_a_batch_carries_the_next_row_as_its_position():
    source = opened(1_000)
    batch = source.read_batch(300, 0.0)
    assert batch is not None
    assert batch.topic == "transactions"
    assert batch.offsets == source.positions() == {("transactions", 0): 300}
    assert source.lag() == {("transactions", 0): 700}


def test_a_bounded_source_says_when_it_is_exhausted():
    source = opened(10)
    assert source.bounded
    assert not source.exhausted
    assert read_all(source).num_rows == 10
    assert source.exhausted
    assert source.read_batch(10, 5.0) is None
    source.close()
    source.close()


def test_a_source_of_no_rows_is_exhausted_at_once():
    source = opened(0)
    assert source.exhausted
    assert source.read_batch(10, 0.0) is None


def test_a_checkpoint_beyond_the_rows_asked_for_is_refused():
    with pytest.raises(UserError, match=r"at row 11, and there are only 10"):
        opened(10, at=11)


def test_a_start_may_be_the_end_or_a_time():
    assert opened(1_000, start="latest").exhausted
    assert opened(1_000, start="committed").positions() == {("transactions", 0): 0}
    ts = read_all(opened(1_000))["ts"].to_numpy()
    for time in (0, int(ts[0]), int(ts[500]), int(ts[500]) + 1, int(ts[-1]) + 1, START_MS + 10**6 * DAY_MS):
        first = opened(1_000, start=time).positions()["transactions", 0]
        assert first == np.searchsorted(ts, time)


def test_impossible_worlds_are_refused():
    with pytest.raises(UserError, match="seed >= 0"):
        Generator(-1)
    with pytest.raises(UserError, match="at least one customer"):
        Generator(1, customers=0)
    with pytest.raises(UserError, match="rows: -1"):
        FraudSource(-1)


def test_a_world_of_one_customer_and_one_terminal_works():
    source = FraudSource(50, 3, customers=1, terminals=1)
    source.open(None)
    table = read_all(source)
    assert set(table["terminal_id"].to_pylist()) == {0}


@pytest.mark.slow  # half a second of a core
def test_rows_are_numbered_and_sorted_by_time(many_days):
    assert many_days.schema == SCHEMA
    assert sum(column.null_count for column in many_days.columns) == 0
    np.testing.assert_array_equal(many_days["txn_id"].to_numpy(), np.arange(600_000))
    assert (np.diff(many_days["ts"].to_numpy()) >= 0).all()


def test_amounts_are_positive_multiples_of_a_64th(many_days):
    amount = many_days["amount"].to_numpy()
    assert (amount > 0).all()
    np.testing.assert_array_equal(amount * 64, np.rint(amount * 64))


def test_customers_pay_within_their_radius_and_all_of_them_do(many_days):
    generator = Generator(5)
    customer, terminal = many_days["customer_id"].to_numpy(), many_days["terminal_id"].to_numpy()
    apart = np.hypot(*(generator.customer_at[customer] - generator.terminal_at[terminal]).T)
    assert apart.max() < 5.0
    assert len(np.unique(customer)) > 4_900
    assert len(np.unique(terminal)) > 9_900


def test_times_gather_around_noon(many_days):
    hours = (many_days["ts"].to_numpy() % DAY_MS) / 3_600_000
    assert abs(hours.mean() - 12) < 0.05
    assert 5.0 < hours.std() < 5.5  # a normal of 5.56 hours, cut off at midnight


def test_each_customer_keeps_his_rate_andmean_amount(many_days):
    generator = Generator(5)
    fair = many_days["scenario"].to_numpy() < 2
    customer = many_days["customer_id"].to_numpy()[fair]
    count = np.bincount(customer, minlength=5_000)
    mean = np.bincount(customer, many_days["amount"].to_numpy()[fair], 5_000) / np.maximum(count, 1)
    days = generator.day_of(600_000)
    busy = count > 100
    assert np.corrcoef(count, generator.rate)[0, 1] > 0.98
    np.testing.assert_allclose(mean[busy], generator.mean_amount[busy], rtol=0.25)
    np.testing.assert_allclose(count.sum(), generator.rate.sum() * days, rtol=0.03)


def test_a_fraud_is_a_row_of_a_scenario_and_under_one_percent_are(many_days):
    scenario = many_days["scenario"].to_numpy()
    np.testing.assert_array_equal(many_days["is_fraud"].to_numpy(), scenario > 0)
    assert set(np.unique(scenario)) == {0, 1, 2, 3}
    assert 0.005 < (scenario > 0).mean() < 0.01


def test_every_amount_over_220_is_a_fraud(many_days):
    large = many_days["amount"].to_numpy() > 220
    assert large.sum() > 500
    assert many_days["is_fraud"].to_numpy()[large].all()


def test_a_compromised_terminal_is_all_fraud_for_28_days_and_two_are_drawn_a_day(many_days):
    day = (many_days["ts"].to_numpy() - START_MS) // DAY_MS
    terminal, scenario = many_days["terminal_id"].to_numpy(), many_days["scenario"].to_numpy()
    drawn, _ = Generator(5).draws(0)
    assert drawn.shape[1] == 2
    bad = {(t, d) for first, pair in enumerate(drawn[:60]) for t in pair.tolist() for d in range(first, first + 28)}
    is_bad = np.fromiter(((t, d) in bad for t, d in zip(terminal.tolist(), day.tolist(), strict=True)), bool)
    assert is_bad.sum() > 1_000
    assert (scenario[is_bad] >= 2).all()
    assert (scenario[~is_bad] != 2).all()


def test_a_third_of_a_compromised_customers_rows_are_fraud_for_14_days(many_days):
    day = (many_days["ts"].to_numpy() - START_MS) // DAY_MS
    customer, scenario = many_days["customer_id"].to_numpy(), many_days["scenario"].to_numpy()
    _, drawn = Generator(5).draws(0)
    assert drawn.shape[1] == 3
    bad = {(c, d) for first, three in enumerate(drawn[:60]) for c in three.tolist() for d in range(first, first + 14)}
    is_bad = np.fromiter(((c, d) in bad for c, d in zip(customer.tolist(), day.tolist(), strict=True)), bool)
    assert (scenario[~is_bad] != 3).all()
    assert 0.3 < (scenario[is_bad] == 3).mean() < 0.37


def test_stolen_cards_pay_five_times_as_much(many_days):
    generator = Generator(5)
    stolen = many_days["scenario"].to_numpy() == 3
    times = many_days["amount"].to_numpy()[stolen] / generator.mean_amount[many_days["customer_id"].to_numpy()[stolen]]
    assert 4.7 < times.mean() < 5.4


def test_draws_do_not_depend_on_the_order_of_asking():
    forward, backward = Generator(9, **SMALL), Generator(9, **SMALL)
    days = [1030, 1023, 5, 4_000, 1024]
    seen = {day: forward.day(day) for day in sorted(days)}
    for day in days:
        assert backward.day(day).equals(seen[day])
