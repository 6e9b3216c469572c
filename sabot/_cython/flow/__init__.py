"""What connects tasks, and time: channels, gates, timers."""
