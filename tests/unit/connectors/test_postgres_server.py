"""Whether a PostgreSQL server that refuses a connection is waited for: by its SQLSTATE, in whichever language it speaks."""

import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from unittest.mock import patch

import pytest

from sabot.clock import SYSTEM_CLOCK
from sabot.connectors.postgres.link import PostgresLink
from sabot.connectors.sql.server import PostgresServer
from sabot.errors import BrokerUnavailable, SabotError, ServerRefusal
from tools.answering import answering

NO_SSL = {b"\x04\xd2\x16\x2f", b"\x04\xd2\x16\x30"}  # the codes of requests for TLS and GSSAPI
WORDS = "ВАЖНО:  так не получится"


@contextmanager
def speaking_russian(state: str) -> Iterator[str]:
    """The address of a server that refuses each connection with an SQLSTATE. A server with lc_messages of its own needs the
    machine's locales.
    """
    fields = (b"S", "ВАЖНО"), (b"V", "FATAL"), (b"C", state), (b"M", "так не получится")
    body = b"".join(name + text.encode() + b"\0" for name, text in fields) + b"\0"
    answer = b"E" + (len(body) + 4).to_bytes(4, "big") + body

    def serve() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:  # the test is over
                return
            with connection:
                while (asked := connection.recv(4096))[4:8] in NO_SSL:
                    connection.sendall(b"N")
                if asked:
                    connection.sendall(answer)

    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"postgresql://ann:secret@127.0.0.1:{server.getsockname()[1]}/shop"
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()


REFUSED = {
    "28P01": "password",
    "28000": "pg_hba.conf",
    "3D000": "no database",
    "42501": "no right",
    "42704": "an option",
}
PASSING = {"57P03": "starts", "53300": "too many connections", "55000": "takes no connections", "XX000": "a bug"}


@pytest.mark.parametrize("state", [*REFUSED, *PASSING])
def test_a_server_is_waited_for_unless_its_state_is_a_refusal(state: str) -> None:
    expected = ServerRefusal if state in REFUSED else BrokerUnavailable
    with speaking_russian(state) as url:
        server = PostgresServer(url, "the journal", "a journal in PostgreSQL")
        for connect in (
            lambda: server.connect(""),
            PostgresLink(server, "s", threading.Event(), replication=True).connect,
        ):
            with pytest.raises(SabotError, match=WORDS) as raised:
                connect()
            assert type(raised.value) is expected
            assert getattr(raised.value, "state", state) == state


def test_a_server_in_another_language_is_waited_for_if_the_client_does_not_tell_the_state() -> None:
    with speaking_russian("28P01") as url, patch("os.memfd_create", side_effect=AttributeError):
        server = PostgresServer(url, "the journal", "a journal in PostgreSQL")
        assert isinstance(server.not_connected(WORDS), BrokerUnavailable)


@pytest.mark.parametrize("said", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"SSH-2.0-OpenSSH_9.2\r\n"])
def test_a_port_of_another_program_is_an_error_that_says_so(said: bytes) -> None:
    with answering(said) as port:
        server = PostgresServer(f"postgresql://ann@127.0.0.1:{port}/d", "the journal", "x")
        with pytest.raises(BrokerUnavailable, match=f"127.0.0.1:{port}/d") as raised:
            server.connect("")
        assert "none of PostgreSQL" in raised.value.hint
        assert "\n" not in raised.value.message


def test_a_server_that_stops_answering_holds_the_second_attempt_five_seconds_at_most() -> None:
    """It accepts connections and says nothing: the first attempt is refused by its words, and only the second waits."""
    times = iter([0.0, 1.0, 6.0, 7.0, 8.0])
    with socket.create_server(("127.0.0.1", 0)) as silent:
        server = PostgresServer(f"postgresql://ann@127.0.0.1:{silent.getsockname()[1]}/d", "the journal", "x")
        with patch.object(type(SYSTEM_CLOCK), "monotonic", lambda _: next(times)):
            assert isinstance(server.not_connected("ВАЖНО"), BrokerUnavailable)
    assert next(times) >= 7.0
