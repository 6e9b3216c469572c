"""A process that delivers parts into PostgreSQL until it is killed. Arguments: address, table, parts, pause ("part" or "").

Part n has the rows n*100 to n*100+99. Prints "claimed <token>" and then the number of each part that is delivered. With a pause it
stops itself (SIGSTOP) within part 2, with the rows sent and the transaction open.
"""

import os
import signal
import sys

import pyarrow as pa

from sabot import steps
from sabot.connectors.base import Track
from sabot.connectors.sql import SqlSink

TRACK = Track("app", "sink.1", "first")


class Pause:
    """Stops the process before the commit of a part."""

    commits = 0

    def before(self, name: str, what: str) -> None:
        if name == "commit":
            self.commits += 1
            if self.commits == 3:  # the claim, part 1, part 2
                print("stopping", flush=True)
                os.kill(os.getpid(), signal.SIGSTOP)

    def after(self, name: str, what: str) -> None:
        """Nothing."""

    def torn(self, name: str, what: str, size: int) -> int:
        return size


def main(url: str, table: str, parts: int, pause: str) -> None:
    if pause:
        steps.watch(Pause())
    sink = SqlSink(url, table)
    token = sink.claim(TRACK)
    there = 0 if token is None else token.seq
    print("claimed", there, flush=True)
    for seq in range(there + 1, parts + 1):
        sink.deliver(seq, [pa.record_batch({"part": [seq] * 100, "n": range(seq * 100, seq * 100 + 100)})])
        print(seq, flush=True)
    sink.close()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4])
