"""The tasks of a running plan: `chain` and `task` run the operators of a stage, `inputs` and `alignment` bring batches,
watermarks and barriers to them, `reading` and `writing` are the ends at sources and sinks, `event_time` and `watermarks`
say how far time is. `facts` and `task_times` are what a task tells of itself.
"""
