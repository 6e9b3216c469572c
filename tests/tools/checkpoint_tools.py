"""What the tests of checkpoints share: an object store in this process, and a checkpoint with a file of each kind."""

import pyarrow as pa
from pyarrow import fs as arrow_fs

from sabot.engine.checkpoint import CheckpointStorage, Manifest
from sabot.engine.checkpoint.manifest import StoredPart, StoredTask, StoredTrack
from sabot.engine.checkpoint.places.base import Place


class _Writing:
    """A file being written: it is there when it is closed, as with an object store."""

    def __init__(self, store: "InMemory", path: str) -> None:
        self.store, self.path, self.parts, self.closed = store, path, [], False

    def write(self, data: object) -> int:
        self.parts.append(bytes(data))
        return len(self.parts[-1])

    def flush(self) -> None: ...

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self.store.turn("write", self.path)
            self.store.files[self.path] = b"".join(self.parts)


class _Files(dict[str, bytes]):
    """Files by their paths. Who walks them sees those of one moment: the app's threads write meanwhile."""

    def __iter__(self):
        return iter(self.keys())

    def keys(self):
        return list(super().keys())

    def values(self):
        return list(super().values())

    def items(self):
        return list(super().items())


class InMemory(arrow_fs.FileSystemHandler):
    """An object store in a dict. `turn(verb, path)` is called before each thing it does."""

    def __init__(self, turn=lambda verb, path: None) -> None:
        self.files = _Files()
        self.turn = turn

    def get_type_name(self) -> str:
        return "in memory"

    def normalize_path(self, path: str) -> str:
        return path

    def get_file_info(self, paths):
        self.turn("info", paths[0] if paths else "")
        return [self._info(path) for path in paths]

    def _info(self, path: str) -> arrow_fs.FileInfo:
        data = self.files.get(path)
        kind = arrow_fs.FileType.NotFound if data is None else arrow_fs.FileType.File
        return arrow_fs.FileInfo(path, kind, size=None if data is None else len(data))

    def get_file_info_selector(self, selector):
        self.turn("list", selector.base_dir)
        start = f"{selector.base_dir}/"
        below = [path for path in self.files if path.startswith(start)]
        return [self._info(path) for path in below if selector.recursive or "/" not in path[len(start) :]]

    def create_dir(self, path, recursive): ...

    def delete_file(self, path):
        self.turn("delete", path)
        if self.files.pop(path, None) is None:
            raise FileNotFoundError(path)

    def move(self, src, dest):
        self.turn("move", dest)
        if src not in self.files:
            raise FileNotFoundError(src)
        self.files[dest] = self.files[src]  # readers in other threads find one of the two at any time
        del self.files[src]

    def open_input_stream(self, path):
        self.turn("read", path)
        if path not in self.files:
            raise FileNotFoundError(path)
        return pa.BufferReader(self.files[path])

    def open_input_file(self, path):
        return self.open_input_stream(path)

    def open_output_stream(self, path, metadata):
        return pa.PythonFile(_Writing(self, path), mode="w")

    def _no(self, *args):
        raise NotImplementedError

    copy_file = delete_dir = delete_dir_contents = delete_root_dir_contents = open_append_stream = _no


def in_memory(turn=lambda verb, path: None) -> tuple[arrow_fs.FileSystem, InMemory]:
    handler = InMemory(turn)
    return arrow_fs.PyFileSystem(handler), handler


def files_of(storage: CheckpointStorage) -> Place:
    """Returns the place of the files of a storage."""
    return storage._place


def write(storage: CheckpointStorage, checkpoint_id: int, data: bytes = b"positions") -> Manifest:
    directory = storage.begin(checkpoint_id)
    (directory / "t/state").mkdir(parents=True)
    (directory / "t/blob").write_bytes(data)
    (directory / "t/state/000001.sst").write_bytes(data * 1000)
    (directory / "t/part").write_bytes(data)
    task = StoredTask(files={"window": "t/blob"}, states={"default": "t/state"})
    track = StoredTrack("out", 1, 0, [StoredPart(1, "t/part", 1)])
    return storage.commit(checkpoint_id, Manifest(checkpoint_id, 0, {}, {"task": task}, {"track": track}))


def assert_whole(manifest: Manifest, data: bytes) -> None:
    assert manifest.read_file("task", "window") == data
    assert (manifest.state_directory("task", "default") / "000001.sst").read_bytes() == data * 1000
    assert manifest.part_path(manifest.lanes["track"].pending[0]).read_bytes() == data
