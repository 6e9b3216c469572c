"""The base of steps that add an answer to each row: `lookup` with a function, and `map_llm`. The question is the
argument of the call: a key or a prompt.

Equal questions of rows that came together are asked once. A question with a kept answer needs no call, and equal
questions in flight share one call. If all questions of a batch have kept answers, its rows are emitted at once,
without the event loop.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from sabot.engine.calls.cache import UNKNOWN, Questions
from sabot.engine.calls.handover import Call, Failed
from sabot.engine.operators.base import OperatorContext, with_time
from sabot.engine.operators.calls.answers import Answers, joined
from sabot.engine.operators.calls.async_operator import AsyncOperator
from sabot.engine.operators.calls.chunks import Chunk, EndedCall
from sabot.engine.operators.row_queue import RowNumbers
from sabot.errors import UserError

if TYPE_CHECKING:
    from sabot.base.figures import ToldStep

_TAKE_QUESTIONS = 64  # the number of questions that become Python objects at a time, on the event loop


class QuestionChunk(Chunk):
    """A chunk of rows with a call for each distinct question. `codes`: the number of each row's question.

    `questions`: the cache key of each call. `owned`: the numbers of the calls that this chunk makes; the other
    questions have answers already, or another chunk makes their calls.
    """

    def __init__(self, data: pa.RecordBatch, codes: Any, questions: list[Any], answers: Answers) -> None:
        super().__init__(data, len(questions), codes)
        self.questions = questions
        self.owned: list[int] = []
        self._answers = answers

    @property
    def calls(self) -> int:
        return len(self.owned)

    @property
    def exhausted(self) -> bool:
        return self._taken >= len(self.owned)

    def take(self, places: Iterator[int]) -> Sequence[Call]:
        first, self._taken = self._taken, min(self._taken + _TAKE_QUESTIONS, len(self.owned))
        numbers = self.owned[first : self._taken]
        return [(self, number, each, next(places)) for number, each in zip(numbers, self.asked(numbers), strict=True)]

    def argument(self, number: int) -> Any:
        return self.asked([number])[0]

    def asked(self, numbers: list[int]) -> Sequence[Any]:
        """Returns the arguments of these calls."""
        return [self.questions[number] for number in numbers]

    def outcome(self, number: int, result: Any) -> Any:
        return self._answers.outcome(result)


class QuestionOperator(AsyncOperator):
    """The base class: adds the columns of `schema` to each row. A subclass yields chunks with the questions of rows
    (`_question_chunks`).

    `names`: the names of added columns that are renamed. `inner`: True if rows without an answer are dropped, False
    if they have nulls. `cache_rows`: the number of answers that are kept; the least recently used one is removed
    first. `cache_ttl_s`: the processing time in seconds for which an answer is kept, or None for no limit. Failed
    calls leave no answer.

    `known`: the kept answers, and the questions in flight. `answer`: the converter of outcomes to columns. Raises
    UserError if an added column has the name of another.
    """

    hint_of_clash = "give the added columns a suffix"

    def __init__(
        self,
        function: Callable[[Any], Any],
        schema: pa.Schema,
        *,
        names: dict[str, str] | None = None,
        inner: bool = False,
        cache_rows: int = 10_000,
        cache_ttl_s: float | None = None,
        **calls: Any,
    ) -> None:
        super().__init__(function, **calls)
        self._schema, self._names, self._inner = schema, names or {}, inner
        self.cache_rows, self._cache_ttl_s = cache_rows, cache_ttl_s
        self._asked = 0

    def open(self, context: OperatorContext) -> pa.Schema:
        super().open(context)
        self.known: Questions[Any, tuple[QuestionChunk, int]] = Questions(
            self.cache_rows, self._cache_ttl_s, context.clock
        )
        self.answer = Answers(self.name, self._schema, several=False)
        added = [field.with_name(self._names.get(field.name, field.name)) for field in self.answer.schema]
        columns = [*self.user, *added]
        names = [field.name for field in columns]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise UserError(f"{self.name}: the result would have two columns {twice!r}", hint=self.hint_of_clash)
        self._output = with_time(pa.schema(columns), self.timed)
        return self._output

    # -- questions ----------------------------------------------------------------------------------------------------

    def _question_chunks(self, data: pa.RecordBatch) -> Iterable[tuple[QuestionChunk, int | None]]:
        """Divides these rows into chunks, in order, and yields each as (chunk, number). The number is that of the
        call that stands for all rows without a question, which is not made; None if all rows have a question.
        """
        raise NotImplementedError

    def _chunks(self, data: pa.RecordBatch, done: Sequence[EndedCall]) -> Iterable[Chunk]:
        at = start = 0
        for chunk, none in self._question_chunks(data):
            if none is not None:
                chunk.set_outcome(none, None)
            while at < len(done) and done[at][0] < start + chunk.rows:
                chunk.set_outcome(int(chunk.codes[done[at][0] - start]), self._restored(chunk, done[at], start))
                at += 1
            start += chunk.rows
            self._plan_calls(chunk)
            yield chunk

    def _restored(self, chunk: QuestionChunk, done: EndedCall, start: int) -> Any:
        """Returns the outcome of a call that had ended before a restore."""
        return done[2]

    def _plan_calls(self, chunk: QuestionChunk) -> None:
        """Sets the outcomes of questions with kept answers. Of the other questions, the chunk makes the calls that no
        other chunk is making.
        """
        questions, settled = self.known, chunk.settled.tolist()
        now = questions.now()
        self._asked += len(chunk.questions)
        for number, question in enumerate(chunk.questions):
            if settled[number]:
                continue
            answer = questions.known(question, now)
            if answer is not UNKNOWN:
                chunk.set_outcome(number, answer)
            elif (waiting := questions.under_way(question)) is not None:
                waiting.append((chunk, number))
            else:
                chunk.owned.append(number)

    def _call_ended(self, chunk: Any, number: int) -> None:
        question, outcome = chunk.questions[number], chunk.outcomes[number]
        super()._call_ended(chunk, number)
        for other, its in self.known.answered(question, outcome, keep=type(outcome) is not Failed):
            other.outcomes[its] = outcome
            super()._call_ended(other, its)

    # -- output -------------------------------------------------------------------------------------------------------

    def _results(self, parts: list[tuple[Chunk, RowNumbers]]) -> pa.RecordBatch | None:
        pieces = [piece for chunk, rows in parts if (piece := self._with_answers(chunk, rows)).num_rows]
        return joined(pieces) if pieces else None

    def _with_answers(self, chunk: Chunk, rows: RowNumbers) -> pa.RecordBatch:
        calls, places = np.unique(chunk.codes[rows], return_inverse=True)
        outcomes = [chunk.outcomes[call] for call in calls.tolist()]

        def refuse(number: int, what: str) -> Any:
            mine = np.flatnonzero(places == number)
            failed = self.misfit(chunk, int(rows[mine[0]]), what)
            self.send_to_dead_letters(chunk, rows[mine[1:]], [failed] * (len(mine) - 1))
            return failed

        answers, counts, outcomes = self.answer.columns(outcomes, refuse)
        found = np.where(counts > 0, np.cumsum(counts) - 1, -1)[places]
        dead = np.array([type(outcome) is Failed for outcome in outcomes], np.bool_)[places]
        kept = found >= 0 if self._inner else ~dead
        if not kept.all():
            rows, found = rows[kept], found[kept]
        data = chunk.data
        if len(rows) and int(rows[-1]) - int(rows[0]) + 1 == len(rows):
            data = data.slice(int(rows[0]), len(rows))
        else:
            data = data.take(pa.array(rows))
        added = answers.take(pa.array(found, mask=found < 0)).columns
        columns = [*data.columns[: len(self.user)], *added]
        if self.timed:
            columns.append(data.column(data.num_columns - 1))
        return pa.RecordBatch.from_arrays(columns, schema=self._output)

    def _answers(self) -> Answers | None:
        return self.answer

    def statistics(self) -> "ToldStep":
        return {
            **super().statistics(),
            "cached_rows": len(self.known),
            "cache_hits": self.known.hits,
            "distinct_keys": self._asked,
        }
