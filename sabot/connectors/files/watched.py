"""The files of a folder that goes on: which are there, which are new, and which are known under another name.

A file is known by its content, and not by its name. What is kept of it are the hash of its first bytes, and the hash of those
before the place up to which it was read. A look lists the folders once, and compares names and inodes with those of the last
look. Only names that are new, files that have changed in the last minutes, and some of the others in turn are asked for their
size and time.

A file that is gone is kept for a while: a folder that is not mounted, or a file that is moved out and back, must not look like new
rows.
"""

import logging
import os
import threading
from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from typing import Any, NamedTuple

import msgspec

from sabot.base.dataclass import dataclass
from sabot.connectors.files.formats.base import FileFormat
from sabot.connectors.files.paths import (
    DataFile,
    Listed,
    Paths,
    RemotePath,
    codec_of,
    list_files,
    open_raw,
)
from sabot.connectors.files.source import FOLLOWED, mark_of
from sabot.errors import UserError

_log = logging.getLogger(__name__)

_BLOCK = 256  # files
_HOT_SECONDS = 600.0  # after a change, in which a file is looked at each time
_COLD = 10_000  # the other files that a look asks for their size
_TAIL_BYTES = 4096
_GONE = 100_000  # files that are gone, of which something is kept
_GONE_MS = 7 * 24 * 3600 * 1000


class _StoredFile(msgspec.Struct, array_like=True, frozen=True):
    """A file in a checkpoint; the fields are those of `WatchedFile`."""

    path: str
    inode: int
    size: int
    stamp: int
    offset: int
    mark: str
    head: int
    tail: str
    tail_end: int
    done: bool
    gone_ms: int


class Stretch(msgspec.Struct, array_like=True, frozen=True):
    """Rows of one file that were read one after the other. `base`: the position before them. `number`: that of the file. `start`:
    the offset in the file.
    """

    base: int
    number: int
    start: int


class _Head(msgspec.Struct, array_like=True):
    next_number: int
    position: int
    stretches: list[Stretch]


@dataclass(slots=True, eq=False)
class WatchedFile:
    """A file that was found. `inode`: 0 in an object store. `size`, `stamp` (ns): as they were seen last. `offset`: up to which it was
    read. `mark`, `head`: as in `FileMark`, or "" before it is begun. `tail`: the hash of the last bytes before `tail_end`, which is
    the size when it was begun if offsets do not count bytes. `done`: True if nothing is left to read as long as it does not change.
    `gone_ms`: the time since which it is gone, or 0.

    `changed_s`: the time of the clock at which a change was seen last. `tried`: size, time, and if it had settled, at the last
    attempt to read it. `due`: True if it is in the queue. `aside`: True if its name is none of those that are read, as of a log
    that was rotated.
    """

    number: int
    path: str
    inode: int
    size: int
    stamp: int
    below: str = ""
    offset: int = 0
    mark: str = ""
    head: int = 0
    tail: str = ""
    tail_end: int = 0
    done: bool = False
    gone_ms: int = 0
    seen: int = 0
    changed_s: float = 0.0
    tried: tuple[int, int, bool] | None = None
    due: bool = False
    aside: bool = False

    def data_file(self, *, whole: bool = True) -> DataFile:
        """Returns the file for a reader, with the number 0 for the first file of all, and 1 for each other one."""
        return DataFile(self.path, min(self.number, 1), self.size, self.stamp // 1_000_000, self.below, whole)

    @property
    def is_stored_object(self) -> bool:
        """True for an object of a store."""
        return isinstance(self.path, RemotePath)


class Lost(NamedTuple):
    """Rows of a file that can no longer be read."""

    path: str
    offset: int
    reason: str


class WatchedFiles:
    """The files below the paths of a source that follows them. `name`: that of the source. `is_text`: True for formats whose offsets
    count bytes.

    One thread calls all methods but `remember`, which any thread may call.
    """

    def __init__(self, name: str, paths: Paths, format: FileFormat[Any], *, is_text: bool) -> None:
        self._name, self._paths, self._format, self._is_text = name, paths, format, is_text
        self.due: deque[WatchedFile] = deque()
        self.due_bytes = 0  # of the files in the queue
        self.lost: deque[Lost] = deque()
        self.position = 0
        self.stretches: deque[Stretch] = deque(maxlen=1024)  # far more than the rows on the way to a checkpoint have
        self._next_number = 0
        self._by_path: dict[str, WatchedFile] = {}  # those that are there
        self._unfinished: dict[int, WatchedFile] = {}
        # those that the last look did not find: a listing may miss what is being renamed
        self._missed: dict[int, WatchedFile] = {}
        self._gone: OrderedDict[int, WatchedFile] = OrderedDict()  # by number, in the order in which they went
        self._gone_by_facts: dict[tuple[int, int], list[WatchedFile]] = {}  # by size and time
        self._look = 0
        self._turn = 0  # the first of the files that a look asks for their size though they have not changed for long
        self._stored: dict[int, dict[int, _StoredFile]] = {}  # by block and number
        self._blocks: dict[int, bytes] = {}  # encoded
        self._lock = threading.Lock()  # over what `remember` reads

    def is_plain_text(self, file: WatchedFile) -> bool:
        """Returns True if offsets in a file count its bytes, and if its last line may not be whole."""
        return self._is_text and codec_of(file.path) is None and not file.is_stored_object

    def left(self, file: WatchedFile) -> int:
        """Returns the bytes of a file that are not read yet; all of them if that is not known."""
        return 0 if file.done else max(0, file.size - file.offset) if self.is_plain_text(file) else file.size

    # -- looks -------------------------------------------------------------------------------------------------------------

    def listing(self) -> list[Listed]:
        """Returns the files that are there, in the order in which they would be read. Raises UserError if there is no such place."""
        found, _ = list_files(self._paths, self._format.suffixes)
        stated = [(facts, each) for each in found if (facts := each.facts()) is not None]
        return [each for _, each in sorted(stated, key=lambda pair: (pair[0][1], pair[1].path))]

    def look(self, now_s: float, now_ms: int) -> None:
        """Lists the files, and puts those with something to read into the queue: by the time of their last change, then by name.
        `now_s`, `now_ms`: the steady and the calendar time. Raises UserError and OSError if the place cannot be listed; then nothing
        has changed.
        """
        listed, others = list_files(self._paths, self._format.suffixes)
        self._look += 1
        fresh: list[tuple[int, int, Listed]] = []
        cold = 0
        first_cold, self._turn = self._turn, self._turn + _COLD
        for each in listed:
            file = self._by_path.get(each.path)
            if file is None or file.inode != each.inode:
                if (facts := each.facts()) is not None:
                    fresh.append((facts[1], facts[0], each))
                continue
            file.path = each.path  # of an object of a store: what can open it
            if each.inode and now_s - file.changed_s > _HOT_SECONDS and file.number not in self._unfinished:
                cold += 1
                if not first_cold < cold <= self._turn:
                    file.seen = self._look
                    continue
            if (facts := each.facts()) is not None:
                self._see(file, *facts, now_s)
        if cold <= self._turn:
            self._turn = 0
        missing = dict(self._missed)
        for file in self._by_path.values():
            if file.seen != self._look and not (file.aside and self._see_aside(file, now_s)):
                missing[file.number] = file
        self._take_fresh(sorted(fresh, key=lambda each: (each[0], each[2].path)), missing, now_s, now_ms)
        self._leave(missing, others, now_s, now_ms)
        self._forget(now_ms)
        self._queue(now_s)

    def _see(self, file: WatchedFile, size: int, stamp: int, now_s: float) -> None:
        file.seen = self._look
        if (size, stamp) != (file.size, file.stamp):
            file.size, file.stamp, file.changed_s, file.done = size, stamp, now_s, False
            self._unfinished[file.number] = file

    def _see_aside(self, file: WatchedFile, now_s: float) -> bool:
        """Looks at a file whose name is none of those that are read. Returns False if it is gone, or if its writer has had the time to
        close it.
        """
        try:
            found = os.stat(file.path)
        except OSError:
            return False
        if found.st_ino != file.inode or not self._may_grow(file, now_s):
            return False
        self._see(file, found.st_size, found.st_mtime_ns, now_s)
        return True

    def _may_grow(self, file: WatchedFile, now_s: float) -> bool:
        return not file.done or now_s - file.changed_s <= _HOT_SECONDS

    def _take_fresh(
        self,
        fresh: Sequence[tuple[int, int, Listed]],
        missing: dict[int, WatchedFile],
        now_s: float,
        now_ms: int,
    ) -> None:
        """Takes the names that are new, or that stand for another inode than before. Those of files that are missing since this look
        leave `missing`.
        """
        if not fresh:
            return
        inodes = {file.inode: file for file in missing.values() if file.inode}
        same: dict[tuple[int, int], list[WatchedFile]] = defaultdict(list)
        for file in missing.values():
            same[file.size, file.stamp].append(file)
        for stamp, size, each in fresh:
            known = [inodes[each.inode]] if each.inode in inodes else []
            known += [*same.get((size, stamp), ()), *self._gone_by_facts.get((size, stamp), ())]
            found = next((one for one in known if self._is_renamed(one, each, size, stamp, missing)), None)
            if found is None:
                if (before := self._by_path.get(each.path)) is not None and before.mark:
                    _log.info(
                        "source %s: %s is another file now, which is read from its beginning", self._name, each.path
                    )
                found = self._new(each, size, stamp)
            else:
                missing.pop(found.number, None)
                self._back(found)
                if self._by_path.get(found.path) is found:
                    del self._by_path[found.path]
                if found.path != each.path:
                    _log.info("source %s: %s was %s before, and is known", self._name, each.path, found.path)
                found.path, found.inode, found.aside = each.path, each.inode, False
                self.save(found)
            # Files that are there at the start may have been whole for long.
            found.below, found.changed_s = each.below, _changed_s(stamp, now_s, now_ms) if self._look == 1 else now_s
            self._by_path[each.path] = found
            self._see(found, size, stamp, now_s)
            if not found.done:
                self._unfinished[found.number] = found

    def _is_renamed(
        self, file: WatchedFile, each: Listed, size: int, stamp: int, missing: Mapping[int, WatchedFile]
    ) -> bool:
        """Returns True if a known file has this name now. A file that is renamed keeps its inode, and may have grown; one that is moved to
        another file system and back, or restored, keeps its size and its time.
        """
        if not (file.gone_ms or file.number in missing):  # it has got another name in this look
            return False
        if not each.inode and file.path != each.path:  # an object of a store is never renamed, but copied
            return False
        if not file.mark and file.inode != each.inode:
            return False
        try:
            return self.is_same(file, each.path, size, stamp)
        except FileNotFoundError:
            return False

    def _new(self, each: Listed, size: int, stamp: int) -> WatchedFile:
        try:
            each.path.encode()
        except UnicodeEncodeError:
            raise UserError(f"the name of file {each.path!r} is not UTF-8", hint="rename it, or leave it out") from None
        file = WatchedFile(self._next_number, each.path, each.inode, size, stamp, each.below)
        self._next_number += 1
        self.save(file)
        return file

    def _leave(
        self, missing: Mapping[int, WatchedFile], others: Iterable[tuple[int, str]], now_s: float, now_ms: int
    ) -> None:
        """Takes files whose names are gone: they have a name by now that is none of those that are read, or are gone themselves, if the
        last look did not find them either.
        """
        inodes = {file.inode for file in missing.values() if file.inode and self._may_grow(file, now_s)}
        names = {inode: path for inode, path in others if inode in inodes} if inodes else {}
        before, self._missed = self._missed, {}
        for file in missing.values():
            if self._by_path.get(file.path) is file:
                del self._by_path[file.path]
            if file.inode in names and self._set_aside(file, names[file.inode], now_s):
                continue
            if file.number in before:
                self._go(file, now_ms)
            else:
                self._missed[file.number] = file

    def _set_aside(self, file: WatchedFile, path: str, now_s: float) -> bool:
        """Reads on a file under a name that is none of those that are read, such as that of a log that was rotated. Returns False if
        the file of this name is another one.
        """
        try:
            found = os.stat(path)
            same = found.st_ino == file.inode and self.is_same(file, path, found.st_size, found.st_mtime_ns)
        except OSError:
            return False
        if not same or path in self._by_path:
            return False
        if file.path != path:
            _log.info("source %s: %s is %s now, and is read to its end", self._name, file.path, path)
        file.path, file.aside = path, True
        self._by_path[path] = file
        self._see(file, found.st_size, found.st_mtime_ns, now_s)
        self.save(file)
        return True

    def _go(self, file: WatchedFile, now_ms: int) -> None:
        """Notes that a file is gone. What was not read of it becomes a dead letter."""
        if self.left(file) > 0:
            what = "read to its end: its rows from here on are missing" if file.offset else "read: its rows are missing"
            self.lost.append(Lost(file.path, file.offset, f"the file is gone, and was not {what}"))
            _log.warning("source %s: %s: %s", self._name, file.path, self.lost[-1].reason)
        self._unfinished.pop(file.number, None)
        file.gone_ms = max(1, now_ms)
        if not file.mark:
            self._drop(file)
            return
        self._gone[file.number] = file
        self._gone_by_facts.setdefault((file.size, file.stamp), []).append(file)
        self.save(file)

    def _back(self, file: WatchedFile) -> None:
        if file.gone_ms:
            file.gone_ms = 0
            self._gone.pop(file.number, None)
            self._not_by_facts(file)

    def _not_by_facts(self, file: WatchedFile) -> None:
        facts = (file.size, file.stamp)
        left = [each for each in self._gone_by_facts.get(facts, ()) if each is not file]
        if left:
            self._gone_by_facts[facts] = left
        else:
            self._gone_by_facts.pop(facts, None)

    def _forget(self, now_ms: int) -> None:
        """Forgets files that are gone for so long, or so many, that they will not come back."""
        while self._gone:
            file = next(iter(self._gone.values()))
            if len(self._gone) <= _GONE and now_ms - file.gone_ms <= _GONE_MS:
                break
            del self._gone[file.number]
            self._not_by_facts(file)
            self._drop(file)

    def _queue(self, now_s: float) -> None:
        # A file that no look has seen has its path from a checkpoint, which may name any file of the machine.
        waiting = [file for file in self._unfinished.values() if file.seen and not file.due]
        for file in sorted(waiting, key=lambda each: (each.stamp, each.path)):
            file.due = True
            self.due.append(file)
            self.due_bytes += self.left(file)

    # -- reading -----------------------------------------------------------------------------------------------------------

    def next(self) -> WatchedFile | None:
        """Takes the next file out of the queue; None if it is empty."""
        if not self.due:
            self.due_bytes = 0
            return None
        file = self.due.popleft()
        file.due = False
        self.due_bytes = max(0, self.due_bytes - self.left(file))
        return file

    def is_same(self, file: WatchedFile, path: str, size: int, stamp: int) -> bool:
        """Returns True if the file at a path has the content that was known, and perhaps more behind it. Raises OSError."""
        if not file.mark:  # nothing of it was read
            return True
        now = DataFile(path, 0, size, stamp // 1_000_000)
        stored = isinstance(path, RemotePath)
        grows = not stored and self._format.grows(now)
        if size < file.tail_end or size < file.head or not (grows or size == file.tail_end):
            return False
        if stored:
            return mark_of(now, both_ends=False).mark == file.mark
        if mark_of(now, both_ends=not grows, head=file.head).mark != file.mark:
            return False
        return not file.tail or tail_of(path, file.tail_end) == file.tail

    def replace(self, file: WatchedFile, now_s: float, now_ms: int) -> WatchedFile:
        """Returns the file that has taken the place of a known one, under its name and inode."""
        shorter = file.size < file.tail_end or file.size < file.head
        _log.warning(
            "source %s: %s %s, and is read as a new file; rows that it had, and that were not read before, are missing",
            *(self._name, file.path, "was cut off (copytruncate)" if shorter else "was written anew"),
        )
        new = WatchedFile(self._next_number, file.path, file.inode, file.size, file.stamp, file.below, seen=file.seen)
        self._next_number += 1
        new.changed_s, new.aside = now_s, file.aside
        file.done = True
        self._go(file, now_ms)
        self._by_path[new.path] = self._unfinished[new.number] = new
        self.save(new)
        return new

    def begin(self, file: WatchedFile) -> bool:
        """Notes what distinguishes a file that is begun. Returns False if its name is that of another file by now. Raises OSError."""
        data = file.data_file()
        found = mark_of(data, both_ends=not (file.is_stored_object or self._format.grows(data)))
        if not has_name(file):
            return False
        file.mark, file.head = found.mark, found.head
        if not self.is_plain_text(file):
            file.tail_end = file.size
        self.save(file)
        return True

    def finish(self, file: WatchedFile, *, done: bool) -> None:
        """Notes that a file was read up to its `offset`. `done`: True if this is its end. Raises OSError."""
        if self.is_plain_text(file) and file.offset > 0:
            tail = tail_of(file.path, file.offset)
            if has_name(file):  # else the bytes may be those of another file
                file.tail, file.tail_end = tail, file.offset
        file.done = done
        if done:
            self._unfinished.pop(file.number, None)
        self.save(file)

    def note(self, file: WatchedFile, start: int) -> None:
        """Notes, before rows are returned, that they begin at this offset of a file."""
        last = self.stretches[-1] if self.stretches else None
        if last is None or last.number != file.number or last.start + self.position - last.base != start:
            with self._lock:
                self.stretches.append(Stretch(self.position, file.number, start))

    # -- checkpoints -------------------------------------------------------------------------------------------------------

    def save(self, file: WatchedFile) -> None:
        """Takes a file, as it is now, into the next checkpoint."""
        stored = _StoredFile(
            str(file.path),
            *(file.inode, file.size, file.stamp, file.offset, file.mark, file.head, file.tail, file.tail_end),
            *(file.done, file.gone_ms),
        )
        with self._lock:
            self._stored.setdefault(file.number // _BLOCK, {})[file.number] = stored
            self._blocks.pop(file.number // _BLOCK, None)

    def _drop(self, file: WatchedFile) -> None:
        number = file.number // _BLOCK
        with self._lock:
            block = self._stored.get(number, {})
            block.pop(file.number, None)
            self._blocks.pop(number, None)
            if not block:
                self._stored.pop(number, None)

    def remember(self) -> dict[str, bytes]:
        """Returns the files for a checkpoint, as blocks by their names. From any thread."""
        with self._lock:
            for number, block in self._stored.items():
                if number not in self._blocks:
                    self._blocks[number] = msgspec.msgpack.encode(block)
            head = _Head(self._next_number, self.position, list(self.stretches))
            blocks = {f"{FOLLOWED}-{number:08d}": self._blocks[number] for number in self._stored}
        return {FOLLOWED: msgspec.msgpack.encode(head), **blocks}

    def restore(self, memory: Mapping[str, bytes], position: int, now_s: float, now_ms: int) -> bool:
        """Takes the files of a checkpoint, as they were at a position of it. Returns False if they do not reach back to it. Raises
        `msgspec.DecodeError`.
        """
        head = msgspec.msgpack.decode(memory[FOLLOWED], type=_Head)
        self._next_number, self.position = head.next_number, position
        files: dict[int, WatchedFile] = {}
        for name in sorted(memory):
            if name == FOLLOWED:
                continue
            for number, each in msgspec.msgpack.decode(memory[name], type=dict[int, _StoredFile]).items():
                facts = (each.path, each.inode, each.size, each.stamp, "", each.offset, each.mark, each.head, each.tail)
                file = WatchedFile(number, *facts, each.tail_end, each.done, each.gone_ms)
                file.changed_s = _changed_s(each.stamp, now_s, now_ms)
                files[number] = file
        self.stretches.extend(head.stretches)
        if position < (self.stretches[0].base if self.stretches else head.position) or position > head.position:
            return False
        while self.stretches and self.stretches[-1].base > position:
            last = self.stretches.pop()
            self._rewind(files.get(last.number), last.start)
        if self.stretches:
            last = self.stretches[-1]
            self._rewind(files.get(last.number), last.start + position - last.base)
        for file in files.values():
            if file.gone_ms:
                self._gone[file.number] = file
                self._gone_by_facts.setdefault((file.size, file.stamp), []).append(file)
            else:
                self._by_path[file.path] = file
            if not file.done and not file.gone_ms:
                self._unfinished[file.number] = file
            self.save(file)
        self._gone = OrderedDict(sorted(self._gone.items(), key=lambda pair: pair[1].gone_ms))
        return True

    def _rewind(self, file: WatchedFile | None, offset: int) -> None:
        if file is not None and file.offset != offset:
            file.offset, file.done, file.gone_ms = offset, False, 0


def _changed_s(stamp: int, now_s: float, now_ms: int) -> float:
    """Returns the steady time of the last change of a file, by its own time (ns)."""
    return now_s - max(0.0, now_ms / 1000 - stamp / 1e9)


def has_name(file: WatchedFile) -> bool:
    """Returns True if the name of a file is still its own. Raises OSError."""
    return not file.inode or os.stat(file.path).st_ino == file.inode


def tail_of(path: str, end: int) -> str:
    """Returns the hash of the bytes before an offset of a file. Raises OSError."""
    with open_raw(path) as raw:
        raw.seek(max(0, end - _TAIL_BYTES))
        return blake2b(raw.read(min(end, _TAIL_BYTES)), digest_size=16).hexdigest()
