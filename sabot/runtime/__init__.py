"""Tasks: the threads and the event loop that run operators."""
