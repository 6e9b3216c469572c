"""Child processes as the documents 002, 003 and 004 name them, over `sabot.process`: an Instance, a Pool, a Command.

document 002    `lifecycle` has instances with the document's states, `quotas` and `resources` their limits; `warm`,
                `recommending` and `scaling` keep many of them
document 003    `runner` starts a program for one task
document 004    `runtime` keeps instances; `executor` gives them tasks over `task_lines`; `lead` plans the tasks of
a query
"""
