"""Decides from the error of a tool whether its call was made, was not sent, or nobody knows.

   raise Declined("…")                 done        the tool's own error is a result
   raise NotSent("…")                  not_sent    nothing has left, so the call may be made again, whatever its class
   ConnectionRefusedError              not_sent
   TimeoutError, ConnectionResetError  unknown     the service may have done it
   Declined("…") from TimeoutError     unknown     the cause of an error counts; `from None` if the tool knows better
   an answer with the status 504       unknown     a gateway has answered, and does not know whether the service has done it

Errors of client libraries are recognized by name, so that none has to be installed. An error of an unknown library that
has a time-out or a connection in its name counts as unknown: asking a person in vain costs less than making a call
twice.
"""

import errno
import re
from collections.abc import Iterator
from enum import StrEnum


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

# By package and class. The classes of an error are looked up from the most special one up.
_KNOWN: dict[str, dict[str, Certainty | str]] = {
    "builtins": {
        "ConnectionRefusedError": _NOT_SENT,
        "ConnectionError": _UNKNOWN,
        "TimeoutError": _UNKNOWN,
        "KeyboardInterrupt": _UNKNOWN,
        "SystemExit": _UNKNOWN,
    },
    "sabot": {
        "NotSent": _NOT_SENT,
        "Overloaded": _NOT_SENT,
        "SpawnFailed": _NOT_SENT,
        "CommunicationError": _UNKNOWN,  # the supervisor was killed, and a program with it
    },
    "asyncio": {"CancelledError": _UNKNOWN, "IncompleteReadError": _UNKNOWN},
    "concurrent": {"CancelledError": _UNKNOWN},
    "http": {"CannotSendRequest": _NOT_SENT, "InvalidURL": _NOT_SENT, "HTTPException": _UNKNOWN},
    "socket": {"gaierror": _NOT_SENT, "herror": _NOT_SENT},
    "ssl": {"SSLCertVerificationError": _NOT_SENT, "SSLError": _UNKNOWN},
    "subprocess": {"TimeoutExpired": _UNKNOWN},
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
    "openai": {"APIConnectionError": _CAUSE, "APIStatusError": _STATUS},
    "anthropic": {"APIConnectionError": _CAUSE, "APIStatusError": _STATUS},
    "psycopg": {"OperationalError": _UNKNOWN},
    "psycopg2": {"OperationalError": _UNKNOWN},
}
# Those of a gateway that got no answer from the service, or lost it (HTTP; 520 and 524 are Cloudflare's), and those with
# which a client of gRPC reports that itself. A 500 or 503 comes from the service: it has failed, or has refused the call.
_DOUBTFUL_STATUS = {502, 504, 520, 524, "CANCELLED", "DEADLINE_EXCEEDED", "UNAVAILABLE"}
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
    said = _said_by(error)
    if isinstance(said, Certainty):
        return said
    open_question = said is not None
    for cause in _causes(error):
        behind = certainty_of(cause) if isinstance(cause, BaseExceptionGroup) else _said_by(cause)
        if behind is _UNKNOWN:
            return _UNKNOWN
        if isinstance(behind, Certainty):
            return _DONE if said is None else behind  # an error that the tool raises from a certain one is its own
        open_question = open_question or behind is not None
    return _UNKNOWN if open_question else _DONE


def _said_by(error: BaseException) -> Certainty | str | None:
    """Returns what this error says about the call. Does not look at the causes of the error.

    - Returns a Certainty if the class decides, or the status of the answer that the error has.
    - Returns _CAUSE if the class wraps other errors, so that the cause of the error decides.
    - Returns None if the class is unknown. The error is then taken for one of the tool itself, raised after the call
      was made, unless a cause says otherwise.
    """
    for kind in type(error).__mro__:
        known = _KNOWN.get(kind.__module__.partition(".")[0], {}).get(kind.__name__)
        if known is _STATUS:
            return _UNKNOWN if _status_of(error) in _DOUBTFUL_STATUS else _DONE
        if known is not None:
            return known
    if isinstance(error, OSError) and error.errno in _SOCKET_ERRORS:
        return _UNKNOWN
    return _UNKNOWN if any(_DOUBTFUL_NAME.search(kind.__name__) for kind in type(error).__mro__) else None


def _status_of(error: BaseException) -> int | str | None:
    """Returns the status of the answer that an error of a client library has: a number of HTTP, or the name of a status
    of gRPC. Returns None if it has none.
    """
    for holder in (error, getattr(error, "response", None)):
        for name in ("status_code", "status", "code"):
            status = getattr(holder, name, None)
            status = status() if callable(status) else status
            if isinstance(status, int):
                return status
            if isinstance(said := getattr(status, "name", None), str):
                return said
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
