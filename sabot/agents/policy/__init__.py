"""Policies: rules that decide what jobs may do, and the audit of these decisions.

engine     PolicyEngine: a list of rules that decides on calls, as a guard of jobs
names      checks that the names in rules exist
rules      the rules that come with Sabot
auditing   reads the decisions on a job's calls from the journal
"""
