"""The fraud demo's features, scores and alerts against the same computed by SQL over all rows at once: equal to the bit."""

import itertools
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from harness import database
from hypothesis import given, settings
from hypothesis import strategies as st

from sabot.api.context import AgentContext
from sabot.connectors.memory import MemoryBroker, MemorySink, MemorySource
from sabot.demos.fraud.app import INPUT_SCHEMA, build, read_figures
from sabot.demos.fraud.demo import rows_held
from sabot.demos.fraud.features import CustomerFeatures, TerminalFeatures
from sabot.demos.fraud.generator import DAY_MS, FraudSource
from sabot.demos.fraud.scoring import ALERT_SCHEMA, SUSPICIOUS_FROM, scores, suspicious
from sabot.engine.state import BackendConfig, MemoryBackend
from sabot.errors import RowErrors, UserError

# Windows by counting back over sorted rows, with no buckets and no state. `seen` is the row's day as the module defines it.
ORACLE = """
with customers as (
    select *, max(ts // 86400000) over (partition by customer_id order by txn_id) as seen from txns
), customer_features as (
    select txn_id,
        count(*) over (w range between 0 preceding and current row) - after_1 as customer_count_1,
        count(*) over (w range between 6 preceding and current row) - after_1 as customer_count_7,
        count(*) over (w range between 29 preceding and current row) - after_1 as customer_count_30,
        sum(amount) over (w range between 0 preceding and current row) - after_sum as sum_1,
        sum(amount) over (w range between 6 preceding and current row) - after_sum as sum_7,
        sum(amount) over (w range between 29 preceding and current row) - after_sum as sum_30
    from (
        select *,
            count(*) over (o rows between 1 following and unbounded following) as after_1,
            coalesce(sum(amount) over (o rows between 1 following and unbounded following), 0) as after_sum
        from customers
        window o as (partition by customer_id, seen order by txn_id)
    )
    window w as (partition by customer_id order by seen)
), terminals as (
    select *, max(ts // 86400000) over (partition by terminal_id order by txn_id) as seen from txns
), terminal_features as (
    select txn_id,
        count(*) over (w range between 7 preceding and 7 preceding) as terminal_count_1,
        count(*) over (w range between 13 preceding and 7 preceding) as terminal_count_7,
        count(*) over (w range between 36 preceding and 7 preceding) as terminal_count_30,
        coalesce(sum(is_fraud::int) over (w range between 7 preceding and 7 preceding), 0) as frauds_1,
        coalesce(sum(is_fraud::int) over (w range between 13 preceding and 7 preceding), 0) as frauds_7,
        coalesce(sum(is_fraud::int) over (w range between 36 preceding and 7 preceding), 0) as frauds_30
    from terminals
    window w as (partition by terminal_id order by seen)
), features as (
    select txns.*,
        customer_count_1, customer_count_7, customer_count_30,
        sum_1 / customer_count_1 as customer_mean_1,
        sum_7 / customer_count_7 as customer_mean_7,
        sum_30 / customer_count_30 as customer_mean_30,
        terminal_count_1, terminal_count_7, terminal_count_30,
        coalesce(frauds_1::double / nullif(terminal_count_1, 0), 0) as terminal_risk_1,
        coalesce(frauds_7::double / nullif(terminal_count_7, 0), 0) as terminal_risk_7,
        coalesce(frauds_30::double / nullif(terminal_count_30, 0), 0) as terminal_risk_30
    from txns join customer_features using (txn_id) join terminal_features using (txn_id)
), rules as (
    select *,
        case when amount > 220 then 1.0::double else 0 end as rule_1,
        case when terminal_count_7 >= 3 then terminal_risk_7 else 0 end as rule_2,
        case when customer_count_30 >= 4 then least(1, amount
            / (greatest(1, customer_mean_30 * customer_count_30 - amount) / (customer_count_30 - 1)) / 6)
            else 0 end as rule_3
    from features
)
select *, greatest(rule_1, rule_2, rule_3) as score,
    case greatest(rule_1, rule_2, rule_3)
        when rule_1 then 'amount over 220'
        when rule_2 then 'terminal with frauds'
        else 'amount far above the customer''s mean' end as reason
from rules order by txn_id
"""


def oracle(txns: pa.Table) -> pa.Table:
    with database().cursor() as connection:
        connection.register("txns", txns)
        return connection.sql(ORACLE).to_arrow_table()


class DictState:
    """`ctx.state(namespace)` of a batch agent over a dict; counts its calls."""

    def __init__(self, values: dict[int, bytes] | None = None) -> None:
        self.values = dict(values or {})
        self.gets = self.puts = 0

    def get_many(self, keys: pa.Array) -> pa.Array:
        assert len(set(keys.to_pylist())) == len(keys)
        self.gets += 1
        found = [self.values.get(key) for key in keys.to_pylist()]
        return pa.array(found, pa.binary() if any(found) else pa.null())

    def put_many(self, keys: pa.Array, values: pa.Array) -> None:
        values.validate(full=True)
        self.puts += 1
        self.values.update(zip(keys.to_pylist(), values.to_pylist(), strict=True))


class Run:
    """Batches in, features and alerts out; `copy` is what a checkpoint keeps."""

    def __init__(self, customers: DictState | None = None, terminals: DictState | None = None) -> None:
        self.customers = customers or DictState()
        self.terminals = terminals or DictState()
        self.features: list[pa.RecordBatch] = []
        self.alerts: list[pa.RecordBatch] = []

    def copy(self) -> "Run":
        return Run(DictState(self.customers.values), DictState(self.terminals.values))

    def feed(self, batch: pa.RecordBatch) -> None:
        columns = {
            **CustomerFeatures().update(batch["customer_id"], batch["ts"], batch["amount"], self.customers),
            **TerminalFeatures().update(batch["terminal_id"], batch["ts"], batch["is_fraud"], self.terminals),
        }
        score, reason = scores(batch["amount"].to_numpy(), columns)
        self.alerts.append(suspicious(batch, score, reason))
        columns["score"] = score
        self.features.append(pa.RecordBatch.from_pydict(columns))

    def check(self, expected: pa.Table, first: int = 0) -> None:
        got = pa.Table.from_batches(self.features)
        for name in got.column_names:
            want = expected[name].to_numpy()[first : first + got.num_rows]
            have = got[name].to_numpy()
            np.testing.assert_array_equal(have, want.astype(have.dtype), err_msg=name)
        wanted = expected.slice(first, got.num_rows)
        wanted = wanted.filter(pc.greater_equal(wanted["score"], SUSPICIOUS_FROM))
        assert pa.Table.from_batches(self.alerts) == wanted.select(ALERT_SCHEMA.names).cast(ALERT_SCHEMA)


def cut(table: pa.Table, bounds: Sequence[int]) -> list[pa.RecordBatch]:
    whole = table.combine_chunks().to_batches()[0]
    edges = [0, *sorted(bounds), whole.num_rows]
    return [whole.slice(a, b - a) for a, b in itertools.pairwise(edges) if b > a]


def transactions(rows: int, seed: int, **world: int) -> pa.Table:
    source = FraudSource(rows, seed, **world)
    source.open(None)
    batch = source.read_batch(rows, 0.0)
    assert batch is not None
    return pa.Table.from_batches([batch.data])


@pytest.fixture(scope="module")
def world() -> tuple[pa.Table, pa.Table]:
    """60,000 rows over about 100 days, dense enough for all three rules, and what SQL says about them."""
    txns = transactions(60_000, 11, customers=300, terminals=150)
    return txns, oracle(txns)


@pytest.mark.one_in(3, "a quarter of a second of a core each")
@pytest.mark.parametrize("size", [997, 8_192, 60_000])
def test_features_scores_and_alerts_equal_the_batch_program_for_any_batch_size(world, size):
    txns, expected = world
    run = Run()
    for batch in cut(txns, range(size, txns.num_rows, size)):
        run.feed(batch)
    run.check(expected)
    reasons = set(pa.Table.from_batches(run.alerts)["reason"].to_pylist())
    assert len(reasons) == 3  # every rule spoke


@settings(max_examples=15, deadline=None)
@given(bounds=st.lists(st.integers(0, 12_000), max_size=60, unique=True))
def test_the_answer_does_not_depend_on_where_batches_are_cut(world, bounds):
    txns, expected = world
    run = Run()
    for batch in cut(txns.slice(0, 12_000), bounds):
        run.feed(batch)
    run.check(expected)


def test_a_copied_state_goes_on_exactly_where_it_was(world):
    txns, expected = world
    half = 31_234
    run = Run()
    for batch in cut(txns.slice(0, half), range(5_000, half, 5_000)):
        run.feed(batch)
    restored = run.copy()
    run.feed(transactions(1_000, 99).to_batches()[0])  # after the copy: must not be seen
    for batch in cut(txns.slice(half), range(7_001, txns.num_rows - half, 7_001)):
        restored.feed(batch)
    restored.check(expected, first=half)


def test_each_id_is_read_and_written_once_a_batch(world):
    run = Run()
    run.feed(world[0].slice(0, 8_192).to_batches()[0])
    assert (run.customers.gets, run.customers.puts, run.terminals.gets, run.terminals.puts) == (1, 1, 1, 1)


def test_the_value_of_a_key_keeps_its_size():
    run = Run()
    for batch in cut(transactions(30_000, 2, customers=50, terminals=50), range(3_000, 30_000, 3_000)):
        run.feed(batch)
        assert {len(blob) for blob in run.customers.values.values()} == {8 * 31}
        assert {len(blob) for blob in run.terminals.values.values()} == {8 * 38}


days = st.one_of(st.integers(0, 60), st.integers(0, 10_000))
row = st.tuples(days, st.integers(0, 3), st.integers(-2, 2), st.integers(1, 64 * 300), st.booleans())


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(row, min_size=1, max_size=80), bounds=st.lists(st.integers(0, 80), max_size=6), ordered=st.booleans()
)
def test_gaps_late_rows_and_days_far_apart_equal_the_batch_program(rows, bounds, ordered):
    if ordered:
        rows = sorted(rows, key=lambda r: r[0])
    day, customer, terminal, units, fraud = (list(column) for column in zip(*rows, strict=True))
    txns = pa.table(
        {
            "txn_id": pa.array(range(len(rows)), pa.int64()),
            "ts": pa.array([d * DAY_MS + d % 7 for d in day], pa.int64()),
            "customer_id": pa.array(customer, pa.int64()),
            "terminal_id": pa.array([t * 2**40 for t in terminal], pa.int64()),
            "amount": pa.array([u / 64 for u in units], pa.float64()),
            "is_fraud": pa.array(fraud, pa.bool_()),
        }
    )
    run = Run()
    for batch in cut(txns, [b for b in bounds if b < len(rows)]):
        run.feed(batch)
    run.check(oracle(txns))


def test_refunds_and_amounts_between_64ths_are_rounded_once():
    batch = pa.record_batch(
        {
            "customer_id": pa.array([7, 7], pa.int64()),
            "ts": pa.array([0, 1], pa.int64()),
            "amount": pa.array([-10.0, 0.1], pa.float64()),
        }
    )
    found = CustomerFeatures().update(batch["customer_id"], batch["ts"], batch["amount"], DictState())
    assert found["customer_count_1"].tolist() == [1, 2]
    assert found["customer_mean_1"].tolist() == [-10.0, (-10.0 + 6 / 64) / 2]


def test_a_slice_of_a_state_answer_is_read_from_its_offset():
    class Sliced(DictState):
        def get_many(self, keys: pa.Array) -> pa.Array:
            found = super().get_many(keys)
            return pa.concat_arrays([pa.array([b"x", None], pa.binary()), found.cast(pa.binary())]).slice(2)

    txns = transactions(4_000, 4, customers=40, terminals=40)
    run = Run(Sliced(), Sliced())
    for batch in cut(txns, range(500, 4_000, 500)):
        run.feed(batch)
    run.check(oracle(txns))


def test_state_of_another_layout_is_refused():
    state = DictState({1: b"too short"})
    with pytest.raises(UserError, match="another layout"):
        CustomerFeatures().update(pa.array([1]), pa.array([0]), pa.array([1.0]), state)


def test_no_rows_give_no_features():
    empty = pa.array([], pa.int64())
    found = CustomerFeatures().update(empty, empty, pa.array([], pa.float64()), DictState())
    assert {len(column) for column in found.values()} == {0}


@pytest.mark.slow  # a second of a core
@pytest.mark.parametrize("seed", [0, 1, 12345])
def test_precision_and_recall_hold_for_any_seed(seed):
    txns = transactions(1_000_000, seed)
    run = Run()
    for batch in cut(txns, range(250_000, txns.num_rows, 250_000)):
        run.feed(batch)
    alerts = pa.Table.from_batches(run.alerts)
    hits = pc.sum(alerts["is_fraud"]).as_py()
    assert hits / alerts.num_rows > 0.6
    assert hits / pc.sum(txns["is_fraud"]).as_py() > 0.55


class TwoAgents:
    """An App that only remembers its agents; they are called with contexts over a real state backend."""

    def __init__(self) -> None:
        self.functions: dict[str, Any] = {}
        self.backend = MemoryBackend(BackendConfig())

    def agent(self, *_: Any, **__: Any) -> Any:
        return lambda function: self.functions.setdefault(function.__name__, function)

    async def feed(self, batch: pa.RecordBatch) -> list[dict[str, Any]]:
        found = self.functions["score"](batch, AgentContext(batch, self.backend))
        return [await self.functions["alert"](AgentContext(row, self.backend)) for row in found.to_pylist()]


@pytest.mark.slow  # half a second of a core
async def test_the_agents_figures_cover_the_whole_run_after_a_restore(world):
    txns, expected = world
    alerts = []
    first, second = TwoAgents(), TwoAgents()
    build(first, seed=11)
    for batch in cut(txns.slice(0, 30_000), range(4_000, 30_000, 4_000)):
        alerts += await first.feed(batch)
    second.backend = first.backend  # what a restore brings back
    build(second, seed=11)
    for batch in cut(txns.slice(30_000), range(4_000, 30_000, 4_000)):
        alerts += await second.feed(batch)

    figures = await read_figures(second.backend)
    is_fraud, score = expected["is_fraud"].to_numpy(), expected["score"].to_numpy()
    flagged = score >= SUSPICIOUS_FROM
    assert (figures.rows, figures.frauds, figures.flagged) == (60_000, is_fraud.sum(), flagged.sum())
    assert figures.alerts == flagged.sum() == len(alerts)
    assert figures.precision == (is_fraud & flagged).sum() / flagged.sum()
    assert figures.recall == (is_fraud & flagged).sum() / is_fraud.sum()

    nth: Counter[int] = Counter()
    for alert, row in zip(alerts, expected.filter(pa.array(flagged)).to_pylist(), strict=True):
        nth[row["customer_id"]] += 1
        assert alert["times"] == nth[row["customer_id"]]
        assert {name: row[name] for name in alert if name != "times"} == {
            name: value for name, value in alert.items() if name != "times"
        }


async def test_state_of_another_seed_is_refused(world):
    agents = TwoAgents()
    build(agents, seed=11)
    batch = world[0].slice(0, 100).to_batches()[0]
    await agents.feed(batch)
    build_again = TwoAgents()
    build_again.backend = agents.backend
    build(build_again, seed=12)
    with pytest.raises(UserError, match="built with seed 11, not 12"):
        await build_again.feed(batch)


async def test_bad_rows_are_named_and_leave_no_trace(world):
    rows = world[0].slice(0, 8).to_pylist()
    rows[1]["amount"] = None
    rows[2]["amount"] = float("nan")
    rows[3]["amount"] = float("inf")
    rows[4]["amount"] = -(2.0**21)
    rows[5]["customer_id"] = None
    rows[6]["ts"] = 2**63 - 1
    agents = TwoAgents()
    build(agents, seed=11)
    with pytest.raises(RowErrors) as caught:
        await agents.feed(pa.RecordBatch.from_pylist(rows, INPUT_SCHEMA))
    assert sorted(caught.value.rows) == [1, 2, 3, 4, 5, 6]
    assert caught.value.rows[5] == "customer_id is missing"
    assert agents.backend.statistics()["keys"] == 0


def published(broker: str, rows: int, seed: int) -> MemorySource:
    sink, source = MemorySink("transactions", broker), FraudSource(rows, seed)
    sink.open()
    source.open(None)
    while (batch := source.read_batch(700, 0.0)) is not None:
        sink.write(batch)
    return MemorySource("transactions", broker)


@pytest.mark.slow  # half a second of a core
def test_publishing_goes_on_where_the_topic_ends():
    assert rows_held(lambda: published("memory://fraud-none", 0, 5), seed=5) == 0
    topic = published("memory://fraud-some", 1_500, 5)
    assert rows_held(lambda: topic, seed=5) == 1_500
    with pytest.raises(UserError, match="does not begin with the rows of seed 6"):
        rows_held(lambda: topic, seed=6)


def test_a_topic_with_other_records_or_several_partitions_is_refused():
    MemoryBroker.get("memory://fraud-alien").publish("transactions", [b"no json"])
    with pytest.raises(UserError, match="does not begin with"):
        rows_held(lambda: MemorySource("transactions", "memory://fraud-alien"), seed=0)
    MemoryBroker.get("memory://fraud-wide").create_topic("transactions", 3)
    with pytest.raises(UserError, match="has 3 partitions"):
        rows_held(lambda: MemorySource("transactions", "memory://fraud-wide"), seed=0)
