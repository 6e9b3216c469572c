"""Apps between a source and a sink are killed 20 times, and so are their servers: each row counts once, and is there once.

`connector_dances.py` has the dances, and runs them with more kills and other seeds.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from connector_dances import KINDS, dance, warm_with_libraries

KILLS, SEED = 20, 53


@pytest.fixture(scope="module")
def warm_libraries() -> Iterator[None]:
    """The import of pyiceberg takes 2.3 s of a core, which each of 22 programs of a dance would do."""
    with warm_with_libraries():
        yield


@pytest.mark.slow  # 22 processes, and as many starts of a server
@pytest.mark.usefixtures("warm_libraries")
@pytest.mark.parametrize("kind", KINDS)
def test_an_app_and_its_server_that_are_killed_again_and_again_keep_what_the_class_promises(
    kind: str, tmp_path: Path
) -> None:
    print(dance(kind, tmp_path, KILLS, SEED))
