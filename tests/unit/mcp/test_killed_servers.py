"""Servers that are killed with SIGKILL in a call, when they have paid: the call is in doubt unless a whole answer was read."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from sabot.engine.calls.certainty import Certainty, certainty_of
from sabot.mcp import McpConfig, McpConnectionLost, McpServerPool

SERVER = r"""
import http.server, json, os, signal, sys

way, paid = sys.argv[1:]
TOOL = {"name": "pay", "inputSchema": {"type": "object"}}
STARTS = {
    "initialize": {
        "protocolVersion": "2025-06-18",
        "serverInfo": {"name": "till", "version": "1"},
        "capabilities": {"tools": {}},
    },
    "tools/list": {"tools": [TOOL]},
}


def answer(said):
    found = STARTS.get(said["method"])
    if said["method"] == "tools/call":
        with open(paid, "a") as file:
            file.write("paid\n")
        found = {"content": [{"type": "text", "text": "paid"}]}
    told = {"error": {"code": -32601, "message": "no"}} if found is None else {"result": found}
    return json.dumps({"jsonrpc": "2.0", "id": said["id"], **told}).encode()


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def by_lines():
    for line in sys.stdin.buffer:
        said = json.loads(line)
        if "id" not in said:
            continue
        whole = answer(said) + b"\n"
        last = said["method"] == "tools/call"
        half = {"half a line": whole[:-20], "half, ended": whole[:-20] + b"\n", "nothing": b""}.get(way, whole)
        sys.stdout.buffer.write(half if last else whole)
        sys.stdout.buffer.flush()
        if last:
            die()


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.send_error(405)

    def do_POST(self):
        said = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if "id" not in said:
            self.send_response(202)
            self.send_header("content-length", "0")
            self.end_headers()
            return
        whole = answer(said)
        last = said["method"] == "tools/call"
        events = last and "event" in way
        part = whole[:-20]
        if last and way == "nothing":
            die()
        self.send_response(200)
        self.send_header("content-type", "text/event-stream" if events else "application/json")
        if events:
            whole = b"event: message\ndata: " + whole + b"\n\n"
            part = b"event: message\ndata: " + part + (b"\n\n" if "ended" in way else b"")
            self.send_header("connection", "close")
        else:
            self.send_header("content-length", str(len(part if last and "ended" in way else whole)))
        self.end_headers()
        self.wfile.write(part if last and "half" in way else whole)
        self.wfile.flush()
        if last:
            die()

    def log_message(self, *words):
        pass


if "http" in way:
    way = way.removeprefix("http: ")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(server.server_port, flush=True)
    server.serve_forever()
else:
    by_lines()
"""

WAYS = [
    "whole",
    "nothing",
    "half a line",
    "half, ended",
    "http: whole",
    "http: nothing",
    "http: half a body",
    "http: half a body, ended",
    "http: half an event",
    "http: half an event, ended",
]


@contextmanager
def run(way: str, paid: Path) -> Iterator[dict[str, Any]]:
    """Yields how a pool reaches the server, which is a child of the pool or, by HTTP, of the test."""
    command = [sys.executable, "-c", SERVER, way, str(paid)]
    if not way.startswith("http"):
        yield {"command": command}
        return
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            yield {"url": f"http://127.0.0.1:{int(server.stdout.readline())}/mcp"}
        finally:
            server.kill()


@pytest.mark.parametrize("way", WAYS)
async def test_a_call_is_in_doubt_unless_a_whole_answer_of_the_killed_server_was_read(way: str, tmp_path: Path) -> None:
    """Half of a line with the id of a call was an answer over stdio, and a doubt by HTTP: the model was told of an error,
    and paid again.
    """
    with run(way, tmp_path / "paid") as options:
        async with McpServerPool(McpConfig(max_retries=0)) as pool:
            pool.add("till", **options)
            session = await pool.session("till")
            if "whole" in way:
                assert (await session.call("pay")).text == "paid"
            else:
                with pytest.raises(McpConnectionLost) as caught:
                    await session.call("pay")
                assert certainty_of(caught.value) is Certainty.UNKNOWN
    assert (tmp_path / "paid").read_text() == "paid\n"
