"""Manifests that somebody else wrote: their checksums are right, and what they say is refused all the same."""

import json
import re
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pyarrow import fs as arrow_fs

from sabot.engine.checkpoint import CheckpointStorage, Manifest
from sabot.engine.checkpoint.manifest import StoredTask
from sabot.engine.checkpoint.protocol import read_claim, read_file_name, read_manifest_name
from sabot.engine.state.backends.database import MARK_FILE, read_mark
from sabot.errors import CorruptCheckpoint

ZEROS = "0" * 64


def write(storage: CheckpointStorage, checkpoint_id: int) -> Manifest:
    """One task with a blob and a state of one file; the app is over."""
    directory = storage.begin(checkpoint_id)
    (directory / "t/state").mkdir(parents=True)
    (directory / "t/blob").write_bytes(b"blob")
    (directory / "t/state/CURRENT").write_bytes(b"current")
    task = StoredTask(files={"window": "t/blob"}, states={"default": "t/state"})
    manifest = storage.commit(checkpoint_id, Manifest(checkpoint_id, 0, {}, {"task": task}))
    storage.unlock()
    return manifest


def sealed(body: bytes) -> bytes:
    """A manifest of this body, as an app writes it."""
    return b'{"format_version":2,"crc32":%d,"body":%s}' % (zlib.crc32(body), body)


def forge(manifest: Path, change: Callable[[Any], object]) -> None:
    body = json.loads(manifest.read_bytes())["body"]
    change(body)
    manifest.write_bytes(sealed(json.dumps(body).encode()))


def renamed(new: str) -> Callable[[Any], None]:
    """The file of the state is at another path."""

    def change(body: Any) -> None:
        body["contents"][new] = body["contents"].pop("t/state/CURRENT")

    return change


def with_file(path: str, **fields: Any) -> Callable[[Any], object]:
    """One more file."""
    file = {"size": 4, "sha256": ZEROS, "generation": 1, **fields}
    return lambda body: body["contents"].update({path: file})


def of_task(field: str, path: str) -> Callable[[Any], object]:
    return lambda body: body["tasks"]["task"][field].update(default=path)


def of_track(**fields: Any) -> Callable[[Any], object]:
    track = {"sink": "s", "given": 1, "delivered": 0, "pending": [], "incarnation": "", **fields}
    return lambda body: body["lanes"].update(track=track)


FORGED = [
    (renamed("t/state/../../../../../planted"), "leads out of the checkpoint"),
    (renamed("../planted"), "leads out of the checkpoint"),
    (renamed("/tmp/planted"), "is an absolute path"),
    (renamed("t/state//planted"), "is not the path of a file"),
    (renamed("t/state/./planted"), "is not the path of a file"),
    (renamed("t/state/"), "is not the path of a file"),
    (renamed(""), "is not the path of a file"),
    (renamed("t/state/\0planted"), "characters that no app writes"),
    (renamed("t/state/\x1b[2Jplanted"), "characters that no app writes"),
    (renamed("t/state/..\\planted"), "characters that no app writes"),
    (renamed("t/state/" + "x" * 256), "is too long"),
    (renamed("t/state/" + "x/" * 600 + "x"), "is too long"),
    (with_file("t/state/current"), "where case does not count"),
    (with_file("t/BLOB"), "where case does not count"),
    (with_file("t/blob/below"), "which is a file"),
    (with_file("t/x", sha256="../../../../planted"), "has no SHA-256"),
    (with_file("t/x", sha256=ZEROS.replace("0", "A")), "has no SHA-256"),
    (with_file("t/x", sha256=""), "has no SHA-256"),
    (with_file("t/x", size=-1), "has the number -1"),
    (with_file("t/x", size=1 << 63), "has the number 9223372036854775808"),
    (with_file("t/x", generation=-1), "has the number -1"),
    (of_task("states", "../../../planted"), "leads out of the checkpoint"),
    (of_task("states", "/tmp"), "is an absolute path"),
    (of_task("states", ""), "is not the path of a file"),
    (of_task("files", "../planted"), "leads out of the checkpoint"),
    (of_track(pending=[{"seq": 1, "file": "../planted", "rows": 1}]), "leads out of the checkpoint"),
    (of_track(pending=[{"seq": -1, "file": "t/blob", "rows": 1}]), "has the number -1"),
    (of_track(pending=[{"seq": 1, "file": "t/blob", "rows": -1}]), "has the number -1"),
    (of_track(given=-1), "has the number -1"),
    (of_track(incarnation="'; drop table"), "has the incarnation"),
    (lambda body: body.update(incarnation="a\nb"), "has the incarnation"),
    (lambda body: body.update(created_ms=-1), "has the number -1"),
    (lambda body: body.update(contents={"t/blob": 7}), "Expected `object`, got `int`"),
    (lambda body: body.update(contents=["t/blob"]), "Expected `object`, got `array`"),
    (with_file("t/x", size="4"), "Expected `int`, got `str`"),
    (lambda body: body.update(place={}), "Expected `Place`"),
]


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A place with one checkpoint: to be copied, which is faster than to sync another."""
    place = tmp_path_factory.mktemp("one")
    write(CheckpointStorage(place), 1)
    return place


@pytest.fixture
def manifest(one: Path, tmp_path: Path) -> Path:
    """That of a copy, in tmp_path/checkpoints."""
    shutil.copytree(one, tmp_path / "checkpoints")
    return next((tmp_path / "checkpoints/checkpoints").iterdir())


@pytest.mark.parametrize(("change", "why"), FORGED)
def test_an_entry_that_no_app_writes_is_refused_by_its_name(
    tmp_path: Path, manifest: Path, change: Callable[[Any], object], why: str
) -> None:
    """Seen before: a restore made the file of a state called "../planted" outside its directory."""
    forge(manifest, change)
    storage = CheckpointStorage(tmp_path / "checkpoints")
    for read in (storage.latest, lambda: storage.read(1), storage.manifests):
        with pytest.raises(CorruptCheckpoint, match=re.escape(why)) as refused:
            read()
        assert str(manifest) in refused.value.message
        assert refused.value.message.isprintable()  # what it quotes moves no terminal


def test_no_file_of_another_is_removed_for_its_name(tmp_path: Path, manifest: Path) -> None:
    """Seen before: of contents with "../planted" for their hash the file of that name went with the checkpoint."""
    planted = tmp_path / "planted-0"
    planted.write_bytes(b"somebody's")
    forge(manifest, with_file("t/x", sha256="../planted", generation=0))
    storage = CheckpointStorage(tmp_path / "checkpoints", retain=1)
    write(storage, 2)
    storage.lock()
    storage.drop_old()
    storage.unlock()
    assert planted.read_bytes() == b"somebody's"
    assert not manifest.exists()


def test_so_it_is_in_another_file_system(tmp_path: Path) -> None:
    place = arrow_fs.SubTreeFileSystem(str(tmp_path), arrow_fs.LocalFileSystem()), "apps"
    storage = CheckpointStorage(place)
    write(storage, 1)
    forge(next((tmp_path / "apps/checkpoints").iterdir()), renamed("t/state/../../../planted"))
    with pytest.raises(CorruptCheckpoint, match=r"apps/checkpoints/0000000001-.*planted' leads out"):
        CheckpointStorage(place).latest()
    storage.unlock()


@pytest.mark.parametrize(
    "body",
    [
        b'{"checkpoint_id":1,"checkpoint_id":1,"created_ms":1,"generation":1}',
        b'{"checkpoint_id":1,"created_ms":1,"generation":1,"contents":{"a":{"size":1,"sha256":"%s","generation":1},'
        b'"a":{"size":2,"sha256":"%s","generation":1}}}' % (ZEROS.encode(), ZEROS.encode()),
    ],
)
def test_a_key_that_is_there_twice_is_refused(tmp_path: Path, manifest: Path, body: bytes) -> None:
    manifest.write_bytes(sealed(body))
    with pytest.raises(CorruptCheckpoint, match="is there twice"):
        CheckpointStorage(tmp_path / "checkpoints").latest()


def test_a_manifest_that_is_nested_without_end_is_damaged(tmp_path: Path, manifest: Path) -> None:
    deep = b'{"a":' * 100_000 + b"1" + b"}" * 100_000
    manifest.write_bytes(sealed(b'{"checkpoint_id":1,"created_ms":1,"generation":1,"describe":%s}' % deep))
    with pytest.raises(CorruptCheckpoint, match=re.escape(str(manifest))):
        CheckpointStorage(tmp_path / "checkpoints").latest()


@pytest.mark.parametrize("name", ["00000000007-0000000003.json", "٠٠٠٠٠٠٠٠٠٧-0000000003.json", "7-3.json"])
def test_a_manifest_claim_or_file_has_one_name_only(name: str) -> None:
    """Seen before: digits of other scripts, and more zeros, gave a checkpoint a second name, under which nothing was found."""
    assert read_manifest_name(name) is None
    assert read_manifest_name("0000000007-0000000003.json") == (3, 7)
    assert read_manifest_name("12345678901-0000000003.json") == (3, 12345678901)
    assert read_claim(name.replace(".json", "").partition("-")[0] + "-" + "a" * 32) is None
    assert read_file_name(f"files/00/{ZEROS}-03") is None
    assert read_file_name(f"files/00/{ZEROS}-3") == (ZEROS, 3, "")


@pytest.mark.parametrize("name", ["../planted", "/etc/passwd", "..", "", "a\0b", "a/b"])
def test_a_database_lists_files_of_its_own_directory_only(tmp_path: Path, name: str) -> None:
    (tmp_path / MARK_FILE).write_text(json.dumps({"format": 1, "sealed": False, "files": {name: 1}}))
    with pytest.raises(CorruptCheckpoint, match=f"{MARK_FILE}: its entry"):
        read_mark(tmp_path)


@pytest.mark.parametrize("text", ["[" * 100_000, "[]", '{"format": 1, "sealed": 0, "files": 7}', "\ud800"])
def test_a_mark_that_is_none_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / MARK_FILE).write_bytes(text.encode(errors="surrogatepass"))
    with pytest.raises(CorruptCheckpoint, match=MARK_FILE):
        read_mark(tmp_path)
