import pyarrow as pa

def places(hashes: pa.UInt64Array) -> pa.UInt64Array:
    """Returns the sort key of each key in a database, as a number: the 10 bits of its key group, then the rest of the
    hash.
    """

def give_back() -> None:
    """Returns freed memory to the system; the C library (glibc) would keep it otherwise. Takes some milliseconds."""

class KeyFilter:
    """A Bloom filter over key hashes that grows. It takes about 2 bytes per key; it accepts one in fifty missing
    keys.
    """

    def __init__(self) -> None: ...
    def add(self, hashes: pa.UInt64Array) -> None: ...
    def candidates(self, hashes: pa.UInt64Array, rows: pa.Int32Array) -> pa.Int32Array:
        """Returns those of the rows, in order, whose hash may have been added. `hashes`: the hashes of all rows."""
    @property
    def nbytes(self) -> int: ...
