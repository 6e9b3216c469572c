"""A schema registry for tests: an HTTP server with the part of Confluent's API that clients of formats use, in memory.

What is as in the real one: ids are of schemas, whatever their subjects; a schema that a subject has is found again, whatever its spacing;
error codes 40401 to 40403, 409 and 42201 with their status. Compatibility is asked of `compatible`, which a test may replace.
"""

import contextlib
import json
import threading
from base64 import b64encode
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

from sabot.codecs.schemas import Reference
from sabot.errors import UnknownSchema, UserError


@dataclass
class SchemaServer:
    """The registry. down: it answers 503. user: "name:password" that a request must have. asked: the requests, as "GET /path"."""

    port: int = 0
    down: bool = False
    user: str | None = None
    compatible: Callable[[str, str], bool] = lambda subject, schema: True
    asked: list[str] = field(default_factory=list)
    schemas: list[dict[str, Any]] = field(default_factory=list)  # that of id n is at n - 1
    subjects: dict[str, list[int]] = field(default_factory=dict)  # ids, the oldest version first
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def add(self, subject: str, schema: Any, kind: str = "AVRO", references: Any = ()) -> int:
        """Registers a schema, and returns its id."""
        text = schema if isinstance(schema, str) else json.dumps(schema)
        status, body = self._register(subject, {"schema": text, "schemaType": kind, "references": list(references)})
        assert status == 200, body
        return int(body["id"])

    def answer(self, method: str, path: str, body: Any) -> tuple[int, Any]:
        """Status and body of the answer to a request."""
        parts = [unquote(part) for part in urlsplit(path).path.strip("/").split("/")]
        match method, *parts:
            case "GET", "schemas", "ids", id:
                return self._schema(int(id))
            case "GET", "subjects", subject, "versions", version:
                return self._version(subject, version)
            case "POST", "subjects", subject, "versions":
                return self._register(subject, body)
            case "POST", "subjects", subject:
                return self._lookup(subject, body)
        return 404, {"error_code": 404, "message": f"HTTP 404 Not Found: {path}"}

    def _schema(self, id: int) -> tuple[int, Any]:
        if not 0 < id <= len(self.schemas):
            return 404, {"error_code": 40403, "message": "Schema not found"}
        return 200, self.schemas[id - 1]

    def _version(self, subject: str, version: str) -> tuple[int, Any]:
        ids = self.subjects.get(subject)
        if not ids:
            return 404, {"error_code": 40401, "message": f"Subject '{subject}' not found."}
        number = len(ids) if version == "latest" else int(version)
        if not 0 < number <= len(ids):
            return 404, {"error_code": 40402, "message": f"Version {number} not found."}
        id = ids[number - 1]
        return 200, {"subject": subject, "version": number, "id": id, **self.schemas[id - 1]}

    def _register(self, subject: str, body: Any) -> tuple[int, Any]:
        found = _canonical(body)
        if found is None:
            return 422, {"error_code": 42201, "message": "Invalid schema"}
        with self.lock:
            id = next((n for n, each in enumerate(self.schemas, 1) if _canonical(each) == found), None)
            versions = self.subjects.get(subject, [])
            if id in versions:
                return 200, {"id": id}
            if versions and not self.compatible(subject, body["schema"]):
                return 409, {
                    "error_code": 409,
                    "message": "Schema being registered is incompatible with an earlier schema",
                }
            if id is None:
                kind = body.get("schemaType", "AVRO")
                kept = {"schema": body["schema"], **({} if kind == "AVRO" else {"schemaType": kind})}
                if body.get("references"):
                    kept["references"] = body["references"]
                self.schemas.append(kept)
                id = len(self.schemas)
            self.subjects.setdefault(subject, []).append(id)
        return 200, {"id": id}

    def _lookup(self, subject: str, body: Any) -> tuple[int, Any]:
        for version, id in enumerate(self.subjects.get(subject, ()), 1):
            if _canonical(self.schemas[id - 1]) == _canonical(body):
                return 200, {"subject": subject, "version": version, "id": id, **self.schemas[id - 1]}
        known = subject in self.subjects
        message = "Schema not found" if known else f"Subject '{subject}' not found."
        return 404, {"error_code": 40403 if known else 40401, "message": message}


def _canonical(body: Any) -> tuple[str, str] | None:
    """The kind and the schema without its spacing; None: it is none."""
    kind = body.get("schemaType", "AVRO")
    if kind != "AVRO":
        return kind, body["schema"]
    try:
        return kind, json.dumps(json.loads(body["schema"]))
    except ValueError:
        return None


class LocalRegistry:
    """A `SchemaRegistry` for formats without HTTP, for tests that are not about it."""

    def __init__(self) -> None:
        self.server = SchemaServer()

    def schema_of(self, id: int, kind: str) -> str:
        """Raises UnknownSchema."""
        status, body = self.server.answer("GET", f"/schemas/ids/{id}", None)
        if status != 200:
            raise UnknownSchema(id, body["message"])
        return str(body["schema"])

    def latest(self, subject: str, kind: str) -> tuple[int, str]:
        """Raises UserError."""
        status, body = self.server.answer("GET", f"/subjects/{subject}/versions/latest", None)
        if status != 200:
            raise UserError(body["message"])
        return body["id"], body["schema"]

    def register(self, subject: str, text: str, kind: str, references: Sequence[Reference] = ()) -> int:
        """The id."""
        return self.server.add(subject, text, kind, [vars(each) for each in references])

    def refer(self, name: str, text: str, kind: str, references: Sequence[Reference] = ()) -> Reference:
        """The newest version."""
        self.register(name, text, kind, references)
        return Reference(name, name, len(self.server.subjects[name]))

    def lookup(self, subject: str, text: str, kind: str) -> int:
        """Raises UserError."""
        status, body = self.server.answer("POST", f"/subjects/{subject}", {"schema": text, "schemaType": kind})
        if status != 200:
            raise UserError(body["message"])
        return int(body["id"])


@contextlib.contextmanager
def schema_server(port: int = 0) -> Iterator[SchemaServer]:
    """A registry at a free port of this machine, or at this one, until the block ends."""
    registry = SchemaServer()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = (
            -1
        )  # an answer is one packet: a body of its own waits 40 ms until the client acknowledges the headers

        def handle_request(self) -> None:
            sent = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            registry.asked.append(f"{self.command} {self.path}")
            status, body = 503, {"error_code": 50301, "message": "it is down"}
            if not registry.down:
                status, body = 401, {"error_code": 401, "message": "Unauthorized"}
                if registry.user is None or self.headers.get("Authorization") == _basic(registry.user):
                    status, body = registry.answer(self.command, self.path, json.loads(sent) if sent else None)
            text = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/vnd.schemaregistry.v1+json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_POST = handle_request

        def log_message(self, format: str, *args: Any) -> None:
            """Tests look at `asked`."""

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.daemon_threads = True
    registry.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield registry
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _basic(user: str) -> str:
    return f"Basic {b64encode(user.encode()).decode()}"
