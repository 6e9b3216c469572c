"""The refunds demo, `sabot demo refunds`: a durable agent asks a person, calls a bank, and is killed twice."""
