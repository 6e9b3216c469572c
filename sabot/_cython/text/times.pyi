from collections.abc import Sequence

import pyarrow as pa

def write_times(
    times: pa.Array, per_second: int, text: bytes, fields: Sequence[tuple[str, int, int]]
) -> pa.StringArray | None:
    """Returns times as texts of one width: `text` with the digits of each field at its place. Null if the time is
    null.

    `times`: int64, or a type stored as int64, since 1970. `per_second`: the units of the times per second: 1, 1,000,
    1,000,000 or 10**9. `fields`: (code, place in `text`, number of digits). Codes are Y (4 digits), m, d, H, M, S (2
    digits), and f (1 to 9 digits of the fraction of a second, rounded down).

    Returns None if a year is before 0 or after 9999, or if the texts have more than 2 GiB. Raises ValueError for
    another `per_second` and for a field that is not within `text`, TypeError for other times. The GIL is released.
    """
