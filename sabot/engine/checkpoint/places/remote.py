"""A place for checkpoints in a file system of pyarrow, which is mostly an object store."""

import errno
import hashlib
import os
import uuid
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
from pyarrow import fs as arrow_fs

from sabot.base.disk import TemporaryFolder, make_folder, own_folder, private
from sabot.base.object_stores import OBJECT_STORES, check_bucket, hint_of_store
from sabot.base.redaction import clean_cause, scrubbed
from sabot.engine.checkpoint.places.base import READ_BYTES, Place, StoredFile, damaged, take_scratch
from sabot.steps import step

_UPLOAD_BYTES = 8 << 20
_UPLOADS = 8  # concurrent uploads: an object store takes some 50 ms to answer an upload of any size


class RemotePlace(Place):
    """A place below `path` of a file system that pyarrow knows.

    A file never changes, so a copy of it may be kept on this machine: in the folder `near`, under the same name.
    """

    checks_contents = False

    def __init__(
        self,
        filesystem: arrow_fs.FileSystem,
        path: str,
        where: str,
        scratch: Path | None = None,
        *,
        parallel: int = _UPLOADS,
    ) -> None:
        """`scratch`: a folder on this machine, best on the disk of the state, so that files are linked into it and
        not copied.
        """
        super().__init__()
        self.where: str = where
        self.parallel = parallel
        self._fs = filesystem
        self._path = path.rstrip("/")
        self._atomic = filesystem.type_name in OBJECT_STORES
        self._folders: set[str] = set()
        self._wanted_scratch = scratch
        self._temporary: TemporaryFolder | None = None

    @property
    def request_folder(self) -> Path | None:
        return self._wanted_scratch

    def own(self) -> None:
        check_bucket(self._fs, self._path, self.where)
        if self._wanted_scratch is not None:
            home = self._wanted_scratch.absolute()
            own_folder(home)
            own_folder(home / "requests")  # made here, so that the app's user owns it, whichever user makes requests
        else:
            self._temporary = TemporaryFolder("sabot-app-")
            home = self._temporary.path
        take_scratch(self, home / "LOCK", home / "scratch")

    def advice(self, error: OSError) -> str:
        return hint_of_store(self._fs, str(error))

    def disown(self) -> None:
        super().disown()
        if self._temporary is not None:
            self._temporary.cleanup()
            self._temporary = None

    def names(self, folder: str) -> list[str]:
        return [info.base_name for info in self._list(folder)]

    def all_files(self) -> list[str]:
        return [f"files/{info.base_name[:2]}/{info.base_name}" for info in self._list("files", recursive=True)]

    def locate(self, name: str) -> str:
        return f"{self.where}/{name}"

    def create(self, name: str, data: bytes, kind: str) -> None:
        target = self._below(name)
        with _as_os_error():
            if self._fs.get_file_info(target).type != arrow_fs.FileType.NotFound:
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), self.locate(name))
            self._make(target)
            with step(kind, self.locate(name)) as written:
                if self._atomic:
                    with self._fs.open_output_stream(target) as stream:
                        stream.write(data)
                    return
                unfinished = f"{target}.{uuid.uuid4().hex}.tmp"
                with self._fs.open_output_stream(unfinished) as stream:
                    written.write(stream, data)
                self._fs.move(unfinished, target)

    def put(self, path: Path, name: str) -> None:
        self.add(path, name, safe=False)
        near = self.near(name)
        make_folder(near.parent)
        os.rename(path, near)

    def add(self, path: Path, name: str, *, safe: bool) -> None:
        target = self._below(name)
        with _as_os_error():
            self._make(target)
            with (
                step("upload", self.locate(name)) as written,
                path.open("rb") as file,
                self._fs.open_output_stream(target) as stream,
            ):
                while chunk := file.read(_UPLOAD_BYTES):
                    written.write(stream, chunk)

    def sync(self) -> None:
        """Does nothing: each file was safe when its stream was closed."""

    def remove(self, names: Iterable[str]) -> None:
        for name in names:
            with step("remove", self.locate(name)), _as_os_error():
                self._delete(self._below(name))
            self.near(name).unlink(missing_ok=True)

    def drop_copies(self, needed: set[str]) -> None:
        near = self.near("files")
        for file in near.glob("*/*"):
            if "." not in file.name and f"files/{file.parent.name}/{file.name}" not in needed:
                file.unlink()

    def read(self, name: str) -> bytes:
        with _as_os_error(), self._fs.open_input_stream(self._below(name)) as stream:
            data: bytes = stream.read()
            return data

    def chunks(self, name: str) -> Iterator[bytes]:
        with _as_os_error(), self._fs.open_input_stream(self._below(name)) as stream:
            while chunk := stream.read(READ_BYTES):
                yield chunk

    def sizes(self, names: Iterable[str]) -> dict[str, int]:
        wanted = list(names)
        with _as_os_error():
            found = self._fs.get_file_info([self._below(name) for name in wanted])
        return {
            name: info.size for name, info in zip(wanted, found, strict=True) if info.type == arrow_fs.FileType.File
        }

    def fetch(self, stored: StoredFile) -> Path:
        near = self.near(stored.name)
        if near.exists():
            return near
        make_folder(near.parent)
        partial = near.with_name(f"{near.name}.{uuid.uuid4().hex}")
        size, digest = 0, hashlib.sha256()
        try:
            with open(partial, "xb", opener=private) as file:
                for chunk in self.chunks(stored.name):
                    size += len(chunk)
                    digest.update(chunk)
                    file.write(chunk)
            if size != stored.size or digest.hexdigest() != stored.sha256:
                raise damaged(self.locate(stored.name), size, stored)
            partial.rename(near)
        finally:
            partial.unlink(missing_ok=True)
        return near

    def contents(self, stored: StoredFile) -> bytes:
        if self.near(stored.name).exists():
            return self.near(stored.name).read_bytes()
        data = self.read(stored.name)
        if hashlib.sha256(data).hexdigest() != stored.sha256:
            raise damaged(self.locate(stored.name), len(data), stored)
        return data

    def folder(self, name: str, files: Mapping[str, StoredFile]) -> Path:
        with ThreadPoolExecutor(self.parallel, "sabot checkpoint reader") as readers:
            distinct = {stored.name: stored for stored in files.values()}
            for _ in readers.map(self.fetch, distinct.values()):
                pass
        return super().folder(name, files)

    def _reading_folder(self) -> TemporaryFolder:
        """Returns a folder on the disk of the state if there is one, so that files can be linked."""
        if self._wanted_scratch is None:
            return super()._reading_folder()
        try:
            own_folder(self._wanted_scratch.absolute())
            return TemporaryFolder("reading-", self._wanted_scratch.absolute())
        except OSError:  # it belongs to another user, who may read the checkpoints anyway
            return super()._reading_folder()

    def near(self, name: str) -> Path:
        """Returns the path of this machine's copy of the file with this name. The copy may not exist."""
        return self.workspace() / "near" / name

    def _below(self, name: str) -> str:
        return f"{self._path}/{name}"

    def _list(self, folder: str, *, recursive: bool = False) -> list[arrow_fs.FileInfo]:
        selector = arrow_fs.FileSelector(self._below(folder), allow_not_found=True, recursive=recursive)
        with _as_os_error():
            return [info for info in self._fs.get_file_info(selector) if info.type == arrow_fs.FileType.File]

    def _make(self, target: str) -> None:
        folder = target.rpartition("/")[0]
        if not self._atomic and folder not in self._folders:
            self._fs.create_dir(folder, recursive=True)
            self._folders.add(folder)

    def _delete(self, target: str) -> None:
        try:
            self._fs.delete_file(target)
        except OSError:
            if self._fs.get_file_info(target).type != arrow_fs.FileType.NotFound:
                raise


@contextmanager
def _as_os_error() -> Iterator[None]:
    """Turns all errors of pyarrow into OSError, without the keys that an object store may repeat in them."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        cause = clean_cause(error)
        if cause is not None and isinstance(error, OSError):
            raise
        raise OSError(scrubbed(str(error))) from cause
