"""A sink that writes rows to the standard output."""

import re
import sys

import pyarrow as pa
import pyarrow.compute as pc

from sabot._cython.arrow.batch import Batch
from sabot.clock import SYSTEM_CLOCK
from sabot.codecs.json import JsonEncoder, TimesInJson
from sabot.codecs.records import to_records
from sabot.connectors.base import LostFloats, Sink

# characters that move the cursor of a terminal or change the direction of text; JSON escapes some of them
_CONTROLS = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")


class ConsoleSink(Sink):
    """A sink that writes each row as a line of JSON to `sys.stdout`, the object of that name at the time of the
    write. Characters that control a terminal are escaped.
    """

    format = None

    def __init__(self, name: str = "console", *, times: TimesInJson = "ms") -> None:
        """`times`: how dates and timestamps are written, as in `Json`."""
        self.name = name
        self._encoder = JsonEncoder(times)

    def check_types(self, schema: pa.Schema) -> None:
        """Accepts columns of all types."""

    def floats_lost(self, kind: pa.DataType) -> LostFloats:
        return "not_finite"

    def open(self) -> None:
        """There is nothing to open."""

    def write(self, batch: Batch) -> None:
        payloads = to_records(batch, round(SYSTEM_CLOCK.time() * 1000), encoder=self._encoder).column(0)
        together = pa.ListArray.from_arrays([0, len(payloads)], payloads.fill_null(b"null"))
        text = pc.binary_join(together, b"\n")[0].as_py().decode(errors="backslashreplace")
        sys.stdout.write(_CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", text) + "\n")
        sys.stdout.flush()

    def flush(self) -> None:
        """Does nothing: `write` flushes."""

    def close(self) -> None:
        """Does nothing: others write to the standard output too."""


def console() -> ConsoleSink:
    """Returns a sink that writes the rows of a stream or agent to the standard output, as they come:
    `stream.to(console())`.
    """
    return ConsoleSink()
