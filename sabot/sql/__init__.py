"""SQL over streams: the language of Flink SQL, bound to the steps of `api`.

```
text ─▶ syntax: tokens, tree ─▶ bind: tables, joins, groups ─▶ steps of api
                                values, functions: expressions
```

`session` runs the statements of a text. `catalog` turns CREATE TABLE into sources and sinks, and `registered` calls
functions and models of the program. `bind` has the queries: tables, joins, groups. `values` binds expressions, with the
functions of `functions` and the types of `types`. `scope` has the bound tables and the names of their columns.
"""
