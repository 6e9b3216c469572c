"""Answers of a real model, recorded in a file and replayed."""

import os
from pathlib import Path

import msgspec

from sabot.engine.calls.model_requests import RequestSpec
from sabot.errors import UNREADABLE, UserError, short_repr
from sabot.llm.provider import Provider
from sabot.llm.results import Completion


class _Kept(msgspec.Struct):
    request: RequestSpec
    answer: Completion


class RecordedAnswers:
    """A function for `ScriptedProvider` and `FakeModelServer` that replays a real model's answers to the same
    requests.

        RecordedAnswers("tests/answers.ndjson", OpenAIProvider("gpt-4o-mini"))      asks the model if the file has no answer, and records it
        RecordedAnswers("tests/answers.ndjson")                                     never asks

    `path`: an NDJSON file with a request and its answer in each line. You may edit it; a line that you remove is
    recorded again. `provider`: the model to ask; without it, a request that is not in the file raises UserError.
    Errors of the provider are raised and not recorded. Raises UserError if the file cannot be read.
    """

    def __init__(self, path: str | os.PathLike[str], provider: Provider | None = None) -> None:
        self._path = Path(path)
        self._provider = provider
        self._answers: dict[bytes, Completion] = {}
        self._before = b""  # what the next answer is written after: a newline if an editor has left out the last one
        if self._path.exists():
            text = self._path.read_bytes()
            self._before = b"" if not text or text.endswith(b"\n") else b"\n"
            for number, line in enumerate(text.splitlines(), 1):
                if not line.strip():
                    continue
                try:
                    kept = msgspec.json.decode(line, type=_Kept)
                except UNREADABLE as error:
                    raise UserError(f"{self._path}: line {number} is no recorded answer: {error}") from error
                self._answers[kept.request.digest()] = kept.answer

    async def __call__(self, spec: RequestSpec) -> Completion:
        """Returns the answer to this request."""
        digest = spec.digest()
        if digest not in self._answers:
            if self._provider is None:
                raise UserError(
                    f"{self._path} has no answer to {short_repr(spec)}",
                    hint="record it: RecordedAnswers(path, provider)",
                )
            answer = await self._provider.complete(spec)
            if digest not in self._answers:  # an equal request may have been answered meanwhile
                self._answers[digest] = answer
                with self._path.open("ab") as file:
                    file.write(self._before + msgspec.json.encode(_Kept(spec, answer), order="deterministic") + b"\n")
                self._before = b""
        return self._answers[digest]
