"""From the graph of nodes that users wrote to the stages that run. There are no threads, sockets or clocks here."""

from sabot.engine.operators.layout.stages import Edge, Reading, Stage, Step, column_types
from sabot.engine.plan.agents import (
    agreed_deliveries,
    agreed_formats,
    agreed_nans,
    arranged,
    dead_letter_topics,
    fed_by_streams,
    inputs_of,
    leading_to,
    letter_sinks,
    only_letters,
    place_of_sink,
    ways_of_labels,
)
from sabot.engine.plan.fills import Way, ways
from sabot.engine.plan.mermaid import mermaid
from sabot.engine.plan.optimise import behind_known, ending, ending_at, walk, with_schemas
from sabot.engine.plan.planner import SavedSource, make_plan
from sabot.engine.plan.refills import Refill, kept_tables, reemit_of, refill_of
from sabot.engine.plan.stages import Plan, check_alike
from sabot.engine.plan.standing import COMPLETE, SinkTable, described, fed_by, name_of_sink, standings, tables_in
from sabot.engine.plan.state_matching import changed_steps, check, compare, planned
from sabot.engine.plan.verdicts import Planned, Verdict, refill_options, steps_of_tables

__all__ = [
    "COMPLETE",
    "Edge",
    "Plan",
    "Planned",
    "Reading",
    "Refill",
    "SavedSource",
    "SinkTable",
    "Stage",
    "Step",
    "Verdict",
    "Way",
    "agreed_deliveries",
    "agreed_formats",
    "agreed_nans",
    "arranged",
    "behind_known",
    "changed_steps",
    "check",
    "check_alike",
    "column_types",
    "compare",
    "dead_letter_topics",
    "described",
    "ending",
    "ending_at",
    "fed_by",
    "fed_by_streams",
    "inputs_of",
    "kept_tables",
    "leading_to",
    "letter_sinks",
    "make_plan",
    "mermaid",
    "name_of_sink",
    "only_letters",
    "place_of_sink",
    "planned",
    "reemit_of",
    "refill_of",
    "refill_options",
    "standings",
    "steps_of_tables",
    "tables_in",
    "walk",
    "ways",
    "ways_of_labels",
    "with_schemas",
]
