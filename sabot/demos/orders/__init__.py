"""Orders of a shop in PostgreSQL, summed by country in DuckDB while both tables change."""
