"""The operators that run agents: record agents and batch agents."""
