"""Decides from the error of a tool whether its call was made, was not sent, or nobody knows.

   raise Declined("…")                 done        the tool's own error is a result
   raise NotSent("…")                  not_sent    nothing has left, so the call may be made again, whatever its class
   ConnectionRefusedError              not_sent
   raise Overloaded("…")               not_sent    unless its cause is a doubt: an answer of 503, for example
   TimeoutError, ConnectionResetError  unknown     the service may have done it
   Declined("…") from TimeoutError     unknown     the cause of an error counts; `from None` if the tool knows better
   an answer with a status of 4xx      done        the service has refused it
   an answer with a status of 5xx      unknown     a service that fails may have done it before; a gateway does not know

Errors of client libraries are recognized by name, so that none has to be installed. The status of an answer is found in
errors of any library, by the usual names of the attribute. An error of an unknown library that has a time-out or a
connection in its name counts as unknown: asking a person in vain costs less than making a call twice.
"""

import errno
import re
from collections.abc import Iterator, Mapping
from enum import Enum, StrEnum
from typing import Any


class Certainty(StrEnum):
    """The knowledge about whether a call was made.

    - `DONE`: it was made. It has ended with a result, or with an error that the tool itself has raised.
    - `NOT_SENT`: it was not made.
    - `UNKNOWN`: nobody knows.
    """

    DONE = "done"
    NOT_SENT = "not_sent"
    UNKNOWN = "unknown"


_DONE, _NOT_SENT, _UNKNOWN = Certainty
_CAUSE = "cause"  # the cause decides; without a cause, nobody knows
_STATUS = "status"  # the status of the answer decides
_BUSY = "busy"  # the service has refused the call; a doubt behind it stays one

# By package and class. The classes of an error are looked up from the most special one up.
_KNOWN: dict[str, dict[str, Certainty | str]] = {
    "builtins": {
        "ConnectionRefusedError": _NOT_SENT,
        "ConnectionError": _UNKNOWN,
        "TimeoutError": _UNKNOWN,
        "EOFError": _UNKNOWN,  # ftplib, multiprocessing, paramiko: the other side has closed the connection
        "KeyboardInterrupt": _UNKNOWN,
        "SystemExit": _UNKNOWN,
    },
    "sabot": {
        "NotSent": _NOT_SENT,
        "McpBusy": _NOT_SENT,
        "McpUnavailable": _NOT_SENT,
        "Overloaded": _BUSY,
        "SpawnFailed": _NOT_SENT,
        "CommunicationError": _UNKNOWN,  # the supervisor was killed, and a program with it
        "McpRefused": _STATUS,
    },
    "asyncio": {"CancelledError": _UNKNOWN},
    "concurrent": {"CancelledError": _UNKNOWN, "BrokenExecutor": _UNKNOWN},
    "anyio": {"EndOfStream": _UNKNOWN, "BrokenResourceError": _UNKNOWN},
    "trio": {"BrokenResourceError": _UNKNOWN},
    "http": {"CannotSendRequest": _NOT_SENT, "InvalidURL": _NOT_SENT, "HTTPException": _UNKNOWN},
    "imaplib": {"abort": _UNKNOWN},
    "socket": {"gaierror": _NOT_SENT, "herror": _NOT_SENT},
    "ssl": {"SSLCertVerificationError": _NOT_SENT, "SSLError": _UNKNOWN},
    "subprocess": {"TimeoutExpired": _UNKNOWN, "CalledProcessError": _STATUS},
    "urllib": {"HTTPError": _STATUS, "ContentTooShortError": _UNKNOWN, "URLError": _CAUSE},
    "httpx": {
        "HTTPStatusError": _STATUS,
        "ConnectError": _NOT_SENT,
        "ConnectTimeout": _NOT_SENT,
        "PoolTimeout": _NOT_SENT,
        "UnsupportedProtocol": _NOT_SENT,
        "TransportError": _UNKNOWN,
    },
    "httpcore": {
        "ConnectError": _NOT_SENT,
        "ConnectTimeout": _NOT_SENT,
        "PoolTimeout": _NOT_SENT,
        "UnsupportedProtocol": _NOT_SENT,
        "TimeoutException": _UNKNOWN,
        "NetworkError": _UNKNOWN,
        "ProtocolError": _UNKNOWN,
    },
    "requests": {
        "ConnectTimeout": _NOT_SENT,
        "ConnectionError": _CAUSE,
        "Timeout": _UNKNOWN,
        "ChunkedEncodingError": _UNKNOWN,
        "HTTPError": _STATUS,
        "RetryError": _UNKNOWN,  # too many answers with a status that is repeated, such as 502
        "RequestException": _DONE,
    },
    "urllib3": {
        "NewConnectionError": _NOT_SENT,
        "ConnectTimeoutError": _NOT_SENT,
        "MaxRetryError": _CAUSE,
        "SSLError": _CAUSE,
        "ProxyError": _CAUSE,
        "TimeoutError": _UNKNOWN,
        "ProtocolError": _UNKNOWN,
    },
    "aiohttp": {
        "ClientConnectorError": _NOT_SENT,
        "ConnectionTimeoutError": _NOT_SENT,
        "ServerFingerprintMismatch": _NOT_SENT,
        "ClientConnectionError": _UNKNOWN,
        "ClientPayloadError": _UNKNOWN,
        "ClientResponseError": _STATUS,
    },
    "grpc": {"RpcError": _STATUS},
    "grpclib": {"GRPCError": _STATUS, "StreamTerminatedError": _UNKNOWN},
    # These repeat a call themselves: that the last request was not sent says nothing about those before it.
    "azure": {"ServiceRequestError": _UNKNOWN, "ServiceResponseError": _UNKNOWN, "IncompleteReadError": _UNKNOWN},
    "botocore": {"ClientError": _STATUS, "HTTPClientError": _UNKNOWN, "IncompleteReadError": _UNKNOWN},
    "openai": {"APIConnectionError": _CAUSE, "APIStatusError": _STATUS},
    "anthropic": {"APIConnectionError": _CAUSE, "APIStatusError": _STATUS},
    "psycopg": {"OperationalError": _UNKNOWN},
    "psycopg2": {"OperationalError": _UNKNOWN},
    "pymysql": {"OperationalError": _UNKNOWN},
    "MySQLdb": {"OperationalError": _UNKNOWN},
    "mysql": {"OperationalError": _UNKNOWN, "InterfaceError": _UNKNOWN},
    "pymongo": {"AutoReconnect": _UNKNOWN},
    "cimpl": {"KafkaException": _STATUS},  # the module that classes of confluent_kafka name
    "confluent_kafka": {"KafkaException": _STATUS},
}
_KNOWN["httpx2"], _KNOWN["httpcore2"] = _KNOWN["httpx"], _KNOWN["httpcore"]

NOT_SENT_NAMES = frozenset(
    name for kinds in _KNOWN.values() for name, said in kinds.items() if said is Certainty.NOT_SENT
)
"""The names of classes of errors by which nothing was sent, as journals have them."""

# Beside 5xx of HTTP: a request that came too late or whose client left (408, 499), a failure inside an MCP server, and
# what gRPC has in the place of 5xx. No 5xx is an exception, not even a 503 that says when to come again: proxies answer
# so too when they have lost the service.
_DOUBTFUL_STATUS = {408, 499, *range(500, 600), -32603}
_DOUBTFUL_STATUS |= {"CANCELLED", "UNKNOWN", "DEADLINE_EXCEEDED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"}
# After these errors of librdkafka a message may have been sent. Its others are refusals, or come before.
_DOUBTFUL_STATUS |= {"_MSG_TIMED_OUT", "_TIMED_OUT", "_TRANSPORT", "_ALL_BROKERS_DOWN", "_PURGE_INFLIGHT", "_FATAL"}
_DOUBTFUL_STATUS |= {"_DESTROY", "REQUEST_TIMED_OUT", "NETWORK_EXCEPTION", "NOT_ENOUGH_REPLICAS_AFTER_APPEND"}
_DOUBTFUL_STATUS |= {"KILLED"}
_HTTP_STATUS = ("status_code", "http_status", "status", "http_status_code", "code", "errcode")  # names of attributes
_OF_SYSTEM = {"builtins", "socket", "ssl", "asyncio", "concurrent", "anyio", "trio"}
_DOUBTFUL_NAME = re.compile(
    r"time(d)?_?out|connection_?(error|reset|lost|closed|aborted|broken)|disconnect|broken_?pipe", re.IGNORECASE
)
_SOCKET_ERRORS = {
    getattr(errno, name)
    for name in ("EHOSTDOWN", "EHOSTUNREACH", "ENETDOWN", "ENETRESET", "ENETUNREACH", "ENOBUFS", "ENOTCONN", "EPROTO")
    if hasattr(errno, name)
}


def certainty_of(error: BaseException) -> Certainty:
    """Decides from the error that a tool has raised whether the tool's call was made. Also examines the causes of the
    error.
    """
    if isinstance(error, BaseExceptionGroup):
        found = {certainty_of(each) for each in error.exceptions}
        return found.pop() if len(found) == 1 else _UNKNOWN if _UNKNOWN in found else _DONE
    return _of_chain([error, *_causes(error)])


def _of_chain(chain: list[BaseException]) -> Certainty:
    """Decides from an error and its causes, the nearest first."""
    error, causes = chain[0], chain[1:]
    if isinstance(error, BaseExceptionGroup):
        return certainty_of(error)
    said = _said_by(error)
    if said is _BUSY:
        doubt = _http_status_of(error) in _DOUBTFUL_STATUS or (causes and _of_chain(causes) is _UNKNOWN)
        return _UNKNOWN if doubt else _NOT_SENT
    if said is _UNKNOWN or (isinstance(said, Certainty) and is_ours(error)):
        return said
    nearest = said if isinstance(said, Certainty) else None  # the nearest error that is certain
    open_question = said is not None
    for cause in causes:
        behind = certainty_of(cause) if isinstance(cause, BaseExceptionGroup) else _said_by(cause)
        # A connection that is not made fails by an error of the system, such as TimeoutError. Any other doubt behind a
        # certain error is of a call before: the tool has caught it, and has tried again.
        if behind is _UNKNOWN and not (nearest is _NOT_SENT and _package(type(cause)) in _OF_SYSTEM):
            return _UNKNOWN
        if nearest is None and isinstance(behind, Certainty):
            nearest = behind
        open_question = open_question or behind not in (None, _BUSY)
    if nearest is not None:
        return _DONE if said is None else nearest  # an error that the tool raises from a certain one is its own
    return _UNKNOWN if open_question else _DONE


def _said_by(error: BaseException) -> Certainty | str | None:
    """Returns what this error says about the call. Does not look at the causes of the error.

    - Returns a Certainty if the class decides, or the status of the answer that the error has.
    - Returns _CAUSE if the class wraps other errors, so that the cause of the error decides.
    - Returns None if the class is unknown. The error is then taken for one of the tool itself, raised after the call
      was made, unless a cause says otherwise.
    """
    for kind in type(error).__mro__:
        known = _KNOWN.get(_package(kind), {}).get(kind.__name__)
        if known is _STATUS:
            return _UNKNOWN if _status_of(error) in _DOUBTFUL_STATUS else _DONE
        if known is not None:
            return known
    if isinstance(error, OSError) and error.errno in _SOCKET_ERRORS:
        return _UNKNOWN
    if any(_DOUBTFUL_NAME.search(kind.__name__) for kind in type(error).__mro__):
        return _UNKNOWN
    status = _http_status_of(error)
    return None if status is None else _UNKNOWN if status in _DOUBTFUL_STATUS else _DONE


def _package(kind: type[BaseException]) -> str:
    return kind.__module__.partition(".")[0]


def is_ours(error: BaseException) -> bool:
    """Returns True if the error, such as NotSent, is one of Sabot, by which a tool says itself what is certain."""
    return any(_package(kind) == "sabot" and kind.__name__ in _KNOWN["sabot"] for kind in type(error).__mro__)


def _status_of(error: BaseException) -> int | str | None:
    """Returns the status of the answer that an error of a known client library has: the name of a status of gRPC or
    Kafka, a number of JSON-RPC or HTTP, or "KILLED" for a program that a signal has ended. Returns None if it has none.
    """
    ended = getattr(error, "returncode", None)
    if isinstance(ended, int) and ended < 0:
        return "KILLED"
    named = getattr(error.args[0], "name", None) if error.args else None  # the KafkaError in a KafkaException
    if callable(named):
        return str(named())
    status = getattr(error, "code", None) or getattr(error, "status", None)
    status = status() if callable(status) else status
    if isinstance(status, Enum) and not isinstance(status, int):
        return status.name
    number = getattr(error, "number", None)
    return number if isinstance(number, int) else _http_status_of(error)


def _http_status_of(error: BaseException) -> int | None:
    """Returns the status of the HTTP answer that an error of any library has, from 400 to 599, or None if it has none.
    Libraries have it in the error itself, in its response, or, as botocore, in a dict of the response.
    """
    for holder in ("", "response", "resp"):
        found = _attribute(error, holder) if holder else error
        if isinstance(found, Mapping):
            found, names = found.get("ResponseMetadata", found), ("HTTPStatusCode", *_HTTP_STATUS)
            statuses = [found.get(name) for name in names] if isinstance(found, Mapping) else []
        else:
            statuses = [_attribute(found, name) for name in _HTTP_STATUS]
        for status in statuses:
            status = int(status) if isinstance(status, str) and status.isdecimal() else status
            if isinstance(status, int) and 400 <= status < 600:
                return status
    return None


def _attribute(value: Any, name: str) -> Any:
    """Returns an attribute of an error or a response, or None. A property of a user's class may fail, for example
    because the answer was not read: then the error has no such status.
    """
    try:
        return getattr(value, name, None)
    except Exception:
        return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yields the errors that led to this one, the nearest first. The cause of an error is its `__cause__` (`raise …
    from`). Without one, it is the error that was being handled when the error was raised.
    """
    seen = {id(error)}  # a user's error may be its own cause
    while True:
        cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
        if cause is None or id(cause) in seen:
            return
        seen.add(id(cause))
        yield cause
        error = cause
