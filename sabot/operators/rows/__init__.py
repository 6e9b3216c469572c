"""Steps over single rows: filters, computed columns, users' functions over rows (`mapped`), lists to rows, the first
rows and samples, event times; with the origin of rows, and rows that cannot be processed (`bad`).
"""
