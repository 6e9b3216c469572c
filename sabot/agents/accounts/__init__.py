"""What scopes may use, and have used.

budgets    limits of an hour, a day, a month, and the account of a scope
contract   a row, and what keeps rows
owners     who keeps what is used and reserved, where several processes share budgets
books      their tables
shared     a ledger's side of them
ledger     judges calls by budgets, and keeps what they used
rows       where its rows are kept
limits     what one job may use, with its children: a guard of jobs
guard      the ledger as a guard of jobs; rows made anew from a journal
"""
