from typing import Any

import pyarrow as pa

def split_part(texts: pa.Array[Any], by: bytes, index: int) -> pa.StringArray:
    """Splits each text at each `by` and returns its part `index`, counted from the end if negative. Null if the text
    is null or has fewer parts. Raises TypeError unless `texts` are strings, ValueError for an empty `by`. The GIL is
    released.
    """
