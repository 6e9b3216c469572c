"""The budgets of scopes and of jobs, and the ledger: a row for each call of a model or a tool, with its usage. An account
adds up usage and reservations; its arithmetic is in `base/accounts.py`.

budgets    the budget of a scope: its limits, and its judgement on a call
job_limits the budget of one job and its children, as a guard of jobs
guard      the budgets of scopes, as a guard of jobs that also makes the rows
journal_rows  the rows in the entries of a journal: how a ledger gets those that it lacks
ledger     judges calls by the budgets of their scopes, and keeps the rows
local      the accounts of scopes, if only this process spends from their budgets
shared     the accounts of scopes, if several processes share their budgets: sends batches of requests to the owner
owners     the owner of shared budgets: changes rows, reservations and accounts in one transaction
tables     the accounts of shared budgets in SQL tables
contract   a row of the ledger, and the contract of the writers that store rows
rows       the writers in memory and in SQLite
reads      limits and sums as records, for the command line and the console
stream     the rows of the ledger as a stream
"""
