"""Agents: what runs inside their task."""
