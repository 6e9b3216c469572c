"""The streams of one app in several processes: a coordinator, which the user has started, and its workers, on this
machine or on others. An *attempt* is the time from the start of a set of workers to their end; a failed attempt is
followed by another one, if `restart=` allows it.

`streams_maker` decides how many workers a run has, and `streams` is the coordinator's side of a run. Each worker is a
`member`: a launcher has started its process (`launching`, `on_ray`), or an administrator with `sabot join`
(`supervising`), and it has connected over TCP to the `listener`; `rendezvous` brings these together. `process` is the
worker's side, which connects by `joining`, with the `secrets` of the app. Both sides exchange `messages` over a
`connection`. `placement` decides which worker runs which task. Rows go from worker to worker (`sabot.engine.exchange`), and
never through the coordinator.
"""

from sabot.engine.workers.launching import Launcher, LocalLauncher
from sabot.engine.workers.process import run_worker
from sabot.engine.workers.rendezvous import TcpRendezvous
from sabot.engine.workers.streams_maker import over_workers
from sabot.engine.workers.supervising import join_as_worker

__all__ = ["Launcher", "LocalLauncher", "TcpRendezvous", "join_as_worker", "over_workers", "run_worker"]
