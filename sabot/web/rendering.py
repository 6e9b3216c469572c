"""The templates of the pages, with their filters. Processes that read for the console render with them too, so no server is needed."""

from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from sabot.web import texts
from sabot.web.charts import bar

_TEMPLATES = Path(__file__).parent / "templates"


@cache
def templates_of(root: str) -> Environment:
    """Returns the templates for the pages below a path, which they know as `root`."""
    made = Environment(
        loader=FileSystemLoader(_TEMPLATES), autoescape=True, undefined=StrictUndefined, auto_reload=False
    )
    made.globals.update(bar=bar, root=root)
    made.filters.update(
        number=texts.number,
        counted=texts.counted,
        share=texts.share,
        nbytes=texts.nbytes,
        duration=texts.duration,
        money=texts.money,
        moment=texts.moment,
    )
    return made
