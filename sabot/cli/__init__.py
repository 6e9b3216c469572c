"""The command line: `sabot run`, `sabot -A module:app worker`, `sabot demo`. The only importer of typer."""

import gc

from sabot.cli.commands import main
from sabot.cli.loading import WrongUse, load_app

__all__ = ["WrongUse", "load_app", "main"]

# The process is the command's own, and what it has imported stays: collections of garbage need not walk 200,000 objects of modules.
gc.freeze()
