"""How rows say what they change: the column that every room knows."""

__all__ = ["DELETE", "INSERT", "OP_COLUMN", "UPDATE_AFTER", "UPDATE_BEFORE"]

OP_COLUMN = "__op"
INSERT, UPDATE_BEFORE, UPDATE_AFTER, DELETE = range(4)
"""Values of OP_COLUMN: an even one adds a row, an odd one takes it away."""
