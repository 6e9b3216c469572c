import pyarrow as pa

def select_rows(mask: pa.BooleanArray, selection: pa.Int32Array | None = None) -> pa.Int32Array:
    """The rows where the mask is true (null is not), of those that `selection` names; in order."""
