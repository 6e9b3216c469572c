"""Joins: operators with two inputs that keep the rows of each side until they can have no partner any more."""
