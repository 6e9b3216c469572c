"""One suite for every state backend: what `sabot.engine.state.base` promises, through the public names."""

import asyncio
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sabot._cython.text.records import state_key
from sabot.clock import ManualClock
from sabot.engine.state import (
    AggregatingState,
    BackendConfig,
    ListState,
    MapState,
    MemoryBackend,
    ReducingState,
    RocksDBBackend,
    Snapshot,
    StateBackend,
    ValueState,
    load_snapshot,
)
from sabot.errors import CorruptCheckpoint, UserError


class UsersBackend(MemoryBackend):
    """A user's own: it counts its snapshots."""

    snapshots = 0

    async def snapshot(self):
        self.snapshots += 1
        return await super().snapshot()


KINDS = ["memory", "rocksdb", "users"]
Open = Callable[..., StateBackend]


def opened(kind: str, path: Path, clock: ManualClock, **config) -> StateBackend:
    if kind == "rocksdb":
        return RocksDBBackend(BackendConfig("rocksdb", path, **config), clock=clock)
    cls = MemoryBackend if kind == "memory" else UsersBackend
    return cls(BackendConfig("memory", **config), clock=clock)


@pytest.fixture(params=KINDS)
def kind(request) -> str:
    return request.param


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def open_(kind: str, tmp_path: Path, clock: ManualClock) -> AsyncIterator[Open]:
    made = []

    def open_one(other: str = "", **config) -> StateBackend:
        made.append(opened(other or kind, tmp_path / f"backend-{len(made)}", clock, **config))
        return made[-1]

    yield open_one
    for backend in made:
        await backend.close()


@pytest.fixture
async def backend(open_: Open) -> StateBackend:
    return open_()


def contents(backend: StateBackend) -> dict[str, list[tuple[bytes, bytes]]]:
    return {namespace: list(backend.items(namespace)) for namespace in backend.namespaces()}


# --- bytes -----------------------------------------------------------------------------------------------------------


def test_what_was_written_is_read_until_it_is_deleted(backend):
    assert backend.read("a", b"k") is None
    backend.write("a", b"k", b"1")
    assert backend.read("a", b"k") == b"1"
    backend.write("a", b"k", b"")
    assert backend.read("a", b"k") == b""
    backend.write("a", b"k", None)
    assert backend.read("a", b"k") is None
    backend.write("a", b"never", None)
    assert backend.namespaces() == []


def test_bulk_reads_and_writes_keep_their_order(backend):
    backend.write_many("a", [b"1", b"2", b"3", b"1"], [b"x", b"y", b"z", b"last wins"])
    backend.write_many("a", [b"2"], [None])
    assert backend.read_many("a", [b"3", b"2", b"1", b"none", b"3"]) == [b"z", None, b"last wins", None, b"z"]
    assert backend.read_many("a", []) == []
    assert backend.read_many("other", [b"1"]) == [None]
    with pytest.raises(ValueError):
        backend.write_many("a", [b"1"], [])


async def test_namespaces_do_not_see_each_other(backend):
    for namespace in ("default", "b", "ünï/code", ""):
        backend.write(namespace, b"k", namespace.encode())
    await backend.snapshot()
    assert backend.namespaces() == sorted(["default", "b", "ünï/code", ""])
    assert backend.read("ünï/code", b"k") == "ünï/code".encode()
    backend.write("b", b"k", None)
    assert backend.namespaces() == sorted(["default", "ünï/code", ""])


async def test_items_come_in_key_order_wherever_they_are_kept(backend):
    backend.write_many("a", [b"d", b"b", b"a"], [b"1", b"2", b"3"])
    await backend.snapshot()
    backend.write_many("a", [b"c", b"b", b"a", b"e"], [b"4", b"new", None, b"5"])
    seen = backend.items("a")
    backend.write("a", b"late", b"not seen")
    assert list(seen) == [(b"b", b"new"), (b"c", b"4"), (b"d", b"1"), (b"e", b"5")]
    assert list(backend.items("never")) == []


def test_statistics_count_keys_and_bytes(backend):
    assert backend.statistics()["keys"] == 0
    backend.write_many("a", [b"%03d" % n for n in range(100)], [b"x" * 97] * 100)
    figures = backend.statistics()
    assert figures["keys"] == 100
    assert figures["bytes"] >= 10_000


@pytest.mark.one_in(3, "a tenth of a second of a core each")
async def test_a_value_of_10_mb_survives_a_restore(backend):
    big = os.urandom(10_000_000)
    backend.write("a", b"big", big)
    snapshot = await backend.snapshot()
    backend.write("a", b"big", None)
    await backend.restore(snapshot)
    assert backend.read("a", b"big") == big


async def test_a_closed_backend_says_so(backend):
    backend.write("a", b"k", b"1")
    await backend.close()
    await backend.close()
    for call in (
        lambda: backend.read("a", b"k"),
        lambda: backend.write("a", b"k", b"2"),
        lambda: backend.read_many("a", [b"k"]),
        lambda: backend.write_many("a", [b"k"], [b"2"]),
    ):
        with pytest.raises(UserError, match="closed"):
            call()
    with pytest.raises(UserError, match="closed"):
        await backend.snapshot()


# --- kinds of state --------------------------------------------------------------------------------------------------

VALUES = [
    True,
    False,
    0,
    -1,
    2**63,
    2**64 - 1,
    -(2**63),
    1.0,
    -0.5,
    "",
    "héé\x00",
    b"",
    b"\x00\xff",
    [],
    [1, "a", [None]],
    {},
    {"a": {"b": [1.5, b"x"]}, 2: None, b"k": True},
]


@pytest.mark.one_in(4, "hundredths of a second of a core each")
@pytest.mark.parametrize("value", VALUES, ids=repr)
async def test_the_same_value_and_type_come_back(backend, value):
    state = ValueState(backend, "v")
    await state.put("k", value)
    assert repr(await state.get("k")) == repr(value)
    await backend.restore(await backend.snapshot())
    assert repr(await state.get("k")) == repr(value)


async def test_a_tuple_comes_back_as_a_list(backend):
    await ValueState(backend, "v").put("k", (1, (2, 3)))
    assert await ValueState(backend, "v").get("k") == [1, [2, 3]]


async def test_what_is_read_is_a_copy(backend):
    state = ValueState(backend, "v")
    mine = {"n": [1]}
    await state.put("k", mine)
    mine["n"].append(2)
    got = await state.get("k")
    got["n"].append(3)
    assert await state.get("k") == {"n": [1]}


async def test_none_and_delete_make_a_value_absent(backend):
    state = ValueState(backend, "v")
    assert await state.get("k") is None
    await state.put("k", 1)
    await state.put("k", None)
    assert await state.get("k") is None
    await state.put("k", 1)
    await state.delete("k")
    await state.delete("k")
    assert await state.get("k") is None
    assert backend.namespaces() == []


async def test_keys_of_different_types_are_different_keys(backend):
    state = ValueState(backend, "v")
    keys = [None, True, 1, 1.0, "1", b"1", ("1",), ("1", 1), ""]
    for n, key in enumerate(keys):
        await state.put(key, n)
    assert [await state.get(key) for key in keys] == list(range(len(keys)))


async def test_a_list_keeps_the_order_of_its_entries(backend):
    state = ListState(backend, "l")
    assert await state.get("k") == []
    for n in range(300):
        await state.add("k", {"n": n})
    await state.add("other", None)
    assert await state.get("k") == [{"n": n} for n in range(300)]
    assert await state.get("other") == [None]
    await state.delete("k")
    assert await state.get("k") == []
    await state.delete("other")
    assert backend.namespaces() == []


async def test_a_map_keeps_its_fields(backend):
    state = MapState(backend, "m")
    assert await state.items("k") == {}
    assert await state.get("k", "f") is None
    model = {}
    for n in range(50):
        for field in (n % 17, f"f{n}", ("t", (n % 3,)), None):
            model[field] = [n]
            await state.put("k", field, [n])
    for field in (0, "f49", ("t", (1,)), None, "f0"):
        del model[field]
        await state.delete("k", field)
    await state.delete("k", "never there")
    await state.put("k", "f7", None)
    del model["f7"]
    await backend.restore(await backend.snapshot())
    assert await state.items("k") == model
    assert await state.get("k", ("t", (2,))) == model[("t", (2,))]
    await state.delete("k")
    assert await state.items("k") == {}
    assert backend.namespaces() == []


async def test_reducing_and_aggregating_states_fold_what_is_added(backend):
    biggest = ReducingState(backend, "r", reduce=max)
    mean = AggregatingState(
        backend,
        "a",
        create=lambda: [0, 0],
        add=lambda acc, value: [acc[0] + value, acc[1] + 1],
        result=lambda acc: acc[0] / acc[1],
    )
    assert await biggest.get("k") is None
    assert await mean.get("k") is None
    for value in (3, 9, 6):
        await biggest.add("k", value)
        await mean.add("k", value)
    assert (await biggest.get("k"), await mean.get("k")) == (9, 6.0)
    await biggest.delete("k")
    await mean.delete("k")
    assert (await biggest.get("k"), await mean.get("k")) == (None, None)


async def test_a_scope_keeps_the_keys_of_one_agent_key_apart(backend):
    ada, bob = (ValueState(backend, "v", scope=state_key(name)) for name in ("ada", "bob"))
    await ada.put("seen", 1)
    await bob.put("seen", 2)
    assert (await ada.get("seen"), await bob.get("seen")) == (1, 2)
    assert await ValueState(backend, "v").get("seen") is None
    ada.put_many(pa.array(["x", "y"]), pa.array([10, 20]))
    assert await ada.get("y") == 20
    assert bob.get_many(pa.array(["seen", "y"])).to_pylist() == [2, None]


async def test_arrays_of_keys_and_values_go_in_and_out(backend):
    state = ValueState(backend, "v")
    await state.put(2, 7)
    state.put_many(pa.array([1, 2, 3, 3]), pa.array([1.5, None, 3.0, 4.5]))
    got = state.get_many(pa.array([3, 2, 1, 9]))
    assert got.to_pylist() == [4.5, None, 1.5, None]
    assert await state.get(3) == 4.5
    with pytest.raises(UserError, match="'v'"):
        state.put_many(pa.array([1]), pa.array([1, 2]))
    with pytest.raises(UserError, match="'v'"):
        state.get_many(pa.array([1, None]))


# --- snapshots -------------------------------------------------------------------------------------------------------


async def test_a_snapshot_holds_what_was_written_before_the_call_and_nothing_after(backend):
    backend.write_many("a", [b"1", b"2", b"3"], [b"x", b"y", b"z"])
    task = asyncio.ensure_future(backend.snapshot())
    await asyncio.sleep(0)  # the task begins: its cut is taken
    backend.write("a", b"1", b"after")
    backend.write("a", b"2", None)
    backend.write("b", b"new", b"after")
    snapshot = await task
    assert backend.read_many("a", [b"1", b"2", b"3"]) == [b"after", None, b"z"]
    after = contents(backend)
    for _ in range(2):  # a snapshot can be restored again
        await backend.restore(snapshot)
        assert contents(backend) == {"a": [(b"1", b"x"), (b"2", b"y"), (b"3", b"z")]}
        backend.write("a", b"1", b"and written over")
    assert after != contents(backend)


async def test_snapshots_have_growing_ids(backend):
    first, second = await backend.snapshot(), await backend.snapshot()
    assert 0 < first.id < second.id


async def test_two_snapshots_at_once_each_have_their_own_cut(backend):
    backend.write("a", b"k", b"1")
    first = asyncio.ensure_future(backend.snapshot())
    await asyncio.sleep(0)
    backend.write("a", b"k", b"2")
    second = asyncio.ensure_future(backend.snapshot())
    await asyncio.sleep(0)
    backend.write("a", b"k", b"3")
    one, two = await asyncio.gather(first, second)
    await backend.restore(two)
    assert backend.read("a", b"k") == b"2"
    await backend.restore(one)
    assert backend.read("a", b"k") == b"1"


async def test_a_cancelled_snapshot_loses_nothing(backend):
    backend.write("a", b"k", b"1")
    task = asyncio.ensure_future(backend.snapshot())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert backend.read("a", b"k") == b"1"
    snapshot = await backend.snapshot()
    backend.write("a", b"k", b"2")
    await backend.restore(snapshot)
    assert contents(backend) == {"a": [(b"k", b"1")]}


@pytest.mark.one_in(3, "a tenth of a second of a core each")
@pytest.mark.parametrize("target", KINDS[:2])
async def test_a_saved_snapshot_can_be_loaded_into_any_backend(open_, tmp_path, target):
    backend = open_()
    written = {b"%05d" % n: b"v%d" % n for n in range(3000)}
    backend.write_many("a", list(written), list(written.values()))
    backend.write("b/ü", b"\x00", b"\xff" * 1000)
    expected = contents(backend)
    snapshot = await backend.snapshot()
    size = await snapshot.save(tmp_path / "saved" / "1")
    assert size >= 1000
    assert snapshot.path == tmp_path / "saved" / "1"
    snapshot.discard()
    snapshot.discard()
    backend.write("a", b"00000", b"later")
    await backend.close()

    other = open_(target)
    other.write("a", b"forgotten", b"1")
    for _ in range(2):
        await other.restore(load_snapshot(tmp_path / "saved" / "1"))
        assert contents(other) == expected
        other.write_many("a", list(written), [None] * len(written))
        await other.snapshot()
    again = await other.snapshot()
    await again.save(tmp_path / "saved" / "2")
    assert {(n, k) for n, k, _ in load_snapshot(tmp_path / "saved" / "2").entries()} == {("b/ü", b"\x00")}


async def test_a_cancelled_restore_has_ended_when_it_raises(backend, monkeypatch):
    """It went on in a backend that its caller had closed. The next start found the files locked, and called them corrupt."""
    backend.write("a", b"k", b"saved")
    snapshot = await backend.snapshot()
    backend.write("a", b"k", b"later")
    begun, go_on, load = threading.Event(), threading.Event(), backend.load

    def slow(parts):
        begun.set()
        assert go_on.wait(60)
        load(parts)

    monkeypatch.setattr(backend, "load", slow)
    restoring = asyncio.create_task(backend.restore(snapshot))
    await asyncio.to_thread(begun.wait, 60)
    restoring.cancel()
    for _ in range(3):
        await asyncio.sleep(0)
    assert not restoring.done()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await restoring
    assert backend.read("a", b"k") == b"saved"


async def test_a_failed_save_leaves_the_backend_working_and_nothing_behind(backend, tmp_path):
    backend.write("a", b"k", b"1")
    snapshot = await backend.snapshot()
    blocker = tmp_path / "blocker"
    blocker.write_text("a file where the directory should be")
    for directory in (blocker, blocker / "below"):
        with pytest.raises(OSError):
            await snapshot.save(directory)
    assert blocker.read_text() == "a file where the directory should be"
    assert [path.name for path in tmp_path.iterdir() if "partial" in path.name] == []
    backend.write("a", b"k", b"2")
    await snapshot.save(tmp_path / "good")
    await backend.restore(load_snapshot(tmp_path / "good"))
    assert backend.read("a", b"k") == b"1"


FULL_DISK = """
import asyncio, os, resource, signal, sys
from pathlib import Path
from sabot.errors import CheckpointFailed
from sabot.engine.state import BackendConfig, MemoryBackend, RocksDBBackend, load_snapshot

async def main(kind, base):
    config = BackendConfig(kind, base / "state" if kind == "rocksdb" else None)
    backend = (RocksDBBackend if kind == "rocksdb" else MemoryBackend)(config)
    values = {b"%d" % n: os.urandom(1000) for n in range(1000)}
    backend.write_many("a", list(values), list(values.values()))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, resource.RLIM_INFINITY))
    for attempt in range(2):
        try:
            await (await backend.snapshot()).save(base / "saved")
        except (CheckpointFailed, OSError) as error:
            print("failed", type(error).__name__)
        assert not list(base.glob("saved*")), list(base.iterdir())
        assert backend.read_many("a", list(values)) == list(values.values())
        values[b"later"] = b"%d" % attempt
        backend.write("a", b"later", b"%d" % attempt)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    await (await backend.snapshot()).save(base / "saved")
    await backend.restore(load_snapshot(base / "saved"))
    assert dict(backend.items("a")) == values
    await backend.close()
    print("recovered")

asyncio.run(main(sys.argv[1], Path(sys.argv[2])))
"""


@pytest.mark.slow  # a second of a core, or more
@pytest.mark.parametrize("backend_type", ["memory", "rocksdb"])
def test_a_full_disk_fails_the_snapshot_and_the_next_one_works(backend_type, tmp_path):
    run = subprocess.run(
        [sys.executable, "-c", FULL_DISK, backend_type, str(tmp_path)], capture_output=True, text=True, timeout=60
    )
    assert run.returncode == 0, run.stderr
    lines = run.stdout.split("\n")
    assert [line.split()[0] for line in lines[:3]] == ["failed", "failed", "recovered"], run.stdout


async def test_a_damaged_snapshot_is_refused_by_name_and_changes_nothing(backend, tmp_path):
    saved = tmp_path / "saved"
    backend.write_many("a", [b"%d" % n for n in range(1000)], [b"x" * 100] * 1000)
    await (await backend.snapshot()).save(saved)
    backend.write("a", b"0", b"now")
    before = contents(backend)
    damaged = [file for file in saved.iterdir() if file.stat().st_size]
    assert damaged
    for file in damaged:
        whole = file.read_bytes()
        file.unlink()  # not written in place: it may be a link to a file of the backend
        file.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(CorruptCheckpoint, match=str(saved)):
            await backend.restore(load_snapshot(saved))
        file.write_bytes(whole)
    snapshot = load_snapshot(saved)
    shutil.rmtree(saved)
    with pytest.raises(CorruptCheckpoint, match=str(saved)):
        await backend.restore(snapshot)
    with pytest.raises(CorruptCheckpoint, match=str(saved)):
        load_snapshot(saved)
    assert contents(backend) == before


@pytest.mark.one_in(3, "half a second of a core each")
async def test_a_hundred_thousand_keys_fit_through_a_small_budget(open_):
    backend = open_(memory_budget="2MB")
    for start in range(0, 100_000, 1000):
        keys = [b"%06d" % n for n in range(start, start + 1000)]
        backend.write_many("a", keys, [key + b"=" for key in keys])
    for n in range(0, 100_000, 1000):
        assert backend.read("a", b"%06d" % n) == b"%06d=" % n
    keys = [b"%06d" % n for n in range(99_999, -1, -7)]
    assert backend.read_many("a", keys) == [key + b"=" for key in keys]
    snapshot = await backend.snapshot()
    backend.write_many("a", keys, [None] * len(keys))
    assert sum(1 for _ in backend.items("a")) == 100_000 - len(keys)
    await backend.restore(snapshot)
    assert sum(1 for _ in backend.items("a")) == 100_000
    if "cached_bytes" in (figures := backend.statistics()):
        assert figures["cached_bytes"] + figures["dirty_bytes"] < 2_000_000


# --- time to live ----------------------------------------------------------------------------------------------------


async def test_a_value_expires_once_its_time_has_passed(open_, clock):
    backend = open_(ttl="10s")
    state = ValueState(backend, "v")
    await state.put("old", 1)
    clock.advance(6)
    await state.put("young", 2)
    await backend.snapshot()
    clock.advance(3.999)
    assert (await state.get("old"), await state.get("young")) == (1, 2)
    clock.advance(0.001)
    assert (await state.get("old"), await state.get("young")) == (None, 2)
    assert state.get_many(pa.array(["old", "young"])).to_pylist() == [None, 2]
    assert len(list(backend.items("v"))) == 1
    await state.put("old", 3)
    clock.advance(6)
    assert (await state.get("old"), await state.get("young")) == (3, None)


@pytest.mark.one_in(3, "a tenth of a second of a core each")
async def test_what_has_expired_is_removed_at_a_snapshot(open_, clock, tmp_path):
    backend = open_(ttl=1)
    for n in range(10):
        backend.write_many(f"n{n % 2}", [b"%d-%d" % (n, k) for k in range(100)], [b"x"] * 100)
        backend.write("n0", b"refreshed", b"%d" % n)
        await backend.snapshot()
        clock.advance(0.25)
    snapshot = await backend.snapshot()
    alive = {key for _, key, _ in snapshot.entries()}
    assert alive == {b"refreshed", *(b"%d-%d" % (n, k) for n in (7, 8, 9) for k in range(100))}
    clock.advance(1)
    assert list((await backend.snapshot()).entries()) == []
    assert backend.namespaces() == []


@pytest.mark.one_in(3, "hundredths of a second of a core each")
@pytest.mark.parametrize("target", KINDS[:2])
async def test_a_restored_value_keeps_its_expiry(open_, clock, tmp_path, target):
    backend = open_(ttl="10s")
    backend.write("v", b"first", b"1")
    clock.advance(4)
    backend.write("v", b"second", b"2")
    await (await backend.snapshot()).save(tmp_path / "saved")
    other = open_(target, ttl="99s")
    await other.restore(load_snapshot(tmp_path / "saved"))
    clock.advance(6)
    assert contents(other) == {"v": [(b"second", b"2")]}
    assert [key for _, key, _ in (await other.snapshot()).entries()] == [b"second"]
    clock.advance(4)
    assert contents(other) == {}


@pytest.mark.one_in(3, "hundredths of a second of a core each")
@pytest.mark.parametrize("target", KINDS[:2])
async def test_an_app_may_gain_or_lose_its_ttl_between_two_runs(open_, clock, target):
    plain, expiring = open_(), open_(target, ttl="10s")
    plain.write("v", b"k", b"1")
    await expiring.restore(await plain.snapshot())
    clock.advance(9)
    assert expiring.read("v", b"k") == b"1"
    await plain.restore(await expiring.snapshot())
    clock.advance(100)
    assert expiring.read("v", b"k") is None
    assert plain.read("v", b"k") == b"1"


async def test_entries_of_lists_and_maps_expire_one_by_one(open_, clock):
    backend = open_(ttl="10s")
    entries, fields = ListState(backend, "l"), MapState(backend, "m")
    for n in range(5):
        await entries.add("k", n)
        await fields.put("k", n, n)
        await fields.put("k", "kept", n)
        clock.advance(4)
    await fields.delete("k", 3)
    assert await entries.get("k") == [3, 4]
    assert await fields.items("k") == {4: 4, "kept": 4}
    await entries.add("k", 5)
    await fields.put("k", 5, 5)
    assert await entries.get("k") == [3, 4, 5]
    assert await fields.items("k") == {4: 4, "kept": 4, 5: 5}
    clock.advance(20)
    assert await entries.get("k") == []
    assert await fields.items("k") == {}
    await backend.snapshot()
    assert backend.namespaces() == []


# --- a model ---------------------------------------------------------------------------------------------------------

KEYS = st.integers(0, 20).map(lambda n: b"k%d" % n)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.sampled_from("ab"), KEYS, st.none() | st.binary(max_size=4)),
        st.tuples(
            st.just("many"),
            st.sampled_from("ab"),
            st.lists(st.tuples(KEYS, st.none() | st.binary(max_size=4)), max_size=9),
        ),
        st.tuples(st.just("snapshot")),
        st.tuples(st.just("saved")),
        st.tuples(st.just("restore"), st.integers(0, 9)),
        st.tuples(st.just("spill")),
    ),
    max_size=30,
)


@pytest.mark.parametrize("kind", KINDS[:2])
@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(steps=STEPS)
def test_a_backend_does_what_a_dict_does(kind, tmp_path_factory, steps):
    asyncio.run(_follow(kind, tmp_path_factory.mktemp("model"), steps))


async def _follow(kind: str, path: Path, steps) -> None:
    backend = opened(kind, path / "state", ManualClock(), memory_budget="1MB")
    model: dict[str, dict[bytes, bytes]] = {"a": {}, "b": {}}
    taken: list[tuple[Snapshot, dict]] = []
    for number, step in enumerate(steps):
        match step:
            case "write", namespace, key, value:
                backend.write(namespace, key, value)
                model[namespace][key] = value
            case "many", namespace, pairs:
                backend.write_many(namespace, [k for k, _ in pairs], [v for _, v in pairs])
                model[namespace].update(pairs)
            case ("snapshot",):
                taken.append((await backend.snapshot(), {n: dict(t) for n, t in model.items()}))
            case ("saved",):
                await (await backend.snapshot()).save(path / str(number))
                taken.append((load_snapshot(path / str(number)), {n: dict(t) for n, t in model.items()}))
            case "restore", which if taken:
                snapshot, was = taken[which % len(taken)]
                await backend.restore(snapshot)
                model = {n: dict(t) for n, t in was.items()}
            case ("spill",):
                if isinstance(backend, RocksDBBackend):
                    backend.write_many("c", [b"x"], [bytes(400_000)])  # more than a sixth of the budget
        for namespace, table in model.items():
            alive = {key: value for key, value in table.items() if value is not None}
            assert list(backend.items(namespace)) == sorted(alive.items())
            keys = [b"k%d" % n for n in range(21)]
            assert backend.read_many(namespace, keys) == [table.get(key) for key in keys]
            assert all(backend.read(namespace, key) == table.get(key) for key in keys[:3])
    await backend.close()
    shutil.rmtree(path)
