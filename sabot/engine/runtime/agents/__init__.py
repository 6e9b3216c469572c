"""The agents of a running app: `source` reads their records, `task` runs one, `sinks` take its results, `local_agents` has
those of this process, `runnable` is an agent as its run sees it, and `kind` is the plug by which durable agents come in.
"""
