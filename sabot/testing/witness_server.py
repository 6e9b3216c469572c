"""The process of a Witness. It imports only the standard library, so that it starts in a few hundredths of a second.

    python -I witness_server.py '{"path": …, "port": 0, "honours_keys": false, "seed": 0, "faults": {}, "seconds": 0.5, …}'

It prints its port when it accepts requests. It ends when its standard input is closed, and on SIGTERM or SIGINT. Each
connection has one request:

    POST /effects/NAME      makes the effect happen, and returns it. The body contains the arguments as JSON. Headers: Idempotency-Key,
                            Witness-Deadline, Witness-Fault, Witness-Seconds
    GET /effects?key=KEY    returns the first effect with this key, or 404
    POST /plan              {"fault", "name", "times", "seconds"}: gives the fault to the next requests, and returns {}

A request is recorded in the same turn of the event loop in which its effect happens, and committed before it is
answered.
"""

import asyncio
import json
import math
import os
import random
import signal
import sqlite3
import sys
import time
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

FAULTS = ("slow", "late", "fail_before", "fail_after", "drop_before", "drop_after")
TABLE = """CREATE TABLE IF NOT EXISTS requests (
    number INTEGER PRIMARY KEY,
    at REAL NOT NULL DEFAULT ((julianday('now') - 2440587.5) * 86400.0), -- seconds since 1970
    name TEXT NOT NULL,
    arguments TEXT NOT NULL,    -- canonical JSON
    key TEXT NOT NULL,          -- '': none was given
    fault TEXT NOT NULL,        -- '': none
    happened INTEGER NOT NULL   -- 1: the effect happened; 0: it did not
) STRICT"""
_MOST_BYTES = 16 << 20
_KNOWN = {status.value for status in HTTPStatus}
_DROPPED = HTTPStatus.IM_A_TEAPOT  # never sent


class HttpRequest(NamedTuple):
    """An HTTP request."""

    method: str
    path: str
    headers: dict[str, str]  # names in lower case
    body: bytes


class _Refused(Exception):
    """Raised for a request that is answered with an error and changes nothing."""

    def __init__(self, status: HTTPStatus, why: str) -> None:
        super().__init__(why)
        self.status = status


def canonical(arguments: Any) -> str:
    """Returns the arguments as JSON text. Equal arguments have equal texts."""
    return json.dumps(arguments, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


class FaultPlan:
    """The choice of the requests that get a fault: planned ones, and shares of the others, such as {"drop_after":
    0.1}. `seconds`: the time that a fault lasts, unless a plan says otherwise.
    """

    def __init__(self, shares: Mapping[str, float], seed: int, seconds: float) -> None:
        self._shares = dict(shares)
        self._seed = seed
        self._seconds = seconds
        self._planned: list[dict[str, Any]] = []
        self._asked: dict[tuple[str, str], int] = {}  # how often a request of this name and content came

    def plan(self, fault: str, name: str = "", times: int = 1, seconds: float | None = None) -> None:
        """Gives the fault to the next `times` requests with this name, or with any name if it is "". Several plans
        are carried out one after another.
        """
        took = self._seconds if seconds is None else seconds
        self._planned.append({"fault": fault, "name": name, "times": times, "seconds": took})

    def next(self, name: str, content: str, *, planned: bool = True) -> tuple[str, float]:
        """Returns the name of the fault for a request, or "" for no fault, and the seconds that the fault lasts.

        A planned fault comes first. Otherwise the fault is drawn by the seed, the request's name, its content, and
        the number of earlier requests with this name and content, so that the order of requests does not matter.
        `planned`: False if the request names its own fault, so that no plan is used up.
        """
        times = self._asked[name, content] = self._asked.get((name, content), 0) + 1
        for plan in self._planned if planned else ():
            if plan["name"] in ("", name):
                plan["times"] -= 1
                if plan["times"] < 1:
                    self._planned.remove(plan)
                return plan["fault"], plan["seconds"]
        drawn = random.Random(f"{self._seed} {times} {name} {content}").random()
        for each, share in self._shares.items():
            drawn -= share
            if drawn < 0:
                return each, self._seconds
        return "", self._seconds


class _Server:
    def __init__(self, options: dict[str, Any]) -> None:
        self._honours_keys: bool = options["honours_keys"]
        self._faults = FaultPlan(options["faults"], options["seed"], options["seconds"])
        self._database = sqlite3.connect(options["path"], isolation_level=None)
        self._database.execute("PRAGMA journal_mode = WAL")
        self._database.execute("PRAGMA synchronous = NORMAL")  # survives the death of this process, not of the machine
        self._database.execute(TABLE)
        self._database.execute("CREATE INDEX IF NOT EXISTS by_key ON requests (key) WHERE key != '' AND happened")

    def close(self) -> None:
        self._database.close()

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serves the one request of a connection."""
        try:
            request = await _read(reader)
            if request is not None:
                status, body = await self._answer(request)
                if status is not _DROPPED:
                    writer.write(response(status, body))
        except _Refused as refused:
            writer.write(response(refused.status, {"error": str(refused)}))
        writer.close()  # sends the rest; a caller that has disconnected is no error, because the effect is recorded

    async def _answer(self, request: HttpRequest) -> tuple[HTTPStatus, dict[str, Any]]:
        parts = urlsplit(request.path)
        match request.method, parts.path.split("/")[1:]:
            case "GET", ["effects"]:
                return self._found(parse_qs(parts.query).get("key", [""])[0])
            case "POST", ["effects", name] if name:
                return await self._do(unquote(name), request)
            case "POST", ["plan"]:
                return self._plan(_json(request.body))
        raise _Refused(
            HTTPStatus.NOT_FOUND,
            f"no such request: {request.method} {parts.path}; there are POST /effects/NAME, GET /effects?key=KEY, POST /plan",
        )

    def _found(self, key: str) -> tuple[HTTPStatus, dict[str, Any]]:
        if not key:
            raise _Refused(HTTPStatus.BAD_REQUEST, "GET /effects needs ?key=KEY")
        first = self._first(key)
        if first is None:
            raise _Refused(HTTPStatus.NOT_FOUND, f"no effect has happened with the key {key!r}")
        return HTTPStatus.OK, first

    def _plan(self, wanted: Any) -> tuple[HTTPStatus, dict[str, Any]]:
        known = ["fault", "name", "seconds", "times"]
        if not isinstance(wanted, dict) or wanted.keys() - set(known) or wanted.get("fault") not in FAULTS:
            raise _Refused(
                HTTPStatus.BAD_REQUEST, f"a plan has the fields {known}; fault is one of {', '.join(FAULTS)}"
            )
        self._faults.plan(**wanted)
        return HTTPStatus.OK, {}

    async def _do(self, name: str, request: HttpRequest) -> tuple[HTTPStatus, dict[str, Any]]:
        arguments = canonical(_json(request.body))
        key = request.headers.get("idempotency-key", "")
        if time.time() > _seconds_of(request.headers, "witness-deadline", math.inf):
            self._record(name, arguments, key, "expired", happened=False)
            raise _Refused(HTTPStatus.GONE, f"{name} came after its deadline")
        fault, seconds = self._fault(name, arguments, request.headers)
        if fault == "slow":
            await asyncio.sleep(seconds)
        if fault in ("fail_before", "drop_before"):
            self._record(name, arguments, key, fault, happened=False)
            return self._broken(fault)
        effect = self._first(key) if self._honours_keys and key else None
        if effect is not None and [effect["name"], canonical(effect["arguments"])] != [name, arguments]:
            raise _Refused(HTTPStatus.UNPROCESSABLE_ENTITY, f"the key {key!r} was used for another effect")
        number = self._record(name, arguments, key, fault, happened=effect is None)
        if effect is None:
            effect = _effect(number, name, arguments, key)
        if fault in ("fail_after", "drop_after"):
            return self._broken(fault)
        if fault == "late":
            await asyncio.sleep(seconds)
        return HTTPStatus.OK, effect

    def _fault(self, name: str, arguments: str, headers: dict[str, str]) -> tuple[str, float]:
        """Returns the name of a request's fault, and its seconds: the fault that the request's headers name, or else
        one that is planned or drawn.
        """
        fault = headers.get("witness-fault", "")
        if fault not in ("", *FAULTS):
            raise _Refused(HTTPStatus.BAD_REQUEST, f"Witness-Fault is one of {', '.join(FAULTS)}")
        drawn, seconds = self._faults.next(name, arguments, planned=not fault)
        return fault or drawn, _seconds_of(headers, "witness-seconds", seconds)

    def _broken(self, fault: str) -> tuple[HTTPStatus, dict[str, Any]]:
        if fault.startswith("drop"):
            return _DROPPED, {}
        status = HTTPStatus.SERVICE_UNAVAILABLE if fault == "fail_before" else HTTPStatus.INTERNAL_SERVER_ERROR
        return status, {"error": f"fault of the witness: {fault}"}

    def _record(self, name: str, arguments: str, key: str, fault: str, *, happened: bool) -> int:
        row = (name, arguments, key, fault, int(happened))
        done = self._database.execute(
            "INSERT INTO requests (name, arguments, key, fault, happened) VALUES (?, ?, ?, ?, ?)", row
        )
        return done.lastrowid or 0

    def _first(self, key: str) -> dict[str, Any] | None:
        row = self._database.execute(
            "SELECT number, name, arguments, key FROM requests WHERE key = ? AND key != '' AND happened "
            "ORDER BY number LIMIT 1",
            [key],
        ).fetchone()
        return None if row is None else _effect(*row)


def _effect(number: int, name: str, arguments: str, key: str) -> dict[str, Any]:
    return {"number": number, "name": name, "arguments": json.loads(arguments), "key": key}


def _json(body: bytes) -> Any:
    try:
        return json.loads(body or b"null")
    except ValueError as error:
        raise _Refused(HTTPStatus.BAD_REQUEST, f"the body is not JSON: {error}") from error


def _seconds_of(headers: dict[str, str], name: str, missing: float) -> float:
    text = headers.get(name, "")
    if text and not text.replace(".", "", 1).isdecimal():
        raise _Refused(HTTPStatus.BAD_REQUEST, f"{name.title()} is a number of seconds")
    return float(text) if text else missing


def parse_head(head: bytes) -> tuple[str, str, dict[str, str], int]:
    """Returns method, path, headers, and the length of the body of an HTTP request. Raises ValueError."""
    first, *lines = head.decode().split("\r\n")
    method, path, _ = first.split(" ", 2)
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    length = int(headers.get("content-length", "0"))
    if "transfer-encoding" in headers or not 0 <= length <= _MOST_BYTES:
        raise ValueError(f"a body needs a Content-Length of at most {_MOST_BYTES}")
    return method, path, headers, length


async def _read(reader: asyncio.StreamReader) -> HttpRequest | None:
    """Returns the request, or None if the caller disconnected before it was complete. Raises _Refused if it is not
    HTTP.
    """
    try:
        method, path, headers, length = parse_head(await reader.readuntil(b"\r\n\r\n"))
        return HttpRequest(method, path, headers, await reader.readexactly(length))
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
    except (asyncio.LimitOverrunError, ValueError) as error:
        raise _Refused(HTTPStatus.BAD_REQUEST, f"not an HTTP request: {error}") from error


def response(status: int, body: Any, headers: Mapping[str, str] | None = None) -> bytes:
    """Returns a whole HTTP answer with `body` as JSON. `headers`: further headers; "Connection" is "close" unless
    they contain it.
    """
    data = json.dumps(body).encode()
    all_headers = {"Content-Type": "application/json", "Content-Length": str(len(data)), "Connection": "close"}
    all_headers |= headers or {}
    phrase = HTTPStatus(status).phrase if status in _KNOWN else "Unknown"
    lines = [f"HTTP/1.1 {int(status)} {phrase}", *(f"{k}: {v}" for k, v in all_headers.items())]
    return "\r\n".join([*lines, "", ""]).encode() + data


async def serve(options: dict[str, Any]) -> None:
    """Serves requests until the standard input is closed or a signal comes, and then ends the process."""
    server = _Server(options)
    over = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, over.set)
    if not options["keep"]:
        loop.add_reader(0, over.set)  # nothing is ever written to it, so it becomes readable only when it is closed
    listening = await asyncio.start_server(server.connected, "127.0.0.1", options["port"], backlog=1024)
    print(listening.sockets[0].getsockname()[1], flush=True)
    await over.wait()
    server.close()
    os._exit(0)  # breaks the connections of callers that wait


if __name__ == "__main__":
    asyncio.run(serve(json.loads(sys.argv[1])))
