"""`map_llm`: adds the columns that a model answers to a prompt of each row."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from hashlib import blake2b
from typing import Any

import pyarrow as pa

from sabot.api.calls import PromptCall
from sabot.api.expr import Expr
from sabot.api.nodes import calls as nodes
from sabot.api.nodes.read import only_source
from sabot.api.prompts import Template, distinct_prompts, given_prompts, text_of
from sabot.engine.operators.base import OperatorContext
from sabot.engine.operators.calls.answers import Answers
from sabot.engine.operators.calls.async_operator import AsyncOperator
from sabot.engine.operators.calls.chunks import EndedCall
from sabot.engine.operators.calls.questions import QuestionChunk, QuestionOperator
from sabot.engine.operators.expressions.compiled import compile_expr
from sabot.engine.operators.layout.plan_points import Planners, PlanPoint
from sabot.engine.operators.readers import StateReaders
from sabot.errors import UserError

_CHUNK_ROWS = 4096  # the number of rows whose prompts are made together, and sent in the order of their texts

Prompts = Callable[[pa.RecordBatch], "pa.Array[Any]"]


class _PromptChunk(QuestionChunk):
    """A chunk with a call for each distinct prompt of its rows. A prompt is identified by its digest, and becomes a
    Python text only when the call is made.
    """

    def __init__(self, data: pa.RecordBatch, codes: Any, prompts: Any, questions: list[Any], answers: Answers) -> None:
        super().__init__(data, codes, questions, answers)
        self._prompts = prompts
        self.nbytes += prompts.nbytes

    def asked(self, numbers: list[int]) -> Sequence[Any]:
        prompts: list[str] = self._prompts.take(pa.array(numbers, pa.int64())).to_pylist()
        return prompts

    def outcome(self, number: int, result: Any) -> Any:
        return result


class MapLlm(QuestionOperator):
    """A step that adds the columns of a model's answer behind those of the row. No call is made for a null prompt,
    whose columns are null.

    Rows with equal prompts share one call while they wait, and an answer that is still in the cache of `cache_rows`
    answers needs none. The cache begins with the answers of the checkpoint. Prompts that come together are sent in
    the order of their texts, so that those with the same beginning follow each other: that helps the caches of
    providers.

    Raises UserError if the prompt is not text.
    """

    kind = "map_llm"
    argument = "prompt"
    hint_of_clash = "rename the column first, or give the answer's column another name in output="
    hint_of_failure = "ExecutionEngine(retries=…) repeats the call"
    hint_of_misfit = "change its type in output="

    def __init__(self, asked: PromptCall, **wiring: Any) -> None:
        call = asked.call
        super().__init__(
            call.function,
            call.schema,
            cache_rows=asked.cache_rows,
            options=call.options,
            ordered=call.ordered,
            **wiring,
        )
        self._asked_with = asked
        self.name = f"map_llm({asked.model})"

    def open(self, context: OperatorContext) -> pa.Schema:
        output = super().open(context)
        self._prompts = self._compiled(self._asked_with.prompt)
        if context.parallelism > 1:
            asking: Any = self._asked_with.call.function
            asking.share(self.cache_rows)
        return output

    def _compiled(self, prompt: Any) -> Prompts:
        if isinstance(prompt, Template):
            prompt.check(self.user, self.name)
            return prompt
        if not isinstance(prompt, Expr):
            return partial(self._by_function, prompt)
        made = compile_expr(prompt, self.user)
        if not pa.types.is_string(made.type):
            raise UserError(f"{self.name}: the prompt {prompt.text()} is {made.type}, not text", hint='.cast("string")')
        return made

    def _by_function(self, function: Callable[[pa.RecordBatch], Any], data: pa.RecordBatch) -> Any:
        where = f"{self.name}: {text_of(function)}"
        try:
            given = function(data)
        except Exception as error:
            raise UserError(f"{where}: {type(error).__name__}: {error}") from error
        return given_prompts(given, data.num_rows, where)

    def _question_chunks(self, data: pa.RecordBatch) -> Iterator[tuple[QuestionChunk, int | None]]:
        for start in range(0, data.num_rows, _CHUNK_ROWS):
            piece = data.slice(start, _CHUNK_ROWS)
            column = self._prompts(piece.select(self.user.names))
            prompts, codes = distinct_prompts(column)
            questions: list[Any] = [_digest(prompt) for prompt in prompts.to_pylist()]
            none = None
            if column.null_count:
                none = len(questions)
                questions.append(None)
            yield _PromptChunk(piece, codes, prompts, questions, self.answer), none

    def _restored(self, chunk: QuestionChunk, done: EndedCall, start: int) -> Any:
        question = chunk.questions[int(chunk.codes[done[0] - start])]
        if not isinstance(done[2], pa.RecordBatch) or question is None:
            return done[2]
        answer = tuple(column[0].as_py() for column in done[2].columns)
        self.known.keep(question, answer)
        return answer


def _digest(prompt: str) -> bytes:
    return blake2b(prompt.encode(), digest_size=16).digest()


# -- their place in a plan ----------------------------------------------------------------------------------------------


def plan_map_llm(node: nodes.MapLlm, point: PlanPoint) -> PlanPoint:
    make = partial(MapLlm, node.asked, keys=point.keys or (), source=only_source(node))
    return point.step(node.text(), make, id=node.id).branch_to("dead", node.dead_letter)


PLANNERS: Planners = {nodes.MapLlm: plan_map_llm}

STATE_READERS: StateReaders = {"map_llm": lambda reader: AsyncOperator(keys=reader["keys"])}
