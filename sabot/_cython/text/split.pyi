from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

def split_part(texts: pa.Array[Any], by: bytes, index: int) -> pa.StringArray:
    """Splits each text at each `by` and returns its part `index`, counted from the end if negative. Null if the text
    is null or has fewer parts. Raises TypeError unless `texts` are strings, ValueError for an empty `by`. The GIL is
    released.
    """

def element_end(data: Any, most: int = 0) -> int:
    """Returns the position in a buffer behind the last comma between elements of a JSON array, or behind the closing
    bracket of the array; 0 if there is neither. `data` begins in the array and outside of an element.

    `most`: stops behind that many elements; 0: at the end. The GIL is released.
    """

def elements(data: Any) -> tuple[pa.BinaryArray, npt.NDArray[np.int64], int]:
    """Returns the elements of a JSON array without the blanks around them, the position of each in `data`, and the
    position behind the closing bracket, or 0 if the bracket is not there.

    `data` begins in the array and outside of an element. A blank element is an empty one, except before the closing
    bracket and at the end of `data`. The GIL is released.
    """

def may_have_codes(data: Any, delimiter: bytes, wanted: bytes) -> bool:
    """Returns False if no wanted field of these records of CSV is a code: a whole number as no program writes it, such as
    01234, +4930123 or 0x1F. True is no promise. `data`: a buffer of whole records. `wanted`: for each field of a
    record, 1 if it is looked at, else 0. The GIL is released.
    """
