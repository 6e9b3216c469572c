"""What a runtime knows, in the tables of a PostgreSQL server that other programs may read."""
