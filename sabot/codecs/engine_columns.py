"""The columns that the engine adds behind the user's columns: the event time of a row, and the op of a change. Every
package of Sabot may import them.
"""

TIME_COLUMN = "__time"
OP_COLUMN = "__op"
INSERT, UPDATE_BEFORE, UPDATE_AFTER, DELETE = range(4)
"""Values of OP_COLUMN: an even op adds a row, an odd one takes a row away."""
