"""Changes of tables of PostgreSQL."""
