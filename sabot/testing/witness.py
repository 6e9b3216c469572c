"""A witness of side effects: an HTTP service that makes effects happen when it is asked, and records them where no
crash of the app reaches.
"""

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

from sabot.base.config import Duration, parse_seconds
from sabot.errors import SabotError, UserError
from sabot.testing.witness_server import FAULTS, canonical

Fault = Literal["slow", "late", "fail_before", "fail_after", "drop_before", "drop_after"]

_SERVER = Path(__file__).with_name("witness_server.py")
_STOP_SECONDS = 10.0


class WitnessFailed(SabotError):
    """The witness answered with an error. `status`: the HTTP status; 503 if nothing has happened, 500 if the effect
    has happened.
    """

    def __init__(self, message: str, *, status: int) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class SideEffect:
    """An effect that has happened. `number`: grows in the order in which effects happened. `at`: the time in seconds
    since 1970.
    """

    number: int
    name: str
    arguments: Any
    key: str
    at: float


class WitnessClient:
    """A client of a witness. It uses only the standard library, has no state, and may be used from any thread and any
    event loop.

    If a connection breaks, or the witness closes it, ConnectionError is raised, and nobody knows whether the effect
    has happened. If no witness listens, ConnectionRefusedError is raised. An error in the witness's answer raises
    WitnessFailed.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme != "http" or not parts.hostname or not parts.port:
            raise UserError(f"{url!r} is not the address of a witness", hint="give Witness(…).url")
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
        """Makes an effect happen, and returns it as {"number", "name", "arguments", "key"}. Blocks.

        `arguments`: any JSON value. `key`: the idempotency key; a witness with `honours_keys` returns the first
        effect of a key in place of a second one. `fault` and `seconds`: a fault of this request (see `Witness`), in
        place of the witness's own plan. `deadline`: a time in seconds since 1970 after which the witness does nothing
        and answers 410. Pass `effect.deadline`, so that a request is harmless if its worker was paused and sends it
        late. `timeout`: the time limit, after which TimeoutError is raised and nobody knows whether the effect has
        happened.
        """
        return _checked_body(self._exchange(_do(name, arguments, key, fault, seconds, deadline), timeout))

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
        """Works like `do`, on an event loop."""
        return _checked_body(await self._exchange_async(_do(name, arguments, key, fault, seconds, deadline), timeout))

    def find(self, key: str, *, timeout: Duration | None = 60.0) -> dict[str, Any] | None:
        """Returns the first effect that happened with this key, or None if there is none. The function `reconcile=`
        of a tool can ask it. Blocks.
        """
        return _found(self._exchange(_request("GET", f"/effects?key={quote(key, safe='')}"), timeout))

    async def find_async(self, key: str, *, timeout: Duration | None = 60.0) -> dict[str, Any] | None:
        """Works like `find`, on an event loop."""
        return _found(await self._exchange_async(_request("GET", f"/effects?key={quote(key, safe='')}"), timeout))

    def plan(self, fault: Fault, name: str = "", *, times: int = 1, seconds: Duration | None = None) -> None:
        """Gives the fault to the next `times` requests with this name, or with any name if it is "". Several plans
        are carried out one after another. Blocks.
        """
        wanted = {"fault": fault, "name": name, "times": times} | (
            {} if seconds is None else {"seconds": parse_seconds(seconds, name="seconds")}
        )
        _checked_body(self._exchange(_request("POST", "/plan", wanted), 60.0))

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
    """An HTTP service that makes effects happen when it is asked, and records each of them in a process and a SQLite
    file of its own. So it knows what an app did, even if the app crashes.

        with Witness(tmp_path / "witness.db") as witness:
            ...                                     # run the app, kill it, start it again; its tools call WitnessClient(witness.url)
            assert witness.twice("refund") == []

    It listens on a free port of the loopback interface. Its process ends with the process that made it, however that
    ends. Other programs can use it too: `POST /effects/NAME` with the arguments as JSON, the key in the header
    Idempotency-Key and the deadline in Witness-Deadline; `GET /effects?key=KEY`.

    `path`: the file of the record, which may be that of an earlier witness. `honours_keys`: True if a second request
    with the same idempotency key changes nothing and gets the first one's answer; with other arguments it is refused
    (422). `faults`: shares of the requests that get a fault, such as {"drop_after": 0.1}. `seed`: decides which
    requests these are, by name, arguments and how often they came, so that the order of requests does not matter.
    `seconds`: the time that slow and late answers take, unless a request says otherwise. `keep`: True lets the
    process run until `stop`, or until SIGTERM to `pid`.

        slow         waits, does it, and answers             late         does it, waits, and answers
        fail_before  answers 503, and does nothing           fail_after   does it, and answers 500
        drop_before  closes the connection, does nothing     drop_after   does it, and closes the connection without an answer

    Raises UserError for unknown faults, and SabotError if the process does not start.
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
            raise UserError(f"faults of a witness: {shares}", hint=f"shares of {', '.join(FAULTS)}, in total at most 1")
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
        """The address for clients. It stays the same when the witness is stopped and started again."""
        return f"http://127.0.0.1:{self._options['port']}"

    @property
    def pid(self) -> int | None:
        """The process id of the witness, or None if it is stopped."""
        return None if self._process is None else self._process.pid

    @property
    def client(self) -> WitnessClient:
        """A client of this witness. Other processes make one from the `url`."""
        return WitnessClient(self.url)

    def start(self) -> None:
        """Starts the witness, at the same address as before. Does nothing if it runs already."""
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
            raise SabotError(
                f"the witness of {self.path} ended with exit code {code} at its start; its output is above"
            )
        self._options["port"] = int(port)
        self._process = process
        _running.add(self)

    def stop(self, *, kill: bool = False) -> None:
        """Stops the witness. Callers that wait lose their connection. The record stays. `kill`: True sends SIGKILL in
        place of SIGTERM. Does nothing if the witness is stopped.
        """
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(signal.SIGKILL if kill else signal.SIGTERM)
            process.wait(_STOP_SECONDS)
            if process.stdin is not None:
                process.stdin.close()

    def _forget(self) -> None:
        """Forgets the witness in a fork of this process, because only the process that made it may stop it."""
        process, self._process = self._process, None
        if process is not None and process.stdin is not None:
            process.stdin.close()

    def __enter__(self) -> "Witness":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # -- the record: read from the file, so the witness need not run ------------------------------------------------------------------

    def effects(self, name: str | None = None) -> list[SideEffect]:
        """Returns the effects that have happened, in order: those of this name, or all."""
        rows = self._rows("number, name, arguments, key, at", "happened", name)
        return [SideEffect(number, what, json.loads(text), key, at) for number, what, text, key, at in rows]

    def count(self, name: str, arguments: Any = None) -> int:
        """Returns the number of times that the effect of this name with these arguments has happened."""
        wanted = canonical(arguments)
        return sum(canonical(effect.arguments) == wanted for effect in self.effects(name))

    def twice(self, name: str | None = None) -> list[SideEffect]:
        """Returns each effect that repeats an earlier effect with the same name and arguments. The list is empty if
        each effect happened at most once. Idempotency keys are ignored, because a program may repeat an effect with
        another key.
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
        """Returns the number of effects by name."""
        return Counter(effect.name for effect in self.effects())

    def requests(self, name: str | None = None) -> Counter[str]:
        """Returns the number of requests by outcome: "done", "repeated" (a known key, so nothing happened), "expired"
        (after its deadline, so nothing happened), or the fault.
        """
        rows = self._rows("fault, happened", "TRUE", name)
        return Counter(fault or ("done" if happened else "repeated") for fault, happened in rows)

    def _rows(self, columns: str, which: str, name: str | None) -> list[Any]:
        sql = f"SELECT {columns} FROM requests WHERE {which} AND (?1 IS NULL OR name = ?1) ORDER BY number"
        with closing(sqlite3.connect(f"{self.path.as_uri()}?mode=rw", uri=True)) as database:
            return database.execute(sql, [name]).fetchall()


_running: "weakref.WeakSet[Witness]" = weakref.WeakSet()


def _forget_witnesses() -> None:
    """Forgets all witnesses in a fork of this process. The fork must not keep the pipe open whose end tells a witness
    that its owner has ended.
    """
    for witness in list(_running):
        witness._forget()


os.register_at_fork(after_in_child=_forget_witnesses)


def _request(method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None) -> bytes:
    data = b"" if method == "GET" else canonical(body).encode()
    lines = [f"{method} {path} HTTP/1.1", "Host: witness", f"Content-Length: {len(data)}"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    return "\r\n".join([*lines, "", ""]).encode() + data


def _do(
    name: str, arguments: Any, key: str, fault: str | None, seconds: Duration | None, deadline: float | None
) -> bytes:
    if not key.isprintable():
        raise UserError(f"the idempotency key {key!r} has characters that an HTTP header cannot have")
    headers = {
        "Idempotency-Key": key,
        "Witness-Fault": fault or "",
        "Witness-Seconds": "" if seconds is None else str(parse_seconds(seconds, name="seconds")),
        "Witness-Deadline": "" if deadline is None else str(deadline),
    }
    return _request("POST", f"/effects/{quote(name, safe='')}", arguments, {k: v for k, v in headers.items() if v})


def _answer(data: bytes) -> tuple[int, dict[str, Any]]:
    """Returns the status and the body of an answer. Raises ConnectionResetError if it is incomplete."""
    head, _, body = data.partition(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    if f"Content-Length: {len(body)}" not in lines:
        raise ConnectionResetError("the witness closed the connection without an answer")
    return int(lines[0].split()[1]), json.loads(body)


def _checked_body(data: bytes) -> dict[str, Any]:
    status, body = _answer(data)
    if status != 200:
        raise WitnessFailed(f"{body['error']} (status {status})", status=status)
    return body


def _found(data: bytes) -> dict[str, Any] | None:
    return None if _answer(data)[0] == 404 else _checked_body(data)
