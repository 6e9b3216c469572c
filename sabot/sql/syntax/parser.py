"""The parser of statements: a text becomes a list of trees.

The grammar is that of Flink SQL, as far as the engine has what it asks for. The parser is a recursive descent written by
hand: each token is read by exactly one rule, so no clause is lost in silence (decision 056).
"""

from sabot.sql.syntax.expressions import UNITS
from sabot.sql.syntax.queries import Queries
from sabot.sql.syntax.text import Fault, Span, SqlError, SqlFault, SqlText, list_names, near_names
from sabot.sql.syntax.tokens import SqlToken, TokenKind
from sabot.sql.syntax.tree import (
    ColumnDefinition,
    CreateFunction,
    CreateModel,
    CreateTable,
    CreateView,
    Describe,
    DropStatement,
    Explain,
    Expression,
    Insert,
    Name,
    Query,
    SetOption,
    Show,
    Statement,
    StatementSet,
    TableOption,
    Use,
    WatermarkDefinition,
)

_PARTS_OF_TABLES = ("CONSTRAINTS", "GENERATED", "METADATA", "OPTIONS", "PARTITIONS", "WATERMARKS")
_REFUSED = {
    "UPDATE": "a stream's rows are not updated in place; write INSERT INTO a table with a PRIMARY KEY",
    "DELETE": "a stream's rows are not deleted in place; write INSERT INTO a table with a PRIMARY KEY",
    "MERGE": "write INSERT INTO a table with a PRIMARY KEY",
    "ALTER": "write a new CREATE TABLE",
    "TRUNCATE": "empty the table itself, while no app writes into it",
    "ADD": "a function comes from Python: app.register(name, function), or --functions MODULE",
    "CALL": "a function comes from Python: app.register(name, function), or --functions MODULE",
    "ANALYZE": "EXPLAIN shows the plan; sabot run --web shows what a running app does",
    "COPY": "write CREATE TABLE … WITH ('connector' = 'files', 'path' = '…') and INSERT INTO",
    "BEGIN": "a set of statements begins with EXECUTE STATEMENT SET BEGIN",
    "COMMIT": "there are no transactions: results are delivered with each checkpoint",
    "ROLLBACK": "there are no transactions",
    "LOAD": "a function comes from Python: app.register(name, function), or --functions MODULE",
    "REPLACE": "write INSERT INTO: a PRIMARY KEY makes it an upsert",
}
_STATEMENTS = ("SELECT", "WITH", "VALUES", "INSERT", "CREATE", "DROP", "EXECUTE", "SET", "RESET", "SHOW", "EXPLAIN")
_DETAILS = ("ESTIMATED_COST", "CHANGELOG_MODE", "PLAN_ADVICE", "JSON_EXECUTION_PLAN")
_SHOWN = ("TABLES", "VIEWS", "FUNCTIONS", "MODELS", "CONNECTORS", "CATALOGS", "DATABASES")


def parse(text: SqlText) -> list[Statement]:
    """Returns the statements of a text. Raises SqlError with the first error of each statement that has one."""
    try:
        parser = Parser(text)
    except SqlFault as error:
        raise SqlError(text, [error.fault]) from None
    statements, faults = parser.read()
    if faults:
        raise SqlError(text, faults)
    return statements


class Parser(Queries):
    """The parser of one text."""

    def read(self) -> tuple[list[Statement], list[Fault]]:
        """Returns the statements, and the errors of those that could not be read."""
        statements: list[Statement] = []
        faults: list[Fault] = []
        while True:
            while self.take_symbol(";"):
                pass
            if self.at_end:
                return statements, faults
            try:
                statements.append(self.statement())
                if not (self.at_end or self.is_symbol(";")):
                    self.expected("; or the end of the statement")
            except SqlFault as error:
                faults.append(error.fault)
                self._depth = 0
                while not self.at_end and not self.is_symbol(";"):
                    self.next()

    def statement(self) -> Statement:
        """Reads a statement."""
        word = self.token.word
        if self.at_query():
            return self.query()
        if word in ("INSERT", "UPSERT"):
            return self._insert()
        if word == "CREATE":
            return self._create()
        if word == "DROP":
            return self._drop()
        if word == "EXECUTE" or self.is_word("BEGIN", "STATEMENT", "SET"):
            return self._statement_set()
        if word == "USE":
            return self._use()
        if word in ("SET", "RESET"):
            return self._set()
        if word == "SHOW":
            return self._show()
        if word in ("DESCRIBE", "DESC"):
            start = self.next().span
            return Describe(self.table_name(), self.since(start))
        if word == "EXPLAIN":
            return self._explain()
        if word in _REFUSED:
            raise SqlFault(self.token.span, f"{word} is not supported", _REFUSED[word])
        near = list_names(self.token.value, _STATEMENTS) if word else ""
        raise SqlFault(self.token.span, f"{self.token} begins no statement", near)

    # -- INSERT -------------------------------------------------------------------------------------------------------

    def _insert(self) -> Insert:
        start = self.token.span
        if self.next().word == "UPSERT":
            raise SqlFault(start, "UPSERT is not supported", "write INSERT INTO: a PRIMARY KEY makes it an upsert")
        if self.is_word("OVERWRITE"):
            raise SqlFault(self.token.span, "INSERT OVERWRITE is not supported", "write INSERT INTO")
        if self.is_word("OR"):
            hint = "write INSERT INTO: a PRIMARY KEY makes it an upsert"
            raise SqlFault(self.token.span, "INSERT OR … is not supported", hint)
        self.expect_word("INTO", where="behind INSERT")
        table = self.qualified("a table")
        partition: tuple[tuple[Name, Expression], ...] = ()
        if self.take_word("PARTITION"):
            partition = self.in_parentheses(self._partition_value, "of the columns and their values")
        columns: tuple[Name, ...] = ()
        if self.is_symbol("(") and not self.at_query():
            columns = self.in_parentheses(self.column_name, "of the columns")
        if not self.at_query():
            self.expected("SELECT or VALUES", "behind INSERT INTO …")
        return Insert(table, partition, columns, self.query(), self.since(start))

    def _partition_value(self) -> tuple[Name, Expression]:
        name = self.column_name()
        if not self.is_symbol("="):
            hint = "PARTITION (day = '2024-05-17'): columns without a value come from the query"
            self.expected("=", "behind the column of PARTITION", hint)
        self.next()
        return name, self.expression()

    def _statement_set(self) -> StatementSet:
        start = self.next()
        self.expect_word("STATEMENT", "SET")
        if start.word == "BEGIN":
            self.expect_symbol(";", "behind BEGIN STATEMENT SET")
        else:
            self.expect_word("BEGIN")
        return self._inserts(start.span.start)

    def _inserts(self, start: int) -> StatementSet:
        inserts = []
        while not self.is_word("END"):
            if not self.is_word("INSERT"):
                self.expected("INSERT or END", "in the set of statements")
            inserts.append(self._insert())
            if not self.is_word("END"):
                self.expect_symbol(";", "behind a statement of the set")
        self.next()
        if not inserts:
            raise SqlFault(self.before, "the set of statements is empty")
        return StatementSet(tuple(inserts), Span(start, self.before.end))

    # -- CREATE -------------------------------------------------------------------------------------------------------

    def _create(self) -> Statement:
        start = self.next().span
        if self.is_word("OR"):
            raise SqlFault(self.token.span, "CREATE OR … is not supported", "DROP it first, or give it a new name")
        self.take_word("TEMPORARY")
        self.take_word("SYSTEM")
        what = self.token.word
        if what not in ("TABLE", "VIEW", "FUNCTION", "MODEL"):
            if what in ("CATALOG", "DATABASE"):
                raise SqlFault(self.token.span, f"CREATE {what} is not supported", "there are no catalogs")
            if what == "MATERIALIZED":
                hint = "write CREATE TABLE … WITH (…) and INSERT INTO it"
                raise SqlFault(self.token.span, "CREATE MATERIALIZED … is not supported", hint)
            hint = "write CREATE VIEW … AS SELECT …, or CREATE TABLE … WITH (…)" if what == "STREAM" else ""
            self.expected("TABLE, VIEW, FUNCTION or MODEL", "behind CREATE", hint)
        self.next()
        maybe = bool(self.is_word("IF") and self.expect_word("IF", "NOT", "EXISTS"))
        name = self.qualified(f"the name of the {what.lower()}")
        if what == "TABLE":
            return self._create_table(start.start, name, maybe)
        if what == "VIEW":
            columns = self.in_parentheses(self.column_name, "of the columns") if self.is_symbol("(") else ()
            self._comment()
            self.expect_word("AS", where="of CREATE VIEW")
            return CreateView(name, columns, self.query(), maybe, self.since(start))
        if what == "FUNCTION":
            if self.is_symbol("("):
                hint = f'a function of Python: app.register("{name[-1].text}", function), or --functions module'
                raise SqlFault(self.token.span, "functions are not written in SQL", hint)
            self.expect_word("AS", where="of CREATE FUNCTION")
            implementation = self.expect_string("the name of a class").value
            if self.take_word("LANGUAGE"):
                self.expect_name("a language")
            return CreateFunction(name, implementation, maybe, self.since(start))
        inputs = self._model_columns("INPUT")
        outputs = self._model_columns("OUTPUT")
        self._comment()
        return CreateModel(name, inputs, outputs, self._with(), maybe, self.since(start))

    def _model_columns(self, word: str) -> tuple[ColumnDefinition, ...]:
        if not self.take_word(word):
            return ()
        return self.in_parentheses(self._column_definition, f"of {word}")

    def _comment(self) -> str | None:
        return self.expect_string("the comment").value if self.take_word("COMMENT") else None

    def _create_table(self, start: int, name: tuple[Name, ...], maybe: bool) -> CreateTable:
        columns: list[ColumnDefinition] = []
        watermark: WatermarkDefinition | None = None
        key: tuple[Name, ...] = ()
        if self.take_symbol("("):
            while True:
                at = self.token.span
                if self.is_word("WATERMARK", "FOR"):
                    if watermark is not None:
                        raise SqlFault(at, "a table has one WATERMARK")
                    watermark = self._watermark()
                elif self.is_word("PRIMARY", "KEY") or self.is_word("CONSTRAINT"):
                    if key:
                        raise SqlFault(at, "a table has one PRIMARY KEY")
                    key = self._primary_key()
                else:
                    columns.append(self._column_definition())
                if not self.take_symbol(","):
                    break
            if not self.is_symbol(")"):
                apart = self.token.kind in (TokenKind.NAME, TokenKind.QUOTED) and not self.elsewhere("")
                hint = "columns have commas between them" if apart else ""
                if self.token.word.removesuffix("S") in UNITS and self.peek(-1).kind is TokenKind.INTEGER:
                    hint = f"INTERVAL '{self.peek(-1).value}' {self.token.word.removesuffix('S')}"
                self.expected(") behind the columns", hint=hint)
            self.next()
        comment = self._comment()
        if self.is_word("DISTRIBUTED"):
            raise SqlFault(self.token.span, "DISTRIBUTED BY is not supported", "leave it out")
        partition: tuple[Name, ...] = ()
        if self.take_word("PARTITIONED"):
            self.expect_word("BY")
            partition = self.in_parentheses(self.column_name, "of PARTITIONED BY")
        options = self._with()
        like = self.qualified("a table") if self.take_word("LIKE") else ()
        without = self._like_options() if like and self.is_symbol("(") else ()
        query = self.query() if self.take_word("AS") else None
        key = key or tuple(column.name for column in columns if column.primary)
        span = Span(start, self.before.end)
        return CreateTable(
            name, tuple(columns), watermark, key, partition, options, comment, maybe, like, without, query, span
        )

    def _like_options(self) -> tuple[str, ...]:
        """Reads `(EXCLUDING OPTIONS INCLUDING GENERATED …)`; returns the parts of the table that LIKE leaves out."""
        without: set[str] = set()
        self.expect_symbol("(")
        while not self.take_symbol(")"):
            verb = self.token.word
            if verb not in ("INCLUDING", "EXCLUDING", "OVERWRITING"):
                self.expected("INCLUDING, EXCLUDING or OVERWRITING", "of LIKE")
            self.next()
            part = self.token.word
            if part not in (*_PARTS_OF_TABLES, "ALL"):
                self.expected(f"{', '.join(_PARTS_OF_TABLES)} or ALL", f"behind {verb}")
            self.next()
            parts = _PARTS_OF_TABLES if part == "ALL" else (part,)
            without = without | set(parts) if verb == "EXCLUDING" else without - set(parts)
        return tuple(each for each in _PARTS_OF_TABLES if each in without)

    def _watermark(self) -> WatermarkDefinition:
        start = self.expect_word("WATERMARK", "FOR")
        column = self.qualified("a column")
        if not self.is_word("AS"):
            name = column[-1].text
            self.expected("AS", "of WATERMARK FOR", f"WATERMARK FOR {name} AS {name} - INTERVAL '5' SECOND")
        self.next()
        return WatermarkDefinition(column, self.expression(), self.since(start))

    def _primary_key(self) -> tuple[Name, ...]:
        if self.take_word("CONSTRAINT"):
            self.expect_name("the name of the constraint")
        self.expect_word("PRIMARY", "KEY")
        key = self.in_parentheses(self.column_name, "of PRIMARY KEY")
        self._not_enforced()
        return key

    def _not_enforced(self) -> None:
        """Takes NOT ENFORCED, which may be left out: no key is checked. Raises SqlFault for ENFORCED."""
        if not self.take_word("NOT", "ENFORCED") and self.is_word("ENFORCED"):
            raise SqlFault(
                self.token.span,
                "a PRIMARY KEY is never ENFORCED",
                "write PRIMARY KEY (column) NOT ENFORCED: the engine does not check the rows of a source",
            )

    def _column_definition(self) -> ColumnDefinition:
        name = self.column_name()
        if self.take_word("AS"):
            computed = self.expression()
            return ColumnDefinition(name, None, computed, None, False, self._comment(), self.since(name.span))
        type = self.type()
        metadata, virtual = None, False
        if self.take_word("METADATA"):
            metadata = self.expect_string("the key of the metadata").value if self.take_word("FROM") else name.text
            virtual = self.take_word("VIRTUAL")
        primary = self.take_word("PRIMARY", "KEY")
        if primary:
            self._not_enforced()
        return ColumnDefinition(name, type, None, metadata, primary, self._comment(), self.since(name.span), virtual)

    def _with(self) -> tuple[TableOption, ...]:
        return self.in_parentheses(self._option, "of WITH") if self.take_word("WITH") else ()

    def _option(self) -> TableOption:
        if self.token.word:
            self.expected("an option ('name' = 'value')", hint=f"options have quotes: '{self.token.value}'")
        key = self.expect_string("an option ('name' = 'value')")
        self.expect_symbol("=", f"behind '{key.value}'")
        value = self.expect_string(f"the value of '{key.value}' as a string")
        return TableOption(key.value, value.value, key.span, value.span)

    # -- the rest -----------------------------------------------------------------------------------------------------

    def _drop(self) -> DropStatement:
        start = self.next().span
        self.take_word("TEMPORARY")
        what = self.token.word
        if what not in ("TABLE", "VIEW", "FUNCTION", "MODEL"):
            hint = (
                "there are no catalogs and databases" if what in ("CATALOG", "DATABASE", "SCHEMA") else "DROP TABLE t"
            )
            self.expected("TABLE, VIEW, FUNCTION or MODEL", "behind DROP", hint)
        self.next()
        maybe = bool(self.is_word("IF") and self.expect_word("IF", "EXISTS"))
        return DropStatement(what, self.qualified(f"the name of the {what.lower()}"), maybe, self.since(start))

    def _use(self) -> Use:
        start = self.next().span
        if self.is_word("MODULES") and not self.is_symbol(".", 1):
            raise SqlFault(self.token.span, "USE MODULES is not supported", "leave it out")
        catalog = self.take_word("CATALOG")
        name = self.qualified("the name of the catalog" if catalog else "the name of the database")
        return Use(name, bool(catalog), self.since(start))

    def _set(self) -> SetOption:
        token = self.next()
        reset = token.word == "RESET"
        if self.token.kind is not TokenKind.STRING:
            if self.at_end or self.is_symbol(";"):
                return SetOption(None, reset, token.span)
            if (plain := self._plain_option()) is not None:
                return SetOption(plain, reset, self.since(token.span))
            hint = f"options have quotes: '{self.token.value}'"
            self.expected("an option ('name' = 'value')", f"behind {token.word}", hint)
        if reset:
            key = self.next()
            return SetOption(TableOption(key.value, "", key.span, key.span), True, self.since(token.span))
        return SetOption(self._option(), False, self.since(token.span))

    def _plain_option(self) -> TableOption | None:
        """Takes an option as Flink's client has it without quotes (a.b-c = value), or returns None."""
        begin = self.at
        key = self._plain_words("=")
        is_plain = any(each.value == "." for each in key) and self.take_symbol("=")
        value = self._plain_words(";") if is_plain else []
        if not value:
            self.at = begin
            return None
        (name, place), (given, its) = (
            ("".join(each.value for each in part), part[0].span.to(part[-1].span)) for part in (key, value)
        )
        return TableOption(name, given, place, its)

    def _plain_words(self, end: str) -> list[SqlToken]:
        """Takes the words up to this symbol, or to the end of the text, that make one word with the signs between them."""
        taken: list[SqlToken] = []
        while not (self.at_end or self.is_symbol(end)):
            if taken and taken[-1].span.end != self.token.span.start:
                return []
            taken.append(self.next())
        return taken

    def _show(self) -> Show:
        start = self.next().span
        if self.take_word("CREATE"):
            what = self.token.word
            if what not in ("TABLE", "VIEW"):
                self.expected("TABLE or VIEW", "behind SHOW CREATE")
            self.next()
            return Show(f"CREATE {what}", self.qualified(f"a {what.lower()}"), self.since(start))
        if self.take_word("COLUMNS"):
            self.take_word("IN") or self.expect_word("FROM")
            name = self.table_name()
            like = self._shown_like()
            return Show("COLUMNS", name, self.since(start), like)
        if self.take_word("CURRENT"):
            if self.token.word not in ("CATALOG", "DATABASE"):
                hint = "SHOW CURRENT DATABASE: there is one catalog with one database"
                self.expected("CATALOG or DATABASE", "behind SHOW CURRENT", hint)
            return Show(f"CURRENT {self.next().word}", (), self.since(start))
        if self.token.word not in _SHOWN:
            near = near_names(self.token.word, _SHOWN)
            if self.token.word == "SCHEMAS":
                near = "SHOW DATABASES"
            elif self.token.word in ("JOBS", "PARTITIONS", "JARS", "MODULES"):
                near = "sabot web shows apps, and sabot top what they do; functions come from Python"
            self.expected(f"{', '.join(_SHOWN)} or CREATE TABLE", "behind SHOW", near)
        what, like = self.next().word, self._shown_like()
        return Show(what, (), self.since(start), like)

    def _shown_like(self) -> tuple[str, bool] | None:
        """Takes [NOT] LIKE 'pattern' behind SHOW; returns the pattern, and True for NOT."""
        negated = self.is_word("NOT") and self.take_word("NOT", "LIKE")
        if not (negated or self.take_word("LIKE")):
            return None
        return self.expect_string("the pattern of names, such as 'a%'").value, negated

    def _detail(self) -> str:
        """Takes a word of Flink's EXPLAIN that asks for a detail. There are no estimates and no advice here."""
        if self.token.word not in _DETAILS:
            self.expected(" or ".join(_DETAILS), "behind EXPLAIN")
        return self.next().word

    def _explain(self) -> Explain:
        start = self.next().span
        kind, checkpoint = "PLAN", None
        if self.take_word("PLAN"):
            self.expect_word("FOR")
        elif self.take_word("CHANGELOG"):
            kind = "CHANGELOG"
        elif self.take_word("JSON"):
            kind = "JSON"
        elif self.token.word in _DETAILS:
            kind = "CHANGELOG" if "CHANGELOG_MODE" in self.several(self._detail) else "PLAN"
        elif self.take_word("AGAINST"):
            kind = "AGAINST"
            checkpoint = self.expect_string("the place of a checkpoint").value
        if self.is_word("EXPLAIN"):
            raise SqlFault(self.token.span, "EXPLAIN of EXPLAIN")
        begin = self.token.span.start
        if self.take_word("STATEMENT", "SET"):
            self.expect_word("BEGIN")
            statement: Statement = self._inserts(begin)
        else:
            statement = self.statement()
        if not isinstance(statement, Query | Insert | StatementSet | CreateTable):
            hint = (
                "EXPLAIN SELECT …, with the query of the view"
                if isinstance(statement, CreateView)
                else "EXPLAIN SELECT …"
            )
            raise SqlFault(statement.span, "EXPLAIN takes a query, an INSERT, or a set of INSERTs", hint)
        return Explain(kind, checkpoint, statement, self.since(start))  # type: ignore[arg-type]
