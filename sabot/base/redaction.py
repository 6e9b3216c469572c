"""Keeps secrets (passwords, keys, tokens) out of messages, and makes invisible characters in foreign texts `visible`.

Secrets are recognised by the names of settings, in addresses, and in texts. Settings and addresses are shown through
`redacted` and `redacted_url`, which hide too much rather than too little: the text before the last `@` may be a
password that the user forgot to percent-encode. Foreign texts (from a driver, a client library, the user's own
function) may repeat a setting. So code that receives a secret registers it with `keep_secret`, and such texts are
passed through `scrubbed`: every `SabotError`, the reasons in dead letters, and each line and traceback that the
command line prints.

A secret stays registered for the life of the process, or of its owner, however many others are registered. A secret
of three letters, or a common word such as "admin" or "password", is hidden in settings and addresses but not searched
for in texts: hiding such a word everywhere would only reveal which word it is.
"""

import base64
import re
import threading
import weakref
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from difflib import get_close_matches
from functools import cache, lru_cache
from typing import Any
from urllib.parse import quote, quote_plus, unquote

HIDDEN = "***"


def _late(pattern: str, flags: int = 0) -> Callable[[], re.Pattern[str]]:
    """Returns a function that compiles the pattern when it is called first: most programs search no text for secrets, and the
    patterns are long.
    """
    return cache(lambda: re.compile(pattern, flags))


_NAMES = "|".join(
    (
        "password|passwd|passwort|passphrase|passcode|pwd|secret|token|credential|jaas|oauth|bearer|authorization|cookie",
        "private|assertion|signature|pem|api[_-]?key|access[_-]?key|account[_-]?key|user[._-]?info|connection[_-]?string",
        r"(?<![A-Za-z0-9])sig(?![A-Za-z0-9])",
    )
)
_SECRET_NAME = _late(_NAMES, re.IGNORECASE)
_SECRET = _late(rf"{_NAMES}|(?:^|[._-])(?:key|sas|pass|pw|creds?)(?:$|[._-])", re.IGNORECASE)
# A part of a name that resembles one of these is taken for its misspelt form, except the words of `_NO_SECRETS`.
_OFTEN_MISSPELT = ("password", "passphrase", "secret", "token", "credentials", "signature", "authorization", "apikey")
_NO_SECRETS = {"secure", "section", "taken", "broken", "tokens"}
_ALIKE = 0.8
# Names of counts of a model's tokens, which are no secrets if the value is a number.
_COUNT = _late(
    r"(?:max|min|most|num|total|input|output|prompt|completion|cached?|reasoning|thinking|context|pending|reserved)[\w\-]{0,32}tokens"
    r"(?:_(?:hourly|daily|monthly))?"
    r"|tokens[_-](?:used|left|per[_-]\w{1,16})|token[_-](?:count|limit|budget)",
    re.IGNORECASE,
)
# An unknown name of these families is taken for the misspelt name of a secret.
_FAMILIES = ("sasl", "ssl", "oauth")
_IN_FAMILY = _late(rf"(?:^|\.)((?:{'|'.join(_FAMILIES)}).*)")
_HARMLESS = {
    "enable.sasl.oauthbearer.unsecure.jwt",
    "enable.ssl.certificate.verification",
    "sasl.kerberos.min.time.before.relogin",
    "sasl.kerberos.service.name",
    "sasl.mechanism",
    "sasl.mechanisms",
    "sasl.oauthbearer.method",
    "sasl.oauthbearer.scope",
    "sasl.oauthbearer.token.endpoint.url",
    "ssl.ca.certificate.stores",
    "ssl.ca.location",
    "ssl.certificate.location",
    "ssl.cipher.suites",
    "ssl.crl.location",
    "ssl.curves.list",
    "ssl.endpoint.identification.algorithm",
    "ssl.engine.id",
    "ssl.key.location",
    "ssl.keystore.location",
    "ssl.providers",
    "ssl.sigalgs.list",
    "sslcert",
    "sslcertmode",
    "sslcompression",
    "sslcrl",
    "sslcrldir",
    "sslkey",
    "sslmode",
    "sslnegotiation",
    "sslrootcert",
    "sslsni",
}
_CHOICES = {"sasl.mechanism", "sasl.mechanisms", "sasl.oauthbearer.method", "security.protocol", "sslmode"}
_CHOICE = _late(r"[A-Za-z0-9_-]{1,24}")
# Hidden where settings are shown, but not searched for in texts, because many texts contain these values.
_NAMED = {"sasl.username", "sasl.oauthbearer.client.id", "sasl.kerberos.principal"}
_WORDS = frozenset(
    (
        *("admin", "default", "false", "guest", "kafka", "localhost", "none", "null", "pass", "passwd", "password"),
        *("postgres", "root", "sabot", "secret", "test", "token", "true", "user", "username"),
    )
)

_LEAST_NAME = 5  # characters of the shortest part of a name that is taken for a misspelt one
_LEAST = 4  # characters of the shortest secret that is searched for in texts
_WHOLE_WORD = 8  # shorter secrets are found only as whole words
_LET_GO = (
    1024  # forms without an owner that are still searched for, because texts outlive owners; the oldest are forgotten
)
_FEW = 64  # up to this number, forms are searched for one by one
_PIECE = 4  # bytes of a form by which it is found
_WITH_PIECE = 2 * _PIECE - 1  # a form of this many bytes has a whole piece wherever a text is cut
_FIRSTS = 64  # bytes of a form among which its pieces are chosen

# These are linear in the length of a text, because it may quote a payload of an attacker.
_QUOTED = r"'(?:[^'\\]|\\.){0,1024}'|\"(?:[^\"\\]|\\.){0,1024}\""
_PAIR = _late(
    rf"((?:{_NAMES})[\w.\-]{{0,64}})(\s{{0,8}}=\s{{0,8}}(?={_QUOTED})|=)({_QUOTED}|[^\s&;,'\"]+)", re.IGNORECASE
)
# What stands behind the name of such a header, and a token behind `Bearer`: it has a digit, as no ordinary word has.
_BEHIND_NAME = r"['\"]?+\s{0,8}+[:=]\s{0,8}+['\"]?+"
_SCHEME_OF_WHO = r"(?:(?:basic|bearer|token)\s{1,8}+)?+"
_HEADER = _late(
    rf"(\b(?:set-)?cookie{_BEHIND_NAME})(?!\*\*\*)[^\r\n'\"]+"
    rf"|(\b(?:(?:proxy-)?authorization|x-[\w\-]{{0,32}}(?:key|token)){_BEHIND_NAME}{_SCHEME_OF_WHO}"
    r"|\bbearer\s{1,8}+(?=[A-Za-z._~+/=\-]{0,1024}\d))(?!\*\*\*)[^\s'\",]+",
    re.IGNORECASE,
)
_CREDENTIALS = {"authorization", "proxy-authorization", "cookie"}
_LOGIN = _late(r"(?:^|[._-])auth(?:$|[._-])", re.IGNORECASE)
_RANDOM = _late(r"(?=.*\d)(?=.*[A-Za-z])[\w.~+/=\-]{16,}", re.ASCII)
_SHOWN_HEADERS = {"accept", "accept-language", "cache-control", "content-type", "prefer", "user-agent"}
_NUMBER = _late(
    r"(['\"]?)(?:[+-]?(?:\d[\d_]{0,11}(?:\.\d{1,6})?(?:e[+-]?\d{1,3})?|inf|nan)|None|True|False)\1[)\]}>.:]*",
    re.IGNORECASE,
)
_END_OF_NAME = _late(r"[\w.\-]{0,64}$")
_URL_IN_TEXT = _late(r"(://)[^\s/@:'\"]{0,256}:[^\s/@'\"]{1,1024}@")
# Not behind a slash: `key=1` may be a folder of a partition.
_ANY_PAIR = _late(rf"(?<![^?&;,\s])([\w.\-]{{1,128}})(\s{{0,8}}=\s{{0,8}}(?={_QUOTED})|=)({_QUOTED}|[^\s&;,'\"]+)")
_SCHEME = _late(r"[A-Za-z][A-Za-z0-9+.\-:]*")  # jdbc:postgresql too
_REFERENCE = _late(r"\$\{env:[A-Za-z_]\w*\}")
_NAME = _late(r"[A-Za-z0-9_.\-]*")
# Control characters, characters without width, those that turn the direction of text, line and paragraph breaks, surrogates, tags.
_HIDING = (
    r"\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2028-\u202e\u2060-\u206f\u3164"
    r"\ufeff\uffa0\ufff0-\ufffb\ud800-\udfff\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
)
_UNSEEN, _UNSEEN_IN_LINE = _late(f"[{_HIDING}]"), _late(f"[{_HIDING}\\t\\n]")
_PLAIN = (str, int, float, bool, type(None))


class _Known:
    """The secrets of this process, in all the forms in which a text may repeat them (percent-encoded, base64, …).

    To search many forms in one pass, a text is cut into pieces of four bytes, and each piece is looked up in an
    index. The index lists the forms that contain the piece; only these forms are then searched for in the text.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._forms: dict[str, int] = {}  # by form: the number of its owners
        self._let_go: dict[str, None] = {}  # the forms without owners, the oldest first
        self._by_piece: dict[int, tuple[str, ...]] = {}  # the tuples are replaced, never changed
        self._short = 0  # the number of forms that are found only if a text is cut at each byte
        # forms of owners that are gone; the garbage collector may append while the lock is held
        self._gone: deque[frozenset[str]] = deque()

    def all(self) -> frozenset[str]:
        with self._lock:
            return frozenset(self._forms)

    def add(self, forms: frozenset[str], owner: object | None) -> None:
        if not forms:
            return
        with self._lock:
            for form in forms:
                if form not in self._forms:
                    self._enter(form)
                self._let_go.pop(form, None)
                self._forms[form] = self._forms.get(form, 0) + 1
            self._release()
        if owner is not None:
            weakref.finalize(owner, self._gone.append, forms).atexit = False

    def hide(self, text: str) -> str:
        for form in self._in(text):
            text = text.replace(form, HIDDEN) if len(form) >= _WHOLE_WORD else re.sub(_literally(form), HIDDEN, text)
        return text

    def _in(self, text: str) -> list[str]:
        """Returns the forms that the text contains, the longest first."""
        if len(self._forms) <= _FEW:
            found: Iterable[str] = list(self._forms)
        else:
            data, by_piece = text.encode(errors="surrogatepass"), self._by_piece
            starts = range(_PIECE if self._short else 1)
            pieces = set[int]().union(*(by_piece.keys() & _pieces(data, start) for start in starts))
            found = {form for piece in pieces for form in by_piece.get(piece, ())}
        return sorted((form for form in found if form in text), key=len, reverse=True)

    def _enter(self, form: str) -> None:
        data = form.encode(errors="surrogatepass")
        self._short += len(data) < _WITH_PIECE
        firsts = range(0, min(max(1, len(data) - _WITH_PIECE + 1), _FIRSTS), 2 * _PIECE)
        for piece in min((self._found_by(data, each) for each in firsts), key=self._shared):
            self._by_piece[piece] = (*self._by_piece.get(piece, ()), form)

    def _found_by(self, data: bytes, first: int) -> set[int]:
        """Returns the pieces of a form that go into the index. `first`: the byte at which the first piece begins. A
        text may contain the form at any byte, so four consecutive bytes offsets are indexed; a form of fewer than
        seven bytes has its first piece only.
        """
        return {_pieces(data, first + each)[0] for each in range(_PIECE if len(data) >= _WITH_PIECE else 1)}

    def _shared(self, pieces: Iterable[int]) -> int:
        """Returns how many entries of other forms the index has for these pieces. Pieces with few entries are better:
        all keys of one vendor begin with the same pieces.
        """
        return sum(len(self._by_piece.get(piece, ())) for piece in pieces)

    def _release(self) -> None:
        while self._gone:
            for form in self._gone.popleft():
                self._forms[form] -= 1
                if not self._forms[form]:
                    self._let_go[form] = None
        while len(self._let_go) > _LET_GO:
            self._forget(next(iter(self._let_go)))

    def _forget(self, form: str) -> None:
        del self._let_go[form], self._forms[form]
        data = form.encode(errors="surrogatepass")
        self._short -= len(data) < _WITH_PIECE
        for piece in {piece for start in range(_PIECE) for piece in _pieces(data[: _FIRSTS + _WITH_PIECE], start)}:
            left = tuple(each for each in self._by_piece.get(piece, ()) if each != form)
            if left:
                self._by_piece[piece] = left
            else:
                self._by_piece.pop(piece, None)


def _pieces(data: bytes, start: int) -> "memoryview[int]":
    """Returns the bytes from `start` on, cut into pieces of four, each as a number."""
    return memoryview(data)[start : len(data) - (len(data) - start) % _PIECE].cast("I")


_known = _Known()


def keep_secret(*values: object, beside: Iterable[object] = (), owner: object | None = None) -> None:
    """Makes `scrubbed` hide these values from now on. A value that also occurs in `beside`, the settings that may be
    shown, is not hidden.

    `owner`: the object with whose life the registration ends, some time later, or None to hide the values for the
    life of the process.
    """
    shown = {str(each) for each in beside}
    texts = (value.decode(errors="replace") if isinstance(value, bytes) else value for value in values)
    kept = (text for text in texts if isinstance(text, str) and text not in shown)
    _known.add(frozenset(form for each in kept for form in _forms(each)), owner)


def kept_forms() -> frozenset[str]:
    """Returns what `scrubbed` hides: all forms of the registered secrets. A process that shows texts for this one gives them to
    `keep_forms`.
    """
    return _known.all()


def keep_forms(forms: Iterable[str]) -> None:
    """Makes `scrubbed` hide these forms of secrets, which are those of another process, for the life of this one."""
    _known.add(frozenset(forms), None)


def keep_settings(settings: Mapping[str, object], *, owner: object | None = None) -> None:
    """Registers the values that `redacted` hides with `keep_secret`."""
    hidden: list[object] = []
    shown: list[object] = []
    for name, value in settings.items():
        (hidden if _is_secret(name, value) and str(name).lower() not in _NAMED else shown).append(value)
    inside = [pair[3].strip("'\"") for value in hidden if isinstance(value, str) for pair in _secret_pairs(value)]
    keep_secret(*hidden, *inside, beside=shown, owner=owner)
    for value in shown:
        if isinstance(value, str) and _is_address(value):
            keep_url(value, owner=owner)


def keep_headers(headers: Mapping[str, str], *, apart: Collection[str] = (), owner: object | None = None) -> None:
    """Registers the secret values of headers of HTTP with `keep_secret`: by their names, and long random words. `apart`: the
    names of those whose values the program has kept out of its texts.
    """
    keep_settings(headers, owner=owner)
    for name, value in headers.items():
        if name.lower() in _CREDENTIALS:  # of a cookie each part
            parts = [each.partition("=")[2].strip() for each in value.split(";")]
            keep_secret(value, value.rpartition(" ")[2], *parts, owner=owner)
        elif name in apart or _LOGIN().search(name) or _RANDOM().fullmatch(value):
            keep_secret(value, owner=owner)


def keep_url(url: str, *, owner: object | None = None) -> None:
    """Registers the password of an address, and the secret parameters of its query, with `keep_secret`."""
    userinfo, rest = _parts(url.partition("://")[2] or url)
    user, _, password = userinfo.partition(":")
    secrets = [password, *(pair[3].strip("'\"") for pair in _secret_pairs(rest))]
    keep_secret(*secrets, *map(unquote, secrets), beside=[user], owner=owner)


def redacted(settings: Mapping[str, object]) -> dict[str, object]:
    """Returns the settings as messages may show them. The values of secret names are hidden, and so are those of
    unknown names in secret families such as `sasl.`.
    """
    return {setting_name(name): shown_setting(name, value) for name, value in settings.items()}


def shown_setting(name: str, value: object) -> object:
    """Returns the value of a setting as messages, tables and pages may show it, as `redacted` does. A reference to a
    variable of the environment (`${env:NAME}`) stays.
    """
    if isinstance(value, str) and _REFERENCE().fullmatch(value):
        return value
    if _is_secret(name, value) or setting_name(name) != name:
        return HIDDEN
    if isinstance(value, Mapping):
        return redacted(value)
    if isinstance(value, str):
        return scrubbed(redacted_url(value) if _is_address(value) else _without_pairs(value))
    return value if isinstance(value, _PLAIN) else f"<{type(value).__name__}>"


def redacted_url(url: str) -> str:
    """Returns an address as messages may show it: without user, password, and the secret parameters of its query.

    A text that is no well-formed address loses everything before its last `@`.
    """
    scheme, separator, rest = url.partition("://")
    if not separator:
        scheme, rest = "", url
    return scheme + separator + _without_pairs(_parts(rest)[1])


def without_password(url: str) -> str:
    """Returns an address as `redacted_url` does, but with its user, by whom another process can connect whose password is elsewhere."""
    scheme, separator, rest = url.partition("://")
    user = _parts(rest)[0].partition(":")[0] if separator else ""
    plain = redacted_url(url)
    return f"{scheme}{separator}{user}@{plain.removeprefix(scheme + separator)}" if user else plain


def has_password(url: str) -> bool:
    """Returns True if an address has a password in it, or a secret in its query."""
    if not _is_address(url):
        return False
    userinfo, rest = _parts(url.partition("://")[2] or url.partition(":")[2])
    return ":" in userinfo or any(_secret_pairs(rest))


def _is_address(text: str) -> bool:
    """Returns True for `scheme://…`, and for the addresses of JDBC, of which some have no `//` behind the scheme."""
    scheme, separator, _ = text.partition("://")
    if not separator:
        return text[:5].lower() == "jdbc:"
    return _SCHEME().fullmatch(scheme) is not None or text[:5].lower() == "jdbc:"


def setting_name(text: str) -> str:
    """Returns the beginning of `text` that can be the name of a setting: of `sasl.password=…` only the part before
    `=`, because the rest is a value.
    """
    match = _NAME().match(str(text))
    name = match[0] if match is not None else ""
    return name if name == text else f"{name}…"


def scrubbed(text: str) -> str:
    """Returns the text with `***` for registered secrets, for passwords in addresses, and for the values behind
    `password=` and the like, `Authorization:` and other headers with secrets, and `Bearer`.
    """
    text = _known.hide(text)
    if "://" in text:
        text = _URL_IN_TEXT().sub(rf"\1{HIDDEN}@", text)
    if ":" in text or "=" in text or "earer " in text:
        text = _HEADER().sub(rf"\1\2{HIDDEN}", text)
    if "=" in text:
        text = _PAIR().sub(_hide_value, text)
    return text


def scrubbed_values(value: Any) -> Any:
    """Returns a value of JSON with each text in it `scrubbed`. Names of objects stay: a reader looks its values up by them."""
    match value:
        case str():
            return scrubbed(value)
        case dict():
            return {name: scrubbed_values(each) for name, each in value.items()}
        case list():
            return [scrubbed_values(each) for each in value]
    return value


def visible(text: str, *, lines: bool = True) -> str:
    r"""Returns the text with every character escaped (`\\u202e`) that controls a terminal, turns the direction of
    text, or cannot be seen, so that texts of a server, a program or a record cannot imitate other texts. `lines`:
    False also escapes line breaks and tabs.
    """
    if text.isprintable() and text.isascii():
        return text
    return (_UNSEEN if lines else _UNSEEN_IN_LINE)().sub(lambda found: ascii(found[0])[1:-1], text)


def without_secrets(text: str) -> str:
    """Returns the text without registered secrets, and otherwise unchanged, unlike `scrubbed`. It is for values that
    are used, and not only shown.
    """
    return _known.hide(text)


def clean_value(value: Any, *, fields: bool = False) -> Any:
    """Returns a JSON value without registered secrets, wherever they are in it. `fields`: True also hides the values
    of fields with the name of a secret (`api_key`, `access_token`), unless they are numbers, truth values or null.
    """
    if isinstance(value, str):
        return without_secrets(value)
    if isinstance(value, dict):
        return {
            clean_value(name): HIDDEN if fields and holds_secret(name, each) else clean_value(each, fields=fields)
            for name, each in value.items()
        }
    if isinstance(value, list | tuple):
        return [clean_value(each, fields=fields) for each in value]
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return HIDDEN if number and without_secrets(str(value)) != str(value) else value


def holds_secret(name: object, value: object) -> bool:
    """Returns True if the value of a field of a record, or of a header, is secret by its name (`authorization`,
    `api_key`). Numbers, truth values and None are none. Fewer names count than for settings: a field may be a `key`.
    """
    named = isinstance(name, str) and _SECRET_NAME().search(name) is not None
    return named and value is not None and not isinstance(value, bool | int | float)


def clean_cause(error: BaseException) -> BaseException | None:
    """Returns the error, or None if its text or that of one of its causes repeats a secret: `raise … from
    clean_cause(error)`.
    """
    for each in _chain(error):
        text = "\n".join((str(each), repr(each), *getattr(each, "__notes__", ())))
        if scrubbed(text) != text:
            return None
    return error


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    following: BaseException | None = error
    while following is not None and id(following) not in seen:
        seen.add(id(following))
        yield following
        following = following.__cause__ or following.__context__


def _is_secret(name: str, value: object) -> bool:
    """Returns True if the value of setting `name` is secret, by its name. For a setting that takes one of a few short
    words, any other value counts as a secret that was given under the wrong name.
    """
    name = str(name).lower()
    if (inner := _IN_FAMILY().search(name)) is not None and name not in _HARMLESS:
        name = inner[1]
    name = name.removeprefix("key.")  # of SQL: what follows is an option for the keys of records
    if name.startswith(("headers.", "header.")):  # of HTTP, of which each service has its own
        return name.partition(".")[2] not in _SHOWN_HEADERS
    if name in _CHOICES and isinstance(value, str):
        return _CHOICE().fullmatch(value) is None
    if name in _HARMLESS or _is_count(name, value):
        return False
    return name.startswith(_FAMILIES) or _SECRET().search(name) is not None or _is_misspelt(name)


@lru_cache(maxsize=1024)
def _is_misspelt(name: str) -> bool:
    """Returns True if a part of the name resembles a word for a secret: a value that was given under a misspelt name is
    as secret as under the right one.
    """
    parts = [part for part in re.split(r"[._\-]", name[:128]) if part not in _NO_SECRETS and len(part) >= _LEAST_NAME]
    return any(get_close_matches(part, _OFTEN_MISSPELT, 1, _ALIKE) for part in parts)


def _parts(rest: str) -> tuple[str, str]:
    """Splits the text behind `://` into user and password, and the rest. A password may contain any character,
    because people forget to encode it.
    """
    at = rest.rfind("@")
    before = rest[: max(at, 0)]
    authority = re.split(r"[/?#]", before)[0]
    if ":" in before or authority == before:
        return before, rest[at + 1 :]
    end = authority.rfind("@")
    return rest[: max(end, 0)], rest[end + 1 :]


def _pairs(text: str) -> Iterator["re.Match[str]"]:
    """Yields the matches of `password=…` and the like in the text."""
    return (pair for pair in _PAIR().finditer(text) if not _says_count(pair))


def _secret_pairs(text: str) -> Iterator["re.Match[str]"]:
    """Yields the matches of `name=value` in an address whose name is one of a secret, also a misspelt one."""
    return (pair for pair in _ANY_PAIR().finditer(text) if _is_secret(pair[1], pair[3].strip("'\"")))


def _without_pairs(text: str) -> str:
    """Returns an address, or a setting such as `host=h password=p`, with *** for the secrets of `_secret_pairs`."""

    def hide(pair: "re.Match[str]") -> str:
        secret = _is_secret(pair[1], pair[3].strip("'\""))
        return f"{pair[1]}{pair[2]}{HIDDEN}" if secret else pair[0]

    return _PAIR().sub(_hide_value, _ANY_PAIR().sub(hide, text)) if "=" in text else text


def _says_count(pair: "re.Match[str]") -> bool:
    before = _END_OF_NAME().search(pair.string[max(0, pair.start() - 64) : pair.start()])
    return _is_count(f"{before[0] if before is not None else ''}{pair[1]}", pair[3])


def _is_count(name: str, value: object) -> bool:
    """Returns True for a count of tokens, such as `max_tokens=5`."""
    return _COUNT().fullmatch(name.rpartition(".")[2]) is not None and _NUMBER().fullmatch(str(value)) is not None


def _hide_value(pair: "re.Match[str]") -> str:
    if _says_count(pair):
        return pair[0]
    return f"{pair[1]}{pair[2]}{HIDDEN}"


def _forms(value: str) -> Iterator[str]:
    """Yields the forms of a secret: unchanged, percent-encoded or decoded, in base64, and as Python and JSON write
    it. Forms that are too short to differ from an ordinary word are left out.
    """
    plain = unquote(value)
    written = {value, plain, repr(value)[1:-1]}
    for each in (value, plain):
        data = each.encode(errors="surrogatepass")  # bytes of the environment need not be UTF-8
        written |= {quote(data, safe=""), quote_plus(data), base64.b64encode(data).decode()}
    yield from sorted(form for form in written if len(form) >= _LEAST and form.lower() not in _WORDS)


def _literally(form: str) -> str:
    if len(form) >= _WHOLE_WORD:
        return re.escape(form)
    return rf"(?<!\w){re.escape(form)}(?!\w)"
