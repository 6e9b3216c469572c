"""Leases of supervisors that were killed are found, and only those."""

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from sabot.process.cgroups import ControlGroups
from sabot.process.lease import Lease, end_what_is_left
from sabot.process.tree import own_tags, tagged

BOOT = Path("/proc/sys/kernel/random/boot_id").read_text().strip()


@pytest.fixture
def groups(tmp_path: Path) -> ControlGroups:
    return ControlGroups(tmp_path / "no groups")


@pytest.fixture
def stray() -> Iterator[tuple[int, "subprocess.Popen[bytes]"]]:
    """(the first tag of a supervisor that is gone, a process that it has left)."""
    first = own_tags()
    process = subprocess.Popen(["prlimit", f"--locks={first + 5}", "sleep", "1000"], start_new_session=True)
    while tagged(first) != [process.pid]:
        assert process.poll() is None
    yield first, process
    process.kill()
    process.wait()


def lease(folder: Path, first: int, boot: str = BOOT) -> Path:
    """The lease of a supervisor that was killed: nobody holds it."""
    folder.mkdir(exist_ok=True)
    path = folder / f"{first}.lease"
    path.write_text(json.dumps({"first": first, "boot": boot}))
    return path


def test_what_carries_the_tags_of_a_dead_supervisor_is_ended(tmp_path: Path, groups: ControlGroups, stray) -> None:
    first, process = stray
    path = lease(tmp_path / "leases", first)
    assert end_what_is_left(path.parent, groups) == 1
    assert process.wait() == -signal.SIGKILL
    assert not path.exists()
    assert end_what_is_left(path.parent, groups) == 0


def test_a_lease_that_is_held_is_left_alone(tmp_path: Path, groups: ControlGroups, stray) -> None:
    first, process = stray
    held = Lease(tmp_path / "leases", first)
    assert end_what_is_left(tmp_path / "leases", groups) == 0
    assert process.poll() is None
    assert [path.name for path in (tmp_path / "leases").iterdir()] == [f"{first}.lease"]
    held.give_up()
    assert list((tmp_path / "leases").iterdir()) == []


def test_a_lease_of_another_start_of_the_system_ends_nobody(tmp_path: Path, groups: ControlGroups, stray) -> None:
    first, process = stray
    path = lease(tmp_path / "leases", first, boot="another")
    assert end_what_is_left(path.parent, groups) == 0
    assert process.poll() is None
    assert not path.exists()


def test_a_lease_that_was_half_written_is_removed(tmp_path: Path, groups: ControlGroups) -> None:
    path = lease(tmp_path / "leases", 1)
    path.write_text('{"fir')
    assert end_what_is_left(path.parent, groups) == 0
    assert not path.exists()


@pytest.mark.skipif(os.getuid() != 0, reason="only root gives a folder away")
def test_a_folder_of_another_user_is_not_believed(tmp_path: Path, groups: ControlGroups, stray) -> None:
    first, process = stray
    path = lease(tmp_path / "leases", first)
    os.chown(path.parent, 65534, 65534)
    assert end_what_is_left(path.parent, groups) == 0
    assert process.poll() is None
    assert path.exists()


def test_tags_below_another_supervisor_are_lower_than_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit that carries them can only be lowered."""
    monkeypatch.setattr("resource.getrlimit", lambda which: (1 << 40, 1 << 40))
    assert all(0 < own_tags() < (1 << 40) - (1 << 20) for _ in range(100))
