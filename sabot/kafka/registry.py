"""The schema registry, through confluent-kafka's client. Each request is bounded in time, and each schema is fetched
once.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit, urlunsplit

from sabot.base.config import Duration, parse_seconds
from sabot.base.redaction import clean_cause, keep_secret, keep_settings, keep_url, redacted_url
from sabot.clock import SYSTEM_CLOCK
from sabot.codecs.avro import with_references
from sabot.codecs.schemas import Reference
from sabot.errors import MissingExtra, RegistryUnavailable, UnknownSchema, UserError

_SCHEMAS = 10_000  # the most schemas that are kept by id
_UNKNOWN = (
    200  # the most unknown ids that are kept; while there are so many, other ids count as unknown without a request
)
_REFERENCES = 200  # the most schemas to which a schema may refer, directly or through others
_UNKNOWN_SECONDS = 60.0  # the time after which an unknown id is requested again
# errors that asking again does not mend
_OURS = (TypeError, AttributeError, LookupError, ArithmeticError, NotImplementedError)

T = TypeVar("T")


class _Missing(UserError):
    """The registry does not have the schema or the subject."""


class _Unusable(UserError):
    """A schema of the registry cannot be read."""


class _NoRegistry(Exception):
    """An answer that does not come from a schema registry, but for example from a proxy, or from a maintenance page."""


class Registry:
    """A schema registry with Confluent's API: `Avro(registry=Registry("http://localhost:8081"))`.

    `url`: one address, or several with commas between them, which are tried in turn. `auth`: user and password.
    `settings`: settings of the client of confluent-kafka, such as {"ssl.ca.location": …, "ssl.certificate.location":
    …, "ssl.key.location": …}. `timeout`: the time for one request.

    A schema is fetched once, and kept by its id. An unknown id is tried again after a minute; while 200 ids are
    unknown, others count as unknown too. One object may serve all formats of a program, and may be used from any
    thread. Needs the extra `sabot[registry]`.
    """

    def __init__(
        self,
        url: str,
        *,
        auth: tuple[str, str] | None = None,
        settings: Mapping[str, Any] | None = None,
        timeout: Duration = "5s",
    ) -> None:
        if not isinstance(url, str) or not url.startswith(("http://", "https://")):
            raise UserError(f"Registry({url!r:.60})", hint='its address: "http://localhost:8081"')
        if auth is not None and not (
            isinstance(auth, tuple) and len(auth) == 2 and all(isinstance(each, str) for each in auth)
        ):
            raise UserError("Registry: auth is not a user and a password", hint='auth=("user", secret("registry"))')
        if settings is not None and not isinstance(settings, Mapping):
            raise UserError(f"Registry: settings is a {type(settings).__name__}", hint='{"ssl.ca.location": "ca.pem"}')
        own = dict(settings or {})
        keep_url(url, owner=self)
        keep_settings(own, owner=self)
        # The client's HTTP library logs addresses, with user and password in them.
        parts = [urlsplit(each.strip()) for each in url.split(",")]
        told = next(
            ((unquote(each.username), unquote(each.password)) for each in parts if each.username and each.password),
            None,
        )
        url = ",".join(urlunsplit((each.scheme, each.netloc.rpartition("@")[2], *each[2:])) for each in parts)
        self.address = redacted_url(url)
        if (auth := auth or told) is not None:
            keep_secret(auth[1], ":".join(auth), owner=self)
            own["basic.auth.user.info"] = ":".join(auth)
        # The runtime asks again, without blocking a thread for long.
        own |= {"url": url, "timeout": parse_seconds(timeout, name="Registry: timeout", zero=False), "max.retries": 0}
        self._settings = own
        self._lock = threading.Lock()
        self._made: Any = None
        self._known: dict[
            int, tuple[str, str] | str
        ] = {}  # by id: the kind and text of a schema, or the reason why it cannot be used
        self._unknown: dict[
            int, tuple[float, str]
        ] = {}  # by id: the time until which it counts as unknown, and the reason

    def __repr__(self) -> str:
        return f"Registry({self.address!r})"

    def schema_of(self, id: int, kind: str) -> str:
        """Returns the text of the schema with this id (`SchemaRegistry.schema_of`)."""
        found = self._known.get(id)
        if found is None:
            found = self._fetched(id)
        if isinstance(found, str):
            raise UnknownSchema(id, found)
        if found[0] != kind:
            raise UnknownSchema(id, f"it is a schema of {found[0]}, and not of {kind}")
        return found[1]

    def latest(self, subject: str, kind: str) -> tuple[int, str]:
        """Returns the id and the text of the newest schema of a subject (`SchemaRegistry.latest`)."""

        def ask(client: Any) -> Any:
            client.clear_latest_caches()
            found = client.get_latest_version(subject)
            return _of_type(int, found.schema_id), _usable(found.schema)

        id, schema = self._asked(ask, f", subject {subject!r}")
        if (other := schema.schema_type or "AVRO") != kind:
            raise UserError(
                f"subject {subject!r} of {self.address} has schemas of {other}, and not of {kind}",
                hint="another format, or subject=",
            )
        return id, self._whole(schema)

    def register(self, subject: str, text: str, kind: str, references: Sequence[Reference] = ()) -> int:
        """Registers a schema under a subject, and returns its id (`SchemaRegistry.register`)."""

        def ask(client: Any, schema: Any) -> int:
            return _of_type(int, client.register_schema(subject, schema))

        return self._id(ask, subject, text, kind, references)

    def refer(self, name: str, text: str, kind: str, references: Sequence[Reference] = ()) -> Reference:
        """Registers a schema that others refer to by `name` (`SchemaRegistry.refer`)."""

        def ask(client: Any, schema: Any) -> int:
            client.register_schema(name, schema)
            return _of_type(int, client.lookup_schema(name, schema).version)

        return Reference(name, name, self._id(ask, name, text, kind, references))

    def lookup(self, subject: str, text: str, kind: str) -> int:
        """Returns the id of a schema that is registered already (`SchemaRegistry.lookup`)."""

        def ask(client: Any, schema: Any) -> int:
            return _of_type(int, client.lookup_schema(subject, schema).schema_id)

        return self._id(ask, subject, text, kind)

    def _id(
        self,
        ask: Callable[[Any, Any], int],
        subject: str,
        text: str,
        kind: str,
        references: Sequence[Reference] = (),
    ) -> int:
        self._client()  # says what to install
        from confluent_kafka.schema_registry import Schema, SchemaReference

        others = [SchemaReference(each.name, each.subject, each.version) for each in references]
        return self._asked(lambda client: ask(client, Schema(text, kind, others)), f", subject {subject!r}")

    def _whole(self, schema: Any) -> str:
        """Returns the text of a schema. An Avro schema gets the types of the schemas that it refers to put in their
        places. Raises _Unusable if that cannot be done, and errors like `_asked`.
        """
        text: str = schema.schema_str
        if not schema.references or (schema.schema_type or "AVRO") != "AVRO":
            return text
        others: dict[tuple[str, int], str] = {}
        left = list(schema.references)
        while left:
            each = left.pop()
            if (each.subject, each.version) in others:
                continue
            if len(others) == _REFERENCES:
                raise _Unusable(f"it refers to more than {_REFERENCES} other schemas")
            ask = partial(_version, each.subject, each.version)
            try:
                found = self._asked(ask, f", subject {each.subject!r}")
            except _Missing as error:
                raise _Missing(
                    f"it refers to {each.name!r}, version {each.version} of subject {each.subject!r}: {error.message}",
                    hint="register that version, or the schema anew with the references that there are",
                ) from error
            others[each.subject, each.version] = found.schema_str
            left += found.references or ()
        try:
            return with_references(text, others.values())
        except UserError as error:
            raise _Unusable(error.message) from error

    def _fetched(self, id: int) -> tuple[str, str] | str:
        """Fetches a schema and keeps the result. Returns its type, such as "AVRO", and its text; or, for a schema
        that cannot be used, the reason. Raises UnknownSchema if the registry lacks it, and errors like `_asked`.
        """
        now = SYSTEM_CLOCK.monotonic()
        with self._lock:
            while self._unknown and (oldest := next(iter(self._unknown.items())))[1][0] <= now:
                del self._unknown[oldest[0]]
            if id in self._unknown:
                raise UnknownSchema(id, self._unknown[id][1])
            if len(self._unknown) >= _UNKNOWN:
                raise UnknownSchema(id, f"{_UNKNOWN} ids were unknown within a minute, so this id is not looked up")
        found: tuple[str, str] | str
        try:
            schema = self._asked(lambda client: _usable(client.get_schema(id)))
            found = (schema.schema_type or "AVRO", self._whole(schema))
        except _Unusable as error:
            found = error.message
        except _Missing as error:
            with self._lock:
                self._unknown.pop(id, None)  # moves the id to the end, as the newest
                self._unknown[id] = (now + _UNKNOWN_SECONDS, error.message)
            raise UnknownSchema(id, error.message) from error
        with self._lock:
            if len(self._known) >= _SCHEMAS:
                self._known.clear()
            self._known[id] = found
        return found

    def _asked(self, ask: Callable[[Any], T], what: str = "") -> T:
        """Returns the client's answer. Raises UserError if the registry refuses or lacks it, and RegistryUnavailable
        without an answer.
        """
        client = self._client()
        from confluent_kafka.schema_registry.error import SchemaRegistryError

        try:
            return ask(client)
        except SchemaRegistryError as error:
            status, said = error.http_status_code, f"{error.error_message!s:.300}"  # a proxy answers with a whole page
            where, cause = f"the schema registry {self.address}{what}", clean_cause(error)
            if status in (401, 403):
                raise UserError(f"{where}: it refuses access: {said}", hint="auth=") from cause
            if status in (408, 429) or status >= 500:
                raise RegistryUnavailable(f"{where} does not answer: {status} {said}") from cause
            if not _is_code(error.error_code):
                raise RegistryUnavailable(f"{where}: this is no answer of a registry: {status} {said}") from cause
            if status == 404:
                raise _Missing(
                    f"{where}: {said}", hint="let its producer register it, or give the format schema="
                ) from cause
            hint = (
                "the subject's compatibility rule refuses the schema: change the rule or the schema"
                if status == 409
                else ""
            )
            raise UserError(f"{where}: {said}", hint=hint) from cause
        except _NoRegistry as error:
            with self._lock:
                self._made = None  # the client, which keeps answers
            raise RegistryUnavailable(
                f"the schema registry {self.address}{what}: this is no answer of a registry: {error}"
            ) from None
        except _OURS:
            raise
        except Exception as error:  # an error class of the client's HTTP library, which this module does not import
            raise RegistryUnavailable(
                f"the schema registry {self.address} does not answer: {type(error).__name__}: {error}"
            ) from clean_cause(error)

    def _client(self) -> Any:
        with self._lock:
            if self._made is None:
                try:
                    from confluent_kafka.schema_registry import SchemaRegistryClient
                except ImportError as error:
                    raise MissingExtra("Registry(…)", "registry") from error
                try:
                    self._made = SchemaRegistryClient(self._settings)
                except (ValueError, TypeError, OSError) as error:
                    raise UserError(
                        f"Registry: {error}", hint="settings= are those of confluent-kafka's client"
                    ) from clean_cause(error)
            return self._made


def _version(subject: str, version: int, client: Any) -> Any:
    return _usable(client.get_version(subject, version).schema)


def _usable(schema: Any) -> Any:
    """Returns a schema that has a text and a kind. Raises _NoRegistry for any other answer, as the client accepts any
    JSON.
    """
    _of_type(str, schema.schema_str)
    _of_type(str, schema.schema_type or "AVRO")
    return schema


def _of_type(kind: type[T], value: Any) -> T:
    """Returns a value of an answer that has this type. Raises _NoRegistry for another type."""
    if not isinstance(value, kind):
        raise _NoRegistry(f"{value!r:.60} where it has a {kind.__name__}")
    return value


def _is_code(code: Any) -> bool:
    """Returns True for an error code of a registry; the client says -1 if the answer is no JSON."""
    return isinstance(code, int) and code > 0
