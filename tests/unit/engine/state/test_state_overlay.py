"""The overlay: one call's writes, seen by it alone until it ends."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sabot.clock import ManualClock
from sabot.engine.state import BackendConfig, ListState, MapState, MemoryBackend, Overlay, ValueState
from sabot.errors import UserError


def test_a_call_reads_its_own_writes_and_nobody_else_does():
    base = MemoryBackend()
    base.write_many("n", [b"1", b"2"], [b"x", b"y"])
    call = Overlay(base)
    call.write("n", b"1", b"mine")
    call.write("n", b"2", None)
    call.write_many("other", [b"3", b"4"], [b"z", None])
    assert call.read_many("n", [b"1", b"2", b"5"]) == [b"mine", None, None]
    assert (call.read("n", b"1"), call.read("n", b"2"), call.read("other", b"3")) == (b"mine", None, b"z")
    assert base.read_many("n", [b"1", b"2"]) == [b"x", b"y"]
    assert base.namespaces() == ["n"]
    assert call.statistics() == {"keys": 4, "bytes": 9}


def test_apply_gives_the_writes_to_the_base_and_discard_forgets_them():
    base = MemoryBackend()
    call = Overlay(base)
    call.write("n", b"1", b"dropped")
    call.discard()
    assert call.read("n", b"1") is None
    call.write("n", b"1", b"kept")
    call.write_many("m", [b"2", b"3"], [b"kept", None])
    call.apply()
    assert [(n, *base.items(n)) for n in base.namespaces()] == [("m", (b"2", b"kept")), ("n", (b"1", b"kept"))]
    assert call.statistics()["keys"] == 0
    base.write("n", b"1", b"newer")
    call.apply()  # nothing left to apply
    assert base.read("n", b"1") == b"newer"


async def test_all_kinds_of_state_work_over_it():
    base = MemoryBackend()
    call = Overlay(base)
    value, entries, fields = ValueState(call, "v"), ListState(call, "l"), MapState(call, "m")
    await ListState(base, "l").add("k", 0)
    for n in (1, 2):
        await value.put("k", n)
        await entries.add("k", n)
        await fields.put("k", n, n)
    assert (await value.get("k"), await entries.get("k"), await fields.items("k")) == (2, [0, 1, 2], {1: 1, 2: 2})
    assert await ListState(base, "l").get("k") == [0]
    call.apply()
    assert await MapState(base, "m").items("k") == {1: 1, 2: 2}
    assert await ListState(base, "l").get("k") == [0, 1, 2]


def test_a_value_begins_to_age_when_it_is_applied():
    clock = ManualClock()
    call = Overlay(MemoryBackend(BackendConfig(ttl="10s"), clock=clock))
    assert call.expires
    call.write("n", b"k", b"1")
    clock.advance(50)
    assert call.read("n", b"k") == b"1"
    call.apply()
    clock.advance(9)
    assert call.read("n", b"k") == b"1"
    clock.advance(1)
    assert call.read("n", b"k") is None


async def test_what_concerns_the_whole_backend_is_refused():
    base = MemoryBackend()
    call = Overlay(base)
    for method in (lambda: call.items("n"), call.namespaces):
        with pytest.raises(UserError, match="one call"):
            method()
    snapshot = await base.snapshot()
    for coroutine in (call.snapshot(), call.restore(snapshot), call.close()):
        with pytest.raises(UserError, match="one call"):
            await coroutine


OPS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from("ab"), st.sampled_from([b"1", b"2", b"3"]), st.none() | st.binary(max_size=2)),
        st.sampled_from(["apply", "discard"]),
    )
)


@given(OPS)
def test_an_overlay_is_a_dict_over_a_dict(steps):
    base = MemoryBackend()
    call = Overlay(base)
    below, above = {}, {}
    for step in steps:
        if step == "apply":
            call.apply()
            below.update(above)
            above.clear()
        elif step == "discard":
            call.discard()
            above.clear()
        else:
            namespace, key, value = step
            call.write(namespace, key, value)
            above[namespace, key] = value
        for namespace in "ab":
            for key in (b"1", b"2", b"3"):
                assert base.read(namespace, key) == below.get((namespace, key))
                assert call.read(namespace, key) == {**below, **above}.get((namespace, key))
