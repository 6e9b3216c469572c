"""The fixtures of the processes over which the documents' names stand."""

from unit.process.conftest import (
    _no_supervisor_afterwards,
    all_means,
    area,
    collect_ignore_glob,
    some_means,
    supervisor,
)

__all__ = ["_no_supervisor_afterwards", "all_means", "area", "collect_ignore_glob", "some_means", "supervisor"]
