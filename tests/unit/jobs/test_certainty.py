"""What the error of a tool says of its call. Errors of client libraries are made here by their names: none of the libraries is imported."""

import asyncio
import concurrent.futures
import errno
import http.client
import socket
import ssl
import subprocess
import urllib.error
from enum import Enum
from http import HTTPStatus
from types import SimpleNamespace

import pytest

from sabot.errors import DataError, EffectError, NotSent, Overloaded, TransientError
from sabot.jobs.certainty import Certainty, certainty_of

DONE, NOT_SENT, UNKNOWN = Certainty


def named(path: str, *bases: type[BaseException], module: str = "exceptions") -> type[BaseException]:
    """An error as a library has it: "requests.ReadTimeout"."""
    package, _, name = path.rpartition(".")
    return type(name, bases or (Exception,), {"__module__": f"{package}.{module}"})


def answered(path: str, base: str = "", **facts: object) -> BaseException:
    """An error of a client library that has the status of an answer, as an attribute, a method, or in its response."""
    error = named(path, *([named(base)] if base else []))("said")
    error.__dict__.update(facts)
    return error


GrpcStatus = Enum("GrpcStatus", "DEADLINE_EXCEEDED UNAVAILABLE ALREADY_EXISTS")

HTTPX_TRANSPORT = named(
    "httpx.TransportError", named("httpx.RequestError", named("httpx.HTTPError")), module="_exceptions"
)
HTTPX_TIMEOUT = named("httpx.TimeoutException", HTTPX_TRANSPORT)
HTTPX_NETWORK = named("httpx.NetworkError", HTTPX_TRANSPORT)
REQUESTS = named("requests.RequestException", OSError)
REQUESTS_CONNECTION = named("requests.ConnectionError", REQUESTS)
REQUESTS_TIMEOUT = named("requests.Timeout", REQUESTS)
URLLIB3 = named("urllib3.HTTPError")
MAX_RETRIES = named("urllib3.MaxRetryError", URLLIB3)
URLLIB3_TIMEOUT = named("urllib3.TimeoutError", URLLIB3)
AIOHTTP = named("aiohttp.ClientError", module="client_exceptions")
AIOHTTP_CONNECTION = named("aiohttp.ClientConnectionError", AIOHTTP)
AIOHTTP_OS = named("aiohttp.ClientOSError", AIOHTTP_CONNECTION, OSError)
AIOHTTP_CONNECTOR = named("aiohttp.ClientConnectorError", AIOHTTP_OS)
AIOHTTP_TIMEOUT = named("aiohttp.ServerTimeoutError", AIOHTTP_CONNECTION, TimeoutError)


@pytest.mark.parametrize(
    ("error", "certainty"),
    [
        (ValueError("no such customer"), DONE),
        (DataError("no such customer"), DONE),
        (TransientError("the till is closed"), DONE),
        (EffectError("Declined", "the card is"), DONE),
        (FileNotFoundError(errno.ENOENT, "gone"), DONE),
        (OSError(errno.ENOSPC, "the disk is full"), DONE),
        (RecursionError(), DONE),
        (MemoryError(), DONE),
        (EOFError(), DONE),
        (NotSent("the queue is full"), NOT_SENT),
        (Overloaded(), NOT_SENT),
        (ConnectionRefusedError(), NOT_SENT),
        (socket.gaierror(socket.EAI_NONAME, "no such name"), NOT_SENT),
        (socket.herror(1, "no such host"), NOT_SENT),
        (ssl.SSLCertVerificationError(1, "expired"), NOT_SENT),
        (http.client.CannotSendRequest(), NOT_SENT),
        (TimeoutError(), UNKNOWN),
        (asyncio.CancelledError(), UNKNOWN),
        (concurrent.futures.CancelledError(), UNKNOWN),
        (ConnectionResetError(), UNKNOWN),
        (ConnectionAbortedError(), UNKNOWN),
        (BrokenPipeError(), UNKNOWN),
        (asyncio.IncompleteReadError(b"", 3), UNKNOWN),
        (http.client.RemoteDisconnected(), UNKNOWN),
        (http.client.IncompleteRead(b""), UNKNOWN),
        (http.client.BadStatusLine("?"), UNKNOWN),
        (ssl.SSLError(1, "decryption failed"), UNKNOWN),
        (ssl.SSLEOFError(8, "EOF occurred"), UNKNOWN),
        (OSError(errno.ETIMEDOUT, "timed out"), UNKNOWN),
        (OSError(errno.EHOSTUNREACH, "no route"), UNKNOWN),
        (OSError(errno.ENETUNREACH, "no network"), UNKNOWN),
        (subprocess.TimeoutExpired("rm", 3), UNKNOWN),
        (SystemExit(1), UNKNOWN),
        (KeyboardInterrupt(), UNKNOWN),
    ],
    ids=repr,
)
def test_errors_of_python(error: BaseException, certainty: Certainty) -> None:
    assert certainty_of(error) is certainty


@pytest.mark.parametrize(
    ("kind", "certainty"),
    [
        (named("httpx.HTTPStatusError", named("httpx.HTTPError")), DONE),
        (named("httpx.InvalidURL"), DONE),
        (named("httpx.ConnectError", HTTPX_NETWORK), NOT_SENT),
        (named("httpx.ConnectTimeout", HTTPX_TIMEOUT), NOT_SENT),
        (named("httpx.PoolTimeout", HTTPX_TIMEOUT), NOT_SENT),
        (named("httpx.ReadTimeout", HTTPX_TIMEOUT), UNKNOWN),
        (named("httpx.WriteTimeout", HTTPX_TIMEOUT), UNKNOWN),
        (named("httpx.ReadError", HTTPX_NETWORK), UNKNOWN),
        (named("httpx.WriteError", HTTPX_NETWORK), UNKNOWN),
        (named("httpx.RemoteProtocolError", named("httpx.ProtocolError", HTTPX_TRANSPORT)), UNKNOWN),
        (named("httpx.ProxyError", HTTPX_TRANSPORT), UNKNOWN),
        (named("requests.HTTPError", REQUESTS), DONE),
        (named("requests.JSONDecodeError", REQUESTS, ValueError), DONE),
        (named("requests.ConnectTimeout", REQUESTS_CONNECTION, REQUESTS_TIMEOUT), NOT_SENT),
        (named("requests.ReadTimeout", REQUESTS_TIMEOUT), UNKNOWN),
        (named("requests.ChunkedEncodingError", REQUESTS), UNKNOWN),
        (REQUESTS_CONNECTION, UNKNOWN),
        (named("aiohttp.ClientResponseError", AIOHTTP), DONE),
        (named("aiohttp.InvalidURL", AIOHTTP, ValueError), DONE),
        (named("aiohttp.ClientConnectorDNSError", AIOHTTP_CONNECTOR), NOT_SENT),
        (named("aiohttp.ClientConnectorCertificateError", AIOHTTP_CONNECTOR), NOT_SENT),
        (AIOHTTP_CONNECTOR, NOT_SENT),
        (named("aiohttp.ConnectionTimeoutError", AIOHTTP_TIMEOUT), NOT_SENT),
        (named("aiohttp.SocketTimeoutError", AIOHTTP_TIMEOUT), UNKNOWN),
        (AIOHTTP_TIMEOUT, UNKNOWN),
        (AIOHTTP_OS, UNKNOWN),
        (named("aiohttp.ServerDisconnectedError", AIOHTTP_CONNECTION), UNKNOWN),
        (named("aiohttp.ClientPayloadError", AIOHTTP), UNKNOWN),
        (named("urllib3.NewConnectionError", URLLIB3), NOT_SENT),
        (named("urllib3.ReadTimeoutError", URLLIB3_TIMEOUT), UNKNOWN),
        (named("psycopg.OperationalError", module="errors"), UNKNOWN),
        (named("psycopg.UniqueViolation", module="errors"), DONE),
    ],
    ids=lambda value: getattr(value, "__qualname__", str(value)),
)
def test_errors_of_client_libraries(kind: type[BaseException], certainty: Certainty) -> None:
    assert certainty_of(kind("said")) is certainty


@pytest.mark.parametrize(
    ("error", "certainty"),
    [
        (answered("httpx.HTTPStatusError", response=SimpleNamespace(status_code=504)), UNKNOWN),
        (answered("httpx.HTTPStatusError", response=SimpleNamespace(status_code=503)), DONE),
        (answered("requests.HTTPError", response=SimpleNamespace(status_code=HTTPStatus.BAD_GATEWAY)), UNKNOWN),
        (answered("requests.HTTPError", response=None), DONE),
        (answered("aiohttp.ContentTypeError", "aiohttp.ClientResponseError", status=502), UNKNOWN),
        (answered("aiohttp.ClientResponseError", status=422), DONE),
        (answered("openai.InternalServerError", "openai.APIStatusError", status_code=524), UNKNOWN),
        (answered("grpc.AioRpcError", "grpc.RpcError", code=lambda: GrpcStatus.DEADLINE_EXCEEDED), UNKNOWN),
        (answered("grpc.AioRpcError", "grpc.RpcError", code=lambda: GrpcStatus.UNAVAILABLE), UNKNOWN),
        (answered("grpc.AioRpcError", "grpc.RpcError", code=lambda: GrpcStatus.ALREADY_EXISTS), DONE),
        (urllib.error.HTTPError("http://x", 504, "late", None, None), UNKNOWN),  # type: ignore[arg-type]
    ],
    ids=lambda value: f"{type(value).__name__}-{value}",
)
def test_an_answer_of_a_gateway_says_nothing_about_the_service(error: BaseException, certainty: Certainty) -> None:
    assert certainty_of(error) is certainty
    assert certainty_of(raised(ValueError("no receipt"), error, explicit=True)) is certainty


@pytest.mark.parametrize(
    "name",
    [
        *("redis.ConnectionError", "redis.TimeoutError", "stripe.APIConnectionError", "botocore.ReadTimeoutError"),
        *("asyncpg.PostgresConnectionError", "smtplib.SMTPServerDisconnected", "shop.PaymentTimedOut"),
        "websockets.ConnectionClosedError",
    ],
)
def test_an_error_that_nobody_knows_and_that_speaks_of_a_connection_or_of_time_is_unknown(name: str) -> None:
    assert certainty_of(named(name)()) is UNKNOWN
    assert certainty_of(type("Special", (named(name),), {"__module__": "shop"})()) is UNKNOWN


def raised(error: BaseException, behind: BaseException | None, *, explicit: bool) -> BaseException:
    """The error as it comes out of `raise error from behind`, or of an `except` in which it was raised."""
    try:
        try:
            if behind is not None:
                raise behind
        except BaseException as first:
            if explicit:
                raise error from first
            raise error  # noqa: B904
        raise error
    except BaseException as second:
        return second


@pytest.mark.parametrize("explicit", [True, False])
def test_what_a_tool_raises_because_of_a_doubt_is_in_doubt(explicit: bool) -> None:
    assert certainty_of(raised(ValueError("no answer"), TimeoutError(), explicit=explicit)) is UNKNOWN
    deep = raised(KeyError("cache"), ConnectionResetError(), explicit=explicit)
    assert certainty_of(raised(ValueError("no answer"), deep, explicit=explicit)) is UNKNOWN


@pytest.mark.parametrize("explicit", [True, False])
@pytest.mark.parametrize("behind", [ConnectionRefusedError(), NotSent("full"), ValueError("x"), None])
def test_what_a_tool_makes_of_a_certain_error_is_its_own_error(behind: BaseException | None, explicit: bool) -> None:
    """It is a result, and is not made again: the tool may have sent something else before."""
    assert certainty_of(raised(ValueError("declined"), behind, explicit=explicit)) is DONE


def test_a_tool_that_knows_better_raises_from_none() -> None:
    def look() -> None:
        try:
            raise TimeoutError
        except TimeoutError:
            raise ValueError("it was not booked: I have looked") from None

    with pytest.raises(ValueError) as known:
        look()
    assert certainty_of(known.value) is DONE


def test_what_a_tool_says_itself_stands_before_what_is_behind_it() -> None:
    assert certainty_of(raised(NotSent("too late"), TimeoutError(), explicit=True)) is NOT_SENT
    assert certainty_of(raised(TimeoutError(), ConnectionRefusedError(), explicit=True)) is UNKNOWN


@pytest.mark.parametrize(
    ("behind", "certainty"),
    [
        (named("urllib3.NewConnectionError", URLLIB3)("refused"), NOT_SENT),
        (named("urllib3.NameResolutionError", named("urllib3.NewConnectionError", URLLIB3))("?"), NOT_SENT),
        (named("urllib3.ProtocolError", URLLIB3)("aborted"), UNKNOWN),
        (named("urllib3.ReadTimeoutError", URLLIB3_TIMEOUT)("late"), UNKNOWN),
        (ssl.SSLCertVerificationError(1, "expired"), NOT_SENT),
    ],
)
def test_what_requests_calls_a_connection_error_is_what_is_behind_it(
    behind: BaseException, certainty: Certainty
) -> None:
    error = raised(REQUESTS_CONNECTION("x"), raised(MAX_RETRIES("x"), behind, explicit=True), explicit=False)
    assert certainty_of(error) is certainty


def test_what_urllib_calls_an_error_of_the_address_is_what_is_behind_it() -> None:
    refused = ConnectionRefusedError(errno.ECONNREFUSED, "refused")
    assert certainty_of(raised(urllib.error.URLError(refused), refused, explicit=False)) is NOT_SENT
    late = TimeoutError("late")
    assert certainty_of(raised(urllib.error.URLError(late), late, explicit=False)) is UNKNOWN
    assert certainty_of(urllib.error.URLError("?")) is UNKNOWN
    answered = urllib.error.HTTPError("http://x", 402, "pay", None, None)  # type: ignore[arg-type]
    assert certainty_of(answered) is DONE
    answered.close()


def test_what_model_clients_call_a_connection_error_is_what_is_behind_it() -> None:
    connection = named("openai.APIConnectionError", named("openai.APIError"))
    refused = named("httpx.ConnectError", HTTPX_NETWORK)()
    late = named("httpx.ReadTimeout", HTTPX_TIMEOUT)()
    assert certainty_of(raised(connection(), refused, explicit=True)) is NOT_SENT
    assert certainty_of(raised(named("openai.APITimeoutError", connection)(), late, explicit=True)) is UNKNOWN
    assert certainty_of(connection()) is UNKNOWN


@pytest.mark.parametrize(
    ("errors", "certainty"),
    [
        ([ValueError(), KeyError()], DONE),
        ([ConnectionRefusedError(), NotSent("")], NOT_SENT),
        ([ConnectionRefusedError(), ValueError()], DONE),
        ([ConnectionRefusedError(), TimeoutError()], UNKNOWN),
        ([ValueError(), ExceptionGroup("inner", [TimeoutError()])], UNKNOWN),
    ],
)
def test_a_group_is_as_uncertain_as_the_most_uncertain_of_it(errors: list[Exception], certainty: Certainty) -> None:
    assert certainty_of(ExceptionGroup("several", errors)) is certainty
    assert certainty_of(raised(ValueError(), ExceptionGroup("several", errors), explicit=True)) is (
        UNKNOWN if certainty is UNKNOWN else DONE
    )


def test_an_error_that_is_its_own_cause_comes_to_an_end() -> None:
    first, second = ValueError("first"), ValueError("second")
    first.__cause__, second.__cause__ = second, first
    assert certainty_of(first) is DONE
