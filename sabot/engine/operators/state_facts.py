"""The facts about an operator's state that a checkpoint stores as JSON values: which there are, and what each one says.

Each operator tells those that it has. A checkpoint of an earlier version can lack some, so a reader of stored facts asks with `get` for
those that were added later. A name is never used again for something else.
"""

from typing import TYPE_CHECKING, Any, TypeAlias

__all__ = ["AgentFacts", "JoinOptions", "OwnFacts", "StateReader", "StateSchema"]

Columns: TypeAlias = list[list[str]]  # [name, type] of each

if TYPE_CHECKING:  # dicts when the program runs: making these classes would cost each start a part of a millisecond
    from typing import TypedDict

    class JoinOptions(TypedDict, total=False):
        """The arguments of a join on which its state depends. They are in its schema and in its reader."""

        left_changes: bool
        right_changes: bool
        broadcast: bool
        left_keep_ms: int | None
        right_keep_ms: int | None
        lower_ms: int | None
        upper_ms: int | None
        strategy: str
        tolerance_ms: int | None
        window: str | list[Any]  # in the schema its text; in the reader its class and its fields (`stored_window`)

    class StateSchema(JoinOptions, total=False):
        """The contents of a state, for people and for the comparison with a changed program (`Stateful.state_schema`)."""

        kind: str  # that of the state, which names its reader (`operators.readers`); every schema has it
        keys: Columns
        columns: Columns  # those of kept rows; of OVER the text of each function between its name and its type
        aggregates: Columns  # [name, text, type of the result]
        arguments: dict[str, str]  # by name, what the state depends on in the types of the arguments
        order: str  # of the rows, if a result depends on it: "event time", "arrival"
        allowed_lateness: int  # ms
        ttl: int | None  # ms
        within: int | None  # ms
        changes: bool  # True if rows are taken away too
        frame: dict[str, int] | str  # of OVER: {"rows": n}, {"ms": n} or "all"
        rows: Columns  # of OVER: those of the rows that wait
        n: int  # rows of each key
        by: Columns  # [name, "ascending" or "descending"]
        ties: str
        ranked: bool
        right_keys: Columns
        how: str  # "inner", "left" and so on
        left: Columns  # of the kept rows of this side
        right: Columns
        pattern: str
        skip: str
        kept: list[list[Any]]  # [step, columns that are kept of its rows]
        remembered: list[list[Any]]
        fraction: float
        seed: int

    class StateReader(JoinOptions, total=False):
        """The facts from which `operators.reading` makes an operator that reads the state (`Stateful.state_reader`)."""

        keys: list[str]
        input: str | None  # the columns of the input, as `schema_text`
        right: str | None  # those of the second input
        calls: list[dict[str, Any]]  # the fields of each aggregate or function of OVER
        shares: bool
        rounds: bool
        changes: bool
        deletes: bool
        sides: dict[str, Any]  # the fields of `joins.sides.Sides`
        how: str
        steps: list[str]  # of a pattern
        size: int  # rows of a count window
        gap_ms: int
        allowed_lateness: int
        ttl_ms: int | None
        within_ms: int | None
        preceding_rows: int | None
        preceding_ms: int | None
        n: int
        by: list[list[Any]]  # [name, True if descending]
        ties: str
        rank: str | None

    class OwnFacts(TypedDict, total=False):
        """Where an operator stands, beside the state in its parts (`StatefulOperator.own_facts`). Times are in ms."""

        watermark: int | None
        late_rows: int
        lateness: dict[str, Any]  # a histogram of how late they were (`late_rows`)
        late: dict[str, "OwnFacts"]  # the two facts above, by side of a join
        latest: int  # event time of all rows
        greatest: int  # new event time
        ahead: list[tuple[int, int]]  # [former, new] event times of rows that the watermark has not passed
        now: int | None
        names: list[str]  # of a function's values
        given: bool  # True if the table was given
        untimed: bool
        unknown_takes: int
        dropped_rows: int
        passed: int  # rows
        arrivals: int  # rows
        state: str  # of a generator of random numbers, as `inc`
        inc: str

    class AgentFacts(TypedDict, total=False):
        """The facts about an agent in a checkpoint, beside its rows and counters (`AgentOperator.own_facts`)."""

        schemas: dict[str, str | None]  # by topic the text of its codec
        format: str
        key_kinds: list[str]  # the kinds of values that keys have had
        begun: list[list[Any]]  # of durable agents, as the next two: [topic, partition, last offset that has begun]
        running: list[str]  # the ids of what runs over rows of the same checkpoint
        pinned: list[list[Any]]  # positions of rows that may come again, and are dropped then

else:
    JoinOptions = StateSchema = StateReader = OwnFacts = AgentFacts = dict
