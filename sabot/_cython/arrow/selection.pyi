import pyarrow as pa

def select_rows(mask: pa.BooleanArray, selection: pa.Int32Array | None = None) -> pa.Int32Array:
    """Returns the row numbers in `selection` (or of all rows, for None) where the mask is true and not null, in
    order.

    Raises TypeError if the mask is not bool, IndexError if the selection has rows that the mask does not have.
    """
