"""The streams of one app in several processes of this machine: a coordinator, which the user has started, and its workers.

`streams` is the coordinator's side, `process` that of a worker; between them go the `messages`, over a `connection`. `placement` says which
worker runs which task. RowExchange go from worker to worker (`sabot.exchange`), and never through the coordinator.
"""

from sabot.workers.process import run_worker, worker_name
from sabot.workers.streams import over_workers

__all__ = ["over_workers", "run_worker", "worker_name"]
