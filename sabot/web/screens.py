"""The screens of a running app and its actions, put together from the groups of screens."""

from typing import TYPE_CHECKING

from sabot.checkpoint.inspection import SavepointRecord
from sabot.web.app_screens import AppScreens
from sabot.web.checkpoint_screens import CheckpointScreens, KeptCheckpoints
from sabot.web.figures import FigureRings
from sabot.web.job_screens import JobScreens
from sabot.web.log_ring import LogRing
from sabot.web.log_screens import LogScreens
from sabot.web.payloads import Payloads
from sabot.web.reader import ConsoleReader
from sabot.web.screen import Action, Screen

if TYPE_CHECKING:
    from sabot.app import App


class Screens:
    """The screens of a running app, in the order of the links in the head of each page, and its actions. Used by the thread of the
    server. `reader`: for reads that may be large.
    """

    def __init__(self, app: "App", figures: FigureRings, log: LogRing, payloads: Payloads) -> None:
        self.app = app
        self.figures = figures
        self.payloads = payloads
        self.reader = ConsoleReader()
        kept = KeptCheckpoints(app)
        steps = AppScreens(app, figures, keeps=kept.app is not None)
        self._checkpoints = CheckpointScreens(kept, figures, steps.stop)
        groups = [steps.group(), self._checkpoints.group(), JobScreens(app).group(), LogScreens(log).group()]
        self.screens: dict[str, Screen] = {name: each for group in groups for name, each in group.screens.items()}
        self.actions: dict[str, Action] = {name: each for group in groups for name, each in group.actions.items()}

    def after_run(self) -> SavepointRecord | None:
        """Does what was asked for with the stop, as in `CheckpointScreens.after_run`."""
        return self._checkpoints.after_run()
