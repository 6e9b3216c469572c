"""SET and RESET: the settings of the app, by their names and by Flink's."""

import logging
import re
from dataclasses import replace
from typing import Any

from sabot.api.settings import Settings
from sabot.api.stream import Owner
from sabot.base.config import parse_ms
from sabot.base.options import Option, options_of
from sabot.errors import UserError
from sabot.sql.syntax.text import SqlFault, list_names
from sabot.sql.syntax.tree import SetOption, Statement, TableOption
from sabot.sql.table_options import duration_of
from sabot.sql.zones import UTC, zone_named

_log = logging.getLogger(__name__)

APP_NAME = "pipeline.name"
"""The option that names the app of a script."""

_ZONE = "table.local-time-zone"
_TTL = "table.exec.state.ttl"
_IDLE = "table.exec.source.idle-timeout"
_OF_QUERIES = (_ZONE, _TTL, _IDLE)
_OURS = "sabot."
_KAFKA = "sabot.kafka."

_FLINKS = {
    "parallelism.default": "parallelism",
    "table.exec.resource.default-parallelism": "parallelism",
    "execution.checkpointing.interval": "checkpoint_interval",
    "execution.checkpointing.timeout": "checkpoint_timeout",
    "execution.checkpointing.dir": "checkpoint_dir",
    "state.checkpoints.dir": "checkpoint_dir",
    "execution.savepoint.path": "from_",
    "execution.state-recovery.path": "from_",
}
"""Options of Flink, and the settings that they are here."""

_OTHERWISE = ("kafka", "reprocess")
"""Settings that SET does not give by their own name: one of Kafka's has its name behind it; the other is for agents."""

_IGNORED = re.compile(
    r"table\.(optimizer|exec\.mini-batch|exec\.sink|exec\.spill|exec\.async-lookup|dml-sync).*"
    r"|execution\.(runtime-mode|type|result-mode|planner|checkpointing\.(mode|min-pause|max-concurrent-checkpoints|unaligned.*)|buffer-timeout)"
    r"|sql-client\..*|(state\.backend|taskmanager|jobmanager|restart-strategy|rest|cluster|pipeline)\..*|state\.backend|restart-strategy"
)
"""Options of Flink that have no meaning here."""


def app_name(statements: list[Statement]) -> str | None:
    """Returns the name that the last SET 'pipeline.name' of a script gives its app, or None."""
    found = [each.key for each in statements if isinstance(each, SetOption) and each.key and not each.reset]
    return next((key.value for key in reversed(found) if key.key == APP_NAME), None)


class SqlOptions:
    """The options that SET has given, and the settings of the app from before."""

    def __init__(self, app: Owner) -> None:
        self._app = app
        self._given: dict[str, str] = {}
        self._before: dict[str, Any] = {}  # settings that SET has changed

    def run(self, statement: SetOption) -> list[tuple[str, str]] | None:
        """Runs SET or RESET. Returns the options with their values for SET alone, else None."""
        if statement.key is None:
            if not statement.reset:
                return sorted(self._given.items())
            for name in list(self._given):
                self._reset(name)
        elif statement.reset:
            _setting_of(statement.key)
            self._reset(statement.key.key)
        else:
            self._set(statement.key)
        return None

    @property
    def zone(self) -> str:
        """The session's time zone."""
        return zone_named(self._given.get(_ZONE, UTC)) or UTC

    @property
    def state_ttl(self) -> str | None:
        """The event time for which `table.exec.state.ttl` keeps state, or None for ever."""
        return self._given.get(_TTL)

    @property
    def idle(self) -> str | None:
        """The time without rows after which a partition is idle, or None for the engine's default."""
        return self._given.get(_IDLE)

    def _set(self, option: TableOption) -> None:
        if option.key == APP_NAME:
            if option.value != self._app.id:
                raise SqlFault(option.value_span, f"the name of this app is {self._app.id}", "App(name) gives it")
            return
        if option.key == _ZONE:
            if zone_named(option.value) is None:
                raise SqlFault(
                    option.value_span, f"there is no time zone '{option.value}'", "'Europe/Berlin', '+08:00', 'UTC'"
                )
            self._given[option.key] = option.value
            return
        if option.key == _TTL:
            ttl = duration_of(option)
            self._given.pop(_TTL, None)
            if parse_ms(ttl, name=_TTL):  # 0 is for ever, as in Flink
                self._given[_TTL] = ttl
            return
        if option.key == _IDLE:
            self._given[_IDLE] = duration_of(option)
            return
        name = _setting_of(option)
        if name is None:
            _log.warning("SET '%s' has no effect", option.key)
        else:
            value = self._value(option, name)
            self._before.setdefault(name, getattr(self._app.settings, name))
            try:
                self._app.settings = replace(self._app.settings, **{name: value})
            except UserError as error:
                raise SqlFault(option.value_span, error.message, error.hint) from error
        self._given[option.key] = option.value

    def _value(self, option: TableOption, name: str) -> Any:
        if name == "kafka":
            return {**self._app.settings.kafka, option.key.removeprefix(_KAFKA): option.value}
        return _value_of(option, options_of(Settings)[name])

    def _reset(self, key: str) -> None:
        if self._given.pop(key, None) is None:
            return
        name = "kafka" if key.startswith(_KAFKA) else _FLINKS.get(key) or key.removeprefix(_OURS)
        if name in self._before:
            self._app.settings = replace(self._app.settings, **{name: self._before.pop(name)})


def _setting_of(option: TableOption) -> str | None:
    """Returns the setting that an option is, or None for one of Flink's that has no meaning here.

    Raises SqlFault for an option that does not exist.
    """
    key = option.key
    if key.startswith(_KAFKA):
        return "kafka"
    known = {f"{_OURS}{name}": name for name in options_of(Settings) if name not in _OTHERWISE} | _FLINKS
    if key in known:
        return known[key]
    if _IGNORED.fullmatch(key) or key in (APP_NAME, *_OF_QUERIES):
        return None
    if key.startswith("table.exec.emit."):
        hint = "GROUP BY FLOOR(ts TO HOUR), without a window, gives sums as they grow; CUMULATE gives them in steps"
        raise SqlFault(option.key_span, "a window gives its result once, when it closes", hint)
    raise SqlFault(option.key_span, f"there is no option '{key}'", list_names(key, [*known, APP_NAME, *_OF_QUERIES]))


def _value_of(option: TableOption, declared: Option) -> Any:
    text = option.value
    if declared.kind is bool:
        if text.lower() not in ("true", "false"):
            raise SqlFault(option.value_span, f"'{option.key}' is 'true' or 'false'")
        return text.lower() == "true"
    if declared.kind is int:
        if not text.strip().isdecimal():
            raise SqlFault(option.value_span, f"'{option.key}' is a whole number, and '{text}' is none")
        return int(text)
    if declared.kind is list:
        return [part.strip() for part in text.split(",")]
    if option.key in _FLINKS and option.key.endswith(("interval", "timeout")):
        return duration_of(option)
    return text
