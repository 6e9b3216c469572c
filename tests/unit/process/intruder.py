"""A program that tries to get out of its sandbox in every way that is listed here, and prints what became of each: "" where it got through,
else the error. It is given its targets as JSON; each is one that the worker, or everybody, may use.
"""

import ctypes
import errno
import fcntl
import json
import os
import resource
import signal
import socket
import stat
import struct
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

libc = ctypes.CDLL(None, use_errno=True)
there = json.loads(sys.argv[1])
outside, state, sibling, worker = there["outside"], there["state"], there["sibling"], there["worker"]
ATTEMPTS: dict[str, Callable[[], Any]] = {}
X86 = os.uname().machine == "x86_64"


def attempt(function: Callable[[], Any]) -> Callable[[], Any]:
    ATTEMPTS[function.__name__] = function
    return function


def checked(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def call(on_x86: int, on_arm: int | None, *arguments: Any) -> int:
    number = on_x86 if X86 else on_arm
    if number is None:
        raise OSError(errno.ENOSYS, "not on this machine")
    wide = [ctypes.c_long(each) if isinstance(each, int) else each for each in arguments]
    return checked(libc.syscall(ctypes.c_long(number), *wide))


@attempt
def leave_a_core() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (1 << 20, 1 << 20))


@attempt
def inherited_files() -> None:
    if not [number for number in range(3, 256) if is_open(number)]:
        raise OSError(errno.EBADF, "none")


def is_open(number: int) -> bool:
    try:
        fcntl.fcntl(number, fcntl.F_GETFD)
    except OSError:
        return False
    return True


def write(path: str) -> None:
    with open(path, "a") as file:
        file.write("x")


# -- files ----------------------------------------------------------------------------------------------------------------


@attempt
def write_outside() -> None:
    write(f"{outside}/file")


@attempt
def create_outside() -> None:
    write(f"{outside}/new")


@attempt
def create_outside_by_a_way_up() -> None:
    os.chdir("..")
    try:
        write("outside/new")
    finally:
        os.chdir(there["directory"])


@attempt
def write_by_a_symbolic_link() -> None:
    os.symlink(f"{outside}/file", "symbolic")
    write("symbolic")


@attempt
def write_by_a_symbolic_link_to_a_folder() -> None:
    os.symlink(outside, "folder")
    write("folder/new")


@attempt
def write_by_a_hard_link() -> None:
    os.link(f"{outside}/file", "hard")
    write("hard")


@attempt
def write_by_the_root_of_a_process() -> None:
    write(f"/proc/self/root{outside}/file")


@attempt
def write_by_the_root_of_another() -> None:
    write(f"/proc/{worker}/root{outside}/file")


@attempt
def write_from_a_folder_of_the_root() -> None:
    os.close(os.open(f"{outside}/file".lstrip("/"), os.O_WRONLY, dir_fd=os.open("/", os.O_PATH)))


@attempt
def truncate_outside() -> None:
    os.truncate(f"{outside}/file", 0)


@attempt
def remove_outside() -> None:
    os.unlink(f"{outside}/spare")


@attempt
def make_a_folder_outside() -> None:
    os.mkdir(f"{outside}/folder")


@attempt
def move_in() -> None:
    os.rename(f"{outside}/spare", "spare")


@attempt
def move_out() -> None:
    write("mine")
    os.rename("mine", f"{outside}/mine")


@attempt
def change_the_mode_outside() -> None:
    os.chmod(f"{outside}/file", 0o777)


@attempt
def change_the_times_outside() -> None:
    os.utime(f"{outside}/file")


@attempt
def write_for_the_kernel() -> None:
    write("/proc/sys/kernel/core_pattern")


@attempt
def make_a_device() -> None:
    os.mknod("device", 0o600 | stat.S_IFBLK, os.makedev(254, 0))


@attempt
def make_a_program_of_its_owner() -> None:
    write("program")
    os.chmod("program", 0o4755)


@attempt
def create_a_program_of_its_owner() -> None:
    os.close(os.open("other", os.O_WRONLY | os.O_CREAT, 0o6755))


@attempt
def read_state() -> None:
    Path(f"{state}/data").read_text()


@attempt
def list_state() -> None:
    os.listdir(state)


@attempt
def read_passwords() -> None:
    Path("/etc/shadow").read_text()


# -- other processes ---------------------------------------------------------------------------------------------------------


def shows(path: str, word: str = "") -> None:
    content = Path(path).read_bytes()
    if not content or word.encode() not in content:
        raise OSError(errno.ENODATA, "it says nothing")


@attempt
def environment_of_the_worker() -> None:
    shows(f"/proc/{worker}/environ")


@attempt
def environment_of_the_sibling() -> None:
    shows(f"/proc/{sibling}/environ", "secret")


@attempt
def memory_of_the_sibling() -> None:
    os.close(os.open(f"/proc/{sibling}/mem", os.O_RDWR))


@attempt
def memory_of_the_worker() -> None:
    os.close(os.open(f"/proc/{worker}/mem", os.O_RDWR))


@attempt
def words_of_the_sibling() -> None:
    shows(f"/proc/{sibling}/cmdline")


@attempt
def trace_the_sibling() -> None:
    call(101, 117, 16, sibling, 0, 0)


@attempt
def read_the_siblings_memory() -> None:
    held = ctypes.create_string_buffer(8)
    place = struct.pack("PN", ctypes.addressof(held), 8)
    call(310, 270, sibling, place, 1, place, 1, 0)


@attempt
def signal_the_sibling() -> None:
    os.kill(sibling, 0)


@attempt
def signal_the_worker() -> None:
    os.kill(worker, 0)


@attempt
def signal_the_supervisor() -> None:
    os.kill(there["supervisor"], 0)


@attempt
def signal_the_sibling_by_its_descriptor() -> None:
    with closing(os.fdopen(os.pidfd_open(sibling), "rb", closefd=True)) as descriptor:
        signal.pidfd_send_signal(descriptor.fileno(), 0)


@attempt
def limit_the_worker() -> None:
    held = ctypes.create_string_buffer(16)
    checked(libc.prlimit(worker, resource.RLIMIT_NOFILE, None, held))
    checked(libc.prlimit(worker, resource.RLIMIT_NOFILE, held, None))


@attempt
def slow_the_worker_down() -> None:
    os.setpriority(os.PRIO_PROCESS, worker, 19)


def read_limits(pid: int) -> None:
    checked(libc.prlimit(pid, resource.RLIMIT_NOFILE, None, ctypes.create_string_buffer(16)))


@attempt
def read_the_limits_of_the_sibling() -> None:
    read_limits(sibling)


@attempt
def read_the_limits_of_the_worker() -> None:
    read_limits(worker)


@attempt
def bind_the_sibling_to_a_core() -> None:
    os.sched_setaffinity(sibling, os.sched_getaffinity(0))


@attempt
def make_the_sibling_idle() -> None:
    os.sched_setscheduler(sibling, os.SCHED_IDLE, os.sched_param(0))


@attempt
def make_the_worker_idle() -> None:
    os.sched_setscheduler(worker, os.SCHED_IDLE, os.sched_param(0))


@attempt
def make_the_supervisor_idle() -> None:
    os.sched_setscheduler(there["supervisor"], os.SCHED_IDLE, os.sched_param(0))


@attempt
def set_the_parameters_of_the_sibling() -> None:
    os.sched_setparam(sibling, os.sched_param(0))


@attempt
def set_the_attributes_of_the_sibling() -> None:
    call(314, 274, sibling, struct.pack("=IIQiIQQQ", 48, 5, 0, 0, 0, 0, 0, 0), 0)  # SCHED_IDLE


@attempt
def share_a_core_with_the_sibling() -> None:
    checked(libc.prctl(62, 2, sibling, 0, None))  # PR_SCHED_CORE_SHARE_TO


@attempt
def make_the_sibling_slow_on_its_disk() -> None:
    call(251, 30, 1, sibling, 3 << 13)


@attempt
def take_pages_of_the_sibling() -> None:
    held = struct.pack("PN", 0x400000, 4096)
    call(440, 440, os.pidfd_open(sibling), held, 1, 21, 0)  # MADV_PAGEOUT


@attempt
def find_the_locks_of_the_sibling() -> None:
    call(274, 100, sibling, ctypes.create_string_buffer(8), ctypes.create_string_buffer(8))


@attempt
def lose_its_tag() -> None:
    checked(libc.setrlimit(10, struct.pack("NN", 1, 1)))


# -- sockets -----------------------------------------------------------------------------------------------------------------


@attempt
def tcp() -> None:
    with socket.create_connection(("127.0.0.1", there["tcp"]), 5):
        pass


@attempt
def tcp_by_fast_open() -> None:
    with socket.socket() as opened:
        opened.sendto(b"x", 0x20000000, ("127.0.0.1", there["tcp"]))


@attempt
def tcp_of_many_paths() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262) as opened:
        opened.settimeout(5)
        opened.connect(("127.0.0.1", there["tcp"]))


@attempt
def udp() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as opened:
        opened.connect(("127.0.0.1", there["udp"]))
        opened.send(b"x")
        opened.settimeout(5)
        if opened.recv(1) != b"y":  # the worker's answer: it came from outside
            raise OSError(errno.EIO, "another one has answered")


@attempt
def listen() -> None:
    with socket.socket() as opened:
        opened.listen()


@attempt
def raw_socket() -> None:
    socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP).close()


@attempt
def packet_socket() -> None:
    socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0).close()


@attempt
def socket_to_the_host() -> None:
    socket.socket(40, socket.SOCK_STREAM).close()  # AF_VSOCK


@attempt
def socket_of_the_kernels_ciphers() -> None:
    socket.socket(38, socket.SOCK_SEQPACKET).close()  # AF_ALG


@attempt
def unix_socket() -> None:
    with socket.socket(socket.AF_UNIX) as opened:
        opened.connect(there["unix"])


@attempt
def find_sockets_of_services() -> None:
    if not os.listdir("/run"):
        raise OSError(errno.ENOENT, "there is none")


@attempt
def abstract_socket() -> None:
    with socket.socket(socket.AF_UNIX) as opened:
        opened.connect("\0" + there["abstract"])


@attempt
def unix_socket_from_a_pair() -> None:
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with one, other:
        one.sendto(b"x", there["datagrams"])


@attempt
def unix_socket_from_a_pair_of_raw_ones() -> None:
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_RAW)
    with one, other:
        one.sendto(b"x", there["datagrams"])


@attempt
def unix_socket_from_a_pair_of_streams() -> None:
    one, other = socket.socketpair()
    other.close()
    with one:
        one.shutdown(socket.SHUT_RDWR)
        one.connect(there["unix"])


# -- rights ------------------------------------------------------------------------------------------------------------------


@attempt
def be_root() -> None:
    os.setuid(0)


@attempt
def be_of_the_group_of_root() -> None:
    os.setgid(0)


@attempt
def be_of_other_groups() -> None:
    os.setgroups([0])


@attempt
def have_capabilities() -> None:
    status = Path("/proc/self/status").read_text()
    sets = [line.split()[1] for line in status.splitlines() if line.startswith("Cap")]
    if not any(int(each, 16) for each in sets):
        raise OSError(errno.EPERM, "none")


@attempt
def gain_rights_by_a_program() -> None:
    if libc.prctl(39, 0, 0, 0, 0) == 1:  # PR_GET_NO_NEW_PRIVS
        raise OSError(errno.EPERM, "none can be gained")


@attempt
def new_user_namespace() -> None:
    checked(libc.unshare(0x10000000))


@attempt
def clone_into_a_user_namespace() -> None:
    if call(56, 220, 0x10000000 | signal.SIGCHLD, 0, 0, 0, 0) == 0:
        os._exit(0)


@attempt
def clone_by_the_newer_call() -> None:
    call(435, 435, struct.pack("=QQQQQQQQ", 0x10000000, 0, 0, 0, signal.SIGCHLD, 0, 0, 0), 64)


@attempt
def enter_the_workers_namespaces() -> None:
    descriptor = os.open(f"/proc/{worker}/ns/mnt", os.O_RDONLY)
    call(308, 268, descriptor, 0)


@attempt
def mount() -> None:
    checked(libc.mount(b"none", b"/tmp", b"tmpfs", 0, None))


@attempt
def mount_by_the_newer_call() -> None:
    call(430, 430, b"tmpfs", 0)


@attempt
def unmount() -> None:
    checked(libc.umount2(b"/tmp", 2))


@attempt
def change_the_root() -> None:
    os.chroot(".")


@attempt
def load_a_program_of_the_kernel() -> None:
    call(321, 280, 0, bytes(64), 64)


@attempt
def keys() -> None:
    call(250, 219, 0, -3, 1)


@attempt
def rings() -> None:
    call(425, 425, 1, ctypes.create_string_buffer(120))


@attempt
def open_by_the_newer_call() -> None:
    call(437, 437, -100, f"{outside}/file".encode(), struct.pack("=QQQ", os.O_WRONLY, 0, 0), 24)


@attempt
def page_faults() -> None:
    call(323, 282, 1)


@attempt
def events() -> None:
    call(298, 241, struct.pack("=II", 1, 64) + bytes(56), 0, -1, -1, 0)


@attempt
def call_by_other_numbers() -> None:
    if call(0x40000000 | 39, None) == os.getpid():
        return
    raise OSError(errno.ENOSYS, "another call")


@attempt
def type_into_a_terminal() -> None:
    main, side = os.openpty()
    os.close(main)
    fcntl.ioctl(side, 0x5412, b"x")


@attempt
def type_into_its_input() -> None:
    fcntl.ioctl(0, 0x5412, b"x")


def become(function: Callable[[], Any]) -> str:
    try:
        function()
    except ValueError as error:
        return str(error)
    except OSError as error:
        return f"{errno.errorcode.get(error.errno or 0, '?')} {error.strerror}"
    return ""


if __name__ == "__main__":
    print(json.dumps({name: become(function) for name, function in ATTEMPTS.items()}))
