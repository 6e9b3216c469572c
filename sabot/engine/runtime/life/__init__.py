"""The life of an app: `app_runner` starts it, `run` is one run, from its `origin` and the state that `restore` finds, until
`signals` end it. `settings` and `runnable` are what the engine knows of an app, `streams` and `local_streams` its plan as it
runs.
"""
