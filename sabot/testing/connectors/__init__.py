"""The proof of a connector: a `ConnectorPlace` sees it from outside, suites test it over places, and `Dance` kills apps."""

from sabot.testing.connectors.dance import Dance, Danced, Killable
from sabot.testing.connectors.delivery import DeliverySuite
from sabot.testing.connectors.place import ConnectorPlace
from sabot.testing.connectors.sink import SinkSuite
from sabot.testing.connectors.source import ChangesSuite, SourceSuite
from sabot.testing.connectors.types import TypesSuite

__all__ = [
    "ChangesSuite",
    "ConnectorPlace",
    "Dance",
    "Danced",
    "DeliverySuite",
    "Killable",
    "SinkSuite",
    "SourceSuite",
    "TypesSuite",
]
