"""Tables of the web: 'connector' = 'http', 'poll', 'sse', 'webhook' and 'websocket'."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sabot.sql.scope import at
from sabot.sql.syntax.text import SqlFault
from sabot.sql.syntax.tree import CreateTable
from sabot.sql.table_options import YES_OR_NO, Options, delivery_of

if TYPE_CHECKING:
    from sabot.api.stream import Stream
    from sabot.connectors.base import Sink


def write_http(options: Options, statement: CreateTable) -> "Callable[[Any], tuple[Sink, dict[str, Any]]]":
    """Returns the writer of a table whose rows are sent to an address. Raises SqlFault."""
    from sabot.connectors.http import HttpSink

    span = options.value_span("url")
    url, batch = options.need("url"), options.number("batch")
    given = {"method": options.take("method"), "timeout": options.duration("timeout")}
    idempotent = options.choose("idempotent", YES_OR_NO, False)
    headers = options.prefixed("headers.")
    written = delivery_of(options)
    more: Any = {name: value for name, value in given.items() if value is not None}
    if batch is not None:
        more["batch"] = int(batch) if batch == int(batch) else batch
    with at(span):
        sink = HttpSink(url, headers=headers, idempotent=idempotent, **more)
    return lambda app: (sink, written)


def read_poll(options: Options, statement: CreateTable) -> "Callable[[Any, dict[str, Any]], Stream]":
    """Returns the reader of a table whose rows are those of a JSON API. Raises SqlFault."""
    from sabot.connectors.http import PollSource

    span = options.value_span("url")
    url = options.need("url")
    given = {name: options.take(name) for name in ("items", "next", "cursor")}
    given |= {name: options.duration(name) for name in ("every", "timeout")}
    headers = options.prefixed("headers.")
    more: Any = {name: value for name, value in given.items() if value is not None}
    with at(span):
        source = PollSource(url, headers=headers, **more)
    return lambda app, given: app.stream(source, **given)


def read_sse(options: Options, statement: CreateTable) -> "Callable[[Any, dict[str, Any]], Stream]":
    """Returns the reader of a table whose rows are server-sent events. Raises SqlFault."""
    from sabot.connectors.http import SseSource

    span = options.value_span("url")
    url, kinds = options.need("url"), options.take("events")
    given = {"ids": options.take("ids"), "after": options.take("after"), "timeout": options.duration("timeout")}
    headers = options.prefixed("headers.")
    more: Any = {name: value for name, value in given.items() if value is not None}
    if kinds is not None:
        more["events"] = [each.strip() for each in kinds.split(",")]
    with at(span):
        source = SseSource(url, headers=headers, **more)
    return lambda app, given: app.stream(source, **given)


def read_websocket(options: Options, statement: CreateTable) -> "Callable[[Any, dict[str, Any]], Stream]":
    """Returns the reader of a table whose rows are the messages of a websocket. Raises SqlFault."""
    from sabot.connectors.http import WebsocketSource

    span = options.value_span("url")
    url, subscribe, timeout = options.need("url"), options.take("subscribe"), options.duration("timeout")
    headers = options.prefixed("headers.")
    more: Any = {} if timeout is None else {"timeout": timeout}
    with at(span):
        source = WebsocketSource(url, subscribe=[] if subscribe is None else [subscribe], headers=headers, **more)
    return lambda app, given: app.stream(source, **given)


def read_webhook(options: Options, statement: CreateTable) -> "Callable[[Any, dict[str, Any]], Stream]":
    """Returns the reader of a table whose rows are requests that others send. Raises SqlFault."""
    from sabot.connectors.http import WebhookSource

    span, port_span = options.value_span("spool"), options.value_span("port")
    spool, port = options.need("spool"), options.number("port")
    if port is None or port != int(port):
        raise SqlFault(port_span, f"table {options.table} needs the port at which it listens", "'port' = '8080'")
    names = ("path", "host", "verify", "secret", "key", "body-bytes", "spool-bytes")
    given = {name.replace("-", "_"): options.take(name) for name in names} | {"keys": options.duration("keys")}
    more: Any = {name: value for name, value in given.items() if value is not None}
    with at(span):
        source = WebhookSource(spool, port=int(port), **more)
    return lambda app, given: app.stream(source, **given)
