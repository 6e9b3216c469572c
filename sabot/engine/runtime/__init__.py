"""The running app: the tasks of its streams and agents, its sources and sinks, its start, restart and restore."""
