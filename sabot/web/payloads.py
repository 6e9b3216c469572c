"""The values of rows, questions, arguments and answers that pages may show.

A mode and names decide: `--web-payloads none|scrubbed|all` and `--web-show NAME`. Values of other fields never leave the server.
Known secrets are hidden in every mode; personal data is not known, so it is shown in fields that were named.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

from sabot.base.redaction import clean_value, scrubbed, visible

PayloadMode: TypeAlias = Literal["none", "scrubbed", "all"]
"""none: no values. scrubbed: values of the named fields. all: values of all fields."""

PAYLOAD_MODES: tuple[PayloadMode, ...] = get_args(PayloadMode)
MOST_CHARS = 2_000
"""The characters of a field that a page shows, if it names no other number."""

_MOST_FIELDS = 50  # of a value
_MOST_UNBROKEN = 64  # characters of a word on a page
_HIDDEN = object()


@dataclass(frozen=True)
class ShownPayload:
    """The part of a value that a page may show. `fields`: pairs of a name and a text; a value without fields has the name "". `hidden`:
    the number of values that are left out because no option names them. `more`: the number of fields that are too many for a page.
    `cut`: True if a text of a field is only the beginning of it, and says how much is left out.
    """

    fields: Sequence[tuple[str, str]] = ()
    hidden: int = 0
    more: int = 0
    cut: bool = False

    @property
    def text(self) -> str:
        """The text in which a search looks: a line name=value for each field."""
        return "\n".join(f"{name}={text}" for name, text in self.fields)


@dataclass(frozen=True)
class Payloads:
    """Decides which values pages may show. `names`: of columns and fields, and of tools, whose arguments and answers are then whole."""

    mode: PayloadMode = "scrubbed"
    names: frozenset[str] = frozenset()

    def shows(self, name: str) -> bool:
        """Returns True if values under this name may be shown."""
        return self.mode == "all" or (self.mode == "scrubbed" and name in self.names)

    @property
    def shows_any(self) -> bool:
        """True if some values may be shown."""
        return self.mode == "all" or (self.mode == "scrubbed" and bool(self.names))

    def shown(self, value: Any, name: str = "", *, most: int = MOST_CHARS) -> ShownPayload:
        """Returns the part of a value, which JSON can say, that may be shown. `name`: the column or the tool that the value is of. `most`:
        the characters of a field after which it is cut.
        """
        kept, hidden = (value, 0) if self.shows(name) else self._visible(value)
        if kept is _HIDDEN:
            return ShownPayload(hidden=hidden)
        pairs = [*kept.items()] if isinstance(kept, Mapping) else [("", kept)]
        clean = [(str(each), _clean(_written(found))) for each, found in pairs[:_MOST_FIELDS]]
        fields = [(_text(name), _cut(text, most)) for name, text in clean]
        cut = any(len(text) > most for _, text in clean)
        return ShownPayload(fields, hidden, max(0, len(pairs) - _MOST_FIELDS), cut)

    def cell(self, value: Any, name: str) -> str:
        """Returns the value of a column or a field as text, "" if it may not be shown."""
        return _text(_written(value)) if self.shows(name) else ""

    def _visible(self, value: Any) -> tuple[Any, int]:
        """Returns the fields of a value that may be shown, or _HIDDEN if there are none, and the number of values that are left out."""
        if isinstance(value, Mapping):
            found = {name: (each, 0) if self.shows(str(name)) else self._visible(each) for name, each in value.items()}
            kept = {name: each for name, (each, _) in found.items() if each is not _HIDDEN}
            return kept or _HIDDEN, sum(hidden for _, hidden in found.values())
        if isinstance(value, list | tuple):
            parts = [self._visible(each) for each in value]
            items = [each for each, _ in parts if each is not _HIDDEN]
            return items or _HIDDEN, sum(hidden for _, hidden in parts)
        return _HIDDEN, 1


def _written(value: Any) -> str:
    return (
        value
        if isinstance(value, str)
        else json.dumps(clean_value(value, fields=True), ensure_ascii=False, default=str)
    )


def _clean(text: str) -> str:
    return visible(scrubbed(text))


def _text(text: str) -> str:
    """Returns a text without known secrets, cut to a length for a page."""
    return _cut(_clean(text), MOST_CHARS)


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[:most]}… ({len(text) - most:,} more characters)"


def shortened(text: str) -> str:
    """Returns a long text without a space, such as that of binary data, as its beginning and its length; another text as it is."""
    if len(text) <= _MOST_UNBROKEN or any(each.isspace() for each in text[:_MOST_UNBROKEN]):
        return text
    return f"{text[: _MOST_UNBROKEN // 2]}… ({len(text):,} characters)"
