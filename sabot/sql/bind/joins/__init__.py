"""The joins of FROM; `relations` and `as_of` choose the kind. `conditions` sorts those of ON and WHERE, `join` makes the
join, `columns` what comes out. FOR SYSTEM_TIME AS OF stands in `as_of`: it reads a table of versions (`versions`), or
asks a database (`lookups`). `window_tops` finds joins that are the first rows of a window.
"""
