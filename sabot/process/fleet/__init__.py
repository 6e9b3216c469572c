"""Many child processes: their lifecycle, quotas, warm pools, fleets that grow and shrink, and health."""
