"""Tables of groups and of rows by key, in memory and, if they are larger, in a database on disk."""
