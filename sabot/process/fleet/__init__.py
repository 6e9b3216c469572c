"""Many child processes: their lives, what they may use, warm ones, a fleet that grows and shrinks, their health."""
