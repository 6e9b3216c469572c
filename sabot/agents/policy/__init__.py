"""Policies: what jobs may do, and the audit of what was decided.

engine     rules, and their decision on a call; a guard of jobs
names      checks that the names in rules exist
rules      the rules that come with Sabot
cedar      policies in Cedar, as a rule
auditing   the decisions in a job, read from its journal
"""
