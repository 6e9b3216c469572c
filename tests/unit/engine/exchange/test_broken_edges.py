"""An edge that breaks is told by its name at both ends, within the time-out, and never looks like an END. Strangers are refused."""

import queue
import re
import signal
import subprocess
import sys
import time
from collections import deque
from ipaddress import ip_address

import msgspec
import pyarrow as pa
import pytest
from cryptography import x509
from pyarrow import flight

from sabot._cython.arrow.batch import Batch
from sabot._cython.flow.channel import END, Channel, Watermark
from sabot.engine.exchange import Exchange, Tls
from sabot.engine.exchange.frames import Frame
from sabot.errors import InternalError, TransientError
from tools.secure_broker import Authority
from tools.tcp_proxy import TcpProxy

TOKEN = "a token of the tests"
ROW = Batch(pa.record_batch({"x": [1]}))
SILENCE_S = 3.0  # after which an edge counts as broken; on a busy machine a process may have no core for a second


class Heard(queue.SimpleQueue):
    """What an exchange says of its broken edges."""

    def __call__(self, edge: str, error: BaseException) -> None:
        self.put((edge, error))


@pytest.fixture
def exchange():
    """Makes exchanges; -> each with what it says of broken edges. Closes them."""
    made = []

    def make(token: str = TOKEN, **options) -> tuple[Exchange, Heard]:
        each = Exchange(token, **options)
        each.on_failed = heard = Heard()
        made.append(each)
        return each, heard

    yield make
    for each in made:
        each.close()


def joined(sender: Exchange, receiver: Exchange, address: str, rows: int = 65_536) -> tuple[Channel, Channel]:
    near, far = Channel(), Channel(rows)
    receiver.receive("e1/s0/2/3", far)
    sender.send("e1/s0/2/3", near, address)
    near.put(Watermark(1))
    assert far.get(60) == Watermark(1)
    return near, far


@pytest.mark.one_in(2, "a tenth of a second of a core each")
@pytest.mark.parametrize("way", ["cut", "reset"])
@pytest.mark.parametrize("load", ["idle", "full"])
def test_a_broken_network_is_told_at_both_ends(exchange, way, load):
    (sender, near_heard), (receiver, far_heard) = exchange(timeout=SILENCE_S), exchange(timeout=SILENCE_S)
    with TcpProxy(receiver.address) as proxy:
        near, far = joined(sender, receiver, proxy.address, rows=1)
        while load == "full" and near.put(Batch(pa.record_batch({"x": list(range(65_536))})), timeout=0.2):
            pass
        began = time.monotonic()
        getattr(proxy, way)()
        for heard in (near_heard, far_heard):
            edge, error = heard.get(timeout=60)
            assert edge == "e1/s0/2/3"
            assert isinstance(error, TransientError)
            assert "'e1/s0/2/3'" in str(error)
            if way == "cut":
                assert re.search("has not answered for 3 s|its worker has sent nothing for 3 s", str(error))
            assert time.monotonic() - began < 60
        if load == "full":
            receiver.close()  # returns, although the call's client has vanished
        assert all(element is not END for element in iter(far.get_nowait, None))


def test_a_network_that_is_slow_but_not_cut_breaks_nothing(exchange):
    (sender, near_heard), (receiver, far_heard) = exchange(), exchange()
    with TcpProxy(receiver.address) as proxy:
        near, far = joined(sender, receiver, proxy.address)
        proxy.cut()
        near.put(ROW)
        assert far.get(1.5) is None
        proxy.mend()
        near.put(END)
        assert far.get(60).num_rows == 1
        assert far.get(60) is END
        assert near_heard.empty()
        assert far_heard.empty()


WORKER = """
import sys, threading
import pyarrow as pa
from sabot._cython.arrow.batch import Batch
from sabot._cython.flow.channel import Channel
from sabot.engine.exchange import Exchange
exchange = Exchange(sys.argv[1], timeout=3.0)
near, far = Channel(), Channel()
exchange.receive("there", far)
exchange.send("back", near, sys.argv[2])
print(exchange.address, flush=True)
while True:
    element = far.get()
    near.put(element)
"""


@pytest.mark.one_in(2, "half a second of a core each")
@pytest.mark.parametrize("way", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_a_worker_that_dies_or_hangs_is_told(exchange, way):
    here, heard = exchange(timeout=SILENCE_S)
    back, there = Channel(), Channel()
    here.receive("back", back)
    worker = subprocess.Popen([sys.executable, "-c", WORKER, TOKEN, here.address], stdout=subprocess.PIPE, text=True)
    try:
        here.send("there", there, worker.stdout.readline().strip())
        there.put(ROW)
        assert back.get(60).num_rows == 1
        began = time.monotonic()
        worker.send_signal(way)
        broken = {heard.get(timeout=60)[0] for _ in range(2)}
        assert broken == {"there", "back"}
        assert time.monotonic() - began < 60
        assert back.get_nowait() is None
        here.close()
    finally:
        worker.kill()
        worker.wait()
        worker.stdout.close()


RECEIVER = """
import sys
from sabot._cython.flow.channel import Channel
from sabot.engine.exchange import Exchange
exchange = Exchange(sys.argv[1], timeout=30.0)
far = Channel()
exchange.receive("a", far)
print(exchange.address, flush=True)
print(far.get(), flush=True)
sys.stdin.read()
"""


SENDER = """
import sys
from sabot._cython.flow.channel import Channel, Watermark
from sabot.engine.exchange import Exchange
exchange = Exchange(sys.argv[1], timeout=30.0)
near = Channel()
near.put(Watermark(1))
exchange.send("a", near, sys.argv[2])
sys.stdin.read()
"""


@pytest.mark.slow  # a second of a core, or more
def test_a_process_ends_though_its_peer_hangs():
    """Flight's own server waits for its calls when the interpreter ends."""

    def started(code: str, *given: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", code, TOKEN, *given]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    with started(RECEIVER) as receiver, started(SENDER, receiver.stdout.readline().strip()) as sender:
        try:
            assert receiver.stdout.readline() == "Watermark(1)\n"
            sender.send_signal(signal.SIGSTOP)
            receiver.stdin.close()
            assert receiver.wait(60) == 0
        finally:
            sender.kill()
            receiver.kill()


def test_a_wrong_token_is_refused_before_anything_is_read(exchange):
    (stranger, heard), (receiver, _) = exchange("another token of the tests"), exchange()
    far, near = Channel(), Channel()
    receiver.receive("a", far)
    near.put(ROW)
    stranger.send("a", near, receiver.address)
    edge, error = heard.get(timeout=60)
    assert edge == "a"
    assert "does not have the token" in str(error)
    assert "another token" not in str(error)
    assert receiver.statistics()["refused"] > 0
    assert far.get_nowait() is None


def test_an_edge_that_nobody_receives_is_refused_by_name(exchange):
    (sender, heard), (receiver, _) = exchange(), exchange(timeout=0.3)
    sender.send("nobody's", Channel(), receiver.address)
    edge, error = heard.get(timeout=60)
    assert edge == "nobody's"
    assert 'this worker receives no edge "nobody\'s"' in str(error)


def test_a_worker_that_is_not_there_is_told(exchange):
    sender, heard = exchange()
    gone, _ = exchange()
    gone.close()
    sender.send("a", Channel(), gone.address)
    edge, error = heard.get(timeout=60)
    assert (edge, type(error)) == ("a", TransientError)
    sender.send("b", Channel(), gone.address)
    assert heard.get(timeout=60)[0] == "b"


class Stranger:
    """A client that has the token, and speaks Flight as it likes."""

    def __init__(self, address: str) -> None:
        self._client = flight.FlightClient(f"grpc+tcp://{address}")
        self._options = flight.FlightCallOptions(headers=[(b"authorization", f"Bearer {TOKEN}".encode())], timeout=60)

    def refused(self, write, *path: str) -> str:
        """What is said of a call that writes so; at which of its steps is a matter of time."""
        descriptor = flight.FlightDescriptor.for_path(*path)
        writer, reader = self._client.do_exchange(descriptor, self._options)

        def speak() -> None:
            writer.write_metadata(encoded())
            write(writer)
            writer.done_writing()
            deque(reader, maxlen=0)

        with pytest.raises((flight.FlightError, pa.ArrowException)) as caught:
            speak()
        with pytest.raises((flight.FlightError, pa.ArrowException)):
            writer.close()  # else Arrow writes its end to the error stream
        return str(caught.value)

    def act(self, name: str) -> None:
        list(self._client.do_action(flight.Action(name, b""), self._options))


def encoded(**frame) -> bytes:
    return msgspec.msgpack.encode(Frame(**frame))


NUMBERS = pa.record_batch({"x": [1, 2, 3]})


def nothing(writer) -> None:
    """Ends at once."""


def garbage(writer) -> None:
    writer.write_metadata(b"\xc1garbage")


def no_frame(writer) -> None:
    writer.begin(NUMBERS.schema)
    writer.write_batch(NUMBERS)


def unknown_mark(writer) -> None:
    writer.write_metadata(encoded(marks=[("sunrise", 1)]))


def wrong_barrier(writer) -> None:
    writer.write_metadata(encoded(marks=[("barrier", -1)]))


def no_origin(writer) -> None:
    writer.begin(NUMBERS.schema)
    writer.write_with_metadata(NUMBERS, encoded(has_origin=True))


@pytest.mark.parametrize("write", [nothing, garbage, no_frame, unknown_mark, wrong_barrier, no_origin])
def test_a_call_that_is_no_edge_of_ours_is_refused_and_told(exchange, write):
    receiver, heard = exchange()
    far = Channel()
    receiver.receive("a", far)
    stranger = Stranger(receiver.address)
    said = stranger.refused(write, "a", "a session")
    edge, error = heard.get(timeout=60)
    assert edge == "a"
    assert "'a'" in said
    assert isinstance(error, TransientError | InternalError)
    assert far.get_nowait() is None


def test_a_second_sender_a_call_without_names_and_an_unknown_action_are_refused(exchange):
    (sender, _), (receiver, heard) = exchange(), exchange()
    near, far = joined(sender, receiver, receiver.address)
    stranger = Stranger(receiver.address)
    for path, said in [(("e1/s0/2/3", "another"), "another sender"), (("a",), "must be an edge and a session")]:
        assert said in stranger.refused(nothing, *path)
    with pytest.raises(flight.FlightError, match="there is no action 'drop'"):
        stranger.act("drop")
    near.put(END)
    assert far.get(60) is END
    assert heard.empty()


def test_tls_takes_who_has_a_certificate_of_the_apps_authority(exchange):
    ours, theirs = Authority("app"), Authority("others")

    def tls(authority: Authority, trusted: Authority) -> Tls:
        pem = authority.server(x509.IPAddress(ip_address("127.0.0.1")))
        return Tls(pem, pem, trusted.pem)

    (sender, near_heard), (receiver, _) = exchange(tls=tls(ours, ours)), exchange(tls=tls(ours, ours))
    near, far = joined(sender, receiver, receiver.address)
    near.put(ROW)
    assert far.get(60).num_rows == 1
    for wrong in ({"tls": tls(theirs, ours)}, {}):
        stranger, heard = exchange(**wrong)
        stranger.send("b", Channel(), receiver.address)
        assert heard.get(timeout=60)[0] == "b"
    near.put(END)
    assert far.get(60) is END
    assert near_heard.empty()
