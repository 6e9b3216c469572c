"""What a run of the tests draws by, so that each commit tries other cases.

`python tests/tools/drawing.py 3 a b c d e` prints one name of three: a d, b e, or c.
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

__all__ = ["commit", "drawn"]


def commit() -> int:
    """The number that the commit begins with; 0 where there is no repository."""
    asked = ["git", "-C", os.fspath(Path(__file__).parent), "rev-parse", "HEAD"]
    return int(subprocess.run(asked, capture_output=True, text=True, check=False).stdout[:8] or "0", 16)


def drawn(names: Sequence[str], one_in: int) -> list[str]:
    """Of every so many names one, by the commit: as much as one can tell, each commit has as many to do."""
    return list(names[commit() % one_in :: one_in])


if __name__ == "__main__":
    print(*drawn(sys.argv[2:], int(sys.argv[1])))
