"""The command line: `sabot run`, `sabot -A module:app worker`, `sabot demo`. Only this package imports typer."""

from sabot.cli.commands import main
from sabot.cli.loading import WrongUse, load_app

__all__ = ["WrongUse", "load_app", "main"]
