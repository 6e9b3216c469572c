"""Process functions: users' functions over the rows of a key, with state and timers.

`process` has the operators. `rows` and `columns` call the functions, for each row or for each batch. `state`, `timed`
and `transaction` have the state and the timers that functions read and write.
"""
