"""Steps by key: running aggregates, reduce, deduplicate, windows of a number of rows (`running`), columns over rows
(`over`), the first n rows (`top`), rows in order of event time (`ordered`).
"""
