"""What belongs in no message: passwords, keys, tokens. The one place that knows them, by the names of settings, in addresses, in texts.

Three uses. What we show of settings and of addresses goes through `redacted` and `redacted_url`, which rather hide too much: what
stands before the last `@` may be a password that somebody forgot to percent-encode. What others say (a driver, a client library, the
user's own function) may repeat a setting, so whoever takes secrets in names them to `keep_secret`, and texts go through `scrubbed`:
every `SabotError` does, what goes into dead letters does, and each line and traceback that the command line prints.

The secrets are kept per process, as they are in the settings themselves. A word of three letters, or one such as "admin" or
"password", is hidden in settings and addresses but not looked for in texts: that would only say which word it is.
"""

import base64
import re
import threading
from collections.abc import Iterable, Iterator, Mapping
from urllib.parse import quote, quote_plus, unquote

__all__ = [
    "HIDDEN",
    "clean_cause",
    "has_password",
    "keep_secret",
    "keep_settings",
    "keep_url",
    "redacted",
    "redacted_url",
    "scrubbed",
    "setting_name",
]

HIDDEN = "***"

_NAMES = "|".join(
    (
        "password|passwd|passphrase|pwd|secret|token|credential|jaas|oauth|bearer",
        "private|assertion|signature|pem|api[_-]?key|access[_-]?key|account[_-]?key",
    )
)
_SECRET = re.compile(rf"{_NAMES}|(?:^|[._-])key(?:$|[._-])|(?:^|[._-])sas(?:$|[._-])", re.IGNORECASE)
# Of these families a name that is not known is taken for a misspelt one of a secret.
_FAMILIES = ("sasl", "ssl", "oauth")
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
_CHOICE = re.compile(r"[A-Za-z0-9_-]{1,24}")
# Hidden where settings are shown, and yet no secret to look for in texts: it stands in many.
_NAMED = {"sasl.username", "sasl.oauthbearer.client.id", "sasl.kerberos.principal"}
_WORDS = frozenset(
    (
        *("admin", "default", "false", "guest", "kafka", "localhost", "none", "null", "pass", "passwd", "password"),
        *("postgres", "root", "sabot", "secret", "test", "token", "true", "user", "username"),
    )
)

_LEAST = 4  # characters, of what is looked for in texts
_WHOLE_WORD = 8  # shorter ones only as whole words
_MOST = 1024  # forms that are looked for; the oldest go

# Linear in the length of a text: it may quote a payload of somebody who wishes us ill.
_QUOTED = r"'(?:[^'\\]|\\.){0,1024}'|\"(?:[^\"\\]|\\.){0,1024}\""
_PAIR = re.compile(
    rf"((?:{_NAMES})[\w.\-]{{0,64}})(\s{{0,8}}=\s{{0,8}}(?={_QUOTED})|=)({_QUOTED}|[^\s&;,'\"]+)", re.IGNORECASE
)
_URL_IN_TEXT = re.compile(r"(://)[^\s/@:'\"]{0,256}:[^\s/@'\"]{1,1024}@")
_NAME = re.compile(r"[A-Za-z0-9_.\-]*")
_PLAIN = (str, int, float, bool, type(None))


class _Known:
    """Secrets of this process, in all the forms that they may come back in."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._forms: dict[str, re.Pattern[str]] = {}  # the oldest first
        self._longest_first: list[tuple[str, re.Pattern[str]]] = []  # replaced, never changed

    def add(self, values: Iterable[str]) -> None:
        with self._lock:
            new = [form for value in values for form in _forms(value) if form not in self._forms]
            self._forms |= {form: re.compile(_literally(form)) for form in new}
            while len(self._forms) > _MOST:
                del self._forms[next(iter(self._forms))]
            if new:
                self._longest_first = sorted(self._forms.items(), key=lambda entry: -len(entry[0]))

    def hide(self, text: str) -> str:
        for form, pattern in self._longest_first:
            if form in text:
                text = pattern.sub(HIDDEN, text)
        return text


_known = _Known()


def keep_secret(*values: object, beside: Iterable[object] = ()) -> None:
    """From now on `scrubbed` hides these. beside: what may be shown; a secret that is equal to one of them is not looked for."""
    shown = {str(each) for each in beside}
    texts = (value.decode(errors="replace") if isinstance(value, bytes) else value for value in values)
    _known.add(text for text in texts if isinstance(text, str) and text not in shown)


def keep_settings(settings: Mapping[str, object]) -> None:
    """`keep_secret` of the values that `redacted` hides."""
    hidden: list[object] = []
    shown: list[object] = []
    for name, value in settings.items():
        (hidden if _is_secret(name, value) and str(name).lower() not in _NAMED else shown).append(value)
    inside = [pair[3].strip("'\"") for value in hidden if isinstance(value, str) for pair in _PAIR.finditer(value)]
    keep_secret(*hidden, *inside, beside=shown)
    for value in shown:
        if isinstance(value, str) and "://" in value:
            keep_url(value)


def keep_url(url: str) -> None:
    """`keep_secret` of the password in it, and of what its query has under secret names."""
    userinfo, rest = _parts(url.partition("://")[2] or url)
    user, _, password = userinfo.partition(":")
    secrets = [password, *(pair[3].strip("'\"") for pair in _PAIR.finditer(rest))]
    keep_secret(*secrets, *map(unquote, secrets), beside=[user])


def redacted(settings: Mapping[str, object]) -> dict[str, object]:
    """The settings as they may be shown: without the values of secret names, and of those whose name nobody knows."""
    return {setting_name(name): _shown(name, value) for name, value in settings.items()}


def _shown(name: str, value: object) -> object:
    if _is_secret(name, value) or setting_name(name) != name:
        return HIDDEN
    if isinstance(value, Mapping):
        return redacted(value)
    if isinstance(value, str):
        return scrubbed(redacted_url(value) if "://" in value else value)
    return value if isinstance(value, _PLAIN) else f"<{type(value).__name__}>"


def redacted_url(url: str) -> str:
    """An address as it may be shown: nothing of who calls, and nothing that its query has under secret names.

    Where it is not written as addresses are, too much is hidden rather than too little: all before the last `@`.
    """
    scheme, separator, rest = url.partition("://")
    if not separator:
        scheme, rest = "", url
    return scheme + separator + _PAIR.sub(_hide_value, _parts(rest)[1])


def has_password(url: str) -> bool:
    """An address with a password in it, or with a secret in its query."""
    scheme, separator, rest = url.partition("://")
    if not separator or not re.fullmatch(r"[A-Za-z][A-Za-z0-9+.\-]*", scheme):
        return False
    userinfo, rest = _parts(rest)
    return ":" in userinfo or _PAIR.search(rest) is not None


def setting_name(text: str) -> str:
    """As much of a setting's name as can be one: `sasl.password=…` has lost its way, and what follows is no name."""
    match = _NAME.match(str(text))
    name = match[0] if match is not None else ""
    return name if name == text else f"{name}…"


def scrubbed(text: str) -> str:
    """A text of anybody's without the secrets that are known, without passwords in addresses and after `password=`."""
    text = _known.hide(text)
    if "://" in text:
        text = _URL_IN_TEXT.sub(rf"\1{HIDDEN}@", text)
    if "=" in text:
        text = _PAIR.sub(_hide_value, text)
    return text


def clean_cause(error: BaseException) -> BaseException | None:
    """For `raise … from clean_cause(error)`: another's error, or nothing where it, or what it came of, repeats a secret."""
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
    """By its name; and a value that is none of the few short words that some settings take has come to the wrong name."""
    name = str(name).lower()
    if name in _CHOICES and isinstance(value, str):
        return _CHOICE.fullmatch(value) is None
    if name in _HARMLESS:
        return False
    return name.startswith(_FAMILIES) or _SECRET.search(name) is not None


def _parts(rest: str) -> tuple[str, str]:
    """What follows `://` -> who calls, and the rest. A password may have any character, as people write them."""
    at = rest.rfind("@")
    before = rest[: max(at, 0)]
    authority = re.split(r"[/?#]", before)[0]
    if ":" in before or authority == before:
        return before, rest[at + 1 :]
    end = authority.rfind("@")
    return rest[: max(end, 0)], rest[end + 1 :]


def _hide_value(pair: "re.Match[str]") -> str:
    return f"{pair[1]}{pair[2]}{HIDDEN}"


def _forms(value: str) -> Iterator[str]:
    """As it is, percent-encoded or decoded, in base64, as Python and JSON write it: what is long enough to be told from a word."""
    plain = unquote(value)
    written = {value, plain, repr(value)[1:-1]}
    for each in (value, plain):
        data = each.encode(errors="surrogatepass")  # an environment's bytes may be no UTF-8
        written |= {quote(data, safe=""), quote_plus(data), base64.b64encode(data).decode()}
    yield from sorted(form for form in written if len(form) >= _LEAST and form.lower() not in _WORDS)


def _literally(form: str) -> str:
    if len(form) >= _WHOLE_WORD:
        return re.escape(form)
    return rf"(?<!\w){re.escape(form)}(?!\w)"
