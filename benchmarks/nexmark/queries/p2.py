"""A pattern: the runs of p1 that begin with any bid."""

from sabot import Stream

from ..streams import Nexmark
from .p1 import cheap_bids


def query(nexmark: Nexmark) -> Stream:
    return cheap_bids(nexmark, "to_next")
