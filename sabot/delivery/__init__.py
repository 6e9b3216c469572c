"""Exactly-once output: saved in a checkpoint until it is delivered (`staged`), in `tracks` of `parts`; what a receiver's token means at a
start (`tokens`).
"""

from sabot.delivery.staged import StagedSink, StagedSinks, undelivered
from sabot.delivery.tokens import CHOICES

__all__ = ["CHOICES", "StagedSink", "StagedSinks", "undelivered"]
