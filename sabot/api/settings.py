"""The settings of an app, declared once for `App(...)`, `App.configure`, the command line and docs/settings.md."""

from collections.abc import Iterable, Mapping
from dataclasses import KW_ONLY
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

from sabot._cython.groups.partition import KEY_GROUPS
from sabot.base.arrays import python_value
from sabot.base.checks import FLAG, OneOf, is_whole
from sabot.base.config import (
    Duration,
    Restart,
    checked_path,
    checked_text,
    parse_broker,
    parse_bytes,
    parse_keep,
    parse_restart,
    parse_seconds,
)
from sabot.base.dataclass import dataclass
from sabot.base.options import check_values, option
from sabot.connectors.places import Place, Start, Until, checked_start, checked_until
from sabot.engine.state import state_directory
from sabot.errors import UserError, short_repr
from sabot.kafka.settings import checked_settings

Redeliver = Literal["repeat", "skip"]
"""The treatment of output about which checkpoint and receiver disagree: "repeat" sends it again, "skip" leaves it
out.
"""

_MEMORY_BUDGET = "256MB"


def _broker(url: str) -> str:
    parse_broker(checked_text(url, "broker"))
    return url


def _state(place: str) -> str:
    state_directory(place)
    return place


def _journal(given: Any) -> str | Path:
    place = checked_path(given, "journal")
    return place if place == "memory" or "://" in place else Path(place).expanduser()


def _checkpoint_dir(given: Any) -> Any:
    if not isinstance(given, tuple):  # a tuple is a file system of pyarrow and a path
        checked_path(given, "checkpoint_dir")
    return given


def _seconds(name: str, *, zero: bool = True) -> Any:
    return partial(parse_seconds, name=name, zero=zero)


def _keep_jobs(given: str) -> str:
    parse_keep(given, name="keep_jobs")
    return given


def _restart(given: str) -> str:
    parse_restart(checked_text(given, "restart"))
    return given


def _memory_budget(given: Any) -> Any:
    parse_bytes(given, name="memory_budget")
    return given


def _parallelism(given: Any) -> int:
    threads = python_value(given)
    if not is_whole(threads, 1, KEY_GROUPS):
        raise UserError(f"parallelism={threads!r}: a number of threads, 1 to {KEY_GROUPS}")
    return int(threads)


def _start(given: Any) -> Place | None:
    if given is None:
        return None
    place = checked_start(given, "App")
    _refuse_offsets("start", place)
    return place


def _until(given: Any) -> Place | None:
    place = checked_until(given, "App")
    _refuse_offsets("until", place)
    return place


def _refuse_offsets(word: str, place: Place | None) -> None:
    if isinstance(place, Mapping):
        raise UserError(
            f"App: {word}={place!r} has offsets, which belong to one topic", hint=f"app.stream(topic, {word}=…)"
        )


def _names(given: str | Iterable[str]) -> frozenset[str]:
    names = [given] if isinstance(given, str) or not isinstance(given, Iterable) else list(given)
    if wrong := [name for name in names if not isinstance(name, str) or not name]:
        raise UserError(f"{short_repr(wrong[0])} is not a name", hint='reprocess=["agent"], drop=["step"], and so on')
    return frozenset(names)


def _port(given: int) -> int:
    if not is_whole(given, 0, 65535):
        raise UserError(f"metrics_port={given!r} is not a port", hint="0 takes a free one")
    return given


def _names_once(text: str, metavar: str) -> Any:
    """Returns the declaration of an option that takes names and is meant for one start."""
    return option((), text, check=_names, metavar=metavar, kind=list, once=True)


@dataclass(frozen=True)
class Settings:
    """The checked settings of an app. A setting with a `metavar` (the word for its value in help texts) is also an
    option of `sabot run`.

    The constructor raises UserError for a wrong value. To change settings, use `dataclasses.replace`.
    """

    broker: str = option("memory://", "the broker: memory:// or kafka://host:port", check=_broker, metavar="URL")
    _: KW_ONLY
    state: str | None = option(
        None,
        'the place of keyed state: a directory, rocksdb:///abs/dir or "memory"',
        check=_state,
        metavar="memory|DIR",
    )
    journal: str | Path | None = option(
        None,
        'the journal of durable agents: a directory, "memory", kafka://… or postgresql://…; by default in the state',
        check=_journal,
        metavar="PLACE",
    )
    dedupe: Duration = option(
        "7d",
        "the time for which the ids of ended jobs of durable agents are known, so that none runs twice",
        check=_seconds("dedupe", zero=False),
    )
    keep_jobs: str = option(
        "30d, 512MB",
        'the time for which ended jobs of durable agents are kept, and the most bytes of them; or "none"',
        check=_keep_jobs,
        metavar="HOW",
    )
    checkpoint_dir: Any = option(
        None, "the directory or URI of checkpoints; by default in the state", check=_checkpoint_dir, metavar="DIR|URI"
    )
    checkpoint_interval: Duration | None = option(
        None,
        "the time between checkpoints: 5s, 100ms, or seconds; by default 1s with an exactly-once sink, else 60s",
        check=_seconds("checkpoint_interval", zero=False),
        metavar="TIME",
    )
    checkpoint_timeout: Duration = option(
        "60s", "the longest time that a checkpoint may take", check=_seconds("checkpoint_timeout", zero=False)
    )
    stop_timeout: Duration = option(
        "60s",
        "the longest time that a stop by Ctrl-C or SIGTERM may take, before the process ends at once",
        check=_seconds("stop_timeout"),
    )
    report: Duration = option(
        "60s", "the time between two lines of figures in the log; 0 for none", check=_seconds("report"), metavar="TIME"
    )
    restart: str = option(
        "fixed(3, 1s)",
        'the restarts: how many in 10 minutes, and the wait; "backoff(1s, 60s)": no end, waits that double; or "none"',
        check=_restart,
        metavar="HOW",
    )
    parallelism: int = option(
        1,
        "the number of threads of each stage of a stream; agents have concurrency=",
        check=_parallelism,
        metavar="N",
        kind=int,
        bounds=(1, None),
    )
    memory_budget: str | int | None = option(
        None,
        f"the memory for the tables of each keyed step, by default {_MEMORY_BUDGET}; the rest is on disk in the state",
        check=_memory_budget,
    )
    kafka: dict[str, Any] = option({}, "the client settings for all Kafka sources and sinks", check=checked_settings)
    version: str = option(
        "", "the version of the program, for dead letters and checkpoints", check=partial(checked_text, what="version")
    )
    start: Start | None = option(
        None,
        'the place from which topics are read if there is no checkpoint, as in `stream`; by default "earliest"',
        check=_start,
    )
    until: Until | None = option(
        None,
        "the end of topics for which the program sets none: now, or before the first record of a time (a backfill)",
        check=_until,
        metavar="now|TIME",
    )
    metrics_port: int | None = option(
        None,
        "the port that serves /metrics, /healthz and /ready; 0 takes a free one",
        check=_port,
        metavar="PORT",
        kind=int,
        bounds=(0, 65535),
    )
    metrics_host: str = option(
        "127.0.0.1",
        "the address for metrics_port; 0.0.0.0 means all addresses of this machine, and callers are not checked",
        check=partial(checked_text, what="metrics_host"),
        metavar="ADDRESS",
    )
    fresh: bool = option(
        False,
        "a start without the checkpoints, which are removed",
        check=FLAG,
        kind=bool,
        metavar=" ",
        once=True,
    )
    forget_effects: bool = option(
        False,
        "with fresh: removal of the journal too, so that durable agents may repeat all effects",
        check=FLAG,
        kind=bool,
        metavar=" ",
        once=True,
    )
    reprocess: Iterable[str] = _names_once(
        "durable agents whose records are read again, each as a new job, which repeats all effects", "AGENT"
    )
    drop: Iterable[str] = _names_once("state that is not taken over: an operator, or OPERATOR.AGGREGATE", "NAME")
    refill: Iterable[str] = _names_once(
        "steps whose state is computed again, from the tables above them or else from their topics", "STEP"
    )
    reemit: Iterable[str] = _names_once("the sinks of tables into which all rows are written again", "SINK")
    from_earliest: Iterable[str] = _names_once(
        "the topics that go on at their first record, where retention has removed records that were not read", "TOPIC"
    )
    schema: Literal["kept", "refresh"] = option(
        "kept",
        "the columns of topics without a schema: kept, as in the checkpoint; or refresh, inferred anew",
        check=OneOf(("kept", "refresh")),
        metavar="kept|refresh",
        once=True,
    )
    from_: str | None = option(
        None,
        "the savepoint to start from: a directory; DIR@ID for one of several checkpoints in it",
        check=partial(checked_path, what="from_"),
        metavar="SAVEPOINT",
        once=True,
    )
    redeliver: Redeliver | None = option(
        None,
        "the choice for output that the receiver has and the checkpoint does not know: repeat or skip",
        check=OneOf(get_args(Redeliver)),
        metavar="repeat|skip",
        once=True,
    )

    def __post_init__(self) -> None:
        check_values(self)

    @property
    def state_dir(self) -> Path | None:
        """The directory of the state, or None if the state is in memory."""
        return state_directory(self.state)

    @property
    def checkpoint_place(self) -> Any:
        """The directory or URI of the checkpoints, or None if there is none."""
        return self._in_state("checkpoints") if self.checkpoint_dir is None else self.checkpoint_dir

    @property
    def journal_place(self) -> str | Path | None:
        """The directory or address of the journal, "memory", or None if there is no place for one."""
        return self._in_state("journal") if self.journal is None else self.journal

    def _in_state(self, name: str) -> Path | None:
        return None if (base := self.state_dir) is None else base / name

    @property
    def dedupe_s(self) -> float:
        """`dedupe` in seconds."""
        return parse_seconds(self.dedupe)

    @property
    def checkpoint_timeout_s(self) -> float:
        """`checkpoint_timeout` in seconds."""
        return parse_seconds(self.checkpoint_timeout)

    @property
    def stop_timeout_s(self) -> float:
        """`stop_timeout` in seconds."""
        return parse_seconds(self.stop_timeout)

    @property
    def report_s(self) -> float:
        """`report` in seconds."""
        return parse_seconds(self.report)

    @property
    def memory_budget_bytes(self) -> int:
        """`memory_budget` in bytes."""
        return parse_bytes(_MEMORY_BUDGET if self.memory_budget is None else self.memory_budget)

    @property
    def restarts(self) -> Restart:
        """The setting `restart`, parsed."""
        return parse_restart(self.restart)

    @property
    def start_at(self) -> Place:
        """The setting `start`, with times in ms since 1970 UTC."""
        place = _start(self.start)
        return "earliest" if place is None else place

    @property
    def end_at(self) -> Place | None:
        """The setting `until`, with times in ms since 1970 UTC; None if topics have no end."""
        return _until(self.until)

    @property
    def refresh_schema(self) -> bool:
        """True if the columns are inferred again from the records that arrive; False if the columns of the checkpoint
        are used.
        """
        return self.schema == "refresh"

    @property
    def dropped(self) -> frozenset[str]:
        """The names in `drop`, as a set."""
        return _names(self.drop)

    @property
    def reemitted(self) -> frozenset[str]:
        """The names in `reemit`, as a set."""
        return _names(self.reemit)

    @property
    def skipping(self) -> frozenset[str]:
        """The names in `from_earliest`, as a set."""
        return _names(self.from_earliest)

    @property
    def refilled(self) -> frozenset[str]:
        """The names in `refill`, as a set."""
        return _names(self.refill)
