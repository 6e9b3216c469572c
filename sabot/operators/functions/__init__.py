"""Process functions: users' functions over the rows of a key, with state and timers. `process` has the operators;
`rows` and `columns` call the functions, by row or by batch; `state`, `timed` and `transaction` keep what they use and
change.
"""
