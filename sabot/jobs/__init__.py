"""Jobs: durable runs of a function, over the journal of what it has asked for.

host        runs jobs over a journal; effects, parking, timers are its parts; owner is what an agent is to its jobs
run         a job in memory, over its history
core        what follows each event of an effect, decided without I/O; history is what a journal has of a job
loop        the event loop that each of them runs on
values      what they ask and get, as bytes
runner      makes the calls of tools
certainty   what a tool's error says of its call
"""
