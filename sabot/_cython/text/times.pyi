from collections.abc import Sequence

import pyarrow as pa

def write_times(
    times: pa.Array, per_second: int, text: bytes, fields: Sequence[tuple[str, int, int]]
) -> pa.StringArray | None:
    """Times as texts of one width: `text`, in which the digits of each field stand at its place. Null where the time is null.

    times: int64, or a type stored as such, since 1970. per_second: how many of them are a second, a power of ten up to 10**9.
    fields: (code, place in `text`, number of digits). Codes are Y (4 digits), m, d, H, M, S (2 digits), and f (1 to 9 digits of the
    fraction of a second, rounded down).

    None: a year is before 0 or after 9999, or the texts have more than 2 GiB. Raises ValueError for a field that is not within `text`. The
    GIL is released over the rows.
    """
