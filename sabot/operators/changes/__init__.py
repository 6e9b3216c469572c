"""Steps whose rows are changes of a table."""
