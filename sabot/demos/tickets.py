"""The tickets of a demo as a source without an end, so that the app of the demo runs as long as somebody looks at its console."""

import time

from sabot._cython.arrow.batch import Batch
from sabot.connectors.files import NdjsonSource


class OpenTickets(NdjsonSource):
    """A file of tickets that waits for further ones behind the last one."""

    @property
    def exhausted(self) -> bool:
        return False

    def read_batch(self, max_rows: int, timeout: float) -> Batch | None:
        read = super().read_batch(max_rows, timeout)
        if read is None:
            time.sleep(timeout)
        return read
