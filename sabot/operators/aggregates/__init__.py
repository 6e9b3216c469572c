"""Aggregates of groups: the state that they keep, and their results.

`aggregator`: a group's aggregates as accumulators of a `GroupTable`, for rows that are only added. `extras`,
`gather`, `pairs`, `reducers`, `sketches`, `user`: state without a fixed width, beside the table. `values`,
`distinct`: state from which rows can be taken away again. `decimals`, `packed`: encodings. `migration`: state of a
checkpoint with other aggregates. `combining`: partial aggregates before rows change threads.
"""
