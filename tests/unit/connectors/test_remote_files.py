"""Files in an object store, read as those of this machine are: formats, folders, globs, positions; errors name the place."""

import gzip
import io
import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import csv, ipc
from pyarrow import fs as arrow_fs
from pyarrow import parquet as pq

from sabot import App, files
from sabot.base.object_stores import hint_of_store
from sabot.connectors.files import paths
from sabot.errors import UserError
from tools.broker import free_ports
from tools.checkpoint_tools import in_memory

TABLE = pa.table({"id": [1, 2, 3], "name": ["a", "b", "c"]})


@pytest.fixture
def store() -> tuple[arrow_fs.FileSystem, Callable[[str, bytes], None]]:
    """An object store in memory, and what puts an object into it."""
    filesystem = in_memory()[0]

    def put(path: str, data: bytes) -> None:
        filesystem.create_dir(path.rpartition("/")[0], recursive=True)
        with filesystem.open_output_stream(path, compression=None) as stream:
            stream.write(data)

    return filesystem, put


def written(kind: str) -> bytes:
    buffer = io.BytesIO()
    if kind == "parquet":
        pq.write_table(TABLE, buffer)
    elif kind == "csv":
        csv.write_csv(TABLE, buffer)
    elif kind == "arrow":
        with ipc.new_file(buffer, TABLE.schema) as writer:
            writer.write_table(TABLE)
    else:
        text = "".join(json.dumps(row) + "\n" for row in TABLE.to_pylist()).encode()
        return gzip.compress(text) if kind.endswith("gz") else text
    return buffer.getvalue()


def rows(source: Any, **options: Any) -> list[dict[str, Any]]:
    return App("reads", **options).stream(source).collect().to_pylist()


@pytest.mark.parametrize("kind", ["parquet", "csv", "arrow", "ndjson", "ndjson.gz"])
def test_each_format_is_read_from_a_store(store: Any, kind: str) -> None:
    filesystem, put = store
    put(f"bucket/in/data.{kind}", written(kind))
    assert rows(files((filesystem, f"bucket/in/data.{kind}"))) == TABLE.to_pylist()
    assert sorted(rows(files((filesystem, "bucket/in")), parallelism=2), key=str) == TABLE.to_pylist()


def test_a_folder_and_a_glob_give_their_files_by_name(store: Any) -> None:
    filesystem, put = store
    for number, path in enumerate(["a/1.ndjson", "a/b/2.ndjson", "a/_left/3.ndjson", "a/.hid/4.ndjson", "c/5.ndjson"]):
        put(f"bucket/{path}", b'{"n": %d}\n' % (number + 1))
    put("bucket/a/notes.txt", b"none of ours")

    def found(path: str) -> list[int]:
        return [row["n"] for row in rows(files((filesystem, path)))]

    assert found("bucket/a") == [1, 2]
    assert found("bucket/*/*.ndjson") == [1, 5]
    assert found("bucket/**/*.ndjson") == [1, 3, 2, 5]
    assert found("bucket/[!a]/[0-9].ndjson") == [5]


def test_a_position_is_gone_on_from(store: Any) -> None:
    filesystem, put = store
    put("bucket/rows.ndjson", b'{"n": 1}\n{"n": 2}\n{"n": 3}\n')
    source = files((filesystem, "bucket/rows.ndjson"))
    source.scan(pa.schema({"n": pa.int64()}), None)
    source.open(None)
    first = source.read_batch(1, 0)
    assert first is not None
    source.close()
    source.open(first.offsets)
    rest = source.read_batch(10, 0)
    source.close()
    assert rest is not None
    assert [first.data.to_pylist(), rest.data.to_pylist()] == [[{"n": 1}], [{"n": 2}, {"n": 3}]]


def test_what_is_not_there_is_an_error_that_names_the_place(store: Any) -> None:
    filesystem, put = store
    put("bucket/a/notes.txt", b"none of ours")
    for path, said in [
        ("bucket/b", "there is no file at"),
        ("bucket/*.csv", "no file matches"),
        ("bucket/a", "no file that"),
    ]:
        with pytest.raises(UserError, match=said) as refused:
            files((filesystem, path))
        assert path in str(refused.value)


def test_a_file_that_goes_away_is_named(store: Any) -> None:
    filesystem, put = store
    put("bucket/rows.ndjson", b'{"n": 1}\n')
    source = files((filesystem, "bucket/rows.ndjson"))
    filesystem.delete_file("bucket/rows.ndjson")
    with pytest.raises(UserError, match=r"bucket/rows\.ndjson"):
        rows(source)


def test_an_address_is_shown_without_its_keys() -> None:
    path = paths.remote_path(
        "s3://KEY:secret@bucket/in/*.csv?region=us-east-1&endpoint_override=127.0.0.1:1&scheme=http"
    )
    assert str(path) == "s3://bucket/in/*.csv"
    assert str(path.at("bucket/in/a.csv")) == "s3://bucket/in/a.csv"
    with pytest.raises(UserError) as refused:
        paths.remote_path("s3://KEY:se/cret@bucket/in?no_such=1")
    assert "cret" not in str(refused.value)


def test_az_is_abfs_with_the_account_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT", "mine")
    path = paths.remote_path("az://container/in")
    assert (str(path), path.filesystem.type_name, path.inside) == ("az://container/in", "abfs", "container/in")


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("gs://", "gs://: it names no bucket"),
        ("s3:///", "Missing bucket name"),
        ("s4://bucket/x.parquet", "Unrecognized filesystem type"),
        ("kafka://host:9092/topic", "Unrecognized filesystem type"),
    ],
)
def test_an_address_that_can_be_of_no_store_is_refused_before_anything_is_asked(address: str, why: str) -> None:
    with pytest.raises(UserError, match=why) as refused:
        files(address).scan(None, None)
    assert "s3://bucket/path" in str(refused.value)


class _Machine(BaseHTTPRequestHandler):
    """Of Google's machines, each of which is told who it is by a server of this kind."""

    def do_GET(self) -> None:
        assert self.path == "/"
        self.send_response(200)
        self.send_header("Metadata-Flavor", self.headers["Metadata-Flavor"])
        self.end_headers()

    def log_message(self, *what: Any) -> None:
        """Writes no log."""


@pytest.fixture
def nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment that says nothing of who calls Google's store. The server that knows it is not there."""
    for name in ("GOOGLE_APPLICATION_CREDENTIALS", "APPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    (port,) = free_ports(1)
    monkeypatch.setenv("GCE_METADATA_HOST", f"127.0.0.1:{port}")
    return monkeypatch


def test_where_nobody_says_who_calls_googles_store_the_error_says_so_at_once(nobody: pytest.MonkeyPatch) -> None:
    """Its client looked for nearly two minutes, and said that it could not create an OAuth2 access token."""
    with pytest.raises(UserError, match="gs://bucket/rows: there are no credentials") as refused:
        files("gs://bucket/rows", "ndjson").scan(None, None)
    assert "GOOGLE_APPLICATION_CREDENTIALS" in str(refused.value)
    assert "gs://anonymous@bucket" in str(refused.value)


def test_who_calls_googles_store_may_be_said_in_several_places(nobody: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for address in ("gs://anonymous@bucket/rows", "gs://bucket/rows?scheme=http&endpoint_override=127.0.0.1:1"):
        assert paths.remote_path(address).inside == "bucket/rows"
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Machine)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with nobody.context() as machine:
            machine.setenv("GCE_METADATA_HOST", f"127.0.0.1:{server.server_port}")
            assert paths.remote_path("gs://bucket/rows").inside == "bucket/rows"
    finally:
        server.shutdown()
        server.server_close()
    with nobody.context() as key:
        key.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "key.json"))
        assert paths.remote_path("gs://bucket/rows").inside == "bucket/rows"
    login = tmp_path / ".config" / "gcloud" / "application_default_credentials.json"
    login.parent.mkdir(parents=True)
    login.write_text("{}")
    assert paths.remote_path("gs://bucket/rows").inside == "bucket/rows"


@pytest.mark.parametrize(
    ("store", "words", "hint"),
    [
        ("s3", "AWS Error ACCESS_DENIED during HeadObject operation: No response body.", "AWS_ACCESS_KEY_ID"),
        ("gcs", "google::cloud::Status(PERMISSION_DENIED: no)", "GOOGLE_APPLICATION_CREDENTIALS"),
        ("abfs", "AuthenticationExceptionE: Failed to get token from DefaultAzureCredential.", "AZURE_CLIENT_SECRET"),
        ("s3", "AWS Error NETWORK_CONNECTION during HeadObject operation", "endpoint_override="),
        ("gcs", "Couldn't connect to server", "endpoint_override="),
        ("s3", "AWS Error UNKNOWN (HTTP status 500)", "s3://bucket/path"),
        ("hdfs", "PERMISSION_DENIED", "s3://bucket/path"),
    ],
)
def test_a_store_that_refuses_the_caller_is_answered_with_how_to_say_who_calls(
    store: str, words: str, hint: str
) -> None:
    assert hint in hint_of_store(SimpleNamespace(type_name=store), words)


def test_files_of_this_machine_are_none_of_a_store(tmp_path: Path) -> None:
    (tmp_path / "s3:").mkdir()
    (tmp_path / "s3:" / "rows.ndjson").write_bytes(b'{"n": 1}\n')
    assert rows(files(tmp_path / "s3:" / "rows.ndjson")) == [{"n": 1}]


@pytest.mark.slow  # the server of the store takes seconds to import
def test_s3_is_read_by_its_address() -> None:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        options = f"region=us-east-1&scheme=http&endpoint_override={host}:{port}&allow_bucket_creation=true"
        filesystem, _ = arrow_fs.FileSystem.from_uri(f"s3://any:any@rows/x?{options}")
        filesystem.create_dir("rows")
        for number in (1, 2):
            with filesystem.open_output_stream(f"rows/day/{number}.parquet") as stream:
                pq.write_table(TABLE, stream)
        assert rows(files(f"s3://any:any@rows/day/?{options}")) == TABLE.to_pylist() * 2
        assert rows(files(f"s3://any:any@rows/day/2*?{options}")) == TABLE.to_pylist()
        with pytest.raises(UserError, match="s3://none/day") as refused:
            files(f"s3://any:any@none/day?{options}")
        assert "any:any" not in str(refused.value)
    finally:
        server.stop()
