"""The rows near a row in time: panes of windows, sessions and runs, and the frames of `over`."""
