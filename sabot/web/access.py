"""The tokens and sessions of the console.

A token is a secret in the printed link; a browser gives it once, and gets a session, which its cookie names. Both
outlive the run: they are in a file of the state directory that only its owner can read.

Cookies know no ports: a browser sends the cookie to whoever serves another port of the same host name. Three things bound what such
a server has from it:

name       a host name of the app's own, with digits that only who has a token learns: other ports have it only if somebody is led to
           them under this very name
key        what an action needs beside the cookie. A browser gets it once, with the session, and keeps it in the storage of the origin,
           which belongs to one port. No page contains it, so that nobody gets it by a cookie
time       a session ends 12 hours after its last request
"""

import base64
import hashlib
import hmac
import json
import os
import re
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Literal, TypeAlias

from sabot.base.disk import hold, make_folder, open_lock, private, regular
from sabot.clock import SYSTEM_CLOCK, Clock
from sabot.errors import UNREADABLE

Role: TypeAlias = Literal["read", "act"]
"""The rights of a session: to read pages, or to act too."""

_FILE = "console.json"
_UNUSED_SECONDS = 12 * 3_600  # after its last request a session ends
SESSION_SECONDS = 7 * 86_400
"""The longest time of a session, however often it is used."""

_RENEWED_SECONDS = 600  # the time of the last request is that exact: not each one writes the file
_MOST_SESSIONS = 100
_MOST_BYTES = 1 << 20
_LOCK_SECONDS = 2.0  # for the lock of the file, which others hold for milliseconds
_TRY_SECONDS = 0.01


@dataclass(frozen=True)
class ConsoleSession:
    """A session of a browser, or of a program that sends a token with each request (`by_token`). `user`: the person whom a trusted proxy
    names, or "". `host`: the host, and its port, at which the session holds. `form`: the token that its forms carry, which another
    site cannot know.
    """

    secret: str
    role: Role
    user: str = ""
    host: str = ""
    by_token: bool = False

    @property
    def form(self) -> str:
        """The token of the forms of this session."""
        return hmac.new(self.secret.encode(), b"form", hashlib.sha256).hexdigest()

    @property
    def principal(self) -> str:
        """The name under which this session acts: the user, or `console:` and digits that tell sessions apart, without the secret."""
        return self.user or f"console:{_hash(self.secret)[:12]}"


@dataclass
class _AccessFile:
    """The contents of the file. `sessions`: by the hash of the secret and its host, the role, and the seconds of its last request and of
    its beginning.
    """

    act: str = field(default_factory=lambda: secrets.token_urlsafe(24))
    read: str = field(default_factory=lambda: secrets.token_urlsafe(24))
    sessions: dict[str, tuple[Role, float, float]] = field(default_factory=dict)


class Access:
    """The tokens and sessions of one app. Not thread-safe: the server's thread uses it. Several processes may have the same
    file, as all `sabot web` of a person have: a change of the file is read before the next use.
    """

    def __init__(self, folder: Path | None, clock: Clock = SYSTEM_CLOCK) -> None:
        """`folder`: the state directory, or None to keep everything in memory. Raises OSError if the file cannot be written."""
        self._file = None if folder is None else folder / _FILE
        self._clock = clock
        self._kept = _AccessFile()
        self._read: tuple[int, int] | None = None  # the file as it was read or written last: its inode and time
        self._change(lambda kept: None)

    def token(self, role: Role) -> str:
        """Returns the token of a role, for the link."""
        return self._kept.act if role == "act" else self._kept.read

    def role_of(self, token: str) -> Role | None:
        """Returns the role that a token gives, or None if it is no token."""
        role: Role | None = None
        for each in ("read", "act"):
            if hmac.compare_digest(token.encode(), self.token(each).encode()):
                role = each
        return role

    def enter(self, token: str, host: str = "") -> ConsoleSession | None:
        """Returns a new session at a host for a token, or None if the token is wrong."""
        role = self.role_of(token)
        if role is None:
            return None
        session = ConsoleSession(secrets.token_urlsafe(24), role, host=host)

        def add(kept: _AccessFile) -> None:
            now = self._clock.time()
            kept.sessions[_name(session)] = (session.role, now, now)
            while len(kept.sessions) > _MOST_SESSIONS:
                kept.sessions.pop(min(kept.sessions, key=lambda each: kept.sessions[each][1]))

        self._change(add)
        return session

    def session(self, secret: str, host: str = "", *, used: bool = True) -> ConsoleSession | None:
        """Returns the session of a cookie of a host, or None if there is none, or if it is too old. `used`: the session goes on for
        another 12 hours.
        """
        self._read_if_new()
        session = ConsoleSession(secret, "read", host=host)
        role, last, began = self._kept.sessions.get(_name(session), ("read", -float("inf"), -float("inf")))
        now = self._clock.time()
        if now - last >= _UNUSED_SECONDS or now - began >= SESSION_SECONDS:
            return None
        if used and now - last > _RENEWED_SECONDS:
            self._change(lambda kept: kept.sessions.update({_name(session): (role, now, began)}))
        return replace(session, role=role)

    def of_token(self, token: str) -> ConsoleSession | None:
        """Returns the session of a program that sends a token with its request, or None if the token is wrong."""
        role = self.role_of(token)
        return None if role is None else ConsoleSession(token, role, by_token=True)

    def lasts(self, session: ConsoleSession) -> bool:
        """Returns True if a session has not ended. To look does not use it."""
        if session.by_token:
            return self.role_of(session.secret) is not None
        return self.session(session.secret, session.host, used=False) is not None

    def leave(self, session: ConsoleSession) -> None:
        """Ends a session."""
        self._change(lambda kept: kept.sessions.pop(_name(session), None))

    def key(self, session: ConsoleSession) -> str:
        """Returns the key of a session, which its actions need beside its cookie."""
        return self._digest(f"key {_name(session)}").hex()

    def host_name(self, title: str) -> str:
        """Returns the host name of the server of this title, below localhost, which browsers find on their own machine. Its digits follow
        from the token: it stays the same as long as this.
        """
        word = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")[:40].strip("-")
        digits = base64.b32encode(self._digest("host")).decode().lower()[:8]
        return f"{word}-{digits}.localhost" if word else f"app-{digits}.localhost"

    def _digest(self, text: str) -> bytes:
        return hmac.digest(self._kept.act.encode(), text.encode(), "sha256")

    def _change(self, change: Callable[[_AccessFile], object]) -> None:
        """Changes what the file has now, and writes it, while no other process does: else the sessions that another one has begun
        meanwhile would be lost.
        """
        if self._file is None:
            change(self._kept)
            return
        make_folder(self._file.parent)
        with os.fdopen(open_lock(self._file.with_suffix(".lock")), "r+b") as lock:
            deadline = SYSTEM_CLOCK.monotonic() + _LOCK_SECONDS
            while not _is_taken(lock) and SYSTEM_CLOCK.monotonic() < deadline:
                time.sleep(_TRY_SECONDS)  # a process that was stopped (SIGSTOP) in between must not stop this one too
            self._read_if_new()
            change(self._kept)
            self._save(self._file)

    def _read_if_new(self) -> None:
        """Reads the file if it has changed. A file that does not exist, or cannot be read, changes nothing."""
        if self._file is None:
            return
        try:
            if (seen := _stamp(self._file)) == self._read:
                return
            self._read = seen
            with open(self._file, "rb", opener=regular) as file:
                found = json.loads(file.read(_MOST_BYTES))
            # Of a session of an earlier version the file has its beginning only.
            sessions = {
                str(name): (_role(role), float(used), float(began[0] if began else used))
                for name, (role, used, *began) in found["sessions"].items()
            }
            kept = _AccessFile(str(found["act"]), str(found["read"]), sessions)
        except (OSError, KeyError, TypeError, AttributeError, *UNREADABLE):
            return
        if len(kept.act) >= 32 and len(kept.read) >= 32:
            self._kept = kept

    def _save(self, file: Path) -> None:
        unfinished = file.with_suffix(f".{os.getpid()}.tmp")
        with suppress(FileNotFoundError):
            unfinished.unlink()
        with open(unfinished, "x", opener=private) as writing:
            json.dump({"act": self._kept.act, "read": self._kept.read, "sessions": self._kept.sessions}, writing)
        self._read = _stamp(unfinished)
        os.replace(unfinished, file)


def _is_taken(lock: IO[bytes]) -> bool:
    """Takes a lock, and returns True if no other process has it."""
    try:
        hold(lock)
    except BlockingIOError:
        return False
    return True


def _stamp(file: Path) -> tuple[int, int]:
    status = file.stat()
    return status.st_ino, status.st_mtime_ns


def _role(word: object) -> Role:
    return "act" if word == "act" else "read"


def _name(session: ConsoleSession) -> str:
    """Returns the name of a session in the file: nobody who reads the file has its cookie, and the cookie is worth nothing elsewhere."""
    return _hash(f"{session.host} {session.secret}")


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
