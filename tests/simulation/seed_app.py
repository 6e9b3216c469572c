"""A random program of `graphs` as a module that `sabot run` and its workers import: SEED is its number, and the folder of the run."""

import os
from pathlib import Path

from graphs import Seed

number, folder = os.environ["SEED"].split(" ", 1)
app = Seed(int(number), workers=3, is_real=True).made(Path(folder))
