"""What jobs may do, and who was allowed what.

engine     rules, and what they say of a call; a guard of jobs
rules      the rules that come with Sabot
cedar      policies in Cedar, as a rule
auditing   what was decided in a job, as its journal has it
"""
