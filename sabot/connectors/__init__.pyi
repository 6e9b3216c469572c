from sabot.connectors.base import Bounded as Bounded
from sabot.connectors.base import Delivers as Delivers
from sabot.connectors.base import KeepsToken as KeepsToken
from sabot.connectors.base import Scans as Scans
from sabot.connectors.base import TakesBound as TakesBound
from sabot.connectors.base import TakesChanges as TakesChanges
from sabot.connectors.installed import Connector as Connector
