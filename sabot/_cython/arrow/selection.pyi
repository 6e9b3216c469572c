import pyarrow as pa

def select_rows(mask: pa.BooleanArray, selection: pa.Int32Array | None = None) -> pa.Int32Array:
    """The rows of `selection` (None: of all) where the mask is true and not null, in order."""
