"""The steps of a stream as descriptions: the graph that `api/stream` builds, and of which `plan/` makes stages.

`node` says what a step answers about itself; the steps stand in a module for each theme, as their operators do.
"""
