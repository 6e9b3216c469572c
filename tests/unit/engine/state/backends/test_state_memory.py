"""Cuts of state in memory: nothing is copied, whatever is written while they are read."""

import random
from itertools import islice

import pytest

from sabot.engine.state.backends.memory import MemoryBackend
from sabot.engine.state.base import BackendConfig
from sabot.errors import SabotError
from sabot.testing import ManualClock

TTL_MS = 50


class Model:
    """What a backend should hold: by key its value, and the time at which that expires."""

    def __init__(self, clock: ManualClock, ttl: bool) -> None:
        self._clock, self._ttl = clock, ttl
        self._values: dict[bytes, tuple[bytes, int]] = {}

    def _now(self) -> int:
        return int(self._clock.time() * 1000)

    def write(self, key: bytes, value: bytes | None) -> None:
        if value is None:
            self._values.pop(key, None)
        else:
            self._values[key] = value, self._now() + TTL_MS

    def alive(self) -> dict[bytes, bytes]:
        return {key: value for key, (value, end) in self._values.items() if not self._ttl or end > self._now()}


@pytest.mark.one_in(9, "a tenth of a second of a core each")
@pytest.mark.parametrize("ttl", [False, True], ids=["no ttl", "ttl"])
@pytest.mark.parametrize("seed", range(4))
def test_cuts_hold_what_was_there_while_the_backend_goes_on(seed, ttl):
    pick, clock = random.Random(seed), ManualClock()
    backend = MemoryBackend(BackendConfig(ttl=f"{TTL_MS}ms" if ttl else None), clock=clock)
    model, cuts, compared = Model(clock, ttl), [], 0
    for number in range(1500):
        what, value = pick.random(), b"%d" % number
        if what < 0.70:
            key = b"%d" % pick.randrange(60)
            deleted = pick.random() < 0.2
            backend.write("n", key, None if deleted else value)
            model.write(key, None if deleted else value)
        elif what < 0.80:
            keys = [b"%d" % pick.randrange(60) for _ in range(pick.randrange(12))]
            values = [pick.choice([None, value]) for _ in keys]
            backend.write_many("n", keys, values)
            for key, each in zip(keys, values, strict=True):
                model.write(key, each)
        elif what < 0.85:
            clock.advance(pick.randrange(TTL_MS) / 2000)
        elif what < 0.90:
            backend.remove_expired()
        elif what < 0.95 and len(cuts) < 12:
            cut = backend.cut()
            cuts.append((cut, model.alive(), cut.entries(), {}))
        elif cuts:
            cut, was, entries, read = cuts.pop(pick.randrange(len(cuts)))
            if pick.random() < 0.7:
                read.update((key, value) for _, key, value in entries)
                assert {key: value[8:] if ttl else value for key, value in read.items()} == was
                compared += 1
            if pick.random() < 0.7:
                cut.discard()
        for _, _, entries, read in cuts:  # who saves reads on meanwhile
            read.update((key, value) for _, key, value in islice(entries, 3))
        alive = model.alive()
        keys = [b"%d" % n for n in range(60)]
        assert backend.read_many("n", keys) == list(map(alive.get, keys))
        assert backend.read("n", keys[number % 60]) == alive.get(keys[number % 60])
        if number % 10 == 0:
            assert list(backend.items("n")) == sorted(alive.items())
            backend.remove_expired()
            assert backend.statistics()["keys"] == len(alive)
    assert compared > 20


def dict_of(backend: MemoryBackend) -> dict[bytes, bytes]:
    """The dict that has the values now."""
    return backend._tables["n"]


def test_a_cut_copies_nothing_and_there_is_one_dict_again_when_it_is_over():
    backend = MemoryBackend()
    backend.write_many("n", [b"%d" % n for n in range(1000)], [b"x"] * 1000)
    table = dict_of(backend)
    cut = backend.cut()
    assert cut.tables["n"][0] is table
    backend.write_many("n", [b"%d" % n for n in range(0, 1000, 2)], [b"y"] * 500)
    backend.write("n", b"1", None)
    assert len(table) == 1000
    assert set(table.values()) == {b"x"}
    cut.discard()
    for n in range(100):
        backend.write("n", b"%d" % n, b"z")
    assert dict_of(backend) is table
    assert sorted(table.items()) == list(backend.items("n"))
    assert len(table) == backend.statistics()["keys"] == 1000


def test_a_cut_that_nobody_has_any_more_is_over():
    backend = MemoryBackend()
    backend.write("n", b"k", b"1")
    table = dict_of(backend)
    cut = backend.cut()
    backend.write("n", b"k", b"2")
    assert dict_of(backend) is not table
    del cut
    backend.write("n", b"k", b"3")
    assert dict_of(backend) is table
    assert table == {b"k": b"3"}


def test_a_cut_that_is_discarded_while_it_is_saved_does_not_count_as_saved(tmp_path):
    backend = MemoryBackend()
    backend.write_many("n", [b"%d" % n for n in range(100)], [b"x"] * 100)
    cut = backend.cut()
    entries = cut.entries()
    next(entries)
    cut.discard()
    backend.write_many("n", [b"%d" % n for n in range(50, 150)], [b"y"] * 100)
    with pytest.raises(SabotError, match="discarded"):
        list(entries)
    with pytest.raises(SabotError, match="discarded"):
        cut.save(tmp_path)
