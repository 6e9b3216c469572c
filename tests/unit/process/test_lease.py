"""Leases of supervisors that were killed are found, and only those."""

import json
import os
import signal
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from sabot.process import AgentConfig, AgentError, IoError, LocalProcessRunner, Supervisor
from sabot.process.cgroups import ControlGroups
from sabot.process.lease import Lease, end_what_is_left, folder_of_leases
from sabot.process.tree import own_tags, tagged
from sabot.process.user_folder import user_folder

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


# -- the folder of this user ------------------------------------------------------------------------------------------------

NOT_OURS = pytest.mark.skipif(os.getuid() != 0, reason="only root gives a folder away")


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files, where everybody may write."""
    tmp_path.chmod(0o1777)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    return tmp_path


@pytest.mark.parametrize("mode", [0o700, 0o755])
def test_leases_lie_in_the_runtime_folder_of_the_user(
    temporary: Path, monkeypatch: pytest.MonkeyPatch, mode: int
) -> None:
    (temporary / "runtime").mkdir(mode=0o700)
    (temporary / "runtime").chmod(mode)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(temporary / "runtime"))
    assert user_folder() == temporary / "runtime/sabot"
    assert stat.S_IMODE((temporary / "runtime/sabot").stat().st_mode) == 0o700


@pytest.mark.parametrize(
    "wrong", ["nowhere", "relative", "written by others", "a link", pytest.param("of somebody else", marks=NOT_OURS)]
)
def test_a_runtime_folder_that_is_not_this_users_alone_is_not_used(
    temporary: Path, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    runtime = temporary / "runtime"
    match wrong:
        case "written by others":
            runtime.mkdir()
            runtime.chmod(0o770)
        case "a link":
            (temporary / "other").mkdir()
            runtime.symlink_to("other")
        case "of somebody else":  # as behind `sudo -E`
            runtime.mkdir(mode=0o700)
            os.chown(runtime, 65534, 65534)
    monkeypatch.setenv("XDG_RUNTIME_DIR", "." if wrong == "relative" else str(runtime))
    assert folder_of_leases().name != "sabot" or folder_of_leases().is_relative_to("/run/user")


@pytest.fixture
def taken(temporary: Path) -> Path:
    """The place of the user's folder, where there is no folder of the system for that."""
    if Path(f"/run/user/{os.getuid()}").is_dir():
        pytest.skip("this system has a folder for the user")
    return temporary / f"sabot-{os.getuid()}"


@NOT_OURS
async def test_somebody_else_who_was_there_first_is_named_and_gets_no_lease(
    taken: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken.mkdir()
    os.chown(taken, 65534, 65534)
    taken.chmod(0o777)
    monkeypatch.setattr(Supervisor, "_current", None)
    said = f"the folder of this user's supervisors cannot be used: {taken} belongs to user 65534"
    with pytest.raises(IoError, match=said) as raised:
        await Supervisor.running()
    assert "set XDG_RUNTIME_DIR" in raised.value.hint
    with pytest.raises(AgentError, match=said):
        await LocalProcessRunner().spawn(AgentConfig(name="a", model_backend="sh", task="x"))
    assert list(taken.iterdir()) == []
    with pytest.raises(PermissionError):
        Lease(taken, 1)


def test_a_link_in_its_place_is_refused(taken: Path) -> None:
    taken.symlink_to("/")
    with pytest.raises(IoError, match="is a symbolic link"):
        user_folder()


def test_a_folder_of_ours_that_others_may_enter_is_closed_to_them(taken: Path) -> None:
    taken.mkdir()
    taken.chmod(0o777)
    assert user_folder() == taken
    assert stat.S_IMODE(taken.stat().st_mode) == 0o700


@NOT_OURS
def test_a_lease_that_somebody_else_has_put_into_an_open_folder_ends_nobody(
    taken: Path, groups: ControlGroups, stray
) -> None:
    """Anybody may read which number our processes carry."""
    first, process = stray
    path = lease(taken, first)
    os.chown(path, 65534, 65534)
    assert end_what_is_left(user_folder(), groups) == 0
    assert process.poll() is None


def test_tags_below_another_supervisor_are_lower_than_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit that carries them can only be lowered."""
    monkeypatch.setattr("resource.getrlimit", lambda which: (1 << 40, 1 << 40))
    assert all(0 < own_tags() < (1 << 40) - (1 << 20) for _ in range(100))
