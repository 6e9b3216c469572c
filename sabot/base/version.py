"""The version of this build: `0.1.0` for a release, else `0.1.0.devN+COMMIT`, where N counts the commits.

    a tree of git               is asked for its commit, so that nothing is built or installed anew for a commit
    an sdist, and what is made  say in PKG-INFO and in their metadata the version with which they were built
    of it: a wheel
    a tree without both         is `0.1.0.dev0`, such as an archive of the sources

`setup.py` runs this file by itself, so it imports nothing of Sabot.
"""

import os
import re
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

RELEASE = "0.1.0"
_GIT_SECONDS = 5.0


@cache
def sabot_version() -> str:
    """Returns the version of the Sabot of this process. The first call may run git, some 10 ms."""
    return version_of(Path(__file__).resolve().parents[2])


def version_of(tree: Path) -> str:
    """Returns the version of the build whose package `sabot` lies in this folder."""
    if (tree / ".git").exists():  # in a worktree it is a file
        return _commit(tree) or f"{RELEASE}.dev0"
    told = tree / "PKG-INFO"
    if told.exists() and (found := re.search(r"^Version: (\S+)$", told.read_text("utf-8"), re.MULTILINE)):
        return found[1]
    # Of this folder or archive: another Sabot may come before it on the path.
    from importlib import metadata  # here, because it is slow to import

    installed = next(iter(metadata.distributions(name="sabot", path=[str(tree)])), None)
    return f"{RELEASE}.dev0" if installed is None else installed.version


def _commit(tree: Path) -> str | None:
    """Returns the version of the commit, or None if git cannot tell it. A clone without history counts one commit."""
    count, commit = _git(tree, "rev-list", "--count", "HEAD"), _git(tree, "rev-parse", "--short=9", "HEAD")
    if not count or not commit:
        return None
    tags = _git(tree, "tag", "--points-at", "HEAD") or ""
    return RELEASE if f"v{RELEASE}" in tags.split() else f"{RELEASE}.dev{count}+g{commit}"


def _git(tree: Path, *words: str) -> str | None:
    # a hook names a repository
    clean = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        done = subprocess.run(
            ["git", "-C", str(tree), *words],
            env=clean,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_GIT_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired):  # there is no git
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def __getattr__(name: str) -> Any:
    """Gives `sabot.__version__`, which is not asked for at each start (PEP 562)."""
    if name == "__version__":
        return sabot_version()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}", name=name)
