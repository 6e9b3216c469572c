"""What a server says about a table, and whether its changes can be read: each refusal has the statement that helps."""

from collections.abc import Collection, Mapping, Sequence

import pyarrow as pa

from sabot.base.dataclass import dataclass
from sabot.connectors.postgres.link import PostgresLink, literal
from sabot.connectors.postgres.names import FRESH
from sabot.connectors.postgres.types import TYPES_QUERY, PostgresType, column_of, types_of
from sabot.connectors.sql.database import quoted
from sabot.errors import ServerRefusal, UserError

_DENIED = "42501"
_SCHEMAS = 15  # the version from which a publication may have the tables of a schema
_IDENTITIES = {"d": "DEFAULT", "f": "FULL", "n": "NOTHING", "i": "USING INDEX"}


@dataclass(frozen=True)
class CatalogColumn:
    """A column of a table. `type`: the oid of its type, with `modifier`. `declared`: the type as SQL writes it. `generated`: True if its
    values are computed. `moves`: True if a large value may lie outside of the row (TOAST), so that an update that leaves it
    unchanged does not bring it.
    """

    name: str
    type: int
    modifier: int
    declared: str
    required: bool
    generated: bool
    moves: bool
    kind: str
    arrow: pa.DataType | None
    refusal: UserError | None


@dataclass(frozen=True)
class CatalogTable:
    """A table at one moment. `identities`: the replica identity of each relation that has its rows, by its name in SQL. `rows`: an
    estimate of their number. `bytes`: their size on the disk.
    """

    oid: int
    schema: str
    name: str
    relkind: str
    persistence: str
    readable: bool
    rows: int
    bytes: int
    columns: Mapping[str, CatalogColumn]
    keys: Sequence[str]
    identities: Mapping[str, str]
    types: Mapping[int, PostgresType]

    @property
    def sql(self) -> str:
        """The name as a statement writes it."""
        return f"{quoted(self.schema)}.{quoted(self.name)}"

    @property
    def rows_sql(self) -> str:
        """The rows of the table itself, or of its partitions, as FROM and a publication write it: tables that inherit from it have changes
        of their own.
        """
        return self.sql if self.relkind == "p" else f"ONLY {self.sql}"

    def arrow(self, names: Collection[str] | None = None) -> pa.Schema:
        """Returns the columns that can be read, or those of `names`, whose refusals it raises."""
        chosen = self.columns.values() if names is None else [self.columns[name] for name in names]
        fields = []
        for column in chosen:
            if column.arrow is not None:
                fields.append(pa.field(column.name, column.arrow))
            elif names is not None and column.refusal is not None:
                raise column.refusal
        return pa.schema(fields)


# The relations that have the rows of a table, and the table.
_OF_TABLE = "(c.oid = {0} OR c.oid IN (SELECT relid FROM pg_partition_tree({0}) WHERE isleaf))"


def identities_of(link: PostgresLink, oid: int) -> dict[str, str]:
    """Returns the replica identity of a table and of each partition with rows, by its name in SQL."""
    rows = link.query(
        "SELECT quote_ident(n.nspname) || '.' || quote_ident(c.relname), c.relreplident FROM pg_class c "
        f"JOIN pg_namespace n ON n.oid = c.relnamespace WHERE {_OF_TABLE.format(oid)}"
    )
    return dict(rows)


def _keys_of(link: PostgresLink, oid: int, identities: Mapping[str, str]) -> tuple[str, ...]:
    """Returns the columns by which a changed row is told; () if there are none."""
    chosen = "x.indisreplident" if set(identities.values()) == {"i"} else "x.indisprimary AND x.indimmediate"
    keys = link.query(
        "SELECT a.attname FROM pg_index x CROSS JOIN LATERAL unnest(x.indkey) WITH ORDINALITY k(number, place) "
        "JOIN pg_attribute a ON a.attrelid = x.indrelid AND a.attnum = k.number "
        f"WHERE x.indrelid = {oid} AND {chosen} AND k.place <= x.indnkeyatts ORDER BY k.place"
    )
    return tuple(key for (key,) in keys)


def read_table(link: PostgresLink, schema: str, name: str, where: str) -> CatalogTable:
    """Returns the facts about a table. Raises UserError if it does not exist."""
    found = link.query(
        "SELECT c.oid, c.relkind, c.relpersistence, has_table_privilege(c.oid, 'SELECT'), "
        "(SELECT coalesce(sum(greatest(l.reltuples, 0)), 0)::bigint FROM pg_class l WHERE l.relkind <> 'p' AND (l.oid = c.oid OR l.oid IN "
        "(SELECT relid FROM pg_partition_tree(c.oid)))), "
        "pg_table_size(c.oid) + (SELECT coalesce(sum(pg_table_size(relid)), 0) FROM pg_partition_tree(c.oid) WHERE isleaf) "
        "FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
        f"WHERE n.nspname = {literal(schema)} AND c.relname = {literal(name)}"
    )
    if not found:
        raise UserError(
            f"{where}: there is no such table, or the user may not see it",
            hint='the name is "schema.table", written as in the catalog: public.orders',
        )
    oid, relkind, persistence, readable, rows, size = found[0]
    identities = identities_of(link, int(oid))
    moves = bool(link.query(f"SELECT FROM pg_class c WHERE reltoastrelid <> 0 AND {_OF_TABLE.format(oid)} LIMIT 1"))
    keys = _keys_of(link, int(oid), identities)
    given = link.query(
        "SELECT attname, atttypid, atttypmod, format_type(atttypid, atttypmod), attnotnull, attgenerated <> '', attstorage, attlen "
        f"FROM pg_attribute WHERE attrelid = {oid} AND attnum > 0 AND NOT attisdropped ORDER BY attnum"
    )
    oids = sorted({int(row[1]) for row in given})
    listed = f"'{{{','.join(map(str, oids))}}}'::oid[]"
    types = types_of(
        [
            tuple(int(value or 0) if place in (0, 3, 4, 5, 6) else value for place, value in enumerate(row))
            for row in link.query(TYPES_QUERY.replace("%s", listed))
        ]
    )
    columns: dict[str, CatalogColumn] = {}
    for column, kind_oid, modifier, declared, required, generated, storage, length in given:
        arrow, kind, refusal = None, "", None
        try:
            arrow, kind = column_of(column, int(kind_oid), int(modifier), types)
        except UserError as error:
            refusal = error
        toasts = moves and length == "-1" and storage != "p"
        columns[column] = CatalogColumn(
            column,
            int(kind_oid),
            int(modifier),
            declared,
            required == "t",
            generated == "t",
            toasts,
            kind,
            arrow,
            refusal,
        )
    return CatalogTable(
        int(oid),
        schema,
        name,
        relkind,
        persistence,
        readable == "t",
        int(rows),
        int(size),
        columns,
        keys,
        identities,
        types,
    )


def check_there(link: PostgresLink, table: CatalogTable, where: str) -> None:
    """Raises UserError if a table that is being read was dropped since, or has another name: no log of changes says so."""
    found = link.query(
        f"SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = {table.oid}"
    )
    if found == [(table.schema, table.name)]:
        return
    if found:
        [(schema, name)] = found
        raise UserError(
            f"{where}: the table has another name now: {schema}.{name}",
            hint=f'give it its name back, and the app goes on; or read it as PostgresChanges(…, "{schema}.{name}"), and {FRESH}',
        )
    [(again,)] = link.query(f"SELECT to_regclass({literal(table.sql)})::oid")
    if again is not None:
        raise UserError(
            f"{where}: the table was dropped and made again: its oid is {again}, and was {table.oid}", hint=FRESH
        )
    raise UserError(
        f"{where}: the table was dropped", hint=f"take it out of the program; or make it again, and {FRESH}"
    )


def check_keys(link: PostgresLink, table: CatalogTable, where: str) -> None:
    """Raises UserError if the changes of a table that is being read do not tell their rows any more as they did."""
    identities = identities_of(link, table.oid)
    check_identities(table, identities, where)
    keys = _keys_of(link, table.oid, identities)
    if keys != tuple(table.keys):
        check_there(link, table, where)  # a table that was dropped since the first look has no key either
        raise UserError(
            f"{where}: the key was {', '.join(table.keys)}, and "
            + (f"is {', '.join(keys)} now" if keys else "the table has none now, so programs cannot change its rows"),
            hint=f"give the table its key back, and the app goes on; or {FRESH}",
        )


def check_readable(table: CatalogTable, where: str) -> None:
    """Raises UserError for a relation whose rows cannot be read in the order of a key."""
    if table.relkind not in ("r", "p"):
        raise UserError(f"{where}: it is no table", hint="a view has no changes: read the tables behind it")
    if not table.readable:
        raise UserError(f"{where}: the user may not read it", hint=f"GRANT SELECT ON {table.sql} TO …")
    if not table.keys:
        raise UserError(
            f"{where}: the table has no primary key, so an UPDATE or a DELETE does not say which row it changes",
            hint=f"ALTER TABLE {table.sql} ADD PRIMARY KEY (…); or CREATE UNIQUE INDEX and REPLICA IDENTITY USING INDEX, over columns "
            "that are NOT NULL",
        )


def check_changes(link: PostgresLink, table: CatalogTable, used: Sequence[str], where: str) -> None:
    """Raises UserError if the changes of a table cannot be read, or would lack values of the columns that the program uses."""
    [(level, recovers, may)] = link.query(
        "SELECT current_setting('wal_level'), pg_is_in_recovery(), (SELECT rolsuper OR rolreplication FROM pg_roles WHERE rolname = "
        "current_user) OR EXISTS (SELECT 1 FROM pg_roles WHERE rolname = 'rds_replication' AND pg_has_role(current_user, oid, 'MEMBER'))"
    )
    if recovers == "t":
        raise UserError(
            f"{where}: the server is a standby, which has no publications of its own",
            hint="give the address of the primary, or several with ?target_session_attrs=read-write",
        )
    if level != "logical":
        raise UserError(
            f"{where}: the server has wal_level={level}, whose log does not tell the changes of rows",
            hint="ALTER SYSTEM SET wal_level = logical; and restart the server",
        )
    if may != "t":
        raise UserError(f"{where}: the user may not read the log of changes", hint="ALTER ROLE … REPLICATION")
    if table.persistence != "p":
        raise UserError(
            f"{where}: the table is unlogged or temporary, so no log has its changes",
            hint=f"ALTER TABLE {table.sql} SET LOGGED",
        )
    check_identities(table, table.identities, where)
    if computed := [name for name in used if table.columns[name].generated]:
        raise UserError(
            f"{where}: column {computed[0]} is generated, and the log of changes has no values of it",
            hint="compute it in the program, from the columns that it is made of",
        )
    moving = [name for name in used if table.columns[name].moves and name not in table.keys]
    if moving and set(table.identities.values()) != {"f"}:
        raise UserError(
            f"{where}: a large value of {', '.join(moving)} is stored outside of its row, and an UPDATE that does not change it would "
            "bring no value",
            hint="; ".join(f"ALTER TABLE {name} REPLICA IDENTITY FULL" for name in sorted(table.identities))
            + "; or leave such columns out of the program",
        )


def check_identities(table: CatalogTable, identities: Mapping[str, str], where: str) -> None:
    """Raises UserError unless each relation that has rows of the table tells the key of a row that is changed."""
    kinds = set(identities.values())
    if "n" in kinds or len(kinds) > 1 or (kinds == {"i"} and table.relkind == "p"):
        shown = ", ".join(f"{name} {_IDENTITIES[kind]}" for name, kind in sorted(identities.items()))
        wanted = "FULL" if "f" in kinds else "DEFAULT"
        raise UserError(
            f"{where}: an UPDATE or a DELETE does not bring all that it has to, since the replica identity is {shown}",
            hint="; ".join(
                f"ALTER TABLE {name} REPLICA IDENTITY {wanted}"
                for name, kind in sorted(identities.items())
                if _IDENTITIES[kind] != wanted
            ),
        )


def check_publication(link: PostgresLink, name: str, table: CatalogTable, used: Sequence[str], where: str) -> None:
    """Raises UserError if a publication of the user's does not bring all changes of the table."""
    found = link.query(
        f"SELECT pubviaroot, pubinsert AND pubupdate AND pubdelete AND pubtruncate FROM pg_publication WHERE pubname = {literal(name)}"
    )
    if not found:
        raise UserError(
            f"{where}: there is no publication {name}",
            hint=f"{publication_statement(name, table)}, or leave publication= out",
        )
    [(root, whole)] = found
    if whole != "t":
        raise UserError(
            f"{where}: publication {name} leaves out some kinds of changes",
            hint=f"ALTER PUBLICATION {quoted(name)} SET (publish = 'insert, update, delete, truncate')",
        )
    if table.relkind == "p" and root != "t":
        raise UserError(
            f"{where}: publication {name} names partitions in place of the table",
            hint=f"ALTER PUBLICATION {quoted(name)} SET (publish_via_partition_root = true)",
        )
    narrow = (
        "attnames::text[], rowfilter" if int(link.setting("server_version").partition(".")[0]) >= 15 else "NULL, NULL"
    )
    listed = link.query(
        f"SELECT {narrow} FROM pg_publication_tables WHERE pubname = {literal(name)} AND schemaname = {literal(table.schema)} "
        f"AND tablename = {literal(table.name)}"
    )
    if not listed:
        raise UserError(
            f"{where}: publication {name} does not have the table",
            hint=f"ALTER PUBLICATION {quoted(name)} ADD TABLE {table.sql}",
        )
    if listed[0][1] is not None:
        raise UserError(
            f"{where}: publication {name} leaves out rows: {listed[0][1]}",
            hint=f"filter in the program, and ALTER PUBLICATION {quoted(name)} SET TABLE {table.sql}",
        )
    if listed[0][0] is not None:
        shown = {row[0] for row in link.query(f"SELECT unnest({literal(listed[0][0])}::text[])")}
        if missing := [column for column in used if column not in shown]:
            raise UserError(
                f"{where}: publication {name} leaves out column {missing[0]}",
                hint=f"ALTER PUBLICATION {quoted(name)} SET TABLE {table.sql}",
            )


def membership_of(link: PostgresLink, name: str, table: CatalogTable) -> str:
    """Returns what a publication has a table by, in the numbers of the server, or "" if it does not have it. The numbers change if the
    publication is made again, or the table is taken out and put back, so changes in between were not published.
    """
    schemas = (
        "(SELECT n.oid FROM pg_publication_namespace n JOIN pg_class c ON c.relnamespace = n.pnnspid "
        f"WHERE n.pnpubid = p.oid AND c.oid = {table.oid}), "
        if int(link.setting("server_version").partition(".")[0]) >= _SCHEMAS
        else ""
    )
    found = link.query(
        "SELECT p.oid || '/' || coalesce((SELECT r.oid FROM pg_publication_rel r WHERE r.prpubid = p.oid "
        f"AND r.prrelid = {table.oid}), {schemas}0) FROM pg_publication p WHERE p.pubname = {literal(name)} "
        "AND EXISTS (SELECT FROM pg_publication_tables t WHERE t.pubname = p.pubname "
        f"AND t.schemaname = {literal(table.schema)} AND t.tablename = {literal(table.name)})"
    )
    return str(found[0][0]) if found else ""


def publication_statement(name: str, table: CatalogTable) -> str:
    return f"CREATE PUBLICATION {quoted(name)} FOR TABLE {table.rows_sql} WITH (publish_via_partition_root = true)"


def make_publication(link: PostgresLink, name: str, table: CatalogTable, owner: str, where: str) -> bool:
    """Makes the publication of the table, with `owner` as its comment, unless it is there. Returns True if it was made. Raises UserError
    if it is that of another app, or the user may not make one.
    """
    mark = literal(owner)
    found = link.query(
        f"SELECT obj_description(p.oid, 'pg_publication'), "
        "(SELECT string_agg(prrelid::text, ',') FROM pg_publication_rel WHERE prpubid = p.oid), "
        f"pubviaroot FROM pg_publication p WHERE pubname = {literal(name)}"
    )
    if found and found[0][0] != owner:
        raise UserError(
            f"{where}: there is a publication {name} already, and this app has not made it",
            hint='give slot="another name"; or publication= its name if it has this table',
        )
    if found and found[0][1:] == (str(table.oid), "t"):
        return False
    drop = f"DROP PUBLICATION {quoted(name)}; " if found else ""
    try:
        link.query(
            f"BEGIN; {drop}{publication_statement(name, table)}; COMMENT ON PUBLICATION {quoted(name)} IS {mark}; COMMIT"
        )
    except ServerRefusal as error:
        link.query("ROLLBACK")
        if error.state != _DENIED:
            raise
        raise UserError(
            f"{where}: the user may not make a publication: {error}",
            hint=f"let the owner of the table run {publication_statement(name, table)}, and give publication={name!r}",
        ) from error
    return True
