"""What the error of a tool says of its call. Errors of client libraries are made here by their names: none of the libraries is imported."""

import asyncio
import concurrent.futures
import errno
import http.client
import imaplib
import socket
import ssl
import subprocess
import urllib.error
import xmlrpc.client
from enum import Enum
from http import HTTPStatus
from types import SimpleNamespace

import pytest
from confluent_kafka import KafkaError, KafkaException

from sabot.engine.calls.certainty import Certainty, certainty_of
from sabot.errors import DataError, EffectError, NotSent, Overloaded, TransientError
from sabot.llm import ModelUnavailable
from sabot.mcp import McpRefused

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


GrpcStatus = Enum(
    "GrpcStatus",
    "CANCELLED UNKNOWN DEADLINE_EXCEEDED ALREADY_EXISTS RESOURCE_EXHAUSTED ABORTED UNIMPLEMENTED INTERNAL UNAVAILABLE DATA_LOSS",
)

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
        (EOFError(), UNKNOWN),
        (imaplib.IMAP4.abort("socket error: EOF"), UNKNOWN),
        (concurrent.futures.BrokenExecutor("a child process terminated abruptly"), UNKNOWN),
        (subprocess.TimeoutExpired("rm", 3), UNKNOWN),
        (subprocess.CalledProcessError(-9, "pay"), UNKNOWN),
        (subprocess.CalledProcessError(1, "pay"), DONE),
        (SystemExit(1), UNKNOWN),
        (KeyboardInterrupt(), UNKNOWN),
    ],
    ids=repr,
)
def test_errors_of_python(error: BaseException, certainty: Certainty) -> None:
    assert certainty_of(error) is certainty


@pytest.mark.one_in(4, "hundredths of a second of a core each")
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
        (named("pymysql.OperationalError", named("pymysql.DatabaseError"), module="err"), UNKNOWN),
        (named("pymysql.IntegrityError", named("pymysql.DatabaseError"), module="err"), DONE),
        (named("pymongo.NotPrimaryError", named("pymongo.AutoReconnect")), UNKNOWN),
        (named("anyio.EndOfStream"), UNKNOWN),
        (named("anyio.BrokenResourceError"), UNKNOWN),
    ],
    ids=lambda value: getattr(value, "__qualname__", str(value)),
)
def test_errors_of_client_libraries(kind: type[BaseException], certainty: Certainty) -> None:
    assert certainty_of(kind("said")) is certainty


@pytest.mark.parametrize(
    ("error", "certainty"),
    [
        (answered("httpx.HTTPStatusError", response=SimpleNamespace(status_code=504)), UNKNOWN),
        (answered("httpx.HTTPStatusError", response=SimpleNamespace(status_code=409)), DONE),
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


def of_http(status: int) -> dict[str, BaseException]:
    """The errors by which client libraries tell this status, with the attributes that theirs have."""
    response = SimpleNamespace(status_code=status, status=status)
    of_aws = {"Error": {"Code": str(status), "Message": "x"}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return {
        "httpx": answered("httpx.HTTPStatusError", response=response),
        "httpx2": answered("httpx2.HTTPStatusError", response=response),
        "requests": answered("requests.HTTPError", response=response),
        "aiohttp": answered("aiohttp.ClientResponseError", status=status),
        "urllib": urllib.error.HTTPError("http://x", status, "x", None, None),  # type: ignore[arg-type]
        "stripe": answered("stripe.APIError", "stripe.StripeError", http_status=status, code=None),
        "botocore": answered("botocore.ClientError", response=of_aws, operation_name="Pay"),
        "an error of a service by botocore": answered(
            "botocore.LimitExceeded", "botocore.ClientError", response=of_aws
        ),
        "google": answered("google.BadGateway", "google.GoogleAPICallError", code=status, response=None),
        "google client": answered("googleapiclient.HttpError", resp=SimpleNamespace(status=status)),
        "azure": answered("azure.HttpResponseError", status_code=status, response=response),
        "openai": answered("openai.InternalServerError", "openai.APIStatusError", status_code=status),
        "twilio": answered("twilio.TwilioRestException", status=status, code=20_500),
        "tornado": answered("tornado.HTTPClientError", code=status),
        "xmlrpc": xmlrpc.client.ProtocolError("http://x", status, "x", {}),
        "the tool's own": answered(
            "shop.ShopAway", status_code=HTTPStatus(status) if status in {*HTTPStatus} else status
        ),
        "a text": answered("shop.ShopAway", status=str(status)),
        "sabot": ModelUnavailable("m", status=status),
    }


CLIENTS = list(of_http(502))


def wrapped(error: BaseException, how: str) -> BaseException:
    if how == "in a group":
        return ExceptionGroup("several", [ValueError("no"), error])  # type: ignore[list-item]
    own = named("shop.PaymentFailed")("no receipt")
    return error if how == "plain" else raised(raised(own, error, explicit=how == "from"), None, explicit=True)


@pytest.mark.one_in(12, "a hundredth of a second of a core each")
@pytest.mark.parametrize("how", ["plain", "from", "while it was handled", "in a group"])
@pytest.mark.parametrize("client", CLIENTS)
def test_each_answer_of_a_service_that_fails_is_a_doubt_whichever_client_tells_it(client: str, how: str) -> None:
    """502 of stripe and of botocore were plain errors: the model paid again."""
    for status in (408, 499, 500, 501, 502, 503, 504, 529):
        assert certainty_of(wrapped(of_http(status)[client], how)) is UNKNOWN, status
    for status in (400, 402, 403, 404, 409, 422, 429):
        assert certainty_of(wrapped(of_http(status)[client], how)) is DONE, status


@pytest.mark.parametrize(
    ("status", "certainty"),
    [
        *((name, UNKNOWN) for name in ("CANCELLED", "UNKNOWN", "DEADLINE_EXCEEDED", "INTERNAL", "UNAVAILABLE")),
        ("DATA_LOSS", UNKNOWN),
        *((name, DONE) for name in ("ALREADY_EXISTS", "RESOURCE_EXHAUSTED", "ABORTED", "UNIMPLEMENTED")),
    ],
)
def test_a_status_of_grpc_is_one_of_a_service_that_fails_or_refuses(status: str, certainty: Certainty) -> None:
    assert certainty_of(answered("grpc.AioRpcError", "grpc.RpcError", code=lambda: GrpcStatus[status])) is certainty
    assert certainty_of(answered("grpclib.GRPCError", status=GrpcStatus[status])) is certainty
    # the same words in an error that is the tool's own say nothing
    assert certainty_of(answered("shop.OrderError", status=GrpcStatus[status])) is DONE


@pytest.mark.parametrize(
    ("code", "certainty"),
    [
        (KafkaError._MSG_TIMED_OUT, UNKNOWN),
        (KafkaError._TRANSPORT, UNKNOWN),
        (KafkaError._DESTROY, UNKNOWN),
        (KafkaError.REQUEST_TIMED_OUT, UNKNOWN),
        (KafkaError.NETWORK_EXCEPTION, UNKNOWN),
        (KafkaError.NOT_ENOUGH_REPLICAS_AFTER_APPEND, UNKNOWN),
        (KafkaError.MSG_SIZE_TOO_LARGE, DONE),
        (KafkaError.TOPIC_AUTHORIZATION_FAILED, DONE),
    ],
    ids=lambda value: KafkaError(value).name() if isinstance(value, int) else value,
)
def test_a_message_to_kafka_that_may_have_been_written_is_a_doubt(code: int, certainty: Certainty) -> None:
    assert certainty_of(KafkaException(KafkaError(code))) is certainty


def test_a_failure_within_an_mcp_server_is_a_doubt_and_its_refusal_is_none() -> None:
    assert certainty_of(McpRefused("desk", "it broke", -32603)) is UNKNOWN
    assert certainty_of(McpRefused("desk", "no such tool", -32602)) is DONE
    assert certainty_of(McpRefused("desk", "asked too often")) is DONE


@pytest.mark.parametrize(
    "name",
    [
        *("requests.RetryError", "azure.ServiceResponseError", "azure.ServiceRequestError"),
        *("botocore.HTTPClientError", "botocore.EndpointConnectionError", "botocore.ConnectTimeoutError"),
    ],
)
def test_the_last_error_of_a_client_that_repeats_calls_itself_says_nothing_of_those_before(name: str) -> None:
    refused = raised(named("urllib3.NewConnectionError", URLLIB3)("x"), ConnectionRefusedError(), explicit=True)
    assert certainty_of(raised(named(name)("x"), refused, explicit=True)) is UNKNOWN


def test_a_certain_error_after_a_doubt_leaves_the_doubt() -> None:
    """A tool that tries again by itself, and is refused then, may have paid with its first request."""
    late = named("httpx.ReadTimeout", HTTPX_TIMEOUT)
    answered_402 = answered("httpx.HTTPStatusError", response=SimpleNamespace(status_code=402))
    assert certainty_of(raised(ConnectionRefusedError(), late(), explicit=False)) is UNKNOWN
    assert certainty_of(raised(answered_402, late(), explicit=False)) is UNKNOWN
    assert certainty_of(raised(answered_402, TimeoutError(), explicit=False)) is UNKNOWN
    assert certainty_of(raised(ValueError(), raised(answered_402, late(), explicit=False), explicit=True)) is UNKNOWN
    assert certainty_of(raised(named("shop.Full", NotSent)("full"), late(), explicit=True)) is NOT_SENT


@pytest.mark.parametrize("system", [TimeoutError(), asyncio.CancelledError(), OSError(errno.ETIMEDOUT, "late")])
def test_a_connection_that_could_not_be_made_in_time_is_not_sent(system: BaseException) -> None:
    inner = raised(named("httpcore.ConnectTimeout")(), system, explicit=True)
    outer = raised(named("httpx.ConnectTimeout", HTTPX_TIMEOUT)(), inner, explicit=True)
    assert certainty_of(outer) is NOT_SENT
    assert certainty_of(raised(ValueError("the shop is closed"), outer, explicit=True)) is DONE


def test_an_error_whose_attributes_cannot_be_read_has_no_status() -> None:
    class Unread(Exception):
        @property
        def response(self) -> object:
            raise RuntimeError("the answer was not read")

    assert certainty_of(Unread("x")) is DONE


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


@pytest.mark.parametrize("explicit", [True, False])
@pytest.mark.parametrize(
    ("behind", "certainty"),
    [
        (answered("shop.Answered", status_code=429), NOT_SENT),
        (answered("httpx.HTTPStatusError", response=SimpleNamespace(status_code=400)), NOT_SENT),
        (ConnectionRefusedError(), NOT_SENT),
        (raised(named("httpx.ConnectTimeout")(), TimeoutError(), explicit=True), NOT_SENT),
        (ValueError("x"), NOT_SENT),
        *((answered("shop.Answered", status_code=status), UNKNOWN) for status in (408, 499, 500, 502, 503, 504)),
        (answered("httpx.HTTPStatusError", response=SimpleNamespace(status_code=503)), UNKNOWN),
        (TimeoutError(), UNKNOWN),
        (ExceptionGroup("x", [TimeoutError()]), UNKNOWN),
        (raised(ValueError("x"), answered("shop.Answered", status_code=503), explicit=True), UNKNOWN),
    ],
)
def test_an_overload_leaves_the_doubt_of_the_answer_behind_it(
    behind: BaseException, certainty: Certainty, explicit: bool
) -> None:
    """`raise Overloaded(retry_after=…) from` an answer of 503 counted as not sent, and a payment was made again."""
    assert certainty_of(raised(Overloaded(), behind, explicit=explicit)) is certainty
    once_more = raised(ValueError("no answer"), raised(Overloaded(), behind, explicit=explicit), explicit=True)
    assert certainty_of(once_more) is (UNKNOWN if certainty is UNKNOWN else DONE)


def test_an_overload_with_the_status_of_its_answer_is_judged_by_it() -> None:
    overloaded = named("shop.Busy", Overloaded)("x")
    overloaded.status_code = 503  # type: ignore[attr-defined]
    assert certainty_of(overloaded) is UNKNOWN
    overloaded.status_code = 429  # type: ignore[attr-defined]
    assert certainty_of(overloaded) is NOT_SENT


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
