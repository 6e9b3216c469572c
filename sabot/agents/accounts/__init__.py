"""The budgets of scopes and of jobs, and the ledger of what calls have used. The arithmetic is that of every account, `base/accounts.py`.

budgets    a budget of a scope: its limits, and the judgement on a call
limits     the budget of one job with its children, as a guard of jobs
guard      the budgets of scopes as a guard of jobs: from the intent of a call to the row of its result
ledger     the rows that wait to be written, and the judgement of calls by the accounts of scopes
local      the accounts of scopes that this process alone spends from
contract   a row of the ledger, and the contract of its writers
rows       the writers in memory and in SQLite
owners     the step in which rows, reservations and accounts change together, where several processes share budgets
tables     the accounts of shared budgets in tables
shared     a ledger's side of shared budgets: it gathers requests into batches
reads      limits and sums as records, for the command line and the console
stream     the rows of the ledger as a stream
"""
