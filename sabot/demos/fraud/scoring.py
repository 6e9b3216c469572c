"""A score that explains itself: there are three rules, one for each way of fraud, and the strongest one gives the score and the reason.

| rule | score |
|---|---|
| the amount is over 220 | 1 |
| the terminal had frauds: its share over 7 days, as known after the delay, from 3 rows on | the share |
| the amount is far above what the customer pays: times his mean over 30 days without this row, from 3 rows on | times / 6, at most 1 |

A row is suspicious from a score of 0.5 on. The reason names the strongest rule, the earlier one when two are equal.
"""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pyarrow as pa

SURE_AMOUNT = 220.0
LABELS_NEEDED = 3
PAYMENTS_NEEDED = 3
SURE_TIMES_MEAN = 6.0
SUSPICIOUS_FROM = 0.5

REASONS = ("amount over 220", "terminal with frauds", "amount far above the customer's mean")
ALERT_SCHEMA = pa.schema(
    [
        ("txn_id", pa.int64()),
        ("ts", pa.int64()),  # ms since 1970, UTC
        ("customer_id", pa.int64()),
        ("terminal_id", pa.int64()),
        ("amount", pa.float64()),
        ("score", pa.float64()),  # 0 to 1
        ("reason", pa.string()),  # one of REASONS
        ("is_fraud", pa.bool_()),
    ]
)


def scores(
    amount: npt.NDArray[np.float64], features: Mapping[str, npt.NDArray[np.float64] | npt.NDArray[np.int64]]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """The score of each row, and the index into REASONS of its strongest rule, from the amounts and features of the rows."""
    by_amount = np.where(amount > SURE_AMOUNT, 1.0, 0.0)
    labels = features["terminal_count_7"]
    by_terminal = np.where(labels >= LABELS_NEEDED, features["terminal_risk_7"], 0.0)
    others = features["customer_count_30"] - 1
    # The sum of the customer's other rows.
    spent = features["customer_mean_30"] * features["customer_count_30"] - amount
    usual = np.maximum(spent, 1.0) / np.maximum(others, 1)
    times = amount / usual
    by_customer = np.where(others >= PAYMENTS_NEEDED, np.clip(times / SURE_TIMES_MEAN, 0.0, 1.0), 0.0)
    rules = np.stack([by_amount, by_terminal, by_customer])
    strongest = rules.argmax(axis=0)
    return rules.max(axis=0), strongest


def suspicious(batch: pa.RecordBatch, score: npt.NDArray[np.float64], reason: npt.NDArray[np.int64]) -> pa.RecordBatch:
    """The rows of `batch` whose score is at least SUSPICIOUS_FROM, as ALERT_SCHEMA, in their order."""
    rows = np.flatnonzero(score >= SUSPICIOUS_FROM)
    found = batch.take(pa.array(rows))
    added = {
        "score": pa.array(score[rows]),
        "reason": pa.array(REASONS).take(pa.array(reason[rows])),
    }
    columns = [added[field.name] if field.name in added else found[field.name] for field in ALERT_SCHEMA]
    return pa.RecordBatch.from_arrays(columns, schema=ALERT_SCHEMA)
