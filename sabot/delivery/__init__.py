"""Exactly-once output. `staged` saves it in checkpoints until it is delivered; `tracks` has the output of one sink, as `parts`; `tokens`
decides what a receiver's token means at a start.
"""

from sabot.delivery.staged import StagedSink, StagedSinks, undelivered

__all__ = ["StagedSink", "StagedSinks", "undelivered"]
