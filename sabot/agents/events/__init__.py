"""Events of jobs, and their subscribers.

bus         events, the bus to which they are published, and its subscribers
job_events  makes events from the entries of a journal
otel        makes spans and metrics of OpenTelemetry from events
"""
