"""The rows near a row in time: panes of windows, sessions and runs, frames of `over`."""
