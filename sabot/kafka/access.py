"""Explains why a broker refuses a connection of Sabot, or why the client refuses the broker (certificate, login,
rights), and what the user can do about it.

The client does not say what is wrong with a certificate, nor that a listener speaks TLS. So after an opening has
failed, `look` connects to the listener itself, once. It sends nothing but the TLS handshake.
"""

import os
import re
import socket
import ssl
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

LOOK_SECONDS = 1.0  # time-out of the handshake with one listener
LOOKED_AT = 2  # the number of addresses of a list that are tried

_X509_HINTS = {
    9: "is the clock of this machine right? `openssl s_client -connect {at}` shows the dates",
    10: "renew the broker's certificate; `openssl s_client -connect {at}` shows its dates",
    18: "ssl.ca.location must name a file with the certificate of the CA that signed the broker's; it is {ca}",
    62: "use an address that stands in the certificate, or have one made for {host!r}",
}
_X509_HINTS |= {19: _X509_HINTS[18], 20: _X509_HINTS[18], 21: _X509_HINTS[18], 64: _X509_HINTS[62]}
_NO_LOGIN = "the listener takes no login: leave out sasl.*, security.protocol is ssl or plaintext there"


class Finding(NamedTuple):
    """A fault of a listener: the reason, and a remedy. `sure`: True if waiting does not help."""

    reason: str
    hint: str
    sure: bool


def protocol_of(kafka: Mapping[str, Any]) -> str:
    return str(kafka.get("security.protocol", "plaintext")).lower()


def principal(kafka: Mapping[str, Any]) -> str:
    """Returns the user name under which the broker's ACLs know this app, or "" if the settings do not contain it
    (certificates, tokens).
    """
    return str(kafka.get("sasl.username") or "") if protocol_of(kafka).startswith("sasl") else ""


def acl_hint(user: str, address: str, *rights: str) -> str:
    """Returns the commands that grant the rights. Each of `rights` is a text of options such as `--operation Read
    --topic t`.
    """
    head = f"kafka-acls --bootstrap-server {address.split(',')[0]} --add --allow-principal User:{user or 'NAME'}"
    return "; ".join(f"{head} {right}" for right in rights)


def login_hint(reason: str, kafka: Mapping[str, Any]) -> str:
    mechanism = kafka.get("sasl.mechanism", kafka.get("sasl.mechanisms", "GSSAPI"))
    if "Unsupported SASL mechanism" in reason:
        return f"sasl.mechanism is {mechanism}: use one of those that the broker lists"
    if "SASL state" in reason:
        return _NO_LOGIN
    return f"check sasl.username and sasl.password, and that the broker has this user for {mechanism}"


def tidy(reason: str) -> str:
    """Returns the client's text for a fault without the durations in it, so that equal faults have equal texts."""
    return re.sub(r" \(after \d+ms in state \w+[^)]*\)", "", reason)


def look(address: str, kafka: Mapping[str, Any]) -> Finding | None:
    """Returns the fault that a TLS handshake with the listeners shows, or None if no listener answers or nothing is
    wrong. Blocks for up to two seconds.
    """
    for host, port in _places(address):
        try:
            with socket.create_connection((host, port), LOOK_SECONDS) as connection:
                return _look_at(connection, host, port, kafka)
        except OSError:
            continue
    return None


def _places(address: str) -> Iterator[tuple[str, int]]:
    for place in address.split(",")[:LOOKED_AT]:
        found = re.fullmatch(r"\s*(?:\w+://)?(?:\[([^]]+)\]|([^:]*))(?::(\d+))?\s*", place)
        if found is not None:
            yield found[1] or found[2], int(found[3] or 9092)


def _look_at(connection: socket.socket, host: str, port: int, kafka: Mapping[str, Any]) -> Finding | None:
    protocol = protocol_of(kafka)
    ours = protocol in ("ssl", "sasl_ssl")
    try:
        with _context(kafka, verify=ours).wrap_socket(connection, server_hostname=host):
            pass
    except ssl.SSLCertVerificationError as error:
        reason = f"the certificate of {host}:{port} is not accepted: {error.verify_message.rstrip('.')}"
        ca = kafka.get("ssl.ca.location", "not set, so those of the system are taken")
        hint = _X509_HINTS.get(error.verify_code, "look at the broker's certificate and ssl.ca.location")
        return Finding(reason, hint.format(at=f"{host}:{port}", host=host, ca=ca), True)
    except TimeoutError:  # it is busy, and has refused nothing
        return None
    except OSError as error:  # the base class of ssl.SSLError
        if not ours:
            hint = "does this listener want a login? then security.protocol is sasl_plaintext"
            return Finding("the connection is closed by the broker", hint, False) if protocol == "plaintext" else None
        hint = "security.protocol is plaintext or sasl_plaintext there, or another port speaks TLS"
        return Finding(f"{host}:{port} does not speak TLS ({type(error).__name__})", hint, False)
    if not ours:
        wanted = "sasl_ssl" if protocol.startswith("sasl") else "ssl, or sasl_ssl for a login"
        return Finding(
            f"{host}:{port} speaks TLS, but the settings of the client do not",
            f"set security.protocol to {wanted}",
            True,
        )
    if protocol == "ssl":
        hint = "does this listener want a login? then security.protocol is sasl_ssl"
        return Finding("the connection is closed by the broker behind the TLS handshake", hint, False)
    return None


def _context(kafka: Mapping[str, Any], *, verify: bool) -> ssl.SSLContext:
    """Returns a TLS context that checks the broker's certificate as the client's settings demand."""
    context = ssl.create_default_context()
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT  # the client is not that strict
    named = str(kafka.get("ssl.endpoint.identification.algorithm", "https")).lower() != "none"
    verify = verify and str(kafka.get("enable.ssl.certificate.verification", "true")).lower() != "false"
    context.check_hostname = named and verify
    if not verify:
        context.verify_mode = ssl.CERT_NONE
        return context
    if kafka.get("ssl.ca.location", "probe") != "probe" or "ssl.ca.pem" in kafka:  # the client looks for "probe" itself
        context = _only(context, kafka)
    return context


def _only(like: ssl.SSLContext, kafka: Mapping[str, Any]) -> ssl.SSLContext:
    """Returns a TLS context like `like` that trusts only the authorities named in the settings."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = like.check_hostname
    place = kafka.get("ssl.ca.location")  # a file, or a folder of files
    folder = place if place is not None and os.path.isdir(place) else None
    context.load_verify_locations(place if folder is None else None, folder, kafka.get("ssl.ca.pem"))
    return context
