"""Agents that are programs: `command` is the operator of such an agent, `runs` starts a program for each record, `pool`
keeps children that serve many, `sessions` runs programs that go on after they were cut off, and `templates` fills the
words of a command.
"""
