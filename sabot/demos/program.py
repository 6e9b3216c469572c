"""The program of a demo, in a process of its own that `sabot run` starts; with `--web` also the console, as long as somebody looks."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, Self

from sabot.errors import SabotError
from sabot.process.launcher import end_with_parent

_STOP_SECONDS = 20.0


@contextmanager
def demo_folder(web: bool, state: str | None = None) -> Iterator[Path]:
    """Makes a folder for a demo, and removes it at the end, unless a page of its console has told how to start the app again, which takes
    the program that is in the folder: after a savepoint, and after a stop there. `state`: the directory of the state, if it is elsewhere.
    """
    folder = Path(tempfile.mkdtemp(prefix="sabot-demo-"))
    places = [folder] if state is None else [folder, Path(state)]
    before, stopped = _savepoints(places), False
    try:
        yield folder
        stopped = web  # with the console a demo ends by an exception otherwise, such as that of Ctrl-C
    finally:
        if stopped or _savepoints(places) - before:
            print(
                f"sabot: {folder} is kept, with the program of the demo; remove it when you are done", file=sys.stderr
            )
        else:
            shutil.rmtree(folder)


def _savepoints(places: Sequence[Path]) -> set[Path]:
    """Returns the savepoints below some directories, which may be missing."""
    return {made for place in places for beside in place.rglob("savepoints") for made in beside.iterdir()}


class DemoProgram:
    """A program in a folder, and its process, which may be killed and started again. At its end as a context the process is stopped; with
    the console SIGTERM and SIGHUP raise KeyboardInterrupt meanwhile, as Ctrl-C does, so that no process stays behind.
    """

    def __init__(self, folder: Path, name: str, text: str, options: Sequence[str] = (), *, web: bool = False) -> None:
        """`name`, `text`: of the module that is made in the folder and has the App `app`. `options`: further options of `sabot run`. `web`:
        True to open the console, which may show all values, because the demo has made them.
        """
        (folder / f"{name}.py").write_text(text)
        shown = ["--web", "--web-payloads", "all"] if web else []
        command = [sys.executable, "-P", "-m", "sabot", "run", f"{name}:app", "--loglevel", "warning"]
        self._command = [*command, *options, *shown]
        self._folder = folder
        self._web = web
        self._process: subprocess.Popen[str] | None = None
        self._said: set[str] = set()
        self._signals: dict[int, Any] = {}  # the handlers that are put back at the end

    def start(self) -> None:
        """Starts the process, which stops when the calling thread ends, also if the demo is killed. With the console it has a process group
        of its own, so that Ctrl-C is only for the demo, which stops it.
        """
        self._process = subprocess.Popen(
            self._command,
            cwd=self._folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE if self._web else None,
            process_group=0 if self._web else None,
            preexec_fn=partial(end_with_parent, os.getpid(), signal.SIGTERM),
            text=True,
        )
        if self._web:
            threading.Thread(target=self._repeat, args=(self._process,), name="stderr of the demo", daemon=True).start()

    def __enter__(self) -> Self:
        if self._web:
            self._signals = {each: signal.signal(each, _leave) for each in (signal.SIGTERM, signal.SIGHUP)}
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        for each, handler in self._signals.items():
            signal.signal(each, handler)

    def show(self, text: str) -> None:
        """Prints the text, and waits for the end of the process, or for Ctrl-C (KeyboardInterrupt). Raises SabotError if the app fails."""
        print(
            f"sabot: {text}; Ctrl-C ends the demo, and removes {self._folder} if no savepoint was made",
            file=sys.stderr,
            flush=True,
        )
        if code := self._started.wait():
            raise SabotError(f"the app of the demo ended with exit code {code}; its output is above")

    def poll(self) -> int | None:
        """Returns the exit code, or None while the process runs."""
        return self._started.poll()

    def kill(self) -> None:
        """Kills the process, as `kill -9` does."""
        self._started.kill()
        self._started.wait()

    def stop(self) -> None:
        """Stops the process in good order, or kills it if that takes too long. Does nothing if it has ended, or never began."""
        if self._process is None or self._process.poll() is not None:
            return
        self._process.terminate()
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()

    @property
    def _started(self) -> "subprocess.Popen[str]":
        assert self._process is not None
        return self._process

    def _repeat(self, process: "subprocess.Popen[str]") -> None:
        """Prints each line of the process on stderr, once: after each start the address of the console is the same."""
        assert process.stderr is not None
        for line in process.stderr:
            if line not in self._said:
                self._said.add(line)
                print(line, end="", file=sys.stderr, flush=True)


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt
