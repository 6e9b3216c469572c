"""The operators of tasks: the steps of streams and agents as they run."""
