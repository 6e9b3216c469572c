"""The fraud demo's agents: a batch agent that scores all transactions, and a record agent that raises alerts.

    transactions --> score (batch) --suspicious rows--> alert (record) --> alerts
                     state: customers, terminals, totals     state: alerts

The totals are kept in keyed state beside the features, so that after a restore they cover the whole run, each row once.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from sabot.api.context import AgentContext
from sabot.app import App
from sabot.connectors.base import Sink, Source
from sabot.demos.fraud.features import CustomerFeatures, TerminalFeatures
from sabot.demos.fraud.generator import SCHEMA
from sabot.demos.fraud.scoring import SUSPICIOUS_FROM, scores, suspicious
from sabot.engine.state import StateBackend, ValueState
from sabot.errors import RowErrors, UserError

INPUT_SCHEMA = SCHEMA.remove(SCHEMA.get_field_index("scenario"))  # the agents must not see how a fraud was made
_MOST = {"amount": 2.0**20, "ts": 2.0**45}  # the largest amount that a day bucket can hold, and the year 3084


@dataclass(frozen=True)
class Figures:
    """The agents' counts since the first row, including those from before a restore."""

    rows: int
    frauds: int
    flagged: int
    hits: int  # the flagged rows that are frauds
    alerts: int

    @property
    def precision(self) -> float | None:
        """The share of frauds among the flagged rows, or None if no row is flagged."""
        return self.hits / self.flagged if self.flagged else None

    @property
    def recall(self) -> float | None:
        """The share of the frauds that are flagged, or None if there are no frauds."""
        return self.hits / self.frauds if self.frauds else None


@dataclass
class Meter:
    """A counter of the rows that this process has scored. It is not part of the state, so it begins at 0 after a
    restore.
    """

    rows: int = 0


def build(
    app: App,
    transactions: str | Source = "transactions",
    *,
    alerts: str | Sink = "alerts",
    seed: int | None = None,
) -> Meter:
    """Adds the two agents to `app`. With a `seed`, state that was built from another seed's rows is refused."""
    meter = Meter()
    customers, terminals = CustomerFeatures(), TerminalFeatures()

    @app.agent(sink=alerts)  # without a topic: `score` writes into this agent
    async def alert(ctx: AgentContext) -> dict[str, Any]:
        row = ctx.message
        state = ctx.state("alerts")
        await state.put("raised", (await state.get("raised") or 0) + 1)
        times = (await state.get(row["customer_id"]) or 0) + 1
        await state.put(row["customer_id"], times)
        names = ("txn_id", "ts", "customer_id", "terminal_id", "amount", "score", "reason")
        return {name: row[name] for name in names} | {"times": times}  # the customer's nth alert

    @app.agent(transactions, sink=alert, batch=True, schema=INPUT_SCHEMA)
    def score(batch: pa.RecordBatch, ctx: AgentContext) -> pa.RecordBatch:
        refuse_bad_rows(batch)
        ids, ts = batch["customer_id"], batch["ts"]
        features = {
            **customers.update(ids, ts, batch["amount"], ctx.state("customers")),
            **terminals.update(batch["terminal_id"], ts, batch["is_fraud"], ctx.state("terminals")),
        }
        points, reason = scores(batch["amount"].to_numpy(), features)
        is_fraud = batch["is_fraud"].to_numpy(zero_copy_only=False)
        flagged = points >= SUSPICIOUS_FROM
        counted = {
            "rows": batch.num_rows,
            "frauds": int(np.count_nonzero(is_fraud)),
            "flagged": int(np.count_nonzero(flagged)),
            "hits": int(np.count_nonzero(is_fraud & flagged)),
        }
        add_to_totals(counted, ctx.state("totals"), seed)
        meter.rows += batch.num_rows
        return suspicious(batch, points, reason)

    return meter


def add_to_totals(counted: Mapping[str, int], state: ValueState, seed: int | None) -> None:
    """Adds a batch's counts to the totals in state. Raises UserError if the totals belong to another seed."""
    names = pa.array([*counted, "seed"])
    *before, built_from = state.get_many(names).to_pylist()
    if built_from is not None and seed is not None and built_from != seed:
        raise UserError(f"this state was built with seed {built_from}, not {seed}", hint="start afresh (--fresh)")
    sums = [(kept or 0) + new for kept, new in zip(before, counted.values(), strict=True)]
    state.put_many(names, pa.array([*sums, seed], pa.int64()))


async def read_figures(backend: StateBackend) -> Figures:
    """Returns the figures in the agents' state. Called on the app's event loop, or after the app has stopped."""
    totals, alerts = ValueState(backend, "totals"), ValueState(backend, "alerts")
    counted = {name: await totals.get(name) or 0 for name in ("rows", "frauds", "flagged", "hits")}
    return Figures(**counted, alerts=await alerts.get("raised") or 0)


def refuse_bad_rows(batch: pa.RecordBatch) -> None:
    """Raises RowErrors for the rows with a missing field or a value out of range."""
    bad: dict[int, str] = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        if column.null_count:
            rows = np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))
            bad.update(dict.fromkeys(rows.tolist(), f"{name} is missing"))
    for name, most in _MOST.items():
        values = batch[name].fill_null(0).to_numpy(zero_copy_only=False)
        rows = np.flatnonzero(~((values >= -most) & (values <= most)))
        bad.update(dict.fromkeys(rows.tolist(), f"{name} is not within ±{most:.0f}"))
    if bad:
        raise RowErrors(bad)
