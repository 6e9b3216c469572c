"""What a checkpoint remembers of a table of PostgreSQL beside the position in the log."""

import json
from collections.abc import Sequence

from sabot.base.dataclass import dataclass
from sabot.connectors.postgres.catalog import CatalogTable
from sabot.connectors.postgres.link import lsn_text
from sabot.connectors.postgres.names import FRESH
from sabot.connectors.postgres.snapshot import Pass
from sabot.errors import UserError


@dataclass(frozen=True)
class TableMemory:
    """The facts that a restart needs beside the position.

    `system`, `timeline`, `relation`: the log and the table. `passes`: how far the rows were
    read, and until which places changes are left out for that; [] when all is read. `reading`: True if rows are left. `taken`: the
    changes taken of the transaction behind the position, whose commit is at `commit` (0 if that is not known). `membership`: what the
    publication has the table by (`membership_of`), or "" in the checkpoint of an older version.
    """

    system: str
    timeline: int
    relation: int
    passes: Sequence[Pass]
    reading: bool
    taken: int
    commit: int
    membership: str = ""

    def stored(self) -> bytes:
        passes = [[each.lsn, [value.hex() for value in each.last]] for each in self.passes]
        facts = [
            self.system,
            self.timeline,
            self.relation,
            passes,
            self.reading,
            self.taken,
            self.commit,
            self.membership,
        ]
        return json.dumps(facts).encode()

    @classmethod
    def read(cls, data: bytes) -> "TableMemory":
        system, timeline, relation, passes, reading, taken, commit, *more = json.loads(data)
        read = [Pass(lsn, [bytes.fromhex(value) for value in last]) for lsn, last in passes]
        return cls(system, timeline, relation, read, reading, taken, commit, *more)

    @classmethod
    def recalled(cls, data: bytes | None, position: int, where: str) -> "TableMemory":
        """Returns the memory of a checkpoint with this position. Raises UserError if it is none of this source."""
        try:
            if data is not None:
                return cls.read(data)
        except (ValueError, TypeError):  # the memory of another source
            pass
        raise UserError(
            f"{where}: the checkpoint has the position {lsn_text(position)} without what this source remembers beside it",
            hint=f"the checkpoint is none of this source; {FRESH}",
        )

    def check_log(self, found: tuple[str, int], table: CatalogTable, where: str) -> None:
        """Raises UserError unless the log of a server, by its system and timeline, and the table are those of the checkpoint."""
        system, timeline = found
        if system != self.system:
            raise UserError(
                f"{where}: the server is another one: its system is {system}, and that of the checkpoint {self.system}",
                hint=f"give the address of the server that was read; or {FRESH}",
            )
        if timeline != self.timeline:
            raise UserError(
                f"{where}: the server's log has timeline {timeline}, and that of the checkpoint {self.timeline}: a standby was "
                "promoted, or a backup restored, and changes may be missing",
                hint=FRESH,
            )
        if table.oid != self.relation:
            raise UserError(
                f"{where}: the table was made again: its oid is {table.oid}, and that of the checkpoint {self.relation}",
                hint=FRESH,
            )
