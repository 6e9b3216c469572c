"""Queries bound to the steps of `api`. `relations` binds the parts of a query one in another, and gives each to its module.

    FROM                  `joins`, `table_functions` (TUMBLE, UNNEST, ML_PREDICT), `patterns` (MATCH_RECOGNIZE), `windows`
    WHERE, SELECT         `select`, its columns in `select_list`; IN, EXISTS and queries as values in `subqueries`
    GROUP BY, HAVING      `groups`; of GROUPING SETS in `select`
    OVER, QUALIFY         `over`, `nested`; WHERE n <= 3 of a ranking in `rankings`
    UNION, EXCEPT         `set_operations`
    ORDER BY, LIMIT       `order`
    hints                 `hints`

`equal_steps` and `joins.window_tops` make one step of what a text says in several.
"""
