"""Fixtures of the tests of jobs."""

import gc

import pytest


@pytest.fixture
def recwarn(recwarn: pytest.WarningsRecorder) -> pytest.WarningsRecorder:
    """The warnings of this test alone: what earlier ones have left is collected before it."""
    gc.collect()
    recwarn.clear()
    return recwarn
