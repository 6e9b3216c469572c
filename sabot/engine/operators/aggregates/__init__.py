"""Aggregates of groups: their state, and how results are computed from it.

`aggregator`: aggregates of rows that are only added. State of fixed width is stored in the accumulators of a
`GroupTable`; all other state is stored beside the table, by slot (`extras`, `gather`, `pairs`, `reducers`,
`sketches`, `user`). `values`, `distinct`: state from which rows can be taken away again. `decimals`, `packed`:
encodings. `migration`: converts the state of a checkpoint whose program had other aggregates. `combining`: computes
partial aggregates before rows change threads.
"""
