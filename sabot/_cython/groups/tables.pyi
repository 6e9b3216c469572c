import pyarrow as pa

def places(hashes: pa.UInt64Array) -> pa.UInt64Array:
    """Key hash -> where the key stands in a database: the 10 bits of its key group first, then the rest of the hash."""

def give_back() -> None:
    """Memory that was freed goes back to the system, where the C library keeps it otherwise (glibc). Takes some milliseconds."""

class KeyFilter:
    """A Bloom filter over key hashes that grows. About 2 bytes a key; one in fifty that are not there passes."""

    def __init__(self) -> None: ...
    def add(self, hashes: pa.UInt64Array) -> None: ...
    def candidates(self, hashes: pa.UInt64Array, rows: pa.Int32Array) -> pa.Int32Array:
        """Those of the rows whose hash was perhaps added, in order. `hashes` is of all rows."""
    @property
    def nbytes(self) -> int: ...
