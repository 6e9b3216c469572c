"""Other engines over the same events: their figures, and whether their results are DuckDB's."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from .generator import Generator
from .oracle import QUERIES, Oracle
from .run import dump, write_json
from .streams import write_side

sys.path.insert(0, str(Path(__file__).parents[1] / "peers"))
import nexmark_peers
from nexmark_peers import PEERS, NotSaid, NotThere

__all__ = ["LEFT_OPEN", "PEERS", "Peers", "typed"]

# Of bids of one bidder for one auction in the same millisecond others take the last one, or any, DuckDB's twin the first one.
LEFT_OPEN = {"q18": ["price", "channel", "url", "extra"]}
CHECKED_EVENTS = 50_000  # of which the results are compared: those of a timed run are dropped


class Peers:
    """Those of them that can be run here. folder: where their files are, of the events that are timed and of those that are compared."""

    def __init__(
        self,
        names: Sequence[str],
        generator: Generator,
        events: int,
        folder: Path,
        parallelism: int,
        checkpoint_ms: int,
    ) -> None:
        self._events, self._options = events, (parallelism, checkpoint_ms)
        self._timed, self._checked = folder / "timed", folder / "checked"
        self._generator = generator
        self.names = [name for name in names if self._is_there(name)]
        for place, count in ((self._timed, events), (self._checked, CHECKED_EVENTS)):
            if self.names:
                dump(generator, count, place)
                write_json(generator, count, place)
                write_side(place / "side.csv")

    def _is_there(self, name: str) -> bool:
        try:
            nexmark_peers.prepare(name)
        except NotThere as reason:
            print(f"{name} is left out: {reason}", flush=True)
            return False
        return True

    def measure(self, query: str, name: str, check: bool) -> dict[str, Any]:
        """The figures of a query; where there are none, `error` says why. check: compare its result too."""
        try:
            figures, result = nexmark_peers.run(name, query, self._timed, self._checked, *self._options)
        except NotSaid as reason:
            return {"error": str(reason)}
        events, seconds, cpu_s = figures.get("events", self._events), figures["seconds"], figures["cpu_seconds"]
        return {
            "events": events,
            "events_per_s": round(events / seconds),
            "events_per_core_s": round(events / cpu_s),
            "peak_mb": figures.get("peak_mb"),
            "seconds": seconds,
            "cpu_s": cpu_s,
            "wrong": self._wrong(query, result) if check else "",
        }

    def _wrong(self, query: str, result: Path) -> str:
        """By what a result differs from DuckDB's: "" if by nothing."""
        oracle = Oracle(self._generator, CHECKED_EVENTS)
        return oracle.differences(
            query, typed(result, oracle, query), any_of_equals=True, left_open=LEFT_OPEN.get(query, ())
        )


def typed(result: Path, oracle: Oracle, query: str) -> pa.Table:
    """Rows of a file in the types of the oracle's columns."""
    types = {row[0]: row[1] for row in oracle.rows(f"describe {(QUERIES / f'{query}.sql').read_text()}")}
    casts = ", ".join(f'{_cast(name, kind)} as "{name}"' for name, kind in types.items())
    names = json.dumps(dict.fromkeys(types, "varchar"))
    with duckdb.connect() as connection:
        source = f"read_json('{result}', columns = {names}, format = 'newline_delimited')"
        if result.suffix == ".parquet":
            source = f"read_parquet('{result}')"
        return connection.sql(f"select {casts} from {source}").to_arrow_table()


def _cast(name: str, kind: str) -> str:
    """Times are texts, or milliseconds of the epoch as texts."""
    if not kind.startswith("TIMESTAMP"):
        return f'"{name}"::{kind}'
    return f'coalesce(try_cast("{name}" as timestamp), make_timestamp_ms(try_cast("{name}" as bigint)))::{kind}'
