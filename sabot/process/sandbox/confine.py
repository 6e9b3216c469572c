"""The confinement of a child, between fork and exec: namespaces, mounts, user, capabilities, Landlock, and the filter
of system calls.

The worker decides which of these steps a sandbox needs (`reach`); `probe` has told it which ones work on this system. The
forked child does the steps. It has a single thread, and imports only the standard library and this folder.
"""

import ctypes
import errno
import fcntl
import json
import os
import platform
import socket
import stat
import struct
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any

from sabot.process.sandbox.seccomp import MACHINES, instructions

NOBODY = 65534
"""The user and the group of a child in a sandbox."""
PRIVATE = ("/tmp", "/dev/shm")
"""The folders that a child with a mount namespace has for itself: they are empty at its start, and lie in memory."""
_SOCKETS = "/run"  # sockets of Docker, of message buses, …: a program that can connect to them is not confined

_NEW_MOUNTS, _NEW_IPC, _NEW_USER, _NEW_NETWORK = 0x20000, 0x08000000, 0x10000000, 0x40000000
_NOSUID, _NODEV, _NOEXEC, _RECURSIVE, _PRIVATE = 2, 4, 8, 1 << 14, 1 << 18
_ATTR_RDONLY, _ATTR_NOSUID, _ATTR_NODEV, _ATTR_IDMAP = 1, 2, 4, 0x00100000
_AT_FDCWD, _AT_EMPTY_PATH, _AT_RECURSIVE = -100, 0x1000, 0x8000
_CLONE_TREE, _CLOSE_ON_EXEC, _MOVE_BY_DESCRIPTORS = 1, 0o2000000, 0x44
_RESOLVE_NO_SYMLINKS = 4
# Numbers of calls that are the same on all machines.
_OPEN_TREE, _MOVE_MOUNT, _OPENAT2, _MOUNT_SETATTR = 428, 429, 437, 442
_LANDLOCK_CREATE, _LANDLOCK_RULE, _LANDLOCK_RESTRICT = 444, 445, 446

_PR_SET_SECCOMP, _PR_CAPBSET_DROP, _PR_SET_SECUREBITS, _PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT = 22, 24, 28, 38, 47
_FILTER, _CLEAR_ALL = 2, 4
_SECURE_BITS = 0xE3  # no capabilities for being root, none kept or raised at a change of user; locked

# Rights of Landlock.
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1, 2, 4, 8
_MAKE_NODES = 1 << 6 | 1 << 11
_REFER, _TRUNCATE, _IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15
_ALL_OF_VERSION_1 = (1 << 13) - 1
_OF_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV
_READS = _EXECUTE | _READ_FILE | _READ_DIR
_CONNECT, _BIND = 2, 1
_SCOPES = 3  # no abstract sockets of, and no signals to, processes outside of the sandbox

_libc = ctypes.CDLL(None, use_errno=True)


def confinement(plan: Mapping[str, Any]) -> list[tuple[str, Callable[[], None]]]:
    """Returns the steps that confine this process for good, in order, as pairs of a name and a function. The
    functions raise OSError if the kernel refuses. The last step is not in the list: call `filter_calls` after the
    others.

    The fields of `plan`:

    - `user`: how the process becomes the user nobody: "root" if it is root and changes its user, "namespace" if it
      enters a user namespace, "" if it keeps its user.
    - `network`, `ipc`, `mounts`: True if the process gets a namespace of its own for its network, for its System V
      memory and queues, or for its mounts. `proc`: True if it gets a /proc of its own.
    - `capabilities`: True if it gives up all capabilities. `landlock`: the version of Landlock to use; 0 to use none.
    - `filter`: the kind of sockets that the filter of system calls allows (`seccomp.Sockets`); None for no filter.
    - `system`, `readable`: paths that the process may read. `writable`: paths that it may also write. `devices`:
      devices that it may use.
    - `owners`: for each path of `writable`, the user id and the group id to which new files there belong.
    - `links`: the symbolic links that lead to these paths, each with its target.
    - `ports`: the TCP ports to which the process may connect; None for all.
    - `temp_bytes`: the size of its /tmp, and of its /dev/shm.

    The paths of `readable` and `writable` must contain no symbolic links. The step "paths" opens each of them once,
    and fails if it meets a link. All later steps use the open descriptors, so it has no effect if a path is replaced
    later.
    """
    steps: list[tuple[str, Callable[[], None]]] = []
    ruleset: list[int] = []
    places: dict[str, int] = {}

    def step(wanted: object, name: str, action: Callable[[], None]) -> None:
        if wanted:
            steps.append((name, action))

    step(plan["user"] == "namespace", "user", _enter_user_namespace)
    step(plan["network"], "network", _enter_network)
    step(plan["ipc"], "ipc", _enter_ipc)
    step(plan["mounts"], "mounts", _enter_mounts)
    steps.append(("paths", lambda: places.update((path, _open_place(path)) for path in _named(plan))))
    step(plan["mounts"], "mounts", lambda: _mount(plan, places))
    step(plan["landlock"], "files", lambda: ruleset.append(_ruleset(plan, places)))
    step(plan["capabilities"], "capabilities", _drop_bounds)
    step(plan["user"] == "root", "user", _become_nobody)
    step(plan["capabilities"], "capabilities", _drop_capabilities)
    steps.append(("privileges", lambda: _prctl(_PR_SET_NO_NEW_PRIVS, 1)))
    step(plan["landlock"], "files", lambda: _restrict(ruleset[0]))
    return steps


def prepare(plan: Mapping[str, Any]) -> None:
    """Makes the parts of a confinement that several children can share: the instructions of the filter of system
    calls, and the user namespaces by which files get their owners. Both are cached. Called in the supervisor, before
    it forks a child with this plan. `plan`: the plan for `confinement`.
    """
    if plan["filter"] is not None:
        instructions(plan["filter"])
    if plan["user"] == "root" and plan["mounts"]:
        for user, group in plan["owners"].values():
            with suppress(OSError):
                if user != NOBODY and (user, group) not in _identities:
                    _identities[user, group] = _identity(user, group)


def filter_calls(sockets: Any) -> None:
    """Filters the system calls of this process, and of all processes that it starts, from now on. This cannot be undone, so
    it is the last step of the confinement. `sockets`: the kind of sockets that are allowed. Raises OSError.
    """
    program = instructions(sockets)
    held = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(held))
    _prctl(_PR_SET_SECCOMP, _FILTER, ctypes.c_char_p(header))


def _checked(result: int, path: str | None = None) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)
    return result


def _call(number: int, *arguments: Any, path: str | None = None) -> int:
    wide = [ctypes.c_long(each) if isinstance(each, int) else each for each in arguments]
    return _checked(_libc.syscall(ctypes.c_long(number), *wide), path)


def _prctl(option: int, *arguments: Any) -> None:
    wide = [ctypes.c_ulong(each) if isinstance(each, int) else each for each in arguments]
    _checked(_libc.prctl(option, *wide, *[ctypes.c_ulong(0)] * (4 - len(wide))))


def _unshare(flags: int) -> None:
    _checked(_libc.unshare(flags))


# -- user and capabilities --------------------------------------------------------------------------------------------


def _enter_user_namespace() -> None:
    """Enters a new user namespace. Inside the namespace, this process is the user nobody. Outside, it keeps the
    rights of the worker's user, and gets no further ones.
    """
    user, group = os.geteuid(), os.getegid()
    _unshare(_NEW_USER)
    for name, content in ("setgroups", "deny"), ("uid_map", f"{NOBODY} {user} 1"), ("gid_map", f"{NOBODY} {group} 1"):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(content)


def _become_nobody() -> None:
    for stream in range(3):  # so that it may open /dev/stdout, which opens the pipe again
        if stat.S_ISFIFO(os.fstat(stream).st_mode):
            os.fchown(stream, NOBODY, NOBODY)
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)


def _drop_bounds() -> None:
    """Removes all capabilities from the bounding set of this process, so that no program that it executes can have
    one.

    The kernel allows this only to a process with CAP_SETPCAP. For any other process nothing is removed; there, the
    later step "privileges" (no_new_privs) ensures that executed programs gain no capability.
    """
    with open("/proc/sys/kernel/cap_last_cap") as last:
        highest = int(last.read())
    _prctl(_PR_CAP_AMBIENT, _CLEAR_ALL)
    with suppress(PermissionError):
        _prctl(_PR_SET_SECUREBITS, _SECURE_BITS)
        for capability in range(highest + 1):
            _prctl(_PR_CAPBSET_DROP, capability)


def _drop_capabilities() -> None:
    version_3 = struct.pack("=Ii", 0x20080522, 0)
    _checked(_libc.capset(version_3, bytes(24)))


# -- namespaces and mounts --------------------------------------------------------------------------------------------


def _enter_ipc() -> None:
    _unshare(_NEW_IPC)


def _enter_network() -> None:
    """Enters a new network namespace, whose only device is a loopback, and brings that device up."""
    _unshare(_NEW_NETWORK)
    set_flags, up = 0x8914, 1
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, set_flags, struct.pack("16sH22x", b"lo", up))


def _named(plan: Mapping[str, Any]) -> list[str]:
    """Returns the readable and the writable paths of the plan, ordered so that each folder comes before the paths
    inside it.
    """
    return sorted({*plan["readable"], *plan["writable"]}, key=lambda path: path.count("/"))


def _open_place(path: str) -> int:
    """Opens an absolute path with O_PATH, and returns the descriptor, by which the path can be named but not read or
    written. Raises OSError; its errno is ELOOP if a part of the path is a symbolic link.
    """
    how = struct.pack("=QQQ", os.O_PATH | os.O_CLOEXEC, 0, _RESOLVE_NO_SYMLINKS)
    try:
        return _call(_OPENAT2, _AT_FDCWD, os.fsencode(path), how, len(how), path=path)
    except OSError as error:
        # before Linux 5.6, or if another filter does not know the call
        if error.errno not in (errno.ENOSYS, errno.EPERM):
            raise
    return _walk_to(path)


def _walk_to(path: str) -> int:
    """Does the same as `_open_place` without the system call `openat2`: opens one folder of the path after the other."""
    place = os.open("/", os.O_PATH | os.O_CLOEXEC)
    for name in path.split("/"):
        if name:
            try:
                following = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=place)
            except OSError as error:
                raise OSError(error.errno, os.strerror(error.errno or 0), path) from None
            finally:
                os.close(place)
            place = following
            if stat.S_ISLNK(os.fstat(place).st_mode):
                os.close(place)
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
    return place


def enter(path: str) -> None:
    """Makes a folder the current one of this process. Raises OSError; its errno is ELOOP if a part of the path is a
    symbolic link.
    """
    place = _open_place(path)
    os.fchdir(place)
    os.close(place)


def _enter_mounts() -> None:
    _unshare(_NEW_MOUNTS)
    _checked(_libc.mount(None, b"/", None, _RECURSIVE | _PRIVATE, None), "/")


def _private() -> list[str]:
    return [os.path.realpath(each) for each in PRIVATE if os.path.isdir(each)]


def _mount(plan: Mapping[str, Any], places: Mapping[str, int]) -> None:
    """Mounts the file systems of a child that has a mount namespace of its own. "Named paths" are the readable and
    the writable paths of the plan. `places`: the open descriptors of the named paths.

    - All files are made read-only, except those in the plan's writable paths.
    - Empty folders are mounted over /tmp and /dev/shm (writable, in memory) and over /run.
    - Some named paths are below a folder that the user nobody may not enter. An empty folder is mounted over that
      folder, too.
    - A named path that has disappeared under such an empty folder is mounted there again.
    """
    writable, private = list(plan["writable"]), _private()
    covers = private + [each for each in (_SOCKETS,) if os.path.isdir(each) and not os.path.islink(each)]
    covers += sorted({each for path in places if (each := _closed_above(path)) and not _is_below(each, covers)})
    trees = {}
    for path, place in places.items():
        if path in writable or _is_below(path, covers):
            flags = _CLONE_TREE | _CLOSE_ON_EXEC | _AT_RECURSIVE | _AT_EMPTY_PATH
            trees[path] = tree = _call(_OPEN_TREE, place, b"", flags, path=path)
            given = _ATTR_NOSUID | (_ATTR_NODEV if path in writable else _ATTR_RDONLY)
            _set_attributes(tree, "", given, recursive=True)
            if path in writable and (users := _identities.get(tuple(plan["owners"][path]))) is not None:
                with suppress(OSError):  # a file system without this ability: its files keep their owners
                    _set_attributes(tree, "", _ATTR_IDMAP, users=users)
    _set_attributes(_AT_FDCWD, "/", _ATTR_RDONLY | _ATTR_NOSUID, recursive=True)
    for cover in covers:
        _mount_new("tmpfs", cover, f"mode={'1777' if cover in private else '755'},size={plan['temp_bytes']}")
    for path, tree in trees.items():
        if _is_below(path, covers):
            _make_place(path, is_folder=stat.S_ISDIR(os.fstat(places[path]).st_mode))
        target = _open_place(path)
        _call(_MOVE_MOUNT, tree, b"", target, b"", _MOVE_BY_DESCRIPTORS, path=path)
        os.close(target)
        os.close(tree)
    for path, target in plan["links"]:
        if _is_below(path, covers) and not os.path.lexists(path):
            with suppress(OSError):  # in a folder that was mounted back unchanged
                os.makedirs(os.path.dirname(path), exist_ok=True)
                os.symlink(target, path)
    for cover in covers:
        if cover not in private and cover not in trees:
            _set_attributes(_AT_FDCWD, cover, _ATTR_RDONLY)
    if plan["proc"]:
        _mount_new("proc", "/proc", "hidepid=ptraceable")


def _make_place(path: str, *, is_folder: bool) -> None:
    """Creates an empty file or folder, on which a path of the plan will be mounted. Its parent is one of the empty
    folders that `_mount` has mounted over a real folder.
    """
    os.makedirs(path if is_folder else os.path.dirname(path), exist_ok=True)
    if not is_folder and not os.path.exists(path):
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644))


def _mount_new(kind: str, path: str, options: str) -> None:
    flags = _NOSUID | _NODEV | (_NOEXEC if kind == "proc" else 0)
    place = _open_place(path)
    on = f"/proc/self/fd/{place}".encode()
    _checked(_libc.mount(kind.encode(), on, kind.encode(), flags, options.encode()), path)
    os.close(place)


def _set_attributes(folder: int, path: str, given: int, *, recursive: bool = False, users: int = 0) -> None:
    attributes = struct.pack("=QQQQ", given, 0, 0, users)
    flags = (_AT_RECURSIVE if recursive else 0) | (0 if path else _AT_EMPTY_PATH)
    _call(_MOUNT_SETATTR, folder, os.fsencode(path), flags, attributes, len(attributes), path=path or None)


def _closed_above(path: str) -> str | None:
    """Returns the first folder above the path, starting from the root, whose mode lacks `o+x`, so that user 65534
    (nobody) cannot enter it. Returns None if this user can enter all folders above the path.
    """
    way = ""
    for name in path.split("/")[1:-1]:
        way += f"/{name}"
        if not os.lstat(way).st_mode & stat.S_IXOTH:
            return way
    return None


def _is_below(path: str, folders: Iterable[str]) -> bool:
    return any(path == folder or path.startswith(f"{folder}/") for folder in folders)


_identities: dict[tuple[int, ...], int] = {}


def _identity(user: int, group: int) -> int:
    """Makes a user namespace for mounts, and returns its descriptor. On a mount with this namespace, files that user
    65534 (nobody) creates belong to `user` and `group` on the disk. Raises OSError if no user namespace can be made.
    """
    waiting, end = os.pipe2(os.O_CLOEXEC)
    ready, tell = os.pipe2(os.O_CLOEXEC)
    if (pid := os.fork()) == 0:
        try:
            os.close(end)
            _unshare(_NEW_USER)
            os.write(tell, b".")
            os.read(waiting, 1)
        finally:
            os._exit(0)
    os.close(tell)
    try:
        if not os.read(ready, 1):
            raise OSError(errno.EPERM, "no user namespace")
        for name, owner in ("uid_map", user), ("gid_map", group):
            with open(f"/proc/{pid}/{name}", "w") as file:
                file.write(_ids(owner))
        return os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        for each in (waiting, end, ready):
            os.close(each)
        os.waitpid(pid, 0)


def _ids(owner: int) -> str:
    """Returns the text for the `uid_map` or `gid_map` of a user namespace. It maps the id `owner` to 65534 (nobody),
    and all other ids below 65534 to themselves.
    """
    lines = [f"{owner} {NOBODY} 1"]
    for first, behind in (0, min(owner, NOBODY)), (owner + 1, NOBODY):
        if first < behind:
            lines.append(f"{first} {first} {behind - first}")
    return "\n".join(lines)


# -- Landlock ---------------------------------------------------------------------------------------------------------


def landlock_version() -> int:
    """Returns the version of Landlock; 0 if this kernel has none."""
    version: int = _libc.syscall(ctypes.c_long(_LANDLOCK_CREATE), None, ctypes.c_long(0), ctypes.c_long(1))
    return max(0, version)


def _ruleset(plan: Mapping[str, Any], places: Mapping[str, int]) -> int:
    """Makes the Landlock rules of the plan, and returns their descriptor. With these rules, an access to a file is
    denied unless a rule allows it; if the plan has `ports`, this also holds for TCP connections. The rules have no
    effect before `_restrict` is called.
    """
    version, ports = plan["landlock"], plan["ports"]
    rights = _ALL_OF_VERSION_1
    for since, right in (2, _REFER), (3, _TRUNCATE), (5, _IOCTL_DEV):
        rights |= right if version >= since else 0
    network = _BIND | _CONNECT if version >= 4 and ports is not None else 0
    size = 8 if version < 4 else 16 if version < 6 else 24
    attributes = struct.pack("=QQQ", rights, network, _SCOPES)[:size]
    rules = _call(_LANDLOCK_CREATE, attributes, size, 0)
    os.set_inheritable(rules, False)
    read, write = rights & _READS, rights & ~_MAKE_NODES & ~_IOCTL_DEV
    device = rights & (_READ_FILE | _WRITE_FILE | _TRUNCATE | _IOCTL_DEV)
    temporary = _private() if plan["mounts"] else []
    for path, place in places.items():
        _allow(rules, path, place, write if path in plan["writable"] else read)
    for paths, allowed in (plan["system"], read), (temporary, write), (plan["devices"], device):
        for path in paths:
            place = os.open(path, os.O_PATH | os.O_CLOEXEC)
            _allow(rules, path, place, allowed)
            os.close(place)
    if network:
        for port in ports:
            _call(_LANDLOCK_RULE, rules, 2, struct.pack("=QQ", _CONNECT, port), 0)
    return rules


def _restrict(rules: int) -> None:
    _call(_LANDLOCK_RESTRICT, rules, 0)


def _allow(rules: int, path: str, place: int, allowed: int) -> None:
    if not stat.S_ISDIR(os.fstat(place).st_mode):
        allowed &= _OF_FILES
    _call(_LANDLOCK_RULE, rules, 1, struct.pack("=Qi", allowed, place), 0, path=path)


# -- the probe of this system -----------------------------------------------------------------------------------------


def probe() -> dict[str, Any]:
    """Tries, in forks of this process, which steps of a confinement this system allows, and returns the findings as a dict:

    - `user`: how a child becomes the user nobody: "root", "namespace", or "" if it cannot.
    - `landlock`: the version of Landlock, or 0.
    - `missing`: for each step that does not work, its name with the reason. The names are `user`, `capabilities`, `filter`,
      `mounts`, `proc`, `network` and `ipc`.
    - `encrypted`: True if the memory of this machine is encrypted, so that its host cannot read it.
    """
    root = os.geteuid() == 0
    missing: dict[str, str] = {}

    def trial(name: str, action: Callable[[], None]) -> bool:
        why = _why_not(action)
        if why:
            missing[name] = why
        return not why

    kind = "root" if root else "namespace"
    user = kind if trial("user", _become_nobody if root else _enter_user_namespace) else ""
    enter = _enter_user_namespace if user == "namespace" else _nothing

    def inside(action: Callable[[], None]) -> Callable[[], None]:
        def run() -> None:
            enter()
            action()

        return run

    nothing = {"links": [], "writable": [], "temp_bytes": 4096, "proc": False}

    def mount(plan: Mapping[str, Any]) -> None:
        _enter_mounts()
        _mount(plan, {})

    trial("capabilities", inside(_drop_all))
    if trial("mounts", inside(lambda: mount(nothing))):
        trial("proc", inside(lambda: mount({**nothing, "proc": True})))
    trial("network", inside(_enter_network))
    trial("ipc", inside(_enter_ipc))
    if platform.machine() in MACHINES:
        trial("filter", _filter_trial)
    else:
        missing["filter"] = f"there is no filter for {platform.machine()}"
    encrypted = any(os.path.exists(each) for each in ("/dev/sev-guest", "/dev/tdx_guest"))
    return {"user": user, "landlock": landlock_version(), "missing": missing, "encrypted": encrypted}


def _nothing() -> None:
    """Does nothing: root needs no namespace to become the user nobody."""


def _drop_all() -> None:
    _drop_bounds()
    _drop_capabilities()


def _filter_trial() -> None:
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    filter_calls("none")
    if _libc.unshare(_NEW_USER) == 0 or ctypes.get_errno() != errno.EPERM:
        raise OSError(errno.ENOSYS, "it lets through what it should deny")


def _why_not(action: Callable[[], None]) -> str:
    """Calls `action` in a fork of this process. Returns "" if it raised nothing there, else the reason why it failed."""
    reader, writer = os.pipe()
    if (pid := os.fork()) == 0:
        try:
            action()
            os.write(writer, b".")
        except OSError as error:
            os.write(writer, (error.strerror or str(error)).encode())
        finally:
            os._exit(0)
    os.close(writer)
    said = b""
    while piece := os.read(reader, 4096):
        said += piece
    os.close(reader)
    os.waitpid(pid, 0)
    return "" if said == b"." else said.decode() or "the trial was killed"


def main() -> None:
    """Prints the findings of `probe` as JSON."""
    print(json.dumps(probe()))
