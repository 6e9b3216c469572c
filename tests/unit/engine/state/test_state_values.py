"""What the kinds of state refuse, and what they cost."""

import datetime
import decimal
import enum
import struct
import uuid
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sabot import Message
from sabot._cython.text.records import state_key
from sabot.engine.state import AggregatingState, ListState, MapState, MemoryBackend, ReducingState, ValueState
from sabot.errors import CorruptCheckpoint, UserError


@dataclass
class Point:
    x: int


class Colour(enum.IntEnum):
    RED = 1


REFUSED = [
    ({1, 2}, "set"),
    (frozenset(), "frozenset"),
    (object(), "object"),
    (Point(1), "Point"),
    (Colour.RED, "Colour"),
    (datetime.datetime(2026, 1, 1), "datetime"),
    (decimal.Decimal(1), "Decimal"),
    (uuid.UUID(int=1), "UUID"),
    (bytearray(b"x"), "bytearray"),
    (OrderedDict(a=1), "OrderedDict"),
    (np.float64(1.0), "float64"),
    (2**64, "int"),
    (-(2**63) - 1, "int"),
    ("\ud800", "surrogates"),
    (len, "builtin_function"),
]


@pytest.mark.parametrize(
    "nest", [lambda v: v, lambda v: [1, v], lambda v: {"a": {"b": (v,)}}], ids=["bare", "list", "dict"]
)
@pytest.mark.parametrize(("value", "named"), REFUSED, ids=[str(named) for _, named in REFUSED])
async def test_a_value_that_would_not_come_back_as_it_is_is_refused(value, named, nest):
    backend = MemoryBackend()
    with pytest.raises(UserError, match="'mine'") as error:
        await ValueState(backend, "mine").put("k", nest(value))
    assert named in str(error.value)
    assert backend.namespaces() == []


async def test_numpy_scalars_are_refused_with_what_to_write_instead():
    """Results of agents take them, so a program has them at hand."""
    state = ValueState(MemoryBackend(), "mine")
    for value in (np.int64(3), [np.float32(1.5)], {"a": np.array([1])}, {np.int64(3): 1}):
        with pytest.raises(UserError, match=r"item\(\)"):
            await state.put("n", value)
    with pytest.raises(UserError, match=r"item\(\)"):
        await state.get(np.int64(3))
    with pytest.raises(UserError, match=r"the key is int64.*str\(key\)"):
        Message(1, key=np.int64(3))


async def test_dict_keys_are_plain_and_cycles_are_refused():
    state = ValueState(MemoryBackend(), "mine")
    with pytest.raises(UserError, match="dict key of type tuple"):
        await state.put("k", {(1, 2): 3})
    cycle = []
    cycle.append(cycle)
    with pytest.raises(UserError, match="'mine'"):
        await state.put("k", cycle)


async def test_every_kind_refuses_and_keeps_what_it_had():
    backend = MemoryBackend()
    entries, fields = ListState(backend, "l"), MapState(backend, "m")
    await entries.add("k", 1)
    await fields.put("k", "f", 1)
    for call in (
        entries.add("k", {1}),
        fields.put("k", "f", {1}),
        fields.put("k", "g", {1}),
        fields.put("k", {}, 1),
    ):
        with pytest.raises(UserError):
            await call
    assert await entries.get("k") == [1]
    assert await fields.items("k") == {"f": 1}


@pytest.mark.parametrize(
    "key", [{}, {1}, 2**64, "\ud800", object()], ids=["dict", "set", "2**64", "surrogate", "object"]
)
async def test_a_key_that_cannot_be_encoded_names_the_namespace(key):
    for call in (ValueState(MemoryBackend(), "mine").get(key), MapState(MemoryBackend(), "mine").get("k", key)):
        with pytest.raises(UserError, match="'mine'"):
            await call


def test_arrays_that_state_cannot_keep_name_the_namespace():
    state = ValueState(MemoryBackend(), "mine")
    when = pa.array([datetime.datetime(2026, 1, 1)])
    with pytest.raises(UserError, match="'mine'"):
        state.put_many(pa.array([1]), when)
    with pytest.raises(UserError, match="'mine'"):
        state.put_many(when, pa.array([1]))


async def test_two_kinds_in_one_namespace_are_an_error_not_garbage():
    backend = MemoryBackend()
    await ListState(backend, "n").add("k", 1)
    with pytest.raises(UserError, match="a list"):
        await ValueState(backend, "n").get("k")
    with pytest.raises(UserError, match="a map"):
        await MapState(backend, "n").put("k", "f", 1)
    await ValueState(backend, "v").put("k", 5)
    with pytest.raises(UserError, match="a list"):
        await ListState(backend, "v").add("k", 1)


class CountingBackend(MemoryBackend):
    """Counts the keys that are read and written."""

    touched = 0

    def read(self, namespace, key):
        self.touched += 1
        return super().read(namespace, key)

    def write(self, namespace, key, value):
        self.touched += 1
        super().write(namespace, key, value)

    def read_many(self, namespace, keys):
        self.touched += len(keys)
        return super().read_many(namespace, keys)

    def write_many(self, namespace, keys, values):
        self.touched += len(keys)
        super().write_many(namespace, keys, values)


async def test_adding_costs_the_same_however_much_is_there():
    backend = CountingBackend()
    entries, fields = ListState(backend, "l"), MapState(backend, "m")
    costs = set()
    for n in range(500):
        backend.touched = 0
        await entries.add("k", n)
        await fields.put("k", n, n)
        costs.add(backend.touched)
    assert len(costs) == 1
    backend.touched = 0
    await fields.delete("k", 250)
    assert backend.touched < 12


FIELDS = st.one_of(st.none(), st.integers(-5, 5), st.sampled_from("ab"), st.tuples(st.integers(0, 2)))


@given(st.lists(st.tuples(FIELDS, st.none() | st.integers(0, 3))))
async def test_a_map_does_what_a_dict_does(steps):
    backend, model = MemoryBackend(), {}
    state = MapState(backend, "m")
    for field, value in steps:
        await state.put("k", field, value)
        if value is None:
            model.pop(field, None)
        else:
            model[field] = value
        assert await state.items("k") == model
        assert await state.get("k", field) == value
    assert backend.statistics()["keys"] == (2 * len(model) + 1 if model else 0)


async def test_a_list_or_map_that_says_it_has_more_than_there_is_is_corrupt_and_takes_no_memory():
    backend = MemoryBackend()
    for kind, state in ((1, ListState(backend, "notes")), (2, MapState(backend, "shops"))):
        head = struct.pack(">BBQQ", 0xD8, kind, 0, 2**40)  # of a checkpoint that somebody else has written
        backend.write(state._namespace, state_key("u1"), head)
        for read in (state.get("u1") if kind == 1 else state.items("u1"), state.delete("u1")):
            with pytest.raises(CorruptCheckpoint, match=r"of 1099511627776 entries lacks number 4095"):
                await read


async def test_a_function_that_changes_the_old_value_and_returns_nothing_is_refused():
    """None deletes a value: the state of the key was gone with each `add`."""
    backend = MemoryBackend()
    latest = ReducingState(backend, "latest", reduce=lambda old, new: old.update(new))
    await latest.add("k", {"a": 1})
    with pytest.raises(UserError, match="'latest': reduce returned None"):
        await latest.add("k", {"b": 2})
    assert await latest.get("k") == {"a": 1}
    seen = AggregatingState(backend, "seen", create=list, add=lambda made, new: made.append(new), result=len)
    with pytest.raises(UserError, match=r"'seen': add returned None.*return the new value"):
        await seen.add("k", 1)
