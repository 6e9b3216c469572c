"""The queries: `qN.query(nexmark)` is the stream of results, `qN.sql` the same over tables, for the check."""
