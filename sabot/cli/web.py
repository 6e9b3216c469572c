"""`sabot web`: the console of apps that run elsewhere, or not at all; and the options of the console, which `sabot run --web` has too."""

import os
import re
import signal
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import parse_qs, urlsplit

import typer

from sabot.base.dataclass import dataclass
from sabot.base.logs import set_up_logging
from sabot.base.options import option
from sabot.base.redaction import has_password, keep_url, redacted_url, visible, without_password
from sabot.cli.app_checkpoints import find_checkpoints
from sabot.cli.loading import WrongUse, load_app
from sabot.cli.options import with_options
from sabot.cli.running import guarded
from sabot.engine.checkpoint.inspection import AppCheckpoints
from sabot.engine.state import state_directory
from sabot.errors import UserError

if TYPE_CHECKING:
    from sabot.web.console import ConsoleSite
    from sabot.web.guard import Proxy
    from sabot.web.kept_app import AppPlaces
    from sabot.web.payloads import Payloads

_MOST_APPS = 100
_LEAST_SECRET = 32  # characters
_LOOK_SECONDS = 1.0  # between two looks for a signal, if none ends the wait


@dataclass(frozen=True, kw_only=True)
class ConsoleOptions:
    """The options of the console, as the command line has them."""

    web_port: int | None = option(
        None,
        "the port of the console, 8420 by default; if it is taken, the next free one",
        metavar="PORT",
        kind=int,
        bounds=(0, 65_535),
    )
    web_origin: Iterable[str] = option(
        (),
        "a further address under which browsers reach the console, such as that of a tunnel",
        metavar="URL",
        kind=list,
    )
    web_payloads: str | None = option(
        None,
        "the values of rows, questions and calls in the console: none, scrubbed (those that --web-show names), or all",
        metavar="none|scrubbed|all",
    )
    web_show: Iterable[str] = option(
        (),
        "a column, a field or a tool whose values the console shows to sessions that may act",
        metavar="NAME",
        kind=list,
    )
    web_listen: str | None = option(
        None, "the address at which the console listens, for --web-behind-proxy", metavar="ADDRESS"
    )
    web_behind_proxy: str | None = option(
        None, "the address of the proxy with TLS from which all requests to the console come", metavar="ADDRESS"
    )
    web_user_header: str | None = option(
        None, "the header in which the proxy of the console names the user, for the records of actions", metavar="NAME"
    )
    web_proxy_secret: str | None = option(
        None, "the file with the secret that the proxy sends in the header X-Sabot-Proxy-Secret", metavar="FILE"
    )

    @property
    def given(self) -> bool:
        """True if any option is given."""
        return any(getattr(self, name) not in (None, [], ()) for name in self.__dataclass_fields__)

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments of a console that these options give. Raises WrongUse for a value that an option does not take."""
        return {
            "port": self.port,
            "listen": self.address,
            "origins": self.origins,
            "payloads": self.payloads,
            "proxy": self.proxy,
        }

    @property
    def port(self) -> int:
        """The wanted port."""
        from sabot.web.console import DEFAULT_PORT

        return DEFAULT_PORT if self.web_port is None else self.web_port

    @property
    def origins(self) -> tuple[str, ...]:
        """The further addresses. Raises WrongUse for one that is no origin."""
        for each in self.web_origin or ():
            if re.fullmatch(r"https?://[^/?#@\s]+/?", each) is None:
                raise WrongUse(f"--web-origin {redacted_url(each)} is no origin", hint="write it as https://name:port")
        return tuple(self.web_origin or ())

    @property
    def payloads(self) -> "Payloads":
        """The decision on the values that the console shows. Raises WrongUse for a mode that there is not."""
        from sabot.web.payloads import PAYLOAD_MODES, Payloads

        for each in PAYLOAD_MODES:
            if each == (self.web_payloads or "scrubbed"):
                return Payloads(each, frozenset(self.web_show or ()))
        raise WrongUse(f"--web-payloads {self.web_payloads} is no mode", hint=f"give one of {', '.join(PAYLOAD_MODES)}")

    @property
    def address(self) -> str:
        """The address to listen at. Raises WrongUse for another one than loopback without a proxy: TLS is the task of the proxy."""
        address = _address(self.web_listen or "127.0.0.1", "--web-listen")
        if not address.is_loopback and self.web_behind_proxy is None:
            raise WrongUse(
                f"--web-listen {address}: the console listens on the loopback address only, because it has no TLS",
                hint="put a proxy with TLS before it, and name its address: --web-behind-proxy ADDRESS",
            )
        return str(address)

    @property
    def proxy(self) -> "Proxy | None":
        """The proxy from which requests come. Raises WrongUse for a user header without a proxy and a secret."""
        from sabot.web.guard import Proxy

        if self.web_behind_proxy is None or (self.web_user_header is None) != (self.web_proxy_secret is None):
            if self.web_user_header is not None or self.web_proxy_secret is not None:
                raise WrongUse(
                    "--web-user-header counts only from a proxy that knows a secret",
                    hint="give --web-behind-proxy ADDRESS, --web-user-header NAME and --web-proxy-secret FILE together",
                )
            return None
        if self.web_user_header is not None and re.fullmatch(r"[A-Za-z][A-Za-z0-9-]*", self.web_user_header) is None:
            raise WrongUse(f"--web-user-header {self.web_user_header!r} is no name of a header")
        address = str(_address(self.web_behind_proxy, "--web-behind-proxy"))
        return Proxy(address, (self.web_user_header or "").lower(), _secret_of(self.web_proxy_secret))


def _address(word: str, option: str) -> IPv4Address:
    try:
        return IPv4Address(word)
    except ValueError:
        raise WrongUse(f"{option} {word} is no IPv4 address", hint="write it as 127.0.0.1") from None


def _secret_of(file: str | Path | None) -> str:
    if file is None:
        return ""
    try:
        secret = Path(file).read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise WrongUse(f"--web-proxy-secret {file}: {getattr(error, 'strerror', None) or error}") from error
    if len(secret) < _LEAST_SECRET or not secret.isascii() or not secret.isprintable():
        raise WrongUse(
            f"--web-proxy-secret {file}: the secret is not {_LEAST_SECRET} or more printable characters",
            hint="make one: openssl rand -hex 32",
        )
    return secret


def say_links(title: str, site: "ConsoleSite") -> None:
    """Prints the addresses of a console on stderr."""
    print(f"sabot: console of {visible(title, lines=False)}: {site.link}", file=sys.stderr, flush=True)
    print(f"sabot: to read only: {site.reading_link}", file=sys.stderr, flush=True)


@with_options(ConsoleOptions)
def web(
    places: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PLACE",
            help="A state directory, checkpoints (a directory or a URI), or a journal (a folder, or postgresql:// or kafka://).",
        ),
    ] = None,
    app: Annotated[
        list[str] | None,
        typer.Option(
            "--app", metavar="MODULE:APP", help="An app, for what needs its code, and for its places; repeatable."
        ),
    ] = None,
    **given: Any,
) -> None:
    """Show apps that run elsewhere, or not at all, in a browser.

    Their figures are those that each run writes into its state directory every ten seconds. Apps that run on this machine can be stopped,
    rescaled and asked for checkpoints. Places of one app are shown together.
    """
    options = ConsoleOptions(**given)

    def work() -> None:
        found: list[AppPlaces] = []
        for each in [*map(_places_of_app, app or ()), *map(_places_of, places or ())]:
            _add(found, each)
        if not found:
            raise WrongUse("no place is given", hint="name a state directory, or --app MODULE:APP")
        if len(found) > _MOST_APPS:
            raise WrongUse(f"{len(found)} apps are more than {_MOST_APPS}", hint="start several `sabot web`")
        _serve(found, options)

    set_up_logging("warning")
    raise typer.Exit(guarded(work, debug=False))


def _serve(apps: "Sequence[AppPlaces]", options: ConsoleOptions) -> None:
    from sabot.web.access import Access
    from sabot.web.console import KeptConsole

    folder = Path(os.environ.get("XDG_STATE_HOME") or "~/.local/state").expanduser() / "sabot"
    try:
        access = Access(folder)
    except OSError as error:
        raise UserError(
            f"the console cannot keep its token in {folder}: {error.strerror or error}",
            hint="name another folder with the environment variable XDG_STATE_HOME",
        ) from error
    site = KeptConsole(
        apps,
        access,
        **options.arguments,
    )
    try:
        _end_by_sigterm()
        say_links(", ".join(each.id for each in apps), site)
        while True:
            time.sleep(_LOOK_SECONDS)  # signal.pause() would wait on if the signal came just before it
    finally:
        site.close()


def _end_by_sigterm() -> None:
    """Makes SIGTERM raise KeyboardInterrupt, as Ctrl-C does."""
    interrupt = signal.getsignal(signal.SIGINT)  # a shell starts `sabot web … &` with SIGINT ignored
    signal.signal(signal.SIGTERM, interrupt if callable(interrupt) else signal.default_int_handler)


def _add(found: "list[AppPlaces]", new: "AppPlaces") -> None:
    """Adds the places of an app: to those of an app of the same name that has no other ones, or as another app."""
    given = {
        name: value for name in ("state", "checkpoints", "journal", "app", "program") if (value := getattr(new, name))
    }

    def is_other(known: object, value: object) -> bool:
        if isinstance(known, AppCheckpoints) and isinstance(value, AppCheckpoints):
            return known.place != value.place
        return bool(known) and _server_of(known) != _server_of(value)

    for at, known in enumerate(found):
        if known.id == new.id and not any(is_other(getattr(known, name), value) for name, value in given.items()):
            if known.journal and has_password(str(known.journal)):
                given.pop("journal", None)  # that of a run's record has none
            if known.checkpoints is not None and new.checkpoints is not None:
                given["checkpoints"] = _merged(known.checkpoints, new.checkpoints)
            found[at] = replace(known, **given)
            return
    found.append(new)


def _merged(known: AppCheckpoints, new: AppCheckpoints) -> AppCheckpoints:
    """Returns checkpoints of the same place: at the address that has a password, if one does, and beside the state directory, by which the
    running app is asked.
    """
    has = has_password(str(known.location))
    return replace(known if has else new, state=known.state or new.state)


def _server_of(place: object) -> str:
    """Returns a place as text, an address without its password and without the name of an app, which the id of the app says."""
    text = str(place)
    return re.sub(r"[?&]app=[^&]*$", "", without_password(text)) if "://" in text else text


def _places_of_app(target: str) -> "AppPlaces":
    from sabot.engine.runtime.agents.runnable import any_durable
    from sabot.web.kept_app import AppPlaces

    app = load_app(target)
    app.agent_runtime.load()
    base, location = app.settings.state_dir, app.settings.checkpoint_place
    durable = any_durable(app.spec.agents.values())
    journal = app.settings.journal_place
    return AppPlaces(
        app.id,
        base,
        None if location is None else AppCheckpoints(location, state=base),
        None if not durable or journal == "memory" else journal,
        app,
        (target,),
    )


def _places_of(word: str) -> "AppPlaces":
    """Returns the places that a word names. Raises WrongUse and UserError if there is nothing of an app."""
    from sabot.web.kept_app import AppPlaces

    keep_url(word)
    scheme = word.partition("://")[0] if "://" in word else ""
    if scheme in ("postgresql", "postgres", "kafka"):
        return AppPlaces(_known_journal(word), journal=word)
    if scheme not in ("", "file", "rocksdb"):
        checkpoints = find_checkpoints(word)
        return AppPlaces(str(checkpoints.manifest().describe.get("app", "")) or word, checkpoints=checkpoints)
    path = Path(state_directory(word) or word) if scheme == "rocksdb" else Path(word.removeprefix("file://"))
    if (path.is_file() and path.suffix == ".db") or (path / "journal.db").is_file():
        _known_journal(str(path))
        return AppPlaces(path.absolute().parent.name if path.is_file() else path.absolute().name, journal=path)
    return _places_of_directory(path, word)


def _places_of_directory(path: Path, word: str) -> "AppPlaces":
    from sabot.engine.checkpoint.places import is_local_place
    from sabot.engine.runtime.watch.run_record import RECORD_FILE, read_record
    from sabot.web.kept_app import AppPlaces

    if not path.is_dir():
        raise WrongUse(f"there is no directory {redacted_url(word)}", hint="name a state directory, or checkpoints")
    if path.name == "checkpoints" and (path.parent / RECORD_FILE).exists():
        path = path.parent
    record = read_record(path)
    if record is None and not is_local_place(path):
        raise WrongUse(
            f"{word} is no state directory, and has neither checkpoints nor a journal",
            hint="an app with state= has a directory of its own after its first start",
        )
    location = record.checkpoint_dir if record is not None and record.checkpoint_dir else None
    checkpoints = AppCheckpoints(location, state=path) if location is not None else find_checkpoints(str(path))
    journal: str | Path | None = path / "journal" if (path / "journal").exists() else None
    if record is not None and record.durable and record.journal not in ("", "memory"):
        journal = record.journal
    if record is not None:
        return AppPlaces(record.app, path, checkpoints, journal)
    ids = checkpoints.storage.ids()
    name = str(checkpoints.manifest().describe.get("app", "")) if ids else ""
    return AppPlaces(name or path.absolute().name, path, checkpoints, journal)


def _known_journal(address: str) -> str:
    """Returns the name of the app whose journal is at an address. Raises UserError if there is none."""
    from sabot.journal import open_reader

    open_reader(address).close()
    split = urlsplit(address)
    named = parse_qs(split.query).get("app", [""])[0]
    return named or split.path.rpartition("/")[2].removesuffix(".journal") or "journal"
