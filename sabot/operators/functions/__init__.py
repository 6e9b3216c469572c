"""Functions of the user's over the rows of a key, with state and timers."""
