"""What agents call: tools. `tools` is the contract."""

from sabot.journal.effects import Reconciled
from sabot.llm.tools import Effect, Tool, tool

__all__ = ["Effect", "Reconciled", "Tool", "tool"]
