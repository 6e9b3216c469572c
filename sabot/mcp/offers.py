"""The tools that a server offers, with descriptions that are safe to show to models. Servers are not trusted, and their
descriptions go into the prompts of models.

Invisible characters are removed from a description, and a long description is cut. A tool whose schema is too large or
invalid is left out. The digest of a tool is computed from what the server wrote about it. So a tool that is
changed after a user has approved it has another digest.
"""

import asyncio
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import msgspec

from sabot.engine.calls.effects import EffectClass
from sabot.engine.calls.json_schema import mismatch
from sabot.engine.calls.model_requests import JsonSchema
from sabot.engine.calls.schema import Mismatch
from sabot.errors import UserError, message_of

_MOST_SCHEMA_BYTES = 200_000
_MOST_NAME = 64  # the longest name in characters that all vendors accept
_DIGITS = 8  # digits of the hash that tells two names apart
_MOST_DIGITS = 56
_NO_NAME = re.compile(r"[^a-zA-Z0-9_-]")
# categories: control, format (zero width, direction, tags), surrogate, private, unassigned
_UNSEEN = {"Cc", "Cf", "Cs", "Co", "Cn"}
_KEPT = {"\n", "\t"}
_PROSE = ("description", "title", "$comment")  # the fields of a schema that are prose
_DEEPEST = 60
_MALFORMED = (AttributeError, TypeError, ValueError, KeyError)  # errors of `mismatch` with a malformed schema
_PIECE = 50  # tools that are handled before the event loop gets a turn: some milliseconds


@dataclass(frozen=True, slots=True)
class Offer:
    """A server's tool in the form in which agents get it.

    - `name`: the server's name for the tool. `shown`: the name for models, in which characters that vendors do not
      accept are replaced by "_".
    - `description`: the server's description, without invisible characters and cut to a greatest length.
    - `schema`: the JSON schema of the arguments. `output`: the JSON schema of the result, or None.
    - `digest`: a hash of the server's own name, title, description, schemas and hints of the tool.
    - `read_only`, `idempotent`, `open_world`: the server's hints about the effect of the tool; None if the server did
      not give the hint.
    """

    name: str
    shown: str
    description: str
    schema: JsonSchema
    output: JsonSchema | None
    digest: str
    read_only: bool | None = None
    idempotent: bool | None = None
    open_world: bool | None = None

    @property
    def proposed(self) -> EffectClass:
        """The effect class that follows from the server's hints.

        For a server's tool, "idempotent" means that a second call with the same arguments changes nothing more. (It
        does not mean that the server recognizes a repeated call by a key, because MCP sends no such key.)
        """
        if self.read_only:
            return EffectClass.READ
        return EffectClass.IDEMPOTENT if self.idempotent else EffectClass.UNSAFE

    @property
    def by_hints(self) -> str:
        """The effect class that follows from the server's hints, and "open" or "closed" for the world that the tool
        reaches, as a text that can be compared.
        """
        return f"{self.proposed} {'closed' if self.open_world is False else 'open'}"


def offer_of(item: Any, most_chars: int, *, modern: bool = True) -> Offer | str:
    """Converts one entry of a server's list of tools into an Offer. Returns the reason as a text instead if agents
    cannot get the tool.

    `item`: the entry, as the server has sent it. `most_chars`: the most characters of a description; the rest is cut
    off. `modern`: True for versions of the protocol since 2026-07-28, in which a structured result may be any value.
    """
    from sabot.mcp.wire import told_tool  # imported late: it needs the SDK, which is optional

    told = told_tool(item)
    if isinstance(told, str):
        return told
    name = told["name"]
    if not name or clean(name, 200) != name:
        return f"its name {clean(repr(name), 100)} is empty, too long, or has characters that nobody sees"
    written = {
        key: told.get(key) for key in ("name", "title", "description", "inputSchema", "outputSchema", "annotations")
    }
    try:
        packed = msgspec.json.encode(written, order="deterministic")
    except (UnicodeEncodeError, ValueError, OverflowError, RecursionError) as error:
        return f"it cannot be written as JSON: {message_of(error)}"
    schema, output = told["inputSchema"], told.get("outputSchema")
    # Servers in Go write an empty list as null.
    schema = {key: each for key, each in schema.items() if each is not None or key not in ("properties", "required")}
    if len(packed) > _MOST_SCHEMA_BYTES + len(str(told.get("description"))):
        return f"its schema has more than {_MOST_SCHEMA_BYTES:,} bytes"
    if wrong := _wrong_with(schema):
        return f"its schema cannot be used: {wrong}"
    if output is not None and (wrong := _wrong_with(output, of_object=not modern)):
        return f"its output schema cannot be used: {wrong}"
    hints = told.get("annotations") or {}
    return Offer(
        name,
        _NO_NAME.sub("_", name)[:_MOST_NAME],
        clean(told.get("description") or told.get("title") or "", most_chars),
        {"properties": {}, **_cleaned(schema, most_chars)},
        output,
        sha256(packed).hexdigest(),
        hints.get("readOnlyHint"),
        hints.get("idempotentHint"),
        hints.get("openWorldHint"),
    )


def names_of(offers: Collection[Offer], prefix: str) -> dict[str, str]:
    """Returns the name of each tool for models, by the server's name for it. `prefix`: a text before each name.

    If names become equal ("files.read" and "files_read", or two with the same first 64 characters), each of them ends
    with a hash of the server's name. None keeps the name that was equal: a server that offers another tool later could
    otherwise make the rules, the approvals and the recorded calls of one tool those of another one. So the names do not
    depend on the order of the list, and are the same at each start.
    """
    plain = {each.name: f"{prefix}{each.shown}"[:_MOST_NAME] for each in offers}
    shown, digits = dict(plain), dict.fromkeys(plain, 0)
    while equal := [name for name, often in Counter(shown.values()).items() if often > 1]:
        for name in [name for name, each in shown.items() if each in equal]:
            digits[name] = min(digits[name] + _DIGITS, _MOST_DIGITS)
            digest = sha256(name.encode()).hexdigest()[: digits[name]]
            shown[name] = f"{plain[name][: _MOST_NAME - len(digest) - 1]}_{digest}"
    return shown


def other_names_of(offer: Offer, prefix: str, name: str) -> tuple[str, ...]:
    """Returns the names that a rule may have for a tool, although models know it by another one: the server's, and the
    name that it would have alone. `name`: the name for models.
    """
    found = (offer.name, offer.shown, f"{prefix}{offer.name}", f"{prefix}{offer.shown}"[:_MOST_NAME])
    return tuple(each for each in dict.fromkeys(found) if each != name)


async def offers_of(
    listed: Sequence[Any], most_chars: int, *, modern: bool = True
) -> tuple[dict[str, Offer], dict[str, str]]:
    """Converts a server's list of tools. Returns two dicts by the name of the tool: the tools that agents can get, and
    for each of the others the reason why they cannot get it. An entry without a name is called "#3" there, by its
    number in the list.

    `listed`: the list of the server, whose entries nobody has checked. `most_chars`, `modern`: as in `offer_of`.
    """
    offers: dict[str, Offer] = {}
    left_out: dict[str, str] = {}
    for number, told in enumerate(listed):
        if number % _PIECE == _PIECE - 1:
            await asyncio.sleep(0)
        offer = offer_of(told, most_chars, modern=modern)
        given = told.get("name") if isinstance(told, Mapping) else None
        name = given[:100] if isinstance(given, str) else f"#{number + 1}"
        if isinstance(offer, Offer) and name not in offers:
            offers[offer.name] = offer
        else:
            left_out[name] = offer if isinstance(offer, str) else "its name is offered twice"
    return offers, left_out


def clean(text: str, most: int) -> str:
    """Returns the text without invisible characters, cut to `most` characters. A cut text ends with the number of
    characters that were left out.
    """
    kept = "".join(each for each in text[: 4 * most] if each in _KEPT or unicodedata.category(each) not in _UNSEEN)
    left = len(text) - most
    return kept if len(kept) <= most and len(text) <= 4 * most else f"{kept[:most]}… ({left:,} characters left out)"


def _wrong_with(schema: JsonSchema, *, of_object: bool = True) -> str:
    """Returns the reason why this schema cannot be used to check arguments, or "" if it can. `of_object`: True if the
    values have to be objects.
    """
    if of_object and schema.get("type") != "object":
        return 'it is not of an object ("type": "object")'
    if _depth(schema) > _DEEPEST:
        return f"it is nested more than {_DEEPEST} deep"
    properties, required = schema.get("properties", {}), schema.get("required", [])
    if not isinstance(properties, dict):
        return "its properties are no object"
    if not isinstance(required, list) or not all(isinstance(each, str) for each in required):
        return "required is no list of names"
    try:
        mismatch({}, schema)
        mismatch({name: None for name in properties}, schema)
    except UserError as error:
        return error.message
    except _MALFORMED as error:
        return f"{type(error).__name__}: {message_of(error)}"
    return ""


def mismatch_with(value: Any, schema: JsonSchema) -> str:
    """Returns the first error of the value, or "" if the value matches the schema. The schema comes from a server. If
    the check reaches a part of the schema that is malformed, the returned text says that the schema cannot be used.
    `offer_of` cannot find such a part in advance if only some values lead to it.
    """
    try:
        return mismatch(value, schema)
    except (UserError, *_MALFORMED) as error:
        return f"the server's schema cannot be used: {message_of(error)}"


def _depth(value: Any) -> int:
    level, depth = [value], 0
    while level and depth <= _DEEPEST:
        level = [
            inner
            for each in level
            for inner in (each.values() if isinstance(each, dict) else each if isinstance(each, list) else ())
        ]
        depth += 1
    return depth


def _cleaned(schema: Any, most: int) -> Any:
    """Returns a copy of the schema in which each title, description and comment has no invisible characters and at most
    `most` characters. All other values of the schema are unchanged.
    """
    if isinstance(schema, list):
        return [_cleaned(each, most) for each in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        name: clean(each, most) if name in _PROSE and isinstance(each, str) else _cleaned(each, most)
        for name, each in schema.items()
    }


class OfferedArguments:
    """The schema of the arguments of an offered tool. It decodes and checks the arguments of a call. `output`: the
    schema of the structured result, or None. `server`: the name of the server in its pool.
    """

    def __init__(
        self, name: str, description: str, schema: JsonSchema, output: JsonSchema | None = None, server: str = ""
    ) -> None:
        self.name = name
        self.description = description
        self.json = schema
        self.output = output
        self.server = server

    def decode(self, text: str) -> dict[str, Any]:
        """Decodes the JSON that a model wrote, and returns the arguments by name. Raises Mismatch if the text is no
        JSON object, or does not match the schema.
        """
        try:
            found = msgspec.json.decode(text or "{}")
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise Mismatch(f"it is no JSON: {error}") from error
        if not isinstance(found, dict):
            raise Mismatch("it is no JSON object")
        self.check(found)
        return found

    def check(self, arguments: Mapping[str, Any]) -> None:
        """Raises Mismatch if the arguments do not match the schema."""
        if wrong := mismatch_with(dict(arguments), self.json):
            raise Mismatch(wrong)
