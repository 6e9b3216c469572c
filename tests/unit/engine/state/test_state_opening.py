"""The words for state=, and the checks of a BackendConfig."""

from pathlib import Path

import pytest

from sabot.clock import ManualClock
from sabot.engine.state import (
    BackendConfig,
    MemoryBackend,
    RocksDBBackend,
    load_snapshot,
    open_backend,
    state_directory,
)
from sabot.errors import CorruptCheckpoint, UserError


async def test_the_words_for_state_open_what_they_say(tmp_path):
    assert open_backend(None, "task") is None
    assert isinstance(open_backend("memory", "task"), MemoryBackend)
    for state in (str(tmp_path / "a"), f"rocksdb://{tmp_path}/b"):
        backend = open_backend(state, "task", memory_budget="8MB")
        assert isinstance(backend, RocksDBBackend)
        assert backend.path == Path(state.removeprefix("rocksdb://")) / "task"
        assert backend.config.memory_budget == "8MB"
        await backend.close()


async def test_a_relative_directory_stays_where_it_was_when_the_process_moves(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    backend = open_backend("here", "task")
    assert backend.path == tmp_path / "here" / "task"
    await backend.close()


@pytest.mark.parametrize(
    ("state", "hint"),
    [
        ("rocksdb://relative/dir", "rocksdb:///relative/dir"),
        ("rocksdb://", "rocksdb:///dir"),
        ("rocksdb:///", "plain directory"),
        ("rocksdb", "rocksdb:///absolute"),
        ("", "directory"),
        ("redis://host", '"memory"'),
        ("memory://", '"memory"'),
    ],
)
def test_other_words_are_explained(state, hint):
    with pytest.raises(UserError) as error:
        open_backend(state, "task")
    assert hint in str(error.value)


def test_the_directory_of_the_words(tmp_path):
    assert state_directory(None) is state_directory("memory") is None
    assert state_directory("rocksdb:///var/lib/x") == Path("/var/lib/x")
    assert state_directory("some/dir") == Path("some/dir")


@pytest.mark.parametrize(
    "config",
    [
        {"backend_type": "redis"},
        {"backend_type": "rocksdb"},
        {"memory_budget": "many"},
        {"memory_budget": 0},
        {"backend_type": "rocksdb", "path": "x", "memory_budget": "1KB"},
        {"ttl": "soon"},
        {"ttl": 0},
        {"ttl": -1},
        {"options": {"max_open_files": 1}},
    ],
    ids=str,
)
def test_a_wrong_config_is_a_user_error(config):
    with pytest.raises(UserError):
        BackendConfig(**config)


def test_a_backend_takes_only_its_own_config(tmp_path):
    with pytest.raises(UserError, match="rocksdb"):
        MemoryBackend(BackendConfig("rocksdb", tmp_path))
    with pytest.raises(UserError, match="memory"):
        RocksDBBackend(BackendConfig("memory"))


def test_a_directory_without_state_is_named(tmp_path):
    with pytest.raises(CorruptCheckpoint, match=str(tmp_path)):
        load_snapshot(tmp_path)


def test_a_memory_backend_can_be_made_with_nothing():
    backend = MemoryBackend(clock=ManualClock())
    backend.write("n", b"k", b"1")
    assert backend.read("n", b"k") == b"1"
