"""Jobs: durable runs of a function, over the journal of what it has asked for.

loop        the event loop that each of them runs on
values      what they ask and get, as bytes
runner      makes the calls of tools
pool        the threads for those of sync tools
certainty   what a tool's error says of its call
"""
