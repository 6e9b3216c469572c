"""Server-sent events, as the HTML standard defines them (section 9.2.6, "Interpreting an event stream")."""

import re

EVENT_BYTES = 64 << 20
"""The most bytes of an event: a server that never ends one must not fill the memory."""

_BOM = b"\xef\xbb\xbf"
_PLAIN = re.compile(
    rb"(?:\A|(?<=\n\n))(?:event: ?+([^\n]+)\n)?(?:id: ?+([^\n\0]+)\n)?data: ?([^\n]*)(?=\n\n|\Z)"
).findall
"""Finds what nearly all events are: lines in this order. The others are read line by line."""

SentEvent = tuple[bytes, bytes, bytes | None]
"""The type of an event, "message" if the server gives none; its data; and its own id, or None if it has none. An id may be empty."""


class EventParser:
    """Makes events of the pieces of one answer, wherever it is cut. `retry_ms`: how long the server last asked its clients to wait before
    they connect again, or None.
    """

    def __init__(self) -> None:
        self.retry_ms: int | None = None
        self._rest = bytearray()  # what follows the last blank line
        self._began = self._after_cr = False

    def feed(self, piece: bytes) -> list[SentEvent]:
        """Returns the events that are whole with this piece. Raises ValueError for an event of more than EVENT_BYTES."""
        if self._after_cr and piece.startswith(b"\n"):  # the second half of a line's end
            piece, self._after_cr = piece[1:], False
        if piece:
            self._after_cr = piece.endswith(b"\r")
        if b"\r" in piece:
            piece = piece.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        rest, before = self._rest, len(self._rest)
        rest += piece
        if not self._began:
            if len(rest) < len(_BOM) and _BOM.startswith(rest):
                return []  # the mark may be cut
            if rest.startswith(_BOM):
                del rest[: len(_BOM)]
            self._began, before = True, 0
        last = rest.rfind(b"\n\n", max(0, before - 1))
        if last < 0:
            if len(rest) > EVENT_BYTES:
                raise ValueError(f"an event has more than {EVENT_BYTES} bytes")
            return []
        whole = bytes(rest[:last])
        del rest[: last + 2]
        plain = _PLAIN(whole)
        # As many as there are blocks: each is one block from its beginning to its end, so nothing else is there.
        if len(plain) == whole.count(b"\n\n") + 1:
            return [(kind or b"message", line, own or None) for kind, own, line in plain]
        return [event for block in whole.split(b"\n\n") if (event := self._event(block)) is not None]

    def _event(self, block: bytes) -> SentEvent | None:
        data: list[bytes] = []
        kind, own = b"message", None
        for line in block.split(b"\n"):
            name, _, value = line.partition(b":")
            value = value.removeprefix(b" ")
            if name == b"data":
                data.append(value)
            elif name == b"id":
                own = own if b"\0" in value else value
            elif name == b"event":
                kind = value or b"message"
            elif name == b"retry" and value.isdigit():
                self.retry_ms = int(value[:12])
        if not data and own is None:
            return None
        return kind if data else b"", b"\n".join(data), own
