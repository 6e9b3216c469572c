"""Steps over single rows: filters and computed columns (`stateless`), users' functions over rows (`mapped`), a row
for each value of a list (`exploded`), the first rows and samples (`subset`), event times (`timed`). `origin` has the
positions of rows in their topics, `bad` the rows that a step cannot process, `marked` the engine's own columns.
"""
