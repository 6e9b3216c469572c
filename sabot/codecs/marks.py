"""The columns of ours that stand behind the user's, which every room knows: when a row is, and what it changes."""

__all__ = ["DELETE", "INSERT", "OP_COLUMN", "TIME_COLUMN", "UPDATE_AFTER", "UPDATE_BEFORE"]

TIME_COLUMN = "__time"
OP_COLUMN = "__op"
INSERT, UPDATE_BEFORE, UPDATE_AFTER, DELETE = range(4)
"""Values of OP_COLUMN: an even one adds a row, an odd one takes it away."""
