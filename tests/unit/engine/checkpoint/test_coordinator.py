"""The protocol of checkpoints, without tasks that run: what the coordinator asks for, keeps, and gives up."""

import asyncio
import errno
import logging
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from sabot.clock import ManualClock
from sabot.engine.checkpoint import CheckpointStorage, Coordinator, Manifest, TaskSnapshot
from sabot.engine.state import MemoryBackend, ValueState, load_snapshot, open_backend
from sabot.errors import CheckpointFailed, UserError


class Tasks:
    """Tasks that note what the coordinator asks of them."""

    def __init__(self, coordinator: Coordinator, *tasks: str) -> None:
        self.coordinator = coordinator
        self.injected: list[tuple[str, int]] = []
        self.aborted: list[tuple[str, int]] = []
        for task in tasks:
            self.attach(task)

    def attach(self, task: str) -> None:
        self.coordinator.attach(
            task,
            lambda checkpoint_id: self.injected.append((task, checkpoint_id)),
            lambda checkpoint_id: self.aborted.append((task, checkpoint_id)),
            lambda: f"busy with in[0]@{len(task)}",
        )


class State:
    """A cut of one file."""

    def __init__(self, data: bytes = b"state", error: Exception | None = None) -> None:
        self.data, self.error = data, error
        self.saved = self.discarded = 0
        self.started, self.go_on = threading.Event(), threading.Event()
        self.go_on.set()

    def save(self, directory: Path) -> int:
        self.started.set()
        assert self.go_on.wait(60)
        (directory / "data").write_bytes(self.data)
        if self.error is not None:
            raise self.error
        self.saved += 1
        return len(self.data)

    def discard(self) -> None:
        self.discarded += 1


def cut(offset: int = 0, state: State | None = None, **files: bytes) -> TaskSnapshot:
    return TaskSnapshot({"offset": offset}, files, {} if state is None else {"default": state})


def names(directory: Path) -> list[str]:
    """Ids of complete checkpoints, and whatever else of one is there."""
    complete = [path.name[:10] for path in directory.glob("checkpoints/*")]
    return sorted(complete) + sorted(path.name for path in directory.glob("scratch/[!r]*"))  # not what was restored


# Without tasks


def test_without_tasks_a_checkpoint_is_complete_at_once_and_needs_no_event_loop() -> None:
    coordinator = Coordinator()
    completed: list[Manifest] = []
    coordinator.on_complete.append(completed.append)
    assert [coordinator.trigger(), coordinator.trigger()] == [1, 2]
    assert [(manifest.checkpoint_id, manifest.path) for manifest in completed] == [(1, None), (2, None)]
    assert asyncio.run(coordinator.wait(1)) == completed[0]
    assert coordinator.statistics()["completed"] == 2


def test_with_storage_and_nothing_to_keep_no_manifest_is_written(tmp_path: Path) -> None:
    coordinator = Coordinator(CheckpointStorage(tmp_path / "checkpoints"))
    coordinator.trigger()
    assert coordinator.statistics()["completed"] == 1
    assert not (tmp_path / "checkpoints").exists()


def test_finals_are_written_also_without_an_event_loop(tmp_path: Path) -> None:
    storage = CheckpointStorage(tmp_path)
    coordinator = Coordinator(storage)
    coordinator.attach("a", lambda _: None, lambda _: None)
    coordinator.detach("a", cut(9, window=b"w"))
    assert coordinator.trigger() == 1
    assert storage.latest().tasks["a"].meta == {"offset": 9}
    assert storage.latest().read_file("a", "window") == b"w"


# The way of a checkpoint that succeeds


async def test_all_cuts_become_one_checkpoint_on_the_disk(tmp_path: Path) -> None:
    storage = CheckpointStorage(tmp_path)
    clock = ManualClock(1_700_000_000.5)
    coordinator = Coordinator(storage, clock=clock, describe={"app": "fraud", "hash": 1})
    attached = Tasks(coordinator, "source", "agent/one", "..")
    state = State(b"x" * 10)
    events: list[object] = []
    coordinator.on_complete.append(lambda manifest: events.append((manifest.checkpoint_id, storage.latest())))

    checkpoint_id = coordinator.trigger()
    assert attached.injected == [("source", 1), ("agent/one", 1), ("..", 1)]
    coordinator.acknowledge(1, "source", cut(5))
    coordinator.acknowledge(1, "..", cut(7, **{"../up": b"blob"}))
    assert names(tmp_path) == []
    assert coordinator.statistics()["in_flight"] == 1
    clock.advance(2)
    coordinator.acknowledge(1, "agent/one", cut(6, state))
    manifest = await coordinator.wait(checkpoint_id)

    assert events == [(1, manifest)]
    assert storage.latest() == manifest
    assert names(tmp_path) == ["0000000001"]
    assert (manifest.created_ms, manifest.describe) == (1_700_000_002_500, {"app": "fraud", "hash": 1})
    assert {name: task.meta for name, task in manifest.tasks.items()} == {
        "source": {"offset": 5},
        "agent/one": {"offset": 6},
        "..": {"offset": 7},
    }
    assert manifest.read_file("..", "../up") == b"blob"
    assert (manifest.state_directory("agent/one", "default") / "data").read_bytes() == b"x" * 10
    assert (state.saved, state.discarded) == (1, 1)
    assert attached.aborted == []
    assert coordinator.statistics() == {
        "completed": 1,
        "failed": 0,
        "last_id": 1,
        "last_seconds": 2.0,
        "last_bytes": 14,
        "oldest_id": 1,
        "in_flight": 0,
        "last_error": "",
        "last_at": 1_700_000_002.5,
        "failed_at": None,
    }


async def test_without_storage_the_cuts_are_discarded_and_the_manifest_has_no_path() -> None:
    coordinator = Coordinator()
    Tasks(coordinator, "a")
    state = State()
    coordinator.acknowledge(coordinator.trigger(), "a", cut(3, state))
    manifest = await coordinator.wait(1)
    assert (manifest.path, manifest.tasks["a"].meta) == (None, {"offset": 3})
    assert (state.saved, state.discarded) == (0, 1)


async def test_who_keeps_a_log_hears_which_checkpoint_is_the_oldest(tmp_path: Path) -> None:
    """What only older checkpoints need may go then, not before: a start may go back to any that is left."""
    storage = CheckpointStorage(tmp_path, retain=2)
    coordinator = Coordinator(storage)
    oldest: list[int] = []
    coordinator.on_retained.append(oldest.append)
    Tasks(coordinator, "a")
    for number in range(1, 5):
        coordinator.acknowledge(coordinator.trigger(), "a", cut(number))
        await coordinator.wait(number)
    assert oldest == [1, 1, 2, 3]
    assert names(tmp_path) == ["0000000003", "0000000004"]
    assert coordinator.statistics()["oldest_id"] == 3
    with storage.pinned(storage.latest()):  # as while it is copied to be a savepoint
        for number in range(5, 8):
            coordinator.acknowledge(coordinator.trigger(), "a", cut(number))
            await coordinator.wait(number)
    assert oldest[4:] == [4, 4, 4]
    await coordinator.close()


async def test_nobody_hears_of_an_oldest_checkpoint_where_none_is_kept() -> None:
    coordinator = Coordinator()
    oldest: list[int] = []
    coordinator.on_retained.append(oldest.append)
    Tasks(coordinator, "a")
    coordinator.acknowledge(coordinator.trigger(), "a", cut(1))
    await coordinator.wait(1)
    assert oldest == []


async def test_ids_go_on_after_a_restart_and_old_checkpoints_are_dropped(tmp_path: Path) -> None:
    for run in range(3):
        storage = CheckpointStorage(tmp_path, retain=2)
        coordinator = Coordinator(storage)
        Tasks(coordinator, "a")
        for _ in range(2):
            checkpoint_id = coordinator.trigger()
            coordinator.acknowledge(checkpoint_id, "a", cut(checkpoint_id))
            await coordinator.wait(checkpoint_id)
        assert checkpoint_id == 2 * run + 2
        storage.unlock()
    assert storage.ids() == [5, 6]


async def test_a_later_trigger_waits_for_the_checkpoint_in_flight(tmp_path: Path) -> None:
    coordinator = Coordinator(CheckpointStorage(tmp_path))
    attached = Tasks(coordinator, "a")
    assert [coordinator.trigger() for _ in range(3)] == [1, 2, 3]
    assert attached.injected == [("a", 1)]
    coordinator.acknowledge(1, "a", cut())
    await coordinator.wait(1)
    assert attached.injected == [("a", 1), ("a", 2)]
    coordinator.decline(2, "a", "no")
    assert attached.injected == [("a", 1), ("a", 2), ("a", 3)]
    coordinator.acknowledge(3, "a", cut())
    assert (await coordinator.wait(3)).checkpoint_id == 3


async def test_tasks_may_answer_before_inject_returns() -> None:
    coordinator = Coordinator()
    for task in ("a", "b"):
        coordinator.attach(task, lambda n, task=task: coordinator.acknowledge(n, task, cut(n)), lambda _: None)
    assert [(await coordinator.wait(coordinator.trigger())).tasks.keys() for _ in range(2)] == [{"a", "b"}] * 2


async def test_the_line_of_waiting_checkpoints_is_bounded() -> None:
    coordinator = Coordinator()
    Tasks(coordinator, "a")
    for _ in range(128):
        coordinator.trigger()
    with pytest.raises(UserError, match="128 checkpoints wait already"):
        coordinator.trigger()
    coordinator.detach("a")
    assert coordinator.statistics()["completed"] == 128
    assert (await coordinator.wait(128)).checkpoint_id == 128


async def test_a_callback_that_raises_is_logged_and_the_others_are_called(caplog) -> None:
    coordinator = Coordinator()
    completed: list[Manifest] = []
    coordinator.on_complete += [lambda _: 1 / 0, completed.append]
    assert await coordinator.wait(coordinator.trigger()) == completed[0]
    assert "a callback failed" in caplog.text


async def test_unknown_ids_and_taken_names_are_refused() -> None:
    coordinator = Coordinator()
    Tasks(coordinator, "a")
    with pytest.raises(UserError, match="checkpoint 7 is not known"):
        await coordinator.wait(7)
    with pytest.raises(UserError, match="'a' is attached already"):
        Tasks(coordinator, "a")


async def test_triggers_and_acknowledgements_may_come_from_other_threads(tmp_path: Path) -> None:
    coordinator = Coordinator(CheckpointStorage(tmp_path))
    loop_thread = threading.get_ident()
    on_thread: list[int] = []
    asked = asyncio.Event()
    coordinator.attach("a", lambda _: (on_thread.append(threading.get_ident()), asked.set()), lambda _: None)
    checkpoint_id = await asyncio.to_thread(coordinator.trigger)
    waiter = asyncio.create_task(coordinator.wait(checkpoint_id))
    await asked.wait()
    await asyncio.to_thread(coordinator.acknowledge, checkpoint_id, "a", cut(4))
    assert (await waiter).tasks["a"].meta == {"offset": 4}
    assert on_thread == [loop_thread]


async def test_a_waiter_that_is_cancelled_disturbs_nobody() -> None:
    coordinator = Coordinator()
    Tasks(coordinator, "a")
    first = asyncio.create_task(coordinator.wait(coordinator.trigger()))
    second = asyncio.create_task(coordinator.wait(1))
    await asyncio.sleep(0)
    first.cancel()
    coordinator.acknowledge(1, "a", cut())
    assert (await second).checkpoint_id == 1


# Tasks that end


async def test_a_task_that_ends_is_waited_for_no_more_and_its_end_is_in_all_later_manifests(tmp_path: Path) -> None:
    storage = CheckpointStorage(tmp_path)
    coordinator = Coordinator(storage)
    Tasks(coordinator, "a", "b")
    end = State(b"end")
    coordinator.trigger()
    coordinator.acknowledge(1, "a", cut(1))
    coordinator.detach("b", cut(99, end))
    for checkpoint_id in (1, 2):
        manifest = await coordinator.wait(checkpoint_id)
        assert {name: task.meta["offset"] for name, task in manifest.tasks.items()} == {"a": checkpoint_id, "b": 99}
        assert (manifest.state_directory("b", "default") / "data").read_bytes() == b"end"
        if checkpoint_id == 1:
            coordinator.acknowledge(coordinator.trigger(), "a", cut(2))
    coordinator.detach("a", cut(77))
    manifest = await coordinator.wait(coordinator.trigger())
    assert {name: task.meta["offset"] for name, task in manifest.tasks.items()} == {"a": 77, "b": 99}
    assert (end.saved, end.discarded) == (1, 0)
    await coordinator.close()
    assert end.discarded == 1
    assert storage.latest() == manifest
    assert names(tmp_path) == ["0000000001", "0000000002", "0000000003"]


async def test_what_nobody_needs_after_the_end_is_kept_until_all_have_ended(tmp_path: Path) -> None:
    storage = CheckpointStorage(tmp_path)
    coordinator = Coordinator(storage)
    Tasks(coordinator, "a", "b")
    table, rows = State(b"table"), State(b"rows")
    final = TaskSnapshot({"offset": 9}, {}, {"table": table, "rows": rows})
    final.last = TaskSnapshot({"offset": 10}, {}, {"table": table})
    coordinator.detach("b", final)
    coordinator.acknowledge(coordinator.trigger(), "a", cut(1))
    manifest = await coordinator.wait(1)
    assert manifest.tasks["b"].meta == {"offset": 9}
    assert set(manifest.tasks["b"].states) == {"table", "rows"}
    coordinator.detach("a", cut(2))  # drained: it goes on at the next start
    manifest = await coordinator.wait(coordinator.trigger())
    assert set(manifest.tasks["b"].states) == {"table", "rows"}
    over = cut(3)
    over.last = over
    coordinator.detach("a", over)
    manifest = await coordinator.wait(coordinator.trigger())
    assert {name: task.meta["offset"] for name, task in manifest.tasks.items()} == {"a": 3, "b": 10}
    assert (manifest.state_directory("b", "table") / "data").read_bytes() == b"table"
    assert set(manifest.tasks["b"].states) == {"table"}
    await coordinator.close()
    assert [(each.saved, each.discarded) for each in (table, rows)] == [(1, 1), (1, 1)]


@pytest.mark.parametrize("kind", ["memory", "rocksdb"])
async def test_real_state_of_an_ended_task_outlives_failed_checkpoints(tmp_path: Path, kind: str) -> None:
    """Seen before: what was saved into a checkpoint that then failed was gone."""
    backend = open_backend("memory" if kind == "memory" else str(tmp_path), "database")
    counts = ValueState(backend, "counts")
    storage = CheckpointStorage(tmp_path / "checkpoints", retain=1)
    coordinator = Coordinator(storage)
    Tasks(coordinator, "ended", "live")
    await counts.put("k", 1)
    coordinator.detach("ended", TaskSnapshot({}, {}, {"default": backend.cut()}))
    await counts.put("k", 2)
    for error in (None, OSError("no"), None, OSError("no"), None):
        checkpoint_id = coordinator.trigger()
        live = TaskSnapshot({}, {}, {"default": backend.cut(), "z": State(error=error)})
        coordinator.acknowledge(checkpoint_id, "live", live)
        if error is not None:
            with pytest.raises(CheckpointFailed, match="no"):
                await coordinator.wait(checkpoint_id)
            continue
        manifest = await coordinator.wait(checkpoint_id)
        assert storage.latest() == manifest
        for task, value in (("ended", 1), ("live", 2)):
            await backend.restore(load_snapshot(manifest.state_directory(task, "default")))
            assert await counts.get("k") == value
    await coordinator.close()
    await backend.close()
    assert names(tmp_path / "checkpoints") == ["0000000005"]


async def test_the_snapshot_of_a_users_own_backend_saves_itself(tmp_path: Path) -> None:
    backend = MemoryBackend()
    counts = ValueState(backend, "counts")
    storage = CheckpointStorage(tmp_path)
    coordinator = Coordinator(storage)
    Tasks(coordinator, "ended", "live")
    await counts.put("k", 1)
    coordinator.detach("ended", TaskSnapshot({}, {}, {"default": await backend.snapshot()}))
    for value in (2, 3):
        await counts.put("k", value)
        live = TaskSnapshot({}, {}, {"default": await backend.snapshot()})
        coordinator.acknowledge(coordinator.trigger(), "live", live)
        manifest = await coordinator.wait(value - 1)
        for task, kept in (("ended", 1), ("live", value)):
            await backend.restore(load_snapshot(manifest.state_directory(task, "default")))
            assert await counts.get("k") == kept
    await coordinator.close()


async def test_a_cut_that_was_acknowledged_counts_more_than_the_end_after_it() -> None:
    """Between its barrier and its end the task sent rows that the tasks behind it do not have in their cut."""
    coordinator = Coordinator()
    Tasks(coordinator, "a", "b")
    coordinator.trigger()
    coordinator.acknowledge(1, "a", cut(1))
    coordinator.detach("a", cut(50))
    coordinator.acknowledge(1, "b", cut(2))
    assert (await coordinator.wait(1)).tasks["a"].meta == {"offset": 1}
    coordinator.acknowledge(coordinator.trigger(), "b", cut(3))
    assert (await coordinator.wait(2)).tasks["a"].meta == {"offset": 50}


async def test_a_task_that_fails_without_a_final_leaves_the_manifest() -> None:
    coordinator = Coordinator()
    Tasks(coordinator, "a", "b")
    coordinator.trigger()
    coordinator.detach("b")
    coordinator.acknowledge(1, "a", cut())
    assert set((await coordinator.wait(1)).tasks) == {"a"}


async def test_a_task_that_comes_again_takes_the_place_of_its_final(tmp_path: Path) -> None:
    coordinator = Coordinator(CheckpointStorage(tmp_path))
    attached = Tasks(coordinator, "a", "b")
    end = State()
    coordinator.detach("b", cut(5, end))
    coordinator.trigger()
    attached.attach("b")  # the checkpoint in flight does not ask it, and still holds what it was
    assert attached.injected == [("a", 1)]
    coordinator.acknowledge(1, "a", cut(1))
    assert end.discarded == 0
    assert (await coordinator.wait(1)).tasks["b"].meta == {"offset": 5}
    assert (end.saved, end.discarded) == (1, 1)
    coordinator.trigger()
    coordinator.acknowledge(2, "a", cut(2))
    coordinator.acknowledge(2, "b", cut(6))
    assert (await coordinator.wait(2)).tasks["b"].meta == {"offset": 6}


# The ways of a checkpoint that fails


async def test_a_timeout_names_the_missing_tasks_and_frees_all_of_them(tmp_path: Path, caplog) -> None:
    clock = ManualClock()
    storage = CheckpointStorage(tmp_path)
    coordinator = Coordinator(storage, clock=clock, timeout="10s")
    attached = Tasks(coordinator, "a", "slow", "slower")
    state = State()
    coordinator.trigger()
    coordinator.acknowledge(1, "a", cut(1, state))
    clock.advance(9.9)
    coordinator.check_timeouts()
    assert coordinator.statistics()["in_flight"] == 1
    clock.advance(0.2)
    coordinator.check_timeouts()
    with pytest.raises(CheckpointFailed) as failed:
        await coordinator.wait(1)
    assert failed.value.message == (
        "checkpoint 1: timed out after 10 s, still waiting for slow: busy with in[0]@4, slower: busy with in[0]@6"
    )
    assert attached.aborted == [("a", 1), ("slow", 1), ("slower", 1)]
    assert (state.saved, state.discarded) == (0, 1)
    assert names(tmp_path) == []
    assert "the app goes on" in caplog.text

    late = State()
    coordinator.acknowledge(1, "slow", cut(2, late))
    assert late.discarded == 1
    coordinator.decline(1, "slow", "too late")
    statistics = coordinator.statistics()
    assert (statistics["failed"], statistics["in_flight"]) == (1, 0)
    assert "slow: busy" in statistics["last_error"]


async def test_a_timeout_does_not_count_for_cuts_that_are_taken_and_being_saved(caplog) -> None:
    """A worker that stores a large state in an object store: given up and begun anew, the checkpoint would never be complete."""
    clock, saving = ManualClock(), {"a", "b"}
    coordinator = Coordinator(clock=clock, timeout="10s")
    for task in ("a", "b"):
        coordinator.attach(
            task, lambda _: None, lambda _: None, lambda task=task: f"{task} is busy", lambda task=task: task in saving
        )
    coordinator.trigger()
    for _ in range(3):
        clock.advance(11)
        coordinator.check_timeouts()
    assert "checkpoint 1: the state of a, b is still being saved after 33 s; no other checkpoint begins" in caplog.text
    coordinator.acknowledge(1, "a", cut(1))
    coordinator.acknowledge(1, "b", cut(1))
    assert (await coordinator.wait(1)).checkpoint_id == 1

    saving.remove("b")
    coordinator.trigger()
    clock.advance(11)
    coordinator.check_timeouts()
    with pytest.raises(CheckpointFailed, match="timed out after 10 s"):
        await coordinator.wait(2)


async def test_the_timer_of_the_event_loop_ends_a_checkpoint_too() -> None:
    coordinator = Coordinator(timeout="10ms")
    Tasks(coordinator, "a")
    with pytest.raises(CheckpointFailed, match="timed out"):
        await asyncio.wait_for(coordinator.wait(coordinator.trigger()), 60)


async def test_a_hint_that_fails_does_not_hide_the_timeout() -> None:
    clock = ManualClock()
    coordinator = Coordinator(clock=clock)
    coordinator.attach("a", lambda _: None, lambda _: None, lambda: str(1 / 0))
    coordinator.trigger()
    clock.advance(60)
    coordinator.check_timeouts()
    with pytest.raises(CheckpointFailed, match=r"waiting for a \(its hint failed: ZeroDivisionError"):
        await coordinator.wait(1)


async def test_a_task_may_decline() -> None:
    coordinator = Coordinator()
    attached = Tasks(coordinator, "a", "b")
    coordinator.trigger()
    coordinator.decline(1, "b", "its sink cannot flush")
    with pytest.raises(CheckpointFailed, match="checkpoint 1: task b declined: its sink cannot flush"):
        await coordinator.wait(1)
    assert attached.aborted == [("a", 1), ("b", 1)]


async def test_answers_from_inside_abort_are_too_late() -> None:
    coordinator = Coordinator()
    state = State()
    coordinator.attach("a", lambda _: None, lambda n: coordinator.decline(n, "a", "aborted"))
    coordinator.attach("b", lambda _: None, lambda n: coordinator.acknowledge(n, "b", cut(1, state)))
    coordinator.attach("c", lambda _: None, lambda n: coordinator.detach("c", cut(9)))
    coordinator.decline(coordinator.trigger(), "a", "first")
    with pytest.raises(CheckpointFailed, match="a declined: first"):
        await coordinator.wait(1)
    assert state.discarded == 1
    assert coordinator.statistics()["failed"] == 1


async def test_a_task_that_cannot_emit_its_barrier_fails_the_checkpoint_and_all_are_freed(caplog) -> None:
    coordinator = Coordinator()
    aborted: list[str] = []

    def broken(checkpoint_id: int) -> None:
        raise RuntimeError("thread is gone")

    coordinator.attach("a", broken, lambda _: aborted.append("a"))
    coordinator.attach("b", lambda _: aborted.append("asked"), broken)
    coordinator.attach("c", lambda _: aborted.append("asked"), lambda _: aborted.append("c"))
    with pytest.raises(CheckpointFailed, match=r"task a could not emit its barrier.*thread is gone") as failed:
        await coordinator.wait(coordinator.trigger())
    assert isinstance(failed.value.__cause__, RuntimeError)
    assert aborted == ["a", "c"]
    assert "task b could not abort" in caplog.text


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "No space left on device"),
        (RuntimeError("IO error: while appending"), "IO error"),
    ],
)
async def test_a_write_that_fails_leaves_nothing_and_the_one_before(tmp_path: Path, error, words: str) -> None:
    storage = CheckpointStorage(tmp_path)
    coordinator = Coordinator(storage)
    attached = Tasks(coordinator, "a")
    committed: list[int] = []
    coordinator.on_complete.append(lambda manifest: committed.append(manifest.checkpoint_id))
    states = [State(), State(error=error), State()]
    for state in states:
        checkpoint_id = coordinator.trigger()
        coordinator.acknowledge(checkpoint_id, "a", cut(checkpoint_id, state))
        if state.error is None:
            await coordinator.wait(checkpoint_id)
            continue
        with pytest.raises(CheckpointFailed) as failed:
            await coordinator.wait(checkpoint_id)
        assert f"checkpoint 2: it could not be written to {tmp_path}: " in failed.value.message
        assert words in failed.value.message
        assert names(tmp_path) == ["0000000001"]
        assert storage.latest().checkpoint_id == 1
    assert committed == [1, 3]
    assert attached.aborted == [("a", 2)]
    assert [state.discarded for state in states] == [1, 1, 1]


async def test_states_of_several_tasks_are_saved_at_the_same_time(tmp_path: Path) -> None:
    storage = CheckpointStorage(tmp_path)
    coordinator = Coordinator(storage)
    Tasks(coordinator, "join/0", "join/1")
    states = {"join/0": State(b"left"), "join/1": State(b"right")}
    checkpoint_id = coordinator.trigger()
    for task, state in states.items():
        state.go_on.clear()
        coordinator.acknowledge(checkpoint_id, task, cut(state=state))
    for state in states.values():  # each is being saved while the other is not done
        assert await asyncio.to_thread(state.started.wait, 60)
    for state in states.values():
        state.go_on.set()
    manifest = await coordinator.wait(checkpoint_id)
    for task, state in states.items():
        assert (manifest.state_directory(task, "default") / "data").read_bytes() == state.data
        assert state.discarded == 1


async def test_a_write_that_fails_waits_for_the_other_states_that_are_being_saved(tmp_path: Path) -> None:
    coordinator = Coordinator(CheckpointStorage(tmp_path))
    Tasks(coordinator, "a", "b")
    failing, slow = State(error=OSError(errno.EIO, os.strerror(errno.EIO))), State()
    slow.go_on.clear()
    checkpoint_id = coordinator.trigger()
    coordinator.acknowledge(checkpoint_id, "a", cut(state=failing))
    coordinator.acknowledge(checkpoint_id, "b", cut(state=slow))
    assert await asyncio.to_thread(slow.started.wait, 60)
    assert await asyncio.to_thread(failing.started.wait, 60)
    waiting = asyncio.ensure_future(coordinator.wait(checkpoint_id))
    assert not (await asyncio.wait({waiting}, timeout=0.05))[0]
    assert slow.discarded == 0  # a thread is writing it
    slow.go_on.set()
    with pytest.raises(CheckpointFailed, match="Input/output error"):
        await waiting
    assert (slow.saved, slow.discarded, failing.discarded) == (1, 1, 1)
    assert names(tmp_path) == []


async def test_meta_that_is_not_json_fails_with_a_reason(tmp_path: Path) -> None:
    coordinator = Coordinator(CheckpointStorage(tmp_path))
    Tasks(coordinator, "a")
    coordinator.acknowledge(coordinator.trigger(), "a", TaskSnapshot({"offsets": {("in", 0): 3}}))
    with pytest.raises(CheckpointFailed, match="cannot be written as JSON") as failed:
        await coordinator.wait(1)
    assert "string keys" in failed.value.hint
    assert names(tmp_path) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    mounted = tmp_path / "small"
    mounted.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(mounted)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small file system cannot be mounted here (needs root)")
    yield mounted
    subprocess.run(["umount", str(mounted)], check=True)


async def test_a_full_disk_fails_checkpoints_until_there_is_room(small_disk: Path) -> None:
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"x" * 100_000)
    storage = CheckpointStorage(small_disk / "checkpoints")
    coordinator = Coordinator(storage)
    Tasks(coordinator, "a")
    for checkpoint_id in (1, 2):
        coordinator.acknowledge(coordinator.trigger(), "a", cut(checkpoint_id, blob=b"y" * 10_000))
        await coordinator.wait(checkpoint_id)
    for state, blob in ((State(b"z" * 200_000), b""), (None, b"z" * 200_000)):
        checkpoint_id = coordinator.trigger()
        coordinator.acknowledge(checkpoint_id, "a", cut(checkpoint_id, state, blob=blob))
        with pytest.raises(CheckpointFailed, match="No space left on device") as failed:
            await coordinator.wait(checkpoint_id)
        assert str(small_disk / "checkpoints") in failed.value.message
        assert "make room" in failed.value.hint
        assert names(small_disk / "checkpoints") == ["0000000001", "0000000002"]
        assert storage.latest().tasks["a"].meta == {"offset": 2}
    ballast.unlink()
    coordinator.acknowledge(coordinator.trigger(), "a", cut(5, blob=b"z" * 100_000))
    assert (await coordinator.wait(5)).read_file("a", "blob") == b"z" * 100_000
    storage.unlock()


# The end of the app


async def test_close_aborts_what_is_in_flight_and_what_waits() -> None:
    coordinator = Coordinator()
    attached = Tasks(coordinator, "a", "b")
    state = State()
    coordinator.trigger()
    coordinator.trigger()
    coordinator.acknowledge(1, "a", cut(1, state))
    await coordinator.close()
    for checkpoint_id in (1, 2):
        with pytest.raises(CheckpointFailed, match=f"checkpoint {checkpoint_id}: the app is stopping"):
            await coordinator.wait(checkpoint_id)
    assert state.discarded == 1
    assert attached.aborted == [("a", 1), ("b", 1)]
    assert attached.injected == [("a", 1), ("b", 1)]


async def test_close_lets_a_write_that_has_begun_finish(tmp_path: Path) -> None:
    storage = CheckpointStorage(tmp_path)
    coordinator = Coordinator(storage)
    Tasks(coordinator, "a")
    state = State()
    state.go_on.clear()
    coordinator.acknowledge(coordinator.trigger(), "a", cut(1, state))
    await asyncio.to_thread(state.started.wait, 60)
    closing = asyncio.create_task(coordinator.close())
    await asyncio.sleep(0)
    assert not closing.done()
    state.go_on.set()
    await closing
    assert storage.latest().checkpoint_id == 1
    assert (await coordinator.wait(1)).checkpoint_id == 1


async def test_a_writer_that_is_cancelled_cleans_up(tmp_path: Path) -> None:
    coordinator = Coordinator(CheckpointStorage(tmp_path))
    Tasks(coordinator, "a")
    state = State()
    state.go_on.clear()
    coordinator.acknowledge(coordinator.trigger(), "a", cut(1, state))
    await asyncio.to_thread(state.started.wait, 60)
    for task in asyncio.all_tasks():
        if task.get_name() == "sabot checkpoint writer":
            task.cancel()
    with pytest.raises(CheckpointFailed, match="cancelled"):
        await coordinator.wait(1)
    assert names(tmp_path) == []
    assert state.discarded == 1
    state.go_on.set()


async def test_a_writer_that_is_cancelled_inside_commit_leaves_no_damaged_checkpoint(
    tmp_path: Path, monkeypatch
) -> None:
    """A thread cannot be cancelled: removing the files under it would let it give a damaged directory its final name."""
    storage = CheckpointStorage(tmp_path)
    coordinator = Coordinator(storage)
    Tasks(coordinator, "a")
    entered, go_on = threading.Event(), threading.Event()
    rename = os.rename

    def held_rename(source: Path, target: Path) -> None:
        entered.set()
        go_on.wait(60)
        rename(source, target)

    monkeypatch.setattr(os, "rename", held_rename)
    coordinator.acknowledge(coordinator.trigger(), "a", cut(1, State(), blob=b"b"))
    await asyncio.to_thread(entered.wait, 60)
    for task in asyncio.all_tasks():
        if task.get_name() == "sabot checkpoint writer":
            task.cancel()
    threading.Timer(0.05, go_on.set).start()
    with pytest.raises(CheckpointFailed, match="cancelled"):
        await coordinator.wait(1)
    assert storage.latest().read_file("a", "blob") == b"b"
    monkeypatch.undo()
    coordinator.acknowledge(coordinator.trigger(), "a", cut(2))
    assert (await coordinator.wait(2)).checkpoint_id == 2


async def test_a_writer_that_is_cancelled_between_two_files_leaves_no_checkpoint_without_the_first(
    tmp_path: Path, monkeypatch
) -> None:
    """The thread went on with the rest of the files, and stored a manifest: the next start called it damaged."""
    storage = CheckpointStorage(tmp_path / "checkpoints")
    storage.lock()
    coordinator = Coordinator(storage)
    Tasks(coordinator, "a")
    (tmp_path / "part").write_bytes(b"part")
    entered, go_on, over = threading.Event(), threading.Event(), threading.Event()
    link, commit = os.link, CheckpointStorage.commit

    def held_link(source: Path, target: Path) -> None:
        link(source, target)
        entered.set()
        go_on.wait(60)

    def noted_commit(*args: object) -> Manifest:
        try:
            return commit(*args)
        finally:
            over.set()

    monkeypatch.setattr(os, "link", held_link)
    monkeypatch.setattr(CheckpointStorage, "commit", noted_commit)
    snapshot = TaskSnapshot(files={"a part": tmp_path / "part", "blob": b"b"})
    coordinator.acknowledge(coordinator.trigger(), "a", snapshot)
    await asyncio.to_thread(entered.wait, 60)
    for task in asyncio.all_tasks():
        if task.get_name() == "sabot checkpoint writer":
            task.cancel()
    with pytest.raises(CheckpointFailed, match="cancelled"):
        await coordinator.wait(1)
    monkeypatch.setattr(os, "link", link)
    go_on.set()
    assert await asyncio.to_thread(over.wait, 60)
    assert storage.ids() == []
    coordinator.acknowledge(coordinator.trigger(), "a", cut(2))
    assert (await coordinator.wait(2)).checkpoint_id == 2


# The periodic loop


async def test_a_beat_is_skipped_while_one_is_in_flight_and_when_no_task_runs() -> None:
    coordinator = Coordinator()
    assert coordinator.beat() is None
    attached = Tasks(coordinator, "a")
    assert coordinator.beat() == 1
    assert coordinator.beat() is None
    coordinator.acknowledge(1, "a", cut())
    assert coordinator.beat() == 2
    assert attached.injected == [("a", 1), ("a", 2)]


async def test_the_loop_survives_failures_and_ends_by_cancellation(caplog) -> None:
    coordinator = Coordinator()
    enough = asyncio.Event()

    def inject(checkpoint_id: int) -> None:
        if checkpoint_id >= 4:
            enough.set()
        if checkpoint_id % 2:
            raise RuntimeError("odd")
        coordinator.acknowledge(checkpoint_id, "a", cut())

    coordinator.attach("a", inject, lambda _: None)
    with caplog.at_level(logging.WARNING):
        loop = asyncio.create_task(coordinator.run("1ms"))
        await asyncio.wait_for(enough.wait(), 60)
        loop.cancel()
        with pytest.raises(asyncio.CancelledError):
            await loop
    statistics = coordinator.statistics()
    assert statistics["completed"] >= 2
    assert statistics["failed"] >= 2
    assert "odd" in caplog.text


async def test_a_beat_survives_a_directory_that_cannot_be_read(tmp_path: Path, monkeypatch, caplog) -> None:
    storage = CheckpointStorage(tmp_path)
    coordinator = Coordinator(storage)
    Tasks(coordinator, "a")
    with monkeypatch.context() as patch:
        patch.setattr(storage, "last_id", lambda: (_ for _ in ()).throw(PermissionError("no")))
        assert coordinator.beat() is None
    assert "no checkpoint could be triggered" in caplog.text
    assert coordinator.beat() == 1


async def test_an_interval_of_zero_is_refused() -> None:
    with pytest.raises(UserError, match="interval is zero"):
        await Coordinator().run(0)
