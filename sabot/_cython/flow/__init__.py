"""Between tasks and in time: channels, gates, timers."""
