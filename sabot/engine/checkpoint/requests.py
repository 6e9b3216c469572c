"""Requests to a running app, as files in its checkpoint directory: this needs no port, and works on every machine that sees
the directory.

requests/<id>.json        the request: {"savepoint": LOCATION} or {"checkpoint": true}
requests/<id>.done.json   the answer: {"checkpoint": id, "path": …} or {"error": …}
"""

import asyncio
import json
import logging
import os
import re
import time
import uuid
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from sabot.base.disk import make_folder, private, regular
from sabot.base.redaction import scrubbed
from sabot.base.threads import run_in_thread
from sabot.clock import SYSTEM_CLOCK
from sabot.engine.checkpoint.places import LocalPlace
from sabot.errors import UNREADABLE, UserError

_log = logging.getLogger(__name__)

_ASKED = re.compile(r"([0-9a-f]{32})\.json")
_POLL_SECONDS = 0.05
_SERVE_SECONDS = 0.25
_LOOK_SECONDS = 0.5
_GONE_SECONDS = 3.0  # the next run follows sooner than this, unless it waits to be restarted
_OLD_SECONDS = 120.0
_MOST_BYTES = 65_536  # of a request


class Requests:
    """The requests, as the running app sees them. All methods block on the disk, and may be called from any thread."""

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self._folder = Path(directory) / "requests"

    def clear(self) -> None:
        """Removes old requests and answers, which were made to an earlier run."""
        for name in self._names():
            path = self._folder / name
            with suppress(FileNotFoundError):
                if SYSTEM_CLOCK.time() - path.stat().st_mtime > _OLD_SECONDS:
                    path.unlink()

    def pending(self) -> list[tuple[str, dict[str, Any]]]:
        """Returns the requests without an answer, as (id, request). A request that cannot be read is answered with
        the reason.
        """
        names = self._names()
        found = []
        for name in sorted(names):
            match = _ASKED.fullmatch(name)
            if match is None or f"{match[1]}.done.json" in names:
                continue
            try:
                with open(self._folder / name, "rb", opener=regular) as file:
                    request = json.loads(file.read(_MOST_BYTES))
            except FileNotFoundError:
                continue  # the client has given up
            except OSError as error:
                self.answer(match[1], {"error": f"the request cannot be read: {error.strerror or error}"})
                continue
            except UNREADABLE as error:
                self.answer(match[1], {"error": f"the request is not JSON: {error}"})
                continue
            if not isinstance(request, dict):
                self.answer(match[1], {"error": "the request is not a JSON object"})
                continue
            found.append((match[1], request))
        return found

    def answer(self, request_id: str, answer: dict[str, Any]) -> None:
        """Writes the answer, and removes the request even if the client is gone, because the location of a savepoint
        may contain a secret key.
        """
        _write(self._folder / f"{request_id}.done.json", answer)
        # macOS reports a folder as a permission error
        with suppress(FileNotFoundError, IsADirectoryError, PermissionError):
            (self._folder / f"{request_id}.json").unlink()

    def _names(self) -> set[str]:
        try:
            return set(os.listdir(self._folder))
        except FileNotFoundError:
            return set()


async def serve(requests: Requests, answered: Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]) -> None:
    """Answers requests on the event loop of the app until it is cancelled.

    `answered`: a coroutine function that executes a request and returns the answer. The request has the key `id`,
    which stays the same if a later run finds the request again. A run executes a request once: if the answer cannot
    be written, as on a full disk, only the writing is tried again.
    """
    unread = False
    unwritten: dict[str, dict[str, Any]] = {}  # by the id of its request: an answer that could not be written yet
    try:
        await run_in_thread(requests.clear)
    except OSError as error:
        _log.warning("old requests of the command line cannot be removed: %s", error)
    while True:
        await asyncio.sleep(_SERVE_SECONDS)
        try:
            pending = await run_in_thread(requests.pending)
        except OSError as error:  # no permission, or no more files: the app itself needs no requests
            if not unread:
                _log.warning("requests of the command line cannot be read: %s", error)
            unread = True
            continue
        unread = False
        known, unwritten = unwritten, {}  # requests whose clients have given up are forgotten
        for request_id, request in pending:
            answer = known.get(request_id)
            if answer is None:
                try:
                    answer = await answered({**request, "id": request_id})
                except Exception as error:  # after any error, the next request is answered
                    answer = {"error": scrubbed(str(error))}
                    _log.warning("request %s failed: %s", request_id, answer["error"])
            try:
                await run_in_thread(requests.answer, request_id, answer)
            except OSError as error:
                unwritten[request_id] = answer
                if request_id not in known:
                    _log.warning("request %s cannot be answered yet: %s", request_id, error)


def ask(directory: str | os.PathLike[str], request: dict[str, Any], timeout: float = 60.0) -> dict[str, Any]:
    """Sends a request to the app that runs on this checkpoint directory. Returns its answer. Blocks for `timeout`
    seconds at most.

    Raises UserError if the app refuses, does not answer in time, or has ended (the directory was not locked for three
    seconds).
    """
    place = LocalPlace(Path(directory))
    folder = Path(directory) / "requests"
    if not folder.is_dir():
        make_folder(folder)
        _give_to_owner(folder)
    request_id = uuid.uuid4().hex
    asked, done = folder / f"{request_id}.json", folder / f"{request_id}.done.json"
    _write(asked, request)
    seen = looked = SYSTEM_CLOCK.monotonic()
    deadline = seen + timeout
    try:
        while not done.exists():
            now = SYSTEM_CLOCK.monotonic()
            if now > deadline:
                raise UserError(
                    f"no app that uses the checkpoint directory {directory} has answered within {timeout:g} s",
                    hint="check that the app runs, and that this is its checkpoint directory",
                )
            if now >= looked + _LOOK_SECONDS:
                looked = now
                seen = now if place.in_use() else seen
                if now - seen > _GONE_SECONDS:
                    raise UserError(
                        f"the app that used {directory} has ended",
                        hint="its log has the reason; ask again once it is restarted",
                    )
            time.sleep(_POLL_SECONDS)
        answer: dict[str, Any] = json.loads(done.read_bytes())
    finally:
        asked.unlink(missing_ok=True)
        done.unlink(missing_ok=True)
    if "error" in answer:
        raise UserError(answer["error"])
    return answer


def _write(path: Path, value: dict[str, Any]) -> None:
    """Writes the file so that a reader finds all of it or nothing."""
    unfinished = path.with_suffix(".tmp")
    unfinished.unlink(missing_ok=True)  # left by a full disk or a crash
    with open(unfinished, "x", opener=private) as file:
        json.dump(value, file)
    _give_to_owner(unfinished)
    os.replace(unfinished, path)


def _give_to_owner(path: Path) -> None:
    """Gives a file that root has made to the owner of its folder: the user of the app, who must be able to read it."""
    if os.geteuid() == 0:
        os.chown(path, path.parent.stat().st_uid, -1, follow_symlinks=False)
