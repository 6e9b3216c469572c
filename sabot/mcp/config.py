"""The settings of MCP servers: limits and times of all (`McpConfig`), and the way to reach each one (`McpServerSpec`)."""

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from os import PathLike
from typing import TYPE_CHECKING, Any, TypeAlias, TypedDict

from sabot.base.checks import FLAG, OneOf, Whole, check, check_called, check_fields
from sabot.base.config import Duration, checked_name, parse_bytes, parse_seconds
from sabot.base.options import answers_wrong_options
from sabot.base.redaction import keep_headers, keep_settings, keep_url, redacted_url
from sabot.errors import UserError, short_repr
from sabot.process.command import Command
from sabot.process.limits import ResourceLimits
from sabot.process.sandbox.levels import Sandbox, TrustLevel, sandbox_of

if TYPE_CHECKING:
    from sabot.mcp import McpServerPool

PROTOCOL_VERSIONS = ("2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25", "2026-07-28")
"""The supported versions of the protocol, the oldest first."""

_MOST_TIMEOUTS = 10  # the longest call that reports progress, in times for an answer

PerTenant: TypeAlias = Mapping[str, str] | Callable[[str, str], Mapping[str, str]] | None
"""Names and values, such as environment variables or HTTP headers with credentials: a mapping that is the same for all
tenants, or a function that is called with (scope, principal) and returns the mapping for them. None for no values."""


@dataclass(frozen=True, slots=True)
class SessionKey:
    """The key of a session with a server: no session is used for two different keys.

    - `server`: the name of the server.
    - `scope`: the tenant for whom the session is used, or "".
    - `principal`: the user or the agent for whom the session is used, or "".
    """

    server: str
    scope: str = ""
    principal: str = ""

    def __str__(self) -> str:
        whose = "/".join(filter(None, (self.scope, self.principal)))
        return f"{self.server} for {whose}" if whose else self.server


Connect: TypeAlias = Callable[[SessionKey, Callable[[str], object]], AbstractAsyncContextManager[Any]]
"""The type of `McpServerSpec.connect`: a function of the user's program that connects to a server."""


@answers_wrong_options
@dataclass(frozen=True, slots=True, kw_only=True)
class McpConfig:
    """Limits and times for the servers of a McpServerPool. Durations are written as "5s", sizes as "10MB".

    - `cortex_binary_path`: the program of the default server, which the pool uses if no server is named
      (`get_or_create`, `call_tool`). The pool runs it as `PROGRAM mcp stdio`. If None, the program `cortex` on PATH is
      used.
    - `protocol_version`: the oldest version of the protocol that a server may use.
    - `request_timeout`: the time in which a server has to answer. In a call of a tool, it begins again with each report
      of progress, and does not run while a person answers a question of the server. For a list of several pages, it is
      the time for all pages together.
    - `max_call_time`: the longest time of a whole call, even if the server reports progress. If None, 10 times the time
      for one answer.
    - `connect_timeout`: the time to start a server, to agree with it on a version of the protocol, and to list its
      tools. If the pool has `max_servers` sessions, a new one also waits at most this time for room.
    - `max_retries`: how often the pool tries again to open a session, if another try may succeed.
    - `stdio_buffer`: the number of bytes that are read at a time. `max_result_bytes`: the most bytes of a message from
      a server.
    - `max_servers`: the most sessions that are open at a time. `idle_timeout`: a session that was not used for this
      time is closed.
    - `question_timeout`: the time in which a person has to answer a question of a server. `max_questions`: the most
      questions that a server may ask in one call.
    - `max_tools`: the most tools of one server that `McpServerPool.tools` may return. If a server offers more, its
      parameter `only=` selects some of them.
    - `max_listed`: the most tools, resources, templates or prompts that a server may list. `max_list_bytes`: the most
      bytes of such a list, all pages together. McpResultTooLarge is raised for a longer list; if the list of tools is
      longer, the session cannot be opened (McpUnavailable).
    - `max_description_chars`: the most characters of a tool's description, and of each description and title in its
      schema; the rest is cut off.
    - `max_sampling_tokens`: the most tokens of an answer that a server requests from a model (sampling).
    """

    cortex_binary_path: "str | PathLike[str] | None" = None
    protocol_version: str = PROTOCOL_VERSIONS[0]
    request_timeout: Duration = "30s"
    max_call_time: Duration | None = None
    connect_timeout: Duration = "30s"
    max_retries: int = 3
    stdio_buffer: int = 8192
    max_result_bytes: str | int = "10MB"
    max_servers: int = 64
    idle_timeout: Duration = "300s"
    question_timeout: Duration = "24h"
    max_questions: int = 10
    max_tools: int = 500
    max_listed: int = 2000
    max_list_bytes: str | int = "4MB"
    max_description_chars: int = 4000
    max_sampling_tokens: int = 4096

    def __post_init__(self) -> None:
        check_fields(
            self, protocol_version=OneOf(PROTOCOL_VERSIONS), max_retries=Whole(), max_description_chars=Whole(1)
        )
        for name in ("request_timeout", "connect_timeout", "idle_timeout", "question_timeout"):
            seconds = parse_seconds(getattr(self, name), name=f"McpConfig: {name}", zero=False)
            object.__setattr__(self, name, seconds)
        if self.max_call_time is not None:
            most = parse_seconds(self.max_call_time, name="McpConfig: max_call_time", zero=False)
            object.__setattr__(self, "max_call_time", most)
        for name in ("max_result_bytes", "max_list_bytes"):
            object.__setattr__(self, name, parse_bytes(getattr(self, name), name=f"McpConfig: {name}"))
        for name in ("stdio_buffer", "max_servers", "max_questions", "max_tools", "max_listed", "max_sampling_tokens"):
            check(f"McpConfig: {name}", getattr(self, name), Whole(1))

    def seconds(self, name: str) -> float:
        """Returns the setting `name`, which is a duration, in seconds."""
        return parse_seconds(getattr(self, name), name=name)

    def most_seconds(self, timeout_s: float) -> float:
        """Returns the longest time, in seconds, that a whole call may take, however often the server reports progress.
        `timeout_s`: the time limit for one answer, in seconds.
        """
        if self.max_call_time is None:
            return _MOST_TIMEOUTS * timeout_s
        return parse_seconds(self.max_call_time, name="max_call_time")

    @property
    def most_bytes(self) -> int:
        """The value of `max_result_bytes` in bytes."""
        return parse_bytes(self.max_result_bytes)

    @property
    def most_list_bytes(self) -> int:
        """The greatest size in bytes of a list that a server sends: `max_list_bytes`, or `max_result_bytes` if that is
        lower.
        """
        return min(parse_bytes(self.max_list_bytes), self.most_bytes)

    def default_command(self) -> tuple[str, ...]:
        """Returns the command that starts the default server of a pool: the program `cortex_binary_path`, or `cortex`
        on PATH, with its arguments. Raises UserError if the program does not exist.
        """
        named = None if self.cortex_binary_path is None else os.fspath(self.cortex_binary_path)
        program = shutil.which(named or "cortex")
        if program is None:
            said = (
                "no MCP server is named, and"
                if named is None
                else f"McpConfig: cortex_binary_path={short_repr(named)}:"
            )
            raise UserError(
                f"{said} there is no program {named or 'cortex'}{'' if named else ' on PATH'}",
                hint='McpServerPool(command=["mcp-server-time"]), or McpConfig(cortex_binary_path=…)',
            )
        return (program, "mcp", "stdio")

    def tool_servers(self) -> "McpServerPool | None":
        """Returns a pool whose default server is the program `cortex_binary_path`. Returns None if `cortex_binary_path`
        is None and there is no program `cortex` on PATH. A runtime with `RuntimeConfig(mcp=McpConfig(...))` calls this.

        Raises UserError if the program `cortex_binary_path` does not exist; MissingExtra if the MCP SDK is not
        installed.
        """
        from sabot.mcp import McpServerPool

        if self.cortex_binary_path is None and shutil.which("cortex") is None:
            return None
        self.default_command()
        return McpServerPool(self)


class McpServerOptions(TypedDict, total=False):
    """The options of `McpServerPool.add`: all fields of McpServerSpec except `name`."""

    command: Sequence[str]
    url: str
    environment: PerTenant
    headers: PerTenant
    working_dir: "str | PathLike[str] | None"
    limits: ResourceLimits | None
    trust: Sandbox | TrustLevel | str | None
    connect: Connect | None
    legacy: bool


@answers_wrong_options
@dataclass(frozen=True, slots=True, kw_only=True, weakref_slot=True)
class McpServerSpec:
    """A server: its name, and how to reach it. Exactly one of `command` (messages over stdin and stdout), `url`
    (streamable HTTP) and `connect` is given.

    - `environment`: environment variables for the process of the command. In addition, the process gets a few variables
      of the present process, such as PATH and HOME.
    - `working_dir`, `limits`, `trust`: settings for the process of the command, as in `sabot.process.Command`. Of the
      limits, `max_task_duration` and `max_output_bytes` have no effect here.
    - `headers`: headers that are sent with each HTTP request to the URL.
    - `connect`: a function `connect(key, ended)` that connects to the server. `key` is the SessionKey. It returns an
      asynchronous context manager that yields two message streams of the MCP SDK, one to read and one to write. If the
      server ends, it has to call `ended(reason)`.
    - `legacy`: True to use only versions of the protocol before 2026-07-28, in which a tool can ask something while it
      runs (`ctx.elicit` of the SDK). A pool finds out by itself that a server needs this, but only when a call of a
      tool has failed at its question.
    """

    name: str
    command: Sequence[str] = ()
    url: str = ""
    environment: PerTenant = field(default=None, repr=False)
    headers: PerTenant = field(default=None, repr=False)
    working_dir: "str | PathLike[str] | None" = None
    limits: ResourceLimits | None = None
    trust: Sandbox | TrustLevel | str | None = None
    connect: Connect | None = None
    legacy: bool = False

    @property
    def way(self) -> str:
        """The way to reach the server, as it is shown to people: the name of the program, or the URL without its
        password. The arguments of the command are left out, because they may contain secrets.
        """
        if self.command:
            return os.path.basename(self.command[0])
        return redacted_url(self.url) if self.url else "connect"

    def __post_init__(self) -> None:
        where = f"MCP server {checked_name(self.name, 'MCP server: name')}"
        if isinstance(self.command, str) or not isinstance(self.command, Sequence):
            raise UserError(
                f"{where}: command={short_repr(self.command)}", hint='a list: ["mcp-server-git", "--repository", "."]'
            )
        object.__setattr__(self, "command", tuple(str(each) for each in self.command))
        if sum(map(bool, (self.command, self.url, self.connect))) != 1:
            raise UserError(
                f"{where}: it is reached by a command, by a url, or by connect",
                hint='command=["mcp-server-git"], or url="http://localhost:8000/mcp"',
            )
        if self.url and not self.url.startswith(("http://", "https://")):
            raise UserError(f"{where}: url={short_repr(self.url)}", hint='"http://localhost:8000/mcp"')
        check(f"{where}: legacy", self.legacy, FLAG)
        check_called(where, environment=self.environment, headers=self.headers, connect=self.connect)
        sandbox_of(self.trust)
        if not self.command and (self.environment or self.working_dir or self.limits or self.trust):
            raise UserError(
                f"{where}: environment, working_dir, limits and trust are of a command", hint="headers= is of a URL"
            )
        if not self.url and self.headers:
            raise UserError(f"{where}: headers are of a URL", hint="environment= of a process")
        if isinstance(self.environment, Mapping):
            keep_settings(self.environment, owner=self)
        if isinstance(self.headers, Mapping):
            keep_headers(self.headers, owner=self)
        keep_url(self.url, owner=self)

    def command_of(self, key: SessionKey) -> Command:
        """Returns the command that starts the server for the session `key`. Its environment variables are those for the
        tenant and the principal of the key.
        """
        return Command(
            argv=self.command,
            environment=_values(self.environment, key),
            working_dir=self.working_dir,
            lossless=True,
            trust=self.trust,
            limits=self.limits and self.limits.without("max_task_duration", "max_output_bytes"),
        )

    def headers_of(self, key: SessionKey, owner: object) -> dict[str, str]:
        """Returns the headers of each HTTP request of the session `key`. As long as the object `owner` exists, secrets
        in the headers are hidden in logs and errors.
        """
        headers = _values(self.headers, key)
        keep_headers(headers, owner=owner)
        return headers


def _values(given: PerTenant, key: SessionKey) -> dict[str, str]:
    if given is None:
        return {}
    return dict(given if isinstance(given, Mapping) else given(key.scope, key.principal))
