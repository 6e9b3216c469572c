"""The options of WITH ('name' = 'value'): each is taken once, and those that nothing takes are refused."""

import logging
import os
import re
from collections.abc import Mapping
from dataclasses import replace
from decimal import Decimal, InvalidOperation
from difflib import get_close_matches
from typing import Any

from sabot.base.redaction import HIDDEN, keep_secret, shown_setting
from sabot.sql.syntax.text import Span, SqlFault, list_names
from sabot.sql.syntax.tree import TableOption

_log = logging.getLogger(__name__)

_SECRET = re.compile(r"\$\{env:([A-Za-z_]\w*)\}")

_IGNORED = (
    re.compile(r"sink\.(partition-commit|rolling-policy|parallelism|buffer-flush|delay|transactional-id-prefix).*"),
    re.compile(
        r"partition\.(time-extractor\..*|default-name)|(auto-)?compaction(\..*)?|sink\.shuffle-by-partition\.enable"
    ),
    re.compile(r"print-identifier|standard-error|((key|value)\.)?debezium-json\.schema-include"),
    re.compile(
        r"((key|value)\.)?(json|csv|debezium-json)\.(ignore-parse-errors|fail-on-missing-field|timestamp-format\.standard)"
    ),
    re.compile(r"((key|value)\.)?json\.(map-null-key\.(mode|literal)|decode\.json-parser\.enabled)"),
    re.compile(r"scan\.watermark\.(emit\..*|alignment\.update-interval)"),
    re.compile(r"scan\.parallelism|lookup\..*|update-mode|connector\.(property-version|version|driver|write\..*)"),
    re.compile(r"format\.(derive-schema|property-version|fail-on-missing-field|ignore-parse-errors)"),
    re.compile(r"driver|connection\.max-retry-timeout|scan\.(fetch-size|auto-commit|partition\..*)|sink\.max-retries"),
)
"""Options of Flink that have no meaning here, or whose meaning the engine always has."""


YES_OR_NO = {"true": True, "false": False}
_GUARANTEES = {"exactly-once": "exactly_once", "at-least-once": "at_least_once", "none": "at_least_once"}
_UNITS = {
    **{"ms": "ms", "milli": "ms", "millisecond": "ms", "s": "s", "sec": "s", "second": "s", "min": "m", "m": "m"},
    **{"minute": "m", "h": "h", "hour": "h", "d": "d", "day": "d"},
}
_DURATION = re.compile(r"\s*(\d+)\s*([a-z]+)?\s*")


def duration_of(option: TableOption) -> str:
    """Returns a duration of Flink's ('3 min', '500 ms', '1000': milliseconds) as the engine takes it."""
    match = _DURATION.fullmatch(option.value.lower())
    unit = (match[2] or "ms") if match else ""
    found = _UNITS.get(unit, _UNITS.get(unit.rstrip("s")))
    if match is None or found is None:
        raise SqlFault(option.value_span, f"'{option.value}' is no duration", "'10 s', '3 min', '500 ms'")
    return f"{match[1]}{found}"


_OLDER = {
    "connector.type": "connector",
    "connector.topic": "topic",
    "connector.startup-mode": "scan.startup.mode",
    "connector.path": "path",
    "connector.url": "url",
    "connector.table": "table-name",
    "connector.username": "username",
    "connector.password": "password",
    "connector.lookup.cache.max-rows": "lookup.cache.max-rows",
    "connector.lookup.cache.ttl": "lookup.cache.ttl",
    "connector.lookup.max-retries": "lookup.max-retries",
    "format.type": "format",
    "format.field-delimiter": "csv.field-delimiter",
}
_OLDER_PROPERTIES = "connector.properties."


def renewed(options: tuple[TableOption, ...]) -> tuple[TableOption, ...]:
    """Returns the options of a table by their names of now. Those of Flink 1.10 begin with 'connector.' and 'format.'."""
    if not any(each.key == "connector.type" for each in options):
        return options
    return tuple(
        replace(each, key=each.key.removeprefix("connector."))
        if each.key.startswith(_OLDER_PROPERTIES)
        else replace(each, key=_OLDER.get(each.key, each.key))
        for each in options
    )


class Options:
    """The options of a table or a model. Each is taken once; `check_known` refuses those that nothing has taken.

    `kind`: "table" or "model". `span`: its name.
    """

    def __init__(self, table: str, options: tuple[TableOption, ...], span: Span, kind: str = "table") -> None:
        self.table = table
        self._kind = kind
        self.span = span
        self._options: dict[str, TableOption] = {}
        self._asked: set[str] = set()
        for option in options:
            if option.key in self._options:
                raise SqlFault(option.key_span, f"'{option.key}' is given twice")
            self._options[option.key] = option

    def take(self, *names: str) -> str | None:
        """Returns the value of the first of these options that is given, or None."""
        self._asked.update(names)
        for name in names:
            if name in self._options:
                return self._value(self._options.pop(name))
        return None

    def given(self, name: str) -> str | None:
        """Returns the value of an option as it is written, without taking it, or None."""
        return self._options[name].value if name in self._options else None

    def need(self, *names: str) -> str:
        """Returns the value of an option. Raises SqlFault if it is missing."""
        value = self.take(*names)
        if value is None:
            near = self.near(names[0])
            hint = f"'{names[0]}' = '…'" + (f", and there is '{near.key}'" if near else "")
            raise SqlFault(self.span, f"{self._kind} {self.table} needs the option '{names[0]}'", hint)
        return value

    def near(self, name: str) -> TableOption | None:
        """Returns the option whose name resembles this one, or None."""
        found = get_close_matches(name, self._options, n=1)
        return self._options[found[0]] if found else None

    def value_span(self, name: str) -> Span:
        """Returns the place of an option's value, or that of the table's name if the option is not given."""
        option = self._options.get(name)
        return self.span if option is None else option.value_span

    def key_span(self, name: str) -> Span:
        """Returns the place of an option's name, or that of the table's name if the option is not given."""
        option = self._options.get(name)
        return self.span if option is None else option.key_span

    def choose(self, name: str, choices: Mapping[str, Any], default: Any = None) -> Any:
        """Returns the meaning of an option's value. Raises SqlFault for a value that is not among the choices."""
        option = self._options.get(name)
        value = self.take(name)
        if value is None or option is None:
            return default
        if value not in choices:
            raise SqlFault(option.value_span, f"'{name}' cannot be '{value}'", list_names(value, choices))
        return choices[value]

    def number(self, name: str) -> Decimal | None:
        """Returns the value of an option as a number, or None. Raises SqlFault for any other text."""
        option = self._options.get(name)
        value = self.take(name)
        if value is None or option is None:
            return None
        try:
            return Decimal(value)
        except InvalidOperation:
            raise SqlFault(option.value_span, f"'{name}' is a number, and '{value}' is none") from None

    def duration(self, name: str) -> str | None:
        """Returns the value of an option as a duration of the engine, or None. Raises SqlFault for any other text."""
        option = self._options.get(name)
        value = self.take(name)
        return None if value is None or option is None else duration_of(replace(option, value=value))

    def prefixed(self, prefix: str) -> dict[str, str]:
        """Returns the options that begin with a prefix, without it."""
        names = [name for name in self._options if name.startswith(prefix)]
        return {name.removeprefix(prefix): self._value(self._options.pop(name)) for name in names}

    def check_known(self, others: "Options | None" = None) -> None:
        """Raises SqlFault for an option that is unknown: that neither this direction nor `others`, the other one, has."""
        asked = self._asked if others is None else self._asked | others._asked
        for name, option in self._options.items():
            if not (_is_ignored(name) or (others is not None and name not in others._options)):
                raise SqlFault(option.key_span, f"there is no option '{name}'", list_names(name, sorted(asked)))

    def finish(self) -> None:
        """Warns of options that have no meaning here."""
        for name in filter(_is_ignored, self._options):
            _log.warning("%s %s: the option '%s' has no effect", self._kind, self.table, name)

    def _value(self, option: TableOption) -> str:
        def environment(match: re.Match[str]) -> str:
            value = os.environ.get(match[1])
            if value is None:
                raise SqlFault(option.value_span, f"the environment variable {match[1]} is not set")
            if shown_setting(match[1], value) == HIDDEN:
                keep_secret(value)  # also where the option has no name of a secret
            return value

        return _SECRET.sub(environment, option.value)


def _is_ignored(option: str) -> bool:
    return any(pattern.fullmatch(option) for pattern in _IGNORED)


def delivery_of(options: Options) -> dict[str, str]:
    """Returns the guarantee that a table which is written asks for, as an argument of `to`; {} for that of its sink."""
    older = options.choose("sink.semantic", _GUARANTEES)
    delivery = options.choose("sink.delivery-guarantee", _GUARANTEES, older)
    return {} if delivery is None else {"delivery": delivery}
