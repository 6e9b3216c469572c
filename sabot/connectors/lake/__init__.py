"""What tables of a lakehouse have in common, Delta Lake and Iceberg: the columns that fit, and the sink that appends rows.

`types` compares the columns of rows with those of a table. `sink` has the class of both sinks, which leaves to each format how
a commit is made, and where it keeps the token.
"""
