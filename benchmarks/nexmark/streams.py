"""The streams that the queries read: people, auctions and bids of an app, and the side table."""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import pyarrow as pa

from sabot import App, Source, Stream, col
from sabot.connectors.files import CsvSource

from .generator import SCHEMAS

SIDE_ROWS = 10_000
SIDE_SCHEMA = pa.schema([("key", pa.int64()), ("value", pa.string())])


class Nexmark:
    """The inputs of a query, in the columns of the standard. A query reads those that it names.

    sources: by kind. side: the file that `write_side` has made.
    """

    def __init__(self, app: App, sources: Mapping[str, Source], side: Path) -> None:
        self._app, self._sources, self._side = app, sources, side

    @cached_property
    def person(self) -> Stream:
        return self._stream("person")

    @cached_property
    def auction(self) -> Stream:
        return self._stream("auction")

    @cached_property
    def bid(self) -> Stream:
        return self._stream("bid")

    @cached_property
    def side(self) -> Stream:
        """A bounded table: `key` 0 to 9,999, and `value`, the same as a text."""
        return self._app.stream(CsvSource(self._side), schema=SIDE_SCHEMA)

    def _stream(self, kind: str) -> Stream:
        return self._app.stream(self._sources[kind], schema=SCHEMAS[kind], time="dateTime")

    def bids_in_time(self) -> Stream:
        """Auctions, each with every bid that came between its opening and its expiry: the beginning of q4, q6 and q9.

        The columns of the auction, then those of the bid, `bid_dateTime` and `bid_extra` among them.
        """
        bids = self.bid.rename({"dateTime": "bid_dateTime", "extra": "bid_extra"})
        pairs = self.auction.join(bids, left_on="id", right_on="auction")
        return pairs.filter(col("bid_dateTime").between(col("dateTime"), col("expires")))


def write_side(path: Path) -> None:
    """Makes the file of the side table."""
    path.write_text("key,value\n" + "".join(f"{key},{key}\n" for key in range(SIDE_ROWS)))
