"""Steps that make, keep or convert changes: grouped aggregates, upserts, change logs, and final tables."""
