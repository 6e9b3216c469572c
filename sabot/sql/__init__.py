"""SQL over streams: the language of Flink SQL, bound to the steps of `api`.

```
text ─▶ syntax: tokens, tree ─▶ relations, select: tables, joins, groups ─▶ steps of api
                                values, functions: expressions
```

`session` runs the statements of a text. `catalog` turns CREATE TABLE into sources and sinks, and `registered` calls
functions and models of the program. `relations` binds queries and the joins of FROM, and `select` one SELECT: its GROUP
BY in `groups`, OVER in `over`, rankings in `rankings`, its columns in `select_list`. `windows` binds window tables,
`patterns` MATCH_RECOGNIZE, and `values` expressions, with the functions of `functions` and the types of `types`. `scope`
has the bound tables and the names of their columns.
"""
