"""`sabot run --reload`: the program runs in a child, and again whenever a file of it has changed. For development.

A change stops the child as SIGTERM does, with a final checkpoint, from which the next one goes on. A file that does not parse changes
nothing: the error is told, and the child goes on until the file is mended. A child that ends by itself is started at the next change.
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

_LOOK_SECONDS = 0.3
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_SKIPPED = {"__pycache__", "node_modules", "site-packages"}

_Stamp = tuple[int, int, int]  # time of modification in ns, size, inode


def program_files(folder: Path) -> dict[Path, _Stamp]:
    """The Python files in and below a folder, without hidden folders and virtual environments, and by what their changes are seen."""
    found = {}
    for here, folders, names in os.walk(folder):
        folders[:] = [
            each
            for each in folders
            if each not in _SKIPPED and each[0] != "." and not Path(here, each, "pyvenv.cfg").exists()
        ]
        for name in names:
            path = Path(here, name)
            if path.suffix == ".py":
                try:
                    status = path.stat()
                except FileNotFoundError:  # an editor is just replacing it
                    continue
                found[path] = (status.st_mtime_ns, status.st_size, status.st_ino)
    return found


def reload_on_change(first: Sequence[str], again: Sequence[str], folder: Path) -> int:
    """Runs a command, and the second one after each change of a program file in `folder`, until a signal. Returns the exit code."""
    asked = 0
    child: subprocess.Popen[bytes] | None = None

    def on_signal(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        asked = number
        if child is not None:
            child.send_signal(number)  # from a terminal the child has it as well: two at once count as one

    def start(command: Sequence[str]) -> "subprocess.Popen[bytes]":
        nonlocal child
        child = subprocess.Popen(command)
        if asked:  # before there was a child to be told
            child.send_signal(asked)
        return child

    before = {number: signal.signal(number, on_signal) for number in _SIGNALS}
    try:
        seen = program_files(folder)
        child = start(first)
        while not asked:
            if child is None:
                time.sleep(_LOOK_SECONDS)
            elif (code := _ended(child)) is not None:
                child = None
                if not asked:
                    _say(f"the program has ended with code {code}; it starts again when a file of it changes")
            now = program_files(folder)
            if now == seen or asked:
                continue
            changed = [path for path, stamp in now.items() if seen.get(path) != stamp]
            seen = now
            if (wrong := _wrong(changed)) is not None:
                _say(f"{wrong}; {'what runs goes on' if child is not None else 'waiting'} until it is mended")
                continue
            _say(f"{', '.join(path.name for path in changed) or 'a file'} changed: starting again")
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


def _ended(child: "subprocess.Popen[bytes]") -> int | None:
    try:
        return _code(child.wait(_LOOK_SECONDS))
    except subprocess.TimeoutExpired:
        return None


def _code(returned: int) -> int:
    """What a shell would say: a signal n is 128 + n."""
    return 128 - returned if returned < 0 else returned


def _wrong(changed: Sequence[Path]) -> str | None:
    """The first error of syntax in these files, with its place."""
    for path in changed:
        try:
            ast.parse(path.read_bytes(), str(path))
        except FileNotFoundError:
            continue
        except (SyntaxError, ValueError) as error:  # ValueError: a null byte
            line = f":{error.lineno}" if isinstance(error, SyntaxError) else ""
            return f"{path}{line}: {type(error).__name__}: {getattr(error, 'msg', error)}"
    return None


def _say(what: str) -> None:
    print(f"sabot: {what}", file=sys.stderr, flush=True)
