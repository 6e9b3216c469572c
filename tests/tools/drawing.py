"""What a run of the tests draws by, so that each commit tries other cases.

`python tests/tools/drawing.py 3 a b c d e` prints one name of three: a d, b e, or c.
"""

import os
import subprocess
import sys
import zlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

__all__ = ["commit", "drawn", "leave_cases_to_slow"]


def commit() -> int:
    """The number that the commit begins with; 0 where there is no repository."""
    asked = ["git", "-C", os.fspath(Path(__file__).parent), "rev-parse", "HEAD"]
    return int(subprocess.run(asked, capture_output=True, text=True, check=False).stdout[:8] or "0", 16)


def drawn(names: Sequence[str], one_in: int) -> list[str]:
    """Of every so many names one, by the commit: as much as one can tell, each commit has as many to do."""
    return list(names[commit() % one_in :: one_in])


def leave_cases_to_slow(items: Iterable["pytest.Item"]) -> None:
    """Of each `count` cases of a test that is marked `one_in` one stays, the others are slow. Which one changes from group to group, and
    from group of groups to group of groups: so each value of each parameter comes, whatever the others are.
    """
    tests = defaultdict(list)
    for item in items:
        few = item.get_closest_marker("one_in")
        # One that is slow by itself does not count: where it would be the one that stays, none did.
        if few is not None and item.get_closest_marker("slow") is None:
            tests[item.nodeid.partition("[")[0], few.args[0]].append(item)
    for (test, count), cases in tests.items():
        count = min(count, len(cases))  # else none stayed of some tests with fewer cases
        begin = zlib.crc32(test.encode())  # two tests with the same parameters have other cases
        for number, item in enumerate(cases):
            if count > 1 and (begin + sum_of_digits(number, count)) % count:
                item.add_marker("slow")


def sum_of_digits(number: int, base: int) -> int:
    return number % base + sum_of_digits(number // base, base) if number else 0


if __name__ == "__main__":
    print(*drawn(sys.argv[2:], int(sys.argv[1])))
