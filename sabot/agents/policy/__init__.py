"""What jobs may do, and who was allowed what.

engine     rules, and what they say of a call; a gate of jobs
rules      the rules that come with Sabot
auditing   what was decided in a job, as its journal has it
"""
