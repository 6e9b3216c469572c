"""What scopes may use, and have used.

budgets    limits of an hour, a day, a month, and the account of a scope
ledger     judges calls by them, and keeps what they used
rows       where its rows are kept
limits     what one job may use, with its children: a gate of jobs
gate       the ledger as a gate of jobs; rows made anew from a journal
"""
