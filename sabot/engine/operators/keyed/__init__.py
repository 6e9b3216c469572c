"""Steps whose result for a row depends on other rows of its key.

`running`: running aggregates, reduce, deduplicate, and windows of a number of rows. `over`: columns over rows. `top`:
the first n rows of a key. `ordered`: rows in order of event time.
"""
