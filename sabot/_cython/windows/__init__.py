"""What stands around a row in time: panes, sessions and runs, frames."""
