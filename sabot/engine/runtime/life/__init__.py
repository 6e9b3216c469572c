"""The life of an app: `app_runner` starts it, and after a failure again (`restarts`). `run` is one run, from its `origin` and
the state that `restore` finds, until `signals` end it. `settings` are those of a run, and `parts` its streams and agents
as it runs them: in this process (`local_parts`, with `local_streams`) or in workers.
"""
