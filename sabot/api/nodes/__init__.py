"""The steps of a stream as descriptions: `api/stream` builds a graph of them, and `engine/plan/` makes stages of the graph.

`node` defines the questions that each step answers. The steps are grouped into modules by theme, as their operators
are.
"""
