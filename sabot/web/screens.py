"""The screens of an app and its actions, put together from the groups of screens."""

from collections.abc import Iterable

from sabot.engine.checkpoint.inspection import SavepointRecord
from sabot.web.app_screens import AppScreens
from sabot.web.budget_screens import BudgetScreens
from sabot.web.checkpoint_screens import CheckpointScreens
from sabot.web.inbox_screens import InboxScreens
from sabot.web.job_screens import JobScreens
from sabot.web.letter_screens import LetterScreens
from sabot.web.log_screens import LogScreens
from sabot.web.model_screens import ModelScreens
from sabot.web.reader import ConsoleReader
from sabot.web.rows_screens import RowsScreens
from sabot.web.schedule_screens import ScheduleScreens
from sabot.web.screen import Action, Screen, ScreenGroup
from sabot.web.shown import PageHead, ShownApp
from sabot.web.sql_screens import QuestionScreens
from sabot.web.stack_screens import StackScreens
from sabot.web.state_screens import StateScreens


class Screens:
    """The screens of an app, in the order of the links in the head of each page, and its actions. Used by the thread of the server."""

    def __init__(self, app: PageHead, groups: Iterable[ScreenGroup]) -> None:
        """`app`: the app whose name and notice stand above its pages; `sabot web` has a page above all apps."""
        self.app = app
        known = list(groups)
        self.screens: dict[str, Screen] = {name: each for group in known for name, each in group.screens.items()}
        self.actions: dict[str, Action] = {name: each for group in known for name, each in group.actions.items()}


class ScreensOfApp(Screens):
    """All screens of one app. `reader`: for reads that may be large. `root`: the path below which its pages are, or ""."""

    def __init__(self, app: ShownApp, reader: ConsoleReader, root: str = "") -> None:
        self.reader = reader
        self._checkpoints = CheckpointScreens(app)
        groups = [
            AppScreens(app).group(),
            RowsScreens(app).group(),
            self._checkpoints.group(),
            LetterScreens(app).group(),
            StateScreens(app, reader).group(),
            QuestionScreens(app).group(),
            JobScreens(app, reader, root).group(),
            ScheduleScreens(app).group(),
            InboxScreens(app, root).group(),
            BudgetScreens(app).group(),
            ModelScreens(app).group(),
            StackScreens(app).group(),
            LogScreens(app.log).group(),
        ]
        super().__init__(app, groups)

    def after_run(self) -> SavepointRecord | None:
        """Does what was asked for with the stop, as in `CheckpointScreens.after_run`."""
        return self._checkpoints.after_run()
