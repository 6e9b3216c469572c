"""`sabot run --reload`: runs the program in a child process, and starts it again when one of its files changes. For development.

A change sends SIGTERM to the child, which ends with a final checkpoint; the next child continues from it. If a changed file does not
parse, its error is printed and the child runs on until the file is corrected. A child that ends by itself is started at the next change.
"""

import ast
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from sabot.sql.syntax.parser import parse
from sabot.sql.syntax.text import SqlError, SqlText

_LOOK_SECONDS = 0.3
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_SKIPPED = {"__pycache__", "node_modules", "site-packages"}

_Stamp = tuple[int, int, int]  # time of modification in ns, size, inode


def program_files(folder: Path) -> dict[Path, _Stamp]:
    """Returns the files of Python and SQL in and below a folder, each with a stamp that changes when the file changes.

    Hidden folders, installed packages and virtual environments are left out.
    """
    found = {}
    for here, folders, names in os.walk(folder):
        folders[:] = [
            each
            for each in folders
            if each not in _SKIPPED and each[0] != "." and not Path(here, each, "pyvenv.cfg").exists()
        ]
        for name in names:
            path = Path(here, name)
            if path.suffix in (".py", ".sql"):
                try:
                    status = path.stat()
                except FileNotFoundError:  # an editor is replacing the file
                    continue
                found[path] = (status.st_mtime_ns, status.st_size, status.st_ino)
    return found


def reload_on_change(first: Sequence[str], again: Sequence[str], folder: Path) -> int:
    """Runs the command `first`, and `again` after each change of a program file in `folder`, until a signal. Returns the exit code."""
    asked = 0
    child: subprocess.Popen[bytes] | None = None

    def on_signal(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        asked = number
        if child is not None:
            child.send_signal(number)  # a terminal sends it to the child too; the child counts two at once as one

    def start(command: Sequence[str]) -> "subprocess.Popen[bytes]":
        nonlocal child
        child = subprocess.Popen(command)
        if asked:  # the signal came before there was a child
            child.send_signal(asked)
        return child

    before = {number: signal.signal(number, on_signal) for number in _SIGNALS}
    try:
        seen = program_files(folder)
        child = start(first)
        while not asked:
            if child is None:
                time.sleep(_LOOK_SECONDS)
            elif (code := _wait_for_end(child)) is not None:
                child = None
                if not asked:
                    _print(f"the program has ended with code {code}; it starts again when one of its files changes")
            now = program_files(folder)
            if now == seen or asked:
                continue
            changed = [path for path, stamp in now.items() if seen.get(path) != stamp]
            seen = now
            if (wrong := _first_syntax_error(changed)) is not None:
                going = "the program runs on as it was" if child is not None else "the program stays stopped"
                _print(f"{wrong}; {going} until the file is corrected")
                continue
            _print(f"{', '.join(path.name for path in changed) or 'a file'} changed: starting again")
            if child is not None:
                child.send_signal(signal.SIGTERM)
                child.wait()
            if not asked:
                child = start(again)
        return 128 + asked if child is None else _code(child.wait())
    finally:
        if child is not None and child.poll() is None:
            child.terminate()
            child.wait()
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait_for_end(child: "subprocess.Popen[bytes]") -> int | None:
    try:
        return _code(child.wait(_LOOK_SECONDS))
    except subprocess.TimeoutExpired:
        return None


def _code(returned: int) -> int:
    """Returns the exit code as a shell gives it: 128 + n for signal n."""
    return 128 - returned if returned < 0 else returned


def _first_syntax_error(changed: Sequence[Path]) -> str | None:
    """Returns the first syntax error in these files with its place, or None if all files parse."""
    for path in changed:
        try:
            if path.suffix == ".sql":
                parse(SqlText(path.read_text(encoding="utf-8"), str(path)))
            else:
                ast.parse(path.read_bytes(), str(path))
        except FileNotFoundError:
            continue
        except SqlError as error:
            return error.message
        except (SyntaxError, ValueError) as error:  # ValueError: a null byte
            line = f":{error.lineno}" if isinstance(error, SyntaxError) else ""
            return f"{path}{line}: {type(error).__name__}: {getattr(error, 'msg', error)}"
    return None


def _print(what: str) -> None:
    print(f"sabot: {what}", file=sys.stderr, flush=True)
