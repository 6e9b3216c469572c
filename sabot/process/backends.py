"""The programs that an instance may run: how each is called, and what its output means.

claude and opencode are called as their documentation describes: to work on one task, and then to end. They write events
as JSON lines, or plain text. Both would wait for the end of an open stdin, so they are started with an empty one.
"""

import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from sabot.process.command import INHERITED
from sabot.process.errors import InvalidContext, ProviderError
from sabot.process.limits import ResourceLimits
from sabot.process.sandbox.levels import Sandbox, TrustLevel
from sabot.process.streams import CAPACITY_BYTES, json_of

RESULT_SECONDS = 5.0
"""The seconds that a program has to end after the event with its result. Some programs hang then."""


@dataclass(frozen=True, kw_only=True)
class AgentConfig:
    """The configuration of one instance: a program such as claude, which runs as a child process, and its task.

    - `name`: the name of the instance in messages. `task`: the text that the program is to work on.
    - `model_backend`: the program: `claude`, `opencode`, `X-cli` for a program X, or the name of any other program.
    - `context`, `system_prompt`: further texts for the program. A program that has no option for such a text gets it
      as a part of the prompt, before the task.
    - `environment`: environment variables to set for the program. Their values are never shown in error messages.
    - `inherit`: names of variables that the program also gets, with their values in the process that starts it.
    - `resume`: the id of an earlier session of the program, which this instance continues; None for a new session.
    - `arguments`: further command-line options for the program.
    - `limits`, `trust`: the limits and the level of trust of this instance. They can be stricter than those of the
      runner, but not less strict.
    - `working_dir`: the working directory of the program; with None, the `working_dir` of the runner is used.
    - `output_bytes`: the most unread bytes of stdout, and of stderr, that are kept. `lossless`: with True, a program
      that writes more has to wait until they are read; with False, the oldest bytes are dropped.
    """

    name: str
    model_backend: str
    task: str
    context: str | None = None
    system_prompt: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    inherit: tuple[str, ...] = INHERITED
    resume: str | None = None
    arguments: tuple[str, ...] = ()
    limits: ResourceLimits | None = None
    working_dir: str | os.PathLike[str] | None = None
    trust: Sandbox | TrustLevel | str | None = None
    output_bytes: int = CAPACITY_BYTES
    lossless: bool = False


@dataclass(frozen=True)
class AgentProgram:
    """The command line of one program, such as claude, and the form of its output.

    - `argv`: a function that is called with an AgentConfig and a bool, and returns the command line. If the bool is
      True, the command line tells the program to write its events as JSON lines. It raises InvalidContext for a task
      that the program would take for an option, and for a `resume` that the program does not support.
    - `answer`: a function that is called with the events, and returns the final answer; None if the program's whole
      stdout is the answer.
    - `told`: the types of the events that `answer` reads.
    - `result`: the type of the event after which the program has nothing more to do; None if there is no such event.
    - `session`: the name of the field in an event that contains the id of the program's session; None if events have
      no such field.
    - `stdin`: "pipe" if the caller can write to the program, "null" if the program gets an empty stdin.
    """

    name: str
    argv: Callable[[AgentConfig, bool], list[str]]
    answer: Callable[[Iterable[Any]], str] | None = None
    session: str | None = None
    stdin: Literal["pipe", "null"] = "null"
    told: tuple[str, ...] = ()
    result: str | None = None

    def session_of(self, event: Any) -> str | None:
        """Returns the id of the program's session that `event` contains; None if it contains no id. A later instance
        can resume the session with this id. `event`: the JSON value of one line of the program's output.
        """
        found = event.get(self.session) if self.session is not None and isinstance(event, Mapping) else None
        return found if isinstance(found, str) else None

    def is_result(self, line: bytes | str) -> bool:
        """Returns True if the line of the program's output is the event after which it has nothing more to do."""
        return self.result is not None and type_of(line, (self.result,)) is not None


def type_of(line: bytes | str, types: Iterable[str]) -> str | None:
    """Returns the type of the event in a line of output, if it is one of `types`; else None. Most lines are not decoded."""
    text = line if isinstance(line, str) else line.decode(errors="replace")
    if not any(f'"{each}"' in text for each in types):
        return None
    event = json_of(text)
    found = event.get("type") if isinstance(event, Mapping) else None
    return found if isinstance(found, str) and found in types else None


def program_of(backend: str) -> AgentProgram:
    """Returns the program for a value of `model_backend`:

    - `claude` or `opencode`: this program, with its own options and events.
    - `X-cli`, or any other name X: the program X. It gets the task as its only argument, after `arguments`, and has
      no events.

    Raises InvalidContext if the name is empty.
    """
    if backend in _KNOWN:
        return _KNOWN[backend]
    name = backend.removesuffix("-cli")
    if not name:
        raise InvalidContext(f"no program can be called {backend!r}")

    def argv(task: AgentConfig, json_lines: bool) -> list[str]:
        _refuse_resume(name, task)
        text = _text(task, with_system_prompt=True)
        return [name, *task.arguments, text if task.arguments[-1:] == ("--",) else _no_option(name, text)]

    return AgentProgram(name, argv, stdin="pipe")


def _claude(task: AgentConfig, json_lines: bool) -> list[str]:
    words = ["claude", "-p", _no_option("claude", _text(task))]
    words += ["--output-format", "stream-json", "--verbose"] if json_lines else ["--output-format", "text"]
    if task.system_prompt:
        words += ["--append-system-prompt", task.system_prompt]
    if task.resume:
        words += ["--resume", task.resume]
    return [*words, *task.arguments]


def _answer_of_claude(events: Iterable[Any]) -> str:
    last = [each for each in events if isinstance(each, Mapping) and each.get("type") == "result"]
    if not last:
        raise ProviderError("claude ended without a result")
    if last[-1].get("is_error") or last[-1].get("subtype") != "success":
        said = last[-1].get("result") or last[-1].get("errors") or ""
        raise ProviderError(f"claude: {last[-1].get('subtype')}: {said}")
    found = last[-1].get("result")
    return found if isinstance(found, str) else "" if found is None else json.dumps(found, ensure_ascii=False)


def _opencode(task: AgentConfig, json_lines: bool) -> list[str]:
    words = ["opencode", "run"]
    if json_lines:
        words += ["--format", "json"]
    if task.resume:
        words += ["--session", task.resume]
    return [*words, *task.arguments, _no_option("opencode", _text(task, with_system_prompt=True))]


def _answer_of_opencode(events: Iterable[Any]) -> str:
    texts = []
    for each in events:
        match each:
            case {"type": "error", "error": error}:
                raise ProviderError(f"opencode: {error if isinstance(error, str) else json.dumps(error)}")
            case {"type": "text", "part": {"text": str(text)}}:
                texts.append(text)
    return "\n".join(texts)


def _text(task: AgentConfig, *, with_system_prompt: bool = False) -> str:
    """Returns one text for the program: the `context`, the `system_prompt` if `with_system_prompt` is True, and the
    task.
    """
    parts = [task.system_prompt if with_system_prompt else None, task.context, task.task]
    return "\n\n".join(each for each in parts if each)


def _no_option(program: str, text: str) -> str:
    if text.startswith("-"):
        raise InvalidContext(
            f"{program} would take a task that begins with '-' for options: {text[:20]!r}",
            hint='begin with a word; or arguments=["--"], where the program knows that',
        )
    return text


def _refuse_resume(program: str, task: AgentConfig) -> None:
    if task.resume:
        raise InvalidContext(
            f"it is not known how {program} resumes a session", hint="put what it takes for it into arguments="
        )


_KNOWN = {
    "claude": AgentProgram("claude", _claude, _answer_of_claude, "session_id", told=("result",), result="result"),
    "opencode": AgentProgram("opencode", _opencode, _answer_of_opencode, "sessionID", told=("text", "error")),
}
