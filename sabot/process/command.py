"""The command of a program to be started, the request that asks the supervisor to start it, and the error if it did not
start.
"""

import errno
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from sabot.base.checks import FLAG, Of, OneOf, Texts, check_fields
from sabot.base.config import check_numbers
from sabot.base.redaction import keep_settings
from sabot.errors import UserError
from sabot.process.errors import SandboxPathRefused, SandboxStepFailed, SpawnFailed
from sabot.process.limits import ResourceLimits
from sabot.process.sandbox.levels import Sandbox, TrustLevel, sandbox_of
from sabot.process.sandbox.reach import Confined, confined
from sabot.process.streams import CAPACITY_BYTES

INHERITED = (
    "PATH",
    "HOME",
    "USER",
    "LOGNAME",
    "SHELL",
    "TERM",
    "TMPDIR",
    "TZ",
    "LANG",
    "LANGUAGE",
    "LC_ALL",
    "LC_CTYPE",
)
"""The variables of the worker's environment that a child gets by default (`Command.inherit`)."""


@dataclass(frozen=True, kw_only=True)
class Command:
    """A program to be started, with its arguments, environment, streams, limits and sandbox. The worker is the
    process that starts it.

    - `argv`: the program and its arguments. A program without a slash is looked for on the PATH of its environment,
      as a shell does.
    - `environment`: variables to set. Their values are never shown in error messages. If the name of a variable looks
      like that of a secret (for example `API_KEY`), its value is also hidden in errors that quote the program's
      output.
    - `inherit`: names of the worker's variables that the program also gets. The program gets no other variables.
    - `working_dir`: the directory of the program; the worker's current directory if None.
    - `stdin`, `stdout`, `stderr`: "pipe" for a stream that the worker writes or reads, or "null" for /dev/null.
      `stderr` may also be "stdout": then the program writes its errors into stdout.
    - `limits`: limits of the program with all its descendants; None for no limits.
    - `trust`: a level of trust or a `Sandbox`, by which the program is confined. With None it has all rights of the
      worker. A confined program can write in its `working_dir`; without a `working_dir` it gets an empty private /tmp
      to write in.
    - `output_bytes`: the most unread bytes of stdout, and of stderr, that the worker keeps.
    - `lossless`: what happens when a stream has so many unread bytes. With True, the program has to wait until they
      are read; with False, the oldest bytes are dropped.
    """

    argv: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    inherit: Sequence[str] = INHERITED
    working_dir: str | os.PathLike[str] | None = None
    stdin: Literal["pipe", "null"] = "pipe"
    stdout: Literal["pipe", "null"] = "pipe"
    stderr: Literal["pipe", "null", "stdout"] = "pipe"
    limits: ResourceLimits | None = None
    trust: Sandbox | TrustLevel | str | None = None
    output_bytes: int = CAPACITY_BYTES
    lossless: bool = False

    def __post_init__(self) -> None:
        if not are_texts(self.argv) or not self.argv:
            raise UserError("a command is a sequence of words", hint='argv=["git", "status"]')
        if not isinstance(self.environment, Mapping) or not all(
            isinstance(each, str) for pair in self.environment.items() for each in pair
        ):
            raise UserError("an environment maps names to texts", hint='environment={"RETRIES": "3"}')
        streams = OneOf(("pipe", "null"))
        check_fields(self, stdin=streams, stdout=streams, stderr=OneOf((*streams.words, "stdout")), lossless=FLAG)
        check_numbers(self, "output_bytes", whole=True)
        check_fields(
            self,
            self.argv[0],
            inherit=Texts(hint='a sequence of names: ("PATH", "LANG")'),
            working_dir=Of(str | os.PathLike | None, "a path"),
            limits=Of(ResourceLimits | None, "ResourceLimits(...)"),
        )
        words = [*self.argv, *self.environment, *self.environment.values(), str(self.working_dir or "")]
        if not self.argv[0] or any("\0" in each for each in words):
            raise UserError("a command has an empty program, or a null character in it")
        for where, text in [
            *((f"argv[{number}]", each) for number, each in enumerate(self.argv)),
            *((f"the name of the variable {name!r}", name) for name in self.environment),
            *((f"environment[{name!r}]", each) for name, each in self.environment.items()),
            ("working_dir", os.fsdecode(self.working_dir or "")),
        ]:
            _check_encoded(f"{self.argv[0]!r}: {where}", text)
        if wrong := [name for name in self.environment if not name or "=" in name]:
            raise UserError(f"no names of environment variables: {[name.partition('=')[0] for name in wrong]}")
        sandbox_of(self.trust)
        keep_settings(self.environment, owner=self)

    def whole_environment(self) -> dict[str, str]:
        """Returns all environment variables of the program: those of the worker that `inherit` names, and
        `environment`.
        """
        return {name: os.environ[name] for name in self.inherit if name in os.environ} | dict(self.environment)


def are_texts(given: object) -> bool:
    """Returns True if `given` is a collection of texts, such as a list. Returns False for a single text."""
    return isinstance(given, Collection) and not isinstance(given, str) and all(isinstance(each, str) for each in given)


def _check_encoded(where: str, text: str) -> None:
    """Raises UserError if the text cannot be part of a file name or a variable. The message does not show the text, which
    may be a secret. `where`: the place of the text, for the message.
    """
    try:
        os.fsencode(text)
    except UnicodeEncodeError as error:
        raise UserError(
            f"{where} has half a surrogate pair, {text[error.start]!r}, at {error.start}: no program can be given that",
            hint='text.encode("utf-8", "replace").decode() has none',
        ) from None


def confined_command(command: Command) -> Confined:
    """Prepares the sandbox that `command.trust` names. Returns the plan of its confinement, and the environment and
    the directory with which the program is started. Raises SandboxUnavailable or SandboxPathRefused if the sandbox
    cannot be made on this system, and IoError if the records of writable folders cannot be used.
    """
    sandbox = sandbox_of(command.trust)
    assert sandbox is not None
    where = None if command.working_dir is None else os.path.abspath(command.working_dir)
    return confined(sandbox, command.argv, command.whole_environment(), command.environment, where)


def spawn_request(number: int, command: Command, sandbox: Confined | None) -> dict[str, Any]:
    """Returns the message that asks the supervisor to start the command.

    `number`: the number that the worker gives the child. `sandbox`: the result of `confined_command`; None for no
    sandbox.
    """
    return {
        "do": "spawn",
        "child": number,
        "argv": list(command.argv),
        "environment": command.whole_environment() if sandbox is None else sandbox.environment,
        "limits": {} if command.limits is None else command.limits.plan(),
        "directory": os.path.abspath(command.working_dir or os.getcwd()) if sandbox is None else sandbox.directory,
        "sandbox": None if sandbox is None else sandbox.plan,
    }


def spawn_failure(command: Command, said: Mapping[str, Any]) -> SpawnFailed:
    """Returns the error for a program that did not start, with the reason and a hint. `said`: the supervisor's report of the failure."""
    program, number, step = command.argv[0], said["errno"], said["step"]
    why, what = (os.strerror(number), said.get("what", "")) if number else (said.get("what", ""), "")
    hint = ""
    match step, number:
        case "sandbox-directory", _:
            return SandboxPathRefused(
                f"{program}: the user of its sandbox may not write in its working directory {os.fspath(command.working_dir or '')!r}",
                hint="make it over to user 65534: chown -R 65534:65534",
            )
        case "directory" | "sandbox-paths" | "sandbox-mounts", errno.ELOOP if command.trust is not None:
            return SandboxPathRefused(
                f"{program}: its sandbox names {what!r}, and a symbolic link was put there after the path was checked",
                hint="another program in a sandbox, which may write there, has done that",
            )
        case str(), _ if step.startswith("sandbox-"):
            return SandboxStepFailed(
                f"{program}: its sandbox ({step.removeprefix('sandbox-')}): {f'{what}: ' if what else ''}{why}"
            )
        case "directory", _:
            why = f"its working directory {os.fspath(command.working_dir or os.getcwd())!r}: {why}"
        case "interpreter", _:
            why = "it is a script, and the interpreter that its first line names is not there"
        case "program", errno.ENOENT if "/" in program:
            why = "there is no such file"
        case "program", errno.ENOENT:
            why = f"not found on PATH ({command.whole_environment().get('PATH', os.defpath)})"
            hint = "install it, or give its path"
        case "program", errno.EACCES if command.trust is not None:
            why = "the user of its sandbox may not execute it"
            hint = "is it executable by anybody, and is what it needs among Sandbox(readable=)?"
        case "program", errno.EACCES:
            why = "it is not executable"
        case "program", errno.ENOEXEC:
            why = "it is neither a program for this machine nor a script with a first line that begins with #!"
        case "program", errno.E2BIG:
            why = "its arguments and environment are longer than the system takes"
            hint = "give long input on stdin"
        case "fork", _:
            why = f"no process could be made for it: {why}"
        case _:
            why = f"{step}: {why}"
    return SpawnFailed(f"{program}: {why}", hint=hint)


@dataclass(frozen=True, slots=True)
class ToolRequest:
    """A call of a tool, by its name and its arguments. `sabot.mcp.ToolCall` is this class."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
