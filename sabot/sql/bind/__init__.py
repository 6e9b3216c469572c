"""Queries bound to the steps of `api`: `relations` binds queries and the joins of FROM (`joins`), and `select` one SELECT:
its GROUP BY in `groups`, OVER in `over`, rankings in `rankings`, its columns in `select_list`, queries as values in
`subqueries`. `windows` binds window tables, and `patterns` MATCH_RECOGNIZE. `equal_steps` and `window_tops` make one step
of what a text says in several.
"""
