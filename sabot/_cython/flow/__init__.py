"""Channels and gates, which connect tasks, and timers."""
