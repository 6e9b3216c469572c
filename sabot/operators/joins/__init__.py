"""Joins: two inputs, and the rows of each side that wait for the other."""
