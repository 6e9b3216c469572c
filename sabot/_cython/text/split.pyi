from typing import Any

import pyarrow as pa

def split_part(texts: pa.Array[Any], by: bytes, index: int) -> pa.StringArray:
    """The part of each text that stands at this index (from the end if negative) when it is split at each `by`. Null where the text is
    null, or has fewer parts. Raises TypeError unless `texts` are strings, ValueError for an empty `by`. The GIL is released over the rows.
    """
