"""A score with its reason. There are three rules, one for each kind of fraud; the one with the greatest value gives
the score and the reason.

| rule | score |
|---|---|
| the amount is over 220 | 1 |
| the terminal had frauds: their share over 7 days, as known after the delay, if it has 3 rows or more | the share |
| the amount is far above the customer's mean of 30 days without this row, if there are 3 rows or more | amount / mean / 6, at most 1 |

A row is suspicious if its score is at least 0.5. The reason names the rule, of two equal ones the earlier.
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
    """Returns the score of each row, and the index into REASONS of its rule. `features`: the features of the rows by
    name.
    """
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
    """Returns the rows of `batch` whose score is at least SUSPICIOUS_FROM, in their order, with the columns of
    ALERT_SCHEMA.
    """
    rows = np.flatnonzero(score >= SUSPICIOUS_FROM)
    found = batch.take(pa.array(rows))
    added = {
        "score": pa.array(score[rows]),
        "reason": pa.array(REASONS).take(pa.array(reason[rows])),
    }
    columns = [added[field.name] if field.name in added else found[field.name] for field in ALERT_SCHEMA]
    return pa.RecordBatch.from_arrays(columns, schema=ALERT_SCHEMA)
