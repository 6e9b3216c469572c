"""Tables of groups and of rows by key, in memory and, where they are larger, in a database on disk."""
