"""Tools for the tests of programs that use Sabot: sources that follow a script, a sink that keeps its rows, a clock that is moved by
hand, a broker inside the process; runners that let an app die and begin again; a witness of what it did to the world meanwhile; and a
server in the place of models.
"""

from sabot.lazy_imports import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(__name__)
