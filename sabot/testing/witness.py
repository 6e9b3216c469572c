"""A witness of side effects: an HTTP service that does what it is asked, and keeps a record of it that no crash of the app can change."""

import asyncio
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import weakref
from collections import Counter
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal
from urllib.parse import quote, urlsplit

from sabot.config import Duration, parse_seconds
from sabot.errors import SabotError, UserError
from sabot.testing.witness_server import FAULTS, canonical

Fault = Literal["slow", "late", "fail_before", "fail_after", "drop_before", "drop_after"]

_SERVER = Path(__file__).with_name("witness_server.py")
_STOP_SECONDS = 10.0


class WitnessFailed(SabotError):
    """The witness answered with an error. `status` is that of HTTP: 503 when nothing has happened, 500 when the effect has happened."""

    def __init__(self, message: str, *, status: int) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class SideEffect:
    """An effect that has happened. number: grows in the order in which they happened. at: seconds since 1970."""

    number: int
    name: str
    arguments: Any
    key: str
    at: float


class WitnessClient:
    """Asks a witness to do things. It uses only the standard library, has no state, and may be used from any thread and any loop.

    A connection that breaks, or that the witness drops, is a ConnectionError: nobody knows whether the effect has happened. A witness
    that is not there is a ConnectionRefusedError. An answer that says so is a WitnessFailed.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme != "http" or not parts.hostname or not parts.port:
            raise UserError(f"no address of a witness: {url!r}", hint="give Witness(…).url")
        self._place = (parts.hostname, parts.port)

    def do(
        self,
        name: str,
        arguments: Any = None,
        *,
        key: str = "",
        fault: Fault | None = None,
        seconds: Duration | None = None,
        deadline: float | None = None,
        timeout: Duration | None = 60.0,
    ) -> dict[str, Any]:
        """Makes the effect happen, and returns it: {"number", "name", "arguments", "key"}. Blocks.

        arguments: whatever JSON can say. key: the idempotency key; a witness that honours keys returns the first effect of this key in
        place of a second one. fault, seconds: how this request is to go wrong (`Witness`), whatever the witness's own plan is. deadline:
        seconds since 1970; a request that comes later changes nothing (410), so one that a paused worker sends when it wakes up does no
        harm: give `effect.deadline`. timeout: until a TimeoutError, after which nobody knows whether the effect has happened.
        """
        return _said(self._exchange(_do(name, arguments, key, fault, seconds, deadline), timeout))

    async def do_async(
        self,
        name: str,
        arguments: Any = None,
        *,
        key: str = "",
        fault: Fault | None = None,
        seconds: Duration | None = None,
        deadline: float | None = None,
        timeout: Duration | None = 60.0,
    ) -> dict[str, Any]:
        """As `do`, on an event loop."""
        return _said(await self._exchange_async(_do(name, arguments, key, fault, seconds, deadline), timeout))

    def find(self, key: str, *, timeout: Duration | None = 60.0) -> dict[str, Any] | None:
        """The first effect that happened with this key; None: none has. It is what `reconcile=` of a tool asks. Blocks."""
        return _found(self._exchange(_request("GET", f"/effects?key={quote(key, safe='')}"), timeout))

    async def find_async(self, key: str, *, timeout: Duration | None = 60.0) -> dict[str, Any] | None:
        """As `find`, on an event loop."""
        return _found(await self._exchange_async(_request("GET", f"/effects?key={quote(key, safe='')}"), timeout))

    def plan(self, fault: Fault, name: str = "", *, times: int = 1, seconds: Duration | None = None) -> None:
        """The next requests get this fault: so many of them, those of this name, or of any. Later plans wait for earlier ones. Blocks."""
        wanted = {"fault": fault, "name": name, "times": times} | (
            {} if seconds is None else {"seconds": parse_seconds(seconds, name="seconds")}
        )
        _said(self._exchange(_request("POST", "/plan", wanted), 60.0))

    def _exchange(self, request: bytes, timeout: Duration | None) -> bytes:
        timeout_s = None if timeout is None else parse_seconds(timeout, name="timeout")
        with socket.create_connection(self._place, timeout_s) as connection:
            connection.sendall(request)
            parts = []
            while part := connection.recv(1 << 16):
                parts.append(part)
            return b"".join(parts)

    async def _exchange_async(self, request: bytes, timeout: Duration | None) -> bytes:
        timeout_s = None if timeout is None else parse_seconds(timeout, name="timeout")
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_connection(*self._place)
            try:
                writer.write(request)
                return await reader.read()
            finally:
                writer.close()


class Witness:
    """An HTTP service that does what it is asked, and records each effect that has happened, in a process and a SQLite file of its own. So
    it knows what an app did, whatever becomes of the app.

        with Witness(tmp_path / "witness.db") as witness:
            ...                                     # run the app, kill it, start it again; its tools call WitnessClient(witness.url)
            assert witness.twice("refund") == {}

    Its process ends with the process that made it, however that ends; with `keep` it goes on until `stop`, or SIGTERM to `pid`. It listens
    on a free port of the loopback interface. Other programs can use it as well: `POST /effects/NAME` with the arguments as JSON, and
    the key as the header Idempotency-Key, the deadline as Witness-Deadline; `GET /effects?key=KEY`.

    path: of the record, which may be that of an earlier witness. honours_keys: a second request with the same idempotency key changes
    nothing, and gets the first one's answer; with other arguments it is refused (422). faults: shares of the requests that go wrong,
    {"drop_after": 0.1}; which ones they are is decided by the seed, from name, arguments, and how often they came, in whatever order they
    come. seconds: how long slow and late answers take, unless a request says otherwise.

        slow         waits, then does it and answers         late         does it, waits, then answers
        fail_before  answers 503, and does nothing           fail_after   does it, and answers 500
        drop_before  closes the connection, does nothing     drop_after   does it, and closes the connection without an answer
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        honours_keys: bool = False,
        faults: Mapping[str, float] | None = None,
        seed: int = 0,
        seconds: Duration = 0.5,
        keep: bool = False,
    ) -> None:
        shares = dict(faults or {})
        if shares.keys() - set(FAULTS) or sum(shares.values()) > 1 or any(share < 0 for share in shares.values()):
            raise UserError(f"faults of a witness: {shares}", hint=f"shares of {', '.join(FAULTS)}, 1 at most in all")
        self.path = Path(path).absolute()
        self._options: dict[str, Any] = {
            "path": str(self.path),
            "port": 0,
            "honours_keys": honours_keys,
            "faults": shares,
            "seed": seed,
            "seconds": parse_seconds(seconds, name="seconds"),
            "keep": keep,
        }
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def url(self) -> str:
        """The address for clients. It stays the same when the witness is stopped and started."""
        return f"http://127.0.0.1:{self._options['port']}"

    @property
    def pid(self) -> int | None:
        """The process of the witness; None when it is stopped."""
        return None if self._process is None else self._process.pid

    @property
    def client(self) -> WitnessClient:
        """A client of this witness. Other processes make one from the `url`."""
        return WitnessClient(self.url)

    def start(self) -> None:
        """Takes requests from now on, at the same address as before. Does nothing when it runs."""
        if self._process is not None:
            return
        process = subprocess.Popen(
            [sys.executable, "-I", os.fspath(_SERVER), json.dumps(self._options)],
            stdin=subprocess.DEVNULL if self._options["keep"] else subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd="/",
            start_new_session=True,  # Ctrl-C does not reach it
        )
        assert process.stdout is not None
        with process.stdout as said:
            port = said.readline()
        if not port:
            code = process.wait(_STOP_SECONDS)
            raise SabotError(f"the witness of {self.path} did not start: it ended with {code}, and said why above")
        self._options["port"] = int(port)
        self._process = process
        _running.add(self)

    def stop(self, *, kill: bool = False) -> None:
        """Takes no more requests; callers that wait for an answer see their connection break. The record stays. kill: by SIGKILL. Does
        nothing when it is stopped.
        """
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(signal.SIGKILL if kill else signal.SIGTERM)
            process.wait(_STOP_SECONDS)
            if process.stdin is not None:
                process.stdin.close()

    def _forget(self) -> None:
        """In a fork: the witness is not this process's to stop."""
        process, self._process = self._process, None
        if process is not None and process.stdin is not None:
            process.stdin.close()

    def __enter__(self) -> "Witness":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # -- what has happened: read from the file, whether the witness runs or not ------------------------------------------------------

    def effects(self, name: str | None = None) -> list[SideEffect]:
        """The effects that have happened, those of this name or all, in their order."""
        rows = self._rows("number, name, arguments, key, at", "happened", name)
        return [SideEffect(number, what, json.loads(text), key, at) for number, what, text, key, at in rows]

    def count(self, name: str, arguments: Any = None) -> int:
        """How often the effect of this name with these arguments has happened."""
        wanted = canonical(arguments)
        return sum(canonical(effect.arguments) == wanted for effect in self.effects(name))

    def twice(self, name: str | None = None) -> list[SideEffect]:
        """The effects that had happened before, with the same name and arguments: empty where each happened once at most. Keys do not
        count, because a program that does something twice may do it with two keys.
        """
        seen: set[tuple[str, str]] = set()
        found = []
        for effect in self.effects(name):
            what = (effect.name, canonical(effect.arguments))
            if what in seen:
                found.append(effect)
            seen.add(what)
        return found

    def names(self) -> Counter[str]:
        """How many effects of each name have happened."""
        return Counter(effect.name for effect in self.effects())

    def requests(self, name: str | None = None) -> Counter[str]:
        """How many requests came, by what became of them: "done", "repeated" (a known key: nothing happened), "expired" (nothing
        happened), or the fault.
        """
        rows = self._rows("fault, happened", "TRUE", name)
        return Counter(fault or ("done" if happened else "repeated") for fault, happened in rows)

    def _rows(self, columns: str, which: str, name: str | None) -> list[Any]:
        sql = f"SELECT {columns} FROM requests WHERE {which} AND (?1 IS NULL OR name = ?1) ORDER BY number"
        with closing(sqlite3.connect(f"{self.path.as_uri()}?mode=rw", uri=True)) as database:
            return database.execute(sql, [name]).fetchall()


_running: "weakref.WeakSet[Witness]" = weakref.WeakSet()


def _let_go() -> None:
    """A fork of the process must not hold the pipe open whose end tells a witness that its maker has ended."""
    for witness in list(_running):
        witness._forget()


os.register_at_fork(after_in_child=_let_go)


def _request(method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None) -> bytes:
    data = b"" if method == "GET" else canonical(body).encode()
    lines = [f"{method} {path} HTTP/1.1", "Host: witness", f"Content-Length: {len(data)}"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    return "\r\n".join([*lines, "", ""]).encode() + data


def _do(
    name: str, arguments: Any, key: str, fault: str | None, seconds: Duration | None, deadline: float | None
) -> bytes:
    if not key.isprintable():
        raise UserError(f"an idempotency key goes in a line of HTTP, and {key!r} cannot")
    headers = {
        "Idempotency-Key": key,
        "Witness-Fault": fault or "",
        "Witness-Seconds": "" if seconds is None else str(parse_seconds(seconds, name="seconds")),
        "Witness-Deadline": "" if deadline is None else str(deadline),
    }
    return _request("POST", f"/effects/{quote(name, safe='')}", arguments, {k: v for k, v in headers.items() if v})


def _answer(data: bytes) -> tuple[int, dict[str, Any]]:
    """(status, body). Raises ConnectionResetError where the answer is not whole."""
    head, _, body = data.partition(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    if f"Content-Length: {len(body)}" not in lines:
        raise ConnectionResetError("the witness closed the connection without an answer")
    return int(lines[0].split()[1]), json.loads(body)


def _said(data: bytes) -> dict[str, Any]:
    status, body = _answer(data)
    if status != 200:
        raise WitnessFailed(f"{body['error']} (status {status})", status=status)
    return body


def _found(data: bytes) -> dict[str, Any] | None:
    return None if _answer(data)[0] == 404 else _said(data)
