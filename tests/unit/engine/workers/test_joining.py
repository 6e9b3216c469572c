"""How workers come to their coordinator over TCP: who is let in, and what the others are told."""

import asyncio
import socket
import ssl
import struct
from contextlib import asynccontextmanager
from ipaddress import ip_address

import pytest
from cryptography import x509
from msgspec.structs import replace

from sabot.engine.exchange import address_of
from sabot.engine.workers import listener as listener_module
from sabot.engine.workers import process as process_module
from sabot.engine.workers.connection import FIRST_BYTES, ControlConnection
from sabot.engine.workers.joining import Ticket, join, parse_address, versions
from sabot.engine.workers.listener import JoinListener
from sabot.engine.workers.member import Member
from sabot.engine.workers.messages import Beat, Hello, Join, JoinRefused, Welcome
from sabot.engine.workers.rendezvous import TcpRendezvous
from sabot.engine.workers.secrets import CERTIFIED_NAME, WorkerSecrets
from sabot.errors import TransientError, UserError
from tools.agent_tools import until
from tools.broker import has_ipv6
from tools.secure_broker import Authority

TOKEN = "a token of this attempt"


class Here:
    """A coordinator that waits for workers: `gone` is what it has heard of those that are gone."""

    def __init__(self, workers, *, numbered=True):
        self.gone, self.heard = [], []
        self.members = [Member(number) for number in range(workers)]
        for member in self.members:
            member.on_message = lambda member, message: self.heard.append((member.number, message))
            member.on_gone = self.gone.append
        self.listener = JoinListener(
            self.members, TOKEN, lambda member: Welcome(member.number, "rows", {}), numbered=numbered
        )

    def ticket(self, number=None, token=TOKEN, secrets=None):
        return Ticket(self.listener.address, token, number, secrets)

    async def hears(self, count):
        await until(lambda: len(self.heard) >= count, "messages of workers")


@asynccontextmanager
async def waiting(workers=2, *, numbered=True, secrets=None, host="127.0.0.1"):
    here = Here(workers, numbered=numbered)
    context = None if secrets is None else WorkerSecrets.read(secrets).context(server=True)
    await here.listener.open(host, 0, context)
    try:
        yield here
    finally:
        await here.listener.close()
        for member in here.members:
            await member.end(0)


def folder(path, authority, trusted=None, token="sixteen characters", names=None):
    pem = authority.server(*([x509.DNSName(CERTIFIED_NAME)] if names is None else names))
    path.mkdir()
    files = {"tls.crt": pem, "tls.key": pem, "ca.crt": (trusted or authority).pem, "token": f"{token}\n".encode()}
    for name, data in files.items():
        (path / name).write_bytes(data)
    return str(path)


async def test_a_worker_that_shows_the_token_gets_its_number_and_is_heard():
    async with waiting() as here:
        for number in (1, 0):
            joined = await join(here.ticket(number))
            assert joined.welcome == Welcome(number, "rows", {})
            assert joined.host == "127.0.0.1"
            joined.connection.send(Beat())
            await here.hears(2 - number)
            await joined.connection.close()
        assert here.heard == [(1, Beat()), (0, Beat())]
        assert [member.joined.result().versions for member in here.members] == [versions()] * 2


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"token": "a token of another app"}, "another token"),
        ({"token": ""}, "another token"),
        ({"worker": 2}, "number 3, but the app has 2"),
        ({"worker": -1}, "number 0, but the app has 2"),
        ({"worker": 0}, "worker 1 .* has joined already"),
        ({"worker": None}, "was not started for this coordinator"),
        ({"versions": {**versions(), "pyarrow": "1.0"}}, "runs other software .*pyarrow 1.0"),
        ({"versions": {}}, "runs other software"),
    ],
)
async def test_who_does_not_fit_is_refused_by_name_and_others_are_not_disturbed(changed, said):
    async with waiting() as here:
        first = await join(here.ticket(0))
        reader, writer = await asyncio.open_connection(*parse_address(here.listener.address, ""))
        stranger = ControlConnection(reader, writer)
        stranger.send(replace(Join(TOKEN, 1, 7, "elsewhere", versions()), **changed))
        answer = await stranger.next()
        assert isinstance(answer, JoinRefused)
        with pytest.raises(UserError, match=said):
            raise UserError(answer.message)
        assert TOKEN not in answer.message + answer.hint
        assert await stranger.next() is None
        await stranger.close()
        first.connection.send(Beat())
        await here.hears(1)
        assert not here.members[1].joined.done()
        # Only what the coordinator has started itself, and can never join, ends the attempt.
        assert [type(each) for each in here.gone] == ([UserError] if "versions" in changed else [])
        await first.connection.close()


async def test_a_worker_is_told_why_it_is_refused():
    async with waiting() as here:
        with pytest.raises(UserError, match=r"refuses this worker: a worker at 127\.0\.0\.1 has another token"):
            await join(here.ticket(0, token="wrong"))


@pytest.mark.parametrize(
    "bytes_",
    [b"GET / HTTP/1.1\r\n\r\n", struct.pack("!I", FIRST_BYTES + 1), struct.pack("!I", 2) + b"\xc1\xc1", b"", b"\0"],
)
async def test_a_stranger_is_dropped_before_much_is_read(bytes_, monkeypatch):
    monkeypatch.setattr(listener_module, "_FIRST_SECONDS", 0.05)
    async with waiting() as here:
        reader, writer = await asyncio.open_connection(*parse_address(here.listener.address, ""))
        writer.write(bytes_)
        assert await asyncio.wait_for(reader.read(), 60) == b""
        writer.close()
        monkeypatch.undo()  # a worker has its time
        joined = await join(here.ticket(1))
        await joined.connection.close()


async def test_of_too_many_strangers_the_oldest_loses_its_place(monkeypatch):
    monkeypatch.setattr(listener_module, "_STRANGERS_MAX", 2)
    monkeypatch.setattr(listener_module, "_FIRST_SECONDS", 3600.0)
    async with waiting() as here:
        address = parse_address(here.listener.address, "")
        held = [await asyncio.open_connection(*address) for _ in range(3)]
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await asyncio.wait_for(held[0][0].readexactly(1), 60)
        for _, each in held:
            each.close()


async def test_workers_without_a_number_take_the_places_that_are_free_and_others_stand_by():
    async with waiting(numbered=False) as here:
        joined = [await join(here.ticket()) for _ in range(2)]
        assert [each.welcome.worker for each in joined] == [0, 1]
        with pytest.raises(UserError, match="was not started for this coordinator"):
            await join(here.ticket(1))
        standing_by = asyncio.create_task(join(here.ticket()))
        await asyncio.wait([standing_by], timeout=0.05)
        assert not standing_by.done()
        await here.listener.close()
        with pytest.raises(TransientError, match="has ended the connection"):
            await standing_by
        for each in joined:
            await each.connection.close()


async def test_the_end_of_a_worker_that_somebody_else_has_started_is_told_at_once():
    async with waiting(numbered=False) as here:
        joined = await join(here.ticket())
        await joined.connection.close()
        await until(lambda: here.gone, "the end of the worker", patience=20)  # a silent one is told after 30 s
        assert "worker 1" in here.gone[0].message
        assert isinstance(here.gone[0], TransientError)


async def test_room_for_more_workers_is_what_stands_by_and_has_not_left():
    async with waiting(1, numbered=False) as here:
        first = await join(here.ticket())
        leaving = ControlConnection(*await asyncio.open_connection(*parse_address(here.listener.address, "")))
        leaving.send(Join(TOKEN, None, 7, "elsewhere", versions()))
        await until(lambda: here.listener.standing_by == 1, "a worker that stands by")
        await leaving.close()
        await until(lambda: here.listener.standing_by == 0, "its end")
        await first.connection.close()


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
async def test_workers_join_over_ipv6_too_with_tls_or_without(tmp_path):
    for secrets in (None, folder(tmp_path / "secrets", Authority("app"))):
        async with waiting(secrets=secrets, host="::1") as here:
            assert here.listener.address.startswith("[::1]:")
            joined = await join(here.ticket(0, secrets=secrets))
            assert joined.host == "::1"
            await joined.connection.close()


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("10.0.0.7:7077", ("10.0.0.7", 7077)),
        ("head.example.org:0", ("head.example.org", 0)),
        ("[fd00::7]:7077", ("fd00::7", 7077)),
        ("[::]:7077", ("::", 7077)),
    ],
)
def test_an_address_is_read_and_written_alike(text, address):
    assert parse_address(text, "--listen") == address
    assert address_of(*address) == text


async def test_nobody_there_is_no_error_of_the_user():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
    with pytest.raises(TransientError, match="no coordinator answers at"):
        await join(Ticket(address, TOKEN))


async def test_an_address_that_is_taken_is_told():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        here = Here(2)
        with pytest.raises(UserError, match=r"workers cannot join at 127\.0\.0\.1"):
            await here.listener.open("127.0.0.1", taken.getsockname()[1], None)


async def test_tls_takes_who_has_a_certificate_of_the_apps_authority(tmp_path):
    ours, theirs = Authority("app"), Authority("others")
    good = folder(tmp_path / "good", ours)
    untrusted = folder(tmp_path / "untrusted", theirs, ours)
    trusts_others = folder(tmp_path / "others", ours, theirs)
    async with waiting(secrets=good) as here:
        for secrets in (untrusted, trusts_others):
            with pytest.raises((UserError, TransientError)):
                await join(here.ticket(0, secrets=secrets))
        with pytest.raises(TransientError, match="use TLS at both ends or at neither"):
            await join(here.ticket(0))
        assert not here.members[0].joined.done()
        joined = await join(here.ticket(0, secrets=good))
        assert joined.tls.server_name == CERTIFIED_NAME
        await joined.connection.close()
    async with waiting() as here:
        with pytest.raises((UserError, TransientError)):
            await join(here.ticket(0, secrets=good))


def test_a_certificate_of_another_name_is_refused_by_the_worker(tmp_path):
    path, authority = tmp_path / "secrets", Authority("app")
    folder(path, authority)
    pem = authority.server(x509.DNSName("elsewhere.example.org"))
    (path / "tls.crt").write_bytes(pem)
    (path / "tls.key").write_bytes(pem)

    async def meet():
        async with waiting(secrets=str(path)) as here:
            with pytest.raises(UserError, match=f"for the name {CERTIFIED_NAME}"):
                await join(here.ticket(0, secrets=str(path)))

    asyncio.run(meet())


@pytest.mark.parametrize(
    "names",
    [
        [x509.DNSName("elsewhere.example.org")],
        [x509.DNSName("sabot-workers.example.org"), x509.DNSName("*")],
        [x509.IPAddress(ip_address("127.0.0.1"))],
        [],
    ],
    ids=["another", "longer", "address", "none"],
)
async def test_a_worker_whose_certificate_has_another_name_is_refused_by_the_coordinator(tmp_path, names):
    """The authority may also sign for machines that are no workers. Only the workers' end of a connection checked the name."""
    authority = Authority("app")
    here, theirs = folder(tmp_path / "here", authority), folder(tmp_path / "theirs", authority, names=names)
    async with waiting(secrets=here) as waits:
        with pytest.raises(UserError, match="its certificate is for") as refused:
            await join(waits.ticket(0, secrets=theirs))
        assert CERTIFIED_NAME in refused.value.hint
        assert not waits.members[0].joined.done()
        others = (x509.DNSName("spare.example.org"), x509.DNSName("Sabot-Workers"))
        joined = await join(waits.ticket(0, secrets=folder(tmp_path / "several", authority, names=others)))
        await joined.connection.close()


def test_secrets_are_read_whole_or_refused(tmp_path):
    path = tmp_path / "secrets"
    good = folder(path, Authority("app"))
    found = WorkerSecrets.read(good)
    assert found.token == "sixteen characters"
    assert found.context(server=False).verify_mode == ssl.CERT_REQUIRED
    (path / "ca.crt").unlink()
    with pytest.raises(UserError, match=r"has no ca\.crt"):
        WorkerSecrets.read(good)
    (path / "ca.crt").write_text("nothing")
    with pytest.raises(UserError, match="cannot be used"):
        WorkerSecrets.read(good)
    for name in ("tls.crt", "tls.key", "ca.crt"):
        (path / name).unlink()
    assert WorkerSecrets.read(good).tls is None
    (path / "token").write_text("short")
    with pytest.raises(UserError, match="5 characters"):
        WorkerSecrets.read(good)
    assert WorkerSecrets.read(tmp_path / "nowhere").token is None


@pytest.mark.parametrize(
    "text",
    ["", "host", ":1", "host:", "host:x", "host:70000", "::1:7", "[]:7", "[host]:7", "[::1:7", "[::1]", "host:٣"],
)
def test_what_is_no_address_is_refused(text):
    with pytest.raises(UserError, match="is not an address"):
        parse_address(text, "--listen")


@pytest.mark.parametrize("secrets", [None, "empty"])
def test_workers_that_join_need_a_token(tmp_path, secrets):
    given = None if secrets is None else str(tmp_path)
    with pytest.raises(UserError, match="show a token"):
        TcpRendezvous.of(None, "127.0.0.1:0", given)


def test_a_worker_notices_that_the_folder_it_sees_is_another_one(tmp_path):
    check = process_module._check_shared
    with pytest.raises(UserError, match="cannot read the coordinator's folder"):
        check(tmp_path, "proof")
    (tmp_path / "proof").write_text("of another app")
    with pytest.raises(UserError, match="share"):
        check(tmp_path, "proof")
    (tmp_path / "proof").write_text("proof")
    check(tmp_path, "proof")


async def test_workers_of_loopback_and_of_a_network_do_not_mix():
    members = [Member(0), Member(1)]
    arrival = TcpRendezvous(lambda: None, None, 0, None).begin(members, lambda member: Welcome(0, "", {}))
    members[0].hello.set_result(Hello("10.0.0.1:7"))
    members[1].hello.set_result(Hello("127.0.0.1:7"))
    with pytest.raises(UserError, match="worker 2 has joined over loopback"):
        arrival.check()


@pytest.mark.one_in(2, "half a second of a core each")
@pytest.mark.parametrize("tls", [False, True])
async def test_a_worker_joins_beside_hundreds_of_connections_that_say_nothing(tls, tmp_path, caplog, monkeypatch):
    """256 of them took all places for ten seconds, in which workers were turned away; their end was a line of the log each."""
    monkeypatch.setattr(listener_module, "_FIRST_SECONDS", 3600.0)  # so none of them makes room by its time
    secrets = folder(tmp_path / "secrets", Authority("ours")) if tls else None
    async with waiting(secrets=secrets) as here:
        idle = []
        for _ in range(600):
            _, writer = await asyncio.open_connection(*parse_address(here.listener.address, ""))
            idle.append(writer)
        joined = await asyncio.wait_for(join(here.ticket(1, secrets=secrets)), 60)
        joined.connection.send(Beat())
        await here.hears(1)
        for writer in idle:
            writer.close()
        await joined.connection.close()
    assert len([each for each in caplog.records if "not from a worker" in each.message]) <= 300
