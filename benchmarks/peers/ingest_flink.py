"""Programs of kafka_ingest.py in Flink SQL: the topic up to its end, in streaming mode; windows by transactions with a checkpoint a second.

A first job decodes the topic, uncounted, so that the second one, which counts, finds the JVM warm.
"""

import json
import tempfile
from pathlib import Path

from flink_sql import sql_peer

__all__ = ["prepare", "run"]

prepare = sql_peer.prepare

TXNS = """
CREATE TABLE txns (
    account STRING, amount DOUBLE, ts BIGINT,
    t AS TO_TIMESTAMP_LTZ(ts, 3), WATERMARK FOR t AS t - INTERVAL '{disorder_s}' SECOND(2, 3)
) WITH (
    'connector' = 'kafka', 'topic' = '{topic}', 'properties.bootstrap.servers' = '{broker}', 'properties.group.id' = '{out}',
    'properties.isolation.level' = 'read_committed', 'scan.startup.mode' = 'earliest-offset', 'scan.bounded.mode' = 'latest-offset',
    'format' = 'json'
)"""
DECODE = """
SELECT COUNT(*) AS n, SUM(amount) AS amount, MAX(ts) AS latest, MAX(CHAR_LENGTH(account)) AS longest
FROM txns WHERE seen()"""
MINUTES = """
CREATE TABLE minutes (account STRING, window_start BIGINT, n BIGINT, total DOUBLE, biggest DOUBLE) WITH (
    'connector' = 'kafka', 'topic' = '{out}', 'properties.bootstrap.servers' = '{broker}',
    'key.format' = 'raw', 'key.fields' = 'account', 'value.format' = 'json',
    'sink.delivery-guarantee' = 'exactly-once', 'sink.transactional-id-prefix' = '{out}',
    'properties.transaction.timeout.ms' = '600000', 'properties.linger.ms' = '5', 'properties.compression.type' = 'lz4'
)"""
WINDOWS = """
INSERT INTO minutes
SELECT account, CAST(TIMESTAMPDIFF(SECOND, TIMESTAMP '1970-01-01 00:00:00', window_start) AS BIGINT) * 1000,
    COUNT(*), SUM(amount), MAX(amount)
FROM TABLE(TUMBLE(TABLE seen_txns, DESCRIPTOR(t), INTERVAL '{minute_s}' SECOND({digits})))
GROUP BY account, window_start, window_end"""
SEEN = "CREATE TEMPORARY VIEW seen_txns AS SELECT * FROM txns WHERE seen()"


def run(
    kind: str, broker: str, topic: str, out: str, threads: int, minute_ms: int, disorder_ms: int, patience: float
) -> dict[str, float]:
    """What Sql.java prints; of `decode` with the rows and their `amount`."""
    given = {"broker": broker, "topic": topic, "out": out, "disorder_s": disorder_ms / 1000}
    given |= {"minute_s": minute_ms // 1000, "digits": len(str(minute_ms // 1000))}
    with tempfile.TemporaryDirectory(prefix="sabot-bench-") as name:
        folder = Path(name)
        settings, result = sql_peer.settings(threads, folder / "checkpoints"), folder / "result"
        decode, windows = (
            sql_peer.Sql([part.format_map(given) for part in parts], result)
            for parts in ([TXNS, DECODE], [TXNS, SEEN, MINUTES, WINDOWS])
        )
        _, figures = sql_peer.run([decode, decode if kind == "decode" else windows], settings, patience)
        if kind == "decode":
            (row,) = map(json.loads, result.read_text().splitlines())
            figures |= {"rows": int(row["n"]), "amount": float(row["amount"])}
    return figures
