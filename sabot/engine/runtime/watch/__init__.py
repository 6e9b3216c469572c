"""What is shown of a running app: rates (`app_rates`), the narrow place (`bottleneck`), what a crash does at its ends
(`guarantees`), the last minutes of its figures and of its log, and the reports at its end.
"""
