"""The ids that payloads begin with."""

import pyarrow as pa
import pytest

from sabot._cython.binary.wire import schema_ids


def test_each_id_comes_once_and_each_payload_says_which_it_has() -> None:
    some = [b"\0\0\0\0\x07x", b"\0\xff\xff\xff\xff", b"\0\0\0\0\x07", None, b"\0\0\0\x07", b"\x01\0\0\0\x07", b""]
    ids, which = schema_ids(pa.array([b"no", *some], pa.binary()).slice(1))
    assert ids == [7, 2**32 - 1, None]
    assert which is not None
    assert which.to_pylist() == [0, 1, 0, 2, 2, 2, 2]


@pytest.mark.slow  # a second of a core
def test_where_all_have_one_id_nothing_is_said_of_each() -> None:
    assert schema_ids(pa.array([b"\0\0\0\0\x07x"] * 3)) == ([7], None)
    assert schema_ids(pa.array([], pa.binary())) == ([], None)
    with pytest.raises(TypeError, match="payloads must be binary, not int64"):
        schema_ids(pa.array([1]))
