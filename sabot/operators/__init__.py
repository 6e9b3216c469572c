"""Physical operators: what runs inside a task."""
