"""The engine: what runs a program of streams and agents. It imports no room of the agents (`tests/test_layers`).

    plan        makes stages of operators from a graph of steps; finds the state with which a changed program continues
    operators   the steps of streams and agents as they run
    runtime     the running app: tasks, sources and sinks, start, restart and restore, its figures
    state       keyed state, in memory or in RocksDB
    calls       calls of users' functions, tools and models
    checkpoint  checkpoints and their storage
    delivery    output that arrives exactly once
    letters     dead letters
    workers, exchange      an app in several processes, and the channels between them

The modules of each room are told by the docstring of its package. This package imports nothing.
"""
