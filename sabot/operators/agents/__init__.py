"""The operators that run agents: record agents, batch agents and durable agents."""
