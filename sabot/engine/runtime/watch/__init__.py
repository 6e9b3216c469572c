"""What is shown of a running app, all of it from `app_watch`: rates (`app_rates`), the narrow place (`bottleneck`), what a
crash does at its ends (`guarantees`), the last minutes of its figures and of its log, its record for other processes
(`run_record`), the answers to `probes`, and the reports at its end.
"""
