"""Exactly-once output. `staged` saves output in checkpoints until it is delivered, `tracks` delivers the output of
one sink, `parts` writes the files of output, and `tokens` decides at a start, by the receiver's token, what has to be
delivered.
"""

from sabot.engine.delivery.staged import StagedSink, StagedSinks, undelivered

__all__ = ["StagedSink", "StagedSinks", "undelivered"]
