"""The fraud demo to look at, `sabot demo fraud --web`: payments come at a steady rate, some late, some broken, and a step is too slow.

terminals ─┬▶ transactions (topic) ─▶ score ─▶ alert ─▶ alerts                the agents of `app`
           └▶ card_tokens ─▶ sums of ten seconds ─▶ card_sums                 tokens stand in place of the numbers of customers
"""

import hashlib
import time

import pyarrow as pa
import pyarrow.compute as pc

import sabot
from sabot import App, tumbling
from sabot._cython.arrow.batch import Batch
from sabot.base.config import parse_broker
from sabot.clock import SYSTEM_CLOCK
from sabot.connectors.base import Positions, Source
from sabot.connectors.memory import MemoryBroker
from sabot.demos.fraud.app import build
from sabot.demos.fraud.generator import SCHEMA, FraudSource
from sabot.demos.program import DemoProgram, demo_folder

_TOPIC = "transactions"
_ROWS_PER_S = 400
_BATCH_ROWS = 100
_KEPT_BYTES = 64 << 20  # of each topic
_LATE_EACH, _BROKEN_EACH = 1_499, 397  # of so many payments one comes too late, and one has no amount
_LATE_MS = 600_000
_ROUNDS = 20_000  # of the hash of a token: some milliseconds of a processor, so that a processor does not keep up with the payments
_PROGRAM = """from sabot.demos.fraud.watched import build_watched

app = build_watched({rows}, {seed}, {broker!r})
"""


def show(rows: int, seed: int, broker: str, state: str | None, fresh: bool) -> None:
    """Runs the app with its console until Ctrl-C, which raises KeyboardInterrupt. `state`: as in `sabot.demos.fraud.demo.run`; None keeps
    the state for this run.
    """
    with demo_folder(True, state) as folder:
        options = ["--state", str(folder / "state") if state is None else state, *(["--fresh"] if fresh else [])]
        text = _PROGRAM.format(rows=rows, seed=seed, broker=broker)
        with DemoProgram(folder, "fraud_demo", text, options, web=True) as program:
            program.start()
            program.show(f"the step {card_tokens.__name__} is too slow for {_ROWS_PER_S} payments a second")


class Terminals(Source):
    """A source that gives the payments of a seed at a steady rate. `at`: the time at which a terminal has sent a payment, in ms. Some
    terminals were offline, so their payments are ten minutes old.
    """

    name = "terminals"
    schema = SCHEMA.append(pa.field("at", pa.int64()))

    def __init__(self, rows: int, seed: int) -> None:
        self._payments = FraudSource(rows, seed)
        self._began = 0.0  # the time at which row 0 was sent, or would have been

    def open(self, positions: Positions | None, start: str | int = "earliest") -> None:
        self._payments.open(positions and {(self._payments.name, 0): positions[self.name, 0]}, start)
        self._began = SYSTEM_CLOCK.time() - self._row / _ROWS_PER_S

    def read_batch(self, max_rows: int, timeout: float) -> Batch | None:
        if self._payments.exhausted:
            time.sleep(timeout)
            return None
        missing = (min(_BATCH_ROWS, self._payments.rows - self._row) - self._sent()) / _ROWS_PER_S
        time.sleep(min(max(missing, 0.0), timeout))
        read = self._payments.read_batch(min(max_rows, _BATCH_ROWS), timeout) if missing <= timeout else None
        return None if read is None else Batch(self._with_faults(read.data), self.positions(), self.name)

    def positions(self) -> Positions:
        return {(self.name, 0): self._row}

    def lag(self) -> dict[tuple[str, int], int]:
        return {(self.name, 0): self._sent()}

    def close(self) -> None:
        self._payments.close()

    @property
    def _row(self) -> int:
        (row,) = self._payments.positions().values()
        return row

    def _sent(self) -> int:
        """Returns the number of payments that were sent and not read yet."""
        return min(int((SYSTEM_CLOCK.time() - self._began) * _ROWS_PER_S), self._payments.rows) - self._row

    def _with_faults(self, payments: pa.RecordBatch) -> pa.RecordBatch:
        numbers = payments["txn_id"].to_numpy()
        at = (self._began + numbers / _ROWS_PER_S) * 1000 - (numbers % _LATE_EACH == _LATE_EACH - 1) * _LATE_MS
        amounts = pc.if_else(pa.array(numbers % _BROKEN_EACH == 0), None, payments["amount"])
        columns = {**dict(zip(payments.schema.names, payments.columns, strict=True)), "amount": amounts}
        return pa.RecordBatch.from_pydict({**columns, "at": pa.array(at.astype("int64"))}, self.schema)


def card_tokens(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Puts a token in place of the customer's number, which nobody can guess from it in a short time."""
    numbers = batch["customer_id"].to_pylist()
    tokens = [hashlib.pbkdf2_hmac("sha256", b"%d" % each, b"demo", _ROUNDS).hex()[:16] for each in numbers]
    return batch.drop_columns(["customer_id"]).append_column("card", pa.array(tokens, pa.string()))


def build_watched(rows: int, seed: int, broker: str = "memory://") -> App:
    """Returns the app: the agents of the demo, and a stream whose step `card_tokens` is too slow for the payments."""
    app = App("fraud-demo", broker, checkpoint_interval="5s")
    if parse_broker(broker)[0] == "memory":
        MemoryBroker.get(broker).retention_bytes = _KEPT_BYTES
    payments = app.stream(Terminals(rows, seed), time="at", lateness="5s", dead_letter=f"{_TOPIC}.dlq")
    payments.to(_TOPIC)
    build(app, _TOPIC, seed=seed)
    windows = payments.map_batches(card_tokens).key_by("card").window(tumbling("10s"), late="late_payments")
    sums = windows.aggregate(payments=sabot.count(), total=sabot.sum("amount"))
    sums.to("card_sums")
    return app
