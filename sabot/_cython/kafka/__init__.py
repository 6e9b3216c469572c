"""Reads records from Kafka's C client into columns."""
