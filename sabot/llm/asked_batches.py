"""Models in batch agents: a column of prompts becomes columns of answers, and equal prompts are asked once.

`AgentModel` is for agents that are not durable; `models.JobModel` makes each question an effect of a job.
"""

from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from sabot._cython.arrow.batch import normalise
from sabot.api.expr import Expr
from sabot.api.prompts import Template, distinct_prompts, given_prompts, prompt_of, text_of
from sabot.base.arrays import column_of
from sabot.engine.calls.model_requests import RequestContext, RequestSpec
from sabot.engine.calls.schema import Schema
from sabot.engine.calls.tools import Tool
from sabot.errors import SabotError, UserError
from sabot.llm.asking import Asking
from sabot.llm.columns import AnswerColumns
from sabot.llm.direct import DirectEffects
from sabot.llm.engine_core import Engine
from sabot.llm.requests import error_of_end
from sabot.llm.results import Completion, Piece

Said = Completion | SabotError
"""The outcome of a question: the answer, or the error."""

_WHERE = "llm.map"


class AgentModel:
    """The object that `ctx.llm(engine)` returns in an agent that is not durable. It asks the models of the engine
    directly, without a journal. So if the agent's function is called again after an error, the model is asked again.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._alone = DirectEffects(engine, RequestContext())

    async def complete(self, prompt: object, *, output: Any = None, **fields: Any) -> Completion:
        """Returns the answer of the model. Arguments and errors are those of `ExecutionEngine.complete`."""
        return await self.engine.complete(prompt, output=output, **fields)

    def stream(self, prompt: object, **fields: Any) -> AsyncGenerator[Piece, None]:
        """Yields the answer of the model in pieces. Arguments and errors are those of `ExecutionEngine.stream`."""
        return self.engine.stream(prompt, **fields)

    async def map(
        self,
        prompt: Any,
        batch: Any,
        *,
        output: Any = None,
        instructions: str = "",
        error: str = "",
        allow_cut: bool = False,
        **fields: Any,
    ) -> pa.RecordBatch:
        """Asks the model once for each different prompt, and returns the rows of the batch with the columns of the
        answers appended.

        - `prompt`: a template with the names of columns, such as "Sentiment of: {text}"; or a function that gets the
          batch and returns one prompt for each row; or a list of prompts, one for each row. If the prompt of a row is
          None, the model is not asked, and the row has null in the columns of the answer.
        - `output`, `instructions`, `allow_cut`, `fields`: the same as in `Stream.map_llm`.
        - `error`: the name of another column, with the message of the error of each row, or null if the row has none.
          With "" there is no such column, and the first error is raised after all calls have ended.

        Raises UserError for arguments that are not valid. Without `error`, also raises ModelError and BudgetExceeded.
        """
        columns = AnswerColumns(output, _WHERE, allow_cut=allow_cut)
        asking = Asking(self.engine, columns, instructions, fields, _WHERE)
        data = normalise(batch)
        added = [*columns.schema, *([pa.field(error, pa.string())] if error else [])]
        names = [*data.schema.names, *(field.name for field in added)]
        if clash := [name for name in names if names.count(name) > 1]:
            raise UserError(
                f"{_WHERE}: the result would have two columns {clash[0]!r}", hint="another name in output= or error="
            )
        texts, codes = distinct_prompts(_prompts(prompt, data))
        said = await self.answer_all([asking.request(text) for text in texts.to_pylist()], columns.output)
        looks = allow_cut or columns.output is not None or not any(map(_is_cut, said)) or self.looks_at_ends()
        values, errors = _values(columns, said, looks_at_ends=looks)
        if errors and not error:
            raise errors[next(code for code in codes.tolist() if code in errors)]
        places = pa.array(codes, mask=codes == len(texts))
        made = [column_of(column, field.type) for column, field in zip(values, columns.schema, strict=True)]
        if error:
            made.append(pa.array([_words(errors.get(code)) for code in range(len(texts))], pa.string()))
        answers = [column.take(places) for column in made]
        return pa.RecordBatch.from_arrays([*data.columns, *answers], schema=pa.schema([*data.schema, *added]))

    def of(self, engine: Engine) -> "AgentModel":
        """Returns an AgentModel that asks the models of `engine`. An `Agent` uses it to ask the engine of a sub-agent."""
        return AgentModel(engine)

    async def call(self, tool: Tool, arguments: Mapping[str, Any], said: str | None = None) -> Any:
        """Calls a tool directly, without a journal. Raises the error of the tool, or ToolTimeout."""
        return await self._alone.call(tool, arguments)

    def looks_at_ends(self) -> bool:
        """Returns True, because no journal has recorded what was done with an answer (`AgentEffects`)."""
        return True

    def note_labels(self, labels: frozenset[str], /) -> None:
        """Gives labels of data to the job in whose tool the agent runs, if it runs in one (`AgentEffects`)."""
        self._alone.note_labels(labels)

    async def answer_all(self, requests: Sequence[RequestSpec], output: Schema | None) -> Sequence[Said]:
        """Sends each request to the model, and returns the answers in the order of the requests. If a request has
        failed, the list has its error in place of an answer. `output`: the schema by which the answers are decoded, or
        None.
        """
        return await self.engine.complete_many(requests, output=output, errors="return")


def _prompts(prompt: Any, data: pa.RecordBatch) -> pa.Array:
    if isinstance(prompt, Expr):
        raise UserError(
            f"{_WHERE}: {prompt.text()} is an expression, which only streams can use",
            hint='a template, "Sentiment of: {text}"; or batch.column("question")',
        )
    if not isinstance(prompt, str) and not callable(prompt):
        return given_prompts(prompt, data.num_rows, _WHERE)
    made = prompt_of(prompt, _WHERE)
    if isinstance(made, Template):
        return made(data, _WHERE)
    assert not isinstance(made, Expr)
    return given_prompts(made(data), data.num_rows, f"{_WHERE}: {text_of(made)}")


def _is_cut(said: Said) -> bool:
    """Returns True for an answer that earlier versions took as a value, although it was cut off or is empty."""
    is_filtered = isinstance(said, Completion) and said.finish_reason == "content_filter"
    return isinstance(said, Completion) and not is_filtered and error_of_end(said) is not None


def _values(
    columns: AnswerColumns, said: Sequence[Said], *, looks_at_ends: bool
) -> tuple[list[list[Any]], dict[int, SabotError]]:
    """Returns a pair. The first value has one list for each column, with one value for each answer of `said`. The
    second value is a dict of the errors by the index of the answer in `said`. An answer with an error has the value
    None in each column. `looks_at_ends`: False in a job that has passed this place in an earlier version, which took
    texts that were cut off (`AgentEffects.looks_at_ends`).
    """
    nothing = (None,) * len(columns.schema)
    values: list[tuple[Any, ...]] = []
    errors: dict[int, SabotError] = {}
    for number, answer in enumerate(said):
        try:
            if isinstance(answer, SabotError):
                raise answer
            values.append(columns.values(answer, looks_at_end=looks_at_ends))
        except SabotError as error:
            errors[number] = error
            values.append(nothing)
    return [[each[column] for each in values] for column in range(len(columns.schema))], errors


def _words(error: SabotError | None) -> str | None:
    return None if error is None else f"{type(error).__name__}: {error.message}"
