"""The columns that the engine adds behind the user's columns: the event time of a row, and the op of a change. Every
package of Sabot may import them.
"""

TIME_COLUMN = "__time"
OP_COLUMN = "__op"
RESERVED = frozenset([TIME_COLUMN, OP_COLUMN, "__at", "__group", "__id", "__number", "__order", "__pane", "__slot"])
"""The names that no column of the user can have. Besides the two columns, these are columns that operators add to the
user's in their state and in checkpoints.
"""
INSERT, UPDATE_BEFORE, UPDATE_AFTER, DELETE = range(4)
"""Values of OP_COLUMN: an even op adds a row, an odd one takes a row away."""
