"""Times as text: beside what Python's datetime writes."""

import datetime

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sabot._cython.text.times import write_times

FIELDS = [("Y", 0, 4), ("m", 5, 2), ("d", 8, 2), ("H", 11, 2), ("M", 14, 2), ("S", 17, 2), ("f", 20, 6)]
TEXT = b"....-..-.. ..:..:..,......"
EPOCH = datetime.datetime(1970, 1, 1)
MOMENTS = st.datetimes(datetime.datetime(1, 1, 1), datetime.datetime(9999, 12, 31, 23, 59, 59, 999999))
NEAR = st.integers(-3, 3).map(lambda step: EPOCH + datetime.timedelta(microseconds=400_000 * step))


def micros(moment: datetime.datetime) -> int:
    return (moment - EPOCH) // datetime.timedelta(microseconds=1)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(st.none(), MOMENTS, NEAR)), st.integers(0, 9))
def test_each_time_is_what_datetime_writes(moments, offset):
    times = pa.array([None if each is None else micros(each) for each in moments], pa.timestamp("us")).slice(offset)
    made = write_times(times, 1_000_000, TEXT, FIELDS)
    made.validate(full=True)
    expected = [None if each is None else f"{each:%Y-%m-%d %H:%M:%S,%f}".rjust(26, "0") for each in moments[offset:]]
    assert made.to_pylist() == expected


@pytest.mark.slow  # half a second of a core
def test_leap_days_are_where_the_calendar_has_them():
    days = np.arange(-719_528, 2_932_897, 7)  # each seventh of all days that there are
    made = write_times(pa.array(days * 86_400), 1, b"....-..-..", FIELDS[:3])
    assert made.to_pylist() == np.datetime_as_string(days.astype("datetime64[D]")).tolist()


@pytest.mark.parametrize("per_second", [1, 1_000, 1_000_000_000])
@pytest.mark.parametrize("digits", [1, 3, 9])
def test_fractions_are_rounded_down_in_any_unit(per_second, digits):
    made = write_times(pa.array([-1, 0, per_second + per_second // 4]), per_second, b"." * digits, [("f", 0, digits)])
    parts = [per_second - 1, 0, per_second // 4]
    assert made.to_pylist() == [f"{part * 10**9 // per_second:09}"[:digits] for part in parts]


@pytest.mark.parametrize("time", [-(2**63), 2**63 - 1])
def test_the_first_and_the_last_time_in_ns_are_written(time):
    made = write_times(pa.array([time, 0, time]), 1_000_000_000, TEXT, FIELDS)
    text = (
        np.datetime_as_string(np.array([time // 1000]).astype("datetime64[us]"))[0].replace("T", " ").replace(".", ",")
    )
    assert made.to_pylist() == [text, "1970-01-01 00:00:00,000000", text]


def test_a_year_without_four_digits_is_not_written():
    for time in (-62_167_219_201, 253_402_300_800):
        assert write_times(pa.array([0, time]), 1, TEXT, FIELDS) is None
        assert write_times(pa.array([0, time]).slice(0, 1), 1, TEXT, FIELDS) is not None
    assert write_times(pa.array([], pa.int64()), 1, TEXT, FIELDS).to_pylist() == []


@pytest.mark.parametrize(
    ("field", "complaint"),
    [
        (("Y", 0, 2), "'Y' with 2 digits"),
        (("f", 0, 10), "'f' with 10 digits"),
        (("d", 9, 2), "not within 10 bytes"),
        (("d", -1, 2), "at -1"),
    ],
)
def test_a_field_that_is_not_within_the_text_is_refused(field, complaint):
    with pytest.raises(ValueError, match=complaint):
        write_times(pa.array([0]), 1, b"." * 10, [field])
