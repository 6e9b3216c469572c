"""Tables of groups and of rows, hot in memory, cold on disk."""
