"""A program in a sandbox that puts symbolic links into the folder that it may write does not lead another one out: not by the paths that
the other one's sandbox names, not while that one is being started, and not by what is read to run its program.
"""

import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from unit.process.children import everything, sh

from sabot.process import Command, Sandbox, SandboxPathRefused, SpawnFailed, Supervisor, client
from sabot.process.sandbox import confine, paths
from sabot.process.sandbox.levels import BOOT
from sabot.process.sandbox.paths import planted, remember_writable, way_to, writable_folders

needs = pytest.mark.usefixtures("all_means")
PACKAGE = Path(confine.__file__).parents[2]


@pytest.fixture
def repo(area: Path) -> Path:
    """The folder of a program in a sandbox, with a folder in it that another one is given; and a home, with a file for its owner alone."""
    (area / "repo/docs").mkdir(parents=True)
    (area / "home").mkdir(mode=0o755)
    (area / "home/secret").write_text("secret")
    (area / "home/secret").chmod(0o600)
    return area / "repo"


async def run(supervisor: Supervisor, script: str, **more: Any) -> str:
    return (await everything(await supervisor.spawn(sh(script, **more))))[0]


async def plant(supervisor: Supervisor, repo: Path, trust: str = "untrusted") -> None:
    await run(supervisor, f"rmdir docs && ln -s {repo.parent}/home docs", trust=trust, working_dir=repo)
    assert os.readlink(repo / "docs") == str(repo.parent / "home")


# -- by the paths that a sandbox names ---------------------------------------------------------------------------------------


@pytest.mark.one_in(4, "hundredths of a second of a core each")
@needs
@pytest.mark.parametrize("level", ["trusted", "standard", "untrusted"])
@pytest.mark.parametrize("named", ["working_dir", "writable", "readable", "a file", "below the link"])
async def test_a_link_that_one_child_has_planted_leads_no_other_one_out(
    supervisor: Supervisor, repo: Path, level: str, named: str
) -> None:
    await plant(supervisor, repo, level)
    docs = repo / "docs"
    if named == "below the link":
        (repo.parent / "home/more").mkdir()
        docs /= "more"
    elif named == "a file":
        docs /= "secret"
    given = Sandbox(
        level=level,
        writable=[docs] if named == "writable" else [],
        readable=[docs] if named in ("readable", "a file") else [],
    )
    where = docs if named in ("working_dir", "below the link") else None
    with pytest.raises(
        SandboxPathRefused, match=rf"'{repo}/docs' is a symbolic link to '{repo.parent}/home'"
    ) as raised:
        await supervisor.spawn(sh("echo mine > secret", trust=given, working_dir=where))
    assert f"may write in '{repo}'" in str(raised.value)
    assert "name '" in raised.value.hint, "who means the place behind the link says so"
    assert (repo.parent / "home/secret").read_text() == "secret"


@needs
async def test_nor_itself_when_it_runs_again(supervisor: Supervisor, repo: Path) -> None:
    """As two records of a process agent do, whose sandbox is the same."""
    both = {"trust": Sandbox(level="untrusted", writable=[repo]), "working_dir": repo / "docs"}
    await run(supervisor, f"cd .. && rmdir docs && ln -s {repo.parent}/home docs", **both)
    paths._known.clear()  # as in another worker, after a restart of the system
    for each in (paths._folder()).iterdir():
        each.unlink()
    with pytest.raises(SandboxPathRefused, match="is a symbolic link to"):
        await supervisor.spawn(sh("echo mine > secret", **both))


@needs
async def test_nor_by_a_file_that_it_has_replaced(supervisor: Supervisor, repo: Path) -> None:
    (repo / "notes").write_text("theirs")
    await run(supervisor, f"rm notes && ln -s {repo.parent}/home/secret notes", trust="untrusted", working_dir=repo)
    for given in {"readable": [repo / "notes"]}, {"writable": [repo / "notes"]}:
        with pytest.raises(SandboxPathRefused, match="is a symbolic link to"):
            await supervisor.spawn(sh("cat", trust=Sandbox(level="untrusted", **given)))


@needs
async def test_links_of_the_users_own_above_that_folder_are_followed(supervisor: Supervisor, repo: Path) -> None:
    """As where /tmp is a link, or the project lies on another disk."""
    (repo.parent / "work").symlink_to(repo.parent)
    given = {"trust": "untrusted", "working_dir": repo.parent / "work/repo"}
    assert await run(supervisor, "echo one > docs/file; pwd -P", **given) == f"{repo}\n"
    below = {**given, "working_dir": repo.parent / "work/repo/docs"}
    assert await run(supervisor, "cat file", **below) == "one\n"
    await run(supervisor, "rm -r docs && ln -s .. docs", **given)
    with pytest.raises(SandboxPathRefused, match=rf"'{repo}/docs' is a symbolic link to '\.\.'"):
        await supervisor.spawn(sh("true", **below))


@needs
async def test_a_link_that_stays_within_the_folder_is_followed_unless_the_folder_in_it_is_of_another_program(
    supervisor: Supervisor, repo: Path
) -> None:
    """Say `current`, which leads to a release. Who may write in the folder has the place behind the link anyway."""
    (repo / "releases/3").mkdir(parents=True)
    (repo / "releases/current").symlink_to("3")
    (repo / "latest").symlink_to("releases/current")
    assert await run(supervisor, "ls", trust="untrusted", working_dir=repo) == "docs\nlatest\nreleases\n"
    assert await run(supervisor, "pwd", trust="untrusted", working_dir=repo / "latest") == f"{repo}/releases/3\n"
    await run(supervisor, "ln -s ../docs out", trust="untrusted", working_dir=repo / "releases")
    with pytest.raises(SandboxPathRefused, match=rf"may write in '{repo}/releases'") as raised:
        await supervisor.spawn(sh("true", trust="untrusted", working_dir=repo / "releases/out"))
    assert f"name '{repo}/docs' itself" in raised.value.hint, "who means that place says so"
    assert await run(supervisor, "pwd", trust="untrusted", working_dir=repo / "docs") == f"{repo}/docs\n"


@needs
@pytest.mark.skipif(os.geteuid() != 0, reason="only root writes for other users")
@pytest.mark.parametrize("moved", ["before", "after the paths were checked"])
async def test_a_folder_of_somebody_else_that_a_child_has_moved_is_not_given_to_another_one(
    supervisor: Supervisor, repo: Path, monkeypatch: pytest.MonkeyPatch, moved: str
) -> None:
    """A sandbox writes as the owner of its folder. Here the folder is an ordinary user's, and has one of root's in it."""
    for each in repo, repo / "docs":
        os.chown(each, 1234, 1234)
    (repo / "secrets").mkdir(mode=0o700)
    (repo / "secrets/key").write_text("secret")
    move = "mv docs away && mv secrets docs && ! cat docs/key"
    if moved == "before":
        await run(supervisor, move, trust="untrusted", working_dir=repo)
        why = f"'{repo}/docs', which belongs to user 0: it lies in '{repo}', of user 1234"
    else:
        confined = client.confined_command

        def checked_and_then_moved(command: Command) -> Any:
            found = confined(command)
            subprocess.run(["sh", "-c", "mv docs away && mv secrets docs"], cwd=repo, check=True)
            return found

        remember_writable([str(repo)])
        monkeypatch.setattr(client, "confined_command", checked_and_then_moved)
        why = "Permission denied|may not write"
    with pytest.raises(SpawnFailed, match=why):
        await supervisor.spawn(sh("cat key; echo mine > key", trust="untrusted", working_dir=repo / "docs"))
    assert (repo / "docs/key").read_text() == "secret"


def test_other_workers_of_this_user_know_of_the_folder(repo: Path) -> None:
    script = f"from sabot.process.sandbox.paths import remember_writable; remember_writable([{str(repo)!r}])"
    subprocess.run([sys.executable, "-c", script], check=True)
    assert str(repo) in writable_folders()
    shutil.rmtree(repo / "docs")
    (repo / "docs").symlink_to(repo.parent / "home")
    found = planted(way_to(repo / "docs/secret"), writable_folders())
    assert found == ((f"{repo}/docs", f"{repo.parent}/home"), str(repo))


def test_folders_that_are_gone_are_forgotten(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "_FORGET_FROM", 0)
    remember_writable([str(repo / "docs")])
    shutil.rmtree(repo / "docs")
    monkeypatch.setattr(paths, "_kept", 0)
    remember_writable([str(repo)])
    assert str(repo) in writable_folders()
    assert str(repo / "docs") not in writable_folders()


@pytest.mark.parametrize(
    ("path", "real"),
    [
        ("plain/file", "plain/file"),
        ("./plain//../plain/.", "plain"),
        ("short/file", "plain/file"),
        ("far", "plain"),
        ("twice/file", "plain/file"),
        ("short/../home", "home"),
        ("nowhere/file", "nowhere/file"),
    ],
)
def test_a_path_is_resolved_as_the_kernel_does_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, real: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in "plain", "home":
        (tmp_path / folder).mkdir()
    for name, target in ("short", "plain"), ("far", f"{tmp_path}/plain"), ("twice", "./short"):
        (tmp_path / name).symlink_to(target)
    assert way_to(path).real == str(tmp_path / real) == os.path.realpath(path)


def test_links_in_a_circle_are_refused(tmp_path: Path) -> None:
    (tmp_path / "one").symlink_to("other")
    (tmp_path / "other").symlink_to("one")
    with pytest.raises(OSError, match="Too many levels"):
        way_to(tmp_path / "one")


# -- while it is being started -----------------------------------------------------------------------------------------------


@needs
@pytest.mark.parametrize("named", ["working_dir", "writable", "readable", "inside what it may write"])
async def test_a_link_that_is_planted_after_the_paths_were_checked_is_refused(
    supervisor: Supervisor, repo: Path, monkeypatch: pytest.MonkeyPatch, named: str
) -> None:
    def checked_and_then_replaced(command: Command) -> Any:
        found = confined(command)
        (repo / "docs").rmdir()
        (repo / "docs").symlink_to(repo.parent / "home")
        return found

    confined = client.confined_command
    monkeypatch.setattr(client, "confined_command", checked_and_then_replaced)
    given = Sandbox(
        level="untrusted",
        writable={"writable": [repo / "docs"], "inside what it may write": [repo]}.get(named, []),
        readable=[repo / "docs"] if named == "readable" else [],
    )
    where = repo / "docs" if named in ("working_dir", "inside what it may write") else None
    with pytest.raises(SandboxPathRefused, match=rf"'{repo}/docs', and a symbolic link was put there after") as raised:
        await supervisor.spawn(sh("echo mine > secret", trust=given, working_dir=where))
    assert raised.value.code == "E2043"
    assert (repo.parent / "home/secret").read_text() == "secret"


SWAPPED = """
import json, os, sys
from sabot.process.sandbox.confine import confinement, enter, prepare
plan, repo, at = json.loads(sys.argv[1])

def main():
    prepare(plan)
    waiting, ask = os.pipe()
    waited, answer = os.pipe()
    if os.fork() == 0:  # outside of what is being confined
        os.read(waiting, 1)
        os.rename(f"{repo}/docs", f"{repo}/moved")
        os.symlink(f"{repo}/../home", f"{repo}/docs")
        os.write(answer, b".")
        os._exit(0)
    steps = [*confinement(plan), ("directory", lambda: enter(plan["directory"]))]
    last = max(number for number, (name, _) in enumerate(steps) if name == at)
    for number, (name, action) in enumerate(steps):
        try:
            action()
        except OSError as error:
            return f"refused {name} {error.errno}"
        if number == last:
            os.write(ask, b".")
            os.read(waited, 1)
    said = "entered"
    for path in f"{repo}/docs/secret", f"{repo}/../home/secret":
        for mode in "w", "r":
            try:
                with open(path, mode) as file:
                    said += " got out: " + (file.read() if mode == "r" else str(file.write("mine")))
            except OSError:
                pass
    return said

print(main())
"""


@pytest.mark.one_in(3, "hundredths of a second of a core each")
@needs
@pytest.mark.skipif(os.geteuid() != 0, reason="the user of the sandbox is to differ from who plants the link")
@pytest.mark.parametrize("road", ["with mounts", "with Landlock alone"])
@pytest.mark.parametrize(
    ("at", "said"), [("paths", "refused {} 40"), ("mounts", "refused directory 40"), ("directory", "entered")]
)
def test_a_link_that_is_planted_after_the_paths_were_opened_is_not_followed(
    repo: Path, at: str, said: str, road: str
) -> None:
    """Whatever step it follows, the child goes on with what it has opened, or not at all."""
    os.chmod(repo / "docs", 0o777)
    plan = dict(client.confined_command(sh("true", trust="untrusted", working_dir=repo / "docs")).plan)
    plan |= {"directory": str(repo / "docs"), "filter": None}
    refusing = "mounts"
    if road == "with Landlock alone":
        plan |= {"mounts": False, "proc": False}
        at, refusing = "paths" if at == "mounts" else at, "directory"
    done = subprocess.run(
        [
            sys.executable,
            *("-I", "-S", "-c", BOOT.partition("from sabot.process.")[0] + SWAPPED),
            str(PACKAGE),
            json.dumps([plan, str(repo), at]),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr) == (said.format(refusing) + "\n", "")
    assert (repo.parent / "home/secret").read_text() == "secret"


def test_where_the_kernel_cannot_refuse_links_the_path_is_walked_by_single_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def as_before_linux_5_6(number: int, *arguments: Any, path: str | None = None) -> int:
        raise OSError(38, "not there", path)

    (tmp_path / "plain").mkdir()
    (tmp_path / "plain/file").write_text("x")
    (tmp_path / "linked").symlink_to("plain")
    for call in confine._call, as_before_linux_5_6:
        monkeypatch.setattr(confine, "_call", call)
        opened = confine._open_place(str(tmp_path / "plain/file"))
        assert os.path.samestat(os.fstat(opened), os.stat(tmp_path / "plain/file"))
        os.close(opened)
        before = sorted(os.listdir("/proc/self/fd"))
        for wrong, number in ("linked/file", 40), ("linked", 40), ("none", 2):
            with pytest.raises(OSError) as raised:
                confine._open_place(str(tmp_path / wrong))
            assert (raised.value.errno, raised.value.filename) == (number, str(tmp_path / wrong))
        assert sorted(os.listdir("/proc/self/fd")) == before


# -- by what is read to run its program --------------------------------------------------------------------------------------


def program(path: Path, content: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    path.chmod(0o755)
    return str(path)


def a_link_in_the_path(repo: Path, away: Path) -> list[str]:
    (repo / "bin").symlink_to(away)
    return ["sh"]


def a_library_beside_a_program(repo: Path, away: Path) -> list[str]:
    (repo / "bin").mkdir()
    (repo / "lib").symlink_to(away)
    return [program(repo / "bin/tool", '#!/bin/sh\nexec sh "$@"\n')]


def a_library_of_an_environment(repo: Path, away: Path) -> list[str]:
    (repo / "bin").mkdir()
    (repo / "pyvenv.cfg").write_text("")
    (repo / "lib").symlink_to(away)
    return ["sh"]


def the_python_of_an_environment(repo: Path, away: Path) -> list[str]:
    (repo / "bin").mkdir()
    (repo / "pyvenv.cfg").write_text(f"home = {away}/bin\n")
    return ["sh"]


PLANTED: list[Callable[[Path, Path], list[str]]] = [
    a_link_in_the_path,
    a_library_beside_a_program,
    a_library_of_an_environment,
    the_python_of_an_environment,
]


@needs
@pytest.mark.parametrize("plan", PLANTED, ids=lambda plan: plan.__name__)
async def test_what_a_child_may_write_opens_nothing_else_to_who_runs_it(
    supervisor: Supervisor, repo: Path, plan: Callable[[Path, Path], list[str]]
) -> None:
    away = repo.parent / "home"
    (away / "lib/python3").mkdir(parents=True)
    (away / "bin").mkdir()
    for each in away / "file", away / "lib/python3/file":
        each.write_text("private")
    await run(supervisor, "true", trust="untrusted", working_dir=repo)
    argv = plan(repo, away)
    script = f"cat {away}/file {away}/lib/python3/file {repo}/lib/file || echo refused"
    child = await supervisor.spawn(
        Command(argv=[*argv, "-c", script], trust="untrusted", environment={"PATH": f"/usr/bin:/bin:{repo}/bin"})
    )
    assert (await everything(child))[0] == "refused\n"


@needs
@pytest.mark.parametrize("way", ["by its first line", "as a link", "by a link above it"])
async def test_a_program_that_a_child_may_have_written_names_what_it_would_open(
    supervisor: Supervisor, repo: Path, way: str
) -> None:
    """Say an environment of the project's whose Python lies in a home: who wants that gives it."""
    python = program(repo.parent / "home/bin/odd", "#!/bin/sh\necho ran\n")
    match way:
        case "by its first line":
            tool = program(repo / "tool", f"#!{python}\n")
        case "as a link":
            (repo / "tool").symlink_to(python)
            tool = str(repo / "tool")
        case _:
            (repo / "bin").symlink_to(repo.parent / "home/bin")
            tool = str(repo / "bin/odd")
    refused = Command(argv=[tool], trust="untrusted", working_dir=repo)
    with pytest.raises(SandboxPathRefused, match=f"to run it .*{repo.parent}/home/bin.* would be read") as raised:
        await supervisor.spawn(refused)
    assert f"readable=['{repo.parent}/home/bin" in raised.value.hint
    given = Sandbox(level="untrusted", readable=[repo.parent / "home/bin"])
    child = await supervisor.spawn(Command(argv=[tool], trust=given, working_dir=repo))
    assert (await everything(child))[0] == "ran\n"


@needs
async def test_a_pipe_in_the_place_of_a_file_holds_no_start_up(supervisor: Supervisor, repo: Path) -> None:
    (repo / "bin").mkdir()
    os.mkfifo(repo / "pyvenv.cfg")
    where = {"PATH": f"/usr/bin:/bin:{repo}/bin"}
    assert await run(supervisor, "echo ran", trust="untrusted", working_dir=repo, environment=where) == "ran\n"


def test_the_folder_that_remembers_is_its_users_alone() -> None:
    writable_folders()
    assert stat.S_IMODE(os.stat(paths._folder()).st_mode) == 0o700
