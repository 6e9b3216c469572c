"""The programs that an instance may run: how each is called, and what its output means.

claude and opencode are called as their own documents say today, to work on one task and end: with events as JSON lines, or as plain text.
Both read a stdin that is open until it ends, so theirs is empty.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from sabot.process.errors import InvalidContext, ProviderError


@dataclass(frozen=True)
class ProgramTask:
    """What an instance is to do. resume: the program's own session, which it goes on with."""

    task: str
    context: str | None = None
    system_prompt: str | None = None
    resume: str | None = None
    arguments: tuple[str, ...] = ()
    json: bool = True

    def text(self, *, with_system_prompt: bool = False) -> str:
        """The task, after what it has to know."""
        parts = [self.system_prompt if with_system_prompt else None, self.context, self.task]
        return "\n\n".join(each for each in parts if each)


@dataclass(frozen=True)
class AgentProgram:
    """argv: its call. answer: what it says at last, of its events; None where stdout is the answer. session: where an event has the
    session's id.
    """

    name: str
    argv: Callable[[ProgramTask], list[str]]
    answer: Callable[[Iterable[Any]], str] | None = None
    session: str | None = None
    stdin: Literal["pipe", "null"] = "null"

    def session_of(self, event: Any) -> str | None:
        """The id by which the program's session can be resumed, where the event has it."""
        found = event.get(self.session) if self.session is not None and isinstance(event, Mapping) else None
        return found if isinstance(found, str) else None


def program_of(backend: str) -> AgentProgram:
    """`claude`, `opencode`, `X-cli` for the program X, any other name for the program of that name: both get the task as their argument."""
    if backend in _KNOWN:
        return _KNOWN[backend]
    name = backend.removesuffix("-cli")
    if not name:
        raise InvalidContext(f"no program can be called {backend!r}")

    def argv(task: ProgramTask) -> list[str]:
        _refuse_resume(name, task)
        text = task.text(with_system_prompt=True)
        return [name, *task.arguments, text if task.arguments[-1:] == ("--",) else _no_option(name, text)]

    return AgentProgram(name, argv, stdin="pipe")


def _claude(task: ProgramTask) -> list[str]:
    words = ["claude", "-p", _no_option("claude", task.text())]
    words += ["--output-format", "stream-json", "--verbose"] if task.json else ["--output-format", "text"]
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
    return str(last[-1].get("result", ""))


def _opencode(task: ProgramTask) -> list[str]:
    words = ["opencode", "run"]
    if task.json:
        words += ["--format", "json"]
    if task.resume:
        words += ["--session", task.resume]
    return [*words, *task.arguments, _no_option("opencode", task.text(with_system_prompt=True))]


def _answer_of_opencode(events: Iterable[Any]) -> str:
    texts = []
    for each in events:
        match each:
            case {"type": "error", "error": error}:
                raise ProviderError(f"opencode: {error if isinstance(error, str) else json.dumps(error)}")
            case {"type": "text", "part": {"text": str(text)}}:
                texts.append(text)
    return "\n".join(texts)


def _no_option(program: str, text: str) -> str:
    if text.startswith("-"):
        raise InvalidContext(
            f"{program} would take a task that begins with '-' for options: {text[:20]!r}",
            hint='begin with a word; or arguments=["--"], where the program knows that',
        )
    return text


def _refuse_resume(program: str, task: ProgramTask) -> None:
    if task.resume:
        raise InvalidContext(
            f"it is not known how {program} resumes a session", hint="put what it takes for it into arguments="
        )


_KNOWN = {
    "claude": AgentProgram("claude", _claude, _answer_of_claude, "session_id"),
    "opencode": AgentProgram("opencode", _opencode, _answer_of_opencode, "sessionID"),
}
