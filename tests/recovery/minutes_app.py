"""The stream that the kill -9 tests run, as `sabot run minutes_app:app`: payments by account and 10 seconds of event time.

The environment: MINUTES_ID; MINUTES_IN and MINUTES_OUT, each a topic or a path that ends in .ndjson; MINUTES_INFER: no schema is given;
MINUTES_SLOW, seconds that each batch takes; MINUTES_HURRY, a file: where it is, no batch takes them any more; MINUTES_HUNGRY, a file:
the process that finds it takes memory until it is killed. Broker, state, checkpoints and parallelism come by the command line.
"""

import os
import time
from pathlib import Path

import sabot
from sabot import App, NdjsonSink, NdjsonSource, col, tumbling

source, out = os.environ["MINUTES_IN"], os.environ["MINUTES_OUT"]
slow = float(os.environ.get("MINUTES_SLOW", "0"))
hurry = Path(os.environ.get("MINUTES_HURRY", "/nowhere"))
hungry = Path(os.environ.get("MINUTES_HUNGRY", "/nowhere"))
columns = {"account": "string", "amount": "float64", "id": "int64", "ts": "int64"}
is_file = source.endswith(".ndjson")


def look(batch):
    time.sleep(slow if batch.num_rows and not hurry.exists() else 0)
    if hungry.exists():
        hungry.unlink(missing_ok=True)
        taken = [bytearray(b"x") * (10 << 20) for _ in range(200)]
        raise MemoryError(f"{len(taken)} blocks were taken, and nobody has ended this process")
    return batch


app = App(os.environ["MINUTES_ID"])
(
    app.stream(
        NdjsonSource(source, block_bytes=2000) if is_file else source,
        schema=None if "MINUTES_INFER" in os.environ else columns,
        time="ts",
        lateness="2s",
    )
    .map_batches(look)
    .filter(col("amount") > 0)
    .key_by("account")
    .window(tumbling("10s"))
    .aggregate(n=sabot.count(), total=sabot.sum("amount"), ids=sabot.collect_list("id"))
    .to(NdjsonSink(out) if is_file else out, key=None if is_file else "account")
)
